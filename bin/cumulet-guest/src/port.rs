//! The channel to the host: a virtio-serial port, found by name.
//!
//! A port without a host on the other side reads as at its end and cannot be written; the kernel tells when that
//! changes. Neither is an error.

use cumulet_guest_proto::PORT_NAME;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// An open port.
pub(crate) struct Port {
    file: File,
    /// There may be something to read.
    pub(crate) readable: bool,
    /// There may be room.
    pub(crate) writable: bool,
}

impl Port {
    /// Opens the port; `None` while the kernel has not found it.
    pub(crate) fn find() -> io::Result<Option<Self>> {
        let Some(device) = name_in(Path::new("/sys/class/virtio-ports")) else { return Ok(None) };
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        match options.open(Path::new("/dev").join(device)) {
            Ok(file) => Ok(Some(Self { file, readable: true, writable: true })),
            // Known, but its device is on the way.
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound)
                    || error.raw_os_error() == Some(libc::ENXIO) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Reads what there is; 0 when there is nothing now.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = without_waiting(self.file.read(buffer))?;
        self.readable = read > 0;
        Ok(read)
    }

    /// Writes what there is room for.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = without_waiting(self.file.write(bytes))?;
        self.writable = written > 0;
        Ok(written)
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// 0 for what would have to wait.
pub(crate) fn without_waiting(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
        other => other,
    }
}

fn name_in(class: &Path) -> Option<String> {
    let entries = fs::read_dir(class).ok()?;
    let mut ours = entries.flatten().filter(|entry| {
        fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim_end() == PORT_NAME)
    });
    ours.next()?.file_name().into_string().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(name_in(dir.path()), None);
        for (device, name) in [("vport1p0", ""), ("vport1p1", "org.other\n"), ("vport2p1", "cumulet.0\n")] {
            fs::create_dir(dir.path().join(device)).unwrap();
            fs::write(dir.path().join(device).join("name"), name).unwrap();
        }
        assert_eq!(name_in(dir.path()).as_deref(), Some("vport2p1"));
    }
}
