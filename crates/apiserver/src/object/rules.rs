//! Metadata rules that hold for every kind, worded as `k8s.io/apimachinery/pkg/api/validation` words them.
//!
//! All functions are pure. `path` is always `metadata`.

use crate::row::Row;
use cumulet_api::field::{FieldError, Problem};
use cumulet_api::{meta, names};
use serde_json::Value;

/// All keys and values of the annotations together, in bytes.
const ANNOTATIONS_MAX: usize = 256 * 1024;
/// Finalizer of a deletion whose dependents go first.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of a deletion whose dependents stay.
pub(crate) const ORPHAN: &str = "orphan";
const IMMUTABLE: &str = "field is immutable";

/// Rules for the metadata of a new or changed object.
pub(crate) fn validate(row: &Row, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let generate_name = meta::generate_name(object);
    if !generate_name.is_empty() {
        invalid_all(
            &mut errors,
            "metadata.generateName",
            generate_name,
            row.strategy.validate_name(&prefix(generate_name)),
        );
    }
    let name = meta::name(object);
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        invalid_all(&mut errors, "metadata.name", name, row.strategy.validate_name(name));
    }
    namespace(row, object, &mut errors);
    if meta::generation(object) < 0 {
        errors.push(FieldError::invalid(
            "metadata.generation",
            meta::generation(object),
            "must be greater than or equal to 0",
        ));
    }
    labels(object, &mut errors);
    annotations(object, &mut errors);
    owners(object, &mut errors);
    finalizers(object, &mut errors);
    errors
}

/// Rules for a change of the metadata, beyond [`validate`].
pub(crate) fn validate_update(old: &Value, new: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if meta::deletion_timestamp(old).is_some() {
        let extra: Vec<&str> =
            meta::finalizers(new).filter(|f| !meta::finalizers(old).any(|known| known == *f)).collect();
        if !extra.is_empty() {
            let list = extra.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ");
            errors.push(FieldError::forbidden(
                "metadata.finalizers",
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{list}}}"
                ),
            ));
        }
    }
    for field in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        let (before, after) = (meta::metadata(old).get(field), meta::metadata(new).get(field));
        if before != after {
            let value = after.cloned().unwrap_or(Value::Null);
            errors.push(FieldError::invalid(format!("metadata.{field}"), value, IMMUTABLE));
        }
    }
    errors
}

/// A generated name is validated as if it ended in a letter, since characters follow.
fn prefix(name: &str) -> String {
    match name.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => {
            // As Kubernetes does it, the character before the dash goes too.
            let mut kept: String = rest.to_owned();
            kept.pop();
            kept.push('a');
            kept
        }
        _ => name.to_owned(),
    }
}

fn invalid_all(errors: &mut Vec<FieldError>, field: &str, value: &str, problems: Vec<String>) {
    errors.extend(problems.into_iter().map(|problem| FieldError::invalid(field, value, problem)));
}

fn namespace(row: &Row, object: &Value, errors: &mut Vec<FieldError>) {
    let namespace = meta::namespace(object);
    if !row.namespaced {
        if !namespace.is_empty() {
            errors.push(FieldError::forbidden("metadata.namespace", "not allowed on this type"));
        }
    } else if namespace.is_empty() {
        errors.push(FieldError::required("metadata.namespace", ""));
    } else {
        invalid_all(errors, "metadata.namespace", namespace, names::dns1123_label(namespace));
    }
}

