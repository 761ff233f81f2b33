//! Starts containers and commands in them, through libcontainer in this process.
//!
//! ```text
//!   start ─► cgroup + limits ─► launcher: mount root ─► user ─► libcontainer create ─► oom_score_adj ─► start
//!                 └──────────── any failure: everything that was made is taken back ◄───────────────┘
//! ```
//!
//! The caller must be single-threaded (launcher and libcontainer go on running Rust code after a fork), must have a
//! mount namespace of its own, and must have called [`crate::cgroup::conceal`] in it. New processes are children of
//! the caller, which reaps them and learns their exit codes; when the caller dies they are killed.

use crate::capabilities::Capabilities;
use crate::cgroup::Cgroup;
use crate::console::Console;
use crate::error::chain;
use crate::executor::LastSteps;
use crate::rootfs::Root;
use crate::{ContainerSpec, Error, launcher, oci, overlay, seccomp, users};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// A program that is not executed in this time hangs in a broken file system.
const EXEC_DEADLINE: Duration = Duration::from_secs(10);

/// Standard streams of a new process.
#[derive(Debug)]
pub enum Stdio {
    /// Three descriptors.
    Pipes {
        /// Standard input.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// A new terminal, whose master side is returned.
    Terminal,
}

/// A process that runs.
#[derive(Debug)]
pub struct Started {
    /// Process id on the host; a child of the caller.
    pub pid: i32,
    /// Master side of the terminal, with [`Stdio::Terminal`].
    pub terminal: Option<OwnedFd>,
}

/// One run of a container: where its parts are. Cheap to make; holds nothing open.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Runtime identifier: letters and digits.
    pub id: String,
    /// Directory of this run: `config.json` and the mount point of the root file system.
    pub dir: PathBuf,
    /// Directory for libcontainer's state, shared by the containers of a pod.
    pub state_root: PathBuf,
    /// Name of the container's cgroup.
    pub cgroup: String,
}

impl Bundle {
    /// The mount point of the root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// Mounts, creates and starts the container, and returns when its program has been executed. `shm` is the
    /// directory to show as `/dev/shm`. On an error nothing is left but the directory.
    pub fn start(&self, spec: &ContainerSpec, shm: Option<&Path>, stdio: Stdio) -> Result<Started, Error> {
        let result = self.try_start(spec, shm, stdio);
        if result.is_err() {
            // The error at hand is the one to tell; what cannot be undone now is done by `delete`.
            let _ = Cgroup::new(&self.cgroup).and_then(|cgroup| cgroup.kill());
            let _ = self.delete();
        }
        result
    }

    fn try_start(&self, spec: &ContainerSpec, shm: Option<&Path>, stdio: Stdio) -> Result<Started, Error> {
        if spec.args.is_empty() {
            return Err(Error::Start("no command specified".into()));
        }
        make_dir(&self.dir)?;
        make_dir(&self.state_root)?;
        let cgroup = Cgroup::new(&self.cgroup)?;
        cgroup.create()?;
        cgroup.limit(&spec.resources)?;
        if !spec.security.privileged {
            cgroup.restrict_devices()?;
        }
        let console = self.console(&stdio, "init")?;
        let pid = launcher::run(&cgroup, || {
            overlay::mount_root(&spec.layers, &spec.writable, &self.rootfs())?;
            let user = self.prepare_root(spec)?;
            let terminal = console.is_some();
            let places = oci::Places { rootfs: &self.rootfs(), cgroup: &cgroup, shm, terminal };
            self.write("config.json", &oci::runtime_spec(spec, &user, &places)?)?;
            Launch::new(self, spec)?.start(spec, stdio, console.as_ref())
        })?;
        Ok(Started { pid, terminal: console.map(|console| console.receive()).transpose()? })
    }

    /// Listens for the terminal of a process, if it is to have one. Done here and not in the launcher, because the
    /// caller takes the terminal.
    fn console(&self, stdio: &Stdio, tag: &str) -> Result<Option<Console>, Error> {
        match stdio {
            Stdio::Terminal => Console::listen(&self.dir, &format!("console-{tag}.sock")).map(Some),
            Stdio::Pipes { .. } => Ok(None),
        }
    }

