//! From frames to messages: joins the parts of a message and reads its JSON.

use crate::frame::{Frame, Kind};
use serde::de::DeserializeOwned;

/// A message that is none.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The parts exceed the receiver's limit, in bytes.
    #[error("a message exceeds the limit of {0} bytes")]
    TooLong(usize),
    /// Not the JSON that was expected.
    #[error("not a message: {0}")]
    Json(#[from] serde_json::Error),
}

/// Joins messages, up to a limit in bytes.
#[derive(Debug)]
pub struct Assembler {
    limit: usize,
    begun: Vec<u8>,
}

impl Assembler {
    /// Takes messages of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, begun: Vec::new() }
    }

    /// Forgets a message that has begun.
    pub fn clear(&mut self) {
        self.begun = Vec::new();
    }

    /// Takes a frame of kind [`Kind::Part`] or [`Kind::Message`]; the message when it is complete.
    ///
    /// # Errors
    /// [`MessageError`]; the message is dropped.
    pub fn push<T: DeserializeOwned>(&mut self, frame: &Frame) -> Result<Option<T>, MessageError> {
        if self.begun.len() + frame.payload.len() > self.limit {
            self.clear();
            return Err(MessageError::TooLong(self.limit));
        }
        if frame.kind == Kind::Part {
            self.begun.extend_from_slice(&frame.payload);
            return Ok(None);
        }
        if self.begun.is_empty() {
            return Ok(Some(serde_json::from_slice(&frame.payload)?));
        }
        let mut whole = std::mem::take(&mut self.begun);
        whole.extend_from_slice(&frame.payload);
        Ok(Some(serde_json::from_slice(&whole)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_joined_up_to_the_limit() {
        let frame = |kind, text: &str| Frame { kind, stream: 0, payload: text.into() };
        let mut assembler = Assembler::new(8);
        assert_eq!(assembler.push::<String>(&frame(Kind::Part, "\"ab")).unwrap(), None);
        assert_eq!(assembler.push(&frame(Kind::Message, "c\"")).unwrap(), Some("abc".to_owned()));
        assert_eq!(assembler.push(&frame(Kind::Message, "\"d\"")).unwrap(), Some("d".to_owned()));
        assembler.push::<String>(&frame(Kind::Part, "\"abcdef")).unwrap();
        let too_long = assembler.push::<String>(&frame(Kind::Message, "gh\""));
        assert!(matches!(too_long, Err(MessageError::TooLong(8))));
        let broken = assembler.push::<String>(&frame(Kind::Message, "{"));
        assert!(matches!(broken, Err(MessageError::Json(_))));
        assert_eq!(assembler.push(&frame(Kind::Message, "\"d\"")).unwrap(), Some("d".to_owned()));
    }
}
