//! Directories of files that the host keeps up to date, written so that readers see all of one version or all of
//! another, in the kubelet's way:
//!
//! ```text
//!   volume/key     -> ..data/key
//!   volume/..data  -> ..3
//!   volume/..3/      key, dir/key
//! ```
//!
//! Programs watch `..data`, whose rename is the moment of change.

use cumulet_guest_proto::spec::{File, FileTree};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Makes `dir` hold these files and no others. With `group`, they belong to it and it can read them.
pub(super) fn write_tree(dir: &Path, files: &FileTree, group: Option<u32>) -> io::Result<()> {
    files.keys().try_for_each(|path| confined(path))?;
    make_dir(dir)?;
    let old = fs::read_link(dir.join(DATA)).ok();
    let number =
        old.as_ref().and_then(|old| old.to_str()?.strip_prefix("..")?.parse::<u64>().ok()).unwrap_or(0);
    let version = format!("..{}", number + 1);
    let new = dir.join(&version);
    // One that was begun and not finished.
    let _ = fs::remove_dir_all(&new);
    make_dir(&new)?;
    for (path, file) in files {
        let at = new.join(path);
        if let Some(parent) = at.parent() {
            make_dir(parent)?;
        }
        write_file(&at, file, group)?;
    }
    let _ = fs::remove_file(dir.join(DATA_NEW));
    symlink(&version, dir.join(DATA_NEW))?;
    fs::rename(dir.join(DATA_NEW), dir.join(DATA))?;
    link_names(dir, files)?;
    if let Some(old) = old {
        fs::remove_dir_all(dir.join(old))?;
    }
    Ok(())
}

fn write_file(at: &Path, file: &File, group: Option<u32>) -> io::Result<()> {
    // Never readable by more than it will be.
    let mut opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(at)?;
    opened.write_all(&file.content.0)?;
    if file.uid.is_some() || group.is_some() {
        chown(at, file.uid, group)?;
    }
    let mode = if group.is_some() { file.mode | 0o040 } else { file.mode };
    opened.set_permissions(Permissions::from_mode(mode & 0o777))
}

/// Writes files that containers have mounted one by one: in place, since a new file would not be seen.
pub(super) fn write_in_place(dir: &Path, files: &FileTree) -> io::Result<()> {
    make_dir(dir)?;
    for (name, file) in files {
        confined(name)?;
        let at = dir.join(name);
        fs::write(&at, &file.content.0)?;
        fs::set_permissions(&at, Permissions::from_mode(file.mode & 0o777))?;
    }
    Ok(())
}

/// Refuses a path that leaves the directory or collides with the scheme.
fn confined(path: &str) -> io::Result<()> {
    let mut parts = Path::new(path).components().peekable();
    let plain = parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)));
    if !plain || path.starts_with("..") {
        let text = format!("path {path:?} is not inside the volume");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(())
}

fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(dir)
}

/// Makes the visible names links into `..data`, and removes those that are no more.
fn link_names(dir: &Path, files: &FileTree) -> io::Result<()> {
    let names: BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
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

    fn tree(files: &[(&str, &str)]) -> FileTree {
        let file = |text: &str| File { content: text.into(), mode: 0o640, uid: None };
        files.iter().map(|(path, text)| ((*path).to_owned(), file(text))).collect()
    }

    #[test]
    fn replaces_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write_tree(dir, &tree(&[("a", "1"), ("d/b", "2")]), None).unwrap();
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(dir.join("d/b")).unwrap(), "2");
        assert_eq!(fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        let before = fs::read_link(dir.join(DATA)).unwrap();
        write_tree(dir, &tree(&[("a", "3")]), None).unwrap();
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(fs::symlink_metadata(dir.join("d")).is_err());
        assert!(!dir.join(before).exists());
        write_tree(dir, &FileTree::new(), None).unwrap();
        assert!(fs::symlink_metadata(dir.join("a")).is_err());
    }

    #[test]
    fn in_place_keeps_the_file() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        write_in_place(dir.path(), &tree(&[("hosts", "1")])).unwrap();
        let inode = fs::metadata(dir.path().join("hosts")).unwrap().ino();
        write_in_place(dir.path(), &tree(&[("hosts", "22")])).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("hosts")).unwrap(), "22");
        assert_eq!(fs::metadata(dir.path().join("hosts")).unwrap().ino(), inode);
    }

    #[test]
    fn hostile_paths_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["../x", "/x", "a/../../x", "..data", "", "..x/y"] {
            assert!(write_tree(dir.path(), &tree(&[(bad, "x")]), None).is_err(), "{bad:?}");
            assert!(write_in_place(dir.path(), &tree(&[(bad, "x")])).is_err(), "{bad:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
