//! QEMU's control protocol (QMP): JSON objects, one per line, over a stream socket.
//!
//! One task owns the connection: it writes commands in the order in which they were asked, and QEMU answers in that
//! order. QEMU is not trusted (a guest may have taken it over): a line has a limit, an answer that nobody waits for or
//! that carries a foreign id ends the connection, unknown events are passed on by name and weigh nothing.
//!
//! The types are written by hand on purpose. We use about fifteen commands; the generated crate (`qapi-qmp`) brings
//! several hundred types of one version of QEMU, refuses values that other versions know, and has no limits.

mod codec;
mod types;

pub use types::{Balloon, BlockCounters, BlockStats, MigrationStatus, RunStatus, Version};

use crate::Error;
use codec::Lines;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use types::{Greeting, Incoming};

/// QEMU answers within milliseconds; on an overloaded machine in emulation within seconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Commands that wait to be written.
const QUEUE: usize = 16;

/// An event: its name and data.
#[derive(Debug, Clone, PartialEq)]
pub struct QmpEvent {
    /// QEMU's name of it.
    pub name: String,
    /// What comes with it.
    pub data: Value,
}

/// Where an answer goes.
type Answer = oneshot::Sender<Result<Value, Error>>;

struct Request {
    command: &'static str,
    arguments: Value,
    descriptor: Option<OwnedFd>,
    answer: Answer,
}

/// A connection to QEMU. Clones use the same one; it closes when all are gone.
#[derive(Debug, Clone)]
pub struct Qmp {
    requests: mpsc::Sender<Request>,
    version: Version,
}

impl Qmp {
    /// Waits for QEMU's greeting and starts the conversation. Events come out of the receiver, which ends with the
    /// connection; what is not taken from it holds the connection up.
    ///
    /// # Errors
    /// The connection broke, or the other side does not speak QMP.
    pub async fn connect(mut stream: UnixStream) -> Result<(Self, mpsc::Receiver<QmpEvent>), Error> {
        let mut lines = Lines::default();
        let greeting = loop {
            if let Some(line) = lines.next_line().map_err(Error::Connection)? {
                break types::parse::<Greeting>(&line).map_err(Error::Connection)?;
            }
            receive(&stream, &mut lines).await?;
        };
        stream
            .write_all(b"{\"execute\":\"qmp_capabilities\",\"id\":0}\n")
            .await
            .map_err(|e| Error::Connection(e.to_string()))?;
        let (requests, queue) = mpsc::channel(QUEUE);
        let (events, receiver) = mpsc::channel(64);
        let (answer, ready) = oneshot::channel();
        let mut conversation = Conversation { waiting: VecDeque::new(), next_id: 1, events };
        conversation.waiting.push_back((0, "qmp_capabilities", answer));
        // Ends when the connection breaks or the last handle is dropped; nobody needs its result.
        tokio::spawn(conversation.run(stream, lines, queue));
        ready.await.map_err(|_| Error::Connection("closed".to_owned()))??;
        Ok((Self { requests, version: greeting.version() }, receiver))
    }

    /// QEMU's version, from its greeting.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Runs a command.
    ///
    /// # Errors
    /// QEMU refused, the connection broke, no answer came within 30 s, or the answer has another shape.
    pub async fn execute<R: DeserializeOwned>(
        &self,
        command: &'static str,
        arguments: Value,
    ) -> Result<R, Error> {
        self.send(command, arguments, None).await
    }

    /// Gives QEMU a descriptor under a name, for later commands.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn give_descriptor(&self, name: &str, descriptor: OwnedFd) -> Result<(), Error> {
        let _: Value = self.send("getfd", json!({ "fdname": name }), Some(descriptor)).await?;
        Ok(())
    }

    async fn send<R: DeserializeOwned>(
        &self,
        command: &'static str,
        arguments: Value,
        descriptor: Option<OwnedFd>,
    ) -> Result<R, Error> {
        let closed = || Error::Connection("closed".to_owned());
        let (answer, result) = oneshot::channel();
        let request = Request { command, arguments, descriptor, answer };
        let value = tokio::time::timeout(ANSWER_LIMIT, async {
            self.requests.send(request).await.map_err(|_| closed())?;
            result.await.map_err(|_| closed())?
        })
        .await
        .map_err(|_| Error::Deadline { what: command, limit_ms: ANSWER_LIMIT.as_millis() })??;
        serde_json::from_value(value).map_err(|e| Error::Connection(format!("answer to {command}: {e}")))
    }
}

