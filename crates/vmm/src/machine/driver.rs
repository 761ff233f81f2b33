//! The task that owns a machine's process: turns what QEMU says and what the owner does into events, lets
//! [`State::apply`] decide, publishes the state, and kills what has failed. It ends when the process is reaped.

use super::state::{Event, State, Verdict};
use crate::qmp::QmpEvent;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// A process that dies closes its connection some moments before it can be reaped: as long as this, the connection's end
/// is waited on for its reason.
const REAPING: Duration = Duration::from_millis(500);

/// What the owner does, for the driver.
#[derive(Debug)]
pub(super) enum Order {
    Event(Event),
    Kill,
}

/// How the last transfer of a machine's state ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MigrationEnd {
    /// There was none.
    None,
    Completed,
    Failed,
}

/// The one writer of a machine's state.
pub(super) struct Driver {
    pub(super) child: Child,
    pub(super) state: watch::Sender<State>,
    pub(super) transfers: watch::Sender<MigrationEnd>,
    pub(super) ended: bool,
}

impl Driver {
    pub(super) async fn run(
        mut self,
        mut events: mpsc::Receiver<QmpEvent>,
        mut orders: mpsc::UnboundedReceiver<Order>,
        console: JoinHandle<()>,
    ) {
        let (mut connected, mut owned) = (true, true);
        while !self.ended {
            // Every arm is cancel-safe: receiving takes a whole message, and waiting for a child can be repeated.
            tokio::select! {
                biased;
                event = events.recv(), if connected => match event {
                    Some(event) => self.hear(&event),
                    None => {
                        connected = false;
                        self.connection_lost().await;
                    }
                },
                status = self.child.wait() => {
                    // What QEMU said last is about its end and comes first.
                    while let Ok(event) = events.try_recv() {
                        self.hear(&event);
                    }
                    self.exited(status);
                }
                order = orders.recv(), if owned => match order {
                    Some(Order::Event(event)) => self.apply(&event),
                    Some(Order::Kill) => self.kill(),
                    // All handles are gone: nobody wants the machine any more.
                    None => {
                        owned = false;
                        self.kill();
                    }
                },
            }
        }
        // QEMU's end closes the console's line; its last output is read before the task ends by itself.
        if console.await.is_err() {
            tracing::debug!("the console's task broke");
        }
    }

    fn hear(&mut self, event: &QmpEvent) {
        let end = match (event.name.as_str(), event.data["status"].as_str()) {
            ("MIGRATION", Some("completed")) => Some(MigrationEnd::Completed),
            ("MIGRATION", Some("failed")) => Some(MigrationEnd::Failed),
            _ => None,
        };
        if let Some(end) = end {
            self.transfers.send_replace(end);
        }
        if let Some(event) = translate(event) {
            self.apply(&event);
        }
    }

    fn apply(&mut self, event: &Event) {
        let verdict = self.state.borrow().apply(event);
        match verdict {
            Verdict::Next(next) => {
                tracing::debug!(?event, state = next.name(), "machine");
                let failed = matches!(next, State::Failed(_));
                self.state.send_replace(next);
                if failed && !self.ended {
                    self.kill();
                }
            }
            Verdict::Ignore => {}
            Verdict::Refuse(why) => tracing::debug!(?event, why, "refused"),
        }
    }

    /// The process was reaped.
    fn exited(&mut self, status: io::Result<ExitStatus>) {
        self.ended = true;
        let (code, signal) = status.map_or((None, None), |s| (s.code(), s.signal()));
        self.apply(&Event::Exited { code, signal });
    }

    /// A connection that closes because the process ends is no failure of its own: the process's status says more.
    async fn connection_lost(&mut self) {
        match timeout(REAPING, self.child.wait()).await {
            Ok(status) => self.exited(status),
            Err(_elapsed) => {
                self.kill();
                self.apply(&Event::ConnectionLost("closed by QEMU".to_owned()));
            }
        }
    }

    fn kill(&mut self) {
        if let Err(error) = self.child.start_kill() {
            tracing::debug!(%error, "QEMU is gone already");
        }
    }
}

/// What an event of QEMU means for the machine's life.
pub(super) fn translate(event: &QmpEvent) -> Option<Event> {
    match event.name.as_str() {
        "STOP" => Some(Event::Stopped),
        "RESUME" => Some(Event::Resumed),
        "GUEST_PANICKED" => Some(Event::GuestPanicked),
        "SHUTDOWN" => match event.data["reason"].as_str() {
            // Ordered from outside QEMU, or by us.
            Some("guest-shutdown" | "host-qmp-quit" | "host-signal" | "host-ui") => {
                Some(Event::GuestShutdown)
            }
            // A reset where none is allowed, or a panic that was told.
            Some("guest-reset" | "guest-panic") => Some(Event::GuestPanicked),
            other => Some(Event::InternalError(other.unwrap_or("unknown reason").chars().take(64).collect())),
        },
        _ => None,
    }
}
