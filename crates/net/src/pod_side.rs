//! The pod's side of its network: configures the interface in the network namespace of the calling thread.
//!
//! Synchronous, without threads: a pod's supervisor calls it before any program of the pod runs. The pod gets its
//! address as a /32 and the gateway as the only neighbour (see the crate's description why).

use crate::Error;
use crate::error::cannot;
use crate::netlink::{Attributes, Batch, CREATE, REPLACE, Socket, u32_at};
use ipnet::Ipv4Net;
use nix::sys::socket::SockProtocol;
use std::io;
use std::net::Ipv4Addr;

/// What a pod sees of its network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSide {
    /// Interface in the pod's namespace, such as `eth0`.
    pub interface: String,
    /// The pod's address and prefix length.
    pub address: Ipv4Net,
    /// Default gateway; need not lie within the prefix.
    pub gateway: Ipv4Addr,
    /// Maximum transmission unit in bytes; the kernel's default when 0.
    pub mtu: u32,
}

impl PodSide {
    /// Reads the text form that travels to a supervisor.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the value that is no address.
    pub fn parse(interface: &str, address: &str, gateway: &str, mtu: u32) -> Result<Self, Error> {
        let parsed =
            address.parse().map_err(|_| Error::Invalid(format!("{address:?} is not address/prefix")))?;
        let gateway =
            gateway.parse().map_err(|_| Error::Invalid(format!("{gateway:?} is not an address")))?;
        Ok(Self { interface: interface.to_owned(), address: parsed, gateway, mtu })
    }
}

/// Brings `lo` and the interface up and sets address and routes, in the calling thread's network namespace.
/// Idempotent.
///
/// # Errors
/// [`Error::NoInterface`] when it has not been attached; otherwise the kernel's refusal.
pub fn configure(side: &PodSide) -> Result<(), Error> {
    let what = || cannot(format!("configure {} with {}", side.interface, side.address));
    let mut socket = Socket::open(SockProtocol::NetlinkRoute).map_err(what())?;
    let index = link_index(&mut socket, &side.interface).map_err(what())?;
    let Some(index) = index else {
        return Err(Error::NoInterface { interface: side.interface.clone(), address: side.address.addr() });
    };
    socket.execute_all(requests(side, index)).map_err(what())
}

/// Brings `lo` up and nothing else: for a namespace that is to have no other interface.
///
/// # Errors
/// The kernel's refusal.
pub fn configure_loopback() -> Result<(), Error> {
    let mut batch = Batch::default();
    loopback_up(&mut batch);
    let result = Socket::open(SockProtocol::NetlinkRoute).and_then(|mut socket| socket.execute_all(batch));
    result.map_err(cannot("bring up lo"))
}

fn loopback_up(batch: &mut Batch) {
    batch.request(libc::RTM_NEWLINK, 0, |m| {
        m.link(libc::AF_UNSPEC as u8, 0, libc::IFF_UP as u32);
        m.attr_str(libc::IFLA_IFNAME, "lo");
    });
}

fn requests(side: &PodSide, index: u32) -> Batch {
    let mut batch = Batch::default();
    loopback_up(&mut batch);
    batch.request(libc::RTM_NEWLINK, 0, |m| {
        m.link(libc::AF_UNSPEC as u8, index, libc::IFF_UP as u32);
        if side.mtu > 0 {
            m.attr(libc::IFLA_MTU, &side.mtu.to_ne_bytes());
        }
    });
    add_address(&mut batch, index, side.address);
    let device = index.to_ne_bytes();
    if !side.address.contains(&side.gateway) {
        batch.request(libc::RTM_NEWROUTE, CREATE | REPLACE, |m| {
            m.route(32, libc::RT_SCOPE_LINK, 0);
            m.attr(libc::RTA_DST, &side.gateway.octets()).attr(libc::RTA_OIF, &device);
        });
    }
    batch.request(libc::RTM_NEWROUTE, CREATE | REPLACE, |m| {
        m.route(0, libc::RT_SCOPE_UNIVERSE, 0);
        m.attr(libc::RTA_GATEWAY, &side.gateway.octets()).attr(libc::RTA_OIF, &device);
    });
    batch
}

/// Appends a request that gives an interface an address; one that it already has is no error.
pub(crate) fn add_address(batch: &mut Batch, index: u32, address: Ipv4Net) {
    batch.request(libc::RTM_NEWADDR, CREATE | REPLACE, |m| {
        m.address(address.prefix_len(), index);
        let octets = address.addr().octets();
        m.attr(libc::IFA_LOCAL, &octets).attr(libc::IFA_ADDRESS, &octets);
    });
}

/// The index of an interface by name.
pub(crate) fn link_index(socket: &mut Socket, name: &str) -> io::Result<Option<u32>> {
    let mut index = None;
    // A dump, not a single get: it needs one code path, and namespaces of pods hold two interfaces.
    socket.dump(
        libc::RTM_GETLINK,
        |m| m.link(libc::AF_UNSPEC as u8, 0, 0),
        |_, body| {
            let named = Attributes(body.get(16..).unwrap_or_default()).any(|(kind, value)| {
                kind == libc::IFLA_IFNAME && value.strip_suffix(&[0]) == Some(name.as_bytes())
            });
            if named {
                index = u32_at(body, 4);
            }
        },
    )?;
    Ok(index)
}
