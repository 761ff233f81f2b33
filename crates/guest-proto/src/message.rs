//! Messages: what host and guest say to each other beside raw streams.
//!
//! All of it is JSON in snake case. Fields are only ever added, every field of a message that came later than its
//! struct has a default, and unknown fields are ignored. A request that the guest does not know is refused with
//! [`reason::UNSUPPORTED`]; a host that does not know an event ignores it ([`ToHost`] then fails to decode alone).

use crate::identity::{Identity, IdentityReport, Phase};
use crate::spec::{ContainerStart, ExecStart, FileTree, Pod};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// First frame of a conversation, in both directions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The sender's [`crate::VERSION`]; the smaller one of both counts.
    pub version: u32,
    /// Chosen at random by the host for each conversation; the guest answers with the same.
    pub epoch: u64,
    /// Version of the sender's program, for people.
    #[serde(default)]
    pub program: String,
}

/// A request with the number that its answer will carry. `R` is raw JSON while the guest has not looked inside.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ToGuest<R = Request> {
    /// Unique within a conversation.
    pub id: u64,
    /// What to do.
    pub request: R,
}

/// What the guest is to do. Requests are idempotent: repeating one that already happened succeeds. They are begun in
/// order; those that take time ([`Request::Start`], [`Request::Exec`], [`Request::Adopt`], [`Request::Shutdown`]) are
/// answered when done, later ones meanwhile.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Makes the guest a pod: network, names, files, volumes. Once, before the first `Start`; repeating the same is
    /// done, another one is refused.
    Configure(Box<Pod>),
    /// Starts instance `attempt` of a container. Answered when the program runs, or with why it does not.
    Start(Box<ContainerStart>),
    /// Runs a command in a running container. Answered when it runs; its end is [`Event::ExecEnded`].
    Exec(Box<ExecStart>),
    /// Signals a container's main process; signal 9 kills all of the container.
    Signal {
        /// Container name.
        container: String,
        /// Instance the signal is meant for; another one is left alone.
        attempt: u32,
        /// Signal number.
        signal: i32,
    },
    /// Kills an exec session's process and its process group.
    KillExec {
        /// The session's stream.
        stream: u32,
    },
    /// Replaces the files of a volume of kind [`crate::spec::Volume::Files`] as a whole, atomically for readers.
    WriteFiles {
        /// Volume name.
        volume: String,
        /// All its files.
        files: FileTree,
    },
    /// Replaces files of `/etc` that all containers see (`hosts`, `resolv.conf`, `hostname`), in place.
    WriteEtc {
        /// Names without directory.
        files: FileTree,
    },
    /// Stops all containers (cgroup freezer); answered when they stand still.
    Freeze,
    /// Lets them go on.
    Thaw,
    /// Freezes, writes back and forgets caches, and makes memory small: the last thing before a snapshot.
    Quiesce,
    /// Takes on an identity, with containers frozen: the first thing after a restore.
    Adopt(Box<Identity>),
    /// Tells the guest's own clock. Answered with [`Reply::Clock`] at once.
    Clock,
    /// Tells what is used. Answered with [`Reply::Stats`].
    Stats,
    /// Ends: SIGTERM to every container's main process, SIGKILL after the grace, then power off. Answered before
    /// the power goes.
    Shutdown {
        /// Milliseconds between SIGTERM and SIGKILL.
        grace_ms: u64,
    },
}

/// Everything that a guest sends as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToHost {
    /// Everything known; the first message of a conversation.
    Snapshot(Box<Snapshot>),
    /// Answer to a request.
    Reply {
        /// The request's number.
        id: u64,
        /// What became of it.
        reply: Reply,
    },
    /// Something happened.
    Event(Event),
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Done,
    /// Not done, and why.
    Error {
        /// One of [`reason`].
        reason: String,
        /// For people.
        message: String,
    },
    /// To [`Request::Clock`].
    Clock {
        /// Microseconds of the guest's monotonic clock.
        monotonic_us: u64,
    },
    /// To [`Request::Stats`].
    Stats(Box<Stats>),
    /// To [`Request::Adopt`].
    Adopted(IdentityReport),
}

/// Values of [`Reply::Error`]'s `reason` and of [`Ended`]'s.
pub mod reason {
    /// The request is unknown or its content makes no sense.
    pub const UNSUPPORTED: &str = "Unsupported";
    /// The request contradicts what is: not configured, configured otherwise, frozen.
    pub const CONFLICT: &str = "Conflict";
    /// A setting cannot be made true: a path, user or volume that is not there.
    pub const CREATE_ERROR: &str = "CreateContainerError";
    /// The program cannot be executed.
    pub const START_ERROR: &str = "StartError";
    /// No such running container.
    pub const NOT_RUNNING: &str = "NotRunning";
    /// The kernel refused.
    pub const SYSTEM: &str = "SystemError";
    /// It did not happen in time.
    pub const TIMEOUT: &str = "Timeout";
    /// Ended with exit code 0.
    pub const COMPLETED: &str = "Completed";
    /// Ended with another one.
    pub const ERROR: &str = "Error";
    /// Killed for want of memory.
    pub const OOM_KILLED: &str = "OOMKilled";
}

