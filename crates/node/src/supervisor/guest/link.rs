//! The channel to the agent in a virtual machine: one task reads it and one writes it, everybody else goes through
//! [`Link`].
//!
//! ```text
//!   request ──► HostLink ──► writer ──► channel ──► reader ──► HostLink ─┬─► the reply's caller
//!                                                                        ├─► output queues of a stream
//!                                                                        └─► the end of a stream's process
//! ```
//!
//! Output queues are bounded by the protocol's windows: what is in them has not been acknowledged. When the link ends,
//! all callers, queues and ends are dropped, so that whoever waits hears of it.

use cumulet_guest_proto::host::{FromGuest, HostLink};
use cumulet_guest_proto::identity::Phase;
use cumulet_guest_proto::message::{Event, InstanceState, Reply, Request, ToHost};
use cumulet_guest_proto::{Channel, message};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;

/// Bytes read from the channel at once.
const CHUNK: usize = 64 * 1024;
/// A guest that takes longer for an answer than this does not answer any more.
const ANSWER: Duration = Duration::from_secs(60);
/// Warnings of one guest that are written to the supervisor's log.
const MAX_WARNINGS: u32 = 100;

/// Why something was not done in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LinkError {
    /// The link has ended, or ended before the answer came.
    Gone,
    /// No answer in time.
    Silent,
    /// The guest refused, with reason and message.
    Refused(String, String),
}

/// How a process in the guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) exit_code: i32,
    pub(super) signal: i32,
    pub(super) reason: String,
    pub(super) message: String,
}

/// Output of one channel of a stream, as it comes. Ends with the channel.
pub(super) type Output = mpsc::UnboundedReceiver<Vec<u8>>;

/// A stream that was opened.
pub(super) struct Opened {
    pub(super) stream: u32,
    /// Standard output and standard error.
    pub(super) output: [Output; 2],
    /// Told once, after the last output was queued. Dropped with the link.
    pub(super) end: oneshot::Receiver<End>,
}

/// What the link knows of a stream.
struct Stream {
    output: RefCell<[Option<mpsc::UnboundedSender<Vec<u8>>>; 2]>,
    end: RefCell<Option<oneshot::Sender<End>>>,
    /// Told when standard input may have room, and when the stream is forgotten.
    room: Notify,
    /// Bytes of output that were received and not dealt with yet.
    undone: Cell<usize>,
}

/// The host's end of the channel.
pub(super) struct Link {
    proto: RefCell<HostLink>,
    /// Told when there may be something to write.
    due: Notify,
    callers: RefCell<HashMap<u64, oneshot::Sender<Reply>>>,
    streams: RefCell<HashMap<u32, Rc<Stream>>>,
    next_stream: Cell<u32>,
    /// The guest's first message of the conversation, once.
    hello: RefCell<Option<oneshot::Sender<message::Snapshot>>>,
    warnings: Cell<u32>,
    ended: Cell<bool>,
    /// Told when all output of a stream was dealt with.
    done: Notify,
    /// The phase of an identity that the guest has gone through last.
    phase: watch::Sender<Option<Phase>>,
}

impl Link {
    /// Begins the conversation. The guest hears it when its agent is up; its answer comes through the receiver.
    pub(super) fn new(epoch: u64) -> (Rc<Self>, oneshot::Receiver<message::Snapshot>) {
        let mut proto = HostLink::new();
        proto.begin(epoch, concat!("cumulet ", env!("CARGO_PKG_VERSION")));
        let (hello, greeted) = oneshot::channel();
        let link = Self {
            proto: RefCell::new(proto),
            due: Notify::new(),
            callers: RefCell::default(),
            streams: RefCell::default(),
            next_stream: Cell::new(1),
            hello: RefCell::new(Some(hello)),
            warnings: Cell::new(0),
            ended: Cell::new(false),
            done: Notify::new(),
            phase: watch::Sender::new(None),
        };
        (Rc::new(link), greeted)
    }

    /// Begins another conversation, with the guest that goes on where the one before was saved. Streams go on; who waits
    /// for an answer gets none.
    pub(super) fn begin_again(&self, epoch: u64) -> oneshot::Receiver<message::Snapshot> {
        self.callers.borrow_mut().clear();
        self.proto.borrow_mut().begin(epoch, concat!("cumulet ", env!("CARGO_PKG_VERSION")));
        let (hello, greeted) = oneshot::channel();
        *self.hello.borrow_mut() = Some(hello);
        greeted
    }

    /// Tells of phases of an identity from now on.
    pub(super) fn phases(&self) -> watch::Receiver<Option<Phase>> {
        self.phase.subscribe()
    }

    /// Makes a stream known that a clone has from its template. Comes before [`Self::run`].
    pub(super) fn inherit_stream(&self, stream: u32) -> Opened {
        self.next_stream.set(self.next_stream.get().max(stream.saturating_add(1)));
        self.register(stream)
    }

