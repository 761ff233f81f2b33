//! The life of a supervisor process: fork, session, namespaces, serve, clean up.
//!
//! The spawner passes a pipe as standard output. `ready` is written to it when the socket listens, or one line that
//! says what failed; nobody polls. Until then the process is single-threaded on purpose, and it stays so: namespaces
//! and forks are per thread.

use super::backend::Backend;
use super::disk::DiskMachine;
use super::guest::Machine;
use super::pod::Pod;
use super::proto::{SandboxSpec, VmMemory};
use super::reaper::Reaper;
use super::record::Record;
use super::{files, server, sockets};
use cumulet_container::cgroup::Cgroup;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, fork, setgroups, sethostname, setsid};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

type Failure = Box<dyn std::error::Error>;

/// Runs the supervisor of the pod in `dir`: the whole of `cumulet supervise DIR`. The caller must not have started any
/// thread. Returns at once in the process that was called; the supervisor goes on in a child of its own session.
pub fn run(dir: &Path) -> ExitCode {
    // SAFETY: the caller guarantees a single thread, so the child may do anything. JUSTIFICATION: a daemon must fork
    // to be nobody's child, and fork has no safe form.
    match unsafe { fork() } {
        Err(errno) => {
            let _ = writeln!(io::stdout(), "fork: {errno}");
            ExitCode::FAILURE
        }
        Ok(ForkResult::Parent { .. }) => ExitCode::SUCCESS,
        Ok(ForkResult::Child) => match supervise(dir) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!(%error, "supervisor failed");
                let _ = writeln!(io::stdout(), "{error}");
                ExitCode::FAILURE
            }
        },
    }
}

fn supervise(dir: &Path) -> Result<(), Failure> {
    detach()?;
    let mut dir = fs::canonicalize(dir)?;
    let _lock = lock(&dir)?;
    let mut sandbox: SandboxSpec = files::read_json(&dir.join(files::SANDBOX))?;
    let memory = template_memory(&sandbox)?;
    let held = File::open(&dir)?;
    if sandbox.standby {
        // The directory gets another name when a pod takes the standby.
        dir = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    }
    // A virtual machine needs neither namespaces of its own nor libcontainer.
    let shm = match &sandbox.vm {
        Some(_) => None,
        None => {
            enter_namespaces(&sandbox)?;
            cumulet_container::cgroup::conceal(&dir.join(files::HIERARCHIES))?;
            Some(mount_shm(&dir, &sandbox)?)
        }
    };
    enter_cgroup(&sandbox)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let served = local.block_on(&runtime, async {
        let listener = sockets::bind(&dir.join(files::SOCKET))?;
        let vm = sandbox.vm.take();
        let record = Record::new(dir.clone(), sandbox);
        let backend = match (vm, shm) {
            (Some(mut vm), _) if vm.disk.is_some() => match vm.disk.take() {
                Some(disk) => Backend::disk(record.clone(), DiskMachine::new(record, *vm, disk)),
                None => return Err(io::Error::other("the machine has no disk")),
            },
            (Some(vm), _) => Backend::machine(record.clone(), Machine::new(record, *vm, memory)),
            (None, Some(shm)) => Backend::containers(record.clone(), Pod::new(record, shm, Reaper::start()?)),
            (None, None) => return Err(io::Error::other("the pod has no shared memory")),
        };
        say_ready()?;
        server::serve(listener, backend).await
    });
    let _ = fs::remove_file(dir.join(files::SOCKET));
    let _ = fs::remove_file(dir.join(files::PID));
    Ok(served?)
}

/// The memory of a template, which is the standard input of this process.
fn template_memory(sandbox: &SandboxSpec) -> io::Result<Option<File>> {
    let memory = match sandbox.vm.as_ref().map(|vm| &vm.memory) {
        None | Some(VmMemory::Own) => return Ok(None),
        Some(VmMemory::Template | VmMemory::Clone { .. }) => io::stdin().as_fd().try_clone_to_owned()?,
    };
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    Ok(Some(File::from(memory)))
}

/// Cuts the ties to whoever started this process.
fn detach() -> Result<(), Failure> {
    setsid()?;
    std::env::set_current_dir("/")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    setgroups(&[])?;
    // SAFETY: nothing in this process owns a descriptor above 2 yet. JUSTIFICATION: inherited descriptors are unknown
    // to Rust, and close_range(2) is the only way to close them all.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    for ignored in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE] {
        // SAFETY: SigIgn installs no handler. JUSTIFICATION: there is no safe way to ignore a signal.
        unsafe { signal(ignored, SigHandler::SigIgn)? };
    }
    Ok(())
}

/// Takes the pid file, which stays locked as long as this process lives.
fn lock(dir: &Path) -> Result<File, Failure> {
    let path = dir.join(files::PID);
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.try_lock().map_err(|_| "a supervisor of this pod runs already")?;
    file.set_len(0)?;
    file.rewind()?;
    let start = start_time()?;
    writeln!(file, "{} {start}", std::process::id())?;
    Ok(file)
}

/// Start of this process in clock ticks since boot, field 22 of `/proc/self/stat`.
fn start_time() -> Result<u64, Failure> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').ok_or("stat")?.1;
    Ok(after_name.split_whitespace().nth(19).ok_or("stat")?.parse()?)
}

/// Moves this process into a group below the pod's, so that its memory counts as the pod's and a service manager that
/// clears the main process's group does not find it.
fn enter_cgroup(sandbox: &SandboxSpec) -> Result<(), Failure> {
    let own = Cgroup::new(&sandbox.cgroup)?.child("supervisor")?;
    own.create()?;
    Ok(own.enter()?)
}

fn enter_namespaces(sandbox: &SandboxSpec) -> Result<(), Failure> {
    let mut flags = CloneFlags::CLONE_NEWNS;
    flags.set(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS, !sandbox.host_network);
    flags.set(CloneFlags::CLONE_NEWIPC, !sandbox.host_ipc);
    unshare(flags).map_err(|e| format!("cannot make namespaces: {e}"))?;
    // Mounts of the host come in, own mounts do not go out.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(|e| format!("cannot detach from the host's mounts: {e}"))?;
    if !sandbox.host_network {
        cumulet_net::pod_side::configure_loopback()?;
        sethostname(&sandbox.hostname).map_err(|e| format!("cannot set the host name: {e}"))?;
    }
    for (name, value) in &sandbox.sysctls {
        set_sysctl(name, value)?;
    }
    Ok(())
}

fn set_sysctl(name: &str, value: &str) -> Result<(), Failure> {
    // A slash separates parts that contain dots (`net/ipv4/conf/eth0.1/forwarding`).
    let path = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(format!("sysctl {name:?} is not a name").into());
    }
    // The files show the namespaces of the process that opens them.
    let written = OpenOptions::new()
        .write(true)
        .open(Path::new("/proc/sys").join(path))
        .and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|e| format!("cannot set sysctl {name}: {e}").into())
}

/// The pod's shared memory: one tmpfs for all its containers.
fn mount_shm(dir: &Path, sandbox: &SandboxSpec) -> Result<PathBuf, Failure> {
    if sandbox.host_ipc {
        return Ok("/dev/shm".into());
    }
    let shm = dir.join(files::SHM);
    fs::create_dir_all(&shm)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("shm"), &shm, Some("tmpfs"), flags, Some("mode=1777,size=65536k"))
        .map_err(|e| format!("cannot mount shared memory: {e}"))?;
    Ok(shm)
}

fn say_ready() -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(b"ready\n")?;
    out.flush()?;
    // Closes the spawner's pipe.
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(null)?;
    Ok(())
}
