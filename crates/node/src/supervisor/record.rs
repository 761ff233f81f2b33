//! What happened to the pod's containers: in memory, in `state.json`, and told to whoever listens.
//!
//! Both kinds of sandbox share it. A change is first written to the disk and then told; no step awaits in between.

use super::files::{self, State};
use super::log::{Limits, Log, last_bytes};
use super::proto::{ContainerStart, Ended, Event, Instance, InstanceState, PodNetwork, SandboxSpec};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// Longest termination message, in bytes.
pub(super) const MAX_MESSAGE: usize = 4096;
/// Events that may wait for a control connection; one that falls behind is closed and can connect again.
const EVENT_QUEUE: usize = 256;

/// The record of a pod.
pub(super) struct Record {
    pub(super) dir: PathBuf,
    sandbox: RefCell<Rc<SandboxSpec>>,
    state: RefCell<State>,
    listeners: RefCell<Vec<mpsc::Sender<Event>>>,
}

impl Record {
    pub(super) fn new(dir: PathBuf, sandbox: SandboxSpec) -> Rc<Self> {
        let sandbox = RefCell::new(Rc::new(sandbox));
        Rc::new(Self { dir, sandbox, state: RefCell::default(), listeners: RefCell::default() })
    }

    /// What the pod is.
    pub(super) fn sandbox(&self) -> Rc<SandboxSpec> {
        self.sandbox.borrow().clone()
    }

    /// A standby has got its pod.
    pub(super) fn set_sandbox(&self, sandbox: SandboxSpec) {
        self.sandbox.replace(Rc::new(sandbox));
    }

    /// Events for a control connection, beginning with everything known.
    pub(super) fn listen(&self) -> mpsc::Receiver<Event> {
        let (sender, receiver) = mpsc::channel(EVENT_QUEUE);
        let state = self.state.borrow();
        let snapshot = Event::Snapshot {
            pid: std::process::id().cast_signed(),
            network: state.network.clone(),
            containers: state.containers.clone(),
        };
        // The channel is new and empty, so there is room.
        let _ = sender.try_send(snapshot);
        self.listeners.borrow_mut().push(sender);
        receiver
    }

    /// The newest instance of a container that was ever recorded.
    pub(super) fn newest(&self, container: &str) -> Option<u32> {
        self.state.borrow().containers.get(container).map(|instance| instance.attempt)
    }

    /// The newest instance of every container.
    pub(super) fn containers(&self) -> BTreeMap<String, Instance> {
        self.state.borrow().containers.clone()
    }

    /// The network that was configured.
    pub(super) fn network(&self) -> Option<PodNetwork> {
        self.state.borrow().network.clone()
    }

    pub(super) fn set_network(&self, network: PodNetwork) {
        self.state.borrow_mut().network = Some(network);
        self.save();
    }

    /// Opens the log of an instance.
    pub(super) fn open_log(&self, container: &str, attempt: u32) -> Log {
        let sandbox = self.sandbox();
        let path = Path::new(&sandbox.log_dir).join(container).join(format!("{attempt}.log"));
        let limits = Limits { max_bytes: sandbox.log_max_bytes, max_files: sandbox.log_max_files };
        Log::open(path, limits)
    }

    /// Records the newest instance of a container: in memory, on disk, to the listeners.
    pub(super) fn put(&self, name: &str, attempt: u32, id: String, new: InstanceState) {
        let instance = self.note(name, attempt, id, new);
        self.tell(&Event::Container { name: name.to_owned(), instance });
    }

    /// Tells the listeners.
    pub(super) fn tell(&self, event: &Event) {
        self.listeners.borrow_mut().retain(|listener| listener.try_send(event.clone()).is_ok());
    }

    /// The same without telling anybody: for ends that come with the end of the supervisor, which says it all. Told
    /// one by one, they would be taken for containers that can be started again in this sandbox.
    pub(super) fn note(&self, name: &str, attempt: u32, id: String, new: InstanceState) -> Instance {
        let instance = {
            let mut state = self.state.borrow_mut();
            let before = state.containers.remove(name);
            let previous = match before {
                Some(Instance { attempt: old, previous, .. }) if old == attempt => previous,
                Some(Instance { state: InstanceState::Ended(ended), .. }) => Some(Box::new(ended)),
                _ => None,
            };
            let instance = Instance { attempt, id, state: new, previous };
            state.containers.insert(name.to_owned(), instance.clone());
            instance
        };
        self.save();
        instance
    }

    /// Records an instance whose program could not be executed.
    pub(super) fn put_failed_start(&self, order: &ContainerStart, id: String, reason: &str, message: String) {
        let now = now_us();
        let ended = Ended {
            id: id.clone(),
            exit_code: 128,
            signal: 0,
            reason: reason.to_owned(),
            message: last_bytes(message, MAX_MESSAGE),
            started_at_us: now,
            finished_at_us: now,
        };
        self.put(&order.name, order.attempt, id, InstanceState::Ended(ended));
    }

    /// Writes `state.json`. A standby has none before it waits for its pod.
    pub(super) fn save(&self) {
        if let Err(error) = files::write_json(&self.dir.join(files::STATE), &*self.state.borrow()) {
            // The pod goes on; only its history would be lost with the supervisor.
            tracing::error!(%error, "cannot write the pod's state");
        }
    }
}

/// Refuses a container name that could not be a file name.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 253 && !name.contains(['/', '\0']) && !matches!(name, "." | "..")
}

/// 64 random hexadecimal digits.
pub(super) fn new_id() -> std::io::Result<String> {
    let mut random = [0_u8; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Microseconds since the epoch.
pub(super) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