fn labels(object: &Value, errors: &mut Vec<FieldError>) {
    for (key, value) in meta::labels(object) {
        invalid_all(errors, "metadata.labels", key, names::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        invalid_all(errors, "metadata.labels", value, names::label_value(value));
    }
}

fn annotations(object: &Value, errors: &mut Vec<FieldError>) {
    let mut total = 0;
    for (key, value) in meta::annotations(object) {
        invalid_all(errors, "metadata.annotations", key, names::qualified_name(&key.to_lowercase()));
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > ANNOTATIONS_MAX {
        errors.push(FieldError {
            field: "metadata.annotations".into(),
            problem: Problem::TooLong(ANNOTATIONS_MAX),
            detail: String::new(),
        });
    }
}

fn owners(object: &Value, errors: &mut Vec<FieldError>) {
    let list = meta::metadata(object).get("ownerReferences");
    let mut controller: Option<String> = None;
    for owner in list.and_then(Value::as_array).into_iter().flatten() {
        let text = |field: &str| owner.get(field).and_then(Value::as_str).unwrap_or_default();
        let path = "metadata.ownerReferences";
        let (group, version) = meta::group_version(text("apiVersion"));
        if version.is_empty() {
            errors.push(FieldError::invalid(
                format!("{path}.apiVersion"),
                text("apiVersion"),
                "version must not be empty",
            ));
        }
        for field in ["kind", "name", "uid"] {
            if text(field).is_empty() {
                errors.push(FieldError::invalid(format!("{path}.{field}"), "", "must not be empty"));
            }
        }
        if group.is_empty() && version == "v1" && text("kind") == "Event" {
            errors.push(FieldError::invalid(
                path,
                owner.clone(),
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if owner.get("controller").and_then(Value::as_bool) == Some(true) {
            let this = format!("{}/{}", text("kind"), text("name"));
            match &controller {
                None => controller = Some(this),
                Some(first) => errors.push(FieldError::invalid(
                    path,
                    list.cloned().unwrap_or(Value::Null),
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                    ),
                )),
            }
        }
    }
}

fn finalizers(object: &Value, errors: &mut Vec<FieldError>) {
    for finalizer in meta::finalizers(object) {
        invalid_all(errors, "metadata.finalizers", finalizer, names::qualified_name(finalizer));
    }
    let has = |name: &str| meta::finalizers(object).any(|f| f == name);
    if has(FOREGROUND) && has(ORPHAN) {
        let list = meta::metadata(object).get("finalizers").cloned().unwrap_or(Value::Null);
        errors.push(FieldError::invalid(
            "metadata.finalizers",
            list,
            format!("finalizer {ORPHAN} and {FOREGROUND} cannot be both set"),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(plural: &str) -> &'static Row {
        crate::kinds::rows().iter().find(|r| r.plural == plural).unwrap()
    }

    fn check(plural: &str, metadata: Value, want: &[&str]) {
        let errors = validate(row(plural), &json!({"metadata": metadata}));
        let got: Vec<String> = errors.iter().map(|e| format!("{} {}", e.field, e.reason())).collect();
        assert_eq!(got, want, "{metadata}");
    }

    #[test]
    fn metadata_rules() {
        check("configmaps", json!({"name": "a", "namespace": "b"}), &[]);
        check("configmaps", json!({"namespace": "b"}), &["metadata.name FieldValueRequired"]);
        check("configmaps", json!({"name": "A", "namespace": "b"}), &["metadata.name FieldValueInvalid"]);
        check("configmaps", json!({"name": "a-x", "generateName": "a-", "namespace": "b"}), &[]);
        check("nodes", json!({"name": "a", "namespace": "b"}), &["metadata.namespace FieldValueForbidden"]);
        check(
            "nodes",
            json!({"name": "a", "labels": {"-": "ok", "k": "not ok"}}),
            &["metadata.labels FieldValueInvalid", "metadata.labels FieldValueInvalid"],
        );
        check(
            "nodes",
            json!({"name": "a", "annotations": {"k": "x".repeat(ANNOTATIONS_MAX)}}),
            &["metadata.annotations FieldValueTooLong"],
        );
        check(
            "nodes",
            json!({"name": "a", "finalizers": [FOREGROUND, ORPHAN]}),
            &["metadata.finalizers FieldValueInvalid"],
        );
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true});
        check("nodes", json!({"name": "a", "ownerReferences": [owner]}), &[]);
        check(
            "nodes",
            json!({"name": "a", "ownerReferences": [owner, owner]}),
            &["metadata.ownerReferences FieldValueInvalid"],
        );
    }

    #[test]
    fn immutable_metadata() {
        let old = json!({"metadata": {"name": "a", "uid": "1", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let mut new = old.clone();
        assert_eq!(validate_update(&old, &new), []);
        new["metadata"]["uid"] = json!("2");
        new["metadata"]["finalizers"] = json!(["x/y"]);
        let fields: Vec<String> = validate_update(&old, &new).into_iter().map(|e| e.field).collect();
        assert_eq!(fields, ["metadata.finalizers", "metadata.uid"]);
    }
}
