//! Tables for the plan and the records; properties against a model of services and a model of nftables.

use super::*;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

fn object<T: k8s_openapi::serde::de::DeserializeOwned>(json: serde_json::Value) -> Arc<T> {
    Arc::new(serde_json::from_value(json).unwrap())
}

fn service(name: &str, spec: serde_json::Value) -> Arc<Service> {
    object(serde_json::json!({"metadata": {"namespace": "default", "name": name}, "spec": spec}))
}

/// Endpoints as `address`, with flags: `!` not ready, `~` terminating but serving, `@` on another node.
fn slice(service: &str, port: serde_json::Value, endpoints: &[&str]) -> Arc<EndpointSlice> {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|text| {
            let address = text.trim_start_matches(['!', '~', '@']);
            let (down, ending) = (text.contains('!'), text.contains('~'));
            serde_json::json!({
                "addresses": [address],
                "nodeName": if text.contains('@') { "elsewhere" } else { "here" },
                "conditions": {"ready": !down && !ending, "serving": !down, "terminating": ending},
            })
        })
        .collect();
    object(serde_json::json!({
        "addressType": "IPv4",
        "metadata": {"namespace": "default", "name": format!("{service}-x"),
                     "labels": {"kubernetes.io/service-name": service}},
        "ports": [port],
        "endpoints": endpoints,
    }))
}

struct World {
    services: Vec<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
    pods: Vec<Arc<Pod>>,
}

impl World {
    fn observed(&self) -> Observed<'_> {
        Observed { node: "here", services: &self.services, slices: &self.slices, pods: &self.pods }
    }
}

fn names() -> Names {
    Names {
        table: "cumulet-abcdef".to_owned(),
        bridge: "cumabcdef".to_owned(),
        pods: "10.86.0.0/16".parse().unwrap(),
        services: "10.97.0.0/16".parse().unwrap(),
    }
}

/// Where a connection to an address and port can end: an interpreter of the plan. `None` means that the plan does not
/// touch it (a port of this machine), an empty list that it is refused.
fn reach(plan: &Plan, address: &str, protocol: Protocol, port: u16, local: bool) -> Option<Vec<String>> {
    let address: Ipv4Addr = address.parse().unwrap();
    let key = PortKey { address, protocol, port };
    let show = |e: &Endpoint| format!("{}:{}", e.address, e.port);
    let node_port = plan.node_ports.get(&(protocol, port)).filter(|_| local);
    if let Some(name) = plan.services.get(&key) {
        return Some(plan.balancers[name].endpoints.iter().map(show).collect());
    }
    if let Some(endpoint) = plan.address_ports.get(&key) {
        return Some(vec![show(endpoint)]);
    }
    if let Some(name) = node_port {
        return Some(plan.balancers[name].endpoints.iter().map(show).collect());
    }
    if let Some(endpoint) = plan.host_ports.get(&(protocol, port)).filter(|_| local) {
        return Some(vec![show(endpoint)]);
    }
    let refused = names().services.contains(&address) || plan.refused.contains(&key);
    refused.then(Vec::new)
}

