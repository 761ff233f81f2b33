//! Proving who one is: basic authentication, and tokens from the service that a registry names.
//!
//! What was accepted is kept for as long as it is valid, apart for each registry, scope and credential: what one pull
//! secret opened stays closed for others.

use super::challenge::Challenge;
use super::config::Source;
use super::error::{Failure, words};
use super::keyring::Credential;
use super::transport::{Payload, Transport};
use base64::Engine;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Uri};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Largest answer of a token service, in bytes.
const MAX_TOKEN: u64 = 256 * 1024;
/// How long a token is valid when its service does not say.
const VALID: Duration = Duration::from_secs(60);
/// So much earlier a token is taken as expired.
const SLACK: Duration = Duration::from_secs(10);
/// Longest that anything is kept: credentials may be taken back.
const KEEP: Duration = Duration::from_secs(3600);
/// Most that are kept.
const MAX_KEPT: usize = 1024;
/// Who we say we are.
const CLIENT: &str = "cumulet";

/// What a token is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Purpose {
    pub(super) authority: String,
    /// `repository:NAME:ACTIONS`; the first one is what it is about.
    pub(super) scopes: Vec<String>,
    /// Of the credential; none for anonymous access.
    pub(super) fingerprint: Option<[u8; 32]>,
}

/// Values of `Authorization` that were accepted.
#[derive(Default)]
pub(super) struct Tokens(Mutex<HashMap<Purpose, (HeaderValue, Instant)>>);

impl Tokens {
    fn lock(&self) -> MutexGuard<'_, HashMap<Purpose, (HeaderValue, Instant)>> {
        // Entries are changed in single steps: what a panic leaves is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, purpose: &Purpose) -> Option<HeaderValue> {
        let table = self.lock();
        table.get(purpose).filter(|(_, until)| Instant::now() < *until).map(|(value, _)| value.clone())
    }

    fn keep(&self, purpose: &Purpose, value: &HeaderValue, valid: Duration) {
        let (mut table, now) = (self.lock(), Instant::now());
        if table.len() >= MAX_KEPT {
            table.retain(|_, (_, until)| now < *until);
        }
        if table.len() < MAX_KEPT {
            table.insert(purpose.clone(), (value.clone(), now + valid.min(KEEP)));
        }
    }

    /// Answers a registry's challenges. `None` when it offers nothing that can be answered.
    pub(super) async fn answer(
        &self,
        transport: &Transport,
        source: &Source,
        challenges: &[Challenge],
        credential: Option<&Credential>,
        purpose: &Purpose,
    ) -> Result<Option<HeaderValue>, Failure> {
        if let Some(Credential::Registry(token)) = credential {
            return header("Bearer", &token.0).map(Some);
        }
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, service, scope } => {
                Some((realm, service.as_deref(), scope.as_deref()))
            }
            Challenge::Basic => None,
        });
        if let Some((realm, service, scope)) = bearer {
            let asked = Asked { realm: check_realm(source, realm)?, service, scope };
            let (token, valid) = asked.fetch(transport, credential, &purpose.scopes).await?;
            let value = header("Bearer", &token)?;
            self.keep(purpose, &value, valid.saturating_sub(SLACK));
            return Ok(Some(value));
        }
        match credential {
            Some(Credential::Password { user, password }) if challenges.contains(&Challenge::Basic) => {
                let value = basic(user, &password.0)?;
                self.keep(purpose, &value, KEEP);
                Ok(Some(value))
            }
            _ => Ok(None),
        }
    }
}

