//! Archives that want harm: each is refused with the entry named, and leaves nothing behind.

mod common;

use common::{Layout, Tar, config_json, contents, docker_archive, gzip, load, open_small, zstd};
use cumulet_images::Digest;
use proptest::prelude::*;
use serde_json::json;
use tar::EntryType;

/// Loads into a fresh store; the error must say `expected`, and the store must be as empty as before.
fn refused(case: &str, archive: Vec<u8>, expected: &str) {
    let outer = tempfile::tempdir().expect("directory");
    std::fs::write(outer.path().join("passwd"), "untouched").expect("write");
    let dir = outer.path().join("store");
    let store = open_small(&dir);
    let before = contents(&dir);
    let error = load(&store, archive).err().unwrap_or_else(|| panic!("{case}: was accepted")).to_string();
    assert!(error.contains(expected), "{case}\n got: {error}\nwant: {expected}");
    assert_eq!(contents(&dir), before, "{case}: something is left");
    assert!(store.list().expect("list").is_empty(), "{case}");
    assert_eq!(std::fs::read_to_string(outer.path().join("passwd")).expect("read"), "untouched", "{case}");
    assert_eq!(std::fs::read_dir(outer.path()).expect("read").count(), 2, "{case}: escaped");
}

fn layer_refused(case: &str, layer: Vec<u8>, expected: &str) {
    refused(case, docker_archive("evil:1", std::slice::from_ref(&layer)), expected);
    let good = Tar::new().file("good", b"x").finish();
    refused(case, Layout::new("evil:1", &[good, layer], gzip).archive(), expected);
}

#[test]
fn layers_that_reach_outside() {
    let dots = Tar::new().file("a/../../../passwd", b"x").finish();
    layer_refused("dots", dots, "entry \"a/../../../passwd\": \"..\" in a path");
    let dots = Tar::new().dir("..").finish();
    layer_refused("only dots", dots, "entry \"..\"");
    let through = Tar::new().symlink("etc", "/").file("etc/passwd", b"x").finish();
    layer_refused("through a symlink", through, "entry \"etc/passwd\": \"etc\" is a link or file");
    let through = Tar::new().symlink("up", "../..").dir("up/new").finish();
    layer_refused("directory through a symlink", through, "entry \"up/new\": \"up\" is a link or file");
    let deeper = Tar::new().dir("a").symlink("a/b", "../../..").symlink("a/b/c", "x").finish();
    layer_refused("link through a symlink", deeper, "entry \"a/b/c\": \"a/b\" is a link or file");
    let white = Tar::new().symlink("d", "/tmp").file("d/.wh.victim", b"").finish();
    layer_refused("whiteout through a symlink", white, "entry \"d/.wh.victim\": \"d\" is a link");
    let long = Tar::new().pax(&[("path", b"x/../../passwd")]).file("innocent", b"x").finish();
    layer_refused("dots in a pax record", long, "entry \"x/../../passwd\": \"..\"");
    let long = Tar::new()
        .raw(EntryType::GNULongName, "././@LongLink", "", 0o644, b"../passwd\0")
        .file("innocent", b"x")
        .finish();
    layer_refused("dots in a long name", long, "entry \"../passwd\": \"..\"");
    let file = Tar::new().file("f", b"x").file("f/g", b"x").finish();
    layer_refused("below a file", file, "entry \"f/g\": \"f\" is a link or file");
}

#[test]
fn hard_links_that_reach_outside() {
    let absolute = Tar::new().hard_link("l", "/etc/passwd").finish();
    layer_refused("absolute", absolute, "entry \"l\": hard link to an absolute path");
    let dots = Tar::new().hard_link("l", "../../passwd").finish();
    layer_refused("dots", dots, "entry \"l\": \"..\" in a path");
    let missing = Tar::new().hard_link("l", "nothing").finish();
    layer_refused(
        "missing",
        missing,
        "entry \"l\": hard link to \"nothing\", which is no file of this layer",
    );
    let through = Tar::new().symlink("d", "/etc").hard_link("l", "d/passwd").finish();
    layer_refused("through a symlink", through, "entry \"l\": hard link to \"d/passwd\"");
    let dir = Tar::new().dir("d").hard_link("l", "d").finish();
    layer_refused("a directory", dir, "entry \"l\": hard link to \"d\"");
    let white = Tar::new().file(".wh.w", b"").hard_link("l", "w").finish();
    layer_refused("a whiteout", white, "entry \"l\": hard link to \"w\"");
}

