//! A keyed, deduplicating work queue.
//!
//! ```text
//!             add                    next                    done
//!   (absent) ─────► ready ───────────────────► running ─────────────► (absent)
//!      │              ▲                           │ add
//!      │ add_after    │ time comes                ▼            done
//!      └────────► waiting                 running + dirty ─────────► ready
//! ```
//!
//! A key runs at most once at a time and stands at most once in the queue, however often it is added; an addition
//! while it runs makes it run again afterwards, so no signal is lost. `add` overtakes a waiting back-off: news
//! deserve a pass at once.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What a key of a queue must be able to do.
pub trait QueueKey: Clone + Eq + Ord + Hash + Send + Sync + std::fmt::Debug + 'static {}
impl<K: Clone + Eq + Ord + Hash + Send + Sync + std::fmt::Debug + 'static> QueueKey for K {}

/// The queue; shared between observers, which add, and one driver, which takes.
pub struct Queue<K> {
    state: Mutex<State<K>>,
    wake: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    queued: HashSet<K>,
    running: HashSet<K>,
    dirty: HashSet<K>,
    waiting: BTreeSet<(Instant, K)>,
    due: HashMap<K, Instant>,
    failures: HashMap<K, u32>,
}

impl<K: QueueKey> Queue<K> {
    /// An empty queue.
    pub fn new() -> Self {
        let state = State {
            ready: VecDeque::new(),
            queued: HashSet::new(),
            running: HashSet::new(),
            dirty: HashSet::new(),
            waiting: BTreeSet::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
        };
        Self { state: Mutex::new(state), wake: Notify::new() }
    }

    /// Asks for a pass over `key` as soon as possible.
    pub fn add(&self, key: K) {
        self.lock().add(key);
        self.wake.notify_one();
    }

    /// Asks for a pass over `key` not later than in `delay`. Only the earliest of several such wishes counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        self.lock().add_at(key, Instant::now() + delay);
        self.wake.notify_one();
    }

    /// The next key; its pass must end with [`Queue::done`]. For one caller at a time. Cancel-safe: a key is only
    /// taken in the moment in which it is returned.
    pub async fn next(&self) -> K {
        loop {
            let (key, earliest) = self.lock().take(Instant::now());
            match (key, earliest) {
                (Some(key), _) => return key,
                (None, None) => self.wake.notified().await,
                (None, Some(at)) => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
            }
        }
    }

    /// Ends the pass over `key`.
    pub fn done(&self, key: &K) {
        let mut state = self.lock();
        state.running.remove(key);
        if state.dirty.remove(key) {
            state.add(key.clone());
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Counts a failure of `key` and returns how many there were in a row.
    pub fn failed(&self, key: &K) -> u32 {
        let mut state = self.lock();
        let failures = state.failures.entry(key.clone()).or_insert(0);
        *failures = failures.saturating_add(1);
        *failures
    }

    /// Forgets the failures of `key`.
    pub fn succeeded(&self, key: &K) {
        self.lock().failures.remove(key);
    }

    /// Keys that are ready or running.
    pub fn depth(&self) -> usize {
        let state = self.lock();
        state.ready.len() + state.running.len()
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        // No code in this module can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: QueueKey> Default for Queue<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: QueueKey> State<K> {
    fn add(&mut self, key: K) {
        if self.running.contains(&key) {
            self.dirty.insert(key);
        } else if self.queued.insert(key.clone()) {
            self.forget_wait(&key);
            self.ready.push_back(key);
        }
    }

    fn add_at(&mut self, key: K, at: Instant) {
        let queued = self.queued.contains(&key) || self.dirty.contains(&key);
        if queued || self.due.get(&key).is_some_and(|known| *known <= at) {
            return;
        }
        self.forget_wait(&key);
        self.due.insert(key.clone(), at);
        self.waiting.insert((at, key));
    }

    fn forget_wait(&mut self, key: &K) {
        if let Some(at) = self.due.remove(key) {
            self.waiting.remove(&(at, key.clone()));
        }
    }

    /// Takes a ready key, else tells when the next waiting one is due.
    fn take(&mut self, now: Instant) -> (Option<K>, Option<Instant>) {
        while let Some((at, key)) = self.waiting.first().cloned() {
            if at > now {
                break;
            }
            self.forget_wait(&key);
            self.add(key);
        }
        let Some(key) = self.ready.pop_front() else {
            return (None, self.waiting.first().map(|(at, _)| *at));
        };
        self.queued.remove(&key);
        self.running.insert(key.clone());
        (Some(key), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[tokio::test]
    async fn a_key_stands_once_and_runs_once() {
        let queue = Queue::new();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "b");
        queue.done(&"a");
        assert_eq!(queue.next().await, "a", "the addition while it ran was kept");
        queue.done(&"a");
        queue.done(&"b");
        assert_eq!(queue.depth(), 0);
    }

    #[test]
    fn the_earliest_delay_counts() {
        let queue = Queue::new();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for seconds in [9, 2, 5] {
            queue.lock().add_at("a", at(seconds));
        }
        assert_eq!(queue.lock().take(at(1)), (None, Some(at(2))));
        assert_eq!(queue.lock().take(at(2)), (Some("a"), None));
        queue.done(&"a");
        assert!(queue.lock().waiting.is_empty());
        queue.lock().add_at("a", at(9));
        queue.add("a");
        assert_eq!(queue.lock().take(at(2)), (Some("a"), None), "an addition overtakes the delay");
        assert!(queue.lock().waiting.is_empty());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(u8),
        After(u8, u64),
        Take,
        Done(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..4).prop_map(Step::Add),
            (0u8..4, 0u64..3).prop_map(|(k, s)| Step::After(k, s)),
            Just(Step::Take),
            (0usize..4).prop_map(Step::Done),
        ]
    }

    proptest! {
        /// No key runs twice at once, and every added key is taken at least once after its addition.
        #[test]
        fn no_signal_is_lost(steps in prop::collection::vec(step(), 0..60)) {
            let queue = Queue::<u8>::new();
            let far = Instant::now() + Duration::from_secs(1000);
            let (mut owed, mut running) = (HashSet::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Add(key) => { queue.add(key); owed.insert(key); }
                    Step::After(key, s) => { queue.add_after(key, Duration::from_secs(s)); owed.insert(key); }
                    Step::Take => if let (Some(key), _) = queue.lock().take(far) {
                        prop_assert!(!running.contains(&key));
                        running.push(key);
                        owed.remove(&key);
                    },
                    Step::Done(i) => if i < running.len() { let key = running.remove(i); queue.done(&key); }
                }
            }
            for key in running { queue.done(&key); }
            let take = || queue.lock().take(far).0;
            while let Some(key) = take() { owed.remove(&key); queue.done(&key); }
            prop_assert!(owed.is_empty());
        }
    }
}
