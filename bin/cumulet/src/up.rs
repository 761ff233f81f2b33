//! `up`: builds the parts of the cloud from the bottom up, waits until it is ready, runs until a signal, drains.
//!
//! ```text
//!   locked ─► listening ─► store, certificates │ network │ images ─► controllers, node, Services ─► ready ─► drain
//! ```
//!
//! The port is taken before anything on disk is touched, so that the commonest mistake costs nothing. Pods do not end
//! with this process: their supervisors go on, and the next `up` adopts them.

use crate::detach::Waiter;
use crate::ranges::{self, Ranges};
use crate::registry::Registry;
use anyhow::{Context, bail};
use cumulet_apiserver::{ApiServer, ApiServerConfig, ReadyCheck};
use cumulet_cli::StateDir;
use cumulet_cli::args::Up;
use cumulet_cluster::events::EventRecorder;
use cumulet_controllers::{Controllers, ControllersConfig};
use cumulet_images::{Client, ClientOptions, ImageStore, RegistriesConfig};
use cumulet_net::Network;
use cumulet_node::services::{ServiceRouter, ServiceRouterConfig};
use cumulet_node::{Node, NodeConfig, NodeDeps};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// DNS domain of every cloud.
const CLUSTER_DOMAIN: &str = "cluster.local";
/// Where the host's name servers are.
const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";
/// Port of the Service `default/kubernetes`.
const API_SERVICE_PORT: u16 = 443;
/// How long a start may take before it counts as failed; on a machine at rest it takes a fraction of a second.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long requests and controllers may take to finish at the end.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);
/// More threads than this only cost memory: the work is I/O.
const MAX_WORKERS: usize = 4;

/// Runs the cloud until SIGTERM or SIGINT.
pub(crate) fn run(state: &StateDir, options: &Up) -> anyhow::Result<()> {
    let waiter = Waiter::inherited();
    limit_memory_arenas();
    let workers = std::thread::available_parallelism().map_or(2, usize::from).min(MAX_WORKERS);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .context("no async runtime")?;
    let result = runtime.block_on(cloud(state, options, waiter));
    runtime.shutdown_timeout(DRAIN_WITHIN);
    result
}

async fn cloud(state: &StateDir, options: &Up, waiter: Waiter) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let started = Instant::now();
    let start = async {
        let lock = prepare(state)?;
        let cloud = tokio::time::timeout(READY_WITHIN, Cloud::start(state, options, &shutdown)).await;
        let cloud = cloud
            .with_context(|| format!("the cloud was not ready within {} s", READY_WITHIN.as_secs()))??;
        anyhow::Ok((lock, cloud))
    };
    let (_lock, cloud) = match start.await {
        Ok(running) => running,
        Err(error) => {
            shutdown.cancel();
            waiter.failed(&error);
            return Err(error);
        }
    };
    tracing::info!(
        ms = started.elapsed().as_millis(),
        api = %cloud.listen,
        kubeconfig = %state.kubeconfig().display(),
        "ready"
    );
    waiter.ready();
    let signal = until_signal().await?;
    tracing::info!(signal, "ending; pods go on, `cumulet down` stops them");
    shutdown.cancel();
    if tokio::time::timeout(DRAIN_WITHIN, cloud.drain()).await.is_err() {
        tracing::warn!(seconds = DRAIN_WITHIN.as_secs(), "some requests did not finish in time");
    }
    Ok(())
}

fn prepare(state: &StateDir) -> anyhow::Result<cumulet_cli::state_dir::RunLock> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the cloud needs root for namespaces, mounts and networks: run it with sudo");
    }
    state.create()?;
    state.lock()
}

/// The running parts.
struct Cloud {
    api: Arc<ApiServer>,
    listen: SocketAddr,
    controllers: Controllers,
    servers: JoinSet<()>,
    _node: Arc<Node>,
    _router: Arc<ServiceRouter>,
}

