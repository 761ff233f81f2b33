//! The garbage collector: what owner references promise.
//!
//! | an object | what happens |
//! |---|---|
//! | whose owners are all gone | is deleted |
//! | with one owner left | loses the references to those that are gone |
//! | deleted in the foreground | waits; its blocking dependents are deleted first |
//! | deleted as orphan | waits until its dependents have lost the reference to it |
//!
//! The graph may be behind, so nothing is deleted on its word alone: before an object goes, its owners are asked for
//! at the API server, by uid, and its own version is a precondition. An owner of a kind that this cloud does not
//! know counts as living.

mod graph;
mod watches;

pub(crate) use watches::Watches;

use crate::context::Context;
use crate::driver::{Doing, Error, Next, Reconciler};
use crate::meta::uid as uid_of;
use crate::queue::Queue;
use cumulet_api::Status;
use cumulet_cluster::{Cluster, DeleteOptions, ObjectRef, PatchKind, Propagation};
use futures_util::stream::{self, StreamExt};
use graph::{Graph, Leaving, Node, Owner, Uid};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use watches::{FOREGROUND, ORPHAN};

/// Calls to the API server at once, per object.
const CONCURRENCY: usize = 20;
/// When to look again at an object that waits for others, should a signal be missed.
const AGAIN: Duration = Duration::from_secs(30);

/// Starts the watches that feed the collector.
pub(crate) fn watch(ctx: &Context, shutdown: &CancellationToken) -> Watches {
    Watches::spawn(&ctx.cluster, shutdown)
}

/// The controller; its keys are uids.
pub(crate) struct GarbageCollector {
    cluster: Arc<dyn Cluster>,
    watches: Watches,
}

/// What the graph says is to be done about one object.
#[derive(Debug, PartialEq)]
enum Task {
    Nothing,
    /// Its dependents forget it, then it may go.
    Orphan(Vec<(Uid, Node)>),
    /// The dependents that have to go before it; with none it may go itself.
    Foreground {
        delete: Vec<(Uid, Node)>,
        blocked: bool,
    },
    /// Its owners have to be looked at.
    Owners {
        solid: usize,
        waiting: Vec<Uid>,
        unknown: Vec<Owner>,
        has_dependents: bool,
    },
}

fn task(graph: &Graph, uid: &str, node: &Node) -> Task {
    let dependents = || graph.dependents(uid);
    match node.leaving {
        Leaving::Orphan => Task::Orphan(dependents().into_iter().map(|(uid, node, _)| (uid, node)).collect()),
        Leaving::Foreground => {
            let dependents = dependents();
            let blocked = dependents.iter().any(|(_, _, blocks)| *blocks);
            let living = dependents.into_iter().filter(|(_, node, _)| node.leaving == Leaving::No);
            Task::Foreground { delete: living.map(|(uid, node, _)| (uid, node)).collect(), blocked }
        }
        Leaving::Background => Task::Nothing,
        Leaving::No if node.owners.is_empty() => Task::Nothing,
        Leaving::No => {
            let owners = graph.owners(node);
            if owners.waiting.is_empty() && owners.unknown.is_empty() {
                return Task::Nothing;
            }
            let has_dependents = !dependents().is_empty();
            Task::Owners {
                solid: owners.solid,
                waiting: owners.waiting,
                unknown: owners.unknown,
                has_dependents,
            }
        }
    }
}

/// An object as the API server has it, in the parts that matter here.
#[derive(Deserialize)]
struct Live {
    metadata: ObjectMeta,
}

impl GarbageCollector {
    pub(crate) fn new(ctx: &Arc<Context>, watches: &Watches, queue: &Arc<Queue<Uid>>) -> Self {
        watches.feed(queue);
        Self { cluster: ctx.cluster.clone(), watches: watches.clone() }
    }

    fn place(&self, node: &Node) -> Option<ObjectRef> {
        let resource = self.watches.resource(node.resource)?.id;
        Some(ObjectRef {
            resource,
            namespace: node.namespace.as_deref().map(str::to_owned),
            name: node.name.to_string(),
        })
    }