    /// The streams that are known.
    pub(super) fn streams(&self) -> Vec<u32> {
        self.streams.borrow().keys().copied().collect()
    }

    /// Waits until all output that has come was dealt with, and tells the guest so.
    pub(super) async fn settle(&self) {
        loop {
            let done = self.done.notified();
            if self.streams.borrow().values().all(|stream| stream.undone.get() == 0) {
                break;
            }
            done.await;
        }
        self.proto.borrow_mut().acknowledge_consumed();
        self.due.notify_one();
    }

    /// Carries bytes until the channel ends or the guest breaks the protocol; says why. The caller then calls
    /// [`Self::end`].
    pub(super) async fn run(&self, channel: UnixStream) -> String {
        let (reader, writer) = channel.into_split();
        tokio::select! {
            // Dropping the other half is sound: the conversation is over either way.
            why = self.read(reader) => why,
            error = self.write(writer) => format!("the channel to the guest broke: {error}"),
        }
    }

    /// Ends the link: nobody waits on it any longer.
    pub(super) fn end(&self) {
        self.ended.set(true);
        self.callers.borrow_mut().clear();
        self.hello.borrow_mut().take();
        let streams = std::mem::take(&mut *self.streams.borrow_mut());
        streams.values().for_each(|stream| stream.room.notify_waiters());
    }

    async fn read(&self, mut from: OwnedReadHalf) -> String {
        let mut buffer = vec![0; CHUNK];
        let mut events = Vec::new();
        loop {
            let length = match from.read(&mut buffer).await {
                Ok(0) => return "the channel to the guest was closed".to_owned(),
                Ok(length) => length,
                Err(error) => return format!("the channel to the guest broke: {error}"),
            };
            let result = self.proto.borrow_mut().receive(&buffer[..length], &mut events);
            events.drain(..).for_each(|event| self.dispatch(event));
            if let Err(error) = result {
                return error.to_string();
            }
            self.due.notify_one();
        }
    }

    async fn write(&self, mut to: OwnedWriteHalf) -> io::Error {
        loop {
            let bytes = self.proto.borrow_mut().take_output();
            if bytes.is_empty() {
                self.due.notified().await;
            } else if let Err(error) = to.write_all(&bytes).await {
                return error;
            }
        }
    }

    fn dispatch(&self, event: FromGuest) {
        match event {
            FromGuest::Hello(_) => {}
            FromGuest::Message(message) => self.message(message),
            FromGuest::Output { stream, channel, bytes } => {
                let length = bytes.len();
                let taken = self.with(stream, |known| {
                    let output = known.output.borrow();
                    let taken =
                        output[index(channel)].as_ref().is_some_and(|queue| queue.send(bytes).is_ok());
                    known.undone.set(known.undone.get() + if taken { length } else { 0 });
                    taken
                });
                if taken != Some(true) {
                    self.proto.borrow_mut().consumed(stream, channel, length);
                }
            }
            FromGuest::Closed { stream, channel } => {
                self.with(stream, |known| known.output.borrow_mut()[index(channel)].take());
            }
            FromGuest::StdinRoom { stream } => {
                self.with(stream, |known| known.room.notify_waiters());
            }
        }
    }

    fn message(&self, message: ToHost) {
        match message {
            ToHost::Snapshot(snapshot) => {
                if let Some(hello) = self.hello.borrow_mut().take() {
                    let _ = hello.send(*snapshot);
                }
            }
            ToHost::Reply { id, reply } => {
                if let Some(caller) = self.callers.borrow_mut().remove(&id) {
                    // A caller that lost its patience does not want it.
                    let _ = caller.send(reply);
                }
            }
            ToHost::Event(Event::Container { instance, .. }) => {
                if let InstanceState::Ended(ended) = instance.state {
                    let end = End {
                        exit_code: ended.exit_code,
                        signal: ended.signal,
                        reason: ended.reason,
                        message: ended.message,
                    };
                    self.ended(instance.stream, end);
                }
            }
            ToHost::Event(Event::ExecEnded { stream, exit_code }) => {
                let end = End { exit_code, signal: 0, reason: String::new(), message: String::new() };
                self.ended(stream, end);
            }
            ToHost::Event(Event::Warning { message }) => {
                if self.warnings.get() < MAX_WARNINGS {
                    self.warnings.set(self.warnings.get() + 1);
                    let message: String = message.chars().take(500).collect();
                    tracing::warn!(message, "the guest warns");
                }
            }
            ToHost::Event(Event::Identity { phase, .. }) => drop(self.phase.send_replace(Some(phase))),
        }
    }

    /// The process of a stream has ended, and so has its output.
    fn ended(&self, stream: u32, end: End) {
        self.with(stream, |known| {
            *known.output.borrow_mut() = [None, None];
            if let Some(waiting) = known.end.borrow_mut().take() {
                let _ = waiting.send(end);
            }
        });
    }