#[test]
fn device_nodes_and_odd_entries() {
    let device = |kind, major, minor| {
        let change = move |header: &mut tar::Header| {
            header.as_old_mut().name[..7].copy_from_slice(b"dev/sda");
            header.set_entry_type(kind);
            header.set_device_major(major).expect("major");
            header.set_device_minor(minor).expect("minor");
        };
        Tar::new().header(change, b"").finish()
    };
    layer_refused(
        "block",
        device(EntryType::Block, 8, 0),
        "entry \"dev/sda\": block device 8/0: images must not",
    );
    layer_refused("char", device(EntryType::Char, 1, 3), "entry \"dev/sda\": character device 1/3");
    layer_refused("block 0/0", device(EntryType::Block, 0, 0), "entry \"dev/sda\": block device 0/0");
    let root = Tar::new().file("./", b"").raw(EntryType::Symlink, "/", "x", 0o777, b"").finish();
    layer_refused("root is a link", root, "only a directory can be the root");
    let odd = Tar::new().raw(EntryType::new(b'V'), "label", "", 0, b"").finish();
    layer_refused("volume label", odd, "entry \"label\": has unsupported type 'V'");
    let sparse = Tar::new().pax(&[("GNU.sparse.major", b"1")]).file("s", b"x").finish();
    layer_refused("sparse", sparse, "entry \"s\": sparse files are not supported");
    let reserved = Tar::new().pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/etc")]).dir("d").finish();
    layer_refused(
        "overlay attribute",
        reserved,
        "entry \"d\": attribute \"trusted.overlay.redirect\" is reserved",
    );
    let nul = Tar::new().pax(&[("path", b"a\0b")]).file("x", b"").finish();
    layer_refused("NUL", nul, "its name has a NUL byte");
    let owner = Tar::new().pax(&[("uid", b"4294967295")]).file("x", b"").finish();
    layer_refused("owner", owner, "entry \"x\": its owner is no valid user");
    let replaced = Tar::new().dir("d").file("d/f", b"").file("d", b"").finish();
    layer_refused("file over directory", replaced, "entry \"d\": it would replace a directory");
    let empty = Tar::new().file("a/.wh.", b"").finish();
    layer_refused("empty whiteout", empty, "entry \"a/.wh.\": a whiteout of nothing");
    let dots = Tar::new().file("a/.wh...", b"").finish();
    layer_refused("whiteout of ..", dots, "entry \"a/.wh...\": a whiteout of nothing");
}

#[test]
fn bombs() {
    let large = Tar::new().file("zeros", &vec![0; 2 << 20]).finish();
    refused(
        "large layer",
        Layout::new("a:1", &[large], gzip).archive(),
        "entry \"zeros\": the layer is larger",
    );
    let many = (0..60).fold(Tar::new(), |tar, i| tar.file(&format!("f{i}"), b"")).finish();
    layer_refused("many entries", many, "entry \"f50\": the archive has too many entries");
    let mut padded = Tar::new().file("f", b"").finish();
    padded.resize(3 << 20, 0);
    refused(
        "padding",
        Layout::new("a:1", &[padded], zstd).archive(),
        "larger than the limit when uncompressed",
    );
    let archive = gzip(&Tar::new().file("big", &vec![0; 5 << 20]).finish());
    refused("large archive", archive, "entry \"big\": cannot be read: it is larger than the limit");
    let archive = (0..60).fold(Tar::new(), |tar, i| tar.file(&format!("f{i}"), b"")).finish();
    refused("many members", archive, "entry \"f50\": the archive has too many entries");
    let name =
        Tar::new().raw(EntryType::GNULongName, "x", "", 0, &vec![b'a'; 2 << 20]).file("f", b"").finish();
    refused("long name", name, "an extension header is larger than");
    let grow = |header: &mut tar::Header| {
        header.as_old_mut().name[0] = b'f';
        header.set_size(u64::MAX - 100);
    };
    let huge = Tar::new().header(grow, b"").unfinished();
    layer_refused("impossible size", huge, "entry \"f\": the layer is larger");
    let layers: Vec<_> = (0..6).map(|i| Tar::new().file(&format!("f{i}"), b"").finish()).collect();
    refused("many layers, docker", docker_archive("a:1", &layers), "more than 5 layers");
    refused("many layers, oci", Layout::new("a:1", &layers, gzip).archive(), "more than 5 layers");
}

