//! Runs libcontainer in a child that is already in the container's cgroup.
//!
//! ```text
//!   supervisor ──clone──► launcher (in the cgroup) ──CLONE_PARENT──► container's first process
//!        ▲                     │ one line: pid or error                     │
//!        └─────────────────────┘◄────────── both are the supervisor's children
//! ```
//!
//! Left to libcontainer, every start would move a process through each hierarchy by `cgroup.procs`, and each such
//! move takes a lock that waits for all CPUs: tens of milliseconds on a busy machine. A process that is born in the
//! group (version 2), or that moves only itself, as a single thread (version 1), does not pay that.
//! [`crate::cgroup::conceal`] keeps libcontainer from moving it again. A launcher also takes libcontainer's memory
//! with it when it ends.

use crate::Error;
use crate::cgroup::{Cgroup, CgroupError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// A launcher that is not done by then hangs in a broken file system.
const DEADLINE: Duration = Duration::from_secs(60);
/// A message is written in one piece and fits into a pipe's atomic write.
const MAX_MESSAGE: usize = 4000;

/// Runs `work` in a child inside `cgroup` and returns the process id that it made. The caller is single-threaded.
pub(crate) fn run(cgroup: &Cgroup, work: impl FnOnce() -> Result<i32, Error>) -> Result<i32, Error> {
    let failed = |e: io::Error| Error::Create(format!("launcher: {e}"));
    let (mut reader, mut writer) = io::pipe().map_err(failed)?;
    let Some(process) = clone_into(cgroup)? else {
        let result = cgroup.enter().map_err(Error::from).and_then(|()| work());
        let _ = writer.write_all(&encode(&result));
        // SAFETY: ends this process at once. JUSTIFICATION: nothing of the supervisor may be unwound or flushed twice.
        unsafe { libc::_exit(0) };
    };
    drop(writer);
    let timeout = PollTimeout::try_from(DEADLINE).unwrap_or(PollTimeout::MAX);
    // The end of the launcher counts too: the container's process holds the pipe open until it executes its program.
    let mut waiting =
        [PollFd::new(reader.as_fd(), PollFlags::POLLIN), PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut waiting, timeout) {
            Ok(0) => return Err(Error::Create("the container was not created in time".into())),
            Ok(_) => break,
            Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
    if waiting[0].revents().is_none_or(|events| events.is_empty()) {
        // It may have written between the two checks.
        let again = poll(&mut waiting[..1], PollTimeout::ZERO);
        if !matches!(again, Ok(1..)) {
            return Err(Error::Create("the launcher was killed; is the memory limit too low?".into()));
        }
    }
    let mut message = [0_u8; 4096];
    let length = reader.read(&mut message).map_err(failed)?;
    decode(&message[..length])
}

/// Flag of clone3(2): the child begins in the group of `cgroup`. Defined here because libc's constant is too narrow.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The arguments of clone3(2).
#[derive(Default)]
#[repr(C)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks; `None` in the child, a descriptor of the child in the parent. On version 2 the child begins inside the group.
fn clone_into(cgroup: &Cgroup) -> Result<Option<OwnedFd>, Error> {
    let group = cgroup.open_unified()?;
    let mut pidfd: libc::c_int = -1;
    let mut arguments = CloneArguments {
        flags: libc::CLONE_PIDFD as u64,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArguments::default()
    };
    if let Some(group) = &group {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::from(group.as_raw_fd().cast_unsigned());
    }
    // SAFETY: without CLONE_VM the child gets a copy of everything, as with fork, and the caller has one thread. The
    // kernel writes the descriptor to `pidfd`. JUSTIFICATION: fork cannot place the child in a cgroup.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<CloneArguments>()) };
    match pid {
        0 => Ok(None),
        1.. => {
            // SAFETY: the kernel just made this descriptor for us. JUSTIFICATION: it comes out of a raw system call.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(pidfd) }))
        }
        _ => Err(Error::Create(format!("cannot fork: {}", io::Error::last_os_error()))),
    }
}

fn encode(result: &Result<i32, Error>) -> Vec<u8> {
    let mut line = match result {
        Ok(pid) => format!("p{pid}"),
        Err(Error::Invalid(text)) => format!("i{text}"),
        Err(Error::WouldBeRoot) => "r".into(),
        Err(Error::Start(text)) => format!("s{text}"),
        Err(Error::Create(text)) => format!("c{text}"),
        Err(error @ (Error::Io { .. } | Error::Cgroup(_))) => format!("c{error}"),
    }
    .into_bytes();
    line.truncate(MAX_MESSAGE);
    line
}

fn decode(line: &[u8]) -> Result<i32, Error> {
    let text = String::from_utf8_lossy(line.get(1..).unwrap_or_default()).into_owned();
    match line.first() {
        Some(b'p') => text.parse().map_err(|_| Error::Create("the launcher wrote no process id".into())),
        Some(b'i') => Err(Error::Invalid(text)),
        Some(b'r') => Err(Error::WouldBeRoot),
        Some(b's') => Err(Error::Start(text)),
        Some(_) => Err(Error::Create(text)),
        None => Err(Error::Create("the launcher ended silently".into())),
    }
}

impl Cgroup {
    /// The directory to be born into; `None` where a process must move itself.
    fn open_unified(&self) -> Result<Option<OwnedFd>, CgroupError> {
        self.unified_directory()?
            .map(|dir| {
                std::fs::File::open(&dir).map(OwnedFd::from).map_err(|source| CgroupError::Io {
                    what: "open",
                    path: dir.clone(),
                    source,
                })
            })
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_travel() {
        assert_eq!(decode(&encode(&Ok(42))).unwrap(), 42);
        for error in [
            Error::Invalid("a b".into()),
            Error::WouldBeRoot,
            Error::Start("exec: \"x\": no".into()),
            Error::Create(String::new()),
        ] {
            let (text, reason) = (error.to_string(), error.reason());
            let got = decode(&encode(&Err(error))).unwrap_err();
            assert_eq!((got.to_string(), got.reason()), (text, reason));
        }
        assert!(decode(b"").is_err() && decode(b"pxyz").is_err());
        assert!(encode(&Err(Error::Invalid("x".repeat(10_000)))).len() <= MAX_MESSAGE);
    }
}
