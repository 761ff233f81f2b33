//! Namespaces.

use super::checks::Errors;
use super::lifecycle;
use super::printing::{AGE, NAME, age, column, name, string};
use super::value::{at, at_mut, items, keep, object_mut, set, text};
use crate::row::{Column, Row, Strategy};
use cumulet_api::field::FieldError;
use cumulet_api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

/// The finalizer that stays in `spec.finalizers` until the namespace is empty.
const FINALIZER: &str = "kubernetes";
/// The label that carries a namespace's own name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub(crate) const ROW: Row = Row {
    group: "",
    version: "v1",
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    categories: &[],
    namespaced: false,
    status: true,
    scale: None,
    selectable_fields: &["status.phase"],
    columns: COLUMNS,
    cells,
    strategy: &Namespaces,
};

static COLUMNS: &[Column] = &[NAME, column("Status", "The status of the namespace."), AGE];

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), string(object, "status.phase"), age(object, now)]
}

struct Namespaces;

impl Strategy for Namespaces {
    fn default(&self, object: &mut Value) {
        label(object);
        object_mut(object, "spec");
    }

    fn prepare_create(&self, object: &mut Value) {
        label(object);
        set(object, "status", json!({"phase": "Active"}));
        let known = items(object, "spec.finalizers").iter().any(|f| f.as_str() == Some(FINALIZER));
        let Some(spec) = object_mut(object, "spec") else { return };
        if !known {
            let mut all = items(spec, "finalizers").to_vec();
            all.push(FINALIZER.into());
            set(spec, "finalizers", all);
        }
    }

    fn prepare_update(&self, old: &Value, new: &mut Value) {
        keep(old, new, "status");
        keep(old, new, "spec");
        lifecycle::carry_generation(old, new, false);
        label(new);
    }

    fn prepare_status_update(&self, old: &Value, new: &mut Value) {
        keep(old, new, "spec");
        lifecycle::carry_generation(old, new, false);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        for (i, finalizer) in items(object, "spec.finalizers").iter().filter_map(Value::as_str).enumerate() {
            let path = format!("spec.finalizers[{i}]");
            super::checks::invalid(&mut errors, &path, finalizer, names::qualified_name(finalizer));
            if !finalizer.contains('/') && finalizer != FINALIZER {
                let message = "name is neither a standard finalizer name nor is it fully qualified";
                errors.push(FieldError::invalid(path, finalizer, message));
            }
        }
        errors
    }

    fn validate_status_update(&self, _old: &Value, new: &Value) -> Vec<FieldError> {
        let phase = text(new, "status.phase");
        let (wanted, state) = match at(new, "metadata.deletionTimestamp") {
            None => ("Active", "empty"),
            Some(_) => ("Terminating", "not empty"),
        };
        if phase == wanted {
            return Vec::new();
        }
        let message = format!("may only be '{wanted}' if `deletionTimestamp` is {state}");
        vec![FieldError::invalid("status.phase", phase, message)]
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_label(name)
    }
}

fn label(object: &mut Value) {
    let own = text(object, "metadata.name").to_owned();
    if own.is_empty() {
        return;
    }
    if let Some(labels) = at_mut(object, "metadata").and_then(|m| object_mut(m, "labels")) {
        set(labels, NAME_LABEL, own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{check_cells, check_errors};

    #[test]
    fn a_namespace_begins_active_and_named() {
        let mut object = json!({"metadata": {"name": "n"}, "status": {"phase": "Odd"}});
        ROW.strategy.default(&mut object);
        ROW.strategy.prepare_create(&mut object);
        assert_eq!(
            object,
            json!({"metadata": {"name": "n", "labels": {NAME_LABEL: "n"}}, "spec": {"finalizers": ["kubernetes"]},
                   "status": {"phase": "Active"}})
        );
        check_cells(&ROW, &object, &["n", "Active", "<unknown>"]);
        let mut new = json!({"metadata": {"name": "n"}});
        ROW.strategy.prepare_update(&object, &mut new);
        assert_eq!(new, object);
        let message = "spec.finalizers[0]: Invalid value: \"odd\": name is neither a standard finalizer name nor is it \
                       fully qualified";
        check_errors(&ROW, json!({"spec": {"finalizers": ["odd"]}}), &[message]);
    }

    #[test]
    fn the_phase_follows_deletion() {
        let check = |object: Value, errors: usize| {
            assert_eq!(ROW.strategy.validate_status_update(&json!({}), &object).len(), errors, "{object}");
        };
        check(json!({"status": {"phase": "Active"}}), 0);
        check(json!({"status": {"phase": "Terminating"}}), 1);
        check(json!({"metadata": {"deletionTimestamp": "x"}, "status": {"phase": "Terminating"}}), 0);
    }
}
