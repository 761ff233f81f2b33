//! Kubernetes controllers: one driver, one file each.
//!
//! ```text
//!   Cluster ──list, watch──► informers ──observers──► queue per controller ──keys──► driver ──► pass
//!      ▲                        │ caches                                                          │
//!      └────────────────────────┼───────────────────── writes ────────────────────────────────────┤
//!                               └───────────────────── reads ─────────────────────────────────────┘
//! ```
//!
//! A pass gets a key and nothing else, reads what it needs from the caches, and writes what differs. Decisions are
//! pure functions beside it (`plan`, `rolling`, `fit`, `slices`), tested without a cluster. What is absent: state
//! between passes, but for two things that a cache which is behind makes necessary: the expectations of replica
//! managers ([`expectations`]) and the places that the scheduler has given away ([`scheduler`]).
//!
//! | controller | file |
//! |---|---|
//! | scheduler | `scheduler/` |
//! | ReplicaSet, ReplicationController | `replicaset.rs`, `replicationcontroller.rs`, both over `replicas/` |
//! | Deployment | `deployment/` |
//! | Endpoints, EndpointSlice | `endpoints.rs`, `endpointslice.rs`, both over `service/` |
//! | endpoints of `default/kubernetes` | `kubernetes_service.rs` |
//! | Namespace | `namespace.rs` |
//! | owner references | `gc/` |
//! | `default` ServiceAccount, root CA | `serviceaccount.rs` |
//! | pods without a node | `podgc.rs` |
//! | old events | `event_ttl.rs` |
//! | claims and volumes, their protection, claims of pods' own volumes | `storage/` |

mod context;
mod deployment;
mod driver;
mod endpoints;
mod endpointslice;
mod event_ttl;
mod expectations;
mod gc;
mod informers;
mod kubernetes_service;
mod meta;
mod namespace;
mod podgc;
mod pods;
mod replicas;
mod replicaset;
mod replicationcontroller;
mod scheduler;
mod service;
mod serviceaccount;
mod storage;

pub use driver::ControllerStatus;

use context::Context;
use cumulet_cluster::Cluster;
use cumulet_cluster::queue::{self, Queue};
use driver::{Driver, Pace, Reconciler, StatusFn};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Passes at once of controllers whose passes mostly wait for the disk.
const WORKERS: usize = 16;
/// Bindings in flight. A burst of pods then shares few flushes of the store.
const SCHEDULER_WORKERS: usize = 64;

/// What the controllers are told from outside.
#[derive(Clone, Debug)]
pub struct ControllersConfig {
    /// Name of this node: the host in the source of events.
    pub node_name: String,
    /// Where pods reach the API server: the endpoints of `default/kubernetes`. None are written when `None`.
    pub api_endpoint: Option<SocketAddr>,
    /// CA certificates (PEM) for the ConfigMap `kube-root-ca.crt` of every namespace. None are written when `None`.
    pub root_ca_pem: Option<String>,
    /// Time between two rounds of every controller over all of its objects, which heal what a missed signal left.
    pub resync: Duration,
    /// How long events are kept after they happened last.
    pub event_ttl: Duration,
}

impl ControllersConfig {
    /// Nothing about the API server; a round every ten minutes; events for one hour, as in Kubernetes.
    pub fn new(node_name: &str) -> Self {
        Self {
            node_name: node_name.to_owned(),
            api_endpoint: None,
            root_ca_pem: None,
            resync: Duration::from_secs(600),
            event_ttl: Duration::from_secs(3600),
        }
    }
}

/// The running controllers.
pub struct Controllers {
    tasks: JoinSet<()>,
    statuses: Arc<Vec<StatusFn>>,
    synced: watch::Receiver<bool>,
}

/// Shows what the controllers do; outlives the handle that is joined.
#[derive(Clone)]
pub struct ControllersStatus {
    statuses: Arc<Vec<StatusFn>>,
}

impl ControllersStatus {
    /// The counters of every controller, in a fixed order.
    pub fn snapshot(&self) -> Vec<ControllerStatus> {
        self.statuses.iter().map(|status| status()).collect()
    }
}

