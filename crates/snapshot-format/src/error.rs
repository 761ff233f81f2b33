//! What can be wrong with a template. Messages name the file and what to do.

use crate::Key;
use std::fmt;
use std::path::{Path, PathBuf};

/// A part of a template with a checksum of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The header.
    Header,
    /// The checksums of the memory.
    Table,
    /// The devices.
    State,
    /// All of the memory.
    Memory,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Table => "table of checksums",
            Self::State => "device state",
            Self::Memory => "memory",
        })
    }
}

/// Why a template could not be written, read or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// There is no template of this key.
    #[error("there is no template {key} in {}", dir.display())]
    NotFound {
        /// The key.
        key: Key,
        /// The directory of templates.
        dir: PathBuf,
    },
    /// Something else lies where a template should be.
    #[error("{} is no template: {reason}; remove it with `cumulet snapshot rm`", path.display())]
    Foreign {
        /// What it is.
        path: PathBuf,
        /// How that shows.
        reason: String,
    },
    /// Another version of the program made it.
    #[error(
        "{} was made by a{} version of this program (format {found}, this one reads {}): it is never used; \
         remove it with `cumulet snapshot rm`, a new one is made when a pod needs it",
        path.display(), if *found > crate::VERSION { " newer" } else { "n older" }, crate::VERSION
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A file is shorter or longer than its header says.
    #[error(
        "{} has {found} bytes, its header says {expected}: the template is damaged; \
         remove it with `cumulet snapshot rm`, a new one is made when a pod needs it",
        path.display()
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes by the header.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// A part is not what its checksum says.
    #[error(
        "{}: the {part} is damaged (its checksum differs); \
         remove the template with `cumulet snapshot rm`, a new one is made when a pod needs it",
        path.display()
    )]
    Checksum {
        /// The file.
        path: PathBuf,
        /// The part.
        part: Part,
    },
    /// A chunk of the memory is not what its checksum says.
    #[error(
        "{}: chunk {chunk} (1 MiB from byte {offset}) is damaged (its checksum differs); \
         remove the template with `cumulet snapshot rm`, a new one is made when a pod needs it",
        path.display()
    )]
    Chunk {
        /// The file.
        path: PathBuf,
        /// Number of the chunk.
        chunk: u64,
        /// Where it begins, in bytes.
        offset: u64,
    },
    /// The header says another key than the directory.
    #[error(
        "{} is template {found}, not {expected}: somebody moved it; remove it with `cumulet snapshot rm`",
        path.display()
    )]
    OtherKey {
        /// The file.
        path: PathBuf,
        /// The key of the directory.
        expected: Key,
        /// The key in the header.
        found: Key,
    },
    /// A text is not the JSON that it should be.
    #[error("{} does not say what it should", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's reason.
        source: serde_json::Error,
    },
    /// A part is larger than the format allows.
    #[error("{}: the {part} has {bytes} bytes; at most {most} are possible", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The part.
        part: Part,
        /// Its size in bytes.
        bytes: u64,
        /// The cap in bytes.
        most: u64,
    },
    /// A memory whose size is no multiple of a page.
    #[error("the memory has {bytes} bytes, which is no multiple of {}", crate::PAGE_BYTES)]
    Unaligned {
        /// Its size in bytes.
        bytes: u64,
    },
    /// A template was to be finished without one of its parts.
    #[error("the template {key} was to be finished without its {part}")]
    Unfinished {
        /// The key.
        key: Key,
        /// The part.
        part: Part,
    },
    /// A template from elsewhere is not what it should be.
    #[error("the template from elsewhere cannot be used: {reason}")]
    Packed {
        /// What is wrong.
        reason: String,
    },
    /// Memory was to be loaded into a file that has contents.
    #[error("memory of template {key} can only be loaded into an empty file, this one has {bytes} bytes")]
    NotEmpty {
        /// The key.
        key: Key,
        /// What is in the file, in bytes.
        bytes: u64,
    },
}

impl Error {
    /// Whether the template itself is unusable, for ever: removing it is all that can be done with it.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Foreign { .. }
            | Self::Version { .. }
            | Self::Length { .. }
            | Self::Checksum { .. }
            | Self::Chunk { .. }
            | Self::OtherKey { .. }
            | Self::Json { .. }
            | Self::TooLarge { .. }
            | Self::Packed { .. }
            | Self::Unaligned { .. } => true,
            Self::Io { .. } | Self::NotFound { .. } | Self::Unfinished { .. } | Self::NotEmpty { .. } => {
                false
            }
        }
    }

    pub(crate) fn io<E: Into<std::io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source: source.into() }
    }

    pub(crate) fn foreign(path: &Path, reason: impl Into<String>) -> Self {
        Self::Foreign { path: path.to_owned(), reason: reason.into() }
    }
}
