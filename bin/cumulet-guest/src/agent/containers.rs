//! Containers as the agent knows them: the newest instance of each, from its order to its end.

use super::Agent;
use super::process::{Exit, Process, Role, Stage};
use super::streams::Streams;
use crate::clock;
use crate::container::cgroup::Cgroup;
use crate::container::{Launched, Program, Stdio, launch};
use crate::error::{Doing, Error};
use crate::pod::{self, Found, is_name};
use crate::poll::Token;
use cumulet_guest_proto::guest::RequestId;
use cumulet_guest_proto::message::{Ended, Event, Instance, InstanceState, reason};
use cumulet_guest_proto::spec::ContainerStart;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest termination message, in bytes.
const MAX_MESSAGE: u64 = 4096;
/// How long a container waits for a disk.
const DISK_WAIT: Duration = Duration::from_secs(10);

/// An instance.
pub(super) struct Container {
    pub(super) order: Box<ContainerStart>,
    pub(super) state: State,
    pub(super) cgroup: Cgroup,
}

pub(super) enum State {
    Starting,
    Running { started_at_us: i64 },
    Ended(Ended),
}

/// A start that waits for a disk.
pub(super) struct Waiting {
    order: Box<ContainerStart>,
    waiters: Vec<RequestId>,
    serial: String,
    pub(super) until: Instant,
}

/// What an instance leaves, to be removed when its last process is gone.
pub(super) struct Garbage {
    cgroup: Cgroup,
    dir: PathBuf,
}

impl Agent {
    /// [`cumulet_guest_proto::message::Request::Start`].
    pub(super) fn start(
        &mut self,
        waiter: RequestId,
        order: Box<ContainerStart>,
    ) -> Result<Option<()>, Error> {
        if !is_name(&order.name) {
            return Err(Error::Invalid(format!("{:?} cannot be the name of a container", order.name)));
        }
        if let Some(waiting) = self.waiting.iter_mut().find(|w| w.order.name == order.name) {
            if waiting.order.attempt == order.attempt {
                waiting.waiters.push(waiter);
                return Ok(None);
            }
            return Err(Error::Conflict(format!("container {} is being started", order.name)));
        }
        if let Some(known) = self.containers.get(&order.name) {
            let same = known.order.attempt == order.attempt;
            match &known.state {
                State::Starting if same => {
                    if let Some(process) = self.processes.get_mut(&known.order.stream) {
                        process.waiters.push(waiter);
                    }
                    return Ok(None);
                }
                _ if same => return Ok(Some(())),
                State::Ended(_) if order.attempt > known.order.attempt => {}
                _ => {
                    let text =
                        format!("attempt {} of container {} is there", known.order.attempt, order.name);
                    return Err(Error::Conflict(text));
                }
            }
        }
        self.try_start(vec![waiter], order, None)?;
        Ok(None)
    }

    /// Starts, or waits for a disk.
    fn try_start(
        &mut self,
        waiters: Vec<RequestId>,
        order: Box<ContainerStart>,
        until: Option<Instant>,
    ) -> Result<(), Error> {
        if self.frozen {
            return Err(Error::Conflict("the containers are frozen".to_owned()));
        }
        let unconfigured = || Error::Conflict("the pod is not configured".to_owned());
        let pod = self.pod.as_mut().ok_or_else(unconfigured)?;
        let layout = match pod.layout(&order)? {
            Found::Ready(layout) => layout,
            Found::NotYet(serial) => {
                let until = until.unwrap_or_else(|| Instant::now() + DISK_WAIT);
                self.waiting.push(Waiting { order, waiters, serial, until });
                return Ok(());
            }
        };
        if !self.link.open_stream(order.stream) {
            return Err(Error::Conflict(format!("stream {} is in use", order.stream)));
        }
        let cgroup = pod::cgroup(&order);
        let stdio = if order.tty {
            Stdio::Terminal { columns: 0, rows: 0 }
        } else {
            Stdio::Pipes { stdin: order.stdin }
        };
        let pause = pod.pause.as_ref().map(|(_, pidfd)| pidfd.as_fd());
        let begin = || {
            // What an attempt of the same number left whose start failed.
            remove_dir(&layout.writable);
            fs::create_dir_all(&layout.writable).doing(|| format!("make {}", layout.writable.display()))?;
            cgroup.create()?;
            cgroup.limit(&order.resources)?;
            launch::container(&layout, &program(&order), stdio, &cgroup.open()?, pause)
        };
        let begun = begin().and_then(|launched| {
            self.watch(launched, Role::Main(order.name.clone()), order.stream, order.stdin)
        });
        match begun {
            Ok(mut process) => {
                process.waiters = waiters;
                self.processes.insert(order.stream, process);
                self.containers
                    .insert(order.name.clone(), Container { order, state: State::Starting, cgroup });
                Ok(())
            }
            Err(error) => {
                self.link.drop_stream(order.stream);
                self.garbage.push(Garbage { cgroup, dir: layout.writable });
                self.collect_garbage();
                Err(error)
            }
        }
    }

