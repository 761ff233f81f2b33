//! Log files: the container writes what it likes into them.

#[path = "../../../../crates/node/src/logs/entry.rs"]
mod entry;

use bytes::BytesMut;
use cumulet_cluster::streams::LogOptions;
use std::time::{Duration, UNIX_EPOCH};

/// Options (four bytes), then a log. It gives the same however it is cut into chunks, and never more than it has.
pub(crate) fn log_entry(data: &[u8]) {
    let Some((&[flags, cut, limit, since], log)) = data.split_first_chunk() else { return };
    let options = LogOptions {
        timestamps: flags & 1 != 0,
        since: (flags & 2 != 0).then(|| UNIX_EPOCH + Duration::from_secs(u64::from(since) << 24)),
        stream: (flags & 4 != 0).then(|| "stdout".to_owned()),
        limit_bytes: (flags & 8 != 0).then_some(u64::from(limit)),
        ..LogOptions::default()
    };
    let whole = run(&options, &[log]);
    assert!(whole.len() <= log.len());
    assert!(options.limit_bytes.is_none_or(|limit| whole.len() as u64 <= limit));
    let (head, tail) = log.split_at(usize::from(cut).min(log.len()));
    assert_eq!(run(&options, &[head, tail]), whole);
    let mut pending = BytesMut::from(log);
    let _ = entry::Formatter::new(&options).take(&mut pending, 64);
    assert!(pending.len() <= 64);
}

fn run(options: &LogOptions, chunks: &[&[u8]]) -> Vec<u8> {
    let mut formatter = entry::Formatter::new(options);
    let (mut pending, mut out) = (BytesMut::new(), Vec::new());
    for chunk in chunks {
        pending.extend_from_slice(chunk);
        out.extend_from_slice(&formatter.take(&mut pending, usize::MAX));
        let _ = formatter.is_full();
    }
    out
}
