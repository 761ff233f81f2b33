//! Rules that several kinds share, as functions that add field errors to a list.

use super::value::{at, int, items, map, same_at, text, texts};
use cumulet_api::field::{FieldError, Problem};
use cumulet_api::names;
use cumulet_api::quantity::Quantity;
use serde_json::{Map, Value};

/// The field errors found so far.
pub(crate) type Errors = Vec<FieldError>;

/// Largest total size of the values of a ConfigMap or Secret, in bytes.
pub(crate) const MAX_DATA_BYTES: usize = 1024 * 1024;
/// Largest total size of the annotations of an object, in bytes.
const MAX_ANNOTATIONS_BYTES: usize = 256 * 1024;
/// What Kubernetes says to a text that is no quantity.
const QUANTITY_TEXT: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// Adds one `Invalid` error per message.
pub(crate) fn invalid(errors: &mut Errors, path: &str, value: impl Into<Value>, messages: Vec<String>) {
    if messages.is_empty() {
        return;
    }
    let value = value.into();
    errors.extend(messages.into_iter().map(|m| FieldError::invalid(path, value.clone(), m)));
}

/// The text at `path` + `.` + `key` is required and must satisfy `rule`.
pub(crate) fn required(
    errors: &mut Errors,
    owner: &Value,
    path: &str,
    key: &str,
    rule: fn(&str) -> Vec<String>,
) {
    let value = text(owner, key);
    if value.is_empty() {
        errors.push(FieldError::required(format!("{path}.{key}"), ""));
    } else {
        invalid(errors, &format!("{path}.{key}"), value, rule(value));
    }
}

/// The text under `key`, if set, must satisfy `rule`.
pub(crate) fn optional(
    errors: &mut Errors,
    owner: &Value,
    path: &str,
    key: &str,
    rule: fn(&str) -> Vec<String>,
) {
    let value = text(owner, key);
    if !value.is_empty() {
        invalid(errors, &format!("{path}.{key}"), value, rule(value));
    }
}

/// Any text will do.
pub(crate) fn anything(_: &str) -> Vec<String> {
    Vec::new()
}

/// The text under `key` is required and must be one of `allowed`.
pub(crate) fn one_of(errors: &mut Errors, owner: &Value, path: &str, key: &str, allowed: &[&str]) {
    let value = text(owner, key);
    if value.is_empty() {
        errors.push(FieldError::required(format!("{path}.{key}"), ""));
    } else if !allowed.contains(&value) {
        errors.push(FieldError::not_supported(format!("{path}.{key}"), value, allowed));
    }
}

/// The text under `key`, if set, must be one of `allowed`.
pub(crate) fn maybe_one_of(errors: &mut Errors, owner: &Value, path: &str, key: &str, allowed: &[&str]) {
    if !text(owner, key).is_empty() {
        one_of(errors, owner, path, key, allowed);
    }
}

/// The numbers under `keys` may not be negative.
pub(crate) fn nonnegative(errors: &mut Errors, owner: &Value, path: &str, keys: &[&str]) {
    for key in keys {
        if let Some(n) = int(owner, key).filter(|n| *n < 0) {
            let field = format!("{path}.{key}");
            errors.push(FieldError::invalid(field, n, "must be greater than or equal to 0"));
        }
    }
}

/// The number under `key`, if set, must be a port.
pub(crate) fn port(errors: &mut Errors, owner: &Value, path: &str, key: &str) {
    if let Some(n) = int(owner, key) {
        invalid(errors, &format!("{path}.{key}"), n, names::port_number(n));
    }
}

/// The value must be the number or the name of a port.
pub(crate) fn port_or_name(errors: &mut Errors, owner: &Value, path: &str, key: &str) {
    let field = format!("{path}.{key}");
    match at(owner, key) {
        Some(Value::String(name)) => invalid(errors, &field, name.as_str(), names::port_name(name)),
        other => {
            let n = other.and_then(Value::as_i64).unwrap_or(0);
            invalid(errors, &field, n, names::port_number(n));
        }
    }
}

/// The value must be an IP address.
pub(crate) fn ip(errors: &mut Errors, path: &str, value: &str) -> Option<std::net::IpAddr> {
    let parsed = value.parse().ok();
    if parsed.is_none() {
        let message = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.push(FieldError::invalid(path, value, message));
    }
    parsed
}

/// The address may be that of a real endpoint: not unspecified, loopback or link-local.
pub(crate) fn ordinary_ip(errors: &mut Errors, path: &str, address: std::net::IpAddr) {
    let (link_local, link_local_multicast) = match address {
        std::net::IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        std::net::IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] == 0xff02),
    };
    let message = if address.is_unspecified() {
        "may not be unspecified (0.0.0.0 or ::)"
    } else if address.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)"
    } else if link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
    } else if link_local_multicast {
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
    } else {
        return;
    };
    errors.push(FieldError::invalid(path, address.to_string(), message));
}

/// A map of labels: the keys are qualified names, the values label values.
pub(crate) fn labels(errors: &mut Errors, owner: &Value, path: &str, key: &str) {
    let path = format!("{path}.{key}");
    for (label, value) in texts(owner, key) {
        invalid(errors, &path, label, names::qualified_name(label));
        invalid(errors, &path, value, names::label_value(value));
    }
}

