//! Tests of the table and of checking against it.

use super::*;
use serde_json::{Value, json};

fn kind(group: &str, version: &str, kind: &str) -> &'static Type {
    schema().kind(group, version, kind).unwrap_or_else(|| panic!("no {group}/{version} {kind}"))
}

#[test]
fn every_line_of_the_table_is_read() {
    let text = include_str!("../../schema/kubernetes.txt");
    let count = |prefix: &str| text.lines().filter(|l| l.starts_with(prefix)).count();
    let fields: usize = schema().types().iter().map(|t| t.fields.len()).sum();
    assert_eq!((schema().types().len(), fields), (count("type "), count("  ")));
    assert_eq!(schema().aliases.len(), count("alias ") + count("message "));
    assert!(schema().types().iter().all(|t| !t.package.key.is_empty()));
}

#[test]
fn reading_is_fast() {
    let start = std::time::Instant::now();
    let table = read::table(include_str!("../../schema/kubernetes.txt"));
    let took = start.elapsed();
    println!("{} types in {took:?}", table.types.len());
    assert!(took.as_millis() < 100, "reading the table took {took:?}");
}

#[test]
fn look_up() {
    let pod = kind("", "v1", "Pod");
    assert_eq!(
        (pod.name, pod.short_name(), pod.package.openapi),
        ("core.v1.Pod", "Pod", "io.k8s.api.core.v1")
    );
    assert_eq!(kind("apps", "v1", "DeleteOptions").name, "meta.v1.DeleteOptions");
    assert!(schema().kind("", "v1", "PodSpec").is_none());
    assert!(schema().kind("apps", "v2", "Deployment").is_none());

    let container = schema().named("core.v1.Container").expect("there");
    let ports = container.field("ports").expect("there");
    assert_eq!((ports.patch_merge_key, ports.list_type), (Some("containerPort"), Some(ListType::Map)));
    assert_eq!(ports.list_map_keys, "containerPort,protocol");
    assert!(ports.merges() && !ports.pointer && !ports.required);
    let volume = schema().named("core.v1.Volume").expect("there");
    assert_eq!(volume.field("emptyDir").map(|f| (f.proto, f.pointer)), Some((2, true)));
    let spec = schema().named("core.v1.PodSpec").expect("there");
    assert!(spec.field("volumes").is_some_and(|f| f.merges() && f.retains_keys()));
    assert_eq!(
        schema().values("core.v1.RestartPolicy").collect::<Vec<_>>(),
        ["Always", "Never", "OnFailure"]
    );
    assert_eq!(schema().values("core.v1.IPFamily").next(), Some(""));
}

#[test]
fn normal_form() {
    for (name, given, wanted, problems) in [
        (
            "Pod",
            json!({"apiVersion": "v1", "kind": "Pod"}),
            json!({"apiVersion": "v1", "kind": "Pod"}),
            vec![],
        ),
        (
            "Pod",
            json!({"metadata": {"creationTimestamp": null, "labels": {}, "name": "a"}, "status": {}}),
            json!({"metadata": {"name": "a"}, "status": {}}),
            vec![],
        ),
        (
            "Pod",
            json!({"spec": {"foo": 1, "hostNetwork": false, "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "", "bar": {}, "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}]}}),
            json!({"spec": {"terminationGracePeriodSeconds": 0,
                "containers": [{"name": "", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}]}}),
            vec!["unknown field \"spec.containers[0].bar\"", "unknown field \"spec.foo\""],
        ),
        (
            "Pod",
            json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}], "containers": [null], "nodeSelector": {"a": null}}}),
            json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}], "containers": [{}], "nodeSelector": {"a": ""}}}),
            vec![],
        ),
        (
            "Secret",
            json!({"data": {"a": "YQ==", "b": "YW\nJj"}, "stringData": {}}),
            json!({"data": {"a": "YQ==", "b": "YWJj"}}),
            vec![],
        ),
        (
            "Event",
            json!({"firstTimestamp": "2026-01-02T04:04:05.5+01:00", "eventTime": "2026-01-02T03:04:05.123456Z"}),
            json!({"firstTimestamp": "2026-01-02T03:04:05Z", "eventTime": "2026-01-02T03:04:05.123456Z"}),
            vec![],
        ),
        (
            "Service",
            json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": 8080}]}}),
            json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": 8080}]}}),
            vec![],
        ),
    ] {
        let mut value = given.clone();
        assert_eq!(
            check(kind("", "v1", name), &mut value, Mode::Decoded),
            Ok(problems.iter().map(|p| (*p).to_owned()).collect()),
            "{given}"
        );
        assert_eq!(value, wanted);
        assert_eq!(check(kind("", "v1", name), &mut value, Mode::Decoded), Ok(vec![]), "second pass");
        assert_eq!(value, wanted, "second pass");
    }
}

