//! Templates through a registry, and what is no template.

use super::super::tests::make;
use super::*;
use cumulet_images::{ClientOptions, Endpoint, EndpointOptions};
use cumulet_snapshot_format::{Error, Key, list};
use serde_json::json;
use std::os::unix::fs::FileExt;

/// A cloud's registry on loopback, with its store; it ends with the test's process.
fn registry(dir: &Path) -> String {
    let store = ImageStore::open(dir).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let options = EndpointOptions { names: vec![host.clone()], ..EndpointOptions::default() };
    let endpoint = Endpoint::new(store, options).unwrap();
    std::thread::spawn(move || {
        block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            Ok(axum::serve(listener, endpoint.router()).await?)
        })
    });
    host
}

fn peer(store: &ImageStore) -> Client {
    Client::new(store.clone(), ClientOptions::default()).unwrap()
}

fn fetch(store: &ImageStore, name: &Reference, dir: &Path) -> anyhow::Result<(Template, u64)> {
    let accept = |config: &[u8], layers: &[ArtifactLayer]| {
        plan(config, layers).map(|_| ()).map_err(|error| error.to_string())
    };
    let (client, keyring) = (peer(store), Keyring::default());
    let artifact =
        block_on(async { Ok(client.pull_artifact(name, ARTIFACT, &accept, &keyring, &()).await?) })?;
    Ok((out_of_store(store, &artifact, dir)?, artifact.bytes_fetched))
}

#[test]
fn there_and_back() {
    let temp = tempfile::tempdir().unwrap();
    let host = registry(&temp.path().join("registry"));
    let stores = ["a", "b"].map(|name| ImageStore::open(&temp.path().join(name)).unwrap());
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    let name = Reference::parse(&format!("{host}/petclinic:warm")).unwrap();
    let template = make(&from, Key([1; 32]), "8");
    let keyring = Keyring::default();
    let sent = send(&stores[0], &peer(&stores[0]), &keyring, &template, &name).unwrap();
    assert_eq!((sent.blobs, sent.blobs_reused), (3, 0), "configuration, state and one part of memory");
    assert!(stores[0].list().unwrap().iter().all(|row| row.refs.is_empty()), "no name stays behind");
    let again = send(&stores[0], &peer(&stores[0]), &keyring, &template, &name).unwrap();
    assert_eq!((again.blobs_reused, again.bytes_sent), (3, 0), "nothing is sent twice");

    let (pulled, fetched) = fetch(&stores[1], &name, &to).unwrap();
    assert_eq!(fetched, sent.bytes_sent);
    assert_eq!(pulled.header(), template.header());
    pulled.verify().unwrap();
    assert_eq!(
        (pulled.memory_sum(), pulled.state().unwrap()),
        (template.memory_sum(), template.state().unwrap())
    );
    let (kept, fetched) = fetch(&stores[1], &name, &to).unwrap();
    assert_eq!((fetched, kept.header()), (0, template.header()), "the one that is there stays");

    // Another template whose memory is the same: only what differs is sent.
    let other = Writer::twin(&from, &template, Key([2; 32]));
    let sent = send(&stores[0], &peer(&stores[0]), &keyring, &other, &name).unwrap();
    assert_eq!((sent.blobs, sent.blobs_reused), (3, 2), "only the configuration is new");
    assert_eq!(fetch(&stores[1], &name, &to).unwrap().0.header().key, Key([2; 32]));
    assert_eq!(list(&to).unwrap().len(), 2);
}

/// Makes templates that share their memory.
struct Writer;

impl Writer {
    fn twin(dir: &Path, of: &Template, key: Key) -> Template {
        let mut writer = cumulet_snapshot_format::Writer::create(dir, key).unwrap();
        writer.memory_from(of.memory()).unwrap();
        writer.state(&of.state().unwrap()).unwrap();
        writer.finish(of.header().description.clone()).unwrap()
    }
}

