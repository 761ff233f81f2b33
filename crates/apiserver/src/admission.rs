//! Admission: rules that are not about the object alone, run between defaulting and validation.
//!
//! A rule sees the call and may change the object or refuse it. There is one list per verb; a new rule is a new
//! entry. Authorization is not here: it comes before decoding.

use crate::core::{Call, Core, forbidden};
use crate::kinds::checks::quantity;
use crate::kinds::{self, storageclass};
use crate::object::body;
use cumulet_api::status::Cause;
use cumulet_api::{Status, meta, storage};
use serde_json::Value;

type Rule = fn(&Core, &Call<'_>, &mut Value) -> Result<(), Status>;

const ON_CREATE: &[Rule] = &[namespace_accepts, pods, pull_secrets, default_class, in_use_protection];
type UpdateRule = fn(&Core, &Call<'_>, &Value, &Value) -> Result<(), Status>;
const ON_UPDATE: &[UpdateRule] = &[claims_grow];
type DeleteRule = fn(&Call<'_>) -> Result<(), Status>;
const ON_DELETE: &[DeleteRule] = &[namespace_may_go];

/// Namespaces that are never deleted.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// Runs the rules for a new object.
pub(crate) fn admit_create(core: &Core, call: &Call<'_>, object: &mut Value) -> Result<(), Status> {
    ON_CREATE.iter().try_for_each(|rule| rule(core, call, object))
}

/// Runs the rules for a change of the main part of an object.
pub(crate) fn admit_update(core: &Core, call: &Call<'_>, old: &Value, new: &Value) -> Result<(), Status> {
    ON_UPDATE.iter().try_for_each(|rule| rule(core, call, old, new))
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

/// A claim that names no class gets the default one: of several the newest, as in Kubernetes.
fn default_class(core: &Core, call: &Call<'_>, object: &mut Value) -> Result<(), Status> {
    let annotated = meta::annotations(object).contains_key(storage::CLASS_BETA);
    let named = object["spec"].get("storageClassName").is_some_and(|class| !class.is_null());
    if !call.resource.is("", "persistentvolumeclaims") || annotated || named {
        return Ok(());
    }
    let mut best: Option<(String, String)> = None;
    for record in core.all("storage.k8s.io", "storageclasses") {
        let class = body::parse(&record)?;
        let rank = (meta::creation_timestamp(&class).to_owned(), meta::name(&class).to_owned());
        let newer = |best: &(String, String)| rank.0 > best.0 || rank.0 == best.0 && rank.1 < best.1;
        if storageclass::is_default(&class) && best.as_ref().is_none_or(newer) {
            best = Some(rank);
        }
    }
    if let (Some((_, name)), Some(spec)) = (best, object["spec"].as_object_mut()) {
        spec.insert("storageClassName".to_owned(), name.into());
    }
    Ok(())
}

/// Volumes and claims are held while they are in use; controllers let them go.
fn in_use_protection(_: &Core, call: &Call<'_>, object: &mut Value) -> Result<(), Status> {
    let finalizer = match () {
        () if call.resource.is("", "persistentvolumeclaims") => storage::CLAIM_PROTECTION,
        () if call.resource.is("", "persistentvolumes") => storage::VOLUME_PROTECTION,
        () => return Ok(()),
    };
    if meta::finalizers(object).any(|known| known == finalizer) {
        return Ok(());
    }
    let mut finalizers: Vec<Value> = meta::finalizers(object).map(Value::from).collect();
    finalizers.push(finalizer.into());
    if let Some(metadata) = meta::metadata_mut(object) {
        metadata.insert("finalizers".to_owned(), finalizers.into());
    }
    Ok(())
}

/// A claim may ask for more only where its class says that volumes can grow.
fn claims_grow(core: &Core, call: &Call<'_>, old: &Value, new: &Value) -> Result<(), Status> {
    let amount = |claim: &Value| quantity(&claim["spec"]["resources"]["requests"]["storage"]);
    let grows = amount(new) > amount(old);
    if !call.resource.is("", "persistentvolumeclaims") || !grows {
        return Ok(());
    }
    if old["status"]["phase"] != "Bound" {
        return Err(call.forbidden("Only bound persistent volume claims can be expanded"));
    }
    let class = new["spec"]["storageClassName"].as_str().unwrap_or_default();
    let class = core.lookup("storage.k8s.io", "storageclasses", "", class);
    let class = class.map(|record| body::parse(&record)).transpose()?;
    if class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
        return Ok(());
    }
    Err(call.forbidden(
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
    ))
}

fn namespace_may_go(call: &Call<'_>) -> Result<(), Status> {
    if call.resource.is("", "namespaces") && IMMORTAL.contains(&call.name) {
        return Err(call.forbidden("this namespace may not be deleted"));
    }
    Ok(())
}
