//! What can go wrong, by what the caller can do about it.

use std::io;
use std::path::PathBuf;

/// Everything that this crate fails with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory could not be read, written or made.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A program that this machine must have is not there or cannot be started.
    #[error("cannot start {program}: install the package {package}")]
    MissingProgram {
        /// The program.
        program: String,
        /// The Debian package that has it.
        package: &'static str,
        /// Why it did not start.
        source: io::Error,
    },
    /// A program ran and failed.
    #[error("{program} failed: {message}")]
    Program {
        /// The program.
        program: String,
        /// The end of what it said.
        message: String,
    },
    /// A kernel package, tree or module is not what it must be.
    #[error("guest kernel {}: {reason}", path.display())]
    Kernel {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An image could not be made from its layers.
    #[error("root filesystem image {digest}: {reason}")]
    Image {
        /// Of which image.
        digest: String,
        /// What is wrong.
        reason: String,
    },
    /// The order for a machine contradicts itself or exceeds what QEMU can do.
    #[error("machine: {0}")]
    Spec(String),
    /// QEMU ended before it answered.
    #[error("QEMU ended at its start: {0}")]
    Start(String),
    /// QEMU refused a command.
    #[error("QEMU refused {command}: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's words.
        reason: String,
    },
    /// The connection to QEMU is gone, or what came through it was no QMP.
    #[error("connection to QEMU: {0}")]
    Connection(String),
    /// The machine is in a state in which that cannot be done.
    #[error("cannot {action} a machine that is {state}")]
    State {
        /// What was asked.
        action: &'static str,
        /// The state's name.
        state: &'static str,
    },
    /// It took longer than the caller allows.
    #[error("{what} took longer than {limit_ms} ms")]
    Deadline {
        /// What was waited for.
        what: &'static str,
        /// The limit in milliseconds.
        limit_ms: u128,
    },
    /// A system call failed.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Wraps an I/O error of a file.
pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { action, path, source }
}

/// Wraps an error of a system call that has no path.
pub(crate) fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::System { action, source: source.into() }
}
