//! TCP connections that belong to an identity that is gone: the kernel ends them, and their programs see an error at
//! their next call instead of waiting for an answer that never comes.

use super::netlink::{Message, Netlink};
use crate::error::{Doing, Error};
use nix::sys::socket::SockProtocol;
use std::net::{IpAddr, Ipv6Addr};

/// Numbers of `linux/sock_diag.h`, `inet_diag.h` and the kernel's TCP states.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const STATE_LISTEN: u32 = 10;
/// Where `struct inet_diag_sockid` lies in a message, and its length.
const ID_AT: usize = 4;
const ID_BYTES: usize = 48;

/// Aborts all TCP connections but those over loopback, whose both ends are in this guest; the number of them.
///
/// The interface has to be down, so that no reset leaves the machine under the old address.
pub(crate) fn abort_connections() -> Result<u32, Error> {
    let what = || "abort TCP connections".to_owned();
    let mut netlink = Netlink::open(SockProtocol::NetlinkSockDiag).doing(what)?;
    let mut aborted = 0;
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let mut found = vec![];
        let dump = Message::new(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, &request(family, &[0; ID_BYTES]));
        let listed = netlink.dump(dump, |body| found.extend(foreign(family, body)));
        match listed {
            // A kernel without IPv6.
            Err(e) if family == libc::AF_INET6 as u8 && e.raw_os_error() == Some(libc::ENOENT) => continue,
            result => result.doing(what)?,
        }
        for id in found {
            match netlink.request(Message::new(SOCK_DESTROY, 0, &request(family, &id))) {
                Ok(()) => aborted += 1,
                // It ended by itself.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
                Err(e) => return Err(e).doing(what),
            }
        }
    }
    Ok(aborted)
}

/// A `struct inet_diag_req_v2`.
fn request(family: u8, id: &[u8; ID_BYTES]) -> Vec<u8> {
    let states = !(1_u32 << STATE_LISTEN);
    let head = [family, libc::IPPROTO_TCP as u8, 0, 0];
    [&head[..], &states.to_ne_bytes(), id].concat()
}

/// The socket of a `struct inet_diag_msg`, unless it is bound to loopback.
fn foreign(family: u8, body: &[u8]) -> Option<[u8; ID_BYTES]> {
    let id: [u8; ID_BYTES] = body.get(ID_AT..ID_AT + ID_BYTES)?.try_into().ok()?;
    let source: [u8; 16] = id[4..20].try_into().ok()?;
    let address = if family == libc::AF_INET as u8 {
        IpAddr::from([source[0], source[1], source[2], source[3]])
    } else {
        Ipv6Addr::from(source).to_canonical()
    };
    (!address.is_loopback()).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    fn message(family: i32, source: &[u8]) -> Option<[u8; ID_BYTES]> {
        let mut body = vec![0; ID_AT + ID_BYTES];
        body[8..8 + source.len()].copy_from_slice(source);
        foreign(family as u8, &body)
    }

    #[test]
    fn loopback_is_left_alone() {
        assert!(message(libc::AF_INET, &[127, 0, 0, 5]).is_none());
        assert!(message(libc::AF_INET, &[10, 0, 0, 5]).is_some());
        assert!(message(libc::AF_INET6, &Ipv6Addr::LOCALHOST.octets()).is_none());
        let mapped = "::ffff:127.0.0.1".parse::<Ipv6Addr>().unwrap();
        assert!(message(libc::AF_INET6, &mapped.octets()).is_none());
        assert!(foreign(libc::AF_INET as u8, &[0; 20]).is_none());
    }

    #[test]
    fn connections_of_an_address_end() {
        // In a network namespace of its own: a thread can have one.
        let in_own_namespace = || {
            if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
                return; // needs root
            }
            crate::net::loopback_up().unwrap();
            let network = cumulet_guest_proto::spec::Network {
                interface: "lo".to_owned(),
                addresses: vec!["127.0.0.1/8".to_owned(), "10.9.9.9/32".to_owned()],
                ..Default::default()
            };
            crate::net::configure(&network).unwrap();
            let listener = TcpListener::bind("10.9.9.9:0").unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let local = TcpListener::bind("127.0.0.1:0").unwrap();
            let kept = TcpStream::connect(local.local_addr().unwrap()).unwrap();
            match abort_connections() {
                Ok(aborted) => assert!(aborted >= 1),
                // A kernel without CONFIG_INET_DIAG_DESTROY, or without the module.
                Err(_) => return,
            }
            assert!(client.read(&mut [0]).is_err());
            kept.set_nonblocking(true).unwrap();
            assert_eq!((&kept).read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        };
        std::thread::spawn(in_own_namespace).join().unwrap();
    }
}
