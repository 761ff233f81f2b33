//! Ending every pod of a state directory without the node that runs them: `cumulet down`.

use crate::dirs::{PodDirs, remove_dir};
use crate::supervisor::Supervisor;
use crate::supervisor::client::finish;
use crate::supervisor::proto::{Event, InstanceState, Request};
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Stops all pods below `pods`: TERM to every container, KILL after `grace`; then removes their supervisors, mounts,
/// cgroups and directories, and the cloud's `cgroup`. Works on what is there; doing it twice is fine.
///
/// # Errors
/// When something could not be removed; everything else is removed all the same.
pub fn teardown(pods: &Path, cgroup: &str, grace: Duration) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let entries = match std::fs::read_dir(pods) {
        Ok(entries) => entries.collect::<io::Result<Vec<_>>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    runtime.block_on(join_all(entries.iter().map(|entry| stop(entry.path(), grace))));
    let mut failure = None;
    for entry in entries {
        let dirs = PodDirs { root: entry.path(), logs: entry.path() };
        // One that began as a standby is still in the standby's; what is below `cgroup` goes with it in any case.
        let pod_cgroup = format!("{cgroup}/pod{}", entry.file_name().to_string_lossy());
        let removed = finish(&dirs.root, &pod_cgroup)
            .map_err(|error| io::Error::other(error.message))
            .and_then(|()| crate::volumes::unmount(&dirs))
            .and_then(|()| remove_dir(&dirs.root));
        failure = failure.or(removed.err());
    }
    let removed = cumulet_container::cgroup::kill_and_remove(cgroup).map_err(io::Error::other);
    match failure.or(removed.err()) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Ends one pod as gently as the time allows. A supervisor that is gone leaves that to the clean-up.
async fn stop(dir: std::path::PathBuf, grace: Duration) {
    let Ok(supervisor) = Supervisor::connect(&dir).await else { return };
    let mut events = supervisor.events();
    let mut running = BTreeSet::new();
    if let Some(Event::Snapshot { containers, .. }) = events.recv().await {
        for (name, instance) in containers {
            if matches!(instance.state, InstanceState::Running { .. }) {
                let (container, attempt, signal) = (name.clone(), instance.attempt, Signal::SIGTERM as i32);
                // One that cannot be signalled is killed below.
                let _ = supervisor.request(Request::Signal { container, attempt, signal }).await;
                running.insert(name);
            }
        }
    }
    let all_ended = async {
        while !running.is_empty() {
            match events.recv().await {
                Some(Event::Container { name, instance }) => {
                    if matches!(instance.state, InstanceState::Ended(_)) {
                        running.remove(&name);
                    }
                }
                Some(Event::Snapshot { .. } | Event::Restored(_)) => {}
                None => return,
            }
        }
    };
    let _ = tokio::time::timeout(grace, all_ended).await;
    let _ = supervisor.request(Request::Shutdown).await;
}
