//! What the node needs of an image: the one place that knows the image store.

use cumulet_images::ImageStore;
use std::path::PathBuf;
use std::sync::Arc;

/// An image that is in the store, unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedImage {
    /// Digest, for `status.imageID`.
    pub id: String,
    /// Unpacked layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// The image's `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// The image's `Cmd`.
    pub cmd: Vec<String>,
    /// The image's `Env`, `NAME=value`.
    pub env: Vec<String>,
    /// The image's `WorkingDir`; may be empty.
    pub working_dir: String,
    /// The image's `User`; may be empty.
    pub user: String,
    /// The image's `StopSignal`, such as `SIGQUIT`.
    pub stop_signal: Option<String>,
}

/// Why a container has no image; the reason is what its `state.waiting` shows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ImageError {
    /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}
