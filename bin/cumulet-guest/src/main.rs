//! `cumulet-guest`: the first process inside a VM pod.
//!
//! ```text
//!   boot: modules, root, mounts ─► agent: serves the host over the port ─► power off
//! ```
//!
//! Invariants:
//! - One thread. Children are forked and may do anything before they become their programs ([`sys::fork`]).
//! - The agent never waits for a container or for the host.
//! - All `unsafe` is in [`sys`], and where a received descriptor becomes an owned one.
//!
//! Absent on purpose: an async runtime, configuration, any knowledge of Kubernetes. When the agent cannot go on it ends,
//! and with it the kernel (`panic=-1`), which is what the host sees.

mod agent;
mod boot;
mod clock;
mod container;
mod error;
mod fault;
mod net;
mod pod;
mod poll;
mod port;
mod random;
mod sys;
mod uevents;

use error::Error;

fn main() {
    if std::process::id() != 1 {
        eprintln!("cumulet-guest is the first process of a virtual machine; it does nothing elsewhere");
        std::process::exit(2);
    }
    if let Err(error) = serve() {
        eprintln!("cumulet-guest: {}", error.text());
        // The kernel panics when its first process ends, and the host sees that the pod is broken.
        std::process::exit(1);
    }
    let error = agent::power_off();
    eprintln!("cumulet-guest: cannot power off: {error}");
}

fn serve() -> Result<(), Error> {
    let mut problems = boot::prepare()?;
    problems.extend(container::cgroup::Cgroup::prepare()?);
    problems.iter().for_each(|problem| eprintln!("cumulet-guest: {problem}"));
    agent::Agent::new(problems)?.run()
}
