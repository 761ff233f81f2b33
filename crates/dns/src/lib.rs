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

/// What the server sends for a packet when an upstream, if it needs one, answers `upstream`: the whole way of hostile
/// bytes without sockets, for fuzzing.
#[doc(hidden)]
pub fn exchange(zone: &Zone, packet: &[u8], upstream: &[u8], tcp: bool) -> Option<Vec<u8>> {
    use answer::{Outcome, Transport, answer};
    match answer(zone, packet, if tcp { Transport::Tcp } else { Transport::Udp }) {
        Outcome::Reply(reply) => Some(reply),
        Outcome::Drop => None,
        Outcome::Forward(request) => {
            request.upstream_query(1)?;
            Some(request.relay(upstream.to_vec()))
        }
        Outcome::Chase(reply, request, query) => {
            request.query_for(1, query)?;
            Some(request.complete(*reply, upstream))
        }
    }
}
