//! Templates: memory snapshots of pods that are ready, from which other pods of the same kind start.
//!
//! ```text
//!   pod ─► key ─► Entry ─ask─┬─► Build    boots, becomes ready, is saved, goes on as the first clone
//!                            ├─► Wait     for the pod that builds
//!                            ├─► Use      Hot: sealed memory + devices' state ─► clone, or a standby from the Pool
//!                            └─► Boot     after a failure
//! ```
//!
//! An entry's [`Life`] decides, under a lock that is held for nothing else; whoever waits hears of a change. The memory
//! of a template in use is one sealed memfd, whose pages all clones share until they write them.
//!
//! Absent: what happens to one pod (the runner's), and everything inside the machine (its supervisor's).

mod key;
mod life;
mod pool;
mod store;

pub(crate) use key::{ANNOTATIONS, own_env, parts, unsuitable};
pub(crate) use life::Answer;
use life::Life;
use pool::Pool;
pub(crate) use pool::{IDLE, Pattern, Standby};
pub(crate) use store::{Origin, Unusable, compatibility, offer, publish_offer};

use crate::supervisor::proto::TemplateNotes;
use crate::vm::text;
use cumulet_snapshot_format::Key;
use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::{Semaphore, SemaphorePermit, watch};

/// A template that machines can be started from at once.
#[derive(Debug)]
pub(crate) struct Hot {
    /// The guest's memory; nobody can write it.
    pub(crate) memory: File,
    /// File with the devices' state.
    pub(crate) state: PathBuf,
    pub(crate) notes: TemplateNotes,
    /// Bytes of the memory that are not zero.
    pub(crate) data_bytes: u64,
}

impl Drop for Hot {
    fn drop(&mut self) {
        // It is in the template's own file as well, or is not wanted any more.
        let _ = fs::remove_file(&self.state);
    }
}

/// All that is known under one key.
pub(crate) struct Entry {
    key: String,
    life: Mutex<Life>,
    /// Told when `life` has changed.
    changed: watch::Sender<()>,
    hot: Mutex<Option<Arc<Hot>>>,
    /// It lies on the disk, too.
    stored: AtomicBool,
    /// Clones have restored from it.
    proven: AtomicBool,
    /// Clones in a row that did not.
    failures: AtomicU32,
    /// One reads it from there.
    pub(crate) loading: tokio::sync::Mutex<()>,
    pub(crate) pool: Pool,
}

impl Entry {
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The first digits of the key, which people use.
    pub(crate) fn short(&self) -> &str {
        &self.key[..self.key.len().min(12)]
    }

    /// A pod asks how to start; what is to be waited for if it has to wait.
    pub(crate) fn ask(&self, uid: &str) -> (Answer, watch::Receiver<()>) {
        // Before the question, so that no change is missed.
        let changed = self.changed.subscribe();
        (self.life().ask(uid, Instant::now()), changed)
    }

    /// The template is there.
    pub(crate) fn built(&self, uid: &str, hot: Arc<Hot>) {
        if self.life().built(uid) {
            *self.slot() = Some(hot);
        }
        self.changed.send_replace(());
    }

    /// The pod that was to become the template is not going to.
    pub(crate) fn abandoned(&self, uid: &str) {
        self.life().abandoned(uid);
        self.changed.send_replace(());
    }

    /// It could not be built, or cannot be started from.
    pub(crate) fn failed(&self, reason: String) {
        self.life().failed(reason, Instant::now());
        self.stored.store(false, Ordering::Release);
        *self.slot() = None;
        self.changed.send_replace(());
        // Standbys go.
        self.pool.started.notify_one();
    }

    /// A clone has restored from it.
    pub(crate) fn restored(&self) {
        self.proven.store(true, Ordering::Release);
        self.failures.store(0, Ordering::Release);
    }

