//! The guest's side of a channel, the counterpart of [`crate::host`].
//!
//! Bytes of all processes share one channel: messages go first, then the streams in turn, a chunk each. What is
//! produced ahead is bounded: one chunk of output, and messages, of which there is at most one per request and per
//! process end. Bytes wait in their stream's window until the host has acknowledged them.
//!
//! A host that sends nonsense is not heard until it begins a new conversation.

use crate::flow::{ReceiveWindow, SendQueue};
use crate::frame::{self, Channel, Frame, Kind};
use crate::message::{Hello, OpenStream, Reply, Request, ToGuest, ToHost};
use crate::{Assembler, Decoded, Decoder, MAGIC, MAX_MESSAGE_BYTES, VERSION};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Identifies a request across conversations: an answer to one of an earlier conversation is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId {
    conversation: u64,
    id: u64,
}

/// What came from the host.
#[derive(Debug)]
pub enum FromHost {
    /// A conversation began. The caller sends a snapshot at once.
    Hello(Hello),
    /// A request, or why it cannot be understood.
    Request(RequestId, Result<Box<Request>, String>),
    /// Bytes of standard input. The caller says with [`GuestLink::consumed`] when it is done with them.
    Stdin {
        /// Stream number.
        stream: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// No more standard input will come.
    StdinClosed {
        /// Stream number.
        stream: u32,
    },
    /// A terminal has another size.
    Resize {
        /// Stream number.
        stream: u32,
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// [`GuestLink::room`] of an output may have grown.
    Room {
        /// Stream number.
        stream: u32,
    },
}

#[derive(Debug)]
struct Stream {
    stdout: SendQueue,
    stderr: SendQueue,
    stdin: ReceiveWindow,
}

impl Stream {
    fn queue(&mut self, channel: Channel) -> &mut SendQueue {
        if channel == Channel::Stderr { &mut self.stderr } else { &mut self.stdout }
    }
}

/// One conversation after the other with a host.
#[derive(Debug)]
pub struct GuestLink {
    decoder: Decoder,
    assembler: Assembler,
    open: bool,
    /// A greeting is due: MAGIC came.
    greeted: bool,
    conversation: u64,
    out: Vec<u8>,
    written: usize,
    streams: BTreeMap<u32, Stream>,
    /// The stream that was served last.
    turn: u32,
}

impl Default for GuestLink {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes of output in one frame: what the port takes at once, with its header.
const CHUNK: usize = 32 * 1024 - frame::HEADER_BYTES;
const OUTPUTS: [Channel; 2] = [Channel::Stdout, Channel::Stderr];

impl GuestLink {
    /// A link that waits for a host.
    #[must_use]
    pub fn new() -> Self {
        Self {
            decoder: Decoder::new(),
            assembler: Assembler::new(MAX_MESSAGE_BYTES),
            open: false,
            greeted: false,
            conversation: 0,
            out: Vec::new(),
            written: 0,
            streams: BTreeMap::new(),
            turn: 0,
        }
    }

    /// A conversation is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Sends a message; dropped when nobody listens, since the next conversation begins with a snapshot.
    pub fn send(&mut self, message: &ToHost) {
        if self.open
            && let Ok(json) = serde_json::to_vec(message)
        {
            frame::write(&mut self.out, Kind::Message, 0, &json);
        }
    }

    /// Answers a request.
    pub fn reply(&mut self, to: RequestId, reply: Reply) {
        if to.conversation == self.conversation {
            self.send(&ToHost::Reply { id: to.id, reply });
        }
    }

    /// Opens a stream for a new process; false when the number is in use.
    pub fn open_stream(&mut self, stream: u32) -> bool {
        if self.streams.contains_key(&stream) {
            return false;
        }
        let new = Stream {
            stdout: SendQueue::opened(),
            stderr: SendQueue::opened(),
            stdin: ReceiveWindow::default(),
        };
        self.streams.insert(stream, new);
        true
    }

    /// Forgets a stream and what it still had to send.
    pub fn drop_stream(&mut self, stream: u32) {
        self.streams.remove(&stream);
    }

    /// All open streams, for a snapshot.
    #[must_use]
    pub fn open_streams(&self) -> Vec<OpenStream> {
        let open = |(stream, s): (&u32, &Stream)| OpenStream {
            stream: *stream,
            stdin: s.stdin.received(),
            stdout: s.stdout.acknowledged(),
            stderr: s.stderr.acknowledged(),
        };
        self.streams.iter().map(open).collect()
    }

    /// How many bytes of output can be taken now.
    #[must_use]
    pub fn room(&mut self, stream: u32, channel: Channel) -> usize {
        self.streams.get_mut(&stream).map_or(0, |stream| stream.queue(channel).room())
    }

    /// Takes output; how much is returned, at most [`Self::room`].
    pub fn append(&mut self, stream: u32, channel: Channel, bytes: &[u8]) -> usize {
        self.streams.get_mut(&stream).map_or(0, |stream| stream.queue(channel).append(bytes))
    }

    /// No more output will come.
    pub fn end(&mut self, stream: u32, channel: Channel) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.queue(channel).end();
        }
    }

    /// True when all output and its end was handed to the channel (or the stream is unknown): what is sent now comes
    /// behind it.
    #[must_use]
    pub fn is_told(&self, stream: u32) -> bool {
        self.streams.get(&stream).is_none_or(|s| s.stdout.is_told() && s.stderr.is_told())
    }

    /// Drops the stream if the host has acknowledged all of it.
    pub fn reap_stream(&mut self, stream: u32) -> bool {
        let finished =
            self.streams.get(&stream).is_none_or(|s| s.stdout.is_finished() && s.stderr.is_finished());
        if finished {
            self.streams.remove(&stream);
        }
        finished
    }

    /// The caller is done with so many bytes of standard input.
    pub fn consumed(&mut self, stream: u32, bytes: usize) {
        let Some(known) = self.streams.get_mut(&stream) else { return };
        if let Some(offset) = known.stdin.consume(bytes as u64)
            && self.open
        {
            frame::write_window(&mut self.out, stream, Channel::Stdin, offset);
        }
    }

    /// What is to be written to the channel next; empty when there is nothing. [`Self::wrote`] tells how much was.
    pub fn output(&mut self) -> &[u8] {
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
            self.produce();
        }
        &self.out[self.written..]
    }

