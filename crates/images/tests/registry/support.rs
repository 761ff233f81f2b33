//! Registries to talk to: our own endpoint with a middleman that counts and interferes, and what to send to it.

use crate::common::{Layout, Tar, load};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use cumulet_images::{
    Client, ClientOptions, Digest, Endpoint, EndpointOptions, ImageStore, Progress, RegistriesConfig, Users,
};
use http::StatusCode;
use http_body_util::BodyExt;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What a middleman does with a request: `None` lets it pass. The number counts requests for the same thing, from 0.
pub(crate) type Interfere = Box<dyn Fn(&http::request::Parts, usize) -> Option<Response> + Send + Sync>;

/// A server on loopback, gone when dropped.
pub(crate) struct Server {
    pub(crate) host: String,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let host = listener.local_addr().expect("address").to_string();
    (listener, host)
}

pub(crate) fn serve(listener: TcpListener, host: &str, router: Router) -> Server {
    let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("serve") });
    Server { host: host.to_owned(), task }
}

/// What was asked for.
pub(crate) struct Log {
    interfere: Interfere,
    requests: Mutex<Vec<(String, http::HeaderMap)>>,
}

impl Log {
    /// Headers of the requests whose `METHOD PATH?QUERY` has all these parts.
    pub(crate) fn seen(&self, parts: &[&str]) -> Vec<http::HeaderMap> {
        let requests = self.requests.lock().expect("log");
        let fits = |line: &str| parts.iter().all(|part| line.contains(part));
        requests.iter().filter(|(line, _)| fits(line)).map(|(_, headers)| headers.clone()).collect()
    }

    pub(crate) fn count(&self, parts: &[&str]) -> usize {
        self.seen(parts).len()
    }

    pub(crate) fn clear(&self) {
        self.requests.lock().expect("log").clear();
    }
}

async fn middleman(State(log): State<Arc<Log>>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let line = format!("{} {}", parts.method, parts.uri);
    let number = {
        let mut requests = log.requests.lock().expect("log");
        let number = requests.iter().filter(|(known, _)| *known == line).count();
        requests.push((line, parts.headers.clone()));
        number
    };
    match (log.interfere)(&parts, number) {
        Some(response) => {
            // As a server that means well: what is sent is read, so that the answer is.
            let _ = body.collect().await;
            response
        }
        None => next.run(Request::from_parts(parts, body)).await,
    }
}

/// Our endpoint over a store of its own, behind a middleman.
pub(crate) struct Registry {
    pub(crate) server: Server,
    pub(crate) router: Router,
    pub(crate) store: ImageStore,
    pub(crate) log: Arc<Log>,
    _dir: TempDir,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        Self::with(Users::default(), Box::new(|_, _| None)).await
    }

    pub(crate) async fn interfered(
        interfere: impl Fn(&http::request::Parts, usize) -> Option<Response> + Send + Sync + 'static,
    ) -> Self {
        Self::with(Users::default(), Box::new(interfere)).await
    }

    pub(crate) async fn with(users: Users, interfere: Interfere) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let store = ImageStore::open(dir.path()).expect("open");
        let (listener, host) = listen().await;
        let options = EndpointOptions { names: vec![host.clone()], users, ..EndpointOptions::default() };
        let endpoint = Endpoint::new(store.clone(), options).expect("endpoint");
        let log = Arc::new(Log { interfere, requests: Mutex::default() });
        let layer = axum::middleware::from_fn_with_state(Arc::clone(&log), middleman);
        let router = endpoint.router().layer(layer);
        let server = serve(listener, &host, router.clone());
        Self { server, router, store, log, _dir: dir }
    }

    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.server.host)
    }

    /// Puts an image into the registry's store under this name.
    pub(crate) fn add(&self, rest: &str, layout: &Layout) -> Digest {
        let named = Layout {
            blobs: layout.blobs.clone(),
            index: {
                let mut index = layout.index.clone();
                index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] =
                    self.name(rest).into();
                index
            },
        };
        load(&self.store, named.archive()).expect("load")[0].digest.clone()
    }
}

