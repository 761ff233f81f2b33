//! What a pod and its containers are to be inside the guest. The host fills it from a pod; the guest knows no
//! Kubernetes. Everything is resolved: no image name, ConfigMap or field reference is left.

use crate::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Files below a directory: relative path → file. Paths that leave the directory are refused.
pub type FileTree = BTreeMap<String, File>;

/// A regular file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Content.
    pub content: Bytes,
    /// Permissions, such as `0o644`.
    pub mode: u32,
    /// Owner; root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
}

/// The pod as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Host name.
    pub hostname: String,
    /// Wall clock at sending, in microseconds since the epoch; the guest's own clock is kept when 0.
    pub clock_us: i64,
    /// Content of `/etc/machine-id` for images that have such a file: 32 hexadecimal digits; untouched when empty.
    pub machine_id: String,
    /// Bytes for the kernel's random generator.
    pub entropy: Bytes,
    /// The network; none but loopback when absent.
    pub network: Option<Network>,
    /// Files in `/etc` of every container that does not mount something there itself: `hosts`, `resolv.conf`,
    /// `hostname`.
    pub etc: FileTree,
    /// Volumes by name.
    pub volumes: BTreeMap<String, Volume>,
    /// Kernel parameters, such as `net.ipv4.ip_unprivileged_port_start`.
    pub sysctls: BTreeMap<String, String>,
    /// All containers share one pid namespace, whose first process is not a container's.
    pub share_process_namespace: bool,
    /// Limit of `/dev/shm`, which containers share, in bytes; 64 MiB when 0.
    pub shm_bytes: u64,
}

/// One network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// Its name in the guest (`eth0`).
    pub interface: String,
    /// Hardware address to set, `02:00:00:00:00:01`; the device's own is kept when empty.
    pub mac: String,
    /// Addresses with prefix length, `10.86.0.7/32`.
    pub addresses: Vec<String>,
    /// Routes in the order in which they are to be made.
    pub routes: Vec<Route>,
    /// Neighbours known beforehand, so that the first packet waits for no answer.
    pub neighbours: Vec<Neighbour>,
    /// Maximum transmission unit; the device's own when 0.
    pub mtu: u32,
}

/// A route by way of the [`Network`]'s interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Route {
    /// Where to, `0.0.0.0/0`.
    pub destination: String,
    /// Gateway; none when empty (the destination is on the link).
    pub gateway: String,
    /// The gateway is on the link although no address says so.
    pub onlink: bool,
}

/// A permanent neighbour entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Neighbour {
    /// Its address, `10.86.0.1`.
    pub address: String,
    /// Its hardware address.
    pub mac: String,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Volume {
    /// A directory that is empty at first, mode 0777.
    EmptyDir {
        /// Limit in bytes.
        #[serde(default)]
        size_bytes: Option<u64>,
        /// In memory, even where there is a scratch disk.
        #[serde(default)]
        memory: bool,
        /// Group that owns it (`fsGroup`); its files then inherit the group.
        #[serde(default)]
        gid: Option<u32>,
    },
    /// Files that the host keeps up to date (ConfigMap, Secret, projected, downward), read-only in containers.
    Files {
        /// The files.
        files: FileTree,
        /// Group that owns them and can read them.
        #[serde(default)]
        gid: Option<u32>,
    },
    /// A directory of the host, by virtiofs.
    Virtiofs {
        /// Tag of the device.
        tag: String,
        /// Cannot be written by any container.
        #[serde(default)]
        read_only: bool,
    },
    /// A file system on a disk of its own.
    Disk {
        /// Serial of the disk.
        serial: String,
        /// `ext4`, `erofs` …
        fs_type: String,
        /// Cannot be written by any container.
        #[serde(default)]
        read_only: bool,
        /// Group that owns its root (`fsGroup`).
        #[serde(default)]
        gid: Option<u32>,
    },
    /// A disk as a device node (`volumeMode: Block`); used by [`ContainerStart::devices`].
    Block {
        /// Serial of the disk.
        serial: String,
    },
}

