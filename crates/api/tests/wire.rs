//! Real requests: for each command, `data/NAME.pb` is the body that `kubectl create ...` (1.32) sent, and
//! `data/NAME.json` is what the same command prints with `--dry-run=client -o json`. Both must be one object.

use cumulet_api::{protobuf, schema};
use serde_json::{Value, json};

fn read(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn decoded(name: &str) -> Value {
    protobuf::decode(&read(&format!("{name}.pb"))).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

#[test]
fn protobuf_and_json_are_the_same_object() {
    for name in [
        "configmap",
        "cronjob",
        "deployment",
        "ingress",
        "job",
        "namespace",
        "poddisruptionbudget",
        "priorityclass",
        "resourcequota",
        "role",
        "secret",
        "service-clusterip",
        "service-nodeport",
        "serviceaccount",
    ] {
        let mut wanted: Value = serde_json::from_slice(&read(&format!("{name}.json"))).expect("JSON");
        without_nulls(&mut wanted);
        let found = decoded(name);
        assert_eq!(found, wanted, "{name}");

        // What decodes is well-typed and in normal form.
        let (group, version) = cumulet_api::meta::group_version(cumulet_api::meta::api_version(&found));
        let ty =
            schema::schema().kind(group, version, cumulet_api::meta::kind(&found)).expect("a known kind");
        let mut checked = found.clone();
        assert_eq!(schema::check(ty, &mut checked, schema::Mode::Decoded), Ok(vec![]), "{name}");
        assert_eq!(checked, found, "{name}");
    }
}

#[test]
fn reviews_and_tokens() {
    let review = decoded("selfsubjectaccessreview");
    assert_eq!(review["kind"], "SelfSubjectAccessReview");
    assert_eq!(review["spec"]["resourceAttributes"]["verb"], "get");
    let token = decoded("tokenrequest");
    assert_eq!(token["apiVersion"], "authentication.k8s.io/v1");
    assert_eq!(token["spec"]["expirationSeconds"], json!(600));
}

#[test]
fn every_cut_and_every_flipped_byte_is_answered() {
    for name in ["deployment", "service-nodeport", "resourcequota", "ingress"] {
        let body = read(&format!("{name}.pb"));
        for at in 0..body.len() {
            let _ = protobuf::decode(&body[..at]);
            for bit in 0..8 {
                let mut broken = body.clone();
                broken[at] ^= 1 << bit;
                let _ = protobuf::decode(&broken);
            }
        }
    }
}

/// The round-trip samples of k8s.io/api (`testdata/HEAD`), which set every field of every kind. They are large and
/// not part of this repository.
#[test]
#[ignore = "needs K8S_TESTDATA, the directory of k8s.io/api's testdata/HEAD"]
fn kubernetes_own_samples() {
    let directory = std::env::var("K8S_TESTDATA").expect("K8S_TESTDATA is set");
    let mut compared = 0;
    for entry in std::fs::read_dir(&directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|e| e != "pb") {
            continue;
        }
        let body = std::fs::read(&path).expect("readable");
        let found = match protobuf::decode(&body) {
            Ok(found) => found,
            Err(protobuf::DecodeError::UnknownKind { .. }) => continue,
            Err(error) => panic!("{}: {error}", path.display()),
        };
        let text = std::fs::read(path.with_extension("json")).expect("readable");
        let original: Value = serde_json::from_slice(&text).expect("JSON");
        let mut wanted = original.clone();
        without_nulls(&mut wanted);
        let differing = differences(&found, &wanted, String::new());
        assert!(differing.is_empty(), "{}: {differing:#?}", path.display());
        compared += 1;

        let (group, version) = cumulet_api::meta::group_version(cumulet_api::meta::api_version(&found));
        let ty =
            schema::schema().kind(group, version, cumulet_api::meta::kind(&found)).expect("a known kind");
        let mut checked = original;
        assert_eq!(schema::check(ty, &mut checked, schema::Mode::Decoded), Ok(vec![]), "{}", path.display());
        without_nulls(&mut checked);
        let differing = differences(&checked, &wanted, String::new());
        assert!(differing.is_empty(), "{}: {differing:#?}", path.display());
    }
    println!("{compared} kinds agree");
    assert!(compared > 50);
}

fn differences(a: &Value, b: &Value, path: String) -> Vec<String> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            let null = Value::Null;
            keys.into_iter()
                .flat_map(|k| {
                    differences(a.get(k).unwrap_or(&null), b.get(k).unwrap_or(&null), format!("{path}.{k}"))
                })
                .collect()
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .flat_map(|(i, (a, b))| differences(a, b, format!("{path}[{i}]")))
            .collect(),
        _ if a == b => Vec::new(),
        _ => vec![format!("{path}: {a} should be {b}")],
    }
}
