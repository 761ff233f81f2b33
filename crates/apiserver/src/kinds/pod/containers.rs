//! Rules for the containers of a pod specification.

use super::probes;
use super::references;
use super::volumes::{descending_path, no_backsteps};
use crate::kinds::checks::{
    Errors, invalid, maybe_one_of, nonnegative_quantity, one_of, port, quantity, required,
};
use crate::kinds::value::{at, flag, int, is_true, items, map, text};
use cumulet_api::field::{FieldError, Problem};
use cumulet_api::names;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const STANDARD_RESOURCES: &[&str] = &["cpu", "memory", "ephemeral-storage"];
/// Fields that containers which run to their end before the others cannot have.
const SERVING_FIELDS: [&str; 4] = ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"];
/// Fields that ephemeral containers cannot have.
const NOT_EPHEMERAL: [&str; 7] =
    ["ports", "resources", "lifecycle", "livenessProbe", "readinessProbe", "startupProbe", "resizePolicy"];

/// What containers refer to.
pub(crate) struct Scope<'a> {
    /// The pod specification.
    pub(crate) spec: &'a Value,
    volumes: BTreeMap<&'a str, &'a Value>,
}

/// Checks all lists of containers of a pod specification.
pub(crate) fn validate(errors: &mut Errors, spec: &Value, path: &str) {
    let volumes = items(spec, "volumes").iter().map(|v| (text(v, "name"), v)).collect();
    let scope = Scope { spec, volumes };
    regular(errors, &scope, &format!("{path}.containers"));
    init(errors, &scope, &format!("{path}.initContainers"));
    ephemeral(errors, &scope, &format!("{path}.ephemeralContainers"));
}

fn regular(errors: &mut Errors, scope: &Scope<'_>, path: &str) {
    let containers = items(scope.spec, "containers");
    if containers.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let (mut seen, mut host_ports) = (BTreeSet::new(), BTreeSet::new());
    for (i, container) in containers.iter().enumerate() {
        let path = format!("{path}[{i}]");
        common(errors, scope, container, &path);
        if !seen.insert(text(container, "name")) {
            errors.push(FieldError::duplicate(format!("{path}.name"), text(container, "name")));
        }
        probes::serving(errors, scope.spec, container, &path);
        maybe_one_of(errors, container, &path, "restartPolicy", &["Always", "Never", "OnFailure"]);
    }
    for (i, container) in containers.iter().enumerate() {
        unique_host_ports(errors, container, &format!("{path}[{i}]"), &mut host_ports);
    }
}

fn init(errors: &mut Errors, scope: &Scope<'_>, path: &str) {
    let mut seen: BTreeSet<&str> = items(scope.spec, "containers").iter().map(|c| text(c, "name")).collect();
    for (i, container) in items(scope.spec, "initContainers").iter().enumerate() {
        let path = format!("{path}[{i}]");
        common(errors, scope, container, &path);
        maybe_one_of(errors, container, &path, "restartPolicy", &["Always", "Never", "OnFailure"]);
        let name = text(container, "name");
        if !name.is_empty() && !seen.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        unique_host_ports(errors, container, &path, &mut BTreeSet::new());
        if text(container, "restartPolicy") == "Always" {
            probes::serving(errors, scope.spec, container, &path);
            continue;
        }
        for field in SERVING_FIELDS.iter().filter(|f| at(container, f).is_some()) {
            let message = "may not be set for init containers without restartPolicy=Always";
            errors.push(FieldError::forbidden(format!("{path}.{field}"), message));
        }
    }
}

fn ephemeral(errors: &mut Errors, scope: &Scope<'_>, path: &str) {
    let others: BTreeSet<&str> = items(scope.spec, "containers")
        .iter()
        .chain(items(scope.spec, "initContainers"))
        .map(|c| text(c, "name"))
        .collect();
    let mut all = others.clone();
    for (i, container) in items(scope.spec, "ephemeralContainers").iter().enumerate() {
        let path = format!("{path}[{i}]");
        common(errors, scope, container, &path);
        if !all.insert(text(container, "name")) {
            errors.push(FieldError::duplicate(format!("{path}.name"), text(container, "name")));
        }
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !others.contains(target) {
            errors.push(not_found(format!("{path}.targetContainerName"), target));
        }
        let filled = |v: &Value| v.as_object().is_none_or(|o| !o.is_empty());
        for field in NOT_EPHEMERAL.iter().filter(|f| at(container, f).is_some_and(filled)) {
            let message = "cannot be set for an Ephemeral Container";
            errors.push(FieldError::forbidden(format!("{path}.{field}"), message));
        }
    }
}

