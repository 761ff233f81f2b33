//! Content that arrives piece by piece: leases, claims, publication of single blobs, and unpacking on demand.
//!
//! ```text
//!   DIR/leases/<hex>          somebody was told that this blob is there and may soon name it: not pruned while young
//!   DIR/partial/<hex>         what has arrived of a download, so that it can go on where it broke off
//!   DIR/partial/<hex>.lock    flock of whoever downloads or unpacks that digest: the others wait and find it done
//! ```
//!
//! An import that goes through [`crate::staging`] keeps all content from being pruned while it runs. A push or a pull
//! takes as long as the other side likes, so it must not do that: each blob gets a lease before it gets its name.

use crate::document::{Document, Kind};
use crate::error::io;
use crate::oci::{ConfigFile, Manifest};
use crate::staging::{WorkDir, unpack_verified};
use crate::store::{lock_file, sync_dir};
use crate::{Digest, ImageError, ImageStore, Reference};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

/// How long content without an image is kept for the one who was told of it.
pub(crate) const LEASE: Duration = Duration::from_secs(3600);
/// Most layers of one image that are unpacked at a time.
const MAX_UNPACKERS: usize = 4;

/// The right to produce one piece of content, in this process and all others. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    path: PathBuf,
    _lock: File,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Whoever waits for the lock sees that the file is gone, and takes a new one.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl ImageStore {
    pub(crate) fn leases(&self) -> PathBuf {
        self.root.join("leases")
    }

    pub(crate) fn partial_dir(&self) -> PathBuf {
        self.root.join("partial")
    }

    /// Where an unfinished download of a blob is kept.
    pub(crate) fn partial(&self, digest: &Digest) -> PathBuf {
        self.partial_dir().join(digest.hex())
    }

    /// Waits until nobody else produces the content, and keeps others waiting.
    pub(crate) fn claim(&self, digest: &Digest) -> Result<Claim, ImageError> {
        let path = self.partial(digest).with_extension("lock");
        loop {
            let lock = lock_file(&path)?;
            lock.lock().map_err(io("lock", &path))?;
            if is_same_file(&lock, &path) {
                return Ok(Claim { path, _lock: lock });
            }
        }
    }

    /// As [`ImageStore::claim`], but gives up when somebody has it.
    pub(crate) fn try_claim(&self, digest: &Digest) -> Result<Option<Claim>, ImageError> {
        let path = self.partial(digest).with_extension("lock");
        let lock = lock_file(&path)?;
        if lock.try_lock().is_err() || !is_same_file(&lock, &path) {
            return Ok(None);
        }
        Ok(Some(Claim { path, _lock: lock }))
    }

    /// Keeps a blob or layer from being pruned for a while, whether it is there yet or not. The caller holds content.
    fn lease(&self, digest: &Digest) -> Result<(), ImageError> {
        let path = self.leases().join(digest.hex());
        let now = SystemTime::now();
        File::create(&path).and_then(|file| file.set_modified(now)).map_err(io("make", &path))
    }

    fn end_lease(&self, digest: &Digest) {
        let _ = std::fs::remove_file(self.leases().join(digest.hex()));
    }

    /// The content that is leased, by hexadecimal digest. Forgets leases that ended. The caller has locked content.
    pub(crate) fn leased(&self) -> Result<BTreeSet<String>, ImageError> {
        let dir = self.leases();
        let mut leased = BTreeSet::new();
        for entry in std::fs::read_dir(&dir).map_err(io("read", &dir))? {
            let entry = entry.map_err(io("read", &dir))?;
            let touched = entry.metadata().and_then(|metadata| metadata.modified());
            // A lease from the future counts from now on: clocks get corrected.
            let young = touched.is_ok_and(|time| time.elapsed().is_ok_and(|age| age < LEASE));
            match entry.file_name().into_string() {
                Ok(hex) if young => drop(leased.insert(hex)),
                _ => drop(std::fs::remove_file(entry.path())),
            }
        }
        Ok(leased)
    }

    /// Size of a blob that is there, and that stays for as long as a lease lasts.
    pub(crate) fn blob_on_lease(&self, digest: &Digest) -> Result<Option<u64>, ImageError> {
        let _content = self.hold_content()?;
        let path = self.blob(digest);
        match std::fs::metadata(&path) {
            Ok(metadata) => self.lease(digest).map(|()| Some(metadata.len())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io("read", &path)(error)),
        }
    }

    /// Gives a verified and flushed file its place as a blob, with a lease.
    pub(crate) fn publish_blob(&self, file: &Path, digest: &Digest) -> Result<(), ImageError> {
        let _content = self.hold_content()?;
        self.lease(digest)?;
        let place = self.blob(digest);
        if !place.exists() {
            std::fs::rename(file, &place).map_err(io("move into place", &place))?;
            sync_dir(&self.blobs())?;
        }
        Ok(())
    }

    /// Makes documents part of the store: `bytes` under their own digest, what they name has to be there already.
    /// `change` then edits the names.
    pub(crate) fn publish_documents(
        &self,
        documents: &[(&Digest, &[u8])],
        change: impl FnOnce(&mut crate::refs::Refs),
    ) -> Result<(), ImageError> {
        let work = WorkDir::make(self)?;
        let _content = self.hold_content()?;
        let mut named = BTreeSet::new();
        for (digest, bytes) in documents {
            let document = Document::parse(bytes).map_err(|reason| ImageError::Entry {
                archive: digest.to_string(),
                entry: "manifest".into(),
                reason,
            })?;
            for blob in document.blobs().filter(|blob| !crate::document::is_foreign(blob)) {
                if !self.blob(&blob.digest).exists() {
                    let reason = format!("{} is missing from the store: try again", blob.digest);
                    return Err(ImageError::Archive { archive: digest.to_string(), reason });
                }
                named.insert(blob.digest.clone());
            }
            let path = work.fresh();
            let written = std::fs::write(&path, bytes).and_then(|()| File::open(&path)?.sync_all());
            written.map_err(io("write", &path))?;
            let place = self.blob(digest);
            if !place.exists() {
                std::fs::rename(&path, &place).map_err(io("move into place", &place))?;
            }
        }
        sync_dir(&self.blobs())?;
        let _lock = self.lock()?;
        let mut refs = self.refs()?;
        change(&mut refs);
        self.write_refs(&refs)?;
        named.iter().for_each(|digest| self.end_lease(digest));
        Ok(())
    }

    /// A manifest or index.
    pub(crate) fn described(&self, digest: &Digest) -> Result<Document, ImageError> {
        let bytes = self.document_bytes(digest)?;
        Document::parse(&bytes).map_err(|reason| ImageError::Corrupt { path: self.blob(digest), reason })
    }

    /// The manifest that this machine runs when asked for `root`, which may be an index.
    pub(crate) fn runnable(&self, root: &Digest) -> Result<Digest, ImageError> {
        let document = self.described(root)?;
        match document.kind() {
            Kind::Image => Ok(root.clone()),
            Kind::Artifact => Err(ImageError::Archive {
                archive: root.to_string(),
                reason: format!("is no image but \"{}\"", document.artifact_type().unwrap_or("unknown")),
            }),
            Kind::Index => match document.for_here() {
                Some(child) => Ok(child.digest.clone()),
                None => Err(ImageError::Platform {
                    archive: root.to_string(),
                    found: document.platforms(),
                    wanted: crate::oci::Platform::here().to_string(),
                }),
            },
        }
    }

    /// Unpacks one layer, unless it is there. Whoever else wants the same layer waits.
    pub(crate) fn unpack_layer(
        &self,
        label: &str,
        blob: &Digest,
        diff_id: &Digest,
    ) -> Result<(), ImageError> {
        let place = self.layer(diff_id);
        if place.exists() {
            return Ok(());
        }
        let _claim = self.claim(diff_id)?;
        if place.exists() {
            return Ok(());
        }
        let work = WorkDir::make(self)?;
        let fresh = work.fresh();
        let label = format!("{label}: layer {blob}");
        unpack_verified(&self.limits, &label, &self.blob(blob), diff_id, Some(&fresh))?;
        work.sync()?;
        let _content = self.hold_content()?;
        self.lease(diff_id)?;
        std::fs::rename(&fresh, &place).map_err(io("move into place", &place))?;
        sync_dir(&self.layers())
    }

    /// Unpacks the layers of an image that are not unpacked yet, several at a time.
    pub(crate) fn unpack_missing(
        &self,
        label: &str,
        manifest: &Manifest,
        config: &ConfigFile,
    ) -> Result<(), ImageError> {
        let missing: BTreeMap<&Digest, &Digest> = manifest
            .layers
            .iter()
            .zip(&config.rootfs.diff_ids)
            .filter(|(_, diff_id)| !self.layer(diff_id).exists())
            .map(|(layer, diff_id)| (diff_id, &layer.digest))
            .collect();
        let jobs: Vec<_> = missing.into_iter().collect();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let work = || {
            while let Some((diff_id, blob)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.unpack_layer(label, blob, diff_id) {
                    next.store(jobs.len(), Ordering::Relaxed);
                    *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                }
            }
        };
        match jobs.len() {
            0 => return Ok(()),
            1 => work(),
            many => std::thread::scope(|scope| {
                (0..many.min(cores).min(MAX_UNPACKERS)).for_each(|_| drop(scope.spawn(work)));
            }),
        }
        failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Names an image whose content is all there: the name goes to the first of the documents.
    pub(crate) fn publish_image(
        &self,
        documents: &[(&Digest, &[u8])],
        name: Option<&Reference>,
    ) -> Result<(), ImageError> {
        self.publish_documents(documents, |refs| {
            for (i, (digest, _)) in documents.iter().enumerate() {
                match name {
                    Some(name) if i == 0 => refs.tag(name, digest),
                    _ => refs.keep_untagged((*digest).clone()),
                }
            }
        })
    }

    /// Names an image of a registry whose content is all there: the name goes to the first of the documents.
    pub(crate) fn publish_pulled(
        &self,
        documents: &[(&Digest, &[u8])],
        name: &Reference,
    ) -> Result<(), ImageError> {
        self.publish_documents(documents, |refs| {
            for (i, (digest, _)) in documents.iter().enumerate() {
                match i {
                    0 => refs.tag_pulled(name, digest),
                    _ => refs.keep_untagged((*digest).clone()),
                }
            }
        })
    }
}

/// Whether a lock file is still the one at its path.
fn is_same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(theirs)) => (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()),
        _ => false,
    }
}
