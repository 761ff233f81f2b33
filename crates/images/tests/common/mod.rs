//! Archives made by hand, byte by byte where it matters.
#![allow(dead_code, reason = "every test binary uses some of it")]

use cumulet_images::{Digest, ImageError, ImageStore, Limits, LoadedImage};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use tar::{EntryType, Header};

/// Builds a tar that may hold anything.
#[derive(Default)]
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Appends an entry exactly as described; the name goes into the header unchecked.
    pub(crate) fn raw(mut self, kind: EntryType, name: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.push(&header, data);
        self
    }

    pub(crate) fn header(mut self, change: impl FnOnce(&mut Header), data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(data.len() as u64);
        change(&mut header);
        header.set_cksum();
        self.push(&header, data);
        self
    }

    fn push(&mut self, header: &Header, data: &[u8]) {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.raw(EntryType::Regular, name, "", 0o644, data)
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.raw(EntryType::Directory, name, "", 0o755, b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(EntryType::Symlink, name, target, 0o777, b"")
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.raw(EntryType::Link, name, target, 0o644, b"")
    }

    /// PAX records for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length =
                (1..).map(|digits| rest + digits).find(|n| n.to_string().len() + rest == *n).expect("length");
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(EntryType::XHeader, "pax", "", 0o644, &data)
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }

    pub(crate) fn unfinished(self) -> Vec<u8> {
        self.0
    }
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).expect("compress");
    encoder.finish().expect("compress")
}

pub(crate) fn zstd(data: &[u8]) -> Vec<u8> {
    ::zstd::stream::encode_all(data, 1).expect("compress")
}

pub(crate) fn config_json(diff_ids: &[Digest]) -> Value {
    json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "created": "2020-01-01T00:00:00Z",
        "config": {
            "Env": ["PATH=/bin"], "Entrypoint": ["/bin/app"], "Cmd": null, "User": "1000:1000", "WorkingDir": "/srv",
            "ExposedPorts": {"80/tcp": {}}, "Labels": {"a": "b"}, "StopSignal": "SIGQUIT", "OnBuild": null,
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids.iter().map(Digest::as_str).collect::<Vec<_>>()},
        "history": [{"created_by": "by hand"}],
    })
}

fn config_of(layers: &[Vec<u8>]) -> Vec<u8> {
    let ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    serde_json::to_vec(&config_json(&ids)).expect("json")
}

/// A docker archive of one image, as `docker save` wrote them for years.
pub(crate) fn docker_archive(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let config = config_of(layers);
    let config_name = format!("{}.json", Digest::of(&config).hex());
    let mut tar = Tar::new();
    let mut names = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        names.push(format!("layer{i}/layer.tar"));
        tar = tar.dir(&format!("layer{i}/")).file(&names[i], layer);
    }
    let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": names}]);
    tar.file(&config_name, &config).file("manifest.json", manifest.to_string().as_bytes()).finish()
}

/// The parts of an OCI layout, for tests that spoil one of them.
pub(crate) struct Layout {
    pub(crate) blobs: Vec<(String, Vec<u8>)>,
    pub(crate) index: Value,
}

impl Layout {
    /// An image whose layers are stored as `pack` makes them.
    pub(crate) fn new(name: &str, layers: &[Vec<u8>], pack: impl Fn(&[u8]) -> Vec<u8>) -> Self {
        let config = config_of(layers);
        let mut blobs = vec![(Digest::of(&config).hex().to_owned(), config.clone())];
        let mut described = Vec::new();
        for layer in layers {
            let packed = pack(layer);
            described.push(json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": Digest::of(&packed).as_str(), "size": packed.len(),
            }));
            blobs.push((Digest::of(&packed).hex().to_owned(), packed));
        }
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(&config).as_str(), "size": config.len(),
            },
            "layers": described,
        }))
        .expect("json");
        let digest = Digest::of(&manifest);
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.as_str(),
            "size": manifest.len(), "annotations": {"org.opencontainers.image.ref.name": name},
        }]});
        blobs.push((digest.hex().to_owned(), manifest));
        Self { blobs, index }
    }

    pub(crate) fn archive(&self) -> Vec<u8> {
        let mut tar = Tar::new().file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
        for (hex, data) in &self.blobs {
            tar = tar.file(&format!("blobs/sha256/{hex}"), data);
        }
        tar.file("index.json", self.index.to_string().as_bytes()).finish()
    }
}

pub(crate) fn open(dir: &Path) -> ImageStore {
    ImageStore::open(dir).expect("open")
}

pub(crate) fn open_small(dir: &Path) -> ImageStore {
    let limits = Limits {
        archive_bytes: 4 << 20,
        archive_entries: 50,
        layer_bytes: 1 << 20,
        layer_entries: 50,
        layers: 5,
    };
    ImageStore::open_with(dir, limits).expect("open")
}

pub(crate) fn load(store: &ImageStore, archive: Vec<u8>) -> Result<Vec<LoadedImage>, ImageError> {
    store.load_from("test.tar", std::io::Cursor::new(archive))
}

/// Everything below a directory, except the lock files that stay.
pub(crate) fn contents(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        for entry in std::fs::read_dir(&path).expect("read") {
            let path = entry.expect("entry").path();
            if path.is_dir() && !path.is_symlink() {
                todo.push(path.clone());
            }
            let name = path.strip_prefix(dir).expect("below").display().to_string();
            if !matches!(name.as_str(), "lock" | "gc.lock") {
                found.push(name);
            }
        }
    }
    found.sort();
    found
}
