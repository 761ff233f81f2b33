//! Pruning: giving back the space of what nobody needs.

use crate::document::Kind;
use crate::error::io;
use crate::oci::ConfigFile;
use crate::refs::Refs;
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
    /// Removes documents without a name, unless their digest is `in_use` or they belong to one that stays (an image to
    /// its index, a signature to its image), and all content that none refers to. What was just pushed or pulled and
    /// is not named yet stays for an hour. Waits for running imports.
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
        let mut needed = Needed { leased: self.leased()?, ..Needed::default() };
        let gone = self.mark(&mut refs, in_use, &mut needed)?;
        refs.tidy_repositories();
        self.write_refs(&refs)?;
        let mut pruned = Pruned { images: gone, freed_bytes: 0 };
        for (dir, set) in [(self.layers(), &needed.layers), (self.blobs(), &needed.blobs)] {
            for path in unneeded(&dir, set, &needed.leased)? {
                pruned.freed_bytes += disk_usage(&path)?;
                // Away from its name at once: a half-removed layer must not look like a layer.
                let place = trash.fresh();
                std::fs::rename(&path, &place).map_err(io("remove", &path))?;
            }
        }
        pruned.freed_bytes += self.prune_partial()?;
        Ok(pruned)
    }

    /// Removes one blob, unless something refers to it. Waits for running imports.
    pub(crate) fn remove_blob(&self, digest: &Digest) -> Result<BlobRemoval, ImageError> {
        let _content = self.lock_content()?;
        let path = self.blob(digest);
        if !path.exists() {
            return Ok(BlobRemoval::Unknown);
        }
        for root in self.refs()?.digests() {
            let mut needed = Needed::default();
            self.need(&root, &mut needed)?;
            if needed.blobs.contains(digest.hex()) {
                return Ok(BlobRemoval::Needed(root));
            }
        }
        std::fs::remove_file(&path).map_err(io("remove", &path))?;
        Ok(BlobRemoval::Removed)
    }

    /// Parts the documents into those that stay, whose content is noted in `needed`, and those that go.
    fn mark(
        &self,
        refs: &mut Refs,
        in_use: &[Digest],
        needed: &mut Needed,
    ) -> Result<Vec<Digest>, ImageError> {
        let mut open = std::mem::take(&mut refs.untagged);
        let tagged: BTreeSet<Digest> = refs.refs.values().cloned().collect();
        for digest in tagged.iter().chain(open.iter().filter(|digest| in_use.contains(digest))) {
            self.need(digest, needed)?;
        }
        // Signatures and the like stay with what they are about, and may have some themselves.
        loop {
            let mut more = Vec::new();
            for digest in open.iter().filter(|digest| !needed.blobs.contains(digest.hex())) {
                let document = self.described(digest)?;
                if document.subject().is_some_and(|subject| needed.documents.contains(&subject.digest)) {
                    more.push(digest.clone());
                }
            }
            for digest in &more {
                self.need(digest, needed)?;
            }
            if more.is_empty() {
                break;
            }
        }
        let (kept, gone) = open.iter().cloned().partition(|digest| needed.documents.contains(digest));
        refs.untagged = kept;
        open = gone;
        Ok(open.into_iter().collect())
    }

    /// Notes a document and all that it names.
    fn need(&self, digest: &Digest, needed: &mut Needed) -> Result<(), ImageError> {
        if !needed.documents.insert(digest.clone()) {
            return Ok(());
        }
        needed.blobs.insert(digest.hex().to_owned());
        let document = self.described(digest)?;
        // Of what was pulled for one machine, only its part of the index is there.
        for child in document.children().iter().filter(|child| self.blob(&child.digest).exists()) {
            self.need(&child.digest, needed)?;
        }
        needed.blobs.extend(document.blobs().map(|blob| blob.digest.hex().to_owned()));
        if let (Kind::Image, Some(config)) = (document.kind(), document.config()) {
            let config: ConfigFile = self.document(&config.digest)?;
            needed.layers.extend(config.rootfs.diff_ids.iter().map(|diff_id| diff_id.hex().to_owned()));
        }
        Ok(())
    }

    /// Removes downloads that nobody goes on with.
    fn prune_partial(&self) -> Result<u64, ImageError> {
        let (dir, mut freed) = (self.partial_dir(), 0);
        for entry in std::fs::read_dir(&dir).map_err(io("read", &dir))? {
            let path = entry.map_err(io("read", &dir))?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let Ok(digest) = Digest::parse(&format!("sha256:{name}")) else { continue };
            if let Some(_claim) = self.try_claim(&digest)?
                && path.extension().is_none()
            {
                freed += disk_usage(&path)?;
                std::fs::remove_file(&path).map_err(io("remove", &path))?;
            }
        }
        Ok(freed)
    }
}

/// What became of [`ImageStore::remove_blob`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BlobRemoval {
    /// It is gone.
    Removed,
    /// It was not there.
    Unknown,
    /// This document names it.
    Needed(Digest),
}

/// What stays.
#[derive(Default)]
struct Needed {
    documents: BTreeSet<Digest>,
    /// Hexadecimal digests of blobs, documents among them.
    blobs: BTreeSet<String>,
    /// Hexadecimal digests of unpacked layers.
    layers: BTreeSet<String>,
    /// Blobs and layers that somebody is about to name.
    leased: BTreeSet<String>,
}

fn unneeded(
    dir: &Path,
    needed: &BTreeSet<String>,
    leased: &BTreeSet<String>,
) -> Result<Vec<PathBuf>, ImageError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io("read", dir))? {
        let entry = entry.map_err(io("read", dir))?;
        if !entry.file_name().to_str().is_some_and(|name| needed.contains(name) || leased.contains(name)) {
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
