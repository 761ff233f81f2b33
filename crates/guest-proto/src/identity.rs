//! What makes a clone somebody of its own, and how it takes that on.
//!
//! ```text
//!   restore ─► Adopt ─► Entropy ─► Clock ─► Names ─► Connections ─► Network ─► Files ─► Hook ─► thaw ─► Adopted
//!                          └─────────── any error: Reply::Error, containers stay frozen ──────────┘
//! ```
//!
//! The order is what makes it sound: nothing after `Entropy` can draw a number that another clone draws too, and old
//! connections die before the interface has an address from which they could speak. A host that gets an error, or no
//! answer in time, destroys the clone.

use crate::Bytes;
use crate::spec::{FileTree, Network};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Least number of bytes of entropy in an [`Identity`].
pub const MIN_ENTROPY_BYTES: usize = 32;

/// Who a clone is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    /// Number of the identity, larger than the one before; content of `/run/cumulet/generation`. Repeating the
    /// current one does nothing.
    pub generation: u64,
    /// Fresh bytes for the kernel's random generator, at least [`MIN_ENTROPY_BYTES`].
    pub entropy: Bytes,
    /// Wall clock in microseconds since the epoch, at sending or at the moment of `clock_at_us`.
    pub clock_us: i64,
    /// The moment of `clock_us` by the guest's monotonic clock, in microseconds. An identity may be long on its way to a
    /// busy guest.
    pub clock_at_us: Option<u64>,
    /// Host name.
    pub hostname: String,
    /// 32 hexadecimal digits.
    pub machine_id: String,
    /// A UUID, as containers see it in `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// The network, which replaces the old one.
    pub network: Option<Network>,
    /// Files in `/etc` that change.
    pub etc: FileTree,
    /// New content of volumes of kind [`crate::spec::Volume::Files`].
    pub volumes: BTreeMap<String, FileTree>,
    /// `/run/cumulet/identity.json` in containers.
    pub document: Bytes,
    /// `/run/cumulet/env` in containers: lines of `NAME=value`. Commands (exec, hook) get these variables; a process that
    /// runs since before keeps its own.
    pub env: Bytes,
    /// Command to run before the thaw.
    pub after_restore: Option<Hook>,
    /// Thaw the containers when all is done; else they wait for [`crate::message::Request::Thaw`].
    pub thaw: bool,
}

/// A command in a container's file system and namespaces, but not frozen with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hook {
    /// Container name.
    pub container: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Longest time in milliseconds; what takes longer is an error.
    pub timeout_ms: u64,
}

/// A step of taking on an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The random generator has new entropy and a new key.
    Entropy,
    /// The wall clock is right.
    Clock,
    /// Host name, machine-id, boot_id.
    Names,
    /// TCP connections of the old identity are gone.
    Connections,
    /// The interface has its new addresses.
    Network,
    /// Files are new.
    Files,
    /// The hook has run.
    Hook,
    /// Containers go on.
    Thaw,
}

/// How taking on an identity went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IdentityReport {
    /// The generation now.
    pub generation: u64,
    /// Microseconds of each step, in order.
    pub phases: Vec<(Phase, u64)>,
    /// TCP connections aborted.
    pub connections_aborted: u32,
    /// Longest time in microseconds that the agent itself needed from the request's arrival to here.
    pub total_micros: u64,
}
