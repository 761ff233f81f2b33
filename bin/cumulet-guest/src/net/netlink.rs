//! Netlink: one request, its acknowledgement, nothing else.
//!
//! A message is a header, a fixed body and attributes; all lengths are rounded up to four bytes. What comes from the
//! kernel is read with bounds checked all the same.

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

const HEADER_BYTES: usize = 16;
const ERROR: u16 = libc::NLMSG_ERROR as u16;
const DONE: u16 = libc::NLMSG_DONE as u16;

/// A request being written.
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message with a fixed body. `flags` are added to `NLM_F_REQUEST`.
    pub(super) fn new(kind: u16, flags: i32, body: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(body);
        Self { bytes }
    }

    /// Appends an attribute.
    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.bytes.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// A socket.
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open(protocol: SockProtocol) -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request and waits for the kernel's word on it.
    pub(super) fn request(&mut self, message: Message) -> io::Result<()> {
        let mut message = message;
        let flags = u16::from_ne_bytes([message.bytes[6], message.bytes[7]]) | libc::NLM_F_ACK as u16;
        message.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.dump(message, |_| {})
    }

    /// Sends a request and hands every answer's body to `each`.
    pub(super) fn dump(&mut self, message: Message, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.sequence += 1;
        send(self.socket.as_raw_fd(), &message.finish(self.sequence), MsgFlags::empty())?;
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for (kind, sequence, body) in messages(&buffer[..length]) {
                if sequence != self.sequence {
                    continue;
                }
                match kind {
                    DONE => return Ok(()),
                    ERROR => {
                        let code = body.first_chunk().map_or(-libc::EIO, |code| i32::from_ne_bytes(*code));
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    _ => each(body),
                }
            }
        }
    }
}

/// Kind, sequence number and body of each message in a datagram.
fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let [l1, l2, l3, l4, k1, k2, _, _, s1, s2, s3, s4, ..] = *rest.first_chunk::<HEADER_BYTES>()?;
        let length = u32::from_ne_bytes([l1, l2, l3, l4]) as usize;
        let message = rest.get(..length).filter(|m| m.len() >= HEADER_BYTES)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k1, k2]), u32::from_ne_bytes([s1, s2, s3, s4]), &message[HEADER_BYTES..]))
    })
}

/// The value of an attribute behind a body's fixed part.
pub(super) fn attribute(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = attributes;
    while let Some([l1, l2, k1, k2]) = rest.first_chunk::<4>().copied() {
        let length = u16::from_ne_bytes([l1, l2]) as usize;
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes([k1, k2]) == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_on_the_wire() {
        let bytes = Message::new(20, 0, &[1, 2]).attribute(3, b"abc").attribute(4, b"d").finish(9);
        let header = [33, 0, 0, 0, 20, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        let rest = [1, 2, 0, 0, 7, 0, 3, 0, b'a', b'b', b'c', 0, 5, 0, 4, 0, b'd'];
        assert_eq!(bytes, [header.to_vec(), rest.to_vec()].concat());
        let parsed: Vec<_> = messages(&bytes).collect();
        assert_eq!(parsed, [(20, 9, &rest[..])]);
        assert_eq!(attribute(&rest[4..], 4), Some(&b"d"[..]));
        assert_eq!(attribute(&rest[4..], 5), None);
    }

    #[test]
    fn the_kernel_answers() {
        let mut netlink = Netlink::open(SockProtocol::NetlinkRoute).unwrap();
        let mut links = 0;
        let dump = Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[0; 16]);
        netlink.dump(dump, |_| links += 1).unwrap();
        assert!(links >= 1);
        let bad = Message::new(libc::RTM_GETLINK, 0, &[0; 16]);
        assert!(netlink.request(bad).is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_bounded(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            messages(&bytes).for_each(|(_, _, body)| assert!(attribute(body, 1).is_none_or(|value| value.len() < 200)));
        }
    }
}
