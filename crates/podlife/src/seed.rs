//! What a machine knows from before its own time: the object's status, and what the node found of the pod.

use crate::container::{ContainerLife, Ended, Run, Running};
use crate::digest::{ContainerDigest, Role, timestamp};
use crate::event::{Found, FoundContainer};
use crate::machine::{Cause, Ending, PodLife, Sandbox, Volumes};
use crate::phase::Terminal;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, PodStatus};

/// Conditions that belong to the node.
pub(crate) const OWN_CONDITIONS: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

impl PodLife {
    pub(crate) fn seed(&mut self, status: Option<&PodStatus>, found: Found, now: Timestamp) {
        if let Some(status) = status {
            self.seed_pod(status, now);
        }
        let (containers, alive) = match found {
            Found::Nothing => (Vec::new(), false),
            Found::Running { ips, containers } => {
                self.pod_ips = ips;
                self.sandbox = Sandbox::Ready;
                // They are mounted in the containers that run; those that are to be started need them checked.
                self.volumes = Volumes::Unprepared { retry_at: now };
                (containers, true)
            }
            Found::Dead { containers } => {
                self.sandbox = Sandbox::Remains;
                (containers, false)
            }
        };
        let statuses: Vec<ContainerStatus> = status
            .map(|s| {
                s.init_container_statuses.iter().chain(&s.container_statuses).flatten().cloned().collect()
            })
            .unwrap_or_default();
        for (digest, life) in self.digest.containers.iter().zip(&mut self.containers) {
            if let Some(status) = statuses.iter().find(|s| s.name == digest.name) {
                seed_status(digest, life, status, now);
            }
            if let Some(one) = containers.iter().find(|c| c.name == digest.name) {
                seed_found(digest, life, one);
            } else if alive && matches!(life.run, Run::Running(_)) {
                end_unknown(life, now);
            }
            if !alive && life.is_active() {
                end_unknown(life, now);
            }
        }
        // Apps only ever start after the init containers are through.
        self.initialized = alive && self.apps().any(|(_, c)| c.attempt.is_some());
        if self.initialized {
            for (digest, life) in self.digest.containers.iter().zip(&mut self.containers) {
                life.done |= digest.role == Role::Init;
            }
        }
        if !alive && self.terminal.is_none() {
            self.after_loss(now);
        }
    }

    fn seed_pod(&mut self, status: &PodStatus, now: Timestamp) {
        self.start_time = timestamp(status.start_time.as_ref()).unwrap_or(now);
        self.pod_ips = status.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
        let conditions = status.conditions.iter().flatten();
        self.conditions =
            conditions.filter(|c| OWN_CONDITIONS.contains(&c.type_.as_str())).cloned().collect();
        let succeeded = match status.phase.as_deref() {
            Some("Succeeded") => true,
            Some("Failed") => false,
            _ => return,
        };
        self.terminal =
            Some(Terminal { succeeded, reason: status.reason.clone(), message: status.message.clone() });
        self.ending = Some(Ending { cause: Cause::Completed, deadline: now });
    }
}

fn end_unknown(life: &mut ContainerLife, now: Timestamp) {
    life.started = false;
    life.ready = false;
    if let Run::Running(running) = &life.run {
        life.run = Run::Ended(Ended::unknown(running.id.clone(), Some(running.started_at), now));
    }
}

fn seed_status(digest: &ContainerDigest, life: &mut ContainerLife, status: &ContainerStatus, now: Timestamp) {
    life.image_id = status.image_id.clone();
    let state = status.state.clone().unwrap_or_default();
    let last = status.last_state.as_ref().and_then(|s| ended(s, now));
    let restarts = u32::try_from(status.restart_count).unwrap_or(0);
    if let Some(end) = ended(&state, now) {
        life.run = Run::Ended(end);
        life.last = last;
    } else if let Some(running) = &state.running {
        let started_at = timestamp(running.started_at.as_ref()).unwrap_or(now);
        let id = runtime_id(status.container_id.as_deref());
        life.run = Run::Running(Running { id, started_at, hook_pending: false, stop: None });
        life.last = last;
    } else if let Some(end) = last {
        // Waiting for its restart.
        life.run = Run::Ended(end);
    } else {
        return;
    }
    life.attempt = Some(restarts);
    life.started = status.started.unwrap_or(false);
    life.ready = status.ready;
    life.done = digest.role == Role::Init && life.ended().is_some_and(|e| e.exit_code == 0);
}

fn seed_found(digest: &ContainerDigest, life: &mut ContainerLife, found: &FoundContainer) {
    // What the status says of probes holds only for the instance that it is about.
    let same = life.attempt == Some(found.attempt);
    life.attempt = Some(found.attempt);
    life.last = found.previous.clone().or(life.last.take());
    life.done = digest.role == Role::Init && matches!(&found.state, Err(e) if e.exit_code == 0);
    match &found.state {
        Ok(started_at) => {
            life.started &= same;
            life.ready &= same;
            // Readiness stays as it was until the probe says otherwise; a hook that was under way is not repeated.
            let running =
                Running { id: found.id.clone(), started_at: *started_at, hook_pending: false, stop: None };
            life.run = Run::Running(running);
        }
        Err(ended) => {
            life.started = false;
            life.ready = false;
            life.run = Run::Ended(ended.clone());
        }
    }
}

fn ended(state: &ContainerState, now: Timestamp) -> Option<Ended> {
    state.terminated.as_ref().map(|t: &ContainerStateTerminated| Ended {
        id: runtime_id(t.container_id.as_deref()),
        exit_code: t.exit_code,
        signal: t.signal.unwrap_or(0),
        reason: t.reason.clone().unwrap_or_default(),
        message: t.message.clone().unwrap_or_default(),
        started_at: timestamp(t.started_at.as_ref()),
        finished_at: timestamp(t.finished_at.as_ref()).unwrap_or(now),
    })
}

/// `cumulet://<id>` without its scheme.
fn runtime_id(text: Option<&str>) -> String {
    let text = text.unwrap_or_default();
    text.split_once("://").map_or(text, |(_, id)| id).to_owned()
}
