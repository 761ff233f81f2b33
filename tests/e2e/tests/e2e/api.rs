//! The API as clients see it: errors in Kubernetes' words, patches, watches, paging.

use cumulet_e2e::Cloud;
use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use serde_json::json;

#[test]
fn mistakes_get_kubernetes_words() -> anyhow::Result<()> {
    let cloud = Cloud::start()?;
    let cases: &[(&[&str], &str, &[&str])] = &[
        (&["get", "pod", "nosuch"], "", &["Error from server (NotFound): pods \"nosuch\" not found"]),
        (&["get", "nosuch"], "", &["the server doesn't have a resource type \"nosuch\""]),
        (
            &["create", "configmap", "Bad_Name"],
            "",
            &["is invalid: metadata.name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 subdomain"],
        ),
        (
            &["create", "namespace", "default"],
            "",
            &["(AlreadyExists): namespaces \"default\" already exists"],
        ),
        (&["create", "-n", "nosuch", "configmap", "c"], "", &["namespaces \"nosuch\" not found"]),
        (
            &["apply", "-f", "-"],
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec:\n  selector: {matchLabels: {app: a}}\n  template:\n    metadata: {labels: {app: b}}\n    spec: {containers: [{name: c, image: i}]}\n",
            &[
                "The Deployment \"d\" is invalid: spec.template.metadata.labels: Invalid value",
                "`selector` does not match template `labels`",
            ],
        ),
        (
            &["apply", "-f", "-"],
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {contaners: [], containers: [{name: c, image: i}]}\n",
            &["unknown field \"spec.contaners\""],
        ),
        (
            &["apply", "-f", "-"],
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c}]}\n",
            &["spec.containers[0].image: Required value"],
        ),
        (
            &["apply", "-f", "-"],
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /v}]}]}\n",
            &["spec.containers[0].volumeMounts[0].name: Not found: \"v\""],
        ),
        (
            &["create", "--validate=false", "-f", "-"],
            "{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"c\"}, \"data\": {\"a\": 1}}",
            &["BadRequest", "cannot unmarshal number into Go struct field ConfigMap.data of type string"],
        ),
        (&["get", "pods", "--field-selector", "spec.nope=1"], "", &["field label not supported: spec.nope"]),
        (&["get", "pods", "-l", "a in"], "", &["unable to parse requirement"]),
    ];
    for (args, input, expected) in cases {
        let said = cloud.kubectl_fails(args, input)?;
        for text in *expected {
            assert!(said.contains(text), "kubectl {}\nsaid     {said}\nexpected {text}", args.join(" "));
        }
    }
    // Immutable fields.
    let service =
        "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {selector: {a: b}, ports: [{port: 80}]}\n";
    cloud.kubectl_with(&["apply", "-f", "-"], service)?;
    let patch = r#"{"spec":{"clusterIP":"10.255.255.1"}}"#;
    let said = cloud.kubectl_fails(&["patch", "service", "s", "-p", patch], "")?;
    assert!(said.contains("spec.clusterIP") && said.contains("may not change once set"), "{said}");
    cloud.finish()
}

