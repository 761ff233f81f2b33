//! A container that runs: its streams, its log and those who are attached to it.
//!
//! One task per output stream reads; every chunk goes to the log first and then to the attached clients. A client
//! that does not read slows the container down like a slow terminal, but only for [`SLOW_CLIENT`]; then it is let
//! go. Nothing is queued without a bound.

use super::frame::Frame;
use super::io::Stream;
use super::log::{Channel, Log};
use super::proto::FrameKind;
use bytes::Bytes;
use cumulet_container::{Bundle, ContainerSpec};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Bytes read at once; also the size of the chunks that sessions see.
pub(super) const CHUNK: usize = 16 * 1024;
/// Frames that wait for an attached client.
pub(super) const CLIENT_QUEUE: usize = 16;
/// How long an attached client may hold up the container.
const SLOW_CLIENT: Duration = Duration::from_secs(5);
/// An unfinished line is written after this silence.
const FLUSH_AFTER: Duration = Duration::from_millis(250);

/// A running container.
pub(super) struct Live {
    pub(super) attempt: u32,
    pub(super) id: String,
    pub(super) pid: i32,
    pub(super) bundle: Bundle,
    pub(super) spec: ContainerSpec,
    pub(super) started_at_us: i64,
    /// Standard input, while it is open; the terminal itself when there is one.
    pub(super) stdin: RefCell<Option<Rc<Stream>>>,
    pub(super) stdin_once: bool,
    pub(super) terminal: Option<Rc<Stream>>,
    pub(super) log: RefCell<Log>,
    pub(super) attached: RefCell<Vec<mpsc::Sender<Frame>>>,
}

impl Live {
    /// Starts the task that reads one output stream. It ends with the stream.
    pub(super) fn pump(self: &Rc<Self>, from: Rc<Stream>, channel: Channel) -> JoinHandle<()> {
        let live = self.clone();
        tokio::task::spawn_local(async move {
            let mut buffer = vec![0; CHUNK];
            while let Some(length) = live.next_chunk(&from, channel, &mut buffer).await {
                live.log.borrow_mut().write(channel, &buffer[..length]);
                live.fan_out(channel, &buffer[..length]).await;
            }
            live.log.borrow_mut().flush(channel);
        })
    }

    /// Waits for output; meanwhile an unfinished line is written after a while.
    async fn next_chunk(&self, from: &Stream, channel: Channel, buffer: &mut [u8]) -> Option<usize> {
        loop {
            let read = from.read(buffer);
            let result = if self.log.borrow().has_partial(channel) {
                match timeout(FLUSH_AFTER, read).await {
                    Ok(result) => result,
                    Err(_silence) => {
                        self.log.borrow_mut().flush(channel);
                        continue;
                    }
                }
            } else {
                read.await
            };
            return result.ok().filter(|length| *length > 0);
        }
    }

    async fn fan_out(&self, channel: Channel, chunk: &[u8]) {
        let clients = self.attached.borrow().clone();
        if clients.is_empty() {
            return;
        }
        let kind = match channel {
            Channel::Stdout => FrameKind::Stdout,
            Channel::Stderr => FrameKind::Stderr,
        };
        let frame = Frame::raw(kind, Bytes::copy_from_slice(chunk));
        for client in clients {
            if !matches!(timeout(SLOW_CLIENT, client.send(frame.clone())).await, Ok(Ok(()))) {
                self.attached.borrow_mut().retain(|other| !other.same_channel(&client));
            }
        }
    }

    /// Adds an attached client.
    pub(super) fn attach(&self) -> mpsc::Receiver<Frame> {
        let (sender, receiver) = mpsc::channel(CLIENT_QUEUE);
        self.attached.borrow_mut().push(sender);
        receiver
    }

    /// Tells the attached clients how the container ended, and lets them go.
    pub(super) async fn detach_all(&self, exit_code: i32) {
        let clients = std::mem::take(&mut *self.attached.borrow_mut());
        for client in clients {
            let _ = timeout(SLOW_CLIENT, client.send(exit_frame(exit_code))).await;
        }
    }
}

/// The last frame of a session.
pub(super) fn exit_frame(code: i32) -> Frame {
    Frame::raw(FrameKind::Exit, code.to_be_bytes().to_vec())
}
