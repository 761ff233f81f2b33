//! A disk that is full: said so, with the remedy, and all is well once there is space.

use crate::support::{Peer, Registry, client_of, image};
use cumulet_images::{ImageError, ImageStore, Keyring, Reference, RegistriesConfig, RegistryError};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A small file system of its own.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, size: &str) -> Self {
        let options = format!("size={size}");
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).expect("mount");
        Self(at.to_owned())
    }

    fn resize(&self, size: &str) {
        let options = format!("size={size}");
        mount(None::<&str>, &self.0, None::<&str>, MsFlags::MS_REMOUNT, Some(options.as_str()))
            .expect("remount");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn is_full(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Image(ImageError::Io { source, .. }) if source.kind() == ErrorKind::StorageFull)
        && error.to_string().contains("free some space")
}

#[tokio::test(flavor = "multi_thread")]
async fn pulling_onto_a_full_disk() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let registry = Registry::start().await;
    let digest = registry.add("app:1", &image(&[5_000_000, 4_000_000]));
    let dir = tempfile::tempdir().expect("directory");
    // The first layer does not fit; then all blobs do, but not what is unpacked.
    let disk = Disk::mount(dir.path(), "3m");
    let name = Reference::parse(&registry.name("app:1")).expect("reference");
    let client = client_of(dir.path(), RegistriesConfig::default());
    for size in ["3m", "11m"] {
        disk.resize(size);
        let error = client.pull(&name, &Keyring::default(), &()).await.expect_err(size);
        assert!(is_full(&error), "{size}: {error}");
        let store = ImageStore::open(dir.path()).expect("open");
        assert!(store.list().expect("list").is_empty(), "{size}");
        assert_eq!(store.verify().expect("verify"), Vec::<String>::new(), "{size}");
    }
    disk.resize("60m");
    let pulled = client.pull(&name, &Keyring::default(), &()).await.expect("there is space");
    assert_eq!(pulled.digest, digest);
    let store = ImageStore::open(dir.path()).expect("open");
    assert_eq!(store.verify().expect("verify"), Vec::<String>::new());
    drop((client, store));
}

#[tokio::test(flavor = "multi_thread")]
async fn pushing_to_a_full_disk() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("directory");
    let disk = Disk::mount(dir.path(), "3m");
    let store = ImageStore::open(dir.path()).expect("open");
    let (listener, host) = crate::support::listen().await;
    let options = cumulet_images::EndpointOptions {
        names: vec![host.clone()],
        ..cumulet_images::EndpointOptions::default()
    };
    let endpoint = cumulet_images::Endpoint::new(store.clone(), options).expect("endpoint");
    let server = crate::support::serve(listener, &host, endpoint.router());
    let peer = Peer::new();
    let layout = image(&[5_000_000]);
    let image = crate::common::load(&peer.store, layout.archive()).expect("load")[0].digest.clone();
    let target = Reference::parse(&format!("{}/app:1", server.host)).expect("reference");
    let error = peer.client.push(image.as_str(), &target, &Keyring::default(), &()).await.expect_err("full");
    assert!(error.to_string().contains("free some space") && error.to_string().contains("507"), "{error}");
    assert!(store.list().expect("list").is_empty());
    assert_eq!(store.verify().expect("verify"), Vec::<String>::new());
    disk.resize("60m");
    peer.client.push(image.as_str(), &target, &Keyring::default(), &()).await.expect("there is space");
    store.resolve(&target.to_string()).expect("it runs");
    assert_eq!(store.verify().expect("verify"), Vec::<String>::new());
    drop((endpoint, server));
}
