//! The binder: gives claims volumes, and volumes phases.
//!
//! ```text
//!   claim:   (Pending) ──volume found, or made──► Bound ──volume gone──► Lost
//!   volume:  Available ──claimed──► Bound ──claim gone──► Released ──► removed by its provisioner │ Failed
//! ```
//!
//! A claim's pass writes the claim, and sets a volume aside for it (`claimRef`); a volume's pass writes the volume's
//! phase and takes the reference back. Both read the caches; a write names the version that it was decided on, so two
//! claims cannot get one volume. What cannot be undone (`Released`, `Lost`) is decided on what the API says.

use super::matching::{Scope, find, mismatch};
use super::{
    claim_class, claim_phase, claim_ref, default_class, has_uid, is_bound, reference_to, refers_to,
    volume_of, volume_phase, waits_for_consumer,
};
use crate::context::Context;
use crate::driver::{Doing, Error, Next, Reconciler};
use crate::meta::{self, annotation, is_deleting, name, namespace, uid};
use crate::queue::Queue;
use cumulet_api::storage;
use cumulet_cluster::events::reference;
use cumulet_cluster::{Api, EventRecorder, EventType, PatchKind};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::json;
use std::sync::Arc;

/// What a pass is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Target {
    /// Namespace and name of a claim.
    Claim(String, String),
    /// Name of a volume.
    Volume(String),
}

/// The controller.
pub(crate) struct Binder {
    ctx: Arc<Context>,
    claims: Api<PersistentVolumeClaim>,
    volumes: Api<PersistentVolume>,
    recorder: EventRecorder,
}

impl Binder {
    pub(crate) fn new(ctx: &Arc<Context>, queue: &Arc<Queue<Target>>) -> Self {
        let informers = &ctx.informers;
        let q = queue.clone();
        informers.claims.observe(move |change| {
            for claim in change.old.iter().chain(&change.new) {
                q.add(target(claim));
                if !volume_of(claim).is_empty() {
                    q.add(Target::Volume(volume_of(claim).to_owned()));
                }
            }
            // A claim that is gone before it knew its volume.
            if let (Some(old), None) = (&change.old, &change.new) {
                q.add(Target::Volume(storage::volume_name(uid(&old.metadata))));
            }
        });
        let (q, claims) = (queue.clone(), informers.claims.clone());
        informers.volumes.observe(move |change| {
            let Some(volume) = change.latest() else { return };
            q.add(Target::Volume(name(&volume.metadata).to_owned()));
            match claim_ref(volume) {
                Some(claim) => q.add(referred(claim)),
                // Whoever waits may want it.
                None => claims.list().iter().filter(|c| !is_bound(c)).for_each(|c| q.add(target(c))),
            }
        });
        let (q, claims) = (queue.clone(), informers.claims.clone());
        informers.storage_classes.observe(move |_| {
            claims.list().iter().filter(|c| !is_bound(c)).for_each(|c| q.add(target(c)));
        });
        Self {
            ctx: ctx.clone(),
            claims: Api::new(ctx.cluster.clone()),
            volumes: Api::new(ctx.cluster.clone()),
            recorder: ctx.recorder("persistentvolume-controller"),
        }
    }

    fn tell(&self, claim: &PersistentVolumeClaim, kind: EventType, reason: &str, message: &str) {
        self.recorder.event(&reference(claim), kind, reason, message);
    }

    async fn claim(&self, claim: Arc<PersistentVolumeClaim>) -> Result<(), Error> {
        if is_bound(&claim) {
            return self.bound_claim(&claim).await;
        }
        if is_deleting(&claim.metadata) {
            return Ok(());
        }
        let wanted = volume_of(&claim);
        if !wanted.is_empty() {
            return self.named_volume(&claim, wanted).await;
        }
        let informers = &self.ctx.informers;
        let named = claim.spec.as_ref().is_some_and(|s| s.storage_class_name.is_some());
        if !named
            && annotation(&claim.metadata, storage::CLASS_BETA).is_none()
            && let Some(class) = default_class(&informers.storage_classes)
        {
            // There was none when the claim was made.
            let patch = json!({"spec": {"storageClassName": class}});
            return self.patch(&claim, None, &patch).await;
        }
        let class = informers.storage_classes.get("", claim_class(&claim));
        let later = waits_for_consumer(class.as_ref());
        let scope = if later { Scope::Reserved } else { Scope::All };
        match find(&claim, &informers.volumes.list(), scope) {
            Some(volume) => self.bind(&claim, &volume).await,
            None => self.unmatched(&claim, class.as_deref(), later).await,
        }
    }

