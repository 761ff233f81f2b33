//! A manifest or an index before anything is known about it: what registries exchange under a tag or a digest.
//!
//! The bytes are kept as they came; this is the reading of them. Unknown fields are ignored, unknown media types are
//! told apart by [`Kind`]: an index lists manifests, an image has a configuration that can be run, and everything
//! else (signatures, software bills, charts) is an artifact, which is stored and handed out but never run.

use crate::oci::{self, Descriptor, Platform};
use serde::Deserialize;
use std::collections::BTreeMap;

pub(crate) const MEDIA_DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const MEDIA_DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker's first schema, which is neither content-addressed nor accepted.
const MEDIA_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1";

/// What a document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A list of manifests, most often one for each platform.
    Index,
    /// An image that some machine can run.
    Image,
    /// Anything else that has a configuration and layers.
    Artifact,
}

/// The fields of manifests and indexes together; [`Document::parse`] sees to it that they fit each other.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    subject: Option<Descriptor>,
    #[serde(default)]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

impl Document {
    /// Reads a document. The reason of a refusal is worded for people.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let document: Self = serde_json::from_slice(bytes).map_err(|error| format!("malformed: {error}"))?;
        if document.schema_version != 2 || document.declared().starts_with(MEDIA_SCHEMA1) {
            return Err("only schema version 2 is supported: push the image again with a current tool".into());
        }
        let single = document.config.is_some() && document.layers.is_some();
        let list = document.manifests.is_some();
        // A document that is both would mean different images to different readers.
        if list == single || (list && (document.config.is_some() || document.layers.is_some())) {
            return Err("it must have either \"manifests\", or \"config\" and \"layers\"".into());
        }
        match document.declared() {
            "" => Ok(document),
            oci::MEDIA_INDEX | oci::MEDIA_DOCKER_LIST if list => Ok(document),
            oci::MEDIA_MANIFEST | MEDIA_DOCKER_MANIFEST if single => Ok(document),
            other => Err(format!("media type \"{other}\" is unknown or does not fit its content")),
        }
    }

    /// The media type that the document gives itself; may be empty.
    pub(crate) fn declared(&self) -> &str {
        self.media_type.as_deref().unwrap_or_default()
    }

    /// The media type under which the document is exchanged.
    pub(crate) fn media_type(&self) -> &str {
        match (self.declared(), &self.manifests) {
            ("", Some(_)) => oci::MEDIA_INDEX,
            ("", None) => oci::MEDIA_MANIFEST,
            (declared, _) => declared,
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        match &self.config {
            None => Kind::Index,
            Some(config) => match config.media_type.as_str() {
                "" | oci::MEDIA_CONFIG | MEDIA_DOCKER_CONFIG => Kind::Image,
                _ => Kind::Artifact,
            },
        }
    }

    /// What the referrers API calls the type of an artifact.
    pub(crate) fn artifact_type(&self) -> Option<&str> {
        let own = self.artifact_type.as_deref().filter(|own| !own.is_empty());
        own.or_else(|| self.config.as_ref().map(|config| config.media_type.as_str()))
    }

    /// The document that this one is about.
    pub(crate) fn subject(&self) -> Option<&Descriptor> {
        self.subject.as_ref()
    }

    pub(crate) fn config(&self) -> Option<&Descriptor> {
        self.config.as_ref()
    }

    /// Layers, lowest first; none for an index.
    pub(crate) fn layers(&self) -> &[Descriptor] {
        self.layers.as_deref().unwrap_or_default()
    }

    /// The manifests of an index.
    pub(crate) fn children(&self) -> &[Descriptor] {
        self.manifests.as_deref().unwrap_or_default()
    }

    /// Configuration and layers.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.config.iter().chain(self.layers())
    }

    /// The manifest of an index that this machine can run.
    pub(crate) fn for_here(&self) -> Option<&Descriptor> {
        self.children().iter().find(|child| child.platform.as_ref().is_some_and(Platform::fits))
    }

    /// The platforms of an index, for messages.
    pub(crate) fn platforms(&self) -> String {
        let names: Vec<String> =
            self.children().iter().filter_map(|child| Some(child.platform.as_ref()?.to_string())).collect();
        if names.is_empty() { "no platform at all".to_owned() } else { names.join(", ") }
    }
}

/// Whether a layer is left at its origin by those who push it.
pub(crate) fn is_foreign(layer: &Descriptor) -> bool {
    layer.media_type.contains("nondistributable") || layer.media_type.contains(".foreign.")
}

/// Refuses layers that cannot be unpacked.
pub(crate) fn check_layer_type(layer: &Descriptor) -> Result<(), String> {
    const KNOWN: [&str; 3] = [
        oci::MEDIA_LAYER,
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
    ];
    const DOCKER_FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
    let media_type = layer.media_type.as_str();
    let known = KNOWN.iter().chain([&DOCKER_FOREIGN]).any(|base| {
        let rest = media_type.strip_prefix(base);
        rest.is_some_and(|rest| matches!(rest, "" | "+gzip" | "+zstd" | ".gzip" | ".zstd"))
    });
    match known {
        true => Ok(()),
        false => Err(format!(
            "layer {} has media type \"{media_type}\": only tar layers, plain or compressed with gzip or zstd, can be run",
            layer.digest
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_told_apart() {
        let blob = |media: &str| {
            format!(r#"{{"mediaType":"{media}","digest":"sha256:{}","size":2}}"#, "a".repeat(64))
        };
        let single = |media: &str, config: &str| {
            format!(r#"{{"schemaVersion":2{media},"config":{},"layers":[]}}"#, blob(config))
        };
        let table = [
            (single("", oci::MEDIA_CONFIG), Ok(Kind::Image)),
            (single("", MEDIA_DOCKER_CONFIG), Ok(Kind::Image)),
            (single("", "application/vnd.oci.empty.v1+json"), Ok(Kind::Artifact)),
            (r#"{"schemaVersion":2,"manifests":[]}"#.to_owned(), Ok(Kind::Index)),
            (
                format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#, oci::MEDIA_MANIFEST),
                Err(()),
            ),
            (single(r#","manifests":[]"#, oci::MEDIA_CONFIG), Err(())),
            (single(r#","mediaType":"text/html""#, oci::MEDIA_CONFIG), Err(())),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), Err(())),
            (r#"{"schemaVersion":2}"#.to_owned(), Err(())),
            (
                r#"{"schemaVersion":2,"config":{"digest":"sha256:0","size":1},"layers":[]}"#.to_owned(),
                Err(()),
            ),
            ("[]".to_owned(), Err(())),
        ];
        for (text, expected) in table {
            let found = Document::parse(text.as_bytes());
            assert_eq!(found.as_ref().map(Document::kind).map_err(drop), expected, "{text}: {found:?}");
        }
    }

    #[test]
    fn layer_types() {
        for (media, good) in [
            ("application/vnd.oci.image.layer.v1.tar", true),
            ("application/vnd.oci.image.layer.v1.tar+zstd", true),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", true),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", false),
            ("application/vnd.in-toto+json", false),
            ("", false),
        ] {
            let layer = Descriptor::new(media, crate::Digest::of(b""), 0);
            assert_eq!(check_layer_type(&layer).is_ok(), good, "{media}");
        }
    }
}
