//! Whether a pod may run on a node, and if not, why. Pure; the words are Kubernetes', since people search for them.
//!
//! Absent: inter-pod affinity, topology spread and preferences. They choose among nodes, and a cloud of one machine
//! has one.

use crate::scheduler::usage::{Demand, Usage};
use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration,
};
use std::collections::BTreeMap;

/// Taint of a cordoned node.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// The reasons why the pod does not fit, empty when it does.
pub(crate) fn misfits(pod: &Pod, demand: &Demand, node: &Node, usage: &Usage) -> Vec<String> {
    let Some(spec) = &pod.spec else { return vec!["pod has no spec".to_owned()] };
    let tolerations = spec.tolerations.as_deref().unwrap_or(&[]);
    let node_spec = node.spec.clone().unwrap_or_default();
    let cordon = Taint { key: UNSCHEDULABLE.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
    if node_spec.unschedulable == Some(true) && !tolerates(tolerations, &cordon) {
        return vec!["node(s) were unschedulable".to_owned()];
    }
    let hard = |t: &&Taint| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute");
    if let Some(taint) = node_spec.taints.iter().flatten().filter(hard).find(|t| !tolerates(tolerations, t)) {
        let value = taint.value.as_deref().unwrap_or("");
        return vec![format!("node(s) had untolerated taint {{{}: {value}}}", taint.key)];
    }
    if !selected(spec, node) {
        return vec!["node(s) didn't match Pod's node affinity/selector".to_owned()];
    }
    if usage.has_port_conflict(demand) {
        return vec!["node(s) didn't have free ports for the requested pod ports".to_owned()];
    }
    shortages(demand, node, usage)
}

fn shortages(demand: &Demand, node: &Node, usage: &Usage) -> Vec<String> {
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
    let room =
        |name: &str| allocatable.and_then(|a| a.get(name)).map(|q| crate::scheduler::usage::amount(name, q));
    let mut reasons = Vec::new();
    if room("pods").is_some_and(|pods| usage.pods() + 1 > pods) {
        reasons.push("Too many pods".to_owned());
    }
    for (name, wanted) in &demand.resources {
        // A resource that the node does not offer at all is missing, whatever is asked of it.
        let free = room(name).unwrap_or(0) - usage.used(name);
        if *wanted > 0 && *wanted > free {
            reasons.push(format!("Insufficient {name}"));
        }
    }
    reasons
}

fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|t| {
        let effect = t.effect.as_deref().unwrap_or("");
        let key = t.key.as_deref().unwrap_or("");
        (effect.is_empty() || effect == taint.effect)
            && (key.is_empty() || key == taint.key)
            && match t.operator.as_deref().unwrap_or("Equal") {
                "Exists" => true,
                "" | "Equal" => {
                    !key.is_empty()
                        && t.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or("")
                }
                _ => false,
            }
    })
}

fn selected(spec: &PodSpec, node: &Node) -> bool {
    let empty = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    if !spec.node_selector.iter().flatten().all(|(k, v)| labels.get(k) == Some(v)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let Some(required) =
        affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
    else {
        return true;
    };
    node_matches(&required.node_selector_terms, node)
}

/// Whether one of the terms holds for the node.
pub(crate) fn node_matches(terms: &[NodeSelectorTerm], node: &Node) -> bool {
    let empty = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    let name = node.metadata.name.as_deref().unwrap_or("");
    terms.iter().any(|term| term_matches(term, labels, name))
}

/// Terms are alternatives; within one, everything must hold. An empty term matches nothing.
fn term_matches(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or(&[]);
    let fields = term.match_fields.as_deref().unwrap_or(&[]);
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|r| requirement_matches(r, labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| r.key == "metadata.name" && requirement_matches(r, Some(name)))
}

fn requirement_matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or(&[]);
    let listed = value.is_some_and(|value| values.iter().any(|v| v == value));
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(own, bound)| own > bound),
        "Lt" => numbers().is_some_and(|(own, bound)| own < bound),
        _ => false,
    }
}

/// What the pod's condition and event say when no node fits.
pub(crate) fn unschedulable_message(nodes: usize, reasons: &BTreeMap<String, usize>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let mut counted: Vec<String> =
        reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    counted.sort();
    format!("0/{nodes} nodes are available: {}.", counted.join(", "))
}

