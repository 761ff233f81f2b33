//! The node as a whole: what the binary starts.

use crate::agent;
use crate::config::NodeConfig;
use crate::dirs::NodeDirs;
use crate::images::Images;
use crate::inputs::Inputs;
use crate::metrics::Metrics;
use crate::provisioner::Provisioner;
use crate::runner::{Runner, Shared};
use crate::snapshots::Templates;
use crate::vm::Hosts;
use cumulet_cluster::events::EventRecorder;
use cumulet_cluster::{Api, Cluster, Informer, ListOptions};
use cumulet_images::{Client, ImageStore};
use cumulet_net::Network;
use k8s_openapi::api::core::v1::Pod;
use std::io;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What a node works with.
pub struct NodeDeps {
    /// The API.
    pub cluster: Arc<dyn Cluster>,
    /// The images of this machine.
    pub images: ImageStore,
    /// Pulls images into them.
    pub puller: Client,
    /// What the registry that serves these same images is called in their names.
    pub own_registry: Vec<String>,
    /// The pod network of this machine.
    pub network: Arc<Network>,
    /// Where events about pods go.
    pub recorder: EventRecorder,
}

/// A running node.
pub struct Node {
    pub(crate) runner: Arc<Runner>,
    ready: watch::Sender<bool>,
}

impl Node {
    /// Starts the node: registers it, adopts the pods of an earlier process, runs the pods bound to it. It ends with
    /// `shutdown`; the pods go on.
    ///
    /// # Errors
    /// Those of making the node's directories.
    pub fn start(config: NodeConfig, deps: NodeDeps, shutdown: CancellationToken) -> io::Result<Arc<Self>> {
        let dirs = NodeDirs::new(&config.state_dir);
        dirs.create()?;
        let inputs = Inputs::spawn(deps.cluster.clone(), &config, &shutdown);
        let of_this_node = ListOptions {
            field_selector: Some(format!("spec.nodeName={}", config.node_name)),
            ..ListOptions::default()
        };
        Provisioner::spawn(&deps.cluster, &config, &shutdown);
        let pods = Informer::<Pod>::spawn(deps.cluster.clone(), of_this_node, shutdown.clone());
        let shared = Arc::new(Shared {
            machine: agent::Machine::read(),
            pods: Api::new(deps.cluster.clone()),
            images: Images::new(deps.images, deps.puller, deps.own_registry),
            network: deps.network,
            recorder: deps.recorder,
            inputs,
            machines: Hosts::new(&config),
            templates: Templates::new(&config.state_dir, config.snapshot_budget_bytes),
            starting: watch::Sender::new(0),
            runtime_classes: Api::new(deps.cluster.clone()),
            metrics: Metrics::new(),
            dirs,
            config,
            shutdown: shutdown.clone(),
        });
        let node = Arc::new(Self { runner: Runner::new(shared, pods), ready: watch::Sender::new(false) });
        let task = node.clone();
        // The node's own task: ends with the shutdown token; until then it keeps the node object and the lease.
        tokio::spawn(async move {
            tokio::select! {
                // Dropping it is sound: what is on disk and in the API is adopted by the next process.
                () = task.run(deps.cluster) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(node)
    }

    async fn run(&self, cluster: Arc<dyn Cluster>) {
        let shared = self.runner.shared();
        shared.inputs.wait_synced().await;
        self.runner.start().await;
        agent::run(cluster, &shared.config, &shared.machine, || {
            self.ready.send_replace(true);
        })
        .await;
    }

    /// Waits until the node object says Ready.
    pub async fn ready(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// The node's counters in the text format of OpenMetrics.
    pub fn metrics(&self) -> String {
        let shared = self.runner.shared();
        let (templates, standbys) = shared.templates.counts();
        shared.metrics.encode(standbys, templates)
    }

    /// True once the node object says Ready.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }
}