    /// Reads an object. `None` when it is gone or another one has its name.
    async fn live(&self, at: &ObjectRef, uid: &str) -> Result<Option<ObjectMeta>, Error> {
        match self.cluster.get(at).await {
            Ok(bytes) => {
                let live: Live = serde_json::from_slice(&bytes)
                    .map_err(|e| Error::Object(format!("{} {}: {e}", at.resource.plural, at.name)))?;
                Ok(Some(live.metadata).filter(|meta| uid_of(meta) == uid))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error).doing(|| format!("reading {} {}", at.resource.plural, at.name)),
        }
    }

    /// Changes metadata; the version that was read is a precondition.
    async fn change(&self, at: &ObjectRef, read: &ObjectMeta, mut metadata: Value) -> Result<(), Error> {
        metadata["resourceVersion"] = json!(read.resource_version);
        let patch = json!({"metadata": metadata}).to_string().into();
        gone_is_fine(self.cluster.patch(at, None, PatchKind::Merge, patch).await.map(drop))
            .doing(|| format!("changing {} {}", at.resource.plural, at.name))
    }

    async fn remove_finalizer(&self, at: &ObjectRef, uid: &str, finalizer: &str) -> Result<(), Error> {
        let Some(meta) = self.live(at, uid).await? else { return Ok(()) };
        let mut finalizers = meta.finalizers.clone().unwrap_or_default();
        let before = finalizers.len();
        finalizers.retain(|f| f != finalizer);
        if finalizers.len() == before {
            return Ok(());
        }
        self.change(at, &meta, json!({"finalizers": finalizers})).await
    }

    /// Removes the references to some owners.
    async fn drop_owners(&self, at: &ObjectRef, uid: &str, owners: &HashSet<&str>) -> Result<(), Error> {
        let Some(meta) = self.live(at, uid).await? else { return Ok(()) };
        let mut references = meta.owner_references.clone().unwrap_or_default();
        let before = references.len();
        references.retain(|r| !owners.contains(r.uid.as_str()));
        if references.len() == before {
            return Ok(());
        }
        self.change(at, &meta, json!({"ownerReferences": references})).await
    }

    async fn delete(&self, at: &ObjectRef, uid: &str, propagation: Propagation) -> Result<(), Error> {
        let Some(meta) = self.live(at, uid).await? else { return Ok(()) };
        if meta.deletion_timestamp.is_some() {
            return Ok(());
        }
        // Finalizers that are there already say how it is to go.
        let has = |name: &str| meta.finalizers.iter().flatten().any(|f| f == name);
        let propagation = match propagation {
            _ if has(ORPHAN) => Propagation::Orphan,
            _ if has(FOREGROUND) => Propagation::Foreground,
            other => other,
        };
        let options = DeleteOptions {
            uid: Some(uid.to_owned()),
            resource_version: meta.resource_version,
            propagation: Some(propagation),
            ..DeleteOptions::default()
        };
        gone_is_fine(self.cluster.delete(at, &options).await)
            .doing(|| format!("deleting {} {}", at.resource.plural, at.name))
    }

    async fn orphan(&self, at: &ObjectRef, uid: &str, dependents: &[(Uid, Node)]) -> Result<(), Error> {
        let owner = HashSet::from([uid]);
        let calls =
            dependents.iter().filter_map(|(dependent, node)| Some((dependent.clone(), self.place(node)?)));
        let calls = calls.map(|(dependent, place)| {
            let owner = &owner;
            async move { self.drop_owners(&place, &dependent, owner).await }
        });
        all(calls).await?;
        self.remove_finalizer(at, uid, ORPHAN).await
    }

    async fn foreground(&self, delete: &[(Uid, Node)]) -> Result<(), Error> {
        let calls =
            delete.iter().filter_map(|(dependent, node)| Some((dependent.clone(), self.place(node)?)));
        let calls = calls.map(|(dependent, place)| async move { self.decide(&dependent, &place).await });
        all(calls).await
    }

