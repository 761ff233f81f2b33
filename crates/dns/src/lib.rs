//! Cluster DNS: authoritative for zones given as data, forwarding for everything else.
//!
//! ```text
//!   UDP, TCP ─► answer (pure: zone + packet → reply) ─► reply
//!                   └─ not our name ─► forward to an upstream of resolv.conf ─► its reply, unchanged
//! ```
//!
//! The [`Zone`] is swapped as a whole ([`arc_swap::ArcSwap`]), so a query sees one consistent zone and answers never
//! wait for a change. Packets are hostile: sizes and counts are checked before they are parsed, work in flight is
//! bounded, and what cannot be read gets FORMERR or nothing.
//!
//! Absent on purpose: a cache (upstreams have one), DNSSEC, dynamic updates, zone transfers, services and pods.

mod answer;
mod forward;
mod server;
mod zone;

pub use forward::Upstreams;
pub use server::{DnsServer, Error};
pub use zone::{Data, Zone};
