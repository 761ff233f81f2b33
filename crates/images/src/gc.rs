//! Pruning: giving back the space of what nobody needs.

use crate::error::io;
use crate::staging::Staging;
use crate::{Digest, ImageError, ImageStore};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What pruning removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Images that went.
    pub images: Vec<Digest>,
    /// Space given back, in bytes: blobs and unpacked layers.
    pub freed_bytes: u64,
}

impl ImageStore {
    /// Removes images without a name, unless their manifest digest is `in_use`, and all content that no image
    /// refers to. Waits for running imports.
    ///
    /// # Errors
    /// When an image that stays cannot be read (nothing is removed then), or a file cannot be removed.
    pub fn prune(&self, in_use: &[Digest]) -> Result<Pruned, ImageError> {
        // The trash is made first: it holds content, which must not wait for this very call.
        let mut trash = Staging::begin(self)?;
        trash.release_content();
        let _content = self.lock_content()?;
        let _lock = self.lock()?;
        let mut refs = self.refs()?;
        let (kept, gone): (BTreeSet<Digest>, BTreeSet<Digest>) =
            std::mem::take(&mut refs.untagged).into_iter().partition(|digest| in_use.contains(digest));
        refs.untagged = kept;
        let mut blobs = BTreeSet::new();
        let mut layers = BTreeSet::new();
        for digest in refs.digests() {
            let (manifest, config) = self.documents(&digest)?;
            blobs.extend(manifest.layers.iter().map(|layer| layer.digest.hex().to_owned()));
            blobs.extend([digest.hex().to_owned(), manifest.config.digest.hex().to_owned()]);
            layers.extend(config.rootfs.diff_ids.iter().map(|diff_id| diff_id.hex().to_owned()));
        }
        self.write_refs(&refs)?;
        let mut pruned = Pruned { images: gone.into_iter().collect(), freed_bytes: 0 };
        for (dir, needed) in [(self.layers(), &layers), (self.blobs(), &blobs)] {
            for path in unneeded(&dir, needed)? {
                pruned.freed_bytes += disk_usage(&path)?;
                // Away from its name at once: a half-removed layer must not look like a layer.
                let place = trash.fresh();
                std::fs::rename(&path, &place).map_err(io("remove", &path))?;
            }
        }
        Ok(pruned)
    }
}

fn unneeded(dir: &Path, needed: &BTreeSet<String>) -> Result<Vec<PathBuf>, ImageError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io("read", dir))? {
        let entry = entry.map_err(io("read", dir))?;
        if !entry.file_name().to_str().is_some_and(|name| needed.contains(name)) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Bytes of the files at and below a path.
fn disk_usage(path: &Path) -> Result<u64, ImageError> {
    let metadata = std::fs::symlink_metadata(path).map_err(io("read", path))?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    let mut bytes = 0;
    for entry in std::fs::read_dir(path).map_err(io("read", path))? {
        bytes += disk_usage(&entry.map_err(io("read", path))?.path())?;
    }
    Ok(bytes)
}
