//! Receives the master side of a container's terminal.
//!
//! The terminal is made inside the container (from its own devpts), and its master side comes out through a unix
//! socket. The connection waits in the socket's backlog, so one thread can start the container and then accept.

use crate::Error;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// A socket that waits for one terminal; its file is removed on drop.
pub(crate) struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    /// Listens in `dir`, under a name of the caller's choice.
    pub(crate) fn listen(dir: &Path, name: &str) -> Result<Self, Error> {
        let path = dir.join(name);
        let failed = |source| Error::Io { what: "listen for a terminal at", path: path.clone(), source };
        let open = || -> io::Result<UnixListener> {
            // By a descriptor, because the path may be too long for a socket address.
            let held = std::fs::File::open(dir)?;
            let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", held.as_raw_fd()))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        Ok(Self { listener: open().map_err(failed)?, path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the terminal, once the container has been created.
    pub(crate) fn receive(&self) -> Result<OwnedFd, Error> {
        self.take().map_err(|e| Error::Create(format!("cannot receive the terminal: {e}")))
    }

    fn take(&self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept()?;
        let mut name = [0_u8; 256];
        let mut parts = [IoSliceMut::new(&mut name)];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = control
                && let Some(first) = descriptors.first()
            {
                // SAFETY: the kernel just made this descriptor for us. JUSTIFICATION: nix returns it as a number.
                return Ok(unsafe { OwnedFd::from_raw_fd(*first) });
            }
        }
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no descriptor came"))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // The pod's directory is removed in the end anyway.
        let _ = std::fs::remove_file(&self.path);
    }
}
