//! Importing archives: docker archives (`docker save`) and OCI layouts, as tar streams, perhaps compressed.
//!
//! The archive is read once, front to back: every file of it is staged under a number and hashed on the way, since
//! the documents that say what is what may come last. Then the documents are followed and everything they state is
//! checked: digests, sizes, platform, the digests of uncompressed layers. Only then anything becomes visible.

use crate::error::io;
use crate::oci::{self, ConfigFile, Descriptor, DockerManifest, Index, Manifest};
use crate::staging::{Capped, Staging, decompress};
use crate::store::{check_config, read_capped};
use crate::tarball::{Entry, Kind, TarReader};
use crate::{Digest, ImageError, ImageStore, Reference};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// An image that an archive brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedImage {
    /// The names that the archive gives it; may be none.
    pub refs: Vec<Reference>,
    /// Digest of its manifest.
    pub digest: Digest,
}

/// Most symbolic links followed within an archive; old docker archives link equal layers to each other.
const MAX_LINKS: usize = 8;

impl ImageStore {
    /// Imports every image in an archive file that this machine can run, and unpacks their layers.
    ///
    /// # Errors
    /// When the archive is damaged, hostile, too large, or for another platform. Nothing of it is imported then.
    pub fn load(&self, archive: &Path) -> Result<Vec<LoadedImage>, ImageError> {
        let file = File::open(archive).map_err(io("open", archive))?;
        self.load_from(&archive.display().to_string(), file)
    }

    /// Imports from a stream, which errors call `label`.
    ///
    /// # Errors
    /// As [`ImageStore::load`].
    pub fn load_from(
        &self,
        label: &str,
        stream: impl Read + 'static,
    ) -> Result<Vec<LoadedImage>, ImageError> {
        let mut import = Import { label, staging: Staging::begin(self)?, files: BTreeMap::new() };
        import.read_archive(self, stream)?;
        let found = if import.files.contains_key("index.json") {
            import.oci_layout()?
        } else if import.files.contains_key("manifest.json") {
            import.docker_archive(self.limits.layers)?
        } else {
            return Err(import.unusable("no image archive: it has neither index.json nor manifest.json"));
        };
        let mut wanted = BTreeSet::new();
        let mut images: BTreeMap<Digest, BTreeSet<Reference>> = BTreeMap::new();
        for candidate in found {
            import.check(&candidate, self.limits.layers)?;
            wanted.extend(candidate.manifest.layers.iter().map(|layer| layer.digest.clone()));
            wanted.extend([candidate.digest.clone(), candidate.manifest.config.digest.clone()]);
            images.entry(candidate.digest).or_default().extend(candidate.refs);
        }
        let images: Vec<(Digest, Vec<Reference>)> =
            images.into_iter().map(|(digest, refs)| (digest, refs.into_iter().collect())).collect();
        import.staging.keep_only(&wanted);
        import.staging.publish(&images)?;
        Ok(images.into_iter().map(|(digest, refs)| LoadedImage { refs, digest }).collect())
    }
}

/// A file of the archive.
#[derive(Clone)]
enum Member {
    Blob { digest: Digest, size: u64 },
    Link(String),
}

/// An image found in the archive, not yet checked.
struct Candidate {
    digest: Digest,
    manifest: Manifest,
    refs: Vec<Reference>,
}

struct Import<'a> {
    label: &'a str,
    staging: Staging<'a>,
    files: BTreeMap<String, Member>,
}

