//! What each event changes in the state: facts only, nothing is decided here.

use crate::container::{CreateFailure, Ended, Image, Run, after};
use crate::digest::{PodDigest, RestartPolicy, Role};
use crate::event::{Effect, Event, Hook, ProbeKind, ProbeOutcome};
use crate::machine::{Cause, Ending, PodLife, Sandbox, Volumes, normal, warning};
use crate::probe::Verdict;
use jiff::{SignedDuration, Timestamp};

/// First pause after a failed sandbox, volume or container creation.
const RETRY_FIRST: SignedDuration = SignedDuration::from_secs(2);
/// Longest such pause.
const RETRY_LONGEST: SignedDuration = SignedDuration::from_secs(60);
/// How long `ErrImagePull` is shown before it becomes `ImagePullBackOff`.
const SHOW_PULL_ERROR: SignedDuration = SignedDuration::from_secs(2);

impl PodLife {
    /// Containers cannot be added to or taken from a pod, so the old and the new list are parallel.
    pub(crate) fn on_spec(&mut self, digest: PodDigest) {
        if digest.containers.len() != self.containers.len() {
            return;
        }
        for (life, (old, new)) in
            self.containers.iter_mut().zip(self.digest.containers.iter().zip(&digest.containers))
        {
            if old.image != new.image && !life.is_active() {
                life.image = Image::Unknown;
            }
        }
        self.digest = digest;
    }

    pub(crate) fn on_volumes(&mut self, event: Event, now: Timestamp, fx: &mut Vec<Effect>) {
        let Volumes::Preparing { again } = self.volumes else { return };
        match event {
            Event::VolumesFailed { message } => {
                self.volumes_pause = next_pause(self.volumes_pause);
                let retry_at = if again { now } else { after(now, self.volumes_pause) };
                self.volumes = Volumes::Unprepared { retry_at };
                fx.push(warning(None, "FailedMount", message));
            }
            _ => self.volumes = Volumes::Ready,
        }
    }

    pub(crate) fn on_image(&mut self, event: Event, now: Timestamp, fx: &mut Vec<Effect>) {
        match event {
            Event::ImageResolved { container, image_id, pulled } => {
                let Some((digest, life)) = self.find_mut(&container) else { return };
                if !matches!(life.image, Image::Resolving { .. }) {
                    return;
                }
                life.image = Image::Ready;
                life.image_id = image_id;
                life.pull = Default::default();
                let present = || format!("Container image \"{}\" already present on machine", digest.image);
                fx.push(normal(Some(&container), "Pulled", pulled.unwrap_or_else(present)));
            }
            Event::ImageFailed { container, reason, message } => {
                let Some((digest, life)) = self.find_mut(&container) else { return };
                if !matches!(life.image, Image::Resolving { .. }) {
                    return;
                }
                let pause = life.pull.fail_at_once(now);
                let what = if reason == "ErrImagePull" {
                    format!("Failed to pull image \"{}\": {message}", digest.image)
                } else {
                    message.clone()
                };
                let event_reason = if reason == "ErrImageNeverPull" { "ErrImageNeverPull" } else { "Failed" };
                fx.push(warning(Some(&container), event_reason, what));
                fx.push(warning(Some(&container), "Failed", format!("Error: {reason}")));
                let back_off_at = after(now, SHOW_PULL_ERROR);
                let retry_at = after(now, pause);
                life.image = Image::Failed { reason, message, back_off_at, retry_at, told: false };
            }
            _ => {}
        }
    }

    pub(crate) fn retry_images(&mut self, now: Timestamp) {
        for life in &mut self.containers {
            if let Image::Failed { retry_at, .. } = &mut life.image {
                *retry_at = now;
            }
        }
    }

    pub(crate) fn retry_inputs(&mut self, now: Timestamp) {
        match &mut self.volumes {
            Volumes::Unprepared { retry_at } => *retry_at = now.min(*retry_at),
            Volumes::Preparing { again } => *again = true,
            Volumes::Ready => {}
        }
        for life in &mut self.containers {
            if let Some(failure) = &mut life.create_failure {
                failure.retry_at = now.min(failure.retry_at);
            }
        }
    }

