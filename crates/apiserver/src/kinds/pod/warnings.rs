//! What a client is told about a pod specification that is allowed but unwise.

use super::defaults::CONTAINER_LISTS;
use crate::kinds::checks::quantity;
use crate::kinds::value::{at, int, items, map, text};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const OLD_NODE_LABELS: [(&str, &str, &str); 4] = [
    ("beta.kubernetes.io/arch", "v1.14", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "v1.14", "kubernetes.io/os"),
    ("failure-domain.beta.kubernetes.io/region", "v1.17", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "v1.17", "topology.kubernetes.io/zone"),
];

/// Warnings for the pod specification at `path`.
pub(crate) fn spec(spec: &Value, path: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    for (old, since, new) in OLD_NODE_LABELS {
        if map(spec, "nodeSelector").is_some_and(|m| m.contains_key(old)) {
            warnings
                .push(format!("{path}.nodeSelector[{old}]: deprecated since {since}; use \"{new}\" instead"));
        }
    }
    for (i, secret) in items(spec, "imagePullSecrets").iter().enumerate() {
        if text(secret, "name").is_empty() {
            warnings.push(format!("{path}.imagePullSecrets[{i}].name: invalid empty name \"\""));
        }
    }
    for list in CONTAINER_LISTS {
        for (i, container) in items(spec, list).iter().enumerate() {
            self::container(&mut warnings, container, &format!("{path}.{list}[{i}]"));
        }
    }
    if int(spec, "terminationGracePeriodSeconds").is_some_and(|s| s < 0) {
        warnings.push(format!(
            "{path}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    warnings
}

fn container(warnings: &mut Vec<String>, container: &Value, path: &str) {
    for list in ["limits", "requests"] {
        let bytes = at(container, "resources").and_then(|r| at(r, list)).and_then(|l| l.get("memory"));
        if let Some(amount) = bytes.and_then(quantity).filter(|q| q.millis() % 1000 != 0) {
            warnings.push(format!(
                "{path}.resources.{list}[memory]: fractional byte value \"{amount}\" is invalid, must be an integer"
            ));
        }
    }
    let mut names = BTreeSet::new();
    for (i, variable) in items(container, "env").iter().enumerate() {
        let (name, value) = (text(variable, "name"), text(variable, "value"));
        if !names.insert(name) && !value.contains(&format!("$({name})")) {
            warnings.push(format!(
                "{path}.env[{i}]: hides previous definition of \"{name}\", which may be dropped when using apply"
            ));
        }
    }
    let mut ports = BTreeMap::new();
    for (i, port) in items(container, "ports").iter().enumerate() {
        let here = format!("{path}.ports[{i}]");
        let key =
            (int(port, "containerPort"), text(port, "protocol"), int(port, "hostPort"), text(port, "hostIP"));
        match ports.get(&key) {
            Some(first) => warnings.push(format!("{here}: duplicate port definition with {first}")),
            None => {
                ports.insert(key, here);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unwise_specifications_are_told() {
        let unwise = json!({
            "nodeSelector": {"beta.kubernetes.io/os": "linux"}, "terminationGracePeriodSeconds": -1,
            "containers": [{
                "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "A", "value": "$(A):3"}],
                "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"memory": "100m"}}}]});
        assert_eq!(
            spec(&unwise, "spec"),
            [
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an \
                 integer",
                "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
                "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
                "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1",
            ]
        );
        assert!(spec(&json!({"containers": [{"env": [{"name": "A"}, {"name": "B"}]}]}), "spec").is_empty());
    }
}