/// A map of annotations: the keys are qualified names (in any case), the whole is bounded.
pub(crate) fn annotations(errors: &mut Errors, owner: &Value, path: &str) {
    let path = format!("{path}.annotations");
    let mut bytes = 0;
    for (key, value) in texts(owner, "annotations") {
        invalid(errors, &path, key, names::qualified_name(&key.to_lowercase()));
        bytes += key.len() + value.len();
    }
    if bytes > MAX_ANNOTATIONS_BYTES {
        let problem = Problem::TooLong(MAX_ANNOTATIONS_BYTES);
        errors.push(FieldError { field: path, problem, detail: String::new() });
    }
}

/// A `LabelSelector`.
pub(crate) fn label_selector(errors: &mut Errors, selector: &Value, path: &str) {
    labels(errors, selector, path, "matchLabels");
    for (i, expression) in items(selector, "matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let values = items(expression, "values");
        match text(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                format!("{path}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
                format!("{path}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "Exists" | "DoesNotExist" => {}
            other => errors.push(FieldError::invalid(
                format!("{path}.operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = text(expression, "key");
        invalid(errors, &format!("{path}.key"), key, names::qualified_name(key));
        for (j, value) in values.iter().filter_map(Value::as_str).enumerate() {
            invalid(errors, &format!("{path}.values[{j}]"), value, names::label_value(value));
        }
    }
}

/// The value at `path` may not change.
pub(crate) fn immutable(errors: &mut Errors, old: &Value, new: &Value, path: &str) {
    if !same_at(old, new, path) {
        let value = at(new, path).cloned().unwrap_or_default();
        errors.push(FieldError::invalid(path, value, "field is immutable"));
    }
}

/// The keys and sizes of ConfigMap or Secret data; adds the bytes of the values to `total`.
pub(crate) fn data_keys(errors: &mut Errors, owner: &Value, field: &str, size: fn(&str) -> usize) -> usize {
    let mut total = 0;
    for (key, value) in texts(owner, field) {
        invalid(errors, &format!("{field}[{key}]"), key, names::config_map_key(key));
        total += size(value);
    }
    total
}

/// `immutable: true` freezes itself and `fields`.
pub(crate) fn frozen(errors: &mut Errors, old: &Value, new: &Value, fields: &[&str]) {
    const TEXT: &str = "field is immutable when `immutable` is set";
    if !super::value::is_true(old, "immutable") {
        return;
    }
    if !super::value::is_true(new, "immutable") {
        errors.push(FieldError::forbidden("immutable", TEXT));
    }
    for field in fields {
        if map(old, field).unwrap_or(&Map::new()) != map(new, field).unwrap_or(&Map::new()) {
            errors.push(FieldError::forbidden(*field, TEXT));
        }
    }
}

/// Reads a quantity in its JSON forms: a text or a number.
pub(crate) fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(s) => Quantity::parse(s).ok(),
        Value::Number(n) => Quantity::parse(&n.to_string()).ok(),
        _ => None,
    }
}

/// The value must be a quantity that is not negative.
pub(crate) fn nonnegative_quantity(errors: &mut Errors, path: &str, value: &Value) -> Option<Quantity> {
    let parsed = quantity(value);
    match &parsed {
        None => errors.push(FieldError::invalid(path, value.clone(), QUANTITY_TEXT)),
        Some(q) if q.sign() < 0 => {
            errors.push(FieldError::invalid(path, q.to_string(), "must be greater than or equal to 0"));
        }
        Some(_) => {}
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_are_checked_as_kubernetes_does() {
        let selector = json!({
            "matchLabels": {"a b": "c"},
            "matchExpressions": [
                {"key": "x", "operator": "In"}, {"key": "x", "operator": "Exists", "values": ["v"]},
                {"key": "x", "operator": "Like"},
            ],
        });
        let mut errors = Errors::new();
        label_selector(&mut errors, &selector, "spec.selector");
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert!(
            texts[0]
                .starts_with("spec.selector.matchLabels: Invalid value: \"a b\": name part must consist of")
        );
        assert_eq!(
            texts[1..],
            [
                "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' \
                 or 'NotIn'",
                "spec.selector.matchExpressions[1].values: Forbidden: may not be specified when `operator` is \
                 'Exists' or 'DoesNotExist'",
                "spec.selector.matchExpressions[2].operator: Invalid value: \"Like\": not a valid selector operator",
            ]
        );
    }

    #[test]
    fn special_addresses_are_told_apart() {
        for (address, bad) in [
            ("10.0.0.1", false),
            ("127.0.0.1", true),
            ("0.0.0.0", true),
            ("169.254.1.1", true),
            ("224.0.0.5", true),
            ("fe80::1", true),
            ("2001:db8::1", false),
        ] {
            let mut errors = Errors::new();
            if let Some(parsed) = ip(&mut errors, "x", address) {
                ordinary_ip(&mut errors, "x", parsed);
            }
            assert_eq!(!errors.is_empty(), bad, "{address}");
        }
    }
}
