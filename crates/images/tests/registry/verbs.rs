//! Every verb of the distribution specification against the endpoint, as bare HTTP.

use crate::common::{Tar, config_json, gzip};
use crate::support::{Registry, ask, noise};
use cumulet_images::Digest;
use serde_json::{Value, json};

async fn push_blob(host: &str, name: &str, data: &[u8]) -> Digest {
    let digest = Digest::of(data);
    let reply = ask(host, "POST", &format!("/v2/{name}/blobs/uploads/?digest={digest}"), &[], data).await;
    assert_eq!(reply.status, 201, "{:?}", reply.body);
    digest
}

/// A manifest of one layer, whose blobs are pushed.
async fn push_parts(host: &str, name: &str, content: &[u8]) -> String {
    let layer = Tar::new().file("f", content).finish();
    let config = config_json(&[Digest::of(&layer)]).to_string();
    let packed = gzip(&layer);
    let (blob, described) =
        (push_blob(host, name, &packed).await, push_blob(host, name, config.as_bytes()).await);
    json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": described.as_str(),
                   "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": blob.as_str(),
                    "size": packed.len()}],
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads() {
    let registry = Registry::start().await;
    let host = registry.server.host.as_str();
    let base = ask(host, "GET", "/v2/", &[], b"").await;
    assert_eq!((base.status, base.header("docker-distribution-api-version")), (200, "registry/2.0"));
    let data = noise(1, 1000);
    let digest = Digest::of(&data);

    // POST, then PUT with everything.
    let begun = ask(host, "POST", "/v2/a/b/blobs/uploads/", &[], b"").await;
    assert_eq!((begun.status, begun.header("range")), (202, "0-0"));
    let place = begun.header("location").to_owned();
    assert!(place.starts_with("/v2/a/b/blobs/uploads/"), "{place}");
    let wrong = ask(host, "PUT", &format!("{place}?digest={}", Digest::of(b"other")), &[], &data).await;
    assert_eq!((wrong.status, wrong.code().as_str()), (400, "DIGEST_INVALID"));
    let gone = ask(host, "PUT", &format!("{place}?digest={digest}"), &[], &data).await;
    assert_eq!((gone.status, gone.code().as_str()), (404, "BLOB_UPLOAD_UNKNOWN"));
    let begun = ask(host, "POST", "/v2/a/b/blobs/uploads/", &[], b"").await;
    let place = begun.header("location").to_owned();
    let missing = ask(host, "PUT", &place, &[], &data).await;
    assert_eq!((missing.status, missing.code().as_str()), (400, "DIGEST_INVALID"));
    let done = ask(host, "PUT", &format!("{place}?digest={digest}"), &[], &data).await;
    assert_eq!((done.status, done.header("docker-content-digest")), (201, digest.as_str()));
    assert_eq!(done.header("location"), format!("/v2/a/b/blobs/{digest}"));

    // In chunks, asked in between, out of order, and resumed.
    let data = noise(2, 1000);
    let digest = Digest::of(&data);
    let place = ask(host, "POST", "/v2/a/b/blobs/uploads/", &[], b"").await.header("location").to_owned();
    let first = ask(host, "PATCH", &place, &[("content-range", "0-399")], &data[..400]).await;
    assert_eq!((first.status, first.header("range")), (202, "0-399"));
    let place = first.header("location").to_owned();
    let early = ask(host, "PATCH", &place, &[("content-range", "600-999")], &data[600..]).await;
    assert_eq!((early.status, early.header("range")), (416, "0-399"));
    let state = ask(host, "GET", &place, &[], b"").await;
    assert_eq!((state.status, state.header("range")), (204, "0-399"));
    let second = ask(host, "PATCH", &place, &[("content-range", "400-899")], &data[400..900]).await;
    assert_eq!((second.status, second.header("range")), (202, "0-899"));
    let elsewhere = place.replace("/v2/a/b/", "/v2/a/c/");
    assert_eq!(
        ask(host, "GET", &elsewhere, &[], b"").await.status,
        404,
        "an upload belongs to its repository"
    );
    let done = ask(host, "PUT", &format!("{place}?digest={digest}"), &[], &data[900..]).await;
    assert_eq!(done.status, 201, "{:?}", done.body);
    let got = ask(host, "GET", &format!("/v2/a/b/blobs/{digest}"), &[], b"").await;
    assert_eq!((got.status, &got.body[..]), (200, &data[..]));

    // Given up.
    let place = ask(host, "POST", "/v2/a/b/blobs/uploads/", &[], b"").await.header("location").to_owned();
    assert_eq!(ask(host, "DELETE", &place, &[], b"").await.status, 204);
    assert_eq!(ask(host, "PATCH", &place, &[], b"x").await.status, 404);

    // Mounted; and what is nowhere becomes an upload.
    let mount = format!("/v2/c/blobs/uploads/?mount={digest}&from=a/b");
    let mounted = ask(host, "POST", &mount, &[], b"").await;
    assert_eq!((mounted.status, mounted.header("location")), (201, &*format!("/v2/c/blobs/{digest}")));
    let mount = format!("/v2/c/blobs/uploads/?mount={}&from=a/b", Digest::of(b"nowhere"));
    assert_eq!(ask(host, "POST", &mount, &[], b"").await.status, 202);
    for path in ["/v2/A/blobs/uploads/", "/v2/a/../b/blobs/uploads/", "/v2/a/blobs/uploads/?digest=md5:1"] {
        assert_eq!(ask(host, "POST", path, &[], b"").await.status, 400, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_blobs() {
    let registry = Registry::start().await;
    let host = registry.server.host.as_str();
    let data = noise(1, 10_000);
    let digest = push_blob(host, "a", &data).await;
    let path = format!("/v2/a/blobs/{digest}");
    let head = ask(host, "HEAD", &path, &[], b"").await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, "10000", 0));
    assert_eq!(head.header("docker-content-digest"), digest.as_str());
    for (range, status, content, expected) in [
        ("bytes=0-9", 206, "bytes 0-9/10000", &data[..10]),
        ("bytes=9990-", 206, "bytes 9990-9999/10000", &data[9990..]),
        ("bytes=-5", 206, "bytes 9995-9999/10000", &data[9995..]),
        ("bytes=0-1,4-5", 200, "", &data[..]),
    ] {
        let part = ask(host, "GET", &path, &[("range", range)], b"").await;
        assert_eq!((part.status, part.header("content-range"), &part.body[..]), (status, content, expected));
    }
    let beyond = ask(host, "GET", &path, &[("range", "bytes=10000-")], b"").await;
    assert_eq!((beyond.status, beyond.header("content-range")), (416, "bytes */10000"));
    let unknown = ask(host, "GET", &format!("/v2/a/blobs/{}", Digest::of(b"?")), &[], b"").await;
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "BLOB_UNKNOWN"));
    let unknown = ask(host, "HEAD", &format!("/v2/a/blobs/{}", Digest::of(b"?")), &[], b"").await;
    assert_eq!(unknown.status, 404);
    assert_eq!(ask(host, "DELETE", &path, &[], b"").await.status, 202);
    assert_eq!(ask(host, "DELETE", &path, &[], b"").await.status, 404);
    assert_eq!(ask(host, "PUT", &path, &[], b"").await.status, 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests() {
    let registry = Registry::start().await;
    let host = registry.server.host.as_str();
    let manifest = push_parts(host, "a", b"1").await;
    let digest = Digest::of(manifest.as_bytes());
    let media = "application/vnd.oci.image.manifest.v1+json";
    let put = ask(host, "PUT", "/v2/a/manifests/1", &[("content-type", media)], manifest.as_bytes()).await;
    assert_eq!((put.status, put.header("docker-content-digest")), (201, digest.as_str()), "{:?}", put.body);
    for target in ["1", digest.as_str()] {
        for method in ["GET", "HEAD"] {
            let got = ask(host, method, &format!("/v2/a/manifests/{target}"), &[], b"").await;
            assert_eq!((got.status, got.header("content-type")), (200, media));
            assert_eq!(got.header("docker-content-digest"), digest.as_str());
            assert_eq!(got.header("content-length"), manifest.len().to_string());
            assert_eq!(got.body.len(), if method == "GET" { manifest.len() } else { 0 });
        }
    }
    let run = registry.store.resolve(&registry.name("a:1")).expect("what is pushed can be run");
    assert_eq!(std::fs::read(run.layers[0].join("f")).expect("file"), b"1");

    let other = Digest::of(b"other");
    let unnamed =
        manifest.replace(r#""layers""#, &format!(r#""subject":{{"digest":"{other}","size":5}},"layers""#));
    let refusals: [(&str, &str, &str, u16, &str); 7] = [
        ("1", "text/html", &manifest, 400, "MANIFEST_INVALID"),
        (other.as_str(), media, &manifest, 400, "DIGEST_INVALID"),
        ("-1", media, &manifest, 400, "MANIFEST_INVALID"),
        ("2", media, "{}", 400, "MANIFEST_INVALID"),
        ("2", media, &manifest.replace("sha256:", "sha512:"), 400, "MANIFEST_INVALID"),
        ("2", media, &manifest.replace(r#""size":"#, r#""size":1"#), 400, "MANIFEST_INVALID"),
        ("2", media, &" ".repeat((4 << 20) + 1), 413, "SIZE_INVALID"),
    ];
    for (target, media, body, status, code) in refusals {
        let path = format!("/v2/a/manifests/{target}");
        let put = ask(host, "PUT", &path, &[("content-type", media)], body.as_bytes()).await;
        assert_eq!((put.status, put.code().as_str()), (status, code), "{:?}", put.body);
    }
    let lacking = manifest.replacen(&digest_in(&manifest, "layers"), other.as_str(), 1);
    let put = ask(host, "PUT", "/v2/a/manifests/2", &[], lacking.as_bytes()).await;
    assert_eq!((put.status, put.code().as_str()), (404, "MANIFEST_BLOB_UNKNOWN"));
    assert_eq!(put.json()["errors"][0]["detail"]["digest"], other.as_str());

    // Something about something that is not there yet is welcome.
    let put = ask(host, "PUT", "/v2/a/manifests/about", &[], unnamed.as_bytes()).await;
    assert_eq!((put.status, put.header("oci-subject")), (201, other.as_str()), "{:?}", put.body);

    // A tag goes, then the manifest, each once.
    for path in ["/v2/a/manifests/1".to_owned(), format!("/v2/a/manifests/{digest}")] {
        assert_eq!(ask(host, "DELETE", &path, &[], b"").await.status, 202, "{path}");
        assert_eq!(ask(host, "GET", &path, &[], b"").await.status, 404, "{path}");
        let again = ask(host, "DELETE", &path, &[], b"").await;
        assert_eq!((again.status, again.code().as_str()), (404, "MANIFEST_UNKNOWN"), "{path}");
    }
    assert!(registry.store.resolve(&registry.name("a:1")).is_err());
    assert_eq!(registry.store.verify().expect("verify"), Vec::<String>::new());
}

/// The first digest after a key.
fn digest_in(manifest: &str, key: &str) -> String {
    let value: Value = serde_json::from_str(manifest).expect("manifest");
    value[key][0]["digest"].as_str().expect("digest").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn lists() {
    let registry = Registry::start().await;
    let host = registry.server.host.as_str();
    let manifest = push_parts(host, "a/b", b"1").await;
    for tag in ["c", "a", "b"] {
        let put = ask(host, "PUT", &format!("/v2/a/b/manifests/{tag}"), &[], manifest.as_bytes()).await;
        assert_eq!(put.status, 201);
    }
    push_parts(host, "z", b"1").await;
    assert_eq!(ask(host, "PUT", "/v2/z/manifests/1", &[], manifest.as_bytes()).await.status, 201);
    let all = ask(host, "GET", "/v2/a/b/tags/list", &[], b"").await;
    assert_eq!((all.status, all.json()), (200, json!({"name": "a/b", "tags": ["a", "b", "c"]})));
    let page = ask(host, "GET", "/v2/a/b/tags/list?n=2", &[], b"").await;
    assert_eq!(page.json()["tags"], json!(["a", "b"]));
    let next = page.header("link").trim_start_matches('<').split('>').next().expect("link").to_owned();
    let rest = ask(host, "GET", &next, &[], b"").await;
    assert_eq!((&rest.json()["tags"], rest.header("link")), (&json!(["c"]), ""));
    assert_eq!(ask(host, "GET", "/v2/a/b/tags/list?n=0", &[], b"").await.json()["tags"], json!([]));
    let unknown = ask(host, "GET", "/v2/nothing/tags/list", &[], b"").await;
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "NAME_UNKNOWN"));
    let catalog = ask(host, "GET", "/v2/_catalog", &[], b"").await;
    assert_eq!(catalog.json(), json!({"repositories": ["a/b", "z"]}));
    let page = ask(host, "GET", "/v2/_catalog?n=1", &[], b"").await;
    assert_eq!(
        (page.json()["repositories"].clone(), page.header("link").is_empty()),
        (json!(["a/b"]), false)
    );

    // What is about a manifest.
    let subject = Digest::of(manifest.as_bytes());
    let empty = push_blob(host, "a/b", b"{}").await;
    let note = |kind: &str| {
        json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": kind,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty.as_str(), "size": 2},
            "layers": [], "annotations": {"of": kind},
            "subject": {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": subject.as_str(),
                        "size": manifest.len()},
        })
        .to_string()
    };
    for kind in ["x/signature", "x/bill"] {
        let note = note(kind);
        let path = format!("/v2/a/b/manifests/{}", Digest::of(note.as_bytes()));
        let put = ask(host, "PUT", &path, &[], note.as_bytes()).await;
        assert_eq!((put.status, put.header("oci-subject")), (201, subject.as_str()), "{:?}", put.body);
    }
    let both = ask(host, "GET", &format!("/v2/a/b/referrers/{subject}"), &[], b"").await;
    assert_eq!(both.header("content-type"), "application/vnd.oci.image.index.v1+json");
    assert_eq!(both.json()["manifests"].as_array().map(Vec::len), Some(2));
    let one = ask(host, "GET", &format!("/v2/a/b/referrers/{subject}?artifactType=x/bill"), &[], b"").await;
    assert_eq!(one.header("oci-filters-applied"), "artifactType");
    assert_eq!(one.json()["manifests"][0]["annotations"], json!({"of": "x/bill"}));
    assert_eq!(one.json()["manifests"].as_array().map(Vec::len), Some(1));
    let none = ask(host, "GET", &format!("/v2/a/b/referrers/{}", Digest::of(b"?")), &[], b"").await;
    assert_eq!((none.status, &none.json()["manifests"]), (200, &json!([])));

    // Signatures stay with what they are about, and go with it.
    registry.store.prune(&[]).expect("prune");
    let kept = ask(host, "GET", &format!("/v2/a/b/referrers/{subject}"), &[], b"").await;
    assert_eq!(kept.json()["manifests"].as_array().map(Vec::len), Some(2));
    assert_eq!(registry.store.verify().expect("verify"), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers() {
    let registry = Registry::start().await;
    let host = registry.server.host.as_str();
    for (headers, status) in [
        (&[("origin", "https://evil.example")][..], 403),
        (&[("host", "evil.example")][..], 403),
        (&[("host", "localhost:1")][..], 200),
    ] {
        assert_eq!(ask(host, "GET", "/v2/", headers, b"").await.status, status, "{headers:?}");
    }
    assert_eq!(ask(host, "DELETE", "/v2/_catalog", &[], b"").await.status, 405);
    assert_eq!(ask(host, "GET", "/v2/a", &[], b"").await.status, 404);
}
