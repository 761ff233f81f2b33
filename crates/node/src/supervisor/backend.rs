//! What the supervisor supervises: the one place that tells the kinds of sandbox apart.

use super::disk::DiskMachine;
use super::exec;
use super::guest::{self, Machine};
use super::pod::Pod;
use super::proto::{Event, Reply, Request};
use super::record::Record;
use super::session::{Command, Session};
use std::rc::Rc;
use tokio::sync::mpsc;

/// A sandbox and the record of what happens in it. Cheap to clone: both are shared.
#[derive(Clone)]
pub(super) struct Backend {
    record: Rc<Record>,
    kind: Kind,
}

/// The kinds of sandbox.
#[derive(Clone)]
enum Kind {
    /// Containers in the supervisor's namespaces.
    Containers(Rc<Pod>),
    /// Containers in a virtual machine.
    Machine(Rc<Machine>),
    /// A virtual machine that is the container.
    Disk(Rc<DiskMachine>),
}

impl Backend {
    pub(super) fn containers(record: Rc<Record>, pod: Rc<Pod>) -> Self {
        Self { record, kind: Kind::Containers(pod) }
    }

    pub(super) fn machine(record: Rc<Record>, machine: Rc<Machine>) -> Self {
        Self { record, kind: Kind::Machine(machine) }
    }

    pub(super) fn disk(record: Rc<Record>, machine: Rc<DiskMachine>) -> Self {
        Self { record, kind: Kind::Disk(machine) }
    }

    /// Waits until the sandbox has ended by itself. Containers do not end their sandbox.
    pub(super) async fn over(&self) {
        match &self.kind {
            Kind::Containers(_) | Kind::Disk(_) => std::future::pending().await,
            Kind::Machine(machine) => machine.over().await,
        }
    }

    /// Events for a control connection, beginning with everything known.
    pub(super) fn listen(&self) -> mpsc::Receiver<Event> {
        self.record.listen()
    }

    /// Carries out a request.
    pub(super) async fn handle(&self, request: Request) -> Reply {
        match &self.kind {
            Kind::Containers(pod) => match request {
                Request::ConfigureNetwork(network) => pod.configure_network(network),
                Request::Start(order) => pod.start(*order),
                Request::Signal { container, attempt, signal } => pod.signal(&container, attempt, signal),
                Request::ReopenLogs => pod.reopen_logs(),
                // They see the very files.
                Request::VolumesChanged => Reply::Ok,
                Request::SaveTemplate
                | Request::Checkpoint(_)
                | Request::Continue(_)
                | Request::Become(..) => refuse("Unsupported", "containers have no template"),
                Request::Shutdown => pod.shutdown().await,
            },
            Kind::Machine(machine) => match request {
                Request::ConfigureNetwork(network) => machine.configure_network(network).await,
                Request::Start(order) => machine.start(*order).await,
                Request::Signal { container, attempt, signal } => {
                    machine.signal(&container, attempt, signal).await
                }
                Request::ReopenLogs => machine.reopen_logs(),
                Request::VolumesChanged => machine.volumes_changed().await,
                Request::SaveTemplate => machine.save_template().await,
                Request::Checkpoint(parts) => machine.checkpoint(*parts).await,
                Request::Continue(parts) => machine.go_on(*parts).await,
                Request::Become(sandbox, network) => machine.become_pod(*sandbox, network).await,
                Request::Shutdown => machine.shutdown().await,
            },
            Kind::Disk(machine) => match request {
                Request::ConfigureNetwork(network) => machine.configure_network(network),
                Request::Start(order) => machine.start(*order).await,
                Request::Signal { container, attempt, signal } => {
                    machine.signal(&container, attempt, signal).await
                }
                Request::ReopenLogs => machine.reopen_logs(),
                // It has none.
                Request::VolumesChanged => Reply::Ok,
                Request::SaveTemplate
                | Request::Checkpoint(_)
                | Request::Continue(_)
                | Request::Become(..) => {
                    refuse("Unsupported", "a machine with a disk of its own has no template")
                }
                Request::Shutdown => machine.shutdown().await,
            },
        }
    }

    /// Runs a command in a container.
    pub(super) async fn exec(&self, container: &str, command: &Command) -> Result<Session, Reply> {
        match &self.kind {
            Kind::Containers(pod) => exec::open_exec(pod, container, command),
            Kind::Machine(machine) => guest::session::open_exec(machine, container, command).await,
            Kind::Disk(machine) => Err(machine.no_session("run a command")),
        }
    }

    /// Connects to the main process of a container.
    pub(super) fn attach(&self, container: &str, stdin: bool) -> Result<Session, Reply> {
        match &self.kind {
            Kind::Containers(pod) => exec::open_attach(pod, container, stdin),
            Kind::Machine(machine) => guest::session::open_attach(machine, container, stdin),
            Kind::Disk(machine) => Err(machine.no_session("attach")),
        }
    }
}

pub(super) fn refuse(reason: &str, message: impl std::fmt::Display) -> Reply {
    Reply::Error { reason: reason.to_owned(), message: message.to_string() }
}
