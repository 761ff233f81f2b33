//! What can go wrong, told apart by who has to act: the client (preconditions), the operator (disk, files), us.

use crate::Key;
use std::path::PathBuf;

/// Why a commit did not happen. `Clone`, because a failed flush is told to everybody in the group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The key of a `Create` is taken.
    #[error("{key} already exists")]
    AlreadyExists {
        /// Which key.
        key: Key,
    },
    /// The key of an `Update` or `Delete` is free.
    #[error("{key} not found")]
    NotFound {
        /// Which key.
        key: Key,
    },
    /// The object has changed since the caller read it.
    #[error("{key} is at revision {current}, not at {expected}")]
    Conflict {
        /// Which key.
        key: Key,
        /// What the caller expected.
        expected: u64,
        /// What it is.
        current: u64,
    },
    /// Two operations of one commit name the same key: they would share a revision.
    #[error("{key} occurs twice in one commit")]
    DuplicateKey {
        /// Which key.
        key: Key,
    },
    /// The key cannot be encoded: it has a NUL byte or no name.
    #[error("{key:?} is not a usable key: it has an empty name or a NUL byte")]
    InvalidKey {
        /// Which key.
        key: Key,
    },
    /// The file system is full. Nothing changed; commits work again once there is space.
    #[error("no space left for {}: free some space and try again", path.display())]
    DiskFull {
        /// The store's file.
        path: PathBuf,
    },
    /// Writing failed. Whether the change happened is not known until the file can be opened again; the store
    /// settles it then, and readers never see a change that is not durable.
    #[error("cannot write {}: {reason}", path.display())]
    Unavailable {
        /// The store's file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

/// Why a read at a past revision or a watch cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// The history does not reach back that far: list again.
    #[error("revision {asked} is compacted; the oldest one held is {oldest}")]
    Compacted {
        /// What was asked for.
        asked: u64,
        /// The oldest revision that can be asked for.
        oldest: u64,
    },
    /// The revision has not happened yet.
    #[error("revision {asked} is in the future; the current one is {current}")]
    Future {
        /// What was asked for.
        asked: u64,
        /// The current revision.
        current: u64,
    },
}

/// Why a store cannot be opened. Nothing on disk was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{} is in use by {}: stop it, or use another directory", dir.display(), holder(*pid))]
    Locked {
        /// The store's directory.
        dir: PathBuf,
        /// The process that holds the lock, if it could be learnt.
        pid: Option<u32>,
    },
    /// The file cannot be understood.
    #[error(
        "{} is damaged ({reason}): nothing was changed; put back a copy, or move the file away to start empty",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file was written by another version of this program.
    #[error("{} has format {found}, this program reads format {supported}: use the version that wrote it", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format version.
        found: u64,
        /// The format version of this program.
        supported: u64,
    },
    /// The system refused.
    #[error("cannot open {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}
