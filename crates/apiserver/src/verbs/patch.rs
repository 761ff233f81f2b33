//! Patch: a change written as a difference, applied to whatever the object is now.

use crate::codec::decode::{self, Strictness};
use crate::core::{Call, Core};
use crate::registry::Resource;
use crate::verbs::update::Part;
use bytes::Bytes;
use cumulet_api::schema::{self, Mode, Type};
use cumulet_api::{Status, StatusReason, meta};
use cumulet_cluster::PatchKind;
use cumulet_merge as merge;
use serde_json::Value;
use std::sync::Mutex;

/// A patch, read and ready to be applied.
pub(crate) enum Patch {
    /// RFC 6902, not parsed: its reader caps what it does.
    Json(Bytes),
    /// RFC 7396.
    Merge(Value),
    /// Kubernetes' strategic merge patch.
    Strategic(Value),
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
    pub(crate) fn parse(kind: PatchKind, body: &Bytes) -> Result<Self, Status> {
        let object = || match serde_json::from_slice::<Value>(body) {
            Ok(patch) if patch.is_object() => Ok(patch),
            Ok(_) => Err(Status::bad_request("error decoding patch: the patch is not an object")),
            Err(error) => Err(Status::bad_request(format!("error decoding patch: {error}"))),
        };
        Ok(match kind {
            PatchKind::Json => Self::Json(body.clone()),
            PatchKind::Merge => Self::Merge(object()?),
            PatchKind::Strategic => Self::Strategic(object()?),
        })
    }

    /// The object with the patch applied, not yet checked against its schema.
    pub(crate) fn apply(&self, ty: &'static Type, object: &Value) -> Result<Value, Status> {
        match self {
            Self::Json(patch) => merge::json_patch(object, patch).map_err(|e| e.to_status()),
            Self::Merge(patch) => Ok(merge::merge_patch(object, patch)),
            Self::Strategic(patch) => merge::strategic(ty, object, patch).map_err(|e| e.to_status()),
        }
    }
}

impl Core {
    /// Patches an object in the form that `form` serves; returns it as stored, with the warnings about its fields.
    pub(crate) async fn patch(
        &self,
        call: &Call<'_>,
        form: &Resource,
        part: Part,
        patch: &Patch,
        strictness: Strictness,
    ) -> Result<(Bytes, Vec<String>), Status> {
        let ty = form.ty;
        // Of the last attempt; the change may be computed several times. Never held across an await.
        let warnings = Mutex::new(Vec::new());
        let stored = self
            .update(call, part, |old| {
                let mut new = patch.apply(ty, &form.served(old))?;
                let problems = schema::check(ty, &mut new, Mode::Patched)?;
                let found = strictness.judge(ty, problems)?;
                if let Ok(mut warnings) = warnings.lock() {
                    *warnings = found;
                }
                unmoved(old, &new)?;
                Ok(form.stored(new))
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