#[test]
fn type_errors() {
    for (name, given, message) in [
        (
            "Deployment",
            json!({"spec": {"replicas": "3"}}),
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            "Deployment",
            json!({"spec": {"replicas": 1.5}}),
            "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            "Deployment",
            json!({"spec": {"replicas": 3_000_000_000_u64}}),
            "json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            "Deployment",
            json!({"spec": []}),
            "json: cannot unmarshal array into Go struct field Deployment.spec of type v1.DeploymentSpec",
        ),
        (
            "Deployment",
            json!({"metadata": {"labels": {"a": 1}}}),
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            "Deployment",
            json!({"metadata": {"labels": "a"}}),
            "json: cannot unmarshal string into Go struct field ObjectMeta.metadata.labels of type map[string]string",
        ),
        (
            "Deployment",
            json!({"spec": {"template": {"spec": {"restartPolicy": true}}}}),
            "json: cannot unmarshal bool into Go struct field PodSpec.spec.template.spec.restartPolicy of type v1.RestartPolicy",
        ),
        (
            "Deployment",
            json!({"spec": {"template": {"spec": {"containers": {}}}}}),
            "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
        ),
        (
            "Deployment",
            json!({"spec": {"template": {"spec": {"containers": [{"name": 1}]}}}}),
            "json: cannot unmarshal number into Go struct field Container.spec.template.spec.containers.name of type string",
        ),
        (
            "Deployment",
            json!({"spec": {"template": {"spec": {"volumes": [{"emptyDir": 1}]}}}}),
            "json: cannot unmarshal number into Go struct field Volume.spec.template.spec.volumes.emptyDir of type v1.EmptyDirVolumeSource",
        ),
        (
            "Deployment",
            json!({"spec": {"template": {"spec": {"containers": [{"resources": {"limits": {"cpu": "x"}}}]}}}}),
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        ("Deployment", json!([]), "json: cannot unmarshal array into Go value of type v1.Deployment"),
    ] {
        let error =
            check(kind("apps", "v1", name), &mut given.clone(), Mode::Decoded).expect_err("a type error");
        let expected = format!("Deployment in version \"v1\" cannot be handled as a Deployment: {message}");
        assert_eq!((error.code, error.message), (400, expected), "{given}");
    }
}

#[test]
fn whole_floats_are_integers_only_after_a_patch() {
    let deployment = kind("apps", "v1", "Deployment");
    let mut value = json!({"spec": {"replicas": 3.0}});
    assert!(check(deployment, &mut value.clone(), Mode::Decoded).is_err());
    assert_eq!(check(deployment, &mut value, Mode::Patched), Ok(vec![]));
    assert_eq!(value.pointer("/spec/replicas"), Some(&Value::from(3)));
}

#[test]
fn secrets_must_be_base64() {
    let error = check(kind("", "v1", "Secret"), &mut json!({"data": {"a": "hello"}}), Mode::Decoded);
    let message = error.expect_err("bad base64").message;
    assert_eq!(
        message,
        "Secret in version \"v1\" cannot be handled as a Secret: illegal base64 data at input byte 4"
    );
}