    /// Registers a new process with the loop.
    pub(super) fn watch(
        &self,
        launched: Launched,
        role: Role,
        stream: u32,
        stdin: bool,
    ) -> Result<Process, Error> {
        let Launched { pid, pidfd, report, stdin: to, stdout, stderr } = launched;
        let what = || "watch a process".to_owned();
        self.poll.add(&report, Token::Report(stream)).doing(what)?;
        let streams = Streams::new(&self.poll, stream, [to, stdout, stderr]).doing(what)?;
        let stage = Stage::Launching(report);
        Ok(Process { role, pid, pidfd, stage, streams, stdin, waiters: vec![], kill_at: None })
    }

    /// A disk may have come.
    pub(super) fn retry_waiting(&mut self) {
        for Waiting { order, waiters, until, .. } in std::mem::take(&mut self.waiting) {
            let again = waiters.clone();
            if let Err(error) = self.try_start(waiters, order, Some(until)) {
                again.into_iter().for_each(|waiter| self.link.reply(waiter, error.reply()));
            }
        }
    }

    pub(super) fn give_up_waiting(&mut self, now: Instant) {
        let (over, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|w: &Waiting| w.until <= now);
        self.waiting = waiting;
        for Waiting { order, waiters, serial, .. } in over {
            let error = Error::Invalid(format!("container {}: there is no disk {serial}", order.name));
            waiters.into_iter().for_each(|waiter| self.link.reply(waiter, error.reply()));
        }
    }

    /// The container whose main process has that stream.
    fn of_stream(&mut self, stream: u32) -> Option<&mut Container> {
        self.containers.values_mut().find(|container| container.order.stream == stream)
    }

    pub(super) fn container_started(&mut self, stream: u32) {
        if let Some(container) = self.of_stream(stream) {
            container.state = State::Running { started_at_us: clock::now_us() };
            self.tell_container(stream);
        }
    }

    pub(super) fn container_failed(&mut self, stream: u32) {
        let name = self.of_stream(stream).map(|container| container.order.name.clone());
        if let Some(container) = name.and_then(|name| self.containers.remove(&name)) {
            self.discard(&container);
        }
    }

    /// What ran beside the main process ends with it.
    pub(super) fn kill_rest(&mut self, stream: u32) {
        if let Some(container) = self.of_stream(stream)
            && let Err(error) = container.cgroup.kill()
        {
            let text = format!("container {}: {}", container.order.name, error.text());
            self.problem(text);
        }
    }

    pub(super) fn container_ended(&mut self, stream: u32, exit: Exit) {
        let Some(container) = self.of_stream(stream) else { return };
        let State::Running { started_at_us } = container.state else { return };
        let oom_kills = container.cgroup.oom_kills();
        let reason = match exit.code {
            0 => reason::COMPLETED,
            _ if oom_kills > 0 => reason::OOM_KILLED,
            _ => reason::ERROR,
        };
        let file = pod::termination_file(&container.order);
        let message = read_tail(&file).unwrap_or_default();
        container.state = State::Ended(Ended {
            exit_code: exit.code,
            signal: exit.signal,
            reason: reason.to_owned(),
            message,
            started_at_us,
            finished_at_us: clock::now_us(),
        });
        // There is none for a container without a path for it.
        let _ = fs::remove_file(file);
        let garbage = Garbage { cgroup: container.cgroup.clone(), dir: pod::writable_dir(&container.order) };
        self.garbage.push(garbage);
        self.collect_garbage();
    }

