//! The node agent's side of a supervisor: starting one, finding it again, talking to it.
//!
//! One task per control connection owns the socket's reading half and one its writing half. Replies come in the
//! order of the requests, so a queue of waiting callers is all the bookkeeping there is. When the connection ends
//! every waiting caller gets an error of reason [`GONE`] and the event channel closes.
//!
//! Absent on purpose: retries and restarts. What a lost supervisor means is the pod runner's decision.

use super::frame::{self, Frame};
use super::proto::{Event, FrameKind, Hello, Reply, Request, SandboxSpec, SessionRequest, ToClient, VERSION};
use super::{files, sockets};
use cumulet_cluster::streams::{Exit, Input, Output, Session};
use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

/// Reason of an error that means that the supervisor is not there (any more).
pub const GONE: &str = "SupervisorGone";
/// Reason of an error on the way to a supervisor: files, processes, protocol.
pub const FAILED: &str = "SupervisorFailed";

/// Events that wait for the pod's task before the connection stops being read.
const EVENT_QUEUE: usize = 256;
/// Requests that wait for being written.
const REQUEST_QUEUE: usize = 32;
/// Chunks of a session in either direction.
const SESSION_QUEUE: usize = 16;
/// A supervisor that does not come up in this time is broken; it usually takes a few milliseconds.
const SPAWN_DEADLINE: Duration = Duration::from_secs(20);
/// A supervisor answers a new connection at once, unless it is busy starting a container.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Why a request was not carried out.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{message}")]
pub struct SupervisorError {
    /// CamelCase word: [`GONE`], [`FAILED`], or what the supervisor said (`CreateContainerError`, `StartError`,
    /// `NotRunning`, ...).
    pub reason: String,
    /// For people.
    pub message: String,
}

impl SupervisorError {
    fn failed(what: &str, error: impl std::fmt::Display) -> Self {
        Self { reason: FAILED.into(), message: format!("{what}: {error}") }
    }

    fn gone(what: impl std::fmt::Display) -> Self {
        Self { reason: GONE.into(), message: format!("supervisor is gone: {what}") }
    }
}

type Waiting = oneshot::Sender<Result<(), SupervisorError>>;

/// A connected supervisor. Shared as `Arc<Supervisor>`; dropping it closes the control connection and leaves the
/// supervisor and the pod alone.
#[derive(Debug)]
pub struct Supervisor {
    pid: i32,
    dir: Mutex<PathBuf>,
    requests: mpsc::Sender<(Request, Waiting)>,
    events: Mutex<Option<mpsc::Receiver<Event>>>,
}

impl Supervisor {
    /// Starts the supervisor of a pod and connects to it. `exe` is run as `exe supervise DIR`, in a session of its
    /// own and not as a child of this process. `dir` must exist; it is the pod's and keeps the supervisor's files.
    /// `memory` is that of a template, if the pod's machine has to do with one.
    pub async fn spawn(
        exe: &Path,
        dir: &Path,
        spec: &SandboxSpec,
        memory: Option<&File>,
    ) -> Result<Self, SupervisorError> {
        files::write_json(&dir.join(files::SANDBOX), spec)
            .map_err(|e| SupervisorError::failed("cannot write the sandbox file", e))?;
        let memory = memory.map(File::try_clone).transpose();
        let memory = memory.map_err(|e| SupervisorError::failed("cannot pass the template's memory", e))?;
        tokio::time::timeout(SPAWN_DEADLINE, launch(exe, dir, memory))
            .await
            .map_err(|_| SupervisorError::failed("supervisor did not come up", "deadline exceeded"))??;
        Self::connect(dir).await
    }

    /// Connects to a supervisor that already runs for the pod of `dir`.
    pub async fn connect(dir: &Path) -> Result<Self, SupervisorError> {
        tokio::time::timeout(CONNECT_DEADLINE, Self::connect_now(dir))
            .await
            .map_err(|_| SupervisorError::failed("supervisor does not answer", "deadline exceeded"))?
    }

