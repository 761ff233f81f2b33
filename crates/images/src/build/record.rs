//! What earlier builds found out, so that the same inputs cost nothing again. A cache: lost, it costs time only.
//!
//! ```text
//!   DIR/build/keys/<hex>    digest of a step's inputs → the layers that it gave, or another key
//!   DIR/build/files/<hex>   of an image's directory: size, times and inode of its files → digests of their contents
//! ```
//!
//! Nothing in it is believed blindly: a layer counts only while its blob is in the store with the right size.
//! Files are replaced atomically and independent of each other, so that concurrent builds need no lock.

use super::context::Found;
use crate::digest::HashingReader;
use crate::error::io;
use crate::oci::Descriptor;
use crate::{Digest, ImageError, ImageStore};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A file that changed so shortly before it was read may change again without its times showing it.
const SETTLED: Duration = Duration::from_millis(50);
/// How many results are kept before old ones are looked for.
const MANY: usize = 2000;

/// A layer of an image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Layer {
    pub(super) blob: Descriptor,
    pub(super) diff_id: Digest,
}

/// The digest of a step's inputs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key(String);

impl Key {
    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

/// Makes a [`Key`]: parts are told apart, so that no two lists of inputs look the same.
pub(super) struct KeyMaker(Sha256);

impl KeyMaker {
    /// `kind` tells the steps apart; a change of what a step does needs another one.
    pub(super) fn new(kind: &str) -> Self {
        Self(Sha256::new()).with("cumulet build 1").with(kind)
    }

    pub(super) fn with(mut self, part: impl AsRef<[u8]>) -> Self {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
        self
    }

    pub(super) fn with_all(self, parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        let parts: Vec<_> = parts.into_iter().collect();
        parts.iter().fold(self.with((parts.len() as u64).to_le_bytes()), |maker, part| maker.with(part))
    }

    pub(super) fn finish(self) -> Key {
        Key(Digest::from_hash(&self.0.finalize()).hex().to_owned())
    }
}

/// The record of a store.
pub(super) struct Record<'a> {
    store: &'a ImageStore,
    dir: PathBuf,
    /// Nothing is found; results are still noted.
    blind: bool,
}

impl<'a> Record<'a> {
    pub(super) fn open(store: &'a ImageStore, blind: bool) -> Self {
        Self { store, dir: store.root.join("build"), blind }
    }

    fn key_path(&self, key: &Key) -> PathBuf {
        self.dir.join("keys").join(&key.0)
    }

    /// What was noted under a key; `None` also when it cannot be read.
    pub(super) fn get<T: DeserializeOwned>(&self, key: &Key) -> Option<T> {
        if self.blind {
            return None;
        }
        serde_json::from_slice(&fs::read(self.key_path(key)).ok()?).ok()
    }

    /// Notes something. A failure costs the next build some time and is no error.
    pub(super) fn put<T: Serialize>(&self, key: &Key, value: &T) {
        if let Err(error) = replace(&self.key_path(key), value) {
            tracing::debug!(%error, "cannot note the result of a build step");
        }
    }

    /// The layers noted under a key, if all of them are still there.
    pub(super) fn layers(&self, key: &Key) -> Option<Vec<Layer>> {
        let layers: Vec<Layer> = self.get(key)?;
        let there = |layer: &Layer| {
            let size = fs::metadata(self.store.blob(&layer.blob.digest)).map(|metadata| metadata.len());
            size.is_ok_and(|size| size == layer.blob.size)
        };
        layers.iter().all(there).then_some(layers)
    }

    /// Forgets results whose layers are gone.
    pub(super) fn tidy(&self) {
        let Ok(entries) = fs::read_dir(self.dir.join("keys")) else { return };
        let paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        if paths.len() < MANY {
            return;
        }
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if self.layers(&Key(name)).is_none() {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Digests of files, of which those that look as they did are not read. `owner` is the image's directory.
    pub(super) fn digests(
        &self,
        owner: &Path,
        files: &[&Found],
    ) -> Result<BTreeMap<PathBuf, Digest>, ImageError> {
        let name = Digest::of(owner.as_os_str().as_encoded_bytes());
        let path = self.dir.join("files").join(name.hex());
        let seen: BTreeMap<PathBuf, Seen> = match self.blind {
            true => BTreeMap::new(),
            false => {
                fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
            }
        };
        let mut all = BTreeMap::new();
        let mut note = BTreeMap::new();
        for found in files {
            let look = Look::of(&found.metadata);
            let digest = match seen.get(&found.path) {
                Some(seen) if seen.look == look => seen.digest.clone(),
                _ => {
                    let file = File::open(&found.path).map_err(io("open", &found.path))?;
                    let mut reader = HashingReader::new(file);
                    std::io::copy(&mut reader, &mut std::io::sink()).map_err(io("read", &found.path))?;
                    reader.finish().0
                }
            };
            if look.settled() {
                note.insert(found.path.clone(), Seen { look, digest: digest.clone() });
            }
            all.insert(found.path.clone(), digest);
        }
        if (note != seen || self.blind)
            && let Err(error) = replace(&path, &note)
        {
            tracing::debug!(%error, "cannot note digests of files");
        }
        Ok(all)
    }
}

/// What shows that a file was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Look {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Look {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether the last change is long enough ago for the next one to get another time.
    fn settled(&self) -> bool {
        let seconds = u64::try_from(self.changed.0).unwrap_or(0);
        let nanos = u32::try_from(self.changed.1).unwrap_or(0);
        let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
        SystemTime::now().duration_since(changed).is_ok_and(|age| age > SETTLED)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    look: Look,
    digest: Digest,
}

/// Replaces a file of the record.
fn replace<T: Serialize>(path: &Path, value: &T) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(path);
    fs::create_dir_all(dir)?;
    let fresh = dir.join(format!(".new-{}", uuid::Uuid::new_v4()));
    fs::write(&fresh, serde_json::to_vec(value)?)?;
    fs::rename(&fresh, path).inspect_err(|_| drop(fs::remove_file(&fresh)))
}
