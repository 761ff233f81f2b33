//! Claims of pods' own volumes (`ephemeral.volumeClaimTemplate`): made for the pod, owned by it, gone with it.

use super::is_owned_by;
use crate::context::Context;
use crate::driver::{Doing, Error, Next, Reconciler};
use crate::meta::{self, controller_ref, is_deleting, name, namespace};
use crate::pods::is_finished;
use crate::queue::Queue;
use cumulet_api::storage;
use cumulet_cluster::events::reference;
use cumulet_cluster::informer::Key;
use cumulet_cluster::{Api, EventRecorder, EventType};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimTemplate, Pod, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::sync::Arc;

/// The controller; its keys are namespaces and names of pods.
pub(crate) struct EphemeralClaims {
    ctx: Arc<Context>,
    claims: Api<PersistentVolumeClaim>,
    recorder: EventRecorder,
}

impl EphemeralClaims {
    pub(crate) fn new(ctx: &Arc<Context>, queue: &Arc<Queue<Key>>) -> Self {
        let q = queue.clone();
        ctx.informers.pods.observe(move |change| {
            if let (None, Some(pod)) = (&change.old, &change.new)
                && templates(pod).next().is_some()
            {
                q.add(meta::key(&pod.metadata));
            }
        });
        let q = queue.clone();
        ctx.informers.claims.observe(move |change| {
            // A claim that was in the way, or was deleted too early.
            let (Some(old), None) = (&change.old, &change.new) else { return };
            if let Some(owner) = meta::controller_of(&old.metadata).filter(|owner| owner.kind == "Pod") {
                q.add((namespace(&old.metadata).to_owned(), owner.name.clone()));
            }
        });
        let recorder = ctx.recorder("ephemeral_volume");
        Self { ctx: ctx.clone(), claims: Api::new(ctx.cluster.clone()), recorder }
    }
}

fn templates(pod: &Pod) -> impl Iterator<Item = (&Volume, &PersistentVolumeClaimTemplate)> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.filter_map(|v| Some((v, v.ephemeral.as_ref()?.volume_claim_template.as_ref()?)))
}

/// The claim of a pod's volume.
fn claim(pod: &Pod, volume: &Volume, template: &PersistentVolumeClaimTemplate) -> PersistentVolumeClaim {
    let given = template.metadata.clone().unwrap_or_default();
    let metadata = ObjectMeta {
        name: Some(storage::ephemeral_claim(name(&pod.metadata), &volume.name)),
        namespace: pod.metadata.namespace.clone(),
        labels: given.labels,
        annotations: given.annotations,
        owner_references: Some(vec![controller_ref(pod)]),
        ..ObjectMeta::default()
    };
    PersistentVolumeClaim { metadata, spec: Some(template.spec.clone()), status: None }
}

impl Reconciler for EphemeralClaims {
    type Key = Key;

    fn name(&self) -> &'static str {
        "ephemeral-volume"
    }

    fn keys(&self) -> Vec<Key> {
        let pods = self.ctx.informers.pods.list();
        pods.iter()
            .filter(|pod| templates(pod).next().is_some())
            .map(|pod| meta::key(&pod.metadata))
            .collect()
    }

    async fn reconcile(&self, (ns, pod_name): &Key) -> Result<Next, Error> {
        let pod = self.ctx.informers.pods.get(ns, pod_name);
        let Some(pod) = pod.filter(|pod| !is_deleting(&pod.metadata) && !is_finished(pod)) else {
            return Ok(Next::Done);
        };
        for (volume, template) in templates(&pod) {
            let wanted = claim(&pod, volume, template);
            let claim_name = name(&wanted.metadata);
            if let Some(known) = self.ctx.informers.claims.get(ns, claim_name) {
                if !is_owned_by(&known.metadata, &pod) {
                    let message = format!(
                        "PVC \"{ns}/{claim_name}\" was not created for pod \"{ns}/{pod_name}\" (pod is not owner)"
                    );
                    self.recorder.event(
                        &reference(&*pod),
                        EventType::Warning,
                        "EphemeralVolumeClaimConflict",
                        &message,
                    );
                }
                continue;
            }
            match self.claims.create(&wanted).await {
                Err(error) if !error.is_already_exists() => {
                    let message =
                        format!("ephemeral volume {}: create PVC {claim_name}: {error}", volume.name);
                    self.recorder.event(
                        &reference(&*pod),
                        EventType::Warning,
                        "EphemeralVolumeCreateFailed",
                        &message,
                    );
                    return Err(error).doing(|| format!("creating claim {ns}/{claim_name}"));
                }
                _ => {}
            }
        }
        Ok(Next::Done)
    }
}
