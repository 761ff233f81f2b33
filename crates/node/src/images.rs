//! What the node needs of an image: the one place that knows the image store.

use cumulet_images::ImageStore;
use std::path::PathBuf;

/// An image that is in the store, unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResolvedImage {
    /// Digest, for `status.imageID`.
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

/// Looks an image up. Nothing is pulled: what is not in the store has to be brought there by its owner.
///
/// # Errors
/// [`ImageError`] with the reason that Kubernetes uses. Blocks on file reads.
pub(crate) fn resolve(
    store: &ImageStore,
    reference: &str,
    pull_policy: Option<&str>,
) -> Result<ResolvedImage, ImageError> {
    use cumulet_images::ImageError as StoreError;
    let failed = |reason, error: &StoreError| ImageError { reason, message: error.to_string() };
    let image = store.resolve(reference).map_err(|error| match &error {
        StoreError::BadReference { .. } => failed("InvalidImageName", &error),
        StoreError::NotFound { .. } if pull_policy == Some("Never") => ImageError {
            reason: "ErrImageNeverPull",
            message: format!(
                "Container image \"{reference}\" is not present with pull policy of Never: {error}"
            ),
        },
        _ => failed("ErrImagePull", &error),
    })?;
    Ok(ResolvedImage {
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
