//! Sessions with a pod of containers: commands in the container's namespaces, and the streams of its main process.
//!
//! A command leads a session and a process group of its own; ending the session kills the whole group.

use super::backend::refuse;
use super::frame::Frame;
use super::io::{Stream, pipes};
use super::live::Live;
use super::output::{CHUNK, CLIENT_QUEUE, exit_frame};
use super::pod::{Pod, drain};
use super::proto::{FrameKind, Reply};
use super::reaper::{ExitStatus, Reaper};
use super::session::{Command, Input, Process, Session, not_running};
use bytes::Bytes;
use cumulet_container::{Started, Stdio};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// A command that may still run.
pub(super) struct LocalProcess {
    pid: i32,
    reaper: Reaper,
}

impl LocalProcess {
    /// Kills the command and all that it started and that did not leave its process group.
    pub(super) fn kill(&self) {
        if self.reaper.is_alive(self.pid) {
            // Every command leads a session, and so a process group, of its own.
            let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

/// Where the input of a session with a container goes.
pub(super) struct LocalInput {
    stdin: Option<Rc<Stream>>,
    terminal: Option<Rc<Stream>>,
    /// The container whose standard input is closed when the session ends its own.
    once: Option<Rc<Live>>,
}

impl LocalInput {
    pub(super) async fn write(&mut self, bytes: &[u8]) {
        if let Some(stdin) = self.stdin.clone()
            && stdin.write_all(bytes).await.is_err()
        {
            // The process does not read any more; what else comes is dropped.
            self.stdin = None;
        }
    }

    pub(super) fn end(&mut self) {
        self.stdin = None;
        if let Some(live) = self.once.take() {
            live.stdin.borrow_mut().take();
        }
    }

    pub(super) fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        self.terminal.as_ref().map_or(Ok(()), |terminal| terminal.resize(columns, rows))
    }
}

/// Connects to the main process.
pub(super) fn open_attach(pod: &Pod, container: &str, stdin: bool) -> Result<Session, Reply> {
    let live = pod.find(container).ok_or_else(|| not_running(container))?;
    let input = Input::Local(LocalInput {
        stdin: live.stdin.borrow().clone().filter(|_| stdin),
        terminal: live.terminal.clone(),
        once: Some(live.clone()).filter(|live| stdin && live.stdin_once),
    });
    Ok(Session { output: live.output.attach(), input, process: None })
}

/// Starts a command. There is no await between the start of the process and its registration.
pub(super) fn open_exec(pod: &Pod, container: &str, order: &Command) -> Result<Session, Reply> {
    thread_local!(static NEXT: Cell<u64> = const { Cell::new(0) });
    let live = pod.find(container).ok_or_else(|| not_running(container))?;
    let failed = |e: io::Error| refuse("ExecError", e);
    let made = pipes(order.stdin).map_err(failed)?;
    let (stdio, stdin, output) =
        if order.tty { (Stdio::Terminal, None, None) } else { (made.theirs, made.stdin, Some(made.output)) };
    let tag = NEXT.replace(NEXT.get() + 1).to_string();
    let started = live.bundle.exec(&live.spec, &order.command, &tag, stdio);
    let Started { pid, terminal } = started.map_err(|error| refuse(error.reason(), error))?;
    let exit = pod.reaper.expect(pid);
    let process = Process::Local(LocalProcess { pid, reaper: pod.reaper.clone() });

    let stream = |fd| Stream::new(fd).map(Rc::new).map_err(failed);
    let terminal = terminal.map(stream).transpose()?;
    let stdin = stdin.map(stream).transpose()?.or(terminal.clone().filter(|_| order.stdin));
    let (sender, receiver) = mpsc::channel(CLIENT_QUEUE);
    let mut pumps = Vec::new();
    for (fd, kind) in output.into_iter().flatten().zip([FrameKind::Stdout, FrameKind::Stderr]) {
        pumps.push(pump(stream(fd)?, kind, sender.clone()));
    }
    pumps.extend(terminal.clone().map(|from| pump(from, FrameKind::Stdout, sender.clone())));
    let limit = LocalProcess { pid, reaper: pod.reaper.clone() };
    // Ends with the command.
    tokio::task::spawn_local(finish(exit, order.timeout_ms, limit, pumps, sender));
    let input = Input::Local(LocalInput { stdin, terminal, once: None });
    Ok(Session { output: receiver, input, process: Some(process) })
}

fn pump(from: Rc<Stream>, kind: FrameKind, to: mpsc::Sender<Frame>) -> JoinHandle<()> {
    tokio::task::spawn_local(async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            if to.send(Frame::raw(kind, Bytes::copy_from_slice(&buffer[..length]))).await.is_err() {
                return;
            }
        }
    })
}

/// Waits for the end of a command, kills it when its time is over, and sends the last frame after the last output.
async fn finish(
    mut exit: oneshot::Receiver<ExitStatus>,
    timeout_ms: u64,
    process: LocalProcess,
    pumps: Vec<JoinHandle<()>>,
    to: mpsc::Sender<Frame>,
) {
    let mut status = None;
    if timeout_ms > 0 {
        match tokio::time::timeout(Duration::from_millis(timeout_ms), &mut exit).await {
            Ok(ended) => status = ended.ok(),
            Err(_elapsed) => process.kill(),
        }
    }
    if status.is_none() {
        status = exit.await.ok();
    }
    drain(pumps).await;
    if let Some(status) = status {
        // A client that went away does not want it.
        let _ = to.send(exit_frame(status.code)).await;
    }
}
