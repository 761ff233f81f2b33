//! The state directory: where everything of one cloud is, and who runs it.
//!
//! Whoever runs the cloud holds an exclusive lock on `DIR/lock` and has its process id in it. The lock dies with the
//! process, so nobody has to guess whether a pid is stale.

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File, OpenOptions};
use std::io::Read;
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
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(pid.trim().parse().ok()),
            Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
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
