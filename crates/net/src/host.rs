//! Kernel parameters and routes of the machine around the network.
//!
//! The only machine-wide parameter that is touched is `net.ipv4.ip_forward`; that it was off is noted in a file
//! before it is changed, so that a removal after a crash can restore it. The bridge's own parameters vanish with it.

use crate::Error;
use crate::netlink::{Attributes, Socket, u32_at};
use crate::network::RoutedCidr;
use ipnet::Ipv4Net;
use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Sets the parameters of the bridge itself.
pub(crate) fn configure_bridge(bridge: &str) -> Result<(), Error> {
    // Connections between 127.0.0.1 and pods (a node port on loopback, a server of this machine that listens only
    // there) are translated by nftables, which also drops what pods send to 127.0.0.0/8 by themselves.
    write(&format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet"), "1")?;
    // Pods of one bridge reach each other through its address on purpose: no "go there directly" messages.
    write(&format!("/proc/sys/net/ipv4/conf/{bridge}/send_redirects"), "0")?;
    // A kernel without IPv6 has no such file, which is just as well.
    match write(&format!("/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6"), "1") {
        Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Turns packet forwarding on.
pub(crate) fn enable_forwarding(record: &Path) -> Result<(), Error> {
    let current = std::fs::read_to_string(FORWARD).map_err(file(FORWARD))?;
    if current.trim() != "0" {
        return Ok(());
    }
    std::fs::write(record, "net.ipv4.ip_forward = 0\n").map_err(file(record))?;
    write(FORWARD, "1")
}

/// Turns packet forwarding off again if we turned it on and nobody else (any other bridge) can be relying on it.
pub(crate) fn restore_forwarding(record: &Path, other_bridges: bool) -> Result<(), Error> {
    match std::fs::remove_file(record) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(file(record))?,
    }
    if other_bridges { Ok(()) } else { write(FORWARD, "0") }
}

fn write(path: &str, value: &str) -> Result<(), Error> {
    // A parameter that already has the value is not written: a container may have /proc/sys read-only but right.
    if std::fs::read_to_string(path).is_ok_and(|current| current.trim() == value) {
        return Ok(());
    }
    std::fs::write(path, value).map_err(file(path))
}

fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { path, source }
}

/// The IPv4 routes of the main table, without the default route.
pub(crate) struct Routes(Vec<(Ipv4Net, String)>);

impl Routes {
    /// Asks the kernel.
    pub(crate) fn read(socket: &mut Socket) -> io::Result<Self> {
        let mut devices = HashMap::new();
        socket.dump(
            libc::RTM_GETLINK,
            |m| m.link(libc::AF_UNSPEC as u8, 0, 0),
            |_, body| {
                let name = Attributes(body.get(16..).unwrap_or_default())
                    .find(|(kind, _)| *kind == libc::IFLA_IFNAME);
                if let (Some(index), Some((_, name))) = (u32_at(body, 4), name) {
                    let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
                    devices.insert(index, name);
                }
            },
        )?;
        let mut routes = Vec::new();
        socket.dump(
            libc::RTM_GETROUTE,
            |m| m.route(0, 0, 0),
            |_, body| {
                if let Some((cidr, device)) = parse_route(body) {
                    routes.push((
                        cidr,
                        devices.get(&device).cloned().unwrap_or_else(|| "no device".to_owned()),
                    ));
                }
            },
        )?;
        Ok(Self(routes))
    }

    /// Fails when a range overlaps with a route of another device.
    pub(crate) fn check(&self, ranges: &[RoutedCidr], ours: &str) -> Result<(), Error> {
        for (number, range) in ranges.iter().enumerate() {
            let cidr = range.cidr.trunc();
            if let Some(other) = ranges[..number].iter().find(|other| overlap(other.cidr, cidr)) {
                let (a, b) = (other.flag, range.flag);
                return Err(Error::Invalid(format!(
                    "{a} {} and {b} {cidr} overlap: change one of them",
                    other.cidr
                )));
            }
            let conflict = self.0.iter().find(|(route, device)| device != ours && overlap(*route, cidr));
            if let Some((route, device)) = conflict {
                let (route, device, flag) = (*route, device.clone(), range.flag);
                return Err(Error::RouteConflict { cidr, route, device, flag });
            }
        }
        Ok(())
    }
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Destination and device of a unicast route in the main table; `None` for others and for the default route.
fn parse_route(body: &[u8]) -> Option<(Ipv4Net, u32)> {
    let [family, prefix, _, _, table, _, _, kind] = *body.first_chunk::<8>()?;
    let wanted = family == libc::AF_INET as u8 && table == libc::RT_TABLE_MAIN && kind == libc::RTN_UNICAST;
    if !wanted || prefix == 0 {
        return None;
    }
    let (mut destination, mut device) = (None, 0);
    for (kind, value) in Attributes(body.get(12..)?) {
        match kind {
            libc::RTA_DST => destination = value.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets)),
            libc::RTA_OIF => device = u32_at(value, 0).unwrap_or(0),
            _ => {}
        }
    }
    Some((Ipv4Net::new(destination?, prefix).ok()?, device))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(routes: &[(&str, &str)], ranges: &[&str], expected: Option<&str>) {
        let routes =
            Routes(routes.iter().map(|(net, dev)| (net.parse().unwrap(), (*dev).to_owned())).collect());
        let ranges: Vec<RoutedCidr> =
            ranges.iter().map(|r| RoutedCidr { cidr: r.parse().unwrap(), flag: "--cidr" }).collect();
        let message = routes.check(&ranges, "cum123456").err().map(|e| e.to_string());
        match (message, expected) {
            (None, None) => {}
            (Some(message), Some(part)) => assert!(message.contains(part), "{message}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn conflicts() {
        let pods = ["10.86.0.0/16", "10.97.0.0/16"];
        check(&[("192.168.0.0/16", "eth0")], &pods, None);
        check(&[("10.86.0.0/16", "cum123456")], &pods, None);
        check(&[("10.86.0.0/16", "cum999999")], &pods, Some("10.86.0.0/16 via cum999999"));
        check(&[("10.0.0.0/8", "tun0")], &pods, Some("--cidr"));
        check(&[("10.97.4.0/24", "eth1")], &pods, Some("10.97.4.0/24"));
        check(&[], &["10.0.0.0/8", "10.97.0.0/16"], Some("overlap"));
    }
}
