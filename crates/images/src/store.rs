//! The store's directory: opening, names, and looking images up.

use crate::document::Kind;
use crate::error::io;
use crate::oci::{self, ConfigFile, Manifest, Platform};
use crate::staging;
use crate::{Digest, ImageConfig, ImageError, Reference};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Caps on what an archive may make the store do.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most bytes of an archive, uncompressed.
    pub archive_bytes: u64,
    /// Most entries of an archive.
    pub archive_entries: u64,
    /// Most bytes of one unpacked layer.
    pub layer_bytes: u64,
    /// Most entries of one layer.
    pub layer_entries: u64,
    /// Most layers of one image; overlayfs itself stacks no more than 500.
    pub layers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            archive_bytes: 64 << 30,
            archive_entries: 100_000,
            layer_bytes: 32 << 30,
            layer_entries: 4_000_000,
            layers: 256,
        }
    }
}

/// Images on disk. Cheap to clone; holds no state of its own beyond the directory's name.
#[derive(Clone, Debug)]
pub struct ImageStore {
    pub(crate) root: PathBuf,
    pub(crate) limits: Limits,
}

/// An image, ready to run.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of the manifest: identifies everything about the image.
    pub digest: Digest,
    /// Digest of the configuration: what Docker calls the image's id.
    pub id: Digest,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// Unpacked layers, lowest first. Read only.
    pub layers: Vec<PathBuf>,
    /// Size of manifest, configuration and layers as stored.
    pub size_bytes: u64,
}

/// A row of [`ImageStore::list`].
#[derive(Clone, Debug)]
pub struct ImageSummary {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Digest of the configuration.
    pub id: Digest,
    /// Names of the image; none when newer images took them.
    pub refs: Vec<Reference>,
    /// Size of manifest, configuration and layers as stored.
    pub size_bytes: u64,
    /// When it was built (RFC 3339), if it says so.
    pub created: Option<String>,
}

impl ImageStore {
    /// Opens the store in `dir`, which is made when missing, and removes what imports of dead processes left behind.
    ///
    /// # Errors
    /// When the directory cannot be used, or was written by another version of this program.
    pub fn open(dir: &Path) -> Result<Self, ImageError> {
        Self::open_with(dir, Limits::default())
    }

