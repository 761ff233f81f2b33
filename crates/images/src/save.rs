//! Writing an image as an archive that others read: an OCI layout that is a docker archive at the same time.

use crate::error::io;
use crate::oci::{self, Descriptor, DockerManifest, Index};
use crate::{ImageError, ImageStore, Reference};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use tar::{Builder, EntryType, Header};

impl ImageStore {
    /// Writes an image to `archive` as a tar stream. The same image gives the same bytes.
    ///
    /// # Errors
    /// When there is no such image, or reading it or writing the archive fails.
    pub fn save(&self, reference: &str, archive: impl Write) -> Result<(), ImageError> {
        let _content = self.hold_content()?;
        let digest = self.runnable(&self.find(reference)?)?;
        let (manifest, _) = self.documents(&digest)?;
        let name = Reference::parse(reference).ok().filter(|name| name.digest().is_none());
        let manifest_path = self.blob(&digest);
        let manifest_size = std::fs::metadata(&manifest_path).map_err(io("read", &manifest_path))?.len();
        let mut described = Descriptor::new(oci::MEDIA_MANIFEST, digest, manifest_size);
        described.annotations = name.as_ref().map(|name| {
            let tag = name.tag().unwrap_or_default().to_owned();
            BTreeMap::from([(oci::IMAGE_NAME.to_owned(), name.to_string()), (oci::REF_NAME.to_owned(), tag)])
        });
        let blob_name = |descriptor: &Descriptor| format!("blobs/sha256/{}", descriptor.digest.hex());
        let docker = [DockerManifest {
            config: blob_name(&manifest.config),
            repo_tags: Some(name.iter().map(Reference::short).collect()),
            layers: manifest.layers.iter().map(blob_name).collect(),
        }];
        let blobs: BTreeSet<&crate::Digest> = manifest
            .layers
            .iter()
            .chain([&manifest.config, &described])
            .map(|descriptor| &descriptor.digest)
            .collect();
        let mut tar = Builder::new(archive);
        for blob in blobs {
            let path = self.blob(blob);
            let file = File::open(&path).map_err(io("open", &path))?;
            let size = file.metadata().map_err(io("read", &path))?.len();
            append(&mut tar, &format!("blobs/sha256/{}", blob.hex()), size, file)?;
        }
        let index = Index {
            schema_version: 2,
            media_type: oci::MEDIA_INDEX.to_owned(),
            manifests: vec![described.clone()],
        };
        for (name, json) in [
            ("index.json", oci::encode(&index)?),
            ("manifest.json", oci::encode(&docker)?),
            ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ] {
            append(&mut tar, name, json.len() as u64, &*json)?;
        }
        let finished = tar.into_inner().and_then(|mut archive| archive.flush());
        finished.map_err(|source| ImageError::Io { what: "write the archive".to_owned(), source })
    }
}

fn append(
    tar: &mut Builder<impl Write>,
    name: &str,
    size: u64,
    data: impl std::io::Read,
) -> Result<(), ImageError> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, name, data)
        .map_err(|source| ImageError::Io { what: format!("write \"{name}\" to the archive"), source })
}
