//! What an API server is started with, and why a start fails.

use ipnet::Ipv4Net;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// The version that `/version` tells and that clients compare with their own.
pub const GIT_VERSION: &str = concat!("v1.36.0+cumulet.", env!("CARGO_PKG_VERSION"));

/// How an API server runs.
#[derive(Clone, Debug)]
pub struct ApiServerConfig {
    /// Where the store, the certificates and the keys are. Created when missing, mode 0700.
    pub state_dir: PathBuf,
    /// Addresses of Services; the first usable one belongs to `default/kubernetes`.
    pub service_cidr: Ipv4Net,
    /// Name of this machine's node; also a name in the server certificate.
    pub node_name: String,
    /// Where the server will listen: a name in the server certificate and the target of `default/kubernetes`.
    pub listen: SocketAddr,
    /// DNS zone of the cluster, for the names in the server certificate.
    pub cluster_domain: String,
}

impl ApiServerConfig {
    /// A configuration with Kubernetes' usual values for everything but the state directory.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            service_cidr: Ipv4Net::new_assert([10, 97, 0, 0].into(), 16),
            node_name: "localhost".into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 6443)),
            cluster_domain: "cluster.local".into(),
        }
    }

    /// The address of the Service `default/kubernetes`: the first after the network's own.
    pub fn first_service_ip(&self) -> Option<Ipv4Addr> {
        self.service_cidr.hosts().next()
    }
}

/// Why an API server could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or directory of the state directory could not be used.
    #[error("cannot use {path}: {source}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A certificate or key could not be made or read.
    #[error("certificates in {path}: {message}; remove the directory to have new ones made")]
    Pki {
        /// Directory of the certificates.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The store could not be opened.
    #[error("cannot open the store: {0}")]
    Store(#[from] cumulet_store::OpenError),
    /// The default objects could not be created.
    #[error("cannot create {object}: {source}")]
    Bootstrap {
        /// Which one.
        object: String,
        /// Why.
        source: cumulet_api::Status,
    },
    /// The configuration makes no sense.
    #[error("{0}")]
    Config(String),
}
