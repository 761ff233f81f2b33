//! The agent: one thread, one loop, everything that it knows.
//!
//! ```text
//!            ┌─► receive: bytes from the port → requests, input
//!   wait ──► │   pump: pipes ↔ windows                          repeated until nothing moves
//!    ▲       │   conclude: processes that ended
//!    │       └── transmit: messages and output → port
//!    └── timers ◄┘
//! ```
//!
//! Nothing in the loop waits for anything but [`Poll`], except freezing (milliseconds, with a limit) and the hook of an
//! identity, while which all containers stand still anyway.

mod adopt;
mod containers;
mod exec;
mod process;
mod requests;
mod shutdown;
mod stats;
mod streams;

use crate::container::Told;
use crate::error::{Doing, Error};
use crate::pod::Pod;
use crate::poll::{Poll, Token};
use crate::port::Port;
use crate::uevents::Uevents;
use containers::{Container, Waiting};
use cumulet_guest_proto::guest::GuestLink;
use cumulet_guest_proto::message::{Event, Reply, Snapshot, ToHost};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, waitpid};
use process::{Exit, Process, Stage};
use shutdown::Shutdown;
pub(crate) use shutdown::power_off;
use std::collections::BTreeMap;
use std::time::Instant;

/// Bytes to the host that wait at most before no more of its requests are taken.
const MAX_BACKLOG: usize = 1 << 20;

/// See the module.
pub(crate) struct Agent {
    poll: Poll,
    signals: SignalFd,
    uevents: Uevents,
    port: Option<Port>,
    link: GuestLink,
    pod: Option<Pod>,
    /// The newest instance of each container.
    containers: BTreeMap<String, Container>,
    /// By stream.
    processes: BTreeMap<u32, Process>,
    /// Starts that wait for a disk.
    waiting: Vec<Waiting>,
    /// Directories and cgroups of containers that ended.
    garbage: Vec<containers::Garbage>,
    frozen: bool,
    /// The interface was taken down for a snapshot.
    quiet: bool,
    generation: u64,
    /// Variables of the identity, for commands.
    env: Vec<String>,
    shutdown: Option<Shutdown>,
    /// Told to every host.
    problems: Vec<String>,
}

