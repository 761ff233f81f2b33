//! The tree of a disk's root: hard links to the files of the layers, which keep owners, modes, times and attributes.

use super::super::layer::{Content, Members};
use super::boot::{CONFIGURATION, Start};
use crate::ImageError;
use crate::error::io;
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::Path;

/// The service of what the image runs, and its link.
const SERVICE: &str = "etc/systemd/system/cumulet-app.service";
const MACHINE_ID: &str = "etc/machine-id";
const WANTED: &str = "etc/systemd/system/multi-user.target.wants";

/// Makes the tree of these members, which lie on the same file system, at `root`.
pub(super) fn link(members: &Members, root: &Path, date: i64) -> Result<(), ImageError> {
    fs::create_dir(root).map_err(io("make", root))?;
    fs::set_permissions(root, Permissions::from_mode(0o755)).map_err(io("make", root))?;
    for (place, member) in members {
        let path = root.join(OsStr::from_bytes(place));
        let owned = |path: &Path| lchown(path, Some(member.uid), Some(member.gid));
        let made = match &member.content {
            Content::Directory => fs::create_dir(&path)
                .and_then(|()| owned(&path))
                .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(member.mode)))
                .and_then(|()| {
                    member.xattrs.iter().try_for_each(|(name, value)| xattr::set(&path, name, value))
                }),
            Content::File(source) => fs::hard_link(source, &path),
            Content::Symlink(target) => symlink(target, &path).and_then(|()| owned(&path)),
            Content::Fifo => nix::unistd::mkfifo(&path, Mode::from_bits_truncate(member.mode))
                .map_err(Into::into)
                .and_then(|()| owned(&path)),
            // Trees that were read have neither.
            Content::Bytes(_) | Content::HardLink(_) => Ok(()),
        };
        made.map_err(io("put into the disk's tree", &path))?;
    }
    // From the inside out, since what is put into a directory changes its time.
    for (place, _) in members.iter().rev().filter(|(_, m)| !matches!(m.content, Content::File(_))) {
        let path = root.join(OsStr::from_bytes(place));
        let time = TimeSpec::new(date, 0);
        let set = utimensat(nix::fcntl::AT_FDCWD, &path, &time, &time, UtimensatFlags::NoFollowSymlink);
        set.map_err(io("set the time of", &path))?;
    }
    Ok(())
}

/// Adds what the disk has beyond its layers.
pub(super) fn add(
    root: &Path,
    start: &Start,
    unit: Option<&str>,
    configuration: &str,
) -> Result<(), ImageError> {
    let put = |place: &str, text: &str| {
        let path = root.join(place);
        let dir = path.parent().unwrap_or(root);
        fs::create_dir_all(dir).map_err(io("make", dir))?;
        fs::write(&path, text).map_err(io("write", &path))
    };
    if !start.configured {
        put(CONFIGURATION, configuration)?;
    }
    // A file that is not there makes systemd ask questions on the console; an empty one gets its content at the first boot.
    if fs::symlink_metadata(root.join(MACHINE_ID)).is_err() {
        put(MACHINE_ID, "")?;
    }
    let own = root.join(SERVICE);
    if let Some(unit) = unit.filter(|_| fs::symlink_metadata(&own).is_err()) {
        put(SERVICE, unit)?;
        let wanted = root.join(WANTED);
        fs::create_dir_all(&wanted).map_err(io("make", &wanted))?;
        let link = wanted.join("cumulet-app.service");
        symlink("/etc/systemd/system/cumulet-app.service", &link).map_err(io("make", &link))?;
    }
    Ok(())
}
