//! The subsets of an Endpoints object, the older form of EndpointSlices that some clients still read. Pure.

use crate::service::backends::{Backend, Port};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset};
use std::collections::BTreeMap;

/// Most addresses in an Endpoints object, as in Kubernetes.
const ADDRESSES_MAX: usize = 1000;

/// One subset per set of ports. Pods that end are left out, unless the service asks for all; so are addresses of
/// another family than the first backend's, since Endpoints hold one family.
pub(crate) fn subsets(backends: &[Backend], publish_not_ready: bool) -> Vec<EndpointSubset> {
    let Some(ipv6) = backends.first().map(|b| b.ipv6) else { return Vec::new() };
    let mut groups: BTreeMap<Vec<Port>, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    let counted = backends.iter().filter(|b| b.ipv6 == ipv6 && (publish_not_ready || !b.terminating));
    for backend in counted.take(ADDRESSES_MAX) {
        let mut ports = backend.ports.clone();
        ports.sort();
        let (ready, not_ready) = groups.entry(ports).or_default();
        if backend.ready { ready.push(address(backend)) } else { not_ready.push(address(backend)) }
    }
    let some = |list: Vec<EndpointAddress>| (!list.is_empty()).then_some(list);
    groups
        .into_iter()
        .map(|(ports, (ready, not_ready))| EndpointSubset {
            addresses: some(ready),
            not_ready_addresses: some(not_ready),
            ports: (!ports.is_empty()).then(|| ports.iter().map(port).collect()),
        })
        .collect()
}

fn address(backend: &Backend) -> EndpointAddress {
    EndpointAddress {
        ip: backend.address.clone(),
        hostname: backend.hostname.clone(),
        node_name: backend.node.clone(),
        target_ref: Some(backend.pod.clone()),
    }
}

fn port(port: &Port) -> EndpointPort {
    EndpointPort {
        name: (!port.name.is_empty()).then(|| port.name.clone()),
        protocol: Some(port.protocol.clone()),
        port: port.port,
        app_protocol: port.app_protocol.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ObjectReference;

    fn backend(address: &str, port: i32, ready: bool, terminating: bool) -> Backend {
        Backend {
            address: address.into(),
            ipv6: false,
            ports: vec![Port { name: "http".into(), protocol: "TCP".into(), port, app_protocol: None }],
            serving: ready,
            terminating,
            ready,
            hostname: None,
            node: None,
            pod: ObjectReference::default(),
        }
    }

    #[test]
    fn subsets_group_by_ports_and_readiness() {
        let backends = [
            backend("10.0.0.1", 80, true, false),
            backend("10.0.0.2", 80, false, false),
            backend("10.0.0.3", 81, true, false),
            backend("10.0.0.4", 80, false, true),
        ];
        let shape = |publish| -> Vec<(usize, usize, i32)> {
            let count = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
            subsets(&backends, publish)
                .iter()
                .map(|s| {
                    let port = s.ports.as_ref().map_or(0, |p| p[0].port);
                    (count(&s.addresses), count(&s.not_ready_addresses), port)
                })
                .collect()
        };
        assert_eq!(shape(false), [(1, 1, 80), (1, 0, 81)]);
        assert_eq!(shape(true), [(1, 2, 80), (1, 0, 81)]);
        assert!(subsets(&[], false).is_empty());
    }
}
