//! How long a cloud takes from process start until the node is Ready and the cluster DNS answers.

use crate::{figure, percentile};
use cumulet_e2e::Cloud;
use serde_json::{Value, json};
use std::time::Instant;

const ROUNDS: usize = 10;

/// `up --detach` returns when `/readyz` answers 200, the node is Ready and the DNS answers; the whole command is timed.
pub(crate) fn run() -> anyhow::Result<Value> {
    let mut fresh = Vec::new();
    let mut again = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let cloud = Cloud::start()?;
        fresh.push(start.elapsed().as_secs_f64());
        cloud.kill_main()?;
        let start = Instant::now();
        cloud.up()?;
        again.push(start.elapsed().as_secs_f64());
    }
    Ok(json!({
        "rounds": ROUNDS,
        "first_start_median": figure(percentile(&mut fresh, 0.5), "s", 1.0, true),
        "first_start_max": figure(percentile(&mut fresh, 1.0), "s", 1.0, true),
        "restart_median": figure(percentile(&mut again, 0.5), "s", 1.0, true),
    }))
}
