//! Artifacts: content of any kind that is stored, named, pushed and pulled as images are, but never run.

use crate::document::{Document, Kind};
use crate::error::io;
use crate::oci::{self, Descriptor};
use crate::staging::Staging;
use crate::{Digest, ImageError, ImageStore, Reference};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

/// A part of an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArtifactLayer {
    /// What it is.
    pub media_type: String,
    /// Its content.
    pub digest: Digest,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What the manifest says of it beside that.
    pub annotations: BTreeMap<String, String>,
}

/// An artifact whose content is in the store, where it stays for an hour at least.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// Digest of its manifest.
    pub digest: Digest,
    /// Its configuration.
    pub config: Vec<u8>,
    /// Its parts, in their order.
    pub layers: Vec<ArtifactLayer>,
    /// What of it came over the network, in bytes.
    pub bytes_fetched: u64,
}

/// An artifact that is being put into the store. Dropped before it is named, it leaves nothing.
pub struct ArtifactWriter<'a> {
    staging: Staging<'a>,
    layers: Vec<Descriptor>,
}

impl ArtifactLayer {
    pub(crate) fn of(layer: &Descriptor) -> Self {
        Self {
            media_type: layer.media_type.clone(),
            digest: layer.digest.clone(),
            size_bytes: layer.size,
            annotations: layer.annotations.clone().unwrap_or_default(),
        }
    }
}

impl ImageStore {
    /// Begins an artifact. While it is written, nothing is pruned.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn new_artifact(&self) -> Result<ArtifactWriter<'_>, ImageError> {
        Ok(ArtifactWriter { staging: Staging::begin(self)?, layers: Vec::new() })
    }

    /// Opens the content of an artifact's layer.
    ///
    /// # Errors
    /// When it is not there any more.
    pub fn open_layer(&self, layer: &ArtifactLayer) -> Result<File, ImageError> {
        let path = self.blob(&layer.digest);
        File::open(&path).map_err(io("open", &path))
    }
}

impl ArtifactWriter<'_> {
    /// Adds a layer. It is read to its end, and stored once however often it comes.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn layer(
        &mut self,
        media_type: &str,
        annotations: BTreeMap<String, String>,
        content: &mut dyn Read,
    ) -> Result<(), ImageError> {
        let unreadable = |error: &std::io::Error| ImageError::Io {
            what: "read what is to be stored".to_owned(),
            source: std::io::Error::new(error.kind(), error.to_string()),
        };
        let (digest, size) = self.staging.add_blob(content, &unreadable)?;
        let mut layer = Descriptor::new(media_type, digest, size);
        layer.annotations = (!annotations.is_empty()).then_some(annotations);
        self.layers.push(layer);
        Ok(())
    }

    /// Gives the artifact its configuration and its name.
    ///
    /// # Errors
    /// When there are too many layers, or the store cannot be written.
    pub fn finish(
        mut self,
        artifact_type: &str,
        config: (&str, &[u8]),
        name: &Reference,
    ) -> Result<Digest, ImageError> {
        let too_large = |reason: String| ImageError::Archive { archive: name.short(), reason };
        let (config_type, config) = config;
        if config.len() as u64 > oci::MAX_JSON {
            return Err(too_large(format!("a configuration may have {} bytes", oci::MAX_JSON)));
        }
        let config = self.staging.add_document(config_type, config)?;
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": oci::MEDIA_MANIFEST,
            "artifactType": artifact_type,
            "config": config,
            "layers": self.layers,
        });
        let manifest = manifest.to_string();
        if manifest.len() as u64 > oci::MAX_JSON {
            return Err(too_large(format!("a manifest may have {} bytes", oci::MAX_JSON)));
        }
        let manifest = self.staging.add_document(oci::MEDIA_MANIFEST, manifest.as_bytes())?;
        self.staging.publish(&[(manifest.digest.clone(), vec![name.clone()])])?;
        Ok(manifest.digest)
    }
}

/// Refuses a document that is not an artifact of the type wanted. The reason is worded for people.
pub(crate) fn check_type(document: &Document, wanted: &str) -> Result<(), String> {
    match (document.kind(), document.artifact_type()) {
        (Kind::Artifact, Some(found)) if found == wanted => Ok(()),
        (Kind::Artifact, found) => {
            Err(format!("it is no \"{wanted}\" but \"{}\"", found.unwrap_or("unknown")))
        }
        (Kind::Image | Kind::Index, _) => Err(format!("it is no \"{wanted}\" but an image")),
    }
}
