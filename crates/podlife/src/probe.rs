//! Schedule and verdict of one probe of one running container.
//!
//! ```text
//!  eager:   0 10 30 70 150 … ms   (pause doubles up to the period) until the first success, then every period
//!  counted:            T0 ─ period ─ T0+period ─ …   T0 = start + initial delay + min(1 s, period)
//! ```
//!
//! Startup and readiness probes are eager, so that a pod is ready as soon as its program is. The extra probes must
//! not make it fail sooner than Kubernetes would, so a failure only counts once per period, the first time at `T0`
//! (the kubelet, too, needs about a second to notice a new container). Liveness has nothing to gain from haste and is
//! probed at `T0` first.

use crate::container::after;
use crate::digest::ProbeRule;
use jiff::{SignedDuration, Timestamp};

/// First pause of an eager probe.
const QUICK: SignedDuration = SignedDuration::from_millis(10);
/// Longest time before the first failure counts.
const SETTLE: SignedDuration = SignedDuration::from_secs(1);

/// State of one probe.
#[derive(Clone, Debug)]
pub(crate) struct ProbeLife {
    rule: ProbeRule,
    /// When to probe next.
    next_at: Timestamp,
    /// From when on the next failure counts.
    counts_at: Timestamp,
    /// Pause before the next eager probe; `None` once it succeeded, or when it is not eager.
    quick: Option<SignedDuration>,
    in_flight: bool,
    successes: u32,
    failures: u32,
}

/// What a result means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The success threshold is reached.
    Good,
    /// The failure threshold is reached.
    Bad,
    /// A failure that counts, below the threshold.
    Failing,
    /// Nothing to tell.
    Open,
}

impl ProbeLife {
    /// A probe that begins at `now` for a container that started at `started`.
    pub(crate) fn new(rule: ProbeRule, eager: bool, started: Timestamp, now: Timestamp) -> Self {
        let first = after(started, rule.initial_delay).max(now);
        let counts_at = after(first, rule.period.min(SETTLE));
        let next_at = if eager { first } else { counts_at };
        let quick = eager.then_some(QUICK);
        Self { rule, next_at, counts_at, quick, in_flight: false, successes: 0, failures: 0 }
    }

    /// When it wants to be probed, unless a probe is under way.
    pub(crate) fn next_at(&self) -> Option<Timestamp> {
        (!self.in_flight).then_some(self.next_at)
    }

    /// Takes the turn if it is due.
    pub(crate) fn take_due(&mut self, now: Timestamp) -> bool {
        let due = !self.in_flight && self.next_at <= now;
        self.in_flight |= due;
        due
    }

    /// Notes that a probe could not be carried out.
    pub(crate) fn unknown(&mut self, now: Timestamp) {
        self.in_flight = false;
        self.next_at = after(now, self.rule.period);
    }

    /// Notes a result.
    pub(crate) fn result(&mut self, success: bool, now: Timestamp) -> Verdict {
        self.in_flight = false;
        if success {
            self.failures = 0;
            self.quick = None;
            self.successes = self.successes.saturating_add(1);
            self.next_at = after(now, self.rule.period);
            self.counts_at = self.next_at;
            return if self.successes >= self.rule.success_threshold { Verdict::Good } else { Verdict::Open };
        }
        self.successes = 0;
        let counts = now >= self.counts_at;
        if counts {
            self.failures = self.failures.saturating_add(1);
            self.counts_at = after(now, self.rule.period);
        }
        let pause = self.quick.unwrap_or(self.rule.period).min(self.rule.period);
        self.next_at = after(now, pause).min(self.counts_at.max(now));
        // By half: what started just after a look is seen late by at most a third of the time that it took to start.
        self.quick = self.quick.map(|q| (q + q / 2).min(self.rule.period));
        match counts {
            true if self.failures >= self.rule.failure_threshold => Verdict::Bad,
            true => Verdict::Failing,
            false => Verdict::Open,
        }
    }

    /// The grace period that a kill by this probe brings with it.
    pub(crate) fn grace(&self) -> Option<SignedDuration> {
        self.rule.grace
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(initial_delay: i64, period: i64, failure_threshold: u32) -> ProbeRule {
        ProbeRule {
            initial_delay: SignedDuration::from_secs(initial_delay),
            period: SignedDuration::from_secs(period),
            failure_threshold,
            success_threshold: 1,
            grace: None,
        }
    }

    /// Runs a probe that fails until `healthy_ms`; returns the times (ms) of the probes and of the bad verdict.
    fn run(rule: ProbeRule, eager: bool, healthy_ms: i64, until_ms: i64) -> (Vec<i64>, Option<i64>) {
        let start = Timestamp::UNIX_EPOCH;
        let mut probe = ProbeLife::new(rule, eager, start, start);
        let mut times = Vec::new();
        loop {
            let Some(at) = probe.next_at() else { unreachable!("nothing is in flight") };
            let ms = at.as_millisecond();
            if ms > until_ms {
                return (times, None);
            }
            assert!(probe.take_due(at));
            times.push(ms);
            if probe.result(ms >= healthy_ms, at) == Verdict::Bad {
                return (times, Some(ms));
            }
        }
    }

    #[test]
    fn eager_until_first_success() {
        assert_eq!(run(rule(0, 10, 3), true, 100, 11_000).0, [0, 10, 25, 47, 81, 131, 10_131]);
    }

    #[test]
    fn initial_delay_is_respected() {
        assert_eq!(run(rule(5, 10, 3), true, 0, 14_000).0, [5_000]);
        assert_eq!(run(rule(5, 10, 3), false, 0, 14_000).0, [6_000]);
    }

    #[test]
    fn haste_does_not_fail_sooner() {
        for eager in [true, false] {
            assert_eq!(run(rule(0, 10, 3), eager, i64::MAX, 60_000).1, Some(21_000), "eager {eager}");
            assert_eq!(run(rule(0, 1, 1), eager, i64::MAX, 60_000).1, Some(1_000), "eager {eager}");
        }
    }

    #[test]
    fn liveness_keeps_its_period() {
        assert_eq!(run(rule(0, 10, 3), false, 0, 25_000).0, [1_000, 11_000, 21_000]);
    }
}
