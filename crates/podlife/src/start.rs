//! The step that follows every event: what must happen next, given the whole state.

use crate::container::{ContainerLife, Image, Run, after};
use crate::digest::{ContainerDigest, Deletion, RestartPolicy, Role};
use crate::event::{Effect, ProbeKind};
use crate::machine::{Cause, Ending, PodLife, Sandbox, Volumes, normal, warning};
use crate::probe::ProbeLife;
use jiff::{SignedDuration, Timestamp};

impl PodLife {
    /// Decides and orders the next step.
    pub(crate) fn step(&mut self, now: Timestamp, fx: &mut Vec<Effect>) {
        if self.sandbox == Sandbox::Remains {
            self.sandbox = Sandbox::Destroying;
            fx.push(Effect::DestroySandbox);
        }
        self.note_deletion(now);
        self.note_deadline(now, fx);
        if self.ending.is_none() && self.through() {
            self.ending = Some(Ending { cause: Cause::Completed, deadline: after(now, self.digest.grace) });
        }
        if self.ending.is_some() {
            self.drive_end(now, fx);
            self.note_terminal();
        } else {
            self.drive_start(now, fx);
        }
    }

    fn note_deletion(&mut self, now: Timestamp) {
        let grace = match self.digest.deletion {
            Some(Deletion { grace }) => grace,
            // The object is gone without a word: the processes still deserve their time.
            None if self.removed => self.digest.grace.max(SignedDuration::from_secs(1)),
            None => return,
        };
        let deadline = after(now, grace);
        match &mut self.ending {
            None => self.ending = Some(Ending { cause: Cause::Deleted, deadline }),
            Some(ending) => ending.deadline = ending.deadline.min(deadline),
        }
    }

    fn note_deadline(&mut self, now: Timestamp, fx: &mut Vec<Effect>) {
        if self.ending.is_some() || self.active_deadline().is_none_or(|at| at > now) {
            return;
        }
        let message = "Pod was active on the node longer than the specified deadline".to_owned();
        fx.push(normal(None, "DeadlineExceeded", message.clone()));
        let cause = Cause::Failed { reason: "DeadlineExceeded".into(), message };
        self.ending = Some(Ending { cause, deadline: after(now, self.digest.grace) });
    }

    fn active_deadline(&self) -> Option<Timestamp> {
        self.digest.active_deadline.map(|d| after(self.start_time, d))
    }

    /// No container will ever be started again: all apps are through, or an init container failed for good.
    fn through(&self) -> bool {
        let given_up = |d: &ContainerDigest, c: &ContainerLife| c.ended().is_some() && !c.wants_restart(d);
        let init_failed = self.digest.containers.iter().zip(&self.containers).any(|(d, c)| {
            d.role == Role::Init && !c.done && d.restart == RestartPolicy::Never && given_up(d, c)
        });
        init_failed || self.apps().all(|(d, c)| given_up(d, c))
    }

    fn drive_start(&mut self, now: Timestamp, fx: &mut Vec<Effect>) {
        if matches!(self.sandbox, Sandbox::Absent { retry_at } if retry_at <= now) {
            self.sandbox = Sandbox::Creating;
            fx.push(Effect::CreateSandbox);
        }
        if matches!(self.volumes, Volumes::Unprepared { retry_at } if retry_at <= now)
            && matches!(self.sandbox, Sandbox::Creating | Sandbox::Ready)
        {
            self.volumes = Volumes::Preparing { again: false };
            fx.push(Effect::PrepareVolumes);
        }
        if self.sandbox == Sandbox::Refused {
            return;
        }
        // All images are looked for at once: the check overlaps with the making of the sandbox.
        for (digest, life) in self.digest.containers.iter().zip(&mut self.containers) {
            if matches!(life.run, Run::Idle) {
                ensure_image(digest, life, now, fx);
            }
        }
        if self.sandbox == Sandbox::Ready {
            self.drive_containers(now, fx);
            self.advance_stops(now, fx);
        }
    }

    fn drive_containers(&mut self, now: Timestamp, fx: &mut Vec<Effect>) {
        let may_start = self.volumes == Volumes::Ready;
        let mut init_open = false;
        for (digest, life) in self.digest.containers.iter().zip(&mut self.containers) {
            let turn = match digest.role {
                Role::App => !init_open,
                Role::Init => !init_open && !self.initialized && !life.done,
                Role::Sidecar => !init_open || self.initialized,
            };
            if !turn {
                continue;
            }
            drive_container(digest, life, may_start, now, fx);
            init_open |= match digest.role {
                Role::Init => !life.done,
                Role::Sidecar => !self.initialized && !life.started,
                Role::App => false,
            };
        }
        self.initialized |= !init_open;
    }

