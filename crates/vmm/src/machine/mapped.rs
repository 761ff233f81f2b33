//! Where a process has mapped a file, and what it has made of it: a copy-on-write mapping differs from its file.

use crate::Error;
use crate::error::{file, system};
use std::fs::File;
use std::os::linux::fs::MetadataExt;

/// A part of a file that a process has mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapping {
    /// Where it begins in the process.
    pub(super) address: u64,
    /// Where it begins in the file.
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// A process's memory, and where the file is in it.
///
/// # Errors
/// The process is gone or may not be read.
pub(super) fn of(pid: u32, mapped: &File) -> Result<(File, Vec<Mapping>), Error> {
    let open = |name: &str| format!("/proc/{pid}/{name}");
    let maps = std::fs::read_to_string(open("maps")).map_err(file("read", open("maps")))?;
    let inode = mapped.metadata().map_err(system("look at the memory"))?.st_ino();
    let memory = File::open(open("mem")).map_err(file("open", open("mem")))?;
    Ok((memory, maps.lines().filter_map(|line| parse(line, inode)).collect()))
}

/// A line of `/proc/PID/maps`, see proc_pid_maps(5): `from-to mode offset device inode path`. Memory that is a file
/// without a name has inodes of a file system of its own, which its path tells.
fn parse(line: &str, inode: u64) -> Option<Mapping> {
    let mut words = line.split_whitespace();
    let (range, _mode, offset, _device, found) =
        (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
    if found.parse() != Ok(inode) || !words.next()?.starts_with("/memfd:") {
        return None;
    }
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (from, to) = range.split_once('-')?;
    let (from, to) = (hex(from)?, hex(to)?);
    Some(Mapping { address: from, offset: hex(offset)?, length: to.checked_sub(from)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let found = Some(Mapping { address: 0x7f00_0000, offset: 0x1000, length: 0x2000 });
        for (line, expected) in [
            ("7f000000-7f002000 rw-p 00001000 00:01 77 /memfd:template-memory (deleted)", found),
            ("7f000000-7f002000 rw-p 00001000 00:01 78 /memfd:template-memory (deleted)", None),
            ("7f000000-7f002000 rw-p 00001000 08:01 77 /usr/lib/x", None),
            ("7f000000-7f002000 rw-p 00000000 00:00 0", None),
            ("7f002000-7f000000 rw-p 00000000 00:01 77 /memfd:x", None),
            ("", None),
        ] {
            assert_eq!(parse(line, 77), expected, "{line}");
        }
    }
}
