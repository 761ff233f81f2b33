//! What can go wrong below the pods' network.

use ipnet::Ipv4Net;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a request, or the conversation with it failed.
    #[error("cannot {what}: {source}")]
    Netlink {
        /// What was to be done.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// A range of ours is already routed elsewhere on this machine.
    #[error(
        "{cidr} overlaps with the route {route} via {device} of this machine: choose another range with {flag} \
         or remove that route"
    )]
    RouteConflict {
        /// The range that was asked for.
        cidr: Ipv4Net,
        /// The route that stands in its way.
        route: Ipv4Net,
        /// The device of that route.
        device: String,
        /// What the user changes.
        flag: &'static str,
    },
    /// A configuration value cannot work.
    #[error("{0}")]
    Invalid(String),
    /// Every address of the range is taken.
    #[error("no free address is left in {0}")]
    Exhausted(Ipv4Net),
    /// A kernel parameter cannot be read or written, or the note about it cannot be kept.
    #[error("cannot set up {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The interface to configure is not there.
    #[error("no interface {interface} for {address} in this network namespace")]
    NoInterface {
        /// Its name.
        interface: String,
        /// The address that it was to get.
        address: Ipv4Addr,
    },
    /// libnftables cannot be loaded.
    #[error("cannot load libnftables.so.1: {0}; install it with `apt install libnftables1`")]
    NftMissing(#[source] libloading::Error),
    /// libnftables gave no context (out of memory, or no permission to open netlink sockets).
    #[error("libnftables cannot start: it needs CAP_NET_ADMIN")]
    NftContext,
    /// The kernel or the parser refused a ruleset; nothing of it was applied.
    #[error("nftables refused the ruleset: {0}")]
    Nft(String),
}

/// Adds what was tried to an I/O error.
pub(crate) fn cannot(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Netlink { what, source }
}
