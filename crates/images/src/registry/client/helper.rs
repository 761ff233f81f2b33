//! Docker's credential helpers: programs `docker-credential-NAME` that are asked over standard input and output.

use super::error::RegistryError;
use super::keyring::{Credential, Secret};
use serde::Deserialize;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// How long a helper may take: it may ask its user to unlock something.
const DEADLINE: Duration = Duration::from_secs(30);
/// Most bytes that a helper may say.
const MAX_ANSWER: u64 = 64 * 1024;
/// What helpers say as the name of the user when the secret is a token.
const TOKEN_USER: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Asks a helper for the credential of a server. `None` when it has none.
pub(super) async fn ask(name: &str, server: &str) -> Result<Option<Credential>, RegistryError> {
    let program = format!("docker-credential-{name}");
    let bad = |reason: String| RegistryError::Credentials {
        origin: format!("from {program} for {server}"),
        reason,
    };
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || !name.bytes().all(word) {
        return Err(bad("is not the name of a helper".to_owned()));
    }
    let answered = tokio::time::timeout(DEADLINE, run(&program, server)).await;
    let (good, answer) = answered
        .map_err(|_| bad(format!("did not answer within {} seconds", DEADLINE.as_secs())))?
        .map_err(|error| bad(format!("cannot be run: {error}: install it or remove it from config.json")))?;
    if !good {
        let said = super::error::clean(&String::from_utf8_lossy(&answer));
        return match said.contains("credentials not found") {
            true => Ok(None),
            false => Err(bad(format!("failed: {said}"))),
        };
    }
    // The parser's own message may quote what it found there.
    let answer: Answer =
        serde_json::from_slice(&answer).map_err(|_| bad("did not answer with JSON".to_owned()))?;
    Ok(match (answer.username.as_str(), answer.secret) {
        (_, secret) if secret.is_empty() => None,
        (TOKEN_USER, secret) => Some(Credential::Identity(Secret(secret))),
        (user, secret) => Some(Credential::Password { user: user.to_owned(), password: Secret(secret) }),
    })
}

/// Runs the helper, and tells whether it succeeded and what it said.
async fn run(program: &str, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input shows in its answer.
        let _ = stdin.write_all(server.as_bytes()).await;
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    }
    Ok((child.wait().await?.success(), answer))
}
