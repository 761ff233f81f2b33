//! Log files in the CRI format: `2026-01-02T03:04:05.123456789Z stdout F line`.
//!
//! A chunk that was read becomes one write. Lines longer than [`MAX_LINE`] are split into `P` entries; an unfinished
//! line waits in memory until it is finished, too long, or [`Log::flush`]ed. When the disk is full the container
//! goes on: lines are counted instead of written, and the first entry after the disk has space again says how many.
//!
//! Rotation renames `<attempt>.log` to `<attempt>.log.<time>` and keeps a number of files; a reader that holds the
//! old file reads it to its end and then opens the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Longest line in one entry, in bytes.
const MAX_LINE: usize = 16 * 1024;
/// Limits of a termination message that is taken from the log.
const TAIL_BYTES: usize = 2048;
const TAIL_LINES: usize = 80;

/// Which stream an entry is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    Stdout,
    Stderr,
}

impl Channel {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// When to rotate, and how much to keep.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Rotate at this size, in bytes.
    pub(super) max_bytes: u64,
    /// Keep this many files, the current one included.
    pub(super) max_files: u32,
}

/// The log of one container instance.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    limits: Limits,
    file: Option<File>,
    size: u64,
    /// Unfinished lines of standard output and error.
    partial: [Vec<u8>; 2],
    lost_lines: u64,
}

impl Log {
    /// Opens or creates the file; directories are made. A failure is not the container's: it is tried again with
    /// every write, and what could not be written is counted.
    pub(super) fn open(path: PathBuf, limits: Limits) -> Self {
        let mut log =
            Self { path, limits, file: None, size: 0, partial: [Vec::new(), Vec::new()], lost_lines: 0 };
        if let Err(error) = log.reopen() {
            tracing::warn!(path = %log.path.display(), %error, "cannot open the log file");
        }
        log
    }

    /// Opens the file by its name (again).
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.file = None;
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir)?;
        }
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(&self.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Adds output as it was read.
    pub(super) fn write(&mut self, channel: Channel, mut chunk: &[u8]) {
        let now = timestamp();
        let mut entries = Vec::with_capacity(chunk.len() + 64);
        let mut lines = 0;
        let partial = &mut self.partial[channel as usize];
        while !chunk.is_empty() {
            let room = MAX_LINE - partial.len();
            let window = &chunk[..chunk.len().min(room)];
            let (taken, tag) = match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => (end, Some("F")),
                None if window.len() == room => (room, Some("P")),
                None => (window.len(), None),
            };
            partial.extend_from_slice(&chunk[..taken]);
            chunk = &chunk[taken + usize::from(tag == Some("F"))..];
            if let Some(tag) = tag {
                entry(&mut entries, &now, channel, tag, partial);
                partial.clear();
                lines += 1;
            }
        }
        self.append(&entries, lines);
    }

    /// True while a line of the channel is unfinished.
    pub(super) fn has_partial(&self, channel: Channel) -> bool {
        !self.partial[channel as usize].is_empty()
    }

    /// Writes an unfinished line as it is: nothing came after it for a while, or nothing will.
    pub(super) fn flush(&mut self, channel: Channel) {
        let partial = std::mem::take(&mut self.partial[channel as usize]);
        if !partial.is_empty() {
            let mut entries = Vec::with_capacity(partial.len() + 64);
            entry(&mut entries, &timestamp(), channel, "P", &partial);
            self.append(&entries, 1);
        }
    }

    fn append(&mut self, entries: &[u8], lines: u64) {
        if entries.is_empty() {
            return;
        }
        if let Err(error) = self.try_append(entries) {
            if self.lost_lines == 0 {
                tracing::warn!(path = %self.path.display(), %error, "log lines are being lost");
            }
            self.lost_lines += lines;
        }
    }

    fn try_append(&mut self, entries: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.reopen()?;
        }
        if self.lost_lines > 0 {
            let mut notice = Vec::new();
            let text =
                format!("cumulet: {} log lines were lost: the log could not be written", self.lost_lines);
            entry(&mut notice, &timestamp(), Channel::Stderr, "F", text.as_bytes());
            self.put(&notice)?;
            self.lost_lines = 0;
        }
        self.put(entries)?;
        if self.size >= self.limits.max_bytes && self.limits.max_bytes > 0 {
            self.rotate()?;
        }
        Ok(())
    }

    /// Writes all or nothing.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        match file.write_all(bytes) {
            Ok(()) => {
                self.size += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Half an entry would spoil the next one.
                let _ = file.set_len(self.size);
                Err(error)
            }
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(format!(".{}", jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S.%9f")));
        fs::rename(&self.path, old)?;
        self.reopen()?;
        self.remove_oldest()
    }

    fn remove_oldest(&self) -> io::Result<()> {
        let keep = self.limits.max_files.max(1) as usize - 1;
        let rotated = rotated(&self.path)?;
        for old in &rotated[..rotated.len().saturating_sub(keep)] {
            fs::remove_file(old)?;
        }
        Ok(())
    }

    /// The last lines without their prefixes, for a termination message.
    pub(super) fn tail(&self) -> String {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(&self.path)?;
            let want = (TAIL_BYTES + TAIL_LINES * 64) as u64;
            file.seek(SeekFrom::Start(file.metadata()?.len().saturating_sub(want)))?;
            let mut bytes = Vec::new();
            file.take(want).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let mut content = String::new();
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
            let mut fields = line.splitn(4, ' ');
            if let (Some(_), Some("stdout" | "stderr"), Some(tag), Some(rest)) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            {
                content.push_str(rest);
                content.push_str(if tag == "P" { "" } else { "\n" });
            }
        }
        last_bytes(content, TAIL_BYTES)
    }
}

