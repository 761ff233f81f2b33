//! Ending the processes of a cgroup, and removing it.
//!
//! Version 2 has `cgroup.kill`, which is atomic. On version 1 the group is frozen first, so that nothing can fork
//! away between reading the list and killing.

use super::{Cgroup, CgroupError, Hierarchies, Result, io_error, write};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long killed processes may take to end.
const KILL_DEADLINE: Duration = Duration::from_secs(2);
/// How often and after which pause a busy group is removed again.
const REMOVE_TRIES: u32 = 50;
const REMOVE_PAUSE: Duration = Duration::from_millis(2);

/// This directory and those below it, deepest first.
fn tree(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            tree(&entry.path(), found);
        }
    }
    found.push(dir.to_owned());
}

fn pids_in(dir: &Path) -> Vec<i32> {
    let mut dirs = Vec::new();
    tree(dir, &mut dirs);
    let read = |dir: &PathBuf| fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    dirs.iter().flat_map(|d| read(d).lines().filter_map(|l| l.parse().ok()).collect::<Vec<_>>()).collect()
}

pub(super) fn processes(cgroup: &Cgroup) -> Vec<i32> {
    let Ok(found) = Hierarchies::get() else { return Vec::new() };
    let mut pids: Vec<i32> = found.roots().flat_map(|root| pids_in(&cgroup.below(root))).collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

pub(super) fn kill(cgroup: &Cgroup) -> Result<()> {
    if let Hierarchies::Unified { root } = Hierarchies::get()? {
        let file = cgroup.below(root).join("cgroup.kill");
        if file.exists() {
            return match write(&file, "1") {
                Err(CgroupError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(()),
                other => other,
            };
        }
    }
    let freezer =
        cgroup.directory("freezer").map(|dir| dir.join("freezer.state")).filter(|file| file.exists());
    if let Some(file) = &freezer {
        write(file, "FROZEN")?;
    }
    for pid in processes(cgroup) {
        // Gone already is as good.
        let _ = send(Pid::from_raw(pid), Signal::SIGKILL);
    }
    match &freezer {
        Some(file) => write(file, "THAWED"),
        None => Ok(()),
    }
}

pub(super) fn kill_and_wait(cgroup: &Cgroup) -> Result<()> {
    let deadline = Instant::now() + KILL_DEADLINE;
    loop {
        let pids = processes(cgroup);
        if pids.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(CgroupError::Busy(cgroup.name().to_owned()));
        }
        // Held before the kill, so that a number that is used again is not waited for.
        let held: Vec<OwnedFd> = pids.into_iter().filter_map(hold).collect();
        kill(cgroup)?;
        held.iter().for_each(|process| wait(process, deadline));
    }
}

/// A descriptor that becomes readable when the process ends; `None` when it has.
fn hold(pid: i32) -> Option<OwnedFd> {
    // SAFETY: the call takes plain numbers. JUSTIFICATION: libc and nix have no wrapper for pidfd_open(2).
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the kernel just made this descriptor for us. JUSTIFICATION: it comes out of a raw system call.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn wait(process: &OwnedFd, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
    // Whatever comes out: the caller looks again.
    let _ = poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout);
}

pub(super) fn remove(cgroup: &Cgroup) -> Result<()> {
    for root in Hierarchies::get()?.roots() {
        let mut dirs = Vec::new();
        tree(&cgroup.below(root), &mut dirs);
        for dir in dirs {
            remove_directory(&dir)?;
        }
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "nothing tells when the kernel has let go of an empty cgroup")]
fn remove_directory(dir: &Path) -> Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            // A process that just ended leaves its group a moment later.
            Err(e) if e.kind() == ErrorKind::ResourceBusy && tries < REMOVE_TRIES => {
                std::thread::sleep(REMOVE_PAUSE);
            }
            Err(e) => return Err(io_error("remove", dir)(e)),
        }
    }
}
