//! A pod in a virtual machine: boots it, has its agent start the containers, and does what follows from their ends and
//! from the machine's own.
//!
//! ```text
//!   Absent ──ConfigureNetwork──► Booting ──(agent answered, pod configured)──► Ready
//!                                   └──────────────┬─────────────────────────────┘
//!                     QEMU ended, guest panicked, protocol broken, Shutdown
//!                                                  ▼
//!                       Gone(why): containers are recorded as ended, then the supervisor ends
//! ```
//!
//! Everything here runs on one thread. The guest is not trusted: what it says is only believed about its own
//! containers. When the supervisor dies, QEMU dies with it (the parent-death signal).

pub(super) mod boot;
mod clone;
mod files;
mod life;
mod link;
mod live;
mod order;
pub(super) mod session;
mod template;

use super::backend::refuse;
use super::log::last_bytes;
use super::output::Output;
use super::proto::{
    ContainerStart, Ended, InstanceState, PodNetwork, Reply, TemplateNotes, VmSpec, VmVolume,
};
use super::record::{MAX_MESSAGE, Record, is_name, new_id, now_us};
use clone::Clone;
use cumulet_container::cgroup::{Cgroup, CgroupError};
use cumulet_guest_proto::message::{Request, reason};
use files::Files;
use link::{End, Link, LinkError, Opened};
use live::Live;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::rc::Rc;
use std::time::Duration;
use template::{ContinueOrder, SaveOrder};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

/// How long everything may take to be gone when the pod is shut down.
const SHUTDOWN: Duration = Duration::from_secs(10);
/// How long a guest may take to write its disks and power itself off.
const FLUSH: Duration = Duration::from_secs(8);
/// Reason of a container's end that is the machine's.
pub(super) const MACHINE_FAILED: &str = "MachineFailed";

/// Where the machine is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Absent,
    Booting,
    Ready,
    Gone(String),
}

/// A pod in a virtual machine.
pub(super) struct Machine {
    record: Rc<Record>,
    vm: RefCell<Rc<VmSpec>>,
    /// The memory of the template that the machine is to become, or goes on from.
    memory: Option<File>,
    clone: RefCell<Option<Rc<Clone>>>,
    /// The first instance of each container of a template: its number for the pod, and for the agent.
    bases: RefCell<HashMap<String, (u32, u32)>>,
    orders: Orders,
    phase: watch::Sender<Phase>,
    link: RefCell<Option<Rc<Link>>>,
    files: Files,
    /// One at a time tells the guest of changed files.
    telling: tokio::sync::Mutex<()>,
    live: RefCell<HashMap<String, Rc<Live>>>,
    /// Names of containers whose start is under way.
    starting: RefCell<HashSet<String>>,
    /// Told whenever `live` or `starting` has lost one.
    fewer: Notify,
    stop: Notify,
    /// The end was asked for.
    stopping: Cell<bool>,
    /// Why the machine must end, when it was this program that found so.
    fault: RefCell<Option<String>>,
}

/// Orders for the machine's life, and what they leave for each other.
#[derive(Default)]
struct Orders {
    save: RefCell<Option<SaveOrder>>,
    checkpoint: RefCell<Option<ContinueOrder>>,
    go_on: RefCell<Option<ContinueOrder>>,
    /// It is being saved, or was and has not gone on yet.
    standing: Cell<bool>,
    notes: RefCell<TemplateNotes>,
    /// Of the identity that the guest has.
    generation: Cell<u64>,
    /// Told when there is an order.
    told: Notify,
}

impl Machine {
    pub(super) fn new(record: Rc<Record>, vm: VmSpec, memory: Option<File>) -> Rc<Self> {
        Rc::new(Self {
            record,
            vm: RefCell::new(Rc::new(vm)),
            memory,
            clone: RefCell::default(),
            bases: RefCell::default(),
            orders: Orders::default(),
            phase: watch::Sender::new(Phase::Absent),
            link: RefCell::default(),
            files: Files::default(),
            telling: tokio::sync::Mutex::default(),
            live: RefCell::default(),
            starting: RefCell::default(),
            fewer: Notify::new(),
            stop: Notify::new(),
            stopping: Cell::new(false),
            fault: RefCell::default(),
        })
    }

