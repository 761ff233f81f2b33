//! The client and the endpoint with each other.

use crate::common::{Layout, Tar, gzip, load, zstd};
use crate::support::{Peer, Recorder, Registry, ask, client_of, image, image_packed, noise};
use cumulet_images::{Client, Digest, ImageError, Keyring, Reference, RegistriesConfig, RegistryError};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn reference(text: &str) -> Reference {
    Reference::parse(text).expect("reference")
}

async fn pull(client: &Client, name: &str) -> Result<cumulet_images::Pulled, RegistryError> {
    client.pull(&reference(name), &Keyring::default(), &()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_is_pulled_as_it_was() {
    type Pack = fn(&[u8]) -> Vec<u8>;
    let packs: [(&str, Pack); 3] = [("gzip", gzip), ("zstd", zstd), ("plain", <[u8]>::to_vec)];
    for (name, pack) in packs {
        let (registry, from, to) = (Registry::start().await, Peer::new(), Peer::new());
        let layout = image_packed(&[100, 300_000, 2_000_000], pack);
        let digest = load(&from.store, layout.archive()).expect("load")[0].digest.clone();
        let target = registry.name(&format!("team/{name}:1"));
        let recorder = Recorder::default();
        let (there, keyring) = (reference(&target), Keyring::default());
        let pushed = from.client.push(digest.as_str(), &there, &keyring, &recorder).await.expect(name);
        assert_eq!((&pushed.digest, pushed.blobs, pushed.blobs_reused, pushed.whole), (&digest, 4, 0, true));
        assert_eq!(recorder.total.load(Ordering::Relaxed), pushed.bytes_sent, "{name}");
        assert_eq!(recorder.done.load(Ordering::Relaxed), pushed.bytes_sent, "{name}");
        assert_eq!(registry.store.resolve(&target).expect("runs at once").digest, digest, "{name}");

        let recorder = Recorder::default();
        let pulled = to.client.pull(&reference(&target), &Keyring::default(), &recorder).await.expect(name);
        assert_eq!((&pulled.digest, &pulled.manifest), (&digest, &digest), "{name}");
        assert_eq!((pulled.bytes_fetched, pulled.layers, pulled.layers_reused), (pushed.bytes_sent, 3, 0));
        assert_eq!(recorder.done.load(Ordering::Relaxed), recorder.total.load(Ordering::Relaxed), "{name}");
        assert_eq!(recorder.moved.load(Ordering::Relaxed), 4, "{name}");
        let (a, b) = (from.store.resolve(digest.as_str()).expect("a"), to.store.resolve(&target).expect("b"));
        assert_eq!((a.digest, a.id, a.config), (b.digest, b.id.clone(), b.config), "{name}");
        assert_eq!(pulled.image_id, b.id);
        assert_eq!(std::fs::read(b.layers[2].join("file2")).expect("file"), noise(3, 2_000_000), "{name}");

        // All there: nothing moves any more.
        let again = pull(&to.client, &target).await.expect("again");
        assert_eq!((again.bytes_fetched, again.layers_reused), (0, 3), "{name}");
        let again =
            to.client.push(&target, &reference(&target), &Keyring::default(), &()).await.expect("again");
        assert_eq!((again.bytes_sent, again.blobs_reused), (0, 4), "{name}");
        for store in [&from.store, &to.store, &registry.store] {
            assert_eq!(store.verify().expect("verify"), Vec::<String>::new(), "{name}");
        }
        assert!(std::fs::read_dir(to.dir.path().join("partial")).expect("partial").next().is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pulling_by_digest() {
    let (registry, peer) = (Registry::start().await, Peer::new());
    let digest = registry.add("app:1", &image(&[1000]));
    let name = registry.name(&format!("app@{digest}"));
    assert_eq!(pull(&peer.client, &name).await.expect("pull").digest, digest);
    assert_eq!(peer.store.resolve(&name).expect("by digest").digest, digest);
    assert!(peer.store.resolve(&registry.name("app:1")).is_err(), "a tag was not asked for");
    assert!(peer.store.prune(&[]).expect("prune").images.is_empty(), "what was pulled by digest stays");
    let tagged = registry.name(&format!("app:7@{digest}"));
    assert_eq!(pull(&peer.client, &tagged).await.expect("the digest counts, not the tag").digest, digest);
    let other = registry.name(&format!("app@{}", Digest::of(b"other")));
    let error = pull(&peer.client, &other).await.expect_err("unknown");
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
}

/// Puts an index of this machine's platform and another one into a registry: its digest.
async fn put_index(registry: &Registry) -> Digest {
    let host = &registry.server.host;
    let here = image(&[5000]);
    let mine = registry.add("multi:here", &here);
    let size = here.blobs.iter().find(|(hex, _)| hex == mine.hex()).expect("manifest").1.len();
    let config =
        json!({"architecture": "s390x", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}});
    let config = config.to_string();
    let upload = format!("/v2/multi/blobs/uploads/?digest={}", Digest::of(config.as_bytes()));
    assert_eq!(ask(host, "POST", &upload, &[], config.as_bytes()).await.status, 201);
    let other = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                   "digest": Digest::of(config.as_bytes()).as_str(), "size": config.len()},
        "layers": [],
    })
    .to_string();
    let theirs = Digest::of(other.as_bytes());
    let put = ask(host, "PUT", &format!("/v2/multi/manifests/{theirs}"), &[], other.as_bytes()).await;
    assert_eq!(put.status, 201, "{:?}", put.body);
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let entry = |digest: &Digest, size: usize, arch: &str| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.as_str(), "size": size,
            "platform": {"os": "linux", "architecture": arch},
        })
    };
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry(&theirs, other.len(), "s390x"), entry(&mine, size, arch)],
    })
    .to_string();
    let put = ask(host, "PUT", "/v2/multi/manifests/1", &[], index.as_bytes()).await;
    assert_eq!(put.status, 201, "{:?}", put.body);
    Digest::of(index.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes() {
    let (first, second, peer) = (Registry::start().await, Registry::start().await, Peer::new());
    let index = put_index(&first).await;
    let name = first.name("multi:1");
    let pulled = pull(&peer.client, &name).await.expect("pull");
    assert_eq!((&pulled.digest, pulled.layers), (&index, 1));
    assert_ne!(pulled.manifest, index);
    assert_eq!(peer.store.resolve(&name).expect("resolve").digest, pulled.manifest);
    assert_eq!(peer.store.verify().expect("verify"), Vec::<String>::new());
    let rows = peer.store.list().expect("list");
    assert_eq!((rows.len(), rows[0].refs.len()), (1, 1), "{rows:?}");

    // What was pulled is for one platform; the registry's own store has both.
    let target = reference(&second.name("copy:1"));
    let pushed = peer.client.push(&name, &target, &Keyring::default(), &()).await.expect("push");
    assert_eq!((&pushed.digest, pushed.whole), (&pulled.manifest, false));
    let own = client_of_store(&first);
    let target = reference(&second.name("copy:2"));
    let pushed = own.push(&name, &target, &Keyring::default(), &()).await.expect("push");
    assert_eq!((&pushed.digest, pushed.whole), (&index, true));
    let got = ask(&second.server.host, "GET", "/v2/copy/manifests/2", &[], b"").await;
    assert_eq!((got.status, Digest::of(&got.body)), (200, index));
    assert_eq!(second.store.verify().expect("verify"), Vec::<String>::new());
}

fn client_of_store(registry: &Registry) -> Client {
    Client::new(registry.store.clone(), crate::support::quick()).expect("client")
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_pulls_fetch_each_blob_once() {
    let (registry, peer) = (Registry::start().await, Peer::new());
    let layout = image(&[3_000_000, 2_000_000, 1_000_000]);
    let digest = registry.add("app:1", &layout);
    registry.add("app:2", &layout);
    let target = (reference(&registry.name("app:1")), reference(&registry.name("app:2")));
    // A client of its own stands for another process: it knows of the others only by the files in the store.
    let stranger = Arc::new(client_of(peer.dir.path(), RegistriesConfig::default()));
    let mut pulls = tokio::task::JoinSet::new();
    for i in 0..12 {
        let client = Arc::clone(if i % 3 == 0 { &stranger } else { &peer.client });
        let target = if i % 2 == 0 { target.0.clone() } else { target.1.clone() };
        pulls.spawn(async move { client.pull(&target, &Keyring::default(), &()).await });
    }
    let mut fetched = 0;
    for pulled in pulls.join_all().await {
        let pulled = pulled.expect("pull");
        assert_eq!(pulled.digest, digest);
        fetched += pulled.bytes_fetched;
    }
    let mut size = 0;
    for (hex, data) in layout.blobs.iter().filter(|(hex, _)| hex != digest.hex()) {
        assert_eq!(registry.log.count(&["GET", "/blobs/", hex]), 1, "{hex}");
        size += data.len() as u64;
    }
    assert_eq!(fetched, size);
    assert_eq!(peer.store.verify().expect("verify"), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_pull_goes_on_later() {
    let registry = Registry::start().await;
    let peer = Peer::new();
    registry.add("app:1", &image(&[8_000_000, 8_000_000]));
    let name = reference(&registry.name("app:1"));
    for i in 0..12_u64 {
        let patience = std::time::Duration::from_millis(i * 4);
        let keyring = Keyring::default();
        let _ = tokio::time::timeout(patience, peer.client.pull(&name, &keyring, &())).await;
    }
    pull(&peer.client, &name.to_string()).await.expect("pull");
    assert_eq!(peer.store.verify().expect("verify"), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_come_first() {
    let (empty, full, origin) = (Registry::start().await, Registry::start().await, Registry::start().await);
    let digest = full.add("library/app:1", &image(&[1000]));
    let only_origin = origin.add("library/late:1", &image(&[2000]));
    let mirrors =
        vec!["127.0.0.1:1".to_owned(), empty.server.host.clone(), format!("http://{}", full.server.host)];
    let registries = RegistriesConfig {
        mirrors: [("docker.io".to_owned(), mirrors.clone()), (origin.server.host.clone(), mirrors)].into(),
        insecure: Vec::new(),
    };
    let peer = Peer::with(registries);
    assert_eq!(pull(&peer.client, "app:1").await.expect("from a mirror").digest, digest);
    assert_eq!(peer.store.resolve("app:1").expect("under its own name").digest, digest);
    assert_eq!(empty.log.count(&["GET", "/manifests/1"]), 1);
    let late = origin.name("library/late:1");
    assert_eq!(pull(&peer.client, &late).await.expect("from the origin").digest, only_origin);
    let error = pull(&peer.client, &origin.name("library/none:1")).await.expect_err("nowhere");
    assert!(
        matches!(&error, RegistryError::NotFound { registry, .. } if *registry == origin.server.host),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_that_a_mirror_lacks_come_from_the_origin() {
    let layout = image(&[1000, 2000]);
    let lacking = format!("sha256:{}", layout.blobs[2].0);
    let broken = Registry::interfered(move |parts, _| {
        let gone = parts.uri.path().ends_with(&lacking);
        gone.then(|| {
            crate::support::reply(404, &[], r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"lost"}]}"#)
        })
    })
    .await;
    let origin = Registry::start().await;
    broken.add("app:1", &layout);
    let digest = origin.add("app:1", &layout);
    let registries = RegistriesConfig {
        mirrors: [(origin.server.host.clone(), vec![broken.server.host.clone()])].into(),
        insecure: Vec::new(),
    };
    let peer = Peer::with(registries);
    assert_eq!(pull(&peer.client, &origin.name("app:1")).await.expect("pull").digest, digest);
    assert_eq!((broken.log.count(&["/blobs/"]), origin.log.count(&["/blobs/"])), (3, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_run_here_is_refused() {
    let (registry, peer) = (Registry::start().await, Peer::new());
    let host = &registry.server.host;
    let empty =
        ask(host, "POST", &format!("/v2/a/blobs/uploads/?digest={}", Digest::of(b"{}")), &[], b"{}").await;
    assert_eq!(empty.status, 201);
    let artifact = json!({
        "schemaVersion": 2, "artifactType": "application/x.note", "layers": [],
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}").as_str(), "size": 2},
    })
    .to_string();
    assert_eq!(ask(host, "PUT", "/v2/a/manifests/note", &[], artifact.as_bytes()).await.status, 201);
    let error = pull(&peer.client, &registry.name("a:note")).await.expect_err("an artifact");
    assert!(error.to_string().contains("no image but \"application/x.note\""), "{error}");

    let index = r#"{"schemaVersion":2,"manifests":[]}"#;
    assert_eq!(ask(host, "PUT", "/v2/a/manifests/index", &[], index.as_bytes()).await.status, 201);
    let error = pull(&peer.client, &registry.name("a:index")).await.expect_err("no platform");
    assert!(matches!(error, RegistryError::Image(ImageError::Platform { .. })), "{error}");
    peer.is_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_does_not_have_is_not_pushed() {
    let (registry, peer) = (Registry::start().await, Peer::new());
    let keyring = Keyring::default();
    let error = peer.client.push("none:1", &reference(&registry.name("a:1")), &keyring, &()).await;
    assert!(matches!(error, Err(RegistryError::Image(ImageError::NotFound { .. }))), "{error:?}");
    load(&peer.store, Layout::new("a:1", &[Tar::new().finish()], gzip).archive()).expect("load");
    let pinned = reference(&registry.name(&format!("a@{}", Digest::of(b""))));
    let error = peer.client.push("a:1", &pinned, &keyring, &()).await;
    assert!(matches!(error, Err(RegistryError::Image(ImageError::BadReference { .. }))), "{error:?}");
    let nowhere = reference("127.0.0.1:1/a:1");
    let error = peer.client.push("a:1", &nowhere, &keyring, &()).await.expect_err("nobody listens");
    assert!(matches!(error, RegistryError::Unavailable { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pruning_takes_nothing_from_those_who_pull_and_push() {
    let (registry, peer) = (Registry::start().await, Peer::new());
    for i in 0..4 {
        registry.add(&format!("app:{i}"), &image(&[100_000 + i, 60_000, 70_000 + i]));
    }
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let pruners: Vec<_> = [peer.store.clone(), registry.store.clone()]
        .into_iter()
        .map(|store| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut rounds = 0;
                while !stop.load(Ordering::Relaxed) {
                    store.prune(&[]).expect("prune");
                    rounds += 1;
                }
                rounds
            })
        })
        .collect();
    for round in 0..12 {
        let name = registry.name(&format!("app:{}", round % 4));
        let pulled = pull(&peer.client, &name).await.expect("pull");
        let copy = reference(&registry.name(&format!("copy:{round}")));
        let pushed = peer.client.push(&name, &copy, &Keyring::default(), &()).await.expect("push");
        assert_eq!(pushed.digest, pulled.digest);
        peer.store.remove(&name).expect("remove");
        registry.store.remove(&copy.to_string()).expect("remove");
    }
    stop.store(true, Ordering::Relaxed);
    for pruner in pruners {
        assert!(pruner.join().expect("pruner") > 0);
    }
    for store in [&peer.store, &registry.store] {
        assert_eq!(store.verify().expect("verify"), Vec::<String>::new());
    }
}
