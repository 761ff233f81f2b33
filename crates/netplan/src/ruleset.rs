//! The plan in nftables' terms: sets, chains and elements by name.
//!
//! ```text
//!   prerouting  raw     guard       loopback and foreign sources from pods are dropped
//!   prerouting  -100    nat-in  ─┐
//!   output      -100    nat-out ─┴► dispatch ─► map services, nodeports: goto svc/…   map hostports: dnat
//!   prerouting   -90    refuse-in ─┐
//!   output       -90    refuse-out ┴► refuse   what is still addressed to the service range has no endpoint
//!   postrouting  100    nat-leave   a pod that reaches itself; loopback clients; pods to the world: masquerade
//! ```
//!
//! A service port costs one chain, one rule and one map element; with session affinity one chain and one set per
//! endpoint more, because the set of an endpoint remembers its clients (and lives as long as the endpoint does).

use crate::plan::{Balancer, Endpoint, Plan, PortKey};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Most clients that one endpoint's affinity remembers.
const AFFINITY_CLIENTS: u32 = 65_535;

/// Names and ranges that rules speak of.
#[derive(Clone, Debug)]
pub struct Names {
    /// The table, of family `ip`.
    pub table: String,
    /// The pods' bridge.
    pub bridge: String,
    /// Addresses of pods.
    pub pods: Ipv4Net,
    /// Virtual addresses of services.
    pub services: Ipv4Net,
}

/// The contents of a table. Base chains and the declarations of maps are fixed and not part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Declaration of each set, by name.
    pub(crate) sets: BTreeMap<String, String>,
    /// Rules of each chain, by name.
    pub(crate) chains: BTreeMap<String, Vec<String>>,
    /// Elements by map or set, then by key; the value is empty in a set.
    pub(crate) elements: BTreeMap<&'static str, BTreeMap<String, String>>,
}

impl Ruleset {
    /// The ruleset of a plan.
    pub fn of(plan: &Plan) -> Self {
        let mut ruleset = Self::default();
        for (name, balancer) in &plan.balancers {
            ruleset.add_balancer(name, balancer);
        }
        let key = |k: &PortKey| format!("{} . {} . {}", k.address, k.protocol, k.port);
        let to = |e: &Endpoint| format!("{} . {}", e.address, e.port);
        let goto = |name: &String| format!("goto {name}");
        let elements = [
            ("services", plan.services.iter().map(|(k, name)| (key(k), goto(name))).collect()),
            (
                "nodeports",
                plan.node_ports.iter().map(|((p, n), name)| (format!("{p} . {n}"), goto(name))).collect(),
            ),
            ("hostports", plan.host_ports.iter().map(|((p, n), e)| (format!("{p} . {n}"), to(e))).collect()),
            ("addressports", plan.address_ports.iter().map(|(k, e)| (key(k), to(e))).collect()),
            ("refused", plan.refused.iter().map(|k| (key(k), String::new())).collect()),
            ("hairpin", plan.hairpin.iter().map(|a| (format!("{a} . {a}"), String::new())).collect()),
        ];
        ruleset.elements = elements.into_iter().collect();
        ruleset
    }

    fn add_balancer(&mut self, name: &str, balancer: &Balancer) {
        let rules = match balancer.affinity_s {
            None => vec![balance(balancer)],
            Some(seconds) => self.add_sticky(name, balancer, seconds),
        };
        self.chains.insert(name.to_owned(), rules);
    }

    /// Chains and sets of the endpoints; returns the rules that choose one.
    fn add_sticky(&mut self, name: &str, balancer: &Balancer, seconds: u32) -> Vec<String> {
        let mut rules = Vec::with_capacity(balancer.endpoints.len() + 1);
        let mut choices = String::new();
        for (number, endpoint) in balancer.endpoints.iter().enumerate() {
            let Endpoint { address, port } = endpoint;
            let chain = format!("ep/{name}/{address}/{port}");
            // The timeout is in the name because a set's timeout cannot be changed.
            let set = format!("aff/{name}/{address}/{port}/{seconds}s");
            let declaration = format!(
                "{{ type ipv4_addr; flags dynamic,timeout; timeout {seconds}s; size {AFFINITY_CLIENTS}; }}"
            );
            let remember = format!("update @{set} {{ ip saddr }}");
            let dnat = format!("meta l4proto {} dnat ip to {address}:{port}", balancer.protocol);
            rules.push(format!("ip saddr @{set} goto {chain}"));
            let separator = if number == 0 { "" } else { ", " };
            // Writing to a string cannot fail.
            let _ = write!(choices, "{separator}{number} : goto {chain}");
            self.sets.insert(set, declaration);
            self.chains.insert(chain, vec![format!("{remember} {dnat}")]);
        }
        rules.push(format!("numgen random mod {} vmap {{ {choices} }}", balancer.endpoints.len()));
        rules
    }
}

