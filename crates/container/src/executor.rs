//! The last steps of a new process inside its container, up to `execve`.
//!
//! libcontainer calls this when namespaces, mounts, user and working directory are set and the process still holds
//! all capabilities. The order of the rest is what makes it sound: signals to their defaults, the parent-death
//! signal (after the change of user, which would clear it), the seccomp filter (needs `CAP_SYS_ADMIN` unless
//! `no_new_privs`), then the capabilities, then the program.
//!
//! How the attempt ended goes through a pipe that `execve` closes: nothing written means that the program runs.

use crate::capabilities::Capabilities;
use crate::seccomp;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use oci_spec::runtime::Spec;
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::rc::Rc;

/// What the last steps need; prepared before the fork.
#[derive(Clone)]
pub(crate) struct LastSteps {
    pub(crate) filter: Option<Rc<[seccomp::Instruction]>>,
    pub(crate) capabilities: Capabilities,
    /// Where failures are written; close-on-exec, open in the new process because it was forked.
    pub(crate) report: RawFd,
}

impl Executor for LastSteps {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        // Found before the container counts as created, so that nothing of it ever ran.
        match command(spec).and_then(|(args, env)| find(&args[0], &env)) {
            Ok(_) => Ok(()),
            Err(message) => {
                self.report(&message);
                Err(ExecutorValidationError::ArgValidationError(message))
            }
        }
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment goes to execve as it is in the spec, in order.
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let message = match self.exec_or_explain(spec) {
            Ok(never) => match never {},
            Err(message) => message,
        };
        self.report(&message);
        Err(ExecutorError::Other(message))
    }
}

impl LastSteps {
    fn report(&self, message: &str) {
        // SAFETY: the descriptor was opened before the fork and is closed only by execve. JUSTIFICATION: libcontainer
        // copies the executor, so that it cannot own the descriptor.
        let report = unsafe { BorrowedFd::borrow_raw(self.report) };
        if let Ok(owned) = report.try_clone_to_owned() {
            // A supervisor that is gone cannot be told.
            let _ = File::from(owned).write_all(message.as_bytes());
        }
    }

    fn exec_or_explain(&self, spec: &Spec) -> Result<std::convert::Infallible, String> {
        let (args, env) = command(spec)?;
        let path = find(&args[0], &env)?;
        let root = spec.process().as_ref().is_none_or(|p| p.user().uid() == 0);
        reset_signals().map_err(|e| format!("cannot reset signals: {e}"))?;
        if let Some(filter) = &self.filter {
            seccomp::install(filter).map_err(|e| format!("cannot install the seccomp filter: {e}"))?;
        }
        restrict(self.capabilities, root).map_err(|e| format!("cannot drop capabilities: {e}"))?;
        let c = |text: &str| CString::new(text).map_err(|_| format!("exec: {text:?}: contains a NUL byte"));
        let all = |list: &[String]| list.iter().map(|text| c(text)).collect::<Result<Vec<_>, _>>();
        let errno = match nix::unistd::execve(&c(&path)?, &all(&args)?, &all(&env)?) {
            Ok(never) => match never {},
            Err(errno) => errno,
        };
        Err(format!("exec {path}: {}", plain(errno.into())))
    }
}

/// Arguments and environment of a spec.
fn command(spec: &Spec) -> Result<(Vec<String>, Vec<String>), String> {
    let process = spec.process().as_ref().ok_or("no process")?;
    let args = process.args().clone().filter(|args| !args.is_empty()).ok_or("no command specified")?;
    Ok((args, process.env().clone().unwrap_or_default()))
}

/// The error without Rust's "(os error N)".
fn plain(error: io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_ascii_lowercase()
}

/// Where the program is; messages as Go's `exec.LookPath` words them, since people search the web for them.
fn find(name: &str, env: &[String]) -> Result<String, String> {
    let check = |path: &str| -> io::Result<()> {
        let found = std::fs::metadata(path)?;
        if found.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::EISDIR));
        }
        if found.permissions().mode() & 0o111 == 0 {
            return Err(ErrorKind::PermissionDenied.into());
        }
        Ok(())
    };
    if name.contains('/') {
        return match check(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                Err(format!("exec: {name:?}: stat {name}: no such file or directory"))
            }
            Err(e) => Err(format!("exec: {name:?}: {}", plain(e))),
        };
    }
    let path = env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or("");
    let candidates = path.split(':').map(|dir| format!("{}/{name}", if dir.is_empty() { "." } else { dir }));
    let mut denied = false;
    for candidate in candidates {
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(e) => denied |= e.kind() == ErrorKind::PermissionDenied,
        }
    }
    if denied {
        return Err(format!("exec: {name:?}: permission denied"));
    }
    Err(format!("exec: {name:?}: executable file not found in $PATH"))
}

/// The supervisor ignores and blocks signals; a program expects the defaults. And it dies with its supervisor.
fn reset_signals() -> nix::Result<()> {
    use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
    for number in Signal::iterator() {
        if !matches!(number, Signal::SIGKILL | Signal::SIGSTOP) {
            // SAFETY: SigDfl installs no handler. JUSTIFICATION: there is no safe way to reset a disposition.
            unsafe { signal(number, SigHandler::SigDfl)? };
        }
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
}

/// Version 3 of the capability structures: two words of 32 bits.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct CapabilityWord {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Reduces the bounding set, and the process's own sets: root gets what the container has, others get nothing (a
/// program with file capabilities can still gain what the bounding set allows).
fn restrict(set: Capabilities, root: bool) -> io::Result<()> {
    let check = |done: libc::c_long| if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) };
    let mut known = 0_u64;
    for number in 0..64_u64 {
        // SAFETY: these prctl operations take plain numbers. JUSTIFICATION: nix has no wrapper for them.
        let present = unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) };
        if present < 0 {
            break;
        }
        if set.0 & 1 << number != 0 {
            known |= u64::from(present == 1) << number;
        } else if present == 1 {
            // SAFETY: as above. JUSTIFICATION: as above.
            check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) }.into())?;
        }
    }
    // SAFETY: as above. JUSTIFICATION: as above.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) }.into())?;
    let own = if root { known } else { 0 };
    let word = |bits: u64| {
        let bits = (bits & 0xffff_ffff) as u32;
        CapabilityWord { effective: bits, permitted: bits, inheritable: 0 }
    };
    let header = CapabilityHeader { version: 0x2008_0522, pid: 0 };
    let words = [word(own), word(own >> 32)];
    // SAFETY: the kernel reads one header and, for this version, two words. JUSTIFICATION: libc has no wrapper.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, words.as_ptr()) })?;
    Ok(())
}
