//! Rules for pod specifications, in pods and in templates.

use super::containers;
use crate::kinds::checks::{
    Errors, annotations, invalid, ip, label_selector, labels, maybe_one_of, one_of, optional,
};
use crate::kinds::value::{at, int, items, text};
use cumulet_api::field::FieldError;
use cumulet_api::names;
use serde_json::Value;
use std::collections::BTreeSet;

const RESTART_POLICIES: &[&str] = &["Always", "OnFailure", "Never"];
const DNS_POLICIES: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
pub(crate) const TAINT_EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// All rules of a pod.
pub(crate) fn pod(pod: &Value) -> Errors {
    let mut errors = Errors::new();
    let Some(spec) = at(pod, "spec") else { return vec![FieldError::required("spec.containers", "")] };
    pod_spec(&mut errors, spec, "spec", true);
    containers::only_pods(&mut errors, spec, "spec");
    if !text(spec, "nodeName").is_empty() && !items(spec, "schedulingGates").is_empty() {
        let message = "cannot be set until all schedulingGates have been cleared";
        errors.push(FieldError::forbidden("spec.nodeName", message));
    }
    errors
}

/// All rules of a pod template at `path`.
pub(crate) fn template(errors: &mut Errors, template: &Value, path: &str) {
    if let Some(metadata) = at(template, "metadata") {
        let path = format!("{path}.metadata");
        labels(errors, metadata, &path, "labels");
        annotations(errors, metadata, &path);
    }
    let path = format!("{path}.spec");
    let empty = Value::Null;
    let spec = at(template, "spec").unwrap_or(&empty);
    pod_spec(errors, spec, &path, false);
    if !items(spec, "ephemeralContainers").is_empty() {
        let message = "ephemeral containers not allowed in pod template";
        errors.push(FieldError::forbidden(format!("{path}.ephemeralContainers"), message));
    }
}

fn pod_spec(errors: &mut Errors, spec: &Value, path: &str, is_pod: bool) {
    super::volumes::validate(errors, spec, path);
    containers::validate(errors, spec, path);
    if let Some(resources) = at(spec, "resources") {
        containers::resources(errors, resources, &format!("{path}.resources"));
    }
    containers::host_network_ports(errors, spec, path, is_pod);
    one_of(errors, spec, path, "restartPolicy", RESTART_POLICIES);
    one_of(errors, spec, path, "dnsPolicy", DNS_POLICIES);
    labels(errors, spec, path, "nodeSelector");
    super::security::pod(errors, spec, path);
    affinity(errors, spec, path);
    dns_config(errors, spec, path);
    gates(errors, spec, path);
    spread(errors, spec, path);
    host_users(errors, spec, path);
    optional(errors, spec, path, "serviceAccountName", names::dns1123_subdomain);
    optional(errors, spec, path, "nodeName", names::dns1123_subdomain);
    if let Some(seconds) =
        int(spec, "activeDeadlineSeconds").filter(|s| !(1..=i64::from(i32::MAX)).contains(s))
    {
        let message = names::range(1, i64::from(i32::MAX));
        errors.push(FieldError::invalid(format!("{path}.activeDeadlineSeconds"), seconds, message));
    }
    optional(errors, spec, path, "hostname", names::dns1123_label);
    optional(errors, spec, path, "subdomain", names::dns1123_label);
    tolerations(errors, spec, path);
    for (i, alias) in items(spec, "hostAliases").iter().enumerate() {
        let path = format!("{path}.hostAliases[{i}]");
        ip(errors, &format!("{path}.ip"), text(alias, "ip"));
        for (j, name) in items(alias, "hostnames").iter().filter_map(Value::as_str).enumerate() {
            invalid(errors, &format!("{path}.hostnames[{j}]"), name, names::dns1123_subdomain(name));
        }
    }
    optional(errors, spec, path, "priorityClassName", names::dns1123_subdomain);
    optional(errors, spec, path, "runtimeClassName", names::dns1123_subdomain);
    maybe_one_of(errors, spec, path, "preemptionPolicy", &["PreemptLowerPriority", "Never"]);
    if let Some(os) = at(spec, "os") {
        one_of(errors, os, &format!("{path}.os"), "name", &["linux", "windows"]);
    }
}