    fn vm(&self) -> Rc<VmSpec> {
        self.vm.borrow().clone()
    }

    /// The agent's number of an instance.
    fn guest_attempt(&self, container: &str, attempt: u32) -> u32 {
        let bases = self.bases.borrow();
        bases.get(container).map_or(attempt, |(ours, agents)| attempt.saturating_sub(*ours) + agents)
    }

    /// Ends the machine because of what was found out about it.
    fn give_up(&self, why: String) {
        self.fault.borrow_mut().get_or_insert(why);
        self.stop.notify_one();
    }

    /// The container, if it runs.
    fn find(&self, container: &str) -> Option<Rc<Live>> {
        self.live.borrow().get(container).cloned()
    }

    fn link(&self) -> Option<Rc<Link>> {
        self.link.borrow().clone()
    }

    /// Waits until the machine has ended without having been asked to, and its containers are recorded as ended.
    pub(super) async fn over(&self) {
        let mut phase = self.phase.subscribe();
        // The sender lives in `self`.
        let _ = phase.wait_for(|phase| matches!(phase, Phase::Gone(_))).await;
        self.all_ended().await;
        if self.stopping.get() {
            // The reply to the request ends the supervisor.
            std::future::pending::<()>().await;
        }
    }

    /// Boots the machine with its network, and answers when the guest is a pod.
    pub(super) async fn configure_network(self: &Rc<Self>, network: PodNetwork) -> Reply {
        if *self.phase.borrow() == Phase::Absent {
            self.phase.send_replace(Phase::Booting);
            // A main process that finds the machine booting must know whose address it has. A standby without a pod is
            // nothing that it could go on with.
            if !self.record.sandbox().standby {
                self.record.set_network(network.clone());
            }
            match self.first(&network).await {
                // Lives as long as the machine.
                Ok(first) => drop(tokio::task::spawn_local(self.clone().run(first, network.clone()))),
                Err(error) => drop(self.phase.send_replace(Phase::Gone(error))),
            }
        } else if self.record.network().is_some_and(|known| known != network) {
            return refuse("NetworkError", "a machine keeps the network that it was booted with");
        }
        match self.ready().await {
            Ok(_) => Reply::Ok,
            Err(reply) => reply,
        }
    }

    /// Waits until the guest is a pod.
    async fn ready(&self) -> Result<Rc<Link>, Reply> {
        let mut phase = self.phase.subscribe();
        let phase = phase.wait_for(|phase| matches!(phase, Phase::Ready | Phase::Gone(_))).await;
        let why = match phase.as_deref() {
            Ok(Phase::Gone(why)) => why.clone(),
            _ => match self.link() {
                Some(link) => return Ok(link),
                None => "the machine has no channel".to_owned(),
            },
        };
        Err(refuse(MACHINE_FAILED, why))
    }

    /// Starts an instance, unless it or a later one was started before.
    pub(super) async fn start(self: &Rc<Self>, order: ContainerStart) -> Reply {
        loop {
            if self.record.newest(&order.name).is_some_and(|newest| order.attempt <= newest) {
                return Reply::Ok;
            }
            let fewer = self.fewer.notified();
            if !self.starting.borrow().contains(&order.name) {
                break;
            }
            // An earlier connection gave the same order.
            fewer.await;
        }
        if self.live.borrow().contains_key(&order.name) {
            return refuse("StillRunning", format!("container {} still runs", order.name));
        }
        self.starting.borrow_mut().insert(order.name.clone());
        let result = match self.take_over(&order).await {
            Some(result) => result,
            None => self.try_start(&order).await,
        };
        self.starting.borrow_mut().remove(&order.name);
        self.fewer.notify_waiters();
        result.map_or_else(|reply| reply, |()| Reply::Ok)
    }

