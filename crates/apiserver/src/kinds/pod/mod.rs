//! Pods.
//!
//! The rules are spread by what they are about: `defaults`, `containers`, `volumes`, `probes`, `security`,
//! `references` (variables and downward fields), `validate` (the rest of the specification), `update` (what may
//! change), `qos`; `status_text` and `columns` make the table. Templates in workloads use the same rules.
//!
//! Absent on purpose: priorities, overhead and injected token volumes, which Kubernetes adds by looking at other
//! objects; strategies see one object only.

pub(crate) mod columns;
pub(crate) mod containers;
pub(crate) mod defaults;
pub(crate) mod probes;
pub(crate) mod qos;
pub(crate) mod references;
pub(crate) mod security;
pub(crate) mod status_text;
#[cfg(test)]
mod tests;
pub(crate) mod update;
pub(crate) mod validate;
pub(crate) mod volumes;
pub(crate) mod warnings;

use super::lifecycle;
use super::value::{at, int, is_true, items, set, text};
use crate::row::{Row, Strategy};
use cumulet_api::field::FieldError;
use cumulet_api::names;
use serde_json::{Value, json};

pub(crate) const ROW: Row = Row {
    group: "",
    version: "v1",
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    namespaced: true,
    status: true,
    scale: None,
    selectable_fields: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ],
    columns: columns::COLUMNS,
    cells: columns::cells,
    strategy: &Pods,
};

struct Pods;

impl Strategy for Pods {
    fn default(&self, object: &mut Value) {
        defaults::pod(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        defaults::admit(object);
        let class = qos::class(object);
        let mut status = json!({"phase": "Pending", "qosClass": class});
        if !items(object, "spec.schedulingGates").is_empty() {
            status["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "observedGeneration": 1,
                "message": "Scheduling is blocked due to non-empty scheduling gates"
            }]);
        }
        set(object, "status", status);
        lifecycle::set_generation(object, 1);
    }

    fn prepare_update(&self, old: &Value, new: &mut Value) {
        lifecycle::update_with_status(old, new);
    }

    fn prepare_status_update(&self, old: &Value, new: &mut Value) {
        lifecycle::update_status(old, new);
        update::prepare_status(old, new);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        validate::pod(object)
    }

    fn validate_update(&self, old: &Value, new: &Value) -> Vec<FieldError> {
        update::validate(old, new)
    }

    fn validate_status_update(&self, old: &Value, new: &Value) -> Vec<FieldError> {
        update::validate_status(old, new)
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let mut warnings = Vec::new();
        let problems = names::dns1123_label(text(object, "metadata.name"));
        if !problems.is_empty() {
            warnings.push(format!(
                "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS \
                 label is recommended: [{}]",
                problems.join(" ")
            ));
        }
        if let Some(spec) = at(object, "spec") {
            warnings.extend(warnings::spec(spec, "spec"));
        }
        warnings
    }

    fn selectable(&self, object: &Value, field: &str) -> Option<String> {
        (field == "spec.hostNetwork").then(|| is_true(object, field).to_string())
    }

    fn grace_period_seconds(&self, object: &Value, wanted: Option<i64>) -> i64 {
        let ended = matches!(text(object, "status.phase"), "Succeeded" | "Failed");
        if ended || text(object, "spec.nodeName").is_empty() {
            return 0;
        }
        match wanted.or_else(|| int(object, "spec.terminationGracePeriodSeconds")) {
            Some(seconds) if seconds < 0 => 1,
            seconds => seconds.unwrap_or(0),
        }
    }
}
