//! What traffic is to do: the plan.

use crate::endpoints::{Candidates, Observed, SliceIndex, pod_address};
use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, Service, ServicePort, ServiceSpec};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

/// Kubernetes' default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_DEFAULT_S: i32 = 10_800;

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// Kubernetes' spelling; TCP when absent. Unknown ones were refused by validation and count as TCP.
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            Some("UDP") => Self::Udp,
            Some("SCTP") => Self::Sctp,
            _ => Self::Tcp,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// Where a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Address.
    pub address: Ipv4Addr,
    /// Port.
    pub port: u16,
}

/// An address and port that clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    /// Address.
    pub address: Ipv4Addr,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// How connections are spread over endpoints: at random, with equal chances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balancer {
    /// Protocol of all endpoints.
    pub protocol: Protocol,
    /// Never empty; sorted.
    pub endpoints: Vec<Endpoint>,
    /// Connections of one client go to the same endpoint for this many seconds after its last connection.
    pub affinity_s: Option<u32>,
}

/// Everything that the node does with traffic. Balancers are named; names are stable over time and safe as parts of
/// nftables names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Balancers by name.
    pub balancers: BTreeMap<String, Balancer>,
    /// Balancer of each service address and port. Other ports in the service range are refused.
    pub services: BTreeMap<PortKey, String>,
    /// Balancer of each node port, on every address of this machine.
    pub node_ports: BTreeMap<(Protocol, u16), String>,
    /// Pod port behind each host port, on every address of this machine.
    pub host_ports: BTreeMap<(Protocol, u16), Endpoint>,
    /// Pod port behind each host port that is bound to one address.
    pub address_ports: BTreeMap<PortKey, Endpoint>,
    /// Ports on addresses outside the service range (external ones) that have no endpoint.
    pub refused: BTreeSet<PortKey>,
    /// Addresses that can be sent traffic by a service: when one reaches itself, its source must be replaced.
    pub hairpin: BTreeSet<Ipv4Addr>,
}

impl Plan {
    /// The endpoints of UDP ports, where connections have no end of their own.
    pub fn udp_endpoints(&self) -> impl Iterator<Item = Endpoint> {
        let balanced = self.balancers.values().filter(|b| b.protocol == Protocol::Udp);
        let hosts = self.host_ports.iter().filter(|((protocol, _), _)| *protocol == Protocol::Udp);
        let addresses = self.address_ports.iter().filter(|(key, _)| key.protocol == Protocol::Udp);
        let direct = hosts.map(|(_, endpoint)| endpoint).chain(addresses.map(|(_, endpoint)| endpoint));
        balanced.flat_map(|b| &b.endpoints).chain(direct).copied()
    }
}

/// Computes the plan.
pub fn plan(observed: &Observed<'_>) -> Plan {
    let slices = SliceIndex::new(observed.slices);
    let mut plan = Plan::default();
    for service in observed.services {
        plan_service(&mut plan, service, &slices, observed.node);
    }
    for pod in observed.pods {
        plan_host_ports(&mut plan, pod);
    }
    let endpoints = plan.balancers.values().flat_map(|b| &b.endpoints);
    let behind = endpoints.chain(plan.host_ports.values()).chain(plan.address_ports.values());
    plan.hairpin = behind.map(|e| e.address).filter(|a| !a.is_loopback()).collect();
    plan
}