    async fn try_start(self: &Rc<Self>, order: &ContainerStart) -> Result<(), Reply> {
        let invalid = |message: String| refuse("CreateContainerError", message);
        let parts = order.guest.as_ref().filter(|_| is_name(&order.name));
        let parts = parts.ok_or_else(|| invalid("the order is not one for a virtual machine".to_owned()))?;
        let vm = self.vm();
        if let Some(missing) = parts.images.iter().find(|i| vm.images.iter().all(|known| known.serial != **i))
        {
            return Err(invalid(format!("image {missing} was not there when the pod's machine was booted")));
        }
        let link = self.ready().await?;
        self.tell_changes(&link).await.map_err(|e| invalid(format!("cannot write the pod's files: {e}")))?;
        let id = new_id().map_err(|e| invalid(e.to_string()))?;
        let opened = link.open_stream();
        let attempt = self.guest_attempt(&order.name, order.attempt);
        let start = order::guest_order(order, parts, &id, (opened.stream, attempt))
            .map_err(|error| refuse(error.reason(), error))?;
        match link.request(Request::Start(Box::new(start))).await {
            Ok(_) => self.started(order, id, &link, opened, false),
            Err(error) => {
                link.forget(opened.stream);
                return Err(self.refused(order, id, error));
            }
        }
        Ok(())
    }

    /// What a failed start means.
    fn refused(&self, order: &ContainerStart, id: String, error: LinkError) -> Reply {
        match error {
            LinkError::Refused(reason, message) if reason == reason::START_ERROR => {
                self.record.put_failed_start(order, id, &reason, message.clone());
                refuse(&reason, message)
            }
            LinkError::Refused(_, message) => refuse("CreateContainerError", message),
            LinkError::Silent => refuse("CreateContainerError", "the guest does not answer"),
            LinkError::Gone => refuse(MACHINE_FAILED, "the machine has ended"),
        }
    }

    /// Registers a container that runs, or has gone on.
    fn started(
        self: &Rc<Self>,
        order: &ContainerStart,
        id: String,
        link: &Rc<Link>,
        opened: Opened,
        restored: bool,
    ) {
        let live = Rc::new(Live {
            attempt: order.attempt,
            id: id.clone(),
            stream: opened.stream,
            started_at_us: now_us(),
            stdin: Cell::new(order.stdin),
            stdin_once: order.stdin_once,
            tty: order.tty,
            output: Output::new(self.record.open_log(&order.name, order.attempt)),
        });
        let pumps = live.pumps(link, opened.output);
        self.live.borrow_mut().insert(order.name.clone(), live.clone());
        // The process that is the container on the host is the machine; its number is of no use.
        let running = InstanceState::Running { started_at_us: live.started_at_us, pid: 0, restored };
        self.record.put(&order.name, order.attempt, id, running);
        let (machine, name, from_logs) =
            (self.clone(), order.name.clone(), order.termination_message_from_logs);
        let link = link.clone();
        // Ends with the container.
        tokio::task::spawn_local(async move {
            let end = opened.end.await;
            link::emptied(pumps).await;
            link.forget(live.stream);
            machine.ended(&name, &live, end.ok(), from_logs).await;
        });
    }

    /// Does everything that follows from the end of a container; without one, of the machine's end.
    async fn ended(&self, name: &str, live: &Live, end: Option<End>, from_logs: bool) {
        let with_machine = end.is_none() && !self.stopping.get();
        let end = end.unwrap_or_else(|| self.killed());
        let mut message = last_bytes(end.message, MAX_MESSAGE);
        if message.is_empty() && from_logs && end.exit_code != 0 {
            message = live.output.log.borrow().tail();
        }
        let ended = Ended {
            id: live.id.clone(),
            exit_code: end.exit_code,
            signal: end.signal,
            reason: end.reason,
            message,
            started_at_us: live.started_at_us,
            finished_at_us: now_us(),
        };
        self.live.borrow_mut().remove(name);
        if with_machine {
            self.record.note(name, live.attempt, live.id.clone(), InstanceState::Ended(ended));
        } else {
            self.record.put(name, live.attempt, live.id.clone(), InstanceState::Ended(ended));
        }
        self.fewer.notify_waiters();
        live.output.detach_all(end.exit_code).await;
    }

    /// How a container ends with its machine.
    fn killed(&self) -> End {
        let (reason, message) = match &*self.phase.borrow() {
            Phase::Gone(why) if !self.stopping.get() => (MACHINE_FAILED, why.clone()),
            _ => ("Error", String::new()),
        };
        End { exit_code: 137, signal: 9, reason: reason.to_owned(), message }
    }