impl Controllers {
    /// Waits until every cache holds its first list and passes may begin. Also returns when the controllers were
    /// shut down before that.
    pub async fn synced(&self) {
        // An error means that the sender is gone, hence the controllers are.
        let _ = self.synced.clone().wait_for(|done| *done).await;
    }

    /// A view of the counters.
    pub fn status(&self) -> ControllersStatus {
        ControllersStatus { statuses: self.statuses.clone() }
    }

    /// Waits until all passes that were under way at the shutdown have ended.
    pub async fn join(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a controller's task failed; this is a bug");
            }
        }
    }
}

/// Starts all controllers. They run until `shutdown`; then [`Controllers::join`] waits for the passes under way.
pub fn spawn(
    cluster: Arc<dyn Cluster>,
    config: ControllersConfig,
    shutdown: CancellationToken,
) -> Controllers {
    let ctx = Context::new(cluster, config.node_name, shutdown.clone());
    let mut set = Set { drivers: Vec::new(), statuses: Vec::new(), resync: config.resync };
    set.add(SCHEDULER_WORKERS, |q| scheduler::Scheduler::new(&ctx, q));
    set.add(WORKERS, |q| replicas::Replicas::new(&ctx, &ctx.informers.replica_sets, q));
    set.add(WORKERS, |q| replicas::Replicas::new(&ctx, &ctx.informers.replication_controllers, q));
    set.add(WORKERS, |q| deployment::Deployments::new(&ctx, q));
    set.add(WORKERS, |q| endpointslice::EndpointSlices::new(&ctx, q));
    set.add(WORKERS, |q| endpoints::Endpoints::new(&ctx, q));
    set.add(WORKERS, |q| serviceaccount::ServiceAccounts::new(&ctx, q, config.root_ca_pem));
    set.add(4, |q| namespace::Namespaces::new(&ctx, q));
    let graph = gc::watch(&ctx, &shutdown);
    set.add(WORKERS, |q| gc::GarbageCollector::new(&ctx, &graph, q));
    set.add(1, |q| podgc::PodGc::new(&ctx, q));
    storage::add(&mut set, &ctx);
    set.add(1, |_| event_ttl::EventTtl::new(&ctx, config.event_ttl));
    if let Some(apiserver) = config.api_endpoint {
        set.add(1, |q| kubernetes_service::KubernetesService::new(&ctx, q, apiserver));
    }
    set.start(ctx, graph, shutdown)
}

type Start = Box<dyn FnOnce(&mut JoinSet<()>, CancellationToken) + Send>;

/// The controllers while they are put together.
struct Set {
    drivers: Vec<Start>,
    statuses: Vec<StatusFn>,
    resync: Duration,
}

impl Set {
    fn add<R: Reconciler>(&mut self, workers: usize, build: impl FnOnce(&Arc<Queue<R::Key>>) -> R) {
        let queue = Arc::new(Queue::new());
        let driver = Driver::new(build(&queue), queue, Pace { workers, resync: self.resync });
        self.statuses.push(driver.status_fn());
        self.drivers.push(Box::new(move |tasks, shutdown| drop(tasks.spawn(driver.run(shutdown)))));
    }

    /// Lets the drivers run as soon as the caches are filled.
    fn start(self, ctx: Arc<Context>, graph: gc::Watches, shutdown: CancellationToken) -> Controllers {
        let (done, synced) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let drivers = self.drivers;
        // Ends when all drivers have; a failure shows in `Controllers::join`.
        tasks.spawn(async move {
            let filled = async {
                ctx.informers.wait_synced().await;
                graph.wait_synced().await;
            };
            tokio::select! {
                () = filled => {}
                // Nothing has begun yet, so there is nothing to drain.
                () = shutdown.cancelled() => return,
            }
            done.send_replace(true);
            let mut running = JoinSet::new();
            drivers.into_iter().for_each(|start| start(&mut running, shutdown.clone()));
            while let Some(ended) = running.join_next().await {
                if let Err(error) = ended {
                    tracing::error!(%error, "a controller's driver failed; this is a bug");
                }
            }
        });
        Controllers { tasks, statuses: Arc::new(self.statuses), synced }
    }
}
