//! What the workloads share: a selector, a pod template that matches it, and a number of replicas.

use super::checks::{Errors, nonnegative};
use super::pod;
use super::value::{at, text};
use cumulet_api::field::FieldError;
use cumulet_api::selector::Selector;
use serde_json::{Map, Value};

/// The rules of `spec.selector` as a LabelSelector, and of a template that must match it.
pub(crate) fn selector_and_template(errors: &mut Errors, object: &Value) {
    let selector = at(object, "spec.selector");
    match selector {
        None => errors.push(FieldError::required("spec.selector", "")),
        Some(selector) => {
            super::checks::label_selector(errors, selector, "spec.selector");
            if is_empty_selector(selector) {
                let message = "empty selector is invalid for deployment";
                errors.push(FieldError::invalid("spec.selector", selector.clone(), message));
            }
        }
    }
    let parsed = selector.map(Selector::from_label_selector);
    if let Some((selector, Err(_))) = selector.zip(parsed.as_ref()) {
        errors.push(FieldError::invalid("spec.selector", selector.clone(), "invalid label selector"));
        return;
    }
    let matches = |labels: &Map<String, Value>| match &parsed {
        Some(Ok(selector)) => selector.matches_map(labels),
        _ => true,
    };
    matching_template(errors, object, matches, "activeDeadlineSeconds in ReplicaSet is not Supported");
}

fn is_empty_selector(selector: &Value) -> bool {
    let empty = |key: &str| match at(selector, key) {
        Some(Value::Object(o)) => o.is_empty(),
        Some(Value::Array(a)) => a.is_empty(),
        _ => true,
    };
    empty("matchLabels") && empty("matchExpressions")
}

/// The rules of `spec.template`; its labels must satisfy `matches`.
pub(crate) fn matching_template(
    errors: &mut Errors,
    object: &Value,
    matches: impl Fn(&Map<String, Value>) -> bool,
    no_deadline: &str,
) {
    const PATH: &str = "spec.template";
    let Some(template) = at(object, PATH) else {
        errors.push(FieldError::required(PATH, ""));
        return;
    };
    let none = Map::new();
    let labels = at(template, "metadata.labels").and_then(Value::as_object).unwrap_or(&none);
    if !matches(labels) {
        let message = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid(format!("{PATH}.metadata.labels"), labels.clone(), message));
    }
    pod::validate::template(errors, template, PATH);
    let policy = text(template, "spec.restartPolicy");
    if policy != "Always" {
        errors.push(FieldError::not_supported(format!("{PATH}.spec.restartPolicy"), policy, &["Always"]));
    }
    if at(template, "spec.activeDeadlineSeconds").is_some() {
        errors.push(FieldError::forbidden(format!("{PATH}.spec.activeDeadlineSeconds"), no_deadline));
    }
}

/// The rules of a status that counts replicas: nothing negative, and no part greater than `status.replicas`.
pub(crate) fn replica_counts(errors: &mut Errors, object: &Value, parts: &[&str]) {
    let Some(status) = at(object, "status") else { return };
    let all = super::value::int(status, "replicas").unwrap_or(0);
    nonnegative(errors, status, "status", &["replicas", "observedGeneration"]);
    nonnegative(errors, status, "status", parts);
    for part in parts {
        if let Some(n) = super::value::int(status, part).filter(|n| *n > all) {
            let message = "cannot be greater than status.replicas";
            errors.push(FieldError::invalid(format!("status.{part}"), n, message));
        }
    }
}

/// Warnings about the template.
pub(crate) fn warnings(object: &Value) -> Vec<String> {
    at(object, "spec.template.spec")
        .map(|spec| pod::warnings::spec(spec, "spec.template.spec"))
        .unwrap_or_default()
}