    /// Finds the user and makes the working directory, in the mounted root file system.
    fn prepare_root(&self, spec: &ContainerSpec) -> Result<users::User, Error> {
        let path = self.rootfs();
        let root = Root::open(&path).map_err(|source| Error::Io { what: "open", path, source })?;
        let wanted =
            users::Wanted { user: &spec.user, group: spec.run_as_group, additional: &spec.additional_gids };
        let user = users::resolve(&root, &wanted)?;
        if spec.must_not_be_root && user.uid == 0 {
            return Err(Error::WouldBeRoot);
        }
        if !spec.cwd.is_empty() {
            let cwd = Path::new(&spec.cwd);
            if !cwd.is_absolute() {
                return Err(Error::Invalid(format!("working directory {:?} is not absolute", spec.cwd)));
            }
            root.create_dir_all(cwd).map_err(|source| Error::Io {
                what: "create the working directory",
                path: cwd.into(),
                source,
            })?;
        }
        Ok(user)
    }

    /// Runs a command in the running container, as its user and with its environment and restrictions. Returns when
    /// the command's program has been executed. `tag` is unique among the commands that run.
    pub fn exec(
        &self,
        spec: &ContainerSpec,
        command: &[String],
        tag: &str,
        stdio: Stdio,
    ) -> Result<Started, Error> {
        if command.is_empty() {
            return Err(Error::Start("no command specified".into()));
        }
        let path = self.dir.join("config.json");
        let failed = |source| Error::Io { what: "read", path: path.clone(), source };
        let config: Value =
            serde_json::from_slice(&fs::read(&path).map_err(failed)?).map_err(|e| failed(e.into()))?;
        let mut process = config["process"].clone();
        process["args"] = command.into();
        process["terminal"] = matches!(stdio, Stdio::Terminal).into();
        let name = format!("exec-{tag}.json");
        self.write(&name, &process)?;
        let process = self.dir.join(&name);
        let console = self.console(&stdio, tag)?;
        let result = launcher::run(&Cgroup::new(&self.cgroup)?, || {
            Launch::new(self, spec)?.enter(&process, stdio, console.as_ref())
        });
        let _ = fs::remove_file(&process);
        Ok(Started { pid: result?, terminal: console.map(|console| console.receive()).transpose()? })
    }

    /// Removes what the run left, after its last process has been reaped: the mount, the cgroup, the directories.
    pub fn delete(&self) -> Result<(), Error> {
        overlay::unmount_root(&self.rootfs())?;
        let gone = |result: std::io::Result<()>, path: &Path| match result {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(Error::Io { what: "remove", path: path.to_owned(), source: e })
            }
            _ => Ok(()),
        };
        // Never recursive through a mount point: what was not unmounted above fails here.
        gone(fs::remove_dir(self.rootfs()), &self.rootfs())?;
        let state = self.state_root.join(&self.id);
        gone(fs::remove_dir_all(&state), &state)?;
        gone(fs::remove_dir_all(&self.dir), &self.dir)?;
        Ok(Cgroup::new(&self.cgroup)?.remove()?)
    }

    fn write(&self, name: &str, value: &Value) -> Result<(), Error> {
        let path = self.dir.join(name);
        fs::write(&path, value.to_string()).map_err(|source| Error::Io { what: "write", path, source })
    }
}

fn make_dir(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|source| Error::Io { what: "create", path: path.to_owned(), source })
}

fn capabilities(spec: &ContainerSpec) -> Result<Capabilities, Error> {
    if spec.security.privileged {
        return Ok(Capabilities::ALL);
    }
    Capabilities::of(&spec.security.add_capabilities, &spec.security.drop_capabilities)
}

/// Lowering the value needs a capability that not every machine gives; the container runs all the same.
fn adjust_oom_score(pid: i32, adjustment: i32) {
    if let Err(error) = fs::write(format!("/proc/{pid}/oom_score_adj"), adjustment.to_string()) {
        tracing::warn!(adjustment, %error, "cannot set oom_score_adj; going on without");
    }
}

