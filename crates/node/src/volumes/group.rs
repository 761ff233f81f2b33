//! `fsGroup`: what lies in a volume is given to the pod's group.
//!
//! Other pods may be writing in the volume, so nothing is followed: every entry is opened as itself, and what was
//! opened is what is changed.

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{Gid, fchownat};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Directories within directories; deeper ones are refused.
const DEPTH: usize = 256;
/// What the group gets of files, and besides of directories, whose new entries inherit it.
const READ_WRITE: u32 = 0o660;
const ENTER: u32 = 0o2110;

/// Gives a directory and all below it to the group. With `only_on_mismatch` nothing is done when the directory itself
/// has the group already (`fsGroupChangePolicy: OnRootMismatch`).
pub(crate) fn give(root: &Path, group: u32, only_on_mismatch: bool) -> io::Result<()> {
    let dir: OwnedFd = File::open(root)?.into();
    let found = fstat(&dir)?;
    let wanted = READ_WRITE | ENTER;
    if only_on_mismatch && found.st_gid == group && found.st_mode & wanted == wanted {
        return Ok(());
    }
    below(&dir, group, 0)?;
    // The directory itself comes last, so that it tells whether all was done.
    set(&dir, &found, group)
}

fn below(dir: &OwnedFd, group: u32, depth: usize) -> io::Result<()> {
    if depth > DEPTH {
        return Err(io::Error::other(format!("directories within directories, more than {DEPTH}")));
    }
    let entries = Dir::from_fd(dir.try_clone()?)?.into_iter().collect::<Result<Vec<_>, _>>()?;
    for entry in entries {
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let open = |flags| openat(dir, name, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
        let one = match open(OFlag::O_PATH) {
            Ok(one) => one,
            // Somebody has removed it meanwhile.
            Err(nix::errno::Errno::ENOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        let found = fstat(&one)?;
        if kind(&found) == SFlag::S_IFDIR {
            below(&open(OFlag::O_RDONLY | OFlag::O_DIRECTORY)?, group, depth + 1)?;
        }
        set(&one, &found, group)?;
    }
    Ok(())
}

fn kind(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits())
}

fn set(one: &OwnedFd, found: &FileStat, group: u32) -> io::Result<()> {
    if found.st_gid != group {
        fchownat(one, c"", None, Some(Gid::from_raw(group)), AtFlags::AT_EMPTY_PATH)?;
    }
    let more = match kind(found) {
        SFlag::S_IFDIR => READ_WRITE | ENTER,
        SFlag::S_IFLNK => return Ok(()),
        _ => READ_WRITE,
    };
    let mode = found.st_mode & 0o7777 | more;
    // A descriptor of O_PATH has no other way to its mode.
    fs::set_permissions(format!("/proc/self/fd/{}", one.as_raw_fd()), Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn all_but_what_links_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("v"), dir.path().join("outside"));
        fs::create_dir_all(root.join("d")).unwrap();
        for file in [&outside, &root.join("f"), &root.join("d/g")] {
            fs::write(file, "").unwrap();
            fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
        }
        symlink(&outside, root.join("link")).unwrap();
        give(&root, 77, false).unwrap();
        let of = |path: &Path| fs::symlink_metadata(path).map(|m| (m.gid(), m.mode() & 0o7777)).unwrap();
        assert_eq!(of(&root).0, 77);
        assert_eq!(of(&root).1 & 0o2770, 0o2770);
        assert_eq!(of(&root.join("f")), (77, 0o660));
        assert_eq!(of(&root.join("d/g")), (77, 0o660));
        assert_eq!(of(&root.join("link")).0, 77);
        assert_eq!(of(&outside), (fs::metadata(dir.path()).unwrap().gid(), 0o600));
        fs::write(root.join("new"), "").unwrap();
        assert_eq!(of(&root.join("new")).0, 77);
        fs::set_permissions(root.join("f"), Permissions::from_mode(0o600)).unwrap();
        give(&root, 77, true).unwrap();
        assert_eq!(of(&root.join("f")).1, 0o600);
        give(&root, 77, false).unwrap();
        assert_eq!(of(&root.join("f")).1, 0o660);
    }
}
