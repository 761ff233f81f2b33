//! Pipes and terminals without threads.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::unix::AsyncFd;

/// One end of a pipe, or the master side of a terminal. Shared as `Rc`: reading and writing take turns by the
/// readiness of the descriptor.
#[derive(Debug)]
pub(super) struct Stream {
    inner: AsyncFd<OwnedFd>,
}

impl Stream {
    /// Takes a descriptor whose other end may stay blocking.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // SAFETY: an `OwnedFd` is open and is neither replaced nor closed while `AsyncFd` owns it. JUSTIFICATION: tokio
        // has no safe constructor for terminals.
        Ok(Self { inner: unsafe { AsyncFd::register(fd) }? })
    }

    /// Reads what is there; 0 at the end. Cancel-safe.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.inner.readable().await?;
            match ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), buffer)?)) {
                // A terminal whose other side is closed says EIO instead of an end.
                Ok(Err(e)) if e.raw_os_error() == Some(libc::EIO) => return Ok(0),
                Ok(Err(e)) if e.kind() == ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Writes everything. Not cancel-safe: dropped half-way, a part has been written.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.inner.writable().await?;
            match ready.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), bytes)?)) {
                Ok(Err(e)) if e.kind() == ErrorKind::Interrupted => {}
                Ok(written) => bytes = &bytes[written?..],
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    /// Tells a terminal its size, in characters.
    pub(super) fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        nix::ioctl_write_ptr_bad!(set_size, libc::TIOCSWINSZ, libc::winsize);
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open and the kernel only reads the structure. JUSTIFICATION: no safe wrapper.
        unsafe { set_size(self.inner.get_ref().as_raw_fd(), &raw const size)? };
        Ok(())
    }
}

/// Standard streams of a process that is about to start, from both sides.
pub(super) struct Pipes {
    /// For the process.
    pub(super) theirs: cumulet_container::Stdio,
    /// Write end of its standard input, unless that is `/dev/null`.
    pub(super) stdin: Option<OwnedFd>,
    /// Read ends of its standard output and error.
    pub(super) output: [OwnedFd; 2],
}

/// Makes the pipes for a process without terminal.
pub(super) fn pipes(stdin: bool) -> io::Result<Pipes> {
    let (input, stdin) = if stdin {
        let (reader, writer) = io::pipe()?;
        (reader.into(), Some(writer.into()))
    } else {
        (std::fs::File::open("/dev/null")?.into(), None)
    };
    let (out, their_out) = io::pipe()?;
    let (err, their_err) = io::pipe()?;
    let theirs =
        cumulet_container::Stdio::Pipes { stdin: input, stdout: their_out.into(), stderr: their_err.into() };
    Ok(Pipes { theirs, stdin, output: [out.into(), err.into()] })
}
