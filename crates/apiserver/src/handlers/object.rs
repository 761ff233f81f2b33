//! Requests about one object: get, create, update, patch, delete.

use crate::codec::decode::{self, Strictness};
use crate::codec::encode;
use crate::core::Call;
use crate::handlers::{Answer, Ask, body_value, warn};
use crate::registry::Resource;
use crate::route::Target;
use crate::verbs::delete::Deleted;
use crate::verbs::patch::{self, Patch};
use crate::verbs::update::Part;
use cumulet_api::{Status, meta};
use cumulet_cluster::{DeleteOptions, Propagation};
use http::StatusCode;
use hyper::body::Incoming;
use serde_json::{Value, json};

pub(super) fn get(ask: &Ask<'_>, target: &Target<'_>) -> Answer {
    let call = ask.call(target)?;
    let form = ask.form()?;
    let record = ask.core().get(&call)?;
    encode::object(&form, StatusCode::OK, target.resource, record.body.clone())
}

pub(super) async fn create(ask: &Ask<'_>, target: &Target<'_>, body: Incoming) -> Answer {
    if target.resource.row.namespaced && target.namespace.is_none() {
        // As Kubernetes says it for POST to a collection over all namespaces.
        return Err(crate::handlers::not_allowed());
    }
    let call = ask.call(target)?;
    let form = ask.form()?;
    let strictness = Strictness::read(ask.query.get("fieldValidation"))?;
    let bytes = decode::read(&ask.parts.headers, body).await?;
    let decoded = decode::object(target.resource, &ask.parts.headers, &bytes, strictness)?;
    let mut warnings = decoded.warnings;
    warnings.extend(target.resource.row.strategy.warnings(&decoded.object));
    let object = target.resource.stored(decoded.object);
    if let Some(view) = target.resource.view {
        let errors = (view.validate_create)(&object);
        if !errors.is_empty() {
            return Err(Status::invalid(view.row.group, view.row.kind, meta::name(&object), &errors));
        }
    }
    let stored = ask.core().create(&call, object).await?;
    Ok(warn(encode::object(&form, StatusCode::CREATED, target.resource, stored)?, &warnings))
}

pub(super) async fn update(ask: &Ask<'_>, target: &Target<'_>, body: Incoming) -> Answer {
    let call = ask.call(target)?;
    let form = ask.form()?;
    let strictness = Strictness::read(ask.query.get("fieldValidation"))?;
    let bytes = decode::read(&ask.parts.headers, body).await?;
    let decoded = decode::object(target.resource, &ask.parts.headers, &bytes, strictness)?;
    let mut warnings = decoded.warnings;
    warnings.extend(target.resource.row.strategy.warnings(&decoded.object));
    let object = target.resource.stored(decoded.object);
    let stored = ask.core().replace(&call, part(target), &object).await?;
    Ok(warn(encode::object(&form, StatusCode::OK, target.resource, stored)?, &warnings))
}

pub(super) async fn patch(ask: &Ask<'_>, target: &Target<'_>, body: Incoming) -> Answer {
    let call = ask.call(target)?;
    let form = ask.form()?;
    let strictness = Strictness::read(ask.query.get("fieldValidation"))?;
    let patch = read_patch(ask, body).await?;
    let (stored, warnings) =
        ask.core().patch(&call, target.resource, part(target), &patch, strictness).await?;
    Ok(warn(encode::object(&form, StatusCode::OK, target.resource, stored)?, &warnings))
}

/// The patch in a body.
pub(crate) async fn read_patch(ask: &Ask<'_>, body: Incoming) -> Result<Patch, Status> {
    let kind = patch::kind_of(decode::content_type(&ask.parts.headers))?;
    let bytes = decode::read(&ask.parts.headers, body).await?;
    Patch::parse(kind, &bytes)
}

fn part(target: &Target<'_>) -> Part {
    if target.subresource == Some("status") { Part::Status } else { Part::Main }
}

pub(super) async fn delete(ask: &Ask<'_>, target: &Target<'_>, body: Incoming) -> Answer {
    let mut call = ask.call(target)?;
    let form = ask.form()?;
    let (options, dry_run) = delete_options(ask, body).await?;
    call.dry_run |= dry_run;
    let deleted = ask.core().delete(&call, &options).await?;
    deletion(target.resource, &call, &form, deleted)
}

/// Kinds whose deletion answers with the object also when it is gone.
const SHOWN_WHEN_GONE: &[&str] =
    &["pods", "services", "serviceaccounts", "persistentvolumes", "persistentvolumeclaims"];

fn deletion(resource: &Resource, call: &Call<'_>, form: &encode::Form<'_>, deleted: Deleted) -> Answer {
    let row = call.resource.row;
    if !deleted.gone || (row.group.is_empty() && SHOWN_WHEN_GONE.contains(&row.plural)) {
        return encode::object(form, StatusCode::OK, resource, deleted.object);
    }
    let mut details = json!({"name": call.name, "kind": row.plural, "uid": deleted.uid});
    if !row.group.is_empty() {
        details["group"] = row.group.into();
    }
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    encode::value(form, StatusCode::OK, &status)
}

/// The options of a deletion, from the body or, without one, from the query; and whether it is a dry run.
pub(crate) async fn delete_options(ask: &Ask<'_>, body: Incoming) -> Result<(DeleteOptions, bool), Status> {
    match body_value(ask, body, ("", "v1", "DeleteOptions")).await? {
        Some(value) => read_delete_options(&value),
        None => {
            let query = &ask.query;
            let mut options = DeleteOptions {
                grace_period_seconds: query.number("gracePeriodSeconds")?,
                propagation: query.get("propagationPolicy").map(propagation).transpose()?,
                ..DeleteOptions::default()
            };
            if let Some(orphan) = query.optional_flag("orphanDependents") {
                options.propagation.get_or_insert(orphan_dependents(orphan));
            }
            Ok((options, false))
        }
    }
}

/// Reads a decoded `DeleteOptions`.
pub(crate) fn read_delete_options(value: &Value) -> Result<(DeleteOptions, bool), Status> {
    if !value.is_object() {
        return Err(Status::bad_request("DeleteOptions must be an object"));
    }
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).filter(|s| !s.is_empty());
    let mut options = DeleteOptions {
        grace_period_seconds: value.get("gracePeriodSeconds").and_then(Value::as_i64),
        uid: text("/preconditions/uid").map(str::to_owned),
        resource_version: text("/preconditions/resourceVersion").map(str::to_owned),
        propagation: text("/propagationPolicy").map(propagation).transpose()?,
    };
    if let Some(orphan) = value.get("orphanDependents").and_then(Value::as_bool) {
        options.propagation.get_or_insert(orphan_dependents(orphan));
    }
    let dry_run =
        value.get("dryRun").and_then(Value::as_array).is_some_and(|list| list.iter().any(|v| v == "All"));
    Ok((options, dry_run))
}

fn orphan_dependents(orphan: bool) -> Propagation {
    if orphan { Propagation::Orphan } else { Propagation::Background }
}

fn propagation(text: &str) -> Result<Propagation, Status> {
    match text {
        "Background" => Ok(Propagation::Background),
        "Foreground" => Ok(Propagation::Foreground),
        "Orphan" => Ok(Propagation::Orphan),
        other => {
            let error = cumulet_api::field::FieldError::not_supported(
                "propagationPolicy",
                other,
                &["Background", "Foreground", "Orphan"],
            );
            Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &[error]))
        }
    }
}
