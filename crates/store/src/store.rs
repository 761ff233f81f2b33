//! The handle: opening, reading, committing, watching, closing.

use crate::disk::Disk;
use crate::state::{Range, Snapshot, State, Window};
use crate::watcher::Watcher;
use crate::writer::{Message, Writer};
use crate::{Committed, Event, HistoryError, Key, Op, OpenError, Record, ResourceTag, StoreError};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot, watch};

/// Limits of a store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Most events of history held, over all resources.
    pub history_events: usize,
    /// Most bytes of history held, over all resources (estimated).
    pub history_bytes: usize,
    /// Commits that may wait for the writer; further callers wait to enqueue theirs.
    pub queue: usize,
    /// Page cache of the engine, in bytes. Reads never touch it: it serves the writer only.
    pub cache_bytes: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { history_events: 10_000, history_bytes: 32 << 20, queue: 1024, cache_bytes: 4 << 20 }
    }
}

/// What readers, watchers and the writer share.
pub(crate) struct Shared {
    state: RwLock<State>,
    /// The newest published revision.
    published: watch::Sender<u64>,
}

impl Shared {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        // The state is only changed by code that does not panic half-way; a poisoned lock would mean a panic in a
        // reader, which cannot have changed it.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes durable events visible and wakes who waits for them.
    pub(crate) fn publish(&self, events: &[Arc<Event>], revision: u64) {
        let wakers = self.write().publish(events, revision);
        for waker in wakers {
            waker.send_replace(revision);
        }
        self.published.send_replace(revision);
    }
}

/// A store of revisioned objects. Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Message>,
}

impl Store {
    /// Opens the store in `dir`, which is made when missing, and starts its writer thread. Blocks while the file is
    /// read.
    ///
    /// # Errors
    /// When another process has it open, when the file is damaged or of another format, when the system refuses.
    pub fn open(dir: &Path, options: &StoreOptions) -> Result<Self, OpenError> {
        let (disk, loaded) = Disk::open(dir, options.cache_bytes)?;
        let path = disk.path().to_owned();
        let window = Window { events: options.history_events, bytes: options.history_bytes };
        let shared = Arc::new(Shared {
            published: watch::Sender::new(loaded.revision),
            state: RwLock::new(State::new(loaded.records, loaded.revision, window)),
        });
        let (queue, messages) = mpsc::channel(options.queue.max(1));
        let writer = Writer::new(disk, shared.clone(), messages);
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| OpenError::Io { path, source })?;
        Ok(Self { shared, queue })
    }

    /// Applies all operations or none, at one new revision. Returns once they are durable and visible. No
    /// operations at all succeed at the current revision.
    ///
    /// Dropping the future does not undo a commit that is already queued.
    ///
    /// # Errors
    /// A failed precondition, or a disk that cannot be written.
    pub async fn commit(&self, ops: Vec<Op>) -> Result<Committed, StoreError> {
        if ops.is_empty() {
            return Ok(Committed { revision: self.revision(), records: Vec::new() });
        }
        let (answer, answered) = oneshot::channel();
        self.queue.send(Message::Commit(ops, answer)).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    /// The newest revision. Everything up to it is durable and visible.
    pub fn revision(&self) -> u64 {
        *self.shared.published.borrow()
    }

    /// Waits until the store has reached `revision`; false when `deadline` passes first.
    pub async fn wait_revision(&self, revision: u64, deadline: Instant) -> bool {
        let mut published = self.shared.published.subscribe();
        let reached = published.wait_for(|now| *now >= revision);
        matches!(tokio::time::timeout_at(deadline.into(), reached).await, Ok(Ok(_)))
    }

    /// The object at `key`.
    pub fn get(&self, key: &Key) -> Option<Arc<Record>> {
        self.shared.read().get(key).cloned()
    }

    /// Objects of a resource, ordered by namespace and name, as they are now.
    pub fn list(&self, resource: &ResourceTag, range: &Range<'_>) -> Snapshot {
        self.shared.read().list(resource, range)
    }

    /// Objects of a resource as they were at `revision`: for reading a long list page by page at one revision.
    ///
    /// # Errors
    /// When the history does not reach back that far, or the revision has not happened yet.
    pub fn list_at(
        &self,
        resource: &ResourceTag,
        revision: u64,
        range: &Range<'_>,
    ) -> Result<Snapshot, HistoryError> {
        self.shared.read().list_at(resource, revision, range)
    }

    /// Objects that have `value` in the index `name`, of one resource or of all, ordered by key.
    pub fn by_index(&self, name: &str, value: &str, resource: Option<&ResourceTag>) -> Snapshot {
        self.shared.read().by_index(name, value, resource)
    }

    /// Watches a resource: the watcher gets every event with a revision above `from`.
    ///
    /// # Errors
    /// When the history does not reach back that far, or the revision has not happened yet.
    pub fn watch(&self, resource: &ResourceTag, from: u64) -> Result<Watcher, HistoryError> {
        let (next, wake) = self.shared.write().subscribe(resource, from)?;
        Ok(Watcher::new(self.shared.clone(), resource.clone(), next, from, wake))
    }

    /// Finishes what is queued, closes the file and releases the directory. Later commits fail with `Closed`;
    /// reads go on answering from memory. Dropping all clones does the same without waiting for it.
    pub async fn close(&self) {
        let (answer, answered) = oneshot::channel();
        if self.queue.send(Message::Close(answer)).await.is_ok() {
            // An error means that the writer has ended, which is what was asked for.
            let _ = answered.await;
        }
    }
}
