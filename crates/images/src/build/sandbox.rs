//! Where programs of a build run: the contract between the composer and whoever can start containers.
//!
//! The composer decides what runs on which layers and what becomes of the result; it mounts nothing and forks nothing.
//! The implementation keeps everything that it mounts in a mount namespace that ends with its process.

use std::path::PathBuf;

/// One program to run on a stack of layers.
pub struct SandboxJob<'a> {
    /// Unpacked layers, lowest first. Never written.
    pub layers: Vec<PathBuf>,
    /// An existing directory on the store's file system, for the writable layer. What the program changes must be in
    /// its `upper` directory when it has ended, in overlayfs' form and with redirects off.
    pub writable: PathBuf,
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// Working directory; made when it is missing.
    pub cwd: String,
    /// Whether the program sees the machine's network. Otherwise it sees a loopback interface at most.
    pub network: bool,
    /// Files and directories of the machine that are shown read-only: path here, path in the sandbox.
    pub shown: Vec<(PathBuf, String)>,
    /// Takes what the program writes, line by line.
    pub output: &'a (dyn Fn(&str) + Sync),
}

/// How the program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit code; 128 and the signal's number when a signal ended it.
    pub exit_code: i32,
}

/// Why a program could not be run at all. Worded for people.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct SandboxError(pub String);

/// Runs programs isolated from the machine: own mounts, processes, host name and, unless asked otherwise, network.
pub trait BuildSandbox: Sync {
    /// Runs a program to its end. Nothing of it goes on running afterwards, and nothing stays mounted.
    ///
    /// # Errors
    /// When the program cannot be started. One that fails is an [`Outcome`].
    fn run(&self, job: &SandboxJob<'_>) -> Result<Outcome, SandboxError>;
}
