//! Nodes.

use super::checks::{Errors, annotations, invalid, one_of};
use super::printing::{AGE, NAME, age, column, name, string, string_or, wide};
use super::value::{at, at_mut, drop_zeros, is_true, items, keep, object_mut, set, text};
use super::{lifecycle, pod};
use crate::row::{Column, Row, Strategy};
use cumulet_api::field::{FieldError, Problem};
use cumulet_api::{meta, names};
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeSet;

pub(crate) const ROW: Row = Row {
    group: "",
    version: "v1",
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    categories: &[],
    namespaced: false,
    status: true,
    scale: None,
    selectable_fields: &["spec.unschedulable"],
    columns: COLUMNS,
    cells,
    strategy: &Nodes,
};

static COLUMNS: &[Column] = &[
    NAME,
    column("Status", "The status of the node."),
    column("Roles", "The roles of the node."),
    AGE,
    column("Version", "Version of the node's agent."),
    wide("Internal-IP", "Address inside of the cluster."),
    wide("External-IP", "Address outside of the cluster."),
    wide("OS-Image", "The node's operating system."),
    wide("Kernel-Version", "The node's kernel."),
    wide("Container-Runtime", "What runs containers on the node."),
];

fn cells(node: &Value, now: Timestamp) -> Vec<Value> {
    let info = |field: &str| string_or(node, &format!("status.nodeInfo.{field}"), "<unknown>");
    vec![
        name(node),
        status(node).into(),
        roles(node).into(),
        age(node, now),
        string(node, "status.nodeInfo.kubeletVersion"),
        address(node, "InternalIP").into(),
        address(node, "ExternalIP").into(),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn status(node: &Value) -> String {
    let ready = items(node, "status.conditions").iter().find(|c| text(c, "type") == "Ready");
    let word = match ready.map(|c| text(c, "status")) {
        None => "Unknown",
        Some("True") => "Ready",
        Some(_) => "NotReady",
    };
    let cordoned = if is_true(node, "spec.unschedulable") { ",SchedulingDisabled" } else { "" };
    format!("{word}{cordoned}")
}

fn roles(node: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in meta::labels(node) {
        match (key.strip_prefix("node-role.kubernetes.io/"), value.as_str()) {
            (Some(role), _) if !role.is_empty() => roles.insert(role),
            (None, Some(role)) if key == "kubernetes.io/role" && !role.is_empty() => roles.insert(role),
            _ => false,
        };
    }
    if roles.is_empty() {
        return "<none>".to_owned();
    }
    roles.into_iter().collect::<Vec<_>>().join(",")
}

fn address<'a>(node: &'a Value, kind: &str) -> &'a str {
    let found = items(node, "status.addresses").iter().find(|a| text(a, "type") == kind);
    found.map_or("<none>", |a| text(a, "address"))
}

struct Nodes;

impl Strategy for Nodes {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object_mut(object, "spec") {
            drop_zeros(spec, &["unschedulable"]);
        }
        let Some(status) = at_mut(object, "status") else { return };
        for list in ["capacity", "allocatable"] {
            pod::defaults::canonical_quantities(status, list);
        }
        if at(status, "allocatable").is_none()
            && let Some(capacity) = at(status, "capacity").cloned()
        {
            set(status, "allocatable", capacity);
        }
    }

    // A node's agent creates its node with a status: nothing is reset.

    fn prepare_update(&self, old: &Value, new: &mut Value) {
        keep(old, new, "status");
        lifecycle::carry_generation(old, new, false);
    }

    fn prepare_status_update(&self, old: &Value, new: &mut Value) {
        keep(old, new, "spec");
        lifecycle::carry_generation(old, new, false);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        if let Some(metadata) = at(object, "metadata") {
            annotations(&mut errors, metadata, "metadata");
        }
        let mut seen = BTreeSet::new();
        for (i, taint) in items(object, "spec.taints").iter().enumerate() {
            let path = format!("spec.taints[{i}]");
            let (key, value, effect) = (text(taint, "key"), text(taint, "value"), text(taint, "effect"));
            invalid(&mut errors, &format!("{path}.key"), key, names::qualified_name(key));
            invalid(&mut errors, &format!("{path}.value"), value, names::label_value(value));
            one_of(&mut errors, taint, &path, "effect", pod::validate::TAINT_EFFECTS);
            if !seen.insert((key, effect)) {
                let detail = "taints must be unique by key and effect pair".to_owned();
                errors.push(FieldError { field: path, problem: Problem::Duplicate(taint.clone()), detail });
            }
        }
        errors
    }

    fn validate_update(&self, old: &Value, new: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        for (field, name, shown) in [
            ("spec.podCIDR", "podCIDR", "spec.podCIDRs"),
            ("spec.providerID", "providerID", "spec.providerID"),
        ] {
            let before = text(old, field);
            if !before.is_empty() && before != text(new, field) {
                let message = format!("node updates may not change {name} except from \"\" to valid");
                errors.push(FieldError::forbidden(shown, message));
            }
        }
        errors
    }

    fn selectable(&self, object: &Value, field: &str) -> Option<String> {
        (field == "spec.unschedulable").then(|| is_true(object, field).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{check_cells, check_default, check_errors, check_update_errors};
    use serde_json::json;

    #[test]
    fn defaults_and_rules() {
        check_default(
            &ROW,
            json!({"status": {"capacity": {"memory": "2048Mi", "cpu": 2}}}),
            json!({"spec": {}, "status": {
                "capacity": {"memory": "2Gi", "cpu": "2"}, "allocatable": {"memory": "2Gi", "cpu": "2"}}}),
        );
        let taint = json!({"key": "a", "effect": "NoSchedule"});
        check_errors(
            &ROW,
            json!({"spec": {"taints": [taint, taint, {"key": "b"}]}}),
            &[
                "spec.taints[1]: Duplicate value: {\"effect\":\"NoSchedule\",\"key\":\"a\"}: taints must be unique by \
                 key and effect pair",
                "spec.taints[2].effect: Required value",
            ],
        );
        check_update_errors(
            &ROW,
            &json!({"spec": {"podCIDR": "10.0.0.0/24"}}),
            json!({"spec": {"podCIDR": "10.0.1.0/24"}}),
            &["spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"],
        );
    }

    #[test]
    fn cells_are_those_of_kubectl() {
        let node = json!({
            "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": ""}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Debian", "kernelVersion": "6.1",
                             "containerRuntimeVersion": "cumulet://0.1"}}});
        check_cells(
            &ROW,
            &node,
            &[
                "n",
                "Ready,SchedulingDisabled",
                "control-plane,worker",
                "<unknown>",
                "v1.36.0",
                "10.0.0.1",
                "<none>",
                "Debian",
                "6.1",
                "cumulet://0.1",
            ],
        );
        let unknown = "<unknown>";
        check_cells(
            &ROW,
            &json!({}),
            &["", "Unknown", "<none>", unknown, "", "<none>", "<none>", unknown, unknown, unknown],
        );
    }
}
