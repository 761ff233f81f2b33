//! What the fuzz target does with its bytes: they are a whole `template` file.

use crate::envelope::{PRELUDE_BYTES, Prelude, check_part, encode, file_bytes, seal, table_bytes};
use crate::{Error, Part};
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
