//! The life of a template, as a state machine: who may build it, who waits, who starts from it, who boots instead.
//!
//! ```text
//!            ask: build            built
//!   Absent ─────────────► Building ───────► Ready ──(removed, evicted)──► Absent
//!     ▲  ▲                   │ failed         │ does not restore
//!     │  └── time is up ── Broken ◄───────────┘
//!     └── the builder's pod is gone ── Building
//! ```
//!
//! Pure: what time it is comes with the question.

use std::time::{Duration, Instant};

/// First pause after a failure before a template is built again; it doubles.
const RETRY_FIRST: Duration = Duration::from_secs(30);
/// Longest such pause.
const RETRY_LONGEST: Duration = Duration::from_secs(3600);

/// Where a template is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// Nobody has built it.
    Absent {
        /// Failures in a row.
        failures: u32,
    },
    /// A pod boots and is going to be it.
    Building {
        /// Uid of the pod.
        builder: String,
        failures: u32,
    },
    /// Pods start from it.
    Ready,
    /// It could not be built, or does not restore.
    Broken { reason: String, until: Instant, failures: u32 },
}

/// What a pod that wants to start from the template does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Boot, and become the template.
    Build,
    /// Wait for the pod with this uid, which is building it.
    Wait(String),
    /// Start from it.
    Use,
    /// Boot, for this reason.
    Boot(String),
}

impl Life {
    pub(super) fn new() -> Self {
        Self::Absent { failures: 0 }
    }

    /// A pod asks how to start.
    pub(super) fn ask(&mut self, uid: &str, now: Instant) -> Answer {
        match self {
            Self::Ready => Answer::Use,
            Self::Building { builder, .. } if builder != uid => Answer::Wait(builder.clone()),
            Self::Broken { reason, until, .. } if now < *until => Answer::Boot(reason.clone()),
            Self::Absent { failures } | Self::Building { failures, .. } | Self::Broken { failures, .. } => {
                *self = Self::Building { builder: uid.to_owned(), failures: *failures };
                Answer::Build
            }
        }
    }

    /// The builder has built it. False when somebody else is building by now.
    pub(super) fn built(&mut self, uid: &str) -> bool {
        let ours = matches!(self, Self::Building { builder, .. } if builder == uid);
        if ours {
            *self = Self::Ready;
        }
        ours
    }

    /// The builder's pod has gone without a result, which is nobody's failure.
    pub(super) fn abandoned(&mut self, uid: &str) {
        if let Self::Building { builder, failures } = self
            && builder == uid
        {
            *self = Self::Absent { failures: *failures };
        }
    }

    /// It could not be built, or cannot be started from.
    pub(super) fn failed(&mut self, reason: String, now: Instant) {
        let before = match self {
            Self::Absent { failures } | Self::Building { failures, .. } | Self::Broken { failures, .. } => {
                *failures
            }
            Self::Ready => 0,
        };
        let pause = RETRY_FIRST.saturating_mul(1 << before.min(16)).min(RETRY_LONGEST);
        *self = Self::Broken { reason, until: now + pause, failures: before + 1 };
    }

    /// It lies on the disk. Whoever is building it goes on; what he makes is the same. What did not restore is not tried
    /// again because it is there.
    pub(super) fn found(&mut self) {
        if matches!(self, Self::Absent { .. }) {
            *self = Self::Ready;
        }
    }