/// The same for a reason that has nothing to do with nodes.
pub(crate) fn unresolvable_message(nodes: usize, reason: &str) -> String {
    format!("0/{nodes} nodes are available: {reason}.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Checks a pod's spec against a node's labels, spec and status.
    fn check(pod: Value, node: Value, expected: &[&str]) {
        let mut base = json!({"containers": [], "nodeName": null});
        for (key, value) in pod.as_object().expect("a map") {
            base[key] = value.clone();
        }
        let pod_text = base.to_string();
        let pod: Pod =
            serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": base}))
                .expect("a pod");
        let mut full = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "10"}}});
        for (key, value) in node.as_object().expect("a map") {
            full[key] = value.clone();
        }
        let node: Node = serde_json::from_value(full).expect("a node");
        let got = misfits(&pod, &Demand::of(&pod), &node, &Usage::default());
        assert_eq!(got, expected, "{pod_text}");
    }

    fn affinity(key: &str, operator: &str, values: &[&str]) -> Value {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]}}}})
    }

    #[test]
    fn cordons_and_taints() {
        let cordoned = json!({"spec": {"unschedulable": true}});
        check(json!({}), cordoned.clone(), &["node(s) were unschedulable"]);
        check(json!({"tolerations": [{"operator": "Exists"}]}), cordoned.clone(), &[]);
        check(
            json!({"tolerations": [{"key": UNSCHEDULABLE, "operator": "Exists", "effect": "NoSchedule"}]}),
            cordoned,
            &[],
        );
        let tainted = json!({"spec": {"taints": [{"key": "a", "value": "b", "effect": "NoExecute"}]}});
        let refused = ["node(s) had untolerated taint {a: b}"];
        check(json!({}), tainted.clone(), &refused);
        check(json!({"tolerations": [{"key": "a", "value": "b"}]}), tainted.clone(), &[]);
        check(json!({"tolerations": [{"key": "a", "value": "c"}]}), tainted.clone(), &refused);
        check(
            json!({"tolerations": [{"key": "a", "value": "b", "effect": "NoSchedule"}]}),
            tainted,
            &refused,
        );
        check(json!({}), json!({"spec": {"taints": [{"key": "a", "effect": "PreferNoSchedule"}]}}), &[]);
    }

    #[test]
    fn selectors_and_affinity() {
        let labelled = json!({"metadata": {"name": "n", "labels": {"disk": "ssd", "cores": "8"}}});
        let refused = ["node(s) didn't match Pod's node affinity/selector"];
        check(json!({"nodeSelector": {"disk": "ssd"}}), labelled.clone(), &[]);
        check(json!({"nodeSelector": {"disk": "hdd"}}), labelled.clone(), &refused);
        for (key, operator, values, fits) in [
            ("disk", "In", &["ssd", "nvme"][..], true),
            ("disk", "In", &["hdd"], false),
            ("disk", "NotIn", &["hdd"], true),
            ("gpu", "NotIn", &["a"], true),
            ("gpu", "Exists", &[], false),
            ("gpu", "DoesNotExist", &[], true),
            ("cores", "Gt", &["4"], true),
            ("cores", "Lt", &["4"], false),
            ("disk", "Gt", &["4"], false),
            ("disk", "Nonsense", &["ssd"], false),
        ] {
            check(affinity(key, operator, values), labelled.clone(), if fits { &[] } else { &refused });
        }
        let by_name = |name: &str| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{}, {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}]}}}})
        };
        check(by_name("n"), labelled.clone(), &[]);
        check(by_name("m"), labelled, &refused);
    }

    #[test]
    fn resources() {
        let asks =
            |requests: Value| json!({"containers": [{"name": "c", "resources": {"requests": requests}}]});
        check(asks(json!({"cpu": "2", "memory": "1Gi"})), json!({}), &[]);
        check(
            asks(json!({"cpu": "2001m", "memory": "2Gi"})),
            json!({}),
            &["Insufficient cpu", "Insufficient memory"],
        );
        check(asks(json!({"example.com/gpu": "1"})), json!({}), &["Insufficient example.com/gpu"]);
        check(asks(json!({"example.com/gpu": "0"})), json!({}), &[]);
        check(json!({}), json!({"status": {"allocatable": {"pods": "0"}}}), &["Too many pods"]);
    }

    #[test]
    fn messages() {
        let reasons = BTreeMap::from([("Insufficient cpu".to_owned(), 2), ("Too many pods".to_owned(), 1)]);
        assert_eq!(
            unschedulable_message(3, &reasons),
            "0/3 nodes are available: 1 Too many pods, 2 Insufficient cpu."
        );
        assert_eq!(unschedulable_message(0, &reasons), "no nodes available to schedule pods");
    }
}