/// The state of the conversation: who waits for an answer, in order.
struct Conversation {
    waiting: VecDeque<(u64, &'static str, Answer)>,
    next_id: u64,
    events: mpsc::Sender<QmpEvent>,
}

impl Conversation {
    async fn run(mut self, mut stream: UnixStream, mut lines: Lines, mut queue: mpsc::Receiver<Request>) {
        let end = self.converse(&mut stream, &mut lines, &mut queue).await;
        let reason = end.err().map_or_else(|| "closed".to_owned(), |e| e.to_string());
        for (_, _, answer) in self.waiting.drain(..) {
            // The asker may have given up already.
            let _ = answer.send(Err(Error::Connection(reason.clone())));
        }
    }

    async fn converse(
        &mut self,
        stream: &mut UnixStream,
        lines: &mut Lines,
        queue: &mut mpsc::Receiver<Request>,
    ) -> Result<(), Error> {
        loop {
            while let Some(line) = lines.next_line().map_err(Error::Connection)? {
                self.take(&line).await?;
            }
            // Both arms are cancel-safe: readiness is not consumed before data is taken, a request is taken whole.
            tokio::select! {
                received = receive(stream, lines) => received?,
                request = queue.recv() => match request {
                    Some(request) => self.write(stream, request).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    async fn write(&mut self, stream: &mut UnixStream, request: Request) -> Result<(), Error> {
        let id = self.next_id;
        self.next_id += 1;
        let mut object = json!({ "execute": request.command, "id": id });
        if !request.arguments.is_null() {
            object["arguments"] = request.arguments;
        }
        let mut line = object.to_string().into_bytes();
        line.push(b'\n');
        self.waiting.push_back((id, request.command, request.answer));
        let broken = |e: io::Error| Error::Connection(e.to_string());
        let mut sent = 0;
        if let Some(descriptor) = request.descriptor {
            sent = stream
                .async_io(Interest::WRITABLE, || {
                    let fds = [descriptor.as_raw_fd()];
                    let control = [ControlMessage::ScmRights(&fds)];
                    let data = [IoSlice::new(&line)];
                    Ok(sendmsg::<()>(stream.as_raw_fd(), &data, &control, MsgFlags::MSG_NOSIGNAL, None)?)
                })
                .await
                .map_err(broken)?;
        }
        stream.write_all(&line[sent..]).await.map_err(broken)
    }

    async fn take(&mut self, line: &[u8]) -> Result<(), Error> {
        match Incoming::parse(line).map_err(Error::Connection)? {
            Incoming::Event(event) => {
                // Nobody listens any more: then nobody misses it.
                let _ = self.events.send(event).await;
            }
            Incoming::Answer { id, result } => {
                let (expected, command, answer) = self
                    .waiting
                    .pop_front()
                    .ok_or_else(|| Error::Connection("an answer that nobody asked for".to_owned()))?;
                if id != Some(expected) {
                    let reason = format!("answer {id:?} where {expected} was due");
                    let _ = answer.send(Err(Error::Connection(reason.clone())));
                    return Err(Error::Connection(reason));
                }
                let _ = answer.send(result.map_err(|reason| Error::Refused { command, reason }));
            }
        }
        Ok(())
    }
}

/// Takes what has arrived.
async fn receive(stream: &UnixStream, lines: &mut Lines) -> Result<(), Error> {
    let mut buffer = [0; 8192];
    loop {
        stream.readable().await.map_err(|e| Error::Connection(e.to_string()))?;
        match stream.try_read(&mut buffer) {
            Ok(0) => return Err(Error::Connection("closed by QEMU".to_owned())),
            Ok(n) => {
                lines.feed(&buffer[..n]);
                return Ok(());
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(Error::Connection(e.to_string())),
        }
    }
}

#[cfg(test)]
mod tests;
