//! What is known of an image, for people and scripts.

use crate::document::Kind;
use crate::{Digest, ImageError, ImageStore, Reference};
use serde::Deserialize;
use serde_json::Value;

/// An image as its documents describe it.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// All names.
    pub refs: Vec<Reference>,
    /// Digest of the manifest.
    pub digest: Digest,
    /// Digest of the configuration.
    pub id: Digest,
    /// Media type of the manifest.
    pub media_type: String,
    /// Size of all blobs, in bytes.
    pub size_bytes: u64,
    /// Lowest first.
    pub layers: Vec<LayerInfo>,
    /// Oldest first.
    pub history: Vec<Step>,
    /// The configuration as it is in the store: platform, command, environment and whatever its maker added.
    pub config: Value,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    /// Digest of the blob.
    pub digest: Digest,
    /// Digest of the uncompressed tar, when the configuration names it.
    pub diff_id: Option<Digest>,
    /// Media type of the blob.
    pub media_type: String,
    /// Size of the blob in bytes.
    pub size_bytes: u64,
    /// Whether the layer is unpacked.
    pub unpacked: bool,
}

/// How a layer, or a change of the configuration alone, came to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Step {
    /// RFC 3339.
    pub created: Option<String>,
    /// The command.
    pub created_by: String,
    /// For people.
    pub comment: String,
    /// There is no layer for it.
    pub empty_layer: bool,
}

impl ImageStore {
    /// Describes an image.
    ///
    /// # Errors
    /// `NotFound`; `BadReference`; `Archive` for what is no image; or `Corrupt` when the store's files are damaged.
    pub fn inspect(&self, reference: &str) -> Result<Inspection, ImageError> {
        let root = self.find(reference)?;
        let digest = self.runnable(&root)?;
        let document = self.described(&digest)?;
        let (Kind::Image, Some(config)) = (document.kind(), document.config()) else {
            return Err(ImageError::NotFound { reference: reference.to_owned() });
        };
        let id = config.digest.clone();
        let config: Value = self.document(&id)?;
        let diff_ids: Vec<Digest> =
            serde_json::from_value(config["rootfs"]["diff_ids"].clone()).unwrap_or_default();
        let layers = document.layers().iter().enumerate().map(|(i, layer)| LayerInfo {
            digest: layer.digest.clone(),
            media_type: layer.media_type.clone(),
            size_bytes: layer.size,
            unpacked: diff_ids.get(i).is_some_and(|diff_id| self.layer(diff_id).exists()),
            diff_id: diff_ids.get(i).cloned(),
        });
        let refs = self.refs()?;
        let names = refs.refs.iter().filter(|(_, named)| **named == root || **named == digest);
        Ok(Inspection {
            refs: names.map(|(name, _)| Reference::parse(name)).collect::<Result<_, _>>()?,
            id,
            media_type: document.media_type().to_owned(),
            size_bytes: document.blobs().map(|blob| blob.size).sum(),
            layers: layers.collect(),
            history: serde_json::from_value(config["history"].clone()).unwrap_or_default(),
            config,
            digest,
        })
    }
}
