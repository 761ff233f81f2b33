//! Runs every test: unit and property tests, end-to-end tests with a real cloud, the Python client, and the check
//! that nothing is left behind on the machine.

use crate::shell::{self, cache_dir, command, cumulet, output, root, run_command};
use crate::{examples, guest, lint, setup};
use anyhow::{Context, bail};
use std::process::Command;
use std::time::Instant;

/// The version of the Python client that the script is run with.
const PYTHON_CLIENT: &str = "kubernetes>=31,<37";

/// What all tests together may take. A test that hangs is to be named, while there is still somebody to read it.
const TESTS_WITHIN: &str = "40m";

/// Runs the tests whose name contains `filter`, or all.
pub(crate) fn run(filter: &[String]) -> anyhow::Result<()> {
    setup::run()?;
    setup::test_tools()?;
    setup::docker_registry()?;
    setup::static_busybox()?;
    examples::build()?;
    timed("lint", lint::run)?;
    // One build of everything first: the end-to-end tests need the program, and one feature set serves all.
    timed("build", || shell::run("cargo", &["build", "--workspace", "--all-targets", "--quiet"]))?;
    timed("guest", guest::build)?;
    timed("guest with faults", guest::build_faulty)?;
    let before = leftovers()?;
    timed("tests", || {
        let args = [
            "--kill-after=10",
            TESTS_WITHIN,
            "cargo",
            "test",
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
            "--no-fail-fast",
            "--",
            "--test-threads",
            "2",
        ];
        let mut tests = command("timeout");
        let status =
            with_environment(&mut tests).args(args).args(filter).status().context("cannot run timeout")?;
        match status.code() {
            Some(0) => Ok(()),
            // By this `timeout` says so.
            Some(124) => bail!("not done within {TESTS_WITHIN}; cargo has named what ran for over a minute"),
            _ => bail!("tests failed: {status}"),
        }
    })?;
    if filter.is_empty() {
        // These boot the agent as guests run it, which cargo knows nothing of.
        timed("agent in machines", || {
            let args = ["test", "--workspace", "--test", "machine", "--", "--ignored", "--test-threads", "2"];
            run_command(with_environment(&mut command("cargo")).args(args))
        })?;
        timed("python client", python_client)?;
    }
    let left: Vec<String> = leftovers()?.into_iter().filter(|item| !before.contains(item)).collect();
    if !left.is_empty() {
        bail!("the tests left behind:\n  {}", left.join("\n  "));
    }
    println!("nothing left behind: no process, mount, link, table or cgroup");
    Ok(())
}

/// What the end-to-end tests need to know.
pub(crate) fn with_environment(command: &mut Command) -> &mut Command {
    command
        .env("CUMULET_BIN", cumulet())
        .env("CUMULET_EXAMPLES", root().join("examples"))
        .env("CUMULET_CACHE", cache_dir())
        .env("CUMULET_APT_CACHE", cache_dir().join("apt"))
        .env("CUMULET_GUEST", guest::agent())
        .env("CUMULET_BUSYBOX", setup::static_busybox_path())
        .env("CUMULET_SKOPEO", "skopeo")
        .env("CUMULET_DOCKER_REGISTRY", setup::docker_registry_path())
        .env("CUMULET_OLD_KUBECTL", setup::old_kubectl_path())
}

/// Runs `tests/e2e/python/client.py` with Kubernetes' own Python client, from a virtual environment in the cache.
fn python_client() -> anyhow::Result<()> {
    let venv = cache_dir().join("python");
    let python = venv.join("bin/python");
    let works =
        Command::new(&python).args(["-c", "import kubernetes"]).output().is_ok_and(|o| o.status.success());
    if !works {
        eprintln!("setup: the Python client of Kubernetes");
        if shell::run("python3", &["-m", "venv", &venv.to_string_lossy()]).is_err() {
            setup::install(&["python3-venv"])?;
            shell::run("python3", &["-m", "venv", &venv.to_string_lossy()])?;
        }
        shell::run(&python.to_string_lossy(), &["-m", "pip", "install", "--quiet", PYTHON_CLIENT])?;
    }
    run_command(with_environment(&mut command(&python)).arg("tests/e2e/python/client.py"))
}

fn timed(what: &str, task: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let start = Instant::now();
    task().with_context(|| what.to_owned())?;
    println!("== {what}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Everything on the machine that looks like ours. Names derive from state directories: `cum…` and `cumulet-…`.
pub(crate) fn leftovers() -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains("cumulet up")
            || line.contains("cumulet supervise")
            || line.contains("cumulet --state-dir")
        {
            found.push(format!("process {}: {}", entry.file_name().to_string_lossy(), line.trim()));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    found.extend(mounts.lines().filter(|l| l.contains("cumulet")).map(|l| format!("mount {l}")));
    for entry in std::fs::read_dir("/sys/class/net")?.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("cum") {
            found.push(format!("link {name}"));
        }
    }
    if shell::exists("nft") {
        let tables = output("nft", &["list", "tables"])?;
        found.extend(tables.lines().filter(|l| l.contains("cumulet")).map(|l| format!("nftables {l}")));
    }
    cgroups(std::path::Path::new("/sys/fs/cgroup"), 0, &mut found);
    Ok(found)
}

fn cgroups(dir: &std::path::Path, depth: u8, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        if name.starts_with("cumulet-") {
            found.push(format!("cgroup {}", entry.path().display()));
        } else if depth < 2 {
            cgroups(&entry.path(), depth + 1, found);
        }
    }
}