    pub(crate) fn on_sandbox(&mut self, event: Event, now: Timestamp, fx: &mut Vec<Effect>) {
        if self.sandbox != Sandbox::Creating {
            return;
        }
        match event {
            Event::SandboxReady { ips } => {
                self.sandbox = Sandbox::Ready;
                self.sandbox_pause = SignedDuration::ZERO;
                self.pod_ips = ips;
            }
            Event::SandboxFailed { message, permanent } => {
                self.sandbox_pause = next_pause(self.sandbox_pause);
                self.sandbox = if permanent {
                    Sandbox::Refused
                } else {
                    Sandbox::Absent { retry_at: after(now, self.sandbox_pause) }
                };
                fx.push(warning(None, "FailedCreatePodSandBox", message));
            }
            _ => {}
        }
    }

    pub(crate) fn on_sandbox_lost(
        &mut self,
        known: &[(String, u32, Ended)],
        now: Timestamp,
        fx: &mut Vec<Effect>,
    ) {
        if self.sandbox != Sandbox::Ready {
            return;
        }
        self.end_all(known, now);
        self.sandbox = Sandbox::Remains;
        if self.ending.is_none() {
            let message = "Pod sandbox changed, it will be killed and re-created.".to_owned();
            fx.push(normal(None, "SandboxChanged", message));
            self.after_loss(now);
        }
    }

    /// Ends every instance that was active in a sandbox that is no more.
    pub(crate) fn end_all(&mut self, known: &[(String, u32, Ended)], now: Timestamp) {
        for (digest, life) in self.digest.containers.iter().zip(&mut self.containers) {
            let (Some(attempt), true) = (life.current_attempt(), life.is_active()) else { continue };
            let told = known.iter().find(|(name, n, _)| *name == digest.name && *n == attempt);
            let ended = match (told, &life.run) {
                (Some((_, _, ended)), _) => ended.clone(),
                (None, Run::Running(r)) => Ended::unknown(r.id.clone(), Some(r.started_at), now),
                (None, _) => Ended::unknown(String::new(), None, now),
            };
            life.on_ended(digest, attempt, ended);
        }
    }

    /// A lost sandbox starts the pod anew, init containers included, unless its policy is to run once.
    pub(crate) fn after_loss(&mut self, now: Timestamp) {
        let begun = self.containers.iter().any(|c| c.attempt.is_some());
        let through = self.apps().all(|(_, life)| life.ended().is_some());
        if self.digest.restart == RestartPolicy::Never && begun && !through {
            let message = "The pod's sandbox was lost and its restart policy is Never".to_owned();
            let cause = Cause::Failed { reason: "SandboxLost".into(), message };
            self.ending = Some(Ending { cause, deadline: now });
            return;
        }
        self.initialized = false;
        for (digest, life) in self.digest.containers.iter().zip(&mut self.containers) {
            if digest.role == Role::Init && life.done {
                life.done = false;
                life.restart_at = Some(now);
                life.crash_loop = None;
            }
        }
    }

    pub(crate) fn on_sandbox_destroyed(&mut self, now: Timestamp) {
        if self.sandbox != Sandbox::Destroying {
            return;
        }
        if self.ending.is_some() {
            self.end_all(&[], now);
            self.sandbox = Sandbox::Gone;
        } else {
            self.sandbox = Sandbox::Absent { retry_at: now };
            // What was mounted is unmounted with the sandbox.
            self.volumes = Volumes::Unprepared { retry_at: now };
            self.pod_ips.clear();
        }
    }

    pub(crate) fn on_started(
        &mut self,
        container: &str,
        (attempt, id, at): (u32, String, Timestamp),
        restored: bool,
        fx: &mut Vec<Effect>,
    ) {
        let Some((digest, life)) = self.find_mut(container) else { return };
        if !life.on_started(digest, attempt, id, at) {
            return;
        }
        if restored {
            life.skip_startup(digest, at);
        }
        fx.push(normal(Some(container), "Created", format!("Created container: {container}")));
        fx.push(normal(Some(container), "Started", format!("Started container {container}")));
        if digest.post_start {
            let container = container.to_owned();
            fx.push(Effect::RunHook { container, attempt, hook: Hook::PostStart, timeout: None });
        }
    }

    pub(crate) fn on_start_failed(
        &mut self,
        container: &str,
        attempt: u32,
        (reason, message): (String, String),
        now: Timestamp,
        fx: &mut Vec<Effect>,
    ) {
        let Some((_, life)) = self.find_mut(container) else { return };
        let Run::Starting { attempt: ordered, before } = &mut life.run else { return };
        if *ordered != attempt {
            return;
        }
        life.run = before.take().map_or(Run::Idle, Run::Ended);
        let pause = next_pause(life.create_failure.as_ref().map_or(SignedDuration::ZERO, |f| f.pause));
        fx.push(warning(Some(container), "Failed", format!("Error: {message}")));
        life.create_failure = Some(CreateFailure { reason, message, retry_at: after(now, pause), pause });
    }

