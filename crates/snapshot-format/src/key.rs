//! A template's key: a digest of everything that a clone shares with it.

use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// Digits that people see of a key.
const SHORT: usize = 12;

/// What a template is called: 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(pub [u8; 32]);

/// A text that is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no key of a template: a key has 64 lower-case hexadecimal digits")]
pub struct KeyError(String);

impl Key {
    /// The key of labelled parts. Two lists have the same key only when they have the same labels and the same bytes in
    /// the same order. Another version of the format gives other keys.
    pub fn of<'a>(parts: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| {
            // Lengths make it impossible to move a byte from one part into the next.
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        add(b"cumulet template");
        add(&crate::VERSION.to_le_bytes());
        for (label, bytes) in parts {
            add(label.as_bytes());
            add(bytes);
        }
        Self(hash.finalize().into())
    }

    /// The first digits, for people.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(SHORT);
        text
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let refused = || KeyError(text.chars().take(80).collect());
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(refused()),
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let mut key = [0; 32];
        if pairs.len() != key.len() || !rest.is_empty() {
            return Err(refused());
        }
        for (byte, [high, low]) in key.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Ok(Self(key))
    }
}

impl TryFrom<String> for Key {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let key = Key::of([("image", &b"sha256:1"[..])]);
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(key.short().len(), SHORT);
        for text in ["", "0", &"g".repeat(64), &"A".repeat(64), &"0".repeat(63), &"0".repeat(65), "é"] {
            assert!(text.parse::<Key>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn no_two_lists_share_a_key() {
        let lists: [&[(&str, &[u8])]; 8] = [
            &[],
            &[("", b"")],
            &[("a", b"bc")],
            &[("ab", b"c")],
            &[("a", b"b"), ("", b"c")],
            &[("a", b"b"), ("c", b"")],
            &[("c", b""), ("a", b"b")],
            &[("a", b"b"), ("c", b""), ("", b"")],
        ];
        let keys: std::collections::BTreeSet<Key> =
            lists.iter().map(|parts| Key::of(parts.iter().copied())).collect();
        assert_eq!(keys.len(), lists.len());
    }
}
