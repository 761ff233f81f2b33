//! The host's side of a channel: from bytes to what happened, from orders to bytes.
//!
//! ```text
//!            begin(epoch)                Hello with that epoch
//!   Idle ────────────────► Greeted ───────────────────────────► Open ──┐ begin(epoch): output goes on where it was
//!                             ▲  └──── all else is skipped               │
//!                             └──────────────────────────────────────────┘
//! ```
//!
//! The guest is not trusted: what it sends beyond its windows, its message limit or the grammar is a [`LinkError`],
//! after which the caller ends the guest or begins a new conversation. Streams are numbered by the host; frames of
//! streams that it does not know are dropped.

use crate::flow::{ReceiveWindow, SendQueue};
use crate::frame::{self, Channel, Frame, Kind};
use crate::message::{Hello, Request, Snapshot, ToGuest, ToHost};
use crate::{
    Assembler, DecodeError, Decoded, Decoder, MAGIC, MAX_GUEST_MESSAGE_BYTES, MessageError, VERSION,
};
use std::collections::BTreeMap;

/// What came from the guest.
#[derive(Clone, Debug, PartialEq)]
pub enum FromGuest {
    /// The conversation is open; a [`ToHost::Snapshot`] follows.
    Hello(Hello),
    /// A message. Before a snapshot is handed out, the link has opened its streams.
    Message(ToHost),
    /// Bytes of a process. The caller says with [`HostLink::consumed`] when it is done with them.
    Output {
        /// Stream number.
        stream: u32,
        /// `Stdout` or `Stderr`.
        channel: Channel,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// No more bytes will come.
    Closed {
        /// Stream number.
        stream: u32,
        /// `Stdout` or `Stderr`.
        channel: Channel,
    },
    /// [`HostLink::stdin_room`] has grown.
    StdinRoom {
        /// Stream number.
        stream: u32,
    },
}

/// The guest breaks the protocol.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No frames.
    #[error("the guest sends no frames: {0}")]
    Decode(#[from] DecodeError),
    /// No messages.
    #[error("the guest sends no messages: {0}")]
    Message(#[from] MessageError),
    /// More output than its window allows, or an acknowledgement of what was not sent.
    #[error("the guest ignores flow control on stream {0}")]
    Window(u32),
    /// A kind of frame that only a host sends, or one that is malformed.
    #[error("the guest sends a malformed or misplaced {0:?} frame")]
    Frame(Kind),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Greeted,
    Open,
}

#[derive(Debug, Default)]
struct Stream {
    stdout: ReceiveWindow,
    stderr: ReceiveWindow,
    stdin: SendQueue,
    /// Output is acknowledged and dropped: nobody listens any more.
    discarded: bool,
}

impl Stream {
    fn window(&mut self, channel: Channel) -> &mut ReceiveWindow {
        if channel == Channel::Stderr { &mut self.stderr } else { &mut self.stdout }
    }
}

/// One conversation after the other with a guest.
#[derive(Debug)]
pub struct HostLink {
    decoder: Decoder,
    assembler: Assembler,
    state: State,
    epoch: u64,
    /// The snapshot of this conversation came.
    resumed: bool,
    next_id: u64,
    out: Vec<u8>,
    streams: BTreeMap<u32, Stream>,
}

impl Default for HostLink {
    fn default() -> Self {
        Self::new()
    }
}

/// Most streams that a guest can say are open.
const MAX_STREAMS: usize = 1024;
/// No channel has carried that much.
const MAX_OFFSET: u64 = 1 << 60;
/// Bytes of standard input in one frame.
const STDIN_CHUNK: usize = 16 * 1024;
const OUTPUTS: [Channel; 2] = [Channel::Stdout, Channel::Stderr];

impl HostLink {
    /// A link without a conversation.
    #[must_use]
    pub fn new() -> Self {
        Self {
            decoder: Decoder::new(),
            assembler: Assembler::new(MAX_GUEST_MESSAGE_BYTES),
            state: State::Idle,
            epoch: 0,
            resumed: false,
            next_id: 1,
            out: Vec::new(),
            streams: BTreeMap::new(),
        }
    }

    /// Begins a conversation under a number that no earlier one had: what was to be sent is dropped, requests without
    /// answer have to be repeated, streams go on.
    pub fn begin(&mut self, epoch: u64, program: &str) {
        self.decoder.lose();
        self.assembler.clear();
        self.state = State::Greeted;
        self.resumed = false;
        self.epoch = epoch;
        self.streams.values_mut().for_each(|stream| stream.stdin.suspend());
        self.out.clear();
        self.out.extend_from_slice(&MAGIC);
        let hello = Hello { version: VERSION, epoch, program: program.to_owned() };
        self.json(Kind::Hello, &hello);
    }

    /// True when requests are heard. Requests may be sent before: they then arrive right behind the greeting.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// What is to be written to the channel; the buffer is empty afterwards.
    pub fn take_output(&mut self) -> Vec<u8> {
        self.fill_stdin();
        std::mem::take(&mut self.out)
    }

    /// True when [`Self::take_output`] has something.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.out.is_empty() || self.streams.values().any(|stream| stream.stdin.is_ready())
    }

    /// Sends a request; its number is returned. For `Start` and `Exec`, [`Self::open_stream`] comes first.
    pub fn request(&mut self, request: Request) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.json(Kind::Message, &ToGuest { id, request });
        id
    }

