//! Volumes and their claims: who gets what, and until when.
//!
//! ```text
//!   claim ──► binder: a volume that fits │ a note for its provisioner ──► volume ──► both sides point at each other
//!   pod ──► scheduler: chooses the node, and with it the volume of a claim that waits for its first consumer
//!   claim gone ──► binder: volume Released ──► its provisioner removes it, or it is retained
//! ```
//!
//! What a volume is on is the business of its provisioner, which works through the API alone; see
//! [`cumulet_api::storage`] for the words between them. `matching` decides which volume fits, `binder` makes claims
//! and volumes point at each other, `protection` holds what is in use, `ephemeral` makes the claims of pods' own
//! volumes.
//!
//! Absent: resizing, volume attributes, attaching (a cloud of one machine has nothing to attach).

pub(crate) mod binder;
pub(crate) mod ephemeral;
pub(crate) mod matching;
pub(crate) mod protection;

use crate::context::Context;
use crate::meta::{annotation, name, namespace, uid};
use cumulet_api::storage;
use cumulet_cluster::Informer;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::sync::Arc;

/// The class that a claim asks for; empty for none.
pub(crate) fn claim_class(claim: &PersistentVolumeClaim) -> &str {
    let field = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
    annotation(&claim.metadata, storage::CLASS_BETA).or(field).unwrap_or("")
}

/// The class that a volume is of; empty for none.
pub(crate) fn volume_class(volume: &PersistentVolume) -> &str {
    let field = volume.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
    annotation(&volume.metadata, storage::CLASS_BETA).or(field).unwrap_or("")
}

/// The volume that a claim names; empty for none.
pub(crate) fn volume_of(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or("")
}

/// The claim that a volume is for, if it is for one.
pub(crate) fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

/// True when the reference means this claim: by name, and by uid where it has one.
pub(crate) fn refers_to(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    let same = |a: &Option<String>, b: &str| a.as_deref().unwrap_or("") == b;
    same(&reference.namespace, namespace(&claim.metadata))
        && same(&reference.name, name(&claim.metadata))
        && (!has_uid(reference) || same(&reference.uid, uid(&claim.metadata)))
}

/// True when the reference names the very object, not only something of its name.
pub(crate) fn has_uid(reference: &ObjectReference) -> bool {
    reference.uid.as_deref().is_some_and(|uid| !uid.is_empty())
}

/// True when the binding of the claim is complete.
pub(crate) fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    !volume_of(claim).is_empty() && annotation(&claim.metadata, storage::BIND_COMPLETED).is_some()
}

/// The phase of a claim; empty when there is none yet.
pub(crate) fn claim_phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("")
}

/// The phase of a volume; empty when there is none yet.
pub(crate) fn volume_phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("")
}

/// A claim that a pod uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Use {
    /// Name of the claim, in the pod's namespace.
    pub(crate) claim: String,
    /// The claim is the pod's own and goes with it.
    pub(crate) ephemeral: bool,
}

/// The claims that a pod uses.
pub(crate) fn uses(pod: &Pod) -> Vec<Use> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes
        .filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(source), _) => Some(Use { claim: source.claim_name.clone(), ephemeral: false }),
            (None, Some(_)) => {
                let claim = storage::ephemeral_claim(name(&pod.metadata), &volume.name);
                Some(Use { claim, ephemeral: true })
            }
            (None, None) => None,
        })
        .collect()
}

/// True when the object is there for this pod: the pod is its managing owner.
pub(crate) fn is_owned_by(meta: &ObjectMeta, pod: &Pod) -> bool {
    crate::meta::controller_of(meta).is_some_and(|owner| owner.uid == uid(&pod.metadata))
}

/// True for a class whose claims get their volume when a pod is given a node.
pub(crate) fn waits_for_consumer(class: Option<&Arc<StorageClass>>) -> bool {
    class.is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
}

/// The class of claims that name none: of several the newest.
fn default_class(classes: &Informer<StorageClass>) -> Option<String> {
    let mut all: Vec<Arc<StorageClass>> = classes.list();
    all.retain(|class| annotation(&class.metadata, storage::DEFAULT_CLASS) == Some("true"));
    // The list is ordered by name, and the first of the newest counts.
    let newest =
        all.iter().rev().max_by_key(|class| class.metadata.creation_timestamp.as_ref().map(|t| t.0))?;
    Some(name(&newest.metadata).to_owned())
}

/// A reference to a claim as a volume holds it.
pub(crate) fn reference_to(claim: &PersistentVolumeClaim) -> ObjectReference {
    cumulet_cluster::events::reference(claim)
}

/// Starts the controllers of this module.
pub(crate) fn add(set: &mut crate::Set, ctx: &Arc<Context>) {
    set.add(crate::WORKERS, |q| binder::Binder::new(ctx, q));
    set.add(4, |q| protection::ClaimProtection::new(ctx, q));
    set.add(4, |q| protection::VolumeProtection::new(ctx, q));
    set.add(4, |q| ephemeral::EphemeralClaims::new(ctx, q));
}