    /// Opens with limits of one's own.
    ///
    /// # Errors
    /// As [`ImageStore::open`].
    pub fn open_with(dir: &Path, limits: Limits) -> Result<Self, ImageError> {
        let store = Self { root: dir.to_owned(), limits };
        // Unpacked layers hold set-id programs: only root may reach them by path.
        let mut private = std::fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        for path in
            [dir.to_owned(), store.blobs(), store.layers(), store.tmp(), store.leases(), store.partial_dir()]
        {
            private.create(&path).map_err(io("make", &path))?;
        }
        store.refs()?;
        staging::clean(&store)?;
        Ok(store)
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.layers().join(diff_id.hex())
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(crate) fn refs_path(&self) -> PathBuf {
        self.root.join("refs.json")
    }

    /// Locks out other changes of names and of the set of files, here and in other processes, until dropped.
    pub(crate) fn lock(&self) -> Result<File, ImageError> {
        let file = lock_file(&self.root.join("lock"))?;
        file.lock().map_err(io("lock", &self.root))?;
        Ok(file)
    }

    /// Keeps what is there from being pruned until dropped.
    pub(crate) fn hold_content(&self) -> Result<File, ImageError> {
        let file = lock_file(&self.root.join("gc.lock"))?;
        file.lock_shared().map_err(io("lock", &self.root))?;
        Ok(file)
    }

    /// Waits until nobody holds content, and keeps it so until dropped.
    pub(crate) fn lock_content(&self) -> Result<File, ImageError> {
        let file = lock_file(&self.root.join("gc.lock"))?;
        file.lock().map_err(io("lock", &self.root))?;
        Ok(file)
    }

    /// Finds an image by name, by name and digest, or by digest alone.
    ///
    /// # Errors
    /// `NotFound`; `BadReference`; or `Corrupt` when the store's files are damaged.
    pub fn resolve(&self, reference: &str) -> Result<Image, ImageError> {
        let digest = self.find(reference)?;
        self.image(&digest)
    }

    pub(crate) fn find(&self, reference: &str) -> Result<Digest, ImageError> {
        let refs = self.refs()?;
        let wanted = match Digest::parse(reference) {
            Ok(digest) => Some(digest),
            Err(_) => {
                let reference = Reference::parse(reference)?;
                match reference.digest() {
                    Some(digest) => Some(digest.clone()),
                    None => refs.refs.get(&reference.to_string()).cloned(),
                }
            }
        };
        match wanted {
            Some(digest) if refs.digests().contains(&digest) => Ok(digest),
            _ => Err(ImageError::NotFound { reference: reference.to_owned() }),
        }
    }

    fn image(&self, root: &Digest) -> Result<Image, ImageError> {
        let digest = self.runnable(root)?;
        let (manifest, config) = self.documents(&digest)?;
        // What was pushed may not have been unpacked yet.
        self.unpack_missing(&digest.to_string(), &manifest, &config)?;
        Ok(Image {
            id: manifest.config.digest.clone(),
            size_bytes: size_of(&manifest),
            layers: config.rootfs.diff_ids.iter().map(|diff_id| self.layer(diff_id)).collect(),
            config: config.config.into(),
            digest,
        })
    }

    /// The manifest and configuration of an image, or of the one in an index that this machine runs.
    pub(crate) fn documents(&self, root: &Digest) -> Result<(Manifest, ConfigFile), ImageError> {
        let digest = self.runnable(root)?;
        let manifest: Manifest = self.document(&digest)?;
        let config: ConfigFile = self.document(&manifest.config.digest)?;
        Ok((manifest, config))
    }

    pub(crate) fn document<T: serde::de::DeserializeOwned>(&self, digest: &Digest) -> Result<T, ImageError> {
        let bytes = self.document_bytes(digest)?;
        serde_json::from_slice(&bytes).map_err(|error| ImageError::Corrupt {
            path: self.blob(digest),
            reason: format!("malformed: {error}"),
        })
    }

    /// A small blob, verified.
    pub(crate) fn document_bytes(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let path = self.blob(digest);
        let bytes = read_capped(&path, oci::MAX_JSON)?;
        match Digest::of(&bytes) == *digest {
            true => Ok(bytes),
            false => Err(ImageError::Corrupt {
                path,
                reason: "its content does not have the digest that it is named after".to_owned(),
            }),
        }
    }

    /// All images and artifacts, by digest. An image in an index counts as one with it.
    ///
    /// # Errors
    /// When the store's files cannot be read.
    pub fn list(&self) -> Result<Vec<ImageSummary>, ImageError> {
        let refs = self.refs()?;
        let mut rows: BTreeMap<Digest, ImageSummary> = BTreeMap::new();
        for root in refs.digests() {
            let summary = self.summary(&root)?;
            rows.entry(summary.digest.clone()).or_insert(summary);
        }
        for (name, root) in &refs.refs {
            let shown = self.shown(root)?;
            if let Some(row) = rows.get_mut(&shown) {
                row.refs.push(Reference::parse(name)?);
            }
        }
        Ok(rows.into_values().collect())
    }

    /// The document that stands for `root` in lists: the image that runs here, if it is there.
    fn shown(&self, root: &Digest) -> Result<Digest, ImageError> {
        let document = self.described(root)?;
        let child = document.for_here().map(|child| child.digest.clone());
        Ok(child.filter(|child| self.blob(child).exists()).unwrap_or_else(|| root.clone()))
    }

    fn summary(&self, root: &Digest) -> Result<ImageSummary, ImageError> {
        let digest = self.shown(root)?;
        let document = self.described(&digest)?;
        let created = match (document.kind(), document.config()) {
            (Kind::Image, Some(config)) => self.document::<ConfigFile>(&config.digest)?.created,
            _ => None,
        };
        Ok(ImageSummary {
            refs: Vec::new(),
            id: document.config().map_or_else(|| digest.clone(), |config| config.digest.clone()),
            size_bytes: document.blobs().chain(document.children()).map(|blob| blob.size).sum(),
            created,
            digest,
        })
    }
}

/// Sizes as stored: the manifest itself is too small to count.
fn size_of(manifest: &Manifest) -> u64 {
    manifest.layers.iter().map(|layer| layer.size).sum::<u64>() + manifest.config.size
}

/// Checks what an image's configuration says about machines and layers.
pub(crate) fn check_config(archive: &str, config: &ConfigFile, layers: usize) -> Result<(), ImageError> {
    if !config.platform.fits() {
        return Err(ImageError::Platform {
            archive: archive.to_owned(),
            found: config.platform.to_string(),
            wanted: Platform::here().to_string(),
        });
    }
    let (ids, archive) = (config.rootfs.diff_ids.len(), archive.to_owned());
    match ids == layers {
        true => Ok(()),
        false => Err(ImageError::Archive {
            archive,
            reason: format!("the manifest has {layers} layers, the configuration {ids}"),
        }),
    }
}

pub(crate) fn read_capped(path: &Path, most: u64) -> Result<Vec<u8>, ImageError> {
    let file = File::open(path).map_err(io("open", path))?;
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(io("read", path))?;
    match bytes.len() as u64 > most {
        true => {
            Err(ImageError::Corrupt { path: path.to_owned(), reason: format!("larger than {most} bytes") })
        }
        false => Ok(bytes),
    }
}

pub(crate) fn sync_dir(path: &Path) -> Result<(), ImageError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io("sync", path))
}

pub(crate) fn lock_file(path: &Path) -> Result<File, ImageError> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(io("open", path))
}
