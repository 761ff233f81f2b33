//! The Kubernetes API over HTTPS: one generic registry of resources.
//!
//! ```text
//!   server (TLS, HTTP) ─► handlers (route, negotiate, decode, encode) ─┐
//!                                                                      ├─► verbs ─► store
//!   access (trait Cluster, for components of this process) ────────────┘      │
//!                                                     rows: kinds, strategies ┘
//! ```
//!
//! A resource is a row ([`row::Row`]) of [`kinds`]; every verb is written once for all rows. Only this crate touches
//! the store. What is absent on purpose: a handler per resource; server-side apply, SPDY and authorization rules,
//! whose places are marked where they will come.

mod access;
mod admission;
mod alloc;
mod auth;
mod bootstrap;
mod codec;
mod config;
mod core;
mod discovery;
mod handlers;
mod health;
mod kinds;
mod object;
mod openapi;
mod pki;
mod query;
mod registry;
mod route;
pub mod row;
mod server;
mod subresources;
mod verbs;

pub use auth::Identity;
pub use config::{ApiServerConfig, GIT_VERSION, OpenError};
pub use health::ReadyCheck;

use crate::core::Core;
use alloc::ServiceAllocator;
use arc_swap::{ArcSwap, ArcSwapOption};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cumulet_cluster::{Cluster, PodStreams};
use cumulet_store::{Range, Store, StoreOptions};
use jiff::Timestamp;
use registry::Registry;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Says what is counted at the moment. It is called for every request and must not block.
type MetricsSource = Box<dyn Fn() -> String + Send + Sync>;

/// An API server with its store.
pub struct ApiServer {
    pub(crate) core: Arc<Core>,
    pub(crate) config: ApiServerConfig,
    pub(crate) openapi: openapi::Documents,
    pub(crate) ready_checks: ArcSwap<Vec<ReadyCheck>>,
    pub(crate) metrics: ArcSwapOption<MetricsSource>,
    pki: pki::Pki,
    /// Where the administrator's kubeconfig was written and for which address; written again with a new certificate.
    kubeconfig_file: Mutex<Option<(PathBuf, SocketAddr)>>,
}

/// Time between two looks at what is left of the certificates' lives. They are renewed a month before their end, so a
/// machine that sleeps in between is no harm.
const RENEWAL_PERIOD: Duration = Duration::from_secs(24 * 3600);

impl ApiServer {
    /// Opens the store and the certificates and makes the objects that every cloud has.
    ///
    /// # Errors
    /// When the state directory cannot be used or is in use, or its contents are damaged.
    pub async fn open(config: ApiServerConfig) -> Result<Arc<Self>, OpenError> {
        let pki = pki::Pki::open(&config)?;
        let store = Store::open(&config.state_dir.join("store"), &StoreOptions::default())?;
        let registry = Registry::new(kinds::rows(), kinds::views());
        let mut services = Vec::new();
        if let Some(resource) = registry.find("", "v1", "services") {
            for record in store.list(&resource.tag, &Range::default()).items {
                let object = object::body::parse(&record)
                    .map_err(|source| OpenError::Bootstrap { object: record.key.to_string(), source })?;
                services.push(object);
            }
        }
        let services = ServiceAllocator::new(config.service_cidr, services);
        let openapi = openapi::Documents::new(&registry);
        let core = Core { store, registry, services, streams: ArcSwapOption::empty() };
        bootstrap::run(&core, &config).await?;
        Ok(Arc::new(Self {
            core: Arc::new(core),
            config,
            openapi,
            ready_checks: ArcSwap::default(),
            metrics: ArcSwapOption::empty(),
            pki,
            kubeconfig_file: Mutex::default(),
        }))
    }

