//! Rules for security contexts of pods and containers.

use crate::kinds::checks::{Errors, maybe_one_of, one_of};
use crate::kinds::value::{at, flag, int, is_true, items, text};
use cumulet_api::field::FieldError;
use cumulet_api::names;
use serde_json::Value;

const SECCOMP: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];

/// Checks the security context of a pod specification.
pub(crate) fn pod(errors: &mut Errors, spec: &Value, path: &str) {
    let Some(context) = at(spec, "securityContext") else { return };
    let path = format!("{path}.securityContext");
    ids(errors, context, &path, &["fsGroup", "runAsUser", "runAsGroup"]);
    for (i, group) in items(context, "supplementalGroups").iter().enumerate() {
        id(errors, group.as_i64(), &format!("{path}.supplementalGroups[{i}]"));
    }
    if is_true(spec, "shareProcessNamespace") && is_true(spec, "hostPID") {
        let message = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(format!("{path}.shareProcessNamespace"), true, message));
    }
    for (i, sysctl) in items(context, "sysctls").iter().enumerate() {
        if text(sysctl, "name").is_empty() {
            errors.push(FieldError::required(format!("{path}.sysctls[{i}].name"), ""));
        }
    }
    maybe_one_of(errors, context, &path, "fsGroupChangePolicy", &["Always", "OnRootMismatch"]);
    maybe_one_of(errors, context, &path, "supplementalGroupsPolicy", &["Merge", "Strict"]);
    profiles(errors, context, &path);
}

/// Checks the security context of a container.
pub(crate) fn container(errors: &mut Errors, context: &Value, path: &str) {
    ids(errors, context, path, &["runAsUser", "runAsGroup"]);
    maybe_one_of(errors, context, path, "procMount", &["Default", "Unmasked"]);
    profiles(errors, context, path);
    if flag(context, "allowPrivilegeEscalation") != Some(false) {
        return;
    }
    if is_true(context, "privileged") {
        let message = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        errors.push(FieldError::invalid(path, context.clone(), message));
    }
    if items(context, "capabilities.add").iter().any(|c| c.as_str() == Some("CAP_SYS_ADMIN")) {
        let message = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
        errors.push(FieldError::invalid(path, context.clone(), message));
    }
}

fn ids(errors: &mut Errors, context: &Value, path: &str, keys: &[&str]) {
    for key in keys {
        id(errors, int(context, key), &format!("{path}.{key}"));
    }
}

fn id(errors: &mut Errors, id: Option<i64>, path: &str) {
    const MAX: i64 = i32::MAX as i64;
    if let Some(id) = id.filter(|id| !(0..=MAX).contains(id)) {
        errors.push(FieldError::invalid(path, id, names::range(0, MAX)));
    }
}

fn profiles(errors: &mut Errors, context: &Value, path: &str) {
    for (field, what) in [("seccompProfile", "seccomp"), ("appArmorProfile", "AppArmor")] {
        let Some(profile) = at(context, field) else { continue };
        let path = format!("{path}.{field}");
        one_of(errors, profile, &path, "type", SECCOMP);
        let local = text(profile, "localhostProfile");
        let field = format!("{path}.localhostProfile");
        match (text(profile, "type"), what) {
            ("Localhost", _) if local.is_empty() => {
                errors
                    .push(FieldError::required(field, format!("must be set when {what} type is Localhost")));
            }
            ("Localhost", "seccomp") => super::volumes::descending_path(errors, &field, local),
            ("Localhost", _) => {}
            _ if !local.is_empty() => {
                let message = format!("can only be set when {what} type is Localhost");
                errors.push(FieldError::invalid(field, local, message));
            }
            _ => {}
        }
    }
}
