//! Virtual machines: from an order ([`MachineSpec`]) to a running QEMU, and what such a machine is made of: a guest
//! [`kernel`] out of a distribution's package, an [`initramfs`] with the guest's agent, root filesystem images
//! ([`rootfs`]) that many machines share.
//!
//! ```text
//!   Kernel::install ─► Kernel ─► initramfs::build ─┐
//!   rootfs::build (erofs per image digest) ────────┤► MachineSpec ─► Machine::spawn ─► QEMU, over QMP
//!   scratch::create ───────────────────────────────┘       start, pause, resume, snapshot, kill
//! ```
//!
//! QEMU is not trusted once a guest runs in it: it is its own user in a seccomp sandbox, gets descriptors instead of
//! paths, and what it says is limited and checked. Absent on purpose: pods, containers, what is said on the channel to
//! the guest's agent, addresses, and where anything is kept; the caller knows those.

mod cpio;
mod disk_image;
mod error;
mod files;
pub mod initramfs;
pub mod kernel;
pub mod kvm;
pub mod machine;
mod qemu;
pub mod qmp;
pub mod rootfs;
pub mod scratch;
pub mod seed;
mod tsc;
pub mod virtiofs;

pub use disk_image::DiskImage;
pub use error::Error;
pub use kernel::Kernel;
pub use machine::spec::{
    Accelerator, Backing, Boot, ConsoleSpec, Disk, DiskFormat, Isolation, MachineSpec, Memory, Nic, OnReboot,
    Prepare, SharedDirectory,
};
pub use machine::state::{Event, Failure, State, Verdict};
pub use machine::{
    Machine, MemoryCopy, ProcessUsage, ResidentMemory, Stats, seal_memory, sealed_memory, template_memory,
};
pub use qemu::{OLDEST, Qemu};
