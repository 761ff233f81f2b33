//! Tests of the Service row: defaults, rules, tables.

use super::*;
use crate::kinds::testing::{check_cells, check_default, check_errors, check_update_errors};

#[test]
fn defaults_are_filled_in() {
    check_default(
        &ROW,
        json!({"spec": {"ports": [{"port": 80}, {"port": 81, "name": "x", "targetPort": "web", "nodePort": 0}]}}),
        json!({"spec": {
            "ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"},
                      {"port": 81, "name": "x", "targetPort": "web", "protocol": "TCP"}],
            "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster"}}),
    );
    check_default(
        &ROW,
        json!({"spec": {"type": "NodePort", "sessionAffinity": "ClientIP"}}),
        json!({"spec": {
            "type": "NodePort", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
            "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster"}}),
    );
}

#[test]
fn wrong_services_are_told_so() {
    for (spec, expected) in [
        (json!({}), vec!["spec.ports: Required value"]),
        (
            json!({"ports": [{"port": 80}, {"port": 80}]}),
            vec![
                "spec.ports[0].name: Required value",
                "spec.ports[1].name: Required value",
                "spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}",
            ],
        ),
        (
            json!({"ports": [{"port": 70000}, {"port": 81, "name": "Bad_", "protocol": "ICMP"}]}),
            vec![
                "spec.ports[0].name: Required value",
                "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
                "spec.ports[0].targetPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                "spec.ports[1].name: Invalid value: \"Bad_\": a lowercase RFC 1123 label must consist of lower case \
                 alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. \
                 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
                "spec.ports[1].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            ],
        ),
        (
            json!({"clusterIP": "abc", "clusterIPs": ["abc"], "ports": [{"port": 80, "nodePort": 30000}]}),
            vec![
                "spec.clusterIPs[0]: Invalid value: \"abc\": must be a valid IP address, (e.g. 10.9.8.7 or \
                 2001:db8::ffff)",
                "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
            ],
        ),
        (
            json!({"type": "Magic", "ports": [{"port": 80}]}),
            vec![
                "spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \"ExternalName\", \
                 \"LoadBalancer\", \"NodePort\"",
            ],
        ),
        (
            json!({"type": "NodePort", "clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}]}),
            vec![
                "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
            ],
        ),
        (json!({"type": "ExternalName"}), vec!["spec.externalName: Required value"]),
        (
            json!({"ports": [{"port": 80}], "sessionAffinity": "Sticky", "externalIPs": ["127.0.0.1"]}),
            vec![
                "spec.sessionAffinity: Unsupported value: \"Sticky\": supported values: \"ClientIP\", \"None\"",
                "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, \
                 ::1/128)",
            ],
        ),
    ] {
        check_errors(&ROW, json!({"spec": spec}), &expected);
    }
}

#[test]
fn addresses_stay() {
    let old = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.97.1.1", "clusterIPs": ["10.97.1.1"],
        "ports": [{"port": 80}]}});
    let mut new = old.clone();
    new["spec"]["clusterIP"] = json!("10.97.1.2");
    check_update_errors(
        &ROW,
        &old,
        new,
        &["spec.clusterIPs[0]: Invalid value: [\"10.97.1.2\"]: may not change once set"],
    );
    let mut new = old.clone();
    new["spec"]["ports"][0]["port"] = json!(81);
    check_update_errors(&ROW, &old, new, &[]);
}

#[test]
fn cells_are_those_of_kubectl() {
    let mut service = json!({"metadata": {"name": "s"}, "spec": {
        "type": "NodePort", "clusterIPs": ["10.97.1.1"], "selector": {"app": "x", "a": "b"},
        "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}});
    let unknown = "<unknown>";
    check_cells(
        &ROW,
        &service,
        &["s", "NodePort", "10.97.1.1", "<none>", "80:30080/TCP,53/UDP", unknown, "a=b,app=x"],
    );
    service["spec"] = json!({"type": "LoadBalancer", "clusterIPs": ["10.97.1.1"]});
    check_cells(
        &ROW,
        &service,
        &["s", "LoadBalancer", "10.97.1.1", "<pending>", "<none>", unknown, "<none>"],
    );
    service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "9.9.9.9"}, {"hostname": "h"}]}});
    service["spec"]["externalIPs"] = json!(["1.2.3.4"]);
    check_cells(
        &ROW,
        &service,
        &["s", "LoadBalancer", "10.97.1.1", "9.9.9.9,h,1.2.3.4", "<none>", unknown, "<none>"],
    );
    service["spec"] = json!({"type": "ExternalName", "externalName": "a.example"});
    check_cells(&ROW, &service, &["s", "ExternalName", "<none>", "a.example", "<none>", unknown, "<none>"]);
    service["spec"] = json!({"type": "ClusterIP", "clusterIP": "None"});
    check_cells(&ROW, &service, &["s", "ClusterIP", "None", "<none>", "<none>", unknown, "<none>"]);
}
