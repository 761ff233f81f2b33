//! Volumes: what containers mount beside their root file systems.
//!
//! What needs no device is made when the pod is configured; the rest when a container first needs it, since its disk
//! may be plugged in later.

use super::disks;
use super::files;
use crate::error::{Doing, Error};
use cumulet_guest_proto::spec::{FileTree, Volume};
use nix::mount::{MsFlags, mount};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// Something that is there, or the serial of a disk that is not there yet.
pub(crate) enum Found<T> {
    /// Here it is.
    Ready(T),
    /// A disk is missing.
    NotYet(String),
}

/// A volume as a mount source.
pub(super) struct Source {
    pub(super) path: PathBuf,
    /// Whatever the container says.
    pub(super) read_only: bool,
}

pub(super) struct Volumes {
    /// On a tmpfs: files and mount points.
    small: PathBuf,
    /// On the scratch disk, if there is one.
    large: PathBuf,
    known: BTreeMap<String, Volume>,
    mounted: BTreeSet<String>,
}

impl Volumes {
    pub(super) fn create(
        small: PathBuf,
        large: PathBuf,
        known: &BTreeMap<String, Volume>,
    ) -> Result<Self, Error> {
        let volumes = Self { small, large, known: known.clone(), mounted: BTreeSet::new() };
        for (name, volume) in known {
            if !is_name(name) {
                return Err(Error::Invalid(format!("{name:?} cannot be the name of a volume")));
            }
            match volume {
                Volume::EmptyDir { size_bytes, memory, gid } => {
                    volumes.empty_dir(name, *size_bytes, *memory, *gid)?
                }
                Volume::Files { files, gid } => volumes.write(name, files, *gid)?,
                Volume::Virtiofs { .. } | Volume::Disk { .. } | Volume::Block { .. } => {}
            }
        }
        Ok(volumes)
    }

    fn empty_dir(&self, name: &str, size: Option<u64>, memory: bool, gid: Option<u32>) -> Result<(), Error> {
        let at = if memory { self.small.join(name) } else { self.large.join(name) };
        let what = || format!("make emptyDir {name}");
        fs::create_dir_all(&at).doing(what)?;
        if memory {
            let options = size.map(|size| format!("size={size}")).unwrap_or_default();
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(Some("tmpfs"), &at, Some("tmpfs"), flags, Some(options.as_str())).doing(what)?;
        }
        share(&at, gid, 0o777).doing(what)
    }

    fn write(&self, name: &str, tree: &FileTree, gid: Option<u32>) -> Result<(), Error> {
        files::write_tree(&self.small.join(name), tree, gid)
            .doing(|| format!("write the files of volume {name}"))
    }

    /// Replaces the files of a volume.
    pub(super) fn update(&mut self, name: &str, tree: FileTree) -> Result<(), Error> {
        let Some(Volume::Files { files, gid }) = self.known.get_mut(name) else {
            return Err(Error::Invalid(format!("volume {name} is not one of files")));
        };
        if *files == tree {
            return Ok(());
        }
        let gid = *gid;
        *files = tree.clone();
        self.write(name, &tree, gid)
    }

    /// Where a volume can be mounted from.
    pub(super) fn source(&mut self, name: &str) -> Result<Found<Source>, Error> {
        let unknown = || Error::Invalid(format!("there is no volume {name}"));
        let volume = self.known.get(name).ok_or_else(unknown)?;
        let small = self.small.join(name);
        let (path, read_only) = match volume {
            Volume::EmptyDir { memory, .. } => (if *memory { small } else { self.large.join(name) }, false),
            Volume::Files { .. } => (small, true),
            Volume::Virtiofs { tag, read_only } => {
                if !self.mounted.contains(name) {
                    disks::mount_at(Path::new(tag), &small, "virtiofs", *read_only)?;
                }
                (small, *read_only)
            }
            Volume::Disk { serial, fs_type, read_only, gid } => {
                if !self.mounted.contains(name) {
                    let Some(disk) = disks::find(serial) else { return Ok(Found::NotYet(serial.clone())) };
                    disks::mount_at(&disk, &small, fs_type, *read_only)?;
                    if gid.is_some() && !read_only {
                        share(&small, *gid, 0o775).doing(|| format!("set the group of volume {name}"))?;
                    }
                }
                (small, *read_only)
            }
            Volume::Block { .. } => {
                return Err(Error::Invalid(format!("volume {name} is a device, not a directory")));
            }
        };
        self.mounted.insert(name.to_owned());
        Ok(Found::Ready(Source { path, read_only }))
    }

    /// The device node of a block volume.
    pub(super) fn device(&self, name: &str) -> Result<Found<PathBuf>, Error> {
        let Some(Volume::Block { serial }) = self.known.get(name) else {
            return Err(Error::Invalid(format!("volume {name} is not a device")));
        };
        Ok(disks::find(serial).map_or_else(|| Found::NotYet(serial.clone()), Found::Ready))
    }
}

/// Gives a directory its mode, and with a group the bit that files in it inherit the group.
fn share(dir: &Path, gid: Option<u32>, mode: u32) -> std::io::Result<()> {
    if gid.is_some() {
        chown(dir, None, gid)?;
    }
    let inherit = if gid.is_some() { 0o2000 } else { 0 };
    fs::set_permissions(dir, Permissions::from_mode(mode | inherit))
}

/// Names are parts of paths.
pub(crate) fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && text.len() <= 253 && text.chars().all(allowed) && !text.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use cumulet_guest_proto::spec::File;

    #[test]
    fn sources_by_kind() {
        let dir = tempfile::tempdir().unwrap();
        let files: FileTree = [("k".to_owned(), File { content: "v".into(), mode: 0o644, uid: None })].into();
        let known = BTreeMap::from([
            ("cache".to_owned(), Volume::EmptyDir { size_bytes: None, memory: false, gid: Some(7) }),
            ("config".to_owned(), Volume::Files { files: files.clone(), gid: None }),
            ("disk".to_owned(), Volume::Block { serial: "none-such".into() }),
        ]);
        let (small, large) = (dir.path().join("s"), dir.path().join("l"));
        let mut volumes = Volumes::create(small.clone(), large.clone(), &known).unwrap();
        let Found::Ready(source) = volumes.source("cache").unwrap() else { panic!() };
        assert!(source.path == large.join("cache") && !source.read_only);
        assert_eq!(fs::metadata(&source.path).unwrap().permissions().mode() & 0o7777, 0o2777);
        let Found::Ready(source) = volumes.source("config").unwrap() else { panic!() };
        assert!(source.read_only);
        assert_eq!(fs::read_to_string(source.path.join("k")).unwrap(), "v");
        assert!(volumes.update("cache", files).is_err());
        volumes.update("config", FileTree::new()).unwrap();
        assert!(!source.path.join("k").exists());
        assert!(volumes.source("none").is_err() && volumes.source("disk").is_err());
        assert!(matches!(volumes.device("disk"), Ok(Found::NotYet(serial)) if serial == "none-such"));
    }

    #[test]
    fn names_are_not_paths() {
        for (name, good) in [("a-1", true), ("kube-api", true), ("", false), ("..", false), ("a/b", false)] {
            assert_eq!(is_name(name), good, "{name}");
        }
    }
}
