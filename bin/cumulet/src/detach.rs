//! `up --detach`: the same program in the background, and the wait until it is ready.
//!
//! Parent and child share a pipe. The child writes `ready` or the reason of its failure to it; when it closes the pipe
//! without a word it has died, and its log says why. Nobody polls.

use anyhow::{Context, bail};
use cumulet_cli::StateDir;
use cumulet_cli::args::Up;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::pipe;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Tells the child the number of its end of the pipe.
const READY_FD: &str = "CUMULET_READY_FD";
const READY: &str = "ready";

/// Starts the cloud in the background and returns when it is ready.
pub(crate) fn run(state: &StateDir, options: &Up, verbose: bool) -> anyhow::Result<()> {
    state.create()?;
    if let Some(pid) = state.running()? {
        bail!(
            "a cloud already runs on {} (process {pid}): use it, or stop it with `cumulet down`",
            state.path().display()
        );
    }
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(state.log());
    let log = log.with_context(|| format!("cannot write {}", state.log().display()))?;
    let (reader, writer) = pipe().context("no pipe")?;
    fcntl(&reader, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    let mut command = Command::new(std::env::current_exe().context("this program has no path")?);
    command
        .arg("--state-dir")
        .arg(state.path())
        .arg("up")
        .arg("--api-listen")
        .arg(options.api_listen.to_string());
    for (flag, value) in [
        ("--pod-cidr", &options.pod_cidr),
        ("--service-cidr", &options.service_cidr),
        ("--node-name", &options.node_name),
    ] {
        if let Some(value) = value {
            command.arg(flag).arg(value);
        }
    }
    if let Some(listen) = options.registry_listen {
        command.arg("--registry-listen").arg(listen.to_string());
    }
    for (flag, path) in [("--registry-users", &options.registry_users), ("--vm-kernel", &options.vm_kernel)] {
        if let Some(path) = path {
            // The child works in the root directory.
            let path = std::path::absolute(path).with_context(|| format!("{}", path.display()))?;
            command.arg(flag).arg(path);
        }
    }
    if verbose {
        command.arg("--verbose");
    }
    command.env(READY_FD, writer.as_raw_fd().to_string()).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    // SAFETY: setsid is async-signal-safe and touches nothing of this process's memory.
    // JUSTIFICATION: a session of its own keeps the terminal's signals away from the cloud.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
    }
    command.spawn().context("cannot start the cloud")?;
    drop(writer);
    let mut said = String::new();
    File::from(reader).read_to_string(&mut said).context("cannot hear from the cloud")?;
    match said.trim() {
        READY => Ok(()),
        "" => bail!("the cloud ended before it was ready: see {}", state.log().display()),
        reason => bail!("{reason}"),
    }
}

/// The child's end of the pipe; does nothing when nobody waits.
pub(crate) struct Waiter(Option<File>);

impl Waiter {
    /// Takes over the pipe that the parent left, if there is one.
    pub(crate) fn inherited() -> Self {
        let number =
            std::env::var(READY_FD).ok().and_then(|text| text.parse::<i32>().ok()).filter(|fd| *fd > 2);
        let file = number.map(|fd| {
            // SAFETY: the parent opened this descriptor for us and told its number; nobody else here knows it.
            // JUSTIFICATION: an inherited descriptor can only be adopted by its number.
            File::from(unsafe { OwnedFd::from_raw_fd(fd) })
        });
        if let Some(file) = &file {
            // Supervisors must not inherit it: the parent would wait for them.
            let _ = fcntl(file, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        }
        Self(file)
    }

    /// The cloud is ready.
    pub(crate) fn ready(self) {
        self.say(READY);
    }

    /// The cloud did not come up.
    pub(crate) fn failed(self, error: &anyhow::Error) {
        self.say(&format!("{error:#}"));
    }

    fn say(self, text: &str) {
        if let Some(mut file) = self.0 {
            // A parent that has gone away needs no answer.
            let _ = file.write_all(text.as_bytes());
        }
    }
}
