//! The runner: one task per pod of this node.
//!
//! ```text
//!   pod informer ─► Runner ─(latest object)─► task ─► PodLife::apply ─► effects
//!                                              ▲                          │
//!                                              └──── events (mailbox) ◄───┘
//! ```
//!
//! The informer's observer only routes: the newest object of a pod goes into that pod's watch channel, so a slow pod
//! delays nobody and only ever sees the latest. A task ends when its pod is confirmed deleted; it takes itself out of
//! the map. A pod that is deleted and made again under the same name has another uid, and so another task.

mod adopt;
mod effects;
mod image;
mod machine;
mod sandbox;
mod snapshot;
mod standby;
mod start;
mod status;
mod task;

use crate::agent::Machine;
use crate::config::NodeConfig;
use crate::dirs::NodeDirs;
use crate::images::Images;
use crate::inputs::{Inputs, References};
use crate::metrics::Metrics;
use crate::snapshots::Templates;
use crate::vm::Hosts;
use adopt::FoundPod;
use cumulet_cluster::events::EventRecorder;
use cumulet_cluster::informer::{Change, key};
use cumulet_cluster::{Api, Informer};
use cumulet_net::Network;
use cumulet_podlife::Event;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::node::v1::RuntimeClass;
pub(crate) use status::PodStatusUpdates;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
pub(crate) use task::{PodContext, container};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// What all pods of a node share.
pub(crate) struct Shared {
    pub(crate) config: NodeConfig,
    pub(crate) machine: Machine,
    pub(crate) pods: Api<Pod>,
    pub(crate) images: Images,
    pub(crate) network: Arc<Network>,
    pub(crate) recorder: EventRecorder,
    pub(crate) inputs: Inputs,
    pub(crate) dirs: NodeDirs,
    /// What virtual machines are made with.
    pub(crate) machines: Hosts,
    pub(crate) templates: Templates,
    /// Sandboxes that are being made.
    pub(crate) starting: watch::Sender<usize>,
    pub(crate) runtime_classes: Api<RuntimeClass>,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: CancellationToken,
}

