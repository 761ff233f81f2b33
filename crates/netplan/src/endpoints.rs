//! What was observed, and which endpoints of it take traffic.

use crate::plan::{Endpoint, Protocol};
use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Label that ties an EndpointSlice to its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The objects that a plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// Name of this node: endpoints with it are local.
    pub node: &'a str,
    /// All services.
    pub services: &'a [Arc<Service>],
    /// All endpoint slices.
    pub slices: &'a [Arc<EndpointSlice>],
    /// The pods of this node.
    pub pods: &'a [Arc<Pod>],
}

/// Slices by namespace and service.
pub(crate) struct SliceIndex<'a>(HashMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>);

impl<'a> SliceIndex<'a> {
    pub(crate) fn new(slices: &'a [Arc<EndpointSlice>]) -> Self {
        let mut index: HashMap<_, Vec<_>> = HashMap::with_capacity(slices.len());
        for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
            let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
            if let (Some(namespace), Some(service)) = (&slice.metadata.namespace, service) {
                index.entry((namespace.as_str(), service.as_str())).or_default().push(&**slice);
            }
        }
        Self(index)
    }

    /// The slices of a service.
    pub(crate) fn of<'s>(&'s self, namespace: &'s str, service: &'s str) -> &'s [&'s EndpointSlice] {
        self.0.get(&(namespace, service)).map_or(&[], Vec::as_slice)
    }
}

/// State of one endpoint of a service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    ready: bool,
    /// Serving although terminating: used only when nothing is ready.
    fallback: bool,
    local: bool,
}

/// The endpoints of one service port.
#[derive(Debug, Default)]
pub(crate) struct Candidates(BTreeMap<Endpoint, State>);

impl Candidates {
    pub(crate) fn new(port: &ServicePort, slices: &[&EndpointSlice], node: &str) -> Self {
        let name = port.name.as_deref().unwrap_or("");
        let protocol = Protocol::parse(port.protocol.as_deref());
        let mut found = BTreeMap::new();
        for slice in slices {
            let number = slice.ports.iter().flatten().find(|p| {
                p.name.as_deref().unwrap_or("") == name && Protocol::parse(p.protocol.as_deref()) == protocol
            });
            let Some(number) = number.and_then(|p| p.port).and_then(|p| u16::try_from(p).ok()) else {
                continue;
            };
            for endpoint in slice.endpoints.iter().flatten() {
                let Some(address) = first_address(&endpoint.addresses) else { continue };
                let state: &mut State = found.entry(Endpoint { address, port: number }).or_default();
                let conditions = endpoint.conditions.clone().unwrap_or_default();
                let ready = conditions.ready.unwrap_or(true);
                // An endpoint may stand in two slices for a moment: the better state counts.
                state.ready |= ready;
                state.fallback |=
                    conditions.serving.unwrap_or(ready) && conditions.terminating.unwrap_or(false) && !ready;
                state.local |= endpoint.node_name.as_deref() == Some(node);
            }
        }
        Self(found)
    }

    /// The endpoints that take traffic: the ready ones, or when there are none those that still serve while they
    /// terminate. With `local_only`, the choice is made among the local ones.
    pub(crate) fn usable(&self, local_only: bool) -> Vec<Endpoint> {
        let pick = |wanted: fn(&State) -> bool| -> Vec<Endpoint> {
            let all = self.0.iter().filter(|(_, state)| wanted(state) && (state.local || !local_only));
            all.map(|(endpoint, _)| *endpoint).collect()
        };
        let ready = pick(|state| state.ready);
        if ready.is_empty() { pick(|state| state.fallback) } else { ready }
    }
}

/// An endpoint has one address; more than one in the list are legacy and mean the same endpoint.
pub(crate) fn first_address(addresses: &[String]) -> Option<Ipv4Addr> {
    addresses.first()?.parse().ok()
}

/// A pod's IPv4 address, while it can have traffic.
pub(crate) fn pod_address(pod: &Pod) -> Option<Ipv4Addr> {
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    status.pod_ip.as_deref()?.parse().ok()
}