    async fn connect_now(dir: &Path) -> Result<Self, SupervisorError> {
        let stream = open(dir, false).await?;
        let (mut reader, writer) = stream.into_split();
        let first = next_event(&mut reader).await?;
        let Event::Snapshot { pid, .. } = first else {
            return Err(SupervisorError::failed("supervisor", "first event is not a snapshot"));
        };
        let (event_sender, events) = mpsc::channel(EVENT_QUEUE);
        // The channel is new and empty, so there is room.
        let _ = event_sender.try_send(first);
        let (requests, request_receiver) = mpsc::channel(REQUEST_QUEUE);
        let waiting = Arc::new(Mutex::new(VecDeque::new()));
        // Both tasks end when the connection or the `Supervisor` ends; neither holds anything else.
        tokio::spawn(write_requests(writer, request_receiver, waiting.clone()));
        tokio::spawn(read_messages(reader, event_sender, waiting));
        Ok(Self { pid, dir: Mutex::new(dir.to_owned()), requests, events: Mutex::new(Some(events)) })
    }

    /// Process id of the supervisor, in whose namespaces the pod lives.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The pod's directory.
    pub fn dir(&self) -> PathBuf {
        self.dir.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The directory has got another name.
    pub(crate) fn moved(&self, dir: &Path) {
        *self.dir.lock().unwrap_or_else(PoisonError::into_inner) = dir.to_owned();
    }

    /// The events, first of all an [`Event::Snapshot`]. The channel closes when the supervisor is gone. It can be
    /// taken once; a second call gets a closed channel.
    pub fn events(&self) -> mpsc::Receiver<Event> {
        let taken = self.events.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// Sends a request and waits for its reply. Requests of one supervisor are carried out in order.
    pub async fn request(&self, request: Request) -> Result<(), SupervisorError> {
        let (sender, receiver) = oneshot::channel();
        let gone = || SupervisorError::gone("connection closed");
        self.requests.send((request, sender)).await.map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())?
    }

    /// Opens an exec or attach session on a connection of its own.
    pub async fn session(&self, request: SessionRequest) -> Result<Session, SupervisorError> {
        let mut stream = open(&self.dir(), true).await?;
        send(&mut stream, &request).await?;
        let (mut reader, writer) = stream.into_split();
        match next_message(&mut reader).await? {
            ToClient::Reply(reply) => to_result(reply)?,
            ToClient::Event(_) => return Err(SupervisorError::failed("supervisor", "unexpected event")),
        }
        let (input, input_receiver) = mpsc::channel(SESSION_QUEUE);
        let (output_sender, output) = mpsc::channel(SESSION_QUEUE);
        // Ends when the process has ended or nobody wants its output any more.
        tokio::spawn(run_session(reader, writer, input_receiver, output_sender));
        Ok(Session { input, output })
    }
}

/// How long a supervisor that was told to shut down may take to end.
const END_DEADLINE_MS: u16 = 10_000;

/// Waits until the process of a supervisor that was told to shut down has ended; blocks.
fn wait_for_end(pid: i32) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or an error.
    // JUSTIFICATION: neither the standard library nor nix offers the call.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let Some(fd) = i32::try_from(fd).ok().filter(|fd| *fd >= 0) else { return };
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let handle = unsafe { OwnedFd::from_raw_fd(fd) };
    // Readable when the process has ended. The caller looks whether it has: a failure here needs no answer.
    let _ = poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], PollTimeout::from(END_DEADLINE_MS));
}

/// Waits for the end of a supervisor that was told to shut down, then does what [`clean_up`] does. Blocks.
pub fn finish(dir: &Path, cgroup: &str) -> Result<(), SupervisorError> {
    if let Some(pid) = files::running_pid(dir) {
        wait_for_end(pid);
    }
    clean_up(dir, cgroup)
}

