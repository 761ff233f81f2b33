//! The pod's end: containers get their grace, then the power goes.

use super::Agent;
use super::process::Role;
use crate::container::cgroup::Cgroup;
use cumulet_guest_proto::guest::RequestId;
use cumulet_guest_proto::message::Reply;
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long killed containers may take to be gone, and their output to be fetched.
const AFTER_KILL: Duration = Duration::from_secs(2);

/// A shutdown that goes on.
pub(super) struct Shutdown {
    ids: Vec<RequestId>,
    kill_at: Instant,
    killed: bool,
}

impl Shutdown {
    pub(super) fn deadline(&self) -> Option<Instant> {
        Some(if self.killed { self.kill_at + AFTER_KILL } else { self.kill_at })
    }
}

impl Agent {
    /// Asks every container to end. A second request may shorten the grace.
    pub(super) fn begin_shutdown(&mut self, id: RequestId, grace: Duration) {
        let kill_at = Instant::now() + grace;
        if let Some(shutdown) = &mut self.shutdown {
            shutdown.ids.push(id);
            shutdown.kill_at = shutdown.kill_at.min(kill_at);
            return;
        }
        self.shutdown = Some(Shutdown { ids: vec![id], kill_at, killed: false });
        // A frozen process cannot end.
        if let Err(error) = self.set_frozen(false) {
            self.problem(error.text());
        }
        for process in self.processes.values().filter(|process| matches!(process.role, Role::Main(_))) {
            // One that is just ending is what is wanted.
            let _ = process.signal(Signal::SIGTERM);
        }
    }

    pub(super) fn escalate_shutdown(&mut self, now: Instant) {
        let Some(shutdown) = self.shutdown.as_mut().filter(|s| !s.killed && s.kill_at <= now) else { return };
        shutdown.killed = true;
        shutdown.kill_at = now;
        if let Err(error) = Cgroup::pod().kill() {
            self.problem(error.text());
        }
    }

    /// True when the power can go: nothing runs and all is told, or that takes too long. Answers the requests.
    pub(super) fn shutdown_is_due(&mut self) -> bool {
        let Some(shutdown) = &self.shutdown else { return false };
        let over = shutdown.killed && Instant::now() >= shutdown.kill_at + AFTER_KILL;
        if !self.processes.is_empty() && !over {
            return false;
        }
        let ids = self.shutdown.take().map(|shutdown| shutdown.ids).unwrap_or_default();
        ids.into_iter().for_each(|id| self.link.reply(id, Reply::Done));
        true
    }
}

/// Ends the machine. Without ACPI a machine cannot be powered off, but a reset ends it as well, since the host starts
/// machines so that they do not come back.
pub(crate) fn power_off() -> std::io::Error {
    crate::sys::sync_disks();
    let _ = nix::mount::umount2("/run/writable", nix::mount::MntFlags::MNT_DETACH);
    crate::sys::sync_disks();
    crate::sys::reboot(Path::new("/sys/firmware/acpi/tables").exists())
}
