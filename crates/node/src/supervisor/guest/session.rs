//! Sessions with a virtual machine: commands run by the agent, and the streams of a container's main process.

use super::Machine;
use super::link::{self, End, Link, LinkError};
use super::live::Live;
use crate::supervisor::backend::refuse;
use crate::supervisor::frame::Frame;
use crate::supervisor::output::{CLIENT_QUEUE, exit_frame};
use crate::supervisor::proto::{FrameKind, Reply};
use crate::supervisor::session::{Command, Input, Process, Session, not_running};
use cumulet_guest_proto::Channel;
use cumulet_guest_proto::message::Request;
use cumulet_guest_proto::spec::ExecStart;
use std::rc::Rc;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Where the input of a session goes.
pub(in crate::supervisor) struct GuestInput {
    link: Rc<Link>,
    stream: u32,
    /// Input is taken.
    open: bool,
    tty: bool,
    /// The container whose standard input is closed when the session ends its own; a command's always is.
    of: Option<Rc<Live>>,
}

impl GuestInput {
    pub(in crate::supervisor) async fn write(&mut self, bytes: &[u8]) {
        if self.open && !self.link.write_stdin(self.stream, bytes).await {
            self.open = false;
        }
    }

    pub(in crate::supervisor) fn end(&mut self) {
        let closes = self.of.as_ref().is_none_or(|live| live.stdin_once);
        // A terminal has no end of input; what ends a command on one is the end of the session.
        if std::mem::take(&mut self.open) && closes && !self.tty {
            self.link.close_stdin(self.stream);
            if let Some(live) = &self.of {
                live.stdin.set(false);
            }
        }
    }

    pub(in crate::supervisor) fn resize(&self, columns: u16, rows: u16) {
        if self.tty {
            self.link.resize(self.stream, columns, rows);
        }
    }
}

/// A command that may still run.
pub(in crate::supervisor) struct GuestProcess {
    link: Rc<Link>,
    stream: u32,
}

impl GuestProcess {
    /// Kills the command and its process group, unless it has ended.
    pub(in crate::supervisor) fn kill(&self) {
        if !self.link.knows(self.stream) {
            return;
        }
        self.link.discard(self.stream);
        self.link.post(Request::KillExec { stream: self.stream });
    }
}

/// Connects to the main process.
pub(in crate::supervisor) fn open_attach(
    machine: &Machine,
    container: &str,
    stdin: bool,
) -> Result<Session, Reply> {
    let (Some(live), Some(link)) = (machine.find(container), machine.link()) else {
        return Err(not_running(container));
    };
    let input = GuestInput {
        link,
        stream: live.stream,
        open: stdin && live.stdin.get(),
        tty: live.tty,
        of: Some(live.clone()),
    };
    Ok(Session { output: live.output.attach(), input: Input::Guest(input), process: None })
}

/// Runs a command.
pub(in crate::supervisor) async fn open_exec(
    machine: &Machine,
    container: &str,
    order: &Command,
) -> Result<Session, Reply> {
    let (Some(_), Some(link)) = (machine.find(container), machine.link()) else {
        return Err(not_running(container));
    };
    let link::Opened { stream, output, end } = link.open_stream();
    let request = ExecStart {
        container: container.to_owned(),
        stream,
        command: order.command.clone(),
        stdin: order.stdin,
        tty: order.tty,
        timeout_ms: order.timeout_ms,
        ..ExecStart::default()
    };
    if let Err(error) = link.request(Request::Exec(Box::new(request))).await {
        link.forget(stream);
        return Err(match error {
            LinkError::Refused(reason, message) => refuse(&reason, message),
            LinkError::Silent => refuse("ExecError", "the guest does not answer"),
            LinkError::Gone => not_running(container),
        });
    }
    let (sender, receiver) = mpsc::channel(CLIENT_QUEUE);
    let kinds = [(Channel::Stdout, FrameKind::Stdout), (Channel::Stderr, FrameKind::Stderr)];
    let pumps = output.into_iter().zip(kinds).map(|(queue, kinds)| {
        // Ends with the output, or with the client.
        tokio::task::spawn_local(pump(link.clone(), stream, queue, kinds, sender.clone()))
    });
    let pumps = pumps.collect();
    // Ends with the command.
    tokio::task::spawn_local(finish(link.clone(), stream, end, pumps, sender));
    let input = GuestInput { link: link.clone(), stream, open: order.stdin, tty: order.tty, of: None };
    let process = Process::Guest(GuestProcess { link, stream });
    Ok(Session { output: receiver, input: Input::Guest(input), process: Some(process) })
}

async fn pump(
    link: Rc<Link>,
    stream: u32,
    mut queue: link::Output,
    (channel, kind): (Channel, FrameKind),
    to: mpsc::Sender<Frame>,
) {
    while let Some(bytes) = queue.recv().await {
        let length = bytes.len();
        if to.send(Frame::raw(kind, bytes)).await.is_err() {
            // The client is gone; what the command still says is dropped.
            return link.discard(stream);
        }
        link.consumed(stream, channel, length);
    }
}

/// Sends the last frame after the last output.
async fn finish(
    link: Rc<Link>,
    stream: u32,
    end: oneshot::Receiver<End>,
    pumps: Vec<JoinHandle<()>>,
    to: mpsc::Sender<Frame>,
) {
    // Without an end the machine is gone, and the session ends without an exit code.
    let end = end.await.ok();
    link::emptied(pumps).await;
    link.forget(stream);
    if let Some(end) = end {
        // A client that went away does not want it.
        let _ = to.send(exit_frame(end.exit_code)).await;
    }
}