    /// Serves connections of `listener` until `shutdown`, then lets requests in progress finish for some seconds.
    ///
    /// # Errors
    /// When the certificates cannot be used.
    pub async fn serve(
        self: &Arc<Self>,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<(), OpenError> {
        let tls = self
            .pki
            .tls_config()
            .map_err(|message| OpenError::Pki { path: self.config.state_dir.join("pki"), message })?;
        tokio::select! {
            () = server::serve(self.clone(), listener, tls, shutdown) => Ok(()),
            // Never ends, so nothing is dropped before the server has drained.
            never = self.keep_certificates() => match never {},
        }
    }

    /// Renews certificates in time. A failure is told and tried again the next day, a month of which is left.
    async fn keep_certificates(self: &Arc<Self>) -> Infallible {
        loop {
            tokio::time::sleep(RENEWAL_PERIOD).await;
            let server = self.clone();
            // Renewing flushes files.
            match tokio::task::spawn_blocking(move || server.renew_certificates(Timestamp::now())).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "cannot renew the certificates"),
                Err(error) => tracing::error!(%error, "renewing the certificates failed"),
            }
        }
    }

    fn renew_certificates(&self, now: Timestamp) -> Result<(), String> {
        if !self.pki.renew(now)? {
            return Ok(());
        }
        tracing::info!("the administrator's certificate was renewed");
        let file = self.kubeconfig_file.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((path, listen)) = file else { return Ok(()) };
        self.write_kubeconfig(&path, listen).map_err(|e| format!("cannot write {}: {e}", path.display()))
    }

    /// Finishes what is being written and closes the store; later writes fail.
    pub async fn close(&self) {
        self.core.store.close().await;
    }

    /// The API for a component of this process, under the name `user`.
    pub fn cluster(&self, user: &str) -> Arc<dyn Cluster> {
        Arc::new(access::InProcess { core: self.core.clone(), user: Identity::component(user) })
    }

    /// Tells who runs the pods: logs, exec and attach work from then on.
    pub fn set_streams(&self, streams: Arc<dyn PodStreams>) {
        self.core.streams.store(Some(Arc::new(streams)));
    }

    /// Sets what `/metrics` answers: a text in the format of OpenMetrics.
    pub fn set_metrics(&self, source: impl Fn() -> String + Send + Sync + 'static) {
        self.metrics.store(Some(Arc::new(Box::new(source))));
    }

    /// Sets what `/readyz` looks at besides the server itself.
    pub fn set_ready_checks(&self, checks: Vec<ReadyCheck>) {
        self.ready_checks.store(Arc::new(checks));
    }

    /// The administrator's kubeconfig for a server at `listen`. It holds a private key.
    pub fn kubeconfig(&self, listen: SocketAddr) -> String {
        let mut reach = listen;
        if listen.ip().is_unspecified() {
            reach.set_ip(if listen.is_ipv4() {
                [127, 0, 0, 1].into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        let admin = self.pki.admin();
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: cumulet\nclusters:\n- name: cumulet\n  cluster:\n    \
             server: https://{reach}\n    certificate-authority-data: {}\ncontexts:\n- name: cumulet\n  context:\n    \
             cluster: cumulet\n    user: kubernetes-admin\nusers:\n- name: kubernetes-admin\n  user:\n    \
             client-certificate-data: {}\n    client-key-data: {}\n",
            STANDARD.encode(self.pki.ca_pem()),
            STANDARD.encode(&admin.cert),
            STANDARD.encode(&admin.key),
        )
    }

    /// The certificate of the cloud's authority, as PEM text: what pods get to verify this server.
    pub fn ca_pem(&self) -> &str {
        self.pki.ca_pem()
    }

    /// Writes the administrator's kubeconfig for a server at `listen`, readable only by its owner. It is written
    /// again there when the certificate is renewed.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_kubeconfig(&self, path: &std::path::Path, listen: SocketAddr) -> std::io::Result<()> {
        pki::write_private(path, &self.kubeconfig(listen))?;
        let mut file = self.kubeconfig_file.lock().unwrap_or_else(PoisonError::into_inner);
        *file = Some((path.to_owned(), listen));
        Ok(())
    }
}
