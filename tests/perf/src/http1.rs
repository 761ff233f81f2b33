//! Keep-alive HTTPS connections with the administrator's certificate: as thin as a client can be, since it shares the
//! processors with what it measures.

use anyhow::{Context, bail};
use bytes::Bytes;
use cumulet_e2e::Cloud;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How to reach the API of a cloud.
#[derive(Clone)]
pub(crate) struct Endpoint {
    address: String,
    tls: TlsConnector,
}

impl Endpoint {
    /// From the cloud's kubeconfig.
    pub(crate) fn of(cloud: &Cloud) -> anyhow::Result<Self> {
        use base64::Engine;
        let text = std::fs::read_to_string(cloud.dir().join("kubeconfig"))?;
        let kubeconfig: Value = serde_saphyr::from_str(&text)?;
        let cluster = &kubeconfig["clusters"][0]["cluster"];
        let user = &kubeconfig["users"][0]["user"];
        let data = |value: &Value, what: &str| {
            let text = value[what].as_str().with_context(|| format!("the kubeconfig has no {what}"))?;
            base64::engine::general_purpose::STANDARD.decode(text).with_context(|| what.to_owned())
        };
        let ca = data(cluster, "certificate-authority-data")?;
        let certificate = data(user, "client-certificate-data")?;
        let key = data(user, "client-key-data")?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&ca) {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_slice_iter(&certificate).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&key)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        let server = cluster["server"].as_str().context("the kubeconfig has no server")?;
        let address = server.trim_start_matches("https://").trim_end_matches('/').to_owned();
        Ok(Self { address, tls: TlsConnector::from(Arc::new(config)) })
    }

    /// Opens one connection.
    pub(crate) async fn connect(&self) -> anyhow::Result<Connection> {
        let tcp = TcpStream::connect(&self.address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("127.0.0.1")?;
        let tls = self.tls.connect(name, tcp).await?;
        let (send, connection) = handshake(TokioIo::new(tls)).await?;
        // Ends when `send` is dropped.
        tokio::spawn(connection);
        Ok(Connection { send, host: self.address.clone() })
    }
}

/// One keep-alive connection.
pub(crate) struct Connection {
    send: SendRequest<Full<Bytes>>,
    host: String,
}

impl Connection {
    /// One request; the body of a success.
    pub(crate) async fn request(&mut self, method: &str, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.host)
            .header("content-type", "application/json")
            .header("accept", "application/json")
            .body(Full::new(body))?;
        self.send.ready().await?;
        let answer = self.send.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("{method} {path}: {status} {}", String::from_utf8_lossy(&body));
        }
        Ok(body)
    }

    /// Opens a stream, such as a watch.
    pub(crate) async fn stream(&mut self, path: &str) -> anyhow::Result<hyper::body::Incoming> {
        let request = http::Request::builder().uri(path).header("host", &self.host).body(Full::default())?;
        let answer = self.send.send_request(request).await?;
        anyhow::ensure!(answer.status().is_success(), "{path}: {}", answer.status());
        Ok(answer.into_body())
    }
}
