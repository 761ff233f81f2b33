//! The kernel's device events, as a signal to look again. What they say does not matter: what is there is read from
//! sysfs, so an event that is lost or doubled changes nothing.

use crate::port::without_waiting;
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A subscription.
pub(crate) struct Uevents {
    socket: OwnedFd,
}

impl Uevents {
    pub(crate) fn subscribe() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let socket = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)?;
        const KERNEL_EVENTS: u32 = 1;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_EVENTS))?;
        Ok(Self { socket })
    }

    /// Takes all events; whether there was one.
    pub(crate) fn drain(&self) -> io::Result<bool> {
        let mut any = false;
        let mut buffer = [0; 4096];
        loop {
            let received = recv(self.socket.as_raw_fd(), &mut buffer, nix::sys::socket::MsgFlags::empty());
            match without_waiting(received.map_err(io::Error::from)) {
                Ok(0) => return Ok(any),
                Ok(_) => any = true,
                // Some were lost: look again all the same.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
