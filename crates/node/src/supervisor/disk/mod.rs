//! A pod in a virtual machine that starts from a disk of its own: the machine is the pod's one container.
//!
//! ```text
//!   Start ──► QEMU with a copy of the disk ──► Running ──┬─ the guest powers itself off ─► Completed, 0
//!   TERM: the power button, again and again ◄────────────┤
//!   KILL: QEMU is killed ◄───────────────────────────────┴─ killed: 137; QEMU failed: MachineFailed
//! ```
//!
//! The sandbox is only the network, which was made before; there is nothing of ours in the guest to wait for. A guest
//! that reboots stays the same instance. The copy lives as long as the sandbox: a container that is started again finds
//! the disk as it was left, like a machine that is switched on again.
//!
//! Absent: commands, attaching, volumes, the pod's variables: they would need an agent in the guest.

mod boot;

use super::backend::refuse;
use super::log::Channel;
use super::output::Output;
use super::proto::{ContainerStart, Ended, InstanceState, PodNetwork, Reply, VmDisk, VmSpec};
use super::record::{Record, is_name, new_id, now_us};
use boot::{Lines, how_it_ended, out_of_memory};
use cumulet_container::cgroup::{Cgroup, CgroupError};
use cumulet_vmm::Machine;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

/// How long everything may take to be gone when the pod is shut down.
const SHUTDOWN: Duration = Duration::from_secs(10);
/// The power button is pressed again after this long: a guest that still boots does not see the first time.
const PRESS_AGAIN: Duration = Duration::from_secs(3);
/// Chunks of the console that may wait for the log.
const CONSOLE_QUEUE: usize = 16;
const SIGKILL: i32 = nix::libc::SIGKILL;

/// A pod that is such a machine.
pub(super) struct DiskMachine {
    record: Rc<Record>,
    vm: VmSpec,
    disk: VmDisk,
    live: RefCell<Option<Rc<Live>>>,
    starting: Cell<bool>,
    /// The copy of the disk was made.
    copied: Cell<bool>,
    /// Told when `live` or `starting` has changed to nothing.
    fewer: Notify,
}

/// The machine while it runs.
struct Live {
    container: String,
    attempt: u32,
    id: String,
    started_at_us: i64,
    machine: Machine,
    output: Output,
    /// How often the kernel had killed for want of memory when it started.
    out_of_memory: u64,
    /// Its end was ordered, without asking the guest.
    killed: Cell<bool>,
    /// The power button is being pressed.
    stopping: Cell<bool>,
}

impl DiskMachine {
    pub(super) fn new(record: Rc<Record>, vm: VmSpec, disk: VmDisk) -> Rc<Self> {
        Rc::new(Self {
            record,
            vm,
            disk,
            live: RefCell::default(),
            starting: Cell::new(false),
            copied: Cell::new(false),
            fewer: Notify::new(),
        })
    }

    /// Notes the network, which the guest learns of from its seed.
    pub(super) fn configure_network(&self, network: PodNetwork) -> Reply {
        match self.record.network() {
            Some(known) if known != network => {
                refuse("NetworkError", "a machine keeps the network that it was made with")
            }
            Some(_) => Reply::Ok,
            None => {
                self.record.set_network(network);
                Reply::Ok
            }
        }
    }

    /// Starts an instance, unless it or a later one was started before.
    pub(super) async fn start(self: &Rc<Self>, order: ContainerStart) -> Reply {
        loop {
            if self.record.newest(&order.name).is_some_and(|newest| order.attempt <= newest) {
                return Reply::Ok;
            }
            let fewer = self.fewer.notified();
            if !self.starting.get() {
                break;
            }
            // An earlier connection gave the same order.
            fewer.await;
        }
        if self.live.borrow().is_some() {
            return refuse("StillRunning", "the machine still runs");
        }
        self.starting.set(true);
        let result = self.try_start(&order).await;
        self.starting.set(false);
        self.fewer.notify_waiters();
        result.map_or_else(|message| refuse("CreateContainerError", message), |()| Reply::Ok)
    }

