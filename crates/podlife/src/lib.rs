//! Pod lifecycle as a pure state machine: state and event to state and effects; no I/O, no clock.
//!
//! ```text
//!             Event, now                         Effects
//!   node ───────────────────► PodLife::apply ───────────────────► node
//!                              1. note the fact that the event tells
//!                              2. step: what must happen next, given everything known?
//!                              3. publish the status if it changed, arm the timer if it moved
//! ```
//!
//! The second step looks only at the state, never at the event, so a lost or doubled event cannot lead it astray: what
//! is under way is part of the state and is asked for once. Time enters with the events; a deadline is a field of the
//! state, and [`Effect::ArmTimer`] always names the earliest one.
//!
//! Invariants (held by the property tests):
//! - at most one instance of a container is starting or running;
//! - nothing is started again against its restart policy, and nothing at all once the pod is ending;
//! - an ending pod comes to its end in bounded time, whatever the processes do;
//! - a terminal phase is final, and `Ready` is never true without every container being ready.
//!
//! Absent on purpose: processes, sockets, files, the API. The node executes effects and reports what came of them.

mod backoff;
mod conditions;
mod container;
mod digest;
mod event;
mod facts;
mod machine;
mod phase;
mod probe;
mod qos;
mod seed;
mod start;
mod status;
mod stop;

pub use container::Ended;
pub use digest::{ContainerDigest, Deletion, PodDigest, ProbeRule, RestartPolicy, Role};
pub use event::{Effect, Event, EventType, Found, FoundContainer, Hook, ProbeKind, ProbeOutcome};
pub use machine::PodLife;
pub use qos::{QosClass, qos_class};

#[cfg(test)]
mod tests;
