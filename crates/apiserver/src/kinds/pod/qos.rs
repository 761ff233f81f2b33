//! The quality-of-service class of a pod, computed once when the pod is created.

use crate::kinds::checks::quantity;
use crate::kinds::value::{at, items};
use serde_json::Value;

/// The resources that count.
const RESOURCES: [&str; 2] = ["cpu", "memory"];

/// `Guaranteed` when every container limits processor and memory and requests just that, `BestEffort` when none asks
/// for anything, else `Burstable`. Resources of the whole pod, if given, count instead of those of the containers.
pub(crate) fn class(pod: &Value) -> &'static str {
    let own = at(pod, "spec.resources").filter(|r| {
        ["requests", "limits"].iter().any(|list| RESOURCES.iter().any(|name| amount(r, list, name).is_some()))
    });
    let all: Vec<Option<&Value>> = match own {
        Some(resources) => vec![Some(resources)],
        None => items(pod, "spec.containers")
            .iter()
            .chain(items(pod, "spec.initContainers"))
            .map(|c| at(c, "resources"))
            .collect(),
    };
    let (mut any, mut guaranteed) = (false, !all.is_empty());
    for resources in all {
        for name in RESOURCES {
            let limit = resources.and_then(|r| amount(r, "limits", name));
            let request = resources.and_then(|r| amount(r, "requests", name));
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// The amount of a resource, unless it is nothing.
fn amount(resources: &Value, list: &str, name: &str) -> Option<cumulet_api::quantity::Quantity> {
    resources.get(list)?.get(name).and_then(quantity).filter(|q| q.sign() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classes() {
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}});
        for (resources, expected) in [
            (vec![json!({})], "BestEffort"),
            (vec![json!({"requests": {"cpu": "0"}})], "BestEffort"),
            (vec![full.clone()], "Guaranteed"),
            (vec![full.clone(), full.clone()], "Guaranteed"),
            (vec![full.clone(), json!({})], "Burstable"),
            (vec![json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}})], "Burstable"),
            (vec![json!({"limits": {"cpu": "1", "memory": "1"}, "requests": {"cpu": "0.5"}})], "Burstable"),
            (vec![json!({"requests": {"memory": "1"}})], "Burstable"),
        ] {
            let containers: Vec<Value> = resources.iter().map(|r| json!({"resources": r})).collect();
            assert_eq!(class(&json!({"spec": {"containers": containers}})), expected, "{resources:?}");
        }
    }
}
