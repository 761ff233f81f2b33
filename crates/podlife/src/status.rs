//! The status of a pod as a function of its state.

use crate::container::{ContainerLife, Ended, Image, Run};
use crate::digest::{ContainerDigest, Role};
use crate::machine::PodLife;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

impl PodLife {
    /// What the object's status should say. `now` only dates conditions that change.
    pub fn status(&self, now: Timestamp) -> PodStatus {
        let phase = self.phase();
        let statuses = |init: bool| -> Option<Vec<ContainerStatus>> {
            let all = self.digest.containers.iter().zip(&self.containers);
            let some: Vec<_> = all
                .filter(|(d, _)| (d.role == Role::App) != init)
                .map(|(d, c)| self.container_status(d, c, now))
                .collect();
            (!some.is_empty()).then_some(some)
        };
        let ips = |ips: &[String]| ips.first().cloned();
        PodStatus {
            phase: Some(phase.to_owned()),
            reason: self.terminal.as_ref().and_then(|t| t.reason.clone()),
            message: self.terminal.as_ref().and_then(|t| t.message.clone()),
            conditions: Some(self.make_conditions(phase, now)),
            container_statuses: statuses(false),
            init_container_statuses: statuses(true),
            host_ip: ips(&self.host_ips),
            host_ips: list(&self.host_ips, |ip| HostIP { ip }),
            pod_ip: ips(&self.pod_ips),
            pod_ips: list(&self.pod_ips, |ip| PodIP { ip }),
            qos_class: Some(self.digest.qos.as_str().to_owned()),
            start_time: Some(time(self.start_time)),
            observed_generation: self.digest.generation,
            ..PodStatus::default()
        }
    }

    fn container_status(
        &self,
        digest: &ContainerDigest,
        life: &ContainerLife,
        now: Timestamp,
    ) -> ContainerStatus {
        let (state, last_state) = self.states(digest, life, now);
        let id = match (&life.run, &state.terminated) {
            (Run::Running(running), _) => running.id.as_str(),
            (Run::Ended(ended) | Run::Starting { before: Some(ended), .. }, _) => ended.id.as_str(),
            _ => "",
        };
        let ready = if digest.role == Role::Init { life.done } else { life.ready };
        ContainerStatus {
            name: digest.name.clone(),
            image: digest.image.clone(),
            image_id: life.image_id.clone(),
            container_id: container_id(id),
            ready,
            started: Some(life.started && matches!(life.run, Run::Running(_))),
            restart_count: i32::try_from(life.attempt.unwrap_or(0)).unwrap_or(i32::MAX),
            state: Some(state),
            last_state: Some(last_state),
            ..ContainerStatus::default()
        }
    }

    /// The current and the last state of a container.
    fn states(
        &self,
        digest: &ContainerDigest,
        life: &ContainerLife,
        now: Timestamp,
    ) -> (ContainerState, ContainerState) {
        let last = life.last.as_ref().map(terminated).unwrap_or_default();
        match &life.run {
            Run::Running(running) => {
                let started_at = Some(time(running.started_at));
                let running = Some(ContainerStateRunning { started_at });
                (ContainerState { running, ..ContainerState::default() }, last)
            }
            Run::Ended(ended) => match self.waits(digest, life, now) {
                Some((reason, message)) => (waiting(&reason, message), terminated(ended)),
                None => (terminated(ended), last),
            },
            Run::Starting { before: Some(ended), .. } => (terminated(ended), last),
            Run::Idle | Run::Starting { before: None, .. } => {
                let turn = self.terminal.is_none() && self.has_turn(digest);
                let problem = if turn { problem(digest, life, now) } else { None };
                let first = if self.digest.has_init() { "PodInitializing" } else { "ContainerCreating" };
                let (reason, message) = problem.unwrap_or_else(|| (first.to_owned(), None));
                (waiting(&reason, message), last)
            }
        }
    }

    /// Why a container that ended is not running again, if it is to.
    fn waits(
        &self,
        digest: &ContainerDigest,
        life: &ContainerLife,
        now: Timestamp,
    ) -> Option<(String, Option<String>)> {
        if self.ending.is_some() || !life.wants_restart(digest) {
            return None;
        }
        if let (Some(pause), true) = (life.crash_loop, life.restart_at.is_some_and(|at| at > now)) {
            let message = format!(
                "back-off {} restarting failed container={} pod={}",
                go_duration(pause),
                digest.name,
                self.digest.full_name()
            );
            return Some(("CrashLoopBackOff".to_owned(), Some(message)));
        }
        problem(digest, life, now)
    }

    /// Problems of a container are shown when its turn has come.
    fn has_turn(&self, digest: &ContainerDigest) -> bool {
        if self.initialized {
            return true;
        }
        for (d, c) in self.digest.containers.iter().zip(&self.containers) {
            if d.name == digest.name {
                return true;
            }
            let open = match d.role {
                Role::Init => !c.done,
                Role::Sidecar => !c.started,
                Role::App => false,
            };
            if open {
                return false;
            }
        }
        true
    }
}

/// What keeps a container from being made.
fn problem(
    digest: &ContainerDigest,
    life: &ContainerLife,
    now: Timestamp,
) -> Option<(String, Option<String>)> {
    match &life.image {
        Image::Failed { reason, message, back_off_at, .. } => {
            if reason == "ErrImagePull" && *back_off_at <= now {
                let message = format!("Back-off pulling image \"{}\": {reason}: {message}", digest.image);
                return Some(("ImagePullBackOff".to_owned(), Some(message)));
            }
            Some((reason.clone(), Some(message.clone())))
        }
        Image::Resolving { last: Some((reason, message)) } => Some((reason.clone(), Some(message.clone()))),
        _ => life.create_failure.as_ref().map(|f| (f.reason.clone(), Some(f.message.clone()))),
    }
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    let waiting = Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message });
    ContainerState { waiting, ..ContainerState::default() }
}

fn terminated(ended: &Ended) -> ContainerState {
    let text = |s: &String| (!s.is_empty()).then(|| s.clone());
    let terminated = ContainerStateTerminated {
        exit_code: ended.exit_code,
        signal: (ended.signal != 0).then_some(ended.signal),
        reason: text(&ended.reason),
        message: text(&ended.message),
        started_at: ended.started_at.map(time),
        finished_at: Some(time(ended.finished_at)),
        container_id: container_id(&ended.id),
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

fn container_id(id: &str) -> Option<String> {
    (!id.is_empty()).then(|| format!("cumulet://{id}"))
}

fn list<T>(ips: &[String], make: impl Fn(String) -> T) -> Option<Vec<T>> {
    (!ips.is_empty()).then(|| ips.iter().cloned().map(make).collect())
}

fn time(at: Timestamp) -> Time {
    Time(whole_second(at))
}

/// Kubernetes' `Time` has whole seconds; anything finer would differ from what is read back.
pub(crate) fn whole_second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// A duration of whole seconds as Go prints it: `10s`, `1m20s`, `5m0s`.
fn go_duration(d: SignedDuration) -> String {
    let seconds = d.as_secs();
    match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s}s"),
        (m, s) => format!("{m}m{s}s"),
    }
}
