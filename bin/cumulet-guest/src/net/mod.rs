//! The pod's network inside the guest: one interface, loopback, and what a change of address leaves behind.
//!
//! Everything goes over netlink from this process, since a process start costs more than all of it together.

mod connections;
mod interface;
mod netlink;

pub(crate) use connections::abort_connections;
pub(crate) use interface::{configure, loopback_up, set_up};
