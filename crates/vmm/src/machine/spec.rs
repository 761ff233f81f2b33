//! The order for a machine: everything that QEMU is told at its start.
//!
//! What a guest may touch is given as an open descriptor wherever QEMU can take one, so that a path cannot be swapped
//! between the check and the use, and QEMU's own user needs no access to any directory. Names of pods, images and
//! volumes are absent: a disk is a descriptor and a serial number.

use crate::Error;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use tokio::sync::mpsc;

/// Smallest guest memory with which the kernel and its initramfs start.
pub const MIN_MEMORY_BYTES: u64 = 96 << 20;
/// Guest memory is given in whole units of this.
pub const MEMORY_UNIT_BYTES: u64 = 2 << 20;
/// More virtual CPUs than this are refused.
pub const MAX_VCPUS: u32 = 64;
/// More disks than this are refused: each takes a slot of the one bus.
pub const MAX_DISKS: usize = 20;
/// More network devices than this are refused.
pub const MAX_NICS: usize = 4;

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// Software emulation.
    Tcg,
    /// The processor's virtualization, through /dev/kvm.
    Kvm,
}

impl Accelerator {
    /// QEMU's name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcg => "tcg",
            Self::Kvm => "kvm",
        }
    }
}

/// How the guest starts.
#[derive(Debug)]
pub enum Boot {
    /// A Linux kernel with an initramfs, started directly.
    Kernel {
        /// `bzImage`, or an uncompressed ELF kernel with a PVH entry (quicker by far in emulation).
        image: File,
        /// The initramfs.
        initramfs: File,
        /// Parameters after our own ([`crate::machine`]).
        parameters: Vec<String>,
    },
    /// Whatever the first disk has, through SeaBIOS.
    Firmware,
    /// A clone: the state comes from a snapshot ([`super::Machine::load`]), nothing starts. Such a machine cannot
    /// be reset.
    Incoming,
}

/// Where the guest's memory is.
#[derive(Debug)]
pub enum Memory {
    /// Shared anonymous memory of this machine alone, which [`super::Machine::copy_memory`] can copy.
    Own,
    /// A file whose contents are the memory, written as the guest writes. It is grown to the size.
    Shared(File),
    /// A file that stays as it is: pages are copied when the guest writes to them.
    CopyOnWrite(File),
}

/// A block device. The guest finds it by its serial number (`/dev/disk/by-id`, or `/sys/block/vdX/serial`).
#[derive(Debug)]
pub struct Disk {
    /// The raw image, or the top of the chain of a qcow2 one. Its mode (read-only or not) must fit.
    pub file: File,
    /// At most 20 bytes of `[A-Za-z0-9._-]`, as virtio has it.
    pub serial: String,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// Whether its contents may be lost with the host: the guest's flushes then cost nothing.
    pub volatile: bool,
    /// How the file is to be read.
    pub format: DiskFormat,
}

/// How a disk's file is to be read.
#[derive(Debug)]
pub enum DiskFormat {
    /// Block by block.
    Raw,
    /// qcow2. A backing file named in the image is never followed: the one given here is used, or none.
    Qcow2 {
        /// What the image is a difference to.
        backing: Option<Backing>,
    },
}

/// What a qcow2 image is a difference to.
#[derive(Debug)]
pub struct Backing {
    /// The file, read only.
    pub file: File,
    /// Whether it is qcow2 itself, without a backing file of its own. Else raw.
    pub qcow2: bool,
}

/// A network device.
#[derive(Debug)]
pub struct Nic {
    /// An open tap (with a virtio header).
    pub tap: OwnedFd,
    /// The guest's hardware address.
    pub mac: [u8; 6],
    /// Largest packet in bytes that the guest is told of.
    pub mtu: u16,
}

/// A directory of the host, through a running virtiofsd. Such a machine cannot be a template or a clone.
#[derive(Debug)]
pub struct SharedDirectory {
    /// Connection to virtiofsd (vhost-user).
    pub socket: OwnedFd,
    /// What the guest mounts it by.
    pub tag: String,
}

/// What a guest that reboots does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReboot {
    /// A reboot is a failure (kernels started directly reboot when they panic).
    Fail,
    /// The machine starts again.
    Reset,
}

/// What runs in QEMU's process before QEMU: joins a cgroup, a network namespace. It runs between fork and exec as the
/// caller's user, so it may only make system calls.
pub type Prepare = Box<dyn FnMut() -> io::Result<()> + Send + Sync>;

/// Who QEMU is on the host.
#[derive(Default)]
pub struct Isolation {
    /// Numeric user and group; none keeps the caller's (for tests without privileges).
    pub user: Option<(u32, u32)>,
    /// Run before anything else in the new process.
    pub prepare: Option<Prepare>,
    /// Address space and locked memory are not limited, open files are.
    pub max_open_files: Option<u64>,
}