/// What is alive in the launcher between asking libcontainer for a process and the process executing its program.
struct Launch<'a> {
    bundle: &'a Bundle,
    steps: LastSteps,
    report: File,
    /// Our copy of the end that the process writes to; closed as soon as the process has its own.
    report_writer: Option<OwnedFd>,
}

impl<'a> Launch<'a> {
    fn new(bundle: &'a Bundle, spec: &ContainerSpec) -> Result<Self, Error> {
        let capabilities = capabilities(spec)?;
        let confined = !spec.security.privileged && !spec.security.seccomp_unconfined;
        let filter = confined.then(|| seccomp::compile(capabilities)).transpose()?.map(Rc::from);
        let (reader, writer) = std::io::pipe().map_err(|e| Error::Create(format!("pipe: {e}")))?;
        let writer = OwnedFd::from(writer);
        let steps = LastSteps { filter, capabilities, report: writer.as_raw_fd() };
        Ok(Self { bundle, steps, report: File::from(OwnedFd::from(reader)), report_writer: Some(writer) })
    }

    fn builder(&self, stdio: Stdio, console: Option<&Console>) -> Result<ContainerBuilder, Error> {
        let builder = ContainerBuilder::new(self.bundle.id.clone(), SyscallType::Linux)
            .with_executor(self.steps.clone())
            .with_root_path(&self.bundle.state_root)
            .map_err(|e| Error::Create(chain(&e)))?;
        Ok(match stdio {
            Stdio::Pipes { stdin, stdout, stderr } => {
                builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr)
            }
            Stdio::Terminal => builder.with_console_socket(console.map(Console::path)),
        })
    }

    /// Creates the container and starts its program.
    fn start(mut self, spec: &ContainerSpec, stdio: Stdio, console: Option<&Console>) -> Result<i32, Error> {
        let builder = self.builder(stdio, console)?.as_init(&self.bundle.dir);
        let built = builder.with_systemd(false).with_detach(true).as_sibling(true).build();
        let mut container = self.settle(built)?;
        let pid = container.pid().ok_or_else(|| Error::Create("no process".into()))?.as_raw();
        if let Some(adjustment) = spec.resources.oom_score_adj {
            adjust_oom_score(pid, adjustment);
        }
        let started = container.start();
        self.settle(started)?;
        self.wait_for_exec()?;
        Ok(pid)
    }

    /// Starts the process that a file describes in the running container.
    fn enter(mut self, process: &Path, stdio: Stdio, console: Option<&Console>) -> Result<i32, Error> {
        let builder = self.builder(stdio, console)?.as_tenant();
        let built = builder.with_detach(true).as_sibling(true).with_process(Some(process)).build();
        let pid = self.settle(built)?;
        self.wait_for_exec()?;
        Ok(pid.as_raw())
    }

    /// Turns libcontainer's result into ours. What the process itself reported is the better message.
    fn settle<T>(&mut self, result: Result<T, libcontainer::error::LibcontainerError>) -> Result<T, Error> {
        self.report_writer = None;
        match result {
            Ok(value) => Ok(value),
            Err(error) => match self.reported(Duration::ZERO) {
                Some(message) => Err(Error::Start(message)),
                None => Err(Error::Create(chain(&error))),
            },
        }
    }

    fn wait_for_exec(&mut self) -> Result<(), Error> {
        match self.reported(EXEC_DEADLINE) {
            Some(message) => Err(Error::Start(message)),
            None => Ok(()),
        }
    }

    /// What the process wrote before it failed; `None` when it executed its program.
    fn reported(&mut self, deadline: Duration) -> Option<String> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut waiting = [PollFd::new(self.report.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(deadline).unwrap_or(PollTimeout::MAX);
        match poll(&mut waiting, timeout) {
            Ok(0) if deadline.is_zero() => return None,
            Ok(0) => return Some("the program was not executed in time".into()),
            Ok(_) => {}
            Err(errno) => return Some(format!("poll: {errno}")),
        }
        // One read suffices: a message is shorter than what a pipe takes in one piece.
        let mut message = [0_u8; 4096];
        match self.report.read(&mut message) {
            Ok(0) | Err(_) => None,
            Ok(length) => Some(String::from_utf8_lossy(&message[..length]).into_owned()),
        }
    }
}