fn plan_service(plan: &mut Plan, service: &Service, slices: &SliceIndex<'_>, node: &str) {
    let (Some(namespace), Some(name)) = (&service.metadata.namespace, &service.metadata.name) else { return };
    let Some(spec) = &service.spec else { return };
    let cluster = cluster_addresses(spec);
    let named = is_name(namespace) && is_name(name);
    if cluster.is_empty() || !named || spec.type_.as_deref() == Some("ExternalName") {
        return;
    }
    let external = external_addresses(service, spec);
    let affinity_s = affinity(spec);
    for port in spec.ports.iter().flatten() {
        let Ok(number) = u16::try_from(port.port) else { continue };
        let protocol = Protocol::parse(port.protocol.as_deref());
        let label = format!("{namespace}/{name}/{protocol}/{number}");
        let candidates = Candidates::new(port, slices.of(namespace, name), node);
        let inside = candidates.usable(is_local(&spec.internal_traffic_policy));
        let outside = candidates.usable(is_local(&spec.external_traffic_policy));
        // One chain serves both sides unless the policies really make a difference.
        let outside_name = if inside == outside { format!("svc/{label}") } else { format!("ext/{label}") };
        let balancer = |endpoints| Balancer { protocol, endpoints, affinity_s };
        let key = |address: &Ipv4Addr| PortKey { address: *address, protocol, port: number };
        if !inside.is_empty() {
            let name = format!("svc/{label}");
            plan.services.extend(cluster.iter().map(|a| (key(a), name.clone())));
            plan.balancers.insert(name, balancer(inside));
        }
        if outside.is_empty() {
            plan.refused.extend(external.iter().map(key));
            continue;
        }
        let node_port = node_port(port);
        if node_port.is_some() || !external.is_empty() {
            plan.services.extend(external.iter().map(|a| (key(a), outside_name.clone())));
            plan.node_ports.extend(node_port.map(|p| ((protocol, p), outside_name.clone())));
            plan.balancers.entry(outside_name).or_insert_with(|| balancer(outside));
        }
    }
}

/// The virtual addresses of a service; none for a headless one.
pub(crate) fn cluster_addresses(spec: &ServiceSpec) -> Vec<Ipv4Addr> {
    let listed = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let addresses: BTreeSet<Ipv4Addr> = listed.filter_map(|ip| ip.parse().ok()).collect();
    addresses.into_iter().collect()
}

fn external_addresses(service: &Service, spec: &ServiceSpec) -> Vec<Ipv4Addr> {
    let balancer = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let ingress =
        balancer.and_then(|b| b.ingress.as_ref()).into_iter().flatten().filter_map(|i| i.ip.as_ref());
    spec.external_ips.iter().flatten().chain(ingress).filter_map(|ip| ip.parse().ok()).collect()
}

fn affinity(spec: &ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    let seconds = config.and_then(|c| c.timeout_seconds).unwrap_or(AFFINITY_DEFAULT_S);
    Some(u32::try_from(seconds).unwrap_or(0).max(1))
}

fn is_local(policy: &Option<String>) -> bool {
    policy.as_deref() == Some("Local")
}

fn node_port(port: &ServicePort) -> Option<u16> {
    port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0)
}

/// Whether a namespace or service name may become a part of a rule. Validation has seen to it long before; a name
/// that got past it must not become nft syntax.
fn is_name(name: &str) -> bool {
    let safe = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    (1..=63).contains(&name.len()) && name.bytes().all(safe)
}

fn plan_host_ports(plan: &mut Plan, pod: &Pod) {
    let Some(spec) = &pod.spec else { return };
    let Some(address) = pod_address(pod) else { return };
    if spec.host_network == Some(true) {
        return;
    }
    // Init containers that stay (sidecars) have ports, the others are gone when anybody connects.
    let sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(sidecar));
    for port in containers.flat_map(|c| c.ports.iter().flatten()) {
        plan_host_port(plan, port, address);
    }
}

fn plan_host_port(plan: &mut Plan, port: &ContainerPort, address: Ipv4Addr) {
    let number = |n: i32| u16::try_from(n).ok().filter(|n| *n != 0);
    let (Some(outside), Some(inside)) = (port.host_port.and_then(number), number(port.container_port)) else {
        return;
    };
    let protocol = Protocol::parse(port.protocol.as_deref());
    let endpoint = Endpoint { address, port: inside };
    match port.host_ip.as_deref() {
        None | Some("" | "0.0.0.0") => {
            plan.host_ports.insert((protocol, outside), endpoint);
        }
        Some(ip) => {
            if let Ok(address) = ip.parse() {
                plan.address_ports.insert(PortKey { address, protocol, port: outside }, endpoint);
            }
        }
    }
}
