//! The provisioner of the built-in storage classes: makes volumes of claims on this machine, and removes them.
//!
//! ```text
//!   claim (annotated with us, node selected) ─► files ─► PersistentVolume with the claim in it ─► the binder binds
//!   PersistentVolume Released, policy Delete ─► files removed ─► the object goes
//! ```
//!
//! It speaks with the controllers through the API alone, as every provisioner of Kubernetes does. Each step can be
//! done twice, and names are derived from the claim, so a process that dies is simply followed by one that does it
//! again; see `files` for what becomes of what was half made.

mod files;
mod plan;

use crate::config::NodeConfig;
use cumulet_api::{Status, storage};
use cumulet_cluster::events::{EventType, reference};
use cumulet_cluster::{Api, Cluster, DeleteOptions, EventRecorder, Informer, ListOptions, Queue};
use files::{Awaited, Volumes};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use plan::Task;
use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Passes at once: they mostly wait for the disk.
const WORKERS: usize = 8;
/// First and longest pause before what failed is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LONGEST: Duration = Duration::from_secs(60);

/// What a pass is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    /// Namespace, name and uid of a claim.
    Claim(String, String, String),
    /// Name of a volume.
    Volume(String),
}

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// What was asked for cannot be had.
    #[error("{0}")]
    Refused(String),
    /// The files.
    #[error("{0}")]
    Files(#[from] io::Error),
    /// The API.
    #[error("{0}")]
    Api(#[from] Status),
}

/// The provisioner of one node.
pub(crate) struct Provisioner {
    node: String,
    files: Volumes,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    classes: Api<StorageClass>,
    claims_api: Api<PersistentVolumeClaim>,
    volumes_api: Api<PersistentVolume>,
    recorder: EventRecorder,
}

impl Provisioner {
    /// Starts it; it runs until `shutdown`.
    pub(crate) fn spawn(cluster: &Arc<dyn Cluster>, config: &NodeConfig, shutdown: &CancellationToken) {
        let all = ListOptions::default;
        let name = storage::LOCAL_PROVISIONER;
        let provisioner = Arc::new(Self {
            node: config.node_name.clone(),
            files: Volumes::new(&config.state_dir),
            claims: Informer::spawn(cluster.clone(), all(), shutdown.clone()),
            volumes: Informer::spawn(cluster.clone(), all(), shutdown.clone()),
            classes: Api::new(cluster.clone()),
            claims_api: Api::new(cluster.clone()),
            volumes_api: Api::new(cluster.clone()),
            recorder: EventRecorder::spawn(cluster.clone(), name, &config.node_name, shutdown.clone()),
        });
        let shutdown = shutdown.clone();
        // The provisioner's own task: ends with the shutdown token.
        tokio::spawn(async move {
            tokio::select! {
                // Dropping it is sound: every step can be done again, and the next process does.
                () = provisioner.run() => {}
                () = shutdown.cancelled() => {}
            }
        });
    }

    async fn run(self: Arc<Self>) {
        self.claims.wait_synced().await;
        self.volumes.wait_synced().await;
        let sweeper = self.clone();
        let swept = tokio::task::spawn_blocking(move || sweeper.sweep()).await;
        if let Ok(Err(error)) = swept {
            tracing::warn!(%error, "what earlier processes left of volumes cannot be removed");
        }
        let queue = Arc::new(Queue::new());
        self.observe(&queue);
        let mut passes = JoinSet::new();
        loop {
            tokio::select! {
                // Both are cancel-safe: a key is taken when it is returned, and what has ended stays where it is.
                key = queue.next(), if passes.len() < WORKERS => {
                    let (provisioner, queue) = (self.clone(), queue.clone());
                    passes.spawn(async move {
                        match provisioner.pass(&key).await {
                            Ok(()) => queue.succeeded(&key),
                            Err(_) => queue.add_after(key.clone(), pause(queue.failed(&key))),
                        }
                        queue.done(&key);
                    });
                }
                Some(_) = passes.join_next() => {}
            }
        }
    }

    fn observe(&self, queue: &Arc<Queue<Key>>) {
        let (to, node) = (queue.clone(), self.node.clone());
        self.claims.observe(move |change| {
            let Some(claim) = change.latest() else { return };
            let ours = change.new.as_ref().is_some_and(|claim| plan::is_ours(claim, &node));
            // One that is gone may have had a volume half made.
            if ours || change.new.is_none() {
                let text = |field: &Option<String>| field.clone().unwrap_or_default();
                let meta = &claim.metadata;
                to.add(Key::Claim(text(&meta.namespace), text(&meta.name), text(&meta.uid)));
            }
        });
        let to = queue.clone();
        self.volumes.observe(move |change| {
            if let Some(name) = change.new.as_ref().and_then(|volume| volume.metadata.name.clone()) {
                to.add(Key::Volume(name));
            }
        });
    }

    fn sweep(&self) -> io::Result<()> {
        let awaited: HashSet<String> = self
            .claims
            .list()
            .iter()
            .filter(|claim| plan::is_ours(claim, &self.node))
            .filter_map(|claim| claim.metadata.uid.as_deref().map(storage::volume_name))
            .collect();
        self.files.sweep(|name| match self.volumes.get("", name) {
            Some(_) => Awaited::Exists,
            None if awaited.contains(name) => Awaited::Yes,
            None => Awaited::No,
        })
    }

    async fn pass(self: &Arc<Self>, key: &Key) -> Result<(), Error> {
        let result = match key {
            Key::Claim(namespace, name, uid) => self.claim(namespace, name, uid).await,
            Key::Volume(name) => self.volume(name).await,
        };
        if let Err(error) = &result {
            tracing::debug!(?key, %error, "pass failed");
        }
        result
    }

    async fn claim(self: &Arc<Self>, namespace: &str, name: &str, uid: &str) -> Result<(), Error> {
        let claim = self.claims.get(namespace, name);
        let same = claim.filter(|claim| claim.metadata.uid.as_deref() == Some(uid));
        let Some(claim) = same.filter(|claim| plan::is_ours(claim, &self.node)) else {
            return self.give_up(namespace, name, uid).await;
        };
        let result = self.provision(&claim).await;
        let (kind, reason, message) = match &result {
            Ok(None) => return Ok(()),
            Ok(Some(volume)) => {
                let message = format!("Successfully provisioned volume {volume}");
                (EventType::Normal, "ProvisioningSucceeded", message)
            }
            Err(error) => {
                let class = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
                let class = class.unwrap_or_default();
                let message = format!("failed to provision volume with StorageClass \"{class}\": {error}");
                (EventType::Warning, "ProvisioningFailed", message)
            }
        };
        self.recorder.event(&reference(&*claim), kind, reason, &message);
        result.map(drop)
    }

    /// Removes what was half made for a claim that is gone, as the API says too.
    async fn give_up(self: &Arc<Self>, namespace: &str, name: &str, uid: &str) -> Result<(), Error> {
        match self.claims_api.get(namespace, name).await {
            Ok(claim) if claim.metadata.uid.as_deref() == Some(uid) => return Ok(()),
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
        let volume = storage::volume_name(uid);
        if self.exists(&volume).await? {
            return Ok(());
        }
        self.on_files(move |files| files.abandon(&volume)).await
    }

    async fn exists(&self, volume: &str) -> Result<bool, Error> {
        match self.volumes_api.get("", volume).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the volume of a claim and its object; nothing when it is there.
    async fn provision(self: &Arc<Self>, claim: &PersistentVolumeClaim) -> Result<Option<String>, Error> {
        let uid = claim.metadata.uid.as_deref().unwrap_or_default();
        let name = storage::volume_name(uid);
        if self.exists(&name).await? {
            let made = name.clone();
            self.on_files(move |files| files.made(&made)).await?;
            return Ok(None);
        }
        let class = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref()).unwrap_or_default();
        let class = self.classes.get("", class).await?;
        let kind = plan::kind(claim, &class).map_err(Error::Refused)?;
        let (ns, claim_name) = (claim.metadata.namespace.as_deref(), claim.metadata.name.as_deref());
        let message = format!(
            "External provisioner is provisioning volume for claim \"{}/{}\"",
            ns.unwrap_or_default(),
            claim_name.unwrap_or_default()
        );
        self.recorder.event(&reference(claim), EventType::Normal, "Provisioning", &message);
        let wanted = name.clone();
        let path = self.on_files(move |files| files.make(&wanted, kind)).await?;
        let volume = plan::volume(claim, &class, (kind, &path), &self.node).map_err(Error::Refused)?;
        match self.volumes_api.create(&volume).await {
            Err(error) if !error.is_already_exists() => return Err(error.into()),
            _ => {}
        }
        let made = name.clone();
        self.on_files(move |files| files.made(&made)).await?;
        Ok(Some(name))
    }

    async fn volume(self: &Arc<Self>, name: &str) -> Result<(), Error> {
        let path = self.files.path(name);
        let known = self.volumes.get("", name);
        if known.is_none_or(|volume| plan::task(&volume, &path) == Task::Nothing) {
            return Ok(());
        }
        // What is removed does not come back: the API has the last word.
        let volume = match self.volumes_api.get("", name).await {
            Ok(volume) => volume,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        match plan::task(&volume, &path) {
            Task::Nothing => return Ok(()),
            Task::LetGo => {}
            Task::Remove => {
                let gone = name.to_owned();
                if let Err(error) = self.on_files(move |files| files.remove(&gone)).await {
                    let text = error.to_string();
                    self.recorder.event(&reference(&volume), EventType::Warning, "VolumeFailedDelete", &text);
                    return Err(error);
                }
            }
        }
        self.let_go(&volume).await
    }

    /// Deletes the object of a volume and takes away what we held it by.
    async fn let_go(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let options = DeleteOptions { uid: volume.metadata.uid.clone(), ..DeleteOptions::default() };
        match self.volumes_api.delete("", name, &options).await {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
        let mut free = match self.volumes_api.get("", name).await {
            Ok(volume) => volume,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if let Some(finalizers) = &mut free.metadata.finalizers {
            finalizers.retain(|finalizer| finalizer != storage::PROVISIONER_FINALIZER);
        }
        match self.volumes_api.update(&free).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Works on files, away from the runtime's own threads.
    async fn on_files<T: Send + 'static>(
        &self,
        task: impl FnOnce(&Volumes) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let files = self.files.clone();
        let done = tokio::task::spawn_blocking(move || task(&files)).await;
        Ok(done.unwrap_or_else(|error| Err(io::Error::other(error)))?)
    }
}

/// How long to wait after so many failures in a row.
fn pause(failures: u32) -> Duration {
    RETRY_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(RETRY_LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit() {
        for (failures, millis) in [(1, 250), (2, 500), (9, 60_000), (u32::MAX, 60_000)] {
            assert_eq!(pause(failures), Duration::from_millis(millis), "{failures}");
        }
    }
}
