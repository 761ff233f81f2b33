//! Checking the store against itself.
//!
//! What is stored is verified by its digest. What is unpacked has none, so every layer is unpacked once more, aside,
//! and the two trees are compared: names, types, owners, modes, sizes, link targets and contents.

use crate::digest::HashingReader;
use crate::document::{Kind, is_foreign};
use crate::error::io;
use crate::staging::{Staging, decompress};
use crate::unpack::unpack;
use crate::{Digest, ImageError, ImageStore};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

impl ImageStore {
    /// Reads everything and tells what is wrong: blobs that do not have the digest they are named after, documents
    /// and layers that an image needs and that are missing, unpacked layers that differ from what they were
    /// unpacked from. Empty when all is well. Takes about as long as importing everything again.
    ///
    /// # Errors
    /// When the store cannot be read, or there is no space to unpack a layer for comparison.
    pub fn verify(&self) -> Result<Vec<String>, ImageError> {
        let mut staging = Staging::begin(self)?;
        let mut problems = self.verify_blobs()?;
        let mut compared = BTreeSet::new();
        let mut open = self.refs()?.digests();
        let mut seen = BTreeSet::new();
        while let Some(digest) = open.pop_first() {
            let document = match self.described(&digest) {
                Ok(document) => document,
                Err(error) => {
                    problems.push(format!("image {digest}: {error}"));
                    continue;
                }
            };
            seen.insert(digest.clone());
            let here = |child: &Digest| self.blob(child).exists() && !seen.contains(child);
            open.extend(document.children().iter().map(|child| child.digest.clone()).filter(here));
            for blob in document.blobs().filter(|blob| !is_foreign(blob)) {
                let size = std::fs::metadata(self.blob(&blob.digest)).map(|metadata| metadata.len());
                if !size.is_ok_and(|size| size == blob.size) {
                    problems.push(format!("image {digest}: {} is missing or has another size", blob.digest));
                }
            }
            if document.kind() != Kind::Image {
                continue;
            }
            let (manifest, config) = match self.documents(&digest) {
                Ok(documents) => documents,
                Err(error) => {
                    problems.push(format!("image {digest}: {error}"));
                    continue;
                }
            };
            if !config.platform.fits() {
                continue;
            }
            if manifest.layers.len() != config.rootfs.diff_ids.len() {
                problems.push(format!("image {digest}: manifest and configuration disagree on the layers"));
            }
            for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
                if compared.insert((layer.digest.clone(), diff_id.clone())) {
                    problems.extend(self.verify_layer(&mut staging, &layer.digest, diff_id)?);
                }
            }
        }
        Ok(problems)
    }

    fn verify_blobs(&self) -> Result<Vec<String>, ImageError> {
        let mut problems = Vec::new();
        let dir = self.blobs();
        for entry in std::fs::read_dir(&dir).map_err(io("read", &dir))? {
            let path = entry.map_err(io("read", &dir))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let mut reader = HashingReader::new(File::open(&path).map_err(io("open", &path))?);
            if let Err(error) = std::io::copy(&mut reader, &mut std::io::sink()) {
                problems.push(format!("{}: cannot be read: {error}", path.display()));
                continue;
            }
            let (found, _) = reader.finish();
            if found.hex() != name {
                problems.push(format!("{}: its content has digest {found}", path.display()));
            }
        }
        Ok(problems)
    }

    fn verify_layer(
        &self,
        staging: &mut Staging<'_>,
        blob: &Digest,
        diff_id: &Digest,
    ) -> Result<Option<String>, ImageError> {
        let Ok(file) = File::open(self.blob(blob)) else {
            return Ok(Some(format!("layer {blob} is missing")));
        };
        let unpacked_there = self.layer(diff_id).exists();
        let label = format!("layer {blob}");
        let fresh = staging.fresh();
        std::fs::create_dir(&fresh).map_err(io("make", &fresh))?;
        let unpacked = decompress(file, &label)
            .and_then(|plain| unpack(HashingReader::new(plain), &label, &fresh, &self.limits));
        let mut stream = match unpacked {
            Ok(stream) => stream,
            Err(error @ ImageError::Io { .. }) => return Err(error),
            Err(error) => return Ok(Some(error.to_string())),
        };
        // A failure to read the rest shows in the digest.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
        let (found, _) = stream.finish();
        let problem = if found != *diff_id {
            Some(format!("{label} has digest {found} when uncompressed, its image says {diff_id}"))
        } else if !unpacked_there {
            // Pushed and not run yet: it is unpacked when it is first needed.
            None
        } else {
            difference(&fresh, &self.layer(diff_id)).map(|what| format!("unpacked layer {diff_id}: {what}"))
        };
        std::fs::remove_dir_all(&fresh).map_err(io("remove", &fresh))?;
        Ok(problem)
    }
}

/// How the tree at `there` first differs from the one at `good`, if it does.
fn difference(good: &Path, there: &Path) -> Option<String> {
    match compare(good, there) {
        Ok(found) => found,
        Err(error) => Some(format!("{}: {error}", there.display())),
    }
}

fn compare(good: &Path, there: &Path) -> std::io::Result<Option<String>> {
    let (a, b) = (std::fs::symlink_metadata(good)?, std::fs::symlink_metadata(there)?);
    let facts = |m: &Metadata| {
        let size = if m.is_dir() { 0 } else { m.len() };
        (m.mode(), m.uid(), m.gid(), m.rdev(), size)
    };
    let same = facts(&a) == facts(&b)
        && if a.is_symlink() {
            std::fs::read_link(good)? == std::fs::read_link(there)?
        } else if a.is_file() {
            same_content(good, there)?
        } else {
            true
        };
    if !same {
        return Ok(Some(format!("{} was changed", there.display())));
    }
    if !a.is_dir() {
        return Ok(None);
    }
    let names = |path: &Path| -> std::io::Result<BTreeSet<OsString>> {
        std::fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect()
    };
    let (expected, found) = (names(good)?, names(there)?);
    if let Some(name) = expected.symmetric_difference(&found).next() {
        let what = if expected.contains(name) { "is missing" } else { "does not belong there" };
        return Ok(Some(format!("{} {what}", there.join(name).display())));
    }
    for name in expected {
        if let Some(found) = compare(&good.join(&name), &there.join(&name))? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn same_content(a: &Path, b: &Path) -> std::io::Result<bool> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        left.clear();
        right.clear();
        a.by_ref().take(64 * 1024).read_to_end(&mut left)?;
        b.by_ref().take(64 * 1024).read_to_end(&mut right)?;
        if left != right || left.is_empty() {
            return Ok(left == right);
        }
    }
}
