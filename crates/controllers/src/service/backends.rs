//! Which pods stand behind a service, and with which ports. Pure; shared by Endpoints and EndpointSlices.

use crate::meta::{is_deleting, map_selector, name, namespace};
use crate::pods::{is_finished, is_ready, node, phase};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::net::IpAddr;
use std::sync::Arc;

/// One port of a service, as one pod offers it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port {
    /// Name of the service's port; empty for an unnamed one.
    pub(crate) name: String,
    pub(crate) protocol: String,
    pub(crate) port: i32,
    pub(crate) app_protocol: Option<String>,
}

/// One address behind a service.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Backend {
    pub(crate) address: String,
    pub(crate) ipv6: bool,
    pub(crate) ports: Vec<Port>,
    /// Able to serve: the pod's own readiness.
    pub(crate) serving: bool,
    pub(crate) terminating: bool,
    /// To get traffic.
    pub(crate) ready: bool,
    pub(crate) hostname: Option<String>,
    pub(crate) node: Option<String>,
    pub(crate) pod: ObjectReference,
}

/// True when the endpoints of this service are made from its selector.
pub(crate) fn is_selecting(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let external = spec.and_then(|s| s.type_.as_deref()) == Some("ExternalName");
    !external && spec.and_then(|s| s.selector.as_ref()).is_some_and(|s| !s.is_empty())
}

/// True when the service has no address of its own.
pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// True when the service selects the pod, by its labels alone.
pub(crate) fn selects(service: &Service, pod: &Pod) -> bool {
    is_selecting(service)
        && map_selector(service.spec.as_ref().and_then(|s| s.selector.as_ref()))
            .is_some_and(|selector| crate::meta::selects(&selector, &pod.metadata))
}

/// The backends of a service, ordered by pod name. A pod with several addresses gives one per family.
pub(crate) fn backends(service: &Service, pods: &[Arc<Pod>]) -> Vec<Backend> {
    let selector = map_selector(service.spec.as_ref().and_then(|s| s.selector.as_ref()));
    let Some(selector) = selector.filter(|_| is_selecting(service)) else { return Vec::new() };
    let mut backends: Vec<Backend> = pods
        .iter()
        .filter(|pod| crate::meta::selects(&selector, &pod.metadata) && !is_finished(pod))
        .flat_map(|pod| of_pod(service, pod))
        .collect();
    backends.sort_by(|a, b| (&a.pod.name, &a.address).cmp(&(&b.pod.name, &b.address)));
    backends
}

fn of_pod(service: &Service, pod: &Pod) -> Vec<Backend> {
    let spec = service.spec.clone().unwrap_or_default();
    let families = spec.ip_families.unwrap_or_else(|| vec!["IPv4".to_owned()]);
    let meta = &pod.metadata;
    let (terminating, serving) = (is_deleting(meta), is_ready(pod));
    let publish = spec.publish_not_ready_addresses == Some(true);
    let ports: Vec<Port> = spec.ports.iter().flatten().filter_map(|port| port_of(port, pod)).collect();
    addresses(pod)
        .into_iter()
        .filter(|ip| families.iter().any(|f| f == if ip.is_ipv6() { "IPv6" } else { "IPv4" }))
        .map(|ip| Backend {
            address: ip.to_string(),
            ipv6: ip.is_ipv6(),
            ports: ports.clone(),
            serving,
            terminating,
            ready: publish || (serving && !terminating),
            hostname: hostname(service, pod),
            node: node(pod).map(str::to_owned),
            pod: ObjectReference {
                kind: Some("Pod".to_owned()),
                namespace: meta.namespace.clone(),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
                ..ObjectReference::default()
            },
        })
        .collect()
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut parsed: Vec<IpAddr> = all.filter_map(|ip| ip.parse().ok()).collect();
    if parsed.is_empty() {
        parsed.extend(status.pod_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()));
    }
    parsed
}

/// The name under which DNS knows a pod of a headless service.
fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let of_service = spec.subdomain.as_deref() == Some(name(&service.metadata))
        && namespace(&service.metadata) == namespace(&pod.metadata);
    spec.hostname.clone().filter(|h| of_service && !h.is_empty())
}

