//! Linux networking for pods, in process: bridge, veth pairs, taps, addresses, nftables.
//!
//! ```text
//!   pod netns            host netns
//!   eth0 10.86.0.2/32 ── v<seed><address>, hairpin port ── cum<seed> 10.86.0.1/16 (+ added addresses) ── routing, nftables
//!   (or a virtual machine behind a tap of that name)
//! ```
//!
//! Pods hold a /32 and reach everything, other pods too, through the bridge's address: every packet is routed by the
//! host, so that address translation for services is undone on the way back without `br_netfilter`, and a pod that
//! reaches itself through a service needs no hairpin mode. Where bridged packets do pass netfilter (Docker loads
//! `br_netfilter`), translation happens on the bridge instead: ports are in hairpin mode and not isolated for its sake.
//!
//! Absent on purpose: services, pods (a pod is an address and a namespace here), `ip` and `nft` processes, threads,
//! tokio. All calls block for a short time (attach: under a millisecond; detach and [`nft::Nft::run`]: milliseconds)
//! and belong on a blocking thread. State lives in the kernel; a new process adopts it by opening the network again.

mod addresses;
mod conntrack;
mod error;
mod host;
mod netlink;
mod network;
pub mod nft;
pub mod pod_side;
pub mod tap;

pub use addresses::Addresses;
pub use conntrack::flush_udp;
pub use error::Error;
pub use network::{Netns, Network, NetworkConfig, RoutedCidr, hardware_address};
pub use pod_side::PodSide;

#[cfg(test)]
mod tests;
