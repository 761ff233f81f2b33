//! The driver: runs the passes of every controller.
//!
//! One task per controller takes keys from its [`Queue`] and runs at most `workers` passes at once, one per key at a
//! time. A pass gets nothing but a key: it reads what it needs, changes what differs and may be repeated at any
//! time. Passes are caused by informer observers, by a slow period over all keys (which heals whatever a missed
//! signal left behind), and by the pass itself ([`Next::After`]). A failed pass is repeated with exponential
//! back-off and jitter; a conflict with another writer is no failure, only a reason to look again.
//!
//! Every pass is recorded: at debug level in the log, and in the counters that [`ControllerStatus`] shows.

use crate::queue::{Queue, QueueKey};
use cumulet_api::{Status, StatusReason};
use rand::RngExt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// First pause after a failure, as Kubernetes has it.
const BACKOFF_MIN: Duration = Duration::from_millis(5);
/// Longest pause between two tries. Kubernetes goes up to 1000 s; one machine can afford to be quicker.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Failures from which on a controller complains in the log; fewer are usual races.
const COMPLAIN_AFTER: u32 = 5;

/// How the API server refuses new content of a namespace that is going. What was to be made there will go as well.
pub(crate) const TERMINATING: &str = "because it is being terminated";

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The API server refused a call.
    #[error("{doing}: {source}")]
    Api {
        /// What was tried, and on what.
        doing: String,
        /// What the API server said.
        #[source]
        source: Status,
    },
    /// An object cannot be worked with as it is.
    #[error("{0}")]
    Object(String),
}

impl Error {
    /// True when another writer was quicker, or the cache is behind: looking again is all that is needed.
    pub(crate) fn is_race(&self) -> bool {
        match self {
            Self::Api { source, .. } => match source.reason {
                StatusReason::Conflict | StatusReason::NotFound | StatusReason::AlreadyExists => true,
                StatusReason::Forbidden => source.message.contains(TERMINATING),
                _ => false,
            },
            Self::Object(_) => false,
        }
    }
}

/// Adds what was tried to the `Status` of a call.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Doing<T> for Result<T, Status> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Api { doing: what(), source })
    }
}

/// What a pass wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing, until something changes.
    Done,
    /// Another pass after this time.
    After(Duration),
}

impl Next {
    /// The earlier of two wishes.
    pub(crate) fn sooner(self, other: Self) -> Self {
        match (self, other) {
            (Self::After(a), Self::After(b)) => Self::After(a.min(b)),
            (Self::Done, after) | (after, Self::Done) => after,
        }
    }
}

/// One controller: makes the world right for one key.
pub(crate) trait Reconciler: Send + Sync + 'static {
    /// What a pass is about.
    type Key: QueueKey;

    /// Name in logs and in `status`.
    fn name(&self) -> &'static str;

    /// All keys, for the slow period.
    fn keys(&self) -> Vec<Self::Key>;

    /// One pass. Idempotent; an object that is gone is no error. It may be dropped between awaits at shutdown.
    fn reconcile(&self, key: &Self::Key) -> impl Future<Output = Result<Next, Error>> + Send;
}

/// What a controller did so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControllerStatus {
    /// Name of the controller.
    pub name: &'static str,
    /// Passes since the start.
    pub passes: u64,
    /// Passes that failed. Lost races do not count.
    pub errors: u64,
    /// How long the last pass took.
    pub last_duration: Duration,
    /// Keys that wait for a pass or are in one.
    pub queued: usize,
    /// The last failure, in words.
    pub last_error: Option<String>,
}

/// Counters of one controller.
#[derive(Default)]
struct Counters {
    passes: AtomicU64,
    errors: AtomicU64,
    last_micros: AtomicU64,
    last_error: Mutex<Option<String>>,
}

/// A controller's counters, without its type.
pub(crate) type StatusFn = Box<dyn Fn() -> ControllerStatus + Send + Sync>;

/// How a controller is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Passes at once.
    pub(crate) workers: usize,
    /// Time between two rounds over all keys.
    pub(crate) resync: Duration,
}

/// One running controller.
pub(crate) struct Driver<R: Reconciler> {
    reconciler: R,
    queue: Arc<Queue<R::Key>>,
    counters: Counters,
    pace: Pace,
}

impl<R: Reconciler> Driver<R> {
    pub(crate) fn new(reconciler: R, queue: Arc<Queue<R::Key>>, pace: Pace) -> Arc<Self> {
        Arc::new(Self { reconciler, queue, counters: Counters::default(), pace })
    }

    /// The counters, for whoever shows them.
    pub(crate) fn status_fn(self: &Arc<Self>) -> StatusFn {
        let driver = self.clone();
        Box::new(move || driver.status())
    }