    /// Makes a stream known, for a process that is about to be started. A known one is left alone.
    pub fn open_stream(&mut self, stream: u32) {
        self.streams.entry(stream).or_insert_with(|| Stream {
            stdout: ReceiveWindow::default(),
            stderr: ReceiveWindow::default(),
            stdin: SendQueue::opened(),
            discarded: false,
        });
    }

    /// Nobody listens to the stream any more: its output is dropped from now on, so that its process never waits.
    pub fn discard_stream(&mut self, stream: u32) {
        if let Some(known) = self.streams.get_mut(&stream) {
            known.discarded = true;
        }
        self.acknowledge_all(stream);
    }

    /// Forgets a stream, whose process could not be started or has ended. What was not consumed counts as such.
    pub fn forget_stream(&mut self, stream: u32) {
        self.acknowledge_all(stream);
        self.streams.remove(&stream);
    }

    fn acknowledge_all(&mut self, stream: u32) {
        let Some(known) = self.streams.get_mut(&stream) else { return };
        for channel in OUTPUTS {
            let window = known.window(channel);
            let before = window.acknowledge();
            window.consume(u64::MAX);
            let offset = window.acknowledge();
            if offset > before && self.state == State::Open {
                frame::write_window(&mut self.out, stream, channel, offset);
            }
        }
    }

    /// The caller is done with so many bytes of output.
    pub fn consumed(&mut self, stream: u32, channel: Channel, bytes: usize) {
        let Some(known) = self.streams.get_mut(&stream) else { return };
        if let Some(offset) = known.window(channel).consume(bytes as u64)
            && self.state == State::Open
        {
            frame::write_window(&mut self.out, stream, channel, offset);
        }
    }

    /// Acknowledges all that was consumed, however little: before a snapshot, so that no clone sends it again.
    pub fn acknowledge_consumed(&mut self) {
        for (stream, known) in &mut self.streams {
            for channel in OUTPUTS {
                let offset = known.window(channel).acknowledge();
                frame::write_window(&mut self.out, *stream, channel, offset);
            }
        }
    }

    /// How many bytes of standard input can be given now.
    #[must_use]
    pub fn stdin_room(&self, stream: u32) -> usize {
        self.streams.get(&stream).map_or(0, |stream| stream.stdin.room())
    }

    /// Gives standard input; how much was taken is returned, at most [`Self::stdin_room`].
    pub fn write_stdin(&mut self, stream: u32, bytes: &[u8]) -> usize {
        self.streams.get_mut(&stream).map_or(0, |stream| stream.stdin.append(bytes))
    }

