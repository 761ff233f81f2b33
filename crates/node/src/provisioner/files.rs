//! The files behind volumes: `volumes/NAME`, a directory or a sparse file, in a directory that only root may enter.
//!
//! ```text
//!   volumes/.new-NAME     the volume is being made: its object may not exist yet
//!   volumes/NAME          the volume
//!   volumes/.gone-NAME    it is being removed
//! ```
//!
//! A process that dies leaves one of the marks behind, by which the next one knows what nobody will ever ask for. A
//! volume without a mark is never touched: it may be retained. Names come from API objects and are checked.

use crate::dirs::{component, private_dir, remove_dir};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

const NEW: &str = ".new-";
const GONE: &str = ".gone-";
/// Smallest disk, in bytes: less makes no useful file system.
const LEAST_BYTES: u64 = 1 << 20;
const LEAST_BYTES_WITH_FILES: u64 = 16 << 20;

/// What a volume is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A directory.
    Directory,
    /// A sparse file of this size with an ext4 in it.
    Disk(u64),
    /// A sparse file of this size with nothing in it.
    Device(u64),
}

/// Where volumes are.
#[derive(Clone, Debug)]
pub(super) struct Volumes {
    dir: PathBuf,
}

impl Volumes {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("volumes") }
    }

    /// Where the volume of this name is.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn mark(&self, mark: &str, name: &str) -> io::Result<PathBuf> {
        component(name)?;
        if name.starts_with('.') {
            let text = format!("{name:?} cannot be the name of a volume");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(self.dir.join(format!("{mark}{name}")))
    }

    /// Makes a volume, or finds it made. It counts as half made until [`Self::made`].
    pub(super) fn make(&self, name: &str, kind: Kind) -> io::Result<PathBuf> {
        private_dir(&self.dir)?;
        let mark = self.mark(NEW, name)?;
        let path = self.path(name);
        if !mark.exists() && path.exists() {
            return Ok(path);
        }
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&mark)?;
        // Half made by a process that died: begun anew, since nobody has seen it.
        remove(&path)?;
        match kind {
            Kind::Directory => {
                private_dir(&path)?;
                // Whoever the pod runs as; the way to it is root's alone.
                fs::set_permissions(&path, Permissions::from_mode(0o777))?;
            }
            Kind::Device(bytes) => drop(sparse(&path, bytes.max(LEAST_BYTES))?),
            Kind::Disk(bytes) => {
                sparse(&path, bytes.max(LEAST_BYTES_WITH_FILES))?;
                format(&path)?;
            }
        }
        Ok(path)
    }

    /// The volume has its object: from now on it is only removed on purpose.
    pub(super) fn made(&self, name: &str) -> io::Result<()> {
        ignore_missing(fs::remove_file(self.mark(NEW, name)?))
    }

    /// Removes a volume; one that is not there is fine.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        let gone = self.mark(GONE, name)?;
        remove(&gone)?;
        ignore_missing(fs::rename(self.path(name), &gone))?;
        remove(&gone)?;
        self.made(name)
    }

    /// Removes what earlier processes were removing, and what they had half made where nobody waits for it.
    pub(super) fn sweep(&self, awaited: impl Fn(&str) -> Awaited) -> io::Result<()> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries.collect::<io::Result<Vec<_>>>()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let file_name = entry.file_name();
            let Some(text) = file_name.to_str() else { continue };
            if text.starts_with(GONE) {
                remove(&entry.path())?;
            } else if let Some(name) = text.strip_prefix(NEW) {
                match awaited(name) {
                    Awaited::Exists => self.made(name)?,
                    Awaited::Yes => {}
                    Awaited::No => self.remove(name)?,
                }
            }
        }
        Ok(())
    }

    /// Removes a half-made volume; one that is complete, or is not there, is left alone.
    pub(super) fn abandon(&self, name: &str) -> io::Result<()> {
        if self.mark(NEW, name)?.exists() { self.remove(name) } else { Ok(()) }
    }
}

/// What became of a volume that was being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    /// Its object exists.
    Exists,
    /// A claim waits for it.
    Yes,
    /// Nobody does.
    No,
}

fn sparse(path: &Path, bytes: u64) -> io::Result<File> {
    let file = OpenOptions::new().create_new(true).read(true).write(true).mode(0o600).open(path)?;
    file.set_len(bytes)?;
    Ok(file)
}

/// Makes an ext4. Nothing is initialized in advance, so the file stays sparse; it has a journal, since it outlives
/// those who write it.
fn format(path: &Path) -> io::Result<()> {
    let output = Command::new("mkfs.ext4")
        .args([
            "-q",
            "-F",
            "-m",
            "0",
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0",
        ])
        .arg(path)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .map_err(|e| io::Error::new(e.kind(), format!("mkfs.ext4 (install e2fsprogs): {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("mkfs.ext4: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => remove_dir(path),
        Ok(_) => ignore_missing(fs::remove_file(path)),
        Err(error) => ignore_missing(Err(error)),
    }
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::os::unix::fs::MetadataExt;

    fn names(volumes: &Volumes) -> BTreeSet<String> {
        let entries = fs::read_dir(&volumes.dir).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn kinds() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(dir.path());
        let path = volumes.make("d", Kind::Directory).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
        assert_eq!(fs::metadata(&volumes.dir).unwrap().mode() & 0o7777, 0o700);
        for (kind, bytes) in
            [(Kind::Device(5), 1 << 20), (Kind::Disk(5), 16 << 20), (Kind::Disk(1 << 33), 1 << 33)]
        {
            let name = format!("{bytes}");
            let found = fs::metadata(volumes.make(&name, kind).unwrap()).unwrap();
            assert_eq!((found.len(), found.mode() & 0o777), (bytes, 0o600));
            assert!(found.blocks() * 512 < 1 << 26, "{} bytes used", found.blocks() * 512);
        }
        for bad in ["", "..", "a/b", ".new-x"] {
            assert!(volumes.make(bad, Kind::Directory).is_err() && volumes.remove(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_was_begun_is_ended_or_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(dir.path());
        for name in ["kept", "bound", "awaited", "orphan", "gone"] {
            fs::write(volumes.make(name, Kind::Directory).unwrap().join("f"), "").unwrap();
        }
        volumes.made("kept").unwrap();
        volumes.made("gone").unwrap();
        fs::rename(volumes.path("gone"), volumes.dir.join(".gone-gone")).unwrap();
        let awaited = |name: &str| match name {
            "bound" => Awaited::Exists,
            "awaited" => Awaited::Yes,
            _ => Awaited::No,
        };
        volumes.sweep(awaited).unwrap();
        assert_eq!(names(&volumes), [".new-awaited", "awaited", "bound", "kept"].map(str::to_owned).into());
        // Once more is fine; what is complete is kept, what is not is begun anew.
        assert!(volumes.make("bound", Kind::Directory).unwrap().join("f").exists());
        assert!(!volumes.make("awaited", Kind::Directory).unwrap().join("f").exists());
        volumes.abandon("awaited").unwrap();
        volumes.abandon("bound").unwrap();
        volumes.remove("kept").unwrap();
        volumes.remove("kept").unwrap();
        assert_eq!(names(&volumes), ["bound".to_owned()].into());
    }
}
