//! A machine's own disk: a sparse file with an empty ext4 in it, gone with the machine.

use crate::Error;
use crate::error::file;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

/// The serial number under which guests look for it.
pub const SERIAL: &str = "scratch";

/// Smallest size in bytes that makes a useful filesystem.
pub const MIN_BYTES: u64 = 16 << 20;

/// Makes the disk. It takes up what the guest writes. What the guest frees comes back.
///
/// There is no journal and nothing is initialized in advance: its contents do not outlive the machine.
///
/// # Errors
/// The file cannot be made, or `mkfs.ext4` failed.
pub fn create(path: &Path, size_bytes: u64) -> Result<File, Error> {
    let size = size_bytes.max(MIN_BYTES);
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(file("make", path))?;
    disk.set_len(size).map_err(file("size", path))?;
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode,sparse_super2"])
        .args(["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", "-L", SERIAL])
        .arg(path)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .map_err(|source| Error::MissingProgram {
            program: "mkfs.ext4".to_owned(),
            package: "e2fsprogs",
            source,
        })?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Program { program: "mkfs.ext4".to_owned(), message });
    }
    Ok(disk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn it_is_sparse_and_has_a_filesystem() {
        let dir = tempfile::tempdir().unwrap();
        let disk = create(&dir.path().join("scratch"), 10 << 30).unwrap();
        let metadata = disk.metadata().unwrap();
        assert_eq!(metadata.len(), 10 << 30);
        assert!(metadata.blocks() * 512 < 16 << 20, "{} bytes used", metadata.blocks() * 512);
        assert_eq!(metadata.mode() & 0o777, 0o600);
    }
}
