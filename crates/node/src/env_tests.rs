//! Tests of environments.

use super::*;
use serde_json::{Value, json};

#[derive(Default)]
struct Fixed {
    maps: Vec<ConfigMap>,
    secrets: Vec<Secret>,
    services: Vec<Arc<Service>>,
}

impl Objects for Fixed {
    fn config_map(&self, name: &str) -> Option<Arc<ConfigMap>> {
        self.maps.iter().find(|m| m.metadata.name.as_deref() == Some(name)).cloned().map(Arc::new)
    }
    fn secret(&self, name: &str) -> Option<Arc<Secret>> {
        self.secrets.iter().find(|m| m.metadata.name.as_deref() == Some(name)).cloned().map(Arc::new)
    }
    fn services(&self) -> Vec<Arc<Service>> {
        self.services.clone()
    }
}

fn objects() -> Fixed {
    let of = |v: Value| v;
    Fixed {
        maps: vec![
            serde_json::from_value(of(json!({"metadata": {"name": "cm"}, "data": {"k": "v", "n": "1"}})))
                .unwrap(),
        ],
        secrets: vec![
            serde_json::from_value(json!({"metadata": {"name": "s"}, "data": {"p": "c2VjcmV0"}})).unwrap(),
        ],
        services: vec![Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "my-db"},
                "spec": {"clusterIP": "10.97.0.9", "ports": [{"name": "sql", "port": 5432}]}}))
            .unwrap(),
        )],
    }
}

fn run(container: Value, image: &[&str]) -> Result<Environment, EnvError> {
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u",
        "labels": {"app": "x"}}, "spec": {"nodeName": "n1", "containers": [container]}}))
    .unwrap();
    let container = pod.spec.as_ref().unwrap().containers[0].clone();
    let image: Vec<String> = image.iter().map(|s| (*s).to_owned()).collect();
    let facts = PodFacts { pod_ips: vec!["10.86.0.2".into()], hostname: "web".into(), ..PodFacts::default() };
    build(&pod, &container, &image, &facts, &objects())
}

fn get(env: &Environment, name: &str) -> Option<String> {
    let prefix = format!("{name}=");
    env.vars.iter().find_map(|v| v.strip_prefix(&prefix).map(str::to_owned))
}

#[test]
fn precedence_and_sources() {
    let env = run(
        json!({"name": "a", "envFrom": [{"prefix": "C_", "configMapRef": {"name": "cm"}}], "env": [
            {"name": "C_k", "value": "own"},
            {"name": "PATH", "value": "/x"},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            {"name": "N", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "n"}}},
            {"name": "P", "valueFrom": {"secretKeyRef": {"name": "s", "key": "p"}}},
            {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "no", "key": "p", "optional": true}}},
            {"name": "ALL", "value": "$(N)-$(C_k)-$(MY_DB_SERVICE_HOST)-$(LATER)-$$(N)"},
            {"name": "LATER", "value": "x"},
        ]}),
        &["PATH=/bin", "LANG=C"],
    )
    .unwrap();
    for (name, value) in [
        ("C_k", "own"),
        ("C_n", "1"),
        ("PATH", "/x"),
        ("LANG", "C"),
        ("HOSTNAME", "web"),
        ("IP", "10.86.0.2"),
        ("APP", "x"),
        ("P", "secret"),
        ("ALL", "1-own-10.97.0.9-$(LATER)-$(N)"),
        ("MY_DB_SERVICE_PORT_SQL", "5432"),
        ("MY_DB_PORT_5432_TCP_ADDR", "10.97.0.9"),
    ] {
        assert_eq!(get(&env, name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(get(&env, "NONE"), None);
    assert_eq!(env.expand("$(LATER)$(LANG)"), "x$(LANG)");
}

#[test]
fn missing_objects_have_kubernetes_texts() {
    for (source, text) in [
        (json!({"configMapKeyRef": {"name": "no", "key": "k"}}), "configmap \"no\" not found"),
        (json!({"configMapKeyRef": {"name": "cm", "key": "no"}}), "couldn't find key no in ConfigMap ns/cm"),
        (json!({"secretKeyRef": {"name": "s", "key": "no"}}), "couldn't find key no in Secret ns/s"),
    ] {
        let error = run(json!({"name": "a", "env": [{"name": "X", "valueFrom": source}]}), &[]).unwrap_err();
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn expansion() {
    let value = |name: &str| (name == "A").then(|| "1".to_owned());
    for (text, want) in
        [("$(A)", "1"), ("$$(A)", "$(A)"), ("$(B)", "$(B)"), ("$A", "$A"), ("$(A", "$(A"), ("a$", "a$")]
    {
        assert_eq!(expand(text, value), want);
    }
}
