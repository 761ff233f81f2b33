//! What the node agent and a pod's supervisor say to each other over the supervisor's unix socket.
//!
//! Both sides are the same binary, but a supervisor outlives an upgrade of the main process, so the protocol is
//! versioned and fields are only ever added. A frame is
//!
//! ```text
//!   u32 length of payload, big endian · u8 kind · payload
//! ```
//!
//! with at most [`MAX_FRAME_BYTES`] of payload. A connection begins with one [`Hello`] from the client. It is then
//! one of:
//! - **control**: the client sends [`Request`]s, each answered in order by one [`Reply`]; [`Event`]s come in between.
//!   On connecting the supervisor first sends `Event::Snapshot` with everything it knows, so a new main process
//!   adopts a pod by connecting.
//! - **session** (exec, attach): one [`SessionRequest`], one [`Reply`], then `Stdin`/`Resize`/`CloseStdin` frames in
//!   one direction and `Stdout`/`Stderr`/`Exit` frames in the other.

pub use super::vm::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of this protocol. A supervisor serves clients of its own version and older ones.
pub const VERSION: u32 = 1;
/// Largest payload of a frame, in bytes.
pub const MAX_FRAME_BYTES: u32 = 1 << 20;

/// Kind byte of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// JSON: [`Hello`], then [`Request`] or [`SessionRequest`] (client to supervisor), [`ToClient`] (the other way).
    Json = 0,
    /// Raw bytes of standard input.
    Stdin = 1,
    /// Raw bytes of standard output.
    Stdout = 2,
    /// Raw bytes of standard error.
    Stderr = 3,
    /// No payload: end of standard input.
    CloseStdin = 4,
    /// u16 columns, u16 rows, big endian.
    Resize = 5,
    /// i32 exit code, big endian; the last frame of a session.
    Exit = 6,
}

/// First frame of a connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The client's [`VERSION`].
    pub version: u32,
    /// True for a session connection.
    pub session: bool,
}

/// What the supervisor is to do. Requests are idempotent: repeating one that already happened succeeds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Configures the pod's side of the network, inside the pod's namespaces. A virtual machine is booted, and the reply
    /// comes when its agent has answered.
    ConfigureNetwork(PodNetwork),
    /// Starts instance `attempt` of a container.
    Start(Box<ContainerStart>),
    /// Sends a signal to the container's main process (TERM), or to all of it (KILL).
    Signal {
        /// Container name.
        container: String,
        /// Instance the signal is meant for; a newer one is left alone.
        attempt: u32,
        /// Signal number.
        signal: i32,
    },
    /// Changes the log limits or reopens; reserved for rotation on demand.
    ReopenLogs,
    /// Files below the pod's directory (`etc`, volumes of files) have changed: a virtual machine has to be told.
    VolumesChanged,
    /// Makes a virtual machine that was started as a template ([`VmMemory::Template`]) one: its containers are frozen, the
    /// devices' state and [`TemplateNotes`] are written to [`TEMPLATE_STATE`] and [`TEMPLATE_NOTES`] in the machine's
    /// directory, QEMU ends. The memory is then what it was, and the containers stand still until [`Self::Continue`].
    SaveTemplate,
    /// Saves a machine of that kind, or a clone, as it is, and lets it go on as itself: the same files, and the memory in
    /// [`CHECKPOINT_MEMORY`].
    Checkpoint(Box<IdentityParts>),
    /// Goes on after [`Self::SaveTemplate`], as a clone of what was saved. A machine that is not being saved goes on
    /// anyway.
    Continue(Box<IdentityParts>),
    /// Gives a standby clone, whose network is that of [`PodNetwork`], its pod. Its directory was renamed before.
    Become(Box<SandboxSpec>, PodNetwork),
    /// Kills what still runs, unmounts, removes cgroups, and ends the supervisor after the reply.
    Shutdown,
}

/// Opens a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionRequest {
    /// Runs a command in a running container.
    Exec {
        /// Container name.
        container: String,
        /// Program and arguments.
        command: Vec<String>,
        /// Client sends standard input.
        stdin: bool,
        /// Run on a terminal.
        tty: bool,
        /// Kill the command after this many milliseconds (probes); never when 0. Exit code is then 137.
        timeout_ms: u64,
    },
    /// Connects to the main process. Input goes to it when the container was started with `stdin`.
    Attach {
        /// Container name.
        container: String,
        /// Client sends standard input.
        stdin: bool,
    },
}

/// Everything that a supervisor sends as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToClient {
    /// Answer to a request.
    Reply(Reply),
    /// Something happened.
    Event(Event),
}

