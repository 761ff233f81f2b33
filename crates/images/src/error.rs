//! What can go wrong with images. Messages name the archive, the entry or the file, and what to do.

use std::path::{Path, PathBuf};

/// Why an operation on images failed. Nothing of a failed import or build is visible afterwards.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The text is no image reference.
    #[error("\"{text}\" is not an image reference: {reason}")]
    BadReference {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No image has this name or digest.
    #[error(
        "image \"{reference}\" is not present: load it with `cumulet image load` or build it with `cumulet image build`"
    )]
    NotFound {
        /// What was asked for.
        reference: String,
    },
    /// An archive has an entry that is malformed, hostile, or not supported.
    #[error("{archive}: entry \"{entry}\": {reason}")]
    Entry {
        /// The archive, or the layer within it.
        archive: String,
        /// The entry's name as the archive spells it.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An archive as a whole cannot be used.
    #[error("{archive}: {reason}")]
    Archive {
        /// The archive, or the layer within it.
        archive: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Content does not have the digest that its referrer states.
    #[error(
        "{archive}: {what} has digest {found}, expected {expected}: the archive is damaged or was tampered with"
    )]
    DigestMismatch {
        /// The archive.
        archive: String,
        /// Which content.
        what: String,
        /// What the referrer states.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The image is for another machine.
    #[error("{archive}: the image is for {found}, this machine needs {wanted}")]
    Platform {
        /// The archive.
        archive: String,
        /// `os/architecture` of the image.
        found: String,
        /// `os/architecture` of this machine.
        wanted: String,
    },
    /// A build description has a mistake.
    #[error("{}{}: {message}", path.display(), place(*at))]
    Build {
        /// The description, or the file it names.
        path: PathBuf,
        /// Line and column, from 1.
        at: Option<(u64, u64)>,
        /// What is wrong.
        message: String,
    },
    /// The store's own files are damaged.
    #[error("{}: {reason}; remove the image and load it again", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An image that is to be a disk is none.
    #[error("disk image: {reason}")]
    Disk {
        /// What is wrong.
        reason: String,
    },
    /// The system refused.
    #[error("{what}: {source}{}", hint(source))]
    Io {
        /// What was attempted, on which file.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

pub(crate) fn place(at: Option<(u64, u64)>) -> String {
    at.map_or_else(String::new, |(line, column)| format!(":{line}:{column}"))
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::StorageFull => ": free some space (`cumulet image prune`) and try again",
        std::io::ErrorKind::PermissionDenied => ": unpacking images needs root",
        _ => "",
    }
}

/// Wraps a system error: `.map_err(io("open", path))`.
pub(crate) fn io<'a, E: Into<std::io::Error>>(
    verb: &'a str,
    path: &'a Path,
) -> impl FnOnce(E) -> ImageError + 'a {
    move |error| ImageError::Io { what: format!("{verb} {}", path.display()), source: error.into() }
}
