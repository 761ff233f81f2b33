//! Memory: of a cloud without pods, and of one supervisor.

use crate::figure;
use crate::pods::{Watched, pod};
use anyhow::Context;
use cumulet_e2e::Cloud;
use serde_json::{Value, json};
use std::time::Duration;

const MIB: f64 = 1024.0 * 1024.0;
const PODS: usize = 10;

/// Resident memory of every process of a cloud that runs no pods, once it has settled.
pub(crate) fn idle() -> anyhow::Result<Value> {
    let cloud = Cloud::start()?;
    // What is measured is the settled state: start-up work is over after a few seconds.
    #[expect(clippy::disallowed_methods, reason = "settling takes time and is announced by nothing")]
    std::thread::sleep(Duration::from_secs(5));
    let mut resident = 0.0;
    let mut private = 0.0;
    for (pid, _) in cloud.processes() {
        resident += rollup(pid, &["Rss:"])?;
        private += rollup(pid, &["Private_Clean:", "Private_Dirty:"])?;
    }
    Ok(json!({
        "processes": cloud.processes().len(),
        "resident": figure(resident / MIB, "MiB", 60.0, true),
        "private": {"value": (private / MIB * 10.0).round() / 10.0, "unit": "MiB"},
    }))
}

/// Private memory of the supervisor of a running container pod, the mean of several.
pub(crate) async fn supervisors() -> anyhow::Result<Value> {
    let cloud = Cloud::with_hello()?;
    let client = cloud.client().await?;
    for n in 0..PODS {
        Watched::create(&client, &pod(&format!("m{n}"))).await?.ready().await?;
    }
    let mut private = Vec::new();
    for (pid, line) in cloud.processes() {
        if line.contains(" supervise ") {
            private.push(rollup(pid, &["Private_Clean:", "Private_Dirty:"])? / MIB);
        }
    }
    anyhow::ensure!(private.len() == PODS, "{} supervisors for {PODS} pods", private.len());
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let mean = private.iter().sum::<f64>() / PODS as f64;
    Ok(json!({"pods": PODS, "private_per_supervisor": figure(mean, "MiB", 3.0, true)}))
}

/// The sum of some rows of a process's `smaps_rollup`, in bytes.
fn rollup(pid: i32, rows: &[&str]) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("smaps_rollup")?;
    let value = |line: &str| line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok());
    let found = text.lines().filter(|line| rows.iter().any(|row| line.starts_with(row)));
    Ok(found.filter_map(value).sum::<f64>() * 1024.0)
}
