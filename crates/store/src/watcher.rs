//! Following a resource's events.
//!
//! A watcher is a position in the resource's shared log and a wake-up: nothing is queued for it, so a slow watcher
//! costs nothing, and when the history window passes its position it is told `Compacted`. A watcher keeps the state
//! in memory alive, but not the file.

use crate::store::Shared;
use crate::{Event, HistoryError, ResourceTag};
use std::sync::Arc;
use tokio::sync::watch;

/// Events taken at a time: bounds how long the state is locked and how much a slow reader holds.
const BATCH: usize = 512;

/// Consecutive events of one resource.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The events, oldest first; whole commits only.
    pub events: Vec<Arc<Event>>,
    /// Everything that happened to the resource up to this revision has been delivered.
    pub revision: u64,
}

/// Delivers the events of one resource in order, without gaps or repetitions.
pub struct Watcher {
    shared: Arc<Shared>,
    resource: ResourceTag,
    /// Sequence number of the next event.
    next: u64,
    /// Everything up to this revision has been delivered.
    reached: u64,
    wake: watch::Receiver<u64>,
}

impl Watcher {
    pub(crate) fn new(
        shared: Arc<Shared>,
        resource: ResourceTag,
        next: u64,
        reached: u64,
        wake: watch::Receiver<u64>,
    ) -> Self {
        Self { shared, resource, next, reached, wake }
    }

    /// The next events; waits until there are some. Safe to drop and call again: nothing is lost.
    ///
    /// # Errors
    /// `Compacted` when the watcher was too slow: list and watch again.
    pub async fn next_batch(&mut self) -> Result<Batch, HistoryError> {
        loop {
            // Marked as seen before looking, so that what comes after the look wakes.
            self.wake.borrow_and_update();
            let batch = self.poll_batch()?;
            if !batch.events.is_empty() {
                return Ok(batch);
            }
            if self.wake.changed().await.is_err() {
                // The sender lives in the state, which this watcher keeps alive: it cannot be gone.
                std::future::pending::<()>().await;
            }
        }
    }

    /// What is there now: perhaps no events, but always the revision reached. This is how a bookmark learns its
    /// revision when the resource is quiet while others change.
    ///
    /// # Errors
    /// `Compacted` when the watcher was too slow: list and watch again.
    pub fn poll_batch(&mut self) -> Result<Batch, HistoryError> {
        let tail = self.shared.read().tail(&self.resource, self.next, self.reached, BATCH)?;
        self.next = tail.next;
        self.reached = self.reached.max(tail.revision);
        Ok(Batch { events: tail.events, revision: self.reached })
    }

    /// Everything that happened to the resource up to this revision has been delivered.
    pub fn reached(&self) -> u64 {
        self.reached
    }
}
