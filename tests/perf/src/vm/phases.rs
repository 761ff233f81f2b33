//! Where the time of a pod's start goes.

use super::host;
use anyhow::Context;
use cumulet_e2e::Cloud;
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The parts of one start, in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Phases {
    /// Create request → QEMU's process: API, scheduler, node, supervisor.
    order: f64,
    /// QEMU's process → the agent's first word on the channel: QEMU, firmware, kernel, modules.
    boot: f64,
    /// → the container runs: the pod's files and network, its root, its process.
    container: f64,
    /// → Ready seen by the client: the program's own start, a probe that succeeds.
    ready: f64,
}

impl Phases {
    /// Of a pod with one container that was created and seen Ready at these times.
    pub(super) fn of(
        cloud: &Cloud,
        pod: &str,
        created: SystemTime,
        ready: SystemTime,
    ) -> anyhow::Result<Self> {
        let uid = cloud.field(&format!("pod/{pod}"), ".metadata.uid")?;
        let dir = cloud.dir().join("pods").join(uid);
        let log = fs::read_to_string(dir.join("supervisor.log"))?;
        let answered = log.lines().find(|line| line.contains("the guest has answered"));
        let answered =
            answered.and_then(|line| line.split_whitespace().next()).context("no answer in its log")?;
        let answered = day_seconds(answered).with_context(|| format!("{answered:?} is no time"))?;
        let state: Value = serde_json::from_slice(&fs::read(dir.join("state.json"))?)?;
        let started = started(&state).with_context(|| format!("nothing runs: {state}"))?;
        let began = began(host::processes(cloud, pod)?.qemu)?;
        let [created, ready] =
            [created, ready].map(|time| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        let midnight = (started / 86400.0).floor() * 86400.0;
        let answered = midnight + answered;
        Ok(Self {
            order: began - created,
            boot: answered - began,
            container: started - answered,
            ready: ready - started,
        })
    }

    /// The medians.
    pub(super) fn medians(all: &[Self]) -> Value {
        let median = |part: fn(&Self) -> f64| {
            let mut values: Vec<f64> = all.iter().map(part).collect();
            json!({"value": (crate::percentile(&mut values, 0.5) * 1000.0).round(), "unit": "ms"})
        };
        json!({
            "request_to_qemu": median(|p| p.order),
            "qemu_to_agent": median(|p| p.boot),
            "agent_to_container": median(|p| p.container),
            "container_to_ready": median(|p| p.ready),
        })
    }
}

/// Seconds of the day of an RFC 3339 time.
fn day_seconds(time: &str) -> Option<f64> {
    let mut parts = time.get(11..)?.trim_end_matches('Z').split(':').map(|part| part.parse::<f64>().ok());
    Some(parts.next()?? * 3600.0 + parts.next()?? * 60.0 + parts.next()??)
}

/// The first `started_at_us` in a supervisor's record, in seconds.
fn started(state: &Value) -> Option<f64> {
    match state {
        Value::Object(map) => map.iter().find_map(|(key, value)| match value.as_f64() {
            Some(us) if key == "started_at_us" => Some(us / 1e6),
            _ => started(value),
        }),
        Value::Array(list) => list.iter().find_map(started),
        _ => None,
    }
}

/// When a process began, in seconds since 1970, to the kernel's tick of 10 ms.
fn began(pid: i32) -> anyhow::Result<f64> {
    const START_TIME: usize = 19;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("a stat without a name")?;
    let ticks: f64 = fields.split_whitespace().nth(START_TIME).context("a short stat")?.parse()?;
    let uptime = fs::read_to_string("/proc/uptime")?;
    let uptime: f64 = uptime.split_whitespace().next().context("no uptime")?.parse()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64();
    Ok(now - uptime + ticks / 100.0)
}
