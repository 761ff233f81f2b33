//! The phase of a pod.

use crate::container::{ContainerLife, Run};
use crate::digest::{ContainerDigest, Role};
use crate::machine::{Cause, PodLife};

/// A terminal phase, with the pod's own reason and message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Terminal {
    pub(crate) succeeded: bool,
    pub(crate) reason: Option<String>,
    pub(crate) message: Option<String>,
}

impl PodLife {
    /// Once nothing runs any more, the ending pod's phase is settled for good.
    pub(crate) fn note_terminal(&mut self) {
        if self.terminal.is_some() || self.containers.iter().any(ContainerLife::is_active) {
            return;
        }
        let Some(ending) = &self.ending else { return };
        let (reason, message) = match &ending.cause {
            Cause::Failed { reason, message } => (Some(reason.clone()), Some(message.clone())),
            Cause::Completed | Cause::Deleted => (None, None),
        };
        let succeeded =
            reason.is_none() && self.apps().all(|(_, c)| c.ended().is_some_and(|e| e.exit_code == 0));
        self.terminal = Some(Terminal { succeeded, reason, message });
    }

    /// `status.phase`.
    pub(crate) fn phase(&self) -> &'static str {
        match &self.terminal {
            Some(Terminal { succeeded: true, .. }) => "Succeeded",
            Some(Terminal { succeeded: false, .. }) => "Failed",
            None if self.begun() => "Running",
            None => "Pending",
        }
    }

    /// No init container and no sidecar holds up the app containers.
    fn init_through(&self) -> bool {
        let open = |d: &ContainerDigest, c: &ContainerLife| match d.role {
            Role::Init => !c.done,
            Role::Sidecar => !c.started,
            Role::App => false,
        };
        self.initialized || !self.digest.containers.iter().zip(&self.containers).any(|(d, c)| open(d, c))
    }

    /// Every app container has been started at least once.
    fn begun(&self) -> bool {
        self.init_through()
            && self.apps().all(|(_, c)| match &c.run {
                Run::Running(_) | Run::Ended(_) => true,
                Run::Starting { before, .. } => before.is_some(),
                Run::Idle => false,
            })
    }
}
