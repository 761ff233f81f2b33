//! What namespaces have of their own: `spec.finalizers`, and the `finalize` subresource that empties them.

use crate::core::{Call, Core};
use crate::registry::Resource;
use crate::verbs::update::Part;
use bytes::Bytes;
use cumulet_api::{Status, meta};
use serde_json::{Value, json};

/// True for a namespace whose contents still have to go.
pub(crate) fn holds(resource: &Resource, object: &Value) -> bool {
    let finalizers = object.pointer("/spec/finalizers").and_then(Value::as_array);
    resource.is("", "namespaces") && finalizers.is_some_and(|list| !list.is_empty())
}

/// Shows that a namespace is going away.
pub(crate) fn mark_terminating(resource: &Resource, object: &mut Value) {
    if resource.is("", "namespaces") {
        if !object["status"].is_object() {
            object["status"] = json!({});
        }
        object["status"]["phase"] = "Terminating".into();
    }
}

impl Core {
    /// `PUT namespaces/NAME/finalize`: sets `spec.finalizers` and nothing else. The namespace is removed when it is
    /// being deleted and none is left.
    pub(crate) async fn finalize(&self, call: &Call<'_>, object: &Value) -> Result<Bytes, Status> {
        let finalizers =
            object.pointer("/spec/finalizers").cloned().filter(Value::is_array).unwrap_or(json!([]));
        let version = meta::resource_version(object);
        self.update(call, Part::Special, |old| {
            let mut new = old.clone();
            if !version.is_empty() {
                meta::set_text(&mut new, "resourceVersion", version);
            }
            if !new["spec"].is_object() {
                new["spec"] = json!({});
            }
            match finalizers.as_array() {
                Some(list) if !list.is_empty() => new["spec"]["finalizers"] = finalizers.clone(),
                _ => new["spec"] = json!({}),
            }
            Ok(new)
        })
        .await
    }
}
