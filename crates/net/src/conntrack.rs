//! Removal of connection-tracking entries.
//!
//! A UDP client that keeps sending keeps its translation alive, so one that talked to a pod through a service goes on
//! sending to that pod after it is gone. TCP needs nothing: the connection ends with the pod.

use crate::Error;
use crate::error::cannot;
use crate::netlink::{Attributes, Batch, Body, Socket};
use nix::sys::socket::SockProtocol;
use std::collections::HashSet;
use std::net::Ipv4Addr;

// From linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h.
const CT_DELETE: u16 = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8 | 2;
const CT_GET: u16 = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8 | 1;
const NFGEN_IPV4: [u8; 4] = [libc::AF_INET as u8, 0, 0, 0];
const NESTED: u16 = 1 << 15;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;

/// Forgets the UDP connections that are translated to one of these addresses and ports, so that the next packet of
/// their clients is translated anew. Returns how many there were.
///
/// # Errors
/// The kernel's refusal, also when it has no connection tracking over netlink.
pub fn flush_udp(endpoints: &HashSet<(Ipv4Addr, u16)>) -> Result<usize, Error> {
    let what = || cannot("forget UDP connections to removed endpoints");
    let mut socket = Socket::open(SockProtocol::NetlinkNetFilter).map_err(what())?;
    let mut stale = Vec::new();
    let collect = |_: u16, body: &[u8]| {
        let mut original = None;
        let mut answers_from = None;
        for (kind, value) in Attributes(body.get(4..).unwrap_or_default()) {
            match kind {
                CTA_TUPLE_ORIG => original = Some(value.to_vec()),
                CTA_TUPLE_REPLY => answers_from = udp_source(value),
                _ => {}
            }
        }
        if let (Some(original), Some(source)) = (original, answers_from)
            && endpoints.contains(&source)
        {
            stale.push(original);
        }
    };
    let request = |m: &mut Body<'_>| {
        m.raw(&NFGEN_IPV4);
    };
    socket.dump(CT_GET, request, collect).map_err(what())?;
    for tuple in &stale {
        let mut batch = Batch::default();
        batch.request(CT_DELETE, 0, |m| {
            m.raw(&NFGEN_IPV4).attr(CTA_TUPLE_ORIG | NESTED, tuple);
        });
        match socket.execute_all(batch) {
            // It timed out in between.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            other => other.map_err(what())?,
        }
    }
    Ok(stale.len())
}

/// Source address and port of a tuple, if it is UDP.
fn udp_source(tuple: &[u8]) -> Option<(Ipv4Addr, u16)> {
    let (mut address, mut port, mut udp) = (None, None, false);
    for (kind, value) in Attributes(tuple) {
        for (inner, value) in Attributes(value) {
            match (kind, inner) {
                (CTA_TUPLE_IP, CTA_IP_V4_SRC) => {
                    address = value.first_chunk::<4>().map(|o| Ipv4Addr::from(*o))
                }
                (CTA_TUPLE_PROTO, CTA_PROTO_NUM) => udp = value == [libc::IPPROTO_UDP as u8],
                (CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT) => {
                    port = value.first_chunk::<2>().map(|o| u16::from_be_bytes(*o));
                }
                _ => {}
            }
        }
    }
    if udp { Some((address?, port?)) } else { None }
}
