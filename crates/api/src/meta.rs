//! Views of an object's metadata over untyped JSON, and the two time formats of the API.
//!
//! The getters never fail: what is absent or of another type reads as empty. Whoever needs type errors runs
//! [`crate::schema::check`] first.

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use serde_json::{Map, Value};

static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);

/// The `metadata` object; an empty one when there is none.
pub fn metadata(object: &Value) -> &Map<String, Value> {
    object.get("metadata").and_then(Value::as_object).unwrap_or(&EMPTY)
}

/// The `metadata` object, made when it is not there. `None` when the object is no JSON object.
pub fn metadata_mut(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let slot = object.as_object_mut()?.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut()
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    metadata(object).get(field).and_then(Value::as_str).unwrap_or("")
}

/// Sets a string field of the metadata; an empty value removes it.
pub fn set_text(object: &mut Value, field: &str, value: &str) {
    if let Some(meta) = metadata_mut(object) {
        if value.is_empty() {
            meta.remove(field);
        } else {
            meta.insert(field.to_owned(), Value::String(value.to_owned()));
        }
    }
}

/// `metadata.name`
pub fn name(object: &Value) -> &str {
    text(object, "name")
}

/// `metadata.generateName`
pub fn generate_name(object: &Value) -> &str {
    text(object, "generateName")
}

/// `metadata.namespace`
pub fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

/// `metadata.uid`
pub fn uid(object: &Value) -> &str {
    text(object, "uid")
}

/// `metadata.resourceVersion`
pub fn resource_version(object: &Value) -> &str {
    text(object, "resourceVersion")
}

/// `metadata.creationTimestamp`
pub fn creation_timestamp(object: &Value) -> &str {
    text(object, "creationTimestamp")
}

/// `metadata.deletionTimestamp`, when the object is being deleted.
pub fn deletion_timestamp(object: &Value) -> Option<&str> {
    Some(text(object, "deletionTimestamp")).filter(|t| !t.is_empty())
}

/// `metadata.deletionGracePeriodSeconds`
pub fn deletion_grace_period_seconds(object: &Value) -> Option<i64> {
    metadata(object).get("deletionGracePeriodSeconds").and_then(Value::as_i64)
}

/// `metadata.generation`; 0 when absent.
pub fn generation(object: &Value) -> i64 {
    metadata(object).get("generation").and_then(Value::as_i64).unwrap_or(0)
}

/// `apiVersion`
pub fn api_version(object: &Value) -> &str {
    object.get("apiVersion").and_then(Value::as_str).unwrap_or("")
}

/// `kind`
pub fn kind(object: &Value) -> &str {
    object.get("kind").and_then(Value::as_str).unwrap_or("")
}

/// Group (empty for core) and version of an `apiVersion`.
pub fn group_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// `metadata.labels`
pub fn labels(object: &Value) -> &Map<String, Value> {
    metadata(object).get("labels").and_then(Value::as_object).unwrap_or(&EMPTY)
}

/// `metadata.annotations`
pub fn annotations(object: &Value) -> &Map<String, Value> {
    metadata(object).get("annotations").and_then(Value::as_object).unwrap_or(&EMPTY)
}

/// `metadata.finalizers`
pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    list(object, "finalizers").filter_map(Value::as_str)
}

fn list<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    metadata(object).get(field).and_then(Value::as_array).into_iter().flatten()
}

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerRef<'a> {
    /// apiVersion of the owner.
    pub api_version: &'a str,
    /// Kind of the owner.
    pub kind: &'a str,
    /// Name of the owner.
    pub name: &'a str,
    /// Uid of the owner.
    pub uid: &'a str,
    /// True for the owner that manages the object.
    pub controller: bool,
    /// True when the owner may not go before the object in a foreground deletion.
    pub block_owner_deletion: bool,
}

/// `metadata.ownerReferences`
pub fn owner_references(object: &Value) -> impl Iterator<Item = OwnerRef<'_>> {
    list(object, "ownerReferences").map(|owner| {
        let text = |field: &str| owner.get(field).and_then(Value::as_str).unwrap_or("");
        let flag = |field: &str| owner.get(field).and_then(Value::as_bool).unwrap_or(false);
        OwnerRef {
            api_version: text("apiVersion"),
            kind: text("kind"),
            name: text("name"),
            uid: text("uid"),
            controller: flag("controller"),
            block_owner_deletion: flag("blockOwnerDeletion"),
        }
    })
}

/// The owner that manages the object, if any.
pub fn controller_of(object: &Value) -> Option<OwnerRef<'_>> {
    owner_references(object).find(|owner| owner.controller)
}

/// `Time`: RFC 3339 in UTC with whole seconds, `2026-01-02T03:04:05Z`.
pub fn time(at: Timestamp) -> String {
    printed(at, 0)
}

/// `MicroTime`: RFC 3339 in UTC with six digits of a second, `2026-01-02T03:04:05.000006Z`.
pub fn micro_time(at: Timestamp) -> String {
    printed(at, 6)
}

fn printed(at: Timestamp, digits: u8) -> String {
    let mut out = String::with_capacity(32);
    // Writing to a string cannot fail.
    let _ = DateTimePrinter::new().precision(Some(digits)).print_timestamp(&at, &mut out);
    out
}

/// Reads a `Time` or `MicroTime`; any RFC 3339 text is accepted, as Go does.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn absent_reads_as_empty() {
        for object in
            [json!({}), json!({"metadata": null}), json!({"metadata": {"name": 1, "labels": []}}), json!(1)]
        {
            assert_eq!((name(&object), labels(&object).len(), generation(&object)), ("", 0, 0));
            assert_eq!(finalizers(&object).count() + owner_references(&object).count(), 0);
            assert_eq!(deletion_timestamp(&object), None);
        }
    }

    #[test]
    fn times() {
        let at: Timestamp = "2026-01-02T03:04:05.6789Z".parse().expect("valid");
        assert_eq!(time(at), "2026-01-02T03:04:05Z");
        assert_eq!(micro_time(at), "2026-01-02T03:04:05.678900Z");
        assert_eq!(
            parse_time("2026-01-02T04:04:05+01:00").map(time),
            Some("2026-01-02T03:04:05Z".to_owned())
        );
        assert_eq!(parse_time("yesterday"), None);
    }

    #[test]
    fn owners() {
        let o = json!({"metadata": {"ownerReferences": [{"uid": "a"}, {"uid": "b", "controller": true, "kind": "X"}]}});
        assert_eq!(controller_of(&o).map(|c| (c.uid, c.kind)), Some(("b", "X")));
    }
}