/// Tells credentials apart without keeping them.
pub(super) fn fingerprint(credential: &Credential) -> [u8; 32] {
    let parts = match credential {
        Credential::Password { user, password } => ["password", user, &password.0],
        Credential::Identity(token) => ["identity", "", &token.0],
        Credential::Registry(token) => ["registry", "", &token.0],
    };
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn check_realm(source: &Source, realm: &str) -> Result<Uri, Failure> {
    let uri = realm.parse::<Uri>().ok().filter(|uri| source.may_lead_to(uri));
    uri.ok_or_else(|| {
        let realm = super::error::clean(realm);
        Failure::Peer(format!(
            "wants credentials sent to \"{realm}\", which is neither encrypted nor the registry itself"
        ))
    })
}

fn header(scheme: &str, token: &str) -> Result<HeaderValue, Failure> {
    let value = HeaderValue::from_str(&format!("{scheme} {token}"));
    let mut value = value.map_err(|_| Failure::Content("a token that cannot be sent".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn basic(user: &str, password: &str) -> Result<HeaderValue, Failure> {
    header("Basic", &base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// What a registry wants a token to be like.
struct Asked<'a> {
    realm: Uri,
    service: Option<&'a str>,
    scope: Option<&'a str>,
}

#[derive(Deserialize)]
struct Granted {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl Asked<'_> {
    /// Gets a token, and how long it is valid.
    async fn fetch(
        &self,
        transport: &Transport,
        credential: Option<&Credential>,
        scopes: &[String],
    ) -> Result<(String, Duration), Failure> {
        let (request, payload) = match credential {
            Some(Credential::Identity(token)) => self.exchange(&token.0, scopes)?,
            Some(Credential::Password { user, password }) => (
                self.get(scopes, Some(user))?.header(AUTHORIZATION, basic(user, &password.0)?),
                Payload::Empty,
            ),
            _ => (self.get(scopes, None)?, Payload::Empty),
        };
        let response = transport.send(request.header(ACCEPT, "application/json"), &payload).await?;
        let status = response.status();
        let body = transport.read(response.into_body(), MAX_TOKEN).await?;
        if !status.is_success() {
            let host = self.realm.host().unwrap_or_default();
            let words = format!("{host}: {}", words(status, &body));
            return Err(Failure::Status { status, words, retry_after: None });
        }
        // The parser's own message may quote what it found there.
        let bad = || Failure::Content("the answer of the token service has no token".to_owned());
        let granted: Granted = serde_json::from_slice(&body).map_err(|_| bad())?;
        let token =
            granted.token.or(granted.access_token).filter(|token| !token.is_empty()).ok_or_else(bad)?;
        Ok((token, granted.expires_in.map_or(VALID, Duration::from_secs)))
    }

    /// The scopes to ask for: what the registry says instead of what the request is about, and all others.
    fn scopes<'a>(&'a self, own: &'a [String]) -> impl Iterator<Item = &'a str> {
        let first = self.scope.or(own.first().map(String::as_str));
        first.into_iter().chain(own.iter().skip(1).map(String::as_str))
    }

    fn get(&self, scopes: &[String], account: Option<&str>) -> Result<http::request::Builder, Failure> {
        let mut pairs: Vec<(&str, &str)> =
            self.service.map(|service| ("service", service)).into_iter().collect();
        pairs.extend(self.scopes(scopes).map(|scope| ("scope", scope)));
        pairs.extend(account.map(|account| ("account", account)));
        let query = form(pairs);
        let joined = match self.realm.query() {
            None | Some("") => format!("{}?{query}", self.realm.path()),
            Some(own) => format!("{}?{own}&{query}", self.realm.path()),
        };
        let mut parts = self.realm.clone().into_parts();
        parts.path_and_query =
            Some(joined.parse().map_err(|_| Failure::Content("a token realm that is no address".into()))?);
        let uri = Uri::from_parts(parts).map_err(|error| Failure::Content(error.to_string()))?;
        Ok(Request::builder().method(Method::GET).uri(uri))
    }

    /// OAuth 2: an identity token for one that the registry takes.
    fn exchange(
        &self,
        token: &str,
        scopes: &[String],
    ) -> Result<(http::request::Builder, Payload<'static>), Failure> {
        let scope = self.scopes(scopes).collect::<Vec<_>>().join(" ");
        let form = form([
            ("grant_type", "refresh_token"),
            ("service", self.service.unwrap_or_default()),
            ("client_id", CLIENT),
            ("scope", &scope),
            ("refresh_token", token),
        ]);
        let request = Request::builder()
            .method(Method::POST)
            .uri(self.realm.clone())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(CONTENT_LENGTH, form.len());
        Ok((request, Payload::Bytes(Bytes::from(form))))
    }
}

/// `name=value&…`, with everything escaped that might mean something.
pub(super) fn form<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                    text.push(byte.into())
                }
                // Writing to a String cannot fail.
                other => _ = write!(text, "%{other:02X}"),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let asked = Asked {
            realm: "https://auth.lab/token?a=1".parse().expect("uri"),
            service: Some("r x"),
            scope: None,
        };
        let own = ["repository:a/b:pull,push".to_owned(), "repository:c:pull".to_owned()];
        let request = asked.get(&own, Some("me&you")).expect("request");
        assert_eq!(
            request.uri_ref().expect("uri").to_string(),
            "https://auth.lab/token?a=1&service=r%20x&scope=repository%3Aa/b%3Apull%2Cpush&scope=repository%3Ac%3Apull&account=me%26you"
        );
        let asked = Asked { scope: Some("repository:z:pull"), ..asked };
        assert_eq!(asked.scopes(&own).collect::<Vec<_>>(), ["repository:z:pull", "repository:c:pull"]);
    }

    #[test]
    fn fingerprints() {
        let of = |user: &str, password: &str| {
            let password = super::super::keyring::Secret(password.to_owned());
            fingerprint(&Credential::Password { user: user.to_owned(), password })
        };
        assert_eq!(of("a", "b"), of("a", "b"));
        assert_ne!(of("a", "b"), of("ab", ""));
    }
}
