//! Opening files that only their owner may have touched, and making them.

use crate::Error;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Opens a directory, which must be one and no link to one. `None` when there is nothing.
pub(crate) fn open_dir(path: &Path) -> Result<Option<File>, Error> {
    let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(dir) => owned(dir, path).map(Some),
        Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
            Errno::ENOENT => Ok(None),
            Errno::ENOTDIR | Errno::ELOOP => Err(Error::foreign(path, "it is not a directory")),
            _ => Err(Error::io("open", path)(error)),
        },
    }
}

/// Opens an ordinary file in a directory for reading. Links, devices and pipes are refused without waiting for them.
pub(crate) fn open_file(dir: impl AsFd, path: &Path, name: &str) -> Result<File, Error> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let path = path.join(name);
    match openat(dir, name, flags, Mode::empty()) {
        Ok(file) => {
            let file = File::from(file);
            if !file.metadata().map_err(Error::io("look at", &path))?.is_file() {
                return Err(Error::foreign(&path, "it is not an ordinary file"));
            }
            owned(file, &path)
        }
        Err(Errno::ELOOP) => Err(Error::foreign(&path, "it is a link")),
        Err(Errno::ENOENT) => Err(Error::foreign(&path, "it is missing")),
        Err(error) => Err(Error::io("open", &path)(error)),
    }
}

/// Makes an ordinary file, 0600, in a directory.
pub(crate) fn create_file(dir: impl AsFd, path: &Path, name: &str) -> Result<File, Error> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
        .map(File::from)
        .map_err(Error::io("make", &path.join(name)))
}

/// Makes an ordinary file, 0600.
pub(crate) fn private_file(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
    options.open(path).map_err(Error::io("make", path))
}

/// What is in a small file; `None` when there is none.
pub(crate) fn read_capped(path: &Path, most: usize) -> Result<Option<Vec<u8>>, Error> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    match bytes.len() > most {
        true => Err(Error::foreign(path, format!("it has more than {most} bytes"))),
        false => Ok(Some(bytes)),
    }
}

/// Makes names in a directory last.
pub(crate) fn sync_dir(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(Error::io("flush", path))
}

/// Refuses what others own or may write: a template decides what runs in a clone.
fn owned(file: File, path: &Path) -> Result<File, Error> {
    let meta = file.metadata().map_err(Error::io("look at", path))?;
    if meta.uid() != nix::unistd::geteuid().as_raw() {
        return Err(Error::foreign(path, format!("it belongs to user {}", meta.uid())));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(Error::foreign(path, "others may write to it"));
    }
    Ok(file)
}
