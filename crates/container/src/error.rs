//! Errors of this crate.

use crate::cgroup::CgroupError;
use std::io;
use std::path::PathBuf;

/// Why a container could not be made, started or entered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The order cannot be carried out as it stands: an unknown user, a missing mount source, a bad name.
    #[error("{0}")]
    Invalid(String),
    /// The container must not run as root and would.
    #[error("container has runAsNonRoot and image will run as root")]
    WouldBeRoot,
    /// A file, directory or mount.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Control groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The container could not be created; the text is the runtime's.
    #[error("failed to create container: {0}")]
    Create(String),
    /// The program could not be started; the text says what was tried.
    #[error("failed to start container: {0}")]
    Start(String),
}

impl Error {
    /// The word that Kubernetes uses for it in `state.waiting.reason` or `state.terminated.reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) | Self::WouldBeRoot => "CreateContainerConfigError",
            Self::Io { .. } | Self::Cgroup(_) | Self::Create(_) => "CreateContainerError",
            Self::Start(_) => "StartError",
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
