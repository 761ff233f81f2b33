//! The directory of an image: which of its files go where, and confinement to it.
//!
//! Members are owned by root, directories and programs have mode 0755, other files 0644: what a checkout's umask or
//! owner was does not matter. Symbolic links are taken as they are and never followed.

use super::description::{DESCRIPTION, Entry, Place};
use super::ignore;
use super::layer::{Content, Member, Members};
use crate::ImageError;
use crate::error::io;
use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// A file of the directory as it was found, so that a change shows without reading it.
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) metadata: Metadata,
}

impl Found {
    /// Whether the file still looks as it did.
    pub(super) fn unchanged(&self, now: &Metadata) -> bool {
        let look = |m: &Metadata| (m.ino(), m.len(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        look(&self.metadata) == look(now)
    }
}

/// What was gathered: members of a layer, and the files behind them by member.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) members: Members,
    pub(super) files: BTreeMap<Vec<u8>, Found>,
}

/// Collects files of the directory `dir`, which is the only place they may come from.
pub(super) struct Gathering<'a> {
    dir: &'a Path,
    description: &'a Path,
    key: &'a str,
    ignored: &'a ignore::Rules,
    at: Place,
    gathered: Gathered,
}

impl<'a> Gathering<'a> {
    /// `key` is the part of the description that names the files.
    pub(super) fn new(
        dir: &'a Path,
        description: &'a Path,
        key: &'a str,
        ignored: &'a ignore::Rules,
    ) -> Self {
        Self { dir, description, key, ignored, at: None, gathered: Gathered::default() }
    }

    pub(super) fn finish(self) -> Gathered {
        self.gathered
    }

    fn wrong(&self, message: String) -> ImageError {
        ImageError::Build {
            path: self.description.to_owned(),
            at: self.at,
            message: format!("{}: {message}", self.key),
        }
    }

    /// Adds what an entry names.
    pub(super) fn add(&mut self, entry: &Entry) -> Result<(), ImageError> {
        let (source, destination) = (&entry.source, &entry.destination);
        self.at = entry.at;
        let relative = self.inside(source)?;
        let path = self.dir.join(&relative);
        let metadata = std::fs::symlink_metadata(&path).map_err(|error| {
            let meant = self.similar(&relative).map(|name| format!(": did you mean \"{name}\"?"));
            let reason = error.to_string();
            let reason = reason.split(" (os error").next().unwrap_or_default();
            let hint = meant.unwrap_or_else(|| "; paths are relative to the directory".to_owned());
            self.wrong(format!("{source}: {reason}{hint}"))
        })?;
        let Some(rest) = destination.strip_prefix('/') else {
            return Err(self.wrong(format!("{destination}: the path in the image must begin with \"/\"")));
        };
        let mut place: Vec<&[u8]> = Vec::new();
        for part in rest.split('/') {
            match part {
                "" | "." => {}
                ".." => return Err(self.wrong(format!("{destination}: \"..\" is not allowed"))),
                part => place.push(part.as_bytes()),
            }
        }
        let file_name = relative.file_name();
        if let Some(file_name) = file_name
            && !metadata.is_dir()
            && (place.is_empty() || destination.ends_with('/'))
        {
            place.push(file_name.as_bytes());
        }
        let place = place.join(&b'/');
        self.make_parents(&place)?;
        self.walk(&relative, metadata, place)
    }

    /// A file that exists and has nearly this name.
    fn similar(&self, relative: &Path) -> Option<String> {
        let parent = relative.parent()?;
        let name = relative.file_name()?.to_str()?;
        let names: Vec<String> = std::fs::read_dir(self.dir.join(parent))
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        let known: Vec<&str> = names.iter().map(String::as_str).collect();
        let meant = super::description::closest(name, &known)?;
        Some(parent.join(meant).display().to_string())
    }

    /// The source path without `.`, if it stays below the directory and passes through no symbolic link.
    fn inside(&self, source: &str) -> Result<PathBuf, ImageError> {
        let outside = || self.wrong(format!("{source}: only files below {} can be used", self.dir.display()));
        let mut relative = PathBuf::new();
        for component in Path::new(source).components() {
            match component {
                Component::CurDir => {}
                Component::Normal(name) => {
                    let link = |path: &Path| path.symlink_metadata().is_ok_and(|there| there.is_symlink());
                    if !relative.as_os_str().is_empty() && link(&self.dir.join(&relative)) {
                        return Err(outside());
                    }
                    relative.push(name);
                }
                _ => return Err(outside()),
            }
        }
        Ok(relative)
    }

    fn make_parents(&mut self, place: &[u8]) -> Result<(), ImageError> {
        for (i, _) in place.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            self.put(place[..i].to_vec(), Member::of_root(Content::Directory, 0o755))?;
        }
        Ok(())
    }

    fn put(&mut self, place: Vec<u8>, member: Member) -> Result<(), ImageError> {
        // The root itself needs no entry.
        if place.is_empty() {
            return Ok(());
        }
        match self.gathered.members.get(&place).map(|there| &there.content) {
            None => drop(self.gathered.members.insert(place, member)),
            Some(Content::Directory) if member.content == Content::Directory => {}
            Some(_) => {
                return Err(self.wrong(format!("two things want to be /{}", String::from_utf8_lossy(&place))));
            }
        }
        Ok(())
    }

    fn walk(&mut self, relative: &Path, metadata: Metadata, place: Vec<u8>) -> Result<(), ImageError> {
        let name = relative.as_os_str().as_bytes();
        let own = name == DESCRIPTION.as_bytes() || name == ignore::FILE.as_bytes();
        if own || (!name.is_empty() && self.ignored.ignores(name, metadata.is_dir())) {
            return Ok(());
        }
        let path = self.dir.join(relative);
        if metadata.is_file() {
            let mode = if metadata.permissions().mode() & 0o111 != 0 { 0o755 } else { 0o644 };
            self.put(place.clone(), Member::of_root(Content::File(path.clone()), mode))?;
            self.gathered.files.insert(place, Found { path, metadata });
            return Ok(());
        }
        if metadata.is_symlink() {
            let target = std::fs::read_link(&path).map_err(io("read", &path))?;
            return self.put(place, Member::of_root(Content::Symlink(target), 0o777));
        }
        if !metadata.is_dir() {
            return Err(
                self.wrong(format!("{}: only files, directories and links can be used", path.display()))
            );
        }
        self.put(place.clone(), Member::of_root(Content::Directory, 0o755))?;
        for entry in std::fs::read_dir(&path).map_err(io("read", &path))? {
            let entry = entry.map_err(io("read", &path))?;
            let metadata = entry.metadata().map_err(io("read", &entry.path()))?;
            let mut below = place.clone();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(entry.file_name().as_bytes());
            self.walk(&relative.join(entry.file_name()), metadata, below)?;
        }
        Ok(())
    }
}
