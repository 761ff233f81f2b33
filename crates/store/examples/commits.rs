//! Measures durable commits: `cargo run -p cumulet-store --example commits [COMMITTERS] [SECONDS] [DIR]`.
//!
//! Every committer creates objects of 500 bytes one after the other; one watcher follows them. Prints one line of
//! JSON: commits per second, latency of a commit, and how many events the watcher saw.

use cumulet_store::{Body, Key, Op, ResourceTag, Store, StoreError, StoreOptions};
use std::path::PathBuf;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let committers: usize = arguments.next().map_or(Ok(32), |n| n.parse())?;
    let seconds: u64 = arguments.next().map_or(Ok(3), |n| n.parse())?;
    let dir = arguments.next().map_or_else(|| std::env::temp_dir().join("store-commits"), PathBuf::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure(&dir, committers, Duration::from_secs(seconds)))?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

async fn measure(
    dir: &std::path::Path,
    committers: usize,
    duration: Duration,
) -> Result<(), Box<dyn std::error::Error>> {
    let store = Store::open(dir, &StoreOptions::default())?;
    let mut watcher = store.watch(&ResourceTag::new("things"), store.revision())?;
    let watching = tokio::spawn(async move {
        let mut events = 0_usize;
        while let Ok(Ok(batch)) = tokio::time::timeout(Duration::from_secs(1), watcher.next_batch()).await {
            events += batch.events.len();
        }
        events
    });
    let start = Instant::now();
    let run = start.elapsed().as_nanos() + u128::from(std::process::id());
    let tasks: Vec<_> = (0..committers)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                let tag = ResourceTag::new("things");
                let filler = bytes::Bytes::from("x".repeat(480));
                let mut latencies = Vec::new();
                while start.elapsed() < duration {
                    let name = format!("{run}-{task}-{}", latencies.len());
                    let key = Key::new(&tag, "default", &name);
                    let body = Body::new(filler.clone(), "}");
                    let began = Instant::now();
                    let op = Op::Create { key, body, index: Vec::new() };
                    store.commit(vec![op]).await?;
                    latencies.push(began.elapsed());
                }
                Ok::<_, StoreError>(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    let elapsed = start.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |quantile: f64| {
        let index = (latencies.len().saturating_sub(1) as f64 * quantile) as usize;
        latencies.get(index).map_or(0, Duration::as_micros)
    };
    let watched = watching.await?;
    println!(
        "{{\"committers\":{committers},\"commits_per_s\":{:.0},\"p50_us\":{},\"p99_us\":{},\"watched\":{watched}}}",
        latencies.len() as f64 / elapsed,
        at(0.5),
        at(0.99),
    );
    store.close().await;
    Ok(())
}
