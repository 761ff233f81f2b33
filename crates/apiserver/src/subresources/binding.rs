//! `pods/NAME/binding` and `bindings`: puts a pod on a node, once.

use crate::core::{Call, Core};
use crate::handlers::{Answer, Ask, body_value, not_allowed, success};
use crate::registry::Resource;
use crate::route::Target;
use crate::verbs::update::Part;
use cumulet_api::field::FieldError;
use cumulet_api::{Status, meta};
use http::{Method, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

const KIND: (&str, &str, &str) = ("", "v1", "Binding");

pub(super) async fn answer(ask: &Ask<'_>, target: &Target<'_>, body: Incoming) -> Answer {
    let call = ask.call(target)?;
    let form = ask.plain_form()?;
    let binding = read(ask, body).await?;
    ask.core().bind(&call, &binding).await?;
    success(&form, StatusCode::CREATED)
}

/// `POST /api/v1/namespaces/NAMESPACE/bindings`: the pod is named by the metadata.
pub(crate) async fn bindings(ask: &Ask<'_>, namespace: &str, body: Incoming) -> Answer {
    if ask.parts.method != Method::POST {
        return Err(not_allowed());
    }
    let form = ask.plain_form()?;
    let binding = read(ask, body).await?;
    let resource = pods(ask.core())?;
    let name = meta::name(&binding);
    let call =
        Call { resource, namespace: Some(namespace), name, user: ask.user, dry_run: ask.query.dry_run()? };
    ask.core().bind(&call, &binding).await?;
    success(&form, StatusCode::CREATED)
}

fn pods(core: &Core) -> Result<&Resource, Status> {
    core.registry.find("", "v1", "pods").ok_or_else(crate::handlers::not_found)
}

async fn read(ask: &Ask<'_>, body: Incoming) -> Result<Value, Status> {
    body_value(ask, body, KIND).await?.ok_or_else(|| Status::bad_request("a Binding is required"))
}

impl Core {
    /// Puts a pod on the binding's node. A pod is bound once and never again.
    pub(crate) async fn bind(&self, call: &Call<'_>, binding: &Value) -> Result<(), Status> {
        let text = |pointer: &str| binding.pointer(pointer).and_then(Value::as_str).unwrap_or("");
        let (kind, node) = (text("/target/kind"), text("/target/name"));
        let mut errors = Vec::new();
        if !kind.is_empty() && kind != "Node" {
            errors.push(FieldError::not_supported("target.kind", kind, &["Node", "<empty>"]));
        }
        if node.is_empty() {
            errors.push(FieldError::required("target.name", ""));
        }
        if !errors.is_empty() {
            return Err(Status::invalid("", "Binding", call.name, &errors));
        }
        self.update(call, Part::Special, |old| bound(call, old, binding, node)).await.map(drop)
    }
}

/// The pod, bound.
fn bound(call: &Call<'_>, old: &Value, binding: &Value, node: &str) -> Result<Value, Status> {
    let refuse = |why: String| {
        let mut status = call.conflict(&why);
        status.message = status.message.replacen(" pods ", " pods/binding ", 1);
        Err(status)
    };
    let name = meta::name(old);
    let (wanted, uid) = (meta::uid(binding), meta::uid(old));
    if !wanted.is_empty() && wanted != uid {
        return refuse(format!(
            "Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}"
        ));
    }
    if meta::deletion_timestamp(old).is_some() {
        return refuse(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let current = old.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or("");
    if !current.is_empty() {
        return refuse(format!("pod {name} is already assigned to node \"{current}\""));
    }
    let mut new = old.clone();
    new["spec"]["nodeName"] = node.into();
    for (field, added) in [("annotations", meta::annotations(binding)), ("labels", meta::labels(binding))] {
        for (key, value) in added {
            new["metadata"][field][key] = value.clone();
        }
    }
    let mut scheduled = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null,
        "lastTransitionTime": meta::time(jiff::Timestamp::now()),
    });
    // The node's name is not the client's to change, so binding makes no new generation.
    if meta::generation(old) > 0 {
        scheduled["observedGeneration"] = meta::generation(old).into();
    }
    if !new["status"].is_object() {
        new["status"] = json!({});
    }
    match new["status"]["conditions"].as_array_mut() {
        Some(conditions) => {
            conditions.retain(|c| c["type"] != "PodScheduled");
            conditions.push(scheduled);
        }
        None => new["status"]["conditions"] = json!([scheduled]),
    }
    Ok(new)
}
