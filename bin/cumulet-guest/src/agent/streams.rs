//! A process's standard input and output: between its pipes or terminal and the link's windows.
//!
//! Output is read only while its window has room, so a process whose host does not keep up waits in `write`. Input
//! waits here, at most a window of it.

use crate::poll::{Poll, Token};
use crate::port::without_waiting;
use crate::sys;
use cumulet_guest_proto::Channel;
use cumulet_guest_proto::guest::GuestLink;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

/// Bytes read at once.
const CHUNK: usize = 64 * 1024;

/// One process's.
#[derive(Debug)]
pub(super) struct Streams {
    stream: u32,
    stdout: Option<Source>,
    stderr: Option<Source>,
    stdin: Option<Sink>,
    /// The side of a terminal that is the agent's, to change its size.
    terminal: Option<OwnedFd>,
}

#[derive(Debug)]
struct Source {
    file: File,
    ready: bool,
}

#[derive(Debug)]
struct Sink {
    file: File,
    ready: bool,
    waiting: VecDeque<u8>,
    /// The host has closed it; so will we, when nothing waits.
    closing: bool,
}

impl Streams {
    /// Takes over the agent's ends of a process's pipes.
    pub(super) fn new(
        poll: &Poll,
        stream: u32,
        [stdin, stdout, stderr]: [Option<OwnedFd>; 3],
    ) -> io::Result<Self> {
        let add = |fd: Option<OwnedFd>, token: Token| -> io::Result<Option<File>> {
            let Some(fd) = fd else { return Ok(None) };
            poll.add(&fd, token)?;
            Ok(Some(fd.into()))
        };
        Ok(Self {
            stream,
            stdout: add(stdout, Token::Stdout(stream))?.map(Source::new),
            stderr: add(stderr, Token::Stderr(stream))?.map(Source::new),
            stdin: add(stdin, Token::Stdin(stream))?.map(Sink::new),
            terminal: None,
        })
    }

    /// Takes over the agent's side of a terminal.
    pub(super) fn set_terminal(&mut self, poll: &Poll, master: OwnedFd, stdin: bool) -> io::Result<()> {
        crate::container::launch::set_nonblocking(&master)?;
        poll.add(&master, Token::Stdout(self.stream))?;
        if stdin {
            self.stdin = Some(Sink::new(sys::duplicate(&master)?.into()));
        }
        self.terminal = Some(sys::duplicate(&master)?);
        self.stdout = Some(Source::new(master.into()));
        Ok(())
    }

    /// Something may be read or written again.
    pub(super) fn ready(&mut self, token: Token) {
        let (stdout, stderr) = (matches!(token, Token::Stdout(_)), matches!(token, Token::Stderr(_)));
        if let Some(source) = self.stdout.as_mut().filter(|_| stdout) {
            source.ready = true;
        }
        if let Some(source) = self.stderr.as_mut().filter(|_| stderr) {
            source.ready = true;
        }
        // A terminal is one descriptor for both directions.
        let stdin = matches!(token, Token::Stdin(_)) || stdout && self.terminal.is_some();
        if let Some(sink) = self.stdin.as_mut().filter(|_| stdin) {
            sink.ready = true;
        }
    }

    /// Takes input from the host.
    pub(super) fn input(&mut self, bytes: &[u8], link: &mut GuestLink) {
        match &mut self.stdin {
            Some(sink) if !sink.closing => sink.waiting.extend(bytes),
            // Nobody reads it: as good as read.
            _ => link.consumed(self.stream, bytes.len()),
        }
    }

    /// The host has no more input.
    pub(super) fn end_input(&mut self) {
        if let Some(sink) = &mut self.stdin {
            sink.closing = true;
        }
    }

