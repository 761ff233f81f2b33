//! Files and directories that appear whole or not at all.

use crate::Error;
use crate::error::file;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const PARTIAL: &str = ".partial-";

/// Removes what processes that are gone have left unfinished in a directory.
pub(crate) fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name();
        let maker =
            name.to_str().and_then(|n| n.strip_prefix(PARTIAL)?.split('-').next()?.parse::<u32>().ok());
        if maker.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_file(entry.path());
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Something beside its final place. It is removed when it is dropped before it was published.
#[derive(Debug)]
pub(crate) struct Aside {
    path: PathBuf,
    published: bool,
}

impl Aside {
    /// A name in this directory that nobody else has. Nothing is made.
    pub(crate) fn name(dir: &Path) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("{PARTIAL}{}-{n}", std::process::id()));
        // Left over by a process of the same number that was killed.
        let _ = fs::remove_file(&path);
        let _ = fs::remove_dir_all(&path);
        Self { path, published: false }
    }

    /// An empty directory.
    pub(crate) fn dir(dir: &Path) -> Result<Self, Error> {
        let aside = Self::name(dir);
        fs::create_dir(&aside.path).map_err(file("make", &aside.path))?;
        Ok(aside)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves it to its place, replacing a file that is there.
    pub(crate) fn publish(mut self, target: &Path) -> Result<(), Error> {
        fs::rename(&self.path, target).map_err(file("publish", target))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.path);
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Writes a file to the disk.
pub(crate) fn write(path: &Path, contents: &[u8]) -> Result<(), Error> {
    use std::io::Write;
    let written = File::create(path).and_then(|mut out| {
        out.write_all(contents)?;
        out.sync_all()
    });
    written.map_err(file("write", path))
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn sha256_file(path: &Path) -> Result<String, Error> {
    let mut input = File::open(path).map_err(file("open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match input.read(&mut buffer).map_err(file("read", path))? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_dead_have_left_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let mine = Aside::dir(dir.path()).unwrap();
        // Process numbers end far below.
        for name in [".partial-4294967295-0", ".partial-x-0", "image.erofs"] {
            fs::write(dir.path().join(name), b"x").unwrap();
        }
        fs::create_dir(dir.path().join(".partial-4294967294-1")).unwrap();
        sweep(dir.path());
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        let own = mine.path().file_name().unwrap().to_owned();
        let mut expected = vec![own, ".partial-x-0".into(), "image.erofs".into()];
        expected.sort();
        assert_eq!(left, expected);
        drop(mine);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
