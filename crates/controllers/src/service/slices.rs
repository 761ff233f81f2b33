//! How the backends of a service are spread over EndpointSlices. Pure.
//!
//! Slices hold endpoints of one address family and one set of ports. An endpoint stays in the slice in which it is;
//! new ones fill the slices with room; so a change of one pod changes one slice. A slice's name follows from the
//! service's uid and a number, so that a cache that is behind cannot make a second slice for the same endpoints: its
//! creation finds the name taken.

use crate::meta::{Map, controller_ref, derived_name, name, uid};
use crate::service::backends::{Backend, Port, is_headless};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Most endpoints in a slice, as in Kubernetes.
const SLICE_MAX: usize = 100;
/// Label with the name of the service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label with who keeps the slice.
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`] for slices made here.
pub(crate) const CONTROLLER_NAME: &str = "endpointslice-controller.k8s.io";
/// Label of what belongs to a service without an address of its own.
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";

/// What is to be written.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) create: Vec<EndpointSlice>,
    pub(crate) update: Vec<EndpointSlice>,
    pub(crate) delete: Vec<Arc<EndpointSlice>>,
}

/// Address family and ports: what the endpoints of a slice have in common.
type Group = (bool, Vec<Port>);

/// Plans the slices of a service. `existing` are those that are kept by this controller.
pub(crate) fn plan(service: &Service, backends: &[Backend], existing: &[Arc<EndpointSlice>]) -> Plan {
    let mut groups: BTreeMap<Group, Vec<Endpoint>> = BTreeMap::new();
    for backend in backends {
        groups.entry((backend.ipv6, backend.ports.clone())).or_default().push(endpoint(backend));
    }
    if groups.is_empty() {
        // One slice stays, so that it is seen that the service has no endpoints.
        groups.insert((false, Vec::new()), Vec::new());
    }
    let mut unclaimed: Vec<Arc<EndpointSlice>> = existing.to_vec();
    let mut planner = Planner {
        service,
        labels: labels(service),
        taken: existing.iter().map(|s| name(&s.metadata).to_owned()).collect(),
        plan: Plan::default(),
    };
    for (group, endpoints) in groups {
        let (mine, rest) = unclaimed.into_iter().partition(|slice| is_of_group(slice, &group));
        unclaimed = rest;
        planner.add_group(&group, endpoints, mine);
    }
    planner.plan.delete.extend(unclaimed);
    planner.plan
}

/// A slice that may exist already, and the endpoints that it is to hold.
type Filled = (Option<Arc<EndpointSlice>>, Vec<Endpoint>);

/// Keeps the endpoints where they are, and puts new ones where there is room.
fn fill(mut endpoints: Vec<Endpoint>, slices: Vec<Arc<EndpointSlice>>) -> Vec<Filled> {
    let mut filled: Vec<Filled> = Vec::new();
    for slice in slices {
        let mut kept = Vec::new();
        for old in slice.endpoints.iter().flatten().take(SLICE_MAX) {
            if let Some(i) = endpoints.iter().position(|new| is_same(old, new)) {
                kept.push(endpoints.remove(i));
            }
        }
        filled.push((Some(slice), kept));
    }
    // The fullest first, so that the emptiest become free.
    filled.sort_by_key(|(_, kept)| std::cmp::Reverse(kept.len()));
    for (_, kept) in &mut filled {
        let room = SLICE_MAX - kept.len();
        kept.extend(endpoints.drain(..room.min(endpoints.len())));
    }
    while !endpoints.is_empty() {
        filled.push((None, endpoints.drain(..SLICE_MAX.min(endpoints.len())).collect()));
    }
    filled
}

/// A plan in the making.
struct Planner<'a> {
    service: &'a Service,
    labels: Map,
    /// Names that no new slice may get.
    taken: BTreeSet<String>,
    plan: Plan,
}

impl Planner<'_> {
    /// Lays the endpoints of one group into its slices.
    fn add_group(&mut self, group: &Group, endpoints: Vec<Endpoint>, slices: Vec<Arc<EndpointSlice>>) {
        let mut filled = fill(endpoints, slices);
        let keep_empty = group.1.is_empty() && filled.iter().all(|(_, kept)| kept.is_empty());
        if keep_empty && filled.is_empty() {
            filled.push((None, Vec::new()));
        }
        let mut empty_kept = false;
        for (slice, endpoints) in filled {
            let surplus = endpoints.is_empty() && (!keep_empty || std::mem::replace(&mut empty_kept, true));
            match slice {
                Some(slice) if surplus => self.plan.delete.push(slice),
                Some(slice) => self.plan.update.extend(changed(&slice, &self.labels, endpoints)),
                None => {
                    let slice = self.new_slice(group, endpoints);
                    self.plan.create.push(slice);
                }
            }
        }
    }

    fn new_slice(&mut self, group: &Group, endpoints: Vec<Endpoint>) -> EndpointSlice {
        let base = format!("{}-", name(&self.service.metadata));
        let owner = uid(&self.service.metadata);
        let mut names = (0u32..).map(|n| derived_name(&base, &format!("{owner}/{n}")));
        // The numbers are endless, so a free name is found; it is noted for the next slice.
        let free = names.find(|n| self.taken.insert(n.clone())).unwrap_or_default();
        EndpointSlice {
            metadata: ObjectMeta {
                name: Some(free),
                generate_name: Some(base),
                namespace: self.service.metadata.namespace.clone(),
                labels: Some(self.labels.clone()),
                owner_references: Some(vec![controller_ref(self.service)]),
                ..ObjectMeta::default()
            },
            address_type: if group.0 { "IPv6" } else { "IPv4" }.to_owned(),
            endpoints: Some(endpoints),
            ports: Some(group.1.iter().map(slice_port).collect()),
        }
    }
}

fn changed(slice: &EndpointSlice, labels: &Map, endpoints: Vec<Endpoint>) -> Option<EndpointSlice> {
    let mut after = slice.clone();
    after.metadata.labels = Some(labels.clone());
    if slice.endpoints.as_deref().unwrap_or(&[]) != endpoints {
        after.endpoints = Some(endpoints);
    }
    (after != *slice).then_some(after)
}

fn labels(service: &Service) -> Map {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.to_owned(), name(&service.metadata).to_owned());
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER_NAME.to_owned());
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

fn slice_port(port: &Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone()),
        protocol: Some(port.protocol.clone()),
        port: Some(port.port),
        app_protocol: port.app_protocol.clone(),
    }
}

fn is_of_group(slice: &EndpointSlice, group: &Group) -> bool {
    let family = if group.0 { "IPv6" } else { "IPv4" };
    let mut ports: Vec<Port> = slice
        .ports
        .iter()
        .flatten()
        .map(|p| Port {
            name: p.name.clone().unwrap_or_default(),
            protocol: p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            port: p.port.unwrap_or(0),
            app_protocol: p.app_protocol.clone(),
        })
        .collect();
    let mut wanted = group.1.clone();
    ports.sort();
    wanted.sort();
    slice.address_type == family && ports == wanted
}

fn is_same(old: &Endpoint, new: &Endpoint) -> bool {
    let pod = |e: &Endpoint| e.target_ref.as_ref().and_then(|r| r.uid.clone());
    old.addresses == new.addresses && pod(old) == pod(new)
}

fn endpoint(backend: &Backend) -> Endpoint {
    Endpoint {
        addresses: vec![backend.address.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(backend.ready),
            serving: Some(backend.serving),
            terminating: Some(backend.terminating),
        }),
        hostname: backend.hostname.clone(),
        node_name: backend.node.clone(),
        target_ref: Some(backend.pod.clone()),
        ..Endpoint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ObjectReference;
    use proptest::prelude::*;

    fn service() -> Service {
        let metadata =
            ObjectMeta { name: Some("web".into()), uid: Some("s".into()), ..ObjectMeta::default() };
        Service { metadata, ..Service::default() }
    }

    fn backend(id: usize, port: i32, ready: bool) -> Backend {
        Backend {
            address: format!("10.0.{}.{}", id / 250, id % 250),
            ipv6: false,
            ports: vec![Port { name: String::new(), protocol: "TCP".into(), port, app_protocol: None }],
            serving: ready,
            terminating: false,
            ready,
            hostname: None,
            node: None,
            pod: ObjectReference { uid: Some(id.to_string()), ..ObjectReference::default() },
        }
    }

    /// Does what the plan says.
    fn carry_out(existing: &mut Vec<Arc<EndpointSlice>>, plan: Plan) {
        let named = |a: &EndpointSlice, b: &EndpointSlice| a.metadata.name == b.metadata.name;
        existing.retain(|s| !plan.delete.iter().any(|d| named(d, s)));
        for update in plan.update {
            existing.iter_mut().filter(|s| named(s, &update)).for_each(|s| *s = Arc::new(update.clone()));
        }
        existing.extend(plan.create.into_iter().map(Arc::new));
    }

    #[test]
    fn no_backends_leave_one_empty_slice() {
        let mut slices = Vec::new();
        let first = plan(&service(), &[], &slices);
        carry_out(&mut slices, first);
        assert_eq!(slices.len(), 1);
        assert_eq!(plan(&service(), &[], &slices), Plan::default());
        let second = plan(&service(), &[backend(1, 80, true)], &slices);
        assert_eq!((second.create.len(), second.delete.len()), (1, 1));
    }

    #[test]
    fn one_changed_pod_changes_one_slice() {
        let mut slices = Vec::new();
        let mut pods: Vec<Backend> = (0..250).map(|i| backend(i, 80, true)).collect();
        let first = plan(&service(), &pods, &slices);
        assert_eq!(first.create.len(), 3);
        carry_out(&mut slices, first);
        pods[120].ready = false;
        let second = plan(&service(), &pods, &slices);
        assert_eq!((second.create.len(), second.update.len(), second.delete.len()), (0, 1, 0));
    }

    #[test]
    fn a_lagging_cache_makes_the_same_names() {
        let names = |p: &Plan| p.create.iter().map(|s| s.metadata.name.clone()).collect::<Vec<_>>();
        let pods = [backend(1, 80, true), backend(2, 90, true)];
        assert_eq!(names(&plan(&service(), &pods, &[])), names(&plan(&service(), &pods, &[])));
    }

    proptest! {
        /// Every backend stands in exactly one slice of its ports, slices are not too full, and nothing is left to do.
        #[test]
        fn plans_converge(rounds in prop::collection::vec(prop::collection::vec((0usize..300, 0i32..2, any::<bool>()), 0..300), 1..4)) {
            let mut slices: Vec<Arc<EndpointSlice>> = Vec::new();
            for round in rounds {
                let mut pods: Vec<Backend> = Vec::new();
                for (id, port, ready) in round {
                    if !pods.iter().any(|p| p.pod.uid == Some(id.to_string())) { pods.push(backend(id, port, ready)); }
                }
                let p = plan(&service(), &pods, &slices);
                carry_out(&mut slices, p);
                prop_assert_eq!(plan(&service(), &pods, &slices), Plan::default());
                let names: BTreeSet<_> = slices.iter().map(|s| s.metadata.name.clone()).collect();
                prop_assert_eq!(names.len(), slices.len());
                prop_assert!(slices.iter().all(|s| s.endpoints.as_ref().is_none_or(|e| e.len() <= SLICE_MAX)));
                for pod in &pods {
                    let holding: Vec<_> = slices.iter().filter(|s| {
                        s.endpoints.iter().flatten().any(|e| *e == endpoint(pod))
                    }).collect();
                    prop_assert_eq!(holding.len(), 1);
                    prop_assert_eq!(holding[0].ports.as_ref().map(|p| p[0].port), Some(Some(pod.ports[0].port)));
                }
                let total: usize = slices.iter().map(|s| s.endpoints.as_ref().map_or(0, Vec::len)).sum();
                prop_assert_eq!(total, pods.len());
            }
        }
    }
}