    /// Changes the size of the terminal.
    pub(super) fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        self.terminal
            .as_ref()
            .map_or(Ok(()), |terminal| sys::resize_terminal(terminal.as_fd(), columns, rows))
    }

    /// Moves what can be moved; whether anything was.
    pub(super) fn pump(&mut self, link: &mut GuestLink) -> bool {
        let stream = self.stream;
        let mut moved = pump_source(&mut self.stdout, stream, Channel::Stdout, link);
        moved |= pump_source(&mut self.stderr, stream, Channel::Stderr, link);
        moved | self.pump_sink(link)
    }

    fn pump_sink(&mut self, link: &mut GuestLink) -> bool {
        let Some(sink) = &mut self.stdin else { return false };
        let mut moved = false;
        while sink.ready && !sink.waiting.is_empty() {
            let (front, _) = sink.waiting.as_slices();
            match without_waiting(sink.file.write(front)) {
                Ok(0) => sink.ready = false,
                Ok(written) => {
                    sink.waiting.drain(..written);
                    link.consumed(self.stream, written);
                    moved = true;
                }
                // The process reads no more.
                Err(_) => {
                    link.consumed(self.stream, sink.waiting.len());
                    self.stdin = None;
                    return true;
                }
            }
        }
        if sink.closing && sink.waiting.is_empty() && self.terminal.is_none() {
            self.stdin = None;
        }
        moved
    }

    /// No more output will come: all writers have closed it.
    pub(super) fn is_at_end(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    /// Gives up what is still open, and tells the link that nothing more comes.
    pub(super) fn close(&mut self, link: &mut GuestLink) {
        (self.stdin, self.stdout, self.stderr, self.terminal) = (None, None, None, None);
        link.end(self.stream, Channel::Stdout);
        link.end(self.stream, Channel::Stderr);
    }
}

impl Source {
    fn new(file: File) -> Self {
        Self { file, ready: true }
    }
}

impl Sink {
    fn new(file: File) -> Self {
        Self { file, ready: true, waiting: VecDeque::new(), closing: false }
    }
}

fn pump_source(source: &mut Option<Source>, stream: u32, channel: Channel, link: &mut GuestLink) -> bool {
    let mut buffer = [0; CHUNK];
    let mut moved = false;
    while let Some(open) = source.as_mut().filter(|source| source.ready) {
        let room = link.room(stream, channel).min(CHUNK);
        if room == 0 {
            break;
        }
        match open.file.read(&mut buffer[..room]) {
            Ok(length @ 1..) => {
                link.append(stream, channel, &buffer[..length]);
                moved = true;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => open.ready = false,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // The end; a terminal without a process on the other side says so with an error.
            Ok(0) | Err(_) => {
                *source = None;
                link.end(stream, channel);
                moved = true;
            }
        }
    }
    moved
}

#[cfg(test)]
mod tests {
    use super::*;
    use cumulet_guest_proto::WINDOW_BYTES;
    use std::os::unix::net::UnixStream;

    #[test]
    fn output_waits_for_room_and_input_for_the_process() {
        let poll = Poll::new().unwrap();
        let mut link = GuestLink::new();
        assert!(link.open_stream(4));
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (in_ours, mut in_theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        in_ours.set_nonblocking(true).unwrap();
        let mut streams = Streams::new(&poll, 4, [Some(in_ours.into()), Some(ours.into()), None]).unwrap();
        let writer = std::thread::spawn(move || theirs.write_all(&vec![7; 1 << 20]));
        while link.room(4, Channel::Stdout) > 0 {
            streams.pump(&mut link);
            streams.ready(Token::Stdout(4));
        }
        assert!(!streams.pump(&mut link) && !streams.is_at_end());
        assert_eq!(link.append(4, Channel::Stdout, b"x"), 0, "the window of {WINDOW_BYTES} is full");
        streams.input(b"hello", &mut link);
        streams.end_input();
        streams.pump(&mut link);
        let mut text = String::new();
        in_theirs.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        streams.close(&mut link);
        assert!(streams.is_at_end() && writer.join().unwrap().is_err());
    }
}
