//! Images that are a disk: one file below `/disk/` and no program to run, as KubeVirt's containerDisks are.

use crate::unpack::OPAQUE;
use crate::{Image, ImageError};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};

/// Where the disk lies in its image.
const DIRECTORY: &str = "disk";

impl Image {
    /// The disk that the image is, as a file of an unpacked layer; `None` for an image that names a program or has no
    /// files in `/disk`.
    ///
    /// # Errors
    /// Several disks, or layers that cannot be read.
    pub fn disk(&self) -> Result<Option<PathBuf>, ImageError> {
        if !self.config.entrypoint.is_empty() || !self.config.cmd.is_empty() {
            return Ok(None);
        }
        find(&self.layers)
    }
}

/// The one file in `/disk`, as overlayfs would show the layers (lowest first). Links are not followed: they could lead
/// out of the image.
fn find(layers: &[PathBuf]) -> Result<Option<PathBuf>, ImageError> {
    let mut files: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for layer in layers {
        let dir = layer.join(DIRECTORY);
        let Some(metadata) = look(&dir)? else { continue };
        if !metadata.is_dir() || is_opaque(&dir)? {
            files.clear();
        }
        if !metadata.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&dir).map_err(crate::error::io("read", &dir))? {
            let entry = entry.map_err(crate::error::io("read", &dir))?;
            let path = entry.path();
            match look(&path)? {
                Some(found) if found.is_file() => drop(files.insert(entry.file_name(), path)),
                // A whiteout, or something that is no disk.
                _ => drop(files.remove(&entry.file_name())),
            }
        }
    }
    if files.len() > 1 {
        let names: Vec<_> = files.keys().map(|name| name.to_string_lossy().into_owned()).collect();
        return Err(ImageError::Disk { reason: format!("several disks in /disk: {}", names.join(", ")) });
    }
    Ok(files.into_values().next())
}

fn look(path: &Path) -> Result<Option<Metadata>, ImageError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(crate::error::io("look at", path)(error)),
    }
}

fn is_opaque(dir: &Path) -> Result<bool, ImageError> {
    xattr::get(dir, OPAQUE).map(|value| value.is_some()).map_err(crate::error::io("look at", dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn one_file() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |name: &str, files: &[&str]| {
            let layer = dir.path().join(name);
            fs::create_dir_all(layer.join("disk")).unwrap();
            files.iter().for_each(|file| fs::write(layer.join("disk").join(file), "").unwrap());
            layer
        };
        let (one, other) = (layer("1", &["a.qcow2"]), layer("2", &["b.img"]));
        let replaced = layer("3", &["a.qcow2"]);
        let plain = dir.path().join("4");
        fs::create_dir(&plain).unwrap();
        let link = layer("5", &[]);
        symlink("/etc/passwd", link.join("disk/x.img")).unwrap();
        let outside = dir.path().join("6");
        fs::create_dir(&outside).unwrap();
        symlink("/etc", outside.join("disk")).unwrap();
        let check = |layers: &[&PathBuf], expected: Option<&PathBuf>| {
            let layers: Vec<PathBuf> = layers.iter().map(|l| (*l).clone()).collect();
            let found = find(&layers).unwrap();
            assert_eq!(found.as_ref().and_then(|f| f.parent()?.parent()), expected.map(PathBuf::as_path));
        };
        check(&[&plain], None);
        check(&[&one], Some(&one));
        check(&[&plain, &one, &plain], Some(&one));
        check(&[&one, &replaced], Some(&replaced));
        check(&[&link], None);
        check(&[&outside], None);
        check(&[&one, &outside], None);
        let error = find(&[one, other]).unwrap_err().to_string();
        assert!(error.contains("a.qcow2, b.img"), "{error}");
    }
}
