//! The bytes around the header: magic, version, lengths and checksums. No I/O.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | [`MAGIC`] |
//! | 8 | 4 | version, little-endian |
//! | 12 | 4 | length of the header, little-endian |
//! | 16 | 32 | checksum of the table |
//! | 48 | 32 | checksum of the state |
//! | 80 | 32 | checksum of the 80 bytes before and of the header |
//! | 112 | | header, table, state |

use crate::{
    CHUNK_BYTES, Error, Header, Key, MAX_HEADER_BYTES, MAX_MEMORY_BYTES, MAX_STATE_BYTES, PAGE_BYTES, Part,
    VERSION,
};
use sha2::{Digest, Sha256};
use std::path::Path;

/// First bytes of a template; the last one is an end of file for those who print it.
const MAGIC: [u8; 8] = *b"CUMULET\x1a";
/// Bytes before the header.
pub(crate) const PRELUDE_BYTES: usize = 112;
/// Bytes of a checksum.
pub(crate) const SUM_BYTES: usize = 32;
/// Where the header's own checksum stands: it covers what is before.
const OWN_SUM: usize = PRELUDE_BYTES - SUM_BYTES;

/// SHA-256.
pub(crate) type Sum = [u8; SUM_BYTES];

/// Checksums of a template's other parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) table: Sum,
    pub(crate) state: Sum,
}

/// The first bytes of a template, checked for what they can be checked for without the header.
pub(crate) struct Prelude {
    bytes: [u8; PRELUDE_BYTES],
    pub(crate) header_bytes: usize,
}

impl Prelude {
    /// Looks at the first bytes of a file.
    pub(crate) fn decode(bytes: [u8; PRELUDE_BYTES], path: &Path) -> Result<Self, Error> {
        if bytes[..8] != MAGIC {
            return Err(Error::foreign(path, "it does not begin as a template does"));
        }
        let found = number(&bytes, 8);
        if found != VERSION {
            return Err(Error::Version { path: path.to_owned(), found });
        }
        let header_bytes = number(&bytes, 12) as usize;
        if header_bytes > MAX_HEADER_BYTES {
            return Err(too_large(path, Part::Header, header_bytes as u64, MAX_HEADER_BYTES as u64));
        }
        Ok(Self { bytes, header_bytes })
    }

    /// Reads the header that follows. Its numbers are within the format's caps afterwards.
    pub(crate) fn header(&self, json: &[u8], path: &Path) -> Result<(Header, Sums), Error> {
        if own_sum(&self.bytes, json) != self.sum(OWN_SUM) {
            return Err(Error::Checksum { path: path.to_owned(), part: Part::Header });
        }
        let header: Header =
            serde_json::from_slice(json).map_err(|source| Error::Json { path: path.to_owned(), source })?;
        check_memory_size(header.memory_bytes, path)?;
        if header.state_bytes > MAX_STATE_BYTES as u64 {
            return Err(too_large(path, Part::State, header.state_bytes, MAX_STATE_BYTES as u64));
        }
        Ok((header, Sums { table: self.sum(16), state: self.sum(48) }))
    }

    fn sum(&self, at: usize) -> Sum {
        let mut sum = [0; SUM_BYTES];
        sum.copy_from_slice(&self.bytes[at..at + SUM_BYTES]);
        sum
    }
}

