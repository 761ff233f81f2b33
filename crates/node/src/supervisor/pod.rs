//! A pod of containers: starts them in the supervisor's namespaces, and does what follows from their ends.
//!
//! ```text
//!   Start ──► Running ──(reaped, output drained, state.json written)──► Ended
//!     └─(could not be executed)─► Ended: StartError, 128
//! ```
//!
//! Everything here runs on one thread. A step that changes the state ends by recording it ([`super::record`]) and only
//! then tells the clients; no step awaits between a change and its record.

use super::backend::refuse;
use super::files;
use super::io::{Pipes, Stream, pipes};
use super::live::Live;
use super::log::{Channel, last_bytes};
use super::output::Output;
use super::proto::{ContainerStart, Ended, InstanceState, PodNetwork, Reply};
use super::reaper::{ExitStatus, Reaper};
use super::record::{MAX_MESSAGE, Record, is_name, new_id, now_us};
use cumulet_container::cgroup::Cgroup;
use cumulet_container::spec::{Mount, MountSource, Propagation};
use cumulet_container::{Bundle, Error, Started, Stdio};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

/// How long output may still come after the main process ended, from others that hold its streams.
const DRAIN: Duration = Duration::from_secs(2);
/// How long killed containers may take to be gone when the pod is shut down.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// A pod of containers.
pub(super) struct Pod {
    record: Rc<Record>,
    shm: PathBuf,
    pub(super) reaper: Reaper,
    live: RefCell<HashMap<String, Rc<Live>>>,
    /// Told whenever a container has ended.
    ended: Notify,
}

impl Pod {
    pub(super) fn new(record: Rc<Record>, shm: PathBuf, reaper: Reaper) -> Rc<Self> {
        Rc::new(Self { record, shm, reaper, live: RefCell::default(), ended: Notify::new() })
    }

    /// The container, if it runs.
    pub(super) fn find(&self, container: &str) -> Option<Rc<Live>> {
        let live = self.live.borrow().get(container).cloned();
        live.filter(|live| self.reaper.is_alive(live.pid))
    }

    /// Configures the pod's side of the network.
    pub(super) fn configure_network(&self, network: PodNetwork) -> Reply {
        use cumulet_net::pod_side::{PodSide, configure};
        if self.record.network().as_ref() == Some(&network) {
            return Reply::Ok;
        }
        let side = PodSide::parse(&network.interface, &network.address, &network.gateway, network.mtu);
        if let Err(error) = side.and_then(|side| configure(&side)) {
            return refuse("NetworkError", error);
        }
        self.record.set_network(network);
        Reply::Ok
    }

    /// Starts an instance, unless it or a later one was started before.
    pub(super) fn start(self: &Rc<Self>, order: ContainerStart) -> Reply {
        if self.record.newest(&order.name).is_some_and(|newest| order.attempt <= newest) {
            return Reply::Ok;
        }
        if self.live.borrow().contains_key(&order.name) {
            return refuse("StillRunning", format!("container {} still runs", order.name));
        }
        let id = match new_id() {
            Ok(id) => id,
            Err(e) => return refuse("CreateContainerError", e),
        };
        match self.try_start(&order, &id) {
            Ok(()) => Reply::Ok,
            Err(error) => {
                if let Error::Start(_) = &error {
                    self.record.put_failed_start(&order, id, error.reason(), error.to_string());
                }
                refuse(error.reason(), error)
            }
        }
    }

