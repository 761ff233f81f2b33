//! Loading, unpacking, naming, saving, pruning.

mod common;

use common::{Layout, Tar, contents, docker_archive, gzip, load, open, zstd};
use cumulet_images::{Digest, ImageError, ImageStore, Reference};
use serde_json::json;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use tar::EntryType;

fn layers() -> Vec<Vec<u8>> {
    vec![
        Tar::new().dir("bin/").file("bin/app", b"program").file("etc/gone", b"old").dir("data/").finish(),
        Tar::new().file("etc/.wh.gone", b"").file("etc/new", b"new").finish(),
    ]
}

fn root(store: &ImageStore, reference: &str, layer: usize) -> PathBuf {
    store.resolve(reference).expect("resolve").layers[layer].clone()
}

#[test]
fn every_form_of_archive_gives_the_same_image() {
    let docker = docker_archive("team/app:1", &layers());
    let oci = |pack: fn(&[u8]) -> Vec<u8>| Layout::new("docker.io/team/app:1", &layers(), pack).archive();
    let plain: fn(&[u8]) -> Vec<u8> = <[u8]>::to_vec;
    let forms = [
        ("docker", docker.clone()),
        ("docker.gz", gzip(&docker)),
        ("docker.zst", zstd(&docker)),
        ("oci plain", oci(plain)),
        ("oci gzip", oci(gzip)),
        ("oci zstd in gzip", gzip(&oci(zstd))),
    ];
    for (form, archive) in forms {
        let dir = tempfile::tempdir().expect("directory");
        let store = open(dir.path());
        let loaded = load(&store, archive).unwrap_or_else(|error| panic!("{form}: {error}"));
        assert_eq!(loaded.len(), 1, "{form}");
        assert_eq!(loaded[0].refs, [Reference::parse("team/app:1").expect("reference")], "{form}");
        let image = store.resolve("team/app:1").expect(form);
        assert_eq!(image.digest, loaded[0].digest, "{form}");
        assert_eq!(store.resolve(image.digest.as_str()).expect("by digest").layers, image.layers, "{form}");
        assert_eq!(image.config.entrypoint, ["/bin/app"], "{form}");
        assert_eq!((image.config.cmd.len(), image.config.user.as_str()), (0, "1000:1000"), "{form}");
        assert_eq!(image.config.stop_signal.as_deref(), Some("SIGQUIT"), "{form}");
        assert_eq!(image.config.exposed, ["80/tcp"], "{form}");
        assert_eq!(image.layers.len(), 2, "{form}");
        assert_eq!(std::fs::read(image.layers[0].join("bin/app")).expect("read"), b"program", "{form}");
        let gone = std::fs::symlink_metadata(image.layers[1].join("etc/gone")).expect("whiteout");
        assert!(gone.file_type().is_char_device() && gone.rdev() == 0, "{form}");
        assert!(store.verify().expect("verify").is_empty(), "{form}");
        let after = contents(&dir.path().join("tmp"));
        assert!(after.is_empty(), "{form}: {after:?}");
    }
}

