//! Reading and writing fields of JSON objects by dotted paths.
//!
//! Everything here is total: a missing field, `null` and a value of another type all read as "not set". Types are
//! the schema's business; the rules of the kinds only have to be safe against wrong ones.
//! Paths cannot name keys with dots in them (labels, annotations); those are read through `cumulet_api::meta`.

use serde_json::{Map, Value};

/// The field at a dotted path, unless it is absent or `null`.
pub(crate) fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    let mut here = value;
    for key in path.split('.') {
        here = here.get(key)?;
    }
    (!here.is_null()).then_some(here)
}

/// The same, to be changed.
pub(crate) fn at_mut<'a>(value: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    let mut here = value;
    for key in path.split('.') {
        here = here.get_mut(key)?;
    }
    (!here.is_null()).then_some(here)
}

/// The text at a path; empty when not set.
pub(crate) fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).and_then(Value::as_str).unwrap_or("")
}

/// The whole number at a path.
pub(crate) fn int(value: &Value, path: &str) -> Option<i64> {
    at(value, path).and_then(Value::as_i64)
}

/// True when the path holds `true`.
pub(crate) fn is_true(value: &Value, path: &str) -> bool {
    flag(value, path) == Some(true)
}

/// The boolean at a path.
pub(crate) fn flag(value: &Value, path: &str) -> Option<bool> {
    at(value, path).and_then(Value::as_bool)
}

/// The list at a path; empty when not set.
pub(crate) fn items<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    at(value, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The list at a path, to be changed; empty when not set.
pub(crate) fn items_mut<'a>(value: &'a mut Value, path: &str) -> &'a mut [Value] {
    at_mut(value, path).and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice)
}

/// The map at a path.
pub(crate) fn map<'a>(value: &'a Value, path: &str) -> Option<&'a Map<String, Value>> {
    at(value, path).and_then(Value::as_object)
}

/// The entries of the map at a path whose values are texts, in the order of their keys.
pub(crate) fn texts<'a>(value: &'a Value, path: &str) -> Vec<(&'a str, &'a str)> {
    let Some(map) = map(value, path) else { return Vec::new() };
    let mut entries: Vec<_> = map.iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap_or(""))).collect();
    entries.sort_unstable();
    entries
}

/// The object under `key`, made when it is absent or `null`; `None` when `value` or the field is something else.
pub(crate) fn object_mut<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let map = value.as_object_mut()?;
    if map.get(key).is_none_or(Value::is_null) {
        map.insert(key.to_owned(), Value::Object(Map::new()));
    }
    map.get_mut(key).filter(|v| v.is_object())
}

/// Sets `key` unless it is set already. An empty text counts as not set, as it does in Kubernetes' types.
pub(crate) fn default_to(value: &mut Value, key: &str, default: impl Into<Value>) {
    if let Some(map) = value.as_object_mut() {
        let unset = map.get(key).is_none_or(|v| v.is_null() || v.as_str() == Some(""));
        if unset {
            map.insert(key.to_owned(), default.into());
        }
    }
}

/// Sets the number under `key` unless it is set to something but zero.
pub(crate) fn default_nonzero(value: &mut Value, key: &str, default: i64) {
    if let Some(map) = value.as_object_mut() {
        let unset = map.get(key).is_none_or(|v| v.is_null() || v.as_i64() == Some(0));
        if unset {
            map.insert(key.to_owned(), default.into());
        }
    }
}

/// Sets `key`.
pub(crate) fn set(value: &mut Value, key: &str, to: impl Into<Value>) {
    if let Some(map) = value.as_object_mut() {
        map.insert(key.to_owned(), to.into());
    }
}

/// Removes `key`.
pub(crate) fn unset(value: &mut Value, key: &str) -> Option<Value> {
    value.as_object_mut().and_then(|map| map.remove(key))
}

/// Removes those of `keys` that hold the zero value of a plain (not optional) field: such values do not exist in
/// Kubernetes' serialized objects, and a client that reads and writes back an object drops them.
pub(crate) fn drop_zeros(value: &mut Value, keys: &[&str]) {
    if let Some(map) = value.as_object_mut() {
        for key in keys {
            if map.get(*key).is_some_and(is_zero) {
                map.remove(*key);
            }
        }
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_i64() == Some(0),
        Value::String(s) => s.is_empty(),
        _ => false,
    }
}

/// Makes `key` of `new` what it is in `old`.
pub(crate) fn keep(old: &Value, new: &mut Value, key: &str) {
    match old.get(key) {
        Some(value) => set(new, key, value.clone()),
        None => {
            unset(new, key);
        }
    }
}

/// Equal but for the difference between empty and absent texts, lists and objects.
pub(crate) fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(v), None) | (None, Some(v)) => is_empty(v),
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            a.iter().all(|(k, v)| same(Some(v), b.get(k)))
                && b.iter().all(|(k, v)| a.contains_key(k) || is_empty(v))
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            a.len() == b.len() && a.iter().zip(b).all(|(x, y)| same(Some(x), Some(y)))
        }
        (Some(a), Some(b)) => a == b || (is_empty(a) && is_empty(b)),
    }
}

/// True when both hold the same at `path`, in the sense of [`same`].
pub(crate) fn same_at(a: &Value, b: &Value, path: &str) -> bool {
    same(at(a, path), at(b, path))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.values().all(is_empty),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_read_what_is_set() {
        let v = json!({"a": {"b": "x", "n": null, "l": [1], "t": true, "i": 4}});
        assert_eq!(text(&v, "a.b"), "x");
        assert_eq!(text(&v, "a.i"), "");
        assert_eq!(at(&v, "a.n"), None);
        assert_eq!(items(&v, "a.l").len(), 1);
        assert!(items(&v, "a.b").is_empty());
        assert!(is_true(&v, "a.t"));
        assert_eq!(int(&v, "a.i"), Some(4));
        assert_eq!(at(&Value::Null, "a.b"), None);
    }

    #[test]
    fn sameness_ignores_empty_but_not_false() {
        for (a, b, equal) in [
            (json!({}), json!({"x": null, "y": [], "z": {"w": ""}}), true),
            (json!({"x": 0}), json!({}), false),
            (json!({"x": false}), json!({}), false),
            (json!([{"a": 1}]), json!([{"a": 1, "b": {}}]), true),
            (json!([1]), json!([1, 2]), false),
            (json!("a"), json!("b"), false),
        ] {
            assert_eq!(same(Some(&a), Some(&b)), equal, "{a} {b}");
            assert_eq!(same(Some(&b), Some(&a)), equal, "{b} {a}");
        }
    }

    #[test]
    fn defaults_fill_only_what_is_not_set() {
        let mut v = json!({"a": "", "b": "x", "c": null, "n": 0, "m": 5});
        for key in ["a", "b", "c"] {
            default_to(&mut v, key, "d");
        }
        default_nonzero(&mut v, "n", 3);
        default_nonzero(&mut v, "m", 3);
        assert_eq!(v, json!({"a": "d", "b": "x", "c": "d", "n": 3, "m": 5}));
        drop_zeros(&mut v, &["n", "zz"]);
        assert_eq!(object_mut(&mut v, "b"), None);
        assert_eq!(object_mut(&mut v, "o"), Some(&mut json!({})));
    }
}
