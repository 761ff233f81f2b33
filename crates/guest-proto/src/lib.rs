//! What the host and the agent inside a VM pod (`cumulet-guest`) say to each other over one byte channel.
//!
//! ```text
//!   host  ── MAGIC Hello{epoch} ──────────────►  guest      resynchronises at any byte
//!         ◄── MAGIC Hello{epoch} · Snapshot ───             everything the guest knows
//!         ── Request ─────► ◄──── Reply ───────             matched by number
//!         ── stdin ───────► ◄──── stdout, stderr ──         flow control per stream and channel
//!                           ◄──── Event ───────             a container ended
//! ```
//!
//! Invariants:
//! - The channel is a device that outlives both peers, and it may hold half a frame of a dead one. Therefore
//!   [`MAGIC`] begins a conversation, and no other bytes on the wire can ever form it (see [`frame`]).
//! - A frame's payload is at most [`MAX_FRAME_BYTES`], a message at most [`MAX_MESSAGE_BYTES`]; nothing is allocated
//!   on the word of a length field.
//! - Requests are idempotent, so a host that lost a reply asks again.
//! - Messages are JSON and fields are only ever added: a template may hold an older agent than the host that restores it.
//!
//! Absent on purpose: I/O, clocks, threads. Both sides drive [`host::HostLink`] and [`guest::GuestLink`] with bytes.

mod assembler;
mod bytes;
mod decoder;
pub mod flow;
pub mod frame;
pub mod guest;
pub mod host;
pub mod identity;
pub mod message;
pub mod spec;

pub use assembler::{Assembler, MessageError};
pub use bytes::Bytes;
pub use decoder::{DecodeError, Decoded, Decoder};
pub use frame::{Channel, Frame, Kind};

/// Version of the protocol. A peer that hears of a newer one answers with its own; the older one counts.
pub const VERSION: u32 = 1;
/// Largest payload of one frame, in bytes.
pub const MAX_FRAME_BYTES: usize = 64 * 1024;
/// Largest message (JSON over several frames) from the host to the guest, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
/// Largest message that a host takes from a guest, in bytes.
pub const MAX_GUEST_MESSAGE_BYTES: usize = 1024 * 1024;
/// Bytes of one channel of one stream that may be under way unacknowledged. Each side may have to keep as many. Twice
/// what the ends' buffers hold, so that neither waits for the other in software emulation.
pub const WINDOW_BYTES: u64 = 512 * 1024;
/// Name of the virtio-serial port.
pub const PORT_NAME: &str = "cumulet.0";
/// Begins a conversation. All bytes are ones that UTF-8 text never has, none is zero, and the first occurs once.
pub const MAGIC: [u8; 16] =
    [0xf8, 0xfd, 0xfa, 0xff, 0xf9, 0xfc, 0xfe, 0xfb, 0xff, 0xfa, 0xfd, 0xfb, 0xf9, 0xfe, 0xfc, 0xff];