impl Shared {
    /// Waits until no sandbox is being made, and no clone gives its first answers.
    pub(super) async fn quiet(&self) {
        // The sender lives in `self`.
        let _ = self.starting.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// A pod's task, as the runner knows it.
struct Handle {
    /// The newest object; `None` when it is gone from the API.
    object: watch::Sender<Option<Arc<Pod>>>,
    context: Arc<PodContext>,
}

/// All pods of this node.
pub(crate) struct Runner {
    shared: Arc<Shared>,
    informer: Arc<Informer<Pod>>,
    /// By uid. Held only for look-ups and changes of the map.
    handles: Mutex<HashMap<String, Handle>>,
}

impl Runner {
    pub(crate) fn new(shared: Arc<Shared>, informer: Arc<Informer<Pod>>) -> Arc<Self> {
        Arc::new(Self { shared, informer, handles: Mutex::default() })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Adopts what an earlier process left, then follows the API.
    pub(crate) async fn start(self: &Arc<Self>) {
        self.informer.wait_synced().await;
        for (pod, found) in adopt::survey(&self.shared, &self.informer.list()).await {
            self.spawn(pod, found);
        }
        let runner = Arc::downgrade(self);
        self.informer.observe(move |change| {
            if let Some(runner) = runner.upgrade() {
                runner.route(change);
            }
        });
        self.follow_inputs();
        self.follow_images();
    }

    /// The pod of a uid, when it has a task.
    pub(crate) fn context(&self, uid: &str) -> Option<Arc<PodContext>> {
        self.handles().get(uid).map(|handle| handle.context.clone())
    }

    fn route(self: &Arc<Self>, change: &Change<Pod>) {
        let uid = |pod: &Arc<Pod>| pod.metadata.uid.clone().unwrap_or_default();
        if let Some(old) = &change.old
            && change.new.as_ref().map(uid) != Some(uid(old))
        {
            self.deliver(&uid(old), None);
        }
        if let Some(new) = &change.new
            && !self.deliver(&uid(new), Some(new.clone()))
        {
            self.spawn(new.clone(), FoundPod::default());
        }
    }

    /// Hands the newest object to a pod's task. False when there is no such task.
    fn deliver(&self, uid: &str, object: Option<Arc<Pod>>) -> bool {
        match self.handles().get(uid) {
            Some(handle) => {
                handle.object.send_replace(object);
                true
            }
            None => false,
        }
    }

    fn spawn(self: &Arc<Self>, pod: Arc<Pod>, found: FoundPod) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        // Unbounded: every sender is an effect that was ordered once, or a rare change of an input.
        let (events, mailbox) = mpsc::unbounded_channel();
        let context = match PodContext::new(self.shared.clone(), pod.clone(), events, &found) {
            Ok(context) => Arc::new(context),
            Err(error) => return tracing::error!(uid, %error, "a pod cannot be run"),
        };
        let (object, objects) = watch::channel(Some(pod));
        self.handles().insert(uid.clone(), Handle { object, context: context.clone() });
        let runner = Arc::downgrade(self);
        // The pod's task: ends when the pod is deleted, or with this process (the supervisor goes on).
        tokio::spawn(async move {
            let shutdown = context.shared.shutdown.clone();
            tokio::select! {
                // Dropping the task is sound: what it had not finished is found again by the next process.
                () = task::run(context, objects, mailbox, found) => {}
                () = shutdown.cancelled() => {}
            }
            if let Some(runner) = runner.upgrade() {
                runner.handles().remove(&uid);
            }
        });
    }

    /// Pods hear of changes of the ConfigMaps and Secrets that they refer to.
    fn follow_inputs(self: &Arc<Self>) {
        let runner = Arc::downgrade(self);
        self.shared.inputs.config_maps.observe(move |change| {
            if let (Some(runner), Some(object)) = (runner.upgrade(), change.latest()) {
                let (namespace, name) = key(&**object);
                runner.inputs_changed(&namespace, |refs| refs.config_maps.contains(&name));
            }
        });
        let runner = Arc::downgrade(self);
        self.shared.inputs.secrets.observe(move |change| {
            if let (Some(runner), Some(object)) = (runner.upgrade(), change.latest()) {
                let (namespace, name) = key(&**object);
                runner.inputs_changed(&namespace, |refs| refs.secrets.contains(&name));
            }
        });
    }

    fn inputs_changed(&self, namespace: &str, refers: impl Fn(&References) -> bool) {
        for handle in self.handles().values() {
            let pod = handle.context.pod();
            if pod.metadata.namespace.as_deref() == Some(namespace) && refers(&References::of(&pod)) {
                handle.context.refresh_volumes();
                handle.context.report(Event::InputsChanged);
            }
        }
    }

    /// Tells the pods that wait for an image which is there now. Those that wait for a registry go on waiting.
    async fn images_changed(&self) {
        let waiting: Vec<_> = self.handles().values().map(|handle| handle.context.clone()).collect();
        let look = move || {
            for context in waiting {
                let (pod, missing) = (context.pod(), context.live().missing.clone());
                let mut wanted = missing.iter().filter_map(|name| task::container(&pod, name));
                let there = |c: &Container| {
                    let (image, policy) =
                        (c.image.as_deref().unwrap_or_default(), c.image_pull_policy.as_deref());
                    let images = &context.shared.images;
                    images.must_pull(image, policy) == Ok(false) && images.present(image, policy).is_ok()
                };
                if wanted.any(there) {
                    context.report(Event::ImagesChanged);
                }
            }
        };
        // A panic in it is a missed hint; the retries go on.
        let _ = tokio::task::spawn_blocking(look).await;
    }

    /// Pods hear of changes of the image store, whoever makes them: its index is replaced at every change.
    fn follow_images(self: &Arc<Self>) {
        use futures_util::StreamExt;
        use inotify::{Inotify, WatchMask};
        let dir = self.shared.config.state_dir.join("images");
        let watched = Inotify::init().and_then(|inotify| {
            inotify.watches().add(&dir, WatchMask::MOVED_TO | WatchMask::CLOSE_WRITE)?;
            inotify.into_event_stream(vec![0; 4096])
        });
        let mut changes = match watched {
            Ok(changes) => changes,
            Err(error) => {
                return tracing::warn!(dir = %dir.display(), %error, "new images are only noticed by retries");
            }
        };
        let runner = self.clone();
        // Ends with the shutdown token; dropping it only stops the watching.
        tokio::spawn(async move {
            let shutdown = runner.shared.shutdown.clone();
            let follow = async {
                while let Some(change) = changes.next().await {
                    if change.is_ok_and(|c| c.name.is_some_and(|name| name == "refs.json")) {
                        runner.images_changed().await;
                    }
                }
            };
            tokio::select! {
                () = follow => {}
                () = shutdown.cancelled() => {}
            }
        });
    }

    fn handles(&self) -> MutexGuard<'_, HashMap<String, Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
