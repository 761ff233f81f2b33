//! Requests about one repository of one registry, as one user: authentication, redirects, answers in words.

use super::Client;
use super::challenge;
use super::config::Source;
use super::error::{Failure, words};
use super::keyring::Credential;
use super::token::{Purpose, fingerprint};
use super::transport::Payload;
use http::header::{AUTHORIZATION, LOCATION, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use std::time::{Duration, SystemTime};

/// Most redirects that one request follows.
const MAX_REDIRECTS: usize = 5;
/// Most bytes that are read of an error.
const MAX_ERROR: u64 = 64 * 1024;
const AGENT: &str = concat!("cumulet/", env!("CARGO_PKG_VERSION"));

/// A repository of a registry, as one user sees it.
pub(super) struct Session<'a> {
    pub(super) client: &'a Client,
    pub(super) source: Source,
    pub(super) repository: String,
    credential: Option<Credential>,
    purpose: Purpose,
    /// Held while a token is asked for: one serves all requests.
    asking: tokio::sync::Mutex<()>,
}

/// A request that can be sent again.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) payload: Payload<'a>,
}

impl<'a> Session<'a> {
    /// `actions` are those of the repository that the session is for, such as `pull,push`; `also` are scopes beside it.
    pub(super) fn new(
        client: &'a Client,
        source: Source,
        repository: &str,
        credential: Option<Credential>,
        actions: &str,
        also: &[String],
    ) -> Self {
        let mut scopes = vec![format!("repository:{repository}:{actions}")];
        scopes.extend_from_slice(also);
        let purpose = Purpose {
            authority: source.authority.to_string(),
            scopes,
            fingerprint: credential.as_ref().map(fingerprint),
        };
        Self {
            client,
            source,
            repository: repository.to_owned(),
            credential,
            purpose,
            asking: Default::default(),
        }
    }

    /// Host and perhaps port.
    pub(super) fn host(&self) -> &str {
        self.source.authority.as_str()
    }

    /// The address of something in the repository.
    pub(super) fn uri(&self, rest: &str) -> Result<Uri, Failure> {
        let uri = self.source.uri(&format!("{}/{rest}", self.repository));
        uri.map_err(|error| Failure::Peer(error.to_string()))
    }

    /// A request without a body.
    pub(super) fn call(&self, method: Method, rest: &str) -> Result<Call<'static>, Failure> {
        Ok(Call { method, uri: self.uri(rest)?, headers: HeaderMap::new(), payload: Payload::Empty })
    }

    /// Sends a request, and proves who we are if asked. Succeeds with answers of success only.
    pub(super) async fn send(&self, call: &Call<'_>) -> Result<Response<Incoming>, Failure> {
        let (client, credential) = (self.client, self.credential.as_ref());
        let mut known = client.tokens.get(&self.purpose);
        let mut asked = false;
        loop {
            let (response, elsewhere) = self.follow(call, known.as_ref()).await?;
            if response.status() != StatusCode::UNAUTHORIZED || asked || elsewhere {
                return self.judge(response).await;
            }
            asked = true;
            let _asking = self.asking.lock().await;
            // Another request of ours may have asked meanwhile.
            let newer = client.tokens.get(&self.purpose).filter(|newer| known.as_ref() != Some(newer));
            known = match newer {
                Some(newer) => Some(newer),
                None => {
                    let offered = challenge::offered(response.headers());
                    let (transport, source) = (&client.transport, &self.source);
                    client.tokens.answer(transport, source, &offered, credential, &self.purpose).await?
                }
            };
            if known.is_none() {
                return self.judge(response).await;
            }
        }
    }

    /// Sends a request wherever it is redirected; what proves who we are stays with the registry. Tells whether the
    /// answer is somebody else's.
    async fn follow(
        &self,
        call: &Call<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<(Response<Incoming>, bool), Failure> {
        let mut at = call.uri.clone();
        for _ in 0..=MAX_REDIRECTS {
            let elsewhere =
                at.authority() != Some(&self.source.authority) || at.scheme() != Some(&self.source.scheme);
            let mut request = Request::builder().method(call.method.clone()).uri(at.clone());
            if let Some(headers) = request.headers_mut() {
                headers.extend(call.headers.clone());
                headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
                if let (Some(value), false) = (authorization, elsewhere) {
                    headers.insert(AUTHORIZATION, value.clone());
                }
            }
            let response = self.client.transport.send(request, &call.payload).await?;
            let reads = matches!(call.method, Method::GET | Method::HEAD);
            if !reads || !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((response, elsewhere));
            }
            at = self.location(&at, response.headers())?;
        }
        Err(Failure::Content(format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// Where an answer points, relative to what it answers, if we may go there.
    pub(super) fn location(&self, from: &Uri, headers: &HeaderMap) -> Result<Uri, Failure> {
        let text = headers.get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let bad =
            || Failure::Content(format!("points to \"{}\", where we may not go", super::error::clean(text)));
        let there = resolve(from, text).ok_or_else(bad)?;
        let same = there.authority() == from.authority() && there.scheme() == from.scheme();
        // Who was reached with encryption may not lead back to where there is none.
        let encrypted = from.scheme() != Some(&http::uri::Scheme::HTTPS) || there.scheme() == from.scheme();
        match same || (encrypted && self.source.may_lead_to(&there)) {
            true => Ok(there),
            false => Err(bad()),
        }
    }

    async fn judge(&self, response: Response<Incoming>) -> Result<Response<Incoming>, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let retry_after =
            response.headers().get(RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?));
        // What the status means does not depend on whether its words arrive.
        let body = self.client.transport.read(response.into_body(), MAX_ERROR).await.unwrap_or_default();
        Err(Failure::Status { status, words: words(status, &body), retry_after })
    }
}

/// The address that `text` means in an answer from `base`.
fn resolve(base: &Uri, text: &str) -> Option<Uri> {
    if text.is_empty() {
        return None;
    }
    if let Some(rest) = text.strip_prefix("//") {
        return format!("{}://{rest}", base.scheme_str()?).parse().ok();
    }
    if text.starts_with('/') {
        let mut parts = base.clone().into_parts();
        parts.path_and_query = Some(text.parse().ok()?);
        return Uri::from_parts(parts).ok();
    }
    text.parse::<Uri>().ok().filter(|uri| uri.scheme().is_some() && uri.authority().is_some())
}

/// Seconds, or a date.
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let then = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp();
    Some(SystemTime::from(then).duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let base: Uri = "https://a.lab:5000/v2/x?y=1".parse().expect("uri");
        let table = [
            ("/v2/z?_state=a%3D", Some("https://a.lab:5000/v2/z?_state=a%3D")),
            ("https://b.lab/z", Some("https://b.lab/z")),
            ("//b.lab/z", Some("https://b.lab/z")),
            ("z", None),
            ("", None),
            ("?a=b", None),
            ("https:///z", None),
        ];
        for (text, expected) in table {
            assert_eq!(resolve(&base, text).map(|uri| uri.to_string()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn waits() {
        assert_eq!(retry_after("7"), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert!(
            retry_after("Wed, 21 Oct 2099 07:28:00 GMT").is_some_and(|wait| wait > Duration::from_secs(3600))
        );
        assert_eq!(retry_after("soon"), None);
    }
}
