//! One pass over one deployment: what it does to the ReplicaSets, and the status that it writes.

use super::Deployments;
use super::revision::{self, Sets};
use super::rolling::{self, Goal, Size};
use super::status;
use crate::driver::{Doing, Error, Next};
use crate::meta::{self, annotation, controller_of, is_deleting, name, namespace, uid};
use cumulet_cluster::events::reference;
use cumulet_cluster::{DeleteOptions, EventType, ListOptions, PatchKind};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use std::sync::Arc;
use std::time::Duration;

/// One pass over one deployment: what it looks at, and the status that it will write.
pub(super) struct Pass<'a> {
    of: &'a Deployments,
    /// As the cache has it, but for conditions that this pass sets.
    deployment: Deployment,
    goal: Goal,
    sets: Sets,
}

/// One step of a rolling update.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    Create,
    Resize(Vec<rolling::Resize>),
}

impl<'a> Pass<'a> {
    /// A pass over a deployment with the ReplicaSets that it owns.
    pub(super) fn new(of: &'a Deployments, cached: &Deployment, owned: Vec<Arc<ReplicaSet>>) -> Self {
        let (goal, sets) = (Goal::of(cached), Sets::sort(cached, owned));
        Self { of, goal, sets, deployment: with_pause_condition(cached) }
    }
}

