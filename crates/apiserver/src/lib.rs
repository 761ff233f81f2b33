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
use registry::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// An API server with its store.
pub struct ApiServer {
    pub(crate) core: Arc<Core>,
    pub(crate) config: ApiServerConfig,
    pub(crate) openapi: openapi::Documents,
    pub(crate) ready_checks: ArcSwap<Vec<ReadyCheck>>,
    pki: pki::Pki,
}

impl ApiServer {
    /// Opens the store and the certificates and makes the objects that every cloud has.
    ///
    /// # Errors
    /// When the state directory cannot be used or is in use, or its contents are damaged.
    pub async fn open(config: ApiServerConfig) -> Result<Arc<Self>, OpenError> {
        let pki = pki::Pki::open(&config)?;
        let store = Store::open(&config.state_dir.join("store"), &StoreOptions::default())?;
        let registry = Registry::new(kinds::rows());
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
        Ok(Arc::new(Self { core: Arc::new(core), config, openapi, ready_checks: ArcSwap::default(), pki }))
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
        server::serve(self.clone(), listener, tls, shutdown).await;
        Ok(())
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
        let (cert, key) = self.pki.admin_pem();
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: cumulet\nclusters:\n- name: cumulet\n  cluster:\n    \
             server: https://{reach}\n    certificate-authority-data: {}\ncontexts:\n- name: cumulet\n  context:\n    \
             cluster: cumulet\n    user: kubernetes-admin\nusers:\n- name: kubernetes-admin\n  user:\n    \
             client-certificate-data: {}\n    client-key-data: {}\n",
            STANDARD.encode(self.pki.ca_pem()),
            STANDARD.encode(cert),
            STANDARD.encode(key),
        )
    }

    /// The certificate of the cloud's authority, as PEM text: what pods get to verify this server.
    pub fn ca_pem(&self) -> &str {
        self.pki.ca_pem()
    }

    /// Writes the administrator's kubeconfig for a server at `listen`, readable only by its owner.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_kubeconfig(&self, path: &std::path::Path, listen: SocketAddr) -> std::io::Result<()> {
        pki::write_private(path, &self.kubeconfig(listen))
    }
}
