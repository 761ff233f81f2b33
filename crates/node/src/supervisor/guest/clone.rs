//! A machine that goes on where its template was: the containers in it stand still until it has an identity of its own.
//!
//! ```text
//!   Restoring ─► Waiting ──(rehearsed: Standby)──► (first start order of a container that runs in the template)
//!                                                     Adopting ─► Own      containers go on
//!                                                         └─► the machine is killed, nothing was thawed
//! ```
//!
//! The pod's order of starts is kept: an init container of the template counts as ended when its start is ordered, the
//! others as started. The first of these brings the identity with it. Later instances are started like anywhere.

use super::boot;
use super::link::{Link, LinkError, Opened};
use super::{self as guest, Machine};
use crate::supervisor::backend::refuse;
use crate::supervisor::proto::{
    ContainerStart, Ended, Event, IdentityParts, InstanceState, PodNetwork, Reply, Restored, SandboxSpec,
    TemplateNotes, VmMemory,
};
use crate::supervisor::record::{new_id, now_us};
use cumulet_container::Resources;
use cumulet_container::cgroup::Cgroup;
use cumulet_guest_proto::identity::{Identity, IdentityReport, Phase};
use cumulet_guest_proto::message::{self, Request, Snapshot};
use cumulet_guest_proto::spec::{File, FileTree};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// Reason of a start that failed because the clone could not become the pod.
pub(super) const IDENTITY_FAILED: &str = "IdentityFailed";
/// How long each phase of taking on an identity may last, but for the hook. Milliseconds on a machine at rest; this is
/// for emulation on one that has too much to do.
const PHASE: Duration = Duration::from_secs(10);

/// A question for the guest's clock that took no longer is good enough: it is wrong by half of it at most.
const CLOCK_GOOD_US: i64 = 20_000;
/// So much longer is good enough with every further question: on a machine that has too much to do each takes long.
const CLOCK_PATIENCE_US: i64 = 4_000;
/// Most such questions. The last is good enough with 96 ms.
const CLOCK_QUESTIONS: u8 = 20;

/// The share of the processors that a cgroup begins with, in the units of version 1.
const SHARES: u64 = 1024;

/// A clone, until all containers of its template were ordered.
pub(super) struct Clone {
    notes: TemplateNotes,
    /// Streams of the containers that run, until they are taken over.
    streams: RefCell<HashMap<String, Opened>>,
    /// Names whose first instance has been dealt with.
    taken: RefCell<Vec<String>>,
    adopted: OnceCell<()>,
    pub(super) restored: RefCell<Restored>,
    generation: Cell<u64>,
}

impl Clone {
    /// Prepares the link for the streams of the template.
    pub(super) fn new(notes: TemplateNotes, link: &Link) -> Rc<Self> {
        let running = notes.containers.iter().filter(|(_, of)| of.running);
        let streams = running.map(|(name, of)| (name.clone(), link.inherit_stream(of.stream))).collect();
        Rc::new(Self {
            notes,
            streams: RefCell::new(streams),
            taken: RefCell::default(),
            adopted: OnceCell::new(),
            restored: RefCell::default(),
            generation: Cell::new(0),
        })
    }

    /// The same for a machine that has become a template and goes on: its containers have their streams.
    pub(super) fn again(notes: TemplateNotes) -> Rc<Self> {
        Rc::new(Self {
            notes,
            streams: RefCell::default(),
            taken: RefCell::default(),
            adopted: OnceCell::new(),
            restored: RefCell::default(),
            generation: Cell::new(0),
        })
    }

    /// Whether the guest is what the template says.
    pub(super) fn check(&self, snapshot: &Snapshot) -> Result<(), String> {
        if !snapshot.frozen || !snapshot.configured {
            return Err("the template's containers do not stand still".to_owned());
        }
        for (name, of) in self.notes.containers.iter().filter(|(_, of)| of.running) {
            let found = snapshot.containers.get(name).is_some_and(|instance| {
                instance.attempt == of.attempt
                    && instance.stream == of.stream
                    && matches!(instance.state, message::InstanceState::Running { .. })
            });
            if !found {
                return Err(format!("container {name} does not run in the template"));
            }
        }
        self.generation.set(snapshot.generation);
        Ok(())
    }

    fn next_generation(&self) -> u64 {
        self.generation.set(self.generation.get() + 1);
        self.generation.get()
    }
}