    fn status(&self) -> ControllerStatus {
        let counters = &self.counters;
        ControllerStatus {
            name: self.reconciler.name(),
            passes: counters.passes.load(Ordering::Relaxed),
            errors: counters.errors.load(Ordering::Relaxed),
            last_duration: Duration::from_micros(counters.last_micros.load(Ordering::Relaxed)),
            queued: self.queue.depth(),
            last_error: counters.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Runs until `shutdown`, then lets the running passes end.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut passes = JoinSet::new();
        let mut resync = tokio::time::interval(self.pace.resync);
        resync.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // Every arm is cancel-safe: the queue gives a key only when it returns, the interval keeps its
                // tick, and `join_next` leaves what has not ended in the set.
                key = self.queue.next(), if passes.len() < self.pace.workers => {
                    passes.spawn(self.clone().pass(key));
                }
                Some(ended) = passes.join_next() => self.observe_end(ended),
                _ = resync.tick() => self.reconciler.keys().into_iter().for_each(|key| self.queue.add(key)),
                () = shutdown.cancelled() => break,
            }
        }
        while let Some(ended) = passes.join_next().await {
            self.observe_end(ended);
        }
    }

    fn observe_end(&self, ended: Result<(), tokio::task::JoinError>) {
        if let Err(error) = ended {
            tracing::error!(controller = self.reconciler.name(), %error, "a pass panicked; this is a bug");
        }
    }

    async fn pass(self: Arc<Self>, key: R::Key) {
        // Frees the key even when the pass panics; it then comes again with the next signal or period.
        let running = Running { queue: &self.queue, key: &key };
        let start = Instant::now();
        let result = self.reconciler.reconcile(&key).await;
        self.record(&key, start.elapsed(), &result);
        match result {
            Ok(next) => {
                self.queue.succeeded(&key);
                if let Next::After(delay) = next {
                    self.queue.add_after(key.clone(), delay);
                }
            }
            Err(error) => {
                let failures = self.queue.failed(&key);
                if failures == COMPLAIN_AFTER && !error.is_race() {
                    tracing::warn!(controller = self.reconciler.name(), ?key, %error, "keeps failing; trying on");
                }
                self.queue.add_after(key.clone(), backoff(failures, rand::rng().random_range(0.0..1.0)));
            }
        }
        drop(running);
    }

    fn record(&self, key: &R::Key, took: Duration, result: &Result<Next, Error>) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.counters.passes.fetch_add(1, Ordering::Relaxed);
        self.counters.last_micros.store(micros, Ordering::Relaxed);
        let controller = self.reconciler.name();
        match result {
            Ok(next) => tracing::debug!(controller, ?key, micros, ?next, "pass"),
            Err(error) if error.is_race() => {
                tracing::debug!(controller, ?key, micros, %error, "pass lost a race")
            }
            Err(error) => {
                tracing::debug!(controller, ?key, micros, %error, "pass failed");
                self.counters.errors.fetch_add(1, Ordering::Relaxed);
                let mut last = self.counters.last_error.lock().unwrap_or_else(PoisonError::into_inner);
                *last = Some(error.to_string());
            }
        }
    }
}

struct Running<'a, K: QueueKey> {
    queue: &'a Queue<K>,
    key: &'a K,
}

impl<K: QueueKey> Drop for Running<'_, K> {
    fn drop(&mut self) {
        self.queue.done(self.key);
    }
}

/// The pause after the n-th failure in a row; `dice` in 0..1 spreads it over half to whole, so that keys that failed
/// together do not come back together.
fn backoff(failures: u32, dice: f64) -> Duration {
    let doubled = BACKOFF_MIN.saturating_mul(1 << failures.saturating_sub(1).min(20));
    doubled.min(BACKOFF_MAX).mul_f64(0.5 + dice / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn backoff_grows_to_its_limit() {
        for (failures, millis) in
            [(0, 5), (1, 5), (2, 10), (5, 80), (14, 40_960), (15, 60_000), (u32::MAX, 60_000)]
        {
            assert_eq!(backoff(failures, 1.0), Duration::from_millis(millis), "{failures}");
            assert_eq!(backoff(failures, 0.0), Duration::from_millis(millis) / 2, "{failures}");
        }
    }

    #[test]
    fn sooner_wins() {
        let (one, two) = (Next::After(Duration::from_secs(1)), Next::After(Duration::from_secs(2)));
        assert_eq!(one.sooner(two), one);
        assert_eq!(Next::Done.sooner(two), two);
        assert_eq!(two.sooner(Next::Done), two);
        assert_eq!(Next::Done.sooner(Next::Done), Next::Done);
    }

    /// Fails a few times per key and counts how many passes run at once.
    struct Flaky {
        tries: AtomicUsize,
        running: AtomicUsize,
        most: AtomicUsize,
    }

    impl Reconciler for Flaky {
        type Key = u32;

        fn name(&self) -> &'static str {
            "flaky"
        }

        fn keys(&self) -> Vec<u32> {
            (0..10).collect()
        }

        async fn reconcile(&self, key: &u32) -> Result<Next, Error> {
            let now = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            tokio::task::yield_now().await;
            self.running.fetch_sub(1, Ordering::SeqCst);
            if self.tries.fetch_add(1, Ordering::SeqCst) < 3 {
                return Err(Error::Object(format!("{key} is not ready")));
            }
            Ok(Next::Done)
        }
    }

    #[tokio::test]
    async fn failures_are_retried_and_workers_bounded() {
        let flaky = Flaky { tries: 0.into(), running: 0.into(), most: 0.into() };
        let pace = Pace { workers: 4, resync: Duration::from_secs(3600) };
        let driver = Driver::new(flaky, Arc::new(Queue::new()), pace);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(driver.clone().run(shutdown.clone()));
        let deadline = Instant::now() + Duration::from_secs(30);
        while driver.status().passes < 13 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        shutdown.cancel();
        task.await.expect("the driver ends");
        let status = driver.status();
        assert_eq!((status.passes, status.errors, status.queued), (13, 3, 0));
        assert!(status.last_error.is_some());
        assert_eq!(driver.reconciler.most.load(Ordering::SeqCst), 4);
    }
}
