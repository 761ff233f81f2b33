//! CRI log entries to what the client asked for.
//!
//! `2026-01-02T03:04:05.123456789Z stdout F text`: `F` ends a line, `P` is a part of one.

use bytes::{Buf, Bytes, BytesMut};
use cumulet_cluster::streams::LogOptions;
use jiff::Timestamp;

/// Turns entries into output.
pub(super) struct Formatter {
    timestamps: bool,
    since: Option<Timestamp>,
    stream: Option<String>,
    /// Bytes that may still be given.
    room: Option<u64>,
    /// The next entry begins a line.
    at_line_start: bool,
}

impl Formatter {
    pub(super) fn new(options: &LogOptions) -> Self {
        Self {
            timestamps: options.timestamps,
            since: options.since.and_then(|since| Timestamp::try_from(since).ok()),
            stream: options
                .stream
                .as_ref()
                .map(|stream| stream.to_lowercase())
                .filter(|stream| stream != "all"),
            room: options.limit_bytes,
            at_line_start: true,
        }
    }

    /// True when the limit in bytes is reached.
    pub(super) fn is_full(&self) -> bool {
        self.room == Some(0)
    }

    /// Formats the complete entries at the beginning of `pending` and takes them out. What is longer than `max_entry`
    /// without an end is no entry and is dropped.
    pub(super) fn take(&mut self, pending: &mut BytesMut, max_entry: usize) -> Bytes {
        let mut out = BytesMut::new();
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let entry = pending.split_to(end);
            pending.advance(1);
            self.format(&entry, &mut out);
        }
        if pending.len() > max_entry {
            pending.clear();
        }
        if let Some(room) = &mut self.room {
            out.truncate(usize::try_from(*room).unwrap_or(usize::MAX));
            *room -= out.len() as u64;
        }
        out.freeze()
    }

    fn format(&mut self, entry: &[u8], out: &mut BytesMut) {
        let mut parts = entry.splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(stream), Some(tag)) = (parts.next(), parts.next(), parts.next()) else {
            return;
        };
        let text = parts.next().unwrap_or_default();
        if self.stream.as_ref().is_some_and(|wanted| wanted.as_bytes() != stream) || !self.is_recent(time) {
            return;
        }
        if self.timestamps && self.at_line_start {
            out.extend_from_slice(time);
            out.extend_from_slice(b" ");
        }
        out.extend_from_slice(text);
        self.at_line_start = tag != b"P";
        if self.at_line_start {
            out.extend_from_slice(b"\n");
        }
    }

    fn is_recent(&self, time: &[u8]) -> bool {
        let Some(since) = self.since else { return true };
        let time = std::str::from_utf8(time).ok().and_then(|text| text.parse::<Timestamp>().ok());
        time.is_none_or(|time| time >= since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    const LOG: &str = "2026-01-01T00:00:00.000000001Z stdout F one\n\
        2026-01-01T00:00:01Z stderr P tw\n2026-01-01T00:00:02Z stderr F o\n2026-01-01T00:00:03Z stdout F \nunfinished";

    fn check(options: &LogOptions, expected: &str) {
        let mut pending = BytesMut::from(LOG);
        let out = Formatter::new(options).take(&mut pending, 100);
        assert_eq!(out, expected, "{options:?}");
        assert_eq!(pending, "unfinished");
    }

    #[test]
    fn entries() {
        check(&LogOptions::default(), "one\ntwo\n\n");
        check(&LogOptions { stream: Some("Stderr".into()), ..LogOptions::default() }, "two\n");
        check(&LogOptions { limit_bytes: Some(5), ..LogOptions::default() }, "one\nt");
        check(
            &LogOptions { timestamps: true, ..LogOptions::default() },
            "2026-01-01T00:00:00.000000001Z one\n2026-01-01T00:00:01Z two\n2026-01-01T00:00:03Z \n",
        );
        let since = UNIX_EPOCH + Duration::from_secs(1_767_225_602);
        check(&LogOptions { since: Some(since), ..LogOptions::default() }, "o\n\n");
    }

    #[test]
    fn no_entry_fills_the_memory() {
        let mut pending = BytesMut::from(&vec![b'x'; 200][..]);
        assert!(Formatter::new(&LogOptions::default()).take(&mut pending, 100).is_empty());
        assert!(pending.is_empty());
    }
}
