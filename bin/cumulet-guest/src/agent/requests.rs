//! What comes from the host, and who answers it.

use super::Agent;
use crate::container::cgroup::Cgroup;
use crate::error::{Doing, Error};
use crate::fault::{self, Fault};
use crate::net;
use crate::pod::Pod;
use cumulet_guest_proto::guest::{FromHost, RequestId};
use cumulet_guest_proto::message::{Event, Reply, Request, ToHost, reason};
use cumulet_guest_proto::spec;
use nix::sys::signal::Signal;
use std::fs;
use std::time::Duration;

/// How long containers may take to stand still.
const FREEZE: Duration = Duration::from_secs(5);

/// Free memory that is left alone when the rest is cleared, in bytes: the kernel needs some for itself.
const SPARE_BYTES: usize = 16 << 20;

/// `MemFree` of /proc/meminfo in bytes; nothing when it cannot be read.
fn free_memory_bytes() -> usize {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemFree:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<usize>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

impl Agent {
    /// Takes what came.
    pub(super) fn handle(&mut self, event: FromHost) {
        match event {
            FromHost::Hello(_) => {
                let snapshot = Box::new(self.snapshot());
                self.link.send(&ToHost::Snapshot(snapshot));
                for message in self.problems.clone() {
                    self.event(Event::Warning { message });
                }
            }
            FromHost::Request(id, Ok(request)) => self.request(id, *request),
            FromHost::Request(id, Err(message)) => {
                self.link.reply(id, Reply::Error { reason: reason::UNSUPPORTED.to_owned(), message });
            }
            FromHost::Stdin { stream, bytes } => match self.processes.get_mut(&stream) {
                Some(process) => process.streams.input(&bytes, &mut self.link),
                None => self.link.consumed(stream, bytes.len()),
            },
            FromHost::StdinClosed { stream } => {
                if let Some(process) = self.processes.get_mut(&stream) {
                    process.streams.end_input();
                }
            }
            FromHost::Resize { stream, columns, rows } => {
                // A terminal that is just ending has no size.
                let _ = self.processes.get(&stream).map(|process| process.streams.resize(columns, rows));
            }
            // The next turn looks at all of them.
            FromHost::Room { .. } => {}
        }
    }

    fn request(&mut self, id: RequestId, request: Request) {
        let done = match request {
            Request::Configure(order) => self.configure(*order).map(Some),
            Request::Start(order) => self.start(id, order),
            Request::Exec(order) => self.exec(id, *order),
            Request::Signal { container, attempt, signal } => {
                self.signal(&container, attempt, signal).map(Some)
            }
            Request::KillExec { stream } => {
                if let Some(process) = self.processes.get(&stream) {
                    process.kill_group();
                }
                Ok(Some(()))
            }
            Request::WriteFiles { volume, files } => {
                self.configured().and_then(|pod| pod.write_volume(&volume, files)).map(Some)
            }
            Request::WriteEtc { files } => self.configured().and_then(|pod| pod.write_etc(&files)).map(Some),
            Request::Freeze => self.set_frozen(true).map(Some),
            Request::Thaw => self.thaw().map(Some),
            Request::Quiesce => self.quiesce().map(Some),
            Request::Adopt(identity) => {
                let reply = self.adopt(*identity).map_or_else(|error| error.reply(), Reply::Adopted);
                if fault::has(Fault::Acknowledgement) {
                    return;
                }
                return self.link.reply(id, reply);
            }
            Request::Clock => {
                return self.link.reply(id, Reply::Clock { monotonic_us: crate::clock::monotonic_us() });
            }
            Request::Stats => return self.link.reply(id, Reply::Stats(Box::new(self.stats()))),
            Request::Shutdown { grace_ms } => {
                self.begin_shutdown(id, Duration::from_millis(grace_ms));
                Ok(None)
            }
        };
        match done {
            Ok(Some(())) => self.link.reply(id, Reply::Done),
            // Answered when it is done.
            Ok(None) => {}
            Err(error) => self.link.reply(id, error.reply()),
        }
    }

    pub(super) fn configured(&mut self) -> Result<&mut Pod, Error> {
        self.pod.as_mut().ok_or_else(|| Error::Conflict("the pod is not configured".to_owned()))
    }

    fn configure(&mut self, order: spec::Pod) -> Result<(), Error> {
        match &self.pod {
            Some(pod) if pod.is(&order) => Ok(()),
            Some(_) => Err(Error::Conflict("the pod is configured otherwise".to_owned())),
            None => {
                self.pod = Some(Pod::configure(order)?);
                Ok(())
            }
        }
    }

    fn signal(&mut self, name: &str, attempt: u32, number: i32) -> Result<(), Error> {
        let invalid = || Error::Invalid(format!("{number} is not a signal"));
        let signal = Signal::try_from(number).map_err(|_| invalid())?;
        let Some(container) = self.containers.get(name).filter(|c| c.order.attempt == attempt) else {
            return Ok(());
        };
        let Some(main) = self.processes.get(&container.order.stream).filter(|main| main.is_alive()) else {
            return Ok(());
        };
        if signal == Signal::SIGKILL {
            return container.cgroup.kill();
        }
        main.signal(signal).doing(|| format!("send signal {number} to container {name}"))
    }

    /// Stops or continues all containers.
    pub(super) fn set_frozen(&mut self, frozen: bool) -> Result<(), Error> {
        if self.frozen != frozen {
            if frozen && fault::has(Fault::Freeze) {
                return Err(Error::Timeout("the containers do not stand still".to_owned()));
            }
            let result = Cgroup::pod().set_frozen(frozen, FREEZE);
            if frozen && result.is_err() {
                // All or none.
                let _ = Cgroup::pod().set_frozen(false, FREEZE);
            }
            result?;
            self.frozen = frozen;
        }
        Ok(())
    }

    /// Lets containers go on, with the network as it was if it was taken down.
    pub(super) fn thaw(&mut self) -> Result<(), Error> {
        if self.quiet {
            let network = self.pod.as_ref().and_then(Pod::network);
            network.map_or(Ok(()), net::configure)?;
            self.quiet = false;
        }
        self.set_frozen(false)
    }

    /// The last thing before a snapshot. The interface goes down with it: the kernel's own timers run in a clone before
    /// the clone has its identity, and must find nothing to send by.
    fn quiesce(&mut self) -> Result<(), Error> {
        self.set_frozen(true)?;
        if let Some(network) = self.pod.as_ref().and_then(Pod::network) {
            net::set_up(&network.interface, false)?;
            self.quiet = true;
        }
        crate::sys::sync_disks();
        // Free memory in large pieces can be given back to the host.
        for (file, value) in [("drop_caches", "3"), ("compact_memory", "1")] {
            if let Err(error) = fs::write(format!("/proc/sys/vm/{file}"), value) {
                self.problem(format!("cannot write {file}: {error}"));
            }
        }
        // Pages of zeroes take up nothing in the template.
        let free = free_memory_bytes().saturating_sub(SPARE_BYTES);
        if free > 0
            && let Err(error) = crate::sys::clear_free_memory(free)
        {
            self.problem(format!("cannot clear {free} bytes of free memory: {error}"));
        }
        crate::random::before_snapshot()
    }
}
