//! A small synchronous netlink client: requests are encoded by hand, several of them go out in one datagram, and the
//! kernel's acknowledgements are collected.
//!
//! Safe code only. A socket belongs to the network namespace of the thread that opened it. Answers come from the
//! kernel, but every length in them is checked all the same.

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

const HEADER_BYTES: usize = 16;
/// The kernel never sends a larger datagram in a dump.
const RECEIVE_BYTES: usize = 64 * 1024;
/// The kernel answers at once; longer means that something is badly wrong, and hanging would not help.
const TIMEOUT_S: i64 = 10;

pub(crate) const ACK: u16 = libc::NLM_F_ACK as u16;
pub(crate) const CREATE: u16 = libc::NLM_F_CREATE as u16;
pub(crate) const EXCL: u16 = libc::NLM_F_EXCL as u16;
pub(crate) const REPLACE: u16 = libc::NLM_F_REPLACE as u16;
const DUMP: u16 = libc::NLM_F_DUMP as u16;
const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;

/// Requests that go to the kernel in one datagram; it works through them in order, past failures too.
#[derive(Default)]
pub(crate) struct Batch {
    buf: Vec<u8>,
    count: u32,
}

impl Batch {
    /// Appends a request. `body` writes the fixed part and the attributes.
    pub(crate) fn request(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Body<'_>)) -> &mut Self {
        self.push(kind, flags | REQUEST | ACK, body)
    }

    fn push(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Body<'_>)) -> &mut Self {
        let start = self.buf.len();
        self.buf.extend_from_slice(&[0; 4]);
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(&flags.to_ne_bytes());
        // The sequence number counts from 0 here; `Socket` adds its own base.
        self.buf.extend_from_slice(&self.count.to_ne_bytes());
        self.buf.extend_from_slice(&[0; 4]);
        body(&mut Body { buf: &mut self.buf });
        let length = (self.buf.len() - start) as u32;
        self.buf[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.count += 1;
        self
    }
}

/// The body of a request being written.
pub(crate) struct Body<'a> {
    buf: &'a mut Vec<u8>,
}

impl Body<'_> {
    /// `struct ifinfomsg`. Flags that `flags` sets are the ones that change.
    pub(crate) fn link(&mut self, family: u8, index: u32, flags: u32) {
        self.buf.extend_from_slice(&[family, 0, 0, 0]);
        self.u32(index).u32(flags).u32(flags);
    }

    /// `struct ifaddrmsg` for IPv4.
    pub(crate) fn address(&mut self, prefix: u8, index: u32) {
        self.buf.extend_from_slice(&[libc::AF_INET as u8, prefix, 0, libc::RT_SCOPE_UNIVERSE]);
        self.u32(index);
    }

    /// `struct ndmsg` for a permanent IPv4 neighbour.
    pub(crate) fn neighbour(&mut self, index: u32) {
        self.buf.extend_from_slice(&[libc::AF_INET as u8, 0, 0, 0]);
        self.u32(index);
        self.buf.extend_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
        self.buf.extend_from_slice(&[0, 0]);
    }

    /// `struct rtmsg` for an IPv4 unicast route of the main table.
    pub(crate) fn route(&mut self, prefix: u8, scope: u8, flags: u32) {
        let (table, protocol) = (libc::RT_TABLE_MAIN, libc::RTPROT_BOOT);
        self.buf.extend_from_slice(&[
            libc::AF_INET as u8,
            prefix,
            0,
            0,
            table,
            protocol,
            scope,
            libc::RTN_UNICAST,
        ]);
        self.u32(flags);
    }

    /// Raw bytes of a fixed part.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.buf.extend_from_slice(bytes);
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_ne_bytes())
    }

    /// An attribute with a value; padded to four bytes.
    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let start = self.open(kind);
        self.buf.extend_from_slice(value);
        self.close(start)
    }

    /// A text attribute, with the terminating zero.
    pub(crate) fn attr_str(&mut self, kind: u16, value: &str) -> &mut Self {
        let start = self.open(kind);
        self.buf.extend_from_slice(value.as_bytes());
        self.buf.push(0);
        self.close(start)
    }

    /// An attribute made of attributes.
    pub(crate) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Body<'_>)) -> &mut Self {
        let start = self.open(kind);
        inner(self);
        self.close(start)
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.buf.len();
        self.buf.extend_from_slice(&[0; 2]);
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) -> &mut Self {
        let length = (self.buf.len() - start) as u16;
        self.buf[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        while !self.buf.len().is_multiple_of(4) {
            self.buf.push(0);
        }
        self
    }
}

