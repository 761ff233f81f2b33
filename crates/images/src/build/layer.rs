//! Writing a layer: a tar whose bytes depend on nothing but its members and one date.
//!
//! The digests of what is stored and of what it unpacks to are computed while it is written, so that nothing is read
//! twice.

use crate::error::io;
use crate::oci::Descriptor;
use crate::{Digest, ImageError};
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

/// Compressed layers are for being sent; a low level is nearly as small and much faster.
const LEVEL: u32 = 4;
const MEDIA_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What a member of a layer holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Directory,
    /// A file of the machine.
    File(PathBuf),
    /// A file whose content is known.
    Bytes(Vec<u8>),
    Symlink(PathBuf),
    /// Another name of a member that comes before.
    HardLink(Vec<u8>),
    Fifo,
}

/// One member of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) content: Content,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Extended attributes, sorted by name.
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
}

impl Member {
    /// A member that belongs to root.
    pub(super) fn of_root(content: Content, mode: u32) -> Self {
        Self { content, mode, uid: 0, gid: 0, xattrs: Vec::new() }
    }
}

/// The members by path, without leading slash. Sorted, so parents come before what they hold.
pub(super) type Members = BTreeMap<Vec<u8>, Member>;

/// How a layer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// As it is: quick to write, for layers that change often.
    Plain,
    /// With gzip, which every tool can read.
    Gzip,
}

/// A layer that is written, with its digests.
pub(super) struct Packed {
    pub(super) blob: Descriptor,
    pub(super) diff_id: Digest,
}

/// Writes a layer to a new file, and flushes it to the disk.
pub(super) fn write(
    path: &Path,
    members: &Members,
    mtime: i64,
    packing: Packing,
) -> Result<Packed, ImageError> {
    let file = File::create_new(path).map_err(io("make", path))?;
    let stored = Hashing::new(BufWriter::with_capacity(256 * 1024, file));
    let finish = |stored: Hashing<BufWriter<File>>| -> Result<(Digest, u64), ImageError> {
        let (file, digest, bytes) = stored.finish();
        let synced = file.into_inner().map_err(|error| error.into_error()).and_then(|file| file.sync_all());
        synced.map_err(io("write", path))?;
        Ok((digest, bytes))
    };
    match packing {
        Packing::Plain => {
            let (digest, bytes) = finish(append_all(stored, members, mtime)?)?;
            let blob = Descriptor::new(crate::oci::MEDIA_LAYER, digest.clone(), bytes);
            Ok(Packed { blob, diff_id: digest })
        }
        Packing::Gzip => {
            let encoder = GzEncoder::new(stored, flate2::Compression::new(LEVEL));
            let (encoder, diff_id, _) = append_all(Hashing::new(encoder), members, mtime)?.finish();
            let (digest, bytes) = finish(encoder.finish().map_err(io("write", path))?)?;
            Ok(Packed { blob: Descriptor::new(MEDIA_GZIP, digest, bytes), diff_id })
        }
    }
}

fn append_all<W: Write>(out: W, members: &Members, mtime: i64) -> Result<W, ImageError> {
    let mut tar = Builder::new(out);
    let mtime = u64::try_from(mtime).unwrap_or(0);
    for (name, member) in members {
        append(&mut tar, name, member, mtime).map_err(|source| ImageError::Io {
            what: format!("pack {}", String::from_utf8_lossy(name)),
            source,
        })?;
    }
    tar.into_inner().map_err(|source| ImageError::Io { what: "pack a layer".to_owned(), source })
}

fn append<W: Write>(tar: &mut Builder<W>, name: &[u8], member: &Member, mtime: u64) -> std::io::Result<()> {
    let path = Path::new(OsStr::from_bytes(name));
    let mut header = Header::new_gnu();
    header.set_uid(member.uid.into());
    header.set_gid(member.gid.into());
    header.set_size(0);
    header.set_mtime(mtime);
    header.set_mode(member.mode);
    if !member.xattrs.is_empty() {
        append_attributes(tar, &member.xattrs)?;
    }
    let mut plain = |kind: EntryType| header.set_entry_type(kind);
    match &member.content {
        Content::Directory => {
            plain(EntryType::Directory);
            tar.append_data(&mut header, path, std::io::empty())
        }
        Content::Fifo => {
            plain(EntryType::Fifo);
            tar.append_data(&mut header, path, std::io::empty())
        }
        Content::Symlink(target) => {
            plain(EntryType::Symlink);
            tar.append_link(&mut header, path, target)
        }
        Content::HardLink(target) => {
            plain(EntryType::Link);
            tar.append_link(&mut header, path, Path::new(OsStr::from_bytes(target)))
        }
        Content::Bytes(bytes) => {
            plain(EntryType::Regular);
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, path, &bytes[..])
        }
        Content::File(source) => {
            plain(EntryType::Regular);
            append_file(tar, &mut header, path, source)
        }
    }
}