impl Import<'_> {
    fn unusable(&self, reason: impl Into<String>) -> ImageError {
        ImageError::Archive { archive: self.label.to_owned(), reason: reason.into() }
    }

    fn refuse(&self, entry: &str, reason: impl Into<String>) -> ImageError {
        ImageError::Entry { archive: self.label.to_owned(), entry: entry.to_owned(), reason: reason.into() }
    }

    fn read_archive(&mut self, store: &ImageStore, stream: impl Read + 'static) -> Result<(), ImageError> {
        let plain = Capped { inner: decompress(stream, self.label)?, left: store.limits.archive_bytes };
        let mut tar = TarReader::new(plain, self.label, store.limits.archive_entries);
        while let Some(entry) = tar.next()? {
            let name = self.member_name(&entry, &entry.path)?;
            let member = match entry.kind {
                Kind::Directory => continue,
                Kind::File => {
                    let mut data = Data { tar: &mut tar, failure: None };
                    let added = self.staging.add_blob(&mut data, &|error| ImageError::Io {
                        what: "read".to_owned(),
                        source: error.kind().into(),
                    });
                    match (added, data.failure) {
                        (_, Some(error)) => return Err(tar.unreadable(&error)),
                        (Err(error), None) => return Err(error),
                        (Ok((digest, size)), None) => Member::Blob { digest, size },
                    }
                }
                Kind::Symlink => {
                    let mut target = entry.path.clone();
                    target
                        .truncate(target.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1));
                    target.extend_from_slice(&entry.link);
                    Member::Link(self.inside(&entry, &target)?)
                }
                Kind::HardLink => Member::Link(self.member_name(&entry, &entry.link)?),
                Kind::Fifo | Kind::Device { .. } => {
                    return Err(
                        self.refuse(&entry.name(), "an image archive holds only files and directories")
                    );
                }
            };
            self.files.insert(name, member);
        }
        Ok(())
    }

    /// The name of a member in its plain form.
    fn member_name(&self, entry: &Entry, path: &[u8]) -> Result<String, ImageError> {
        let path =
            std::str::from_utf8(path).map_err(|_| self.refuse(&entry.name(), "its name is not UTF-8"))?;
        if path.starts_with('/') {
            return Err(self.refuse(&entry.name(), "an absolute path"));
        }
        if path.split('/').any(|part| part == "..") {
            return Err(self.refuse(&entry.name(), "\"..\" in a path"));
        }
        Ok(path.split('/').filter(|part| !matches!(*part, "" | ".")).collect::<Vec<_>>().join("/"))
    }

    /// Where a symbolic link points; it must stay inside the archive.
    fn inside(&self, entry: &Entry, path: &[u8]) -> Result<String, ImageError> {
        let outside = || self.refuse(&entry.name(), "a link that leaves the archive");
        let path = std::str::from_utf8(path).map_err(|_| outside())?;
        if entry.link.starts_with(b"/") {
            return Err(outside());
        }
        let mut parts: Vec<&str> = Vec::new();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop().ok_or_else(outside)?),
                part => parts.push(part),
            }
        }
        Ok(parts.join("/"))
    }

    /// The blob behind a name.
    fn member(&self, name: &str) -> Result<(Digest, u64), ImageError> {
        let mut at = name.strip_prefix("./").unwrap_or(name);
        for _ in 0..MAX_LINKS {
            match self.files.get(at) {
                Some(Member::Blob { digest, size }) => return Ok((digest.clone(), *size)),
                Some(Member::Link(target)) => at = target,
                None => return Err(self.refuse(name, "is named by the archive but missing from it")),
            }
        }
        Err(self.refuse(name, "too many links"))
    }

    fn read(&self, name: &str, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let path =
            self.staging.blob(digest).ok_or_else(|| self.refuse(name, "is missing from the archive"))?;
        match read_capped(&path, oci::MAX_JSON) {
            Err(ImageError::Corrupt { reason, .. }) => Err(self.refuse(name, reason)),
            other => other,
        }
    }

    /// Checks that the archive has what a descriptor describes.
    fn expect(&self, what: &Descriptor) -> Result<(), ImageError> {
        let name = format!("blobs/sha256/{}", what.digest.hex());
        let (found, size) = self.member(&name)?;
        if found != what.digest {
            return Err(ImageError::DigestMismatch {
                archive: self.label.to_owned(),
                what: format!("entry \"{name}\""),
                expected: what.digest.to_string(),
                found: found.to_string(),
            });
        }
        if size != what.size {
            return Err(self.refuse(&name, format!("has {size} bytes, {} were announced", what.size)));
        }
        Ok(())
    }

    fn oci_layout(&self) -> Result<Vec<Candidate>, ImageError> {
        let (digest, _) = self.member("index.json")?;
        let index: Index = oci::parse(self.label, "index.json", &self.read("index.json", &digest)?)?;
        let names = self.docker_names()?;
        let mut found = Vec::new();
        let mut elsewhere = BTreeSet::new();
        for descriptor in &index.manifests {
            let Some(chosen) = self.choose(descriptor, &mut elsewhere)? else { continue };
            self.expect(&chosen)?;
            let bytes = self.read(chosen.digest.as_str(), &chosen.digest)?;
            let manifest: Manifest = oci::parse(self.label, chosen.digest.as_str(), &bytes)?;
            for blob in manifest.layers.iter().chain([&manifest.config]) {
                self.expect(blob)?;
            }
            let mut refs = names.get(&manifest.config.digest).cloned().unwrap_or_default();
            refs.extend(self.annotated_name(descriptor)?);
            found.push(Candidate { digest: chosen.digest, manifest, refs });
        }
        match (found.is_empty(), elsewhere.is_empty()) {
            (false, _) => Ok(found),
            (true, true) => Err(self.unusable("no image in it")),
            (true, false) => Err(ImageError::Platform {
                archive: self.label.to_owned(),
                found: elsewhere.into_iter().collect::<Vec<_>>().join(", "),
                wanted: oci::Platform::here().to_string(),
            }),
        }
    }

    /// The manifest for this machine: the described one, or the fitting one of the index described.
    fn choose(
        &self,
        descriptor: &Descriptor,
        elsewhere: &mut BTreeSet<String>,
    ) -> Result<Option<Descriptor>, ImageError> {
        if !matches!(descriptor.media_type.as_str(), oci::MEDIA_INDEX | oci::MEDIA_DOCKER_LIST) {
            let fits = descriptor.platform.as_ref().is_none_or(oci::Platform::fits);
            if let Some(platform) = &descriptor.platform
                && !fits
            {
                elsewhere.insert(platform.to_string());
            }
            return Ok(fits.then(|| descriptor.clone()));
        }
        self.expect(descriptor)?;
        let name = descriptor.digest.as_str();
        let inner: Index = oci::parse(self.label, name, &self.read(name, &descriptor.digest)?)?;
        let platforms = inner.manifests.iter().filter_map(|manifest| manifest.platform.as_ref());
        elsewhere.extend(platforms.map(ToString::to_string));
        let fits = |manifest: &&Descriptor| manifest.platform.as_ref().is_some_and(oci::Platform::fits);
        Ok(inner.manifests.iter().find(fits).cloned())
    }

    /// The name in an index: the full one if there is, else the `ref.name` if it is more than a bare tag.
    fn annotated_name(&self, descriptor: &Descriptor) -> Result<Option<Reference>, ImageError> {
        if let Some(name) = descriptor.annotation(oci::IMAGE_NAME) {
            return Reference::parse(name).map(Some);
        }
        match descriptor.annotation(oci::REF_NAME) {
            Some(name) if name.contains(['/', ':']) => Reference::parse(name).map(Some),
            _ => Ok(None),
        }
    }

    /// The names that a `manifest.json` beside the index gives, by configuration.
    fn docker_names(&self) -> Result<BTreeMap<Digest, Vec<Reference>>, ImageError> {
        let mut names: BTreeMap<Digest, Vec<Reference>> = BTreeMap::new();
        if !self.files.contains_key("manifest.json") {
            return Ok(names);
        }
        for image in self.docker_manifests()? {
            let (config, _) = self.member(&image.config)?;
            names.entry(config).or_default().extend(self.repo_tags(&image)?);
        }
        Ok(names)
    }

    fn docker_manifests(&self) -> Result<Vec<DockerManifest>, ImageError> {
        let (digest, _) = self.member("manifest.json")?;
        oci::parse(self.label, "manifest.json", &self.read("manifest.json", &digest)?)
    }

    fn repo_tags(&self, image: &DockerManifest) -> Result<Vec<Reference>, ImageError> {
        image.repo_tags.iter().flatten().map(|tag| Reference::parse(tag)).collect()
    }

    /// Makes an OCI manifest for each image of a docker archive, which has none.
    fn docker_archive(&mut self, max_layers: usize) -> Result<Vec<Candidate>, ImageError> {
        let images = self.docker_manifests()?;
        if images.is_empty() {
            return Err(self.unusable("no image in it"));
        }
        let mut found = Vec::new();
        for image in images {
            if image.layers.len() > max_layers {
                return Err(self.unusable(format!("an image has more than {max_layers} layers")));
            }
            let (config, config_size) = self.member(&image.config)?;
            self.check_named_digest(&image.config, &config)?;
            let mut layers = Vec::new();
            for name in &image.layers {
                let (digest, size) = self.member(name)?;
                self.check_named_digest(name, &digest)?;
                let path = self.staging.blob(&digest).ok_or_else(|| self.refuse(name, "is missing"))?;
                let mut magic = Vec::new();
                let file = File::open(&path).map_err(io("open", &path))?;
                file.take(2).read_to_end(&mut magic).map_err(io("read", &path))?;
                let suffix = match magic[..] {
                    [0x1f, 0x8b] => "+gzip",
                    [0x28, 0xb5] => "+zstd",
                    _ => "",
                };
                layers.push(Descriptor::new(&format!("{}{suffix}", oci::MEDIA_LAYER), digest, size));
            }
            let manifest = Manifest {
                schema_version: 2,
                media_type: oci::MEDIA_MANIFEST.to_owned(),
                config: Descriptor::new(oci::MEDIA_CONFIG, config, config_size),
                layers,
            };
            let stored = self.staging.add_document(oci::MEDIA_MANIFEST, &oci::encode(&manifest)?)?;
            found.push(Candidate { digest: stored.digest, manifest, refs: self.repo_tags(&image)? });
        }
        Ok(found)
    }

    /// Docker names configurations, and in newer archives layers, after their digest: it has to be the truth.
    fn check_named_digest(&self, name: &str, found: &Digest) -> Result<(), ImageError> {
        let last = name.rsplit('/').next().unwrap_or(name);
        let stem = last.strip_suffix(".json").unwrap_or(last);
        match Digest::parse(&format!("sha256:{stem}")) {
            Ok(expected) if expected != *found => Err(ImageError::DigestMismatch {
                archive: self.label.to_owned(),
                what: format!("entry \"{name}\""),
                expected: expected.to_string(),
                found: found.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// Checks the configuration of an image and unpacks its layers.
    fn check(&mut self, image: &Candidate, max_layers: usize) -> Result<(), ImageError> {
        let manifest = &image.manifest;
        if manifest.layers.len() > max_layers {
            return Err(self.unusable(format!("an image has more than {max_layers} layers")));
        }
        let name = manifest.config.digest.as_str();
        let config: ConfigFile = oci::parse(self.label, name, &self.read(name, &manifest.config.digest)?)?;
        check_config(self.label, &config, manifest.layers.len())?;
        for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
            let name = layer.digest.as_str();
            let path = self.staging.blob(&layer.digest).ok_or_else(|| self.refuse(name, "is missing"))?;
            self.staging.add_layer(&format!("{}: layer {name}", self.label), &path, diff_id)?;
        }
        Ok(())
    }
}

/// The data of the current entry; remembers a failure to read it, which is the archive's fault and not the disk's.
struct Data<'a, R> {
    tar: &'a mut TarReader<R>,
    failure: Option<std::io::Error>,
}

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.tar.read(buffer).map_err(|error| {
            let kind = error.kind();
            self.failure = Some(error);
            kind.into()
        })
    }
}
