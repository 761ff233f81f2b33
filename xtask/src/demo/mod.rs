//! The demo: from a clean checkout to three pods behind one address, then to ten virtual machines that started from the
//! memory of one, with what it took.

mod snapshot;

use crate::shell::{self, command, cumulet, root, run_command};
use crate::{examples, guest, setup};
use anyhow::Context;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Builds, starts a cloud in a directory of its own, deploys the examples, asks them, shows the timings, cleans up.
pub(crate) fn run() -> anyhow::Result<()> {
    step("installing what is missing");
    setup::run()?;
    step("building (the first time takes some minutes)");
    shell::run("cargo", &["build", "--workspace", "--all-targets", "--quiet"])?;
    examples::build()?;
    guest::build()?;
    let state = std::env::temp_dir().join(format!("cumulet-demo-{}", std::process::id()));
    let result = show(&state).and_then(|()| snapshot::show(&state));
    let down = run_command(cloud(&state).args(["down", "--purge"]));
    result.and(down)
}

fn show(state: &Path) -> anyhow::Result<()> {
    step("cumulet up --detach");
    let start = Instant::now();
    run_command(cloud(state).args(["up", "--detach"]))?;
    let up = start.elapsed();

    step("cumulet image build examples/hello");
    let start = Instant::now();
    run_command(cloud(state).args(["image", "build"]).arg(root().join("examples/hello")))?;
    let image = start.elapsed();

    step("kubectl apply -f examples/hello/hello.yaml");
    let start = Instant::now();
    kubectl(state, &["apply", "-f", "examples/hello/hello.yaml"])?;
    kubectl(state, &["rollout", "status", "deployment/hello", "--timeout=60s"])?;
    let deployed = start.elapsed();
    kubectl(state, &["get", "deployments,pods,services", "-o", "wide"])?;

    step("curl http://127.0.0.1:30080/ (six times)");
    let start = Instant::now();
    for _ in 0..6 {
        run_command(Command::new("curl").args(["-sS", "--max-time", "5", "http://127.0.0.1:30080/"]))?;
    }
    let asked = start.elapsed();

    step("one pod asks the Service by its name");
    kubectl(
        state,
        &["exec", "deploy/hello", "--", "wget", "-q", "-O", "-", "http://hello.default.svc.cluster.local/"],
    )?;

    step("kubectl scale deployment hello --replicas=10");
    let start = Instant::now();
    kubectl(state, &["scale", "deployment/hello", "--replicas=10"])?;
    kubectl(state, &["rollout", "status", "deployment/hello", "--timeout=60s"])?;
    let scaled = start.elapsed();

    println!("\nWhat it took, kubectl's own time included:");
    for (what, time) in [
        ("cloud ready (node Ready, DNS answers)", up),
        ("image built", image),
        ("applied, three replicas Ready", deployed),
        ("six answers through the node port", asked / 6),
        ("3 to 10 replicas, all Ready", scaled),
    ] {
        println!("  {what:<42} {:>6.0} ms", millis(time));
    }
    Ok(())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn step(what: &str) {
    println!("\n>>> {what}");
}

fn cloud(state: &Path) -> Command {
    let mut command = command(cumulet());
    // Port 0: the demo disturbs no cloud that runs already.
    command.arg("--state-dir").arg(state).env("CUMULET_API_LISTEN", "127.0.0.1:0");
    command
}

fn kubectl(state: &Path, args: &[&str]) -> anyhow::Result<()> {
    run_command(command("kubectl").env("KUBECONFIG", state.join("kubeconfig")).args(args)).context("kubectl")
}
