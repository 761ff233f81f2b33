//! Disks by serial, and the file systems on them.

use crate::error::{Doing, Error};
use nix::mount::{MsFlags, mount};
use std::fs;
use std::path::{Path, PathBuf};

/// The device node of the disk with that serial; `None` while there is none.
pub(super) fn find(serial: &str) -> Option<PathBuf> {
    find_in(Path::new("/sys/block"), serial).map(|name| Path::new("/dev").join(name))
}

fn find_in(sys_block: &Path, serial: &str) -> Option<String> {
    let entries = fs::read_dir(sys_block).ok()?;
    let name_of = |entry: fs::DirEntry| {
        let has = fs::read_to_string(entry.path().join("serial")).ok()?;
        let same = !serial.is_empty() && has.trim_end() == serial;
        if same { entry.file_name().into_string().ok() } else { None }
    };
    entries.flatten().find_map(name_of)
}

/// Mounts a file system at `at`, which is made.
pub(super) fn mount_at(source: &Path, at: &Path, fs_type: &str, read_only: bool) -> Result<(), Error> {
    fs::create_dir_all(at).doing(|| format!("make {}", at.display()))?;
    let plain = MsFlags::MS_NOATIME | MsFlags::MS_NODEV;
    let flags = plain | if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    let mounted = mount(Some(source), at, Some(fs_type), flags, None::<&str>);
    mounted.doing(|| format!("mount {} ({fs_type}) at {}", source.display(), at.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_found_by_serial() {
        let dir = tempfile::tempdir().unwrap();
        for (name, serial) in [("vda", "abc\n"), ("vdb", ""), ("vdc", "0123456789abcdef0123")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("serial"), serial).unwrap();
        }
        fs::create_dir(dir.path().join("loop0")).unwrap();
        assert_eq!(find_in(dir.path(), "abc").as_deref(), Some("vda"));
        assert_eq!(find_in(dir.path(), "0123456789abcdef0123").as_deref(), Some("vdc"));
        assert_eq!(find_in(dir.path(), ""), None);
        assert_eq!(find_in(dir.path(), "ab"), None);
    }
}
