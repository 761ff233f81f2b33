//! State of one container of a pod, over all its instances.

use crate::backoff::Backoff;
use crate::digest::{ContainerDigest, ProbeRule, RestartPolicy, Role};
use crate::event::ProbeKind;
use crate::probe::ProbeLife;
use jiff::{SignedDuration, Timestamp};

/// How an instance ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Runtime identifier; empty when none was given.
    pub id: String,
    /// Exit code; 128 + signal for a killed process.
    pub exit_code: i32,
    /// The signal that killed it, or 0.
    pub signal: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`.
    pub reason: String,
    /// Termination message.
    pub message: String,
    /// When it began, if it did.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
}

impl Ended {
    /// For an instance of which nobody knows how it ended.
    pub(crate) fn unknown(id: String, started_at: Option<Timestamp>, now: Timestamp) -> Self {
        Self {
            id,
            exit_code: 137,
            signal: 0,
            reason: "ContainerStatusUnknown".into(),
            message: "The container could not be located when the pod was terminated".into(),
            started_at,
            finished_at: now,
        }
    }
}

/// Where the newest instance is.
#[derive(Clone, Debug)]
pub(crate) enum Run {
    /// There has been none.
    Idle,
    /// Instance `attempt` was ordered; `before` is how the one before ended.
    Starting { attempt: u32, before: Option<Ended> },
    /// It runs.
    Running(Running),
    /// It ended.
    Ended(Ended),
}

/// A running instance.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) id: String,
    pub(crate) started_at: Timestamp,
    /// The `postStart` hook has not finished yet.
    pub(crate) hook_pending: bool,
    /// It is being stopped.
    pub(crate) stop: Option<Stop>,
}

/// A stop in progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    pub(crate) step: StopStep,
    /// When the next step is forced.
    pub(crate) deadline: Timestamp,
}

/// The step that was taken last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopStep {
    PreStop,
    Term,
    Kill,
}

/// Where the image is.
#[derive(Clone, Debug)]
pub(crate) enum Image {
    /// Not asked for, for the next instance.
    Unknown,
    /// Being looked for; `last` is what went wrong before.
    Resolving { last: Option<(String, String)> },
    /// There.
    Ready,
    /// Not there; `told` once an event has said that it is waited for.
    Failed { reason: String, message: String, back_off_at: Timestamp, retry_at: Timestamp, told: bool },
}

/// One container.
#[derive(Clone, Debug)]
pub(crate) struct ContainerLife {
    pub(crate) run: Run,
    /// Newest instance that was really made.
    pub(crate) attempt: Option<u32>,
    /// How the instance before the newest one ended.
    pub(crate) last: Option<Ended>,
    pub(crate) image: Image,
    pub(crate) image_id: String,
    pub(crate) pull: Backoff,
    pub(crate) crash: Backoff,
    /// Not before this moment is it started again; set when an instance ends.
    pub(crate) restart_at: Option<Timestamp>,
    /// It waits longer than a moment for its restart: the pause.
    pub(crate) crash_loop: Option<SignedDuration>,
    /// Why the newest instance could not be made, and when to try again.
    pub(crate) create_failure: Option<CreateFailure>,
    /// An init container that has done its work in this sandbox.
    pub(crate) done: bool,
    pub(crate) started: bool,
    pub(crate) ready: bool,
    pub(crate) startup: Option<ProbeLife>,
    pub(crate) liveness: Option<ProbeLife>,
    pub(crate) readiness: Option<ProbeLife>,
}

/// A container that could not be made.
#[derive(Clone, Debug)]
pub(crate) struct CreateFailure {
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) retry_at: Timestamp,
    pub(crate) pause: SignedDuration,
}

impl ContainerLife {
    pub(crate) fn new() -> Self {
        Self {
            run: Run::Idle,
            attempt: None,
            last: None,
            image: Image::Unknown,
            image_id: String::new(),
            pull: Backoff::default(),
            crash: Backoff::default(),
            restart_at: None,
            crash_loop: None,
            create_failure: None,
            done: false,
            started: false,
            ready: false,
            startup: None,
            liveness: None,
            readiness: None,
        }
    }

    /// An instance runs or has been ordered.
    pub(crate) fn is_active(&self) -> bool {
        matches!(self.run, Run::Starting { .. } | Run::Running(_))
    }

    pub(crate) fn next_attempt(&self) -> u32 {
        self.attempt.map_or(0, |a| a.saturating_add(1))
    }

    /// The instance that events are accepted from.
    pub(crate) fn current_attempt(&self) -> Option<u32> {
        match &self.run {
            Run::Starting { attempt, .. } => Some(*attempt),
            _ => self.attempt,
        }
    }

    pub(crate) fn running_mut(&mut self) -> Option<&mut Running> {
        match &mut self.run {
            Run::Running(running) => Some(running),
            _ => None,
        }
    }

    pub(crate) fn ended(&self) -> Option<&Ended> {
        match &self.run {
            Run::Ended(ended) => Some(ended),
            _ => None,
        }
    }

    /// Whether the policy wants another instance after the newest one ended.
    pub(crate) fn wants_restart(&self, digest: &ContainerDigest) -> bool {
        let Run::Ended(ended) = &self.run else { return false };
        if digest.role == Role::Init && self.done {
            return false;
        }
        match digest.restart {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => ended.exit_code != 0 || digest.role == Role::Init,
            RestartPolicy::Never => false,
        }
    }

    /// Notes that instance `attempt` runs. False when that is no news.
    pub(crate) fn on_started(
        &mut self,
        digest: &ContainerDigest,
        attempt: u32,
        id: String,
        at: Timestamp,
    ) -> bool {
        let Run::Starting { attempt: ordered, before } = &mut self.run else { return false };
        if *ordered != attempt {
            return false;
        }
        self.last = before.take().or(self.last.take());
        self.attempt = Some(attempt);
        self.create_failure = None;
        self.run = Run::Running(Running { id, started_at: at, hook_pending: digest.post_start, stop: None });
        true
    }

    /// Notes that instance `attempt` ended. False when that is no news.
    pub(crate) fn on_ended(&mut self, digest: &ContainerDigest, attempt: u32, mut ended: Ended) -> bool {
        match &mut self.run {
            Run::Starting { attempt: ordered, before } if *ordered == attempt => {
                self.last = before.take().or(self.last.take());
                self.attempt = Some(attempt);
                self.create_failure = None;
            }
            Run::Running(running) if self.attempt == Some(attempt) => {
                ended.started_at = ended.started_at.or(Some(running.started_at));
            }
            _ => return false,
        }
        self.quiesce();
        self.done = digest.role == Role::Init && ended.exit_code == 0;
        self.image = Image::Unknown;
        let ended_at = ended.finished_at;
        self.run = Run::Ended(ended);
        if self.wants_restart(digest) {
            let pause = self.crash.fail(ended_at);
            self.restart_at = Some(after(ended_at, pause));
            self.crash_loop = (pause > SignedDuration::ZERO).then_some(pause);
        }
        true
    }

    /// The program had started before it was saved: it has done what startup probes and initial delays wait for.
    /// Whether it is ready as who it is now is asked at once.
    pub(crate) fn skip_startup(&mut self, digest: &ContainerDigest, at: Timestamp) {
        self.started = true;
        let at_once = |rule| ProbeRule { initial_delay: SignedDuration::ZERO, ..rule };
        self.readiness = digest.readiness.map(|rule| ProbeLife::new(at_once(rule), true, at, at));
    }

    /// Forgets what only holds while an instance runs.
    fn quiesce(&mut self) {
        self.started = false;
        self.ready = false;
        self.startup = None;
        self.liveness = None;
        self.readiness = None;
        self.restart_at = None;
        self.crash_loop = None;
    }

    pub(crate) fn probe_mut(&mut self, kind: ProbeKind) -> Option<&mut ProbeLife> {
        match kind {
            ProbeKind::Startup => self.startup.as_mut(),
            ProbeKind::Liveness => self.liveness.as_mut(),
            ProbeKind::Readiness => self.readiness.as_mut(),
        }
    }

    pub(crate) fn probes(&self) -> impl Iterator<Item = &ProbeLife> {
        [&self.startup, &self.liveness, &self.readiness].into_iter().flatten()
    }
}

/// `at + by`, saturating at the end of time.
pub(crate) fn after(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// Time from `from` to `to`; negative when `to` is earlier.
pub(crate) fn since(from: Timestamp, to: Timestamp) -> SignedDuration {
    to.duration_since(from)
}
