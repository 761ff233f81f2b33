//! ReplicationControllers.

use super::checks::{Errors, nonnegative};
use super::printing::labels;
use super::value::{at, default_to, drop_zeros, int, map, object_mut, set};
use super::{lifecycle, pod, replicaset, template};
use crate::row::{Row, Scale, Strategy};
use cumulet_api::field::FieldError;
use cumulet_cluster::Propagation;
use jiff::Timestamp;
use serde_json::{Map, Value};

pub(crate) const ROW: Row = Row {
    group: "",
    version: "v1",
    kind: "ReplicationController",
    plural: "replicationcontrollers",
    singular: "replicationcontroller",
    short_names: &["rc"],
    categories: &["all"],
    namespaced: true,
    status: true,
    scale: Some(Scale {
        spec_replicas: "/spec/replicas",
        status_replicas: "/status/replicas",
        selector: "/spec/selector",
    }),
    selectable_fields: &["status.replicas"],
    columns: replicaset::COLUMNS,
    cells,
    strategy: &ReplicationControllers,
};

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    replicaset::counted_cells(object, now, labels(object, "spec.selector"))
}

struct ReplicationControllers;

impl Strategy for ReplicationControllers {
    fn default(&self, object: &mut Value) {
        let labels = map(object, "spec.template.metadata.labels").cloned();
        let has_labels = map(object, "metadata.labels").is_some_and(|l| !l.is_empty());
        let has_selector = map(object, "spec.selector").is_some_and(|s| !s.is_empty());
        if let Some(labels) = labels {
            if !has_labels && let Some(metadata) = object_mut(object, "metadata") {
                set(metadata, "labels", labels.clone());
            }
            if !has_selector && let Some(spec) = object_mut(object, "spec") {
                set(spec, "selector", labels);
            }
        }
        let Some(spec) = object_mut(object, "spec") else { return };
        drop_zeros(spec, &["minReadySeconds"]);
        default_to(spec, "replicas", 1);
        pod::defaults::template(spec, "template");
    }

    fn prepare_create(&self, object: &mut Value) {
        replicaset::create(object);
    }

    fn prepare_update(&self, old: &Value, new: &mut Value) {
        lifecycle::update_with_status(old, new);
    }

    fn prepare_status_update(&self, old: &Value, new: &mut Value) {
        lifecycle::update_status(old, new);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let null = Value::Null;
        let spec = at(object, "spec").unwrap_or(&null);
        nonnegative(&mut errors, spec, "spec", &["minReadySeconds"]);
        let none = Map::new();
        let selector = map(spec, "selector").unwrap_or(&none);
        if selector.is_empty() {
            errors.push(FieldError::required("spec.selector", ""));
        }
        nonnegative(&mut errors, spec, "spec", &["replicas"]);
        let matches = |labels: &Map<String, Value>| selector.iter().all(|(k, v)| labels.get(k) == Some(v));
        let no_deadline = "activeDeadlineSeconds in ReplicationController is not Supported";
        template::matching_template(&mut errors, object, matches, no_deadline);
        errors
    }

    fn validate_status_update(&self, _old: &Value, new: &Value) -> Vec<FieldError> {
        replicaset::status_errors(new)
    }

    fn selectable(&self, object: &Value, field: &str) -> Option<String> {
        (field == "status.replicas").then(|| int(object, field).unwrap_or(0).to_string())
    }

    fn default_propagation(&self) -> Propagation {
        Propagation::Orphan
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{check_cells, check_errors};
    use serde_json::json;

    #[test]
    fn selector_and_labels_come_from_the_template() {
        let mut object = json!({"metadata": {"name": "r"}, "spec": {"template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}});
        check_errors(&ROW, object.clone(), &[]);
        ROW.strategy.default(&mut object);
        assert_eq!(object["spec"]["selector"], json!({"a": "b"}));
        assert_eq!(object["metadata"]["labels"], json!({"a": "b"}));
        check_cells(&ROW, &object, &["r", "1", "0", "0", "<unknown>", "c", "i:1", "a=b"]);
        object["spec"]["selector"] = json!({"a": "c"});
        let message = "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`";
        check_errors(&ROW, object, &[message]);
        check_errors(&ROW, json!({}), &["spec.selector: Required value", "spec.template: Required value"]);
    }
}
