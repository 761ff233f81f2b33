//! The machine: notes facts, then decides the next step from the whole state.

use crate::container::{ContainerLife, Run};
use crate::digest::{ContainerDigest, PodDigest, Role};
use crate::event::{Effect, Event, EventType, Found};
use crate::phase::Terminal;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{PodCondition, PodStatus};

/// Where the sandbox is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Sandbox {
    /// None; make one when `retry_at` has come.
    Absent {
        retry_at: Timestamp,
    },
    /// None, and there will be none.
    Refused,
    Creating,
    Ready,
    /// Lost, with remains that are to be removed.
    Remains,
    /// Being removed; what remains to be removed is the node's business.
    Destroying,
    /// Removed for good.
    Gone,
}

/// Where the volumes are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Volumes {
    Unprepared { retry_at: Timestamp },
    Preparing { again: bool },
    Ready,
}

/// Why the pod comes to its end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cause {
    /// Its containers are through.
    Completed,
    /// The object is being deleted, or is gone.
    Deleted,
    /// Something decided that the pod has failed.
    Failed { reason: String, message: String },
}

/// The pod is coming to its end.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    pub(crate) cause: Cause,
    /// When patience ends.
    pub(crate) deadline: Timestamp,
}

/// The life of one pod.
#[derive(Clone, Debug)]
pub struct PodLife {
    pub(crate) digest: PodDigest,
    pub(crate) host_ips: Vec<String>,
    pub(crate) sandbox: Sandbox,
    pub(crate) sandbox_pause: SignedDuration,
    pub(crate) volumes: Volumes,
    pub(crate) volumes_pause: SignedDuration,
    /// Parallel to `digest.containers`.
    pub(crate) containers: Vec<ContainerLife>,
    /// The init containers have been gone through in this sandbox.
    pub(crate) initialized: bool,
    pub(crate) ending: Option<Ending>,
    pub(crate) removed: bool,
    pub(crate) confirmed: bool,
    pub(crate) start_time: Timestamp,
    pub(crate) pod_ips: Vec<String>,
    pub(crate) terminal: Option<Terminal>,
    /// Our own conditions, as last published.
    pub(crate) conditions: Vec<PodCondition>,
    pub(crate) published: Option<PodStatus>,
    armed: Option<Timestamp>,
}

impl PodLife {
    /// A pod as a node first meets it: `status` is what its object says, `found` what the node found of it. The first
    /// event to apply is [`Event::SpecObserved`].
    pub fn new(
        digest: PodDigest,
        host_ips: Vec<String>,
        status: Option<&PodStatus>,
        found: Found,
        now: Timestamp,
    ) -> Self {
        let containers = digest.containers.iter().map(|_| ContainerLife::new()).collect();
        let mut life = Self {
            digest,
            host_ips,
            sandbox: Sandbox::Absent { retry_at: now },
            sandbox_pause: SignedDuration::ZERO,
            volumes: Volumes::Unprepared { retry_at: now },
            volumes_pause: SignedDuration::ZERO,
            containers,
            initialized: false,
            ending: None,
            removed: false,
            confirmed: false,
            start_time: now,
            pod_ips: Vec::new(),
            terminal: None,
            conditions: Vec::new(),
            published: None,
            armed: None,
        };
        life.seed(status, found, now);
        life
    }

    /// Takes note of an event and answers with what is to be done. Events about instances that are no longer the
    /// newest are ignored.
    pub fn apply(&mut self, event: Event, now: Timestamp) -> Vec<Effect> {
        let mut fx = Vec::new();
        self.note(event, now, &mut fx);
        self.step(now, &mut fx);
        let status = self.status(now);
        if self.published.as_ref() != Some(&status) {
            self.conditions = status.conditions.clone().unwrap_or_default();
            self.published = Some(status.clone());
            fx.push(Effect::PublishStatus(Box::new(status)));
        }
        self.confirm(&mut fx);
        let at = self.next_deadline(now);
        if at != self.armed {
            self.armed = at;
            fx.push(Effect::ArmTimer { at });
        }
        fx
    }

    /// The pod, as last observed.
    pub fn digest(&self) -> &PodDigest {
        &self.digest
    }

    /// The instance of a container that runs now.
    pub fn running_attempt(&self, container: &str) -> Option<u32> {
        let (_, life) = self.find(container)?;
        matches!(life.run, Run::Running(_)).then_some(life.attempt).flatten()
    }

    /// The status as last published.
    pub fn published(&self) -> Option<&PodStatus> {
        self.published.as_ref()
    }

    fn find(&self, container: &str) -> Option<(&ContainerDigest, &ContainerLife)> {
        let at = self.digest.containers.iter().position(|c| c.name == container)?;
        Some((&self.digest.containers[at], &self.containers[at]))
    }

    pub(crate) fn find_mut(&mut self, container: &str) -> Option<(&ContainerDigest, &mut ContainerLife)> {
        let at = self.digest.containers.iter().position(|c| c.name == container)?;
        Some((&self.digest.containers[at], &mut self.containers[at]))
    }

    fn note(&mut self, event: Event, now: Timestamp, fx: &mut Vec<Effect>) {
        match event {
            Event::SpecObserved(digest) => self.on_spec(*digest),
            Event::Removed => self.removed = true,
            Event::VolumesReady | Event::VolumesFailed { .. } => self.on_volumes(event, now, fx),
            Event::ImageResolved { .. } | Event::ImageFailed { .. } => self.on_image(event, now, fx),
            Event::ImagesChanged => self.retry_images(now),
            Event::InputsChanged => self.retry_inputs(now),
            Event::SandboxReady { .. } | Event::SandboxFailed { .. } => self.on_sandbox(event, now, fx),
            Event::SandboxLost { ended } => self.on_sandbox_lost(&ended, now, fx),
            Event::SandboxDestroyed => self.on_sandbox_destroyed(now),
            Event::ContainerStarted { container, attempt, id, at, restored } => {
                self.on_started(&container, (attempt, id, at), restored, fx);
            }
            Event::StartFailed { container, attempt, reason, message } => {
                self.on_start_failed(&container, attempt, (reason, message), now, fx);
            }
            Event::ContainerEnded { container, attempt, ended } => {
                self.on_ended(&container, attempt, ended, fx)
            }
            Event::ProbeResult { container, attempt, probe, outcome } => {
                self.on_probe((&container, attempt), probe, outcome, now, fx);
            }
            Event::HookFinished { container, attempt, hook, failure } => {
                self.on_hook((&container, attempt), hook, failure, now, fx);
            }
            Event::TimerFired => self.armed = None,
        }
    }

    /// The app containers.
    pub(crate) fn apps(&self) -> impl Iterator<Item = (&ContainerDigest, &ContainerLife)> {
        self.digest.containers.iter().zip(&self.containers).filter(|(d, _)| d.role == Role::App)
    }

    /// The earliest moment at which something must happen by itself. Moments that have passed need an event of their
    /// own and are not waited for.
    fn next_deadline(&self, now: Timestamp) -> Option<Timestamp> {
        self.deadlines().filter(|at| *at > now).min()
    }
}

pub(crate) fn normal(container: Option<&str>, reason: &'static str, message: String) -> Effect {
    let container = container.map(str::to_owned);
    Effect::RecordEvent { container, kind: EventType::Normal, reason, message }
}

pub(crate) fn warning(container: Option<&str>, reason: &'static str, message: String) -> Effect {
    let container = container.map(str::to_owned);
    Effect::RecordEvent { container, kind: EventType::Warning, reason, message }
}
