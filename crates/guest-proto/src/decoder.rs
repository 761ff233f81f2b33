//! From bytes to frames, a piece at a time.
//!
//! ```text
//!            MAGIC                     error
//!   Lost ───────────► Synchronised ───────────► Lost
//!                       │    ▲
//!                       └────┘ MAGIC, also in the middle of a frame: what was begun is dropped
//! ```
//!
//! Holds at most one frame. Never panics, whatever comes.

use crate::frame::{Frame, HEADER_BYTES, Kind, find_magic, magic_begun};
use crate::{MAGIC, MAX_FRAME_BYTES};

/// What came out of the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// The other side began a conversation: everything before is void.
    Sync,
    /// A frame.
    Frame(Frame),
}

/// The bytes are no frames. The decoder then skips everything until [`MAGIC`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The length field exceeds [`MAX_FRAME_BYTES`].
    #[error("a frame of {0} bytes exceeds the limit of {MAX_FRAME_BYTES}")]
    TooLong(u32),
    /// No such kind of frame.
    #[error("unknown kind of frame {0}")]
    UnknownKind(u8),
}

/// The decoder of one direction of a channel.
#[derive(Debug, Default)]
pub struct Decoder {
    synchronised: bool,
    /// Header and payload, as far as they came.
    begun: Vec<u8>,
    /// How many bytes at the end of what came are the beginning of `MAGIC`.
    matched: usize,
    /// What came instead of a header is the beginning of `MAGIC`; if that does not go on, this is the error.
    doubt: Option<DecodeError>,
}

impl Decoder {
    /// A decoder that waits for [`MAGIC`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Skips everything until the next [`MAGIC`]: the bytes made no sense to the caller.
    pub fn lose(&mut self) {
        self.synchronised = false;
        self.begun = Vec::new();
        self.doubt = None;
    }

