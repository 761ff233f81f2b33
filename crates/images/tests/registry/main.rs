//! The registry client and endpoint over real HTTP on loopback: with each other, against hostile peers, against other
//! implementations, and killed in the middle.

#[path = "../common/mod.rs"]
mod common;

mod crash;
mod credentials;
mod full_disk;
mod hostile;
mod peers;
mod round_trip;
mod support;
mod tls;
mod verbs;
