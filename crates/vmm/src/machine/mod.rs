//! One virtual machine: a QEMU process, its control connection, its console, its life.
//!
//! A driver task owns the process. It turns what QEMU says and what the owner does into [`state::Event`]s, lets
//! [`State::apply`] decide, and publishes the state; a state `Failed` makes it kill the process. Handles ([`Machine`])
//! are cheap copies; when the last one goes, the process is killed. The process also ends with the thread that started
//! it, so start machines from a thread that lives as long as they do.
//!
//! Absent: restarts and time limits (the owner's policy), and the channel to the guest's agent, whose other end only
//! the owner has.

pub mod args;
mod console;
mod driver;
mod mapped;
mod preload;
mod process;
pub(crate) mod qcow2;
mod snapshot;
pub mod spec;
pub mod state;
pub mod stream;

pub(crate) use process::keep_open;
pub use process::{ProcessUsage, ResidentMemory};
pub use snapshot::{MemoryCopy, seal_memory, sealed_memory, template_memory};

use crate::error::system;
use crate::qmp::{Balloon, BlockCounters, BlockStats, Qmp};
use crate::{Error, Qemu};
use args::{CommandLine, Ends};
use console::Console;
use driver::{Driver, MigrationEnd, Order};
use serde_json::{Value, json};
use spec::MachineSpec;
use state::{Event, State};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// How much of QEMU's last words is kept, in bytes.
const LAST_WORDS: usize = 4096;

/// A machine. Copies are handles of the same one.
#[derive(Debug, Clone)]
pub struct Machine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    qmp: Qmp,
    pid: u32,
    /// Serial numbers of the disks, in order.
    serials: Vec<String>,
    memory: File,
    /// Its pages are copied when the guest changes them.
    copy_on_write: bool,
    migration: watch::Receiver<MigrationEnd>,
    orders: mpsc::UnboundedSender<Order>,
    state: watch::Receiver<State>,
    last_words: watch::Receiver<String>,
}

/// Counters of a running machine.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// Per disk, by its serial number.
    pub disks: Vec<(String, BlockCounters)>,
    /// Memory that the guest has, in bytes; less than ordered only when a balloon took some.
    pub memory_bytes: Option<u64>,
}

impl Machine {
    /// Starts QEMU and waits until it answers. No instruction of the guest runs yet.
    ///
    /// # Errors
    /// The order is wrong, QEMU cannot be started, or it ended at once (its last words are in the error).
    pub async fn spawn(qemu: &Qemu, mut spec: MachineSpec) -> Result<Self, Error> {
        spec.check()?;
        let (control, their_control) = pair()?;
        let (console, their_console) = pair()?;
        let console = Console::open(&spec.console, console)?;
        let serials = spec.disks.iter().map(|d| d.serial.clone()).collect();
        let copy_on_write = matches!(spec.memory, spec::Memory::CopyOnWrite(_));
        let ends = Ends { control: their_control, console: their_console };
        let line = CommandLine::new(&mut spec, ends, qemu)?;
        let mut child = process::start(qemu, &line, spec.isolation, spec.accelerator)?;
        let CommandLine { memory, descriptors, .. } = line;
        // Our copies of QEMU's ends: while they are open, the end of QEMU does not end the connections.
        drop(descriptors);
        let pid = child.id().ok_or_else(|| Error::Start("it was gone at once".to_owned()))?;
        let (words, last_words) = watch::channel(String::new());
        let stderr = child.stderr.take().map(|pipe| tokio::spawn(collect(pipe, words)));
        let (qmp, events) = match Qmp::connect(control).await {
            Ok(connected) => connected,
            Err(error) => return Err(failed_start(child, stderr, &last_words, &error).await),
        };
        let (orders, inbox) = mpsc::unbounded_channel();
        let (publish, state) = watch::channel(State::Created);
        let (transfers, migration) = watch::channel(MigrationEnd::None);
        let driver = Driver { child, state: publish, transfers, ended: false };
        let console = tokio::spawn(console.run());
        // The driver ends with the process, which ends with the last handle: nobody has to wait for it.
        tokio::spawn(driver.run(events, inbox, console));
        Ok(Self {
            shared: Arc::new(Shared {
                qmp,
                pid,
                serials,
                memory,
                copy_on_write,
                migration,
                orders,
                state,
                last_words,
            }),
        })
    }

    /// Lets the guest run for the first time.
    ///
    /// # Errors
    /// The machine has ended, or QEMU refused.
    pub async fn start(&self) -> Result<(), Error> {
        self.require("start", |s| matches!(s, State::Created))?;
        self.tell(Event::Started);
        self.command("cont").await?;
        self.wait_for(|s| !matches!(s, State::Created)).await
    }

    /// Notes that the guest's agent has answered.
    pub fn guest_ready(&self) {
        self.tell(Event::GuestReady);
    }

    /// Notes that the end was asked for (through the agent): QEMU's end is then no failure.
    pub fn expect_end(&self) {
        self.tell(Event::StopAsked);
    }

    /// Stops the virtual CPUs.
    ///
    /// # Errors
    /// The machine does not run, or QEMU refused.
    pub async fn pause(&self) -> Result<(), Error> {
        self.require("pause", |s| matches!(s, State::Booting | State::Running | State::Paused { .. }))?;
        self.command("stop").await?;
        self.wait_for(|s| matches!(s, State::Paused { .. })).await
    }

