//! Building an image from a directory with a `cumulet.yaml`: a base, some files, and how to run them.
//!
//! ```text
//!   description → base image → one layer from the files → configuration → manifest → names
//! ```
//!
//! Reproducible: the same inputs give the same digest, wherever and whenever they are built. Entries are sorted,
//! owned by root, dated by `SOURCE_DATE_EPOCH` or 1970, and their modes are 0755 for directories and programs, 0644
//! for other files. Only files below the directory can get into the image. Nothing is run.

mod description;
mod ignore;
mod layer;

use crate::oci::{self, ConfigFile, Descriptor, Manifest, Platform, RootFs, RunConfig};
use crate::staging::Staging;
use crate::store::read_capped;
use crate::{Digest, ImageError, ImageStore, Reference};
use description::Description;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

/// The file that describes an image.
const DESCRIPTION: &str = "cumulet.yaml";
/// Largest description, in bytes.
const MAX_DESCRIPTION: u64 = 1 << 20;

/// How to build.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// Date of everything in the image, in seconds since the epoch.
    pub source_date_epoch: i64,
}

impl BuildOptions {
    /// Takes the date from the environment's `SOURCE_DATE_EPOCH`, if it is set.
    ///
    /// # Errors
    /// When it is set to something that is no number of seconds.
    pub fn from_env() -> Result<Self, ImageError> {
        let source_date_epoch = match std::env::var("SOURCE_DATE_EPOCH") {
            Err(_) => 0,
            Ok(text) => {
                text.trim().parse().ok().filter(|seconds| *seconds >= 0).ok_or_else(|| ImageError::Io {
                    what: format!("SOURCE_DATE_EPOCH is \"{text}\""),
                    source: std::io::Error::other("it must be a number of seconds since 1970"),
                })?
            }
        };
        Ok(Self { source_date_epoch })
    }
}

/// A finished build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltImage {
    /// The image's name.
    pub reference: Reference,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Size of manifest, configuration and layers as stored.
    pub size_bytes: u64,
    /// How many files, directories and links the new layer has.
    pub entries: usize,
}

impl ImageStore {
    /// Builds the image that `dir/cumulet.yaml` describes and gives it its name.
    ///
    /// # Errors
    /// A mistake in the description (with line and column), a file that is missing or not allowed, a base that is
    /// not present, or a store that cannot be written.
    pub fn build(&self, dir: &Path, options: &BuildOptions) -> Result<BuiltImage, ImageError> {
        let path = dir.join(DESCRIPTION);
        let text = String::from_utf8(read_capped(&path, MAX_DESCRIPTION)?).map_err(|_| {
            ImageError::Build { path: path.clone(), at: None, message: "not UTF-8 text".to_owned() }
        })?;
        let description = Description::parse(&path, &text)?;
        let reference = description.reference(&path)?;
        let mut staging = Staging::begin(self)?;
        let (mut layers, mut config) = self.base(&description, &path)?;
        let ignored = ignore::Rules::read(dir)?;
        let tree = layer::Tree::gather(dir, &path, &description.files, &ignored)?;
        if !tree.is_empty() {
            let layer = staging.fresh();
            tree.write(&layer, options.source_date_epoch)?;
            let mut file = File::open(&layer).map_err(crate::error::io("open", &layer))?;
            let unreadable = |error: &std::io::Error| ImageError::Io {
                what: format!("read {}", layer.display()),
                source: error.kind().into(),
            };
            let (digest, size) = staging.add_blob(&mut file, &unreadable)?;
            let blob = staging.blob(&digest).unwrap_or(layer.clone());
            staging.add_layer(&format!("{}: the new layer", reference.short()), &blob, &digest)?;
            // The layer is not compressed, so it is its own diff id.
            config.rootfs.diff_ids.push(digest.clone());
            layers.push(Descriptor::new(oci::MEDIA_LAYER, digest, size));
        }
        description.configure(&mut config.config);
        config.created =
            jiff::Timestamp::from_second(options.source_date_epoch).ok().map(|time| time.to_string());
        let manifest = Manifest {
            schema_version: 2,
            media_type: oci::MEDIA_MANIFEST.to_owned(),
            config: staging.add_document(oci::MEDIA_CONFIG, &oci::encode(&config)?)?,
            layers,
        };
        let stored = staging.add_document(oci::MEDIA_MANIFEST, &oci::encode(&manifest)?)?;
        staging.publish(&[(stored.digest.clone(), vec![reference.clone()])])?;
        let size_bytes = manifest.layers.iter().map(|layer| layer.size).sum::<u64>() + manifest.config.size;
        Ok(BuiltImage { reference, digest: stored.digest, size_bytes, entries: tree.len() })
    }

    /// Layers and configuration to start from. The caller keeps content from being pruned.
    fn base(
        &self,
        description: &Description,
        path: &Path,
    ) -> Result<(Vec<Descriptor>, ConfigFile), ImageError> {
        if description.base == "scratch" {
            let rootfs = RootFs { kind: "layers".to_owned(), diff_ids: Vec::new() };
            let (platform, config) = (Platform::here(), RunConfig::default());
            return Ok((Vec::new(), ConfigFile { created: None, platform, config, rootfs }));
        }
        let found = self.find(&description.base).map_err(|error| ImageError::Build {
            path: path.to_owned(),
            at: None,
            message: format!("base: {error}"),
        })?;
        let (manifest, config) = self.documents(&found)?;
        Ok((manifest.layers, config))
    }
}

/// Sets `NAME=value`, in the place of an older value if there is one.
fn set_env(env: &mut Vec<String>, name: &str, value: &str) {
    let prefix = format!("{name}=");
    let entry = format!("{prefix}{value}");
    match env.iter_mut().find(|entry| entry.starts_with(&prefix)) {
        Some(old) => *old = entry,
        None => env.push(entry),
    }
}

/// A set in Docker's spelling: keys with empty objects.
fn set_of(keys: impl Iterator<Item = String>) -> BTreeMap<String, serde_json::Value> {
    keys.map(|key| (key, serde_json::json!({}))).collect()
}
