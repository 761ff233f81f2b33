//! What can go wrong between this machine and a registry. Messages name the image and the document or blob, carry the
//! registry's own words, and say what to do. They never carry credentials.

use crate::ImageError;
use http::StatusCode;
use std::path::PathBuf;
use std::time::Duration;

/// Why a pull or push failed. Nothing of a failed pull has a name afterwards; what was downloaded is used next time.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry wants credentials, or other ones.
    #[error(
        "{what}: unauthorized: {registry} says: {words}; check the credentials and that they may do this"
    )]
    Unauthorized {
        /// What was asked for.
        what: String,
        /// Host and perhaps port of the registry.
        registry: String,
        /// What the registry says.
        words: String,
    },
    /// The registry does not have it.
    #[error("{what}: not found: {registry} says: {words}; check the name and the tag")]
    NotFound {
        /// What was asked for.
        what: String,
        /// Host and perhaps port of the registry.
        registry: String,
        /// What the registry says.
        words: String,
    },
    /// The registry refuses for another reason, which will not pass.
    #[error("{what}: {registry} refuses: {words}")]
    Refused {
        /// What was asked for.
        what: String,
        /// Host and perhaps port of the registry.
        registry: String,
        /// What the registry says, or which rule it breaks.
        words: String,
    },
    /// The registry cannot be reached or does not work, also after some attempts.
    #[error("{what}: {registry} is unavailable: {words}; try again later")]
    Unavailable {
        /// What was asked for.
        what: String,
        /// Host and perhaps port of the registry.
        registry: String,
        /// What the registry or the connection says.
        words: String,
    },
    /// What the registry sends is not what it is said to be, or is more than is allowed.
    #[error("{what}: {registry} sends bad content: {reason}")]
    Content {
        /// What was asked for.
        what: String,
        /// Host and perhaps port of the registry.
        registry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file with mirrors and insecure registries has a mistake.
    #[error("{}{}: {message}", path.display(), crate::error::place(*at))]
    Config {
        /// The file.
        path: PathBuf,
        /// Line and column, from 1.
        at: Option<(u64, u64)>,
        /// What is wrong.
        message: String,
    },
    /// Credentials cannot be read or asked for.
    #[error("credentials {origin}: {reason}")]
    Credentials {
        /// Where they are from.
        origin: String,
        /// What is wrong. Says nothing of what is in them.
        reason: String,
    },
    /// The store, or the image itself.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Why one request failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The connection failed or nothing came: another attempt may succeed.
    Connection(String),
    /// The other side is not what it has to be, such as a wrong certificate: another attempt will not help.
    Peer(String),
    /// The registry answered, but not with what was asked for.
    Status { status: StatusCode, words: String, retry_after: Option<Duration> },
    /// Bad content.
    Content(String),
    /// The store, or the image itself.
    Image(ImageError),
}

impl Failure {
    /// Whether the same request may succeed later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Connection(_) => true,
            Self::Status { status, .. } => {
                matches!(status.as_u16(), 408 | 425 | 429)
                    || (status.is_server_error() && !matches!(status.as_u16(), 501 | 507))
            }
            Self::Peer(_) | Self::Content(_) | Self::Image(_) => false,
        }
    }

    /// Whether the registry wants other credentials.
    pub(super) fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Status { status, .. } if matches!(status.as_u16(), 401 | 403))
    }

    /// The error for people: `what` was asked of `registry`.
    pub(super) fn on(self, what: impl Into<String>, registry: &str) -> RegistryError {
        let transient = self.is_transient();
        let (what, registry) = (what.into(), registry.to_owned());
        let line = |text: String| line(&text, MAX_REASON);
        match self {
            Self::Status { status, words, .. } => match (status.as_u16(), line(words)) {
                (401 | 403, words) => RegistryError::Unauthorized { what, registry, words },
                (404, words) => RegistryError::NotFound { what, registry, words },
                (_, words) if transient => RegistryError::Unavailable { what, registry, words },
                (_, words) => RegistryError::Refused { what, registry, words },
            },
            Self::Connection(words) => RegistryError::Unavailable { what, registry, words: line(words) },
            Self::Peer(words) => RegistryError::Refused { what, registry, words: line(words) },
            Self::Content(reason) => RegistryError::Content { what, registry, reason: line(reason) },
            Self::Image(error) => RegistryError::Image(error),
        }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

/// Most characters that are shown of what a registry says.
const MAX_WORDS: usize = 400;
/// Most characters of what is wrong, which may quote it.
const MAX_REASON: usize = 600;

/// Makes one harmless line of what a stranger says.
pub(super) fn clean(text: &str) -> String {
    line(text, MAX_WORDS)
}

fn line(text: &str, most: usize) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(most + 1).collect();
    let mut line = line.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    if line.chars().count() > most {
        line = line.chars().take(most).collect::<String>() + "…";
    }
    line
}

/// The registry's own words: the errors of the distribution specification, or plain text, or the status alone.
pub(super) fn words(status: StatusCode, body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        #[serde(default)]
        errors: Vec<Entry>,
        /// Token services say it in this way.
        #[serde(default)]
        details: Option<String>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: Option<String>,
        #[serde(default)]
        message: Option<String>,
    }
    let said = match serde_json::from_slice::<Body>(body) {
        Ok(body) => {
            let entries = body.errors.into_iter().map(|entry| match (entry.code, entry.message) {
                (Some(code), Some(message)) => format!("{code}: {message}"),
                (code, message) => code.or(message).unwrap_or_default(),
            });
            entries.chain(body.details).filter(|said| !said.is_empty()).collect::<Vec<_>>().join("; ")
        }
        // Pages for browsers say nothing that helps.
        Err(_) => match std::str::from_utf8(body) {
            Ok(text) if !text.trim_start().starts_with('<') => text.to_owned(),
            _ => String::new(),
        },
    };
    let said = clean(&said);
    match said.is_empty() {
        true => format!("status {status}"),
        false => format!("{said} (status {})", status.as_u16()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_registries() {
        let long = "x".repeat(5000);
        let table = [
            (
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"a has\nno \u0007 tag","detail":{"a":1}}]}"#,
                "MANIFEST_UNKNOWN: a has no tag (status 404)".to_owned(),
            ),
            (r#"{"errors":[{"code":"A"},{"message":"b"}]}"#, "A; b (status 404)".to_owned()),
            (r#"{"details":"incorrect password"}"#, "incorrect password (status 404)".to_owned()),
            ("no such\u{1b}[31m thing\r\n", "no such [31m thing (status 404)".to_owned()),
            ("<html>404</html>", "status 404 Not Found".to_owned()),
            ("{}", "status 404 Not Found".to_owned()),
            ("", "status 404 Not Found".to_owned()),
            (&long, format!("{}… (status 404)", "x".repeat(MAX_WORDS))),
        ];
        for (body, expected) in table {
            assert_eq!(words(StatusCode::NOT_FOUND, body.as_bytes()), expected);
        }
        assert_eq!(words(StatusCode::NOT_FOUND, &[0xff, 0xfe]), "status 404 Not Found");
    }

    #[test]
    fn what_is_worth_another_attempt() {
        for (status, transient) in [
            (400, false),
            (401, false),
            (404, false),
            (408, true),
            (429, true),
            (500, true),
            (501, false),
            (503, true),
            (507, false),
        ] {
            let status = StatusCode::from_u16(status).expect("status");
            let failure = Failure::Status { status, words: String::new(), retry_after: None };
            assert_eq!(failure.is_transient(), transient, "{status}");
        }
    }
}
