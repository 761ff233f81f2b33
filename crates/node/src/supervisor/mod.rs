//! The supervisor: one small process per pod that owns the pod's namespaces, overlay mounts, stdio, log files and
//! exit codes, and outlives the main process.
//!
//! ```text
//!   node (client) ──proto over DIR/supervisor.sock──► server ──► backend ─┬► pod ──► cumulet_container
//!                                                        sessions         ├► guest ──► cumulet_vmm, agent
//!                                                                         └► disk ──► cumulet_vmm
//!                                                                  stdio ──► record, log files
//! ```
//!
//! Files in the pod's directory: `sandbox.json` (what the pod is), `supervisor.pid` (locked while it runs),
//! `supervisor.sock`, `supervisor.log`, `state.json` (every container's newest instance, replaced atomically before
//! anybody is told), `c/<container>-<attempt>/` (bundle of one run) and `run/` (libcontainer's state); for a virtual
//! machine `console.log` and `vm/` (its console's socket), and for one with a disk of its own `seed.iso`.
//!
//! Signals: TERM, INT and HUP are ignored, so that a service manager which stops the main process does not stop pods;
//! only `Request::Shutdown` ends a supervisor in order. When it is killed, every container dies with it (the
//! parent-death signal), its mounts and namespaces vanish with the last process, and the exit codes of what had
//! ended before are in `state.json`; [`client::clean_up`] removes the rest.

mod backend;
pub mod client;
mod daemon;
mod disk;
mod exec;
pub mod files;
mod frame;
mod guest;
mod io;
mod live;
mod log;
mod output;
mod pod;
pub mod proto;
mod reaper;
mod record;
mod server;
mod session;
mod sockets;
pub mod vm;

pub use client::{Supervisor, SupervisorError};
pub use daemon::run;