/// A pod with its own user namespace cannot share other namespaces with the host.
fn host_users(errors: &mut Errors, spec: &Value, path: &str) {
    if crate::kinds::value::flag(spec, "hostUsers") != Some(false) {
        return;
    }
    for (field, name) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if crate::kinds::value::is_true(spec, field) {
            let message = "when `pod.Spec.HostUsers` is false";
            errors.push(FieldError::forbidden(format!("{path}.{name}"), message));
        }
    }
}

fn gates(errors: &mut Errors, spec: &Value, path: &str) {
    for (i, gate) in items(spec, "readinessGates").iter().enumerate() {
        let kind = text(gate, "conditionType");
        let field = format!("{path}.readinessGates[{i}].conditionType");
        invalid(errors, &field, kind, names::qualified_name(kind));
    }
    let mut seen = BTreeSet::new();
    for (i, gate) in items(spec, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        let field = format!("{path}.schedulingGates[{i}]");
        invalid(errors, &field, name, names::qualified_name(name));
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(field, name));
        }
    }
}

fn dns_config(errors: &mut Errors, spec: &Value, path: &str) {
    const MAX_SERVERS: usize = 3;
    const MAX_SEARCHES: usize = 32;
    const MAX_SEARCH_CHARS: usize = 2048;
    let path = format!("{path}.dnsConfig");
    let config = at(spec, "dnsConfig");
    let servers = config.map_or(&[][..], |c| items(c, "nameservers"));
    if text(spec, "dnsPolicy") == "None" && servers.is_empty() {
        let error = match config {
            None => FieldError::required(path, "must provide `dnsConfig` when `dnsPolicy` is None"),
            Some(_) => FieldError::required(
                format!("{path}.nameservers"),
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            ),
        };
        errors.push(error);
        return;
    }
    let Some(config) = config else { return };
    if servers.len() > MAX_SERVERS {
        let message = format!("must not have more than {MAX_SERVERS} nameservers");
        errors.push(FieldError::invalid(format!("{path}.nameservers"), servers.to_vec(), message));
    }
    for (i, server) in servers.iter().filter_map(Value::as_str).enumerate() {
        ip(errors, &format!("{path}.nameservers[{i}]"), server);
    }
    let searches: Vec<&str> = items(config, "searches").iter().filter_map(Value::as_str).collect();
    if searches.len() > MAX_SEARCHES {
        let message = format!("must not have more than {MAX_SEARCHES} search paths");
        errors.push(FieldError::invalid(format!("{path}.searches"), searches.clone(), message));
    }
    if searches.join(" ").len() > MAX_SEARCH_CHARS {
        let message = format!(
            "must not have more than {MAX_SEARCH_CHARS} characters (including spaces) in the search list"
        );
        errors.push(FieldError::invalid(format!("{path}.searches"), searches.clone(), message));
    }
    for (i, search) in searches.iter().enumerate().filter(|(_, s)| **s != ".") {
        // Service names with underscores are looked up in practice, so a search path may have them too.
        let name = search.trim_end_matches('.').replace('_', "-");
        invalid(errors, &format!("{path}.searches[{i}]"), *search, names::dns1123_subdomain(&name));
    }
    for (i, option) in items(config, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            errors.push(FieldError::required(format!("{path}.options[{i}]"), "must not be empty"));
        }
    }
}

fn tolerations(errors: &mut Errors, spec: &Value, path: &str) {
    for (i, toleration) in items(spec, "tolerations").iter().enumerate() {
        self::toleration(errors, toleration, &format!("{path}.tolerations[{i}]"));
    }
}

fn toleration(errors: &mut Errors, toleration: &Value, path: &str) {
    let (key, value) = (text(toleration, "key"), text(toleration, "value"));
    let (operator, effect) = (text(toleration, "operator"), text(toleration, "effect"));
    let at_operator = format!("{path}.operator");
    if !key.is_empty() {
        invalid(errors, &format!("{path}.key"), key, names::qualified_name(key));
    } else if operator != "Exists" {
        let message =
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        errors.push(FieldError::invalid(at_operator.as_str(), operator, message));
    }
    if at(toleration, "tolerationSeconds").is_some() && effect != "NoExecute" {
        let message = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        errors.push(FieldError::invalid(format!("{path}.effect"), effect, message));
    }
    match operator {
        "Equal" | "" => {
            let problems = names::label_value(value);
            if !problems.is_empty() {
                errors.push(FieldError::invalid(at_operator, value, problems.join(";")));
            }
        }
        "Exists" if !value.is_empty() => {
            let message = "value must be empty when `operator` is 'Exists'";
            errors.push(FieldError::invalid(at_operator, value, message));
        }
        "Exists" => {}
        _ => errors.push(FieldError::not_supported(at_operator, operator, &["Equal", "Exists"])),
    }
    maybe_one_of(errors, toleration, path, "effect", TAINT_EFFECTS);
}

