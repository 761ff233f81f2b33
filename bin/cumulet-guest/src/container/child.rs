//! The child between `fork` and `execve`: enters its container and connects standard input and output.

use super::launch::Stdio;
use super::mounts::{self, Layout};
use super::process::{self, Program};
use super::report::Reporter;
use crate::error::{Doing, Error};
use crate::sys;
use nix::sched::{CloneFlags, setns, unshare};
use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, chown};

/// Standard input, output and error of a child; a terminal is made later.
pub(super) type Streams = [Option<OwnedFd>; 3];

/// Where a child goes.
pub(super) enum Destination<'a> {
    /// A file system that it makes.
    New(&'a Layout),
    /// That of this process.
    Of(BorrowedFd<'a>),
}

/// Does everything; never returns.
pub(super) fn run(
    to: &Destination<'_>,
    program: &Program,
    stdio: Stdio,
    streams: Streams,
    reporter: &Reporter,
) -> ! {
    let error = match try_run(to, program, stdio, streams, reporter) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    reporter.failed(error.reason(), &error.text());
    sys::exit_now(128)
}

fn try_run(
    to: &Destination<'_>,
    program: &Program,
    stdio: Stdio,
    streams: Streams,
    reporter: &Reporter,
) -> Result<Infallible, Error> {
    sys::reset_signals().doing(|| "reset signals".to_owned())?;
    nix::unistd::setsid().doing(|| "begin a session".to_owned())?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    match to {
        Destination::New(layout) => {
            unshare(CloneFlags::CLONE_NEWCGROUP).doing(|| "make a cgroup namespace".to_owned())?;
            mounts::enter(layout)?;
        }
        Destination::Of(process) => {
            let flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP;
            setns(process, flags).doing(|| "enter the container".to_owned())?;
        }
    }
    let user = process::user(program)?;
    let terminal = match stdio {
        Stdio::Terminal { columns, rows } => {
            let terminal = make_terminal(columns, rows, user.uid, reporter)?;
            if matches!(to, Destination::New(_)) {
                console(&terminal.1)?;
            }
            Some(terminal.0)
        }
        Stdio::Pipes { .. } | Stdio::Null => None,
    };
    for (number, stream) in (0..).zip(&streams) {
        let fd = terminal.as_ref().map(AsFd::as_fd).or(stream.as_ref().map(AsFd::as_fd));
        let null;
        let fd = match fd {
            Some(fd) => fd,
            None => {
                null = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open("/dev/null")
                    .doing(|| "open /dev/null".to_owned())?;
                null.as_fd()
            }
        };
        sys::set_standard(fd, number).doing(|| "connect standard input and output".to_owned())?;
    }
    Err(process::run(program, &user, terminal.is_some()))
}

/// A terminal of the container's own; the agent gets the other side. Also gives its name.
fn make_terminal(columns: u16, rows: u16, uid: u32, reporter: &Reporter) -> Result<(File, String), Error> {
    let what = || "make a terminal".to_owned();
    let master = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open("/dev/pts/ptmx")
        .doing(what)?;
    let terminal = sys::open_terminal(&master).doing(what)?;
    let name = format!("/dev/pts/{}", sys::terminal_number(&master).doing(what)?);
    if columns > 0 && rows > 0 {
        sys::resize_terminal(terminal.as_fd(), columns, rows).doing(what)?;
    }
    chown(&name, Some(uid), None).doing(what)?;
    sys::control_terminal(&terminal).doing(what)?;
    reporter.terminal(master.as_fd()).doing(what)?;
    Ok((terminal, name))
}

/// The container's terminal is its console.
fn console(name: &str) -> Result<(), Error> {
    use nix::mount::{MsFlags, mount};
    let what = || "make /dev/console".to_owned();
    fs::write("/dev/console", "").doing(what)?;
    mount(Some(name), "/dev/console", None::<&str>, MsFlags::MS_BIND, None::<&str>).doing(what)
}