impl Cloud {
    async fn start(state: &StateDir, options: &Up, shutdown: &CancellationToken) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(options.api_listen).await.with_context(|| {
            format!("cannot listen on {}: free it, or choose another with --api-listen", options.api_listen)
        })?;
        let listen = listener.local_addr()?;
        let node_name = node_name(options)?;
        let (network, ranges) = blocking({
            let (state, options) = (state.clone(), options.clone());
            move || ranges::open_network(&state, &options)
        })
        .await?;
        let network = Arc::new(network);
        let images = {
            let dir = state.images();
            blocking(move || ImageStore::open(&dir).context("cannot open the images")).await?
        };
        let registry = Registry::open(state, options, images.clone()).await?;
        let mut config = ApiServerConfig::new(state.path());
        config.service_cidr = ranges.services;
        config.node_name.clone_from(&node_name);
        config.listen = listen;
        config.cluster_domain = CLUSTER_DOMAIN.to_owned();
        let api = ApiServer::open(config).await.context("cannot start the API server")?;
        // Pods reach the API through its Service, whose endpoint is the bridge's address: loopback is not theirs.
        let inside = SocketAddr::new(IpAddr::V4(network.gateway()), listen.port());
        let inside_listener =
            TcpListener::bind(inside).await.with_context(|| format!("cannot listen on {inside}"))?;
        api.write_kubeconfig(&state.kubeconfig(), listen)
            .with_context(|| format!("cannot write {}", state.kubeconfig().display()))?;
        let mut servers = JoinSet::new();
        for listener in [listener, inside_listener] {
            let (api, shutdown) = (api.clone(), shutdown.clone());
            servers.spawn(async move {
                if let Err(error) = api.serve(listener, shutdown).await {
                    tracing::error!(%error, "the API server ended");
                }
            });
        }
        let own_registry = registry.hosts().to_vec();
        servers.spawn(registry.serve(shutdown.clone()));
        let mut controllers_config = ControllersConfig::new(&node_name);
        controllers_config.api_endpoint = Some(inside);
        controllers_config.root_ca_pem = Some(api.ca_pem().to_owned());
        let cluster = api.cluster("system:kube-controller-manager");
        let controllers = cumulet_controllers::spawn(cluster, controllers_config, shutdown.clone());
        let router = router(&api, &network, &ranges, &node_name, shutdown).await?;
        let cluster = api.cluster(&format!("system:node:{node_name}"));
        let deps = NodeDeps {
            recorder: EventRecorder::spawn(cluster.clone(), "kubelet", &node_name, shutdown.clone()),
            cluster,
            puller: puller(state, &images)?,
            images,
            own_registry,
            network: network.clone(),
        };
        let service = SocketAddr::new(ranges.api().into(), API_SERVICE_PORT);
        let mut config =
            node_config(state, &network, &ranges, (&node_name, options.snapshot_budget), service)?;
        config.vm_kernel.clone_from(&options.vm_kernel);
        let node = Node::start(config, deps, shutdown.clone()).context("cannot start the node")?;
        api.set_streams(node.clone());
        api.set_ready_checks(ready_checks(&node, &router));
        let counts = node.clone();
        api.set_metrics(move || counts.metrics());
        node.ready().await;
        router.ready().await;
        Ok(Self { api, listen, controllers, servers, _node: node, _router: router })
    }

    /// Lets everything that was begun end; the shutdown token has been cancelled.
    async fn drain(mut self) {
        while self.servers.join_next().await.is_some() {}
        self.controllers.join().await;
        self.api.close().await;
    }
}

async fn router(
    api: &ApiServer,
    network: &Network,
    ranges: &Ranges,
    node_name: &str,
    shutdown: &CancellationToken,
) -> anyhow::Result<Arc<ServiceRouter>> {
    let config = ServiceRouterConfig {
        node_name: node_name.to_owned(),
        pod_cidr: ranges.pods,
        service_cidr: ranges.services,
        dns: ranges.dns(),
        domain: CLUSTER_DOMAIN.to_owned(),
        host_resolv_conf: HOST_RESOLV_CONF.into(),
    };
    let router =
        ServiceRouter::spawn(api.cluster("system:kube-proxy"), config, network, shutdown.clone()).await;
    Ok(Arc::new(router.context("cannot route Services")?))
}

fn node_config(
    state: &StateDir,
    network: &Network,
    ranges: &Ranges,
    (node_name, snapshot_budget_bytes): (&str, u64),
    api: SocketAddr,
) -> anyhow::Result<NodeConfig> {
    let exe = std::env::current_exe().context("this program has no path")?;
    // Pods reach the machine at the bridge; there is no other address that every machine has.
    let mut config = NodeConfig::new(node_name, state.path().to_owned(), exe, IpAddr::V4(network.gateway()));
    config.pod_cidr = ranges.pods.to_string();
    config.cluster_dns = IpAddr::V4(ranges.dns());
    config.cluster_domain = CLUSTER_DOMAIN.to_owned();
    config.host_resolv_conf = HOST_RESOLV_CONF.into();
    config.api_host = api.ip().to_string();
    config.api_port = api.port();
    config.cgroup = ranges::cgroup(state);
    config.snapshot_budget_bytes = snapshot_budget_bytes;
    config.version = cumulet_apiserver::GIT_VERSION.trim_start_matches('v').to_owned();
    Ok(config)
}

/// What pulls images, with the mirrors that the administrator has set up.
fn puller(state: &StateDir, images: &ImageStore) -> anyhow::Result<Client> {
    let registries = RegistriesConfig::load(&state.registries())?;
    Ok(Client::new(images.clone(), ClientOptions { registries, ..ClientOptions::default() })?)
}

/// What `/readyz` looks at besides the API server itself.
fn ready_checks(node: &Arc<Node>, router: &Arc<ServiceRouter>) -> Vec<ReadyCheck> {
    let (node, router) = (node.clone(), router.clone());
    let check =
        |ready: bool, what: &str| if ready { Ok(()) } else { Err(format!("{what} is not ready yet")) };
    vec![
        ReadyCheck::new("node", move || check(node.is_ready(), "the node")),
        ReadyCheck::new("services", move || check(router.is_ready(), "Service routing")),
    ]
}

/// The node's name: asked for, or the host's, as a DNS name.
fn node_name(options: &Up) -> anyhow::Result<String> {
    let name = match &options.node_name {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname().context("the host has no name")?.to_string_lossy().to_lowercase(),
    };
    match cumulet_api::names::dns1123_subdomain(&name).first() {
        None => Ok(name),
        Some(problem) => bail!("{name:?} cannot be a node's name ({problem}): give one with --node-name"),
    }
}

async fn until_signal() -> anyhow::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate()).context("no signal handler")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no signal handler")?;
    // Both arms only wait; dropping either loses nothing.
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

async fn blocking<T: Send + 'static>(
    task: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(task).await.context("a start-up task panicked")?
}

/// One arena per thread would cost megabytes that are never given back.
fn limit_memory_arenas() {
    // SAFETY: mallopt only changes the allocator's settings; it is called before other threads exist.
    // JUSTIFICATION: there is no safe interface to it, and the environment variable would be inherited by pods.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}
