//! The life of a machine: boot or restore, greeting, being saved and going on, end.

use super::boot::{self, Qemu};
use super::clone::{Clone, micros};
use super::link::{Link, LinkError};
use super::template::SaveOrder;
use super::{Machine, Phase};
use crate::supervisor::files::MACHINE;
use crate::supervisor::proto::{IdentityParts, PodNetwork, Restored, TEMPLATE_STATE, VmMemory};
use cumulet_guest_proto::message::{Request, Snapshot};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long the guest may take from the start of QEMU to its agent's answer. Seconds in software emulation on a
/// machine at rest.
const BOOT: Duration = Duration::from_secs(120);
/// How long a clone's agent may take: it only has to go on.
const GREETING: Duration = Duration::from_secs(20);
/// When the channel breaks, how long QEMU may take to say a better reason.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A QEMU that runs, and our end of its channel.
pub(super) struct Running {
    qemu: Qemu,
    channel: UnixStream,
    link: Rc<Link>,
    greeted: oneshot::Receiver<Snapshot>,
    /// It was restored, in so much time.
    clone: Option<Rc<Clone>>,
    /// Who waits for it to go on as the pod that it was.
    goes_on: Option<(IdentityParts, oneshot::Sender<Result<(), String>>)>,
}

/// Why one QEMU is over.
enum Outcome {
    /// For good; true when the channel broke first.
    Over(String, bool),
    /// It was saved.
    Saved(SaveOrder),
}

impl Machine {
    /// Starts the machine: boots it, or restores it from its template.
    pub(super) async fn first(&self, network: &PodNetwork) -> Result<Running, String> {
        let vm = self.vm();
        let (link, greeted) = Link::new(boot::epoch());
        if let VmMemory::Clone { state, notes } = &vm.memory {
            let clone = Clone::new(notes.clone(), &link);
            let (qemu, channel) = self.restore(network, state, &clone).await?;
            return Ok(Running { qemu, channel, link, greeted, clone: Some(clone), goes_on: None });
        }
        let (ours, theirs) = UnixStream::pair().map_err(|e| format!("channel: {e}"))?;
        let memory = match &vm.memory {
            VmMemory::Template => Some(self.memory.as_ref().ok_or("the template has no memory")?),
            _ => None,
        };
        let qemu = Qemu::start(&self.record, &vm, network, theirs, memory).await?;
        Ok(Running { qemu, channel: ours, link, greeted, clone: None, goes_on: None })
    }

    async fn restore(
        &self,
        network: &PodNetwork,
        state: &Path,
        clone: &Clone,
    ) -> Result<(Qemu, UnixStream), String> {
        let (ours, theirs) = UnixStream::pair().map_err(|e| format!("channel: {e}"))?;
        let memory = self.memory.as_ref().ok_or("the template has no memory")?;
        let (qemu, [spawn_us, load_us]) =
            Qemu::restore(&self.record, &self.vm(), network, theirs, (state, memory)).await?;
        clone.restored.replace(Restored { spawn_us, load_us, pid: qemu.pid(), ..Restored::default() });
        Ok((qemu, ours))
    }

    /// The machine's life, from the start of QEMU to its end.
    pub(super) async fn run(self: Rc<Self>, first: Running, network: PodNetwork) {
        let link = first.link.clone();
        *self.link.borrow_mut() = Some(link.clone());
        let mut next = Ok(first);
        let why = loop {
            let running = match next {
                Ok(running) => running,
                Err(why) => break why,
            };
            let qemu = running.qemu.clone();
            match self.live(running, &network).await {
                Outcome::Saved(order) => {
                    qemu.kill().await;
                    let _ = order.send(Ok(()));
                    next = self.next(&link, &network).await;
                }
                Outcome::Over(why, broken) => {
                    // A channel breaks a moment before the end of the process that held it is known.
                    let better = if broken { timeout(LAST_WORDS, qemu.ended()).await.ok() } else { None };
                    qemu.kill().await;
                    break better.unwrap_or(why);
                }
            }
        };
        let why =
            if self.stopping.get() { why } else { format!("{why}{}", boot::console_tail(&self.record.dir)) };
        tracing::info!(why, "the machine has ended");
        self.phase.send_replace(Phase::Gone(why));
        link.end();
        self.fewer.notify_waiters();
    }

