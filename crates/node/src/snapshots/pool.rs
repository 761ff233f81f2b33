//! Clones that wait for a pod, and how many of them there should be.
//!
//! A standby is restored, has gone through an identity once, and stands still: a start is then identity and thaw. What
//! is wanted follows the demand of the last minutes, unless an annotation says a number; after a long silence there are
//! none, so that templates that nobody uses cost no memory.

use crate::supervisor::Supervisor;
use crate::supervisor::proto::{PodNetwork, VmSpec};
use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Starts within this time count as demand.
const RECENT: Duration = Duration::from_secs(300);
/// After this time without a start there are no standbys.
pub(crate) const IDLE: Duration = Duration::from_secs(900);
/// Most standbys of a template without an annotation. One takes some 70 MB.
const MAX_AUTOMATIC: usize = 3;
/// Most standbys that an annotation can ask for.
pub(crate) const MAX_STANDBYS: usize = 32;
/// Starts that are remembered.
const MAX_STARTS: usize = 64;

/// A clone without a pod. It has its address, its tap and its cgroup already.
pub(crate) struct Standby {
    pub(crate) supervisor: Arc<Supervisor>,
    pub(crate) dir: PathBuf,
    pub(crate) cgroup: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) network: PodNetwork,
}

/// What a standby is made from: the machine of the pod that asked last.
#[derive(Clone)]
pub(crate) struct Pattern {
    pub(crate) namespace: String,
    pub(crate) vm: VmSpec,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Standby>,
    starts: VecDeque<Instant>,
    /// What the annotation says.
    asked: Option<usize>,
    pattern: Option<Pattern>,
}

/// The standbys of a template.
#[derive(Default)]
pub(crate) struct Pool {
    state: Mutex<State>,
    /// Told after every start.
    pub(crate) started: Notify,
    /// Somebody keeps the pool.
    kept: AtomicBool,
}

impl Pool {
    /// A pod starts; a standby for it, if there is one.
    pub(crate) fn take(&self, now: Instant, asked: Option<usize>, pattern: Pattern) -> Option<Standby> {
        self.note(now, asked, pattern);
        self.state().ready.pop_front()
    }

    /// A pod starts otherwise, or has become the template.
    pub(crate) fn note(&self, now: Instant, asked: Option<usize>, pattern: Pattern) {
        let mut state = self.state();
        state.starts.push_back(now);
        if state.starts.len() > MAX_STARTS {
            state.starts.pop_front();
        }
        state.asked = asked.map(|n| n.min(MAX_STANDBYS));
        state.pattern = Some(pattern);
    }

    /// Takes note of a standby.
    pub(crate) fn put(&self, standby: Standby) {
        self.state().ready.push_back(standby);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.state().ready.len()
    }

    /// Takes all out, for their end.
    pub(crate) fn drain(&self) -> Vec<Standby> {
        self.state().ready.drain(..).collect()
    }

    /// What to make another one from, if there are too few.
    pub(crate) fn lacking(&self, now: Instant) -> Option<Pattern> {
        let state = self.state();
        (state.ready.len() < state.wanted(now)).then(|| state.pattern.clone()).flatten()
    }

    /// When standbys stop being wanted.
    pub(crate) fn idle_at(&self) -> Option<Instant> {
        self.state().starts.back().map(|last| *last + IDLE)
    }

    /// True for the first one who asks, until [`Self::release`].
    pub(crate) fn keep(&self) -> bool {
        !self.kept.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn release(&self) {
        self.kept.store(false, Ordering::Release);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wanted(&self, now: Instant) -> usize {
        let since = |at: &Instant| now.saturating_duration_since(*at);
        match (self.starts.back(), self.asked) {
            (Some(last), asked) if since(last) < IDLE => asked.unwrap_or_else(|| {
                let recent = self.starts.iter().filter(|at| since(at) < RECENT).count();
                recent.clamp(1, MAX_AUTOMATIC)
            }),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demand_decides() {
        let now = Instant::now();
        let check = |ago: &[u64], asked: Option<usize>, wanted: usize| {
            let starts = ago.iter().rev().map(|s| now - Duration::from_secs(*s)).collect();
            let state = State { starts, asked, ..State::default() };
            assert_eq!(state.wanted(now), wanted, "{ago:?} {asked:?}");
        };
        check(&[], None, 0);
        check(&[], Some(2), 0);
        check(&[1], None, 1);
        check(&[1, 2], None, 2);
        check(&[1; 40], None, MAX_AUTOMATIC);
        check(&[400, 500], None, 1);
        check(&[1], Some(0), 0);
        check(&[1], Some(9), 9);
        check(&[901], Some(9), 0);
    }
}
