//! `apply`: create what is not there, change what is.
//!
//! The change is a strategic merge patch of the manifest, with nulls for the map keys that the last applied manifest
//! had and this one has not. The last manifest is kept in the annotation that `kubectl apply` keeps it in, so that the
//! two can be mixed. Not done here: deleting items of merged lists; `kubectl apply` does that.

use super::resource::Resources;
use super::{call, get_json, is_reason, manifest};
use http::Method;
use kube::Client;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const JSON: &str = "application/json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// Applies the objects of all files.
pub(super) async fn run(client: &Client, files: &[PathBuf], namespace: &str) -> anyhow::Result<()> {
    let resources = Resources::discover(client).await?;
    for mut object in manifest::read_all(files)? {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let resource = resources.of_kind(&text(&object["apiVersion"]), &text(&object["kind"]))?;
        let name = text(&object["metadata"]["name"]);
        if name.is_empty() {
            anyhow::bail!("a {} without metadata.name cannot be applied", resource.kind);
        }
        let own = text(&object["metadata"]["namespace"]);
        let namespace = if own.is_empty() { namespace } else { &own };
        let original = object.to_string();
        object["metadata"]["annotations"][LAST_APPLIED] = json!(original);
        let path = resource.path(Some(namespace), Some(&name));
        let done = match get_json(client, &path).await {
            Err(error) if is_reason(&error, "NotFound") => {
                let collection = resource.path(Some(namespace), None) + "?fieldValidation=Strict";
                call(client, Method::POST, &collection, JSON, JSON, object.to_string().into_bytes()).await?;
                "created"
            }
            Err(error) => return Err(error),
            Ok(live) => {
                let last = live["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap_or("{}");
                let last: Value = serde_json::from_str(last).unwrap_or(Value::Null);
                mark_removed(&last, &mut object);
                let body = object.to_string().into_bytes();
                let answer = call(client, Method::PATCH, &path, STRATEGIC, JSON, body).await?;
                let now: Value = serde_json::from_str(&answer)?;
                let same = now["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"];
                if same { "unchanged" } else { "configured" }
            }
        };
        println!("{} {done}", resource.named(&name));
    }
    Ok(())
}

/// Sets to null every map key that `last` has and `new` has not.
fn mark_removed(last: &Value, new: &mut Value) {
    let (Value::Object(last), Value::Object(new)) = (last, new) else { return };
    let mut gone = Map::new();
    for (key, old) in last {
        match new.get_mut(key) {
            Some(value) => mark_removed(old, value),
            None => {
                gone.insert(key.clone(), Value::Null);
            }
        }
    }
    new.extend(gone);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_keys_become_null() {
        let last = json!({"data": {"a": "1", "b": "2"}, "spec": {"x": {"y": 1}}});
        let mut new = json!({"data": {"b": "3"}, "spec": {}});
        mark_removed(&last, &mut new);
        assert_eq!(new, json!({"data": {"a": null, "b": "3"}, "spec": {"x": null}}));
    }
}
