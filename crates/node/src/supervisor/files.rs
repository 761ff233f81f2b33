//! The supervisor's files in the pod's directory; see [`super`] for the list.

use super::proto::{Instance, PodNetwork};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What the pod is.
pub const SANDBOX: &str = "sandbox.json";
/// Process id and start time (clock ticks since boot) of the supervisor.
pub const PID: &str = "supervisor.pid";
/// Where it listens.
pub const SOCKET: &str = "supervisor.sock";
/// Its own messages.
pub const LOG: &str = "supervisor.log";
/// What happened to the containers.
pub const STATE: &str = "state.json";
/// What a virtual machine wrote to its console; the part before it has `.1` behind its name.
pub const CONSOLE_LOG: &str = "console.log";
/// Directory of what a running virtual machine needs; also the name of its cgroup below the pod's.
pub const MACHINE: &str = "vm";
/// Disk with the machine's writable layers, in [`MACHINE`].
pub const SCRATCH: &str = "scratch.img";
/// A machine's copy of the disk that it starts from, in [`MACHINE`].
pub const DISK: &str = "disk.qcow2";
/// Disk that tells such a machine who it is.
pub const SEED: &str = "seed.iso";
/// Socket of the console, in [`MACHINE`].
pub const CONSOLE_SOCKET: &str = "console.sock";
/// Directory of the containers' bundles.
pub(crate) const RUNS: &str = "c";
/// Directory of libcontainer's state.
pub(crate) const RUNTIME: &str = "run";
/// Mount points of the cgroup hierarchies, in the supervisor's own mount namespace.
pub(crate) const HIERARCHIES: &str = "cgroup";
/// Mount point of the pod's shared memory.
pub(crate) const SHM: &str = "shm";

/// Content of [`STATE`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The network that was configured, if it was.
    pub network: Option<PodNetwork>,
    /// Newest instance of every container ever started.
    pub containers: BTreeMap<String, Instance>,
}

impl State {
    /// Reads the state that a supervisor left in the pod's directory; empty when it never started anything. Instances
    /// that it shows as running were lost together with the supervisor, if that is gone.
    pub fn load(dir: &Path) -> io::Result<Self> {
        match fs::read(dir.join(STATE)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(e),
        }
    }
}

/// The supervisor's process id, if the one of `dir` is running. Told by its lock on the pid file, which the kernel
/// releases with the process; the id alone could have been reused.
pub fn running_pid(dir: &Path) -> Option<i32> {
    let file = File::open(dir.join(PID)).ok()?;
    match file.try_lock_shared() {
        Err(fs::TryLockError::WouldBlock) => {
            let text = io::read_to_string(file).ok()?;
            text.split_whitespace().next()?.parse().ok()
        }
        _ => None,
    }
}

/// Reads what [`write_json`] has written.
///
/// # Errors
/// For people, with the file's path.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let read = fs::read(path).map_err(|e| e.to_string());
    let value = read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|e| e.to_string()));
    value.map_err(|e| format!("{}: {e}", path.display()))
}

/// Writes a file of mode 0600 so that after a crash either the old or the new content is there.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    // No fsync: the file must survive the death of processes, which the page cache does. After a power cut no
    // process of the pod is left either, and the pod starts over.
    fs::rename(&new, path)
}

pub(crate) fn open_log(dir: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(dir.join(LOG))
}