    async fn try_start(self: &Rc<Self>, order: &ContainerStart) -> Result<(), String> {
        if !is_name(&order.name) {
            return Err("the container's name is no file name".to_owned());
        }
        let network = self.record.network().ok_or("the pod has no network")?;
        let id = new_id().map_err(|e| e.to_string())?;
        let out_of_memory = out_of_memory(&self.record);
        let (sender, console) = mpsc::channel(CONSOLE_QUEUE);
        let machine =
            boot::start(&self.record, (&self.vm, &self.disk), &network, &self.copied, sender).await?;
        let live = Rc::new(Live {
            container: order.name.clone(),
            attempt: order.attempt,
            id: id.clone(),
            started_at_us: now_us(),
            machine,
            output: Output::new(self.record.open_log(&order.name, order.attempt)),
            out_of_memory,
            killed: Cell::new(false),
            stopping: Cell::new(false),
        });
        *self.live.borrow_mut() = Some(live.clone());
        let running = InstanceState::Running { started_at_us: live.started_at_us, pid: 0, restored: false };
        self.record.put(&order.name, order.attempt, id, running);
        // Ends with the machine.
        tokio::task::spawn_local(self.clone().watch(live, console));
        Ok(())
    }

    /// Writes the console to the log until the machine has ended, and does what follows.
    async fn watch(self: Rc<Self>, live: Rc<Live>, mut console: mpsc::Receiver<Vec<u8>>) {
        let mut lines = Lines::default();
        // Receiving is cancel-safe. The queue is closed when QEMU has ended and its last words were read.
        while let Some(bytes) = live.output.next(Channel::Stdout, async || console.recv().await).await {
            live.output.write(Channel::Stdout, &lines.clean(bytes)).await;
        }
        live.output.end(Channel::Stdout);
        let state = live.machine.ended().await;
        let (exit_code, signal, reason, message) = {
            let memory = out_of_memory(&self.record) > live.out_of_memory;
            how_it_ended(&state, live.killed.get(), memory)
        };
        tracing::info!(container = live.container, exit_code, message, "the machine has ended");
        let ended = Ended {
            id: live.id.clone(),
            exit_code,
            signal,
            reason: reason.to_owned(),
            message,
            started_at_us: live.started_at_us,
            finished_at_us: now_us(),
        };
        self.live.borrow_mut().take();
        self.record.put(&live.container, live.attempt, live.id.clone(), InstanceState::Ended(ended));
        self.fewer.notify_waiters();
    }

    /// KILL is a power cut; every other signal is the power button.
    pub(super) async fn signal(&self, container: &str, attempt: u32, number: i32) -> Reply {
        let live = self.live.borrow().clone();
        let Some(live) = live.filter(|live| live.container == container && live.attempt == attempt) else {
            return Reply::Ok;
        };
        if number == SIGKILL {
            live.killed.set(true);
            live.machine.kill().await;
        } else if !live.stopping.replace(true) {
            // Ends with the machine.
            tokio::task::spawn_local(async move {
                loop {
                    if let Err(error) = live.machine.power_down().await {
                        tracing::debug!(%error, "the power button");
                    }
                    if timeout(PRESS_AGAIN, live.machine.ended()).await.is_ok() {
                        return;
                    }
                }
            });
        }
        Reply::Ok
    }

    /// Opens the log file by its name again.
    pub(super) fn reopen_logs(&self) -> Reply {
        let live = self.live.borrow().clone();
        let result = live.map_or(Ok(()), |live| live.output.log.borrow_mut().reopen());
        result.map_or_else(|e| refuse("LogError", e), |()| Reply::Ok)
    }

    /// Why there are no sessions.
    pub(super) fn no_session(&self, what: &str) -> Reply {
        let Some(network) = self.record.network() else {
            return refuse("NotRunning", "the machine does not run");
        };
        let address = network.address.split('/').next().unwrap_or_default();
        let sandbox = self.record.sandbox();
        refuse(
            "Unsupported",
            format!(
                "cannot {what}: the machine runs its own disk, in which there is no agent of ours; use its console \
                 (`cumulet vm console -n {} {}`), or ssh to {address} if the guest has it",
                sandbox.namespace, sandbox.name
            ),
        )
    }

    /// Ends the machine as by a power cut, and removes the pod's cgroup. It had its time before.
    pub(super) async fn shutdown(&self) -> Reply {
        let gone = async {
            loop {
                let fewer = self.fewer.notified();
                let live = self.live.borrow().clone();
                match live {
                    Some(live) => {
                        live.killed.set(true);
                        live.machine.kill().await;
                    }
                    None if !self.starting.get() => return,
                    None => {}
                }
                fewer.await;
            }
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
