//! Service routing: Services and endpoints to nftables rules and DNS records, kept current.
//!
//! ```text
//!   informers ─► dirty ─► observe everything ─► netplan ─┬─► zone, swapped at once
//!                  ▲                                     └─► difference of rulesets ─► nftables, one transaction
//!                  └──────────── what changed meanwhile: once more ◄──────────┘
//! ```
//!
//! Level-triggered: a change only marks the state dirty; the first one is applied at once, those that come while it is
//! being applied are applied together afterwards. The ruleset that the kernel has is known, so only the difference is
//! sent; after a failure nothing is assumed and everything is sent again.

mod zone;

use arc_swap::ArcSwap;
use cumulet_cluster::api::Kind;
use cumulet_cluster::{Cluster, Informer, ListOptions};
use cumulet_dns::{DnsServer, Upstreams, Zone};
use cumulet_net::Network;
use cumulet_net::nft::Nft;
use cumulet_netplan::{Names, Observed, Ruleset, diff, plan, render};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Pause before a refused ruleset is sent again.
const RETRY: Duration = Duration::from_secs(1);
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
    ready: watch::Receiver<bool>,
}

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
        // Ends with the shutdown token.
        tokio::spawn(server.serve(shutdown.clone()));
        let of_this_node = ListOptions {
            field_selector: Some(format!("spec.nodeName={}", config.node_name)),
            ..ListOptions::default()
        };
        let informers = Informers {
            services: Informer::spawn(cluster.clone(), ListOptions::default(), shutdown.clone()),
            slices: Informer::spawn(cluster.clone(), ListOptions::default(), shutdown.clone()),
            pods: Informer::spawn(cluster, of_this_node, shutdown.clone()),
        };
        let names = Names {
            table: network.table().to_owned(),
            bridge: network.bridge().to_owned(),
            pods: config.pod_cidr,
            services: config.service_cidr,
        };
        let (done, ready) = watch::channel(false);
        let router = Router { config, names, informers, zone, serial: 0, applied: None, done };
        tokio::spawn(async move {
            tokio::select! {
                // Dropping it is sound: the kernel has one whole ruleset or the other.
                () = router.run(nft) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(Self { ready })
    }

    /// Waits until the first rules are applied and the DNS knows the API's own Service.
    pub async fn ready(&self) {
        // An error means that the router has ended, with everything else.
        let _ = self.ready.clone().wait_for(|ready| *ready).await;
    }

    /// True once [`Self::ready`] would return at once.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }
}

struct Router {
    config: ServiceRouterConfig,
    names: Names,
    informers: Informers,
    zone: Arc<ArcSwap<Zone>>,
    serial: u32,
    /// The ruleset that the kernel has; unknown at first and after a failure.
    applied: Option<Ruleset>,
    done: watch::Sender<bool>,
}

impl Router {
    async fn run(mut self, nft: Nft) {
        self.informers.services.wait_synced().await;
        self.informers.slices.wait_synced().await;
        self.informers.pods.wait_synced().await;
        let (mark, mut dirty) = watch::channel(());
        marks(&self.informers.services, &mark);
        marks(&self.informers.slices, &mark);
        marks(&self.informers.pods, &mark);
        let mut nft = Some(nft);
        loop {
            dirty.borrow_and_update();
            let ok = self.pass(&mut nft).await;
            if ok {
                if dirty.changed().await.is_err() {
                    return;
                }
            } else {
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// One pass from what is observed to what is applied. False when the kernel refused.
    async fn pass(&mut self, nft: &mut Option<Nft>) -> bool {
        let start = Instant::now();
        let (services, slices, pods) =
            (self.informers.services.list(), self.informers.slices.list(), self.informers.pods.list());
        let observed =
            Observed { node: &self.config.node_name, services: &services, slices: &slices, pods: &pods };
        self.serial = self.serial.wrapping_add(1);
        let zone = zone::zone(&observed, &self.config, self.serial);
        let knows_api = zone.has(&format!("kubernetes.default.svc.{}", self.config.domain));
        self.zone.store(Arc::new(zone));
        let ruleset = Ruleset::of(&plan(&observed));
        let script = match &self.applied {
            Some(applied) => diff(&self.names, applied, &ruleset),
            None => render(&self.names, &ruleset),
        };
        if !script.is_empty() {
            let Some(mut connection) = nft.take().or_else(|| Nft::open().ok()) else { return false };
            let ran = tokio::task::spawn_blocking(move || {
                let result = connection.run(&script);
                (connection, result)
            });
            match ran.await {
                Ok((connection, Ok(()))) => *nft = Some(connection),
                Ok((connection, Err(error))) => {
                    *nft = Some(connection);
                    self.applied = None;
                    tracing::error!(%error, "the kernel refused the Services' rules; sending all of them again");
                    return false;
                }
                Err(error) => {
                    self.applied = None;
                    tracing::error!(%error, "applying the Services' rules panicked");
                    return false;
                }
            }
        }
        self.applied = Some(ruleset);
        tracing::debug!(
            services = services.len(),
            us = start.elapsed().as_micros(),
            "rules and names applied"
        );
        if knows_api {
            self.done.send_replace(true);
        }
        true
    }
}

fn marks<K: Kind>(informer: &Arc<Informer<K>>, mark: &watch::Sender<()>) {
    let mark = mark.clone();
    informer.observe(move |_| {
        mark.send_replace(());
    });
}