/// Prelude and header as they stand in the file.
pub(crate) fn encode(header: &Header, sums: &Sums, path: &Path) -> Result<Vec<u8>, Error> {
    let json = serde_json::to_vec(header).map_err(|source| Error::Json { path: path.to_owned(), source })?;
    let length = u32::try_from(json.len()).ok().filter(|n| *n as usize <= MAX_HEADER_BYTES);
    let length =
        length.ok_or_else(|| too_large(path, Part::Header, json.len() as u64, MAX_HEADER_BYTES as u64))?;
    let mut bytes = Vec::with_capacity(PRELUDE_BYTES + json.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(sums.table);
    bytes.extend(sums.state);
    let own = own_sum(&bytes, &json);
    bytes.extend(own);
    bytes.extend(json);
    Ok(bytes)
}

/// Puts the right checksum of the header into the bytes of a template, as far as they have a header.
pub(crate) fn seal(bytes: &mut [u8]) {
    let Some((prelude, rest)) = bytes.split_first_chunk_mut::<PRELUDE_BYTES>() else { return };
    let Some(json) = rest.get(..number(prelude, 12) as usize) else { return };
    let own = own_sum(prelude, json);
    prelude[OWN_SUM..].copy_from_slice(&own);
}

/// Refuses sizes of memory that no template can have.
pub(crate) fn check_memory_size(bytes: u64, path: &Path) -> Result<(), Error> {
    if bytes > MAX_MEMORY_BYTES {
        return Err(too_large(path, Part::Memory, bytes, MAX_MEMORY_BYTES));
    }
    if !bytes.is_multiple_of(PAGE_BYTES as u64) {
        return Err(Error::Unaligned { bytes });
    }
    Ok(())
}

/// Number of chunks of a memory.
pub(crate) fn chunks(memory_bytes: u64) -> u64 {
    memory_bytes.div_ceil(CHUNK_BYTES as u64)
}

/// Size of the table in bytes; below 8 MiB for the largest memory.
pub(crate) fn table_bytes(header: &Header) -> usize {
    usize::try_from(chunks(header.memory_bytes)).unwrap_or(usize::MAX / SUM_BYTES) * SUM_BYTES
}

/// Size of the whole file in bytes.
pub(crate) fn file_bytes(prelude: &Prelude, header: &Header) -> u64 {
    (PRELUDE_BYTES + prelude.header_bytes + table_bytes(header)) as u64 + header.state_bytes
}

/// The checksum of a part.
pub(crate) fn sum_of(bytes: &[u8]) -> Sum {
    Sha256::digest(bytes).into()
}

/// Refuses a part that is not what its checksum says.
pub(crate) fn check_part(bytes: &[u8], sum: &Sum, part: Part, path: &Path) -> Result<(), Error> {
    match sum_of(bytes) == *sum {
        true => Ok(()),
        false => Err(Error::Checksum { path: path.to_owned(), part }),
    }
}

/// Refuses a header of another template.
pub(crate) fn check_key(header: &Header, key: &Key, path: &Path) -> Result<(), Error> {
    match header.key == *key {
        true => Ok(()),
        false => Err(Error::OtherKey { path: path.to_owned(), expected: *key, found: header.key }),
    }
}

pub(crate) fn too_large(path: &Path, part: Part, bytes: u64, most: u64) -> Error {
    Error::TooLarge { path: path.to_owned(), part, bytes, most }
}

fn own_sum(prelude: &[u8], json: &[u8]) -> Sum {
    let mut hash = Sha256::new();
    hash.update(&prelude[..OWN_SUM]);
    hash.update(json);
    hash.finalize().into()
}

fn number(bytes: &[u8; PRELUDE_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compatibility::tests::sample;
    use crate::{Description, Pages};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn decode(bytes: &[u8]) -> Result<(Header, Sums), Error> {
        let path = Path::new("template");
        let (prelude, json) = bytes.split_at_checked(PRELUDE_BYTES).expect("a whole prelude");
        let prelude = Prelude::decode(prelude.try_into().unwrap(), path)?;
        prelude.header(json, path)
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_filter("JSON has no others", |n| n.is_finite()).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    prop_compose! {
        fn headers()(
            key in any::<[u8; 32]>(),
            created_us in any::<u64>(),
            texts in any::<[String; 3]>(),
            pages in 0u64..1 << 26,
            state_bytes in 0u64..=MAX_STATE_BYTES as u64,
            tsc_khz in any::<Option<u32>>(),
            guest in value(),
        ) -> Header {
            let [namespace, name, image] = texts;
            Header {
                key: Key(key),
                memory_bytes: pages * PAGE_BYTES as u64,
                state_bytes,
                pages: Pages { nonzero_bytes: pages },
                description: Description {
                    created_us, namespace, name, images: vec![image], guest,
                    compatibility: crate::Compatibility { tsc_khz, ..sample() },
                },
            }
        }
    }

    proptest! {
        #[test]
        fn written_and_read(header in headers(), table in any::<Sum>(), state in any::<Sum>()) {
            let sums = Sums { table, state };
            let bytes = encode(&header, &sums, Path::new("template")).unwrap();
            let (read, read_sums) = decode(&bytes).unwrap();
            prop_assert_eq!(read, header);
            prop_assert_eq!(read_sums, sums);
        }

        #[test]
        fn no_bit_may_flip(header in headers(), at in any::<proptest::sample::Index>(), bit in 0u8..8) {
            let mut bytes = encode(&header, &Sums { table: [1; 32], state: [2; 32] }, Path::new("t")).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&bytes).is_err());
        }
    }

    #[test]
    fn sizes_beyond_the_caps_are_refused() {
        let refused = |change: fn(&mut Header)| {
            let mut header = Header {
                key: Key([1; 32]),
                memory_bytes: 0,
                state_bytes: 0,
                pages: Pages::default(),
                description: Description::default(),
            };
            change(&mut header);
            let sums = Sums { table: [0; 32], state: [0; 32] };
            encode(&header, &sums, Path::new("t")).and_then(|bytes| decode(&bytes)).unwrap_err().to_string()
        };
        assert!(refused(|h| h.memory_bytes = 4097).contains("multiple"));
        assert!(refused(|h| h.memory_bytes = MAX_MEMORY_BYTES + 4096).contains("memory"));
        assert!(refused(|h| h.state_bytes = MAX_STATE_BYTES as u64 + 1).contains("device state"));
        assert!(refused(|h| h.description.guest = json!("x".repeat(MAX_HEADER_BYTES))).contains("header"));
    }
}
