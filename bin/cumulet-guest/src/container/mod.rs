//! Containers: from an order to a running process.
//!
//! ```text
//!   agent                                      child (own mount and pid namespace, born in its cgroup)
//!   ─────                                      ─────
//!   cgroup, directories, pipes ── fork ──────► rootfs: overlay, mounts of `mounts`, pivot_root
//!   ◄──────────── terminal ───────────────────  terminal
//!   ◄── error │ end of file = it runs ────────  process: user, limits, capabilities, seccomp, execve
//! ```
//!
//! The agent only waits for what takes microseconds; everything that touches the container's files happens in the
//! child, which may be as slow as it likes.

pub(crate) mod cgroup;
mod child;
pub(crate) mod launch;
mod mounts;
mod process;
mod report;
pub(crate) mod rootfs;
mod users;

pub(crate) use launch::{Launched, Stdio};
pub(crate) use mounts::{Bind, Layout};
pub(crate) use process::Program;
pub(crate) use report::{Report, Told};