#[test]
fn damage() {
    let layer = Tar::new().file("f", &vec![7; 100_000]).finish();
    let whole = docker_archive("a:1", std::slice::from_ref(&layer));
    refused(
        "truncated archive",
        whole[..60_000].to_vec(),
        "entry \"layer0/layer.tar\": the archive is truncated",
    );
    let packed = gzip(&whole);
    refused("truncated gzip", packed[..packed.len() / 2].to_vec(), "truncated");
    let short = layer[..50_000].to_vec();
    layer_refused("truncated layer", short, "entry \"f\": the archive is truncated here");
    let half = layer[..700].to_vec();
    layer_refused("layer cut in its data", half, "entry \"f\": the archive is truncated here");
    let mut flipped = layer.clone();
    flipped[20] ^= 1;
    layer_refused("checksum", flipped, "a header checksum is wrong");
    refused("empty", Vec::new(), "no image archive");
    refused("not a tar", b"hello".repeat(1000), "not a tar archive");
    refused("another tar", Tar::new().file("f", b"x").finish(), "neither index.json nor manifest.json");
    refused("xz", b"\xfd7zXZ\0xxxxx".to_vec(), "bzip2 and xz are not supported");
    let bad_pax = Tar::new().raw(EntryType::XHeader, "p", "", 0, b"99 path=x\n").file("f", b"").finish();
    layer_refused("pax", bad_pax, "an extended header is malformed");
}

#[test]
fn wrong_digests() {
    let layer = Tar::new().file("f", b"content").finish();
    let mut layout = Layout::new("a:1", std::slice::from_ref(&layer), gzip);
    layout.blobs[1].1 = gzip(&Tar::new().file("f", b"other").finish());
    refused("layer blob", layout.archive(), "has digest sha256:");
    let mut layout = Layout::new("a:1", std::slice::from_ref(&layer), gzip);
    layout.blobs.remove(1);
    refused("missing blob", layout.archive(), "is named by the archive but missing from it");
    let mut layout = Layout::new("a:1", std::slice::from_ref(&layer), gzip);
    layout.index["manifests"][0]["size"] = json!(3);
    refused("size", layout.archive(), "bytes, 3 were announced");
    let mut layout = Layout::new("a:1", std::slice::from_ref(&layer), gzip);
    layout.index["manifests"][0]["digest"] = json!("sha256:../../../../etc/passwd");
    refused("digest that is a path", layout.archive(), "64 lower-case hexadecimal digits");

    let lying = serde_json::to_vec(&config_json(&[Digest::of(b"something else")])).expect("json");
    let manifest = json!([{"Config": "c", "RepoTags": ["a:1"], "Layers": ["l"]}]).to_string();
    let archive =
        Tar::new().file("c", &lying).file("l", &layer).file("manifest.json", manifest.as_bytes()).finish();
    refused("diff id", archive, "the uncompressed layer has digest sha256:");

    let config = serde_json::to_vec(&config_json(&[])).expect("json");
    let manifest = json!([{"Config": "c", "RepoTags": ["a:1"], "Layers": ["l"]}]).to_string();
    let archive =
        Tar::new().file("c", &config).file("l", &layer).file("manifest.json", manifest.as_bytes()).finish();
    refused("layer count", archive, "the manifest has 1 layers, the configuration 0");

    let hex = "0".repeat(64);
    let name = format!("{hex}.json");
    let config = serde_json::to_vec(&config_json(&[Digest::of(&layer)])).expect("json");
    let manifest = json!([{"Config": name, "RepoTags": ["a:1"], "Layers": ["l"]}]).to_string();
    let archive =
        Tar::new().file(&name, &config).file("l", &layer).file("manifest.json", manifest.as_bytes()).finish();
    refused("config named after another digest", archive, &format!("expected sha256:{hex}"));
}

