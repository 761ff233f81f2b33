//! What the node needs of an image: the one place that knows the image store and the registry client.
//!
//! ```text
//!   policy        there, pulled   there, made here   not there
//!   Never         take it         take it            ErrImageNeverPull
//!   IfNotPresent  take it         take it            pull
//!   Always        pull            take it            pull
//! ```
//!
//! Nothing is pulled from this cloud's own registry: what it has is in the store. The middle column is where a cloud on
//! one machine differs from a cluster: an image that was built or loaded here, or pushed here, has no other place that
//! could have a newer one.

use cumulet_images::{Client, ImageStore, Keyring, Origin, Reference};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// How an image is named that is no image but a disk on this machine.
const LOCAL_DISK: &str = "file://";

/// An image that is in the store, unpacked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResolvedImage {
    /// Digest, for `status.imageID`; empty for a disk that lies on this machine.
    pub(crate) id: String,
    /// Unpacked layers, lowest first.
    pub(crate) layers: Vec<PathBuf>,
    /// The image's `Entrypoint`.
    pub(crate) entrypoint: Vec<String>,
    /// The image's `Cmd`.
    pub(crate) cmd: Vec<String>,
    /// The image's `Env`, `NAME=value`.
    pub(crate) env: Vec<String>,
    /// The image's `WorkingDir`; may be empty.
    pub(crate) working_dir: String,
    /// The image's `User`; may be empty.
    pub(crate) user: String,
    /// The image's `StopSignal`, such as `SIGQUIT`.
    pub(crate) stop_signal: Option<String>,
    /// The disk that the image is, for a virtual machine; then there is no program to run.
    pub(crate) disk: Option<PathBuf>,
}

/// Why a container has no image; the reason is what its `state.waiting` shows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ImageError {
    /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) message: String,
}

impl ImageError {
    pub(crate) fn pull(error: &dyn std::fmt::Display) -> Self {
        Self { reason: "ErrImagePull", message: error.to_string() }
    }

    fn name(error: &dyn std::fmt::Display) -> Self {
        Self { reason: "InvalidImageName", message: error.to_string() }
    }
}

/// The images of this machine, and the way to get more.
#[derive(Clone)]
pub(crate) struct Images {
    store: ImageStore,
    client: Arc<Client>,
    /// What this cloud's own registry is called.
    own: Vec<String>,
}

impl Images {
    pub(crate) fn new(store: ImageStore, client: Client, own: Vec<String>) -> Self {
        Self { store, client: Arc::new(client), own }
    }

    /// Looks an image up in the store, unpacking what is not unpacked. Nothing is pulled. Blocks on files.
    ///
    /// # Errors
    /// `InvalidImageName`; `ErrImageNeverPull` or `ErrImagePull`, as the policy is, when it is not there or damaged.
    pub(crate) fn present(&self, reference: &str, policy: Option<&str>) -> Result<ResolvedImage, ImageError> {
        use cumulet_images::ImageError as StoreError;
        if let Some(path) = reference.strip_prefix(LOCAL_DISK) {
            return local_disk(path);
        }
        let image = self.store.resolve(reference).map_err(|error| match &error {
            StoreError::BadReference { .. } => ImageError::name(&error),
            StoreError::NotFound { .. } if policy == Some("Never") => ImageError {
                reason: "ErrImageNeverPull",
                message: format!(
                    "Container image \"{reference}\" is not present with pull policy of Never: {error}"
                ),
            },
            _ => ImageError::pull(&error),
        })?;
        let disk = image.disk().map_err(|error| ImageError::pull(&error))?;
        Ok(ResolvedImage {
            disk,
            id: image.digest.to_string(),
            layers: image.layers,
            entrypoint: image.config.entrypoint,
            cmd: image.config.cmd,
            env: image.config.env,
            working_dir: image.config.workdir,
            user: image.config.user,
            stop_signal: image.config.stop_signal,
        })
    }

    /// Whether an image has to be pulled before it is used. Blocks on files.
    ///
    /// # Errors
    /// `InvalidImageName`, or a store that cannot be read.
    pub(crate) fn must_pull(&self, reference: &str, policy: Option<&str>) -> Result<bool, ImageError> {
        if reference.starts_with(LOCAL_DISK) {
            return Ok(false);
        }
        let name = Reference::parse(reference).map_err(|error| ImageError::name(&error))?;
        if policy == Some("Never") || self.own.iter().any(|host| host == name.registry()) {
            return Ok(false);
        }
        let origin = self.store.origin(reference).map_err(|error| ImageError::pull(&error))?;
        Ok(match origin {
            None => true,
            Some(Origin::Local) => false,
            Some(Origin::Registry) => policy == Some("Always"),
        })
    }

    /// Pulls an image, and gives the words of the event that says so.
    ///
    /// # Errors
    /// `ErrImagePull` with the registry's words.
    pub(crate) async fn pull(&self, reference: &str, keyring: &Keyring) -> Result<String, ImageError> {
        let start = Instant::now();
        let name = Reference::parse(reference).map_err(|error| ImageError::name(&error))?;
        let pulled = self.client.pull(&name, keyring, &()).await.map_err(|error| {
            let remedy = "or bring it here with `cumulet image build`, `load` or `pull`";
            ImageError::pull(&format!("{error}; {remedy}"))
        })?;
        let took = start.elapsed().as_secs_f64();
        let size = pulled.size_bytes;
        Ok(format!("Successfully pulled image \"{reference}\" in {took:.3}s. Image size: {size} bytes."))
    }
}

/// A disk that lies on this machine.
fn local_disk(path: &str) -> Result<ResolvedImage, ImageError> {
    let path = PathBuf::from(path);
    if !path.is_absolute() {
        return Err(ImageError::name(&format!("{LOCAL_DISK} wants an absolute path of this machine")));
    }
    match path.metadata() {
        Ok(metadata) if metadata.is_file() => {
            Ok(ResolvedImage { disk: Some(path), ..ResolvedImage::default() })
        }
        Ok(_) => Err(ImageError::pull(&format!("{} is not a file", path.display()))),
        Err(error) => Err(ImageError::pull(&format!("{}: {error}", path.display()))),
    }
}

/// The credentials for a pod's images: its pull secrets, then what this process's user has (`docker login`). Also
/// tells what of that cannot be read. Blocks on files.
pub(crate) fn keyring<'a>(secrets: impl Iterator<Item = (&'a str, &'a [u8])>) -> (Keyring, Vec<String>) {
    let mut problems = Vec::new();
    let mut keyring = Keyring::default();
    for (name, bytes) in secrets {
        match Keyring::from_docker_config(bytes) {
            Ok(found) => keyring = keyring.merge(found),
            Err(error) => problems.push(format!("image pull secret \"{name}\": {error}")),
        }
    }
    match Keyring::of_user() {
        Ok(own) => keyring = keyring.merge(own),
        Err(error) => problems.push(error.to_string()),
    }
    (keyring, problems)
}