/// Removes what a dead supervisor left: kills the processes of the pod's cgroup, removes the cgroup and the files of
/// the supervisor (not `state.json` and not the logs). Blocks for some milliseconds, two seconds at most. Does
/// nothing to a pod whose supervisor runs.
pub fn clean_up(dir: &Path, cgroup: &str) -> Result<(), SupervisorError> {
    if files::running_pid(dir).is_some() {
        return Err(SupervisorError::failed("cannot clean up", "the supervisor runs"));
    }
    cumulet_container::cgroup::kill_and_remove(cgroup)
        .map_err(|e| SupervisorError::failed("cannot clean up", e))?;
    let left = [
        files::SOCKET,
        files::PID,
        files::RUNS,
        files::RUNTIME,
        files::SHM,
        files::HIERARCHIES,
        files::MACHINE,
    ];
    for name in left {
        let path = dir.join(name);
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(SupervisorError::failed("cannot clean up", format!("{}: {e}", path.display())));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Runs `exe supervise DIR` and waits until it says that it is ready. The process that is started forks once more
/// and ends, so that the supervisor is nobody's child here and never a zombie.
async fn launch(exe: &Path, dir: &Path, memory: Option<File>) -> Result<(), SupervisorError> {
    let cannot = |e: std::io::Error| SupervisorError::failed("cannot start the supervisor", e);
    let (reader, writer) = std::io::pipe().map_err(cannot)?;
    let log = files::open_log(dir).map_err(cannot)?;
    let mut child = tokio::process::Command::new(exe)
        .arg("supervise")
        .arg(dir)
        .stdin(memory.map_or_else(Stdio::null, Stdio::from))
        .stdout(writer)
        .stderr(log)
        .current_dir("/")
        .spawn()
        .map_err(cannot)?;
    let mut ready =
        tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into()).map_err(cannot)?.take(8192);
    let mut said = String::new();
    ready.read_to_string(&mut said).await.map_err(cannot)?;
    let status = child.wait().await.map_err(cannot)?;
    match said.trim() {
        "ready" => Ok(()),
        "" => Err(SupervisorError::failed("supervisor ended before it was ready", last_words(dir, status))),
        message => {
            Err(SupervisorError { reason: "CreatePodSandboxError".into(), message: message.to_owned() })
        }
    }
}

/// What the supervisor left in its log, for the case that it died silently.
fn last_words(dir: &Path, status: std::process::ExitStatus) -> String {
    let log = std::fs::read(dir.join(files::LOG)).unwrap_or_default();
    let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(1024)..]).trim().to_owned();
    if tail.is_empty() { status.to_string() } else { format!("{status}: {tail}") }
}

async fn open(dir: &Path, session: bool) -> Result<UnixStream, SupervisorError> {
    let mut stream = sockets::connect(&dir.join(files::SOCKET)).await.map_err(SupervisorError::gone)?;
    send(&mut stream, &Hello { version: VERSION, session }).await?;
    Ok(stream)
}

async fn send<T: serde::Serialize>(stream: &mut UnixStream, message: &T) -> Result<(), SupervisorError> {
    let frame = Frame::json(message).map_err(|e| SupervisorError::failed("request", e))?;
    frame::write(stream, &frame).await.map_err(SupervisorError::gone)
}

async fn next_message(reader: &mut OwnedReadHalf) -> Result<ToClient, SupervisorError> {
    match frame::read(reader).await.map_err(SupervisorError::gone)? {
        Some(frame) => frame.decode().map_err(|e| SupervisorError::failed("supervisor", e)),
        None => Err(SupervisorError::gone("connection closed")),
    }
}

async fn next_event(reader: &mut OwnedReadHalf) -> Result<Event, SupervisorError> {
    match next_message(reader).await? {
        ToClient::Event(event) => Ok(event),
        // A supervisor that refuses the client's version says so instead of the snapshot.
        ToClient::Reply(reply) => {
            to_result(reply)?;
            Err(SupervisorError::failed("supervisor", "reply without a request"))
        }
    }
}

fn to_result(reply: Reply) -> Result<(), SupervisorError> {
    match reply {
        Reply::Ok => Ok(()),
        Reply::Error { reason, message } => Err(SupervisorError { reason, message }),
    }
}

