//! Tests of the pod rows: defaults, rules, tables.

use super::*;
use crate::kinds::testing::{check_errors, check_update_errors};

fn good() -> Value {
    json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}})
}

/// A pod whose only container has `fields` besides its name and image.
fn container(fields: Value) -> Value {
    let mut pod = good();
    for (key, value) in fields.as_object().unwrap() {
        pod["spec"]["containers"][0][key] = value.clone();
    }
    pod
}

/// A pod whose specification has `fields` besides the container.
fn spec(fields: Value) -> Value {
    let mut pod = good();
    for (key, value) in fields.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

#[test]
fn pods_begin_pending_with_a_class() {
    let mut pod = good();
    pod["status"] = json!({"phase": "Running"});
    ROW.strategy.default(&mut pod);
    ROW.strategy.prepare_create(&mut pod);
    assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    assert_eq!(pod["metadata"]["generation"], 1);
    assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), 2);
    assert_eq!(ROW.strategy.validate(&pod), []);
    let mut gated = spec(json!({"schedulingGates": [{"name": "a/b"}]}));
    ROW.strategy.prepare_create(&mut gated);
    assert_eq!(gated["status"]["conditions"][0]["reason"], "SchedulingGated");
    assert_eq!(gated["status"]["conditions"][0]["observedGeneration"], 1);
}

