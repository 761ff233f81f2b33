//! The life of a machine, as a function.
//!
//! ```text
//!   Created ──Start──► Booting ──GuestReady──► Running ◄──Stopped/Resumed──► Paused
//!      │                  │                       │                            │
//!      └──────────────────┴───────┬───────────────┴────────────────────────────┘
//!                StopAsked, GuestShutdown │            GuestPanicked, Exited too early, Lost
//!                                 ▼                                  ▼
//!                              Stopping ──Exited──► Gone          Failed(reason)
//! ```
//!
//! No clock, no I/O: [`State::apply`] says what an event means in a state, and refuses what cannot be. `Gone` and
//! `Failed` are final: the process has ended or will be killed by whoever drives this.

use std::fmt;

/// Where a machine is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// QEMU runs and answers, no instruction of the guest has been executed (or, for a clone: executed anew).
    Created,
    /// The guest's kernel starts; nobody in the guest has answered yet.
    Booting,
    /// The guest has answered.
    Running,
    /// The virtual CPUs stand still.
    Paused {
        /// Whether the guest had answered before.
        booted: bool,
    },
    /// The end was asked for, by us or by the guest; QEMU has not ended yet.
    Stopping,
    /// QEMU has ended in order.
    Gone,
    /// QEMU has ended, or must be ended, out of order.
    Failed(Failure),
}

/// Why a machine failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The guest's kernel panicked, or reset the machine without having been asked.
    GuestPanicked,
    /// QEMU ended by itself: its exit code, or the signal that killed it.
    ProcessEnded {
        /// The exit code, when it had one.
        code: Option<i32>,
        /// The signal, when one killed it.
        signal: Option<i32>,
    },
    /// QEMU closed its control connection or spoke nonsense on it.
    ConnectionLost(String),
    /// QEMU stopped the guest because of an error of its own (a full disk, an internal error).
    Internal(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GuestPanicked => f.write_str("the guest's kernel panicked or reset the machine"),
            Self::ProcessEnded { signal: Some(signal), .. } => {
                write!(f, "QEMU was killed by signal {signal}")
            }
            Self::ProcessEnded { code, .. } => write!(f, "QEMU ended with code {}", code.unwrap_or(-1)),
            Self::ConnectionLost(why) => write!(f, "QEMU's control connection broke: {why}"),
            Self::Internal(why) => write!(f, "QEMU stopped the guest: {why}"),
        }
    }
}

/// What happens to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The owner let the CPUs run for the first time.
    Started,
    /// The owner heard from the guest.
    GuestReady,
    /// The CPUs stand still (QEMU's `STOP`).
    Stopped,
    /// The CPUs run again (QEMU's `RESUME`).
    Resumed,
    /// The owner asked for the end.
    StopAsked,
    /// The guest powered itself off (QEMU's `SHUTDOWN`).
    GuestShutdown,
    /// The guest's kernel panicked, or a guest that must not reboot did.
    GuestPanicked,
    /// QEMU stopped the guest on an error of its own.
    InternalError(String),
    /// The control connection broke.
    ConnectionLost(String),
    /// The process ended.
    Exited {
        /// The exit code, when it had one.
        code: Option<i32>,
        /// The signal, when one killed it.
        signal: Option<i32>,
    },
}

/// What an event means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The machine is in this state now.
    Next(State),
    /// Nothing changes: the event repeats what is known or comes too late.
    Ignore,
    /// Whoever caused the event made a mistake.
    Refuse(&'static str),
}

