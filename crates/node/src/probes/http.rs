//! A GET as the kubelet's prober makes it: no certificate is checked, redirects are followed on the same host, every
//! status from 200 to 399 is healthy.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use std::sync::{Arc, OnceLock};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Bytes of an answer that are read, as the kubelet reads.
const MAX_BODY: usize = 10 << 10;
/// Go's default.
const MAX_REDIRECTS: usize = 10;

/// What to ask.
pub(super) struct Request {
    /// `host:port`.
    pub(super) address: String,
    pub(super) tls: bool,
    /// Path and query.
    pub(super) path: String,
    pub(super) headers: Vec<(String, String)>,
}

/// Asks once.
pub(super) async fn get(request: &Request) -> Result<(), String> {
    let mut path = request.path.clone();
    if !path.starts_with('/') {
        path.insert(0, '/');
    }
    for _ in 0..MAX_REDIRECTS {
        let (status, location) = once(request, &path).await?;
        let same_host = |l: &String| l.starts_with('/') && !l.starts_with("//");
        match location.filter(same_host) {
            Some(location) if (300..400).contains(&status) => path = location,
            _ if (200..400).contains(&status) => return Ok(()),
            _ => return Err(format!("HTTP probe failed with statuscode: {status}")),
        }
    }
    Err(format!("stopped after {MAX_REDIRECTS} redirects"))
}

async fn once(request: &Request, path: &str) -> Result<(u16, Option<String>), String> {
    let scheme = if request.tls { "https" } else { "http" };
    let failed =
        |error: &dyn std::fmt::Display| format!("Get \"{scheme}://{}{path}\": {error}", request.address);
    let tcp = TcpStream::connect(&request.address)
        .await
        .map_err(|e| failed(&format!("dial tcp {}: {e}", request.address)))?;
    if request.tls {
        let host = request.address.rsplit_once(':').map_or("", |(host, _)| host).to_owned();
        let name = ServerName::try_from(host).map_err(|e| failed(&e))?;
        let tls = connector().connect(name, tcp).await.map_err(|e| failed(&e))?;
        exchange(tls, request, path).await.map_err(|e| failed(&e))
    } else {
        exchange(tcp, request, path).await.map_err(|e| failed(&e))
    }
}

async fn exchange<S>(stream: S, request: &Request, path: &str) -> Result<(u16, Option<String>), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut send, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let mut builder = ::http::Request::get(path).header("connection", "close");
    let has = |name: &str| request.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    for (name, value, missing) in [
        ("host", request.address.as_str(), !has("host")),
        ("user-agent", "kube-probe/1.36", !has("user-agent")),
        ("accept", "*/*", !has("accept")),
    ] {
        if missing {
            builder = builder.header(name, value);
        }
    }
    for (name, value) in &request.headers {
        builder = builder.header(name, value);
    }
    let asked = builder.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let answer = async {
        let answer = send.send_request(asked).await.map_err(|e| e.to_string())?;
        let location = answer.headers().get("location").and_then(|l| l.to_str().ok()).map(str::to_owned);
        let status = answer.status().as_u16();
        // The body is read so that the server can finish; what is too long or breaks off changes nothing.
        let _ = Limited::new(answer.into_body(), MAX_BODY).collect().await;
        Ok((status, location))
    };
    tokio::select! {
        // The connection is only driven while the answer is awaited; both end here.
        answer = answer => answer,
        _ = async { let _ = connection.await; std::future::pending::<()>().await } => Err("connection closed".to_owned()),
    }
}

fn connector() -> TlsConnector {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(rustls::DEFAULT_VERSIONS);
        let builder = match builder {
            Ok(builder) => builder,
            // The provider has the default versions; without TLS 1.3 there is still TLS 1.2.
            Err(_) => ClientConfig::builder(),
        };
        let verifier = Arc::new(AnyCertificate(provider));
        Arc::new(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
    });
    TlsConnector::from(config.clone())
}

/// Accepts every certificate: a probe asks whether the program answers, not who it is.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// A server that gives these answers, one a connection.
    async fn server(answers: &'static [&'static str]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        address
    }

    async fn check(answers: &'static [&'static str], expected: Result<(), &str>) {
        let request =
            Request { address: server(answers).await, tls: false, path: "x".into(), headers: Vec::new() };
        let got = get(&request).await;
        match expected {
            Ok(()) => assert_eq!(got, Ok(()), "{answers:?}"),
            Err(text) => assert!(got.clone().unwrap_err().contains(text), "{answers:?}: {got:?}"),
        }
    }

    #[tokio::test]
    async fn answers() {
        check(&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"], Ok(())).await;
        check(&["HTTP/1.1 302 Found\r\nlocation: /y\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"], Ok(()))
            .await;
        check(&["HTTP/1.1 302 Found\r\nlocation: http://elsewhere/\r\n\r\n"], Ok(())).await;
        check(&["HTTP/1.1 503 No\r\n\r\n"], Err("statuscode: 503")).await;
        check(&["garbage\r\n\r\n"], Err("Get \"http://")).await;
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let request =
            Request { address: closed.to_string(), tls: false, path: "/".into(), headers: Vec::new() };
        assert!(get(&request).await.unwrap_err().contains("refused"));
    }
}
