//! What the supervisor supervises: the one place that tells the kinds of sandbox apart.

use super::exec;
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
}

impl Backend {
    pub(super) fn containers(record: Rc<Record>, pod: Rc<Pod>) -> Self {
        Self { record, kind: Kind::Containers(pod) }
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
                Request::Shutdown => pod.shutdown().await,
            },
        }
    }

    /// Runs a command in a container.
    pub(super) async fn exec(&self, container: &str, command: &Command) -> Result<Session, Reply> {
        match &self.kind {
            Kind::Containers(pod) => exec::open_exec(pod, container, command),
        }
    }

    /// Connects to the main process of a container.
    pub(super) fn attach(&self, container: &str, stdin: bool) -> Result<Session, Reply> {
        match &self.kind {
            Kind::Containers(pod) => exec::open_attach(pod, container, stdin),
        }
    }
}

pub(super) fn refuse(reason: &str, message: impl std::fmt::Display) -> Reply {
    Reply::Error { reason: reason.to_owned(), message: message.to_string() }
}
