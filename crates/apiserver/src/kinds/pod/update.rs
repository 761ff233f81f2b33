//! What may change in a pod that exists: images, a shorter deadline, more tolerations, fewer scheduling gates.

use crate::kinds::checks::Errors;
use crate::kinds::value::{at, at_mut, int, items, items_mut, keep, same, set, text};
use cumulet_api::field::FieldError;
use cumulet_api::names;
use serde_json::Value;

const UPDATABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
    tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Rules for a change of a pod through the main resource.
pub(crate) fn validate(old: &Value, new: &Value) -> Errors {
    let mut errors = Errors::new();
    let (Some(before), Some(after)) = (at(old, "spec"), at(new, "spec")) else { return errors };
    for list in ["containers", "initContainers"] {
        if items(before, list).len() != items(after, list).len() {
            let message = "pod updates may not add or remove containers";
            errors.push(FieldError::forbidden(format!("spec.{list}"), message));
            return errors;
        }
    }
    if !deadline(&mut errors, before, after) {
        return errors;
    }
    tolerations(&mut errors, before, after);
    gates(&mut errors, before, after);
    if same(Some(before), Some(after)) {
        return errors;
    }
    let undone = without_allowed_changes(before, after);
    if !same(Some(before), Some(&undone)) {
        let message = format!("{UPDATABLE}\n{}", difference(before, &undone));
        errors.push(FieldError::forbidden("spec", message));
    }
    errors
}

/// Rules for a change through `status`: a finished pod stays finished, and terminated containers stay so unless they
/// may restart.
pub(crate) fn validate_status(old: &Value, new: &Value) -> Errors {
    let mut errors = Errors::new();
    if text(new, "spec.nodeName") != text(old, "spec.nodeName") {
        let message = "may not be changed directly";
        errors.push(FieldError::forbidden("spec.nodeName", message));
    }
    let policy = text(old, "spec.restartPolicy");
    if policy != "Always" {
        for list in ["containerStatuses", "initContainerStatuses"] {
            transitions(&mut errors, old, new, (list, policy));
        }
    }
    errors
}

fn transitions(errors: &mut Errors, old: &Value, new: &Value, (list, policy): (&str, &str)) {
    let path = format!("status.{list}");
    for (i, before) in items(old, &path).iter().enumerate() {
        let Some(ended) = at(before, "state.terminated") else { continue };
        let name = text(before, "name");
        let failed = int(ended, "exitCode").unwrap_or(0) != 0;
        let of_pod = |field: &str, value: &str| {
            items(old, "spec.initContainers")
                .iter()
                .any(|c| text(c, "name") == name && text(c, field) == value)
        };
        if (failed && policy == "OnFailure") || of_pod("restartPolicy", "Always") {
            continue;
        }
        let restarted =
            items(new, &path).iter().any(|s| text(s, "name") == name && at(s, "state.terminated").is_none());
        if restarted {
            let message = "may not be transitioned to non-terminated state";
            errors.push(FieldError::forbidden(format!("{path}[{i}].state"), message));
        }
    }
}

/// False when the deadline is wrong, which ends the checks as it does in Kubernetes.
fn deadline(errors: &mut Errors, before: &Value, after: &Value) -> bool {
    const FIELD: &str = "activeDeadlineSeconds";
    const PATH: &str = "spec.activeDeadlineSeconds";
    match (int(before, FIELD), int(after, FIELD)) {
        (_, Some(now)) if !(0..=i64::from(i32::MAX)).contains(&now) => {
            errors.push(FieldError::invalid(PATH, now, names::range(0, i64::from(i32::MAX))));
            false
        }
        (Some(was), Some(now)) if was < now => {
            errors.push(FieldError::invalid(PATH, now, "must be less than or equal to previous value"));
            false
        }
        (Some(_), None) => {
            let message = "must not update from a positive integer to nil value";
            errors.push(FieldError::invalid(PATH, Value::Null, message));
            true
        }
        _ => true,
    }
}

fn tolerations(errors: &mut Errors, before: &Value, after: &Value) {
    let kept = items(before, "tolerations").iter().all(|old| {
        items(after, "tolerations").iter().any(|new| {
            let mut old = old.clone();
            keep(new, &mut old, "tolerationSeconds");
            same(Some(&old), Some(new))
        })
    });
    if !kept {
        let message = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden("spec.tolerations", message));
    }
}

fn gates(errors: &mut Errors, before: &Value, after: &Value) {
    for (i, gate) in items(after, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        if !items(before, "schedulingGates").iter().any(|g| text(g, "name") == name) {
            let message = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.push(FieldError::forbidden(format!("spec.schedulingGates[{i}].name"), message));
        }
    }
}

/// `after` with everything undone that may change.
fn without_allowed_changes(before: &Value, after: &Value) -> Value {
    let mut undone = after.clone();
    for list in ["containers", "initContainers"] {
        for (old, new) in items(before, list).iter().zip(items_mut(&mut undone, list)) {
            keep(old, new, "image");
        }
    }
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        keep(before, &mut undone, field);
    }
    let grace = "terminationGracePeriodSeconds";
    if int(before, grace).is_some_and(|s| s < 0) && int(after, grace) == Some(1) {
        keep(before, &mut undone, grace);
    }
    if !items(before, "schedulingGates").is_empty() {
        // A pod that nobody has placed yet may be told more about where to go, but not less.
        let more = at(before, "nodeSelector").and_then(Value::as_object).into_iter().flatten();
        let narrower =
            more.into_iter().all(|(k, v)| at(after, "nodeSelector").and_then(|s| s.get(k)) == Some(v));
        if narrower {
            keep(before, &mut undone, "nodeSelector");
        }
    }
    undone
}

/// The changed fields, one a line: what was, what would be.
pub(crate) fn difference(before: &Value, after: &Value) -> String {
    let mut lines = Vec::new();
    differences(&mut lines, "", Some(before), Some(after));
    lines.join("\n")
}

fn differences(lines: &mut Vec<String>, path: &str, before: Option<&Value>, after: Option<&Value>) {
    const MAX_LINES: usize = 40;
    if same(before, after) || lines.len() >= MAX_LINES {
        return;
    }
    match (before, after) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            for key in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
                differences(lines, &format!("{path}.{key}"), a.get(key), b.get(key));
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) if a.len() == b.len() => {
            for (i, (x, y)) in a.iter().zip(b).enumerate() {
                differences(lines, &format!("{path}[{i}]"), Some(x), Some(y));
            }
        }
        _ => {
            let show = |v: Option<&Value>| v.map_or_else(|| "(not set)".to_owned(), Value::to_string);
            lines.push(format!("  {}: {} -> {}", path.trim_start_matches('.'), show(before), show(after)));
        }
    }
}

/// Keeps what the status subresource may not take away: the class of service, and the generations that conditions
/// were observed at.
pub(crate) fn prepare_status(old: &Value, new: &mut Value) {
    let Some(before) = at(old, "status") else { return };
    let Some(after) = at_mut(new, "status") else { return };
    for field in ["qosClass", "observedGeneration"] {
        if at(after, field).is_none() {
            keep(before, after, field);
        }
    }
    for condition in items_mut(after, "conditions") {
        if at(condition, "observedGeneration").is_some() {
            continue;
        }
        let kind = text(condition, "type");
        let known = items(before, "conditions").iter().find(|c| text(c, "type") == kind);
        if let Some(generation) = known.and_then(|c| at(c, "observedGeneration")).cloned() {
            set(condition, "observedGeneration", generation);
        }
    }
}