fn web() -> serde_json::Value {
    serde_json::json!({"clusterIP": "10.97.0.5", "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]})
}

fn with(mut spec: serde_json::Value, more: serde_json::Value) -> serde_json::Value {
    let more = more.as_object().unwrap().clone();
    spec.as_object_mut().unwrap().extend(more);
    spec
}

/// One service `web` (with these additions to its spec) with these endpoints: who is reached through the service
/// address, and through the node port.
fn check_web(more: serde_json::Value, endpoints: &[&str], inside: &[&str], outside: Option<&[&str]>) {
    let port = serde_json::json!({"port": 8080, "protocol": "TCP"});
    let world = World {
        services: vec![service("web", with(web(), more.clone()))],
        slices: vec![slice("web", port, endpoints)],
        pods: vec![],
    };
    let plan = plan(&world.observed());
    let owned = |list: &[&str]| list.iter().map(|e| format!("{e}:8080")).collect::<Vec<_>>();
    let got = reach(&plan, "10.97.0.5", Protocol::Tcp, 80, false);
    assert_eq!(got, Some(owned(inside)), "inside {more} {endpoints:?}");
    let got = reach(&plan, "127.0.0.1", Protocol::Tcp, 30080, true);
    assert_eq!(got, outside.map(owned), "outside {more} {endpoints:?}");
}

#[test]
fn endpoints_that_take_traffic() {
    let none = || serde_json::json!({});
    check_web(
        none(),
        &["10.86.0.2", "10.86.0.3"],
        &["10.86.0.2", "10.86.0.3"],
        Some(&["10.86.0.2", "10.86.0.3"]),
    );
    check_web(none(), &["10.86.0.2", "!10.86.0.3"], &["10.86.0.2"], Some(&["10.86.0.2"]));
    check_web(none(), &["10.86.0.2", "~10.86.0.3"], &["10.86.0.2"], Some(&["10.86.0.2"]));
    check_web(none(), &["!10.86.0.2", "~10.86.0.3"], &["10.86.0.3"], Some(&["10.86.0.3"]));
    check_web(none(), &["!10.86.0.2"], &[], None);
    check_web(none(), &[], &[], None);
    let local = serde_json::json!({"internalTrafficPolicy": "Local"});
    check_web(local, &["@10.9.0.1", "10.86.0.2"], &["10.86.0.2"], Some(&["10.9.0.1", "10.86.0.2"]));
    let local = serde_json::json!({"externalTrafficPolicy": "Local"});
    check_web(local.clone(), &["@10.9.0.1", "10.86.0.2"], &["10.9.0.1", "10.86.0.2"], Some(&["10.86.0.2"]));
    check_web(local, &["@10.9.0.1"], &["10.9.0.1"], None);
}

#[test]
fn other_ports_and_addresses() {
    let port = serde_json::json!({"port": 8080, "protocol": "TCP"});
    let more = serde_json::json!({"externalIPs": ["192.0.2.9"]});
    let up = World {
        services: vec![service("web", with(web(), more))],
        slices: vec![slice("web", port, &["10.86.0.2"])],
        pods: vec![],
    };
    let down = World { slices: vec![], services: up.services.clone(), pods: vec![] };
    let (up, down) = (plan(&up.observed()), plan(&down.observed()));
    let one = Some(vec!["10.86.0.2:8080".to_owned()]);
    let check = |plan: &Plan, address, protocol, port, local, expected: Option<Vec<String>>| {
        assert_eq!(reach(plan, address, protocol, port, local), expected, "{address} {protocol} {port}");
    };
    check(&up, "10.97.0.5", Protocol::Tcp, 81, false, Some(vec![]));
    check(&up, "10.97.0.5", Protocol::Udp, 80, false, Some(vec![]));
    check(&up, "10.97.9.9", Protocol::Tcp, 80, false, Some(vec![]));
    check(&up, "192.0.2.9", Protocol::Tcp, 80, false, one);
    check(&down, "192.0.2.9", Protocol::Tcp, 80, false, Some(vec![]));
    check(&up, "192.0.2.9", Protocol::Tcp, 22, false, None);
    check(&up, "127.0.0.1", Protocol::Tcp, 22, true, None);
    check(&up, "10.86.0.2", Protocol::Tcp, 30080, false, None);
}

#[test]
fn host_ports() {
    let pod = |ip: &str, phase: &str, port: serde_json::Value| {
        object(serde_json::json!({
            "metadata": {"namespace": "default", "name": "p"},
            "spec": {"containers": [{"name": "c", "ports": [port]}]},
            "status": {"podIP": ip, "phase": phase},
        }))
    };
    let pods = vec![
        pod("10.86.0.2", "Running", serde_json::json!({"containerPort": 80, "hostPort": 8080})),
        pod(
            "10.86.0.3",
            "Running",
            serde_json::json!({"containerPort": 53, "hostPort": 5353, "protocol": "UDP",
                                                      "hostIP": "127.0.0.1"}),
        ),
        pod("10.86.0.4", "Failed", serde_json::json!({"containerPort": 80, "hostPort": 8081})),
        pod("10.86.0.5", "Running", serde_json::json!({"containerPort": 80})),
    ];
    let world = World { services: vec![], slices: vec![], pods };
    let plan = plan(&world.observed());
    assert_eq!(reach(&plan, "192.0.2.1", Protocol::Tcp, 8080, true).unwrap(), ["10.86.0.2:80"]);
    assert_eq!(reach(&plan, "127.0.0.1", Protocol::Udp, 5353, true).unwrap(), ["10.86.0.3:53"]);
    assert_eq!(reach(&plan, "192.0.2.1", Protocol::Udp, 5353, true), None);
    assert_eq!(reach(&plan, "127.0.0.1", Protocol::Tcp, 8081, true), None);
    assert_eq!(plan.hairpin.len(), 2);
}

#[test]
fn named_ports_and_two_slices() {
    let spec = serde_json::json!({"clusterIP": "10.97.0.5", "ports": [
        {"name": "http", "port": 80, "targetPort": "web"}, {"name": "dns", "port": 53, "protocol": "UDP"}]});
    let world = World {
        services: vec![service("two", spec)],
        slices: vec![
            slice("two", serde_json::json!({"name": "http", "port": 8080}), &["10.86.0.2"]),
            slice("two", serde_json::json!({"name": "http", "port": 9090}), &["10.86.0.3", "fd00::1"]),
            slice("two", serde_json::json!({"name": "dns", "port": 53, "protocol": "UDP"}), &["10.86.0.4"]),
        ],
        pods: vec![],
    };
    let plan = plan(&world.observed());
    let got = reach(&plan, "10.97.0.5", Protocol::Tcp, 80, false).unwrap();
    assert_eq!(got, ["10.86.0.2:8080", "10.86.0.3:9090"]);
    assert_eq!(reach(&plan, "10.97.0.5", Protocol::Udp, 53, false).unwrap(), ["10.86.0.4:53"]);
}

#[test]
fn a_name_cannot_become_syntax() {
    let evil = service("x { } ; flush ruleset", web());
    let long = service(&"x".repeat(64), web());
    let world = World { services: vec![evil, long], slices: vec![], pods: vec![] };
    assert_eq!(plan(&world.observed()), Plan::default());
}

#[test]
fn headless_and_external_names_are_no_balancers() {
    let services = vec![
        service("h", serde_json::json!({"clusterIP": "None", "ports": [{"port": 80}]})),
        service("e", serde_json::json!({"type": "ExternalName", "externalName": "example.org"})),
    ];
    let world = World { services, slices: vec![], pods: vec![] };
    assert_eq!(plan(&world.observed()), Plan::default());
}

#[test]
fn dns_records() {
    let named = serde_json::json!({"name": "http", "port": 8080, "protocol": "TCP"});
    let mut stateful =
        EndpointSlice::clone(&slice("db", named.clone(), &["10.86.0.7", "10.86.0.8", "!10.86.0.9"]));
    stateful.endpoints.as_mut().unwrap()[0].hostname = Some("db-0".to_owned());
    let pod = object(serde_json::json!({
        "metadata": {"namespace": "prod", "name": "p"}, "spec": {"containers": []},
        "status": {"podIP": "10.86.0.2", "phase": "Running"},
    }));
    let ports = serde_json::json!([{"name": "http", "port": 80}, {"port": 81}]);
    let world = World {
        services: vec![
            service("web", serde_json::json!({"clusterIP": "10.97.0.5", "ports": ports})),
            service("db", serde_json::json!({"clusterIP": "None", "ports": ports})),
            service("empty", serde_json::json!({"clusterIP": "None"})),
            service("ext", serde_json::json!({"type": "ExternalName", "externalName": "Example.org."})),
        ],
        slices: vec![Arc::new(stateful), slice("web", named, &["10.86.0.2"])],
        pods: vec![pod],
    };
    let mut text = String::new();
    for (name, data) in records(&world.observed(), "cluster.local") {
        text.push_str(&format!("{name} {data:?}\n"));
    }
    let expected = r#"10-86-0-2.prod.pod.cluster.local {A(10.86.0.2)}
10-86-0-8.db.default.svc.cluster.local {A(10.86.0.8)}
5.0.97.10.in-addr.arpa {Ptr("web.default.svc.cluster.local")}
7.0.86.10.in-addr.arpa {Ptr("db-0.db.default.svc.cluster.local")}
8.0.86.10.in-addr.arpa {Ptr("10-86-0-8.db.default.svc.cluster.local")}
_http._tcp.db.default.svc.cluster.local {Srv { weight: 100, port: 8080, target: "10-86-0-8.db.default.svc.cluster.local" }, Srv { weight: 100, port: 8080, target: "db-0.db.default.svc.cluster.local" }}
_http._tcp.web.default.svc.cluster.local {Srv { weight: 100, port: 80, target: "web.default.svc.cluster.local" }}
db-0.db.default.svc.cluster.local {A(10.86.0.7)}
db.default.svc.cluster.local {A(10.86.0.7), A(10.86.0.8)}
dns-version.cluster.local {Txt("1.1.0")}
empty.default.svc.cluster.local {}
ext.default.svc.cluster.local {Cname("example.org")}
web.default.svc.cluster.local {A(10.97.0.5)}
"#;
    assert_eq!(text, expected);
}

/// A table as the kernel would hold it; refuses what the kernel refuses.
#[derive(Debug, Default, PartialEq)]
struct Table {
    sets: BTreeSet<String>,
    chains: BTreeMap<String, Vec<String>>,
    elements: BTreeMap<String, BTreeMap<String, String>>,
}

impl Table {
    fn run(&mut self, script: &str) {
        for line in script.lines() {
            let words: Vec<&str> = line.splitn(6, ' ').collect();
            let name = words.get(4).copied().unwrap_or("").to_owned();
            let rest = words.get(5).copied().unwrap_or("");
            match (words[0], words[1]) {
                ("add", "table") => {}
                ("delete", "table") => *self = Self::default(),
                ("add", "set" | "map") => drop(self.sets.insert(name)),
                ("add", "chain") => drop(self.chains.entry(name).or_default()),
                ("flush", "chain") => self.chains.get_mut(&name).expect(line).clear(),
                ("add", "rule") => {
                    self.check_references(rest);
                    self.chains.get_mut(&name).expect(line).push(rest.to_owned());
                }
                ("delete", "chain") => {
                    assert!(self.chains.remove(&name).is_some(), "{line}");
                    assert!(!self.is_used(&format!("goto {name}")), "still used: {line}");
                }
                ("delete", "set") => {
                    assert!(self.sets.remove(&name), "{line}");
                    assert!(!self.is_used(&format!("@{name}")), "still used: {line}");
                }
                (verb @ ("add" | "delete"), "element") => self.change_elements(verb, &name, rest),
                _ => panic!("unknown command: {line}"),
            }
        }
    }

    fn change_elements(&mut self, verb: &str, map: &str, list: &str) {
        assert!(self.sets.contains(map), "no set {map}");
        for element in list.trim_matches(['{', '}', ' ']).split(", ") {
            let (key, value) = element.split_once(" : ").unwrap_or((element, ""));
            self.check_references(value);
            let elements = self.elements.entry(map.to_owned()).or_default();
            let old = match verb {
                "add" => elements.insert(key.to_owned(), value.to_owned()),
                _ => elements.remove(key).filter(|old| old != value),
            };
            assert_eq!(old, None, "{verb} {map} {element}");
            if elements.is_empty() {
                self.elements.remove(map);
            }
        }
    }

    fn words(text: &str) -> impl Iterator<Item = &str> {
        text.split([' ', ',']).filter(|word| !word.is_empty())
    }

    fn check_references(&self, text: &str) {
        let words: Vec<&str> = Self::words(text).collect();
        for pair in words.windows(2) {
            if matches!(pair[0], "goto" | "jump") {
                assert!(self.chains.contains_key(pair[1]), "no chain {}", pair[1]);
            }
        }
        for set in words.iter().filter_map(|word| word.strip_prefix('@')) {
            assert!(self.sets.contains(set), "no set {set}");
        }
    }

    fn is_used(&self, reference: &str) -> bool {
        let rules = self.chains.values().flatten();
        let values = self.elements.values().flat_map(|elements| elements.values());
        rules.chain(values).any(|text| format!("{text} ").contains(&format!("{reference} ")))
    }
}

/// A service in short: ports with their endpoints' states, affinity.
#[derive(Clone, Debug)]
struct Model {
    number: u8,
    node_port: bool,
    affinity: Option<u8>,
    /// Last byte of the address, and state 0 ready, 1 not ready, 2 terminating.
    endpoints: BTreeMap<u8, u8>,
}

fn model() -> impl Strategy<Value = Vec<Model>> {
    let endpoints = prop::collection::btree_map(2u8..9, 0u8..3, 0..5);
    let one = (0u8..6, any::<bool>(), prop::option::of(1u8..3), endpoints);
    let one = one.prop_map(|(number, node_port, affinity, endpoints)| Model {
        number,
        node_port,
        affinity,
        endpoints,
    });
    prop::collection::vec(one, 0..6).prop_map(|mut all| {
        all.sort_by_key(|m| m.number);
        all.dedup_by_key(|m| m.number);
        all
    })
}

fn world(models: &[Model]) -> World {
    let mut world = World { services: vec![], slices: vec![], pods: vec![] };
    for m in models {
        let name = format!("s{}", m.number);
        let mut port = serde_json::json!({"port": 80});
        if m.node_port {
            port["nodePort"] = (30000 + i32::from(m.number)).into();
        }
        let mut spec = serde_json::json!({"clusterIP": format!("10.97.0.{}", m.number), "ports": [port]});
        if let Some(seconds) = m.affinity {
            spec["sessionAffinity"] = "ClientIP".into();
            spec["sessionAffinityConfig"] = serde_json::json!({"clientIP": {"timeoutSeconds": seconds}});
        }
        let mark = ["", "!", "~"];
        let endpoints: Vec<String> = m
            .endpoints
            .iter()
            .map(|(last, state)| format!("{}10.86.0.{last}", mark[usize::from(*state)]))
            .collect();
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        world.services.push(service(&name, spec));
        world.slices.push(slice(&name, serde_json::json!({"port": 8080}), &endpoints));
    }
    world
}

proptest! {
    #[test]
    fn every_port_reaches_exactly_its_endpoints(models in model()) {
        let world = world(&models);
        let plan = plan(&world.observed());
        for m in &models {
            let of = |state| m.endpoints.iter().filter(move |(_, s)| **s == state).map(|(last, _)| last);
            let wanted = if of(0).next().is_some() { 0 } else { 2 };
            let expected: Vec<String> = of(wanted).map(|last| format!("10.86.0.{last}:8080")).collect();
            let inside = reach(&plan, &format!("10.97.0.{}", m.number), Protocol::Tcp, 80, false);
            prop_assert_eq!(inside, Some(expected.clone()));
            let outside = reach(&plan, "127.0.0.1", Protocol::Tcp, 30000 + u16::from(m.number), true);
            prop_assert_eq!(outside, (m.node_port && !expected.is_empty()).then_some(expected));
        }
    }

    #[test]
    fn a_diff_leads_to_the_same_table(old in model(), new in model()) {
        let names = names();
        let ruleset = |models: &[Model]| Ruleset::of(&plan(&world(models).observed()));
        let (old, new) = (ruleset(&old), ruleset(&new));
        let mut stepped = Table::default();
        stepped.run(&render(&names, &old));
        stepped.run(&diff(&names, &old, &new));
        let mut fresh = Table::default();
        fresh.run(&render(&names, &new));
        prop_assert_eq!(stepped, fresh);
        prop_assert_eq!(diff(&names, &new, &new), "");
    }
}
