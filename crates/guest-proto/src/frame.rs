//! Frames: how they look on the wire.
//!
//! ```text
//!   u32 length of payload · u32 stream · u8 kind · payload          numbers are big endian
//! ```
//!
//! The wire never carries [`MAGIC`] but at the beginning of a conversation. A header begins with a zero byte (lengths
//! are small) and ends with a kind (a small number), and `MAGIC` has neither, so it could only lie within one payload.
//! Where it does, the payload is cut in its middle and goes as two frames. A payload that ends with the beginning of
//! `MAGIC` is followed by an empty [`Kind::Pad`] frame, so that a decoder that waits for the next byte never waits long.

use crate::{MAGIC, MAX_FRAME_BYTES};

/// Length of a frame's header in bytes.
pub const HEADER_BYTES: usize = 9;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Nothing; ignored.
    Pad = 0,
    /// JSON [`crate::message::Hello`]; the first frame after [`MAGIC`] and only there.
    Hello = 1,
    /// A message goes on in the next frame of kind `Part` or `Message`.
    Part = 2,
    /// The (last part of the) JSON of a [`crate::message::ToGuest`] or [`crate::message::ToHost`].
    Message = 3,
    /// Raw bytes of standard input, host to guest.
    Stdin = 4,
    /// Raw bytes of standard output or of a terminal, guest to host.
    Stdout = 5,
    /// Raw bytes of standard error, guest to host.
    Stderr = 6,
    /// u8 [`Channel`]: no more bytes will come on it from the sender.
    Close = 7,
    /// u8 [`Channel`], u64 bytes of the channel, counted from its beginning, that the sender is done with.
    Window = 8,
    /// u16 columns, u16 rows of a terminal, host to guest.
    Resize = 9,
}

impl Kind {
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        use Kind::{Close, Hello, Message, Pad, Part, Resize, Stderr, Stdin, Stdout, Window};
        [Pad, Hello, Part, Message, Stdin, Stdout, Stderr, Close, Window, Resize]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// One direction of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Channel {
    /// Host to guest.
    Stdin = 0,
    /// Guest to host; the only output of a terminal.
    Stdout = 1,
    /// Guest to host.
    Stderr = 2,
}

impl Channel {
    /// The kind of frame that carries this channel's bytes.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::Stdin => Kind::Stdin,
            Self::Stdout => Kind::Stdout,
            Self::Stderr => Kind::Stderr,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Stdin, Self::Stdout, Self::Stderr].into_iter().find(|channel| *channel as u8 == byte)
    }
}

/// A frame that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: Kind,
    /// The stream it belongs to; 0 where that means nothing.
    pub stream: u32,
    /// At most [`MAX_FRAME_BYTES`].
    pub payload: Vec<u8>,
}

impl Frame {
    /// The channel of a [`Kind::Close`] frame.
    #[must_use]
    pub fn closed(&self) -> Option<Channel> {
        let [channel] = self.payload[..] else { return None };
        Channel::from_byte(channel)
    }

    /// Channel and offset of a [`Kind::Window`] frame.
    #[must_use]
    pub fn window(&self) -> Option<(Channel, u64)> {
        let (channel, offset) = self.payload.split_first()?;
        Some((Channel::from_byte(*channel)?, u64::from_be_bytes(offset.try_into().ok()?)))
    }

    /// Columns and rows of a [`Kind::Resize`] frame.
    #[must_use]
    pub fn size(&self) -> Option<(u16, u16)> {
        let [c1, c2, r1, r2] = self.payload[..] else { return None };
        Some((u16::from_be_bytes([c1, c2]), u16::from_be_bytes([r1, r2])))
    }
}

/// Appends `payload` as one frame or as many as it needs. All frames are of `kind`, except that a message's frames
/// before the last one are parts.
pub fn write(out: &mut Vec<u8>, kind: Kind, stream: u32, payload: &[u8]) {
    let mut rest = payload;
    loop {
        let whole = &rest[..rest.len().min(MAX_FRAME_BYTES)];
        let length = find_magic(whole).map_or(whole.len(), |at| at + MAGIC.len() / 2);
        let (now, later) = rest.split_at(length);
        let kind_now = if kind == Kind::Message && !later.is_empty() { Kind::Part } else { kind };
        header(out, kind_now, stream, now.len());
        out.extend_from_slice(now);
        if later.is_empty() {
            break;
        }
        rest = later;
    }
    if magic_begun(payload) > 0 {
        header(out, Kind::Pad, 0, 0);
    }
}

