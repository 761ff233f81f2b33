//! Looking into a container's root filesystem without being led out of it.
//!
//! The image is not trusted: `/etc/passwd` may be a symbolic link to the host's file. Every path is resolved by the
//! kernel with the root filesystem as its root (`openat2`, `RESOLVE_IN_ROOT`).

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path};

/// A root filesystem, held open.
pub(crate) struct Root {
    dir: File,
}

impl Root {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let dir = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(path)?;
        Ok(Self { dir })
    }

    fn open_in(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        Ok(openat2(&self.dir, path, how)?)
    }

    /// The content of a regular file, at most `limit` bytes; `None` when it does not exist.
    pub(crate) fn read(&self, path: &str, limit: u64) -> io::Result<Option<String>> {
        // Not blocked by a pipe that stands in place of the file.
        let file = match self.open_in(Path::new(path), OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
            Ok(fd) => File::from(fd),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(e),
        };
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Creates a directory and its missing parents, mode 0755.
    pub(crate) fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut done = std::path::PathBuf::from("/");
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            let next = done.join(name);
            match self.open_in(&next, OFlag::O_PATH | OFlag::O_DIRECTORY) {
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    let parent = self.open_in(&done, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
                    mkdirat(&parent, name, Mode::from_bits_truncate(0o755))?;
                    // Whatever the umask is.
                    let made = self.open_in(&next, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
                    fchmod(&made, Mode::from_bits_truncate(0o755))?;
                }
                Err(e) => return Err(e),
            }
            done = next;
        }
        Ok(())
    }
}