#[test]
fn damage_is_neither_pushed_nor_pulled() {
    let temp = tempfile::tempdir().unwrap();
    let host = registry(&temp.path().join("registry"));
    let store = ImageStore::open(&temp.path().join("a")).unwrap();
    let name = Reference::parse(&format!("{host}/petclinic:warm")).unwrap();
    let template = make(&temp.path().join("from"), Key([1; 32]), "8");
    send(&store, &peer(&store), &Keyring::default(), &template, &name).unwrap();
    let memory = std::fs::OpenOptions::new().write(true).open(template.path().join("memory")).unwrap();
    memory.write_all_at(b"x", 8192).unwrap();
    let refused = send(&store, &peer(&store), &Keyring::default(), &template, &name).unwrap_err();
    assert!(format!("{refused:#}").contains("chunk 0"), "{refused:#}");
    // A part that rotted in the store of the one who pulls.
    let to = temp.path().join("to");
    let other = ImageStore::open(&temp.path().join("b")).unwrap();
    let (pulled, _) = fetch(&other, &name, &to).unwrap();
    pulled.remove().unwrap();
    for blob in std::fs::read_dir(temp.path().join("b/blobs/sha256")).unwrap() {
        let path = blob.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            let at = bytes.len() - 2;
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
    }
    let refused = fetch(&other, &name, &to).unwrap_err();
    assert!(refused.downcast_ref::<Error>().is_some_and(Error::is_damage), "{refused:#}");
    assert_eq!(list(&to).unwrap().len(), 0);
}

#[test]
fn what_is_no_template() {
    let temp = tempfile::tempdir().unwrap();
    let template = make(temp.path(), Key([1; 32]), "8");
    let config = template.pack().unwrap().config();
    let layer = |media_type: &str, offset: Option<&str>, size_bytes| ArtifactLayer {
        media_type: media_type.to_owned(),
        digest: Digest::of(b""),
        size_bytes,
        annotations: offset.map(|offset| (OFFSET.to_owned(), offset.to_owned())).into_iter().collect(),
    };
    let state = || layer(STATE, None, 100);
    let check = |layers: &[ArtifactLayer], words: &str| {
        let said = plan(&serde_json::to_vec(&config).unwrap(), layers).err().map(|error| error.to_string());
        assert!(said.as_ref().map_or(words.is_empty(), |said| said.contains(words)), "{words}: {said:?}");
    };
    check(&[state(), layer(MEMORY, Some("0"), 100)], "");
    check(&[state()], "");
    check(&[], "no layers");
    check(&[state(), state()], "layer 2 is");
    check(&[layer(MEMORY, Some("0"), 100), state()], "layer 1 is");
    check(&[state(), layer("text/plain", Some("0"), 100)], "text/plain");
    check(&[state(), layer(MEMORY, None, 100)], "where it belongs");
    check(&[state(), layer(MEMORY, Some("-1"), 100)], "where it belongs");
    check(&[state(), layer(MEMORY, Some("4096"), 100)], "no part");
    check(&[state(), layer(MEMORY, Some("16777216"), 100)], "no part");
    check(&[state(), layer(MEMORY, Some("0"), 100), layer(MEMORY, Some("0"), 100)], "order");
    check(&[state(), layer(MEMORY, Some("0"), 20 << 20)], "at most");
    check(&[layer(STATE, None, 80 << 20)], "at most");
    assert!(plan(&vec![b' '; 2 << 20], &[state()]).is_err());
    assert!(plan(json!({"header": 1}).to_string().as_bytes(), &[state()]).is_err());
}

#[test]
fn an_image_is_no_template() {
    let temp = tempfile::tempdir().unwrap();
    let host = registry(&temp.path().join("registry"));
    let store = ImageStore::open(&temp.path().join("a")).unwrap();
    let name = Reference::parse(&format!("{host}/chart:1")).unwrap();
    let artifact = store.new_artifact().unwrap();
    let digest = artifact.finish("text/chart", ("text/config", b"{}"), &name).unwrap();
    let (client, keyring) = (peer(&store), Keyring::default());
    block_on(async { Ok(client.push(digest.as_str(), &name, &keyring, &()).await?) }).unwrap();
    let refused = fetch(&store, &name, &temp.path().join("to")).unwrap_err();
    assert!(format!("{refused:#}").contains("text/chart"), "{refused:#}");
}