    /// No more standard input will be given.
    pub fn close_stdin(&mut self, stream: u32) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.stdin.end();
        }
    }

    /// Changes the size of a terminal.
    pub fn resize(&mut self, stream: u32, columns: u16, rows: u16) {
        frame::write_resize(&mut self.out, stream, columns, rows);
    }

    /// Takes bytes from the channel and appends what they mean to `events`.
    ///
    /// # Errors
    /// [`LinkError`]; what was understood before is in `events`, the rest of `input` is dropped, and nothing is
    /// understood until [`Self::begin`].
    pub fn receive(&mut self, mut input: &[u8], events: &mut Vec<FromGuest>) -> Result<(), LinkError> {
        let result = self.receive_all(&mut input, events);
        if result.is_err() {
            self.state = State::Idle;
            self.decoder.lose();
            self.assembler.clear();
        }
        result
    }

    fn receive_all(&mut self, input: &mut &[u8], events: &mut Vec<FromGuest>) -> Result<(), LinkError> {
        loop {
            match self.decoder.next(input) {
                Ok(None) => return Ok(()),
                // What a dead peer left on the channel may be anything.
                Err(_) if self.state != State::Open => {}
                Err(error) => return Err(error.into()),
                Ok(Some(Decoded::Sync)) if self.state == State::Open => {
                    return Err(LinkError::Frame(Kind::Hello));
                }
                Ok(Some(Decoded::Sync)) => self.assembler.clear(),
                Ok(Some(Decoded::Frame(frame))) => match (self.state, frame.kind) {
                    (State::Open, _) => self.frame(frame, events)?,
                    (State::Greeted, Kind::Hello) => self.hello(&frame, events),
                    _ => {}
                },
            }
        }
    }

    /// The answer to the greeting, or to one of an earlier conversation.
    fn hello(&mut self, frame: &Frame, events: &mut Vec<FromGuest>) {
        let Ok(hello) = serde_json::from_slice::<Hello>(&frame.payload) else { return };
        if hello.epoch == self.epoch {
            self.state = State::Open;
            events.push(FromGuest::Hello(hello));
        }
    }

    fn frame(&mut self, frame: Frame, events: &mut Vec<FromGuest>) -> Result<(), LinkError> {
        match frame.kind {
            Kind::Part | Kind::Message => {
                if let Some(message) = self.assembler.push::<ToHost>(&frame)? {
                    if let ToHost::Snapshot(snapshot) = &message {
                        self.resume(snapshot, events)?;
                    }
                    events.push(FromGuest::Message(message));
                }
                Ok(())
            }
            Kind::Stdout | Kind::Stderr => self.output(frame, events),
            Kind::Close => {
                let channel =
                    frame.closed().filter(|c| *c != Channel::Stdin).ok_or(LinkError::Frame(frame.kind))?;
                let stream = frame.stream;
                let Some(known) = self.streams.get_mut(&stream) else { return Ok(()) };
                let window = known.window(channel);
                let first = !window.is_closed();
                if let Some(offset) = window.close() {
                    frame::write_window(&mut self.out, stream, channel, offset);
                }
                if first {
                    events.push(FromGuest::Closed { stream, channel });
                }
                Ok(())
            }
            Kind::Window => {
                let (channel, offset) = frame.window().ok_or(LinkError::Frame(frame.kind))?;
                let stream = frame.stream;
                let Some(known) = self.streams.get_mut(&stream) else { return Ok(()) };
                if channel != Channel::Stdin || !known.stdin.acknowledge(offset) {
                    return Err(LinkError::Window(stream));
                }
                events.push(FromGuest::StdinRoom { stream });
                Ok(())
            }
            Kind::Pad => Ok(()),
            Kind::Hello | Kind::Stdin | Kind::Resize => Err(LinkError::Frame(frame.kind)),
        }
    }

    fn output(&mut self, frame: Frame, events: &mut Vec<FromGuest>) -> Result<(), LinkError> {
        let Frame { kind, stream, payload: bytes } = frame;
        let channel = if kind == Kind::Stderr { Channel::Stderr } else { Channel::Stdout };
        let Some(known) = self.streams.get_mut(&stream) else { return Ok(()) };
        let discarded = known.discarded;
        let window = known.window(channel);
        if window.is_closed() || !window.receive(bytes.len()) {
            return Err(LinkError::Window(stream));
        }
        if discarded {
            self.consumed(stream, channel, bytes.len());
        } else if !bytes.is_empty() {
            events.push(FromGuest::Output { stream, channel, bytes });
        }
        Ok(())
    }

    /// Streams go on: the guest sends what the host is not done with, the host what the guest is not done with.
    fn resume(&mut self, snapshot: &Snapshot, events: &mut Vec<FromGuest>) -> Result<(), LinkError> {
        if std::mem::replace(&mut self.resumed, true) || snapshot.streams.len() > MAX_STREAMS {
            return Err(LinkError::Frame(Kind::Message));
        }
        for open in &snapshot.streams {
            let stream = open.stream;
            if [open.stdin, open.stdout, open.stderr].iter().any(|offset| *offset > MAX_OFFSET) {
                return Err(LinkError::Window(stream));
            }
            let known = self.streams.entry(stream).or_insert_with(|| Stream {
                stdout: ReceiveWindow::at(open.stdout),
                stderr: ReceiveWindow::at(open.stderr),
                stdin: SendQueue::suspended_at(open.stdin),
                discarded: false,
            });
            if !known.stdin.acknowledge(open.stdin) {
                return Err(LinkError::Window(stream));
            }
            for channel in OUTPUTS {
                let offset = known.window(channel).resume();
                frame::write_window(&mut self.out, stream, channel, offset);
            }
            events.push(FromGuest::StdinRoom { stream });
        }
        // Orders that are under way open their streams anew; what was known before and is not now has ended.
        let gone = |stream: &u32, known: &Stream| {
            known.stdin.is_suspended() && !snapshot.streams.iter().any(|open| open.stream == *stream)
        };
        let gone: Vec<u32> = self
            .streams
            .iter()
            .filter(|(stream, known)| gone(stream, known))
            .map(|(stream, _)| *stream)
            .collect();
        for stream in gone {
            let Some(mut known) = self.streams.remove(&stream) else { continue };
            for channel in OUTPUTS {
                if !known.window(channel).is_closed() {
                    events.push(FromGuest::Closed { stream, channel });
                }
            }
        }
        Ok(())
    }

    fn fill_stdin(&mut self) {
        for (stream, known) in &mut self.streams {
            while let Some(chunk) = known.stdin.next_chunk(STDIN_CHUNK) {
                frame::write(&mut self.out, Kind::Stdin, *stream, chunk);
            }
            if known.stdin.take_end() {
                frame::write_close(&mut self.out, *stream, Channel::Stdin);
            }
        }
    }

    fn json(&mut self, kind: Kind, message: &impl serde::Serialize) {
        // Our own messages have string keys only, which is all that can fail.
        if let Ok(json) = serde_json::to_vec(message) {
            frame::write(&mut self.out, kind, 0, &json);
        }
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
