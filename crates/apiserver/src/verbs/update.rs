//! Update of an object or of its status: read, change, check, and commit if it is still as it was read.
//!
//! The change is a function of the current object and is run again when somebody else was faster. A change that
//! carries a resourceVersion fails then with 409, since it no longer names the current one; one that does not is
//! simply made on the newer object. A change that changes nothing writes nothing.

use crate::admission;
use crate::core::{Call, Core, delete_op, update_op};
use crate::object::{body, rules};
use crate::row::{Allocation, Row};
use crate::verbs::create::drop_empty;
use crate::verbs::namespace;
use bytes::Bytes;
use cumulet_api::{Status, StatusReason, meta};
use serde_json::Value;

/// How often a change is tried on a newer object before the client is told to try again.
const ATTEMPTS: usize = 64;
const STALE: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// Which part of an object an update is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything but status.
    Main,
    /// Only status.
    Status,
    /// The subresource has rules of its own; the strategy is not asked to prepare the object.
    Special,
}

impl Core {
    /// Changes an object and returns it as stored.
    pub(crate) async fn update(
        &self,
        call: &Call<'_>,
        part: Part,
        change: impl Fn(&Value) -> Result<Value, Status> + Send + Sync,
    ) -> Result<Bytes, Status> {
        for _ in 0..ATTEMPTS {
            let record = self.get(call)?;
            let old = body::parse(&record)?;
            let mut new = change(&old)?;
            let row = call.resource.row;
            preconditions(call, &old, &new)?;
            keep_server_metadata(&old, &mut new);
            row.strategy.default(&mut new);
            match part {
                Part::Main => row.strategy.prepare_update(&old, &mut new),
                Part::Status => {
                    row.strategy.prepare_status_update(&old, &mut new);
                    // Whatever the strategy leaves alone, a status update never touches what ends an object's life.
                    keep_fields(&old, &mut new, &["finalizers", "ownerReferences"]);
                }
                Part::Special => {}
            }
            // Rules come first, as in Kubernetes: an immutable address is not asked of the allocator.
            validate(row, part, &old, &new)?;
            if part == Part::Main {
                admission::admit_update(self, call, &old, &new)?;
            }
            let reservation = match row.strategy.allocation() {
                Allocation::Service if part == Part::Main => Some(
                    self.services
                        .reserve(&mut new, Some(&old))
                        .map_err(|e| Status::invalid(row.group, row.kind, call.name, &[e]))?,
                ),
                _ => None,
            };
            if call.dry_run {
                return Ok(body::encode_detached(&new));
            }
            if new == old {
                return Ok(record.body.clone());
            }
            let gone = removable(call, &new);
            let op = if gone { delete_op(&record, &new) } else { update_op(&record, &new) };
            match self.commit(call, op).await {
                Ok(stored) => {
                    if gone {
                        self.release(call.resource, &new);
                    }
                    if let Some(reservation) = reservation {
                        reservation.commit();
                    }
                    return Ok(stored);
                }
                Err(Some(status)) => return Err(status),
                Err(None) => {}
            }
        }
        Err(Status::new(StatusReason::ServerTimeout, "the object changes too quickly; please try again"))
    }

    /// Replaces an object by `object`.
    pub(crate) async fn replace(&self, call: &Call<'_>, part: Part, object: &Value) -> Result<Bytes, Status> {
        same_place(call, object)?;
        self.update(call, part, |_| {
            let mut new = object.clone();
            if let Some(namespace) = call.namespace {
                meta::set_text(&mut new, "namespace", namespace);
            }
            meta::set_text(&mut new, "name", call.name);
            Ok(new)
        })
        .await
    }
}

/// The name and namespace in the body must be those of the URL, or absent.
fn same_place(call: &Call<'_>, object: &Value) -> Result<(), Status> {
    let (name, namespace) = (meta::name(object), meta::namespace(object));
    if name.is_empty() {
        return Err(Status::bad_request("name must be provided"));
    }
    if name != call.name {
        let text =
            format!("the name of the object ({name}) does not match the name on the URL ({})", call.name);
        return Err(Status::bad_request(text));
    }
    match call.namespace {
        Some(wanted) if !namespace.is_empty() && namespace != wanted => {
            let text = format!(
                "the namespace of the object ({namespace}) does not match the namespace on the URL ({wanted})"
            );
            Err(Status::bad_request(text))
        }
        _ => Ok(()),
    }
}

/// A uid or resourceVersion in the new object must be the current one.
fn preconditions(call: &Call<'_>, old: &Value, new: &Value) -> Result<(), Status> {
    let (wanted, uid) = (meta::uid(new), meta::uid(old));
    if !wanted.is_empty() && wanted != uid {
        let why = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}");
        return Err(call.conflict(&why));
    }
    let wanted = meta::resource_version(new);
    if wanted.is_empty() || wanted == meta::resource_version(old) {
        return Ok(());
    }
    if wanted.parse::<u64>().is_err() {
        let error =
            cumulet_api::field::FieldError::invalid("metadata.resourceVersion", wanted, "must be a number");
        let row = call.resource.row;
        return Err(Status::invalid(row.group, row.kind, call.name, &[error]));
    }
    Err(call.conflict(STALE))
}

/// Carries over what an update cannot change; a creation timestamp that differs is left for validation to refuse.
fn keep_server_metadata(old: &Value, new: &mut Value) {
    if meta::creation_timestamp(new).is_empty() {
        keep_fields(old, new, &["creationTimestamp"]);
    }
    // A deletion cannot be taken back, and only a deletion changes its grace period.
    if meta::deletion_timestamp(old).is_some() && meta::deletion_timestamp(new).is_none() {
        keep_fields(old, new, &["deletionTimestamp"]);
    }
    if meta::deletion_grace_period_seconds(new).is_none() {
        keep_fields(old, new, &["deletionGracePeriodSeconds"]);
    }
    keep_fields(
        old,
        new,
        &["uid", "resourceVersion", "generation", "selfLink", "managedFields", "generateName"],
    );
    if let Some(metadata) = meta::metadata_mut(new) {
        drop_empty(metadata);
    }
    for field in ["apiVersion", "kind"] {
        if let Some(value) = old.get(field) {
            new[field] = value.clone();
        }
    }
}

/// Copies metadata fields from the old object, absence included.
fn keep_fields(old: &Value, new: &mut Value, fields: &[&str]) {
    let old = meta::metadata(old);
    let Some(new) = meta::metadata_mut(new) else { return };
    for field in fields {
        match old.get(*field) {
            Some(value) => new.insert((*field).to_owned(), value.clone()),
            None => new.remove(*field),
        };
    }
}

fn validate(row: &Row, part: Part, old: &Value, new: &Value) -> Result<(), Status> {
    let mut errors = rules::validate(row, new);
    errors.extend(rules::validate_update(old, new));
    match part {
        Part::Main => {
            errors.extend(row.strategy.validate(new));
            errors.extend(row.strategy.validate_update(old, new));
        }
        Part::Status => errors.extend(row.strategy.validate_status_update(old, new)),
        Part::Special => {}
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid(row.group, row.kind, meta::name(new), &errors))
    }
}

/// True when this update was what a deletion waited for: marked, grace over, no finalizer left.
fn removable(call: &Call<'_>, new: &Value) -> bool {
    meta::deletion_timestamp(new).is_some()
        && meta::deletion_grace_period_seconds(new).unwrap_or(0) == 0
        && meta::finalizers(new).next().is_none()
        && !namespace::holds(call.resource, new)
}
