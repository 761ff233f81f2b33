//! `kill -9` in the middle of a pull, and of a push into the endpoint: the store is sound, what was acknowledged is
//! there, and going on works.

use crate::support::{Registry, client_of, image, listen, quick, serve};
use cumulet_images::{
    Client, ClientOptions, Endpoint, EndpointOptions, ImageStore, Keyring, Reference, RegistriesConfig,
};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const DIR: &str = "REGISTRY_CRASH_DIR";
const HOST: &str = "REGISTRY_CRASH_HOST";
const ROUNDS: u64 = 20;
const IMAGES: u64 = 4;

fn child(test: &str, dir: &Path, host: &str) -> Child {
    Command::new(std::env::current_exe().expect("exe"))
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(DIR, dir)
        .env(HOST, host)
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawn")
}

fn say(line: &str) {
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).expect("write");
}

fn layout(number: u64) -> crate::common::Layout {
    image(&[700_000 + number as usize, 500_000, 400_000 + 3 * number as usize])
}

fn inputs() -> Option<(PathBuf, String)> {
    Some((std::env::var_os(DIR)?.into(), std::env::var(HOST).ok()?))
}

/// The process that is killed: pulls images and tells when each is there.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is started by a_killed_pull"]
async fn puller() {
    let Some((dir, host)) = inputs() else { return };
    let client = client_of(&dir, RegistriesConfig::default());
    let store = ImageStore::open(&dir).expect("open");
    for i in 0.. {
        let name = format!("{host}/app:{}", i % IMAGES);
        let reference = Reference::parse(&name).expect("reference");
        client.pull(&reference, &Keyring::default(), &()).await.expect("pull");
        say(&format!("pulled {name}"));
        if i % 3 == 2 {
            store.remove(&name).expect("remove");
            store.prune(&[]).expect("prune");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "the kill is to fall on another moment in every round")]
async fn a_killed_pull() {
    let registry = Registry::start().await;
    for i in 0..IMAGES {
        registry.add(&format!("app:{i}"), &layout(i));
    }
    let host = registry.server.host.clone();
    let work = tokio::task::spawn_blocking(move || {
        let dir = tempfile::tempdir().expect("directory");
        for round in 0..ROUNDS {
            let mut child = child("crash::puller", dir.path(), &host);
            let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
            while !lines.next().expect("it pulls").expect("line").contains("pulled") {}
            std::thread::sleep(Duration::from_micros(round * 2_500));
            child.kill().expect("kill");
            child.wait().expect("wait");
            let store = ImageStore::open(dir.path()).expect("open");
            assert_eq!(store.verify().expect("verify"), Vec::<String>::new(), "round {round}");
            for image in store.list().expect("list") {
                store.resolve(image.digest.as_str()).expect("what has a name can be run");
            }
        }
        dir
    });
    let dir = work.await.expect("rounds");
    // Whoever comes next finds no lock that nobody holds.
    let client = client_of(dir.path(), RegistriesConfig::default());
    let reference = Reference::parse(&registry.name("app:0")).expect("reference");
    client.pull(&reference, &Keyring::default(), &()).await.expect("pull");
}

/// The process that is killed: an endpoint, which tells where it is.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is started by a_killed_endpoint"]
async fn endpoint() {
    let Some((dir, _)) = inputs() else { return };
    let store = ImageStore::open(&dir).expect("open");
    let (listener, host) = listen().await;
    let options = EndpointOptions { names: vec!["registry.test".to_owned()], ..EndpointOptions::default() };
    let endpoint = Endpoint::new(store, options).expect("endpoint");
    let server = serve(listener, &host, endpoint.router());
    say(&format!("listens {}", server.host));
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_endpoint() {
    let (ours, theirs) = (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
    let store = ImageStore::open(ours.path()).expect("open");
    let images: Vec<_> = (0..IMAGES)
        .map(|i| crate::common::load(&store, layout(i).archive()).expect("load")[0].digest.clone())
        .collect();
    let once = ClientOptions { attempts: 1, ..quick() };
    let client = Client::new(store, once).expect("client");
    for round in 0..ROUNDS {
        let mut child = child("crash::endpoint", theirs.path(), "-");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let host = loop {
            let line = lines.next().expect("it listens").expect("line");
            if let Some((_, host)) = line.split_once("listens ") {
                break host.to_owned();
            }
        };
        let mut pushed = Vec::new();
        let work = async {
            for i in 0.. {
                let image = &images[i % images.len()];
                let tag = format!("{round}-{i}");
                let target = Reference::parse(&format!("{host}/app:{tag}")).expect("reference");
                match client.push(image.as_str(), &target, &Keyring::default(), &()).await {
                    Ok(done) => pushed.push((tag, done.digest)),
                    Err(_) => return,
                }
            }
        };
        let kill = async {
            tokio::time::sleep(Duration::from_micros(10_000 + round * 4_000)).await;
            child.kill().expect("kill");
            child.wait().expect("wait");
        };
        tokio::join!(work, kill);
        let store = ImageStore::open(theirs.path()).expect("open");
        assert_eq!(store.verify().expect("verify"), Vec::<String>::new(), "round {round}");
        for (tag, digest) in pushed {
            let image =
                store.resolve(&format!("registry.test/app:{tag}")).expect("what was acknowledged is there");
            assert_eq!(image.digest, digest);
        }
        if round % 5 == 4 {
            let names: Vec<_> =
                store.list().expect("list").into_iter().flat_map(|image| image.refs).collect();
            names.iter().for_each(|name| store.remove(&name.to_string()).expect("remove"));
            // Leases are an hour long; the test's are over.
            std::fs::read_dir(theirs.path().join("leases")).expect("leases").for_each(|lease| {
                std::fs::remove_file(lease.expect("lease").path()).expect("remove");
            });
            store.prune(&[]).expect("prune");
        }
    }
}
