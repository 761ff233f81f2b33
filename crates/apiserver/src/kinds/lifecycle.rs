//! What most kinds do with `status` and `metadata.generation` when an object is created or changed.

use super::value::{at, at_mut, keep, object_mut, same_at, set, unset};
use serde_json::{Value, json};

/// A new object starts at generation 1 and with an empty status.
pub(crate) fn create_with_status(object: &mut Value) {
    set(object, "status", json!({}));
    set_generation(object, 1);
}

/// Sets `metadata.generation`.
pub(crate) fn set_generation(object: &mut Value, generation: i64) {
    if let Some(metadata) = object_mut(object, "metadata") {
        set(metadata, "generation", generation);
    }
}

/// The status stays; the generation stays unless the spec changed, then it grows by one.
pub(crate) fn update_with_status(old: &Value, new: &mut Value) {
    keep(old, new, "status");
    let changed = !same_at(old, new, "spec");
    carry_generation(old, new, changed);
}

/// Takes over the generation of `old`, one more when the object `changed`.
pub(crate) fn carry_generation(old: &Value, new: &mut Value, changed: bool) {
    let before = at(old, "metadata.generation").and_then(Value::as_i64).unwrap_or(0);
    match before + i64::from(changed) {
        0 => {
            if let Some(metadata) = at_mut(new, "metadata") {
                unset(metadata, "generation");
            }
        }
        generation => set_generation(new, generation),
    }
}

/// An update through `status`: spec, generation and the metadata that the subresource may not touch stay.
pub(crate) fn update_status(old: &Value, new: &mut Value) {
    keep(old, new, "spec");
    carry_generation(old, new, false);
    let Some(before) = at(old, "metadata") else { return };
    if let Some(after) = at_mut(new, "metadata") {
        for key in ["deletionTimestamp", "ownerReferences"] {
            keep(before, after, key);
        }
    }
}

/// The same for the workloads, whose labels the subresource may not touch either.
pub(crate) fn update_workload_status(old: &Value, new: &mut Value) {
    update_status(old, new);
    let Some(before) = at(old, "metadata") else { return };
    if let Some(after) = at_mut(new, "metadata") {
        keep(before, after, "labels");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_grows_only_with_the_spec() {
        let old = json!({"metadata": {"generation": 4}, "spec": {"a": 1}, "status": {"x": 1}});
        for (new, generation) in [
            (json!({"metadata": {}, "spec": {"a": 1, "b": []}, "status": {"x": 2}}), 4),
            (json!({"metadata": {"generation": 9}, "spec": {"a": 2}}), 5),
        ] {
            let mut new = new;
            update_with_status(&old, &mut new);
            assert_eq!(new["metadata"]["generation"], generation);
            assert_eq!(new["status"], old["status"]);
        }
    }

    #[test]
    fn status_updates_keep_the_spec() {
        let old = json!({"metadata": {"generation": 4, "labels": {"a": "b"}}, "spec": {"a": 1}, "status": {"x": 1}});
        let mut new = json!({"metadata": {"labels": {}}, "spec": {"a": 2}, "status": {"x": 2}});
        update_workload_status(&old, &mut new);
        assert_eq!(
            new,
            json!({"metadata": {"generation": 4, "labels": {"a": "b"}}, "spec": {"a": 1}, "status": {"x": 2}})
        );
    }
}
