//! What ReplicaSets and ReplicationControllers have in common: keeping a number of pods.
//!
//! ```text
//!   cache ──► claims ──► adopt / release ──► step ──► create / delete ──► status
//!                                             ▲
//!                       expectations: nothing new while the cache is behind
//! ```
//!
//! The kinds differ only in their types; [`ReplicaOwner`] is the adapter. Pods are created and deleted concurrently;
//! after a pass that could not create, the next one first tries a single pod.

mod plan;

use crate::context::Context;
use crate::driver::{Doing, Error, Next, Reconciler};
use crate::expectations::{Expectations, Outstanding};
use crate::meta::{self, controller_of, controller_ref, is_deleting, name, namespace, uid};
use crate::queue::Queue;
use cumulet_api::Status;
use cumulet_api::selector::Selector;
use cumulet_cluster::api::Kind;
use cumulet_cluster::events::reference;
use cumulet_cluster::informer::Key;
use cumulet_cluster::{Api, Change, DeleteOptions, EventRecorder, EventType, Informer, PatchKind};
use futures_util::stream::{self, StreamExt};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
pub(crate) use plan::Counts;
use plan::{Claims, Step};
use std::sync::Arc;
use std::time::Duration;

/// Calls to the API server at once, per owner.
const CONCURRENCY: usize = 50;
/// How long the cache may be behind before the API server itself is asked.
const PATIENCE: Duration = Duration::from_secs(1);

/// The status of a replica manager, whichever its kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ReplicaStatus {
    pub(crate) counts: Counts,
    pub(crate) observed_generation: Option<i64>,
    /// Message of the `ReplicaFailure` condition, and since when it holds.
    pub(crate) failure: Option<Failure>,
}

/// The `ReplicaFailure` condition.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) since: Option<Time>,
}

/// A kind that keeps a number of pods.
pub(crate) trait ReplicaOwner: Kind {
    /// Name of its controller.
    const CONTROLLER: &'static str;

    fn wanted(&self) -> i32;
    fn min_ready_seconds(&self) -> i32;
    /// `None` when it can select nothing.
    fn selector(&self) -> Option<Selector>;
    fn template(&self) -> Option<&PodTemplateSpec>;
    fn status(&self) -> ReplicaStatus;
    /// The same object with another status.
    fn with_status(&self, status: &ReplicaStatus) -> Self;
}

/// The controller of one kind of replica owner.
pub(crate) struct Replicas<K> {
    ctx: Arc<Context>,
    owners: Arc<Informer<K>>,
    owner_api: Api<K>,
    pod_api: Api<Pod>,
    expectations: Arc<Expectations>,
    recorder: EventRecorder,
}

impl<K: ReplicaOwner> Replicas<K> {
    pub(crate) fn new(ctx: &Arc<Context>, owners: &Arc<Informer<K>>, queue: &Arc<Queue<Key>>) -> Self {
        let expectations = Arc::new(Expectations::default());
        observe_owners(owners, queue.clone(), expectations.clone());
        observe_pods(ctx, owners.clone(), queue.clone(), expectations.clone());
        Self {
            owner_api: Api::new(ctx.cluster.clone()),
            pod_api: Api::new(ctx.cluster.clone()),
            recorder: ctx.recorder(K::CONTROLLER),
            ctx: ctx.clone(),
            owners: owners.clone(),
            expectations,
        }
    }

    /// True when the cache shows everything that was asked for, so that new decisions are sound.
    async fn may_decide(&self, owner: &K) -> Result<bool, Error> {
        let (ns, owner_uid) = (namespace(owner.metadata()), uid(owner.metadata()));
        let Some(outstanding) = self.expectations.outstanding(owner_uid) else { return Ok(true) };
        let pods = self.ctx.informers.pods.list_namespace(ns);
        self.settle_from_cache(owner_uid, &outstanding, &pods);
        if outstanding.since.elapsed() >= PATIENCE {
            for pod in &outstanding.creates {
                match self.pod_api.get(ns, pod).await {
                    Err(error) if error.is_not_found() => self.expectations.created(owner_uid, pod),
                    other => drop(other.doing(|| format!("looking for pod {ns}/{pod}"))?),
                }
            }
        }
        Ok(self.expectations.outstanding(owner_uid).is_none())
    }

