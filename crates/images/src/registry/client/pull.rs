//! Pulling: from a name to an image that can be run.

use super::error::{Failure, RegistryError};
use super::keyring::Keyring;
use super::manifest::Held;
use super::progress::Progress;
use super::session::Session;
use super::{Client, Meter, blocking};
use crate::content::LEASE;
use crate::document::{Kind, check_layer_type};
use crate::oci::{self, ConfigFile, Descriptor, Platform};
use crate::store::check_config;
use crate::{Digest, ImageError, Reference};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// Most layers of one image that are under way; how many move at a time is the client's option.
const UNDER_WAY: usize = 16;

/// What a pull brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// Digest of what the name stands for: a manifest, or an index.
    pub digest: Digest,
    /// Digest of the manifest for this machine.
    pub manifest: Digest,
    /// Digest of the configuration: what Docker calls the image's id.
    pub image_id: Digest,
    /// Bytes of configuration and layers that came over the network.
    pub bytes_fetched: u64,
    /// Size of configuration and layers together, in bytes.
    pub size_bytes: u64,
    /// How many different layers the image has.
    pub layers: usize,
    /// How many of them were there already.
    pub layers_reused: usize,
}

/// A pull that knows whom to ask for what.
pub(super) struct Pull<'a> {
    pub(super) client: &'a Client,
    name: String,
    /// Who gave the manifest, then who may have blobs too.
    sessions: Vec<Session<'a>>,
    progress: &'a dyn Progress,
    pub(super) fetched: AtomicU64,
    reused: AtomicUsize,
}

/// A layer, and the digests it is to have when unpacked: more than one only if the image is wrong.
type Layers = BTreeMap<Digest, (Descriptor, BTreeSet<Digest>)>;

impl Client {
    /// Gets an image by name, and unpacks it. An image of several platforms is pulled for this machine's. What the
    /// store has already is not fetched again; nothing has a name before all of it is there.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn pull(
        &self,
        reference: &Reference,
        keyring: &Keyring,
        progress: &dyn Progress,
    ) -> Result<Pulled, RegistryError> {
        let (pull, root) = self.begin(reference, keyring, progress).await?;
        let (image, index) = match root.document.kind() {
            Kind::Index => (pull.choose(&root).await?, Some(root)),
            Kind::Image => (root, None),
            Kind::Artifact => {
                let kind = super::error::clean(root.document.artifact_type().unwrap_or("unknown"));
                return Err(pull.bad(&root.digest, format!("no image but \"{kind}\"")));
            }
        };
        pull.run(image, index, reference).await
    }

    /// Finds what a name stands for.
    pub(super) async fn begin<'c>(
        &'c self,
        reference: &Reference,
        keyring: &Keyring,
        progress: &'c dyn Progress,
    ) -> Result<(Pull<'c>, Held), RegistryError> {
        let (sessions, root) = self.locate(reference, keyring).await?;
        let (fetched, reused) = (AtomicU64::new(0), AtomicUsize::new(0));
        Ok((Pull { client: self, name: reference.short(), sessions, progress, fetched, reused }, root))
    }

    /// Finds who has the image and lets us have it.
    async fn locate(
        &self,
        reference: &Reference,
        keyring: &Keyring,
    ) -> Result<(Vec<Session<'_>>, Held), RegistryError> {
        let what = || format!("pull {}", reference.short());
        let sources = self.options.registries.sources(reference.registry());
        let sources = sources.map_err(|words| Failure::Peer(words).on(what(), reference.registry()))?;
        let target = reference.digest().map(Digest::as_str).or(reference.tag()).unwrap_or("latest");
        let mut failed = None;
        for (i, source) in sources.iter().enumerate() {
            let mirror = i + 1 < sources.len();
            let credentials = match keyring.lookup(source.authority.as_str(), reference.repository()).await {
                Ok(credentials) => credentials,
                Err(error) => {
                    failed = Some(error);
                    continue;
                }
            };
            let anonymous = credentials.is_empty().then_some(None);
            for credential in credentials.into_iter().map(Some).chain(anonymous) {
                let session =
                    Session::new(self, source.clone(), reference.repository(), credential, "pull", &[]);
                // A mirror that does not work at once is passed over.
                let attempts = if mirror { 1 } else { self.options.attempts };
                match session.manifest(target, reference.digest(), attempts).await {
                    Ok(held) => {
                        let mut sessions = vec![session];
                        self.others(&sources[i + 1..], reference, keyring, &mut sessions).await;
                        return Ok((sessions, held));
                    }
                    Err(failure) => {
                        let next_credential = failure.is_unauthorized();
                        let error = failure.on(what(), session.host());
                        if mirror {
                            tracing::warn!(%error, "a mirror is passed over");
                        }
                        failed = Some(error);
                        if !next_credential {
                            break;
                        }
                    }
                }
            }
        }
        let nobody =
            || Failure::Peer("there is no registry to ask".to_owned()).on(what(), reference.registry());
        Err(failed.unwrap_or_else(nobody))
    }

    /// Those who may have blobs that the first one lacks.
    async fn others<'c>(
        &'c self,
        sources: &[super::config::Source],
        reference: &Reference,
        keyring: &Keyring,
        sessions: &mut Vec<Session<'c>>,
    ) {
        for source in sources {
            let found = keyring.lookup(source.authority.as_str(), reference.repository()).await;
            let credential = found.unwrap_or_default().into_iter().next();
            let repository = reference.repository();
            sessions.push(Session::new(self, source.clone(), repository, credential, "pull", &[]));
        }
    }
}