impl Machine {
    /// Goes through an identity that nobody sees: in emulation, what the agent does for the first time is slow. The
    /// network is that of the pod to come, so that nothing of the template's leaves the machine.
    pub(super) async fn rehearse(
        &self,
        link: &Link,
        clone: &Clone,
        network: &PodNetwork,
    ) -> Result<(), String> {
        let nobody = File { content: b"standby\n".to_vec().into(), mode: 0o644, uid: None };
        let identity = Identity {
            generation: clone.next_generation(),
            etc: FileTree::from([("hostname".to_owned(), nobody)]),
            hostname: "standby".to_owned(),
            machine_id: "0".repeat(32),
            thaw: false,
            ..self.identity(network, &IdentityParts::default())?
        };
        take_on(link, identity).await.map(drop)
    }

    /// What makes the guest the pod, files left out.
    fn identity(&self, network: &PodNetwork, parts: &IdentityParts) -> Result<Identity, String> {
        let pod = boot::pod(&self.record.sandbox(), &self.vm(), network, FileTree::new())?;
        Ok(Identity {
            entropy: pod.entropy,
            clock_us: now_us(),
            hostname: pod.hostname,
            machine_id: pod.machine_id,
            boot_id: boot::boot_id().map_err(|e| format!("/dev/urandom: {e}"))?,
            network: pod.network,
            document: parts.document.clone().into_bytes().into(),
            env: parts.env.iter().flat_map(|line| [line, "\n"]).collect::<String>().into_bytes().into(),
            after_restore: parts.after_restore.clone(),
            thaw: true,
            ..Identity::default()
        })
    }

    /// Makes the clone the pod and lets its containers go on.
    pub(super) async fn adopt(
        &self,
        link: &Link,
        clone: &Clone,
        parts: &IdentityParts,
    ) -> Result<IdentityReport, String> {
        let network = self.record.network().ok_or("the clone has no network")?;
        let began = Instant::now();
        let vm = self.vm();
        let files = |e: std::io::Error| format!("cannot read the pod's files: {e}");
        // One that would tell the same files at the same moment waits.
        let _one = self.telling.lock().await;
        let etc = self.files.etc(&vm.etc).map_err(files)?;
        let mut volumes = BTreeMap::new();
        for change in self.files.changes(&vm.etc, &vm.volumes).map_err(files)? {
            if let Request::WriteFiles { volume, files } = change {
                volumes.insert(volume, files);
            }
        }
        let generation = clone.next_generation();
        let mut identity = Identity { generation, etc, volumes, ..self.identity(&network, parts)? };
        on_time(link, &mut identity).await;
        let report = take_on(link, identity).await?;
        self.orders.generation.set(generation);
        {
            let mut restored = clone.restored.borrow_mut();
            restored.identity_us = micros(began);
            restored.phases.clone_from(&report.phases);
            restored.connections_aborted = report.connections_aborted;
        }
        self.record.tell(&Event::Restored(clone.restored.borrow().clone()));
        Ok(report)
    }

    /// Lets a machine that stood still for a moment go on as who it is: its clock has stood still, too. Its connections
    /// are its own.
    pub(super) async fn be_again(&self, link: &Link, parts: &IdentityParts) -> Result<(), String> {
        let network = self.record.network().ok_or("the machine has no network")?;
        let vm = self.vm();
        let etc = self.files.etc(&vm.etc).map_err(|e| format!("cannot read the pod's files: {e}"))?;
        let generation = self.orders.generation.get() + 1;
        let own = self.identity(&network, parts)?;
        let mut identity = Identity { generation, etc, network: None, after_restore: None, ..own };
        on_time(link, &mut identity).await;
        take_on(link, identity).await?;
        self.orders.generation.set(generation);
        Ok(())
    }

    /// Carries out an order for the first instance of a container that is in the template; `None` when it is not.
    pub(super) async fn take_over(self: &Rc<Self>, order: &ContainerStart) -> Option<Result<(), Reply>> {
        // A main process that has just come may order before the clone has answered; that it is one is known then.
        if matches!(self.vm().memory, VmMemory::Clone { .. })
            && let Err(reply) = self.ready().await
        {
            return Some(Err(reply));
        }
        let clone = self.clone.borrow().clone()?;
        let of = clone.notes.containers.get(&order.name)?.clone();
        if clone.taken.borrow().contains(&order.name) {
            return None;
        }
        Some(
            async {
                let link = self.ready().await?;
                let id = new_id().map_err(|e| refuse("CreateContainerError", e))?;
                if of.running {
                    let parts = order.guest.as_ref().and_then(|guest| guest.identity.clone());
                    let parts = parts.ok_or_else(|| refuse(IDENTITY_FAILED, "the order has no identity"))?;
                    // Only success is kept; after a failure the machine is over.
                    let adopted = clone
                        .adopted
                        .get_or_try_init(|| async { self.adopt(&link, &clone, &parts).await.map(drop) });
                    if let Err(why) = adopted.await {
                        let why = format!("the clone did not take on its identity: {why}");
                        self.give_up(why.clone());
                        return Err(refuse(IDENTITY_FAILED, why));
                    }
                }
                clone.taken.borrow_mut().push(order.name.clone());
                self.bases.borrow_mut().insert(order.name.clone(), (order.attempt, of.attempt));
                let stream = clone.streams.borrow_mut().remove(&order.name);
                match stream {
                    Some(opened) => self.started(order, id, &link, opened, true),
                    None => self.record.put(&order.name, order.attempt, id.clone(), completed(id)),
                }
                Ok(())
            }
            .await,
        )
    }

