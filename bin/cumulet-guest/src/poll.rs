//! What the agent waits for. Everything is edge-triggered: whoever is told that something is ready remembers it until
//! the kernel says that it is not (`EAGAIN`). So a port without a host, which is always "hung up", does not spin.

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// What became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// The channel to the host.
    Port,
    /// A signal.
    Signals,
    /// The kernel's device events.
    Uevents,
    /// What the child with that stream tells.
    Report(u32),
    /// Standard input of the process with that stream.
    Stdin(u32),
    /// Its output; for a terminal both directions.
    Stdout(u32),
    /// Its error output.
    Stderr(u32),
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, stream) = match self {
            Self::Port => (0, 0),
            Self::Signals => (1, 0),
            Self::Uevents => (2, 0),
            Self::Report(stream) => (3, stream),
            Self::Stdin(stream) => (4, stream),
            Self::Stdout(stream) => (5, stream),
            Self::Stderr(stream) => (6, stream),
        };
        kind << 32 | u64::from(stream)
    }

    fn decode(number: u64) -> Self {
        let stream = (number & 0xffff_ffff) as u32;
        match number >> 32 {
            0 => Self::Port,
            1 => Self::Signals,
            2 => Self::Uevents,
            3 => Self::Report(stream),
            4 => Self::Stdin(stream),
            5 => Self::Stdout(stream),
            _ => Self::Stderr(stream),
        }
    }
}

/// An epoll instance. Descriptors leave it by being closed.
pub(crate) struct Poll {
    epoll: Epoll,
}

impl Poll {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)? })
    }

    /// Watches a descriptor in both directions.
    pub(crate) fn add(&self, fd: &impl AsFd, token: Token) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        Ok(self.epoll.add(fd, EpollEvent::new(flags, token.encode()))?)
    }

    /// Waits; what became ready, or nothing when the time is over.
    pub(crate) fn wait(&self, limit: Option<Duration>) -> io::Result<Vec<Token>> {
        let mut events = [EpollEvent::empty(); 32];
        // Rounded up, so that a deadline has passed when the wait is over.
        let timeout = match limit {
            None => EpollTimeout::NONE,
            Some(limit) => {
                EpollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(EpollTimeout::MAX)
            }
        };
        match self.epoll.wait(&mut events, timeout) {
            Ok(count) => Ok(events[..count].iter().map(|event| Token::decode(event.data())).collect()),
            Err(nix::errno::Errno::EINTR) => Ok(vec![]),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_numbers() {
        use Token::{Port, Report, Signals, Stderr, Stdin, Stdout, Uevents};
        for token in [Port, Signals, Uevents, Report(7), Stdin(u32::MAX), Stdout(0), Stderr(1)] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}