fn spread(errors: &mut Errors, spec: &Value, path: &str) {
    for (i, constraint) in items(spec, "topologySpreadConstraints").iter().enumerate() {
        let path = format!("{path}.topologySpreadConstraints[{i}]");
        let skew = int(constraint, "maxSkew").unwrap_or(0);
        if skew <= 0 {
            errors.push(FieldError::invalid(format!("{path}.maxSkew"), skew, "must be greater than zero"));
        }
        if text(constraint, "topologyKey").is_empty() {
            errors.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
        }
        one_of(errors, constraint, &path, "whenUnsatisfiable", &["DoNotSchedule", "ScheduleAnyway"]);
        if let Some(selector) = at(constraint, "labelSelector") {
            label_selector(errors, selector, &format!("{path}.labelSelector"));
        }
    }
}

fn affinity(errors: &mut Errors, spec: &Value, path: &str) {
    let Some(affinity) = at(spec, "affinity") else { return };
    let path = format!("{path}.affinity");
    node_affinity(errors, affinity, &format!("{path}.nodeAffinity"));
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = at(affinity, kind) else { continue };
        for (list, inner) in [
            ("requiredDuringSchedulingIgnoredDuringExecution", ""),
            ("preferredDuringSchedulingIgnoredDuringExecution", "podAffinityTerm"),
        ] {
            for (i, one) in items(affinity, list).iter().enumerate() {
                let path = format!("{path}.{kind}.{list}[{i}]");
                let (term, path) = match inner {
                    "" => (Some(one), path),
                    _ => {
                        weight(errors, one, &path);
                        (at(one, inner), format!("{path}.{inner}"))
                    }
                };
                if let Some(term) = term {
                    affinity_term(errors, term, &path);
                }
            }
        }
    }
}

fn affinity_term(errors: &mut Errors, term: &Value, path: &str) {
    for selector in ["labelSelector", "namespaceSelector"] {
        if let Some(value) = at(term, selector) {
            label_selector(errors, value, &format!("{path}.{selector}"));
        }
    }
    let key = text(term, "topologyKey");
    if key.is_empty() {
        errors.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
    } else {
        invalid(errors, &format!("{path}.topologyKey"), key, names::qualified_name(key));
    }
}

fn weight(errors: &mut Errors, term: &Value, path: &str) {
    let weight = int(term, "weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(format!("{path}.weight"), weight, "must be in the range 1-100"));
    }
}

fn node_affinity(errors: &mut Errors, affinity: &Value, path: &str) {
    let Some(affinity) = at(affinity, "nodeAffinity") else { return };
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    if let Some(selector) = at(affinity, required) {
        let path = format!("{path}.{required}.nodeSelectorTerms");
        let terms = items(selector, "nodeSelectorTerms");
        if terms.is_empty() {
            errors.push(FieldError::required(path.as_str(), "must have at least one node selector term"));
        }
        for (i, term) in terms.iter().enumerate() {
            node_selector_term(errors, term, &format!("{path}[{i}]"));
        }
    }
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    for (i, term) in items(affinity, preferred).iter().enumerate() {
        let path = format!("{path}.{preferred}[{i}]");
        weight(errors, term, &path);
        if let Some(preference) = at(term, "preference") {
            node_selector_term(errors, preference, &format!("{path}.preference"));
        }
    }
}

fn node_selector_term(errors: &mut Errors, term: &Value, path: &str) {
    for (i, expression) in items(term, "matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let values = items(expression, "values").len();
        let message = match text(expression, "operator") {
            "In" | "NotIn" if values == 0 => {
                let message = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(format!("{path}.values"), message));
                None
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                Some("may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
            }
            "Gt" | "Lt" if values != 1 => {
                let message = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.push(FieldError::required(format!("{path}.values"), message));
                None
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => None,
            other => {
                let message = "not a valid selector operator";
                errors.push(FieldError::invalid(format!("{path}.operator"), other, message));
                None
            }
        };
        if let Some(message) = message {
            errors.push(FieldError::forbidden(format!("{path}.values"), message));
        }
        let key = text(expression, "key");
        invalid(errors, &format!("{path}.key"), key, names::qualified_name(key));
    }
}
