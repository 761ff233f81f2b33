//! Quality of service of a pod, from its requests and limits.

use cumulet_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod};

/// `status.qosClass`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are Kubernetes' own")]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    /// As written in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// Guaranteed: every container limits CPU and memory and requests (if at all) the same. BestEffort: nobody asks for
/// anything. Burstable: the rest. The API server defaults requests from limits, so equal text is the usual case;
/// differently written equal quantities are compared by value.
pub fn qos_class(pod: &Pod) -> QosClass {
    let Some(spec) = &pod.spec else { return QosClass::BestEffort };
    let all = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    if !all().any(asks) {
        QosClass::BestEffort
    } else if all().all(guaranteed) {
        QosClass::Guaranteed
    } else {
        QosClass::Burstable
    }
}

const COUNTED: [&str; 2] = ["cpu", "memory"];

fn asks(c: &Container) -> bool {
    let Some(r) = &c.resources else { return false };
    [&r.requests, &r.limits].into_iter().flatten().any(|map| {
        COUNTED.iter().any(|name| map.get(*name).is_some_and(|q| parse(&q.0).is_none_or(|v| v.sign() > 0)))
    })
}

fn guaranteed(c: &Container) -> bool {
    let Some(r) = &c.resources else { return false };
    COUNTED.iter().all(|name| {
        let limit = r.limits.as_ref().and_then(|m| m.get(*name));
        let request = r.requests.as_ref().and_then(|m| m.get(*name));
        match (limit, request) {
            (Some(limit), Some(request)) => {
                limit == request || (parse(&limit.0).is_some() && parse(&limit.0) == parse(&request.0))
            }
            (Some(_), None) => true,
            (None, _) => false,
        }
    })
}

/// `None` for what is no quantity, which then only equals itself as text.
fn parse(text: &str) -> Option<Quantity> {
    Quantity::parse(text).ok()
}
