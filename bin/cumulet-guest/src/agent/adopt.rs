//! Taking on an identity, phase by phase, while the containers stand still. See [`cumulet_guest_proto::identity`].

use super::Agent;
use super::containers::{State, program};
use crate::clock;
use crate::container::cgroup::Cgroup;
use crate::container::{Stdio, launch};
use crate::error::{Doing, Error};
use crate::net;
use crate::pod::set_hostname;
use crate::random;
use cumulet_guest_proto::identity::{Hook, Identity, IdentityReport, MIN_ENTROPY_BYTES, Phase};
use cumulet_guest_proto::message::Event;
use cumulet_guest_proto::spec::{File, FileTree};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

impl Agent {
    /// Goes through all phases, or fails with the containers still frozen.
    pub(super) fn adopt(&mut self, identity: Identity) -> Result<IdentityReport, Error> {
        let mut report = IdentityReport { generation: identity.generation, ..IdentityReport::default() };
        if identity.generation == self.generation {
            return Ok(report);
        }
        if identity.generation < self.generation {
            let text = format!("generation {} is older than {}", identity.generation, self.generation);
            return Err(Error::Conflict(text));
        }
        if identity.entropy.0.len() < MIN_ENTROPY_BYTES {
            return Err(Error::Invalid(format!("an identity needs {MIN_ENTROPY_BYTES} bytes of entropy")));
        }
        self.configured()?;
        let began = Instant::now();
        self.set_frozen(true)?;
        let mut phases = vec![Phase::Entropy, Phase::Clock, Phase::Names];
        if identity.network.is_some() {
            phases.extend([Phase::Connections, Phase::Network]);
        }
        phases.push(Phase::Files);
        phases.extend(identity.after_restore.as_ref().map(|_| Phase::Hook));
        for phase in phases {
            self.phase(phase, &identity, &mut report)?;
        }
        self.generation = identity.generation;
        if identity.thaw {
            self.phase(Phase::Thaw, &identity, &mut report)?;
        } else if let Some(network) = self.configured()?.network() {
            // Who connected now would be accepted, and forgotten without a word by the identity that comes.
            net::set_up(&network.interface, false)?;
            self.quiet = true;
        }
        report.total_micros = micros(began);
        Ok(report)
    }

    fn phase(&mut self, phase: Phase, identity: &Identity, report: &mut IdentityReport) -> Result<(), Error> {
        let began = Instant::now();
        match phase {
            Phase::Entropy => random::reseed(&identity.entropy.0)?,
            Phase::Clock => clock::set(identity.clock_us, identity.clock_at_us)?,
            Phase::Names => {
                set_hostname(&identity.hostname)?;
                self.configured()?.write_names(&identity.machine_id, &identity.boot_id)?;
            }
            Phase::Connections => {
                if let Some(old) = self.configured()?.network() {
                    // Down, so that no reset leaves under the old address.
                    net::set_up(&old.interface, false)?;
                }
                report.connections_aborted = net::abort_connections()?;
            }
            Phase::Network => {
                self.configured()?.set_network(identity.network.clone())?;
                self.quiet = false;
            }
            Phase::Files => self.write_files(identity)?,
            Phase::Hook => {
                if let Some(hook) = &identity.after_restore {
                    self.run_hook(hook)?;
                }
            }
            Phase::Thaw => self.thaw()?,
        }
        let micros = micros(began);
        report.phases.push((phase, micros));
        self.event(Event::Identity { phase, micros });
        Ok(())
    }

    fn write_files(&mut self, identity: &Identity) -> Result<(), Error> {
        self.env = lines(&String::from_utf8_lossy(&identity.env.0));
        let file = |content: Vec<u8>, mode| File { content: content.into(), mode, uid: None };
        let pod = self.configured()?;
        pod.write_etc(&identity.etc)?;
        for (volume, files) in &identity.volumes {
            pod.write_volume(volume, files.clone())?;
        }
        let generation = format!("{}\n", identity.generation).into_bytes();
        let mut tree = FileTree::from([("generation".to_owned(), file(generation, 0o444))]);
        for (name, content) in [("identity.json", &identity.document), ("env", &identity.env)] {
            tree.insert(name.to_owned(), file(content.0.clone(), 0o444));
        }
        pod.write_identity(&tree)
    }

    /// Runs the hook beside its frozen container, to its end or the end of its time.
    fn run_hook(&mut self, hook: &Hook) -> Result<(), Error> {
        let not_running = || Error::NotRunning(hook.container.clone());
        let container = self.containers.get(&hook.container).ok_or_else(not_running)?;
        let running = matches!(container.state, State::Running { .. });
        let main = self.processes.get(&container.order.stream).filter(|_| running).ok_or_else(not_running)?;
        let mut wanted = program(&container.order);
        wanted.process.args = hook.command.clone();
        replace_variables(&mut wanted.process.env, &self.env);
        let cgroup = Cgroup::hook();
        let launched = launch::command(main.pidfd.as_fd(), &wanted, Stdio::Null, &cgroup.open()?)?;
        let limit = Duration::from_millis(hook.timeout_ms);
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let ended = poll(&mut [PollFd::new(launched.pidfd.as_fd(), PollFlags::POLLIN)], timeout);
        let in_time = ended.doing(|| "wait for the hook".to_owned())? > 0;
        if !in_time {
            cgroup.kill()?;
        }
        let status = waitpid(Pid::from_raw(launched.pid), None).doing(|| "wait for the hook".to_owned())?;
        match (in_time, status) {
            (true, WaitStatus::Exited(_, 0)) => Ok(()),
            (true, other) => Err(Error::Start(format!("the after-restore hook failed: {other:?}"))),
            (false, _) => {
                Err(Error::Timeout(format!("the after-restore hook took more than {} ms", hook.timeout_ms)))
            }
        }
    }
}

/// Lines of `NAME=value`.
fn lines(text: &str) -> Vec<String> {
    text.lines().filter(|line| line.contains('=')).map(str::to_owned).collect()
}

/// Gives variables the values of the identity, so that commands see who they are.
pub(super) fn replace_variables(env: &mut Vec<String>, new: &[String]) {
    for variable in new {
        let name = variable.split_inclusive('=').next().unwrap_or_default();
        env.retain(|old| !old.starts_with(name));
        env.push(variable.clone());
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced() {
        let mut env = ["POD_IP=1", "POD=x", "A=b"].map(str::to_owned).to_vec();
        replace_variables(&mut env, &lines("POD_IP=2\nodd\nNEW=c=d\n"));
        assert_eq!(env, ["POD=x", "A=b", "POD_IP=2", "NEW=c=d"]);
    }
}
