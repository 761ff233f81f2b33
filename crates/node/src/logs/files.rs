//! Which files hold the log of an instance, and where its last lines begin.
//!
//! `<attempt>.log` is being written; `<attempt>.log.<time>` are its rotated predecessors, whose names sort by age.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Bytes that are searched at once for line ends.
const BLOCK: usize = 64 << 10;

/// The files of one instance, oldest first, with the offset where reading begins in each.
#[derive(Debug)]
pub(super) struct LogFiles {
    left: VecDeque<(PathBuf, u64)>,
    live: PathBuf,
    attempt: u32,
}

impl LogFiles {
    /// The files of the newest instance in `dir`, or of the one before; `None` when there is none. With `tail` only
    /// so many entries from the end.
    pub(super) fn choose(dir: &Path, previous: bool, tail: Option<u64>) -> io::Result<Option<Self>> {
        let mut attempts: Vec<u32> = Vec::new();
        let mut rotated: Vec<(u32, String)> = Vec::new();
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let Some((number, rest)) = name.split_once(".log") else { continue };
            let Ok(attempt) = number.parse() else { continue };
            if rest.is_empty() { attempts.push(attempt) } else { rotated.push((attempt, name)) }
        }
        attempts.sort_unstable();
        let index = attempts.len().checked_sub(if previous { 2 } else { 1 });
        let Some(attempt) = index.and_then(|index| attempts.get(index)).copied() else { return Ok(None) };
        let mut older: Vec<String> =
            rotated.into_iter().filter(|(of, _)| *of == attempt).map(|(_, n)| n).collect();
        older.sort();
        let live = dir.join(format!("{attempt}.log"));
        let files: Vec<PathBuf> = older.iter().map(|name| dir.join(name)).chain([live.clone()]).collect();
        let left = match tail {
            Some(lines) => tail_of(&files, lines)?,
            None => files.into_iter().map(|file| (file, 0)).collect(),
        };
        Ok(Some(Self { left, live, attempt }))
    }

    /// The next file to read and where to begin.
    pub(super) fn next(&mut self) -> Option<(PathBuf, u64)> {
        self.left.pop_front()
    }

    /// True when the file given last is the one that is being written.
    pub(super) fn is_last(&self) -> bool {
        self.left.is_empty()
    }

    /// The file that is being written.
    pub(super) fn live(&self) -> &Path {
        &self.live
    }

    /// Number of the instance.
    pub(super) fn attempt(&self) -> u32 {
        self.attempt
    }
}

/// The last files that together hold `lines` entries, and the offsets where these begin.
fn tail_of(files: &[PathBuf], mut lines: u64) -> io::Result<VecDeque<(PathBuf, u64)>> {
    let mut kept = VecDeque::new();
    for path in files.iter().rev() {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let (found, offset) = last_lines(&mut file, lines)?;
        kept.push_front((path.clone(), offset));
        lines -= found;
        if lines == 0 {
            break;
        }
    }
    Ok(kept)
}

/// How many of the last `wanted` lines the file has, and where they begin.
fn last_lines(file: &mut File, wanted: u64) -> io::Result<(u64, u64)> {
    let mut end = file.seek(SeekFrom::End(0))?;
    if wanted == 0 {
        return Ok((0, end));
    }
    let mut found = 0;
    let mut block = vec![0; BLOCK];
    let mut at_the_end = true;
    while end > 0 {
        let start = end.saturating_sub(BLOCK as u64);
        let size = usize::try_from(end - start).unwrap_or(BLOCK);
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block[..size])?;
        for (index, byte) in block[..size].iter().enumerate().rev() {
            let terminates_last = at_the_end && index + 1 == size;
            if *byte == b'\n' && !terminates_last {
                found += 1;
                if found == wanted {
                    return Ok((found, start + index as u64 + 1));
                }
            }
        }
        at_the_end = false;
        end = start;
    }
    // The first line has no line end before it.
    let whole = file.seek(SeekFrom::End(0))?;
    Ok((if whole > 0 { found + 1 } else { 0 }, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: Option<LogFiles>) -> String {
        let mut files = files.unwrap();
        let mut text = String::new();
        while let Some((path, offset)) = files.next() {
            text.push_str(&fs::read_to_string(path).unwrap()[usize::try_from(offset).unwrap()..]);
        }
        text
    }

    #[test]
    fn tails_over_rotated_files() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert!(LogFiles::choose(dir.path(), false, None).unwrap().is_none());
        put("0.log", "old\n");
        put("1.log.20260101-000000", "a\nb\n");
        put("1.log.20260102-000000", "c\n");
        put("1.log", "d\ne\n");
        let choose = |tail| read(LogFiles::choose(dir.path(), false, tail).unwrap());
        assert_eq!(choose(None), "a\nb\nc\nd\ne\n");
        for (tail, text) in [
            (0, ""),
            (1, "e\n"),
            (2, "d\ne\n"),
            (3, "c\nd\ne\n"),
            (4, "b\nc\nd\ne\n"),
            (9, "a\nb\nc\nd\ne\n"),
        ] {
            assert_eq!(choose(Some(tail)), text, "{tail}");
        }
        assert_eq!(read(LogFiles::choose(dir.path(), true, None).unwrap()), "old\n");
        put("1.log", "");
        assert_eq!(choose(Some(1)), "c\n");
        // Longer than a block.
        let long: String = (0..20_000).map(|n| format!("{n}\n")).collect();
        put("2.log", &long);
        let tail = read(LogFiles::choose(dir.path(), false, Some(15_000)).unwrap());
        assert!(tail.starts_with("5000\n") && tail.lines().count() == 15_000, "{}", &tail[..20]);
    }
}
