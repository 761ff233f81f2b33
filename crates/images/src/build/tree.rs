//! Trees on disk as members of a layer: whole ones, and what a program changed on an overlay.
//!
//! Whiteouts (character devices 0/0) and opaque directories of an overlay's upper directory become `.wh.NAME` and
//! `.wh..wh..opq`, as the OCI image specification has them. Owners, modes, file capabilities, `user` attributes and
//! hard links are kept; sockets are left out; device nodes are refused, as they are when a layer is unpacked.

use super::layer::{Content, Member, Members};
use crate::ImageError;
use crate::error::io;
use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What was found, before names of one file are told from files.
#[derive(Default)]
pub(super) struct Tree {
    pub(super) members: Members,
    /// Device and inode of files that have several names.
    inodes: BTreeMap<Vec<u8>, (u64, u64)>,
}

impl Tree {
    /// Reads the tree at `root`. The root itself is no member.
    pub(super) fn read(root: &Path) -> Result<Self, ImageError> {
        let mut tree = Self::default();
        tree.walk(root, &mut Vec::new())?;
        Ok(tree)
    }

    fn walk(&mut self, dir: &Path, place: &mut Vec<u8>) -> Result<(), ImageError> {
        for entry in std::fs::read_dir(dir).map_err(io("read", dir))? {
            let entry = entry.map_err(io("read", dir))?;
            let path = entry.path();
            let metadata = entry.metadata().map_err(io("read", &path))?;
            let above = place.len();
            if above > 0 {
                place.push(b'/');
            }
            let name = entry.file_name();
            if metadata.file_type().is_char_device() && metadata.rdev() == 0 {
                place.extend_from_slice(WHITEOUT);
                place.extend_from_slice(name.as_bytes());
                self.members.insert(place.clone(), Member::of_root(Content::Bytes(Vec::new()), 0o644));
            } else {
                place.extend_from_slice(name.as_bytes());
                self.add(&path, &metadata, place)?;
            }
            place.truncate(above);
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, metadata: &Metadata, place: &mut Vec<u8>) -> Result<(), ImageError> {
        let kind = metadata.file_type();
        let content = if kind.is_dir() {
            Content::Directory
        } else if kind.is_symlink() {
            Content::Symlink(std::fs::read_link(path).map_err(io("read", path))?)
        } else if kind.is_file() {
            Content::File(path.to_owned())
        } else if kind.is_fifo() {
            Content::Fifo
        } else if kind.is_socket() {
            return Ok(());
        } else {
            let source = std::io::Error::other("an image must not hold device nodes");
            return Err(ImageError::Io { what: format!("pack {}", path.display()), source });
        };
        let has_attributes = kind.is_dir() || kind.is_file();
        let found = if has_attributes { attributes(path)? } else { Attributes::default() };
        if metadata.nlink() > 1 && kind.is_file() {
            self.inodes.insert(place.clone(), (metadata.dev(), metadata.ino()));
        }
        let (mode, uid, gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
        self.members.insert(place.clone(), Member { content, mode, uid, gid, xattrs: found.kept });
        if found.opaque {
            let mark = [place, &b"/"[..], OPAQUE].concat();
            self.members.insert(mark, Member::of_root(Content::Bytes(Vec::new()), 0o644));
        }
        if kind.is_dir() {
            self.walk(path, place)?;
        }
        Ok(())
    }

    /// Puts the changes of `upper` on this tree, as overlayfs would show them.
    pub(super) fn apply(&mut self, upper: Self) {
        for (place, member) in &upper.members {
            let (dir, name) = split(place);
            if name == OPAQUE {
                self.remove_below(dir);
            } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
                let hidden = join(dir, hidden);
                self.remove_below(&hidden);
                self.members.remove(&hidden);
            } else if member.content != Content::Directory {
                self.remove_below(place);
            }
        }
        for (place, member) in upper.members {
            if !split(&place).1.starts_with(WHITEOUT) {
                self.inodes.remove(&place);
                self.members.insert(place, member);
            }
        }
        self.inodes.extend(upper.inodes);
    }

    fn remove_below(&mut self, dir: &[u8]) {
        let prefix = [dir, b"/"].concat();
        let below: Vec<Vec<u8>> = self
            .members
            .range(prefix.clone()..)
            .take_while(|(place, _)| place.starts_with(&prefix))
            .map(|(place, _)| place.clone())
            .collect();
        below.iter().for_each(|place| drop(self.members.remove(place)));
    }

    /// The members, with every further name of a file as a hard link to the first one.
    pub(super) fn finish(mut self) -> Members {
        let mut first: BTreeMap<(u64, u64), Vec<u8>> = BTreeMap::new();
        for (place, inode) in &self.inodes {
            let Some(member) = self.members.get_mut(place) else { continue };
            match first.get(inode) {
                Some(target) => {
                    member.content = Content::HardLink(target.clone());
                    member.xattrs.clear();
                }
                None => drop(first.insert(*inode, place.clone())),
            }
        }
        self.members
    }
}

#[derive(Default)]
struct Attributes {
    kept: Vec<(String, Vec<u8>)>,
    opaque: bool,
}

fn attributes(path: &Path) -> Result<Attributes, ImageError> {
    let mut found = Attributes::default();
    let names = match xattr::list(path) {
        Ok(names) => names,
        Err(error) if error.raw_os_error() == Some(libc_enotsup()) => return Ok(found),
        Err(error) => return Err(io("read the attributes of", path)(error)),
    };
    for name in names {
        let Some(name) = name.to_str() else { continue };
        let value = || xattr::get(path, name).map_err(io("read the attributes of", path));
        match name {
            "trusted.overlay.opaque" => found.opaque = value()?.is_some_and(|value| value == b"y"),
            "trusted.overlay.redirect" | "trusted.overlay.metacopy" => {
                let source = std::io::Error::other("the sandbox left a reference to another layer");
                return Err(ImageError::Io { what: format!("pack {}", path.display()), source });
            }
            "security.capability" => found.kept.extend(value()?.map(|value| (name.to_owned(), value))),
            _ if name.starts_with("user.") && !name.starts_with("user.overlay.") => {
                found.kept.extend(value()?.map(|value| (name.to_owned(), value)));
            }
            _ => {}
        }
    }
    found.kept.sort();
    Ok(found)
}

fn libc_enotsup() -> i32 {
    nix::errno::Errno::EOPNOTSUPP as i32
}

/// Directory and last component of a path.
fn split(place: &[u8]) -> (&[u8], &[u8]) {
    match place.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&place[..slash], &place[slash + 1..]),
        None => (b"", place),
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_show_as_overlayfs_would() {
        let (lower, upper) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        let write = |root: &Path, name: &str| {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("dir");
            std::fs::write(path, name).expect("write");
        };
        for name in ["keep", "gone", "dir/old", "dir-x", "tree/deep/file", "file"] {
            write(lower.path(), name);
        }
        for name in ["dir/new", "file/below"] {
            write(upper.path(), name);
        }
        std::fs::hard_link(upper.path().join("dir/new"), upper.path().join("dir-y")).expect("link");
        let whiteout = |name: &str| {
            use nix::sys::stat::{Mode, SFlag, mknod};
            mknod(&upper.path().join(name), SFlag::S_IFCHR, Mode::empty(), 0).expect("whiteout");
        };
        whiteout("gone");
        whiteout("tree");
        xattr::set(upper.path().join("dir"), "trusted.overlay.opaque", b"y").expect("opaque");
        let diff = Tree::read(upper.path()).expect("read");
        let names = |tree: &Members| -> Vec<String> {
            tree.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
        };
        let expected =
            [".wh.gone", ".wh.tree", "dir", "dir-y", "dir/.wh..wh..opq", "dir/new", "file", "file/below"];
        assert_eq!(names(&diff.members), expected);
        let mut tree = Tree::read(lower.path()).expect("read");
        tree.apply(diff);
        let members = tree.finish();
        assert_eq!(names(&members), ["dir", "dir-x", "dir-y", "dir/new", "file", "file/below", "keep"]);
        let of = |name: &[u8]| members.get(name).map(|member| member.content.clone());
        assert_eq!(of(b"dir/new"), Some(Content::HardLink(b"dir-y".to_vec())));
        assert!(matches!(of(b"dir-y"), Some(Content::File(_))));
    }
}