    fn settle_from_cache(&self, owner_uid: &str, outstanding: &Outstanding, pods: &[Arc<Pod>]) {
        for created in &outstanding.creates {
            if pods.iter().any(|pod| name(&pod.metadata) == created) {
                self.expectations.created(owner_uid, created);
            }
        }
        for deleted in &outstanding.deletes {
            if !pods.iter().any(|pod| uid(&pod.metadata) == deleted && !is_deleting(&pod.metadata)) {
                self.expectations.deleted(owner_uid, deleted);
            }
        }
    }

    /// Takes orphans and lets go of what no longer matches. True when something was changed: the cache will tell.
    async fn settle_claims(&self, owner: &K, claims: &Claims) -> Result<bool, Error> {
        if claims.adopt.is_empty() && claims.release.is_empty() {
            return Ok(false);
        }
        let at = meta::key(owner.metadata());
        // The cache may not know yet that the owner is going or was replaced: adopt only for a living one.
        let fresh = self
            .owner_api
            .get(&at.0, &at.1)
            .await
            .doing(|| format!("checking {} {}/{}", K::KIND, at.0, at.1))?;
        if uid(fresh.metadata()) != uid(owner.metadata()) || is_deleting(fresh.metadata()) {
            return Ok(true);
        }
        for pod in &claims.adopt {
            let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
            owners.push(controller_ref(owner));
            self.set_owners(pod, &owners).await?;
        }
        for pod in &claims.release {
            let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
            owners.retain(|o| o.uid != uid(owner.metadata()));
            self.set_owners(pod, &owners).await?;
        }
        Ok(true)
    }