#[test]
fn what_a_layer_keeps() {
    let capability = [1, 0, 0, 2, 0, b'\n', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layer = Tar::new()
        .raw(EntryType::Directory, "./", "", 0o711, b"")
        .raw(EntryType::Regular, "bin/su", "", 0o4755, b"setuid")
        .hard_link("bin/su2", "bin/su")
        .symlink("bin/sh", "/usr/bin/dash")
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.security.selinux", b"label"),
            ("SCHILY.xattr.user.note", b"with\nnewline"),
            ("mtime", b"1234567890.5"),
            ("uid", b"3000000000"),
        ])
        .file("bin/ping", b"ping")
        .raw(EntryType::Directory, "sticky", "", 0o1777, b"")
        .raw(EntryType::Fifo, "pipe", "", 0o620, b"")
        .raw(EntryType::Regular, "read-only/deep/file", "", 0o400, b"x")
        .header(
            |header| {
                let old = header.as_old_mut();
                old.name[..5].copy_from_slice(b"blank");
                (old.uid, old.gid, old.mtime) = ([0; 8], [b' '; 8], [0; 12]);
            },
            b"x",
        )
        .file("twice", b"first")
        .file("twice", b"second")
        .finish();
    let dir = tempfile::tempdir().expect("directory");
    let store = open(dir.path());
    load(&store, docker_archive("a:1", &[layer])).expect("load");
    let root = root(&store, "a:1", 0);
    let at = |name: &str| std::fs::symlink_metadata(root.join(name)).expect(name);
    assert_eq!(at("").mode() & 0o7777, 0o711);
    assert_eq!(at("bin/su").mode() & 0o7777, 0o4755);
    assert_eq!(at("bin/su").mtime(), 1_000_000_000);
    assert_eq!((at("bin/su").ino(), at("bin/su").nlink()), (at("bin/su2").ino(), 2));
    assert_eq!(std::fs::read_link(root.join("bin/sh")).expect("link"), PathBuf::from("/usr/bin/dash"));
    assert_eq!(at("bin/sh").mtime(), 1_000_000_000);
    assert_eq!((at("bin/ping").mtime(), at("bin/ping").mtime_nsec()), (1_234_567_890, 500_000_000));
    assert_eq!(at("bin/ping").uid(), 3_000_000_000);
    let attribute = |name: &str| xattr::get(root.join("bin/ping"), name).expect("xattr");
    assert_eq!(attribute("security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(attribute("user.note").as_deref(), Some(&b"with\nnewline"[..]));
    assert_eq!(attribute("security.selinux"), None);
    assert_eq!(at("sticky").mode() & 0o7777, 0o1777);
    assert_eq!(at("sticky").mtime(), 1_000_000_000);
    assert_eq!((at("blank").uid(), at("blank").gid(), at("blank").mtime()), (0, 0, 0));
    assert!(at("pipe").file_type().is_fifo());
    assert_eq!(at("read-only").mtime(), 0, "directories nobody described are dated 1970");
    assert_eq!(std::fs::read(root.join("twice")).expect("read"), b"second");
}

#[test]
fn whiteouts_take_overlayfs_form() {
    let change = |header: &mut tar::Header| {
        header.as_old_mut().name[..6].copy_from_slice(b"native");
        header.set_entry_type(EntryType::Char);
        header.set_device_major(0).expect("major");
        header.set_device_minor(0).expect("minor");
    };
    let layer = Tar::new()
        .dir("opaque/")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/own", b"x")
        .file(".wh.gone", b"")
        .file(".wh..wh.plnk", b"")
        .file(".wh.replaced", b"")
        .dir("replaced/")
        .dir("later/")
        .file(".wh.later", b"")
        .file(".wh.file", b"")
        .file("file", b"new")
        .header(change, b"")
        .finish();
    let dir = tempfile::tempdir().expect("directory");
    let store = open(dir.path());
    load(&store, docker_archive("a:1", &[layer])).expect("load");
    let root = root(&store, "a:1", 0);
    let opaque = |name: &str| xattr::get(root.join(name), "trusted.overlay.opaque").expect("xattr");
    for name in ["opaque", "replaced", "later"] {
        assert_eq!(opaque(name).as_deref(), Some(&b"y"[..]), "{name}");
    }
    for name in ["gone", "native"] {
        let there = std::fs::symlink_metadata(root.join(name)).expect(name);
        assert!(there.file_type().is_char_device() && there.rdev() == 0, "{name}");
    }
    assert_eq!(std::fs::read(root.join("file")).expect("read"), b"new");
    assert!(!root.join("opaque/.wh..wh..opq").exists() && !root.join(".wh..wh.plnk").exists());
}

#[test]
fn saving_and_loading_again_changes_nothing() {
    let (first, second) = (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
    let (from, to) = (open(first.path()), open(second.path()));
    load(&from, Layout::new("app:1", &layers(), gzip).archive()).expect("load");
    let mut archive = Vec::new();
    from.save("app:1", &mut archive).expect("save");
    let mut again = Vec::new();
    from.save("docker.io/library/app:1", &mut again).expect("save");
    assert_eq!(archive, again, "the same image gives the same archive");
    let loaded = load(&to, archive.clone()).expect("load what was saved");
    let (a, b) = (from.resolve("app:1").expect("a"), to.resolve("app:1").expect("b"));
    assert_eq!((&a.digest, &a.id, a.size_bytes, &a.config), (&b.digest, &b.id, b.size_bytes, &b.config));
    assert_eq!(loaded[0].refs.len(), 1);

    // Readers that only know docker archives find their way too.
    let mut docker = Tar::new();
    let mut reader = tar::Archive::new(&*archive);
    for entry in reader.entries().expect("entries") {
        let mut entry = entry.expect("entry");
        let name = entry.path().expect("path").display().to_string();
        let mut data = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut data).expect("read");
        if !matches!(name.as_str(), "index.json" | "oci-layout") {
            docker = docker.file(&name, &data);
        }
    }
    let third = tempfile::tempdir().expect("directory");
    let store = open(third.path());
    load(&store, docker.finish()).expect("load as a docker archive");
    assert_eq!(store.resolve("app:1").expect("c").id, a.id);
    assert!(from.save("nothing:1", Vec::new()).is_err());
}

#[test]
fn several_images_several_platforms_links_and_no_names() {
    let dir = tempfile::tempdir().expect("directory");
    let store = open(dir.path());
    let layer = Tar::new().file("f", b"1").finish();
    let config =
        serde_json::to_vec(&common::config_json(&[Digest::of(&layer), Digest::of(&layer)])).expect("json");
    let manifest = json!([
        {"Config": "c.json", "RepoTags": ["one:1", "one:latest"], "Layers": ["a/layer.tar", "b/layer.tar"]},
        {"Config": "c.json", "RepoTags": null, "Layers": ["a/layer.tar", "hard"]},
    ]);
    let archive = Tar::new()
        .file("c.json", &config)
        .file("a/layer.tar", &layer)
        .symlink("b/layer.tar", "../a/layer.tar")
        .hard_link("hard", "a/layer.tar")
        .file("repositories", b"{}")
        .file("manifest.json", manifest.to_string().as_bytes())
        .finish();
    let loaded = load(&store, archive).expect("load");
    assert_eq!(loaded.len(), 1, "both have the same content");
    assert_eq!(loaded[0].refs.len(), 2);
    assert_eq!(contents(&dir.path().join("blobs/sha256")).len(), 3, "only what images need is kept");

    let mut layout = Layout::new("x", &layers(), gzip);
    let here = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let mut fitting = layout.index["manifests"][0].clone();
    fitting["platform"] = json!({"architecture": here, "os": "linux"});
    let mut foreign = fitting.clone();
    foreign["platform"] = json!({"architecture": "s390x", "os": "linux"});
    foreign["digest"] = json!(Digest::of(b"not in the archive").as_str());
    let inner = json!({"schemaVersion": 2, "manifests": [foreign, fitting]}).to_string().into_bytes();
    layout.index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.index.v1+json", "digest": Digest::of(&inner).as_str(),
        "size": inner.len(), "annotations": {"io.containerd.image.name": "localhost:5000/multi:2"},
    }]});
    layout.blobs.push((Digest::of(&inner).hex().to_owned(), inner));
    load(&store, layout.archive()).expect("load");
    assert!(store.resolve("localhost:5000/multi:2").is_ok());

    let nameless = load(&store, Layout::new("latest", &[layer], gzip).archive()).expect("load");
    assert!(nameless[0].refs.is_empty(), "a bare tag is no name");
    assert!(store.resolve(nameless[0].digest.as_str()).is_ok());
    assert_eq!(store.list().expect("list").len(), 3);
}

