//! Making a running pod a template: everything in it stands still, is saved, and goes on as the first clone.
//!
//! The order is what makes it exact. Containers are frozen first; what they wrote before is taken out of the guest and
//! acknowledged, so that no clone says it again; then the machine is paused and its devices are saved. The memory is
//! saved by not touching it any more: QEMU ends, and the file that it shared is the template's.

use super::boot::Qemu;
use super::clone::micros;
use super::link::{Link, LinkError};
use super::{Machine, Phase};
use crate::supervisor::backend::refuse;
use crate::supervisor::files::{self, MACHINE};
use crate::supervisor::proto::{
    CHECKPOINT_MEMORY, Ended, IdentityParts, InstanceState, Reply, TEMPLATE_NOTES, TEMPLATE_STATE,
    TemplateContainer, TemplateNotes, VmMemory,
};
use cumulet_guest_proto::message::Request;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long the guest may take to stand still and be saved.
const SAVE: Duration = Duration::from_secs(60);

/// An order to save, and who waits for it.
pub(super) type SaveOrder = oneshot::Sender<Result<(), String>>;
/// An order to go on, and who waits for it.
pub(super) type ContinueOrder = (IdentityParts, oneshot::Sender<Result<(), String>>);

/// What came of an order; without an answer the machine has ended.
async fn outcome(receiver: oneshot::Receiver<Result<(), String>>, reason: &str) -> Reply {
    let ended = |_| Err("the machine has ended".to_owned());
    receiver.await.unwrap_or_else(ended).map_or_else(|why| refuse(reason, why), |()| Reply::Ok)
}

impl Machine {
    /// [`crate::supervisor::proto::Request::SaveTemplate`].
    pub(in crate::supervisor) async fn save_template(&self) -> Reply {
        if self.vm().memory != VmMemory::Template || *self.phase.borrow() != Phase::Ready {
            return refuse("Conflict", "this machine cannot become a template now");
        }
        if self.orders.standing.replace(true) {
            return refuse("Conflict", "this machine is being saved already");
        }
        let (sender, receiver) = oneshot::channel();
        self.orders.save.borrow_mut().replace(sender);
        self.orders.told.notify_one();
        outcome(receiver, "SnapshotFailed").await
    }

    /// [`crate::supervisor::proto::Request::Checkpoint`].
    pub(in crate::supervisor) async fn checkpoint(&self, parts: IdentityParts) -> Reply {
        if self.vm().memory == VmMemory::Own {
            let why = "only pods of the class vm-snapshot can be saved: others have a balloon and volumes of the host";
            return refuse("Conflict", why);
        }
        if *self.phase.borrow() != Phase::Ready || self.record.sandbox().standby {
            return refuse("Conflict", "this machine is not running");
        }
        if self.orders.standing.replace(true) {
            return refuse("Conflict", "this machine is being saved already");
        }
        let (sender, receiver) = oneshot::channel();
        self.orders.checkpoint.borrow_mut().replace((parts, sender));
        self.orders.told.notify_one();
        outcome(receiver, "SnapshotFailed").await
    }

    /// [`crate::supervisor::proto::Request::Continue`].
    pub(in crate::supervisor) async fn go_on(&self, parts: IdentityParts) -> Reply {
        // A main process that has just come does not know how far the one before it was.
        if !self.orders.standing.get() {
            return Reply::Ok;
        }
        let (sender, receiver) = oneshot::channel();
        self.orders.go_on.borrow_mut().replace((parts, sender));
        self.orders.told.notify_one();
        outcome(receiver, "RestoreFailed").await
    }