    /// Gives a standby its pod.
    pub(in crate::supervisor) async fn become_pod(
        &self,
        mut sandbox: SandboxSpec,
        network: PodNetwork,
    ) -> Reply {
        if !self.record.sandbox().standby {
            return refuse("Conflict", "this is a pod already");
        }
        if *self.phase.borrow() != guest::Phase::Ready {
            return refuse("Conflict", "the standby is not ready");
        }
        let Some(vm) = sandbox.vm.take() else {
            return refuse("Conflict", "the pod is not a virtual machine");
        };
        let limits = Resources { cpu_shares: vm.limits.cpu_shares.or(Some(SHARES)), ..vm.limits.clone() };
        let limited = Cgroup::new(&sandbox.cgroup).and_then(|cgroup| cgroup.limit(&limits));
        if let Err(error) = limited {
            return refuse("CgroupError", error);
        }
        self.vm.replace(Rc::new(*vm));
        self.record.set_sandbox(sandbox);
        self.record.set_network(network);
        if let Some(clone) = self.clone.borrow().as_ref() {
            clone.restored.borrow_mut().standby = true;
        }
        Reply::Ok
    }
}

/// Tells the guest what time it is, as exactly as can be.
async fn on_time(link: &Link, identity: &mut Identity) {
    if let Ok(Some((clock_us, at_us))) = timeout(PHASE, clock(link)).await {
        (identity.clock_us, identity.clock_at_us) = (clock_us, Some(at_us));
    }
}

/// What time it was at a moment of the guest's own clock: in the middle between a question and its answer.
async fn clock(link: &Link) -> Option<(i64, u64)> {
    let mut best: Option<(i64, i64, u64)> = None;
    for question in 0..CLOCK_QUESTIONS {
        let asked = now_us();
        let Ok(message::Reply::Clock { monotonic_us }) = link.request(Request::Clock).await else { break };
        let took = now_us() - asked;
        if best.is_none_or(|(least, ..)| took < least) {
            best = Some((took, asked + took / 2, monotonic_us));
        }
        let good_us = CLOCK_GOOD_US + i64::from(question) * CLOCK_PATIENCE_US;
        if best.is_some_and(|(least, ..)| least <= good_us) {
            break;
        }
    }
    best.map(|(_, clock_us, at_us)| (clock_us, at_us))
}

/// Has the agent take on an identity, with a deadline for each phase of it.
async fn take_on(link: &Link, identity: Identity) -> Result<IdentityReport, String> {
    let hook =
        identity.after_restore.as_ref().map_or(Duration::ZERO, |h| Duration::from_millis(h.timeout_ms));
    // Before the order, so that no phase is missed.
    let mut phases = link.phases();
    let mut last = None;
    let mut answer = std::pin::pin!(link.request(Request::Adopt(Box::new(identity))));
    loop {
        let limit = if last == Some(Phase::Files) { PHASE + hook } else { PHASE };
        tokio::select! {
            // The request goes on in the next round.
            answer = &mut answer => return match answer {
                Ok(message::Reply::Adopted(report)) => Ok(report),
                Ok(_) => Err("the guest gave another answer".to_owned()),
                Err(LinkError::Refused(_, message)) => Err(message),
                Err(LinkError::Gone) => Err("the machine has ended".to_owned()),
                Err(LinkError::Silent) => Err("no answer".to_owned()),
            },
            next = timeout(limit, phases.changed()) => match next {
                Ok(Ok(())) => last = *phases.borrow_and_update(),
                _ => {
                    let after = last.map_or_else(String::new, |phase| format!(" after the phase {phase:?}"));
                    return Err(format!("no answer within {} s{after}", limit.as_secs()));
                }
            },
        }
    }
}

/// The end of an init container in the template.
fn completed(id: String) -> InstanceState {
    let now = now_us();
    InstanceState::Ended(Ended {
        id,
        exit_code: 0,
        signal: 0,
        reason: "Completed".to_owned(),
        message: String::new(),
        started_at_us: now,
        finished_at_us: now,
    })
}

pub(super) fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
