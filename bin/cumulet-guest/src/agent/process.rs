//! A process that the agent started for the host, and how it ends.
//!
//! ```text
//!   launching ──(execve)──► running ──(reaped)──► draining ──(output at its end, or 2 s)──► concluded
//!       └──(report: failed)──► failed ──(reaped)──► gone                                       │ all told
//!                                                     gone ◄──(all acknowledged)── announced ◄─┘
//! ```

use super::streams::Streams;
use crate::container::Report;
use cumulet_guest_proto::guest::RequestId;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long output may still come after the process ended, from others that hold its streams.
const DRAIN: Duration = Duration::from_secs(2);

/// What a process is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Main process of a container.
    Main(String),
    /// A command in a container.
    Exec(String),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exit {
    /// 128 + signal for a killed one.
    pub(super) code: i32,
    pub(super) signal: i32,
}

impl Exit {
    /// From what `waitpid` says; `None` while it lives.
    pub(super) fn of(status: WaitStatus) -> Option<(i32, Self)> {
        match status {
            WaitStatus::Exited(pid, code) => Some((pid.as_raw(), Self { code, signal: 0 })),
            WaitStatus::Signaled(pid, signal, _) => {
                let signal = signal as i32;
                Some((pid.as_raw(), Self { code: 128 + signal, signal }))
            }
            _ => None,
        }
    }
}

/// Where it is.
#[derive(Debug)]
pub(super) enum Stage {
    Launching(Report),
    Running,
    /// Reaped; the drain ends then at the latest.
    Draining(Exit, Instant),
    /// Its output is at its end.
    Concluded(Exit),
    /// The host was told.
    Announced,
    /// There never was a program; the host was told.
    Failed,
    /// Nothing is left of it.
    Gone,
}

#[derive(Debug)]
pub(super) struct Process {
    pub(super) role: Role,
    pub(super) pid: i32,
    /// For entering its namespaces.
    pub(super) pidfd: OwnedFd,
    pub(super) stage: Stage,
    pub(super) streams: Streams,
    /// It has standard input; for a terminal that is to come.
    pub(super) stdin: bool,
    /// Requests to answer when it runs.
    pub(super) waiters: Vec<RequestId>,
    /// When it is to be killed.
    pub(super) kill_at: Option<Instant>,
}

impl Process {
    /// Sends a signal, if it was not reaped yet: its number may be somebody else's then.
    pub(super) fn signal(&self, signal: Signal) -> nix::Result<()> {
        if self.is_alive() { kill(Pid::from_raw(self.pid), signal) } else { Ok(()) }
    }

    /// Kills it and all in its process group; every process started here leads one.
    pub(super) fn kill_group(&self) {
        if self.is_alive() {
            // One that is just ending is what was wanted.
            let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }

    /// Not reaped yet.
    pub(super) fn is_alive(&self) -> bool {
        matches!(self.stage, Stage::Launching(_) | Stage::Running | Stage::Failed)
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Running)
    }

    /// It was reaped.
    pub(super) fn ended(&mut self, exit: Exit) {
        self.kill_at = None;
        self.stage = match self.stage {
            Stage::Failed => Stage::Gone,
            _ => Stage::Draining(exit, Instant::now() + DRAIN),
        };
    }

    /// When something has to be done about it.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Draining(_, until) => Some(until),
            _ => self.kill_at,
        }
    }
}
