//! What every controller is built from.

use crate::informers::Informers;
use cumulet_cluster::{Cluster, EventRecorder};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Shared by all controllers; holds no state of its own beyond the caches.
pub(crate) struct Context {
    pub(crate) cluster: Arc<dyn Cluster>,
    pub(crate) informers: Informers,
    node_name: String,
    shutdown: CancellationToken,
}

impl Context {
    pub(crate) fn new(
        cluster: Arc<dyn Cluster>,
        node_name: String,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let informers = Informers::spawn(&cluster, &shutdown);
        Arc::new(Self { cluster, informers, node_name, shutdown })
    }

    /// A recorder of events for one component.
    pub(crate) fn recorder(&self, component: &str) -> EventRecorder {
        EventRecorder::spawn(self.cluster.clone(), component, &self.node_name, self.shutdown.clone())
    }
}
