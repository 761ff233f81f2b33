//! Where a node keeps the files of its pods.
//!
//! ```text
//!   pods/<uid>/            the supervisor's files (see crate::supervisor)
//!              pod.json    namespace and name, for clean-up when the API object is gone
//!              etc/        hosts, hostname, resolv.conf
//!              volumes/    one directory per volume
//!              rw/         writable layers, <container>-<attempt>
//!   logs/<namespace>_<name>_<uid>/<container>/<attempt>.log
//! ```
//!
//! Uids and names come from API objects: both are checked to be single path components before they are joined.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Directories of all pods of a node.
#[derive(Clone, Debug)]
pub(crate) struct NodeDirs {
    state_dir: PathBuf,
}

/// Directories of one pod.
#[derive(Clone, Debug)]
pub(crate) struct PodDirs {
    /// `pods/<uid>`.
    pub(crate) root: PathBuf,
    /// `logs/<namespace>_<name>_<uid>`.
    pub(crate) logs: PathBuf,
}

impl NodeDirs {
    /// Directories below `state_dir`.
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned() }
    }

    /// `pods`.
    pub(crate) fn pods(&self) -> PathBuf {
        self.state_dir.join("pods")
    }

    /// `logs`.
    pub(crate) fn logs(&self) -> PathBuf {
        self.state_dir.join("logs")
    }

    /// Makes the directories that all pods share.
    ///
    /// # Errors
    /// Those of making a directory.
    pub(crate) fn create(&self) -> io::Result<()> {
        private_dir(&self.pods())?;
        private_dir(&self.logs())
    }

    /// The directories of a pod.
    ///
    /// # Errors
    /// When one of the names is not a single path component.
    pub(crate) fn pod(&self, namespace: &str, name: &str, uid: &str) -> io::Result<PodDirs> {
        for part in [namespace, name, uid] {
            component(part)?;
        }
        Ok(PodDirs {
            root: self.pods().join(uid),
            logs: self.logs().join(format!("{namespace}_{name}_{uid}")),
        })
    }
}

impl PodDirs {
    /// `etc`.
    pub(crate) fn etc(&self) -> PathBuf {
        self.root.join("etc")
    }

    /// `volumes`.
    pub(crate) fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// The writable layer of one instance of a container.
    pub(crate) fn writable(&self, container: &str, attempt: u32) -> PathBuf {
        self.root.join("rw").join(format!("{container}-{attempt}"))
    }

    /// Directory of the log files of a container.
    pub(crate) fn container_logs(&self, container: &str) -> PathBuf {
        self.logs.join(container)
    }

    /// Makes the pod's directories.
    ///
    /// # Errors
    /// Those of making a directory.
    pub(crate) fn create(&self) -> io::Result<()> {
        // The writable layers are roots of file systems of other users, so the way to them must be passable; the
        // directory above is not.
        for dir in [&self.root, &self.logs, &self.etc(), &self.volumes(), &self.root.join("rw")] {
            private_dir(dir)?;
        }
        Ok(())
    }
}

/// Refuses what is not the name of one directory entry.
///
/// # Errors
/// `InvalidInput` naming the text.
pub(crate) fn component(text: &str) -> io::Result<()> {
    let bad =
        text.is_empty() || text == "." || text == ".." || text.contains(['/', '\0']) || text.len() > 255;
    if bad {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{text:?} is not a file name")));
    }
    Ok(())
}

/// Makes a directory of mode 0700, parents included; one that exists is fine.
///
/// # Errors
/// Those of making a directory.
pub(crate) fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Removes a directory and all below it; one that does not exist is fine.
///
/// # Errors
/// Those of removing.
pub(crate) fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_confined() {
        for bad in ["", ".", "..", "a/b", "/", "a\0"] {
            assert!(component(bad).is_err(), "{bad:?}");
        }
        assert!(NodeDirs::new(Path::new("/s")).pod("default", "..", "u").is_err());
        let dirs = NodeDirs::new(Path::new("/s")).pod("default", "web", "u").unwrap();
        assert_eq!(dirs.logs, Path::new("/s/logs/default_web_u"));
    }
}
