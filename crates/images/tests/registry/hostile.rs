//! A registry that answers slowly, wrongly or half: the message says what, nothing of it is visible, and what did
//! arrive well is used next time.

use crate::common::{Layout, Tar, config_json, gzip};
use crate::support::{Peer, Registry, blobs, broken, image, largest, listen, noise, reply, serve};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::any;
use cumulet_images::{Digest, ImageError, Keyring, Pulled, Reference, RegistryError};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

async fn pull(peer: &Peer, name: &str) -> Result<Pulled, RegistryError> {
    peer.client.pull(&Reference::parse(name).expect("reference"), &Keyring::default(), &()).await
}

/// One interference with the largest blob of an image: what becomes of the pull.
async fn with_blob(
    layout: &Layout,
    interfere: impl Fn(&http::request::Parts, usize, &[u8]) -> Option<Response> + Send + Sync + 'static,
) -> (Registry, Peer, Result<Pulled, RegistryError>) {
    let (digest, data) = largest(layout);
    let registry = Registry::interfered(move |parts, n| {
        let this = parts.uri.path().ends_with(&digest);
        if this { interfere(parts, n, &data) } else { None }
    })
    .await;
    registry.add("app:1", layout);
    let peer = Peer::new();
    let pulled = pull(&peer, &registry.name("app:1")).await;
    (registry, peer, pulled)
}