/// The rule that sends a connection to one of the endpoints.
fn balance(balancer: &Balancer) -> String {
    let protocol = balancer.protocol;
    if let [Endpoint { address, port }] = balancer.endpoints[..] {
        return format!("meta l4proto {protocol} dnat ip to {address}:{port}");
    }
    let mut choices = String::new();
    for (number, endpoint) in balancer.endpoints.iter().enumerate() {
        let separator = if number == 0 { "" } else { ", " };
        let _ = write!(choices, "{separator}{number} : {} . {}", endpoint.address, endpoint.port);
    }
    format!(
        "meta l4proto {protocol} dnat ip to numgen random mod {} map {{ {choices} }}",
        balancer.endpoints.len()
    )
}

/// The fixed part of a table: declarations of maps, base chains and their rules.
pub(crate) fn frame(names: &Names) -> Vec<String> {
    let Names { table, bridge, pods, services } = names;
    let (pods, services) = (pods.trunc(), services.trunc());
    let address_key = "ipv4_addr . inet_proto . inet_service";
    let base = |chain: &str, kind: &str, hook: &str, priority: i32| {
        format!(
            "add chain ip {table} {chain} {{ type {kind} hook {hook} priority {priority}; policy accept; }}"
        )
    };
    let rule = |chain: &str, text: String| format!("add rule ip {table} {chain} {text}");
    let wanted = format!("ip daddr {services} fib daddr type != local");
    vec![
        format!("add map ip {table} services {{ type {address_key} : verdict; }}"),
        format!("add map ip {table} nodeports {{ type inet_proto . inet_service : verdict; }}"),
        format!(
            "add map ip {table} hostports {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}"
        ),
        format!("add map ip {table} addressports {{ type {address_key} : ipv4_addr . inet_service; }}"),
        format!("add set ip {table} refused {{ type {address_key}; }}"),
        format!("add set ip {table} hairpin {{ type ipv4_addr . ipv4_addr; }}"),
        base("guard", "filter", "prerouting", -300),
        // The bridge lets translated packets to 127.0.0.0/8 through; what a pod addresses there itself is an attack.
        rule("guard", format!("iifname \"{bridge}\" ip daddr 127.0.0.0/8 drop")),
        rule("guard", format!("iifname \"{bridge}\" ip saddr != {pods} drop")),
        format!("add chain ip {table} dispatch"),
        rule("dispatch", "ip daddr . meta l4proto . th dport vmap @services".to_owned()),
        rule("dispatch", "dnat ip to ip daddr . meta l4proto . th dport map @addressports".to_owned()),
        rule("dispatch", "fib daddr type local meta l4proto . th dport vmap @nodeports".to_owned()),
        rule("dispatch", "fib daddr type local dnat ip to meta l4proto . th dport map @hostports".to_owned()),
        base("nat-in", "nat", "prerouting", -100),
        rule("nat-in", "jump dispatch".to_owned()),
        base("nat-out", "nat", "output", -100),
        rule("nat-out", "jump dispatch".to_owned()),
        format!("add chain ip {table} refuse"),
        rule("refuse", format!("{wanted} meta l4proto tcp reject with tcp reset")),
        rule("refuse", format!("{wanted} reject with icmp type port-unreachable")),
        rule(
            "refuse",
            "ip daddr . meta l4proto . th dport @refused reject with icmp type port-unreachable".to_owned(),
        ),
        base("refuse-in", "filter", "prerouting", -90),
        rule("refuse-in", "jump refuse".to_owned()),
        base("refuse-out", "filter", "output", -90),
        rule("refuse-out", "jump refuse".to_owned()),
        // Pods reach each other through the bridge's address on purpose; `send_redirects` of the bridge alone does
        // not stop these while that of `all` is on.
        rule("refuse-out", format!("oifname \"{bridge}\" icmp type redirect drop")),
        base("nat-leave", "nat", "postrouting", 100),
        rule("nat-leave", format!("oifname \"{bridge}\" ip saddr . ip daddr @hairpin masquerade")),
        rule("nat-leave", format!("oifname \"{bridge}\" ip saddr 127.0.0.0/8 masquerade")),
        rule("nat-leave", format!("oifname != \"{bridge}\" ip saddr {pods} ip daddr != {pods} masquerade")),
    ]
}