    pub(crate) fn on_ended(&mut self, container: &str, attempt: u32, ended: Ended, fx: &mut Vec<Effect>) {
        let full_name = self.digest.full_name();
        let stopping = self.ending.is_some();
        let Some((digest, life)) = self.find_mut(container) else { return };
        let failure = (ended.reason == "StartError").then(|| ended.message.clone());
        if !life.on_ended(digest, attempt, ended) {
            return;
        }
        if let Some(message) = failure {
            fx.push(warning(Some(container), "Failed", format!("Error: {message}")));
        }
        if life.crash_loop.is_some() && !stopping {
            let message = format!("Back-off restarting failed container {container} in pod {full_name}");
            fx.push(warning(Some(container), "BackOff", message));
        }
    }

    pub(crate) fn on_probe(
        &mut self,
        (container, attempt): (&str, u32),
        kind: ProbeKind,
        outcome: ProbeOutcome,
        now: Timestamp,
        fx: &mut Vec<Effect>,
    ) {
        let pod_grace = self.digest.grace;
        let ending = self.ending.is_some();
        let Some((digest, life)) = self.find_mut(container) else { return };
        let stopping = !matches!(&life.run, Run::Running(r) if r.stop.is_none());
        if life.attempt != Some(attempt) || stopping || ending {
            return;
        }
        let Some(probe) = life.probe_mut(kind) else { return };
        let (verdict, text) = match outcome {
            ProbeOutcome::Success => (probe.result(true, now), String::new()),
            ProbeOutcome::Failure(text) => (probe.result(false, now), text),
            ProbeOutcome::Unknown(_) => return probe.unknown(now),
        };
        let grace = probe.grace().unwrap_or(pod_grace);
        if matches!(verdict, Verdict::Bad | Verdict::Failing) {
            let message = format!("{} probe failed: {text}", kind.title());
            fx.push(warning(Some(container), "Unhealthy", message));
        }
        match (kind, verdict) {
            (ProbeKind::Readiness, Verdict::Good) => life.ready = true,
            (ProbeKind::Readiness, Verdict::Bad) => life.ready = false,
            (ProbeKind::Startup, Verdict::Good) => {
                life.started = true;
                life.startup = None;
            }
            (ProbeKind::Startup | ProbeKind::Liveness, Verdict::Bad) => {
                let fate = if digest.restart == RestartPolicy::Never { "killed" } else { "restarted" };
                let what = kind.title().to_lowercase();
                let why = format!("Container {container} failed {what} probe, will be {fate}");
                let digest = digest.clone();
                crate::stop::begin(&digest, life, grace, now, why, fx);
            }
            _ => {}
        }
    }

    pub(crate) fn on_hook(
        &mut self,
        (container, attempt): (&str, u32),
        hook: Hook,
        failure: Option<String>,
        now: Timestamp,
        fx: &mut Vec<Effect>,
    ) {
        let grace = self.digest.grace;
        let Some((digest, life)) = self.find_mut(container) else { return };
        if life.attempt != Some(attempt) {
            return;
        }
        let digest = digest.clone();
        let Some(running) = life.running_mut() else { return };
        match (hook, failure) {
            (Hook::PostStart, None) => running.hook_pending = false,
            (Hook::PostStart, Some(why)) => {
                fx.push(warning(
                    Some(container),
                    "FailedPostStartHook",
                    format!("PostStartHook failed: {why}"),
                ));
                if running.stop.is_none() {
                    let why = format!("Container {container} failed its postStart hook");
                    crate::stop::begin(&digest, life, grace, now, why, fx);
                }
            }
            (Hook::PreStop, failure) => {
                if let Some(why) = failure {
                    fx.push(warning(
                        Some(container),
                        "FailedPreStopHook",
                        format!("PreStopHook failed: {why}"),
                    ));
                }
                crate::stop::pre_stop_finished(container, life, now, fx);
            }
        }
    }
}

/// The pause after the one before.
fn next_pause(before: SignedDuration) -> SignedDuration {
    if before.is_zero() { RETRY_FIRST } else { (before + before).min(RETRY_LONGEST) }
}
