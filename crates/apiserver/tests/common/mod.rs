//! A server on a free port with a state directory of its own, and a plain HTTPS client for it.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "every test file uses a part of it; a failed set-up fails the test"
)]

use bytes::Bytes;
use cumulet_apiserver::{ApiServer, ApiServerConfig};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything in a test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct TestServer {
    pub(crate) api: Arc<ApiServer>,
    pub(crate) listen: SocketAddr,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::Builder::new().prefix("apiserver-").tempdir().unwrap()).await
    }

    pub(crate) async fn start_in(dir: tempfile::TempDir) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = listener.local_addr().unwrap();
        let mut config = ApiServerConfig::new(dir.path());
        config.listen = listen;
        let api = ApiServer::open(config).await.unwrap();
        let shutdown = CancellationToken::new();
        let (server, token) = (api.clone(), shutdown.clone());
        let serving = tokio::spawn(async move { server.serve(listener, token).await.unwrap() });
        Self { api, listen, dir, shutdown, serving }
    }

    /// Ends the server and gives back its state.
    pub(crate) async fn stop(self) -> tempfile::TempDir {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.serving).await.unwrap().unwrap();
        self.api.close().await;
        self.dir
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.api.ca_pem(), self.dir.path(), self.listen, true).await
    }

    pub(crate) async fn anonymous(&self) -> Client {
        Client::connect(self.api.ca_pem(), self.dir.path(), self.listen, false).await
    }

    pub(crate) fn write_kubeconfig(&self) -> std::path::PathBuf {
        let path = self.dir.path().join("kubeconfig");
        self.api.write_kubeconfig(&path, self.listen).unwrap();
        path
    }
}

/// One keep-alive connection.
pub(crate) struct Client {
    sender: http1::SendRequest<Full<Bytes>>,
}

pub(crate) struct Reply {
    pub(crate) code: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn warnings(&self) -> Vec<&str> {
        self.headers.get_all("warning").iter().filter_map(|v| v.to_str().ok()).collect()
    }
}

impl Client {
    pub(crate) async fn connect(ca: &str, state: &std::path::Path, listen: SocketAddr, admin: bool) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = if admin {
            let cert = CertificateDer::from_pem_file(state.join("pki/admin.crt")).unwrap();
            let key = PrivateKeyDer::from_pem_file(state.join("pki/admin.key")).unwrap();
            builder.with_client_auth_cert(vec![cert], key).unwrap()
        } else {
            builder.with_no_client_auth()
        };
        let stream = TcpStream::connect(listen).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let tls = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await.unwrap();
        tokio::spawn(connection);
        Self { sender }
    }

    pub(crate) async fn open(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> http::Response<Incoming> {
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.sender.ready().await.unwrap();
        self.sender.send_request(request.body(Full::new(body)).unwrap()).await.unwrap()
    }

    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        let response = self.open(method, path, headers, body.into()).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Reply { code: parts.status, headers: parts.headers, body }
    }

    pub(crate) async fn get(&mut self, path: &str) -> Reply {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    pub(crate) async fn post(&mut self, path: &str, body: &Value) -> Reply {
        self.send(Method::POST, path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub(crate) async fn put(&mut self, path: &str, body: &Value) -> Reply {
        self.send(Method::PUT, path, &[("content-type", "application/json")], body.to_string()).await
    }

    /// A merge patch.
    pub(crate) async fn patch(&mut self, path: &str, body: &Value) -> Reply {
        let kind = [("content-type", "application/merge-patch+json")];
        self.send(Method::PATCH, path, &kind, body.to_string()).await
    }

    pub(crate) async fn delete(&mut self, path: &str) -> Reply {
        self.send(Method::DELETE, path, &[], Bytes::new()).await
    }

    /// Opens a watch; the client cannot be used for anything else then.
    pub(crate) async fn watch(mut self, path: &str, headers: &[(&str, &str)]) -> WatchStream {
        let response = self.open(Method::GET, path, headers, Bytes::new()).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        WatchStream { body: response.into_body(), buffer: Vec::new(), _client: self }
    }
}

pub(crate) struct WatchStream {
    body: Incoming,
    buffer: Vec<u8>,
    _client: Client,
}

impl WatchStream {
    /// The next event, or `None` at the end of the watch.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("no event in time")?;
            if let Ok(data) = frame.unwrap().into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    /// The next event as `TYPE name`.
    pub(crate) async fn brief(&mut self) -> String {
        match self.next().await {
            Some(event) => {
                let name = event["object"]["metadata"]["name"].as_str().unwrap_or("-").to_owned();
                format!("{} {name}", event["type"].as_str().unwrap_or("?"))
            }
            None => "END".to_owned(),
        }
    }
}

/// Runs kubectl; standard output, or standard error of a failure.
pub(crate) fn kubectl(state: &Path, arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new("kubectl")
        .args(arguments)
        .env("KUBECONFIG", state.join("kubeconfig"))
        .env("HOME", state)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}
