//! The STATUS, READY and RESTARTS cells of a pod, as `kubectl get pods` has always told them.
//!
//! The word is derived anew from the whole status each time: the phase, overridden by the pod's own reason, by what
//! the init containers do, by what the containers do, and at last by deletion.

use crate::kinds::printing::since;
use crate::kinds::value::{at, int, is_true, items, text};
use cumulet_api::meta::parse_time;
use jiff::Timestamp;
use serde_json::Value;

/// What the table says of a pod.
pub(crate) struct Summary {
    /// Containers that are ready.
    pub(crate) ready: usize,
    /// Containers that count: the regular ones and the sidecars.
    pub(crate) total: usize,
    /// The word under STATUS.
    pub(crate) reason: String,
    restarts: Restarts,
}

/// How often containers restarted, and when the last time was.
#[derive(Clone, Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += int(status, "restartCount").unwrap_or(0);
        let finished = parse_time(text(status, "lastState.terminated.finishedAt"));
        self.last = self.last.max(finished);
    }
}

impl Summary {
    /// `3`, or `3 (10s ago)`.
    pub(crate) fn restarts(&self, now: Timestamp) -> String {
        match self.restarts.last {
            Some(last) if self.restarts.count != 0 => {
                format!("{} ({} ago)", self.restarts.count, since(&last.to_string(), now))
            }
            _ => self.restarts.count.to_string(),
        }
    }
}

/// Reads a pod's summary.
pub(crate) fn summary(pod: &Value) -> Summary {
    let phase = text(pod, "status.phase");
    let mut all = Summary {
        ready: 0,
        total: items(pod, "spec.containers").len(),
        reason: phase.to_owned(),
        restarts: Restarts::default(),
    };
    if !text(pod, "status.reason").is_empty() {
        all.reason = text(pod, "status.reason").to_owned();
    }
    if condition(pod, "PodScheduled").is_some_and(|c| text(c, "reason") == "SchedulingGated") {
        all.reason = "SchedulingGated".to_owned();
    }
    let (initializing, sidecars) = init_containers(pod, &mut all);
    if !initializing || condition(pod, "Initialized").is_some_and(|c| text(c, "status") == "True") {
        all.restarts = sidecars;
        containers(pod, &mut all);
    }
    if at(pod, "metadata.deletionTimestamp").is_some() {
        if text(pod, "status.reason") == "NodeLost" {
            all.reason = "Unknown".to_owned();
        } else if phase != "Succeeded" && phase != "Failed" {
            all.reason = "Terminating".to_owned();
        }
    }
    all
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    items(pod, "status.conditions").iter().find(|c| text(c, "type") == kind)
}

/// Takes in the init containers; true when the pod is still busy with one of them, and the restarts of the sidecars.
fn init_containers(pod: &Value, all: &mut Summary) -> (bool, Restarts) {
    let specs = items(pod, "spec.initContainers");
    let is_sidecar =
        |name: &str| specs.iter().any(|c| text(c, "name") == name && text(c, "restartPolicy") == "Always");
    all.total += specs.iter().filter(|c| text(c, "restartPolicy") == "Always").count();
    let mut sidecars = Restarts::default();
    for (i, status) in items(pod, "status.initContainerStatuses").iter().enumerate() {
        let sidecar = is_sidecar(text(status, "name"));
        all.restarts.add(status);
        if sidecar {
            sidecars.add(status);
        }
        let terminated = at(status, "state.terminated");
        let waiting = text(status, "state.waiting.reason");
        match terminated {
            Some(state) if int(state, "exitCode").unwrap_or(0) == 0 => continue,
            _ if sidecar && is_true(status, "started") => {
                all.ready += usize::from(is_true(status, "ready"));
                continue;
            }
            Some(state) => all.reason = format!("Init:{}", ending(state)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => {
                all.reason = format!("Init:{waiting}")
            }
            None => all.reason = format!("Init:{i}/{}", specs.len()),
        }
        return (true, sidecars);
    }
    (false, sidecars)
}

/// Takes in the regular containers, the first of which has the last word.
fn containers(pod: &Value, all: &mut Summary) {
    let mut running = false;
    for status in items(pod, "status.containerStatuses").iter().rev() {
        all.restarts.add(status);
        let waiting = text(status, "state.waiting.reason");
        if !waiting.is_empty() {
            all.reason = waiting.to_owned();
        } else if let Some(state) = at(status, "state.terminated") {
            all.reason = ending(state);
        } else if is_true(status, "ready") && at(status, "state.running").is_some() {
            running = true;
            all.ready += 1;
        }
    }
    if all.reason == "Completed" && running {
        let ready = condition(pod, "Ready").is_some_and(|c| text(c, "status") == "True");
        all.reason = if ready { "Running" } else { "NotReady" }.to_owned();
    }
}

/// How a container ended: its reason, its signal or its exit code.
fn ending(state: &Value) -> String {
    let reason = text(state, "reason");
    match int(state, "signal").unwrap_or(0) {
        _ if !reason.is_empty() => reason.to_owned(),
        0 => format!("ExitCode:{}", int(state, "exitCode").unwrap_or(0)),
        signal => format!("Signal:{signal}"),
    }
}