impl Agent {
    /// Before anything can happen.
    pub(crate) fn new(problems: Vec<String>) -> Result<Self, Error> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGCHLD);
        let what = || "set up the loop".to_owned();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&signals), None).doing(what)?;
        let signals =
            SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).doing(what)?;
        let poll = Poll::new().doing(what)?;
        let uevents = Uevents::subscribe().doing(what)?;
        poll.add(&signals, Token::Signals).doing(what)?;
        poll.add(&uevents, Token::Uevents).doing(what)?;
        let mut agent = Self {
            poll,
            signals,
            uevents,
            port: None,
            link: GuestLink::new(),
            pod: None,
            containers: BTreeMap::new(),
            processes: BTreeMap::new(),
            waiting: vec![],
            garbage: vec![],
            frozen: false,
            quiet: false,
            generation: 0,
            env: vec![],
            shutdown: None,
            problems,
        };
        agent.find_port()?;
        Ok(agent)
    }

    /// Serves hosts until one of them wants the end.
    pub(crate) fn run(mut self) -> Result<(), Error> {
        loop {
            while self.turn() {}
            if self.shutdown_is_due() {
                self.flush();
                return Ok(());
            }
            let limit = self.deadline().map(|at| at.saturating_duration_since(Instant::now()));
            for token in self.poll.wait(limit).doing(|| "wait".to_owned())? {
                self.ready(token)?;
            }
            self.timers();
        }
    }

    /// Moves what can be moved; whether anything was.
    fn turn(&mut self) -> bool {
        let mut moved = self.receive();
        for process in self.processes.values_mut() {
            moved |= process.streams.pump(&mut self.link);
        }
        moved |= self.conclude();
        moved | self.transmit()
    }

    fn ready(&mut self, token: Token) -> Result<(), Error> {
        match token {
            Token::Port => {
                if let Some(port) = &mut self.port {
                    (port.readable, port.writable) = (true, true);
                }
            }
            Token::Signals => {
                while let Ok(Some(_)) = self.signals.read_signal() {}
                self.reap();
            }
            Token::Uevents => {
                if self.uevents.drain().doing(|| "read device events".to_owned())? {
                    self.find_port()?;
                    self.retry_waiting();
                }
            }
            Token::Report(stream) => self.read_report(stream),
            Token::Stdin(stream) | Token::Stdout(stream) | Token::Stderr(stream) => {
                if let Some(process) = self.processes.get_mut(&stream) {
                    process.streams.ready(token);
                }
            }
        }
        Ok(())
    }

    fn find_port(&mut self) -> Result<(), Error> {
        if self.port.is_none()
            && let Some(port) = Port::find().doing(|| "open the port".to_owned())?
        {
            self.poll.add(&port, Token::Port).doing(|| "watch the port".to_owned())?;
            self.port = Some(port);
        }
        Ok(())
    }

    fn receive(&mut self) -> bool {
        let mut buffer = [0; 64 * 1024];
        let Some(port) = self.port.as_mut().filter(|port| port.readable) else { return false };
        if self.link.backlog() > MAX_BACKLOG {
            return false;
        }
        let length = match port.read(&mut buffer) {
            Ok(length) => length,
            Err(error) => return self.lose_port(&error),
        };
        let mut events = vec![];
        self.link.receive(&buffer[..length], &mut events);
        for event in events {
            self.handle(event);
        }
        length > 0
    }

    fn transmit(&mut self) -> bool {
        let mut moved = false;
        while let Some(port) = self.port.as_mut().filter(|port| port.writable) {
            let bytes = self.link.output();
            if bytes.is_empty() {
                break;
            }
            match port.write(bytes) {
                Ok(written) => {
                    self.link.wrote(written);
                    moved |= written > 0;
                }
                Err(error) => return self.lose_port(&error),
            }
        }
        moved
    }

    /// The device is gone; another one may come.
    fn lose_port(&mut self, error: &std::io::Error) -> bool {
        eprintln!("cumulet-guest: the port failed: {error}");
        self.port = None;
        false
    }

    /// Sends what is to be sent, at most for a second: the host may be gone.
    fn flush(&mut self) {
        let deadline = Instant::now() + std::time::Duration::from_secs(1);
        while self.port.is_some() && !self.link.output().is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.transmit() && (left.is_zero() || self.poll.wait(Some(left)).is_err()) {
                return;
            }
            if let Some(port) = &mut self.port {
                port.writable = true;
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let processes = self.processes.values().filter_map(Process::deadline);
        let waiting = self.waiting.iter().map(|waiting| waiting.until);
        let shutdown = self.shutdown.as_ref().and_then(Shutdown::deadline);
        processes.chain(waiting).chain(shutdown).min()
    }

    fn timers(&mut self) {
        let now = Instant::now();
        for process in self.processes.values_mut() {
            if process.kill_at.is_some_and(|at| at <= now) {
                process.kill_at = None;
                process.kill_group();
            }
        }
        self.give_up_waiting(now);
        self.escalate_shutdown(now);
    }

    /// Collects every process that ended, also those that containers left to us.
    fn reap(&mut self) {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == nix::sys::wait::WaitStatus::StillAlive {
                break;
            }
            let Some((pid, exit)) = Exit::of(status) else { continue };
            let found = self.processes.iter().find(|(_, process)| process.is_alive() && process.pid == pid);
            if let Some(stream) = found.map(|(stream, _)| *stream) {
                // What it told comes before its end.
                self.read_report(stream);
                if let Some(process) = self.processes.get_mut(&stream) {
                    process.ended(exit);
                }
                self.kill_rest(stream);
            }
        }
        self.collect_garbage();
    }

    /// Reads what a child tells until it has said all or there is nothing now.
    fn read_report(&mut self, stream: u32) {
        while let Some(process) = self.processes.get_mut(&stream) {
            let Stage::Launching(report) = &process.stage else { return };
            match report.next() {
                Ok(Told::Nothing) => return,
                Ok(Told::Terminal(master)) => {
                    if let Err(error) = process.streams.set_terminal(&self.poll, master, process.stdin) {
                        self.problem(format!("cannot use a terminal: {error}"));
                    }
                }
                Ok(Told::Failed(reason, message)) => self.failed(stream, reason, message),
                Ok(Told::Running) => self.started(stream),
                Err(error) => {
                    self.failed(stream, "SystemError".to_owned(), format!("cannot read a report: {error}"))
                }
            }
        }
    }

    /// The program runs.
    fn started(&mut self, stream: u32) {
        let Some(process) = self.processes.get_mut(&stream) else { return };
        process.stage = Stage::Running;
        let waiters = std::mem::take(&mut process.waiters);
        self.container_started(stream);
        waiters.into_iter().for_each(|waiter| self.link.reply(waiter, Reply::Done));
    }

    /// There will be no program.
    fn failed(&mut self, stream: u32, reason: String, message: String) {
        let Some(process) = self.processes.get_mut(&stream) else { return };
        process.stage = Stage::Failed;
        process.streams.close(&mut self.link);
        let waiters = std::mem::take(&mut process.waiters);
        self.link.drop_stream(stream);
        self.container_failed(stream);
        let reply = Reply::Error { reason, message };
        waiters.into_iter().for_each(|waiter| self.link.reply(waiter, reply.clone()));
    }

    /// Takes processes that ended further towards their end; whether any was.
    fn conclude(&mut self) -> bool {
        let mut moved = false;
        for stream in self.processes.keys().copied().collect::<Vec<_>>() {
            let Some(process) = self.processes.get_mut(&stream) else { continue };
            match process.stage {
                Stage::Draining(exit, until) if process.streams.is_at_end() || Instant::now() >= until => {
                    process.streams.close(&mut self.link);
                    process.stage = Stage::Concluded(exit);
                    self.container_ended(stream, exit);
                }
                Stage::Concluded(exit) if self.link.is_told(stream) => {
                    process.stage = Stage::Announced;
                    self.announce(stream, exit);
                }
                Stage::Announced if self.link.reap_stream(stream) => process.stage = Stage::Gone,
                Stage::Gone => drop(self.processes.remove(&stream)),
                _ => continue,
            }
            moved = true;
        }
        moved
    }

    fn event(&mut self, event: Event) {
        self.link.send(&ToHost::Event(event));
    }

    /// Tells that something is not as it should be: now to this host, and on the console.
    fn problem(&mut self, message: String) {
        eprintln!("cumulet-guest: {message}");
        self.event(Event::Warning { message });
    }

    fn snapshot(&self) -> Snapshot {
        let kernel = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        Snapshot {
            kernel,
            uptime_us: crate::clock::uptime_us(),
            configured: self.pod.is_some(),
            frozen: self.frozen,
            generation: self.generation,
            containers: self.instances(),
            streams: self.link.open_streams(),
        }
    }
}
