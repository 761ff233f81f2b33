//! The sandbox of a build: one container per program, in a process of its own.
//!
//! ```text
//!   cumulet image build ──spawn──► cumulet build-sandbox ──► container (pid 1 of its own pid namespace)
//!          ▲  job, result: a socket │ own mount, network, IPC namespaces: all mounts are here
//!          └──── output: a pipe ────┘
//! ```
//!
//! The process in the middle exists because a container needs a caller with one thread and a mount namespace of its own.
//! It dies with the build, and the container with it, so that a build which is killed leaves no process and no mount.
//! Its cgroup is named after a slot of the state directory and is removed by whoever takes the slot next.

use cumulet_container::cgroup::{self, Cgroup};
use cumulet_container::{Bundle, ContainerSpec, Mount, MountSource, Namespaces, Propagation};
use cumulet_container::{Resources, Security, Stdio as Streams};
use cumulet_images::{BuildSandbox, Digest, Outcome, SandboxError, SandboxJob};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The word on the command line that makes this program a sandbox.
pub const COMMAND: &str = "build-sandbox";
/// Longest line of output that is kept in one piece, in bytes.
const MAX_LINE: usize = 64 * 1024;
/// Builds that run at a time on one state directory.
const SLOTS: u32 = 64;

/// Runs programs of a build in containers.
pub(super) struct Sandbox {
    /// Directory for what a running container needs.
    dir: PathBuf,
}

/// A job as it is sent.
#[derive(Serialize, Deserialize)]
struct Order {
    slot: PathBuf,
    cgroup: String,
    layers: Vec<PathBuf>,
    writable: PathBuf,
    args: Vec<String>,
    env: Vec<String>,
    cwd: String,
    network: bool,
    shown: Vec<(PathBuf, String)>,
}

impl Sandbox {
    pub(super) fn new(state: &Path) -> Self {
        Self { dir: state.join("build") }
    }

    /// A free place for a container, kept until the file is dropped.
    fn slot(&self) -> Result<(File, PathBuf, String), SandboxError> {
        let failed = |error: io::Error| SandboxError(format!("{}: {error}", self.dir.display()));
        fs::create_dir_all(&self.dir).map_err(failed)?;
        let seed: String =
            Digest::of(self.dir.as_os_str().as_encoded_bytes()).hex().chars().take(8).collect();
        for number in 0..SLOTS {
            let dir = self.dir.join(format!("slot{number}"));
            let lock = File::create(dir.with_extension("lock")).map_err(failed)?;
            if lock.try_lock().is_err() {
                continue;
            }
            // What a killed build left; nothing is mounted here, since its mount namespace is gone.
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir(&dir).map_err(failed)?;
            let cgroup = format!("/cumulet-build-{seed}-{number}");
            cgroup::kill_and_remove(&cgroup).map_err(|error| SandboxError(error.to_string()))?;
            return Ok((lock, dir, cgroup));
        }
        Err(SandboxError("too many builds run at once".to_owned()))
    }
}

impl BuildSandbox for Sandbox {
    fn run(&self, job: &SandboxJob<'_>) -> Result<Outcome, SandboxError> {
        let (_lock, slot, cgroup) = self.slot()?;
        let order = Order {
            slot: slot.clone(),
            cgroup,
            layers: job.layers.clone(),
            writable: job.writable.clone(),
            args: job.args.clone(),
            env: job.env.clone(),
            cwd: job.cwd.clone(),
            network: job.network,
            shown: job.shown.clone(),
        };
        let result = ask(&order, job.output);
        let _ = fs::remove_dir_all(&slot);
        result.map_err(|error| SandboxError(error.to_string()))?.map_err(SandboxError)
    }
}

/// Runs the order in a process of its own.
fn ask(order: &Order, output: &(dyn Fn(&str) + Sync)) -> io::Result<Result<Outcome, String>> {
    let (mut control, theirs) = UnixStream::pair()?;
    let (reader, writer) = io::pipe()?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg(COMMAND)
        .stdin(OwnedFd::from(theirs))
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()?;
    let sent = serde_json::to_vec(order)
        .map_err(io::Error::from)
        .and_then(|bytes| control.write_all(&bytes))
        .and_then(|()| control.shutdown(Shutdown::Write));
    lines(reader, output);
    let mut answer = Vec::new();
    let read = control.read_to_end(&mut answer);
    let status = child.wait()?;
    sent?;
    read?;
    let answer: Result<i32, String> = serde_json::from_slice(&answer)
        .unwrap_or_else(|_| Err(format!("the sandbox ended without an answer ({status})")));
    Ok(answer.map(|exit_code| Outcome { exit_code }))
}

