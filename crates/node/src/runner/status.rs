//! Writing a pod's status: the latest wins, one write is in flight, none is lost.

use cumulet_cluster::{Api, PatchKind};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// First and longest pause before a failed write is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(10);

/// Status that is to be written, and its number.
type Wanted = (u64, Option<Arc<PodStatus>>);

/// The writer of one pod.
pub(crate) struct StatusWriter {
    wanted: watch::Sender<Wanted>,
    written: watch::Receiver<u64>,
}

impl StatusWriter {
    pub(crate) fn new(pods: Api<Pod>, namespace: &str, name: &str, uid: &str) -> Self {
        let (wanted, queue) = watch::channel((0, None));
        let (done, written) = watch::channel(0);
        let target =
            Target { pods, namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.to_owned() };
        // Ends when the pod's context is dropped.
        tokio::spawn(write_all(target, queue, done));
        Self { wanted, written }
    }

    /// Asks for a status to be written; replaces one that waits.
    pub(crate) fn publish(&self, status: PodStatus) {
        self.wanted.send_modify(|(number, wanted)| {
            *number += 1;
            *wanted = Some(Arc::new(status));
        });
    }

    /// The statuses from now on.
    pub(crate) fn updates(&self) -> PodStatusUpdates {
        PodStatusUpdates(self.wanted.subscribe())
    }

    /// Waits until the last status asked for is written, or the object is gone.
    pub(crate) async fn flush(&self) {
        let last = self.wanted.borrow().0;
        let _ = self.written.clone().wait_for(|written| *written >= last).await;
    }
}

/// A view of a pod's status as it changes.
pub(crate) struct PodStatusUpdates(watch::Receiver<Wanted>);

impl PodStatusUpdates {
    /// Waits for the next status. False when the pod's task is gone.
    pub(crate) async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }

    /// True when instance `attempt` of a container does not run any more.
    pub(crate) fn has_ended(&mut self, container: &str, attempt: u32) -> bool {
        let Some(status) = self.0.borrow_and_update().1.clone() else { return false };
        let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        let Some(of) = all.into_iter().find(|s| s.name == container) else { return false };
        let running = of.state.as_ref().is_some_and(|state| state.running.is_some());
        !running || u32::try_from(of.restart_count).is_ok_and(|count| count > attempt)
    }
}

struct Target {
    pods: Api<Pod>,
    namespace: String,
    name: String,
    uid: String,
}

async fn write_all(target: Target, mut queue: watch::Receiver<Wanted>, done: watch::Sender<u64>) {
    while queue.changed().await.is_ok() {
        let mut pause = RETRY_FIRST;
        loop {
            let (number, status) = queue.borrow_and_update().clone();
            let Some(status) = status else { break };
            match target.write(&status).await {
                Ok(()) => {
                    done.send_replace(number);
                    break;
                }
                Err(error) => {
                    tracing::warn!(namespace = target.namespace, pod = target.name, %error, "status not written; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_LONGEST);
                }
            }
        }
    }
}

impl Target {
    /// Replaces the whole status, but only of the object with our uid. A pod that is gone needs no status.
    async fn write(&self, status: &PodStatus) -> Result<(), cumulet_api::Status> {
        let patch = json!([
            {"op": "test", "path": "/metadata/uid", "value": self.uid},
            {"op": "add", "path": "/status", "value": status},
        ]);
        match self.pods.patch(&self.namespace, &self.name, Some("status"), PatchKind::Json, &patch).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() || self.replaced().await => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// True when the name belongs to another pod by now.
    async fn replaced(&self) -> bool {
        match self.pods.get(&self.namespace, &self.name).await {
            Ok(pod) => pod.metadata.uid.as_deref() != Some(&self.uid),
            Err(error) => error.is_not_found(),
        }
    }
}