    /// Waits for the order to save and carries it out. Returns when the machine is saved and paused, with who is to be
    /// told when it has ended; after a failure the pod goes on and the next order is waited for.
    pub(super) async fn saved(&self, link: &Link, qemu: &Qemu) -> SaveOrder {
        loop {
            self.orders.told.notified().await;
            let late = || Err(format!("it took more than {} s", SAVE.as_secs()));
            let checkpoint = self.orders.checkpoint.borrow_mut().take();
            if let Some((parts, order)) = checkpoint {
                let saved = async {
                    self.save(link, qemu).await?;
                    self.copy_memory(qemu).await
                };
                let result = timeout(SAVE, saved).await.unwrap_or_else(|_| late());
                if result.is_err() {
                    // Nobody is going to fetch it, and it is as large as the guest. There may be none.
                    let _ = std::fs::remove_file(self.record.dir.join(MACHINE).join(CHECKPOINT_MEMORY));
                }
                qemu.resume().await;
                if let Err(why) = self.be_again(link, &parts).await {
                    tracing::warn!(why, "the machine was saved and does not go on as it should");
                    let _ = link.request(Request::Thaw).await;
                }
                self.orders.standing.set(false);
                let _ = order.send(result);
                continue;
            }
            let Some(order) = self.orders.save.borrow_mut().take() else { continue };
            match timeout(SAVE, self.save(link, qemu)).await.unwrap_or_else(|_| late()) {
                Ok(()) => return order,
                Err(why) => {
                    self.go_on_as_it_was(link, qemu).await;
                    let _ = order.send(Err(why));
                    if let Some((_, waiting)) = self.orders.go_on.borrow_mut().take() {
                        let _ = waiting.send(Ok(()));
                    }
                }
            }
        }
    }

    async fn go_on_as_it_was(&self, link: &Link, qemu: &Qemu) {
        qemu.resume().await;
        // A guest that does not thaw ends by its probes.
        let _ = link.request(Request::Thaw).await;
        self.orders.standing.set(false);
    }

    async fn copy_memory(&self, qemu: &Qemu) -> Result<(), String> {
        let path = self.record.dir.join(MACHINE).join(CHECKPOINT_MEMORY);
        let failed = |e: std::io::Error| format!("{}: {e}", path.display());
        // Of an earlier one that nobody has taken.
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(failed(error));
        }
        let memory = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        qemu.copy_memory(memory.map_err(failed)?).await
    }

    async fn save(&self, link: &Link, qemu: &Qemu) -> Result<(), String> {
        let containers = self.in_template()?;
        // Commands of people and probes are not a part of the application.
        for stream in link.streams() {
            if containers.values().all(|of| !of.running || of.stream != stream) {
                link.post(Request::KillExec { stream });
            }
        }
        let what = |what: &'static str| {
            move |error: LinkError| match error {
                LinkError::Refused(_, message) => format!("{what}: {message}"),
                LinkError::Silent | LinkError::Gone => format!("{what}: the guest does not answer"),
            }
        };
        link.request(Request::Quiesce).await.map_err(what("the guest does not stand still"))?;
        // By its answer the agent has emptied the pipes, ...
        link.request(Request::Stats).await.map_err(what("output"))?;
        link.settle().await;
        // ... and by the next it knows that all of it was taken.
        link.request(Request::Stats).await.map_err(what("output"))?;
        let began = Instant::now();
        let dir = self.record.dir.join(MACHINE);
        let path = dir.join(TEMPLATE_STATE);
        let state = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        qemu.save(state.map_err(|e| format!("{}: {e}", path.display()))?).await?;
        let notes = TemplateNotes { containers, pause_us: micros(began), made_of: None };
        files::write_json(&dir.join(TEMPLATE_NOTES), &notes).map_err(|e| format!("{TEMPLATE_NOTES}: {e}"))?;
        self.orders.notes.replace(notes);
        Ok(())
    }

    /// The containers as a clone will find them.
    fn in_template(&self) -> Result<BTreeMap<String, TemplateContainer>, String> {
        let mut containers = BTreeMap::new();
        for (name, instance) in self.record.containers() {
            let live = self.find(&name);
            let attempt = self.guest_attempt(&name, instance.attempt);
            let of = match (&instance.state, live) {
                (InstanceState::Running { .. }, Some(live)) => {
                    TemplateContainer { attempt, stream: live.stream, running: true }
                }
                (InstanceState::Ended(Ended { exit_code: 0, .. }), None) => {
                    TemplateContainer { attempt, stream: 0, running: false }
                }
                _ => return Err(format!("container {name} has failed")),
            };
            containers.insert(name, of);
        }
        Ok(containers)
    }

    /// Waits for the order to go on.
    pub(super) async fn go_on_ordered(&self) -> ContinueOrder {
        loop {
            if let Some(order) = self.orders.go_on.borrow_mut().take() {
                return order;
            }
            self.orders.told.notified().await;
        }
    }
}
