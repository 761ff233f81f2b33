//! Fields of a pod and resources of its containers, as the downward API offers them.

use crate::env::PodFacts;
use cumulet_api::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::BTreeMap;

/// A path that the downward API does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FieldPathError {
    /// No such field.
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    /// No such resource.
    #[error("unsupported container resource: {0}")]
    Resource(String),
}

/// The value of a field of the pod.
///
/// # Errors
/// [`FieldPathError::Field`].
pub(crate) fn field(pod: &Pod, facts: &PodFacts, path: &str) -> Result<String, FieldPathError> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let text = |s: Option<&String>| s.cloned().unwrap_or_default();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(FieldPathError::Field(path.to_owned())),
        };
        return Ok(text(map.and_then(|m| m.get(key))));
    }
    Ok(match path {
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => text(spec.and_then(|s| s.node_name.as_ref())),
        "spec.serviceAccountName" => text(spec.and_then(|s| s.service_account_name.as_ref())),
        "status.podIP" => text(facts.pod_ips.first()),
        "status.podIPs" => facts.pod_ips.join(","),
        "status.hostIP" => text(facts.host_ips.first()),
        "status.hostIPs" => facts.host_ips.join(","),
        _ => return Err(FieldPathError::Field(path.to_owned())),
    })
}

/// `metadata.labels['key']` → map and key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// One `key="value"` per line, sorted, the value quoted as in Go.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let all = map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}"));
    all.collect::<Vec<_>>().join("\n")
}

/// The value of a resource of a container, divided and rounded up. An absent limit is what the node has.
///
/// # Errors
/// [`FieldPathError::Resource`].
pub(crate) fn resource(
    _pod: &Pod,
    container: &Container,
    facts: &PodFacts,
    (path, divisor): (&str, Option<&str>),
) -> Result<String, FieldPathError> {
    let bad = || FieldPathError::Resource(path.to_owned());
    let (kind, name) = path.split_once('.').ok_or_else(bad)?;
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|r| r.limits.as_ref());
    let map = match kind {
        "limits" => limits,
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        _ => return Err(bad()),
    };
    let given = map.and_then(|m| m.get(name)).and_then(|q| Quantity::parse(&q.0).ok());
    let millis = match (&given, kind, name) {
        (Some(q), ..) => i128::from(q.millis()),
        (None, "limits", "cpu") => i128::from(facts.node_millicpu),
        (None, "limits", "memory") => i128::from(facts.node_memory_bytes) * 1000,
        (None, _, "cpu" | "memory" | "ephemeral-storage") => 0,
        _ => return Err(bad()),
    };
    // Memory of more than 2^63/1000 bytes saturates in `millis`; its units do not.
    let millis =
        given.as_ref().map_or(millis, |q| millis.max(i128::from(q.units()).saturating_sub(1) * 1000));
    let divisor = divisor.and_then(|d| Quantity::parse(d).ok()).map_or(1000, |d| i128::from(d.millis()));
    let divisor = if divisor <= 0 { 1000 } else { divisor };
    Ok(((millis + divisor - 1) / divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let container: Container = serde_json::from_value(json!({"name": "a", "resources": {
            "limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}}))
        .unwrap();
        let facts = PodFacts { node_millicpu: 2000, node_memory_bytes: 1 << 30, ..PodFacts::default() };
        for (path, divisor, want) in [
            ("limits.cpu", None, "2"),
            ("limits.cpu", Some("1m"), "1500"),
            ("limits.memory", None, "67108864"),
            ("limits.memory", Some("1Mi"), "64"),
            ("requests.cpu", Some("1m"), "250"),
            ("requests.memory", None, "0"),
        ] {
            let got = resource(&Pod::default(), &container, &facts, (path, divisor)).unwrap();
            assert_eq!(got, want, "{path} {divisor:?}");
        }
        let none = Container::default();
        assert_eq!(resource(&Pod::default(), &none, &facts, ("limits.cpu", Some("1m"))).unwrap(), "2000");
    }

    #[test]
    fn fields() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "a",
            "annotations": {"k": "line\n\"q\""}, "labels": {"b": "2", "a": "1"}}}))
        .unwrap();
        let facts = PodFacts::default();
        assert_eq!(field(&pod, &facts, "metadata.labels").unwrap(), "a=\"1\"\nb=\"2\"");
        assert_eq!(field(&pod, &facts, "metadata.annotations").unwrap(), "k=\"line\\n\\\"q\\\"\"");
        assert_eq!(field(&pod, &facts, "metadata.annotations['k']").unwrap(), "line\n\"q\"");
        assert!(field(&pod, &facts, "spec.nope").is_err());
    }
}
