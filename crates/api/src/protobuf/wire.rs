//! The protobuf wire format: tags, varints, lengths. Borrows from the input and allocates nothing.

use super::{DecodeError, malformed};

/// The value of one field as it lies on the wire.
#[derive(Clone, Copy, Debug)]
pub(super) enum Raw<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32,
    Bytes(&'a [u8]),
}

impl<'a> Raw<'a> {
    pub(super) fn varint(self) -> Result<u64, DecodeError> {
        match self {
            Self::Varint(number) => Ok(number),
            _ => malformed("unexpected wire type"),
        }
    }

    pub(super) fn bytes(self) -> Result<&'a [u8], DecodeError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => malformed("unexpected wire type"),
        }
    }

    pub(super) fn text(self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes()?).or_else(|_| malformed("a string is not UTF-8"))
    }

    pub(super) fn double(self) -> Result<f64, DecodeError> {
        match self {
            Self::Fixed64(bytes) => Ok(f64::from_le_bytes(bytes)),
            _ => malformed("unexpected wire type"),
        }
    }
}

/// Walks over the fields of one message.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next field with its number; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Raw<'a>)>, DecodeError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = match u32::try_from(tag >> 3) {
            Ok(number) if number > 0 && number < 1 << 29 => number,
            _ => return malformed("illegal field number"),
        };
        let raw = match tag & 7 {
            0 => Raw::Varint(self.varint()?),
            1 => {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(self.take(8)?);
                Raw::Fixed64(bytes)
            }
            2 => {
                let length = self.varint()?;
                // A length beyond usize is beyond the input too.
                Raw::Bytes(self.take(usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            5 => {
                self.take(4)?;
                Raw::Fixed32
            }
            // Groups (3, 4) were given up before Kubernetes began.
            _ => return malformed("illegal wire type"),
        };
        Ok(Some((number, raw)))
    }

    /// The next number of a packed list; `None` at the end.
    pub(super) fn packed_varint(&mut self) -> Result<Option<u64>, DecodeError> {
        if self.rest.is_empty() { Ok(None) } else { self.varint().map(Some) }
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0;
        for (i, byte) in self.rest.iter().enumerate() {
            if i == 10 {
                return malformed("a number is longer than 64 bits");
            }
            // The tenth byte has one useful bit; what is above falls off, as it does in Go.
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[i + 1..];
                return Ok(value);
            }
        }
        malformed("the message ends in the middle of a field")
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        match self.rest.split_at_checked(length) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => malformed("the message ends in the middle of a field"),
        }
    }
}
