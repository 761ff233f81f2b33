//! `nodes/NODE/proxy/checkpoint/NAMESPACE/POD`: saves a running pod, as the kubelet does at this place.
//!
//! KEP-5823 has checkpoints of whole pods, of which the kubelet's part is this request. Its objects are alpha; here the
//! name is given with the request, and a pod names it by an annotation.

use crate::codec::encode;
use crate::core::Call;
use crate::handlers::{Answer, Ask, not_allowed, not_found};
use crate::subresources::pod;
use cumulet_api::{Status, meta, names};
use cumulet_cluster::streams::PodRef;
use http::{Method, StatusCode};
use serde_json::{Value, json};

pub(crate) async fn answer(ask: &Ask<'_>, node: &str, namespace: &str, name: &str) -> Answer {
    if ask.parts.method != Method::POST {
        return Err(not_allowed());
    }
    let core = ask.core();
    let resource = core.registry.find("", "v1", "pods").ok_or_else(not_found)?;
    let call = Call { resource, namespace: Some(namespace), name, user: ask.user, dry_run: false };
    let object = pod::read(core, &call)?;
    pod::must_be_bound(&object)?;
    if object.pointer("/spec/nodeName").and_then(Value::as_str) != Some(node) {
        return Err(Status::bad_request(format!("pod {name} is not on node {node}")));
    }
    let uid = meta::uid(&object).to_owned();
    let called = ask.query.get("name").unwrap_or(name);
    if let Some(why) = names::dns1123_subdomain(called).first() {
        return Err(Status::bad_request(format!("the checkpoint's name {called:?}: {why}")));
    }
    let of = PodRef { namespace: namespace.to_owned(), pod: name.to_owned(), uid };
    let key = pod::streams(core)?.checkpoint(of, called.to_owned()).await?;
    Ok(encode::json(StatusCode::OK, &json!({"items": [key]})))
}
