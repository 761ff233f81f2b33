//! Admission: rules that are not about the object alone, run between defaulting and validation.
//!
//! A rule sees the call and may change the object or refuse it. There is one list per verb; a new rule is a new
//! entry. Authorization is not here: it comes before decoding.

use crate::core::{Call, Core, forbidden};
use crate::kinds;
use crate::object::body;
use cumulet_api::status::Cause;
use cumulet_api::{Status, meta};
use serde_json::Value;

type Rule = fn(&Core, &Call<'_>, &mut Value) -> Result<(), Status>;

const ON_CREATE: &[Rule] = &[namespace_accepts, pods, pull_secrets];
type DeleteRule = fn(&Call<'_>) -> Result<(), Status>;
const ON_DELETE: &[DeleteRule] = &[namespace_may_go];

/// Namespaces that are never deleted.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// Runs the rules for a new object.
pub(crate) fn admit_create(core: &Core, call: &Call<'_>, object: &mut Value) -> Result<(), Status> {
    ON_CREATE.iter().try_for_each(|rule| rule(core, call, object))
}

/// Runs the rules for a deletion.
pub(crate) fn admit_delete(call: &Call<'_>) -> Result<(), Status> {
    ON_DELETE.iter().try_for_each(|rule| rule(call))
}

/// New objects need a namespace that exists and is not going away.
fn namespace_accepts(core: &Core, call: &Call<'_>, object: &mut Value) -> Result<(), Status> {
    let Some(namespace) = call.namespace else { return Ok(()) };
    let Some(record) = core.lookup("", "namespaces", "", namespace) else {
        return Err(Status::not_found("", "namespaces", namespace));
    };
    if meta::deletion_timestamp(&body::parse(&record)?).is_none() {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let mut status = forbidden(call.resource, meta::name(object), &why);
    status.details.get_or_insert_default().causes.push(Cause {
        reason: "NamespaceTerminating".into(),
        message: format!("namespace {namespace} is being terminated"),
        field: "metadata.namespace".into(),
    });
    Err(status)
}

/// Pods get an account and the usual tolerations.
fn pods(_: &Core, call: &Call<'_>, object: &mut Value) -> Result<(), Status> {
    if call.resource.is("", "pods") {
        kinds::pod::defaults::admit(object);
    }
    Ok(())
}

/// A pod that names no pull secrets gets those of its account.
fn pull_secrets(core: &Core, call: &Call<'_>, object: &mut Value) -> Result<(), Status> {
    let Some(namespace) = call.namespace.filter(|_| call.resource.is("", "pods")) else { return Ok(()) };
    let spec = &mut object["spec"];
    if spec["imagePullSecrets"].as_array().is_some_and(|own| !own.is_empty()) {
        return Ok(());
    }
    let account = spec["serviceAccountName"].as_str().unwrap_or("default");
    let Some(record) = core.lookup("", "serviceaccounts", namespace, account) else { return Ok(()) };
    let secrets = body::parse(&record)?["imagePullSecrets"].take();
    if secrets.as_array().is_some_and(|secrets| !secrets.is_empty()) {
        spec["imagePullSecrets"] = secrets;
    }
    Ok(())
}

fn namespace_may_go(call: &Call<'_>) -> Result<(), Status> {
    if call.resource.is("", "namespaces") && IMMORTAL.contains(&call.name) {
        return Err(call.forbidden("this namespace may not be deleted"));
    }
    Ok(())
}
