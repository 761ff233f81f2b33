//! Deployments.

use super::checks::{Errors, immutable, invalid, nonnegative};
use super::printing::{
    AGE, CONTAINERS, IMAGES, NAME, SELECTOR, age, column, containers, count, label_selector, name, number,
};
use super::value::{at, default_to, drop_zeros, int, object_mut, same_at, text};
use super::{lifecycle, pod, template};
use crate::row::{Column, Row, Scale, Strategy};
use cumulet_api::field::FieldError;
use cumulet_api::intstr::IntOrString;
use cumulet_api::names;
use jiff::Timestamp;
use serde_json::Value;

pub(crate) const ROW: Row = Row {
    group: "apps",
    version: "v1",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
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
    strategy: &Deployments,
};

static COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "Number of ready pods, and of wanted ones."),
    count("Up-to-date", "Number of pods that have the present template."),
    count("Available", "Number of pods that have been ready for long enough."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = int(object, "status.readyReplicas").unwrap_or(0);
    let wanted = int(object, "spec.replicas").unwrap_or(0);
    let (names, images) = containers(object, "spec.template.spec.containers");
    vec![
        name(object),
        format!("{ready}/{wanted}").into(),
        number(object, "status.updatedReplicas"),
        number(object, "status.availableReplicas"),
        age(object, now),
        names,
        images,
        label_selector(object, "spec.selector").into(),
    ]
}

/// Parts of `status.replicas`.
const PARTS: &[&str] = &["updatedReplicas", "readyReplicas", "availableReplicas"];

struct Deployments;

impl Strategy for Deployments {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object_mut(object, "spec") else { return };
        drop_zeros(spec, &["paused", "minReadySeconds"]);
        default_to(spec, "replicas", 1);
        default_to(spec, "revisionHistoryLimit", 10);
        default_to(spec, "progressDeadlineSeconds", 600);
        if let Some(strategy) = object_mut(spec, "strategy") {
            default_to(strategy, "type", "RollingUpdate");
            if text(strategy, "type") == "RollingUpdate"
                && let Some(rolling) = object_mut(strategy, "rollingUpdate")
            {
                default_to(rolling, "maxUnavailable", "25%");
                default_to(rolling, "maxSurge", "25%");
            }
        }
        pod::defaults::template(spec, "template");
    }

    fn prepare_create(&self, object: &mut Value) {
        lifecycle::create_with_status(object);
    }

    fn prepare_update(&self, old: &Value, new: &mut Value) {
        super::value::keep(old, new, "status");
        // The annotations of a Deployment are copied to its ReplicaSets: they count as part of what is wanted.
        let changed = !same_at(old, new, "spec") || !same_at(old, new, "metadata.annotations");
        lifecycle::carry_generation(old, new, changed);
    }

    fn prepare_status_update(&self, old: &Value, new: &mut Value) {
        lifecycle::update_workload_status(old, new);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let null = Value::Null;
        let spec = at(object, "spec").unwrap_or(&null);
        nonnegative(&mut errors, spec, "spec", &["replicas"]);
        template::selector_and_template(&mut errors, object);
        strategy(&mut errors, spec);
        nonnegative(
            &mut errors,
            spec,
            "spec",
            &["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"],
        );
        if let Some(deadline) = int(spec, "progressDeadlineSeconds")
            && deadline <= int(spec, "minReadySeconds").unwrap_or(0)
        {
            let message = "must be greater than minReadySeconds";
            errors.push(FieldError::invalid("spec.progressDeadlineSeconds", deadline, message));
        }
        errors
    }

    fn validate_update(&self, old: &Value, new: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        immutable(&mut errors, old, new, "spec.selector");
        errors
    }

    fn validate_status_update(&self, _old: &Value, new: &Value) -> Vec<FieldError> {
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

    fn warnings(&self, object: &Value) -> Vec<String> {
        template::warnings(object)
    }
}

fn strategy(errors: &mut Errors, spec: &Value) {
    let Some(strategy) = at(spec, "strategy") else { return };
    let rolling = at(strategy, "rollingUpdate");
    match text(strategy, "type") {
        "Recreate" if rolling.is_some() => errors.push(FieldError::forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        )),
        "Recreate" => {}
        "RollingUpdate" => {
            if let Some(rolling) = rolling {
                rolling_update(errors, rolling);
            }
        }
        other => {
            let allowed = &["Recreate", "RollingUpdate"];
            errors.push(FieldError::not_supported("spec.strategy.type", other, allowed));
        }
    }
}