/// Passes on what can be read, line by line, until its writers are gone.
fn lines(mut reader: impl Read, output: &(dyn Fn(&str) + Sync)) {
    let mut pending = Vec::new();
    let mut buffer = [0; 16 * 1024];
    let say = |line: &[u8]| output(String::from_utf8_lossy(line).trim_end_matches('\r'));
    while let Ok(n @ 1..) = reader.read(&mut buffer) {
        for piece in buffer[..n].split_inclusive(|byte| *byte == b'\n') {
            pending.extend_from_slice(piece);
            if pending.last() == Some(&b'\n') {
                pending.pop();
            } else if pending.len() < MAX_LINE {
                continue;
            }
            say(&pending);
            pending.clear();
        }
    }
    if !pending.is_empty() {
        say(&pending);
    }
}

/// The whole of `cumulet build-sandbox`: reads an order from standard input, which is a socket, carries it out and
/// answers. The caller must not have started any thread.
pub fn main() -> ExitCode {
    let answered = || -> io::Result<()> {
        // Whoever asked may be gone already; then the order cannot be read.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        let mut control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let mut bytes = Vec::new();
        control.read_to_end(&mut bytes)?;
        let order: Order = serde_json::from_slice(&bytes)?;
        let answer = carry_out(&order).map_err(|error| error.to_string());
        control.write_all(&serde_json::to_vec(&answer)?)
    };
    match answered() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn carry_out(order: &Order) -> Result<i32, Box<dyn std::error::Error>> {
    let mut flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    flags.set(CloneFlags::CLONE_NEWNET, !order.network);
    unshare(flags).map_err(|errno| format!("cannot make namespaces: {errno}"))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(|errno| format!("cannot detach from the host's mounts: {errno}"))?;
    sethostname("build")?;
    if !order.network {
        cumulet_net::pod_side::configure_loopback()?;
    }
    cgroup::conceal(&order.slot.join("hierarchies"))?;
    let bundle = Bundle {
        id: "build".to_owned(),
        dir: order.slot.join("bundle"),
        state_root: order.slot.join("state"),
        cgroup: order.cgroup.clone(),
    };
    let null = || File::open("/dev/null").map(OwnedFd::from);
    let streams = Streams::Pipes {
        stdin: null()?,
        stdout: io::stdout().as_fd().try_clone_to_owned()?,
        stderr: io::stderr().as_fd().try_clone_to_owned()?,
    };
    let started = bundle.start(&spec(order), None, streams)?;
    let code = loop {
        match waitpid(Pid::from_raw(started.pid), None) {
            Ok(WaitStatus::Exited(_, code)) => break code,
            Ok(WaitStatus::Signaled(_, signal, _)) => break 128 + signal as i32,
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(format!("cannot wait for the program: {errno}").into()),
        }
    };
    // Other processes of the container died with its first one, and are being reaped by it or by us.
    Cgroup::new(&order.cgroup)?.kill()?;
    bundle.delete()?;
    Ok(code)
}

fn spec(order: &Order) -> ContainerSpec {
    let own = |kind: &str| Some(PathBuf::from(format!("/proc/{}/ns/{kind}", std::process::id())));
    let mount = |(source, destination): &(PathBuf, String)| Mount {
        source: MountSource::Bind(source.clone()),
        destination: destination.clone(),
        read_only: true,
        propagation: Propagation::Private,
    };
    ContainerSpec {
        layers: order.layers.clone(),
        writable: order.writable.clone(),
        read_only_root: false,
        args: order.args.clone(),
        env: order.env.clone(),
        cwd: order.cwd.clone(),
        user: String::new(),
        run_as_group: None,
        additional_gids: Vec::new(),
        must_not_be_root: false,
        mounts: order.shown.iter().map(mount).collect(),
        resources: Resources::default(),
        security: Security::default(),
        cgroup: order.cgroup.clone(),
        namespaces: Namespaces {
            net: own("net"),
            ipc: own("ipc"),
            uts: own("uts"),
            pid: None,
            host_pid: false,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn output_comes_in_lines() {
        let check = |text: &str, expected: &[&str]| {
            let told = Mutex::new(Vec::new());
            lines(text.as_bytes(), &|line| told.lock().expect("lock").push(line.to_owned()));
            assert_eq!(told.into_inner().expect("lock"), expected, "{text:?}");
        };
        check("", &[]);
        check("a\nb", &["a", "b"]);
        check("a\r\n\nb\n", &["a", "", "b"]);
    }
}