/// A service's port on a pod. `None` when it is named by the target and the pod has no such port.
fn port_of(port: &ServicePort, pod: &Pod) -> Option<Port> {
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    let number = match &port.target_port {
        None | Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(target)) => named_port(pod, target, &protocol)?,
    };
    let name = port.name.clone().unwrap_or_default();
    Some(Port { name, protocol, port: number, app_protocol: port.app_protocol.clone() })
}

fn named_port(pod: &Pod, target: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let matches = |p: &&k8s_openapi::api::core::v1::ContainerPort| {
        p.name.as_deref() == Some(target) && p.protocol.as_deref().unwrap_or("TCP") == protocol
    };
    ports.find(matches).map(|p| p.container_port)
}

/// What of a pod decides about endpoints: when it stays equal, no service has to be looked at.
pub(crate) fn fingerprint(pod: &Pod) -> impl PartialEq + use<'_> {
    let meta = &pod.metadata;
    let ips = pod.status.as_ref().map(|s| (&s.pod_ip, &s.pod_ips));
    (
        &meta.uid,
        &meta.labels,
        is_deleting(meta),
        is_ready(pod),
        is_finished(pod),
        phase(pod).is_empty(),
        ips,
        node(pod),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    pub(crate) fn service(spec: Value) -> Service {
        let mut spec = spec;
        spec["selector"] = json!({"app": "web"});
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": "default", "uid": "s"}, "spec": spec}))
        .expect("a service")
    }

    pub(crate) fn pod(name: &str, ip: &str, ready: bool, deleting: bool) -> Arc<Pod> {
        let deleted = deleting.then_some("2026-01-01T00:00:00Z");
        Arc::new(
            serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}, "deletionTimestamp": deleted},
                "spec": {"nodeName": "n", "hostname": "h", "subdomain": "web", "containers": [
                    {"name": "c", "ports": [{"name": "http", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]},
                "status": {"phase": "Running", "podIP": ip, "conditions": [
                    {"type": "Ready", "status": if ready { "True" } else { "False" }}]}}))
            .expect("a pod"),
        )
    }

    #[test]
    fn readiness_and_termination() {
        for (publish, ready, deleting, expected) in [
            (false, true, false, (true, true, false)),
            (false, false, false, (false, false, false)),
            (false, true, true, (false, true, true)),
            (true, false, false, (true, false, false)),
            (true, true, true, (true, true, true)),
        ] {
            let service = service(json!({"publishNotReadyAddresses": publish}));
            let got = backends(&service, &[pod("a", "10.0.0.1", ready, deleting)]);
            let got: Vec<_> = got.iter().map(|b| (b.ready, b.serving, b.terminating)).collect();
            assert_eq!(got, [expected], "{publish} {ready} {deleting}");
        }
    }

    #[test]
    fn ports_by_number_and_by_name() {
        for (port, expected) in [
            (json!({"port": 80}), Some(80)),
            (json!({"port": 80, "targetPort": 90}), Some(90)),
            (json!({"port": 80, "targetPort": "http"}), Some(8080)),
            (json!({"port": 80, "targetPort": "dns"}), None),
            (json!({"port": 80, "targetPort": "dns", "protocol": "UDP"}), Some(53)),
            (json!({"port": 80, "targetPort": "absent"}), None),
        ] {
            let got =
                backends(&service(json!({"ports": [port.clone()]})), &[pod("a", "10.0.0.1", true, false)]);
            assert_eq!(got[0].ports.first().map(|p| p.port), expected, "{port}");
        }
    }

    #[test]
    fn who_is_no_backend() {
        let web = service(json!({}));
        assert!(backends(&web, &[pod("a", "", true, false)]).is_empty(), "no address yet");
        assert!(backends(&web, &[pod("a", "fd00::1", true, false)]).is_empty(), "another family");
        assert!(
            backends(&service(json!({"type": "ExternalName"})), &[pod("a", "10.0.0.1", true, false)])
                .is_empty()
        );
        let mut finished = (*pod("a", "10.0.0.1", true, false)).clone();
        finished.status.get_or_insert_default().phase = Some("Succeeded".into());
        assert!(backends(&web, &[Arc::new(finished)]).is_empty());
        let two = backends(&web, &[pod("b", "10.0.0.2", true, false), pod("a", "10.0.0.1", true, false)]);
        assert_eq!(two.iter().map(|b| b.address.as_str()).collect::<Vec<_>>(), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(two[0].hostname.as_deref(), Some("h"));
    }
}
