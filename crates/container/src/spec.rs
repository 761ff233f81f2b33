//! What a container is to be, in terms of Linux and OCI. The node fills it from a pod; this crate knows no pod.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A container, fully resolved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Unpacked image layers, lowest first; shared, never written.
    pub layers: Vec<PathBuf>,
    /// Directory for this container's writable layer (upper and work directories are made below it).
    pub writable: PathBuf,
    /// The root file system cannot be written.
    pub read_only_root: bool,
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// Working directory; created when missing.
    pub cwd: String,
    /// Who runs it, as the image or the pod says: `uid`, `name`, `uid:gid` or `name:group`; names are looked up in
    /// the root file system.
    pub user: String,
    /// Overrides the group of `user`.
    pub run_as_group: Option<u32>,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// Refuse to start as root (`runAsNonRoot`).
    pub must_not_be_root: bool,
    /// Bind mounts and tmpfs, in order.
    pub mounts: Vec<Mount>,
    /// Limits.
    pub resources: Resources,
    /// Security settings.
    pub security: Security,
    /// This container's cgroup, relative to the root of each hierarchy.
    pub cgroup: String,
    /// Paths of namespaces to join, such as `/proc/<pid>/ns/net`; a fresh one where `None`. The pid and mount
    /// namespaces are always the container's own unless `host_pid`.
    pub namespaces: Namespaces,
}

/// Namespaces to join.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Namespaces {
    /// Network namespace.
    pub net: Option<PathBuf>,
    /// IPC namespace.
    pub ipc: Option<PathBuf>,
    /// UTS namespace.
    pub uts: Option<PathBuf>,
    /// Pid namespace (`shareProcessNamespace`).
    pub pid: Option<PathBuf>,
    /// Use the host's pid namespace.
    pub host_pid: bool,
}

/// One mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mount {
    /// What is mounted: a host path for a bind mount, `tmpfs` for memory.
    pub source: MountSource,
    /// Absolute path inside the container.
    pub destination: String,
    /// Cannot be written.
    pub read_only: bool,
    /// `private`, `rslave` (HostToContainer) or `rshared` (Bidirectional).
    pub propagation: Propagation,
}

/// What is mounted.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// A file or directory of the host.
    Bind(PathBuf),
    /// Memory.
    Tmpfs {
        /// Limit in bytes; half of the memory when `None`.
        size_bytes: Option<u64>,
    },
}

/// Mount propagation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are mount(8)'s")]
pub enum Propagation {
    #[default]
    Private,
    Rslave,
    Rshared,
}

/// Limits of a cgroup. Absent means unlimited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// Memory limit in bytes.
    pub memory_limit_bytes: Option<i64>,
    /// CPU shares (cgroup v1 scale: 1024 is one CPU); converted to weight on version 2.
    pub cpu_shares: Option<u64>,
    /// CPU time in microseconds per 100 ms period.
    pub cpu_quota_us: Option<i64>,
    /// Most processes.
    pub pids_limit: Option<i64>,
    /// `oom_score_adj`; lowering it may be refused by the machine, which is tolerated.
    pub oom_score_adj: Option<i32>,
}

/// Security settings of a container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Security {
    /// All devices, all capabilities, no masked paths, no seccomp.
    pub privileged: bool,
    /// Capabilities to add to the default set, without `CAP_`; `ALL` for all.
    pub add_capabilities: Vec<String>,
    /// Capabilities to take from the default set; `ALL` for all.
    pub drop_capabilities: Vec<String>,
    /// Sets `no_new_privs`.
    pub no_new_privileges: bool,
    /// Run without the default seccomp profile.
    pub seccomp_unconfined: bool,
    /// Leave /proc unmasked (`procMount: Unmasked`).
    pub unmasked_proc: bool,
}