#[test]
fn kubectl_s_everyday_commands() -> anyhow::Result<()> {
    let cloud = Cloud::start()?;
    cloud.kubectl(&["create", "configmap", "c", "--from-literal=a=1"])?;
    cloud.kubectl(&["create", "secret", "generic", "s", "--from-literal=k=v"])?;
    cloud.kubectl(&["create", "deployment", "d", "--image=hello:1", "--replicas=0"])?;
    cloud.kubectl(&["create", "service", "clusterip", "svc", "--tcp=80:8080"])?;
    cloud.kubectl(&["create", "serviceaccount", "sa"])?;
    cloud.kubectl(&["label", "configmap", "c", "x=y"])?;
    cloud.kubectl(&["annotate", "configmap", "c", "note=n"])?;
    assert_eq!(cloud.kubectl(&["get", "cm", "-l", "x=y", "-o", "name"])?, "configmap/c\n");
    cloud.kubectl(&[
        "patch",
        "configmap",
        "c",
        "--type=json",
        "-p",
        r#"[{"op":"add","path":"/data/b","value":"2"}]"#,
    ])?;
    assert_eq!(cloud.field("cm/c", ".data")?, r#"{"a":"1","b":"2"}"#);
    cloud.kubectl(&["patch", "configmap", "c", "--type=merge", "-p", r#"{"data":{"a":null}}"#])?;
    assert_eq!(cloud.field("cm/c", ".data")?, r#"{"b":"2"}"#);
    // Applying the same again changes nothing.
    let manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: applied}\ndata: {k: v}\n";
    assert!(cloud.kubectl_with(&["apply", "-f", "-"], manifest)?.contains("created"));
    let before = cloud.field("cm/applied", ".metadata.resourceVersion")?;
    assert!(cloud.kubectl_with(&["apply", "-f", "-"], manifest)?.contains("unchanged"));
    assert_eq!(cloud.field("cm/applied", ".metadata.resourceVersion")?, before);
    assert!(
        cloud
            .kubectl_with(&["apply", "--dry-run=server", "-f", "-"], &manifest.replace("applied", "dry"))?
            .contains("created")
    );
    cloud.kubectl_fails(&["get", "cm", "dry"], "")?;
    let explained = cloud.kubectl(&["explain", "pod.spec.containers"])?;
    assert!(explained.contains("livenessProbe"), "{explained}");
    let resources = cloud.kubectl(&["api-resources"])?;
    assert!(resources.contains("deploy") && resources.contains("endpointslices"), "{resources}");
    cloud.kubectl(&["cordon", &cloud.field("nodes", ".items[0].metadata.name")?])?;
    assert!(cloud.kubectl(&["get", "nodes"])?.contains("Ready,SchedulingDisabled"));
    cloud.kubectl(&["delete", "cm", "c", "applied"])?;
    assert!(cloud.kubectl(&["version"])?.contains("Server Version"));
    cloud.finish()
}

#[tokio::test]
async fn lists_are_paged_at_one_revision_and_watches_miss_nothing() -> anyhow::Result<()> {
    let cloud = Cloud::start()?;
    let maps: Api<ConfigMap> = Api::namespaced(cloud.client().await?, "default");
    let map = |n: usize| -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"name": format!("m{n:03}")}})).unwrap()
    };
    let first = maps.list(&ListParams::default()).await?;
    let revision = first.metadata.resource_version.clone().unwrap_or_default();
    for n in 0..50 {
        maps.create(&PostParams::default(), &map(n)).await?;
    }
    let page = maps.list(&ListParams::default().limit(20)).await?;
    let token = page.metadata.continue_.clone().unwrap_or_default();
    // Changes between the pages are not seen by the second one.
    maps.delete("m049", &Default::default()).await?;
    maps.create(&PostParams::default(), &map(99)).await?;
    let rest = maps.list(&ListParams::default().continue_token(&token)).await?;
    assert_eq!(rest.metadata.resource_version, page.metadata.resource_version);
    let names: Vec<String> = page
        .iter()
        .chain(rest.iter())
        .filter_map(|m| m.metadata.name.clone())
        .filter(|n| n.starts_with('m'))
        .collect();
    assert_eq!(names, (0..50).map(|n| format!("m{n:03}")).collect::<Vec<_>>());

    let mut events = maps.watch(&WatchParams::default().timeout(10), &revision).await?.boxed();
    let mut seen = Vec::new();
    while seen.len() < 52 {
        match events.try_next().await? {
            Some(WatchEvent::Added(m)) => seen.push(format!("+{}", m.metadata.name.unwrap_or_default())),
            Some(WatchEvent::Deleted(m)) => seen.push(format!("-{}", m.metadata.name.unwrap_or_default())),
            other => anyhow::bail!("after {seen:?} came {other:?}"),
        }
    }
    assert_eq!(seen[0], "+m000");
    assert_eq!(seen[50..], ["-m049", "+m099"]);
    conflicts(&maps).await?;
    drop(events);
    tokio::task::spawn_blocking(move || cloud.finish()).await?
}

async fn conflicts(maps: &Api<ConfigMap>) -> anyhow::Result<()> {
    let mut one = maps.get("m000").await?;
    let patch = json!({"data": {"k": "v"}});
    maps.patch("m000", &PatchParams::default(), &Patch::Merge(patch)).await?;
    one.data = Some([("k".to_owned(), "mine".to_owned())].into());
    match maps.replace("m000", &PostParams::default(), &one).await {
        Err(kube::Error::Api(status)) => {
            assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
            Ok(())
        }
        other => anyhow::bail!("a stale update gave {other:?}"),
    }
}

#[tokio::test]
async fn bodies_of_the_wrong_kind() -> anyhow::Result<()> {
    let cloud = Cloud::start()?;
    let client = cloud.client().await?;
    let path = "/api/v1/namespaces/default/configmaps";
    let huge = format!("{{\"metadata\":{{\"name\":\"x\"}},\"data\":{{\"a\":\"{}\"}}}}", "x".repeat(4 << 20));
    let cases: &[(&str, &str, &str, u16)] = &[
        (path, "application/json", "{", 400),
        (path, "application/json", "[]", 400),
        (
            path,
            "application/json",
            "{\"kind\":\"Pod\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":\"x\"}}",
            400,
        ),
        (path, "text/plain", "{}", 415),
        (path, "application/vnd.kubernetes.protobuf", "k8s\0\u{1}\u{2}", 400),
        (path, "application/json", &huge, 413),
        (path, "application/yaml", "a: [", 400),
    ];
    for (path, kind, body, code) in cases {
        assert_eq!(post(&client, path, kind, body).await?, *code, "{kind} {:.40}", body);
    }
    tokio::task::spawn_blocking(move || cloud.finish()).await?
}

async fn post(client: &Client, path: &str, kind: &str, body: &str) -> anyhow::Result<u16> {
    let request = kube::client::Body::from(body.as_bytes().to_vec());
    let request = http::Request::post(path).header("content-type", kind).body(request)?;
    Ok(client.send(request).await?.status().as_u16())
}
