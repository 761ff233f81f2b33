//! Pulling artifacts: content into the store, without a name.

use super::error::{RegistryError, clean};
use super::keyring::Keyring;
use super::manifest::Held;
use super::progress::Progress;
use super::pull::Pull;
use super::{Client, blocking};
use crate::Reference;
use crate::artifact::{Artifact, ArtifactLayer, check_type};
use crate::content::LEASE;
use crate::document::is_foreign;
use crate::oci;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Most layers that are under way; how many move at a time is the client's option.
const UNDER_WAY: usize = 16;

/// What the caller thinks of an artifact before its layers are fetched; the reason of a refusal is for people.
pub type Accept<'a> = &'a (dyn Fn(&[u8], &[ArtifactLayer]) -> Result<(), String> + Sync);

impl Client {
    /// Gets an artifact of a type into the store, where it has no name and stays for an hour at least. `accept` sees
    /// configuration and layers before the layers are fetched: their sizes are its to cap.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn pull_artifact(
        &self,
        reference: &Reference,
        artifact_type: &str,
        accept: Accept<'_>,
        keyring: &Keyring,
        progress: &dyn Progress,
    ) -> Result<Artifact, RegistryError> {
        let (pull, root) = self.begin(reference, keyring, progress).await?;
        check_type(&root.document, artifact_type).map_err(|reason| pull.bad(&root.digest, clean(&reason)))?;
        let mut since = Instant::now();
        let config = pull.config(&root).await?;
        let layers: Vec<ArtifactLayer> = root.document.layers().iter().map(ArtifactLayer::of).collect();
        accept(&config, &layers).map_err(|reason| pull.bad(&root.digest, clean(&reason)))?;
        progress.total(root.document.blobs().fold(0, |sum, blob| sum.saturating_add(blob.size)));
        pull.artifact_layers(&root).await?;
        // Leases end: what was first may be gone when the last one comes very much later.
        while since.elapsed() > LEASE / 2 {
            since = Instant::now();
            pull.artifact_layers(&root).await?;
        }
        let bytes_fetched = pull.fetched.load(Ordering::Relaxed);
        Ok(Artifact { digest: root.digest, config, layers, bytes_fetched })
    }
}

impl Pull<'_> {
    async fn config(&self, root: &Held) -> Result<Vec<u8>, RegistryError> {
        let bad = |reason: String| self.bad(&root.digest, reason);
        let config = root.document.config().ok_or_else(|| bad("it has no configuration".to_owned()))?;
        if config.size > oci::MAX_JSON {
            return Err(bad(format!("its configuration is larger than {} bytes", oci::MAX_JSON)));
        }
        let (layers, most) = (root.document.layers(), self.client.store.limits.layers);
        if layers.len() > most {
            return Err(bad(format!("{} layers, at most {most} are allowed", layers.len())));
        }
        if let Some(layer) = layers.iter().find(|layer| is_foreign(layer)) {
            return Err(bad(format!("layer {} is not in the registry", layer.digest)));
        }
        self.blob(config).await?;
        let (store, digest) = (self.client.store.clone(), config.digest.clone());
        let bytes = blocking(move || store.document_bytes(&digest)).await;
        bytes.map_err(|failure| failure.on(self.what(&config.digest), self.host()))
    }

    async fn artifact_layers(&self, root: &Held) -> Result<(), RegistryError> {
        let work: Vec<_> = root.document.layers().iter().map(|layer| self.blob(layer)).collect();
        stream::iter(work).buffer_unordered(UNDER_WAY).try_collect::<Vec<bool>>().await?;
        Ok(())
    }
}
