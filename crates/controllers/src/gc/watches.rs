//! Keeps the graph current: one watch per resource, of which only metadata is decoded.
//!
//! New resources may appear while the program runs; they are looked for now and then.

use crate::gc::graph::{Graph, Leaving, Node, Owner, Uid};
use crate::queue::Queue;
use bytes::Bytes;
use cumulet_api::Status;
use cumulet_cluster::access::ResourceInfo;
use cumulet_cluster::{Cluster, ListOptions, WatchItem};
use futures_util::StreamExt;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Pause before a failed list is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// How often is looked for new resources, as in Kubernetes.
const DISCOVERY: Duration = Duration::from_secs(30);
/// Finalizer of an object that waits for its dependents.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an object that waits until its dependents have forgotten it.
pub(crate) const ORPHAN: &str = "orphan";

/// The graph and its watches. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Watches {
    shared: Arc<Shared>,
}

struct Shared {
    graph: Mutex<Graph>,
    /// Resources by index; they are only added.
    resources: Mutex<Vec<ResourceInfo>>,
    queue: Mutex<Option<Arc<Queue<Uid>>>>,
    /// How many of the resources known at the start have not been listed yet.
    unlisted: watch::Sender<usize>,
}

/// The metadata that the graph is made of, borrowed from the object's text where possible.
#[derive(Deserialize)]
struct Partial<'a> {
    #[serde(borrow)]
    metadata: Meta<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta<'a> {
    #[serde(borrow)]
    uid: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    namespace: Option<Cow<'a, str>>,
    #[serde(borrow)]
    deletion_timestamp: Option<Cow<'a, str>>,
    #[serde(default)]
    finalizers: Option<Vec<String>>,
    #[serde(default)]
    owner_references: Option<Vec<Reference>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    api_version: Arc<str>,
    kind: Arc<str>,
    name: Box<str>,
    uid: Arc<str>,
    #[serde(default)]
    block_owner_deletion: Option<bool>,
}

/// Reads an object's node. `None` for what is no object.
pub(crate) fn node(resource: u16, bytes: &Bytes) -> Option<(Uid, Node)> {
    let meta = serde_json::from_slice::<Partial<'_>>(bytes).ok()?.metadata;
    let has = |name: &str| meta.finalizers.iter().flatten().any(|f| f == name);
    let leaving = match meta.deletion_timestamp {
        None => Leaving::No,
        Some(_) if has(ORPHAN) => Leaving::Orphan,
        Some(_) if has(FOREGROUND) => Leaving::Foreground,
        Some(_) => Leaving::Background,
    };
    let owners = meta.owner_references.into_iter().flatten().map(|r| Owner {
        uid: r.uid,
        api_version: r.api_version,
        kind: r.kind,
        name: r.name,
        blocks: r.block_owner_deletion == Some(true),
    });
    let node = Node {
        resource,
        namespace: meta.namespace.map(|ns| ns.into()),
        name: meta.name.into(),
        owners: owners.collect(),
        leaving,
    };
    Some((meta.uid.into(), node))
}

