//! What is in use stays: claims while pods use them, volumes while claims have them.
//!
//! The API server puts a finalizer on every claim and volume; here it is taken away when a deletion was asked for and
//! nobody needs the object any more.

use super::{uses, volume_phase};
use crate::context::Context;
use crate::driver::{Doing, Error, Next, Reconciler};
use crate::meta::{self, is_deleting, name, namespace};
use crate::pods::{is_finished, node};
use crate::queue::Queue;
use cumulet_api::storage::{CLAIM_PROTECTION, VOLUME_PROTECTION};
use cumulet_cluster::informer::Key;
use cumulet_cluster::{Api, ListOptions};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::sync::Arc;

fn is_held(meta: &ObjectMeta, finalizer: &str) -> bool {
    is_deleting(meta) && meta.finalizers.iter().flatten().any(|f| f == finalizer)
}

fn release(meta: &mut ObjectMeta, finalizer: &str) {
    if let Some(finalizers) = &mut meta.finalizers {
        finalizers.retain(|f| f != finalizer);
    }
}

/// Lets claims go; keys are their namespaces and names.
pub(crate) struct ClaimProtection {
    ctx: Arc<Context>,
    claims: Api<PersistentVolumeClaim>,
    pods: Api<Pod>,
}

impl ClaimProtection {
    pub(crate) fn new(ctx: &Arc<Context>, queue: &Arc<Queue<Key>>) -> Self {
        let q = queue.clone();
        ctx.informers.claims.observe(move |change| {
            if let Some(claim) = change.new.as_ref().filter(|c| is_held(&c.metadata, CLAIM_PROTECTION)) {
                q.add(meta::key(&claim.metadata));
            }
        });
        let q = queue.clone();
        ctx.informers.pods.observe(move |change| {
            // A pod that is gone, or another in its place.
            let Some(old) = &change.old else { return };
            let gone = change
                .new
                .as_ref()
                .is_none_or(|new| new.metadata.uid != old.metadata.uid || is_finished(new));
            if gone {
                let ns = namespace(&old.metadata);
                uses(old).into_iter().for_each(|used| q.add((ns.to_owned(), used.claim)));
            }
        });
        let (claims, pods) = (Api::new(ctx.cluster.clone()), Api::new(ctx.cluster.clone()));
        Self { ctx: ctx.clone(), claims, pods }
    }
}

/// True when the pod needs the claim to stay. One without a node has not begun, and will not with a claim that is
/// going; an ended one needs its own claims no more.
fn needs(pod: &Pod, claim: &str) -> bool {
    let by = |used: &super::Use| used.claim == claim && !(used.ephemeral && is_finished(pod));
    node(pod).is_some() && uses(pod).iter().any(by)
}

impl Reconciler for ClaimProtection {
    type Key = Key;

    fn name(&self) -> &'static str {
        "persistentvolumeclaim-protection"
    }

    fn keys(&self) -> Vec<Key> {
        let claims = self.ctx.informers.claims.list();
        let held = claims.iter().filter(|claim| is_held(&claim.metadata, CLAIM_PROTECTION));
        held.map(|claim| meta::key(&claim.metadata)).collect()
    }

    async fn reconcile(&self, (ns, claim): &Key) -> Result<Next, Error> {
        let Some(object) = self.ctx.informers.claims.get(ns, claim) else { return Ok(Next::Done) };
        if !is_held(&object.metadata, CLAIM_PROTECTION) {
            return Ok(Next::Done);
        }
        let known = self.ctx.informers.pods.list_namespace(ns);
        if known.iter().any(|pod| needs(pod, claim)) {
            return Ok(Next::Done);
        }
        // The cache may be behind, and a claim that is gone does not come back.
        let options = ListOptions { namespace: Some(ns.clone()), ..ListOptions::default() };
        let (pods, _) = self.pods.list(&options).await.doing(|| format!("listing pods of {ns}"))?;
        if pods.iter().any(|pod| needs(pod, claim)) {
            return Ok(Next::Done);
        }
        let mut free = (*object).clone();
        release(&mut free.metadata, CLAIM_PROTECTION);
        match self.claims.update(&free).await {
            Err(error) if !error.is_not_found() => {
                Err(error).doing(|| format!("letting claim {ns}/{claim} go"))
            }
            _ => Ok(Next::Done),
        }
    }
}

/// Lets volumes go; keys are their names.
pub(crate) struct VolumeProtection {
    ctx: Arc<Context>,
    volumes: Api<PersistentVolume>,
}

impl VolumeProtection {
    pub(crate) fn new(ctx: &Arc<Context>, queue: &Arc<Queue<String>>) -> Self {
        let q = queue.clone();
        ctx.informers.volumes.observe(move |change| {
            if let Some(volume) = change.new.as_ref().filter(|v| is_held(&v.metadata, VOLUME_PROTECTION)) {
                q.add(name(&volume.metadata).to_owned());
            }
        });
        Self { ctx: ctx.clone(), volumes: Api::new(ctx.cluster.clone()) }
    }
}

impl Reconciler for VolumeProtection {
    type Key = String;

    fn name(&self) -> &'static str {
        "persistentvolume-protection"
    }

    fn keys(&self) -> Vec<String> {
        let volumes = self.ctx.informers.volumes.list();
        let held = volumes.iter().filter(|volume| is_held(&volume.metadata, VOLUME_PROTECTION));
        held.map(|volume| name(&volume.metadata).to_owned()).collect()
    }

    async fn reconcile(&self, volume: &String) -> Result<Next, Error> {
        let Some(object) = self.ctx.informers.volumes.get("", volume) else { return Ok(Next::Done) };
        if !is_held(&object.metadata, VOLUME_PROTECTION) || volume_phase(&object) == "Bound" {
            return Ok(Next::Done);
        }
        let mut free = (*object).clone();
        release(&mut free.metadata, VOLUME_PROTECTION);
        match self.volumes.update(&free).await {
            Err(error) if !error.is_not_found() => Err(error).doing(|| format!("letting volume {volume} go")),
            _ => Ok(Next::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn who_needs_a_claim() {
        let check = |node: Option<&str>, phase: &str, volume: Value, expected: bool| {
            let pod: Pod =
                serde_json::from_value(json!({"metadata": {"name": "p"}, "status": {"phase": phase},
                "spec": {"nodeName": node, "containers": [], "volumes": [volume]}}))
                .unwrap();
            assert_eq!(needs(&pod, "p-v"), expected, "{node:?} {phase} {volume}");
        };
        let named = json!({"name": "x", "persistentVolumeClaim": {"claimName": "p-v"}});
        let own = json!({"name": "v", "ephemeral": {}});
        check(Some("n"), "Running", named.clone(), true);
        check(Some("n"), "Succeeded", named.clone(), true);
        check(None, "Pending", named, false);
        check(Some("n"), "Running", own.clone(), true);
        check(Some("n"), "Succeeded", own, false);
        check(Some("n"), "Running", json!({"name": "v", "emptyDir": {}}), false);
    }
}