    /// One QEMU, until it is over.
    async fn live(&self, running: Running, network: &PodNetwork) -> Outcome {
        let Running { qemu, channel, link, greeted, clone, goes_on } = running;
        let serving = async {
            let greeted = match (clone, goes_on) {
                (None, _) => self.greet(&link, greeted, network).await,
                (Some(clone), None) => self.greet_clone(&link, greeted, network, clone).await,
                (Some(clone), Some((parts, waiting))) => {
                    let result = self.greet_again(&link, greeted, &clone, &parts).await;
                    let _ = waiting.send(result.clone());
                    result
                }
            };
            match greeted {
                Ok(()) => {
                    qemu.answered();
                    self.phase.send_replace(Phase::Ready);
                    Outcome::Saved(self.saved(&link, &qemu).await)
                }
                Err(why) => Outcome::Over(why, false),
            }
        };
        tokio::select! {
            // Dropping the others is sound: this QEMU is over.
            why = link.run(channel) => Outcome::Over(why, true),
            why = qemu.ended() => Outcome::Over(why, false),
            outcome = serving => outcome,
            () = self.stop.notified() => {
                let fault = self.fault.borrow().clone();
                Outcome::Over(fault.unwrap_or_else(|| "the pod was shut down".to_owned()), false)
            }
        }
    }

    /// After a save: waits for the order to go on, as a clone of what was saved.
    async fn next(&self, link: &Rc<Link>, network: &PodNetwork) -> Result<Running, String> {
        let (parts, waiting) = tokio::select! {
            // Dropping the other is sound: the machine is over.
            order = self.go_on_ordered() => order,
            () = self.stop.notified() => return Err("the pod was shut down".to_owned()),
        };
        self.orders.standing.set(false);
        let state = self.record.dir.join(MACHINE).join(TEMPLATE_STATE);
        // Its streams go on in the same link.
        let clone = Clone::again(self.orders.notes.borrow().clone());
        let greeted = link.begin_again(boot::epoch());
        match self.restore(network, &state, &clone).await {
            Ok((qemu, channel)) => {
                let (link, clone, goes_on) = (link.clone(), Some(clone), Some((parts, waiting)));
                Ok(Running { qemu, channel, link, greeted, clone, goes_on })
            }
            Err(why) => {
                let _ = waiting.send(Err(why.clone()));
                Err(why)
            }
        }
    }

    /// Waits for the agent and makes the guest a pod.
    async fn greet(
        &self,
        link: &Link,
        greeted: oneshot::Receiver<Snapshot>,
        network: &PodNetwork,
    ) -> Result<(), String> {
        let snapshot = greeting(greeted, BOOT).await?;
        tracing::info!(snapshot.kernel, snapshot.uptime_us, "the guest has answered");
        let vm = self.vm();
        let etc = self.files.etc(&vm.etc).map_err(|e| format!("{}: {e}", vm.etc.display()))?;
        let pod = boot::pod(&self.record.sandbox(), &vm, network, etc)?;
        match link.request(Request::Configure(Box::new(pod))).await {
            Ok(_) => Ok(()),
            Err(LinkError::Refused(_, message)) => Err(format!("the guest cannot become the pod: {message}")),
            Err(_) => Err("the guest did not become the pod".to_owned()),
        }
    }

    /// Waits for the agent of a clone. It waits for its identity, which comes with the first start order.
    async fn greet_clone(
        &self,
        link: &Link,
        greeted: oneshot::Receiver<Snapshot>,
        network: &PodNetwork,
        clone: Rc<Clone>,
    ) -> Result<(), String> {
        self.greeted(greeted, &clone).await?;
        if self.record.sandbox().standby {
            self.rehearse(link, &clone, network).await?;
            self.record.save();
        }
        self.clone.replace(Some(clone));
        Ok(())
    }

    /// Waits for the agent of the first clone, which has the pod's containers already, and lets them go on.
    async fn greet_again(
        &self,
        link: &Link,
        greeted: oneshot::Receiver<Snapshot>,
        clone: &Clone,
        parts: &IdentityParts,
    ) -> Result<(), String> {
        self.greeted(greeted, clone).await?;
        self.adopt(link, clone, parts).await.map(drop)
    }

    async fn greeted(&self, greeted: oneshot::Receiver<Snapshot>, clone: &Clone) -> Result<(), String> {
        let began = Instant::now();
        let snapshot = greeting(greeted, GREETING).await?;
        clone.restored.borrow_mut().greet_us = micros(began);
        clone.check(&snapshot)
    }
}

async fn greeting(greeted: oneshot::Receiver<Snapshot>, limit: Duration) -> Result<Snapshot, String> {
    match timeout(limit, greeted).await {
        Ok(Ok(snapshot)) => Ok(snapshot),
        Ok(Err(_)) => Err("the channel to the guest was closed".to_owned()),
        Err(_) => Err(format!("the guest did not answer within {} s", limit.as_secs())),
    }
}