    /// There is no volume for the claim: somebody has to make one, or it waits.
    async fn unmatched(
        &self,
        claim: &PersistentVolumeClaim,
        class: Option<&StorageClass>,
        later: bool,
    ) -> Result<(), Error> {
        self.pending(claim).await?;
        if later && annotation(&claim.metadata, storage::SELECTED_NODE).is_none() {
            let message = "waiting for first consumer to be created before binding";
            self.tell(claim, EventType::Normal, "WaitForFirstConsumer", message);
            return Ok(());
        }
        let wanted = claim_class(claim);
        let Some(class) = class else {
            let (kind, reason, message) = match wanted {
                "" => (
                    EventType::Normal,
                    "FailedBinding",
                    "no persistent volumes available for this claim and no storage class is set".to_owned(),
                ),
                name => (
                    EventType::Warning,
                    "ProvisioningFailed",
                    format!("storageclass.storage.k8s.io \"{name}\" not found"),
                ),
            };
            self.tell(claim, kind, reason, &message);
            return Ok(());
        };
        let provisioner = class.provisioner.as_str();
        if provisioner == storage::NO_PROVISIONER {
            let message = "no persistent volumes available for this claim and no storage class is set";
            self.tell(claim, EventType::Normal, "FailedBinding", message);
            return Ok(());
        }
        if annotation(&claim.metadata, storage::PROVISIONER) != Some(provisioner) {
            let names = json!({storage::PROVISIONER: provisioner, storage::PROVISIONER_BETA: provisioner});
            self.patch(claim, None, &json!({"metadata": {"annotations": names}})).await?;
        }
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
             system administrator. If volume creation is delayed, please verify that the provisioner is running and \
             correctly registered."
        );
        self.tell(claim, EventType::Normal, "ExternalProvisioning", &message);
        Ok(())
    }

    /// The claim names the volume that it wants.
    async fn named_volume(&self, claim: &PersistentVolumeClaim, wanted: &str) -> Result<(), Error> {
        let Some(volume) = self.ctx.informers.volumes.get("", wanted) else {
            return self.pending(claim).await;
        };
        match claim_ref(&volume) {
            Some(other) if !refers_to(other, claim) => {
                self.pending(claim).await?;
                let message = format!("volume \"{wanted}\" already bound to a different claim.");
                self.tell(claim, EventType::Warning, "FailedBinding", &message);
                Ok(())
            }
            _ => match mismatch(claim, &volume) {
                Some(why) => {
                    self.pending(claim).await?;
                    let message = format!("Cannot bind to requested volume \"{wanted}\": {why}");
                    self.tell(claim, EventType::Warning, "VolumeMismatch", &message);
                    Ok(())
                }
                None => self.bind(claim, &volume).await,
            },
        }
    }

    /// Makes both point at each other, the volume first.
    async fn bind(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), Error> {
        let volume = match claim_ref(volume) {
            Some(known) if has_uid(known) => volume.clone(),
            known => {
                let reserved = set_aside(volume, claim, known.is_none());
                let doing = || format!("setting aside volume {}", name(&volume.metadata));
                self.volumes.update(&reserved).await.doing(doing)?
            }
        };
        let mut bound = claim.clone();
        let spec = bound.spec.get_or_insert_default();
        let annotations = bound.metadata.annotations.get_or_insert_default();
        annotations.insert(storage::BIND_COMPLETED.to_owned(), "yes".to_owned());
        if spec.volume_name.as_deref().is_none_or(str::is_empty) {
            spec.volume_name.clone_from(&volume.metadata.name);
            annotations.insert(storage::BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
        }
        let doing = || format!("binding claim {}/{}", namespace(&claim.metadata), name(&claim.metadata));
        let bound = self.claims.update(&bound).await.doing(doing)?;
        self.say_bound(&bound, &volume).await
    }

    async fn say_bound(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), Error> {
        let spec = volume.spec.as_ref();
        let (modes, capacity) =
            (spec.and_then(|s| s.access_modes.clone()), spec.and_then(|s| s.capacity.clone()));
        let known = claim.status.as_ref();
        let same = known.is_some_and(|s| s.access_modes == modes && s.capacity == capacity);
        if claim_phase(claim) == "Bound" && same {
            return Ok(());
        }
        let status = json!({"status": {"phase": "Bound", "accessModes": modes, "capacity": capacity}});
        self.patch(claim, Some("status"), &status).await
    }

    /// The claim had a volume: it still has, or has lost it.
    async fn bound_claim(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let wanted = volume_of(claim);
        let volume = match self.volumes.get("", wanted).await {
            Ok(volume) => volume,
            Err(error) if error.is_not_found() => {
                let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
                return self.lose(claim, "ClaimLost", message).await;
            }
            Err(error) => return Err(error).doing(|| format!("looking for volume {wanted}")),
        };
        match claim_ref(&volume) {
            Some(other) if !refers_to(other, claim) => {
                let message = "Two claims are bound to the same volume, this one is bound incorrectly";
                self.lose(claim, "ClaimMisbound", message).await
            }
            Some(known) if has_uid(known) => self.say_bound(claim, &volume).await,
            _ if is_deleting(&claim.metadata) => Ok(()),
            _ => self.bind(claim, &volume).await,
        }
    }

    async fn lose(&self, claim: &PersistentVolumeClaim, reason: &str, message: &str) -> Result<(), Error> {
        if claim_phase(claim) == "Lost" {
            return Ok(());
        }
        self.tell(claim, EventType::Warning, reason, message);
        let lost = json!({"status": {"phase": "Lost", "accessModes": null, "capacity": null}});
        self.patch(claim, Some("status"), &lost).await
    }

    async fn pending(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        if claim_phase(claim) == "Pending" {
            return Ok(());
        }
        self.patch(claim, Some("status"), &json!({"status": {"phase": "Pending"}})).await
    }

    async fn patch(
        &self,
        claim: &PersistentVolumeClaim,
        part: Option<&str>,
        patch: &serde_json::Value,
    ) -> Result<(), Error> {
        let (ns, claim_name) = (namespace(&claim.metadata), name(&claim.metadata));
        match self.claims.patch(ns, claim_name, part, PatchKind::Merge, patch).await {
            Err(error) if !error.is_not_found() => Err(error).doing(|| format!("claim {ns}/{claim_name}")),
            _ => Ok(()),
        }
    }

    async fn volume(&self, volume: Arc<PersistentVolume>) -> Result<(), Error> {
        let Some(known) = claim_ref(&volume).filter(|claim| has_uid(claim)) else {
            // Free, or set aside for a claim that has not taken it yet.
            return self.phase(&volume, "Available", None).await;
        };
        let (ns, claim_name) =
            (known.namespace.as_deref().unwrap_or(""), known.name.as_deref().unwrap_or(""));
        let claim = match self.claims.get(ns, claim_name).await {
            Ok(claim) => Some(claim).filter(|claim| refers_to(known, claim)),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error).doing(|| format!("looking for claim {ns}/{claim_name}")),
        };
        match claim {
            None => self.release(&volume).await,
            Some(claim) if volume_of(&claim) == name(&volume.metadata) => {
                self.phase(&volume, "Bound", None).await
            }
            // The claim's own pass comes, since this volume appeared.
            Some(claim) if volume_of(&claim).is_empty() => Ok(()),
            // The claim has another one by now.
            Some(_) if annotation(&volume.metadata, storage::PROVISIONED_BY).is_some() => {
                self.release(&volume).await
            }
            Some(_) => {
                let mut free = (*volume).clone();
                give_back(&mut free);
                let doing = || format!("giving back volume {}", name(&volume.metadata));
                self.volumes.update(&free).await.doing(doing).map(drop)
            }
        }
    }

    /// The claim of the volume is gone. What was made for it its provisioner removes, on seeing the phase.
    async fn release(&self, volume: &PersistentVolume) -> Result<(), Error> {
        if volume_phase(volume) == "Failed" {
            return Ok(());
        }
        self.phase(volume, "Released", None).await?;
        let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
        let made = annotation(&volume.metadata, storage::PROVISIONED_BY).is_some();
        let failure = match policy {
            Some("Delete") if !made => ("VolumeFailedDelete", "no deletable volume plugin matched"),
            Some("Recycle") => ("VolumeFailedRecycle", "No recycler plugin found for the volume!"),
            _ => return Ok(()),
        };
        if is_deleting(&volume.metadata) {
            return Ok(());
        }
        self.recorder.event(&reference(volume), EventType::Warning, failure.0, failure.1);
        self.phase(volume, "Failed", Some(failure)).await
    }

    async fn phase(
        &self,
        volume: &PersistentVolume,
        phase: &str,
        failure: Option<(&str, &str)>,
    ) -> Result<(), Error> {
        if volume_phase(volume) == phase {
            return Ok(());
        }
        let (reason, message) = failure.unzip();
        let status = json!({"status": {"phase": phase, "reason": reason, "message": message,
            "lastPhaseTransitionTime": meta::now()}});
        let volume = name(&volume.metadata);
        match self.volumes.patch("", volume, Some("status"), PatchKind::Merge, &status).await {
            Err(error) if !error.is_not_found() => Err(error).doing(|| format!("phase of volume {volume}")),
            _ => Ok(()),
        }
    }
}

