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
    /// It cannot be read, or is of a kind that is refused (data in another file, unknown version).
    pub fn open(path: &Path) -> Result<Self, Error> {
        let image = File::open(path).map_err(file("open", path))?;
        let length = image.metadata().map_err(file("look at", path))?.len();
        let mut magic = [0; 4];
        let qcow2 = length >= 4 && image.read_exact_at(&mut magic, 0).is_ok() && &magic == qcow2::MAGIC;
        let size_bytes = if qcow2 { qcow2::check(&image)? } else { length };
        if size_bytes == 0 {
            return Err(Error::Spec(format!("{}: an empty disk", path.display())));
        }
        Ok(Self { file: image, qcow2, size_bytes })
    }

    /// Size of the disk that a machine sees, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Makes a machine's own copy at `path`, at least as large as asked; a guest finds the rest behind its partitions.
    ///
    /// # Errors
    /// The file cannot be made, or `qemu-img` failed.
    pub fn overlay(&self, path: &Path, min_bytes: u64, serial: &str) -> Result<Disk, Error> {
        let size = self.size_bytes.max(min_bytes).next_multiple_of(SECTOR);
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
        std::fs::write(&raw, b"").unwrap();
        assert!(DiskImage::open(&raw).is_err());
        std::fs::write(&raw, b"QFI\xfb").unwrap();
        assert!(DiskImage::open(&raw).is_err());
    }
}
