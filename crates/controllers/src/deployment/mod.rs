//! Deployments: a ReplicaSet per revision, and the rollout from one to the next.
//!
//! ```text
//!   ReplicaSets ──sort by template──► new, old
//!        paused or resized ──► spread the replicas in proportion
//!        RollingUpdate     ──► new grows into the room, then old shrinks as availability allows
//!        Recreate          ──► old to zero, wait for the last pod, then new
//!   then: history beyond the limit goes, status and conditions are written
//! ```
//!
//! A pass does one step and ends; the change that it makes causes the next one. What is absent: any memory of a
//! rollout. Rolling back is done by `kubectl`, which writes an old template into the deployment; the ReplicaSet of
//! that template is found again and gets the next revision number.

mod pass;
mod revision;
mod rolling;
mod status;

use crate::context::Context;
use crate::driver::{Doing, Error, Next, Reconciler};
use crate::meta::{self, controller_of, controller_ref, is_deleting, name, namespace, uid};
use crate::queue::Queue;
use cumulet_api::selector::Selector;
use cumulet_cluster::informer::Key;
use cumulet_cluster::{Api, EventRecorder, PatchKind};
use k8s_openapi::Resource;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use pass::Pass;
use std::sync::Arc;

const CONTROLLER: &str = "deployment-controller";

/// The controller.
pub(crate) struct Deployments {
    ctx: Arc<Context>,
    api: Api<Deployment>,
    sets: Api<ReplicaSet>,
    recorder: EventRecorder,
}

impl Deployments {
    pub(crate) fn new(ctx: &Arc<Context>, queue: &Arc<Queue<Key>>) -> Self {
        observe(ctx, queue);
        Self {
            ctx: ctx.clone(),
            api: Api::new(ctx.cluster.clone()),
            sets: Api::new(ctx.cluster.clone()),
            recorder: ctx.recorder(CONTROLLER),
        }
    }

    /// The ReplicaSets of a deployment; `None` after adopting or releasing some, which the cache will tell.
    async fn owned_sets(
        &self,
        d: &Deployment,
        selector: &Selector,
    ) -> Result<Option<Vec<Arc<ReplicaSet>>>, Error> {
        let (mut owned, mut settled) = (Vec::new(), true);
        let deleting = is_deleting(&d.metadata);
        for rs in self.ctx.informers.replica_sets.list_namespace(namespace(&d.metadata)) {
            let matches = meta::selects(selector, &rs.metadata);
            match controller_of(&rs.metadata) {
                Some(owner) if owner.uid == uid(&d.metadata) => {
                    if matches {
                        owned.push(rs);
                    } else if !deleting && !is_deleting(&rs.metadata) {
                        self.change_owner(d, &rs, false).await?;
                        settled = false;
                    }
                }
                None if matches && !deleting && !is_deleting(&rs.metadata) => {
                    self.change_owner(d, &rs, true).await?;
                    settled = false;
                }
                _ => {}
            }
        }
        Ok(settled.then_some(owned))
    }

    async fn change_owner(&self, d: &Deployment, rs: &ReplicaSet, adopt: bool) -> Result<(), Error> {
        let (ns, what) = (namespace(&d.metadata), name(&rs.metadata));
        let doing = || format!("changing the owner of replica set {ns}/{what}");
        let fresh = self.api.get(ns, name(&d.metadata)).await.doing(doing)?;
        if uid(&fresh.metadata) != uid(&d.metadata) || is_deleting(&fresh.metadata) {
            return Ok(());
        }
        let mut owners = rs.metadata.owner_references.clone().unwrap_or_default();
        owners.retain(|o| o.uid != uid(&d.metadata));
        owners.extend(adopt.then(|| controller_ref(d)));
        let version = &rs.metadata.resource_version;
        let patch = serde_json::json!({"metadata": {"resourceVersion": version, "ownerReferences": owners}});
        self.sets.patch(ns, what, None, PatchKind::Merge, &patch).await.doing(doing)?;
        Ok(())
    }
}

impl Reconciler for Deployments {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER
    }

    fn keys(&self) -> Vec<Key> {
        self.ctx.informers.deployments.list().iter().map(|d| meta::key(&d.metadata)).collect()
    }

    async fn reconcile(&self, at: &Key) -> Result<Next, Error> {
        // Deployments are large values and several are held across awaits, hence the boxes here and below.
        let Some(d) = self.ctx.informers.deployments.get(&at.0, &at.1) else { return Ok(Next::Done) };
        let Some(selector) = d.spec.as_ref().and_then(|s| meta::workload_selector(&s.selector)) else {
            return Ok(Next::Done);
        };
        let Some(owned) = self.owned_sets(&d, &selector).await? else { return Ok(Next::Done) };
        let pass = Pass::new(self, &d, owned);
        Box::pin(pass.run(&d)).await
    }
}

fn observe(ctx: &Arc<Context>, queue: &Arc<Queue<Key>>) {
    let informers = &ctx.informers;
    let q = queue.clone();
    informers.deployments.observe(move |change| {
        if let Some(d) = change.latest() {
            q.add(meta::key(&d.metadata));
        }
    });
    let (q, deployments) = (queue.clone(), informers.deployments.clone());
    informers.replica_sets.observe(move |change| {
        for rs in [&change.old, &change.new].into_iter().flatten() {
            let ns = namespace(&rs.metadata);
            match controller_of(&rs.metadata) {
                Some(owner) if owner.kind == Deployment::KIND => q.add((ns.to_owned(), owner.name.clone())),
                Some(_) => {}
                None => {
                    let selecting = deployments.list_namespace(ns).into_iter().filter(|d| {
                        let selector = d.spec.as_ref().and_then(|s| meta::workload_selector(&s.selector));
                        selector.is_some_and(|s| meta::selects(&s, &rs.metadata))
                    });
                    selecting.for_each(|d| q.add(meta::key(&d.metadata)));
                }
            }
        }
    });
    // Recreate waits for the last old pod, of which no ReplicaSet's status tells.
    let (q, sets) = (queue.clone(), informers.replica_sets.clone());
    informers.pods.observe(move |change| {
        let Some(pod) = change.latest().filter(|pod| change.new.is_none() || crate::pods::is_finished(pod))
        else {
            return;
        };
        let ns = namespace(&pod.metadata);
        let set = controller_of(&pod.metadata).and_then(|owner| sets.get(ns, &owner.name));
        if let Some(owner) = set.as_ref().and_then(|rs| controller_of(&rs.metadata)) {
            q.add((ns.to_owned(), owner.name.clone()));
        }
    });
}