fn not_found(field: String, value: &str) -> FieldError {
    FieldError { field, problem: Problem::NotFound(value.into()), detail: String::new() }
}

fn common(errors: &mut Errors, scope: &Scope<'_>, container: &Value, path: &str) {
    required(errors, container, path, "name", names::dns1123_label);
    if text(container, "image").is_empty() {
        errors.push(FieldError::required(format!("{path}.image"), ""));
    }
    one_of(errors, container, path, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"]);
    ports(errors, container, path);
    references::environment(errors, container, path);
    volume_mounts(errors, scope, container, path);
    one_of(errors, container, path, "imagePullPolicy", PULL_POLICIES);
    if let Some(requirements) = at(container, "resources") {
        resources(errors, requirements, &format!("{path}.resources"));
    }
    if let Some(context) = at(container, "securityContext") {
        super::security::container(errors, context, &format!("{path}.securityContext"));
    }
}

fn ports(errors: &mut Errors, container: &Value, path: &str) {
    let mut seen = BTreeSet::new();
    for (i, one) in items(container, "ports").iter().enumerate() {
        let path = format!("{path}.ports[{i}]");
        let name = text(one, "name");
        let problems = names::port_name(name);
        if name.is_empty() {
        } else if !problems.is_empty() {
            invalid(errors, &format!("{path}.name"), name, problems);
        } else if !seen.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        match int(one, "containerPort").unwrap_or(0) {
            0 => errors.push(FieldError::required(format!("{path}.containerPort"), "")),
            _ => port(errors, one, &path, "containerPort"),
        }
        if int(one, "hostPort").is_some_and(|p| p != 0) {
            port(errors, one, &path, "hostPort");
        }
        one_of(errors, one, &path, "protocol", PROTOCOLS);
    }
}

fn unique_host_ports(errors: &mut Errors, container: &Value, path: &str, taken: &mut BTreeSet<String>) {
    for (i, one) in items(container, "ports").iter().enumerate() {
        let Some(port) = int(one, "hostPort").filter(|p| *p != 0) else { continue };
        let key = format!("{}/{}/{port}", text(one, "protocol"), text(one, "hostIP"));
        if taken.contains(&key) {
            errors.push(FieldError::duplicate(format!("{path}.ports[{i}].hostPort"), key));
        } else {
            taken.insert(key);
        }
    }
}

fn volume_mounts(errors: &mut Errors, scope: &Scope<'_>, container: &Value, path: &str) {
    let mut taken = BTreeSet::new();
    for (i, mount) in items(container, "volumeMounts").iter().enumerate() {
        let at_mount = format!("{path}.volumeMounts[{i}]");
        let (name, target) = (text(mount, "name"), text(mount, "mountPath"));
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at_mount}.name"), ""));
        }
        if !scope.volumes.contains_key(name) {
            errors.push(not_found(format!("{at_mount}.name"), name));
        }
        if target.is_empty() {
            errors.push(FieldError::required(format!("{at_mount}.mountPath"), ""));
        }
        if !taken.insert(target) {
            errors.push(FieldError::invalid(format!("{at_mount}.mountPath"), target, "must be unique"));
        }
        let (sub, expression) = (text(mount, "subPath"), text(mount, "subPathExpr"));
        if !sub.is_empty() && !expression.is_empty() {
            let message = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(format!("{at_mount}.subPathExpr"), expression, message));
        }
        descending_path(errors, &format!("{path}.volumeMounts.subPath"), sub);
        descending_path(errors, &format!("{path}.volumeMounts.subPathExpr"), expression);
        let modes = &["Bidirectional", "HostToContainer", "None"];
        maybe_one_of(errors, mount, &format!("{path}.volumeMounts"), "mountPropagation", modes);
        if text(mount, "mountPropagation") == "Bidirectional"
            && !is_true(container, "securityContext.privileged")
        {
            let message = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(FieldError::forbidden(format!("{path}.volumeMounts.mountPropagation"), message));
        }
    }
    let mut devices = BTreeSet::new();
    for (i, device) in items(container, "volumeDevices").iter().enumerate() {
        let path = format!("{path}.volumeDevices[{i}]");
        let (name, target) = (text(device, "name"), text(device, "devicePath"));
        match scope.volumes.get(name) {
            None => errors.push(not_found(format!("{path}.name"), name)),
            Some(v) if at(v, "persistentVolumeClaim").is_none() && at(v, "ephemeral").is_none() => {
                let message =
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.push(FieldError::invalid(format!("{path}.name"), name, message));
            }
            Some(_) => {}
        }
        if target.is_empty() {
            errors.push(FieldError::required(format!("{path}.devicePath"), ""));
        }
        if !devices.insert(target) {
            errors.push(FieldError::invalid(format!("{path}.devicePath"), target, "must be unique"));
        }
        no_backsteps(errors, &format!("{path}.devicePath"), target);
    }
}

