//! `subPath`: a place below a volume that cannot lead out of it.
//!
//! The kernel resolves the path beneath the volume (`openat2` with `RESOLVE_BENEATH`), so symbolic links that a
//! container of the pod planted end in an error and not on the host. Missing directories are made one by one under
//! the same rule. What is mounted is the resolved path.

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Resolves `sub` below `volume`, creating missing directories.
pub(crate) fn resolve(volume: &Path, sub: &str) -> io::Result<PathBuf> {
    let plain = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
    if !Path::new(sub).components().all(plain) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("subPath {sub:?} leaves its volume"),
        ));
    }
    let root: OwnedFd = File::open(volume)?.into();
    let found = match open(&root, Path::new(sub)) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => create(&root, Path::new(sub))?,
        Err(e) => return Err(e),
    };
    std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

fn open(root: &OwnedFd, sub: &Path) -> io::Result<OwnedFd> {
    let sub = if sub.as_os_str().is_empty() { Path::new(".") } else { sub };
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(root.as_fd(), sub, how)?)
}

fn create(root: &OwnedFd, sub: &Path) -> io::Result<OwnedFd> {
    let mut done = PathBuf::new();
    let mut parent = open(root, &done)?;
    for part in sub.components() {
        done.push(part);
        match mkdirat(&parent, part.as_os_str(), Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(e) => return Err(e.into()),
        }
        parent = open(root, &done)?;
    }
    Ok(parent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn stays_inside() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().canonicalize().unwrap();
        assert_eq!(resolve(&volume, "a/b").unwrap(), volume.join("a/b"));
        assert!(volume.join("a/b").is_dir());
        std::fs::write(volume.join("file"), "x").unwrap();
        assert_eq!(resolve(&volume, "file").unwrap(), volume.join("file"));
        symlink("a", volume.join("inside")).unwrap();
        assert_eq!(resolve(&volume, "inside/b").unwrap(), volume.join("a/b"));
        symlink("/etc", volume.join("out")).unwrap();
        symlink("..", volume.join("up")).unwrap();
        for bad in ["..", "../x", "/etc", "out", "out/passwd", "up", "out/new"] {
            assert!(resolve(&volume, bad).is_err(), "{bad}");
        }
    }
}
