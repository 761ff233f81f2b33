//! Root filesystems: image layers below, one writable layer above, joined by overlayfs.
//!
//! The mount is made in the caller's mount namespace; the supervisor has one of its own, so the mount vanishes with
//! it. A mount's options must fit a page, so layers are named through short symbolic links reached by a descriptor
//! (`/proc/self/fd/N/0`), which also keeps colons and commas of real paths out of the option string.
//!
//! Absent on purpose: a root without a writable layer. Mount points for volumes must be made even when the container
//! may not write, so `read_only_root` is a flag of the mount inside the container.

use crate::Error;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

/// Layers that overlayfs and the option string can take; images have at most 127.
const MAX_LAYERS: usize = 200;

/// Mounts `layers` (lowest first) with a fresh writable layer below `writable` at `target`, which is created. What an
/// earlier run left in `writable` is removed: a container always starts from its image.
pub(crate) fn mount_root(layers: &[PathBuf], writable: &Path, target: &Path) -> Result<(), Error> {
    if layers.is_empty() || layers.len() > MAX_LAYERS {
        return Err(Error::Invalid(format!("an image has 1 to {MAX_LAYERS} layers, not {}", layers.len())));
    }
    let links = prepare(layers, writable, target).map_err(|source| Error::Io {
        what: "prepare the root file system in",
        path: writable.to_owned(),
        source,
    })?;
    // The topmost layer comes first.
    let base = format!("/proc/self/fd/{}", links.as_raw_fd());
    let lower: Vec<String> = (0..layers.len()).rev().map(|i| format!("{base}/{i}")).collect();
    // Whoever makes a layer of the writable directory needs it complete: no references into the layers below.
    let whole = "redirect_dir=off,metacopy=off";
    let options = format!("lowerdir={},upperdir={base}/upper,workdir={base}/work,{whole}", lower.join(":"));
    // The writable layer does not outlive its container, so nothing is gained by flushing it on unmount.
    let volatile = format!("{options},volatile");
    let attempt = |data: &str| mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(data));
    attempt(&volatile).or_else(|_| attempt(&options)).map_err(|errno| Error::Io {
        what: "mount the root file system at",
        path: target.to_owned(),
        source: errno.into(),
    })
}

/// Makes the directories and the links; returns the directory of the links.
fn prepare(layers: &[PathBuf], writable: &Path, target: &Path) -> io::Result<File> {
    fs::create_dir_all(target)?;
    let links = writable.join("links");
    for old in ["upper", "work", "links"] {
        match fs::remove_dir_all(writable.join(old)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    for new in ["upper", "work", "links"] {
        fs::create_dir_all(writable.join(new))?;
    }
    for (index, layer) in layers.iter().enumerate() {
        let missing = |e: io::Error| io::Error::new(e.kind(), format!("layer {}: {e}", layer.display()));
        symlink(fs::canonicalize(layer).map_err(missing)?, links.join(index.to_string()))?;
    }
    let writable = fs::canonicalize(writable)?;
    symlink(writable.join("upper"), links.join("upper"))?;
    symlink(writable.join("work"), links.join("work"))?;
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(links)
}

/// Unmounts what [`mount_root`] mounted. Succeeds when nothing is mounted there.
pub(crate) fn unmount_root(target: &Path) -> Result<(), Error> {
    match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        Err(errno) => Err(Error::Io { what: "unmount", path: target.to_owned(), source: errno.into() }),
    }
}
