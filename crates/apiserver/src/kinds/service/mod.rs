//! Services.
//!
//! Addresses and ports are drawn by `alloc`; here is what happens around it: defaults, linked fields
//! (`clusterIP` and `clusterIPs`), fields that come and go with the type, and what an update keeps of the values
//! that were allocated before. Single stack: only IPv4 is configured.

pub(crate) mod update;
pub(crate) mod validate;

use super::lifecycle;
use super::printing::{AGE, NAME, SELECTOR, age, column, labels, name, or};
use super::value::{at, at_mut, default_to, drop_zeros, int, items, items_mut, object_mut, set, text, unset};
use crate::row::{Allocation, Column, Row, Strategy};
use cumulet_api::field::FieldError;
use jiff::Timestamp;
use serde_json::{Value, json};

pub(crate) const ROW: Row = Row {
    group: "",
    version: "v1",
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    namespaced: true,
    status: true,
    scale: None,
    selectable_fields: &["spec.clusterIP", "spec.type"],
    columns: COLUMNS,
    cells,
    strategy: &Services,
};

static COLUMNS: &[Column] = &[
    NAME,
    column("Type", "How the service is reached."),
    column("Cluster-IP", "Address of the service inside of the cluster."),
    column("External-IP", "Addresses of the service outside of the cluster."),
    column("Port(s)", "Ports of the service, with the port on every node behind a colon."),
    AGE,
    SELECTOR,
];

fn cells(service: &Value, now: Timestamp) -> Vec<Value> {
    let ip = match items(service, "spec.clusterIPs") {
        [first, ..] => first.as_str().unwrap_or(""),
        [] => text(service, "spec.clusterIP"),
    };
    vec![
        name(service),
        text(service, "spec.type").into(),
        or(ip, "<none>").into(),
        external(service).into(),
        ports(service).into(),
        age(service, now),
        labels(service, "spec.selector"),
    ]
}

fn external(service: &Value) -> String {
    let own: Vec<&str> = items(service, "spec.externalIPs").iter().filter_map(Value::as_str).collect();
    match text(service, "spec.type") {
        "ClusterIP" | "NodePort" => or(&own.join(","), "<none>").to_owned(),
        "ExternalName" => text(service, "spec.externalName").to_owned(),
        "LoadBalancer" => {
            let mut all: Vec<&str> = items(service, "status.loadBalancer.ingress")
                .iter()
                .map(|i| or(text(i, "ip"), text(i, "hostname")))
                .filter(|address| !address.is_empty())
                .collect();
            all.sort_unstable();
            all.dedup();
            all.extend(own);
            or(&all.join(","), "<pending>").to_owned()
        }
        _ => "<unknown>".to_owned(),
    }
}

fn ports(service: &Value) -> String {
    let one = |port: &Value| {
        let (number, protocol) = (int(port, "port").unwrap_or(0), text(port, "protocol"));
        match int(port, "nodePort").unwrap_or(0) {
            0 => format!("{number}/{protocol}"),
            node => format!("{number}:{node}/{protocol}"),
        }
    };
    let all: Vec<String> = items(service, "spec.ports").iter().map(one).collect();
    or(&all.join(","), "<none>").to_owned()
}

struct Services;

impl Strategy for Services {
    fn default(&self, object: &mut Value) {
        defaults(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({"loadBalancer": {}}));
    }

    fn prepare_update(&self, old: &Value, new: &mut Value) {
        update::prepare(old, new);
    }

    fn prepare_status_update(&self, old: &Value, new: &mut Value) {
        lifecycle::update_status(old, new);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        validate::service(object)
    }

    fn validate_update(&self, old: &Value, new: &Value) -> Vec<FieldError> {
        update::validate(old, new)
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        cumulet_api::names::dns1035_label(name)
    }

    fn allocation(&self) -> Allocation {
        Allocation::Service
    }
}

fn defaults(object: &mut Value) {
    let Some(spec) = object_mut(object, "spec") else { return };
    drop_zeros(
        spec,
        &[
            "clusterIP",
            "externalName",
            "publishNotReadyAddresses",
            "healthCheckNodePort",
            "externalTrafficPolicy",
        ],
    );
    default_to(spec, "sessionAffinity", "None");
    match text(spec, "sessionAffinity") {
        "None" => {
            unset(spec, "sessionAffinityConfig");
        }
        "ClientIP" if at(spec, "sessionAffinityConfig.clientIP.timeoutSeconds").is_none() => {
            set(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10_800}}));
        }
        _ => {}
    }
    default_to(spec, "type", "ClusterIP");
    for port in items_mut(spec, "ports") {
        drop_zeros(port, &["nodePort", "name", "targetPort"]);
        default_to(port, "protocol", "TCP");
        if let Some(number) = int(port, "port") {
            default_to(port, "targetPort", number);
        }
    }
    if externally_accessible(spec) {
        default_to(spec, "externalTrafficPolicy", "Cluster");
    }
    if text(spec, "type") != "ExternalName" {
        default_to(spec, "internalTrafficPolicy", "Cluster");
    }
    if text(spec, "type") == "LoadBalancer" {
        default_to(spec, "allocateLoadBalancerNodePorts", true);
    }
}

/// True for a spec whose Service takes traffic from outside of the cluster.
pub(crate) fn externally_accessible(spec: &Value) -> bool {
    match text(spec, "type") {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !items(spec, "externalIPs").is_empty(),
        _ => false,
    }
}

/// True for a Service that has no address of its own.
pub(crate) fn is_headless(service: &Value) -> bool {
    text(service, "spec.clusterIP") == "None"
        || items(service, "spec.clusterIPs").first().and_then(Value::as_str) == Some("None")
}

/// Fills in the address families, and `clusterIPs` after `clusterIP`.
///
/// # Errors
/// The field that asks for a family which this cluster does not have.
pub(crate) fn shape(service: &mut Value) -> Result<(), FieldError> {
    const NO_FAMILY: &str = "not configured on this cluster";
    if text(service, "spec.type") == "ExternalName" {
        return Ok(());
    }
    if text(service, "spec.ipFamilyPolicy") == "RequireDualStack" {
        let message = "this cluster is not configured for dual-stack services";
        return Err(FieldError::invalid("spec.ipFamilyPolicy", "RequireDualStack", message));
    }
    let families = items(service, "spec.ipFamilies");
    if let Some(i) = families.iter().position(|f| f.as_str() == Some("IPv6")) {
        return Err(FieldError::invalid(format!("spec.ipFamilies[{i}]"), "IPv6", NO_FAMILY));
    }
    let no_families = families.is_empty();
    let no_list = items(service, "spec.clusterIPs").is_empty();
    let Some(spec) = at_mut(service, "spec") else { return Ok(()) };
    default_to(spec, "ipFamilyPolicy", "SingleStack");
    if no_families {
        set(spec, "ipFamilies", json!(["IPv4"]));
    }
    let single = text(spec, "clusterIP").to_owned();
    if no_list && !single.is_empty() {
        set(spec, "clusterIPs", json!([single]));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
