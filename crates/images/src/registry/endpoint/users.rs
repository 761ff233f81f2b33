//! Who may use the endpoint: nobody is asked unless users are configured, then everybody is.

use super::reply::{Code, Refusal};
use base64::Engine;
use http::HeaderMap;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// Users and the digests of their passwords.
#[derive(Clone, Default)]
pub struct Users(BTreeMap<String, [u8; 32]>);

impl Users {
    /// Adds a user, or changes the password.
    #[must_use]
    pub fn with(mut self, name: &str, password: &str) -> Self {
        self.0.insert(name.to_owned(), Sha256::digest(password).into());
        self
    }

    /// Whether everybody may do everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if self.is_empty() {
            return Ok(());
        }
        match headers.get(AUTHORIZATION) {
            Some(value) if self.knows(value.as_bytes()) => Ok(()),
            given => {
                let what = if given.is_some() { "wrong user or password" } else { "authentication required" };
                Err(Refusal::new(Code::Unauthorized, what)
                    .header(WWW_AUTHENTICATE, "Basic realm=\"cumulet\""))
            }
        }
    }

    fn knows(&self, authorization: &[u8]) -> bool {
        let Some((scheme, rest)) = authorization.split_at_checked(6) else { return false };
        let decoded = base64::engine::general_purpose::STANDARD.decode(rest.trim_ascii());
        let Some((name, password)) = decoded.ok().and_then(|bytes| {
            let colon = bytes.iter().position(|byte| *byte == b':')?;
            Some((bytes[..colon].to_vec(), bytes[colon + 1..].to_vec()))
        }) else {
            return false;
        };
        let known = std::str::from_utf8(&name).ok().and_then(|name| self.0.get(name));
        // Digests of a fixed length, compared to the end: the time tells nothing about the password.
        let given: [u8; 32] = Sha256::digest(&password).into();
        let expected = known.copied().unwrap_or_default();
        let differs = given.iter().zip(expected).fold(0, |all, (a, b)| all | (a ^ b));
        scheme.eq_ignore_ascii_case(b"basic ") && known.is_some() && differs == 0
    }
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_authentication() {
        let users = Users::default().with("me", "a:b");
        let table = [
            (None, false),
            (Some("Basic bWU6YTpi"), true),
            (Some("basic bWU6YTpi"), true),
            (Some("Basic bWU6YTpj"), false),
            (Some("Basic eW91OmE6Yg=="), false),
            (Some("Bearer bWU6YTpi"), false),
            (Some("Basic bWU="), false),
            (Some("Basic"), false),
            (Some("Basic !"), false),
        ];
        for (header, good) in table {
            let mut headers = HeaderMap::new();
            header.map(|value| headers.insert(AUTHORIZATION, value.parse().expect("value")));
            assert_eq!(users.check(&headers).is_ok(), good, "{header:?}");
            assert!(Users::default().check(&headers).is_ok());
        }
        assert!(!format!("{users:?}").contains("a:b"));
    }
}
