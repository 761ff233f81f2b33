//! Image archives. Header checksums are put right first, else the fuzzer would only ever test them.

use crate::scratch::Scratch;
use cumulet_images::Digest;
use std::cell::RefCell;
use std::io::Cursor;

const BLOCK: usize = 512;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new("cumulet-fuzz-image", |_| {}));
}

/// A whole archive: docker archive or OCI layout, perhaps compressed.
pub(crate) fn image_archive(data: &[u8]) {
    let mut archive = data.to_vec();
    repair(&mut archive);
    load(archive);
}

/// One layer, in an image that is right about it: the first byte says in which kind of archive.
pub(crate) fn image_layer(data: &[u8]) {
    let Some((kind, layer)) = data.split_first() else { return };
    let mut layer = layer.to_vec();
    repair(&mut layer);
    load(if kind & 1 == 0 { docker_archive(&layer) } else { oci_layout(&layer) });
}

fn load(archive: Vec<u8>) {
    SCRATCH.with_borrow_mut(|scratch| {
        let loaded = scratch.store.load_from("fuzz", Cursor::new(archive));
        scratch.check();
        match loaded {
            Err(error) => {
                let _ = error.to_string();
                scratch.check_empty();
            }
            Ok(images) => {
                let listed = scratch.store.list().expect("what was loaded can be listed");
                assert!(images.iter().all(|image| listed.iter().any(|row| row.digest == image.digest)));
                scratch.reset();
            }
        }
    });
}

/// Writes the right checksum into every header of a tar stream.
fn repair(tar: &mut [u8]) {
    let mut at = 0;
    while let Some(block) =
        tar.get_mut(at..at + BLOCK).and_then(|block| <&mut [u8; BLOCK]>::try_from(block).ok())
    {
        if block.iter().all(|byte| *byte == 0) {
            return;
        }
        let mut header = tar::Header::from_byte_slice(block).clone();
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
        let size = header.entry_size().ok().and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
        let Some(next) = size.checked_next_multiple_of(BLOCK).and_then(|size| size.checked_add(at + BLOCK))
        else {
            return;
        };
        at = next;
    }
}

fn config(layer: &[u8]) -> Vec<u8> {
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let document = serde_json::json!({
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(layer).as_str()]},
    });
    document.to_string().into_bytes()
}

fn docker_archive(layer: &[u8]) -> Vec<u8> {
    let manifest = br#"[{"Config":"config.json","RepoTags":["fuzz:1"],"Layers":["layer.tar"]}]"#;
    archive(&[("manifest.json", manifest), ("config.json", &config(layer)), ("layer.tar", layer)])
}

fn oci_layout(layer: &[u8]) -> Vec<u8> {
    let described = |media_type: &str, content: &[u8]| {
        let media_type = format!("application/vnd.oci.image.{media_type}");
        serde_json::json!({"mediaType": media_type, "digest": Digest::of(content).as_str(), "size": content.len()})
    };
    let name = |content: &[u8]| format!("blobs/sha256/{}", Digest::of(content).hex());
    let config = config(layer);
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": described("config.v1+json", &config),
        "layers": [described("layer.v1.tar", layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let index =
        serde_json::json!({"schemaVersion": 2, "manifests": [described("manifest.v1+json", &manifest)]});
    archive(&[
        ("index.json", index.to_string().as_bytes()),
        (&name(&manifest), &manifest),
        (&name(&config), &config),
        (&name(layer), layer),
    ])
}

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).expect("memory can be written");
    }
    builder.into_inner().expect("memory can be written")
}