#[test]
fn containers_have_their_rules() {
    let cases: Vec<(Value, Vec<&str>)> = vec![
        (good(), vec![]),
        (json!({}), vec!["spec.containers: Required value"]),
        (
            json!({"spec": {"containers": [{}]}}),
            vec!["spec.containers[0].name: Required value", "spec.containers[0].image: Required value"],
        ),
        (
            spec(json!({"containers": [{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]})),
            vec!["spec.containers[1].name: Duplicate value: \"c\""],
        ),
        (
            spec(
                json!({"initContainers": [{"name": "c", "image": "i", "livenessProbe": {"exec": {"command": ["x"]}}}]}),
            ),
            vec![
                "spec.initContainers[0].name: Duplicate value: \"c\"",
                "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without \
             restartPolicy=Always",
            ],
        ),
        (
            container(json!({"imagePullPolicy": "Sometimes"})),
            vec![
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \
             \"IfNotPresent\", \"Never\"",
            ],
        ),
        (
            container(
                json!({"ports": [{"containerPort": 0}, {"containerPort": 70000, "name": "a", "protocol": "X"},
                                    {"containerPort": 1, "name": "a", "hostPort": 5}, {"containerPort": 2, "hostPort": 5}]}),
            ),
            vec![
                "spec.containers[0].ports[0].containerPort: Required value",
                "spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                "spec.containers[0].ports[1].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
                "spec.containers[0].ports[2].name: Duplicate value: \"a\"",
                "spec.containers[0].ports[3].hostPort: Duplicate value: \"TCP//5\"",
            ],
        ),
        (
            container(json!({"image": " i"})),
            vec![
                "spec.containers[0].image: Invalid value: \" i\": must not have leading or trailing whitespace",
            ],
        ),
        (
            container(
                json!({"resources": {"limits": {"cpu": "1", "odd": 1}, "requests": {"cpu": "2", "memory": "-1"}}}),
            ),
            vec![
                "spec.containers[0].resources.limits[odd]: Invalid value: \"odd\": must be a standard resource type or fully \
             qualified",
                "spec.containers[0].resources.limits[odd]: Invalid value: \"odd\": must be a standard resource for containers",
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
                "spec.containers[0].resources.requests[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
                "spec.containers[0].resources.requests[odd]: Invalid value: \"odd\": must be a standard resource type or fully \
             qualified",
                "spec.containers[0].resources.requests[odd]: Invalid value: \"odd\": must be a standard resource for \
             containers",
            ],
        ),
        (
            container(json!({"resources": {"limits": {"cpu": "much"}}})),
            vec![
                "spec.containers[0].resources.limits[cpu]: Invalid value: \"much\": quantities must match the regular \
             expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
                "spec.containers[0].resources.requests[cpu]: Invalid value: \"much\": quantities must match the regular \
             expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ],
        ),
        (
            container(json!({"securityContext": {"runAsUser": -1, "seccompProfile": {"type": "Localhost"}}})),
            vec![
                "spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
                "spec.containers[0].securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp \
             type is Localhost",
            ],
        ),
    ];
    for (pod, expected) in cases {
        check_errors(&ROW, pod, &expected);
    }
}

#[test]
fn variables_have_their_rules() {
    let env = |env: Value| container(json!({"env": [env]}));
    let from = |source: Value| env(json!({"name": "A", "valueFrom": source}));
    let cases: Vec<(Value, Vec<&str>)> = vec![
        (env(json!({"name": "a-1 .x"})), vec![]),
        (env(json!({"value": "x"})), vec!["spec.containers[0].env[0].name: Required value"]),
        (
            from(json!({})),
            vec![
                "spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, \
             `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            ],
        ),
        (from(json!({"fieldRef": {"fieldPath": "metadata.labels['app']"}})), vec![]),
        (
            from(json!({"fieldRef": {"fieldPath": "metadata.labels"}})),
            vec![
                "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"metadata.labels\": supported \
             values: \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \
             \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\"",
            ],
        ),
        (
            from(json!({"fieldRef": {"fieldPath": "spec.odd"}})),
            vec![
                "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.odd\": error converting \
             fieldPath: field label not supported: spec.odd",
            ],
        ),
        (
            from(
                json!({"configMapKeyRef": {"name": "c", "key": "k"}, "secretKeyRef": {"name": "s", "key": "k"}}),
            ),
            vec![
                "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not have more than one field specified at a \
             time",
            ],
        ),
        (
            env(json!({"name": "A", "value": "x", "valueFrom": {"secretKeyRef": {"name": "s"}}})),
            vec![
                "spec.containers[0].env[0].valueFrom.secretKeyRef.key: Required value",
                "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
            ],
        ),
        (
            from(json!({"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1Mi"}})),
            vec![
                "spec.containers[0].env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's \
             values 1m and 1 are supported with the cpu resource",
            ],
        ),
        (
            container(json!({"envFrom": [{}, {"configMapRef": {"name": "c"}}]})),
            vec![
                "spec.containers[0].envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`",
            ],
        ),
    ];
    for (pod, expected) in cases {
        check_errors(&ROW, pod, &expected);
    }
}

#[test]
fn volumes_and_mounts_have_their_rules() {
    let cases: Vec<(Value, Vec<&str>)> = vec![
        (
            container(json!({"volumeMounts": [{"name": "x", "mountPath": "/a"}]})),
            vec!["spec.containers[0].volumeMounts[0].name: Not found: \"x\""],
        ),
        (
            json!({"spec": {"volumes": [{"name": "v"}], "containers": [{"name": "c", "image": "i", "volumeMounts": [
                {"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/a", "subPath": "../b"}, {"name": "v"}]}]}}),
            vec![
                "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique",
                "spec.containers[0].volumeMounts.subPath: Invalid value: \"../b\": must not contain '..'",
                "spec.containers[0].volumeMounts[2].mountPath: Required value",
            ],
        ),
        (
            spec(
                json!({"volumes": [{"name": "a", "emptyDir": {}, "hostPath": {"path": "/x"}}, {"name": "a", "odd": {}}]}),
            ),
            vec![
                "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
                "spec.volumes[1]: Required value: must specify a volume type",
                "spec.volumes[1].name: Duplicate value: \"a\"",
            ],
        ),
        (
            spec(json!({"volumes": [{"name": "a", "hostPath": {"path": "/x/../y", "type": "Odd"}},
                                 {"name": "b", "secret": {}}, {"name": "c", "configMap": {"name": "c", "defaultMode": 1000,
                                   "items": [{"key": "k", "path": "/abs"}, {"path": "..x"}]}}]})),
            vec![
                "spec.volumes[0].hostPath.path: Invalid value: \"/x/../y\": must not contain '..'",
                "spec.volumes[0].hostPath.type: Unsupported value: \"Odd\": supported values: \"BlockDevice\", \
             \"CharDevice\", \"Directory\", \"DirectoryOrCreate\", \"File\", \"FileOrCreate\", \"Socket\"",
                "spec.volumes[1].secret.secretName: Required value",
                "spec.volumes[2].configMap.defaultMode: Invalid value: 1000: must be a number between 0 and 0777 (octal), both \
             inclusive",
                "spec.volumes[2].configMap.items[0].path: Invalid value: \"/abs\": must be a relative path",
                "spec.volumes[2].configMap.items[1].key: Required value",
                "spec.volumes[2].configMap.items[1].path: Invalid value: \"..x\": must not start with '..'",
            ],
        ),
        (
            spec(json!({"volumes": [{"name": "p", "projected": {"sources": [
            {"downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"serviceAccountToken": {"path": "l"}}, {}]}}]})),
            vec![
                "spec.volumes[0].projected.sources[1].serviceAccountToken.path: Invalid value: \"l\": conflicting duplicate \
             paths",
                "spec.volumes[0].projected.sources[2]: Required value: must specify a volume type",
            ],
        ),
    ];
    for (pod, expected) in cases {
        check_errors(&ROW, pod, &expected);
    }
}

#[test]
fn probes_and_hooks_have_their_rules() {
    let cases: Vec<(Value, Vec<&str>)> = vec![
        (
            container(json!({"livenessProbe": {}})),
            vec!["spec.containers[0].livenessProbe: Required value: must specify a handler type"],
        ),
        (
            container(
                json!({"livenessProbe": {"exec": {}, "tcpSocket": {"port": "http"}, "successThreshold": 2}}),
            ),
            vec![
                "spec.containers[0].livenessProbe.exec.command: Required value",
                "spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
                "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
            ],
        ),
        (
            container(
                json!({"readinessProbe": {"httpGet": {"port": 0, "scheme": "FTP"}, "periodSeconds": -1,
                                             "terminationGracePeriodSeconds": 5}}),
            ),
            vec![
                "spec.containers[0].readinessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.containers[0].readinessProbe.httpGet.scheme: Unsupported value: \"FTP\": supported values: \"HTTP\", \
             \"HTTPS\"",
                "spec.containers[0].readinessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
                "spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 5: must not be set for \
             readinessProbes",
            ],
        ),
        (
            container(json!({"lifecycle": {"preStop": {"sleep": {"seconds": 31}}}})),
            vec![
                "spec.containers[0].lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than \
             terminationGracePeriodSeconds (30)",
            ],
        ),
    ];
    for (pod, expected) in cases {
        check_errors(&ROW, pod, &expected);
    }
}

#[test]
fn the_rest_of_the_specification_has_its_rules() {
    let cases: Vec<(Value, Vec<&str>)> = vec![
        (
            spec(json!({"restartPolicy": "Maybe", "dnsPolicy": "None"})),
            vec![
                "spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"OnFailure\", \"Never\"",
                "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
            ],
        ),
        (
            spec(json!({"activeDeadlineSeconds": 0, "hostname": "a.b"})),
            vec![
                "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
                "spec.hostname: Invalid value: \"a.b\": ",
            ],
        ),
        (
            spec(
                json!({"tolerations": [{"operator": "Equal"}, {"key": "a", "operator": "Exists", "value": "v"},
                                     {"key": "a", "effect": "Odd"}]}),
            ),
            vec![
                "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which \
             means \"match all values and all keys\"",
                "spec.tolerations[1].operator: Invalid value: \"v\": value must be empty when `operator` is 'Exists'",
                "spec.tolerations[2].effect: Unsupported value: \"Odd\": supported values: \"NoSchedule\", \
             \"PreferNoSchedule\", \"NoExecute\"",
            ],
        ),
        (
            spec(json!({"hostNetwork": true, "containers": [{"name": "c", "image": "i", "ports": [
            {"containerPort": 80, "hostPort": 81}]}]})),
            vec![
                "spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is \
             true",
            ],
        ),
        (
            spec(
                json!({"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 101, "podAffinityTerm": {}}]}},
            "topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "k"}]}),
            ),
            vec![
                "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 101: \
             must be in the range 1-100",
                "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.topologyKey: \
             Required value: can not be empty",
                "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
            ],
        ),
        (
            spec(json!({"hostUsers": false, "hostPID": true})),
            vec!["spec.HostPID: Forbidden: when `pod.Spec.HostUsers` is false"],
        ),
    ];
    for (pod, expected) in cases {
        let mut pod = pod;
        ROW.strategy.default(&mut pod);
        let got: Vec<String> = ROW.strategy.validate(&pod).iter().map(ToString::to_string).collect();
        assert_eq!(got.len(), expected.len(), "{got:?}");
        for (got, wanted) in got.iter().zip(&expected) {
            assert!(got.starts_with(wanted), "{got} / {wanted}");
        }
    }
}

#[test]
fn little_may_change() {
    let old = spec(json!({"tolerations": [{"key": "a", "operator": "Exists"}], "activeDeadlineSeconds": 10}));
    let change = |change: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new["spec"]);
        new
    };
    let updatable = "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,\
                     `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to \
                     existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
                     previously negative)\n";
    let cases: Vec<(Value, Vec<String>)> = vec![
        (old.clone(), vec![]),
        (change(&|s| s["containers"][0]["image"] = json!("i:2")), vec![]),
        (change(&|s| s["tolerations"].as_array_mut().unwrap().push(json!({"key": "b", "operator": "Exists"}))), vec![]),
        (change(&|s| s["activeDeadlineSeconds"] = json!(5)), vec![]),
        (
            change(&|s| s["activeDeadlineSeconds"] = json!(11)),
            vec!["spec.activeDeadlineSeconds: Invalid value: 11: must be less than or equal to previous value".into()],
        ),
        (
            change(&|s| s["tolerations"] = json!([])),
            vec![
                "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds".into(),
            ],
        ),
        (
            change(&|s| s["containers"] = json!([])),
            vec!["spec.containers: Forbidden: pod updates may not add or remove containers".into()],
        ),
        (
            change(&|s| s["containers"][0]["command"] = json!(["x"])),
            vec![format!("{updatable}  containers[0].command: (not set) -> [\"x\"]")],
        ),
        (
            change(&|s| s["schedulingGates"] = json!([{"name": "g"}])),
            vec![
                "spec.schedulingGates[0].name: Forbidden: only deletion is allowed, but found new scheduling gate 'g'"
                    .into(),
            ],
        ),
    ];
    for (new, expected) in cases {
        check_update_errors(&ROW, &old, new, &expected.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn a_finished_container_stays_finished() {
    let status = |state: Value| json!({"containerStatuses": [{"name": "c", "state": state}]});
    let mut old = spec(json!({"restartPolicy": "OnFailure"}));
    old["status"] = status(json!({"terminated": {"exitCode": 0}}));
    let mut new = old.clone();
    new["status"] = status(json!({"running": {}}));
    let words = |old: &Value, new: &Value| -> Vec<String> {
        ROW.strategy.validate_status_update(old, new).iter().map(ToString::to_string).collect()
    };
    let message =
        "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state";
    assert_eq!(words(&old, &new), [message]);
    old["status"] = status(json!({"terminated": {"exitCode": 1}}));
    assert!(words(&old, &new).is_empty());
}

#[test]
fn status_updates_keep_class_and_generations() {
    let mut old = good();
    old["status"] = json!({"phase": "Pending", "qosClass": "BestEffort",
        "conditions": [{"type": "Ready", "observedGeneration": 3}]});
    let mut new = old.clone();
    new["spec"]["nodeName"] = json!("n");
    new["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
    ROW.strategy.prepare_status_update(&old, &mut new);
    assert_eq!(new["spec"], old["spec"]);
    assert_eq!(
        new["status"],
        json!({"phase": "Running", "qosClass": "BestEffort",
               "conditions": [{"type": "Ready", "status": "True", "observedGeneration": 3}]})
    );
}

#[test]
fn grace_depends_on_where_and_how_the_pod_is() {
    let check = |fields: Value, phase: &str, seconds: i64| {
        let mut pod = spec(fields);
        pod["status"] = json!({"phase": phase});
        assert_eq!(ROW.strategy.grace_period_seconds(&pod, None), seconds, "{pod}");
    };
    check(json!({"nodeName": "n", "terminationGracePeriodSeconds": 7}), "Running", 7);
    check(json!({"nodeName": "n", "terminationGracePeriodSeconds": -7}), "Running", 1);
    check(json!({"nodeName": "n", "terminationGracePeriodSeconds": 7}), "Failed", 0);
    check(json!({"terminationGracePeriodSeconds": 7}), "Pending", 0);
}

#[test]
fn wrong_types_never_panic() {
    let odd =
        [json!(null), json!(7), json!("x"), json!([]), json!([7]), json!({}), json!({"a": 1}), json!(true)];
    for row in crate::kinds::rows() {
        for value in &odd {
            for shape in [
                value.clone(),
                json!({"metadata": value, "spec": value, "status": value, "data": value, "subsets": value}),
                json!({"spec": {"containers": value, "template": value, "selector": value, "ports": value,
                    "volumes": value, "taints": value, "strategy": value}, "endpoints": value, "ports": value}),
                json!({"spec": {"containers": [{"ports": value, "env": value, "resources": value, "volumeMounts": value,
                    "livenessProbe": value, "securityContext": value, "lifecycle": value}]}}),
            ] {
                let mut object = shape.clone();
                let strategy = row.strategy;
                strategy.default(&mut object);
                strategy.prepare_create(&mut object);
                strategy.validate(&object);
                let mut new = shape.clone();
                strategy.prepare_update(&object, &mut new);
                strategy.validate_update(&object, &new);
                strategy.prepare_status_update(&object, &mut new);
                strategy.validate_status_update(&object, &new);
                strategy.warnings(&object);
                assert_eq!((row.cells)(&object, jiff::Timestamp::UNIX_EPOCH).len(), row.columns.len());
            }
        }
    }
}