/// A client with a store of its own, and little patience.
pub(crate) struct Peer {
    pub(crate) client: Arc<Client>,
    pub(crate) store: ImageStore,
    pub(crate) dir: TempDir,
}

pub(crate) fn quick() -> ClientOptions {
    ClientOptions {
        backoff: Duration::from_millis(10),
        stall: Duration::from_millis(700),
        ..ClientOptions::default()
    }
}

impl Peer {
    pub(crate) fn new() -> Self {
        Self::with(RegistriesConfig::default())
    }

    pub(crate) fn with(registries: RegistriesConfig) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let store = ImageStore::open(dir.path()).expect("open");
        let client = client_of(dir.path(), registries);
        Self { client: Arc::new(client), store, dir }
    }

    /// Nothing of a pull that failed is to be seen.
    pub(crate) fn is_clean(&self) {
        assert_eq!(self.store.verify().expect("verify"), Vec::<String>::new());
        assert!(self.store.list().expect("list").is_empty());
    }
}

pub(crate) fn client_of(dir: &Path, registries: RegistriesConfig) -> Client {
    let store = ImageStore::open(dir).expect("open");
    Client::new(store, ClientOptions { registries, ..quick() }).expect("client")
}

/// An image of these layers, one file of so many bytes in each, which does not compress.
pub(crate) fn image(sizes: &[usize]) -> Layout {
    image_packed(sizes, crate::common::gzip)
}

pub(crate) fn image_packed(sizes: &[usize], pack: impl Fn(&[u8]) -> Vec<u8>) -> Layout {
    let layers: Vec<Vec<u8>> = sizes
        .iter()
        .enumerate()
        .map(|(i, size)| Tar::new().file(&format!("file{i}"), &noise(i as u64 + 1, *size)).finish())
        .collect();
    Layout::new("nameless", &layers, pack)
}

/// Bytes that look random and are always the same.
pub(crate) fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// Records how far something is.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) total: AtomicU64,
    pub(crate) done: AtomicU64,
    pub(crate) moved: AtomicUsize,
    pub(crate) there: AtomicUsize,
}

impl Progress for Recorder {
    fn total(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn done(&self, _: &Digest, moved: bool) {
        let counter = if moved { &self.moved } else { &self.there };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// An answer of a registry.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Code of the first error.
    pub(crate) fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// Sends one request as it is.
pub(crate) async fn ask(
    host: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    let client: hyper_util::client::legacy::Client<HttpConnector, http_body_util::Full<Bytes>> =
        hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http();
    let uri = if path.starts_with("http://") { path.to_owned() } else { format!("http://{host}{path}") };
    let mut request = http::Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Bytes::copy_from_slice(body).into()).expect("request");
    let (parts, body) = client.request(request).await.expect("answer").into_parts();
    let body = body.collect().await.expect("body").to_bytes();
    Reply { status: parts.status.as_u16(), headers: parts.headers, body }
}

/// An answer of a hostile server.
pub(crate) fn reply(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let mut response = Response::builder().status(StatusCode::from_u16(status).expect("status"));
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).expect("response")
}

/// A body that announces more than it sends before it breaks off.
pub(crate) fn broken(announced: usize, sent: Vec<u8>) -> Response {
    let chunks: Vec<Result<Vec<u8>, std::io::Error>> =
        vec![Ok(sent), Err(std::io::ErrorKind::ConnectionReset.into())];
    let body = Body::from_stream(futures_util::stream::iter(chunks));
    reply(200, &[("content-length", &announced.to_string())], body)
}

/// Blobs of a layout by digest.
pub(crate) fn blobs(layout: &Layout) -> BTreeMap<String, Vec<u8>> {
    layout.blobs.iter().map(|(hex, data)| (format!("sha256:{hex}"), data.clone())).collect()
}

/// The largest blob: a layer.
pub(crate) fn largest(layout: &Layout) -> (String, Vec<u8>) {
    blobs(layout).into_iter().max_by_key(|(_, data)| data.len()).expect("blobs")
}
