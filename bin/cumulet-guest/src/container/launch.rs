//! The agent's side of making a process: descriptors, the fork, and what is kept of it.

use super::child::{self, Destination, Streams};
use super::mounts::Layout;
use super::process::Program;
use super::report::{self, Report};
use crate::error::{Doing, Error};
use crate::sys::{self, Fork};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What a process has as standard input and output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stdio {
    /// Nothing.
    Null,
    /// Pipes; `/dev/null` for input unless `stdin`.
    Pipes {
        /// Input can be written.
        stdin: bool,
    },
    /// A terminal of this size; the kernel's default when 0.
    Terminal {
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
}

/// A process that has begun, and may still fail to become its program.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) report: Report,
    /// The agent's ends, non-blocking; a terminal comes by the report.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// Begins a container's main process. `pid_namespace` is a process whose pid namespace it joins.
pub(crate) fn container(
    layout: &Layout,
    program: &Program,
    stdio: Stdio,
    cgroup: &File,
    pid_namespace: Option<BorrowedFd<'_>>,
) -> Result<Launched, Error> {
    let own =
        if pid_namespace.is_some() { libc::CLONE_NEWNS } else { libc::CLONE_NEWNS | libc::CLONE_NEWPID };
    launch(&Destination::New(layout), program, stdio, (own, cgroup), pid_namespace)
}

/// Begins a command in the container of process `target`.
pub(crate) fn command(
    target: BorrowedFd<'_>,
    program: &Program,
    stdio: Stdio,
    cgroup: &File,
) -> Result<Launched, Error> {
    launch(&Destination::Of(target), program, stdio, (0, cgroup), Some(target))
}

fn launch(
    to: &Destination<'_>,
    program: &Program,
    stdio: Stdio,
    (namespaces, cgroup): (i32, &File),
    pid_namespace: Option<BorrowedFd<'_>>,
) -> Result<Launched, Error> {
    let (ours, theirs) = pipes(stdio).doing(|| "make pipes".to_owned())?;
    let (report, reporter) = report::pair().doing(|| "make a socket".to_owned())?;
    let forked = in_pid_namespace(pid_namespace, || {
        sys::fork(namespaces, Some(cgroup.as_fd())).doing(|| "make a process".to_owned())
    })?;
    match forked {
        Fork::Child => child::run(to, program, stdio, theirs, &reporter),
        Fork::Parent(pid, pidfd) => {
            let [stdin, stdout, stderr] = ours;
            Ok(Launched { pid, pidfd, report, stdin, stdout, stderr })
        }
    }
}

/// Does something while new processes are born into the pid namespace of another one.
fn in_pid_namespace<T>(
    target: Option<BorrowedFd<'_>>,
    act: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let Some(target) = target else { return act() };
    let what = || "enter a pid namespace".to_owned();
    let own = File::open("/proc/self/ns/pid").doing(what)?;
    setns(target, CloneFlags::CLONE_NEWPID).doing(what)?;
    let done = act();
    // In the child this fails, since its namespace is the other one, and matters no more.
    let _ = setns(&own, CloneFlags::CLONE_NEWPID);
    done
}

/// A process that is the first of a pid namespace for containers to share, and reaps what they leave.
pub(crate) fn pause() -> Result<(i32, OwnedFd), Error> {
    match sys::fork(libc::CLONE_NEWPID, None).doing(|| "make the pod's first process".to_owned())? {
        Fork::Parent(pid, pidfd) => Ok((pid, pidfd)),
        Fork::Child => {
            // Nothing can be told any more; a pod without this process fails at its first container.
            let _ = sys::close_from(0);
            sys::forget_children();
            loop {
                nix::unistd::pause();
            }
        }
    }
}

/// The agent's and the child's ends.
fn pipes(stdio: Stdio) -> io::Result<(Streams, Streams)> {
    let Stdio::Pipes { stdin } = stdio else { return Ok(([None, None, None], [None, None, None])) };
    let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC);
    let (in_theirs, in_ours) = if stdin { pipe().map(|(r, w)| (Some(r), Some(w)))? } else { (None, None) };
    let (out_ours, out_theirs) = pipe()?;
    let (err_ours, err_theirs) = pipe()?;
    let ours = [in_ours, Some(out_ours), Some(err_ours)];
    for fd in ours.iter().flatten() {
        set_nonblocking(fd)?;
    }
    Ok((ours, [in_theirs, Some(out_theirs), Some(err_theirs)]))
}

pub(crate) fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
