//! Writing a directory of files so that readers see all of one version or all of another.
//!
//! ```text
//!   volume/key        -> ..data/key
//!   volume/..data     -> ..2026_11_21_10_00_00.123456789
//!   volume/..2026_…/  key, dir/key
//! ```
//!
//! The scheme is Kubernetes': programs watch `..data`, whose rename is the moment of change. Paths come from API
//! objects and are confined to the directory before anything is written.

use super::payload::Payload;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Writes the payload into `dir`, unless it is there already. With `group`, files belong to it and can be read by it.
/// Returns whether anything changed.
pub(crate) fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    payload.keys().try_for_each(|path| confined(path))?;
    make_dir(dir)?;
    if dir.join(DATA).exists() && is_current(dir, payload)? {
        return Ok(false);
    }
    let version = format!("..{}", jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%N"));
    let new = dir.join(&version);
    make_dir(&new)?;
    for (path, file) in payload {
        let at = new.join(path);
        if let Some(parent) = at.parent() {
            make_dir(parent)?;
        }
        fs::write(&at, &file.bytes)?;
        let mode = if group.is_some() { file.mode | 0o040 } else { file.mode };
        if group.is_some() {
            chown(&at, None, group)?;
        }
        fs::set_permissions(&at, Permissions::from_mode(mode))?;
    }
    let old = fs::read_link(dir.join(DATA)).ok();
    let _ = fs::remove_file(dir.join(DATA_NEW));
    symlink(&version, dir.join(DATA_NEW))?;
    fs::rename(dir.join(DATA_NEW), dir.join(DATA))?;
    link_names(dir, payload)?;
    if let Some(old) = old {
        crate::dirs::remove_dir(&dir.join(old))?;
    }
    Ok(true)
}

/// Refuses a path that leaves the volume or collides with the scheme.
fn confined(path: &str) -> io::Result<()> {
    let parts: Vec<Component<'_>> = Path::new(path).components().collect();
    let plain = !parts.is_empty() && parts.iter().all(|p| matches!(p, Component::Normal(_)));
    if !plain || path.starts_with("..") {
        let text = format!("path {path:?} is not inside the volume");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(())
}

fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(dir)
}

fn is_current(dir: &Path, payload: &Payload) -> io::Result<bool> {
    let data = dir.join(DATA);
    let mut found = 0;
    let mut dirs = vec![data.clone()];
    while let Some(at) = dirs.pop() {
        for entry in fs::read_dir(&at)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            } else {
                found += 1;
            }
        }
    }
    let same = |(path, file): (&String, &super::payload::File)| {
        fs::read(data.join(path)).is_ok_and(|bytes| bytes == file.bytes)
    };
    Ok(found == payload.len() && payload.iter().all(same))
}

/// Makes the visible names links into `..data`, and removes those that are no more.
fn link_names(dir: &Path, payload: &Payload) -> io::Result<()> {
    let names: BTreeSet<&str> = payload.keys().filter_map(|p| p.split('/').next()).collect();
    for name in &names {
        match symlink(Path::new(DATA).join(name), dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let known = name.to_str().is_some_and(|n| n.starts_with("..") || names.contains(n));
        if !known && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::payload::File;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |text: &str| File { bytes: text.into(), mode: 0o640 };
        files.iter().map(|(path, text)| ((*path).to_owned(), file(text))).collect()
    }

    #[test]
    fn replaces_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(write(dir, &payload(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(dir.join("d/b")).unwrap(), "2");
        assert_eq!(fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(!write(dir, &payload(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        let before = fs::read_link(dir.join(DATA)).unwrap();
        assert!(write(dir, &payload(&[("a", "3")]), None).unwrap());
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(!dir.join("d").exists() && fs::symlink_metadata(dir.join("d")).is_err());
        assert!(!dir.join(before).exists());
    }

    #[test]
    fn empty_is_a_version_too() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path(), &Payload::new(), None).unwrap());
        assert!(!write(dir.path(), &Payload::new(), None).unwrap());
    }

    #[test]
    fn hostile_paths_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["../x", "/x", "a/../../x", "..data", "", "..x/y"] {
            assert!(write(dir.path(), &payload(&[(bad, "x")]), None).is_err(), "{bad:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
