//! Field selectors as kubectl uses them, generations, deletions that wait for nobody, and counts of paged lists.

use crate::{shell_pod, wait_field};
use cumulet_e2e::Cloud;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::json;

#[test]
fn kubectl_selects_by_fields() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    cloud.kubectl_with(&["apply", "-f", "-"], &shell_pod("runs", "Always", "sleep 1000", ""))?;
    cloud.kubectl_with(&["apply", "-f", "-"], &shell_pod("ends", "Never", "true", ""))?;
    cloud.kubectl(&["create", "secret", "generic", "s", "--from-literal=k=v"])?;
    wait_field(&cloud, "pod/runs", ".status.phase", "Running")?;
    wait_field(&cloud, "pod/ends", ".status.phase", "Succeeded")?;
    let node = cloud.field("nodes", ".items[0].metadata.name")?;
    let on_node = format!("spec.nodeName={node},status.phase!=Succeeded");
    let address = format!("status.podIP={}", cloud.field("pod/runs", ".status.podIP")?);
    let cases: &[(&str, &str, &str)] = &[
        ("pods", "metadata.name=runs,metadata.namespace=default", "pod/runs\n"),
        ("pods", "status.phase=Running", "pod/runs\n"),
        ("pods", "status.phase=Succeeded,spec.restartPolicy=Never", "pod/ends\n"),
        ("pods", &on_node, "pod/runs\n"),
        ("pods", &address, "pod/runs\n"),
        ("pods", "spec.hostNetwork=true", ""),
        ("pods", "spec.nodeName=", ""),
        ("secrets", "type=Opaque", "secret/s\n"),
        ("namespaces", "status.phase=Active,metadata.name=default", "namespace/default\n"),
        ("nodes", "spec.unschedulable=true", ""),
        ("services", "spec.type=ClusterIP,metadata.name=kubernetes", "service/kubernetes\n"),
    ];
    for (resource, selector, expected) in cases {
        let found = cloud.kubectl(&["get", resource, "--field-selector", selector, "-o", "name"])?;
        assert_eq!(found, *expected, "{resource} {selector}");
    }
    let about = "involvedObject.kind=Pod,involvedObject.name=runs,reason=Started,type=Normal";
    let events = cloud.kubectl(&["get", "events", "--field-selector", about, "-o", "name"])?;
    assert_eq!(events.lines().count(), 1, "{events}");
    // kubectl puts its own words in front, so the server must say no more than what is wrong.
    let said = cloud.kubectl_fails(&["get", "pods", "--field-selector", "spec.nope=1"], "")?;
    assert!(
        said.contains(
            "Error from server (BadRequest): Unable to find \"/v1, Resource=pods\" that match label selector \"\", \
             field selector \"spec.nope=1\": field label not supported: spec.nope"
        ),
        "{said}"
    );
    let said = cloud.kubectl_fails(&["get", "configmaps", "--field-selector", "data.a=b"], "")?;
    assert!(said.contains("\"data.a\" is not a known field selector: only \"metadata.name\""), "{said}");
    cloud.finish()
}

#[test]
fn generations_count_and_some_deletions_wait_for_nobody() -> anyhow::Result<()> {
    let cloud = Cloud::with_hello()?;
    let scheduled = ".status.conditions[?(@.type==\"PodScheduled\")]";
    cloud.kubectl_with(&["apply", "-f", "-"], &shell_pod("runs", "Always", "sleep 1000", ""))?;
    cloud.kubectl_with(&["apply", "-f", "-"], &shell_pod("ends", "Never", "true", ""))?;
    let nowhere = shell_pod("nowhere", "Always", "true", "");
    let nowhere = nowhere.replace("\nspec:\n", "\nspec:\n  nodeSelector: {no: where}\n");
    cloud.kubectl_with(&["apply", "-f", "-"], &nowhere)?;

    wait_field(&cloud, "pod/nowhere", &format!("{scheduled}.status"), "False")?;
    assert_eq!(cloud.field("pod/nowhere", &format!("{scheduled}.observedGeneration"))?, "1");
    cloud.kubectl(&["set", "image", "pod/nowhere", "main=hello:2"])?;
    assert_eq!(cloud.field("pod/nowhere", ".metadata.generation")?, "2");
    // Labels are no specification.
    cloud.kubectl(&["label", "pod", "nowhere", "a=b"])?;
    assert_eq!(cloud.field("pod/nowhere", ".metadata.generation")?, "2");
    gone_at_once(&cloud, "nowhere", &[])?;

    wait_field(&cloud, "pod/runs", ".status.observedGeneration", "1")?;
    assert_eq!(cloud.field("pod/runs", &format!("{scheduled}.observedGeneration"))?, "1");
    cloud.kubectl(&["patch", "pod", "runs", "-p", r#"{"spec":{"activeDeadlineSeconds":3600}}"#])?;
    assert_eq!(cloud.field("pod/runs", ".metadata.generation")?, "2");
    wait_field(&cloud, "pod/runs", ".status.observedGeneration", "2")?;

    wait_field(&cloud, "pod/ends", ".status.phase", "Succeeded")?;
    gone_at_once(&cloud, "ends", &["--grace-period=60"])?;
    gone_at_once(&cloud, "runs", &["--grace-period=0", "--force"])?;
    cloud.finish()
}

/// Deletes a pod without waiting for it, and expects it to be gone when the server has answered.
fn gone_at_once(cloud: &Cloud, pod: &str, flags: &[&str]) -> anyhow::Result<()> {
    cloud.kubectl(&[&["delete", "pod", pod, "--wait=false"], flags].concat())?;
    let said = cloud.kubectl_fails(&["get", "pod", pod], "")?;
    assert!(said.contains("NotFound"), "{said}");
    Ok(())
}

#[tokio::test]
async fn paged_lists_say_how_much_is_left() -> anyhow::Result<()> {
    let cloud = Cloud::start()?;
    let maps: Api<ConfigMap> = Api::namespaced(cloud.client().await?, "default");
    for n in 0..9 {
        let map =
            serde_json::from_value(json!({"metadata": {"name": format!("m{n}"), "labels": {"a": "b"}}}))?;
        maps.create(&PostParams::default(), &map).await?;
    }
    let all = maps.list(&ListParams::default()).await?.items.len();
    let first = maps.list(&ListParams::default().limit(4)).await?;
    assert_eq!(first.metadata.remaining_item_count, i64::try_from(all - 4).ok());
    let token = first.metadata.continue_.unwrap_or_default();
    let second = maps.list(&ListParams::default().limit(4).continue_token(&token)).await?;
    assert_eq!(second.metadata.remaining_item_count, i64::try_from(all - 8).ok());
    let selected = maps.list(&ListParams::default().limit(4).labels("a=b")).await?;
    assert!(selected.metadata.continue_.is_some() && selected.metadata.remaining_item_count.is_none());
    tokio::task::spawn_blocking(move || cloud.finish()).await?
}