impl Pull<'_> {
    pub(super) fn what(&self, of: &Digest) -> String {
        format!("pull {}: {of}", self.name)
    }

    pub(super) fn host(&self) -> &str {
        self.sessions.first().map_or("", Session::host)
    }

    pub(super) fn bad(&self, of: &Digest, reason: String) -> RegistryError {
        Failure::Content(reason).on(self.what(of), self.host())
    }

    /// The image of an index that this machine runs.
    async fn choose(&self, index: &Held) -> Result<Held, RegistryError> {
        let Some(child) = index.document.for_here() else {
            return Err(RegistryError::Image(ImageError::Platform {
                archive: format!("pull {}", self.name),
                found: super::error::clean(&index.document.platforms()),
                wanted: Platform::here().to_string(),
            }));
        };
        let mut failed = self.bad(&child.digest, "nobody has it".to_owned());
        for session in &self.sessions {
            let attempts = self.client.options.attempts;
            match session.manifest(child.digest.as_str(), Some(&child.digest), attempts).await {
                Ok(held) if held.document.kind() == Kind::Image => return Ok(held),
                Ok(held) => {
                    return Err(self.bad(&held.digest, "an index leads to it, but it is no image".into()));
                }
                Err(failure) => failed = failure.on(self.what(&child.digest), session.host()),
            }
        }
        Err(failed)
    }

    async fn run(
        &self,
        image: Held,
        index: Option<Held>,
        reference: &Reference,
    ) -> Result<Pulled, RegistryError> {
        let config = self.check(&image)?;
        let sizes: BTreeMap<&Digest, u64> =
            image.document.blobs().map(|blob| (&blob.digest, blob.size)).collect();
        let size_bytes = sizes.values().fold(0, |sum: u64, size| sum.saturating_add(*size));
        self.progress.total(size_bytes);
        let mut since = Instant::now();
        self.blob(config).await?;
        let layers = self.layers(&image).await?;
        self.get(&layers).await?;
        // Leases end: what was first may be gone when the last one comes very much later.
        while since.elapsed() > LEASE / 2 {
            since = Instant::now();
            self.blob(config).await?;
            self.get(&layers).await?;
        }
        let pulled = Pulled {
            digest: index.as_ref().map_or(&image.digest, |index| &index.digest).clone(),
            manifest: image.digest.clone(),
            image_id: config.digest.clone(),
            bytes_fetched: self.fetched.load(Ordering::Relaxed),
            size_bytes,
            layers: layers.len(),
            layers_reused: self.reused.load(Ordering::Relaxed),
        };
        let store = self.client.store.clone();
        let name = name_of(reference)?;
        let documents: Vec<(Digest, bytes::Bytes)> =
            index.into_iter().chain([image]).map(|held| (held.digest, held.bytes)).collect();
        let published = blocking(move || {
            let documents: Vec<(&Digest, &[u8])> =
                documents.iter().map(|(digest, bytes)| (digest, &bytes[..])).collect();
            store.publish_pulled(&documents, &name)
        });
        published.await.map_err(|failure| failure.on(self.what(&pulled.digest), self.host()))?;
        Ok(pulled)
    }

    /// Refuses what could not be run, before anything large is fetched.
    fn check<'h>(&self, image: &'h Held) -> Result<&'h Descriptor, RegistryError> {
        let bad = |reason| self.bad(&image.digest, reason);
        let limits = &self.client.store.limits;
        let config = image.document.config().ok_or_else(|| bad("it has no configuration".to_owned()))?;
        if config.size > oci::MAX_JSON {
            return Err(bad(format!("its configuration is larger than {} bytes", oci::MAX_JSON)));
        }
        let layers = image.document.layers();
        if layers.len() > limits.layers {
            return Err(bad(format!("{} layers, at most {} are allowed", layers.len(), limits.layers)));
        }
        for layer in layers {
            check_layer_type(layer).map_err(|reason| bad(super::error::clean(&reason)))?;
            if layer.size > limits.layer_bytes {
                let (size, most) = (layer.size, limits.layer_bytes);
                return Err(bad(format!(
                    "layer {} has {size} bytes, at most {most} are allowed",
                    layer.digest
                )));
            }
        }
        Ok(config)
    }

    /// What the configuration, which is there, says of the layers.
    async fn layers(&self, image: &Held) -> Result<Layers, RegistryError> {
        let mut layers = Layers::new();
        let Some(described) = image.document.config() else { return Ok(layers) };
        let (store, digest) = (self.client.store.clone(), described.digest.clone());
        let config = blocking(move || store.document_bytes(&digest)).await;
        let config = config.map_err(|failure| failure.on(self.what(&described.digest), self.host()))?;
        let config: ConfigFile = serde_json::from_slice(&config)
            .map_err(|error| self.bad(&described.digest, format!("no configuration: {error}")))?;
        check_config(&format!("pull {}", self.name), &config, image.document.layers().len())?;
        for (layer, diff_id) in image.document.layers().iter().zip(config.rootfs.diff_ids) {
            let entry = layers.entry(layer.digest.clone());
            entry.or_insert_with(|| (layer.clone(), BTreeSet::new())).1.insert(diff_id);
        }
        Ok(layers)
    }

    /// Fetches layers and unpacks each while others come.
    async fn get(&self, layers: &Layers) -> Result<(), RegistryError> {
        let work: Vec<_> = layers.values().map(|(layer, diff_ids)| self.layer(layer, diff_ids)).collect();
        stream::iter(work).buffer_unordered(UNDER_WAY).try_collect().await
    }

    async fn layer(&self, layer: &Descriptor, diff_ids: &BTreeSet<Digest>) -> Result<(), RegistryError> {
        if !self.blob(layer).await? {
            self.reused.fetch_add(1, Ordering::Relaxed);
        }
        // The semaphore is never closed.
        let _slot = self.client.unpackers.acquire().await.ok();
        for diff_id in diff_ids {
            let (store, name) = (self.client.store.clone(), self.name.clone());
            let (digest, diff_id) = (layer.digest.clone(), diff_id.clone());
            let unpacked = blocking(move || store.unpack_layer(&name, &digest, &diff_id)).await;
            unpacked.map_err(|failure| failure.on(self.what(&layer.digest), self.host()))?;
        }
        Ok(())
    }

    /// Fetches a blob, and tells whether it came over the network.
    pub(super) async fn blob(&self, wanted: &Descriptor) -> Result<bool, RegistryError> {
        let meter = Meter::new(self.progress);
        let fetched = self.client.fetch(&self.sessions, wanted, &meter).await;
        let fetched = fetched.map_err(|(failure, host)| failure.on(self.what(&wanted.digest), host))?;
        self.fetched.fetch_add(fetched.unwrap_or(0), Ordering::Relaxed);
        self.progress.done(&wanted.digest, fetched.is_some());
        Ok(fetched.is_some())
    }
}

/// The name that a pulled image gets: what was asked for, but a tag beside a digest was not asked for.
fn name_of(reference: &Reference) -> Result<Reference, ImageError> {
    match reference.digest() {
        None => Ok(reference.clone()),
        Some(digest) => {
            Reference::parse(&format!("{}/{}@{digest}", reference.registry(), reference.repository()))
        }
    }
}