#[test]
fn names_move_and_prune_gives_space_back() {
    let dir = tempfile::tempdir().expect("directory");
    let store = open(dir.path());
    let image = |text: &[u8]| {
        let shared = Tar::new().file("shared", b"base").finish();
        docker_archive("app:1", &[shared, Tar::new().file("f", text).finish()])
    };
    let old = load(&store, image(b"old")).expect("load").remove(0).digest;
    let new = load(&store, image(b"new")).expect("load").remove(0).digest;
    assert_eq!(store.resolve("app:1").expect("resolve").digest, new);
    assert_eq!(store.resolve(old.as_str()).expect("the old one stays").digest, old);
    let names: Vec<usize> = store.list().expect("list").iter().map(|image| image.refs.len()).collect();
    assert_eq!(names.iter().sum::<usize>(), 1);

    assert_eq!(store.prune(std::slice::from_ref(&old)).expect("prune").images, []);
    let pruned = store.prune(&[]).expect("prune");
    assert_eq!(pruned.images, std::slice::from_ref(&old));
    assert!(pruned.freed_bytes > 0);
    assert!(matches!(store.resolve(old.as_str()), Err(ImageError::NotFound { .. })));
    assert!(store.verify().expect("verify").is_empty(), "the shared layer is still there");
    assert_eq!(contents(&dir.path().join("layers")).len(), 4, "two layers with a file each");

    store.remove("app:1").expect("remove");
    assert!(matches!(store.remove("app:1"), Err(ImageError::NotFound { .. })));
    assert!(store.resolve(new.as_str()).is_ok(), "content stays until it is pruned");
    store.prune(&[]).expect("prune");
    assert!(store.list().expect("list").is_empty());
    for part in ["blobs/sha256", "layers", "tmp"] {
        assert!(contents(&dir.path().join(part)).is_empty(), "{part}");
    }
}