impl fmt::Debug for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Isolation").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Where the guest's serial console goes.
#[derive(Debug, Clone)]
pub struct ConsoleSpec {
    /// What the guest wrote; the previous part is in the same name with `.1`.
    pub log: PathBuf,
    /// Limit of one part in bytes; two are kept.
    pub log_limit_bytes: u64,
    /// A socket (mode 0600) where people attach. None: nobody can.
    pub socket: Option<PathBuf>,
    /// Is sent everything as well, and holds the guest up while it is full. Closed when QEMU has ended.
    pub output: Option<mpsc::Sender<Vec<u8>>>,
}

/// The order for a machine.
#[derive(Debug)]
pub struct MachineSpec {
    /// A name for QEMU's process title and messages: `[A-Za-z0-9._-]`.
    pub name: String,
    /// What executes the guest.
    pub accelerator: Accelerator,
    /// QEMU's name of the CPU model; none takes the cheapest that current distributions start on.
    pub cpu_model: Option<String>,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// The guest's memory, a multiple of [`MEMORY_UNIT_BYTES`].
    pub memory_bytes: u64,
    /// Where the memory is.
    pub memory: Memory,
    /// How it starts.
    pub boot: Boot,
    /// QEMU's end of the channel to the guest's agent: a connected stream socket. The guest sees a virtio-serial port
    /// with the name `cumulet.0`.
    pub channel: Option<OwnedFd>,
    /// The serial console.
    pub console: ConsoleSpec,
    /// Disks, in the order in which the guest sees them.
    pub disks: Vec<Disk>,
    /// Network devices.
    pub nics: Vec<Nic>,
    /// A balloon through which the guest reports its free pages, which go back to the host at once. Refused with
    /// memory that is [`Memory::CopyOnWrite`]: QEMU gives pages back by punching holes into the file, and a hostile
    /// guest could so destroy the template of all others.
    pub page_reporting: bool,
    /// Directories of the host.
    pub directories: Vec<SharedDirectory>,
    /// What a reboot means.
    pub on_reboot: OnReboot,
    /// Limit of the emulator's cache of translated code in bytes (software emulation only). A boot fills some 40 MB;
    /// what does not fit is translated again and again.
    pub translation_cache_bytes: Option<u64>,
    /// Who QEMU is.
    pub isolation: Isolation,
}

impl MachineSpec {
    /// Checks what QEMU would misunderstand or take as syntax.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), Error> {
        let fail = |message: String| Err(Error::Spec(message));
        let word = |s: &str, max: usize| {
            !s.is_empty()
                && s.len() <= max
                && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        if !word(&self.name, 128) {
            return fail(format!("name {:?}: want 1 to 128 of [A-Za-z0-9._-]", self.name));
        }
        if self
            .cpu_model
            .as_deref()
            .is_some_and(|m| !m.split(',').all(|p| word(&p.replace(['+', '='], "-"), 64)))
        {
            return fail(format!("CPU model {:?}", self.cpu_model));
        }
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            return fail(format!("{} virtual CPUs: want 1 to {MAX_VCPUS}", self.vcpus));
        }
        if self.memory_bytes < MIN_MEMORY_BYTES || !self.memory_bytes.is_multiple_of(MEMORY_UNIT_BYTES) {
            return fail(format!(
                "{} bytes of memory: want a multiple of {MEMORY_UNIT_BYTES}, at least {MIN_MEMORY_BYTES}",
                self.memory_bytes
            ));
        }
        if self.disks.len() > MAX_DISKS || self.nics.len() > MAX_NICS || self.directories.len() > MAX_NICS {
            return fail(format!("more than {MAX_DISKS} disks or {MAX_NICS} network devices or directories"));
        }
        if self.page_reporting && matches!(self.memory, Memory::CopyOnWrite(_)) {
            return fail("free pages of a copy-on-write memory cannot be reported".to_owned());
        }
        if matches!(
            (&self.boot, &self.memory),
            (Boot::Kernel { .. } | Boot::Firmware, Memory::CopyOnWrite(_))
        ) {
            return fail("a copy-on-write memory can only be gone on with, not started in".to_owned());
        }
        let mut serials: Vec<&str> = self.disks.iter().map(|d| d.serial.as_str()).collect();
        serials.sort_unstable();
        if let Some(pair) = serials.windows(2).find(|pair| pair[0] == pair[1]) {
            return fail(format!("two disks with the serial number {}", pair[0]));
        }
        if let Some(disk) = self.disks.iter().find(|d| !word(&d.serial, 20)) {
            return fail(format!("serial number {:?}: want 1 to 20 of [A-Za-z0-9._-]", disk.serial));
        }
        if let Some(directory) = self.directories.iter().find(|d| !word(&d.tag, 36)) {
            return fail(format!("tag {:?}: want 1 to 36 of [A-Za-z0-9._-]", directory.tag));
        }
        if let Boot::Kernel { parameters, .. } = &self.boot
            && let Some(bad) = parameters.iter().find(|p| p.bytes().any(|b| b < b' ' || b == 0x7f))
        {
            return fail(format!("kernel parameter {bad:?}"));
        }
        Ok(())
    }
}
