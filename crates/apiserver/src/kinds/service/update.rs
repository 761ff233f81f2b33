//! How a Service changes: what an update keeps, what falls away with the old type, what may not change.

use super::{is_headless, shape};
use crate::kinds::checks::Errors;
use crate::kinds::lifecycle;
use crate::kinds::value::{at, at_mut, int, items, items_mut, keep, same_at, set, text, unset};
use cumulet_api::field::FieldError;
use serde_json::{Value, json};

/// Prepares an update of the main resource.
pub(crate) fn prepare(old: &Value, new: &mut Value) {
    keep(old, new, "status");
    lifecycle::carry_generation(old, new, false);
    link_addresses(old, new);
    drop_type_dependent(old, new);
    keep_allocated(old, new);
    // A wish that cannot be granted is told by the allocator, which shapes the object again.
    let _ = shape(new);
}

/// Clients that know only `clusterIP` change it alone: the list follows.
fn link_addresses(old: &Value, new: &mut Value) {
    let (before, after) = (text(old, "spec.clusterIP").to_owned(), text(new, "spec.clusterIP").to_owned());
    let same_list = same_at(old, new, "spec.clusterIPs");
    let no_list = items(new, "spec.clusterIPs").is_empty();
    let kept = at(old, "spec.clusterIPs").cloned();
    let Some(spec) = at_mut(new, "spec") else { return };
    if before == after {
        if let Some(kept) = kept.filter(|_| no_list) {
            set(spec, "clusterIPs", kept);
        }
    } else if same_list || no_list {
        if after.is_empty() {
            unset(spec, "clusterIPs");
        } else {
            set(spec, "clusterIPs", json!([after]));
        }
    }
}

/// Values that the server allocated stay when the client does not name them and the type still needs them.
fn keep_allocated(old: &Value, new: &mut Value) {
    let needs_address = |s: &Value| matches!(text(s, "spec.type"), "ClusterIP" | "NodePort" | "LoadBalancer");
    let needs_ports = |s: &Value| matches!(text(s, "spec.type"), "NodePort" | "LoadBalancer");
    let (Some(before), ports) = (at(old, "spec"), needs_ports(old) && needs_ports(new)) else { return };
    let addresses = needs_address(old) && needs_address(new) && text(new, "spec.clusterIP").is_empty();
    let health = needs_health_check(old) && needs_health_check(new);
    let Some(spec) = at_mut(new, "spec") else { return };
    if addresses {
        for key in ["clusterIP", "clusterIPs"] {
            keep(before, spec, key);
        }
    }
    if ports {
        let named: Vec<i64> = items(spec, "ports").iter().filter_map(|p| int(p, "nodePort")).collect();
        for port in items_mut(spec, "ports") {
            let known = items(before, "ports").iter().find(|p| {
                int(p, "port") == int(port, "port") && text(p, "protocol") == text(port, "protocol")
            });
            let number = known.and_then(|p| int(p, "nodePort")).filter(|n| !named.contains(n));
            if let (None, Some(number)) = (int(port, "nodePort"), number) {
                set(port, "nodePort", number);
            }
        }
    }
    if health && int(spec, "healthCheckNodePort").is_none() {
        keep(before, spec, "healthCheckNodePort");
    }
}

/// True for a Service whose load balancer asks the nodes for local endpoints.
pub(crate) fn needs_health_check(service: &Value) -> bool {
    text(service, "spec.type") == "LoadBalancer" && text(service, "spec.externalTrafficPolicy") == "Local"
}

/// Fields that only the old type needed go, unless the client changed them, which then is an error for validation.
fn drop_type_dependent(old: &Value, new: &mut Value) {
    let had_ports = matches!(text(old, "spec.type"), "NodePort" | "LoadBalancer");
    let kind = text(new, "spec.type").to_owned();
    let accessible = at(new, "spec").is_some_and(super::externally_accessible);
    let health = needs_health_check(old) && !needs_health_check(new);
    let unchanged = |key: &str| same_at(old, new, &format!("spec.{key}"));
    let mut gone = Vec::new();
    if kind == "ExternalName" && text(old, "spec.type") != "ExternalName" {
        gone.extend(
            ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"].into_iter().filter(|k| unchanged(k)),
        );
    }
    if health && unchanged("healthCheckNodePort") {
        gone.push("healthCheckNodePort");
    }
    if !accessible && unchanged("externalTrafficPolicy") {
        gone.push("externalTrafficPolicy");
    }
    if kind != "LoadBalancer" {
        gone.extend(
            ["allocateLoadBalancerNodePorts", "loadBalancerClass"].into_iter().filter(|k| unchanged(k)),
        );
    }
    let same_ports =
        items(old, "spec.ports")
            .iter()
            .filter_map(|p| int(p, "nodePort"))
            .eq(items(new, "spec.ports").iter().filter_map(|p| int(p, "nodePort")));
    let Some(spec) = at_mut(new, "spec") else { return };
    for key in gone {
        unset(spec, key);
    }
    if had_ports && matches!(kind.as_str(), "ClusterIP" | "ExternalName") && same_ports {
        for port in items_mut(spec, "ports") {
            unset(port, "nodePort");
        }
    }
}

/// Rules for a change: the addresses of a Service are its own for life.
pub(crate) fn validate(old: &Value, new: &Value) -> Errors {
    let mut errors = Errors::new();
    let external = |s: &Value| text(s, "spec.type") == "ExternalName";
    let free = external(old) || external(new) || (is_headless(old) && is_headless(new));
    if !free {
        let (before, after) = (items(old, "spec.clusterIPs"), items(new, "spec.clusterIPs"));
        let message = match (before.first(), after.first()) {
            (Some(_), None) => Some("primary clusterIP can not be unset"),
            (Some(a), Some(b)) if a != b => Some("may not change once set"),
            _ => None,
        };
        if let Some(message) = message {
            errors.push(FieldError::invalid("spec.clusterIPs[0]", after.to_vec(), message));
        }
    }
    if needs_health_check(old)
        && needs_health_check(new)
        && int(old, "spec.healthCheckNodePort") != int(new, "spec.healthCheckNodePort")
    {
        errors.push(FieldError::forbidden("spec.healthCheckNodePort", "field is immutable"));
    }
    let class = "spec.loadBalancerClass";
    if text(old, "spec.type") == "LoadBalancer"
        && text(new, "spec.type") == "LoadBalancer"
        && text(old, class) != text(new, class)
    {
        errors.push(FieldError::invalid(class, text(new, class), "may not change once set"));
    }
    errors
}
