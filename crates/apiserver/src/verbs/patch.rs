//! Patch: a change written as a difference, applied to whatever the object is now.

use crate::codec::decode::{self, Strictness};
use crate::core::{Call, Core};
use crate::verbs::update::Part;
use bytes::Bytes;
use cumulet_api::schema::{self, Mode, Type};
use cumulet_api::{Status, StatusReason, meta};
use cumulet_cluster::PatchKind;
use cumulet_merge as merge;
use serde_json::Value;
use std::sync::Mutex;

/// Most operations in a JSON patch, as in Kubernetes.
const JSON_OPERATIONS_MAX: usize = 10_000;

/// A patch, read and ready to be applied.
pub(crate) struct Patch {
    kind: PatchKind,
    patch: Value,
}

/// The kind of patch that a media type stands for; 415 for those that are none.
pub(crate) fn kind_of(content_type: &str) -> Result<PatchKind, Status> {
    match content_type {
        "application/json-patch+json" => Ok(PatchKind::Json),
        "application/merge-patch+json" => Ok(PatchKind::Merge),
        "application/strategic-merge-patch+json" => Ok(PatchKind::Strategic),
        "application/apply-patch+yaml" | "application/apply-patch+cbor" => Err(Status::new(
            StatusReason::UnsupportedMediaType,
            "server-side apply is not available on this server; apply on the client's side instead (kubectl apply \
             --server-side=false)",
        )),
        _ => Err(decode::unsupported(&[
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
        ])),
    }
}

impl Patch {
    pub(crate) fn parse(kind: PatchKind, body: &[u8]) -> Result<Self, Status> {
        let bad = |why: String| Status::bad_request(format!("error decoding patch: {why}"));
        let patch: Value = serde_json::from_slice(body).map_err(|e| bad(e.to_string()))?;
        match (kind, &patch) {
            (PatchKind::Json, Value::Array(operations)) if operations.len() > JSON_OPERATIONS_MAX => {
                Err(Status::new(
                    StatusReason::RequestEntityTooLarge,
                    format!(
                        "The allowed maximum operations in a JSON patch is {JSON_OPERATIONS_MAX}, got {}",
                        operations.len()
                    ),
                ))
            }
            (PatchKind::Json, Value::Array(_)) | (PatchKind::Merge | PatchKind::Strategic, Value::Object(_)) => {
                Ok(Self { kind, patch })
            }
            (PatchKind::Json, _) => Err(bad("a JSON patch is an array of operations".into())),
            _ => Err(bad("the patch is not an object".into())),
        }
    }

    /// The object with the patch applied, not yet checked against its schema.
    pub(crate) fn apply(&self, ty: &'static Type, object: &Value, name: &str) -> Result<Value, Status> {
        let unprocessable = |why: String| {
            let mut status = Status::new(StatusReason::Invalid, why);
            status.details = Some(Box::new(cumulet_api::status::Details { name: name.into(), ..Default::default() }));
            status
        };
        match self.kind {
            PatchKind::Json => merge::json_patch(object, &self.patch)
                .map_err(|e| unprocessable(format!("the server rejected our request due to an error in our request: {e}"))),
            PatchKind::Merge => Ok(merge::merge_patch(object, &self.patch)),
            PatchKind::Strategic => merge::strategic_merge(ty, object, &self.patch)
                .map_err(|e| Status::bad_request(format!("invalid strategic merge patch: {e}"))),
        }
    }
}

impl Core {
    /// Patches an object; returns it as stored, with the warnings about its fields.
    pub(crate) async fn patch(
        &self,
        call: &Call<'_>,
        part: Part,
        patch: &Patch,
        strictness: Strictness,
    ) -> Result<(Bytes, Vec<String>), Status> {
        let ty = call.resource.ty;
        // Of the last attempt; the change may be computed several times. Never held across an await.
        let warnings = Mutex::new(Vec::new());
        let stored = self
            .update(call, part, |old| {
                let mut new = patch.apply(ty, old, call.name)?;
                let problems = schema::check(ty, &mut new, Mode::Patched)?;
                let found = strictness.judge(ty, problems)?;
                if let Ok(mut warnings) = warnings.lock() {
                    *warnings = found;
                }
                unmoved(old, &new)?;
                Ok(new)
            })
            .await?;
        Ok((stored, warnings.into_inner().unwrap_or_default()))
    }
}

/// A patch may not rename or move the object.
fn unmoved(old: &Value, new: &Value) -> Result<(), Status> {
    let (was, is) = (meta::name(old), meta::name(new));
    if was != is {
        return Err(Status::bad_request(format!(
            "the name of the object ({is}) does not match the name on the URL ({was})"
        )));
    }
    let (was, is) = (meta::namespace(old), meta::namespace(new));
    if was != is && !is.is_empty() {
        return Err(Status::bad_request(format!(
            "the namespace of the object ({is}) does not match the namespace on the URL ({was})"
        )));
    }
    Ok(())
}