/// Something happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A container changed state. An end is told after the last byte of the container's output.
    Container {
        /// Container name.
        name: String,
        /// Its newest instance.
        instance: Instance,
    },
    /// An exec session's command ended, and its output was all sent.
    ExecEnded {
        /// The session's stream.
        stream: u32,
        /// Exit code; 128 + signal for a killed command; 137 after its time was over.
        exit_code: i32,
    },
    /// A step of [`Request::Adopt`] is done.
    Identity {
        /// The step.
        phase: Phase,
        /// How long it took, in microseconds.
        micros: u64,
    },
    /// Something is not as it should be and the guest goes on.
    Warning {
        /// For people.
        message: String,
    },
}

/// Everything a guest knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Release of the kernel (`uname -r`).
    #[serde(default)]
    pub kernel: String,
    /// Microseconds since the kernel began.
    #[serde(default)]
    pub uptime_us: u64,
    /// [`Request::Configure`] has happened.
    #[serde(default)]
    pub configured: bool,
    /// The containers stand still.
    #[serde(default)]
    pub frozen: bool,
    /// Generation of the identity; 0 before the first one.
    #[serde(default)]
    pub generation: u64,
    /// Newest instance of every container ever started.
    #[serde(default)]
    pub containers: BTreeMap<String, Instance>,
    /// Streams that are open, and where they are. The host answers with a window frame for each output channel it
    /// wants to go on with; until then the guest sends nothing on it.
    #[serde(default)]
    pub streams: Vec<OpenStream>,
}

/// A stream in a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenStream {
    /// Its number.
    pub stream: u32,
    /// Bytes of standard input that have come.
    pub stdin: u64,
    /// Offset of the first byte of standard output that can be sent again.
    pub stdout: u64,
    /// The same for standard error.
    pub stderr: u64,
}

/// One run of a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// 0 for the first run; the pod's `restartCount` for later ones.
    pub attempt: u32,
    /// Runtime identifier, chosen by the host.
    pub id: String,
    /// Its stream.
    pub stream: u32,
    /// Where it is.
    pub state: InstanceState,
}

/// State of an [`Instance`]. One that is being started is in no snapshot: its `Start` can be repeated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Its main process runs.
    Running {
        /// Microseconds since the epoch, by the guest's clock.
        started_at_us: i64,
        /// Process id inside the guest.
        pid: i32,
    },
    /// It ended, or never started.
    Ended(Ended),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit code; 128 + signal for a killed process; 128 when it could not be started.
    pub exit_code: i32,
    /// The signal that killed it, or 0.
    pub signal: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `CreateContainerError`.
    pub reason: String,
    /// Content of the termination message file, at most 4096 bytes, or why it did not start.
    pub message: String,
    /// Microseconds since the epoch, by the guest's clock.
    pub started_at_us: i64,
    /// Microseconds since the epoch, by the guest's clock.
    pub finished_at_us: i64,
}

/// What is used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// The whole guest.
    pub guest: GuestStats,
    /// Each running container.
    pub containers: BTreeMap<String, ContainerStats>,
}

/// What a guest uses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestStats {
    /// Memory of the machine as its kernel sees it, in bytes.
    pub memory_total_bytes: u64,
    /// What could be given to programs without swapping, in bytes.
    pub memory_available_bytes: u64,
    /// What is not used at all, in bytes.
    pub memory_free_bytes: u64,
    /// Processor time that was not idle, of all processors, in microseconds.
    pub cpu_usage_us: u64,
    /// Received and sent bytes of `eth0`.
    #[serde(default)]
    pub network_rx_bytes: u64,
    /// See above.
    #[serde(default)]
    pub network_tx_bytes: u64,
    /// Size of the file system with writable layers, and what is used of it, in bytes.
    #[serde(default)]
    pub writable_total_bytes: u64,
    /// See above.
    #[serde(default)]
    pub writable_used_bytes: u64,
}

/// What a container uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStats {
    /// Processor time in microseconds.
    pub cpu_usage_us: u64,
    /// Memory in bytes, page cache included.
    pub memory_usage_bytes: u64,
    /// Memory in bytes without page cache that can be dropped (what `kubectl top` shows).
    pub memory_working_set_bytes: u64,
    /// Processes and threads.
    pub processes: u64,
    /// How often the kernel killed a process of it for want of memory.
    pub oom_kills: u64,
}
