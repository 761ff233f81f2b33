//! ReplicaSets.

use super::checks::{Errors, immutable, nonnegative};
use super::printing::{
    AGE, CONTAINERS, IMAGES, NAME, SELECTOR, age, containers, count, label_selector, name, number, or,
};
use super::value::{at, default_to, drop_zeros, int, object_mut, set};
use super::{lifecycle, pod, template};
use crate::row::{Column, Row, Scale, Strategy};
use cumulet_api::field::FieldError;
use jiff::Timestamp;
use serde_json::{Value, json};

pub(crate) const ROW: Row = Row {
    group: "apps",
    version: "v1",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    namespaced: true,
    status: true,
    scale: Some(Scale {
        spec_replicas: "/spec/replicas",
        status_replicas: "/status/replicas",
        selector: "/spec/selector",
    }),
    selectable_fields: &[],
    columns: COLUMNS,
    cells,
    strategy: &ReplicaSets,
};

pub(super) static COLUMNS: &[Column] = &[
    NAME,
    count("Desired", "Number of wanted pods."),
    count("Current", "Number of pods that exist."),
    count("Ready", "Number of pods that are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let selector = label_selector(object, "spec.selector");
    counted_cells(object, now, or(&selector, "<none>").into())
}

/// The cells of a kind that counts replicas.
pub(super) fn counted_cells(object: &Value, now: Timestamp, selector: Value) -> Vec<Value> {
    let (names, images) = containers(object, "spec.template.spec.containers");
    vec![
        name(object),
        number(object, "spec.replicas"),
        number(object, "status.replicas"),
        number(object, "status.readyReplicas"),
        age(object, now),
        names,
        images,
        selector,
    ]
}

/// A new object without replicas says so in its status, as Kubernetes' does.
pub(super) fn create(object: &mut Value) {
    lifecycle::create_with_status(object);
    set(object, "status", json!({"replicas": 0}));
}

/// Parts of `status.replicas`.
pub(super) const PARTS: &[&str] = &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];

/// The rules of a status.
pub(super) fn status_errors(new: &Value) -> Errors {
    let mut errors = Errors::new();
    template::replica_counts(&mut errors, new, PARTS);
    let part = |field: &str| int(new, field).unwrap_or(0);
    let (available, ready) = (part("status.availableReplicas"), part("status.readyReplicas"));
    if available > ready {
        let message = "cannot be greater than readyReplicas";
        errors.push(FieldError::invalid("status.availableReplicas", available, message));
    }
    errors
}

struct ReplicaSets;

impl Strategy for ReplicaSets {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object_mut(object, "spec") else { return };
        drop_zeros(spec, &["minReadySeconds"]);
        default_to(spec, "replicas", 1);
        pod::defaults::template(spec, "template");
    }

    fn prepare_create(&self, object: &mut Value) {
        create(object);
    }

    fn prepare_update(&self, old: &Value, new: &mut Value) {
        lifecycle::update_with_status(old, new);
    }

    fn prepare_status_update(&self, old: &Value, new: &mut Value) {
        lifecycle::update_workload_status(old, new);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let null = Value::Null;
        let spec = at(object, "spec").unwrap_or(&null);
        nonnegative(&mut errors, spec, "spec", &["replicas", "minReadySeconds"]);
        template::selector_and_template(&mut errors, object);
        errors
    }

    fn validate_update(&self, old: &Value, new: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        immutable(&mut errors, old, new, "spec.selector");
        errors
    }

    fn validate_status_update(&self, _old: &Value, new: &Value) -> Vec<FieldError> {
        status_errors(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{check_cells, check_errors, check_update_errors};

    fn good() -> Value {
        json!({"metadata": {"name": "r"}, "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "x"}},
            "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}})
    }

    #[test]
    fn rules_and_cells() {
        check_errors(&ROW, good(), &[]);
        check_errors(&ROW, json!({}), &["spec.selector: Required value", "spec.template: Required value"]);
        let mut new = good();
        new["spec"]["selector"] = json!({"matchLabels": {"app": "y"}});
        let message = "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"y\"}}: field is immutable";
        check_update_errors(&ROW, &good(), new, &[message]);
        let mut object = good();
        create(&mut object);
        check_cells(&ROW, &object, &["r", "0", "0", "0", "<unknown>", "c", "i:1", "app=x"]);
    }

    #[test]
    fn counts_must_agree() {
        let object = json!({"status": {"replicas": 1, "readyReplicas": 2, "availableReplicas": 3, "observedGeneration": -1}});
        let words: Vec<String> = status_errors(&object).iter().map(ToString::to_string).collect();
        assert_eq!(
            words,
            [
                "status.observedGeneration: Invalid value: -1: must be greater than or equal to 0",
                "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas",
                "status.availableReplicas: Invalid value: 3: cannot be greater than status.replicas",
                "status.availableReplicas: Invalid value: 3: cannot be greater than readyReplicas",
            ]
        );
    }
}