    async fn set_owners(
        &self,
        pod: &Pod,
        owners: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference],
    ) -> Result<(), Error> {
        let meta = &pod.metadata;
        let patch = serde_json::json!({"metadata": {
            "resourceVersion": meta.resource_version, "ownerReferences": owners,
        }});
        match self.pod_api.patch(namespace(meta), name(meta), None, PatchKind::Merge, &patch).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => {
                Err(error).doing(|| format!("changing the owner of pod {}/{}", namespace(meta), name(meta)))
            }
        }
    }

    /// Creates pods, concurrently. The number that was created, and the first failure.
    async fn create_pods(&self, owner: &K, count: usize) -> (usize, Option<Status>) {
        // After a failure (a quota, an admission rule) one try tells whether it still holds.
        let probe = usize::from(owner.status().failure.is_some()).min(count);
        let mut created = 0;
        for batch in [probe, count - probe] {
            let results: Vec<_> = stream::iter(0..batch)
                .map(|_| self.create_pod(owner))
                .buffer_unordered(CONCURRENCY)
                .collect()
                .await;
            let failure = results.iter().find_map(|r| r.as_ref().err().cloned());
            created += results.iter().filter(|r| r.is_ok()).count();
            if failure.is_some() {
                return (created, failure);
            }
        }
        (created, None)
    }

    async fn create_pod(&self, owner: &K) -> Result<(), Status> {
        let Some(pod) = new_pod(owner) else { return Ok(()) };
        let (pod_name, owner_uid) = (name(&pod.metadata).to_owned(), uid(owner.metadata()));
        self.expectations.expect_create(owner_uid, &pod_name);
        match self.pod_api.create(&pod).await {
            Ok(_) => {
                let message = format!("Created pod: {pod_name}");
                self.recorder.event(&reference(owner), EventType::Normal, "SuccessfulCreate", &message);
                Ok(())
            }
            Err(error) => {
                // After a time-out it may exist all the same; then the expectation stands until it is known.
                if !is_ambiguous(&error) {
                    self.expectations.created(owner_uid, &pod_name);
                }
                let message = format!("Error creating: {error}");
                self.recorder.event(&reference(owner), EventType::Warning, "FailedCreate", &message);
                Err(error)
            }
        }
    }

    async fn delete_pods(&self, owner: &K, victims: &[Arc<Pod>]) -> Option<Status> {
        let calls = victims.iter().cloned().map(|pod| async move { self.delete_pod(owner, &pod).await });
        let results = stream::iter(calls).buffer_unordered(CONCURRENCY);
        results.filter_map(|result| async { result.err() }).collect::<Vec<_>>().await.into_iter().next()
    }

    async fn delete_pod(&self, owner: &K, pod: &Pod) -> Result<(), Status> {
        let (meta, owner_uid) = (&pod.metadata, uid(owner.metadata()));
        self.expectations.expect_delete(owner_uid, uid(meta));
        let options = DeleteOptions { uid: meta.uid.clone(), ..DeleteOptions::default() };
        match self.pod_api.delete(namespace(meta), name(meta), &options).await {
            Ok(()) => {
                let message = format!("Deleted pod: {}", name(meta));
                self.recorder.event(&reference(owner), EventType::Normal, "SuccessfulDelete", &message);
                Ok(())
            }
            // Gone or replaced already: the cache will tell.
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => {
                self.expectations.deleted(owner_uid, uid(meta));
                let message = format!("Error deleting: {error}");
                self.recorder.event(&reference(owner), EventType::Warning, "FailedDelete", &message);
                Err(error)
            }
        }
    }

    /// Does one step towards the wanted number. The failure, if any.
    async fn manage(&self, owner: &K, owned: &[Arc<Pod>]) -> Option<Failure> {
        let failure = |reason: &str, error: Status| Failure {
            reason: reason.to_owned(),
            message: error.message,
            since: None,
        };
        match plan::step(owned, owner.wanted(), Timestamp::now()) {
            Step::Nothing => None,
            Step::Create(count) => {
                let (_, error) = self.create_pods(owner, count).await;
                error.map(|e| failure("FailedCreate", e))
            }
            Step::Delete(victims) => {
                self.delete_pods(owner, &victims).await.map(|e| failure("FailedDelete", e))
            }
        }
    }

    async fn write_status(&self, owner: &K, mut status: ReplicaStatus) -> Result<(), Error> {
        let before = owner.status();
        if let Some(failure) = &mut status.failure {
            // The first failure stays: a message that changed with every try would cause a write, and with it a
            // pass, every time.
            *failure =
                before.failure.clone().unwrap_or(Failure { since: Some(meta::now()), ..failure.clone() });
        }
        if status == before {
            return Ok(());
        }
        let at = meta::key(owner.metadata());
        match self.owner_api.update_status(&owner.with_status(&status)).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error).doing(|| format!("status of {} {}/{}", K::KIND, at.0, at.1)),
        }
    }
}

impl<K: ReplicaOwner> Reconciler for Replicas<K> {
    type Key = Key;

