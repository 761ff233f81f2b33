//! Waiting times between repeated attempts, as the kubelet keeps them.
//!
//! The first retry after a crash is immediate; then the pause is 10 s and doubles up to 300 s. A crash that comes more
//! than ten minutes after the last restart starts the sequence anew.

use crate::container::{after, since};
use jiff::{SignedDuration, Timestamp};

/// First pause.
const FIRST: SignedDuration = SignedDuration::from_secs(10);
/// Longest pause.
pub(crate) const LONGEST: SignedDuration = SignedDuration::from_secs(300);

/// Crash back-off of one container, or pull back-off of one image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backoff {
    /// The pause that the next failure has to wait for; zero before the first.
    pause: SignedDuration,
    /// When the pause was last set.
    updated: Option<Timestamp>,
}

impl Backoff {
    /// Takes note of a failure at `failed_at` and returns the pause before the next attempt.
    pub(crate) fn fail(&mut self, failed_at: Timestamp) -> SignedDuration {
        let expired = self.updated.is_none_or(|u| since(u, failed_at) > LONGEST + LONGEST);
        let pause = if expired { SignedDuration::ZERO } else { self.pause };
        self.pause = if expired { FIRST } else { (pause + pause).min(LONGEST) };
        self.updated = Some(after(failed_at, pause));
        pause
    }

    /// Like [`fail`](Self::fail), for what has no free first retry.
    pub(crate) fn fail_at_once(&mut self, failed_at: Timestamp) -> SignedDuration {
        if self.updated.is_none() {
            self.fail(failed_at);
        }
        self.fail(failed_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_and_resets() {
        let mut backoff = Backoff::default();
        let mut now = Timestamp::UNIX_EPOCH;
        let mut seen = Vec::new();
        for _ in 0..8 {
            let pause = backoff.fail(now);
            seen.push(pause.as_secs());
            now = after(now, pause + SignedDuration::from_secs(1));
        }
        assert_eq!(seen, [0, 10, 20, 40, 80, 160, 300, 300]);
        let later = after(now, SignedDuration::from_mins(11));
        assert_eq!(backoff.fail(later), SignedDuration::ZERO);
    }

    #[test]
    fn pull_waits_at_once() {
        let mut backoff = Backoff::default();
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(backoff.fail_at_once(now).as_secs(), 10);
        assert_eq!(backoff.fail_at_once(now).as_secs(), 20);
    }
}