/// Appends a [`Kind::Close`] frame.
pub fn write_close(out: &mut Vec<u8>, stream: u32, channel: Channel) {
    write(out, Kind::Close, stream, &[channel as u8]);
}

/// Appends a [`Kind::Window`] frame: the sender is done with all bytes of the channel before `offset`.
pub fn write_window(out: &mut Vec<u8>, stream: u32, channel: Channel, offset: u64) {
    let mut payload = [0; 9];
    payload[0] = channel as u8;
    payload[1..].copy_from_slice(&offset.to_be_bytes());
    write(out, Kind::Window, stream, &payload);
}

/// Appends a [`Kind::Resize`] frame.
pub fn write_resize(out: &mut Vec<u8>, stream: u32, columns: u16, rows: u16) {
    let ([c1, c2], [r1, r2]) = (columns.to_be_bytes(), rows.to_be_bytes());
    write(out, Kind::Resize, stream, &[c1, c2, r1, r2]);
}

fn header(out: &mut Vec<u8>, kind: Kind, stream: u32, length: usize) {
    // At most MAX_FRAME_BYTES.
    out.extend_from_slice(&(length as u32).to_be_bytes());
    out.extend_from_slice(&stream.to_be_bytes());
    out.push(kind as u8);
}

/// Where [`MAGIC`] begins in `bytes`. Looks at every sixteenth byte of text only.
pub(crate) fn find_magic(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(window) = bytes.get(at..at + MAGIC.len()) {
        if window[MAGIC.len() - 1] < MAGIC[0] {
            at += MAGIC.len();
        } else if window == MAGIC {
            return Some(at);
        } else {
            at += 1;
        }
    }
    None
}

/// How many bytes at the end of `bytes` could be the beginning of [`MAGIC`].
pub(crate) fn magic_begun(bytes: &[u8]) -> usize {
    (1..MAGIC.len()).rev().find(|length| bytes.ends_with(&MAGIC[..*length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_frames() {
        let check = |write: &dyn Fn(&mut Vec<u8>), expected: &[u8]| {
            let mut out = Vec::new();
            write(&mut out);
            assert_eq!(out, expected);
        };
        check(&|o| write(o, Kind::Stdout, 7, b"hi"), &[0, 0, 0, 2, 0, 0, 0, 7, 5, b'h', b'i']);
        check(&|o| write(o, Kind::Message, 0, b"{}"), &[0, 0, 0, 2, 0, 0, 0, 0, 3, b'{', b'}']);
        check(&|o| write_close(o, 258, Channel::Stderr), &[0, 0, 0, 1, 0, 0, 1, 2, 7, 2]);
        check(
            &|o| write_window(o, 1, Channel::Stdin, 513),
            &[0, 0, 0, 9, 0, 0, 0, 1, 8, 0, 0, 0, 0, 0, 0, 0, 2, 1],
        );
        check(&|o| write_resize(o, 1, 80, 24), &[0, 0, 0, 4, 0, 0, 0, 1, 9, 0, 80, 0, 24]);
        check(
            &|o| write(o, Kind::Stdin, 1, &[0xf8]),
            &[0, 0, 0, 1, 0, 0, 0, 1, 4, 0xf8, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        );
    }

    #[test]
    fn the_magic_has_no_border() {
        assert_eq!(MAGIC.iter().filter(|byte| **byte == MAGIC[0]).count(), 1);
        assert!(MAGIC.iter().all(|byte| *byte >= MAGIC[0]));
    }

    proptest! {
        #[test]
        fn the_wire_never_carries_the_magic(
            pieces in prop::collection::vec(prop_oneof![
                prop::collection::vec(0xf8..=0xffu8, 0..20),
                Just(MAGIC.to_vec()),
                (1..16usize).prop_map(|n| MAGIC[..n].to_vec()),
                (1..16usize).prop_map(|n| MAGIC[n..].to_vec()),
            ], 0..30),
            stream in any::<u32>(),
        ) {
            let mut out = Vec::new();
            for chunk in pieces.chunks(3) {
                write(&mut out, Kind::Stdout, stream, &chunk.concat());
            }
            prop_assert!(!out.windows(MAGIC.len()).any(|window| window == MAGIC));
        }

        #[test]
        fn search_finds_the_first(mut before in prop::collection::vec(0xf0..=0xffu8, 0..100)) {
            let naive = |hay: &[u8]| hay.windows(MAGIC.len()).position(|window| window == MAGIC);
            prop_assert_eq!(find_magic(&before), naive(&before));
            before.extend(MAGIC);
            before.extend([0xff; 40]);
            prop_assert_eq!(find_magic(&before), naive(&before));
        }
    }
}
