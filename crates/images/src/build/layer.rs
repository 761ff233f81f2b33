//! The layer of a build: gathering files and writing them as a reproducible tar.

use super::{DESCRIPTION, ignore};
use crate::ImageError;
use crate::error::io;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use tar::{Builder, EntryType, Header};

enum Node {
    Directory,
    File { source: PathBuf, program: bool },
    Symlink { target: PathBuf },
}

/// What the layer will hold, by path without leading slash. Sorted, so parents come before what they hold.
pub(super) struct Tree(BTreeMap<Vec<u8>, Node>);

impl Tree {
    /// Collects the files that a description names. `dir` is the only place they may come from.
    pub(super) fn gather(
        dir: &Path,
        description: &Path,
        files: &BTreeMap<String, String>,
        ignored: &ignore::Rules,
    ) -> Result<Self, ImageError> {
        let mut gathering = Gathering { dir, description, ignored, nodes: BTreeMap::new() };
        for (source, destination) in files {
            gathering.add(source, destination)?;
        }
        Ok(Self(gathering.nodes))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Writes the tar: sorted, owned by root, all of one date.
    pub(super) fn write(&self, path: &Path, mtime: i64) -> Result<(), ImageError> {
        let file = File::create_new(path).map_err(io("make", path))?;
        let mut tar = Builder::new(BufWriter::new(file));
        for (name, node) in &self.0 {
            let name = Path::new(OsStr::from_bytes(name));
            let mut header = Header::new_gnu();
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(0);
            header.set_mtime(u64::try_from(mtime).unwrap_or(0));
            let written = match node {
                Node::Directory => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_mode(0o755);
                    tar.append_data(&mut header, name, std::io::empty())
                }
                Node::Symlink { target } => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_mode(0o777);
                    tar.append_link(&mut header, name, target)
                }
                Node::File { source, program } => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_mode(if *program { 0o755 } else { 0o644 });
                    append_file(&mut tar, &mut header, name, source)
                }
            };
            written.map_err(|source| ImageError::Io { what: format!("pack {}", name.display()), source })?;
        }
        let finished = tar.into_inner().and_then(|mut file| file.flush());
        finished.map_err(io("write", path))
    }
}

/// Appends a file at the size it has when it is opened; one that shrinks meanwhile is an error.
fn append_file(
    tar: &mut Builder<impl Write>,
    header: &mut Header,
    name: &Path,
    source: &Path,
) -> std::io::Result<()> {
    use std::io::Read;
    let file = File::open(source)?;
    let size = file.metadata()?.len();
    header.set_size(size);
    let mut data = Counted { inner: file.take(size), bytes: 0 };
    tar.append_data(header, name, &mut data)?;
    match data.bytes == size {
        true => Ok(()),
        false => Err(std::io::Error::other("the file changed while it was read")),
    }
}

struct Counted<R> {
    inner: R,
    bytes: u64,
}

impl<R: std::io::Read> std::io::Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.bytes += n as u64;
        Ok(n)
    }
}

struct Gathering<'a> {
    dir: &'a Path,
    description: &'a Path,
    ignored: &'a ignore::Rules,
    nodes: BTreeMap<Vec<u8>, Node>,
}

impl Gathering<'_> {
    fn wrong(&self, message: String) -> ImageError {
        ImageError::Build {
            path: self.description.to_owned(),
            at: None,
            message: format!("files: {message}"),
        }
    }

    fn add(&mut self, source: &str, destination: &str) -> Result<(), ImageError> {
        let relative = self.inside(source)?;
        let path = self.dir.join(&relative);
        let metadata = std::fs::symlink_metadata(&path)
            .map_err(|error| self.wrong(format!("{source}: {error}; paths are relative to the directory")))?;
        let Some(rest) = destination.strip_prefix('/') else {
            return Err(self.wrong(format!("{destination}: the path in the image must begin with \"/\"")));
        };
        let mut place: Vec<&[u8]> = Vec::new();
        for part in rest.split('/') {
            match part {
                "" | "." => {}
                ".." => return Err(self.wrong(format!("{destination}: \"..\" is not allowed"))),
                part => place.push(part.as_bytes()),
            }
        }
        let file_name = relative.file_name();
        if let Some(file_name) = file_name
            && !metadata.is_dir()
            && (place.is_empty() || destination.ends_with('/'))
        {
            place.push(file_name.as_bytes());
        }
        let place = place.join(&b'/');
        self.make_parents(&place)?;
        self.walk(&relative, &metadata, place)
    }

    /// The source path without `.`, if it stays below the directory and passes through no symbolic link.
    fn inside(&self, source: &str) -> Result<PathBuf, ImageError> {
        let outside = || self.wrong(format!("{source}: only files below {} can be used", self.dir.display()));
        let mut relative = PathBuf::new();
        for component in Path::new(source).components() {
            match component {
                Component::CurDir => {}
                Component::Normal(name) => {
                    let link = |path: &Path| path.symlink_metadata().is_ok_and(|there| there.is_symlink());
                    if !relative.as_os_str().is_empty() && link(&self.dir.join(&relative)) {
                        return Err(outside());
                    }
                    relative.push(name);
                }
                _ => return Err(outside()),
            }
        }
        Ok(relative)
    }

    fn make_parents(&mut self, place: &[u8]) -> Result<(), ImageError> {
        for (i, _) in place.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            self.put(place[..i].to_vec(), Node::Directory)?;
        }
        Ok(())
    }

    fn put(&mut self, place: Vec<u8>, node: Node) -> Result<(), ImageError> {
        // The root itself needs no entry.
        if place.is_empty() {
            return Ok(());
        }
        match (self.nodes.get(&place), &node) {
            (None, _) => drop(self.nodes.insert(place, node)),
            (Some(Node::Directory), Node::Directory) => {}
            (Some(_), _) => {
                return Err(self.wrong(format!("two things want to be /{}", String::from_utf8_lossy(&place))));
            }
        }
        Ok(())
    }

    fn walk(&mut self, relative: &Path, metadata: &Metadata, place: Vec<u8>) -> Result<(), ImageError> {
        let name = relative.as_os_str().as_bytes();
        let own = name == DESCRIPTION.as_bytes() || name == ignore::FILE.as_bytes();
        if own || (!name.is_empty() && self.ignored.ignores(name, metadata.is_dir())) {
            return Ok(());
        }
        let path = self.dir.join(relative);
        if metadata.is_file() {
            let program = metadata.permissions().mode() & 0o111 != 0;
            return self.put(place, Node::File { source: path, program });
        }
        if metadata.is_symlink() {
            let target = std::fs::read_link(&path).map_err(io("read", &path))?;
            return self.put(place, Node::Symlink { target });
        }
        if !metadata.is_dir() {
            return Err(
                self.wrong(format!("{}: only files, directories and links can be used", path.display()))
            );
        }
        self.put(place.clone(), Node::Directory)?;
        for entry in std::fs::read_dir(&path).map_err(io("read", &path))? {
            let entry = entry.map_err(io("read", &path))?;
            let metadata = entry.metadata().map_err(io("read", &entry.path()))?;
            let mut below = place.clone();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(entry.file_name().as_bytes());
            self.walk(&relative.join(entry.file_name()), &metadata, below)?;
        }
        Ok(())
    }
}