    /// Signals the main process of an instance, or kills all of it.
    pub(super) async fn signal(&self, container: &str, attempt: u32, number: i32) -> Reply {
        let live = self.find(container).filter(|live| live.attempt == attempt);
        let (Some(_), Some(link)) = (live, self.link()) else { return Reply::Ok };
        let attempt = self.guest_attempt(container, attempt);
        let request = Request::Signal { container: container.to_owned(), attempt, signal: number };
        match link.request(request).await {
            Ok(_) | Err(LinkError::Gone) => Reply::Ok,
            Err(LinkError::Refused(_, message)) => refuse("SignalError", message),
            Err(LinkError::Silent) => refuse("SignalError", "the guest does not answer"),
        }
    }

    /// Opens the log files by their names again.
    pub(super) fn reopen_logs(&self) -> Reply {
        let live: Vec<_> = self.live.borrow().values().cloned().collect();
        let result = live.iter().try_for_each(|live| live.output.log.borrow_mut().reopen());
        result.map_or_else(|e| refuse("LogError", e), |()| Reply::Ok)
    }

    /// Tells the guest what has changed on the host. One that is not there yet hears of it before its first start.
    pub(super) async fn volumes_changed(&self) -> Reply {
        let ready = *self.phase.borrow() == Phase::Ready;
        let Some(link) = self.link().filter(|_| ready) else { return Reply::Ok };
        match self.tell_changes(&link).await {
            Ok(()) => Reply::Ok,
            Err(error) => refuse("VolumeError", error),
        }
    }

    async fn tell_changes(&self, link: &Link) -> Result<(), String> {
        let _one = self.telling.lock().await;
        let vm = self.vm();
        let changes = self.files.changes(&vm.etc, &vm.volumes).map_err(|e| e.to_string())?;
        for change in changes {
            if let Err(error) = link.request(change).await {
                self.files.forget();
                return Err(match error {
                    LinkError::Refused(_, message) => message,
                    LinkError::Silent | LinkError::Gone => "the guest does not answer".to_owned(),
                });
            }
        }
        Ok(())
    }

    async fn all_ended(&self) {
        loop {
            let fewer = self.fewer.notified();
            if self.live.borrow().is_empty() && self.starting.borrow().is_empty() {
                return;
            }
            fewer.await;
        }
    }

    /// Lets a guest that has disks of the host power itself off, so that what it has written is there.
    async fn flush(&self) {
        let needed = self.vm().volumes.values().any(VmVolume::needs_flush);
        let ready = *self.phase.borrow() == Phase::Ready;
        let Some(link) = self.link().filter(|_| needed && ready) else { return };
        let powered_off = async {
            if link.request(Request::Shutdown { grace_ms: 0 }).await.is_ok() {
                let mut phase = self.phase.subscribe();
                // The sender lives in `self`.
                let _ = phase.wait_for(|phase| matches!(phase, Phase::Gone(_))).await;
            }
        };
        if timeout(FLUSH, powered_off).await.is_err() {
            tracing::warn!("the guest did not power itself off; its disks are as after a crash");
        }
    }

    /// Ends the machine as by a power cut, and removes the pod's cgroup. Containers had their time before.
    pub(super) async fn shutdown(&self) -> Reply {
        self.stopping.set(true);
        self.flush().await;
        self.stop.notify_one();
        let gone = async {
            let mut phase = self.phase.subscribe();
            let over = |phase: &Phase| matches!(phase, Phase::Absent | Phase::Gone(_));
            // The sender lives in `self`.
            let _ = phase.wait_for(over).await;
            self.all_ended().await;
        };
        if timeout(SHUTDOWN, gone).await.is_err() {
            return refuse("StillRunning", "the machine does not end");
        }
        let remove = || -> Result<(), CgroupError> {
            Cgroup::leave()?;
            Cgroup::new(&self.record.sandbox().cgroup)?.remove()
        };
        remove().map_or_else(|e| refuse("CgroupError", e), |()| Reply::Ok)
    }
}
