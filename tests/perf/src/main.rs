//! Benchmarks of a real cloud: `cumulet-perf NAME` prints JSON, with the goal beside every figure.
//!
//! Every benchmark starts a cloud of its own and drives it from outside, over HTTPS, as any client would. The load
//! generators run on the same machine and take their share of it, as in the figures they are compared with.

mod http1;
mod images;
mod memory;
mod pods;
mod snapshot;
mod store;
mod up;
mod vm;

use anyhow::bail;
use serde_json::{Value, json};

const NAMES: &[&str] = &["up", "idle", "pods", "scale", "store", "supervisor", "images", "vm", "snapshot"];

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let names: Vec<&str> = match args.first().map(String::as_str) {
        Some("all") => NAMES.to_vec(),
        Some(name) if NAMES.contains(&name) => vec![name],
        _ => bail!("which benchmark? all, {}", NAMES.join(", ")),
    };
    let mut results = serde_json::Map::new();
    for name in names {
        eprintln!("bench {name} ...");
        results.insert(name.to_owned(), run(name)?);
    }
    println!("{}", serde_json::to_string_pretty(&Value::Object(results))?);
    Ok(())
}

fn run(name: &str) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match name {
        "up" => up::run(),
        "idle" => memory::idle(),
        "pods" => runtime.block_on(pods::one_by_one()),
        "scale" => runtime.block_on(pods::scale()),
        "store" => runtime.block_on(store::run()),
        "images" => runtime.block_on(images::run()),
        "vm" => runtime.block_on(vm::run()),
        "snapshot" => runtime.block_on(snapshot::run()),
        "supervisor" => runtime.block_on(memory::supervisors()),
        _ => bail!("no benchmark {name}"),
    }
}

/// A figure with its goal. `at_most` says in which direction better lies.
fn figure(value: f64, unit: &str, goal: f64, at_most: bool) -> Value {
    let met = if at_most { value <= goal } else { value >= goal };
    let round = |x: f64| (x * 1000.0).round() / 1000.0;
    json!({"value": round(value), "unit": unit, "goal": goal, "met": met})
}

/// The value below which this share of the samples lies.
fn percentile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index within the samples"
    )]
    let index = ((samples.len() as f64 * share).ceil() as usize).clamp(1, samples.len()) - 1;
    samples[index]
}