    /// Starts a container. There is no await between the start of the process and its registration.
    fn try_start(self: &Rc<Self>, order: &ContainerStart, id: &str) -> Result<(), Error> {
        if !is_name(&order.name) {
            return Err(Error::Invalid(format!("container name {:?}", order.name)));
        }
        let bundle = Bundle {
            id: id.to_owned(),
            dir: self.record.dir.join(files::RUNS).join(format!("{}-{}", order.name, order.attempt)),
            state_root: self.record.dir.join(files::RUNTIME),
            cgroup: order.spec.cgroup.clone(),
        };
        let spec = self.complete(order)?;
        let made = pipes(order.stdin).map_err(|e| Error::Create(format!("pipe: {e}")))?;
        let (stdio, stdin, output) = if order.tty {
            (Stdio::Terminal, None, None)
        } else {
            let Pipes { theirs, stdin, output } = made;
            (theirs, stdin, Some(output))
        };
        let Started { pid, terminal } = bundle.start(&spec, Some(&self.shm), stdio)?;
        let exit = self.reaper.expect(pid);

        let stream = |fd| Stream::new(fd).map(Rc::new).map_err(|e| Error::Create(format!("stream: {e}")));
        let terminal = terminal.map(stream).transpose()?;
        let stdin = stdin.map(stream).transpose()?.or(terminal.clone().filter(|_| order.stdin));
        let mut sources = Vec::new();
        for (fd, channel) in output.into_iter().flatten().zip([Channel::Stdout, Channel::Stderr]) {
            sources.push((stream(fd)?, channel));
        }
        sources.extend(terminal.clone().map(|terminal| (terminal, Channel::Stdout)));

        let live = Rc::new(Live {
            attempt: order.attempt,
            id: id.to_owned(),
            pid,
            bundle,
            spec,
            started_at_us: now_us(),
            stdin: RefCell::new(stdin),
            stdin_once: order.stdin_once,
            terminal,
            output: Output::new(self.record.open_log(&order.name, order.attempt)),
        });
        let pumps: Vec<_> = sources.into_iter().map(|(from, channel)| live.pump(from, channel)).collect();
        self.live.borrow_mut().insert(order.name.clone(), live.clone());
        let running = InstanceState::Running { started_at_us: live.started_at_us, pid, restored: false };
        self.record.put(&order.name, order.attempt, id.to_owned(), running);
        let words = LastWords {
            file: message_source(&live.spec.mounts, &order.termination_message_path),
            from_logs: order.termination_message_from_logs,
        };
        let (pod, name) = (self.clone(), order.name.clone());
        // Ends with the container.
        tokio::task::spawn_local(async move { pod.watch(name, live, exit, pumps, words).await });
        Ok(())
    }