/// One netlink socket.
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buf: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the network namespace of this thread.
    pub(crate) fn open(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&fd, ReceiveTimeout, &TimeVal::seconds(TIMEOUT_S))?;
        Ok(Self { fd, sequence: 1, buf: vec![0; RECEIVE_BYTES] })
    }

    /// Sends a batch and returns, for each request, `Ok` or the kernel's refusal.
    pub(crate) fn execute(&mut self, batch: Batch) -> io::Result<Vec<io::Result<()>>> {
        let (base, count) = self.send(batch)?;
        let mut results: Vec<Option<io::Result<()>>> = (0..count).map(|_| None).collect();
        let mut missing = count;
        while missing > 0 {
            let received = recv(self.fd.as_raw_fd(), &mut self.buf, MsgFlags::empty())?;
            for message in Messages(&self.buf[..received]) {
                let Some(slot) = results.get_mut(message.sequence.wrapping_sub(base) as usize) else {
                    continue;
                };
                if message.kind == NLMSG_ERROR && slot.is_none() {
                    *slot = Some(message.error());
                    missing -= 1;
                }
            }
        }
        Ok(results.into_iter().flatten().collect())
    }

    /// Sends one request and fails when the kernel refuses it.
    pub(crate) fn execute_all(&mut self, batch: Batch) -> io::Result<()> {
        self.execute(batch)?.into_iter().collect()
    }

    /// Asks for a dump and hands every message (type, body) to `each`.
    pub(crate) fn dump(
        &mut self,
        kind: u16,
        body: impl FnOnce(&mut Body<'_>),
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        let mut batch = Batch::default();
        batch.push(kind, REQUEST | DUMP, body);
        let (base, _) = self.send(batch)?;
        loop {
            let received = recv(self.fd.as_raw_fd(), &mut self.buf, MsgFlags::empty())?;
            for message in Messages(&self.buf[..received]).filter(|m| m.sequence == base) {
                match message.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return message.error(),
                    kind => each(kind, message.body),
                }
            }
        }
    }

    fn send(&mut self, mut batch: Batch) -> io::Result<(u32, u32)> {
        let base = self.sequence;
        self.sequence = self.sequence.wrapping_add(batch.count);
        let mut at = 0;
        while at < batch.buf.len() {
            let number = u32_at(&batch.buf, at + 8).unwrap_or(0).wrapping_add(base);
            batch.buf[at + 8..at + 12].copy_from_slice(&number.to_ne_bytes());
            at += u32_at(&batch.buf, at).unwrap_or(u32::MAX) as usize;
        }
        send(self.fd.as_raw_fd(), &batch.buf, MsgFlags::empty())?;
        Ok((base, batch.count))
    }
}

/// Sockets that are not in use. Taken out for a conversation and put back only when it went well, so that no answer
/// of a failed conversation is left in a socket, and no lock is held while the kernel works.
#[derive(Default)]
pub(crate) struct Pool(Mutex<Vec<Socket>>);

impl Pool {
    /// Runs a conversation on a route netlink socket.
    pub(crate) fn with<T>(&self, talk: impl FnOnce(&mut Socket) -> io::Result<T>) -> io::Result<T> {
        let idle = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut socket = match idle {
            Some(socket) => socket,
            None => Socket::open(SockProtocol::NetlinkRoute)?,
        };
        let result = talk(&mut socket)?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(socket);
        Ok(result)
    }
}

struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Message<'_> {
    /// What an `NLMSG_ERROR` says; error number 0 is an acknowledgement.
    fn error(&self) -> io::Result<()> {
        match u32_at(self.body, 0).map(|code| code as i32) {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = u32_at(self.0, 0)? as usize;
        let whole = self.0.get(..length).filter(|m| m.len() >= HEADER_BYTES)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind: u16_at(whole, 4)?, sequence: u32_at(whole, 8)?, body: &whole[HEADER_BYTES..] })
    }
}

/// The attributes in a part of a message.
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = u16_at(self.0, 0)? as usize;
        let whole = self.0.get(..length).filter(|a| a.len() >= 4)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The two highest bits mark nesting and byte order.
        Some((u16_at(whole, 2)? & 0x3fff, &whole[4..]))
    }
}

/// A native-endian number at an offset.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