    /// Looks at the owners of a living object, and deletes it or drops references if they are gone.
    async fn decide(&self, uid: &str, at: &ObjectRef) -> Result<(), Error> {
        let (mut solid, waiting, unknown, has_dependents) = {
            let graph = self.watches.graph();
            let Some(node) = graph.get(uid) else { return Ok(()) };
            match task(&graph, uid, node) {
                Task::Owners { solid, waiting, unknown, has_dependents } => {
                    (solid, waiting, unknown, has_dependents)
                }
                _ => return Ok(()),
            }
        };
        let mut gone = Vec::new();
        for owner in unknown {
            if self.owner_lives(&owner, at).await? {
                solid += 1;
            } else {
                gone.push(owner.uid);
            }
        }
        if gone.is_empty() && waiting.is_empty() {
            return Ok(());
        }
        if solid > 0 {
            let lost: HashSet<&str> = gone.iter().chain(&waiting).map(|uid| &**uid).collect();
            return self.drop_owners(at, uid, &lost).await;
        }
        // An owner that waits wants to see everything below it gone as well.
        let foreground = !waiting.is_empty() && has_dependents;
        let propagation = if foreground { Propagation::Foreground } else { Propagation::Background };
        self.delete(at, uid, propagation).await
    }

    /// Asks the API server whether an owner exists.
    async fn owner_lives(&self, owner: &Owner, dependent: &ObjectRef) -> Result<bool, Error> {
        let Some(resource) = self.watches.resource_of_kind(&owner.api_version, &owner.kind) else {
            tracing::debug!(kind = %owner.kind, api_version = %owner.api_version, "owner of an unknown kind counts as living");
            return Ok(true);
        };
        if resource.namespaced && dependent.namespace.is_none() {
            // Such a reference can never be resolved; Kubernetes leaves its object alone, too.
            return Ok(true);
        }
        let namespace = dependent.namespace.clone().filter(|_| resource.namespaced);
        let at = ObjectRef { resource: resource.id, namespace, name: owner.name.to_string() };
        Ok(self.live(&at, &owner.uid).await?.is_some())
    }
}

impl Reconciler for GarbageCollector {
    type Key = Uid;

    fn name(&self) -> &'static str {
        "garbage-collector"
    }

    fn keys(&self) -> Vec<Uid> {
        self.watches.graph().candidates()
    }

    async fn reconcile(&self, uid: &Uid) -> Result<Next, Error> {
        let (node, task) = {
            let graph = self.watches.graph();
            let Some(node) = graph.get(uid) else { return Ok(Next::Done) };
            (node.clone(), task(&graph, uid, node))
        };
        let Some(at) = self.place(&node) else { return Ok(Next::Done) };
        match task {
            Task::Nothing => Ok(Next::Done),
            Task::Orphan(dependents) => self.orphan(&at, uid, &dependents).await.map(|()| Next::Done),
            Task::Foreground { blocked: false, .. } => {
                self.remove_finalizer(&at, uid, FOREGROUND).await.map(|()| Next::Done)
            }
            Task::Foreground { delete, .. } => self.foreground(&delete).await.map(|()| Next::After(AGAIN)),
            Task::Owners { .. } => self.decide(uid, &at).await.map(|()| Next::Done),
        }
    }
}

fn gone_is_fine(result: Result<(), Status>) -> Result<(), Status> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// Carries out several calls at once; the first failure is told, but all are tried.
async fn all(
    calls: impl Iterator<Item = impl Future<Output = Result<(), Error>> + Send> + Send,
) -> Result<(), Error> {
    // Collected first: the stream then does not borrow the iterator's closures across awaits.
    let calls: Vec<_> = calls.collect();
    let results: Vec<_> = stream::iter(calls).buffer_unordered(CONCURRENCY).collect().await;
    results.into_iter().collect()
}
