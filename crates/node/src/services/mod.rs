//! Service routing: Services and endpoints to nftables rules and DNS records, kept current.
//!
//! ```text
//!   informers ─► dirty ─► observe everything ─► netplan ─┬─► zone, swapped at once
//!                  ▲                                     └─► difference of rulesets ─► nftables, one transaction
//!                  └──────────── what changed meanwhile: once more ◄──────────┘
//! ```
//!
//! Level-triggered: a change only marks the state dirty; the first one is applied at once, those that come while it is
//! being applied are applied together afterwards. Planning and applying happen on one thread of their own
//! ([`router`]), so that a large cloud's pass never holds up the runtime.
//!
//! The DNS server listens from the beginning but answers only once the zone is known: what pods ask while this process
//! restarts waits in the socket for some milliseconds instead of getting a wrong "no such name".

mod router;
mod zone;

use arc_swap::ArcSwap;
use cumulet_cluster::api::Kind;
use cumulet_cluster::{Change, Cluster, Informer, ListOptions};
use cumulet_dns::{DnsServer, Upstreams, Zone};
use cumulet_net::Network;
use cumulet_net::nft::Nft;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use router::{Progress, Router};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Port of DNS.
const DNS_PORT: u16 = 53;

/// What the router needs to know.
#[derive(Clone, Debug)]
pub struct ServiceRouterConfig {
    /// Name of this node.
    pub node_name: String,
    /// Addresses of pods.
    pub pod_cidr: Ipv4Net,
    /// Addresses of Services.
    pub service_cidr: Ipv4Net,
    /// Address of the cluster DNS.
    pub dns: Ipv4Addr,
    /// DNS domain of the cluster.
    pub domain: String,
    /// The host's resolver configuration: where other names are asked.
    pub host_resolv_conf: PathBuf,
}

/// Why Services cannot be routed.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// The network refused.
    #[error(transparent)]
    Network(#[from] cumulet_net::Error),
    /// The DNS server cannot listen.
    #[error(transparent)]
    Dns(#[from] cumulet_dns::Error),
}

/// A running router.
pub struct ServiceRouter {
    progress: watch::Receiver<Progress>,
}

#[derive(Clone)]
struct Informers {
    services: Arc<Informer<Service>>,
    slices: Arc<Informer<EndpointSlice>>,
    pods: Arc<Informer<Pod>>,
}

impl ServiceRouter {
    /// Starts routing and the cluster DNS; both end with `shutdown`. The rules stay, so that traffic goes on.
    ///
    /// # Errors
    /// [`RouterError`].
    pub async fn spawn(
        cluster: Arc<dyn Cluster>,
        config: ServiceRouterConfig,
        network: &Network,
        shutdown: CancellationToken,
    ) -> Result<Self, RouterError> {
        network.add_address(config.dns)?;
        let nft = Nft::open()?;
        let zone = Arc::new(ArcSwap::from_pointee(Zone::default()));
        let upstreams = Upstreams::from_file(&config.host_resolv_conf, config.dns.into());
        let address = SocketAddr::new(config.dns.into(), DNS_PORT);
        let server = DnsServer::bind(address, zone.clone(), upstreams).await?;
        let informers = Informers::spawn(cluster, &config.node_name, &shutdown);
        let (report, progress) = watch::channel(Progress::default());
        let router = Router::new(config, network, informers.clone(), zone, report);
        let stop = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                // Dropping it before the thread started is sound: nothing was changed yet.
                () = start(router, nft, informers, stop.clone()) => {}
                () = stop.cancelled() => {}
            }
        });
        let mut named = progress.clone();
        tokio::spawn(async move {
            // An error means that the router ended before it knew a name; then nobody can answer either.
            if named.wait_for(|progress| progress.zone_known).await.is_ok() {
                server.serve(shutdown).await;
            }
        });
        Ok(Self { progress })
    }

    /// Waits until the first rules are applied and the DNS knows the API's own Service.
    pub async fn ready(&self) {
        // An error means that the router has ended, with everything else.
        let _ = self.progress.clone().wait_for(|progress| progress.ready).await;
    }

    /// True once [`Self::ready`] would return at once.
    pub fn is_ready(&self) -> bool {
        self.progress.borrow().ready
    }

    /// How long the last pass took that changed rules, from what was observed to what the kernel has.
    pub fn last_apply(&self) -> Option<Duration> {
        self.progress.borrow().last_apply
    }
}

impl Informers {
    fn spawn(cluster: Arc<dyn Cluster>, node: &str, shutdown: &CancellationToken) -> Self {
        let of_this_node =
            ListOptions { field_selector: Some(format!("spec.nodeName={node}")), ..ListOptions::default() };
        Self {
            services: Informer::spawn(cluster.clone(), ListOptions::default(), shutdown.clone()),
            slices: Informer::spawn(cluster.clone(), ListOptions::default(), shutdown.clone()),
            pods: Informer::spawn(cluster, of_this_node, shutdown.clone()),
        }
    }

    async fn wait_synced(&self) {
        self.services.wait_synced().await;
        self.slices.wait_synced().await;
        self.pods.wait_synced().await;
    }
}

/// Waits for the first lists (half of them would take working rules away after a restart), then runs the router's
/// thread and wakes it.
async fn start(router: Router, nft: Nft, informers: Informers, shutdown: CancellationToken) {
    informers.wait_synced().await;
    // One slot: a wake-up that finds it taken is not needed.
    let (wake, woken) = sync_channel(1);
    observe(&informers.services, &wake, |_| true);
    observe(&informers.slices, &wake, |_| true);
    observe(&informers.pods, &wake, concerns_traffic);
    let stop = shutdown.clone();
    let spawned = std::thread::Builder::new()
        .name("services".to_owned())
        .spawn(move || router.run(nft, &woken, || stop.is_cancelled()));
    if let Err(error) = spawned {
        tracing::error!(%error, "no thread for Service routing: Services do not work");
        return;
    }
    shutdown.cancelled().await;
    let _ = wake.try_send(());
}

fn observe<K: Kind>(
    informer: &Arc<Informer<K>>,
    wake: &SyncSender<()>,
    concerns: impl Fn(&Change<K>) -> bool + Send + Sync + 'static,
) {
    let wake = wake.clone();
    informer.observe(move |change| {
        if concerns(change) {
            let _ = wake.try_send(());
        }
    });
}

/// Whether a pod's change can change rules or names: most changes are of conditions and container states.
fn concerns_traffic(change: &Change<Pod>) -> bool {
    let seen = |pod: &Pod| pod.status.as_ref().map(|status| (status.pod_ip.clone(), status.phase.clone()));
    match (&change.old, &change.new) {
        (Some(old), Some(new)) => seen(old) != seen(new),
        _ => true,
    }
}

#[cfg(test)]
mod kernel_tests;
#[cfg(test)]
mod testbed;
#[cfg(test)]
mod tests;
