//! A directory for targets that write, with something beside it that must stay as it is.
//!
//! It lies in the temporary directory, which should be in memory (`TMPDIR`): the image store flushes to the disk.

use cumulet_images::{ImageStore, Limits};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Content that must never get anywhere else.
pub(crate) const SECRET: &[u8] = b"nobody may read this";

/// `DIR/store` and `DIR/outside/secret`.
pub(crate) struct Scratch {
    pub(crate) dir: PathBuf,
    pub(crate) store: ImageStore,
    /// Files beside the store: path, mode, links, modification time.
    outside: Vec<(PathBuf, u32, u64, i64, i64)>,
}

impl Scratch {
    /// Makes the directory. `prepare` may put more beside the store.
    pub(crate) fn new(name: &str, prepare: impl FnOnce(&Path)) -> Self {
        let dir = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(dir.join("outside"))
            .expect("a temporary directory");
        fs::write(dir.join("outside/secret"), SECRET).expect("a file");
        prepare(&dir);
        let store = open(&dir);
        let outside = Self::list_outside(&dir);
        Self { dir, store, outside }
    }

    /// Empties the store.
    pub(crate) fn reset(&mut self) {
        fs::remove_dir_all(self.dir.join("store")).expect("the store can be removed");
        self.store = open(&self.dir);
    }

    /// Checks that nothing beside the store changed, that no work is left, and that layers hold no devices.
    pub(crate) fn check(&self) {
        assert_eq!(self.outside, Self::list_outside(&self.dir), "something was written outside of the store");
        assert_eq!(entries(&self.dir.join("store/tmp")), 0, "work was left behind");
        walk(&self.dir.join("store/layers"), &mut |path, meta| {
            let kind = meta.file_type();
            let device = kind.is_block_device() || (kind.is_char_device() && meta.rdev() != 0);
            assert!(!device && !kind.is_socket(), "{} is a device", path.display());
        });
    }

    /// Checks that a failed import left nothing.
    pub(crate) fn check_empty(&self) {
        for dir in ["store/blobs/sha256", "store/layers"] {
            assert_eq!(entries(&self.dir.join(dir)), 0, "{dir} is not empty after a failure");
        }
    }

    fn list_outside(dir: &Path) -> Vec<(PathBuf, u32, u64, i64, i64)> {
        let mut found = Vec::new();
        walk(dir, &mut |path, meta| {
            if !path.starts_with(dir.join("store")) {
                found.push((path.to_owned(), meta.mode(), meta.nlink(), meta.mtime(), meta.mtime_nsec()));
            }
        });
        found.sort();
        found
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is for whoever cleans the temporary directory.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn open(dir: &Path) -> ImageStore {
    let limits = Limits {
        archive_bytes: 1 << 20,
        archive_entries: 100,
        layer_bytes: 1 << 20,
        layer_entries: 100,
        layers: 8,
    };
    ImageStore::open_with(&dir.join("store"), limits).expect("the store opens")
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).expect("a directory of the store").count()
}

/// Visits everything below a directory, following no link.
pub(crate) fn walk(dir: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata)) {
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).expect("a directory").map(|entry| entry.expect("an entry")) {
            let (path, meta) = (entry.path(), entry.metadata().expect("metadata"));
            visit(&path, &meta);
            if meta.is_dir() {
                waiting.push(path);
            }
        }
    }
}
