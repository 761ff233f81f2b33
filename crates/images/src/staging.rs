//! Work in progress: blobs and layers that are complete and verified, but not yet part of the store.
//!
//! ```text
//!   tmp/<id>.lock   flock held by the process that works; whoever gets it may remove the rest
//!   tmp/<id>/       numbered files (blobs) and directories (layers)
//! ```
//!
//! [`Staging::publish`] renames everything into place and then writes the references; dropping a `Staging` removes
//! it. While one lives, nothing is pruned, so that what it found in the store is still there when it publishes.

use crate::digest::HashingReader;
use crate::error::io;
use crate::oci::Descriptor;
use crate::store::{lock_file, sync_dir};
use crate::unpack::unpack;
use crate::{Digest, ImageError, ImageStore, Limits, Reference};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A directory below `tmp` that lives as long as this value, or until somebody cleans up after a dead process.
#[derive(Debug)]
pub(crate) struct WorkDir {
    dir: PathBuf,
    lock_path: PathBuf,
    _lock: File,
    next: AtomicU64,
}

impl WorkDir {
    pub(crate) fn make(store: &ImageStore) -> Result<Self, ImageError> {
        // A new lock file is not locked for a moment: this keeps cleaners away meanwhile.
        let _guard = store.lock()?;
        for number in 0_u64.. {
            let dir = store.tmp().join(format!("{}-{number}", std::process::id()));
            let lock_path = dir.with_extension("lock");
            if lock_path.exists() || dir.exists() {
                continue;
            }
            let lock = lock_file(&lock_path)?;
            lock.lock().map_err(io("lock", &lock_path))?;
            std::fs::create_dir(&dir).map_err(io("make", &dir))?;
            return Ok(Self { dir, lock_path, _lock: lock, next: AtomicU64::new(0) });
        }
        unreachable!("some number is free")
    }

    /// A path below the directory that is not in use.
    pub(crate) fn fresh(&self) -> PathBuf {
        self.dir.join((self.next.fetch_add(1, Ordering::Relaxed) + 1).to_string())
    }

    /// Flushes everything below to the disk.
    pub(crate) fn sync(&self) -> Result<(), ImageError> {
        let root = File::open(&self.dir).map_err(io("open", &self.dir))?;
        nix::unistd::syncfs(&root).map_err(io("sync", &self.dir))
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        discard(&self.dir, &self.lock_path);
    }
}

pub(crate) struct Staging<'a> {
    store: &'a ImageStore,
    work: WorkDir,
    /// Keeps the store's content from being pruned.
    content: Option<File>,
    blobs: BTreeMap<Digest, PathBuf>,
    layers: BTreeMap<Digest, PathBuf>,
}

impl<'a> Staging<'a> {
    pub(crate) fn begin(store: &'a ImageStore) -> Result<Self, ImageError> {
        let content = Some(store.hold_content()?);
        let (blobs, layers) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { store, work: WorkDir::make(store)?, content, blobs, layers })
    }

    /// Stops keeping content: for pruning itself, which stages what it removes.
    pub(crate) fn release_content(&mut self) {
        self.content = None;
    }

    /// A path below the staging directory that is not in use.
    pub(crate) fn fresh(&mut self) -> PathBuf {
        self.work.fresh()
    }

    /// Stores what can be read. `unreadable` words an error of the reader, to tell it from one of the disk.
    pub(crate) fn add_blob(
        &mut self,
        reader: &mut dyn Read,
        unreadable: &dyn Fn(&std::io::Error) -> ImageError,
    ) -> Result<(Digest, u64), ImageError> {
        let path = self.fresh();
        let mut file = File::create_new(&path).map_err(io("make", &path))?;
        let mut reader = HashingReader::new(reader);
        let mut buffer = vec![0; 128 * 1024];
        loop {
            let n = reader.read(&mut buffer).map_err(|error| unreadable(&error))?;
            if n == 0 {
                break;
            }
            std::io::Write::write_all(&mut file, &buffer[..n]).map_err(io("write", &path))?;
        }
        file.sync_all().map_err(io("write", &path))?;
        let (digest, size) = reader.finish();
        self.blobs.insert(digest.clone(), path);
        Ok((digest, size))
    }

    /// Stores a document of our own.
    pub(crate) fn add_document(&mut self, media_type: &str, bytes: &[u8]) -> Result<Descriptor, ImageError> {
        let broken =
            |error: &std::io::Error| ImageError::Io { what: "read".to_owned(), source: error.kind().into() };
        let (digest, size) = self.add_blob(&mut &*bytes, &broken)?;
        Ok(Descriptor::new(media_type, digest, size))
    }

    /// Where the content of a blob is: staged, or in the store already.
    pub(crate) fn blob(&self, digest: &Digest) -> Option<PathBuf> {
        let staged = self.blobs.get(digest).cloned();
        staged.or_else(|| Some(self.store.blob(digest)).filter(|path| path.exists()))
    }

    /// Drops staged blobs that no image refers to.
    pub(crate) fn keep_only(&mut self, wanted: &std::collections::BTreeSet<Digest>) {
        self.blobs.retain(|digest, _| wanted.contains(digest));
    }

    /// Unpacks the layer in a blob, unless it is there already, and verifies that it has the digest `diff_id`.
    pub(crate) fn add_layer(&mut self, label: &str, blob: &Path, diff_id: &Digest) -> Result<(), ImageError> {
        let known = self.layers.contains_key(diff_id) || self.store.layer(diff_id).exists();
        let place = (!known).then(|| self.fresh());
        unpack_verified(&self.store.limits, label, blob, diff_id, place.as_deref())?;
        if let Some(path) = place {
            self.layers.insert(diff_id.clone(), path);
        }
        Ok(())
    }

    /// Makes everything part of the store and names the images: a manifest digest and its names for each.
    pub(crate) fn publish(self, images: &[(Digest, Vec<Reference>)]) -> Result<(), ImageError> {
        if !self.layers.is_empty() {
            self.work.sync()?;
        }
        let _lock = self.store.lock()?;
        let layers = self.layers.iter().map(|(digest, path)| (self.store.layer(digest), path));
        let blobs = self.blobs.iter().map(|(digest, path)| (self.store.blob(digest), path));
        for (place, path) in layers.chain(blobs) {
            // Somebody else may have imported the same content meanwhile.
            if !place.exists() {
                std::fs::rename(path, &place).map_err(io("move into place", &place))?;
            }
        }
        sync_dir(&self.store.layers())?;
        sync_dir(&self.store.blobs())?;
        let mut refs = self.store.refs()?;
        for (digest, names) in images {
            names.iter().for_each(|name| refs.tag(name, digest));
            refs.keep_untagged(digest.clone());
        }
        self.store.write_refs(&refs)
    }
}

