//! Durable revisioned objects with group commit and watch.
//!
//! The store keeps opaque encoded objects by key, gives every commit one new global revision, and lets any number
//! of watchers follow the changes of a resource from a revision on. It knows nothing about what the objects mean.
//!
//! ```text
//!   commit ──► bounded queue ──► writer thread: stage a group → flush it (redb) → publish → answer
//!                                                                   │
//!   get, list, by_index ◄── state in memory (records, indexes) ◄────┤
//!   watchers            ◄── recent history per resource        ◄────┘
//! ```
//!
//! Promises:
//! - **Durable first**: nobody reads, watches or is told of a change that is not on disk. A commit waits for its
//!   own group's flush and at most one other.
//! - **Atomic**: the operations of a commit happen at one revision or not at all. Preconditions are checked against
//!   everything that was queued before.
//! - **Revisions** only grow, also over restarts and crashes. An object's revision is that of its last change.
//! - **Reads** never wait for the disk; the lock they take is held only while memory is read or changed.
//! - **History** is bounded and lives in memory: what no longer is held is answered with
//!   [`HistoryError::Compacted`], and the client lists again. After a restart only the current revision can be
//!   watched from.
//! - **Faults**: a full disk fails commits and nothing else; a damaged file is reported and left alone.
//!
//! Absent on purpose: the objects' vocabulary, selectors, leases, several processes on one store, and history on
//! disk.

mod disk;
mod error;
mod model;
mod state;
mod store;
mod watcher;
mod writer;

pub use error::{HistoryError, OpenError, StoreError};
pub use model::{Body, Committed, Event, EventKind, IndexTerm, Key, Op, Record, ResourceTag};
pub use state::{Range, Snapshot};
pub use store::{Store, StoreOptions};
pub use watcher::{Batch, Watcher};
