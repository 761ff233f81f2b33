//! Measures single-object reads and durable creates over HTTPS: 32 keep-alive connections, server and load generator
//! in one process. `load [SECONDS]` prints one JSON line per measurement.

#[path = "../tests/common/mod.rs"]
mod common;

use common::TestServer;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const CONNECTIONS: usize = 32;
const PLACE: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::main(worker_threads = 2)]
async fn main() {
    let seconds = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(3);
    let server = Arc::new(TestServer::start().await);
    let mut first = server.client().await;
    let object = |name: &str| json!({"metadata": {"name": name}, "data": {"text": "x".repeat(500)}});
    let reply = first.post(PLACE, &object("one")).await;
    assert_eq!(reply.code, 201, "{:?}", reply.body);
    for bench in ["get", "create"] {
        let latencies = run(&server, bench, Duration::from_secs(seconds)).await;
        let at = |q: f64| latencies[((latencies.len() - 1) as f64 * q) as usize].as_micros();
        let rate = latencies.len() as u64 / seconds;
        println!(
            "{}",
            json!({"bench": bench, "per_second": rate, "p50_us": at(0.5) as u64, "p99_us": at(0.99) as u64})
        );
    }
}

async fn run(server: &Arc<TestServer>, bench: &'static str, time: Duration) -> Vec<Duration> {
    let number = Arc::new(AtomicU64::new(0));
    let until = Instant::now() + time;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (server, number) = (server.clone(), number.clone());
        tasks.spawn(async move {
            let mut client = server.client().await;
            let mut latencies = Vec::new();
            let text = "x".repeat(500);
            while Instant::now() < until {
                let begin = Instant::now();
                let reply = match bench {
                    "get" => client.get("/api/v1/namespaces/default/configmaps/one").await,
                    _ => {
                        let name = format!("cm-{}", number.fetch_add(1, Ordering::Relaxed));
                        client.post(PLACE, &json!({"metadata": {"name": name}, "data": {"text": text}})).await
                    }
                };
                assert!(reply.code.is_success(), "{:?}", reply.body);
                latencies.push(begin.elapsed());
            }
            latencies
        });
    }
    let mut all: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
    all.sort_unstable();
    all
}