#[test]
fn documents_and_members() {
    let layer = Tar::new().file("f", b"").finish();
    let good = serde_json::to_vec(&config_json(&[Digest::of(&layer)])).expect("json");
    let with = |config: &[u8], manifest: &str| {
        Tar::new().file("c", config).file("l", &layer).file("manifest.json", manifest.as_bytes()).finish()
    };
    let manifest = r#"[{"Config":"c","RepoTags":["a:1"],"Layers":["l"]}]"#;
    refused("manifest", with(&good, "[{"), "entry \"manifest.json\": not a valid document");
    refused("no images", with(&good, "[]"), "no image in it");
    refused("config", with(b"{}", manifest), "not a valid document");
    refused("name", with(&good, &manifest.replace("a:1", "../A")), "is not an image reference");
    refused(
        "member",
        with(&good, &manifest.replace("\"l\"", "\"x\"")),
        "entry \"x\": is named by the archive",
    );
    refused("path", with(&good, &manifest.replace("\"l\"", "\"../../etc/passwd\"")), "missing from it");
    let mut foreign = config_json(&[Digest::of(&layer)]);
    foreign["architecture"] = json!("s390x");
    let foreign = serde_json::to_vec(&foreign).expect("json");
    refused(
        "architecture",
        with(&foreign, manifest),
        "the image is for linux/s390x, this machine needs linux/",
    );
    let mut layout = Layout::new("a:1", std::slice::from_ref(&layer), gzip);
    layout.index["manifests"][0]["platform"] = json!({"architecture": "arm", "os": "windows"});
    refused("platform in the index", layout.archive(), "the image is for windows/arm");
    let mut layout = Layout::new("a:1", &[layer], gzip);
    layout.index = json!({"schemaVersion": 2, "manifests": []});
    refused("empty index", layout.archive(), "no image in it");

    let member = |kind, name: &str, link: &str| Tar::new().raw(kind, name, link, 0o644, b"").finish();
    refused("member dots", member(EntryType::Regular, "../x", ""), "entry \"../x\": \"..\" in a path");
    refused("member absolute", member(EntryType::Regular, "/x", ""), "entry \"/x\": an absolute path");
    refused(
        "member device",
        member(EntryType::Char, "x", ""),
        "entry \"x\": an image archive holds only files",
    );
    refused("member link", member(EntryType::Symlink, "x", "/etc/passwd"), "entry \"x\": a link that leaves");
    refused(
        "member link dots",
        member(EntryType::Symlink, "a/x", "../../y"),
        "entry \"a/x\": a link that leaves",
    );
    let circle = Tar::new().symlink("manifest.json", "manifest.json").finish();
    refused("circle", circle, "entry \"manifest.json\": too many links");
    let json = format!("[\"{}\"]", "x".repeat(5 << 20));
    let store = tempfile::tempdir().expect("directory");
    let error = load(&common::open(store.path()), Tar::new().file("manifest.json", json.as_bytes()).finish());
    assert!(error.expect_err("too large").to_string().contains("larger than 4194304 bytes"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens to the bytes of a layer, loading ends with an answer, stays inside the store, and leaves
    /// either a sound image or nothing.
    #[test]
    fn damaged_layers_do_no_harm(changes in prop::collection::vec((0..9000_usize, any::<u8>()), 1..12), cut in 0..9000_usize) {
        let mut layer = Tar::new()
            .dir("d/")
            .pax(&[("path", b"d/long"), ("SCHILY.xattr.user.a", b"1")])
            .file("x", b"data")
            .symlink("s", "d")
            .hard_link("h", "d/long")
            .raw(EntryType::GNULongName, "L", "", 0, b"d/longer")
            .file("y", &[7; 700])
            .finish();
        for (at, byte) in changes {
            let at = at % layer.len();
            layer[at] = byte;
            // Keeps headers readable, so that damage reaches what is behind the checksum.
            mend(&mut layer, at / 512 * 512);
        }
        layer.truncate(cut.max(512));
        let outer = tempfile::tempdir().expect("directory");
        let dir = outer.path().join("store");
        let store = open_small(&dir);
        let before = contents(&dir);
        match load(&store, docker_archive("a:1", &[layer])) {
            Ok(_) => prop_assert_eq!(store.verify().expect("verify"), Vec::<String>::new()),
            Err(_) => prop_assert_eq!(contents(&dir), before),
        }
        prop_assert_eq!(std::fs::read_dir(outer.path()).expect("read").count(), 1);
    }
}

/// Writes the right checksum into the block at `start`, if it looks like a header.
fn mend(tar: &mut [u8], start: usize) {
    let Some(block) = tar.get_mut(start..start + 512) else { return };
    if &block[257..262] != b"ustar" {
        return;
    }
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
