//! What the pods of a node ask for. Derived from the pod cache, kept as sums so that a decision costs no walk over
//! all pods.

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A port of the host: address (empty for all), protocol, number.
type HostPort = (String, String, i32);

/// What one pod asks of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Demand {
    /// By resource; `cpu` in thousandths, everything else in whole units.
    pub(crate) resources: BTreeMap<String, i64>,
    ports: BTreeSet<HostPort>,
}

/// A quantity in the unit that sums are kept in.
pub(crate) fn amount(resource: &str, quantity: &Quantity) -> i64 {
    // A malformed quantity is refused by validation; one that got here regardless asks for nothing.
    let Ok(parsed) = cumulet_api::quantity::Quantity::parse(&quantity.0) else { return 0 };
    if resource == "cpu" { parsed.millis() } else { parsed.units() }
}

fn requests(container: &Container) -> BTreeMap<String, i64> {
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    requests.into_iter().flatten().map(|(name, q)| (name.clone(), amount(name, q))).collect()
}

fn add(to: &mut BTreeMap<String, i64>, more: &BTreeMap<String, i64>) {
    for (name, n) in more {
        let sum = to.entry(name.clone()).or_insert(0);
        *sum = sum.saturating_add(*n);
    }
}

fn raise(to: &mut BTreeMap<String, i64>, least: &BTreeMap<String, i64>) {
    for (name, n) in least {
        let most = to.entry(name.clone()).or_insert(0);
        *most = (*most).max(*n);
    }
}

impl Demand {
    /// The sum over the containers, or what the init containers need if that is more: those run one after the
    /// other, each beside the sidecars that were started before it.
    pub(crate) fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else { return Self::default() };
        let mut resources = BTreeMap::new();
        spec.containers.iter().for_each(|c| add(&mut resources, &requests(c)));
        let (mut sidecars, mut peak) = (BTreeMap::new(), BTreeMap::new());
        for container in spec.init_containers.iter().flatten() {
            let own = requests(container);
            if container.restart_policy.as_deref() == Some("Always") {
                add(&mut sidecars, &own);
                raise(&mut peak, &sidecars);
            } else {
                let mut together = sidecars.clone();
                add(&mut together, &own);
                raise(&mut peak, &together);
            }
        }
        add(&mut resources, &sidecars);
        raise(&mut resources, &peak);
        let overhead =
            spec.overhead.iter().flatten().map(|(name, q)| (name.clone(), amount(name, q))).collect();
        add(&mut resources, &overhead);
        Self { resources, ports: host_ports(pod) }
    }
}

fn host_ports(pod: &Pod) -> BTreeSet<HostPort> {
    let containers =
        pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let ports = containers.flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number = port.host_port.filter(|n| *n > 0)?;
            let address = port.host_ip.clone().filter(|ip| ip != "0.0.0.0" && ip != "::").unwrap_or_default();
            Some((address, port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), number))
        })
        .collect()
}

/// What all pods of one node ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    sums: BTreeMap<String, i64>,
    ports: BTreeMap<HostPort, usize>,
    pods: i64,
}

impl Usage {
    pub(crate) fn used(&self, resource: &str) -> i64 {
        self.sums.get(resource).copied().unwrap_or(0)
    }

    pub(crate) fn pods(&self) -> i64 {
        self.pods
    }

    pub(crate) fn has_port_conflict(&self, demand: &Demand) -> bool {
        demand.ports.iter().any(|(address, protocol, port)| {
            self.ports.keys().any(|(taken, p, n)| {
                p == protocol && n == port && (taken == address || taken.is_empty() || address.is_empty())
            })
        })
    }

    fn insert(&mut self, demand: &Demand) {
        self.pods += 1;
        add(&mut self.sums, &demand.resources);
        for port in &demand.ports {
            *self.ports.entry(port.clone()).or_insert(0) += 1;
        }
    }

    fn remove(&mut self, demand: &Demand) {
        self.pods -= 1;
        for (name, n) in &demand.resources {
            if let Some(sum) = self.sums.get_mut(name) {
                *sum -= n;
            }
        }
        for port in &demand.ports {
            if let Some(count) = self.ports.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    self.ports.remove(port);
                }
            }
        }
    }
}

