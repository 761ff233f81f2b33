//! Endpoints.

use super::checks::{Errors, invalid, ip, one_of, optional, ordinary_ip, port};
use super::printing::{AGE, NAME, age, column, list_with_more, name};
use super::value::{at, drop_zeros, int, items, items_mut, text};
use crate::row::{Column, Row, Strategy};
use cumulet_api::field::FieldError;
use cumulet_api::names;
use jiff::Timestamp;
use serde_json::Value;

pub(crate) const ROW: Row = Row {
    group: "",
    version: "v1",
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    categories: &[],
    namespaced: true,
    status: false,
    scale: None,
    selectable_fields: &[],
    columns: COLUMNS,
    cells,
    strategy: &EndpointsStrategy,
};

static COLUMNS: &[Column] = &[NAME, column("Endpoints", "Addresses and ports that are ready."), AGE];

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in items(object, "subsets") {
        let addresses = items(subset, "addresses");
        let ports = items(subset, "ports");
        if ports.is_empty() {
            all.extend(addresses.iter().map(|a| text(a, "ip").to_owned()));
        }
        for port in ports {
            let port = int(port, "port").unwrap_or(0);
            all.extend(addresses.iter().map(|a| joined(text(a, "ip"), port)));
        }
    }
    vec![name(object), list_with_more(&all, "<none>"), age(object, now)]
}

fn joined(ip: &str, port: i64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

struct EndpointsStrategy;

impl Strategy for EndpointsStrategy {
    fn default(&self, object: &mut Value) {
        for subset in items_mut(object, "subsets") {
            for port in items_mut(subset, "ports") {
                drop_zeros(port, &["name"]);
                super::value::default_to(port, "protocol", "TCP");
            }
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        for (i, subset) in items(object, "subsets").iter().enumerate() {
            self::subset(&mut errors, subset, &format!("subsets[{i}]"));
        }
        errors
    }

    fn warnings(&self, _object: &Value) -> Vec<String> {
        vec!["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".to_owned()]
    }
}

fn subset(errors: &mut Errors, subset: &Value, path: &str) {
    if items(subset, "addresses").is_empty() && items(subset, "notReadyAddresses").is_empty() {
        errors.push(FieldError::required(path, "must specify `addresses` or `notReadyAddresses`"));
    }
    for list in ["addresses", "notReadyAddresses"] {
        for (i, address) in items(subset, list).iter().enumerate() {
            let path = format!("{path}.{list}[{i}]");
            let field = format!("{path}.ip");
            if let Some(parsed) = ip(errors, &field, text(address, "ip")) {
                ordinary_ip(errors, &field, parsed);
            }
            optional(errors, address, &path, "hostname", names::dns1123_label);
        }
    }
    let ports = items(subset, "ports");
    for (i, one) in ports.iter().enumerate() {
        let path = format!("{path}.ports[{i}]");
        let name = text(one, "name");
        if name.is_empty() && ports.len() > 1 {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        optional(errors, one, &path, "name", names::dns1123_label);
        match at(one, "port") {
            Some(_) => port(errors, one, &path, "port"),
            None => invalid(errors, &format!("{path}.port"), 0, names::port_number(0)),
        }
        one_of(errors, one, &path, "protocol", &["SCTP", "TCP", "UDP"]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{check_cells, check_default, check_errors};
    use serde_json::json;

    #[test]
    fn rules() {
        check_default(
            &ROW,
            json!({"subsets": [{"ports": [{"port": 1, "name": ""}]}]}),
            json!({"subsets": [{"ports": [{"port": 1, "protocol": "TCP"}]}]}),
        );
        check_errors(
            &ROW,
            json!({"subsets": [{}, {"addresses": [{"ip": "x"}, {"ip": "127.0.0.1"}], "ports": [{"port": 1}, {"port": 0, "name": "a"}]}]}),
            &[
                "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`",
                "subsets[1].addresses[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or \
                 2001:db8::ffff)",
                "subsets[1].addresses[1].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range \
                 (127.0.0.0/8, ::1/128)",
                "subsets[1].ports[0].name: Required value",
                "subsets[1].ports[1].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ],
        );
    }

    #[test]
    fn cells_are_those_of_kubectl() {
        let check = |subsets: Value, shown: &str| {
            check_cells(
                &ROW,
                &json!({"metadata": {"name": "e"}, "subsets": subsets}),
                &["e", shown, "<unknown>"],
            );
        };
        check(json!([]), "<none>");
        check(json!([{"addresses": [{"ip": "10.0.0.1"}]}]), "10.0.0.1");
        let addresses: Vec<Value> = (1..=5).map(|n| json!({"ip": format!("10.0.0.{n}")})).collect();
        check(
            json!([{"addresses": addresses, "ports": [{"port": 80}]}]),
            "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more...",
        );
        check(json!([{"notReadyAddresses": addresses, "ports": [{"port": 80}]}]), "<none>");
    }
}
