//! Exec and attach: one connection each.
//!
//! Frames to the client go through one bounded queue. A process whose client does not read waits; a client that goes
//! away takes its command with it (the whole process group), while an attached container just goes on.

use super::frame::{self, Frame};
use super::io::{Stream, pipes};
use super::live::{CHUNK, CLIENT_QUEUE, Live, exit_frame};
use super::pod::{Pod, drain, refuse};
use super::proto::{FrameKind, Reply, SessionRequest, ToClient};
use super::reaper::{ExitStatus, Reaper};
use bytes::Bytes;
use cumulet_container::{Started, Stdio};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Serves a session connection to its end.
pub(super) async fn serve(
    pod: &Rc<Pod>,
    mut reader: OwnedReadHalf,
    mut writer: OwnedWriteHalf,
) -> io::Result<()> {
    let Some(first) = frame::read(&mut reader).await? else { return Ok(()) };
    let opened = match first.decode()? {
        SessionRequest::Exec { container, command, stdin, tty, timeout_ms } => {
            let command = Command { command, stdin, tty, timeout_ms };
            open_exec(pod, &container, &command)
        }
        SessionRequest::Attach { container, stdin } => open_attach(pod, &container, stdin),
    };
    let (reply, session) = match opened {
        Ok(session) => (Reply::Ok, Some(session)),
        Err(reply) => (reply, None),
    };
    frame::write(&mut writer, &Frame::json(&ToClient::Reply(reply))?).await?;
    if let Some(Session { mut output, mut input, process }) = session {
        tokio::select! {
            // Dropping the other side half-way is sound: the session is over either way.
            result = write_output(&mut writer, &mut output) => result?,
            result = read_input(&mut reader, &mut input) => result?,
        }
        input.end();
        if let Some(process) = process {
            process.kill();
        }
    }
    Ok(())
}

struct Session {
    output: mpsc::Receiver<Frame>,
    input: Input,
    /// The command to end together with the session.
    process: Option<Process>,
}

/// A command that may still run.
struct Process {
    pid: i32,
    reaper: Reaper,
}

impl Process {
    /// Kills the command and all that it started and that did not leave its process group.
    fn kill(&self) {
        if self.reaper.is_alive(self.pid) {
            // Every command leads a session, and so a process group, of its own.
            let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

/// Where a session's input goes.
struct Input {
    stdin: Option<Rc<Stream>>,
    terminal: Option<Rc<Stream>>,
    /// The container whose standard input is closed when the session ends its own.
    once: Option<Rc<Live>>,
}

impl Input {
    /// Closes standard input; for a container, only if it asked for that.
    fn end(&mut self) {
        self.stdin = None;
        if let Some(live) = self.once.take() {
            live.stdin.borrow_mut().take();
        }
    }
}

fn open_attach(pod: &Rc<Pod>, container: &str, stdin: bool) -> Result<Session, Reply> {
    let live = pod.find(container).ok_or_else(|| not_running(container))?;
    let input = Input {
        stdin: live.stdin.borrow().clone().filter(|_| stdin),
        terminal: live.terminal.clone(),
        once: Some(live.clone()).filter(|live| stdin && live.stdin_once),
    };
    Ok(Session { output: live.attach(), input, process: None })
}

struct Command {
    command: Vec<String>,
    stdin: bool,
    tty: bool,
    timeout_ms: u64,
}

/// Starts a command. There is no await between the start of the process and its registration.
fn open_exec(pod: &Rc<Pod>, container: &str, order: &Command) -> Result<Session, Reply> {
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
    let process = Process { pid, reaper: pod.reaper.clone() };

    let stream = |fd| Stream::new(fd).map(Rc::new).map_err(failed);
    let terminal = terminal.map(stream).transpose()?;
    let stdin = stdin.map(stream).transpose()?.or(terminal.clone().filter(|_| order.stdin));
    let (sender, receiver) = mpsc::channel(CLIENT_QUEUE);
    let mut pumps = Vec::new();
    for (fd, kind) in output.into_iter().flatten().zip([FrameKind::Stdout, FrameKind::Stderr]) {
        pumps.push(pump(stream(fd)?, kind, sender.clone()));
    }
    pumps.extend(terminal.clone().map(|from| pump(from, FrameKind::Stdout, sender.clone())));
    let limit = Process { pid, reaper: pod.reaper.clone() };
    // Ends with the command.
    tokio::task::spawn_local(finish(exit, order.timeout_ms, limit, pumps, sender));
    Ok(Session { output: receiver, input: Input { stdin, terminal, once: None }, process: Some(process) })
}

fn not_running(container: &str) -> Reply {
    refuse("NotRunning", format!("container {container} is not running"))
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
    process: Process,
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

async fn write_output(to: &mut OwnedWriteHalf, output: &mut mpsc::Receiver<Frame>) -> io::Result<()> {
    while let Some(frame) = output.recv().await {
        frame::write(to, &frame).await?;
        if frame.kind == FrameKind::Exit {
            return Ok(());
        }
    }
    Ok(())
}

/// Passes input on until the client is gone.
async fn read_input(from: &mut OwnedReadHalf, to: &mut Input) -> io::Result<()> {
    while let Some(frame) = frame::read(from).await? {
        match frame.kind {
            FrameKind::Stdin => {
                if let Some(stdin) = to.stdin.clone()
                    && stdin.write_all(&frame.payload).await.is_err()
                {
                    // The process does not read any more; what else comes is dropped.
                    to.stdin = None;
                }
            }
            FrameKind::CloseStdin => to.end(),
            FrameKind::Resize => {
                let (columns, rows) = frame.decode_resize()?;
                if let Some(terminal) = &to.terminal {
                    terminal.resize(columns, rows)?;
                }
            }
            other => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("unexpected {other:?} frame"),
                ));
            }
        }
    }
    Ok(())
}