impl State {
    /// The state's name, for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created => "Created",
            Self::Booting => "Booting",
            Self::Running => "Running",
            Self::Paused { .. } => "Paused",
            Self::Stopping => "Stopping",
            Self::Gone => "Gone",
            Self::Failed(_) => "Failed",
        }
    }

    /// True when nothing can happen any more.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Gone | Self::Failed(_))
    }

    /// What the event means in this state.
    #[must_use]
    pub fn apply(&self, event: &Event) -> Verdict {
        use Verdict::{Ignore, Next, Refuse};
        if self.is_final() {
            return match event {
                Event::Started | Event::GuestReady => Refuse("the machine has ended"),
                _ => Ignore,
            };
        }
        match event {
            Event::Started => match self {
                Self::Created => Next(Self::Booting),
                Self::Stopping => Refuse("the machine is stopping"),
                _ => Ignore,
            },
            Event::GuestReady => match self {
                Self::Booting => Next(Self::Running),
                Self::Paused { booted: false } => Next(Self::Paused { booted: true }),
                Self::Created => Refuse("the machine was not started"),
                _ => Ignore,
            },
            Event::Stopped => match self {
                Self::Booting => Next(Self::Paused { booted: false }),
                Self::Running => Next(Self::Paused { booted: true }),
                _ => Ignore,
            },
            Event::Resumed => match self {
                Self::Paused { booted: true } => Next(Self::Running),
                Self::Paused { booted: false } => Next(Self::Booting),
                _ => Ignore,
            },
            Event::StopAsked | Event::GuestShutdown => match self {
                Self::Stopping => Ignore,
                _ => Next(Self::Stopping),
            },
            // A guest that was told to end may end badly: that is its end all the same.
            Event::GuestPanicked => match self {
                Self::Stopping => Ignore,
                _ => Next(Self::Failed(Failure::GuestPanicked)),
            },
            Event::InternalError(why) => Next(Self::Failed(Failure::Internal(why.clone()))),
            // The connection closes a moment before the process is reaped, in every order of ending.
            Event::ConnectionLost(why) => match self {
                Self::Stopping => Ignore,
                _ => Next(Self::Failed(Failure::ConnectionLost(why.clone()))),
            },
            Event::Exited { code, signal } => match self {
                Self::Stopping => Next(Self::Gone),
                _ => Next(Self::Failed(Failure::ProcessEnded { code: *code, signal: *signal })),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exited() -> Event {
        Event::Exited { code: Some(0), signal: None }
    }

    fn failed(f: Failure) -> Verdict {
        Verdict::Next(State::Failed(f))
    }

    #[test]
    fn transitions() {
        use Verdict::{Ignore, Next, Refuse};
        let paused = |booted| State::Paused { booted };
        let table: Vec<(State, Event, Verdict)> = vec![
            (State::Created, Event::Started, Next(State::Booting)),
            (State::Created, Event::GuestReady, Refuse("the machine was not started")),
            (State::Created, Event::Stopped, Ignore),
            (State::Created, Event::StopAsked, Next(State::Stopping)),
            (State::Booting, Event::Started, Ignore),
            (State::Booting, Event::GuestReady, Next(State::Running)),
            (State::Booting, Event::Stopped, Next(paused(false))),
            (State::Booting, Event::GuestShutdown, Next(State::Stopping)),
            (State::Booting, Event::GuestPanicked, failed(Failure::GuestPanicked)),
            (State::Running, Event::Stopped, Next(paused(true))),
            (State::Running, Event::Resumed, Ignore),
            (State::Running, Event::GuestReady, Ignore),
            (State::Running, exited(), failed(Failure::ProcessEnded { code: Some(0), signal: None })),
            (paused(false), Event::GuestReady, Next(paused(true))),
            (paused(false), Event::Resumed, Next(State::Booting)),
            (paused(true), Event::Resumed, Next(State::Running)),
            (paused(true), Event::Stopped, Ignore),
            (paused(true), Event::StopAsked, Next(State::Stopping)),
            (State::Stopping, Event::GuestShutdown, Ignore),
            (State::Stopping, Event::GuestPanicked, Ignore),
            (State::Stopping, Event::ConnectionLost("eof".into()), Ignore),
            (State::Stopping, Event::Started, Refuse("the machine is stopping")),
            (State::Stopping, exited(), Next(State::Gone)),
            (State::Gone, exited(), Ignore),
            (State::Gone, Event::Started, Refuse("the machine has ended")),
            (State::Failed(Failure::GuestPanicked), exited(), Ignore),
        ];
        for (state, event, verdict) in table {
            assert_eq!(state.apply(&event), verdict, "{state:?} + {event:?}");
        }
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Started),
            Just(Event::GuestReady),
            Just(Event::Stopped),
            Just(Event::Resumed),
            Just(Event::StopAsked),
            Just(Event::GuestShutdown),
            Just(Event::GuestPanicked),
            Just(Event::InternalError("io".into())),
            Just(Event::ConnectionLost("eof".into())),
            Just(exited()),
        ]
    }

    proptest! {
        /// Final states are final, an exit always ends, and only an asked or announced end is in order.
        #[test]
        fn histories(events in proptest::collection::vec(event(), 0..20)) {
            let mut state = State::Created;
            let mut end_known = false;
            for event in &events {
                let before = state.clone();
                if let Verdict::Next(next) = state.apply(event) {
                    prop_assert!(!before.is_final());
                    prop_assert_ne!(&next, &before);
                    end_known |= next == State::Stopping;
                    state = next;
                }
                if matches!(event, Event::Exited { .. }) {
                    prop_assert!(state.is_final());
                }
                prop_assert!(state != State::Gone || end_known);
            }
        }
    }
}
