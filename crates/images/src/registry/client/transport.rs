//! One HTTP exchange: connections that are kept and shared, deadlines for silence, errors in words.
//!
//! Absent on purpose: proxies, HTTP/2 (several connections carry several layers), following redirects.

use super::error::Failure;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(15);
/// How long an unused connection is kept.
const KEEP: Duration = Duration::from_secs(30);
/// Bytes that are read from the disk at a time.
const CHUNK: usize = 512 * 1024;
/// How many times the usual silence is allowed while a registry works on what it was sent.
const DIGESTING: u32 = 5;

/// What goes out with a request. Can be sent again.
pub(super) enum Payload<'a> {
    Empty,
    Bytes(Bytes),
    /// A file, and who is told how many bytes of it went out.
    File {
        path: &'a Path,
        sent: &'a (dyn Fn(u64) + Send + Sync),
    },
}

/// Connections to all servers.
pub(super) struct Transport {
    plain: Client<HttpConnector, Body>,
    /// Made when first needed: reading the certificates takes longer than a pull from this machine.
    tls: OnceLock<Client<HttpsConnector<HttpConnector>, Body>>,
    stall: Duration,
}

impl Transport {
    pub(super) fn new(stall: Duration) -> Self {
        let plain = builder().build(connector());
        Self { plain, tls: OnceLock::new(), stall }
    }

    /// Sends a request, and waits until the head of the answer is there.
    pub(super) async fn send(
        &self,
        request: http::request::Builder,
        payload: &Payload<'_>,
    ) -> Result<Response<Incoming>, Failure> {
        let (body, mut activity) = body(payload).await?;
        let request = request.body(body).map_err(|error| Failure::Peer(error.to_string()))?;
        let mut answer = std::pin::pin!(self.request(request));
        loop {
            // While a file goes out, what is sent shows that the other side lives.
            let patience = match (&activity, payload) {
                (None, Payload::File { .. }) => self.stall * DIGESTING,
                _ => self.stall,
            };
            tokio::select! {
                // Safe to drop: all are polled again in the next round, or the request is given up as a whole.
                answer = &mut answer => return answer,
                moved = changed(&mut activity) => match (moved, payload) {
                    (Some(bytes), Payload::File { sent, .. }) => sent(bytes),
                    _ => activity = None,
                },
                () = tokio::time::sleep(patience) => return Err(silent(patience)),
            }
        }
    }

    async fn request(&self, request: Request<Body>) -> Result<Response<Incoming>, Failure> {
        let secure = request.uri().scheme() == Some(&http::uri::Scheme::HTTPS);
        let answer = match secure {
            false => self.plain.request(request).await,
            true => self.tls.get_or_init(tls).request(request).await,
        };
        answer.map_err(|error| failure(&error))
    }

    /// Reads a small answer whole.
    pub(super) async fn read(&self, body: Incoming, most: u64) -> Result<Bytes, Failure> {
        let limit = usize::try_from(most).unwrap_or(usize::MAX);
        let whole = Limited::new(body, limit).collect();
        match tokio::time::timeout(self.stall, whole).await {
            Err(_) => Err(silent(self.stall)),
            Ok(Ok(whole)) => Ok(whole.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                Err(Failure::Content(format!("larger than {most} bytes")))
            }
            Ok(Err(error)) => Err(Failure::Connection(chain(&*error))),
        }
    }
}

fn silent(patience: Duration) -> Failure {
    Failure::Connection(format!("nothing came for {} seconds", patience.as_secs_f32()))
}

/// Waits for more bytes to go out; `None` when no more will. Without activity it waits forever.
async fn changed(activity: &mut Option<watch::Receiver<u64>>) -> Option<u64> {
    match activity {
        None => std::future::pending().await,
        Some(activity) => activity.changed().await.ok().map(|()| *activity.borrow_and_update()),
    }
}

async fn body(payload: &Payload<'_>) -> Result<(Body, Option<watch::Receiver<u64>>), Failure> {
    let never = |error: std::convert::Infallible| match error {};
    match payload {
        Payload::Empty => Ok((Empty::new().map_err(never).boxed_unsync(), None)),
        Payload::Bytes(bytes) => Ok((Full::new(bytes.clone()).map_err(never).boxed_unsync(), None)),
        Payload::File { path, .. } => {
            let open = tokio::fs::File::open(path).await;
            let mut file = open.map_err(crate::error::io("open", path))?;
            file.set_max_buf_size(CHUNK);
            let (moved, activity) = watch::channel(0);
            let chunks = tokio_util::io::ReaderStream::with_capacity(file, CHUNK).map(move |chunk| {
                let chunk = chunk?;
                moved.send_modify(|bytes| *bytes += chunk.len() as u64);
                Ok(Frame::data(chunk))
            });
            Ok((StreamBody::new(chunks).boxed_unsync(), Some(activity)))
        }
    }
}

fn builder() -> hyper_util::client::legacy::Builder {
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new()).pool_idle_timeout(KEEP);
    builder
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT));
    connector
}

fn tls() -> Client<HttpsConnector<HttpConnector>, Body> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let trusting = HttpsConnectorBuilder::new().with_provider_and_native_roots(Arc::clone(&provider));
    let schemes = trusting.unwrap_or_else(|error| {
        tracing::warn!(%error, "there are no certificates to trust (package ca-certificates)");
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map(|builder| {
                builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()
            });
        HttpsConnectorBuilder::new().with_tls_config(config.expect("ring has the default protocol versions"))
    });
    let mut tcp = connector();
    tcp.enforce_http(false);
    builder().build(schemes.https_only().enable_http1().wrap_connector(tcp))
}

fn failure(error: &hyper_util::client::legacy::Error) -> Failure {
    let mut words = chain(error);
    match tls_error(error) {
        None => Failure::Connection(words),
        Some(rustls::Error::InvalidMessage(_)) => {
            words += "; if it speaks plain HTTP, list it under \"insecure\" in the registries file";
            Failure::Peer(words)
        }
        Some(_) => Failure::Peer(words),
    }
}

/// The failure of encryption that is behind an error. System errors hide what they carry from the chain of causes.
fn tls_error<'e>(mut error: &'e (dyn std::error::Error + 'static)) -> Option<&'e rustls::Error> {
    loop {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        error = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => inner,
            None => error.source()?,
        };
    }
}

/// An error with its causes, each said once.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !said.contains(&words) {
            said = format!("{said}: {words}");
        }
        source = cause.source();
    }
    super::error::clean(&said)
}
