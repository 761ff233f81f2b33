//! Where a container's output goes: to its log first, then to those who are attached to it.
//!
//! A client that does not read slows the container down like a slow terminal, but only for [`SLOW_CLIENT`]; then it is
//! let go. Nothing is queued without a bound.

use super::frame::Frame;
use super::log::{Channel, Log};
use super::proto::FrameKind;
use bytes::Bytes;
use std::cell::RefCell;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Bytes read at once; also the size of the chunks that sessions see.
pub(super) const CHUNK: usize = 16 * 1024;
/// Frames that wait for an attached client.
pub(super) const CLIENT_QUEUE: usize = 16;
/// How long an attached client may hold up the container.
const SLOW_CLIENT: Duration = Duration::from_secs(5);
/// An unfinished line is written after this silence.
const FLUSH_AFTER: Duration = Duration::from_millis(250);

/// The output of one container instance.
pub(super) struct Output {
    pub(super) log: RefCell<Log>,
    attached: RefCell<Vec<mpsc::Sender<Frame>>>,
}

impl Output {
    pub(super) fn new(log: Log) -> Self {
        Self { log: RefCell::new(log), attached: RefCell::default() }
    }

    /// Waits for the next output by `read`, which must be cancel-safe; meanwhile an unfinished line is written after a
    /// while.
    pub(super) async fn next<T>(&self, channel: Channel, mut read: impl AsyncFnMut() -> T) -> T {
        while self.log.borrow().has_partial(channel) {
            match timeout(FLUSH_AFTER, read()).await {
                Ok(result) => return result,
                Err(_silence) => self.log.borrow_mut().flush(channel),
            }
        }
        read().await
    }

    /// Takes a chunk of output.
    pub(super) async fn write(&self, channel: Channel, chunk: &[u8]) {
        self.log.borrow_mut().write(channel, chunk);
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

    /// The channel has ended.
    pub(super) fn end(&self, channel: Channel) {
        self.log.borrow_mut().flush(channel);
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