fn rolling_update(errors: &mut Errors, rolling: &Value) {
    const PATH: &str = "spec.strategy.rollingUpdate";
    for key in ["maxUnavailable", "maxSurge"] {
        int_or_percent(errors, rolling, PATH, key);
    }
    let amount = |key: &str| at(rolling, key).and_then(IntOrString::of).and_then(|v| v.scaled(100, true));
    let value = || at(rolling, "maxUnavailable").cloned().unwrap_or_default();
    if amount("maxUnavailable") == Some(0) && amount("maxSurge") == Some(0) {
        let message = "may not be 0 when `maxSurge` is 0";
        errors.push(FieldError::invalid(format!("{PATH}.maxUnavailable"), value(), message));
    }
    if at(rolling, "maxUnavailable").is_some_and(Value::is_string)
        && amount("maxUnavailable").is_some_and(|p| p > 100)
    {
        errors.push(FieldError::invalid(
            format!("{PATH}.maxUnavailable"),
            value(),
            "must not be greater than 100%",
        ));
    }
}

/// A number that is not negative, or a percentage.
pub(crate) fn int_or_percent(errors: &mut Errors, owner: &Value, path: &str, key: &str) {
    match at(owner, key) {
        Some(Value::String(text)) => {
            invalid(errors, &format!("{path}.{key}"), text.as_str(), names::percent(text));
        }
        _ => nonnegative(errors, owner, path, &[key]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{check_cells, check_default, check_errors, check_update_errors};
    use serde_json::json;

    pub(crate) fn good() -> Value {
        json!({"metadata": {"name": "d"}, "spec": {
            "selector": {"matchLabels": {"app": "x"}},
            "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}})
    }

    #[test]
    fn defaults_are_filled_in() {
        check_default(
            &ROW,
            good(),
            json!({"metadata": {"name": "d"}, "spec": {
                "replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
                "selector": {"matchLabels": {"app": "x"}},
                "template": {"metadata": {"labels": {"app": "x"}}, "spec": {
                    "containers": [{"name": "c", "image": "i:1", "imagePullPolicy": "IfNotPresent", "resources": {},
                        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
                    "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
                    "securityContext": {}, "terminationGracePeriodSeconds": 30}}}}),
        );
    }

    #[test]
    fn wrong_deployments_are_told_so() {
        let with = |change: &dyn Fn(&mut Value)| {
            let mut object = good();
            change(&mut object["spec"]);
            object
        };
        let cases: Vec<(Value, Vec<&str>)> = vec![
            (good(), vec![]),
            (json!({"spec": {}}), vec!["spec.selector: Required value", "spec.template: Required value"]),
            (
                with(&|s| s["template"]["metadata"]["labels"] = json!({"app": "y"})),
                vec![
                    "spec.template.metadata.labels: Invalid value: {\"app\":\"y\"}: `selector` does not match template \
                     `labels`",
                ],
            ),
            (
                with(&|s| s["selector"] = json!({})),
                vec!["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
            ),
            (
                with(&|s| {
                    s["replicas"] = json!(-1);
                    s["template"]["spec"]["restartPolicy"] = json!("Never");
                }),
                vec![
                    "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                    "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                ],
            ),
            (
                with(&|s| s["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}})),
                vec![
                    "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is \
                     0",
                ],
            ),
            (
                with(&|s| s["strategy"] = json!({"type": "Recreate", "rollingUpdate": {}})),
                vec![
                    "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
                ],
            ),
            (
                with(&|s| {
                    s["minReadySeconds"] = json!(600);
                    s["strategy"] = json!({"type": "Magic"});
                }),
                vec![
                    "spec.strategy.type: Unsupported value: \"Magic\": supported values: \"Recreate\", \
                     \"RollingUpdate\"",
                    "spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds",
                ],
            ),
        ];
        for (object, expected) in cases {
            check_errors(&ROW, object, &expected);
        }
    }

    #[test]
    fn the_selector_stays_and_annotations_count() {
        let mut new = good();
        new["spec"]["selector"] = json!({"matchLabels": {"app": "y"}});
        check_update_errors(
            &ROW,
            &good(),
            new,
            &["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"y\"}}: field is immutable"],
        );
        let mut old = good();
        lifecycle::create_with_status(&mut old);
        let mut new = old.clone();
        new["metadata"]["annotations"] = json!({"a": "b"});
        ROW.strategy.prepare_update(&old, &mut new);
        assert_eq!(new["metadata"]["generation"], 2);
    }

    #[test]
    fn cells_are_those_of_kubectl() {
        let mut object = good();
        object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:09:00Z");
        object["spec"]["replicas"] = json!(3);
        object["status"] = json!({"readyReplicas": 2, "updatedReplicas": 3});
        check_cells(&ROW, &object, &["d", "2/3", "3", "0", "60s", "c", "i:1", "app=x"]);
    }
}
