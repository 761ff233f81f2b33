//! The state directory: where everything of one cloud is, and who runs it.
//!
//! Whoever runs the cloud holds an exclusive lock on `DIR/lock` and has its process id in it. The lock dies with the
//! process, so nobody has to guess whether a pid is stale.

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A state directory.
#[derive(Clone, Debug)]
pub struct StateDir {
    dir: PathBuf,
}

/// The right to run the cloud of a state directory; released when dropped.
#[derive(Debug)]
pub struct RunLock {
    _file: Flock<File>,
}

impl StateDir {
    /// The state directory at `dir`, which need not exist. The path is made absolute, so that two spellings of one
    /// directory are one cloud.
    pub fn new(dir: &Path) -> anyhow::Result<Self> {
        let dir = match fs::canonicalize(dir) {
            Ok(found) => found,
            Err(_) => {
                std::path::absolute(dir).with_context(|| format!("{} is no usable path", dir.display()))?
            }
        };
        Ok(Self { dir })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The kubeconfig of its administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// The log of a detached cloud.
    pub fn log(&self) -> PathBuf {
        self.dir.join("cumulet.log")
    }

    /// Where images are kept.
    pub fn images(&self) -> PathBuf {
        self.dir.join("images")
    }

    /// Where the disks of virtual machines that are made of images lie.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// Where templates of virtual machines lie.
    pub fn snapshots(&self) -> PathBuf {
        self.dir.join("snapshots")
    }

    /// Where the address of the registry is written.
    pub fn registry(&self) -> PathBuf {
        self.dir.join("registry")
    }

    /// The file with mirrors and insecure registries; there need not be one.
    pub fn registries(&self) -> PathBuf {
        self.dir.join("registries.yaml")
    }

    /// The address of the registry, if the cloud ever ran.
    pub fn registry_address(&self) -> Option<String> {
        fs::read_to_string(self.registry()).ok().map(|text| text.trim().to_owned())
    }

    /// Creates the directory, for its owner only.
    pub fn create(&self) -> anyhow::Result<()> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.with_context(|| format!("cannot create the state directory {}", self.dir.display()))?;
        let mode = fs::metadata(&self.dir)?.permissions().mode() & 0o777;
        if mode & 0o022 != 0 {
            bail!(
                "{} can be written by others (mode {mode:o}): run `chmod 700 {}` or choose another --state-dir",
                self.dir.display(),
                self.dir.display()
            );
        }
        Ok(())
    }

    /// Takes the right to run this cloud, or says who has it.
    pub fn lock(&self) -> anyhow::Result<RunLock> {
        let path = self.dir.join("lock");
        let file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                use std::io::{Seek, Write};
                file.set_len(0)?;
                file.rewind()?;
                write!(file, "{}", std::process::id())?;
                Ok(RunLock { _file: file })
            }
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                if let Ok(dying) = pid.trim().parse()
                    && is_dying(dying)
                    && wait_for_end(dying, DYING_ENDS_WITHIN_MS)?
                {
                    return self.lock();
                }
                bail!(
                    "a cloud already runs on {} (process {}): use it, stop it with `cumulet down`, or give another \
                     --state-dir",
                    self.dir.display(),
                    pid.trim()
                )
            }
            Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// The process that runs this cloud, if one does.
    pub fn running(&self) -> anyhow::Result<Option<i32>> {
        let path = self.dir.join("lock");
        let Ok(mut file) = OpenOptions::new().read(true).write(true).open(&path) else { return Ok(None) };
        let mut pid = String::new();
        file.read_to_string(&mut pid).with_context(|| format!("cannot read {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_free) => Ok(None),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let holder = pid.trim().parse().ok();
                match holder {
                    Some(dying) if is_dying(dying) && wait_for_end(dying, DYING_ENDS_WITHIN_MS)? => Ok(None),
                    holder => Ok(holder),
                }
            }
            Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

/// A killed process holds its lock until its last thread is gone; that takes no longer than this.
const DYING_ENDS_WITHIN_MS: u16 = 10_000;

/// True when the process is gone, or its first thread is and the others are about to be.
fn is_dying(pid: i32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X'])),
        Err(_) => true,
    }
}

/// Waits until a process has ended, with all its threads. False when it has not within the time.
///
/// # Errors
/// The kernel's refusal to watch the process.
pub fn wait_for_end(pid: i32, within_ms: u16) -> anyhow::Result<bool> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or an error.
    // JUSTIFICATION: neither the standard library nor nix offers the call.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let Some(fd) = i32::try_from(fd).ok().filter(|fd| *fd >= 0) else {
        return match std::io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(true),
            error => Err(error).with_context(|| format!("cannot watch process {pid}")),
        };
    };
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let handle = unsafe { OwnedFd::from_raw_fd(fd) };
    // A pidfd becomes readable when the process has ended.
    let mut fds = [PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::from(within_ms)).context("poll")? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cloud_per_directory() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::new(temp.path()).unwrap();
        assert_eq!(state.running().unwrap(), None);
        let lock = state.lock().unwrap();
        let refused = state.lock().unwrap_err().to_string();
        assert!(
            refused.contains("already runs") && refused.contains(&std::process::id().to_string()),
            "{refused}"
        );
        assert_eq!(state.running().unwrap(), Some(std::process::id() as i32));
        drop(lock);
        assert_eq!(state.running().unwrap(), None);
        state.lock().unwrap();
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let refused = StateDir::new(temp.path()).unwrap().create().unwrap_err().to_string();
        assert!(refused.contains("chmod 700"), "{refused}");
    }
}