async fn write_requests(
    mut writer: OwnedWriteHalf,
    mut requests: mpsc::Receiver<(Request, Waiting)>,
    waiting: Arc<Mutex<VecDeque<Waiting>>>,
) {
    while let Some((request, caller)) = requests.recv().await {
        let frame = match Frame::json(&request) {
            Ok(frame) => frame,
            Err(error) => {
                let _ = caller.send(Err(SupervisorError::failed("request", error)));
                continue;
            }
        };
        // Queued before the write, so that the reply cannot come first.
        waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(caller);
        if frame::write(&mut writer, &frame).await.is_err() {
            break;
        }
    }
    let _ = writer.shutdown().await;
}

async fn read_messages(
    mut reader: OwnedReadHalf,
    events: mpsc::Sender<Event>,
    waiting: Arc<Mutex<VecDeque<Waiting>>>,
) {
    let mut events = Some(events);
    let end = loop {
        match next_message(&mut reader).await {
            Ok(ToClient::Reply(reply)) => {
                let caller = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                if let Some(caller) = caller {
                    let _ = caller.send(to_result(reply));
                }
            }
            Ok(ToClient::Event(event)) => {
                if let Some(sender) = &events
                    && sender.send(event).await.is_err()
                {
                    // Nobody listens for events (any more); replies still matter.
                    events = None;
                }
            }
            Err(error) => break error,
        }
    };
    for caller in waiting.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        let _ = caller.send(Err(end.clone()));
    }
}

/// Carries a session until its output ends. The connection stays open in both directions until then, because its
/// end tells the supervisor that the client is gone.
async fn run_session(
    mut reader: OwnedReadHalf,
    mut writer: OwnedWriteHalf,
    input: mpsc::Receiver<Input>,
    output: mpsc::Sender<Output>,
) {
    let writing = async {
        write_input(&mut writer, input).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        // Dropping either half-way is sound: the session is over.
        () = writing => {}
        () = read_output(&mut reader, &output) => {}
        () = output.closed() => {}
    }
}

async fn write_input(writer: &mut OwnedWriteHalf, mut input: mpsc::Receiver<Input>) {
    while let Some(item) = input.recv().await {
        let done = match item {
            Input::Stdin(bytes) => write_chunks(writer, bytes).await,
            Input::CloseStdin => frame::write(writer, &Frame::raw(FrameKind::CloseStdin, vec![])).await,
            Input::Resize { columns, rows } => {
                let payload = [columns.to_be_bytes(), rows.to_be_bytes()].concat();
                frame::write(writer, &Frame::raw(FrameKind::Resize, payload)).await
            }
        };
        if done.is_err() {
            return;
        }
    }
    // The client closed its input, or went away: both end the standard input of the process.
    let _ = frame::write(writer, &Frame::raw(FrameKind::CloseStdin, vec![])).await;
}

async fn write_chunks(writer: &mut OwnedWriteHalf, bytes: bytes::Bytes) -> std::io::Result<()> {
    for chunk in bytes.chunks(super::proto::MAX_FRAME_BYTES as usize) {
        frame::write(writer, &Frame::raw(FrameKind::Stdin, bytes.slice_ref(chunk))).await?;
    }
    Ok(())
}

async fn read_output(reader: &mut OwnedReadHalf, output: &mpsc::Sender<Output>) {
    // An error and an end without `Exit` mean the same to the client: the process was lost.
    while let Ok(Some(frame)) = frame::read(reader).await {
        let item = match frame.kind {
            FrameKind::Stdout => Output::Stdout(frame.payload),
            FrameKind::Stderr => Output::Stderr(frame.payload),
            FrameKind::Exit => match <[u8; 4]>::try_from(&frame.payload[..]) {
                Ok(code) => Output::Exit(Exit::Code(i32::from_be_bytes(code))),
                Err(_) => return,
            },
            _ => return,
        };
        let last = matches!(item, Output::Exit(_));
        if output.send(item).await.is_err() || last {
            return;
        }
    }
}
