//! What is said between node and supervisor of pods that are virtual machines: what to make, what was made of it, what a
//! template is.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A pod as a virtual machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmSpec {
    /// The virtual machine monitor.
    pub qemu: cumulet_vmm::Qemu,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// The guest's memory in bytes, a multiple of 2 MiB.
    pub memory_bytes: u64,
    /// Use the processor's virtualization; software emulation otherwise.
    pub kvm: bool,
    /// Uid and gid of the virtual machine monitor on the host.
    pub user: (u32, u32),
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// Its initramfs, with the agent.
    pub initramfs: PathBuf,
    /// The images of all containers, as disks.
    pub images: Vec<VmImage>,
    /// Size in bytes of a disk for writable layers and emptyDirs, which goes with the machine; they lie in the guest's
    /// memory when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch_bytes: Option<u64>,
    /// The guest's hardware address.
    pub mac: [u8; 6],
    /// Directory of the files that every container sees in `/etc`.
    pub etc: PathBuf,
    /// Volumes by name.
    pub volumes: BTreeMap<String, VmVolume>,
    /// Where the memory is.
    #[serde(default)]
    pub memory: VmMemory,
    /// All containers share one pid namespace.
    #[serde(default)]
    pub share_process_namespace: bool,
    /// Limits of the whole pod on the host.
    #[serde(default)]
    pub limits: cumulet_container::Resources,
    /// The disk that the machine starts from by itself. Kernel, images and volumes then mean nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<VmDisk>,
}

/// A disk with a system of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmDisk {
    /// File with the image (qcow2 or raw), which is never written.
    pub image: PathBuf,
    /// Least size in bytes of the machine's copy.
    pub min_bytes: u64,
    /// File with a read-only disk that tells the guest who it is.
    pub seed: PathBuf,
}

/// Where a machine's memory is, and so how it starts. The memory of a template is the supervisor's standard input.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmMemory {
    /// Its own. The machine boots, and gives free pages back to the host.
    #[default]
    Own,
    /// What is to become a template's: the machine boots, in memory that it shares with who started the supervisor.
    Template,
    /// A template's, copied page by page when it is written: the machine goes on where the template was.
    Clone {
        /// File with the devices' state.
        state: PathBuf,
        /// The containers in it.
        notes: TemplateNotes,
    },
}

/// File with the devices' state of a machine that was saved, in the machine's directory.
pub const TEMPLATE_STATE: &str = "template.state";
/// File with its [`TemplateNotes`].
pub const TEMPLATE_NOTES: &str = "template.json";
/// The memory of a machine that was saved by [`super::proto::Request::Checkpoint`].
pub const CHECKPOINT_MEMORY: &str = "checkpoint.memory";

/// What a supervisor has to know of the containers in a template.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateNotes {
    /// By name.
    pub containers: BTreeMap<String, TemplateContainer>,
    /// Microseconds for which nothing in the machine ran.
    pub pause_us: u64,
    /// The key that a pod must have to go on from a checkpoint. Of others it is the template's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_of: Option<String>,
}

/// A container in a template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateContainer {
    /// Instance, as the agent knows it.
    pub attempt: u32,
    /// Number of its stream.
    pub stream: u32,
    /// It runs; else it ended well, as init containers do.
    pub running: bool,
}

/// An image as a disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmImage {
    /// What the guest finds it by.
    pub serial: String,
    /// File with an erofs file system.
    pub path: PathBuf,
}

/// A volume of a virtual machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmVolume {
    /// Files that the node keeps up to date below a directory of the host, and that the guest gets copies of.
    Files {
        /// The directory, written atomically through its link `..data`.
        dir: PathBuf,
        /// Group that owns them.
        gid: Option<u32>,
    },
    /// A directory of the host, by virtiofs.
    Directory {
        /// The directory.
        path: PathBuf,
        /// No container may write it.
        read_only: bool,
    },
    /// A file system on a disk of its own, which one pod at a time has.
    Disk {
        /// A file or a block device.
        path: PathBuf,
        /// What is on it.
        fs_type: String,
        /// Cannot be written.
        read_only: bool,
        /// Group that owns its root.
        gid: Option<u32>,
    },
    /// A disk as a device, which one pod at a time has.
    Block {
        /// A file or a block device.
        path: PathBuf,
        /// Cannot be written.
        read_only: bool,
    },
    /// A directory inside the guest.
    EmptyDir {
        /// Limit in bytes.
        size_bytes: Option<u64>,
        /// In memory.
        memory: bool,
        /// Group that owns it.
        gid: Option<u32>,
    },
}

impl VmVolume {
    /// Whether the guest has written something that only its own flush brings to the disk.
    pub(crate) fn needs_flush(&self) -> bool {
        matches!(self, Self::Disk { read_only: false, .. } | Self::Block { read_only: false, .. })
    }
}

/// What a container in a virtual machine is made of, in the guest's terms.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GuestParts {
    /// Serials of the disks that are its root file system, lowest first.
    pub images: Vec<String>,
    /// Mounts of the pod's volumes, in order.
    pub mounts: Vec<cumulet_guest_proto::spec::Mount>,
    /// Block volumes.
    #[serde(default)]
    pub devices: Vec<cumulet_guest_proto::spec::Device>,
    /// Who the pod is, for a clone that has to become it first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<IdentityParts>,
}

/// What a clone is told of its identity beside network, names and files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityParts {
    /// `/run/cumulet/identity.json`.
    pub document: String,
    /// Variables in which the pod differs from its template, `NAME=value`.
    pub env: Vec<String>,
    /// Run before the containers go on.
    pub after_restore: Option<cumulet_guest_proto::identity::Hook>,
}

/// How a clone came to be, for people and benchmarks. Times in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Restored {
    /// From the order for QEMU until it answered.
    pub spawn_us: u64,
    /// Reading the devices' state.
    pub load_us: u64,
    /// From the first instruction after the restore to the agent's greeting.
    pub greet_us: u64,
    /// From the order to take on the identity to the answer, the thaw included.
    pub identity_us: u64,
    /// What the agent itself needed for each phase of that.
    pub phases: Vec<(cumulet_guest_proto::identity::Phase, u64)>,
    /// TCP connections of the template that were aborted.
    pub connections_aborted: u32,
    /// Process id of its QEMU.
    pub pid: u32,
    /// The clone waited as a standby, so that spawn, load and greeting were before the pod was.
    pub standby: bool,
}