/// Usage of all nodes, and of which pod it is made.
///
/// A pod is entered here when the scheduler has decided, before the API server knows: so decisions that are made
/// while the cache is behind do not give the same room twice. It leaves when the binding fails, or when the cache
/// shows that the pod has ended. Entering it before the call is what makes that sound: every later news of the pod
/// comes after its entry.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    nodes: HashMap<String, Usage>,
    pods: HashMap<String, (String, Demand)>,
}

impl Ledger {
    /// Enters a pod, or moves it.
    pub(crate) fn enter(&mut self, uid: &str, node: &str, demand: Demand) {
        if self.pods.get(uid).is_some_and(|(n, d)| n == node && *d == demand) {
            return;
        }
        self.leave(uid);
        self.nodes.entry(node.to_owned()).or_default().insert(&demand);
        self.pods.insert(uid.to_owned(), (node.to_owned(), demand));
    }

    /// Takes a pod out. True when it was there, so that there is room now.
    pub(crate) fn leave(&mut self, uid: &str) -> bool {
        let Some((node, demand)) = self.pods.remove(uid) else { return false };
        if let Some(usage) = self.nodes.get_mut(&node) {
            usage.remove(&demand);
            if usage.pods == 0 {
                self.nodes.remove(&node);
            }
        }
        true
    }

    /// True when the pod has been given a place already.
    pub(crate) fn holds(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// The usage of a node.
    pub(crate) fn of(&self, node: &str) -> Option<&Usage> {
        self.nodes.get(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": spec}))
            .expect("a pod")
    }

    fn container(cpu: &str, restart: Option<&str>) -> Value {
        json!({"name": "c", "restartPolicy": restart, "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn init_containers_count_by_their_peak() {
        for (containers, init, overhead, expected) in [
            (vec![container("100m", None), container("200m", None)], vec![], "0", 300),
            (vec![container("100m", None)], vec![container("1", None), container("2", None)], "0", 2000),
            (vec![container("100m", None)], vec![container("50m", Some("Always"))], "10m", 160),
            (
                vec![container("100m", None)],
                vec![container("50m", Some("Always")), container("300m", None)],
                "0",
                350,
            ),
        ] {
            let pod =
                pod(json!({"containers": containers, "initContainers": init, "overhead": {"cpu": overhead}}));
            assert_eq!(Demand::of(&pod).resources["cpu"], expected);
        }
    }

    #[test]
    fn host_ports_conflict_by_address() {
        let asks = |ip: &str, port: i32| {
            Demand::of(&pod(
                json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": port, "hostIP": ip}]}]}),
            ))
        };
        let mut ledger = Ledger::default();
        ledger.enter("a", "n", asks("127.0.0.1", 80));
        let usage = ledger.of("n").expect("it has a pod");
        for (ip, port, conflict) in
            [("", 80, true), ("127.0.0.1", 80, true), ("10.0.0.1", 80, false), ("", 81, false)]
        {
            assert_eq!(usage.has_port_conflict(&asks(ip, port)), conflict, "{ip}:{port}");
        }
    }

    proptest! {
        /// Whatever comes and goes, the sums are those of the pods that are there.
        #[test]
        fn sums_match_the_pods(steps in prop::collection::vec((0u8..6, 0u8..3, 0i64..5), 0..60)) {
            let mut ledger = Ledger::default();
            let mut model: HashMap<String, (String, i64)> = HashMap::new();
            for (pod, node, cpu) in steps {
                let (pod, node) = (pod.to_string(), node.to_string());
                if cpu == 0 {
                    prop_assert_eq!(ledger.leave(&pod), model.remove(&pod).is_some());
                } else {
                    let demand = Demand { resources: [("cpu".to_owned(), cpu)].into(), ..Demand::default() };
                    ledger.enter(&pod, &node, demand);
                    model.insert(pod, (node, cpu));
                }
                for node in ["0", "1", "2"] {
                    let on_node: Vec<i64> = model.values().filter(|(n, _)| n == node).map(|(_, c)| *c).collect();
                    let usage = ledger.of(node);
                    prop_assert_eq!(usage.map_or(0, Usage::pods), on_node.len() as i64);
                    prop_assert_eq!(usage.map_or(0, |u| u.used("cpu")), on_node.iter().sum::<i64>());
                }
            }
        }
    }
}
