//! Rules for a complete Service.

use super::{externally_accessible, is_headless};
use crate::kinds::checks::{
    Errors, invalid, ip, labels, maybe_one_of, one_of, ordinary_ip, port, port_or_name,
};
use crate::kinds::value::{at, int, items, text};
use cumulet_api::field::FieldError;
use cumulet_api::names;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const TRAFFIC: &[&str] = &["Cluster", "Local"];
/// Longest session affinity, in seconds: a day.
const MAX_AFFINITY_S: i64 = 86_400;

/// All rules of a Service.
pub(crate) fn service(service: &Value) -> Errors {
    let mut errors = Errors::new();
    let null = Value::Null;
    let spec = at(service, "spec").unwrap_or(&null);
    let kind = text(spec, "type");
    let headless = is_headless(service);
    let ports = items(spec, "ports");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => {
            let message = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid("spec.clusterIPs[0]", "None", message));
        }
        "ExternalName" => external_name(&mut errors, spec),
        _ => {}
    }
    let mut seen = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        service_port(&mut errors, port, &format!("spec.ports[{i}]"), ports.len() > 1, &mut seen);
    }
    labels(&mut errors, spec, "spec", "selector");
    affinity(&mut errors, spec);
    addresses(&mut errors, spec);
    for (i, address) in items(spec, "externalIPs").iter().filter_map(Value::as_str).enumerate() {
        let path = format!("spec.externalIPs[{i}]");
        if let Some(parsed) = ip(&mut errors, &path, address) {
            ordinary_ip(&mut errors, &path, parsed);
        }
    }
    one_of(&mut errors, spec, "spec", "type", TYPES);
    unique_ports(&mut errors, spec);
    balancer(&mut errors, spec);
    traffic(&mut errors, spec);
    errors
}

fn external_name(errors: &mut Errors, spec: &Value) {
    const NOT_EXTERNAL: &str = "may not be set for ExternalName services";
    for key in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let set = match at(spec, key) {
            Some(Value::Array(list)) => !list.is_empty(),
            other => other.is_some(),
        };
        if set {
            errors.push(FieldError::forbidden(format!("spec.{key}"), NOT_EXTERNAL));
        }
    }
    let name = text(spec, "externalName");
    let bare = name.strip_suffix('.').unwrap_or(name);
    if bare.is_empty() {
        errors.push(FieldError::required("spec.externalName", ""));
    } else {
        invalid(errors, "spec.externalName", bare, names::dns1123_subdomain(bare));
    }
}

