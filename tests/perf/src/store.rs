//! Durable creates and reads over HTTPS, and how fast a watcher hears of them.

use crate::http1::Endpoint;
use crate::{figure, percentile};
use anyhow::Context;
use bytes::Bytes;
use cumulet_e2e::Cloud;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const CONNECTIONS: usize = 32;
const SECONDS: u64 = 5;
/// Creates per second while the watcher's delay is measured: a busy cloud, not a saturated one.
const WATCH_RATE: u64 = 200;
const WATCH_EVENTS: usize = 1000;
const COLLECTION: &str = "/api/v1/namespaces/default/configmaps";

fn config_map(name: &str) -> Bytes {
    let value = "x".repeat(300);
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": value}})
        .to_string()
        .into()
}

/// The whole benchmark.
pub(crate) async fn run() -> anyhow::Result<Value> {
    let cloud = Cloud::start()?;
    let endpoint = Endpoint::of(&cloud)?;
    let (creates, mut create_times) = load(&endpoint, |worker, n| {
        let body = config_map(&format!("c{worker}-{n}"));
        ("POST", COLLECTION.to_owned(), body)
    })
    .await?;
    let (reads, mut read_times) =
        load(&endpoint, |worker, _| ("GET", format!("{COLLECTION}/c{worker}-0"), Bytes::new())).await?;
    let mut delays = watch_delays(&endpoint).await?;
    Ok(json!({
        "connections": CONNECTIONS,
        "creates_per_second": figure(creates, "1/s", 5000.0, false),
        "create_p50": {"value": percentile(&mut create_times, 0.5) * 1e3, "unit": "ms"},
        "create_p99": {"value": percentile(&mut create_times, 0.99) * 1e3, "unit": "ms"},
        "gets_per_second": figure(reads, "1/s", 20_000.0, false),
        "get_p99": {"value": percentile(&mut read_times, 0.99) * 1e3, "unit": "ms"},
        "watch_delivery_p50": {"value": percentile(&mut delays, 0.5) * 1e3, "unit": "ms"},
        "watch_delivery_p99": figure(percentile(&mut delays, 0.99) * 1e3, "ms", 5.0, true),
        "ratio_to_kubernetes": {"creates": creates / 2000.0, "gets": reads / 4950.0},
    }))
}

/// Runs requests on every connection for some seconds. Requests per second, and the time of each.
async fn load(
    endpoint: &Endpoint,
    request: impl Fn(usize, usize) -> (&'static str, String, Bytes) + Send + Sync + Copy + 'static,
) -> anyhow::Result<(f64, Vec<f64>)> {
    let mut tasks = JoinSet::new();
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(endpoint.connect().await?);
    }
    let start = Instant::now();
    for (worker, mut connection) in connections.into_iter().enumerate() {
        tasks.spawn(async move {
            let mut times = Vec::new();
            while start.elapsed() < Duration::from_secs(SECONDS) {
                let (method, path, body) = request(worker, times.len());
                let sent = Instant::now();
                connection.request(method, &path, body).await?;
                times.push(sent.elapsed().as_secs_f64());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.extend(done??);
    }
    let seconds = start.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
    Ok((times.len() as f64 / seconds, times))
}

/// From sending a create to hearing of it on a watch, in seconds; the create itself is part of it.
async fn watch_delays(endpoint: &Endpoint) -> anyhow::Result<Vec<f64>> {
    let sent: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
    let list: Value = {
        let body =
            endpoint.connect().await?.request("GET", &format!("{COLLECTION}?limit=1"), Bytes::new()).await?;
        serde_json::from_slice(&body)?
    };
    let revision = list["metadata"]["resourceVersion"].as_str().context("a list without revision")?;
    let mut watcher = endpoint.connect().await?;
    let mut events = watcher.stream(&format!("{COLLECTION}?watch=1&resourceVersion={revision}")).await?;
    let mut writer = endpoint.connect().await?;
    let times = sent.clone();
    let writing = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / WATCH_RATE));
        for n in 0..WATCH_EVENTS {
            ticks.tick().await;
            let name = format!("w-{n}");
            times.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), Instant::now());
            writer.request("POST", COLLECTION, config_map(&name)).await?;
        }
        anyhow::Ok(())
    });
    let mut delays = Vec::with_capacity(WATCH_EVENTS);
    let mut pending = Vec::new();
    while delays.len() < WATCH_EVENTS {
        let frame = events.frame().await.context("the watch ended")??;
        let now = Instant::now();
        pending.extend_from_slice(frame.data_ref().map(Bytes::as_ref).unwrap_or_default());
        while let Some(end) = pending.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let event: Value = serde_json::from_slice(&line)?;
            let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
            if let Some(at) = sent.lock().unwrap_or_else(PoisonError::into_inner).remove(name) {
                delays.push(now.duration_since(at).as_secs_f64());
            }
        }
    }
    writing.await??;
    Ok(delays)
}
