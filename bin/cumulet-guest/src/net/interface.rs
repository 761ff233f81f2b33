//! Addresses, routes and neighbours of an interface.

use super::netlink::{Message, Netlink, attribute};
use crate::error::{Doing, Error};
use cumulet_guest_proto::spec::{Neighbour, Network, Route};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::SockProtocol;
use std::fs;
use std::net::IpAddr;

/// Numbers of `linux/if_link.h`, `if_addr.h`, `rtnetlink.h` and `neighbour.h`.
const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const RTNH_F_ONLINK: u32 = 4;
const NUD_PERMANENT: u16 = 0x80;
const ANY_STATE: i32 = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;

/// An interface with a socket to talk about it.
struct Interface {
    netlink: Netlink,
    name: String,
    index: u32,
}

/// Makes loopback work.
pub(crate) fn loopback_up() -> Result<(), Error> {
    Interface::open("lo")?.link(true, None, None)
}

/// Takes the interface up or down; down, it has no routes and sends nothing.
pub(crate) fn set_up(interface: &str, up: bool) -> Result<(), Error> {
    Interface::open(interface)?.link(up, None, None)
}

/// Gives the interface this configuration and no other: it is down while that goes on.
pub(crate) fn configure(network: &Network) -> Result<(), Error> {
    let mut interface = Interface::open(&network.interface)?;
    interface.link(false, None, None)?;
    interface.flush()?;
    let has_v6 = network.addresses.iter().any(|address| address.contains(':'));
    quiet_v6(&network.interface, has_v6);
    let mac = if network.mac.is_empty() { None } else { Some(parse_mac(&network.mac)?) };
    interface.link(true, mac, Some(network.mtu).filter(|mtu| *mtu > 0))?;
    for address in &network.addresses {
        interface.add_address(address)?;
    }
    for neighbour in &network.neighbours {
        interface.add_neighbour(neighbour)?;
    }
    network.routes.iter().try_for_each(|route| interface.add_route(route))
}

/// No addresses and no packets that nobody asked for. A kernel without IPv6 has no such files.
fn quiet_v6(interface: &str, wanted: bool) {
    let values = [("accept_ra", "0"), ("autoconf", "0"), ("disable_ipv6", if wanted { "0" } else { "1" })];
    for (file, value) in values {
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/{file}"), value);
    }
}

impl Interface {
    fn open(name: &str) -> Result<Self, Error> {
        let netlink = Netlink::open(SockProtocol::NetlinkRoute).doing(|| "open netlink".to_owned())?;
        let index = if_nametoindex(name).doing(|| format!("find interface {name}"))?;
        Ok(Self { netlink, name: name.to_owned(), index })
    }

    fn link(&mut self, up: bool, mac: Option<[u8; 6]>, mtu: Option<u32>) -> Result<(), Error> {
        let flags = if up { libc::IFF_UP as u32 } else { 0 };
        let body =
            [[0; 4], self.index.to_ne_bytes(), flags.to_ne_bytes(), (libc::IFF_UP as u32).to_ne_bytes()]
                .concat();
        // Address and size first: some devices take them only while they are down.
        if mac.is_some() || mtu.is_some() {
            let unchanged = [[0; 4], self.index.to_ne_bytes(), [0; 4], [0; 4]].concat();
            let mut message = Message::new(libc::RTM_NEWLINK, 0, &unchanged);
            if let Some(mac) = mac {
                message = message.attribute(IFLA_ADDRESS, &mac);
            }
            if let Some(mtu) = mtu {
                message = message.attribute(IFLA_MTU, &mtu.to_ne_bytes());
            }
            self.netlink.request(message).doing(|| format!("set address or MTU of {}", self.name))?;
        }
        let message = Message::new(libc::RTM_NEWLINK, 0, &body);
        self.netlink
            .request(message)
            .doing(|| format!("take {} {}", self.name, if up { "up" } else { "down" }))
    }