    fn name(&self) -> &'static str {
        K::CONTROLLER
    }

    fn keys(&self) -> Vec<Key> {
        self.owners.list().iter().map(|owner| meta::key(owner.metadata())).collect()
    }

    async fn reconcile(&self, at: &Key) -> Result<Next, Error> {
        let Some(owner) = self.owners.get(&at.0, &at.1) else { return Ok(Next::Done) };
        let Some(selector) = owner.selector() else { return Ok(Next::Done) };
        // Before the pods are read: what is settled from here on is in what is read below.
        let may_decide = self.may_decide(&owner).await?;
        let (owner_meta, deleting) = (owner.metadata(), is_deleting(owner.metadata()));
        let pods = self.ctx.informers.pods.list_namespace(&at.0);
        let claims = plan::claims(pods, uid(owner_meta), &selector, deleting);
        let claiming = self.settle_claims(&owner, &claims).await?;

        let mut failure = owner.status().failure;
        if may_decide && !claiming && !deleting {
            failure = self.manage(&owner, &claims.owned).await;
        }
        let min_ready = Duration::from_secs(u64::try_from(owner.min_ready_seconds()).unwrap_or(0));
        let template_labels = owner.template().and_then(|t| t.metadata.as_ref()?.labels.as_ref());
        // Pods that were told to go do not count, even while the cache still shows them as living: a rollout builds
        // on these numbers.
        let outstanding = self.expectations.outstanding(uid(owner_meta));
        let mut staying = claims.owned;
        staying.retain(|pod| !outstanding.as_ref().is_some_and(|o| o.deletes.contains(uid(&pod.metadata))));
        let (counts, next) = plan::counts(&staying, template_labels, min_ready, Timestamp::now());
        let failed = failure.clone();
        let status = ReplicaStatus { counts, observed_generation: owner_meta.generation, failure };
        self.write_status(&owner, status).await?;
        if let Some(failure) = failed.filter(|_| may_decide && !claiming) {
            return Err(Error::Object(format!("{} {}/{}: {}", K::KIND, at.0, at.1, failure.message)));
        }
        let behind =
            self.expectations.outstanding(uid(owner_meta)).map_or(Next::Done, |_| Next::After(PATIENCE));
        Ok(next.map_or(Next::Done, Next::After).sooner(behind))
    }
}

fn is_ambiguous(error: &Status) -> bool {
    use cumulet_api::StatusReason::{InternalError, ServerTimeout, Timeout};
    matches!(error.reason, Timeout | ServerTimeout | InternalError)
}

/// A pod made from the owner's template.
fn new_pod<K: ReplicaOwner>(owner: &K) -> Option<Pod> {
    let (template, owner_meta) = (owner.template()?, owner.metadata());
    let from = template.metadata.clone().unwrap_or_default();
    let base = format!("{}-", name(owner_meta));
    let metadata = ObjectMeta {
        name: Some(meta::random_name(&base)),
        generate_name: Some(base),
        namespace: owner_meta.namespace.clone(),
        labels: from.labels,
        annotations: from.annotations,
        finalizers: from.finalizers,
        owner_references: Some(vec![controller_ref(owner)]),
        ..ObjectMeta::default()
    };
    Some(Pod { metadata, spec: template.spec.clone(), status: None })
}

fn observe_owners<K: ReplicaOwner>(
    owners: &Informer<K>,
    queue: Arc<Queue<Key>>,
    expectations: Arc<Expectations>,
) {
    owners.observe(move |change| {
        if let (Some(old), None) = (&change.old, &change.new) {
            expectations.forget(uid(old.metadata()));
        }
        if let Some(owner) = change.latest() {
            queue.add(meta::key(owner.metadata()));
        }
    });
}

fn observe_pods<K: ReplicaOwner>(
    ctx: &Context,
    owners: Arc<Informer<K>>,
    queue: Arc<Queue<Key>>,
    expectations: Arc<Expectations>,
) {
    ctx.informers.pods.observe(move |change: &Change<Pod>| {
        for pod in [&change.old, &change.new].into_iter().flatten() {
            let meta = &pod.metadata;
            if let Some(owner) =
                controller_of(meta).filter(|o| o.kind == K::KIND && o.api_version == K::API_VERSION)
            {
                expectations.created(&owner.uid, name(meta));
                if is_deleting(meta) || change.new.is_none() {
                    expectations.deleted(&owner.uid, uid(meta));
                }
                queue.add((namespace(meta).to_owned(), owner.name.clone()));
            } else if controller_of(meta).is_none() {
                // An orphan: whoever selects it may adopt it.
                for owner in owners.list_namespace(namespace(meta)) {
                    if owner.selector().is_some_and(|s| meta::selects(&s, meta)) {
                        queue.add(meta::key(owner.metadata()));
                    }
                }
            }
        }
    });
}