impl Pass<'_> {
    /// Does one step.
    pub(super) async fn run(mut self, cached: &Deployment) -> Result<Next, Error> {
        let paused = is_paused(cached);
        if is_deleting(&cached.metadata) {
            return self.write_counts(cached).await;
        }
        let resized = self.is_resized();
        if paused || resized {
            if resized {
                self.reread().await?;
            }
            self.sync_new(false).await?;
            self.spread().await?;
            if paused {
                self.clean_up().await?;
            }
            return self.write_counts(cached).await;
        }
        if self.goal.recreate {
            Box::pin(self.recreate(cached)).await
        } else {
            Box::pin(self.roll(cached)).await
        }
    }

    /// True when `replicas` of the deployment changed since its ReplicaSets were last scaled.
    fn is_resized(&self) -> bool {
        let all = self.sets.all();
        let mut active = all.iter().filter(|rs| wanted(rs) > 0);
        active.any(|rs| {
            revision::desired_replicas_annotation(&rs.metadata).is_some_and(|n| n != self.goal.replicas)
        })
    }

    /// What a rolling update does next.
    fn step(&self) -> Step {
        let Some(new) = &self.sets.new else { return Step::Create };
        let total = self.sets.all().iter().map(|rs| wanted(rs)).sum();
        let grown = rolling::new_size(&self.goal, wanted(new), total);
        if grown != wanted(new) {
            return Step::Resize(vec![(name(&new.metadata).to_owned(), grown)]);
        }
        let steps = rolling::shrink_old(&self.goal, &Size::of(new), &Size::all(&self.sets.old));
        if steps.is_empty() { Step::Nothing } else { Step::Resize(steps) }
    }

    async fn roll(mut self, cached: &Deployment) -> Result<Next, Error> {
        if self.step() != Step::Nothing {
            self.reread().await?;
        }
        match self.step() {
            Step::Nothing => {
                self.sync_new(false).await?;
                return self.finish(cached).await;
            }
            Step::Create => drop(self.sync_new(true).await?),
            Step::Resize(steps) => {
                self.sync_new(false).await?;
                self.resize_all(&steps).await?;
            }
        }
        self.write_rollout(cached).await
    }

    /// Reads the ReplicaSets from the API server. The cache may be behind this controller's own last writes, and miss
    /// a set that it has just made; sums over several sets made from it would let a rollout that is overtaken by the
    /// next one step over its bounds. At rest nothing is read.
    async fn reread(&mut self) -> Result<(), Error> {
        let ns = namespace(&self.deployment.metadata);
        let options = ListOptions { namespace: Some(ns.to_owned()), ..ListOptions::default() };
        let (listed, _) =
            self.of.sets.list(&options).await.doing(|| format!("listing replica sets of {ns}"))?;
        let owner = uid(&self.deployment.metadata);
        let owned =
            listed.into_iter().filter(|rs| controller_of(&rs.metadata).is_some_and(|o| o.uid == owner));
        self.sets = Sets::sort(&self.deployment, owned.map(Arc::new).collect());
        Ok(())
    }

    async fn recreate(mut self, cached: &Deployment) -> Result<Next, Error> {
        self.sync_new(false).await?;
        let steps: Vec<_> = self
            .sets
            .old
            .iter()
            .filter(|rs| wanted(rs) > 0)
            .map(|rs| (name(&rs.metadata).to_owned(), 0))
            .collect();
        if self.resize_all(&steps).await? || self.old_pods_live() {
            return self.write_rollout(cached).await;
        }
        if !self.sync_new(true).await? {
            return self.write_rollout(cached).await;
        }
        if let Some(new) = self.sets.new.clone() {
            self.resize(&new, self.goal.replicas).await?;
        }
        self.finish(cached).await
    }

    /// True while a pod of an old ReplicaSet has not ended.
    fn old_pods_live(&self) -> bool {
        let pods = self.of.ctx.informers.pods.list_namespace(namespace(&self.deployment.metadata));
        pods.iter().filter(|pod| !crate::pods::is_finished(pod)).any(|pod| {
            let owner = controller_of(&pod.metadata).map(|o| o.uid.as_str());
            self.sets.old.iter().any(|rs| owner == Some(uid(&rs.metadata)))
        })
    }

    async fn finish(self, cached: &Deployment) -> Result<Next, Error> {
        let all = self.sets.all();
        let status =
            status::counted(&self.deployment, &self.goal, self.sets.new.as_deref(), &all, &meta::now());
        if status::is_complete(&self.deployment, &self.goal, &status) {
            self.clean_up().await?;
        }
        self.write_rollout(cached).await
    }

    /// Brings the ReplicaSet of the present template up to date, creating it if wanted. False when the pass must
    /// end: the name is taken by something else.
    async fn sync_new(&mut self, create: bool) -> Result<bool, Error> {
        let next = self.sets.next_revision();
        match self.sets.new.clone() {
            Some(known) => self.refresh_new(&known, next).await?,
            None if create => {
                if !self.create_new(next).await? {
                    return Ok(false);
                }
            }
            None => return Ok(true),
        }
        self.sync_revision().await?;
        Ok(true)
    }

    async fn refresh_new(&mut self, known: &Arc<ReplicaSet>, next: i64) -> Result<(), Error> {
        let mut rs = (**known).clone();
        revision::annotate_new(&self.deployment, &mut rs.metadata, next);
        let min_ready = self.deployment.spec.as_ref().and_then(|s| s.min_ready_seconds);
        if let Some(spec) =
            rs.spec.as_mut().filter(|s| s.min_ready_seconds.unwrap_or(0) != min_ready.unwrap_or(0))
        {
            spec.min_ready_seconds = min_ready;
        }
        if rs != **known {
            let what = || format!("updating replica set {}", name(&known.metadata));
            self.sets.new = Some(Arc::new(self.of.sets.update(&rs).await.doing(what)?));
        }
        if status::deadline(&self.deployment).is_some() {
            let message = format!("Found new replica set \"{}\"", name(&known.metadata));
            self.begin_progress("FoundNewReplicaSet", message);
        }
        Ok(())
    }

    /// Sets the condition of a rollout that begins, if there is none yet.
    fn begin_progress(&mut self, reason: &str, message: String) {
        let status = self.deployment.status.get_or_insert_default();
        if status::find(status, status::PROGRESSING).is_none() {
            let condition = status::condition(status::PROGRESSING, true, reason, message, &meta::now());
            status::set(status, condition);
        }
    }

    async fn create_new(&mut self, next: i64) -> Result<bool, Error> {
        let total = self.sets.old.iter().map(|rs| wanted(rs)).sum();
        let replicas = rolling::new_size(&self.goal, 0, total);
        let rs = revision::new_replica_set(&self.deployment, replicas, self.goal.ceiling(), next);
        let (ns, set_name) = (namespace(&rs.metadata).to_owned(), name(&rs.metadata).to_owned());
        match self.of.sets.create(&rs).await {
            Ok(created) => {
                if replicas > 0 {
                    self.event(&format!("Scaled up replica set {set_name} from 0 to {replicas}"));
                }
                if status::deadline(&self.deployment).is_some() {
                    let message = format!("Created new replica set \"{set_name}\"");
                    let condition = status::condition(
                        status::PROGRESSING,
                        true,
                        "NewReplicaSetCreated",
                        message,
                        &meta::now(),
                    );
                    status::set(self.deployment.status.get_or_insert_default(), condition);
                }
                self.sets.new = Some(Arc::new(created));
                Ok(true)
            }
            Err(error) if error.is_already_exists() => {
                let found = self
                    .of
                    .sets
                    .get(&ns, &set_name)
                    .await
                    .doing(|| format!("replica set {ns}/{set_name}"))?;
                let ours =
                    controller_of(&found.metadata).is_some_and(|o| o.uid == uid(&self.deployment.metadata));
                if ours && revision::is_of_template(&found, &revision::template(&self.deployment)) {
                    // The cache was behind.
                    self.sets.new = Some(Arc::new(found));
                    return Ok(true);
                }
                let status = self.deployment.status.get_or_insert_default();
                status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
                Ok(false)
            }
            Err(error) => {
                let message = format!("Failed to create new replica set \"{set_name}\": {error}");
                let condition = status::condition(
                    status::PROGRESSING,
                    false,
                    "ReplicaSetCreateError",
                    message,
                    &meta::now(),
                );
                let mut failed = self.deployment.clone();
                let status = failed.status.get_or_insert_default();
                let before = status.clone();
                status::set(status, condition);
                if *status != before && status::deadline(&self.deployment).is_some() {
                    // The failure of the creation is the one to report.
                    let _ = self.of.api.update_status(&failed).await;
                }
                Err(error).doing(|| format!("creating replica set {ns}/{set_name}"))
            }
        }
    }

    /// Hands the new ReplicaSet's revision number on to the deployment.
    async fn sync_revision(&mut self) -> Result<(), Error> {
        let Some(number) = self.sets.new.as_ref().and_then(|rs| annotation(&rs.metadata, revision::REVISION))
        else {
            return Ok(());
        };
        if annotation(&self.deployment.metadata, revision::REVISION) == Some(number) {
            return Ok(());
        }
        let patch = serde_json::json!({"metadata": {"annotations": {revision::REVISION: number}}});
        let (ns, name) = meta::key(&self.deployment.metadata);
        let patched = self.of.api.patch(&ns, &name, None, PatchKind::Merge, &patch).await;
        let patched = patched.doing(|| format!("revision of deployment {ns}/{name}"))?;
        // The status written later in this pass must not conflict with this pass' own patch.
        if patched.spec == self.deployment.spec {
            self.deployment.metadata = patched.metadata;
        }
        Ok(())
    }

    /// Spreads the deployment's replicas over its ReplicaSets after a resize.
    async fn spread(&mut self) -> Result<(), Error> {
        let all = self.sets.all();
        let active: Vec<_> = all.iter().filter(|rs| wanted(rs) > 0).cloned().collect();
        let only = match active.as_slice() {
            [] => self.sets.new.clone().or_else(|| self.sets.old.last().cloned()),
            [one] => Some(one.clone()),
            _ => None,
        };
        if let Some(rs) = only {
            self.resize(&rs, self.goal.replicas).await?;
            return Ok(());
        }
        if let Some(new) = self.sets.new.clone().filter(|rs| self.is_saturated(rs)) {
            let old: Vec<_> = active.iter().filter(|rs| rs.metadata.uid != new.metadata.uid).collect();
            let steps: Vec<_> = old.iter().map(|rs| (name(&rs.metadata).to_owned(), 0)).collect();
            self.resize_all(&steps).await?;
            return Ok(());
        }
        if !self.goal.recreate {
            let replicas = self.deployment.status.as_ref().and_then(|s| s.replicas).unwrap_or(0);
            let steps = rolling::proportional(&self.goal, replicas, &Size::all(&active));
            for rs in &active {
                let size =
                    steps.iter().find(|(n, _)| *n == name(&rs.metadata)).map_or(wanted(rs), |(_, n)| *n);
                self.resize(rs, size).await?;
            }
        }
        Ok(())
    }

    /// True when the set has all replicas of the deployment, and they are available.
    fn is_saturated(&self, rs: &ReplicaSet) -> bool {
        let available = rs.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0);
        let desired = revision::desired_replicas_annotation(&rs.metadata);
        wanted(rs) == self.goal.replicas
            && desired == Some(self.goal.replicas)
            && available == self.goal.replicas
    }

    async fn resize_all(&mut self, steps: &[rolling::Resize]) -> Result<bool, Error> {
        let mut changed = false;
        for (set_name, replicas) in steps {
            let all = self.sets.all();
            if let Some(rs) = all.iter().find(|rs| name(&rs.metadata) == set_name) {
                changed |= self.resize(rs, *replicas).await?;
            }
        }
        Ok(changed)
    }

    /// Gives a ReplicaSet a number of replicas. True when that is another one than before.
    async fn resize(&mut self, rs: &Arc<ReplicaSet>, replicas: i32) -> Result<bool, Error> {
        let before = wanted(rs);
        let mut changed = (**rs).clone();
        changed.spec.get_or_insert_default().replicas = Some(replicas);
        revision::annotate_scale(&mut changed.metadata, self.goal.replicas, self.goal.ceiling());
        let annotations_only = before == replicas;
        // Annotations alone are worth a write only where the next pass looks at them.
        if changed == **rs || (annotations_only && before == 0) {
            return Ok(false);
        }
        let what = || format!("scaling replica set {}", name(&rs.metadata));
        let updated = Arc::new(self.of.sets.update(&changed).await.doing(what)?);
        for slot in self.sets.old.iter_mut().chain(&mut self.sets.new) {
            if slot.metadata.uid == updated.metadata.uid {
                *slot = updated.clone();
            }
        }
        if annotations_only {
            return Ok(false);
        }
        let direction = if replicas > before { "up" } else { "down" };
        self.event(&format!(
            "Scaled {direction} replica set {} from {before} to {replicas}",
            name(&rs.metadata)
        ));
        Ok(true)
    }

    async fn clean_up(&self) -> Result<(), Error> {
        let limit = self.deployment.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10);
        for rs in self.sets.expired(limit) {
            let options = DeleteOptions { uid: rs.metadata.uid.clone(), ..DeleteOptions::default() };
            match self.of.sets.delete(namespace(&rs.metadata), name(&rs.metadata), &options).await {
                Err(error) if !error.is_not_found() => {
                    return Err(error).doing(|| format!("deleting old replica set {}", name(&rs.metadata)));
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn write_counts(self, cached: &Deployment) -> Result<Next, Error> {
        let all = self.sets.all();
        let status =
            status::counted(&self.deployment, &self.goal, self.sets.new.as_deref(), &all, &meta::now());
        self.write(cached, status, None).await
    }

    async fn write_rollout(self, cached: &Deployment) -> Result<Next, Error> {
        let all = self.sets.all();
        let (status, again) =
            status::rollout(&self.deployment, &self.goal, self.sets.new.as_deref(), &all, &meta::now());
        self.write(cached, status, again).await
    }

    async fn write(
        mut self,
        cached: &Deployment,
        status: DeploymentStatus,
        again: Option<Duration>,
    ) -> Result<Next, Error> {
        let next = again.map_or(Next::Done, Next::After);
        if cached.status.as_ref() == Some(&status) {
            return Ok(next);
        }
        self.deployment.status = Some(status);
        let (ns, name) = meta::key(&cached.metadata);
        match self.of.api.update_status(&self.deployment).await {
            Err(error) if !error.is_not_found() => {
                Err(error).doing(|| format!("status of deployment {ns}/{name}"))
            }
            _ => Ok(next),
        }
    }

    fn event(&self, message: &str) {
        let object = reference(&self.deployment);
        self.of.recorder.event(&object, EventType::Normal, "ScalingReplicaSet", message);
    }
}

fn wanted(rs: &ReplicaSet) -> i32 {
    rs.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

fn is_paused(d: &Deployment) -> bool {
    d.spec.as_ref().and_then(|s| s.paused) == Some(true)
}

/// The deployment with a `Progressing` condition that tells of a pause that began or ended.
fn with_pause_condition(d: &Deployment) -> Deployment {
    let mut d = d.clone();
    if status::deadline(&d).is_none() {
        return d;
    }
    let paused = is_paused(&d);
    let status = d.status.get_or_insert_default();
    let reason = status::find(status, status::PROGRESSING).and_then(|c| c.reason.clone());
    let (reason, message) = match (paused, reason.as_deref()) {
        (true, Some("DeploymentPaused" | "ProgressDeadlineExceeded")) => return d,
        (true, _) => ("DeploymentPaused", "Deployment is paused"),
        (false, Some("DeploymentPaused")) => ("DeploymentResumed", "Deployment is resumed"),
        (false, _) => return d,
    };
    let mut condition =
        status::condition(status::PROGRESSING, false, reason, message.to_owned(), &meta::now());
    condition.status = "Unknown".to_owned();
    status::set(status, condition);
    d
}
