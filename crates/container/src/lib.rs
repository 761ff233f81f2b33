//! Containers: from a resolved order ([`ContainerSpec`]) to a running process, its cgroup and its root filesystem.
//!
//! ```text
//!   spec ─► runtime ─► launcher ─► oci (config.json) ─► libcontainer ─► executor: seccomp, capabilities, execve
//!              users, rootfs         overlay, cgroup, console
//! ```
//!
//! Pods are absent on purpose: who shares which namespaces is the node's business. So is anything asynchronous:
//! calls here block for some milliseconds, in a supervisor that has one thread and nothing else to do meanwhile.

mod capabilities;
pub mod cgroup;
mod console;
pub mod disk;
mod elsewhere;
mod error;
mod executor;
mod launcher;
mod oci;
mod overlay;
mod rootfs;
mod runtime;
mod seccomp;
pub mod spec;
mod users;

pub use elsewhere::guest_security;
pub use error::Error;
pub use runtime::{Bundle, Started, Stdio};
pub use spec::{ContainerSpec, Mount, MountSource, Namespaces, Propagation, Resources, Security};