    /// The order with what only the supervisor knows: its namespaces, and the file for the last words.
    fn complete(&self, order: &ContainerStart) -> Result<cumulet_container::ContainerSpec, Error> {
        let mut spec = order.spec.clone();
        let own = |kind: &str| Some(PathBuf::from(format!("/proc/{}/ns/{kind}", std::process::id())));
        spec.namespaces.net = own("net");
        spec.namespaces.ipc = own("ipc");
        spec.namespaces.uts = own("uts");
        let path = &order.termination_message_path;
        if !path.is_empty() && message_source(&spec.mounts, path).is_none() {
            let file =
                self.record.dir.join(files::RUNS).join(format!("{}-{}.message", order.name, order.attempt));
            let create = || -> std::io::Result<()> {
                std::fs::create_dir_all(self.record.dir.join(files::RUNS))?;
                std::fs::write(&file, b"")?;
                // Whoever the container runs as may write it.
                std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666))
            };
            create().map_err(|source| Error::Io { what: "create", path: file.clone(), source })?;
            spec.mounts.push(Mount {
                source: MountSource::Bind(file),
                destination: path.clone(),
                read_only: false,
                propagation: Propagation::Private,
            });
        }
        Ok(spec)
    }

    /// Waits for the end of a container and does everything that follows from it.
    async fn watch(
        self: Rc<Self>,
        name: String,
        live: Rc<Live>,
        exit: oneshot::Receiver<ExitStatus>,
        pumps: Vec<tokio::task::JoinHandle<()>>,
        words: LastWords,
    ) {
        // The reaper lives as long as the supervisor.
        let Ok(status) = exit.await else { return };
        let cgroup = Cgroup::new(&live.bundle.cgroup);
        // What ran beside the main process (a shared pid namespace, commands) ends with it.
        if let Ok(cgroup) = &cgroup
            && let Err(error) = cgroup.kill()
        {
            tracing::warn!(container = %name, %error, "cannot kill what is left of the container");
        }
        drain(pumps).await;
        let out_of_memory = cgroup.is_ok_and(|cgroup| cgroup.oom_kills() > 0) && status.code != 0;
        let ended = Ended {
            id: live.id.clone(),
            exit_code: status.code,
            signal: status.signal,
            reason: if out_of_memory {
                "OOMKilled".into()
            } else if status.code == 0 {
                "Completed".into()
            } else {
                "Error".into()
            },
            message: words.read(&live, status.code),
            started_at_us: live.started_at_us,
            finished_at_us: now_us(),
        };
        if let Err(error) = live.bundle.delete() {
            tracing::warn!(container = %name, %error, "cannot remove what the container left");
        }
        self.live.borrow_mut().remove(&name);
        self.record.put(&name, live.attempt, live.id.clone(), InstanceState::Ended(ended));
        self.ended.notify_waiters();
        live.output.detach_all(status.code).await;
    }

    /// Signals the main process of an instance, or kills all of it.
    pub(super) fn signal(&self, container: &str, attempt: u32, number: i32) -> Reply {
        use nix::sys::signal::{Signal, kill};
        let Some(live) = self.find(container).filter(|live| live.attempt == attempt) else {
            return Reply::Ok;
        };
        let Ok(signal) = Signal::try_from(number) else {
            return refuse("InvalidSignal", format!("{number} is not a signal"));
        };
        let done = if signal == Signal::SIGKILL {
            Cgroup::new(&live.bundle.cgroup).and_then(|cgroup| cgroup.kill()).map_err(|e| e.to_string())
        } else {
            kill(nix::unistd::Pid::from_raw(live.pid), signal).map_err(|e| e.to_string())
        };
        done.map_or_else(|e| refuse("SignalError", e), |()| Reply::Ok)
    }

    /// Opens the log files by their names again.
    pub(super) fn reopen_logs(&self) -> Reply {
        let live: Vec<_> = self.live.borrow().values().cloned().collect();
        let result = live.iter().try_for_each(|live| live.output.log.borrow_mut().reopen());
        result.map_or_else(|e| refuse("LogError", e), |()| Reply::Ok)
    }

    /// Kills what runs and removes the pod's cgroup.
    pub(super) async fn shutdown(&self) -> Reply {
        let running: Vec<_> = self.live.borrow().values().cloned().collect();
        for live in running {
            if let Err(error) = Cgroup::new(&live.bundle.cgroup).and_then(|cgroup| cgroup.kill()) {
                return refuse("KillError", error);
            }
        }
        let all_ended = async {
            loop {
                let ended = self.ended.notified();
                if self.live.borrow().is_empty() {
                    return;
                }
                ended.await;
            }
        };
        if timeout(SHUTDOWN, all_ended).await.is_err() {
            return refuse("StillRunning", "killed containers do not end");
        }
        let remove = || -> Result<(), cumulet_container::cgroup::CgroupError> {
            Cgroup::leave()?;
            Cgroup::new(&self.record.sandbox().cgroup)?.remove()
        };
        remove().map_or_else(|e| refuse("CgroupError", e), |()| Reply::Ok)
    }
}

/// Where a container's last words are.
struct LastWords {
    file: Option<PathBuf>,
    from_logs: bool,
}

impl LastWords {
    fn read(&self, live: &Live, exit_code: i32) -> String {
        let read = |path: &PathBuf| -> std::io::Result<String> {
            let mut file = std::fs::File::open(path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(MAX_MESSAGE as u64)))?;
            let mut bytes = Vec::new();
            file.take(MAX_MESSAGE as u64).read_to_end(&mut bytes)?;
            Ok(last_bytes(String::from_utf8_lossy(&bytes).into_owned(), MAX_MESSAGE))
        };
        let message = self.file.as_ref().and_then(|path| read(path).ok()).unwrap_or_default();
        if message.is_empty() && self.from_logs && exit_code != 0 {
            return live.output.log.borrow().tail();
        }
        message
    }
}

/// The host's file behind a path inside the container.
fn message_source(mounts: &[Mount], path: &str) -> Option<PathBuf> {
    mounts.iter().find(|mount| mount.destination == path).and_then(|mount| match &mount.source {
        MountSource::Bind(source) => Some(source.clone()),
        MountSource::Tmpfs { .. } => None,
    })
}

/// Waits for the end of output, and not longer than [`DRAIN`].
pub(super) async fn drain(pumps: Vec<tokio::task::JoinHandle<()>>) {
    let stop: Vec<_> = pumps.iter().map(tokio::task::JoinHandle::abort_handle).collect();
    let all = async {
        for pump in pumps {
            // A pump has no result; one that panicked has ended as well.
            let _ = pump.await;
        }
    };
    if timeout(DRAIN, all).await.is_err() {
        stop.iter().for_each(tokio::task::AbortHandle::abort);
    }
}
