//! Disk images that bring their own kernel: what they are, and a machine's own copy of one.
//!
//! An image is other people's: its header is looked at here, and nothing that it names is ever opened. The copy has
//! only what the machine changes; the image stays as it is and serves any number of machines.

use crate::error::file;
use crate::machine::qcow2;
use crate::{Backing, Disk, DiskFormat, Error};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

/// Sizes of raw disks are whole sectors.
const SECTOR: u64 = 512;

/// An image.
#[derive(Debug)]
pub struct DiskImage {
    file: File,
    qcow2: bool,
    size_bytes: u64,
}

impl DiskImage {
    /// Opens an image and finds out what it is: qcow2, or raw.
    ///
    /// # Errors
    /// It cannot be read, is no file, or is of a kind that is refused: data in another file, a difference to another
    /// one, encrypted, truncated, larger than 16 TiB.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let wrong = |reason: &str| Err(Error::Spec(format!("{}: {reason}", path.display())));
        // Without waiting for somebody who writes, if it is a pipe.
        let mut options = OpenOptions::new();
        let image =
            options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(file("open", path))?;
        let metadata = image.metadata().map_err(file("look at", path))?;
        if !metadata.is_file() {
            return wrong("not a file");
        }
        let length = metadata.len();
        let mut magic = [0; 4];
        let qcow2 = length >= 4 && image.read_exact_at(&mut magic, 0).is_ok() && &magic == qcow2::MAGIC;
        let size_bytes = if qcow2 { qcow2::examine(&image)? } else { length };
        if size_bytes == 0 {
            return wrong("an empty disk");
        }
        if size_bytes > qcow2::MAX_DISK_BYTES {
            return wrong("a disk of more than 16 TiB");
        }
        Ok(Self { file: image, qcow2, size_bytes })
    }

    /// Size of the disk that a machine sees, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Makes a machine's own copy at `path`, at least as large as asked; a guest finds the rest behind its partitions.
    /// The copy is for one machine at a time.
    ///
    /// # Errors
    /// The file cannot be made, a size of more than 16 TiB, or `qemu-img` failed.
    pub fn overlay(&self, path: &Path, min_bytes: u64, serial: &str) -> Result<Disk, Error> {
        let size = self.size_bytes.max(min_bytes.min(qcow2::MAX_DISK_BYTES)).next_multiple_of(SECTOR);
        let made = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        let own = made.map_err(file("make", path))?;
        let output = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on"])
            .arg(path)
            .arg(size.to_string())
            .output()
            .map_err(|source| Error::MissingProgram {
                program: "qemu-img".to_owned(),
                package: "qemu-utils",
                source,
            })?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::Program { program: "qemu-img".to_owned(), message });
        }
        self.above(own, serial)
    }

    /// The copy that [`Self::overlay`] made at `path`, for the same machine when it starts again.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn reopen(&self, path: &Path, serial: &str) -> Result<Disk, Error> {
        let own = OpenOptions::new().read(true).write(true).open(path).map_err(file("open", path))?;
        self.above(own, serial)
    }

    fn above(&self, own: File, serial: &str) -> Result<Disk, Error> {
        let image = self.file.try_clone().map_err(crate::error::system("duplicate a descriptor"))?;
        Ok(Disk {
            file: own,
            serial: serial.to_owned(),
            read_only: false,
            volatile: false,
            // The copy's header names nothing below it: the order does.
            format: DiskFormat::Qcow2 { backing: Some(Backing { file: image, qcow2: self.qcow2 }) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_sizes() {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("raw");
        std::fs::write(&raw, [0; 4096]).unwrap();
        let image = DiskImage::open(&raw).unwrap();
        assert_eq!((image.qcow2, image.size_bytes()), (false, 4096));
        let top = dir.path().join("top");
        let disk = image.overlay(&top, 1 << 20, "root").unwrap();
        assert!(matches!(disk.format, DiskFormat::Qcow2 { backing: Some(Backing { qcow2: false, .. }) }));
        // The copy is an image itself.
        let copy = DiskImage::open(&top).unwrap();
        assert_eq!((copy.qcow2, copy.size_bytes()), (true, 1 << 20));
        assert!(image.overlay(&top, 0, "root").is_err(), "it would destroy another machine's disk");
        assert!(
            image.reopen(&top, "root").is_ok() && image.reopen(&dir.path().join("none"), "root").is_err()
        );
        std::fs::write(&raw, b"").unwrap();
        assert!(DiskImage::open(&raw).is_err());
        std::fs::write(&raw, b"QFI\xfb").unwrap();
        assert!(DiskImage::open(&raw).is_err());
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(DiskImage::open(&pipe).is_err() && DiskImage::open(dir.path()).is_err());
        let huge = File::create(dir.path().join("huge")).unwrap();
        if huge.set_len(17 << 40).is_ok() {
            assert!(DiskImage::open(&dir.path().join("huge")).is_err());
        }
    }
}