    /// Removes all addresses.
    fn flush(&mut self) -> Result<(), Error> {
        const BODY_BYTES: usize = 8;
        let mut found = vec![];
        let dump = Message::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &[0; BODY_BYTES]);
        let index = self.index;
        let of_this = |body: &[u8]| body.get(4..8) == Some(&index.to_ne_bytes());
        let each = |body: &[u8]| {
            if of_this(body)
                && let Some((fixed, attributes)) = body.split_at_checked(BODY_BYTES)
                && let Some(address) = attribute(attributes, IFA_LOCAL).or(attribute(attributes, IFA_ADDRESS))
            {
                found.push((fixed.to_vec(), address.to_vec()));
            }
        };
        self.netlink.dump(dump, each).doing(|| format!("list addresses of {}", self.name))?;
        for (fixed, address) in found {
            let message = Message::new(libc::RTM_DELADDR, 0, &fixed).attribute(IFA_LOCAL, &address);
            match self.netlink.request(message) {
                Err(e) if e.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
                result => result.doing(|| format!("remove an address of {}", self.name))?,
            }
        }
        Ok(())
    }

    fn add_address(&mut self, text: &str) -> Result<(), Error> {
        let (address, prefix) = parse_prefix(text)?;
        let bytes = octets(address);
        let mut body = vec![family(address), prefix, 0, 0];
        body.extend_from_slice(&self.index.to_ne_bytes());
        let message = Message::new(libc::RTM_NEWADDR, ANY_STATE, &body)
            .attribute(IFA_LOCAL, &bytes)
            .attribute(IFA_ADDRESS, &bytes);
        self.netlink.request(message).doing(|| format!("add address {text} to {}", self.name))
    }

    fn add_neighbour(&mut self, neighbour: &Neighbour) -> Result<(), Error> {
        let address = parse_ip(&neighbour.address)?;
        let mut body = vec![family(address), 0, 0, 0];
        body.extend_from_slice(&self.index.to_ne_bytes());
        body.extend_from_slice(&NUD_PERMANENT.to_ne_bytes());
        body.extend_from_slice(&[0, 0]);
        let message = Message::new(libc::RTM_NEWNEIGH, ANY_STATE, &body)
            .attribute(NDA_DST, &octets(address))
            .attribute(NDA_LLADDR, &parse_mac(&neighbour.mac)?);
        self.netlink.request(message).doing(|| format!("add neighbour {}", neighbour.address))
    }

    fn add_route(&mut self, route: &Route) -> Result<(), Error> {
        let (destination, prefix) = parse_prefix(&route.destination)?;
        let gateway = if route.gateway.is_empty() { None } else { Some(parse_ip(&route.gateway)?) };
        let scope = if gateway.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
        let flags = if route.onlink { RTNH_F_ONLINK } else { 0 };
        // family, destination's and source's length, type of service, table, protocol, scope, kind, flags
        let mut body =
            vec![family(destination), prefix, 0, 0, libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, scope];
        body.push(libc::RTN_UNICAST);
        body.extend_from_slice(&flags.to_ne_bytes());
        let mut message = Message::new(libc::RTM_NEWROUTE, ANY_STATE, &body)
            .attribute(RTA_DST, &octets(destination))
            .attribute(RTA_OIF, &self.index.to_ne_bytes());
        if let Some(gateway) = gateway {
            message = message.attribute(RTA_GATEWAY, &octets(gateway));
        }
        self.netlink
            .request(message)
            .doing(|| format!("add route {} by way of {:?}", route.destination, route.gateway))
    }
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn parse_ip(text: &str) -> Result<IpAddr, Error> {
    text.parse().map_err(|_| Error::Invalid(format!("{text:?} is not an IP address")))
}

/// Address and prefix length of `10.86.0.7/16`; a whole address without one.
fn parse_prefix(text: &str) -> Result<(IpAddr, u8), Error> {
    let bad = || Error::Invalid(format!("{text:?} is not an address with a prefix length"));
    let (address, prefix) = text.split_once('/').unzip();
    let address = parse_ip(address.unwrap_or(text))?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map_or(Ok(longest), |prefix| prefix.parse().map_err(|_| bad()))?;
    if prefix > longest { Err(bad()) } else { Ok((address, prefix)) }
}

fn parse_mac(text: &str) -> Result<[u8; 6], Error> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    let bytes: Option<[u8; 6]> = bytes.and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| Error::Invalid(format!("{text:?} is not a hardware address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let check = |text: &str, expected: Option<(&str, u8)>| {
            let expected = expected.map(|(address, prefix)| (address.parse().unwrap(), prefix));
            assert_eq!(parse_prefix(text).ok(), expected, "{text}");
        };
        check("10.0.0.1/8", Some(("10.0.0.1", 8)));
        check("10.0.0.1", Some(("10.0.0.1", 32)));
        check("fd00::1/64", Some(("fd00::1", 64)));
        check("10.0.0.1/33", None);
        check("10.0.0/8", None);
        check("10.0.0.1/x", None);
        assert_eq!(parse_mac("02:00:00:00:0a:ff").unwrap(), [2, 0, 0, 0, 10, 255]);
        assert!(parse_mac("02:00:00:00:0a").is_err() && parse_mac("02:00:00:00:0a:zz").is_err());
    }
}