/// The end of a text, at a character boundary.
pub(super) fn last_bytes(text: String, limit: usize) -> String {
    let mut from = text.len().saturating_sub(limit);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    if from == 0 { text } else { text[from..].to_owned() }
}

/// The rotated files of a log, oldest first.
fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{name}.");
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|n| n.starts_with(&prefix)) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn timestamp() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

fn entry(to: &mut Vec<u8>, time: &str, channel: Channel, tag: &str, line: &[u8]) {
    for part in [time, " ", channel.name(), " ", tag, " "] {
        to.extend_from_slice(part.as_bytes());
    }
    to.extend_from_slice(line);
    to.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_bytes: 1 << 20, max_files: 3 };

    fn entries(path: &Path) -> Vec<String> {
        let without_time = |line: &str| line.split_once(' ').map(|(_, rest)| rest.to_owned());
        fs::read_to_string(path).unwrap().lines().filter_map(without_time).collect()
    }

    fn check(chunks: &[(Channel, &str)], expected: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c/0.log");
        let mut log = Log::open(path.clone(), LIMITS);
        chunks.iter().for_each(|(channel, chunk)| log.write(*channel, chunk.as_bytes()));
        log.flush(Channel::Stdout);
        log.flush(Channel::Stderr);
        assert_eq!(entries(&path), expected);
    }

    #[test]
    fn lines_are_cut_and_marked() {
        use Channel::{Stderr, Stdout};
        check(&[(Stdout, "a\nb\n")], &["stdout F a", "stdout F b"]);
        check(&[(Stdout, "a"), (Stderr, "x\n"), (Stdout, "b\n")], &["stderr F x", "stdout F ab"]);
        check(&[(Stdout, "\n\n")], &["stdout F ", "stdout F "]);
        check(&[(Stdout, "end")], &["stdout P end"]);
        let long = "y".repeat(MAX_LINE);
        let text = format!("{long}{long}z\n");
        let full = format!("stdout P {long}");
        check(&[(Stdout, &text)], &[&full, &full, "stdout F z"]);
    }

    #[test]
    fn time_has_nine_digits() {
        let now = timestamp();
        assert_eq!((now.len(), &now[19..20], &now[29..]), (30, ".", "Z"), "{now}");
    }

    #[test]
    fn files_are_rotated_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(path.clone(), Limits { max_bytes: 200, max_files: 3 });
        for number in 0..100 {
            log.write(Channel::Stdout, format!("line {number}\n").as_bytes());
        }
        let old = rotated(&path).unwrap();
        assert_eq!(old.len(), 2);
        let all: Vec<String> = old.iter().chain([&path]).flat_map(|p| entries(p)).collect();
        assert_eq!(all.last().unwrap(), "stdout F line 99");
        assert!(all.windows(2).all(|w| w[0].len() <= w[1].len()), "{all:?}");
    }

    #[test]
    fn a_full_disk_loses_lines_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(path.clone(), LIMITS);
        log.write(Channel::Stdout, b"before\n");
        let good = log.file.replace(OpenOptions::new().write(true).open("/dev/full").unwrap());
        log.write(Channel::Stdout, b"lost 1\nlost 2\n");
        log.file = good;
        log.write(Channel::Stdout, b"after\n");
        let notice = "stderr F cumulet: 2 log lines were lost: the log could not be written";
        assert_eq!(entries(&path), ["stdout F before", notice, "stdout F after"]);
    }

    #[test]
    fn the_tail_has_no_prefixes() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(dir.path().join("0.log"), LIMITS);
        log.write(Channel::Stdout, b"one\ntwo\n");
        assert_eq!(log.tail(), "one\ntwo\n");
        (0..500).for_each(|n| log.write(Channel::Stderr, format!("line {n}\n").as_bytes()));
        let tail = log.tail();
        assert!(
            tail.ends_with("line 499\n") && tail.len() <= TAIL_BYTES && tail.lines().count() <= TAIL_LINES
        );
    }
}
