//! A directory tree that is not trusted, and paths in it that cannot lead out of it.
//!
//! An image's `/etc/passwd` may be a link to the agent's file, a volume's directory a link to `/`. Every path is
//! resolved by the kernel with the tree as its root (`openat2`, `RESOLVE_IN_ROOT`).

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

/// A tree, held open.
pub(crate) struct Tree {
    dir: File,
}

impl Tree {
    /// Opens a directory as the root of a tree.
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

    /// A path, held open, to be mounted on or from.
    pub(crate) fn at(&self, path: &Path) -> io::Result<Place> {
        self.open_in(path, OFlag::O_PATH).map(Place)
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

    /// A directory, made with its missing parents, mode 0755.
    pub(crate) fn make_dir(&self, path: &Path) -> io::Result<Place> {
        self.make_dir_with(path, 0o755)
    }

    /// A directory, made with its missing parents, with the mode of the tree's root.
    pub(crate) fn make_dir_like_root(&self, path: &Path) -> io::Result<Place> {
        self.make_dir_with(path, self.dir.metadata()?.mode() & 0o7777)
    }

    fn make_dir_with(&self, path: &Path, mode: u32) -> io::Result<Place> {
        let mut done = PathBuf::from("/");
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
                    fchmod(&made, Mode::from_bits_truncate(mode))?;
                }
                Err(e) => return Err(e),
            }
            done = next;
        }
        self.at(&done)
    }

    /// A file to mount another one on, made empty with its missing parents when it does not exist.
    pub(crate) fn make_file(&self, path: &Path) -> io::Result<Place> {
        if let Ok(place) = self.at(path) {
            return Ok(place);
        }
        if let Some(parent) = path.parent() {
            self.make_dir(parent)?;
        }
        let how = OpenHow::new()
            .flags(OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .mode(Mode::from_bits_truncate(0o644))
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&self.dir, path, how)?;
        self.at(path)
    }
}

/// Something in a tree, held open: what a path led to once, whatever happens to the path.
pub(crate) struct Place(OwnedFd);

impl Place {
    /// A name that leads to it in this process.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    pub(crate) fn is_dir(&self) -> io::Result<bool> {
        Ok(std::fs::metadata(self.path())?.is_dir())
    }
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The path, if it is absolute and has no `..`.
pub(crate) fn checked(path: &str) -> Option<&Path> {
    let parsed = Path::new(path);
    let plain = parsed.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    (parsed.is_absolute() && plain).then_some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn paths_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        symlink("/../../..", dir.path().join("out")).unwrap();
        let made = tree.make_dir(Path::new("/out/a/b")).unwrap();
        assert!(made.is_dir().unwrap() && dir.path().join("a/b").is_dir());
        tree.make_file(Path::new("/out/etc/hosts")).unwrap();
        assert!(dir.path().join("etc/hosts").is_file());
        std::fs::write(dir.path().join("f"), "text").unwrap();
        symlink("/f", dir.path().join("link")).unwrap();
        assert_eq!(tree.read("/link", 3).unwrap().as_deref(), Some("tex"));
        assert_eq!(tree.read("/none", 3).unwrap(), None);
        assert_eq!(tree.read("/a", 3).unwrap(), None);
    }

    #[test]
    fn destinations_are_absolute_and_plain() {
        for (path, good) in [("/a/b", true), ("/", true), ("a", false), ("/a/../b", false), ("", false)] {
            assert_eq!(checked(path).is_some(), good, "{path}");
        }
    }
}
