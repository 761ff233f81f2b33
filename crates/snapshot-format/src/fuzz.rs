//! What the fuzz targets do with their bytes: they are a whole `template` file, or what a registry gives.

use crate::envelope::{PRELUDE_BYTES, Prelude, check_part, encode, file_bytes, seal, table_bytes};
use crate::{Config, Description, Error, Header, Key, Pages, Part, Unpacker};
use std::path::Path;

/// Decodes header, table and state, with the header's checksum as it is and as it should be: no fuzzer finds that one.
/// What is read is written as a header that reads as the same.
pub fn template(data: &[u8]) {
    let _ = decode(data);
    let mut sealed = data.to_owned();
    seal(&mut sealed);
    let _ = decode(&sealed);
}

fn decode(data: &[u8]) -> Result<(), Error> {
    let path = Path::new("template");
    let short = || Error::Foreign { path: path.to_owned(), reason: "short".to_owned() };
    let (prelude, rest) = data.split_first_chunk::<PRELUDE_BYTES>().ok_or_else(short)?;
    let prelude = Prelude::decode(*prelude, path)?;
    let (json, rest) = rest.split_at_checked(prelude.header_bytes).ok_or_else(short)?;
    let (header, sums) = prelude.header(json, path)?;
    let again = encode(&header, &sums, path)?;
    let (prelude_again, json_again) = again.split_first_chunk::<PRELUDE_BYTES>().ok_or_else(short)?;
    let read = Prelude::decode(*prelude_again, path)?.header(json_again, path)?;
    assert_eq!(read, (header.clone(), sums));
    assert_eq!(header.compatibility.fits(&header.compatibility), Ok(()));
    let (table, state) = rest.split_at_checked(table_bytes(&header)).ok_or_else(short)?;
    assert!(file_bytes(&prelude, &header) >= data.len() as u64 - state.len() as u64);
    check_part(table, &sums.table, Part::Table, path)?;
    check_part(state, &sums.state, Part::State, path)
}

/// The bytes are a configuration, and a part of a memory before it is compressed. Nothing is written beyond the memory,
/// no more than was said at first, and nothing becomes a template whose checksums are others.
pub fn packed(data: &[u8]) {
    if let Ok(config) = Config::parse(data) {
        let text = serde_json::to_vec(&config).unwrap_or_default();
        assert_eq!(Config::parse(&text).ok(), Some(config));
    }
    let dir = std::env::temp_dir().join(format!("cumulet-fuzz-packed-{}", std::process::id()));
    let header = Header {
        key: Key([1; 32]),
        memory_bytes: (1 << 20) + 8192,
        state_bytes: 0,
        pages: Pages { nonzero_bytes: 16_384 },
        description: Description::default(),
    };
    let [memory_digest, state_digest] = [const { String::new() }; 2];
    let config = Config {
        part_bytes: crate::pack::part_bytes(header.memory_bytes),
        header,
        memory_digest,
        state_digest,
    };
    let (Ok(mut unpacker), Ok(part)) = (Unpacker::begin(&dir, config), zstd::bulk::compress(data, 1)) else {
        return;
    };
    if unpacker.part(0, &part[..]).is_ok() {
        assert!(unpacker.state(&part[..]).is_err(), "it is not empty");
        assert!(unpacker.finish().is_err(), "its checksums are no checksums");
    } else {
        drop(unpacker);
    }
    // It is empty: an unpacker that did not finish leaves nothing. Fails otherwise.
    assert!(std::fs::remove_dir(&dir).is_ok());
}