fn service_port<'a>(
    errors: &mut Errors,
    one: &'a Value,
    path: &str,
    needs_name: bool,
    seen: &mut BTreeSet<&'a str>,
) {
    let name = text(one, "name");
    if name.is_empty() {
        if needs_name {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
    } else {
        invalid(errors, &format!("{path}.name"), name, names::dns1123_label(name));
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
    }
    match at(one, "port") {
        Some(_) => port(errors, one, path, "port"),
        None => invalid(errors, &format!("{path}.port"), 0, names::port_number(0)),
    }
    one_of(errors, one, path, "protocol", PROTOCOLS);
    port_or_name(errors, one, path, "targetPort");
    let protocol = text(one, "appProtocol");
    if !protocol.is_empty() {
        invalid(errors, &format!("{path}.appProtocol"), protocol, names::qualified_name(protocol));
    }
}

fn affinity(errors: &mut Errors, spec: &Value) {
    one_of(errors, spec, "spec", "sessionAffinity", &["ClientIP", "None"]);
    if text(spec, "sessionAffinity") != "ClientIP" {
        return;
    }
    let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    match int(spec, "sessionAffinityConfig.clientIP.timeoutSeconds") {
        None => errors.push(FieldError::required(field, "when session affinity type is ClientIP")),
        Some(seconds) if !(1..=MAX_AFFINITY_S).contains(&seconds) => {
            let message = format!("must be greater than 0 and less than {MAX_AFFINITY_S}");
            errors.push(FieldError::invalid(field, seconds, message));
        }
        Some(_) => {}
    }
}

/// `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy` must agree.
fn addresses(errors: &mut Errors, spec: &Value) {
    const FIELD: &str = "spec.clusterIPs";
    if text(spec, "type") == "ExternalName" {
        return;
    }
    let (single, list) = (text(spec, "clusterIP"), items(spec, "clusterIPs"));
    let message = match (single, list.first().and_then(Value::as_str)) {
        ("", Some(_)) => Some("must be empty when `clusterIP` is not specified"),
        (single, Some(first)) if single != first => Some("first value must match `clusterIP`"),
        _ => None,
    };
    if let Some(message) = message {
        errors.push(FieldError::invalid(FIELD, list.to_vec(), message));
    }
    let families = items(spec, "ipFamilies");
    for (i, family) in families.iter().enumerate() {
        let (path, name) = (format!("spec.ipFamilies[{i}]"), family.as_str().unwrap_or(""));
        if !["IPv4", "IPv6"].contains(&name) {
            errors.push(FieldError::not_supported(path, name, &["IPv4", "IPv6"]));
        } else if families[..i].contains(family) {
            errors.push(FieldError::duplicate(path, name));
        }
    }
    let policies = &["PreferDualStack", "RequireDualStack", "SingleStack"];
    maybe_one_of(errors, spec, "spec", "ipFamilyPolicy", policies);
    if list.len() > 2 {
        errors.push(FieldError::invalid(FIELD, list.to_vec(), "may only hold up to 2 values"));
    }
    for (i, value) in list.iter().enumerate() {
        let (path, address) = (format!("{FIELD}[{i}]"), value.as_str().unwrap_or(""));
        if i == 0 && address == "None" {
            if list.len() > 1 {
                let message = "'None' must be the first and only value";
                errors.push(FieldError::invalid(FIELD, list.to_vec(), message));
            }
            continue;
        }
        let Some(parsed) = ip(errors, &path, address) else { continue };
        let family = if matches!(parsed, IpAddr::V4(_)) { "IPv4" } else { "IPv6" };
        if let Some(wanted) = families.get(i).and_then(Value::as_str).filter(|f| *f != family) {
            let message = format!("expected an {wanted} value as indicated by `ipFamilies[{i}]`");
            errors.push(FieldError::invalid(path, address, message));
        }
    }
}

fn unique_ports(errors: &mut Errors, spec: &Value) {
    let (mut node_ports, mut ports) = (BTreeSet::new(), BTreeSet::new());
    let all = items(spec, "ports");
    for (i, one) in all.iter().enumerate() {
        let Some(node_port) = int(one, "nodePort").filter(|p| *p != 0) else { continue };
        let path = format!("spec.ports[{i}].nodePort");
        if text(spec, "type") == "ClusterIP" {
            errors.push(FieldError::forbidden(path.as_str(), "may not be used when `type` is 'ClusterIP'"));
        }
        if !node_ports.insert((text(one, "protocol"), node_port)) {
            errors.push(FieldError::duplicate(path, node_port));
        }
    }
    for (i, one) in all.iter().enumerate() {
        let (protocol, number) = (text(one, "protocol"), int(one, "port").unwrap_or(0));
        if !ports.insert((protocol, number)) {
            let value = json!({"port": number, "protocol": protocol});
            errors.push(FieldError::duplicate(format!("spec.ports[{i}]"), value));
        }
    }
}

/// Fields that belong to load balancers.
fn balancer(errors: &mut Errors, spec: &Value) {
    let kind = text(spec, "type");
    if kind == "LoadBalancer" {
        return;
    }
    const MESSAGE: &str = "may only be used when `type` is 'LoadBalancer'";
    if !items(spec, "loadBalancerSourceRanges").is_empty() {
        errors.push(FieldError::forbidden("spec.LoadBalancerSourceRanges", MESSAGE));
    }
    for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if at(spec, key).is_some() {
            errors.push(FieldError::forbidden(format!("spec.{key}"), MESSAGE));
        }
    }
}

fn traffic(errors: &mut Errors, spec: &Value) {
    let policy = text(spec, "externalTrafficPolicy");
    if externally_accessible(spec) {
        one_of(errors, spec, "spec", "externalTrafficPolicy", TRAFFIC);
    } else if !policy.is_empty() {
        let message = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid("spec.externalTrafficPolicy", policy, message));
    }
    if let Some(number) = int(spec, "healthCheckNodePort").filter(|p| *p != 0) {
        if text(spec, "type") == "LoadBalancer" && policy == "Local" {
            port(errors, spec, "spec", "healthCheckNodePort");
        } else {
            let message =
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.push(FieldError::invalid("spec.healthCheckNodePort", number, message));
        }
    }
    maybe_one_of(errors, spec, "spec", "internalTrafficPolicy", TRAFFIC);
    let close = &["PreferClose", "PreferSameNode", "PreferSameZone"];
    maybe_one_of(errors, spec, "spec", "trafficDistribution", close);
}
