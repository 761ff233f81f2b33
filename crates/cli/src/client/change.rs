//! `scale` and `delete`.

use super::get::targets;
use super::resource::Resources;
use super::{call, manifest};
use anyhow::Context;
use http::Method;
use kube::Client;
use serde_json::{Value, json};
use std::path::PathBuf;

const JSON: &str = "application/json";

/// Sets the number of replicas of one object through its `scale` subresource.
pub(super) async fn scale(client: &Client, what: &str, replicas: u32, namespace: &str) -> anyhow::Result<()> {
    let resources = Resources::discover(client).await?;
    let (kind, name) = what.split_once('/').with_context(|| format!("{what:?}: write KIND/NAME"))?;
    let resource = resources.find(kind)?;
    let path = resource.path(Some(namespace), Some(name)) + "/scale";
    let patch = json!({"spec": {"replicas": replicas}}).to_string().into_bytes();
    call(client, Method::PATCH, &path, "application/merge-patch+json", JSON, patch).await?;
    println!("{} scaled", resource.named(name));
    Ok(())
}

/// Deletes objects named on the command line or in files.
pub(super) async fn delete(
    client: &Client,
    what: &[String],
    files: &[PathBuf],
    grace_period: Option<i64>,
    namespace: &str,
) -> anyhow::Result<()> {
    let resources = Resources::discover(client).await?;
    let mut paths = Vec::new();
    if !files.is_empty() {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for object in manifest::read_all(files)? {
            let resource = resources.of_kind(&text(&object["apiVersion"]), &text(&object["kind"]))?;
            let own = text(&object["metadata"]["namespace"]);
            let name = text(&object["metadata"]["name"]);
            let namespace = if own.is_empty() { namespace } else { &own };
            paths.push((resource, resource.path(Some(namespace), Some(&name)), name));
        }
    } else {
        for (resource, name) in targets(&resources, what)? {
            let name = name.with_context(|| format!("name the {} to delete", resource.plural))?;
            paths.push((resource, resource.path(Some(namespace), Some(&name)), name));
        }
    }
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": grace_period});
    for (resource, path, name) in paths {
        call(client, Method::DELETE, &path, JSON, JSON, options.to_string().into_bytes()).await?;
        println!("{} deleted", resource.named(&name));
    }
    Ok(())
}