impl Watches {
    /// Starts the watches of all resources; they run until `shutdown`.
    pub(crate) fn spawn(cluster: &Arc<dyn Cluster>, shutdown: &CancellationToken) -> Self {
        let watches = Self {
            shared: Arc::new(Shared {
                graph: Mutex::new(Graph::default()),
                resources: Mutex::new(Vec::new()),
                queue: Mutex::new(None),
                unlisted: watch::Sender::new(0),
            }),
        };
        watches.discover(cluster, shutdown, true);
        let (again, cluster, shutdown) = (watches.clone(), cluster.clone(), shutdown.clone());
        // Ends with the shutdown token; it only starts watches.
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(DISCOVERY) => again.discover(&cluster, &shutdown, false),
                    () = shutdown.cancelled() => return,
                }
            }
        });
        watches
    }

    /// Sends everything that has to be looked at to this queue from now on.
    pub(crate) fn feed(&self, queue: &Arc<Queue<Uid>>) {
        let graph = self.graph();
        graph.candidates().into_iter().for_each(|uid| queue.add(uid));
        *self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner) = Some(queue.clone());
    }

    /// Waits until the resources known at the start have been listed.
    pub(crate) async fn wait_synced(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.shared.unlisted.subscribe().wait_for(|n| *n == 0).await;
    }

    /// The graph. Never held across an await: the guard is not `Send`.
    pub(crate) fn graph(&self) -> MutexGuard<'_, Graph> {
        self.shared.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A resource by its index.
    pub(crate) fn resource(&self, index: u16) -> Option<ResourceInfo> {
        self.resources().get(usize::from(index)).cloned()
    }

    /// A resource by what owner references say.
    pub(crate) fn resource_of_kind(&self, api_version: &str, kind: &str) -> Option<ResourceInfo> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let resources = self.resources();
        // Another version of the same group names the same objects.
        resources.iter().find(|r| r.kind == kind && r.id.group == group).cloned()
    }

    fn resources(&self) -> MutexGuard<'_, Vec<ResourceInfo>> {
        self.shared.resources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn discover(&self, cluster: &Arc<dyn Cluster>, shutdown: &CancellationToken, first: bool) {
        let mut known = self.resources();
        // Events own nothing and nobody owns them; they would only cost.
        let offered = cluster.resources().into_iter().filter(|r| r.id.plural != "events");
        for resource in offered.filter(|r| !known.iter().any(|k| k.id == r.id)).collect::<Vec<_>>() {
            let Ok(index) = u16::try_from(known.len()) else { return };
            known.push(resource.clone());
            if first {
                self.shared.unlisted.send_modify(|n| *n += 1);
            }
            let (this, cluster, shutdown) = (self.clone(), cluster.clone(), shutdown.clone());
            // Ends with the shutdown token; the graph is only changed between awaits.
            tokio::spawn(async move {
                tokio::select! {
                    () = this.run(&*cluster, index, &resource, first) => {}
                    () = shutdown.cancelled() => {}
                }
            });
        }
    }

    async fn run(&self, cluster: &dyn Cluster, index: u16, resource: &ResourceInfo, mut first: bool) {
        loop {
            if let Err(error) = self.list_and_watch(cluster, index, resource, &mut first).await {
                tracing::debug!(resource = %resource.id.plural, %error, "metadata watch ended; listing again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    async fn list_and_watch(
        &self,
        cluster: &dyn Cluster,
        index: u16,
        resource: &ResourceInfo,
        first: &mut bool,
    ) -> Result<(), Status> {
        let options = ListOptions::default();
        let list = cluster.list(&resource.id, &options).await?;
        self.replace(index, &list.items);
        if std::mem::take(first) {
            self.shared.unlisted.send_modify(|n| *n -= 1);
        }
        let revision = list.revision;
        drop(list);
        let mut events = cluster.watch(&resource.id, &options, revision).await?;
        while let Some(event) = events.next().await {
            match event? {
                WatchItem::Added(bytes) | WatchItem::Modified(bytes) => {
                    if let Some((uid, node)) = node(index, &bytes) {
                        let affected = self.graph().upsert(&uid, node);
                        self.signal(affected);
                    }
                }
                WatchItem::Deleted(bytes) => {
                    if let Some((uid, _)) = node(index, &bytes) {
                        let affected = self.graph().remove(&uid);
                        self.signal(affected);
                    }
                }
                WatchItem::Bookmark(_) => {}
            }
        }
        Ok(())
    }

    /// Makes the graph equal to a fresh list of one resource.
    fn replace(&self, index: u16, items: &[Bytes]) {
        let nodes: Vec<_> = items.iter().filter_map(|bytes| node(index, bytes)).collect();
        let present: HashSet<&str> = nodes.iter().map(|(uid, _)| &**uid).collect();
        let mut graph = self.graph();
        let mut affected = Vec::new();
        for uid in graph.of_resource(index).into_iter().filter(|uid| !present.contains(&**uid)) {
            affected.extend(graph.remove(&uid));
        }
        drop(present);
        for (uid, node) in nodes {
            affected.extend(graph.upsert(&uid, node));
        }
        drop(graph);
        self.signal(affected);
    }

    fn signal(&self, affected: Vec<Uid>) {
        let queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = &*queue {
            affected.into_iter().for_each(|uid| queue.add(uid));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn metadata_is_read_from_the_text() {
        for (metadata, leaving, owners) in [
            (json!({}), Leaving::No, 0),
            (json!({"finalizers": [ORPHAN]}), Leaving::No, 0),
            (json!({"deletionTimestamp": "t", "ownerReferences": null}), Leaving::Background, 0),
            (json!({"deletionTimestamp": "t", "finalizers": ["x", FOREGROUND]}), Leaving::Foreground, 0),
            (json!({"deletionTimestamp": "t", "finalizers": [ORPHAN]}), Leaving::Orphan, 0),
            (
                json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "o"}]}),
                Leaving::No,
                1,
            ),
        ] {
            let mut object = json!({"metadata": metadata, "spec": {"ignored": [1, 2]}});
            object["metadata"]["uid"] = "u".into();
            object["metadata"]["name"] = "na\"me".into();
            let (uid, node) = node(3, &Bytes::from(object.to_string())).expect("an object");
            assert_eq!((&*uid, &*node.name, node.resource), ("u", "na\"me", 3));
            assert_eq!((node.leaving, node.owners.len()), (leaving, owners), "{object}");
        }
        assert!(node(0, &Bytes::from_static(b"[]")).is_none());
    }
}
