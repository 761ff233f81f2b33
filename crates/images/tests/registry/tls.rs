//! HTTPS: with a certificate that this machine trusts, with one it does not, and with a server that has none.

use crate::support::{Peer, Registry, image};
use cumulet_images::{Keyring, Reference, RegistryError};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const NAME: &str = "REGISTRY_TLS_NAME";

/// Not this machine's own address for the client, which therefore encrypts, but it leads here.
const HERE: &str = "0.0.0.0";

/// A certificate for [`HERE`], and that of its authority as PEM.
fn certificate() -> (Arc<rustls::ServerConfig>, String) {
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer =
        CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("key")).expect("authority");
    let key = KeyPair::generate().expect("key");
    let own = CertificateParams::new(vec![HERE.to_owned()]).expect("parameters");
    let own = own.signed_by(&key, &issuer).expect("certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![own.der().clone()], key.into())
        .expect("config");
    (Arc::new(config), issuer.pem())
}

/// Pulls by the name in the environment, in a process whose certificates the parent chose.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is started by https"]
async fn child() {
    let Ok(name) = std::env::var(NAME) else { return };
    let peer = Peer::new();
    let pulled = peer.client.pull(&Reference::parse(&name).expect("name"), &Keyring::default(), &()).await;
    match (pulled, std::env::var_os("SSL_CERT_FILE").is_some()) {
        (Ok(_), true) => assert_eq!(peer.store.verify().expect("verify"), Vec::<String>::new()),
        (Err(error), false) => {
            assert!(matches!(error, RegistryError::Refused { .. }), "{error}");
            assert!(error.to_string().contains("certificate"), "{error}");
        }
        (other, trusted) => panic!("trusted: {trusted}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn https() {
    let registry = Registry::start().await;
    registry.add("app:1", &image(&[1000, 900_000]));
    let (config, authority) = certificate();
    let (acceptor, listener) =
        (TlsAcceptor::from(config), TcpListener::bind("127.0.0.1:0").await.expect("bind"));
    let port = listener.local_addr().expect("address").port();
    let router = registry.router.clone();
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            let (acceptor, service) = (acceptor.clone(), TowerToHyperService::new(router.clone()));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("ca.pem");
    std::fs::write(&path, authority).expect("write");
    for trusted in [true, false] {
        let mut child = std::process::Command::new(std::env::current_exe().expect("exe"));
        child.args(["--exact", "tls::child", "--ignored", "--nocapture"]);
        child
            .env(NAME, format!("{HERE}:{port}/app:1"))
            .env_remove("SSL_CERT_FILE")
            .env_remove("SSL_CERT_DIR");
        if trusted {
            child.env("SSL_CERT_FILE", &path);
        }
        let ran = tokio::task::spawn_blocking(move || child.status().expect("run")).await.expect("wait");
        assert!(ran.success(), "trusted: {trusted}");
    }
    server.abort();

    // A server without encryption: said so, and not tried without.
    let plain = registry.server.host.replace("127.0.0.1", HERE);
    let peer = Peer::new();
    let name = Reference::parse(&format!("{plain}/app:1")).expect("name");
    let error = peer.client.pull(&name, &Keyring::default(), &()).await.expect_err("no encryption");
    assert!(matches!(error, RegistryError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("list it under \"insecure\""), "{error}");
    assert_eq!(registry.log.count(&["/manifests/"]), 1, "only the trusted one asked");
    let insecure = cumulet_images::RegistriesConfig { insecure: vec![plain], ..Default::default() };
    Peer::with(insecure)
        .client
        .pull(&name, &Keyring::default(), &())
        .await
        .expect("as the configuration says");
}
