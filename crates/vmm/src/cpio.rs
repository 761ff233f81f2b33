//! Archives in the `newc` format of cpio, as the kernel unpacks them into its first root. Same contents, same bytes.

use std::io::{self, Write};

/// Writes an archive. Parents must be added before what is in them.
#[derive(Debug)]
pub(crate) struct Archive<W> {
    out: W,
    written: u64,
    inode: u32,
}

/// What an entry is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Entry<'a> {
    /// A directory.
    Dir,
    /// A file that only root may write; executable or not.
    File { contents: &'a [u8], executable: bool },
    /// A character device.
    Device { major: u32, minor: u32 },
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, written: 0, inode: 0 }
    }

    /// Adds an entry; the name has no leading slash.
    pub(crate) fn add(&mut self, name: &str, entry: Entry<'_>) -> io::Result<()> {
        self.inode += 1;
        let inode = self.inode;
        match entry {
            Entry::Dir => self.write(name, inode, 0o040_755, (0, 0), &[]),
            Entry::File { contents, executable } => {
                self.write(name, inode, if executable { 0o100_755 } else { 0o100_644 }, (0, 0), contents)
            }
            Entry::Device { major, minor } => self.write(name, inode, 0o020_600, (major, minor), &[]),
        }
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.write("TRAILER!!!", 0, 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn write(
        &mut self,
        name: &str,
        inode: u32,
        mode: u32,
        device: (u32, u32),
        data: &[u8],
    ) -> io::Result<()> {
        let size = |n: usize| u32::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge));
        // Inode, mode, user, group, links, time, size, device of the file, device that it is, name, checksum.
        let fields =
            [inode, mode, 0, 0, 1, 0, size(data.len())?, 0, 0, device.0, device.1, size(name.len() + 1)?, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08X}"));
        }
        header.push_str(name);
        header.push('\0');
        self.put(header.as_bytes())?;
        self.put(data)
    }

    /// Writes and fills up to a multiple of four bytes.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        let missing = usize::try_from(self.written.next_multiple_of(4) - self.written).unwrap_or_default();
        self.out.write_all(&[0; 3][..missing])?;
        self.written += missing as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn archive() -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        archive.add("dev", Entry::Dir).unwrap();
        archive.add("dev/console", Entry::Device { major: 5, minor: 1 }).unwrap();
        archive.add("init", Entry::File { contents: b"program", executable: true }).unwrap();
        archive.add("empty", Entry::File { contents: b"", executable: false }).unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn same_contents_same_bytes() {
        let bytes = archive();
        assert_eq!(bytes, archive());
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.starts_with(b"070701"));
        let text = String::from_utf8_lossy(&bytes);
        for name in ["dev\0", "dev/console\0", "init\0", "empty\0", "TRAILER!!!\0"] {
            assert!(text.contains(name), "{name}");
        }
    }

    /// The kernel's own reader is tested by every start of a machine; this is the format's other reader, if there.
    #[test]
    fn others_can_read_it() {
        let Ok(mut child) = Command::new("cpio")
            .args(["-it", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            return;
        };
        child.stdin.take().unwrap().write_all(&archive()).unwrap();
        let listed = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        assert_eq!(listed.split_whitespace().collect::<Vec<_>>(), ["dev", "dev/console", "init", "empty"]);
    }
}