    /// Lets the virtual CPUs go on.
    ///
    /// # Errors
    /// The machine is not paused, or QEMU refused.
    pub async fn resume(&self) -> Result<(), Error> {
        self.require("resume", |s| matches!(s, State::Booting | State::Running | State::Paused { .. }))?;
        self.command("cont").await?;
        self.wait_for(|s| matches!(s, State::Booting | State::Running)).await
    }

    /// Presses the power button, for guests without our agent. Their end is then no failure.
    ///
    /// # Errors
    /// The machine has ended, or QEMU refused.
    pub async fn power_down(&self) -> Result<(), Error> {
        self.require("power down", |s| !s.is_final())?;
        self.tell(Event::StopAsked);
        self.command("system_powerdown").await
    }

    /// Ends the machine at once and waits until the process is gone.
    pub async fn kill(&self) -> State {
        self.tell(Event::StopAsked);
        // The driver is gone only when the process is.
        let _ = self.shared.orders.send(Order::Kill);
        self.ended().await
    }

    /// The state now.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.state.borrow().clone()
    }

    /// The state, as it changes. It closes when the process is gone.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<State> {
        self.shared.state.clone()
    }

    /// Waits until the process is gone and reaped; how it ended.
    pub async fn ended(&self) -> State {
        let mut state = self.watch();
        while state.changed().await.is_ok() {}
        state.borrow().clone()
    }

    /// The end of what QEMU wrote to its standard error.
    #[must_use]
    pub fn last_words(&self) -> String {
        self.shared.last_words.borrow().clone()
    }

    /// QEMU's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.shared.pid
    }

    /// The control connection, for what has no method here.
    #[must_use]
    pub fn qmp(&self) -> &Qmp {
        &self.shared.qmp
    }

    /// Counters that QEMU keeps.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn stats(&self) -> Result<Stats, Error> {
        let blocks: Vec<BlockStats> = self.qmp().execute("query-blockstats", Value::Null).await?;
        let disks = blocks.iter().filter_map(|block| {
            let n = block.qdev.split('/').find_map(|part| part.strip_prefix("blk"))?.parse::<usize>().ok()?;
            Some((self.shared.serials.get(n)?.clone(), block.stats))
        });
        // Without a balloon QEMU refuses.
        let balloon: Result<Balloon, Error> = self.qmp().execute("query-balloon", Value::Null).await;
        Ok(Stats { disks: disks.collect(), memory_bytes: balloon.ok().map(|b| b.actual) })
    }

    /// What the process uses on the host.
    ///
    /// # Errors
    /// The process is gone.
    pub fn process_usage(&self) -> Result<ProcessUsage, Error> {
        ProcessUsage::read(self.pid())
    }

    async fn command(&self, command: &'static str) -> Result<(), Error> {
        let _: Value = self.qmp().execute(command, json!({})).await?;
        Ok(())
    }

    fn tell(&self, event: Event) {
        // The driver is gone only when the state is final, and then no event means anything.
        let _ = self.shared.orders.send(Order::Event(event));
    }

    fn require(&self, action: &'static str, fits: impl Fn(&State) -> bool) -> Result<(), Error> {
        let state = self.shared.state.borrow();
        if fits(&state) { Ok(()) } else { Err(Error::State { action, state: state.name() }) }
    }

    /// Waits until QEMU's events have brought the machine into a state; a final one ends the wait as well.
    async fn wait_for(&self, fits: impl Fn(&State) -> bool) -> Result<(), Error> {
        let mut state = self.watch();
        let found = state.wait_for(|s| fits(s) || s.is_final()).await;
        match found.as_deref() {
            Ok(state) if fits(state) => Ok(()),
            Ok(state) => Err(Error::State { action: "wait for", state: state.name() }),
            Err(_) => Err(Error::Connection("closed".to_owned())),
        }
    }
}

/// Our end for tokio, and QEMU's.
fn pair() -> Result<(UnixStream, OwnedFd), Error> {
    let (ours, theirs) = StdUnixStream::pair().map_err(system("make a pair of sockets"))?;
    ours.set_nonblocking(true).map_err(system("make a socket non-blocking"))?;
    let ours = UnixStream::from_std(ours).map_err(system("register a socket"))?;
    Ok((ours, theirs.into()))
}

/// Keeps the end of what QEMU says.
async fn collect(mut pipe: ChildStderr, words: watch::Sender<String>) {
    let mut last: Vec<u8> = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
        last.extend_from_slice(&buffer[..n]);
        if last.len() > LAST_WORDS {
            last.drain(..last.len() - LAST_WORDS);
        }
        words.send_replace(String::from_utf8_lossy(&last).into_owned());
    }
}

async fn failed_start(
    mut child: Child,
    stderr: Option<JoinHandle<()>>,
    last_words: &watch::Receiver<String>,
    error: &Error,
) -> Error {
    if let Err(error) = child.kill().await {
        tracing::debug!(%error, "QEMU is gone already");
    }
    if let Some(task) = stderr {
        // The pipe is closed now, so the task ends.
        let _ = task.await;
    }
    let words = last_words.borrow().trim().to_owned();
    Error::Start(if words.is_empty() { error.to_string() } else { words })
}

#[cfg(test)]
mod tests;
