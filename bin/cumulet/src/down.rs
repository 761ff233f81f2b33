//! `down`: ends the main process, then every pod, then everything else that this cloud made on the machine.
//!
//! It works on what is there, not on what a running cloud would say: after `kill -9`, with a broken store or half a
//! start it cleans up just the same, and doing it twice does no harm.

use crate::ranges;
use anyhow::{Context, bail};
use cumulet_cli::StateDir;
use cumulet_cli::args::Down;
use cumulet_cli::state_dir::wait_for_end;
use cumulet_net::Network;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::time::Duration;

/// How long the main process may take to end after SIGTERM before it is killed.
const MAIN_ENDS_WITHIN_MS: u16 = 10_000;
/// Files that only make sense while the machine is set up for the cloud.
const RUNTIME_FILES: &[&str] = &["ranges.json", "network.json", "kubeconfig", "pods"];

/// Takes the cloud of this state directory down.
pub(crate) fn run(state: &StateDir, options: &Down) -> anyhow::Result<()> {
    if !state.path().exists() {
        eprintln!("nothing to take down: {} does not exist", state.path().display());
        return Ok(());
    }
    if let Some(pid) = state.running()? {
        end_main_process(pid)?;
    }
    let _lock = state.lock()?;
    let pods = state.path().join("pods");
    cumulet_node::teardown(&pods, &ranges::cgroup(state), Duration::from_secs(options.timeout))
        .context("cannot stop every pod")?;
    let seed = ranges::seed(state);
    let table = Network::table_of(&seed).context("cannot name the network's table")?;
    cumulet_net::nft::remove_table(&table).context("cannot remove the Services' rules")?;
    let _machine = ranges::lock_machine()?;
    Network::destroy(&seed, &ranges::network_record(state)).context("cannot remove the network")?;
    for name in RUNTIME_FILES {
        remove(&state.path().join(name))?;
    }
    if options.purge {
        for entry in fs::read_dir(state.path()).with_context(|| state.path().display().to_string())? {
            remove(&entry?.path())?;
        }
        // The directory itself may have been made by somebody else: it goes only when that is possible.
        let _ = fs::remove_dir(state.path());
    }
    Ok(())
}

fn remove(path: &std::path::Path) -> anyhow::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn end_main_process(pid: i32) -> anyhow::Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        match kill(Pid::from_raw(pid), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(errno) => return Err(errno).with_context(|| format!("cannot end process {pid}")),
        }
        if wait_for_end(pid, MAIN_ENDS_WITHIN_MS)? {
            return Ok(());
        }
    }
    bail!("process {pid} does not end")
}
