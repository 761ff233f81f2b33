//! Frames that pods of one cloud send, as their taps see them.

use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// Packet type of what the host itself sends to a tap.
const OUTGOING: u8 = 4;
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;

/// Who said to be whom: the tap, the Ethernet source, and the IPv4 or ARP source if there is one.
pub(super) type Sender = (String, [u8; 6], Option<Ipv4Addr>);

/// Listens until it is stopped.
pub(super) struct Capture {
    stop: Arc<AtomicBool>,
    frames: Arc<AtomicU64>,
    thread: JoinHandle<anyhow::Result<BTreeSet<Sender>>>,
}

impl Capture {
    /// Captures on all interfaces whose names begin with `prefix`.
    pub(super) fn start(prefix: String) -> anyhow::Result<Self> {
        // Bound to no interface: taps that come later are heard from their first frame on.
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000))?;
        setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20))?;
        let (stop, frames) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), frames.clone());
        let thread = std::thread::spawn(move || listen(&socket, &prefix, &stopped, &count));
        Ok(Self { stop, frames, thread })
    }

    /// Ends, and gives everybody who sent something.
    pub(super) fn finish(self) -> anyhow::Result<BTreeSet<Sender>> {
        self.stop.store(true, Ordering::Release);
        let senders = self.thread.join().map_err(|_| anyhow::anyhow!("the capture panicked"))??;
        println!("{} frames of {} senders", self.frames.load(Ordering::Acquire), senders.len());
        Ok(senders)
    }
}

fn listen(
    socket: &OwnedFd,
    prefix: &str,
    stop: &AtomicBool,
    frames: &AtomicU64,
) -> anyhow::Result<BTreeSet<Sender>> {
    let mut senders = BTreeSet::new();
    let mut names: HashMap<usize, Option<String>> = HashMap::new();
    let mut frame = [0_u8; 64];
    while !stop.load(Ordering::Acquire) {
        let (length, from) = match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut frame) {
            Ok((length, Some(from))) => (length.min(frame.len()), from),
            Ok((_, None)) | Err(nix::Error::EAGAIN | nix::Error::EINTR | nix::Error::ENETDOWN) => continue,
            Err(error) => return Err(error.into()),
        };
        if from.pkttype() == OUTGOING {
            continue;
        }
        let name = names.entry(from.ifindex()).or_insert_with(|| {
            let index = u32::try_from(from.ifindex()).ok()?;
            let name = nix::net::if_::if_indextoname(index).ok()?.into_string().ok()?;
            name.starts_with(prefix).then_some(name)
        });
        if let (Some(name), Some((mac, address))) = (name, source(&frame[..length])) {
            frames.fetch_add(1, Ordering::AcqRel);
            senders.insert((name.clone(), mac, address));
        }
    }
    Ok(senders)
}

/// Who a frame is from.
fn source(frame: &[u8]) -> Option<([u8; 6], Option<Ipv4Addr>)> {
    let mac = frame.get(6..12)?.try_into().ok()?;
    let kind = u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?);
    let at = match kind {
        ARP => Some(28),
        IPV4 => Some(26),
        _ => None,
    };
    let address = at.and_then(|at| <[u8; 4]>::try_from(frame.get(at..at + 4)?).ok());
    Some((mac, address.map(Ipv4Addr::from).filter(|address| !address.is_unspecified())))
}