    /// Tells the end of a process, whose output was all sent.
    pub(super) fn announce(&mut self, stream: u32, exit: Exit) {
        match self.processes.get(&stream).map(|process| &process.role) {
            Some(Role::Main(_)) => self.tell_container(stream),
            Some(Role::Exec(_)) => self.event(Event::ExecEnded { stream, exit_code: exit.code }),
            None => {}
        }
    }

    fn tell_container(&mut self, stream: u32) {
        let found = self.containers.values().find(|container| container.order.stream == stream);
        let told =
            found.and_then(|container| Some((container.order.name.clone(), self.instance(container)?)));
        if let Some((name, instance)) = told {
            self.event(Event::Container { name, instance });
        }
    }

    fn instance(&self, container: &Container) -> Option<Instance> {
        let ContainerStart { attempt, id, stream, .. } = &*container.order;
        let state = match &container.state {
            State::Starting => return None,
            State::Running { started_at_us } => {
                let pid = self.processes.get(stream).map_or(0, |process| process.pid);
                InstanceState::Running { started_at_us: *started_at_us, pid }
            }
            State::Ended(ended) => InstanceState::Ended(ended.clone()),
        };
        Some(Instance { attempt: *attempt, id: id.clone(), stream: *stream, state })
    }

    /// All that runs or ran.
    pub(super) fn instances(&self) -> BTreeMap<String, Instance> {
        let of = |(name, container): (&String, &Container)| Some((name.clone(), self.instance(container)?));
        self.containers.iter().filter_map(of).collect()
    }

    fn discard(&mut self, container: &Container) {
        let garbage = Garbage { cgroup: container.cgroup.clone(), dir: pod::writable_dir(&container.order) };
        // There is none for a container without a path for it.
        let _ = fs::remove_file(pod::termination_file(&container.order));
        self.garbage.push(garbage);
        self.collect_garbage();
    }

    /// Removes what is no longer in use; the rest stays for the next time.
    pub(super) fn collect_garbage(&mut self) {
        self.garbage.retain(|garbage| {
            let removed = garbage.cgroup.remove();
            if removed {
                remove_dir(&garbage.dir);
            }
            !removed
        });
    }
}

/// What an order says about the process.
pub(super) fn program(order: &ContainerStart) -> Program {
    Program {
        process: order.process.clone(),
        security: order.security.clone(),
        oom_score_adj: order.resources.oom_score_adj.unwrap_or(0),
    }
}

/// Removes a writable layer. It may be large, so a process of its own does it; what it cannot remove only takes room.
fn remove_dir(dir: &Path) {
    if !dir.exists() {
        return;
    }
    // Out of the way first, so that the same name can be made again at once.
    let aside = dir.with_extension(format!("gone-{}", clock::uptime_us()));
    if fs::rename(dir, &aside).is_err() {
        return;
    }
    if let Ok(crate::sys::Fork::Child) = crate::sys::fork(0, None) {
        let removed = fs::remove_dir_all(&aside);
        crate::sys::exit_now(i32::from(removed.is_err()))
    }
}

/// The end of a file that a container could write: at most [`MAX_MESSAGE`] bytes of it.
fn read_tail(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_MESSAGE)))?;
    let mut bytes = Vec::new();
    file.take(MAX_MESSAGE).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // Replacement characters are longer than what they replace.
    let least = text.len().saturating_sub(MAX_MESSAGE as usize);
    let start = (least..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    Ok(text[start..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tail_of_a_message_counts() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "short").unwrap();
        assert_eq!(read_tail(file.path()).unwrap(), "short");
        fs::write(&file, [vec![b'a'; 5000], b"end".to_vec()].concat()).unwrap();
        let tail = read_tail(file.path()).unwrap();
        assert!(tail.len() == 4096 && tail.ends_with("aend"));
        fs::write(&file, vec![0xff; 9000]).unwrap();
        assert!(read_tail(file.path()).unwrap().len() <= 4096);
    }
}