/// Answer to a [`Request`] or [`SessionRequest`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Ok,
    /// Not done, and why. `reason` is a Kubernetes-style CamelCase word such as `CreateContainerError`,
    /// `StartError`, `NotRunning`.
    Error {
        /// For machines and for `state.waiting.reason`.
        reason: String,
        /// For people.
        message: String,
    },
}

/// What the supervisor tells on a control connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Everything known, first thing on a connection.
    Snapshot {
        /// Process id of the supervisor, in whose namespaces the pod lives.
        pid: i32,
        /// The network that was configured, if it was.
        network: Option<PodNetwork>,
        /// Newest instance of every container ever started.
        containers: BTreeMap<String, Instance>,
    },
    /// A clone has taken on its identity.
    Restored(Restored),
    /// A container changed state.
    Container {
        /// Container name.
        name: String,
        /// Its newest instance.
        instance: Instance,
    },
}

/// One run of a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// 0 for the first run; the pod's `restartCount` for later ones.
    pub attempt: u32,
    /// Runtime identifier (64 hex digits), as in `status.containerID` after `cumulet://`.
    pub id: String,
    /// Where it is.
    pub state: InstanceState,
    /// How the run before this one ended; kept for `lastState`.
    pub previous: Option<Box<Ended>>,
}

/// State of an [`Instance`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Its main process runs.
    Running {
        /// Microseconds since the epoch.
        started_at_us: i64,
        /// Process id on the host.
        pid: i32,
        /// It goes on from a memory snapshot.
        #[serde(default)]
        restored: bool,
    },
    /// It ended, or never started.
    Ended(Ended),
}

/// How a run ended. Written to the pod's directory before anybody is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// Runtime identifier of the run.
    pub id: String,
    /// Exit code; 128 + signal for a killed process; 128 when it could not be started.
    pub exit_code: i32,
    /// The signal that killed it, or 0.
    pub signal: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `MachineFailed`, `ContainerStatusUnknown`.
    pub reason: String,
    /// Termination message, at most 4096 bytes.
    pub message: String,
    /// Microseconds since the epoch.
    pub started_at_us: i64,
    /// Microseconds since the epoch.
    pub finished_at_us: i64,
}

/// The pod's own network, as seen from inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNetwork {
    /// Name of the interface that was moved into the pod's namespace (`eth0`).
    pub interface: String,
    /// Address with prefix length, such as `10.86.0.7/16`.
    pub address: String,
    /// Default gateway: the bridge's address.
    pub gateway: String,
    /// Maximum transmission unit; the kernel's default when 0.
    pub mtu: u32,
    /// The tap device that is the host's end of a virtual machine's network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
}

/// Everything that a supervisor needs from the beginning; `sandbox.json` in the pod's directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Uid of the pod.
    pub uid: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Host name inside the pod; untouched with `host_network`.
    pub hostname: String,
    /// Share the host's network instead of a namespace of the pod's own.
    pub host_network: bool,
    /// Share the host's IPC namespace.
    pub host_ipc: bool,
    /// Kernel parameters to set (`securityContext.sysctls`).
    pub sysctls: BTreeMap<String, String>,
    /// The pod's cgroup, relative to the root of each hierarchy: `/cumulet-<hash>/pod<uid>`.
    pub cgroup: String,
    /// Directory of the pod's log files: `<log_dir>/<container>/<attempt>.log`.
    pub log_dir: String,
    /// Rotate a log file at this size, in bytes.
    pub log_max_bytes: u64,
    /// Keep this many files per container instance, the current one included.
    pub log_max_files: u32,
    /// There is no pod yet: a clone that waits for one ([`Request::Become`]).
    #[serde(default)]
    pub standby: bool,
    /// The virtual machine that the pod is to be; containers in the supervisor's namespaces when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Box<VmSpec>>,
}

/// Start order for one container. Everything is resolved: no ConfigMap or image name is left in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerStart {
    /// Container name.
    pub name: String,
    /// Instance number.
    pub attempt: u32,
    /// Keep standard input open for attach.
    pub stdin: bool,
    /// Close standard input when the first attached client goes away.
    pub stdin_once: bool,
    /// Run on a terminal.
    pub tty: bool,
    /// Where the program leaves its last words, as a path inside the container.
    pub termination_message_path: String,
    /// Use the tail of the log as message when the file is empty and the exit code is not 0.
    pub termination_message_from_logs: bool,
    /// The container itself. In a virtual machine, layers, mounts, namespaces and cgroup mean nothing.
    pub spec: cumulet_container::ContainerSpec,
    /// What only a virtual machine needs to know; always there for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestParts>,
}