    /// All moments at which something happens by itself.
    pub(crate) fn deadlines(&self) -> impl Iterator<Item = Timestamp> {
        let starting = self.ending.is_none();
        let sandbox = match self.sandbox {
            Sandbox::Absent { retry_at } if starting => Some(retry_at),
            _ => None,
        };
        let volumes = match self.volumes {
            Volumes::Unprepared { retry_at } if starting => Some(retry_at),
            _ => None,
        };
        let active = if starting { self.active_deadline() } else { None };
        let containers = self.containers.iter().filter(move |_| starting).flat_map(container_deadlines);
        let ends = self.end_deadlines().filter(|_| self.sandbox != Sandbox::Gone);
        [sandbox, volumes, active].into_iter().flatten().chain(containers).chain(ends)
    }
}

fn container_deadlines(life: &ContainerLife) -> impl Iterator<Item = Timestamp> {
    let waiting = !life.is_active();
    let pull = match &life.image {
        Image::Failed { back_off_at, retry_at, .. } => [Some(*back_off_at), Some(*retry_at)],
        _ => [None, None],
    };
    let create = life.create_failure.as_ref().map(|f| f.retry_at);
    let restart = life.restart_at;
    let waits = pull.into_iter().chain([create, restart]).flatten().filter(move |_| waiting);
    waits.chain(life.probes().filter_map(ProbeLife::next_at))
}

fn drive_container(
    digest: &ContainerDigest,
    life: &mut ContainerLife,
    may_start: bool,
    now: Timestamp,
    fx: &mut Vec<Effect>,
) {
    match &life.run {
        Run::Idle => start(digest, life, may_start, now, fx),
        Run::Ended(_) if life.wants_restart(digest) => {
            if life.restart_at.is_none_or(|at| at <= now) {
                start(digest, life, may_start, now, fx);
            }
        }
        Run::Running(running) if running.stop.is_none() && !running.hook_pending => {
            let started_at = running.started_at;
            watch(digest, life, started_at, now, fx);
        }
        Run::Starting { .. } | Run::Running(_) | Run::Ended(_) => {}
    }
}

/// Starts the next instance if everything it needs is there.
fn start(
    digest: &ContainerDigest,
    life: &mut ContainerLife,
    may: bool,
    now: Timestamp,
    fx: &mut Vec<Effect>,
) {
    ensure_image(digest, life, now, fx);
    let create_waits = life.create_failure.as_ref().is_some_and(|f| f.retry_at > now);
    if !may || !matches!(life.image, Image::Ready) || create_waits {
        return;
    }
    let attempt = life.next_attempt();
    let before = life.ended().cloned();
    life.run = Run::Starting { attempt, before };
    fx.push(Effect::StartContainer { container: digest.name.clone(), attempt });
}

fn ensure_image(digest: &ContainerDigest, life: &mut ContainerLife, now: Timestamp, fx: &mut Vec<Effect>) {
    let last = match &mut life.image {
        Image::Unknown => None,
        Image::Failed { reason, message, retry_at, .. } if *retry_at <= now => {
            Some((reason.clone(), message.clone()))
        }
        Image::Failed { reason, back_off_at, told, .. } if *back_off_at <= now && !*told => {
            *told = true;
            if reason == "ErrImagePull" {
                let message = format!("Back-off pulling image \"{}\"", digest.image);
                fx.push(normal(Some(&digest.name), "BackOff", message));
                let message = "Error: ImagePullBackOff".to_owned();
                fx.push(warning(Some(&digest.name), "Failed", message));
            }
            return;
        }
        Image::Failed { .. } | Image::Resolving { .. } | Image::Ready => return,
    };
    life.image = Image::Resolving { last };
    fx.push(Effect::EnsureImage { container: digest.name.clone() });
}

/// Looks after a running container: its probes, and what they say of it.
fn watch(
    digest: &ContainerDigest,
    life: &mut ContainerLife,
    started_at: Timestamp,
    now: Timestamp,
    fx: &mut Vec<Effect>,
) {
    if !life.started {
        match (digest.startup, &life.startup) {
            (None, _) => life.started = true,
            (Some(rule), None) => life.startup = Some(ProbeLife::new(rule, true, started_at, now)),
            (Some(_), Some(_)) => {}
        }
    }
    if life.started {
        match (digest.readiness, &life.readiness) {
            (None, _) => life.ready = true,
            (Some(rule), None) => life.readiness = Some(ProbeLife::new(rule, true, started_at, now)),
            (Some(_), Some(_)) => {}
        }
        if let (Some(rule), None) = (digest.liveness, &life.liveness) {
            life.liveness = Some(ProbeLife::new(rule, false, started_at, now));
        }
    }
    let Some(attempt) = life.attempt else { return };
    for probe in [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness] {
        if life.probe_mut(probe).is_some_and(|p| p.take_due(now)) {
            fx.push(Effect::RunProbe { container: digest.name.clone(), attempt, probe });
        }
    }
}