fn target(claim: &PersistentVolumeClaim) -> Target {
    let (ns, name) = meta::key(&claim.metadata);
    Target::Claim(ns, name)
}

fn referred(claim: &ObjectReference) -> Target {
    Target::Claim(claim.namespace.clone().unwrap_or_default(), claim.name.clone().unwrap_or_default())
}

/// The volume with a reference to the claim; `chosen` when nobody but this program has chosen it.
pub(crate) fn set_aside(
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
    chosen: bool,
) -> PersistentVolume {
    let mut reserved = volume.clone();
    reserved.spec.get_or_insert_default().claim_ref = Some(reference_to(claim));
    if chosen {
        let annotations = reserved.metadata.annotations.get_or_insert_default();
        annotations.insert(storage::BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
    }
    reserved
}

/// Takes the reference back as far as this program has set it.
fn give_back(volume: &mut PersistentVolume) {
    let chosen = volume.metadata.annotations.as_mut().and_then(|a| a.remove(storage::BOUND_BY_CONTROLLER));
    let Some(spec) = &mut volume.spec else { return };
    match (chosen, &mut spec.claim_ref) {
        (Some(_), reference) => *reference = None,
        (None, Some(reference)) => reference.uid = None,
        (None, None) => {}
    }
}

impl Reconciler for Binder {
    type Key = Target;

    fn name(&self) -> &'static str {
        "persistentvolume-binder"
    }

    fn keys(&self) -> Vec<Target> {
        let informers = &self.ctx.informers;
        let volumes =
            informers.volumes.list().into_iter().map(|v| Target::Volume(name(&v.metadata).to_owned()));
        informers.claims.list().iter().map(|claim| target(claim)).chain(volumes).collect()
    }

    async fn reconcile(&self, key: &Target) -> Result<Next, Error> {
        match key {
            Target::Claim(ns, claim) => {
                if let Some(claim) = self.ctx.informers.claims.get(ns, claim) {
                    self.claim(claim).await?;
                }
            }
            Target::Volume(volume) => {
                if let Some(volume) = self.ctx.informers.volumes.get("", volume) {
                    self.volume(volume).await?;
                }
            }
        }
        Ok(Next::Done)
    }
}