#[test]
fn a_layer_that_is_not_unpacked_is_unpacked_when_it_is_needed() {
    let dir = tempfile::tempdir().expect("directory");
    let store = open(dir.path());
    load(&store, docker_archive("app:1", &layers())).expect("load");
    let layer = root(&store, "app:1", 0);
    std::fs::remove_dir_all(&layer).expect("remove");
    assert_eq!(store.verify().expect("verify"), Vec::<String>::new());
    assert_eq!(root(&store, "app:1", 0), layer);
    assert!(layer.join("bin/app").exists());
    assert_eq!(store.verify().expect("verify"), Vec::<String>::new());
}

#[test]
fn damage_is_found() {
    let check = |case: &str, damage: &dyn Fn(&std::path::Path, &ImageStore), expected: &str| {
        let dir = tempfile::tempdir().expect("directory");
        let store = open(dir.path());
        load(&store, docker_archive("app:1", &layers())).expect("load");
        damage(dir.path(), &store);
        let problems = store.verify().expect("verify").join("\n");
        assert!(problems.contains(expected), "{case}: {problems:?}");
    };
    let layer = |store: &ImageStore| root(store, "app:1", 0);
    check(
        "changed file",
        &|_, store| std::fs::write(layer(store).join("bin/app"), "PROGRAM").expect("write"),
        "bin/app was changed",
    );
    check(
        "new file",
        &|_, store| std::fs::write(layer(store).join("extra"), "").expect("write"),
        "extra does not belong there",
    );
    check(
        "missing file",
        &|_, store| std::fs::remove_file(layer(store).join("bin/app")).expect("remove"),
        "bin/app is missing",
    );
    let blob = |dir: &std::path::Path| dir.join("blobs/sha256").join(Digest::of(&layers()[0]).hex());
    check("changed blob", &|dir, _| std::fs::write(blob(dir), "x").expect("write"), "its content has digest");
    check("missing blob", &|dir, _| std::fs::remove_file(blob(dir)).expect("remove"), "is missing");

    let dir = tempfile::tempdir().expect("directory");
    std::fs::write(dir.path().join("refs.json"), "{").expect("write");
    let error = ImageStore::open(dir.path()).expect_err("damaged").to_string();
    assert!(error.contains("refs.json: malformed"), "{error}");
}

#[test]
fn two_stores_on_one_directory_work_at_the_same_time() {
    let dir = tempfile::tempdir().expect("directory");
    let threads: Vec<_> = (0..8)
        .map(|i| {
            let dir = dir.path().to_owned();
            std::thread::spawn(move || {
                let shared = Tar::new().file("shared", b"base").finish();
                let own = Tar::new().file("own", format!("{i}").as_bytes()).finish();
                let store = open(&dir);
                for _ in 0..5 {
                    load(&store, docker_archive(&format!("app:{i}"), &[shared.clone(), own.clone()]))
                        .expect("load");
                    store.resolve(&format!("app:{i}")).expect("resolve");
                    store.prune(&[]).expect("prune");
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("thread");
    }
    let store = open(dir.path());
    assert_eq!(store.list().expect("list").len(), 8);
    assert!(store.verify().expect("verify").is_empty());
}