/// Start order for one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerStart {
    /// Container name: a DNS label.
    pub name: String,
    /// Instance number.
    pub attempt: u32,
    /// Runtime identifier, chosen by the host; opaque.
    pub id: String,
    /// Number of the stream of its standard input and output; not in use by another process.
    pub stream: u32,
    /// Standard input is open until the host closes it; `/dev/null` otherwise.
    pub stdin: bool,
    /// Run on a terminal.
    pub tty: bool,
    /// The root file system.
    pub root: Root,
    /// The program.
    pub process: Process,
    /// Mounts in order.
    pub mounts: Vec<Mount>,
    /// Block volumes as device nodes.
    pub devices: Vec<Device>,
    /// Limits.
    pub resources: Resources,
    /// Security settings.
    pub security: Security,
    /// Where the program leaves its last words, as a path inside the container; nowhere when empty.
    pub termination_message_path: String,
}

/// A root file system: an overlay of a writable layer on images.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Root {
    /// Serials of disks with erofs images, lowest first; usually one. See [`disk_serial`].
    pub images: Vec<String>,
    /// Cannot be written.
    pub read_only: bool,
}

/// A program and who runs it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    /// `NAME=value`, in order. `PATH`, `HOME` and `TERM` are added where missing.
    pub env: Vec<String>,
    /// Working directory; created when missing, `/` when empty.
    pub cwd: String,
    /// `uid`, `name`, `uid:gid` or `name:group`; names are looked up in the root file system; root when empty.
    pub user: String,
    /// Overrides the group of `user`.
    pub run_as_group: Option<u32>,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// Refuse to start as root (`runAsNonRoot`).
    pub must_not_be_root: bool,
    /// Limits by name, such as `nofile`.
    pub rlimits: BTreeMap<String, Rlimit>,
}

/// A resource limit; `u64::MAX` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// What counts.
    pub soft: u64,
    /// What the process can raise it to.
    pub hard: u64,
}

/// A mount of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Name of the volume.
    pub volume: String,
    /// A directory or file inside the volume; made as a directory when missing; all of the volume when empty.
    pub sub_path: String,
    /// Absolute path inside the container; made when missing.
    pub destination: String,
    /// Cannot be written.
    pub read_only: bool,
}

/// A block volume as a device node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Name of a volume of kind [`Volume::Block`].
    pub volume: String,
    /// Absolute path inside the container (`devicePath`).
    pub path: String,
}

/// Limits of a cgroup. Absent means unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Memory limit in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// CPU shares (1024 is one CPU); the guest converts to a weight.
    pub cpu_shares: Option<u64>,
    /// CPU time in microseconds per 100 ms.
    pub cpu_quota_us: Option<u64>,
    /// Most processes.
    pub pids_limit: Option<u64>,
    /// `oom_score_adj`.
    pub oom_score_adj: Option<i32>,
}

/// Security settings of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    /// All devices of the guest, all capabilities, no masked paths, no seccomp.
    pub privileged: bool,
    /// Capabilities as a set: bit N is capability number N of `linux/capability.h`.
    pub capabilities: u64,
    /// Sets `no_new_privs`.
    pub no_new_privileges: bool,
    /// A seccomp program for the guest's architecture, as an array of the kernel's `struct sock_filter` in its byte
    /// order; none when empty.
    pub seccomp: Bytes,
    /// Leave /proc unmasked (`procMount: Unmasked`).
    pub unmasked_proc: bool,
}

/// Start order for a command in a running container, with the container's user, environment and limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecStart {
    /// Container name.
    pub container: String,
    /// Number of the session's stream; not in use by another process. Repeating an order with the stream of a session
    /// that runs does nothing.
    pub stream: u32,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Standard input is open until the host closes it.
    pub stdin: bool,
    /// Run on a terminal.
    pub tty: bool,
    /// Columns and rows of the terminal; the kernel's default when 0.
    pub columns: u16,
    /// See above.
    pub rows: u16,
    /// Kill the command after this many milliseconds; never when 0. The exit code is then 137.
    pub timeout_ms: u64,
}

/// Serial of the disk of an image: the first 20 hexadecimal digits of its digest (`sha256:<hex>` or plain), which is
/// what virtio-blk can carry.
#[must_use]
pub fn disk_serial(digest: &str) -> String {
    digest.rsplit(':').next().unwrap_or_default().chars().take(20).collect()
}

/// Serial of the disk with writable layers and emptyDirs.
pub const SCRATCH_SERIAL: &str = "scratch";
