//! Stopping: one container, and the whole pod.
//!
//! ```text
//!   running ─► preStop hook ─► TERM ─► (grace over) KILL ─► ended
//! ```
//!
//! A pod that ends stops its app and init containers together, then its sidecars one by one in reverse order; when
//! the grace period is over, everything that is left at once. What still does not end goes with the sandbox.

use crate::container::{ContainerLife, Run, Stop, StopStep, after};
use crate::digest::{ContainerDigest, Role};
use crate::event::{Effect, Hook};
use crate::machine::{Cause, PodLife, Sandbox, normal};
use jiff::{SignedDuration, Timestamp};

/// Time between TERM and KILL that a `preStop` hook cannot use up.
const LEAST_GRACE: SignedDuration = SignedDuration::from_secs(2);
/// After the grace period, how long the pod waits for its containers before it removes the sandbox under them.
const PATIENCE: SignedDuration = SignedDuration::from_secs(10);

/// Begins to stop a running container. Does nothing when it is being stopped already.
pub(crate) fn begin(
    digest: &ContainerDigest,
    life: &mut ContainerLife,
    grace: SignedDuration,
    now: Timestamp,
    why: String,
    fx: &mut Vec<Effect>,
) {
    let (Some(attempt), Run::Running(running)) = (life.attempt, &mut life.run) else { return };
    if running.stop.is_some() {
        return;
    }
    fx.push(normal(Some(&digest.name), "Killing", why));
    let deadline = after(now, grace);
    let container = digest.name.clone();
    let step = if grace.is_zero() {
        fx.push(Effect::Signal { container, attempt, kill: true });
        StopStep::Kill
    } else if digest.pre_stop {
        fx.push(Effect::RunHook { container, attempt, hook: Hook::PreStop, timeout: Some(grace) });
        StopStep::PreStop
    } else {
        fx.push(Effect::Signal { container, attempt, kill: false });
        StopStep::Term
    };
    running.stop = Some(Stop { step, deadline });
}

/// The hook is through: TERM, with what is left of the grace period.
pub(crate) fn pre_stop_finished(
    container: &str,
    life: &mut ContainerLife,
    now: Timestamp,
    fx: &mut Vec<Effect>,
) {
    let (Some(attempt), Run::Running(running)) = (life.attempt, &mut life.run) else { return };
    if let Some(stop) = &mut running.stop
        && stop.step == StopStep::PreStop
    {
        stop.step = StopStep::Term;
        stop.deadline = stop.deadline.max(after(now, LEAST_GRACE));
        fx.push(Effect::Signal { container: container.to_owned(), attempt, kill: false });
    }
}

/// Takes the steps whose time has come.
fn advance(digest: &ContainerDigest, life: &mut ContainerLife, now: Timestamp, fx: &mut Vec<Effect>) {
    let (Some(attempt), Run::Running(running)) = (life.attempt, &mut life.run) else { return };
    let Some(stop) = &mut running.stop else { return };
    if stop.deadline > now {
        return;
    }
    match stop.step {
        StopStep::PreStop => pre_stop_finished(&digest.name, life, now, fx),
        StopStep::Term => {
            stop.step = StopStep::Kill;
            fx.push(Effect::Signal { container: digest.name.clone(), attempt, kill: true });
        }
        StopStep::Kill => {}
    }
}

impl PodLife {
    /// Takes the due steps of every container that is being stopped.
    pub(crate) fn advance_stops(&mut self, now: Timestamp, fx: &mut Vec<Effect>) {
        for (digest, life) in self.digest.containers.iter().zip(&mut self.containers) {
            advance(digest, life, now, fx);
        }
    }

    /// Goes on with ending the pod.
    pub(crate) fn drive_end(&mut self, now: Timestamp, fx: &mut Vec<Effect>) {
        let Some(deadline) = self.ending.as_ref().map(|e| e.deadline) else { return };
        self.stop_containers(deadline, now, fx);
        self.advance_stops(now, fx);
        let stopped = !self.containers.iter().any(ContainerLife::is_active);
        let patience_over = after(deadline, PATIENCE) <= now;
        match self.sandbox {
            Sandbox::Ready if stopped || patience_over => {
                self.sandbox = Sandbox::Destroying;
                fx.push(Effect::DestroySandbox);
            }
            Sandbox::Absent { .. } | Sandbox::Refused => {
                self.end_all(&[], now);
                self.sandbox = Sandbox::Gone;
            }
            // An answer is owed.
            Sandbox::Creating | Sandbox::Destroying => {}
            Sandbox::Ready | Sandbox::Remains | Sandbox::Gone => {}
        }
    }

    fn stop_containers(&mut self, deadline: Timestamp, now: Timestamp, fx: &mut Vec<Effect>) {
        let late = deadline <= now;
        let grace = deadline.duration_since(now).max(SignedDuration::ZERO);
        let reprieve = if late && !self.no_grace() { LEAST_GRACE } else { grace };
        let mut others_active = false;
        for (digest, life) in self.digest.containers.iter().zip(&mut self.containers) {
            if digest.role != Role::Sidecar {
                begin(digest, life, reprieve, now, format!("Stopping container {}", digest.name), fx);
                others_active |= life.is_active();
            }
        }
        // Sidecars last, the one that started last first.
        for (digest, life) in self.digest.containers.iter().zip(&mut self.containers).rev() {
            if digest.role != Role::Sidecar || (others_active && !late) {
                continue;
            }
            begin(digest, life, reprieve, now, format!("Stopping container {}", digest.name), fx);
            others_active |= life.is_active();
        }
        // A shortened grace period (a second, more urgent delete) also holds for stops that are under way.
        for life in &mut self.containers {
            if let Some(stop) = life.running_mut().and_then(|r| r.stop.as_mut())
                && stop.step != StopStep::Kill
            {
                stop.deadline = stop.deadline.min(after(deadline.max(now), LEAST_GRACE));
            }
        }
    }

    /// The request was to kill without grace.
    fn no_grace(&self) -> bool {
        let ended = self.ending.as_ref().is_some_and(|e| e.cause == Cause::Deleted);
        ended && self.digest.deletion.is_some_and(|d| d.grace.is_zero())
    }

    /// After the last status of a pod that is to go.
    pub(crate) fn confirm(&mut self, fx: &mut Vec<Effect>) {
        let to_go = self.removed || self.digest.deletion.is_some();
        if to_go && self.sandbox == Sandbox::Gone && !self.confirmed {
            self.confirmed = true;
            fx.push(Effect::ConfirmDeleted);
        }
    }

    pub(crate) fn end_deadlines(&self) -> impl Iterator<Item = Timestamp> {
        let stops = self.containers.iter().filter_map(|c| match &c.run {
            Run::Running(running) => running.stop.map(|s| s.deadline),
            _ => None,
        });
        let ending = self.ending.iter().flat_map(|e| [e.deadline, after(e.deadline, PATIENCE)]);
        stops.chain(ending)
    }
}
