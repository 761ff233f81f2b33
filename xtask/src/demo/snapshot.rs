//! The second half of the demo: a slow-starting service whose replicas start from memory.
//!
//! The pet clinic, a Spring application, boots once in a virtual machine; every further replica goes on from the snapshot of
//! the first. A client asks all the while, and a table and a plot say what it took.

use super::{cloud, kubectl, step};
use crate::shell::{command, root, run_command};
use anyhow::{Context, bail};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const MANIFEST: &str = "examples/petclinic/snapshot/petclinic.yaml";
const DEPLOYMENT: &str = "deployment/petclinic-snapshot";
const PODS: &str = "--selector=app=petclinic-snapshot";
/// The node port of the manifest.
const ADDRESS: &str = "127.0.0.1:30084";
/// In software emulation on a busy machine.
const COLD_BOOT: Duration = Duration::from_secs(900);
/// The client goes on until it has asked so often, for every replica to have its share.
const REQUESTS: usize = 100;
/// And at most so long after the last replica is Ready.
const LAST_REQUESTS: Duration = Duration::from_secs(60);
/// Columns of the longest bar.
const WIDTH: usize = 60;

pub(super) fn show(state: &Path) -> anyhow::Result<()> {
    step("cumulet image build examples/petclinic (Debian packages and javac: some minutes the first time)");
    run_command(cloud(state).args(["image", "build"]).arg(root().join("examples/petclinic")))?;

    step("kubectl apply -f examples/petclinic/snapshot/petclinic.yaml (runtimeClassName: vm-snapshot)");
    println!("the first replica boots: without hardware virtualization that takes a minute or more");
    let start = Instant::now();
    kubectl(state, &["apply", "-f", MANIFEST])?;
    let cold = until_ready(state, start)?;

    step("a client asks all the while");
    let client = Client::start();
    let mut scaled = Vec::new();
    for replicas in [5, 10] {
        step(&format!("kubectl scale {DEPLOYMENT} --replicas={replicas}"));
        let start = Instant::now();
        kubectl(state, &["scale", DEPLOYMENT, &format!("--replicas={replicas}")])?;
        kubectl(state, &["rollout", "status", DEPLOYMENT, "--timeout=120s"])?;
        scaled.push((replicas, start.elapsed()));
    }
    let (answers, failures) = client.stop();
    kubectl(state, &["get", "pods", PODS, "-o", "wide"])?;
    let addresses: BTreeSet<String> =
        ask(state, &["get", "pods", PODS, "-o", "jsonpath={.items[*].status.podIP}"])?
            .split_whitespace()
            .map(str::to_owned)
            .collect();
    let starts = restored(state)?;
    run_command(cloud(state).args(["snapshot", "ls"]))?;
    report(cold, &starts, &scaled, (answers, failures), addresses.len())
}

/// Waits until the first replica is Ready, and says every ten seconds that it is not forgotten.
fn until_ready(state: &Path, start: Instant) -> anyhow::Result<Duration> {
    let mut told = 0;
    while start.elapsed() < COLD_BOOT {
        if ask(state, &["wait", "--for=condition=Available", DEPLOYMENT, "--timeout=10s"]).is_ok() {
            kubectl(state, &["get", "events", "--field-selector=reason=SnapshotBuilt"])?;
            return Ok(start.elapsed());
        }
        told += 1;
        println!("  ... {} s", told * 10);
    }
    kubectl(state, &["describe", "pods"])?;
    bail!("the pet clinic was not ready within {} s", COLD_BOOT.as_secs())
}

fn ask(state: &Path, args: &[&str]) -> anyhow::Result<String> {
    let out = command("kubectl").env("KUBECONFIG", state.join("kubeconfig")).args(args).output()?;
    if !out.status.success() {
        bail!("kubectl {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Milliseconds that each restored replica took, from the order for its sandbox to the thaw.
fn restored(state: &Path) -> anyhow::Result<Vec<f64>> {
    let select = "--field-selector=reason=RestoredFromSnapshot";
    let messages =
        ask(state, &["get", "events", select, "-o", "jsonpath={range .items[*]}{.message}{\"\\n\"}{end}"])?;
    let ms = |line: &str| line.split_once(" in ")?.1.split_once(" ms")?.0.parse().ok();
    let mut all: Vec<f64> = messages.lines().filter_map(ms).collect();
    all.sort_by(f64::total_cmp);
    Ok(all)
}

/// Asks the Service, one request after the other, as long as somebody wants to know.
struct Client(mpsc::Receiver<bool>);

impl Client {
    fn start() -> Self {
        let (told, answers) = mpsc::channel();
        // Ends with the receiver.
        thread::spawn(move || while told.send(get().is_ok()).is_ok() {});
        Self(answers)
    }

    /// How many requests were answered and how many failed, when there are enough of them or time is up.
    fn stop(self) -> (usize, usize) {
        let until = Instant::now() + LAST_REQUESTS;
        let mut asked: Vec<bool> = self.0.try_iter().collect();
        while asked.len() < REQUESTS
            && let Ok(answered) = self.0.recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            asked.push(answered);
        }
        let answered = asked.iter().filter(|answered| **answered).count();
        (answered, asked.len() - answered)
    }
}

fn get() -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(ADDRESS)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /owners.json HTTP/1.1\r\nHost: petclinic\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200 ") { Ok(()) } else { bail!("another answer") }
}

fn report(
    cold: Duration,
    starts: &[f64],
    scaled: &[(u32, Duration)],
    (answers, failures): (usize, usize),
    addresses: usize,
) -> anyhow::Result<()> {
    let median = *starts.get(starts.len() / 2).context("no replica was restored")?;
    println!("\nWhat it took:");
    println!("  {:<58} {:>9.1} s", "the first replica boots, is saved, is Ready", cold.as_secs_f64());
    println!("  {:<58} {:>9.3} s", "a replica from the snapshot, order to thaw, median", median / 1000.0);
    let mut before = 1;
    for (replicas, time) in scaled {
        let what = format!("{before} to {replicas} replicas, all Ready (kubectl's time included)");
        println!("  {what:<58} {:>9.1} s", time.as_secs_f64());
        before = *replicas;
    }
    println!("  {:<58} {answers:>9} ", "requests answered, meanwhile and after");
    println!("  {:<58} {failures:>9} ", "requests failed");
    println!("  {:<58} {addresses:>9} ", "different addresses");
    println!("\nTime to start, logarithmic:");
    bar("boot", cold.as_secs_f64() * 1000.0);
    for (number, ms) in starts.iter().enumerate() {
        bar(&format!("replica {}", number + 2), *ms);
    }
    Ok(())
}

/// One bar: a column is a constant factor, from a millisecond to a quarter of an hour.
fn bar(what: &str, ms: f64) {
    let share = (ms.max(1.0).log10() / 6.0).clamp(0.0, 1.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "between 0 and the width"
    )]
    let columns = (share * WIDTH as f64).round() as usize;
    println!("  {what:<11} {:<width$} {ms:>8.0} ms", "#".repeat(columns), width = WIDTH);
}
