//! Rules for environment variables and for references to the pod's own fields and resources.

use crate::kinds::checks::{Errors, invalid, quantity, required};
use crate::kinds::value::{at, items, text};
use cumulet_api::field::FieldError;
use cumulet_api::names;
use serde_json::Value;

/// What a variable can take from its pod.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const SOURCES: [&str; 5] = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
const BYTE_DIVISORS: [&str; 13] =
    ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// Checks `env` and `envFrom` of a container.
pub(crate) fn environment(errors: &mut Errors, container: &Value, path: &str) {
    for (i, variable) in items(container, "env").iter().enumerate() {
        let path = format!("{path}.env[{i}]");
        required(errors, variable, &path, "name", names::relaxed_env_var_name);
        if let Some(from) = at(variable, "valueFrom") {
            value_from(errors, variable, from, &format!("{path}.valueFrom"));
        }
    }
    for (i, source) in items(container, "envFrom").iter().enumerate() {
        let inner = format!("{path}.envFrom[{i}]");
        let prefix = text(source, "prefix");
        if !prefix.is_empty() {
            invalid(errors, &format!("{inner}.prefix"), prefix, names::relaxed_env_var_name(prefix));
        }
        let mut sources = 0;
        for key in ["configMapRef", "secretRef"] {
            if let Some(reference) = at(source, key) {
                sources += 1;
                required(errors, reference, &format!("{inner}.{key}"), "name", names::dns1123_subdomain);
            }
        }
        let message = match sources {
            0 => "must specify one of: `configMapRef` or `secretRef`",
            1 => continue,
            _ => "may not have more than one field specified at a time",
        };
        errors.push(FieldError::invalid(format!("{path}.envFrom"), "", message));
    }
}

fn value_from(errors: &mut Errors, variable: &Value, from: &Value, path: &str) {
    let mut sources = 0;
    for key in SOURCES {
        let Some(reference) = at(from, key) else { continue };
        sources += 1;
        let path = format!("{path}.{key}");
        match key {
            "fieldRef" => field_ref(errors, reference, &path, ENV_FIELDS),
            "resourceFieldRef" => resource_ref(errors, reference, &path, false),
            "fileKeyRef" => required(errors, reference, &path, "volumeName", names::dns1123_label),
            _ => {
                let name = text(reference, "name");
                invalid(errors, &format!("{path}.name"), name, names::dns1123_subdomain(name));
                required(errors, reference, &path, "key", names::config_map_key);
            }
        }
    }
    let message = match sources {
        0 => {
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
        }
        _ if !text(variable, "value").is_empty() => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errors.push(FieldError::invalid(path, "", message));
}

/// A reference to a field of the pod: one of `allowed`, or one label or annotation.
pub(crate) fn field_ref(errors: &mut Errors, reference: &Value, path: &str, allowed: &[&str]) {
    for key in ["apiVersion", "fieldPath"] {
        if text(reference, key).is_empty() {
            errors.push(FieldError::required(format!("{path}.{key}"), ""));
            return;
        }
    }
    let field = text(reference, "fieldPath");
    if let Some((base, key)) = field.strip_suffix("']").and_then(|f| f.split_once("['")) {
        match base {
            "metadata.annotations" => invalid(errors, path, key, names::qualified_name(&key.to_lowercase())),
            "metadata.labels" => invalid(errors, path, key, names::qualified_name(key)),
            _ => errors.push(FieldError::invalid(path, base, "does not support subscript")),
        }
        return;
    }
    let path = format!("{path}.fieldPath");
    let known = ENV_FIELDS.contains(&field) || matches!(field, "metadata.labels" | "metadata.annotations");
    if !known {
        let message = format!("error converting fieldPath: field label not supported: {field}");
        errors.push(FieldError::invalid(path, field, message));
    } else if !allowed.contains(&field) {
        errors.push(FieldError::not_supported(path, field, allowed));
    }
}

/// A reference to a resource of a container; in a volume the container must be named.
pub(crate) fn resource_ref(errors: &mut Errors, reference: &Value, path: &str, in_volume: bool) {
    let resource = text(reference, "resource");
    let huge = resource.starts_with("requests.hugepages-") || resource.starts_with("limits.hugepages-");
    if in_volume && text(reference, "containerName").is_empty() {
        errors.push(FieldError::required(format!("{path}.containerName"), ""));
    } else if resource.is_empty() {
        errors.push(FieldError::required(format!("{path}.resource"), ""));
    } else if !huge && !RESOURCES.contains(&resource) {
        errors.push(FieldError::not_supported(format!("{path}.resource"), resource, RESOURCES));
    }
    let Some(divisor) = at(reference, "divisor").and_then(quantity).filter(|d| !d.is_zero()) else { return };
    let divisor = divisor.to_string();
    let (good, allowed, what) = match resource {
        "limits.cpu" | "requests.cpu" => {
            (["1m", "1"].contains(&divisor.as_str()), "1m and 1".to_owned(), "cpu")
        }
        _ => {
            let what = match resource.rsplit('.').next() {
                Some("memory") => "memory",
                Some("ephemeral-storage") => "local ephemeral storage",
                _ => "hugepages",
            };
            (BYTE_DIVISORS.contains(&divisor.as_str()), BYTE_DIVISORS.join(", "), what)
        }
    };
    if !good {
        let message = format!("only divisor's values {allowed} are supported with the {what} resource");
        errors.push(FieldError::invalid(format!("{path}.divisor"), resource, message));
    }
}