    /// So many bytes of [`Self::output`] were written.
    pub fn wrote(&mut self, bytes: usize) {
        self.written = (self.written + bytes).min(self.out.len());
    }

    /// Bytes that wait to be written. A caller that sees many takes no more requests.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.out.len() - self.written
    }

    /// A chunk of the next stream that has one.
    fn produce(&mut self) {
        if !self.open {
            return;
        }
        let after = self.streams.range(self.turn.saturating_add(1)..).map(|(stream, _)| *stream);
        let until = self.streams.range(..=self.turn).map(|(stream, _)| *stream);
        let ready = after.chain(until).find(|stream| {
            self.streams.get(stream).is_some_and(|s| s.stdout.is_ready() || s.stderr.is_ready())
        });
        let Some(stream) = ready else { return };
        self.turn = stream;
        let Some(known) = self.streams.get_mut(&stream) else { return };
        for channel in OUTPUTS {
            let queue = known.queue(channel);
            if let Some(chunk) = queue.next_chunk(CHUNK) {
                frame::write(&mut self.out, channel.kind(), stream, chunk);
            }
            if queue.take_end() {
                frame::write_close(&mut self.out, stream, channel);
            }
        }
    }

    /// Takes bytes from the channel and appends what they mean to `events`.
    pub fn receive(&mut self, mut input: &[u8], events: &mut Vec<FromHost>) {
        loop {
            match self.decoder.next(&mut input) {
                Ok(None) => return,
                Err(_) => self.close(),
                Ok(Some(Decoded::Sync)) => {
                    self.close();
                    self.greeted = true;
                }
                Ok(Some(Decoded::Frame(frame))) => {
                    let understood = if std::mem::take(&mut self.greeted) {
                        self.hello(&frame, events)
                    } else {
                        self.open && self.frame(frame, events)
                    };
                    if !understood {
                        self.close();
                        self.decoder.lose();
                    }
                }
            }
        }
    }

    fn close(&mut self) {
        self.open = false;
        self.greeted = false;
        self.assembler.clear();
        self.out.clear();
        self.written = 0;
        for stream in self.streams.values_mut() {
            stream.stdout.suspend();
            stream.stderr.suspend();
        }
    }

    fn hello(&mut self, frame: &Frame, events: &mut Vec<FromHost>) -> bool {
        if frame.kind != Kind::Hello {
            return false;
        }
        let Ok(hello) = serde_json::from_slice::<Hello>(&frame.payload) else { return false };
        self.open = true;
        self.conversation += 1;
        for stream in self.streams.values_mut() {
            // The snapshot tells the same.
            stream.stdin.resume();
        }
        let program = concat!("cumulet-guest ", env!("CARGO_PKG_VERSION")).to_owned();
        let answer = Hello { version: VERSION.min(hello.version), epoch: hello.epoch, program };
        self.out.extend_from_slice(&MAGIC);
        if let Ok(json) = serde_json::to_vec(&answer) {
            frame::write(&mut self.out, Kind::Hello, 0, &json);
        }
        events.push(FromHost::Hello(hello));
        true
    }

    /// Takes a frame; false when it makes no sense.
    fn frame(&mut self, frame: Frame, events: &mut Vec<FromHost>) -> bool {
        let stream = frame.stream;
        match frame.kind {
            Kind::Part | Kind::Message => {
                match self.assembler.push::<ToGuest<Box<RawValue>>>(&frame) {
                    Ok(Some(ToGuest { id, request })) => {
                        let id = RequestId { conversation: self.conversation, id };
                        let request = serde_json::from_str(request.get()).map_err(|e| e.to_string());
                        events.push(FromHost::Request(id, request));
                    }
                    Ok(None) => {}
                    Err(_) => return false,
                }
                true
            }
            Kind::Stdin => {
                // A process that has ended may still be written to.
                let Some(known) = self.streams.get_mut(&stream) else { return true };
                let allowed = known.stdin.receive(frame.payload.len());
                if allowed {
                    events.push(FromHost::Stdin { stream, bytes: frame.payload });
                }
                allowed
            }
            Kind::Close => {
                let right = frame.closed() == Some(Channel::Stdin);
                if right {
                    events.push(FromHost::StdinClosed { stream });
                }
                right
            }
            Kind::Window => {
                let Some((channel, offset)) = frame.window().filter(|(c, _)| *c != Channel::Stdin) else {
                    return false;
                };
                let Some(known) = self.streams.get_mut(&stream) else { return true };
                let right = known.queue(channel).acknowledge(offset);
                if right {
                    events.push(FromHost::Room { stream });
                }
                right
            }
            Kind::Resize => frame.size().is_some_and(|(columns, rows)| {
                events.push(FromHost::Resize { stream, columns, rows });
                true
            }),
            Kind::Pad => true,
            Kind::Hello | Kind::Stdout | Kind::Stderr => false,
        }
    }
}