    /// A clone did not restore. True when that is the template's fault: one that has restored before cannot have
    /// changed, and a busy machine is no reason to lose it.
    pub(crate) fn is_to_blame(&self) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::AcqRel) + 1;
        let to_blame = failures >= MAX_FAILURES || !self.proven.load(Ordering::Acquire);
        if to_blame {
            self.proven.store(false, Ordering::Release);
            self.failures.store(0, Ordering::Release);
        }
        to_blame
    }

    /// It was found on the disk.
    fn found(&self) {
        self.stored();
        self.life().found();
    }

    /// It is on the disk now.
    fn stored(&self) {
        self.stored.store(true, Ordering::Release);
    }

    fn is_stored(&self) -> bool {
        self.stored.load(Ordering::Acquire)
    }

    /// What is in memory does not lie on the disk any more: it was removed there, or replaced, which the next look finds.
    /// Clones that run keep what they have.
    pub(crate) fn removed(&self) {
        self.stored.store(false, Ordering::Release);
        self.life().removed();
        *self.slot() = None;
        self.changed.send_replace(());
        // Standbys go.
        self.pool.started.notify_one();
    }

    /// It was read.
    pub(crate) fn loaded(&self, hot: Arc<Hot>) {
        *self.slot() = Some(hot);
    }

    /// Nobody needs it in memory for the time being.
    pub(crate) fn cool(&self) {
        if self.is_stored() {
            *self.slot() = None;
        }
    }

    /// What clones are started from.
    pub(crate) fn hot(&self) -> Option<Arc<Hot>> {
        self.slot().clone()
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<Hot>>> {
        self.hot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All templates of a node.
pub(crate) struct Templates {
    dir: PathBuf,
    /// Most bytes on the disk.
    budget_bytes: u64,
    /// Held only for look-ups and changes of the map.
    entries: Mutex<HashMap<String, Arc<Entry>>>,
    /// Restores that may go on at once: of many that share few processors none would answer in time.
    turns: Semaphore,
}

/// Restores at once for each processor: one that waits for the disk or for its QEMU leaves room for another.
const RESTORES_PER_CPU: usize = 2;
/// Clones of a template that restored before that may fail in a row before the template is given up.
const MAX_FAILURES: u32 = 3;

impl Templates {
    /// Templates below the state directory. What an earlier process had in use is forgotten: its clones hold it.
    pub(crate) fn new(state_dir: &Path, budget_bytes: u64) -> Self {
        let dir = state_dir.join(DIR);
        match fs::remove_dir_all(dir.join(HOT)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, dir = %dir.display(), "states of earlier templates are left");
            }
            _ => {}
        }
        if let Err(error) = cumulet_snapshot_format::clean(&dir) {
            tracing::warn!(error = text(&error), "unfinished snapshots are left");
        }
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let turns = Semaphore::new(cpus * RESTORES_PER_CPU);
        Self { dir, budget_bytes, entries: Mutex::default(), turns }
    }

    /// Waits for a turn to restore a clone, which lasts as long as what it gives.
    pub(crate) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.turns.acquire().await.ok()
    }

    /// The entry of a key.
    pub(crate) fn entry(&self, key: &str) -> Arc<Entry> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            Arc::new(Entry {
                key: key.to_owned(),
                life: Mutex::new(Life::new()),
                changed: watch::Sender::new(()),
                hot: Mutex::default(),
                stored: AtomicBool::new(false),
                proven: AtomicBool::new(false),
                failures: AtomicU32::new(0),
                loading: tokio::sync::Mutex::default(),
                pool: Pool::default(),
            })
        };
        entries.entry(key.to_owned()).or_insert_with(new).clone()
    }

    /// Templates in memory, and standbys.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let templates = entries.values().filter(|entry| entry.hot().is_some()).count();
        (templates, entries.values().map(|entry| entry.pool.len()).sum())
    }

    /// A new file for the devices' state of a template in use.
    ///
    /// # Errors
    /// Those of making the directory.
    pub(crate) fn state_path(&self, key: &str) -> std::io::Result<PathBuf> {
        let dir = self.dir.join(HOT);
        crate::dirs::private_dir(&self.dir)?;
        crate::dirs::private_dir(&dir)?;
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        // One of its own each time: an earlier one of the same key may still be in use.
        Ok(dir.join(format!("{key}.{}.state", NUMBER.fetch_add(1, Ordering::Relaxed))))
    }
}

/// Directory of templates, below the state directory.
const DIR: &str = "snapshots";
/// Directory of the states of templates in use.
const HOT: &str = ".hot";

/// The key of labelled parts.
pub(crate) fn digest(parts: &[(String, Vec<u8>)]) -> String {
    Key::of(parts.iter().map(|(label, bytes)| (label.as_str(), bytes.as_slice()))).to_string()
}