    /// It is not there any more.
    pub(super) fn removed(&mut self) {
        if *self == Self::Ready {
            *self = Self::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_builds_and_the_others_wait() {
        let now = Instant::now();
        let mut life = Life::new();
        assert_eq!(life.ask("a", now), Answer::Build);
        assert_eq!(life.ask("b", now), Answer::Wait("a".into()));
        // Its sandbox was lost and is made again.
        assert_eq!(life.ask("a", now), Answer::Build);
        life.abandoned("b");
        assert_eq!(life.ask("c", now), Answer::Wait("a".into()));
        life.abandoned("a");
        assert_eq!(life.ask("b", now), Answer::Build);
        assert!(!life.built("a") && life.built("b"));
        assert_eq!(life.ask("a", now), Answer::Use);
        life.removed();
        assert_eq!(life.ask("a", now), Answer::Build);
        life.found();
        assert_eq!(life.ask("b", now), Answer::Wait("a".into()));
        life.abandoned("a");
        life.found();
        assert_eq!(life.ask("b", now), Answer::Use);
    }

    #[test]
    fn failures_mean_booting_for_longer_and_longer() {
        let mut now = Instant::now();
        let mut life = Life::new();
        for (failures, pause) in [(1, 30), (2, 60), (3, 120)] {
            assert_eq!(life.ask("a", now), Answer::Build);
            life.failed("why".into(), now);
            assert!(matches!(&life, Life::Broken { failures: n, .. } if *n == failures));
            now += Duration::from_secs(pause - 1);
            assert_eq!(life.ask("b", now), Answer::Boot("why".into()));
            now += Duration::from_secs(1);
        }
        for _ in 0..40 {
            life.failed("why".into(), now);
        }
        assert_eq!(life.ask("b", now + RETRY_LONGEST), Answer::Build);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask(u8),
        Built(u8),
        Abandoned(u8),
        Failed(u8),
        Found,
        Removed,
        Later(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..4_u8).prop_map(Step::Ask),
            (0..4_u8).prop_map(Step::Built),
            (0..4_u8).prop_map(Step::Abandoned),
            (0..4_u8).prop_map(Step::Failed),
            Just(Step::Found),
            Just(Step::Removed),
            (0..4000_u64).prop_map(Step::Later),
        ];
        proptest::collection::vec(step, 0..60)
    }

    proptest! {
        /// Whatever happens: never two builders, nobody uses what is not there, nobody waits for one who does not
        /// build, and after the longest pause somebody may build again.
        #[test]
        fn one_builder_and_no_endless_wait(steps in steps()) {
            let mut now = Instant::now();
            let mut life = Life::new();
            // What is true in the world: who builds, and whether there is something to start from.
            let (mut builder, mut there): (Option<u8>, bool) = (None, false);
            for step in steps {
                match step {
                    Step::Ask(pod) => match life.ask(&pod.to_string(), now) {
                        Answer::Build => {
                            prop_assert!(builder.is_none_or(|other| other == pod), "two builders");
                            prop_assert!(!there, "built although it is there");
                            builder = Some(pod);
                        }
                        Answer::Wait(other) => prop_assert_eq!(Some(other), builder.map(|b| b.to_string())),
                        Answer::Use => prop_assert!(there, "used although it is not there"),
                        Answer::Boot(_) => prop_assert!(builder.is_none() && !there),
                    },
                    Step::Built(pod) => {
                        let built = life.built(&pod.to_string());
                        prop_assert_eq!(built, builder == Some(pod));
                        if built {
                            (builder, there) = (None, true);
                        }
                    }
                    Step::Abandoned(pod) => {
                        life.abandoned(&pod.to_string());
                        builder = builder.filter(|b| *b != pod);
                    }
                    // The builder fails, or without one, a clone does.
                    Step::Failed(pod) if builder.is_none_or(|b| b == pod) => {
                        life.failed("why".to_owned(), now);
                        (builder, there) = (None, false);
                    }
                    Step::Failed(_) => {}
                    Step::Found => {
                        // What did not restore is not tried again because it is there.
                        there |= matches!(life, Life::Absent { .. });
                        life.found();
                    }
                    Step::Removed => {
                        life.removed();
                        there = false;
                    }
                    Step::Later(seconds) => now += Duration::from_secs(seconds),
                }
            }
            if let Some(builder) = builder {
                life.abandoned(&builder.to_string());
            }
            let answer = life.ask("last", now + RETRY_LONGEST);
            prop_assert!(matches!(answer, Answer::Build | Answer::Use), "{answer:?}");
        }
    }
}
