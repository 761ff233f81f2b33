//! How a child tells the agent that its program runs: a socket that `execve` closes.

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Longest message, in bytes.
const MAX_MESSAGE: usize = 4096;

/// The agent's end.
#[derive(Debug)]
pub(crate) struct Report {
    socket: OwnedFd,
}

/// The child's end.
pub(super) struct Reporter {
    socket: OwnedFd,
}

/// What a child told.
#[derive(Debug)]
pub(crate) enum Told {
    /// Nothing new yet.
    Nothing,
    /// The terminal that it made.
    Terminal(OwnedFd),
    /// Why there is no program: a reason of the protocol, and a text.
    Failed(String, String),
    /// The program runs (or the child is gone without a word, which its exit status tells).
    Running,
}

/// Makes both ends.
pub(super) fn pair() -> io::Result<(Report, Reporter)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    Ok((Report { socket: ours }, Reporter { socket: theirs }))
}

impl Reporter {
    /// Says why there is no program. An agent that is gone takes everything with it, so nothing can be done then.
    pub(super) fn failed(&self, reason: &str, text: &str) {
        let message: String = format!("{reason}\n{text}").chars().take(MAX_MESSAGE / 4).collect();
        let _ = sendmsg::<()>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(message.as_bytes())],
            &[],
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
    }

    /// Hands over a terminal.
    pub(super) fn terminal(&self, master: BorrowedFd<'_>) -> io::Result<()> {
        let fds = [master.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        let text = [IoSlice::new(b"t")];
        sendmsg::<()>(self.socket.as_raw_fd(), &text, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }
}

impl Report {
    /// The next thing told, without waiting.
    pub(crate) fn next(&self) -> io::Result<Told> {
        let mut bytes = [0; MAX_MESSAGE];
        let mut space = cmsg_space!([RawFd; 1]);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<()>(self.socket.as_raw_fd(), &mut slices, Some(&mut space), flags);
        let received = match received {
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Told::Nothing),
            // The child's end was closed while it held unread data: it is gone.
            Err(Errno::ECONNRESET) => return Ok(Told::Running),
            other => other?,
        };
        let length = received.bytes;
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = message
                && let Some(fd) = fds.first()
            {
                // SAFETY: the kernel has just made this descriptor for us. JUSTIFICATION: nix hands out numbers.
                return Ok(Told::Terminal(unsafe { OwnedFd::from_raw_fd(*fd) }));
            }
        }
        if length == 0 {
            return Ok(Told::Running);
        }
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        let (reason, text) = text.split_once('\n').unwrap_or(("SystemError", &text));
        Ok(Told::Failed(reason.to_owned(), text.to_owned()))
    }
}

impl AsFd for Report {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_terminal_failure_and_end() {
        let (report, reporter) = pair().unwrap();
        assert!(matches!(report.next().unwrap(), Told::Nothing));
        reporter.terminal(std::io::stdin().as_fd()).unwrap();
        reporter.failed("StartError", "no such\nfile");
        drop(reporter);
        assert!(matches!(report.next().unwrap(), Told::Terminal(_)));
        let Told::Failed(reason, text) = report.next().unwrap() else { panic!() };
        assert_eq!((reason.as_str(), text.as_str()), ("StartError", "no such\nfile"));
        assert!(matches!(report.next().unwrap(), Told::Running));
    }
}
