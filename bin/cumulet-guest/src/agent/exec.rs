//! Commands in running containers.

use super::Agent;
use super::adopt::replace_variables;
use super::containers::{State, program};
use super::process::Role;
use crate::container::{Stdio, launch};
use crate::error::Error;
use cumulet_guest_proto::guest::RequestId;
use cumulet_guest_proto::spec::ExecStart;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

impl Agent {
    /// [`cumulet_guest_proto::message::Request::Exec`].
    pub(super) fn exec(&mut self, waiter: RequestId, order: ExecStart) -> Result<Option<()>, Error> {
        let stream = order.stream;
        if let Some(process) = self.processes.get_mut(&stream) {
            if process.role != Role::Exec(order.container) {
                return Err(Error::Conflict(format!("stream {stream} is in use")));
            }
            if process.is_running() || !process.is_alive() {
                return Ok(Some(()));
            }
            process.waiters.push(waiter);
            return Ok(None);
        }
        if self.frozen {
            return Err(Error::Conflict("the containers are frozen".to_owned()));
        }
        let not_running = || Error::NotRunning(order.container.clone());
        let container = self.containers.get(&order.container).ok_or_else(not_running)?;
        let running = matches!(container.state, State::Running { .. });
        let main = self.processes.get(&container.order.stream).filter(|main| running && main.is_running());
        let target = main.ok_or_else(not_running)?.pidfd.as_fd();
        let mut wanted = program(&container.order);
        wanted.process.args = order.command;
        replace_variables(&mut wanted.process.env, &self.env);
        let stdio = if order.tty {
            Stdio::Terminal { columns: order.columns, rows: order.rows }
        } else {
            Stdio::Pipes { stdin: order.stdin }
        };
        let launched = launch::command(target, &wanted, stdio, &container.cgroup.open()?)?;
        if !self.link.open_stream(stream) {
            // The child dies of its report, which nobody reads.
            return Err(Error::Conflict(format!("stream {stream} is in use")));
        }
        let mut process = self.watch(launched, Role::Exec(order.container), stream, order.stdin)?;
        process.waiters = vec![waiter];
        if order.timeout_ms > 0 {
            process.kill_at = Some(Instant::now() + Duration::from_millis(order.timeout_ms));
        }
        self.processes.insert(stream, process);
        Ok(None)
    }
}
