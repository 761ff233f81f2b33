//! EndpointSlices.

use super::checks::{Errors, immutable, one_of, ordinary_ip, port};
use super::lifecycle;
use super::printing::{AGE, NAME, age, column, list_with_more, name, string};
use super::value::{at, default_to, int, items, items_mut, same, set, text};
use crate::row::{Column, Row, Strategy};
use cumulet_api::field::{FieldError, Problem};
use cumulet_api::names;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;

pub(crate) const ROW: Row = Row {
    group: "discovery.k8s.io",
    version: "v1",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    short_names: &[],
    categories: &[],
    namespaced: true,
    status: false,
    scale: None,
    selectable_fields: &[],
    columns: COLUMNS,
    cells,
    strategy: &EndpointSlices,
};

static COLUMNS: &[Column] = &[
    NAME,
    column("AddressType", "Family of the addresses."),
    column("Ports", "Ports of every endpoint."),
    column("Endpoints", "Addresses."),
    AGE,
];

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let port = |p: &Value| match (int(p, "port"), text(p, "name")) {
        (Some(number), _) => number.to_string(),
        (None, "") => "*".to_owned(),
        (None, name) => name.to_owned(),
    };
    let ports: Vec<String> = items(object, "ports").iter().map(port).collect();
    let addresses: Vec<String> = items(object, "endpoints")
        .iter()
        .flat_map(|e| items(e, "addresses"))
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    vec![
        name(object),
        string(object, "addressType"),
        list_with_more(&ports, "<unset>"),
        list_with_more(&addresses, "<unset>"),
        age(object, now),
    ]
}

struct EndpointSlices;

impl Strategy for EndpointSlices {
    fn default(&self, object: &mut Value) {
        if let Some(map) = object.as_object_mut()
            && map.get("endpoints").is_none_or(Value::is_null)
        {
            map.insert("endpoints".to_owned(), Value::Array(Vec::new()));
        }
        for port in items_mut(object, "ports") {
            if at(port, "name").is_none() {
                set(port, "name", "");
            }
            default_to(port, "protocol", "TCP");
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        lifecycle::set_generation(object, 1);
    }

    fn prepare_update(&self, old: &Value, new: &mut Value) {
        let differs = |key: &str| !same(old.get(key), new.get(key));
        let changed = ["endpoints", "ports", "addressType"].into_iter().any(differs);
        lifecycle::carry_generation(old, new, changed);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        address_type(&mut errors, object);
        endpoints(&mut errors, object);
        ports(&mut errors, object);
        errors
    }

    fn validate_update(&self, old: &Value, new: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        immutable(&mut errors, old, new, "addressType");
        errors
    }
}

fn address_type(errors: &mut Errors, object: &Value) {
    const TYPES: &[&str] = &["FQDN", "IPv4", "IPv6"];
    match text(object, "addressType") {
        "" => errors.push(FieldError::required("addressType", "")),
        kind if !TYPES.contains(&kind) => errors.push(FieldError::not_supported("addressType", kind, TYPES)),
        _ => {}
    }
}

fn too_many(errors: &mut Errors, field: &str, count: usize, max: usize) -> bool {
    let over = count > max;
    if over {
        let problem = Problem::TooMany(count, max);
        errors.push(FieldError { field: field.to_owned(), problem, detail: String::new() });
    }
    over
}

fn endpoints(errors: &mut Errors, object: &Value) {
    let all = items(object, "endpoints");
    if too_many(errors, "endpoints", all.len(), MAX_ENDPOINTS) {
        return;
    }
    for (i, endpoint) in all.iter().enumerate() {
        let path = format!("endpoints[{i}]");
        let addresses = items(endpoint, "addresses");
        let field = format!("{path}.addresses");
        if addresses.is_empty() {
            errors.push(FieldError::required(field.as_str(), "must contain at least 1 address"));
        }
        too_many(errors, &field, addresses.len(), MAX_ADDRESSES);
        for (j, address) in addresses.iter().filter_map(Value::as_str).enumerate() {
            self::address(errors, text(object, "addressType"), &format!("{field}[{j}]"), address);
        }
        super::checks::optional(errors, endpoint, &path, "hostname", names::dns1123_label);
        super::checks::optional(errors, endpoint, &path, "nodeName", names::dns1123_subdomain);
    }
}

fn address(errors: &mut Errors, kind: &str, path: &str, address: &str) {
    let message = match (kind, address.parse::<IpAddr>()) {
        ("FQDN", _) => {
            super::checks::invalid(errors, path, address, names::dns1123_subdomain(address));
            return;
        }
        ("IPv4", Ok(ip @ IpAddr::V4(_))) | ("IPv6", Ok(ip @ IpAddr::V6(_))) => {
            ordinary_ip(errors, path, ip);
            return;
        }
        ("IPv4", _) => "must be an IPv4 address",
        ("IPv6", _) => "must be an IPv6 address",
        _ => return,
    };
    errors.push(FieldError::invalid(path, address, message));
}

fn ports(errors: &mut Errors, object: &Value) {
    let all = items(object, "ports");
    if too_many(errors, "ports", all.len(), MAX_PORTS) {
        return;
    }
    let mut seen = BTreeSet::new();
    for (i, one) in all.iter().enumerate() {
        let path = format!("ports[{i}]");
        super::checks::optional(errors, one, &path, "name", names::dns1123_label);
        if !seen.insert(text(one, "name")) {
            errors.push(FieldError::duplicate(format!("{path}.name"), text(one, "name")));
        }
        one_of(errors, one, &path, "protocol", &["SCTP", "TCP", "UDP"]);
        port(errors, one, &path, "port");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{check_cells, check_default, check_errors, check_update_errors};
    use serde_json::json;

    #[test]
    fn rules() {
        check_default(
            &ROW,
            json!({"addressType": "IPv4", "ports": [{"port": 1}]}),
            json!({"addressType": "IPv4", "endpoints": [], "ports": [{"port": 1, "name": "", "protocol": "TCP"}]}),
        );
        check_errors(&ROW, json!({}), &["addressType: Required value"]);
        check_errors(
            &ROW,
            json!({"addressType": "IPv4", "endpoints": [{}, {"addresses": ["::1", "127.0.0.1"]}],
                   "ports": [{"port": 1}, {"port": 70000}]}),
            &[
                "endpoints[0].addresses: Required value: must contain at least 1 address",
                "endpoints[1].addresses[0]: Invalid value: \"::1\": must be an IPv4 address",
                "endpoints[1].addresses[1]: Invalid value: \"127.0.0.1\": may not be in the loopback range \
                 (127.0.0.0/8, ::1/128)",
                "ports[1].name: Duplicate value: \"\"",
                "ports[1].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ],
        );
        let many: Vec<Value> = vec![json!({"addresses": ["10.0.0.1"]}); MAX_ENDPOINTS + 1];
        check_errors(
            &ROW,
            json!({"addressType": "IPv4", "endpoints": many}),
            &["endpoints: Too many: 1001: must have at most 1000 items"],
        );
        check_update_errors(
            &ROW,
            &json!({"addressType": "IPv4"}),
            json!({"addressType": "IPv6"}),
            &["addressType: Invalid value: \"IPv6\": field is immutable"],
        );
    }

    #[test]
    fn cells_are_those_of_kubectl() {
        let slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "ports": [{"port": 80}, {"name": "x"}, {}],
            "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}]});
        check_cells(&ROW, &slice, &["s", "IPv4", "80,x,*", "10.0.0.1,10.0.0.2", "<unknown>"]);
        check_cells(&ROW, &json!({}), &["", "", "<unset>", "<unset>", "<unknown>"]);
    }
}
