//! Lines out of a stream of bytes, with a limit.

/// Longest line in bytes. The longest honest answers (statistics of all devices) have some ten thousand.
pub(super) const LINE_LIMIT: usize = 1 << 20;

/// Collects bytes, gives lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    buffer: Vec<u8>,
    /// Up to here there is no line's end.
    searched: usize,
}

impl Lines {
    /// Adds what was received. The caller takes all lines before it adds more, so that the buffer stays below the
    /// limit and one read.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line without its end, if there is one. Empty lines are skipped.
    pub(super) fn next_line(&mut self) -> Result<Option<Vec<u8>>, String> {
        while let Some(at) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') {
            let end = self.searched + at;
            let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
            self.searched = 0;
            line.pop();
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            if line.len() > LINE_LIMIT {
                return Err(format!("a line of {} bytes", line.len()));
            }
            if !line.is_empty() {
                return Ok(Some(line));
            }
        }
        self.searched = self.buffer.len();
        if self.buffer.len() > LINE_LIMIT {
            return Err(format!("a line of more than {LINE_LIMIT} bytes"));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However the stream is cut, the lines are the same.
        #[test]
        fn cuts_do_not_matter(
            lines in proptest::collection::vec("[a-z{}]{0,20}", 0..10),
            cuts in proptest::collection::vec(1usize..7, 1..20),
        ) {
            let stream: Vec<u8> = lines.iter().flat_map(|l| format!("{l}\r\n").into_bytes()).collect();
            let mut found = Vec::new();
            let mut decoder = Lines::default();
            let mut rest = &stream[..];
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                decoder.feed(now);
                while let Some(line) = decoder.next_line().unwrap() {
                    found.push(String::from_utf8(line).unwrap());
                }
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            let expected: Vec<String> = lines.into_iter().filter(|l| !l.is_empty()).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut lines = Lines::default();
        let result = (0..1000).find_map(|_| {
            lines.feed(&[b'x'; 8192]);
            lines.next_line().err()
        });
        assert!(result.is_some());
        assert!(lines.buffer.len() <= LINE_LIMIT + 8192);
    }
}