    /// Takes bytes from the front of `input` until one thing is complete; `None` when `input` is used up.
    ///
    /// # Errors
    /// [`DecodeError`], once; then the decoder is lost until [`MAGIC`] and can be used on.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Decoded>, DecodeError> {
        loop {
            if self.doubt.is_some() {
                return self.resolve_doubt(input);
            }
            if self.synchronised && self.check_header()? && self.missing() == 0 {
                match input.first() {
                    // The frame may end with the beginning of MAGIC, which voids it: the next byte tells.
                    None if self.matched > 0 => return Ok(None),
                    Some(byte) if self.matched > 0 && *byte == MAGIC[self.matched] => self.lose(),
                    _ => match self.take_frame() {
                        Some(frame) => return Ok(Some(Decoded::Frame(frame))),
                        None => continue,
                    },
                }
            }
            if self.doubt.is_some() {
                continue;
            }
            if input.is_empty() {
                return Ok(None);
            }
            let wanted = if self.synchronised { self.missing() } else { input.len() };
            let (piece, rest) = input.split_at(wanted.min(input.len()));
            if let Some(end) = self.find_end_of_magic(piece) {
                *input = &input[end..];
                self.synchronise();
                return Ok(Some(Decoded::Sync));
            }
            *input = rest;
            if self.synchronised {
                self.begun.extend_from_slice(piece);
            }
        }
    }

    /// What came in place of a header went on like `MAGIC` so far.
    fn resolve_doubt(&mut self, input: &mut &[u8]) -> Result<Option<Decoded>, DecodeError> {
        let expected = &MAGIC[self.matched..];
        let same = input.iter().zip(expected).take_while(|(a, b)| a == b).count();
        *input = &input[same..];
        self.matched += same;
        if same == expected.len() {
            self.synchronise();
            return Ok(Some(Decoded::Sync));
        }
        if input.is_empty() {
            return Ok(None);
        }
        self.matched = 0;
        self.doubt.take().map_or(Ok(None), Err)
    }

    fn synchronise(&mut self) {
        *self = Self { synchronised: true, ..Self::default() };
    }

    /// How many bytes the header, or then the frame, still needs.
    fn missing(&self) -> usize {
        let Some([l1, l2, l3, l4, ..]) = self.begun.first_chunk::<HEADER_BYTES>() else {
            return HEADER_BYTES - self.begun.len();
        };
        let length = u32::from_be_bytes([*l1, *l2, *l3, *l4]);
        (HEADER_BYTES + length as usize).saturating_sub(self.begun.len())
    }

    /// Looks at a header as soon as it is there. A bad one loses the decoder: with an error, or in doubt when it may
    /// be a `MAGIC`; then the answer is false.
    fn check_header(&mut self) -> Result<bool, DecodeError> {
        let Some([l1, l2, l3, l4, .., kind]) = self.begun.first_chunk::<HEADER_BYTES>() else {
            return Ok(true);
        };
        let length = u32::from_be_bytes([*l1, *l2, *l3, *l4]);
        let error = if length as usize > MAX_FRAME_BYTES {
            DecodeError::TooLong(length)
        } else if Kind::from_byte(*kind).is_none() {
            DecodeError::UnknownKind(*kind)
        } else {
            return Ok(true);
        };
        self.lose();
        if self.matched == 0 {
            return Err(error);
        }
        self.doubt = Some(error);
        Ok(false)
    }

    /// The frame that is complete; `None` when it means nothing.
    fn take_frame(&mut self) -> Option<Frame> {
        let payload = self.begun.split_off(HEADER_BYTES);
        let header = std::mem::take(&mut self.begun);
        self.matched = 0;
        let [_, _, _, _, s1, s2, s3, s4, kind] = *header.first_chunk::<HEADER_BYTES>()?;
        let kind = Kind::from_byte(kind).filter(|kind| *kind != Kind::Pad)?;
        Some(Frame { kind, stream: u32::from_be_bytes([s1, s2, s3, s4]), payload })
    }

    /// Where in `piece` the first MAGIC ends, counting what came before; else notes how much of one is there.
    fn find_end_of_magic(&mut self, piece: &[u8]) -> Option<usize> {
        if self.matched > 0 {
            let expected = &MAGIC[self.matched..];
            let same = piece.iter().zip(expected).take_while(|(a, b)| a == b).count();
            if same == expected.len() {
                return Some(same);
            }
            if same == piece.len() {
                self.matched += same;
                return None;
            }
            // MAGIC's first byte occurs once in it, so no other MAGIC begins in what matched so far.
        }
        let found = find_magic(piece).map(|at| at + MAGIC.len());
        self.matched = if found.is_some() { 0 } else { magic_begun(piece) };
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::write;
    use proptest::prelude::*;

    fn decode(pieces: &[&[u8]]) -> Vec<Result<Decoded, DecodeError>> {
        let mut decoder = Decoder::new();
        let mut all = Vec::new();
        for piece in pieces {
            let mut input = *piece;
            loop {
                match decoder.next(&mut input) {
                    Ok(None) => break,
                    Ok(Some(decoded)) => all.push(Ok(decoded)),
                    Err(error) => all.push(Err(error)),
                }
            }
        }
        all
    }

    fn frame(kind: Kind, stream: u32, payload: &[u8]) -> Result<Decoded, DecodeError> {
        Ok(Decoded::Frame(Frame { kind, stream, payload: payload.to_vec() }))
    }

    #[test]
    fn bad_headers_are_refused_and_skipped() {
        let check = |header: [u8; 9], error| {
            let mut wire = MAGIC.to_vec();
            wire.extend(header);
            wire.extend(b"whatever");
            wire.extend(MAGIC);
            write(&mut wire, Kind::Stdout, 1, b"x");
            let expected =
                vec![Ok(Decoded::Sync), Err(error), Ok(Decoded::Sync), frame(Kind::Stdout, 1, b"x")];
            assert_eq!(decode(&[&wire]), expected);
        };
        check([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 3], DecodeError::TooLong(u32::MAX));
        check([0, 1, 0, 1, 0, 0, 0, 0, 3], DecodeError::TooLong(65537));
        check([0, 0, 0, 1, 0, 0, 0, 0, 77], DecodeError::UnknownKind(77));
    }

    #[test]
    fn a_frame_that_ends_like_magic_comes_at_once() {
        let mut wire = MAGIC.to_vec();
        write(&mut wire, Kind::Stdin, 3, &MAGIC[..5]);
        assert_eq!(decode(&[&wire]), [Ok(Decoded::Sync), frame(Kind::Stdin, 3, &MAGIC[..5])]);
    }

    proptest! {
        /// A peer dies anywhere in its frames, the next one begins: nothing of a broken frame comes through, and
        /// nothing of the new conversation is lost, however the bytes are cut.
        #[test]
        fn resynchronises_at_every_byte(
            old in prop::collection::vec(payload(), 1..4),
            cut in any::<prop::sample::Index>(),
            new in prop::collection::vec(payload(), 0..4),
            piece in 1..50usize,
        ) {
            let mut wire = MAGIC.to_vec();
            let mut ends = vec![];
            for payload in &old {
                write(&mut wire, Kind::Stdout, 1, payload);
                ends.push(wire.len());
            }
            wire.truncate(MAGIC.len() + cut.index(wire.len() - MAGIC.len() + 1));
            let whole = ends.iter().filter(|end| **end <= wire.len()).count();
            wire.extend(MAGIC);
            for payload in &new {
                write(&mut wire, Kind::Stderr, 2, payload);
            }
            let decoded = decode(&wire.chunks(piece).collect::<Vec<_>>());
            prop_assert!(decoded.iter().all(Result::is_ok));
            prop_assert_eq!(decoded.iter().filter(|d| **d == Ok(Decoded::Sync)).count(), 2);
            let bytes = |wanted: u32| -> Vec<u8> {
                decoded.iter().filter_map(|d| match d {
                    Ok(Decoded::Frame(f)) if f.stream == wanted => Some(f.payload.clone()),
                    _ => None,
                }).flatten().collect()
            };
            let (got, sent) = (bytes(1), old.concat());
            prop_assert!(got.len() >= old[..whole].concat().len() && sent.starts_with(&got));
            prop_assert_eq!(bytes(2), new.concat());
        }

        #[test]
        fn garbage_never_panics_nor_grows(
            garbage in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), 0xf8..=0xffu8], 0..2000),
            piece in 1..100usize,
        ) {
            let mut wire = MAGIC.to_vec();
            wire.extend(garbage);
            decode(&wire.chunks(piece).collect::<Vec<_>>());
        }
    }

    fn payload() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..60),
            prop::collection::vec(0xf8..=0xffu8, 0..60),
            (0..17usize).prop_map(|n| MAGIC[..n].to_vec()),
            Just([MAGIC, MAGIC].concat()),
        ]
    }
}