/// Unpacks the layer in the file `blob` into the new directory `place`, or only reads it, and verifies that it has the
/// digest `diff_id` when uncompressed.
pub(crate) fn unpack_verified(
    limits: &Limits,
    label: &str,
    blob: &Path,
    diff_id: &Digest,
    place: Option<&Path>,
) -> Result<(), ImageError> {
    let file = File::open(blob).map_err(io("open", blob))?;
    let plain = decompress(file, label)?;
    // Headers and padding come on top of the data.
    let capped = Capped { inner: plain, left: limits.layer_bytes.saturating_mul(2) };
    let mut stream = HashingReader::new(capped);
    if let Some(path) = place {
        std::fs::DirBuilder::new().mode(0o755).create(path).map_err(io("make", path))?;
        stream = unpack(stream, label, path, limits)?;
    }
    let rest = std::io::copy(&mut stream, &mut std::io::sink());
    rest.map_err(|error| ImageError::Archive {
        archive: label.to_owned(),
        reason: format!("the layer cannot be read to its end: {error}"),
    })?;
    let (found, _) = stream.finish();
    match found == *diff_id {
        true => Ok(()),
        false => Err(ImageError::DigestMismatch {
            archive: label.to_owned(),
            what: "the uncompressed layer".to_owned(),
            expected: diff_id.to_string(),
            found: found.to_string(),
        }),
    }
}

fn discard(dir: &Path, lock_path: &Path) {
    for (path, result) in [(dir, std::fs::remove_dir_all(dir)), (lock_path, std::fs::remove_file(lock_path))]
    {
        if let Err(error) = result
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove temporary files");
        }
    }
}

/// Removes what processes that are gone have left behind.
pub(crate) fn clean(store: &ImageStore) -> Result<(), ImageError> {
    let _guard = store.lock()?;
    let tmp = store.tmp();
    let entries = std::fs::read_dir(&tmp).map_err(io("read", &tmp))?;
    for entry in entries {
        let path = entry.map_err(io("read", &tmp))?.path();
        if path.extension().is_some_and(|extension| extension == "lock") {
            let lock = lock_file(&path)?;
            if lock.try_lock().is_ok() {
                discard(&path.with_extension(""), &path);
            }
        } else if !path.with_extension("lock").exists() {
            discard(&path, &path.with_extension("lock"));
        }
    }
    Ok(())
}

/// Reads plain, gzip or zstd data, told apart by their first bytes.
pub(crate) fn decompress(reader: impl Read + 'static, label: &str) -> Result<Box<dyn Read>, ImageError> {
    let unreadable = |error: std::io::Error| ImageError::Archive {
        archive: label.to_owned(),
        reason: format!("cannot be read: {error}"),
    };
    let mut reader = BufReader::with_capacity(64 * 1024, reader);
    let mut magic = Vec::new();
    reader.by_ref().take(4).read_to_end(&mut magic).map_err(unreadable)?;
    let whole = std::io::Cursor::new(magic.clone()).chain(reader);
    Ok(match magic[..] {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::new(whole).map_err(unreadable)?),
        [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', b'X'] => {
            let reason = "bzip2 and xz are not supported: compress with gzip or zstd".to_owned();
            return Err(ImageError::Archive { archive: label.to_owned(), reason });
        }
        _ => Box::new(whole),
    })
}

/// Fails, instead of ending, when more than the limit is read.
pub(crate) struct Capped<R> {
    pub(crate) inner: R,
    pub(crate) left: u64,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| std::io::Error::other("it is larger than the limit when uncompressed"))?;
        Ok(n)
    }
}
