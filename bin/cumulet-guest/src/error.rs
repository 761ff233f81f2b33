//! What can go wrong with a request, by who is to blame.

use cumulet_guest_proto::message::{Reply, reason};
use std::io;

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The order names something that is not there or makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The program cannot be executed.
    #[error("{0}")]
    Start(String),
    /// The order contradicts what is.
    #[error("{0}")]
    Conflict(String),
    /// No such running container.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// It did not happen in time.
    #[error("{0}")]
    Timeout(String),
    /// The kernel refused.
    #[error("cannot {what}")]
    System {
        /// What was tried, on what.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// The word for machines.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => reason::CREATE_ERROR,
            Self::Start(_) => reason::START_ERROR,
            Self::Conflict(_) => reason::CONFLICT,
            Self::NotRunning(_) => reason::NOT_RUNNING,
            Self::Timeout(_) => reason::TIMEOUT,
            Self::System { .. } => reason::SYSTEM,
        }
    }

    /// The whole chain, for people.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::System { source, .. } => format!("{self}: {}", plain(source)),
            _ => self.to_string(),
        }
    }

    pub(crate) fn reply(&self) -> Reply {
        Reply::Error { reason: self.reason().to_owned(), message: self.text() }
    }
}

/// The error without Rust's "(os error N)".
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_ascii_lowercase()
}

/// Says what was tried when the kernel refuses.
pub(crate) trait Doing<T> {
    /// `what` completes the sentence "cannot …".
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|error| Error::System { what: what(), source: error.into() })
    }
}
