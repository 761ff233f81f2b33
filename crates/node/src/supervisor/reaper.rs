//! Collects the children that ended and tells whoever waits for them.
//!
//! Only this module calls `waitpid` for any child (libcontainer waits for its own intermediate process by number).
//! A process is registered in the same step that starts it, before the reaper can run, so no end is missed; and as
//! long as it is registered its number is not used again.

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExitStatus {
    /// Exit code; 128 + signal for a killed process.
    pub(super) code: i32,
    /// The signal that killed it, or 0.
    pub(super) signal: i32,
}

/// Those who wait, by process id.
#[derive(Clone, Default)]
pub(super) struct Reaper {
    waiting: Rc<RefCell<HashMap<i32, oneshot::Sender<ExitStatus>>>>,
}

impl Reaper {
    /// Starts collecting.
    pub(super) fn start() -> io::Result<Self> {
        let reaper = Self::default();
        let mut children = signal(SignalKind::child())?;
        let collector = reaper.clone();
        // Lives as long as the supervisor.
        tokio::task::spawn_local(async move {
            while children.recv().await.is_some() {
                collector.collect();
            }
        });
        Ok(reaper)
    }

    /// Registers a child that was just started.
    pub(super) fn expect(&self, pid: i32) -> oneshot::Receiver<ExitStatus> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().insert(pid, sender);
        receiver
    }

    /// True while the child has not been collected, so that its number is safe to signal.
    pub(super) fn is_alive(&self, pid: i32) -> bool {
        self.waiting.borrow().contains_key(&pid)
    }

    fn collect(&self) {
        loop {
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, ExitStatus { code, signal: 0 }),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid, ExitStatus { code: 128 + signal as i32, signal: signal as i32 })
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "waitpid");
                    return;
                }
            };
            self.tell(pid, status);
        }
    }

    fn tell(&self, pid: Pid, status: ExitStatus) {
        if let Some(sender) = self.waiting.borrow_mut().remove(&pid.as_raw()) {
            // Whoever waited may have gone.
            let _ = sender.send(status);
        }
    }
}