fn partial(peer: &Peer, digest: &str) -> u64 {
    let hex = digest.trim_start_matches("sha256:");
    std::fs::metadata(peer.dir.path().join("partial").join(hex)).map_or(0, |metadata| metadata.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_is_resumed() {
    let layout = image(&[3_000_000]);
    let (digest, data) = largest(&layout);
    let (registry, peer, pulled) =
        with_blob(&layout, |_, n, data| (n == 0).then(|| broken(data.len(), data[..2_000_000].to_vec())))
            .await;
    let pulled = pulled.expect("pull");
    let asked = registry.log.seen(&["GET", &digest]);
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].get("range").map(|range| range.to_str().expect("text")), Some("bytes=2000000-"));
    assert!(pulled.bytes_fetched < data.len() as u64 + 1000, "nothing came twice: {pulled:?}");
    assert_eq!(peer.store.verify().expect("verify"), Vec::<String>::new());

    // It breaks for good: what came stays, and the next pull only fetches the rest.
    let (listener, host) = listen().await;
    drop(listener);
    let (registry, peer, pulled) =
        with_blob(&layout, |parts, n, data| match (n < 4, parts.headers.contains_key("range")) {
            (true, false) => Some(broken(data.len(), data[..500_000].to_vec())),
            (true, true) => Some(reply(503, &[], "maintenance")),
            (false, _) => None,
        })
        .await;
    let error = pulled.expect_err("it does not come");
    assert!(matches!(error, RegistryError::Unavailable { .. }), "{error} {host}");
    assert!(
        error.to_string().contains("maintenance (status 503)") && error.to_string().contains(&digest),
        "{error}"
    );
    peer.is_clean();
    assert_eq!(partial(&peer, &digest), 500_000);
    let pulled = pull(&peer, &registry.name("app:1")).await.expect("pull");
    assert_eq!(pulled.bytes_fetched, data.len() as u64 - 500_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_without_ranges_start_over() {
    let layout = image(&[3_000_000]);
    let (registry, peer, pulled) = with_blob(&layout, |_, n, data| {
        let whole = reply(200, &[], data.to_vec());
        Some(if n == 0 { broken(data.len(), data[..1_500_000].to_vec()) } else { whole })
    })
    .await;
    pulled.expect("pull");
    assert_eq!(registry.log.count(&["GET", &largest(&layout).0]), 2);
    assert_eq!(peer.store.verify().expect("verify"), Vec::<String>::new());

    // Another part than was asked for.
    let (_, peer, pulled) = with_blob(&layout, |_, n, data| match n {
        0 => Some(broken(data.len(), data[..1_500_000].to_vec())),
        1 => {
            let range = format!("bytes 5-{}/{}", data.len() - 1, data.len());
            Some(reply(206, &[("content-range", &range)], data[5..].to_vec()))
        }
        2 => Some(broken(data.len(), data[..1_500_000].to_vec())),
        3 => Some(reply(416, &[], "")),
        _ => None,
    })
    .await;
    pulled.expect("pull");
    assert_eq!(peer.store.verify().expect("verify"), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_from_a_liar_is_not_held_against_the_next() {
    let layout = image(&[3_000_000]);
    let (digest, data) = largest(&layout);
    let (liar, honest) = (listen().await, Registry::start().await);
    honest.add("app:1", &layout);
    let peer = Peer::new();
    // The first two thirds are wrong, and then it breaks off.
    let lying = {
        let (digest, data) = (digest.clone(), data.clone());
        Registry::interfered(move |parts, _| {
            parts.uri.path().ends_with(&digest).then(|| broken(data.len(), noise(99, 2_000_000)))
        })
        .await
    };
    lying.add("app:1", &layout);
    pull(&peer, &lying.name("app:1")).await.expect_err("it breaks off");
    assert!(partial(&peer, &digest) >= 2_000_000);
    pull(&peer, &honest.name("app:1")).await.expect("all of it once more");
    assert_eq!(peer.store.verify().expect("verify"), Vec::<String>::new());
    drop(liar);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_blobs() {
    type Act = fn(&[u8]) -> Response;
    let drip: Act = |data| {
        let chunks: Vec<Vec<u8>> = data.chunks(100).map(<[u8]>::to_vec).collect();
        let slow = futures_util::stream::unfold(chunks.into_iter(), |mut chunks| async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Some((Ok::<_, Infallible>(chunks.next()?), chunks))
        });
        reply(200, &[], Body::from_stream(slow))
    };
    let silent: Act = |data| {
        let one = futures_util::stream::iter([Ok::<_, Infallible>(data[..1000].to_vec())]);
        let rest = futures_util::StreamExt::chain(one, futures_util::stream::pending());
        reply(200, &[("content-length", &data.len().to_string())], Body::from_stream(rest))
    };
    let table: [(&str, Act, &str, usize); 9] = [
        ("another content", |data| reply(200, &[], noise(7, data.len())), "content with digest sha256:", 1),
        ("longer", |data| reply(200, &[], [data, b"x"].concat()), "bytes instead of", 1),
        ("longer, not announced", |data| reply(200, &[], stream([data, b"x"].concat())), "more than the", 1),
        ("shorter", |data| reply(200, &[], data[1..].to_vec()), "bytes instead of", 1),
        ("truncated", |data| reply(200, &[], stream(data[..1000].to_vec())), "it broke off after 1000 of", 4),
        ("silent", silent, "nothing more came after 1000 of", 4),
        ("dripping", drip, "bytes in 0.7 seconds are too few", 4),
        (
            "not found",
            |_| reply(404, &[], r#"{"errors":[{"code":"BLOB_UNKNOWN"}]}"#),
            "BLOB_UNKNOWN (status 404)",
            1,
        ),
        ("denied", |_| reply(403, &[], "no\u{7}\nway"), "unauthorized: ", 1),
    ];
    for (case, act, words, times) in table {
        let layout = image(&[300_000]);
        // Whatever is left of the blob is answered in the same bad way.
        let (registry, peer, pulled) = with_blob(&layout, move |parts, _, data| {
            let from = parts.headers.get("range").and_then(|range| {
                range.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok()
            });
            from.map_or_else(|| Some(act(data)), |_| Some(reply(503, &[], words)))
        })
        .await;
        let error = pulled.expect_err(case).to_string();
        assert!(error.contains(words) && error.contains(&largest(&layout).0), "{case}: {error}");
        assert!(!error.chars().any(char::is_control), "{case}: {error:?}");
        assert_eq!(registry.log.count(&["GET", &largest(&layout).0]), times, "{case}");
        peer.is_clean();
    }
}

/// A body of which the length is not told.
fn stream(data: Vec<u8>) -> Body {
    Body::from_stream(futures_util::stream::iter([Ok::<_, Infallible>(data)]))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_waited_for_and_what_does_not_is_not() {
    let unavailable = r#"{"errors":[{"code":"UNAVAILABLE","message":"down for\tmaintenance"}]}"#;
    // Status and header, how often it comes, how many requests that makes, the words if it ends badly, and how many
    // milliseconds it takes at least.
    type Case = (u16, &'static str, usize, usize, Option<&'static str>, u128);
    let table: [Case; 8] = [
        (500, "", 2, 3, None, 0),
        (503, "", 3, 4, None, 0),
        (503, "", 9, 4, Some("down for maintenance (status 503)"), 0),
        (429, "1", 1, 2, None, 1000),
        (429, "3600", 9, 1, Some("is unavailable: UNAVAILABLE"), 0),
        (404, "", 9, 1, Some("not found: "), 0),
        (400, "", 9, 1, Some("refuses: UNAVAILABLE"), 0),
        (418, "", 9, 1, Some("(status 418)"), 0),
    ];
    for (status, retry_after, failures, times, words, least) in table {
        let registry = Registry::interfered(move |parts, n| {
            let bad = parts.uri.path().contains("/manifests/") && n < failures;
            bad.then(|| reply(status, &[("retry-after", retry_after)], unavailable))
        })
        .await;
        registry.add("app:1", &image(&[1000]));
        let (peer, start) = (Peer::new(), Instant::now());
        let pulled = pull(&peer, &registry.name("app:1")).await;
        match words {
            None => drop(pulled.expect("pull")),
            Some(words) => {
                let error = pulled.expect_err("no").to_string();
                assert!(error.contains(words) && error.contains("app:1"), "{error}");
                peer.is_clean();
            }
        }
        assert_eq!(registry.log.count(&["/manifests/"]), times, "{status} {retry_after}");
        assert!(start.elapsed().as_millis() >= least, "{status} {retry_after}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_manifests() {
    let layer = Tar::new().file("f", b"x").finish();
    let config = config_json(&[Digest::of(&layer)]).to_string();
    let blob = |media: &str, data: &[u8]| json!({"mediaType": media, "digest": Digest::of(data).as_str(), "size": data.len()});
    let of = |config: &Value, layers: &[Value]| {
        json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string()
    };
    let oci_config = blob("application/vnd.oci.image.config.v1+json", config.as_bytes());
    let tar = "application/vnd.oci.image.layer.v1.tar";
    let packed = gzip(&layer);
    let good = blob(tar, &packed);
    let huge = json!({"mediaType": tar, "digest": Digest::of(b"h").as_str(), "size": u64::MAX});
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let index = json!({"schemaVersion": 2, "manifests": [{
        "digest": Digest::of(b"child").as_str(), "size": 5, "platform": {"os": "linux", "architecture": arch},
    }]});
    let short = config_json(&[]).to_string();
    let short_config = blob("application/vnd.oci.image.config.v1+json", short.as_bytes());
    let wrong = config_json(&[Digest::of(b"another")]).to_string();
    let wrong_config = blob("application/vnd.oci.image.config.v1+json", wrong.as_bytes());
    let text = blob("application/vnd.oci.image.config.v1+json", b"no JSON");
    let bad_size =
        json!({"mediaType": tar, "digest": Digest::of(&packed).as_str(), "size": packed.len() + 1});
    let table = [
        ("not JSON", "\u{1b}[31m".to_owned(), "malformed"),
        ("schema 1", r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), "only schema version 2"),
        ("too large", " ".repeat((4 << 20) + 1), "larger than 4194304 bytes"),
        ("a foreign media type", of(&oci_config, &[blob("text/html", b"x")]), "has media type \"text/html\""),
        ("more layers than are allowed", of(&oci_config, &vec![good.clone(); 300]), "300 layers"),
        ("a huge layer", of(&oci_config, &[huge]), "18446744073709551615 bytes"),
        ("an index that leads nowhere", index.to_string(), "not found"),
        ("fewer layers in the configuration", of(&short_config, std::slice::from_ref(&good)), "1 layers"),
        ("another layer in the configuration", of(&wrong_config, &[good]), "has digest"),
        ("a configuration that is none", of(&text, &[]), "no configuration"),
        ("a size that is wrong", of(&oci_config, &[bad_size]), "bytes instead of"),
    ];
    let all: Vec<(String, Vec<u8>)> =
        [config.as_bytes(), &packed, short.as_bytes(), wrong.as_bytes(), b"no JSON"]
            .into_iter()
            .map(|data| (Digest::of(data).to_string(), data.to_vec()))
            .collect();
    for (case, manifest, words) in table {
        let all = all.clone();
        let answer = move |request: Request| {
            let path = request.uri().path().to_owned();
            let blob = all.iter().find(|(digest, _)| path.ends_with(digest)).map(|(_, data)| data.clone());
            let manifest = path.ends_with("/manifests/1").then(|| manifest.clone().into_bytes());
            async move { blob.or(manifest).map_or_else(|| reply(404, &[], ""), |body| reply(200, &[], body)) }
        };
        let (listener, host) = listen().await;
        let server = serve(listener, &host, Router::new().fallback(any(answer)));
        let peer = Peer::new();
        let error = pull(&peer, &format!("{}/app:1", server.host)).await.expect_err(case).to_string();
        assert!(error.contains(words) && error.contains("app:1"), "{case}: {error}");
        assert!(!error.chars().any(char::is_control), "{case}: {error:?}");
        peer.is_clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_that_is_not_that_of_the_manifest() {
    let other = Digest::of(b"other");
    let told = other.clone();
    let registry = Registry::interfered(move |parts, _| {
        let manifest = r#"{"schemaVersion":2,"manifests":[]}"#;
        let tag = parts.uri.path().contains("/manifests/");
        tag.then(|| reply(200, &[("docker-content-digest", told.as_str())], manifest))
    })
    .await;
    for name in ["app:1".to_owned(), format!("app@{other}")] {
        let peer = Peer::new();
        let error = pull(&peer, &registry.name(&name)).await.expect_err("another digest");
        assert!(matches!(error, RegistryError::Content { .. }), "{error}");
        assert!(error.to_string().contains(&format!("instead of {other}")), "{error}");
        peer.is_clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_end() {
    let table = [
        ("/v2/app/manifests/1?again", "more than 5 redirects", 6),
        ("http://10.255.255.1/x", "where we may not go", 1),
        ("file:///etc/passwd", "where we may not go", 1),
        ("", "where we may not go", 1),
    ];
    for (location, words, times) in table {
        let registry =
            Registry::interfered(move |_, _| Some(reply(302, &[("location", location)], ""))).await;
        let peer = Peer::new();
        let error = pull(&peer, &registry.name("app:1")).await.expect_err(location);
        assert!(matches!(error, RegistryError::Content { .. }), "{error}");
        assert!(error.to_string().contains(words), "{location}: {error}");
        assert_eq!(registry.log.count(&[]), times, "{location}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_none() {
    // Accepts and says nothing.
    let (listener, host) = listen().await;
    let peer = Peer::new();
    let error = pull(&peer, &format!("{host}/app:1")).await.expect_err("silence");
    assert!(matches!(error, RegistryError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("nothing came for 0.7 seconds"), "{error}");
    drop(listener);
    let error = pull(&peer, &format!("{host}/app:1")).await.expect_err("nobody listens");
    assert!(error.to_string().contains("Connection refused"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_that_fail() {
    let layout = image(&[400_000]);
    let (digest, _) = largest(&layout);
    let peer = Peer::new();
    let image = crate::common::load(&peer.store, layout.archive()).expect("load")[0].digest.clone();
    let push = async |registry: &Registry| {
        let target = Reference::parse(&registry.name("app:1")).expect("reference");
        peer.client.push(image.as_str(), &target, &Keyring::default(), &()).await
    };
    let ours = Arc::new(digest);
    let act = |status: u16, times: usize| {
        let ours = Arc::clone(&ours);
        Registry::interfered(move |parts, n| {
            let this = parts.method == "PUT" && parts.uri.to_string().contains(&ours.replace(':', "%3A"));
            // Every upload has an address of its own: what counts is the order in which they begin.
            let begins = parts.method == "POST" && n < times;
            (this && times == usize::MAX || begins).then(|| {
                reply(status, &[], r#"{"errors":[{"code":"DENIED","message":"the quota is used up"}]}"#)
            })
        })
    };
    let flaky = act(502, 2).await;
    let pushed = push(&flaky).await.expect("push");
    assert_eq!(pushed.digest, image);
    assert_eq!(flaky.store.resolve(&flaky.name("app:1")).expect("resolve").digest, image);

    let full = act(403, usize::MAX).await;
    let error = push(&full).await.expect_err("quota");
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
    assert!(error.to_string().contains("DENIED: the quota is used up"), "{error}");
    assert!(full.store.list().expect("list").is_empty());

    // It takes everything and makes something else of it.
    let liar = Registry::interfered(|parts, _| {
        let manifest = parts.method == "PUT" && parts.uri.path().contains("/manifests/");
        manifest.then(|| reply(201, &[("docker-content-digest", Digest::of(b"other").as_str())], ""))
    })
    .await;
    let error = push(&liar).await.expect_err("another digest");
    assert!(matches!(error, RegistryError::Content { .. }), "{error}");

    // It never reads what it is sent.
    let stuck = {
        let (listener, host) = listen().await;
        let answer = |request: Request| async move {
            match request.method().as_str() {
                "HEAD" => reply(404, &[], ""),
                "POST" => reply(202, &[("location", "/v2/app/blobs/uploads/1")], ""),
                _ => std::future::pending().await,
            }
        };
        serve(listener, &host, Router::new().fallback(any(answer)))
    };
    let target = Reference::parse(&format!("{}/app:1", stuck.host)).expect("reference");
    let error = peer.client.push(image.as_str(), &target, &Keyring::default(), &()).await.expect_err("stuck");
    assert!(matches!(error, RegistryError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("nothing came for"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_cannot_be_unpacked() {
    let bomb = Tar::new().raw(tar::EntryType::Regular, "../../escape", "", 0o644, b"x").finish();
    let layout = Layout::new("nameless", &[bomb], gzip);
    let all = blobs(&layout);
    let root = layout.index["manifests"][0]["digest"].as_str().expect("digest").to_owned();
    let answer = move |request: Request| {
        let path = request.uri().path().replace("/manifests/1", &format!("/{root}"));
        let body = all.iter().find(|(digest, _)| path.ends_with(*digest)).map(|(_, data)| data.clone());
        async move { body.map_or_else(|| reply(404, &[], ""), |body| reply(200, &[], body)) }
    };
    let (listener, host) = listen().await;
    let server = serve(listener, &host, Router::new().fallback(any(answer)));
    let peer = Peer::new();
    let error = pull(&peer, &format!("{}/app:1", server.host)).await.expect_err("an escape");
    assert!(matches!(error, RegistryError::Image(ImageError::Entry { .. })), "{error}");
    assert!(error.to_string().contains("../../escape"), "{error}");
    peer.is_clean();
}
