//! Who may: basic authentication, tokens, helpers, and what never leaves this machine.

use crate::support::{Peer, Registry, image, listen, reply, serve};
use axum::Router;
use axum::extract::Request;
use axum::routing::any;
use base64::Engine;
use cumulet_images::{Keyring, Reference, RegistryError, Users};
use http_body_util::BodyExt;
use std::sync::{Arc, Mutex};

fn keyring(host: &str, user: &str, password: &str) -> Keyring {
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    let text = serde_json::json!({"auths": {host: {"auth": auth}}}).to_string();
    Keyring::from_docker_config(text.as_bytes()).expect("keyring")
}

fn reference(text: &str) -> Reference {
    Reference::parse(text).expect("reference")
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_the_endpoint() {
    let users = Users::default().with("me", "secret");
    let registry = Registry::with(users, Box::new(|_, _| None)).await;
    let digest = registry.add("app:1", &image(&[1000, 2000]));
    let (name, host) = (registry.name("app:1"), registry.server.host.clone());
    let (name, peer) = (reference(&name), Peer::new());
    for (given, words) in [
        (Keyring::default(), "UNAUTHORIZED: authentication required"),
        (keyring(&host, "me", "wrong"), "UNAUTHORIZED: wrong user or password"),
        (keyring(&format!("{host}/other"), "me", "secret"), "UNAUTHORIZED: authentication required"),
    ] {
        let error = peer.client.pull(&name, &given, &()).await.expect_err("no entry");
        assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
        assert!(error.to_string().contains(words) && !format!("{error:?}").contains("wrong:"), "{error}");
    }
    peer.is_clean();
    registry.log.clear();
    // The first entry that fits is wrong, the second is right.
    let both = keyring(&format!("{host}/app"), "me", "old").merge(keyring(&host, "me", "secret"));
    let pulled = peer.client.pull(&name, &both, &()).await.expect("pull");
    assert_eq!(pulled.digest, digest);
    assert_eq!(registry.log.count(&["GET", "/manifests/1"]), 4, "each asked without, then with credentials");
    assert_eq!(registry.log.count(&["GET", "/blobs/"]), 3, "what was accepted is used at once");
    // What others were allowed does not count for who has nothing.
    let error = peer.client.pull(&name, &Keyring::default(), &()).await.expect_err("no credentials");
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
    let target = reference(&registry.name("copy:1"));
    let pushed = peer.client.push(&name.to_string(), &target, &both, &()).await.expect("push");
    assert_eq!(pushed.blobs_reused, 3);
}

/// A token service, and what it was asked.
async fn token_service() -> (crate::support::Server, Arc<Mutex<Vec<String>>>) {
    let (listener, host) = listen().await;
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&asked);
    let answer = move |request: Request| {
        let log = Arc::clone(&log);
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.expect("body").to_bytes();
            let body = String::from_utf8_lossy(&body).into_owned();
            let basic = parts.headers.get("authorization").and_then(|value| value.to_str().ok());
            let line = format!("{} {} {} {body}", parts.method, parts.uri, basic.unwrap_or("-"));
            // user:right
            let good = line.contains("dXNlcjpyaWdodA==") || body.contains("refresh_token=identity");
            log.lock().expect("log").push(line);
            match good {
                true => reply(200, &[], r#"{"token":"good","expires_in":300}"#),
                false if basic.is_some() => {
                    reply(401, &[], r#"{"details":"incorrect username or password"}"#)
                }
                false => reply(200, &[], r#"{"access_token":"anonymous"}"#),
            }
        }
    };
    let server = serve(listener, &host, Router::new().route("/token", any(answer)));
    (server, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens() {
    let (service, asked) = token_service().await;
    let realm = format!("http://{}/token", service.host);
    let challenge =
        format!("Bearer realm=\"{realm}\",service=\"the registry\",scope=\"repository:app:pull\"");
    let registry = Registry::interfered(move |parts, _| {
        let token = parts.headers.get("authorization").and_then(|value| value.to_str().ok());
        let words = r#"{"errors":[{"code":"UNAUTHORIZED","message":"access to app denied"}]}"#;
        (token != Some("Bearer good")).then(|| reply(401, &[("www-authenticate", &challenge)], words))
    })
    .await;
    registry.add("app:1", &image(&[1000, 2000]));
    let (name, host, peer) = (reference(&registry.name("app:1")), registry.server.host.clone(), Peer::new());
    let take = || std::mem::take(&mut *asked.lock().expect("log"));

    let error = peer.client.pull(&name, &Keyring::default(), &()).await.expect_err("anonymous");
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
    assert!(error.to_string().contains("access to app denied"), "{error}");
    assert_eq!(take(), ["GET /token?service=the%20registry&scope=repository%3Aapp%3Apull - "]);

    let wrong = keyring(&host, "user", "wrong");
    let error = peer.client.pull(&name, &wrong, &()).await.expect_err("wrong password");
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
    assert!(error.to_string().contains("127.0.0.1: incorrect username or password (status 401)"), "{error}");
    take();

    peer.client.pull(&name, &keyring(&host, "user", "right"), &()).await.expect("pull");
    let once = take();
    assert_eq!(once.len(), 1, "one token for all: {once:?}");
    assert!(once[0].contains("account=user Basic dXNlcjpyaWdodA=="), "{once:?}");

    let text = serde_json::json!({"auths": {host.as_str(): {"identitytoken": "identity"}}}).to_string();
    let identity = Keyring::from_docker_config(text.as_bytes()).expect("keyring");
    let other = Peer::new();
    other.client.pull(&name, &identity, &()).await.expect("pull");
    let once = take();
    assert!(once.len() == 1 && once[0].starts_with("POST /token - grant_type=refresh_token"), "{once:?}");

    let text = serde_json::json!({"auths": {host.as_str(): {"registrytoken": "good"}}}).to_string();
    let direct = Keyring::from_docker_config(text.as_bytes()).expect("keyring");
    Peer::new().client.pull(&name, &direct, &()).await.expect("pull");
    assert!(take().is_empty());

    // For a push, the token has to be for both.
    let target = reference(&registry.name("app:2"));
    peer.client.push(&name.to_string(), &target, &identity, &()).await.expect("push");
    assert_eq!(take().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_go_nowhere_else() {
    // A registry on this machine that wants them sent elsewhere without encryption.
    let realms = [
        "http://10.255.255.1/token",
        "http://example.com/token",
        "ftp://127.0.0.1/",
        "",
        "https://u:p@127.0.0.1/",
    ];
    for realm in realms {
        let challenge = format!("Bearer realm=\"{realm}\"");
        let registry =
            Registry::interfered(move |_, _| Some(reply(401, &[("www-authenticate", &challenge)], ""))).await;
        let peer = Peer::new();
        let name = reference(&registry.name("app:1"));
        let given = keyring(&registry.server.host, "user", "hunter2");
        let error = peer.client.pull(&name, &given, &()).await.expect_err(realm);
        assert!(matches!(error, RegistryError::Refused { .. }), "{realm}: {error}");
        assert!(error.to_string().contains("wants credentials sent to"), "{error}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        assert_eq!(registry.log.count(&[]), 1, "{realm}: once");
    }

    // A blob that is elsewhere: the other side learns nothing.
    let (listener, elsewhere) = listen().await;
    let seen: Arc<Mutex<Vec<http::HeaderMap>>> = Arc::default();
    let layout = image(&[1000]);
    let blobs = crate::support::blobs(&layout);
    let log = Arc::clone(&seen);
    let storage = move |request: Request| {
        log.lock().expect("log").push(request.headers().clone());
        let digest = request.uri().path().trim_start_matches('/').to_owned();
        let body = blobs.get(&digest).cloned().unwrap_or_default();
        async move { reply(200, &[], body) }
    };
    let _storage = serve(listener, &elsewhere, Router::new().route("/{digest}", any(storage)));
    let users = Users::default().with("user", "hunter2");
    let registry = Registry::with(
        users,
        Box::new(move |parts, _| {
            let (_, digest) = parts.uri.path().split_once("/blobs/")?;
            Some(reply(307, &[("location", &format!("http://{elsewhere}/{digest}"))], ""))
        }),
    )
    .await;
    registry.add("app:1", &layout);
    let given = keyring(&registry.server.host, "user", "hunter2");
    let peer = Peer::new();
    peer.client.pull(&reference(&registry.name("app:1")), &given, &()).await.expect("pull");
    let seen = seen.lock().expect("log");
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|headers| !headers.contains_key("authorization")), "{seen:?}");
}

/// Runs this test's other half with a PATH of its own, since the environment belongs to all threads.
#[test]
fn helpers() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("directory");
    let helper = |name: &str, script: &str| {
        let path = dir.path().join(format!("docker-credential-{name}"));
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("mode");
    };
    helper(
        "good",
        r#"read server; echo "{\"ServerURL\":\"$server\",\"Username\":\"me\",\"Secret\":\"secret\"}""#,
    );
    helper("none", "echo 'credentials not found in native keychain'; exit 1");
    helper("bad", "echo 'the keychain is locked'; exit 1");
    helper("noise", "echo hunter2");
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap_or_default());
    let ran = std::process::Command::new(std::env::current_exe().expect("exe"))
        .args(["--exact", "credentials::helpers_child", "--ignored", "--nocapture"])
        .env("PATH", path)
        .env("DOCKER_CONFIG", dir.path())
        .status()
        .expect("run");
    assert!(ran.success());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "is started by helpers"]
async fn helpers_child() {
    let Some(dir) = std::env::var_os("DOCKER_CONFIG").map(std::path::PathBuf::from) else { return };
    let registry = Registry::with(Users::default().with("me", "secret"), Box::new(|_, _| None)).await;
    registry.add("app:1", &image(&[1000]));
    let (name, host, peer) = (reference(&registry.name("app:1")), &registry.server.host, Peer::new());
    let table = [
        (format!(r#"{{"credHelpers":{{"{host}":"good"}},"credsStore":"bad"}}"#), ""),
        (r#"{"credsStore":"good"}"#.to_owned(), ""),
        (format!(r#"{{"auths":{{"{host}":{{"auth":"bWU6c2VjcmV0"}}}},"credsStore":"none"}}"#), ""),
        (r#"{"credsStore":"none"}"#.to_owned(), "authentication required"),
        (r#"{"credsStore":"bad"}"#.to_owned(), "failed: the keychain is locked"),
        (r#"{"credsStore":"noise"}"#.to_owned(), "did not answer with JSON"),
        (r#"{"credsStore":"missing"}"#.to_owned(), "docker-credential-missing"),
        (r#"{"credsStore":"../../bin/x"}"#.to_owned(), "is not the name of a helper"),
    ];
    for (config, expected) in table {
        std::fs::write(dir.join("config.json"), &config).expect("write");
        let keyring = Keyring::of_user().expect("keyring");
        match peer.client.pull(&name, &keyring, &()).await {
            Ok(_) => assert!(expected.is_empty(), "{config}"),
            Err(error) => {
                let error = error.to_string();
                assert!(!expected.is_empty() && error.contains(expected), "{config}: {error}");
                assert!(!error.contains("hunter2"), "{error}");
            }
        }
    }
}