/// Appends a file at the size it has when it is opened; one that shrinks meanwhile is an error.
fn append_file(
    tar: &mut Builder<impl Write>,
    header: &mut Header,
    name: &Path,
    source: &Path,
) -> std::io::Result<()> {
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

/// Writes the PAX header that carries the attributes of the next member.
fn append_attributes(tar: &mut Builder<impl Write>, attributes: &[(String, Vec<u8>)]) -> std::io::Result<()> {
    let mut records = Vec::new();
    for (name, value) in attributes {
        // The length of a record counts its own digits.
        let rest = "SCHILY.xattr.".len() + name.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        records.extend_from_slice(format!("{length} SCHILY.xattr.{name}=").as_bytes());
        records.extend_from_slice(value);
        records.push(b'\n');
    }
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::XHeader);
    header.set_path("attributes")?;
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(records.len() as u64);
    header.set_cksum();
    tar.append(&header, &records[..])
}

struct Counted<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.bytes += n as u64;
        Ok(n)
    }
}

/// Hashes and counts what is written through it.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    fn finish(self) -> (W, Digest, u64) {
        (self.inner, Digest::from_hash(&self.hash.finalize()), self.bytes)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(buffer)?;
        self.hash.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Limits;
    use crate::staging::unpack_verified;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    /// Version 2 of the attribute: effective, with one capability.
    const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn everything_survives_packing_and_unpacking() {
        let long = format!("{}/{}", "d".repeat(120), "f".repeat(150));
        let mut program = Member::of_root(Content::Bytes(b"program".to_vec()), 0o4755);
        program.xattrs =
            vec![("security.capability".into(), CAPABILITY.to_vec()), ("user.a".into(), b"=\n".to_vec())];
        let mut owned = Member::of_root(Content::Directory, 0o2750);
        (owned.uid, owned.gid) = (3_000_000, 65534);
        let members = Members::from([
            (b"a".to_vec(), program),
            (b"b".to_vec(), Member::of_root(Content::HardLink(b"a".to_vec()), 0o4755)),
            ("d".repeat(120).into_bytes(), owned),
            (long.clone().into_bytes(), Member::of_root(Content::Bytes(Vec::new()), 0o600)),
            (b"fifo".to_vec(), Member::of_root(Content::Fifo, 0o622)),
            (b"link".to_vec(), Member::of_root(Content::Symlink(PathBuf::from(&long)), 0o777)),
            (b".wh.gone".to_vec(), Member::of_root(Content::Bytes(Vec::new()), 0o644)),
        ]);
        let dir = tempfile::tempdir().expect("directory");
        for packing in [Packing::Plain, Packing::Gzip] {
            let (blob, root) =
                (dir.path().join(format!("{packing:?}")), dir.path().join(format!("{packing:?}.d")));
            let packed = write(&blob, &members, 86400, packing).expect("write");
            assert_eq!(Digest::of(&std::fs::read(&blob).expect("read")), packed.blob.digest);
            assert_eq!(std::fs::metadata(&blob).expect("metadata").len(), packed.blob.size);
            unpack_verified(&Limits::default(), "layer", &blob, &packed.diff_id, Some(&root))
                .expect("unpack");
            let at = |name: &str| std::fs::symlink_metadata(root.join(name)).expect(name);
            assert_eq!(
                (at("a").mode() & 0o7777, at("a").ino(), at("a").mtime()),
                (0o4755, at("b").ino(), 86400)
            );
            assert_eq!(
                xattr::get(root.join("b"), "security.capability").expect("get"),
                Some(CAPABILITY.to_vec())
            );
            assert_eq!(xattr::get(root.join("a"), "user.a").expect("get"), Some(b"=\n".to_vec()));
            let parent = at(&"d".repeat(120));
            assert_eq!((parent.mode() & 0o7777, parent.uid(), parent.gid()), (0o2750, 3_000_000, 65534));
            assert!(at(&long).is_file() && at("fifo").file_type().is_fifo());
            assert_eq!(std::fs::read_link(root.join("link")).expect("link"), Path::new(&long));
            assert_eq!((at("gone").file_type().is_char_device(), at("gone").rdev()), (true, 0));
        }
    }
}