/// Checks limits and requests: known names, quantities that are not negative, requests within limits.
pub(crate) fn resources(errors: &mut Errors, requirements: &Value, path: &str) {
    for list in ["limits", "requests"] {
        let entries = map(requirements, list).into_iter().flatten();
        for (name, value) in entries {
            let entry = format!("{path}.{list}[{name}]");
            resource_name(errors, name, &entry);
            let Some(amount) = nonnegative_quantity(errors, &entry, value) else { continue };
            if list == "limits" {
                continue;
            }
            let limit = map(requirements, "limits").and_then(|l| l.get(name)).and_then(quantity);
            let overcommit = STANDARD_RESOURCES.contains(&name.as_str());
            let requests = format!("{path}.requests");
            match limit {
                Some(limit) if !overcommit && amount != limit => {
                    let message = format!("must be equal to {name} limit of {limit}");
                    errors.push(FieldError::invalid(requests, amount.to_string(), message));
                }
                Some(limit) if amount > limit => {
                    let message = format!("must be less than or equal to {name} limit of {limit}");
                    errors.push(FieldError::invalid(requests, amount.to_string(), message));
                }
                None if !overcommit => {
                    let message = "Limit must be set for non overcommitable resources";
                    errors.push(FieldError::required(format!("{path}.limits"), message));
                }
                _ => {}
            }
        }
    }
}

fn resource_name(errors: &mut Errors, name: &str, path: &str) {
    invalid(errors, path, name, names::qualified_name(name));
    if !name.contains('/') && !STANDARD_RESOURCES.contains(&name) && !name.starts_with("hugepages-") {
        errors.push(FieldError::invalid(path, name, "must be a standard resource type or fully qualified"));
        errors.push(FieldError::invalid(path, name, "must be a standard resource for containers"));
    }
}

/// Rules that hold for containers of pods but not of templates.
pub(crate) fn only_pods(errors: &mut Errors, spec: &Value, path: &str) {
    for list in ["containers", "initContainers"] {
        for (i, container) in items(spec, list).iter().enumerate() {
            let image = text(container, "image");
            if image.trim() != image {
                let message = "must not have leading or trailing whitespace";
                errors.push(FieldError::invalid(format!("{path}.{list}[{i}].image"), image, message));
            }
        }
    }
}

/// With the host's network, host port and container port must be one; templates may leave the host port out.
pub(crate) fn host_network_ports(errors: &mut Errors, spec: &Value, path: &str, is_pod: bool) {
    if flag(spec, "hostNetwork") != Some(true) {
        return;
    }
    for (i, container) in items(spec, "containers").iter().enumerate() {
        for (j, one) in items(container, "ports").iter().enumerate() {
            let host = int(one, "hostPort").unwrap_or(0);
            if (is_pod || host != 0) && host != int(one, "containerPort").unwrap_or(0) {
                let field = format!("{path}.containers[{i}].ports[{j}].hostPort");
                let message = "must match `containerPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(field, host, message));
            }
        }
    }
}
