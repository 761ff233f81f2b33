//! Checking the store against itself.

use crate::digest::HashingReader;
use crate::error::io;
use crate::{Digest, ImageError, ImageStore};
use std::collections::BTreeSet;
use std::fs::File;

impl ImageStore {
    /// Reads everything and tells what is wrong: blobs that do not have the digest they are named after, and
    /// documents, layers or unpacked layers that an image needs and that are missing. Empty when all is well.
    ///
    /// # Errors
    /// When the store cannot be read at all.
    pub fn verify(&self) -> Result<Vec<String>, ImageError> {
        let _content = self.hold_content()?;
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
        for digest in self.refs()?.digests() {
            problems.extend(self.verify_image(&digest));
        }
        Ok(problems)
    }

    fn verify_image(&self, digest: &Digest) -> Vec<String> {
        let (manifest, config) = match self.documents(digest) {
            Ok(documents) => documents,
            Err(error) => return vec![format!("image {digest}: {error}")],
        };
        let mut problems = BTreeSet::new();
        for layer in &manifest.layers {
            match std::fs::metadata(self.blob(&layer.digest)) {
                Ok(metadata) if metadata.len() == layer.size => {}
                Ok(metadata) => {
                    problems.insert(format!(
                        "image {digest}: layer {} has {} bytes",
                        layer.digest,
                        metadata.len()
                    ));
                }
                Err(error) => {
                    problems.insert(format!("image {digest}: layer {}: {error}", layer.digest));
                }
            }
        }
        for diff_id in &config.rootfs.diff_ids {
            if !self.layer(diff_id).is_dir() {
                problems.insert(format!("image {digest}: layer {diff_id} is not unpacked"));
            }
        }
        problems.into_iter().collect()
    }
}