    fn with<T>(&self, stream: u32, act: impl FnOnce(&Stream) -> T) -> Option<T> {
        let known = self.streams.borrow().get(&stream).cloned();
        known.map(|known| act(&known))
    }

    /// Sends a request and waits for its answer.
    pub(super) async fn request(&self, request: Request) -> Result<Reply, LinkError> {
        if self.ended.get() {
            return Err(LinkError::Gone);
        }
        let (sender, receiver) = oneshot::channel();
        let id = self.proto.borrow_mut().request(request);
        self.callers.borrow_mut().insert(id, sender);
        self.due.notify_one();
        match timeout(ANSWER, receiver).await {
            Ok(Ok(Reply::Error { reason, message })) => Err(LinkError::Refused(reason, message)),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_dropped)) => Err(LinkError::Gone),
            Err(_elapsed) => {
                self.callers.borrow_mut().remove(&id);
                Err(LinkError::Silent)
            }
        }
    }

    /// Sends a request whose answer nobody needs.
    pub(super) fn post(&self, request: Request) {
        if !self.ended.get() {
            self.proto.borrow_mut().request(request);
            self.due.notify_one();
        }
    }

    /// Makes a stream for a process that is about to be started.
    pub(super) fn open_stream(&self) -> Opened {
        let stream = self.next_stream.replace(self.next_stream.get() + 1);
        if !self.ended.get() {
            self.proto.borrow_mut().open_stream(stream);
        }
        self.register(stream)
    }

    fn register(&self, stream: u32) -> Opened {
        let (out, out_queue) = mpsc::unbounded_channel();
        let (err, err_queue) = mpsc::unbounded_channel();
        let (told, end) = oneshot::channel();
        if !self.ended.get() {
            let known = Stream {
                output: RefCell::new([Some(out), Some(err)]),
                end: RefCell::new(Some(told)),
                room: Notify::new(),
                undone: Cell::new(0),
            };
            self.streams.borrow_mut().insert(stream, Rc::new(known));
        }
        Opened { stream, output: [out_queue, err_queue], end }
    }

    /// True until the stream is forgotten.
    pub(super) fn knows(&self, stream: u32) -> bool {
        self.streams.borrow().contains_key(&stream)
    }

    /// Forgets a stream whose process has ended or was never started.
    pub(super) fn forget(&self, stream: u32) {
        self.proto.borrow_mut().forget_stream(stream);
        if let Some(known) = self.streams.borrow_mut().remove(&stream) {
            known.room.notify_waiters();
        }
        self.done.notify_waiters();
    }

    /// Nobody listens to the stream any more; its process must not wait for that.
    pub(super) fn discard(&self, stream: u32) {
        self.proto.borrow_mut().discard_stream(stream);
        self.due.notify_one();
    }

    /// Bytes of output have been dealt with: the guest may send as many more.
    pub(super) fn consumed(&self, stream: u32, channel: Channel, bytes: usize) {
        self.proto.borrow_mut().consumed(stream, channel, bytes);
        self.due.notify_one();
        let left = self.with(stream, |known| {
            known.undone.set(known.undone.get().saturating_sub(bytes));
            known.undone.get()
        });
        if left == Some(0) {
            self.done.notify_waiters();
        }
    }

    /// Gives all bytes to a process's standard input. False when it takes no more. Not cancel-safe: dropped half-way,
    /// a part was given.
    pub(super) async fn write_stdin(&self, stream: u32, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let Some(known) = self.streams.borrow().get(&stream).cloned() else { return false };
            let taken = self.proto.borrow_mut().write_stdin(stream, bytes);
            if taken == 0 {
                // Nothing runs between the look and the wait: this is the process's one thread.
                known.room.notified().await;
                continue;
            }
            bytes = &bytes[taken..];
            self.due.notify_one();
        }
        true
    }

    /// Ends a process's standard input.
    pub(super) fn close_stdin(&self, stream: u32) {
        self.proto.borrow_mut().close_stdin(stream);
        self.due.notify_one();
    }

    /// Changes the size of a process's terminal.
    pub(super) fn resize(&self, stream: u32, columns: u16, rows: u16) {
        self.proto.borrow_mut().resize(stream, columns, rows);
        self.due.notify_one();
    }
}

/// Which queue of a stream a channel's bytes go to.
fn index(channel: Channel) -> usize {
    usize::from(channel == Channel::Stderr)
}

/// Waits until the queues of an ended process have been emptied. That needs no limit: nobody fills them any more, and who
/// empties them gives up on a client that does not read.
pub(super) async fn emptied(pumps: Vec<tokio::task::JoinHandle<()>>) {
    for pump in pumps {
        // A pump has no result; one that panicked has ended as well.
        let _ = pump.await;
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
