//! Reading tar streams from strangers.
//!
//! Understands ustar, GNU long names and PAX records, with caps on everything that a header can make grow. It only
//! parses: what an entry may do to a file system is decided by [`crate::unpack`]. Sparse files and multi-volume
//! archives are refused.

use crate::ImageError;
use std::io::Read;
use tar::{EntryType, Header};

const BLOCK: u64 = 512;
/// Longest name, link target and attribute block of one entry, in bytes.
const MAX_META: u64 = 1 << 20;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    Device { block: bool, major: u32, minor: u32 },
}

/// One member of the archive. Its data is read from the [`TarReader`].
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds and nanoseconds since the epoch.
    pub(crate) mtime: (i64, i64),
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

impl Entry {
    pub(crate) fn name(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

/// What the extension headers before an entry say about it.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, i64)>,
    xattrs: Vec<(String, Vec<u8>)>,
    sparse: bool,
}

/// Walks over the entries of a tar stream. Between two calls of `next` it reads as the data of the current entry.
pub(crate) struct TarReader<R> {
    inner: R,
    /// What errors call the archive.
    label: String,
    entry: String,
    left: u64,
    padding: u64,
    entries_left: u64,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(inner: R, label: &str, max_entries: u64) -> Self {
        Self {
            inner,
            label: label.to_owned(),
            entry: String::new(),
            left: 0,
            padding: 0,
            entries_left: max_entries,
        }
    }

    /// The stream behind the entries read so far.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    fn broken(&self, reason: impl Into<String>) -> ImageError {
        let (archive, reason) = (self.label.clone(), reason.into());
        match self.entry.is_empty() {
            true => ImageError::Archive { archive, reason },
            false => ImageError::Entry { archive, entry: self.entry.clone(), reason },
        }
    }

    /// An error about the current entry from reading its data.
    pub(crate) fn unreadable(&self, error: &std::io::Error) -> ImageError {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => self.broken("the archive is truncated here"),
            _ => self.broken(format!("cannot be read: {error}")),
        }
    }

    /// The next entry; `None` at the end of the archive. What is left of the current one is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, ImageError> {
        let mut extension = Extension::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            self.left = header.entry_size().map_err(|_| self.broken("a header has no valid size"))?;
            self.padding = padding(self.left);
            match header.entry_type() {
                EntryType::GNULongName => extension.path = Some(c_string(self.meta()?)),
                EntryType::GNULongLink => extension.link = Some(c_string(self.meta()?)),
                EntryType::XHeader => {
                    let records = self.meta()?;
                    if parse_pax(&records, &mut extension).is_none() {
                        return Err(self.broken("an extended header is malformed"));
                    }
                }
                // Defaults for all entries, such as git's comment: nothing that matters for an image.
                EntryType::XGlobalHeader => drop(self.meta()?),
                kind => return self.entry(&header, kind, extension).map(Some),
            }
        }
    }

    fn skip(&mut self) -> Result<(), ImageError> {
        let rest = self.left.saturating_add(self.padding);
        let skipped = std::io::copy(&mut self.inner.by_ref().take(rest), &mut std::io::sink());
        match skipped {
            Ok(n) if n == rest => {}
            Ok(_) => return Err(self.broken("the archive is truncated here")),
            Err(error) => return Err(self.unreadable(&error)),
        }
        self.left = 0;
        self.padding = 0;
        Ok(())
    }

    /// The next header block; `None` when the archive ends. A missing end marker is tolerated, as tar does.
    fn header(&mut self) -> Result<Option<Header>, ImageError> {
        let mut block = Vec::with_capacity(512);
        let read = self.inner.by_ref().take(BLOCK).read_to_end(&mut block);
        if let Err(error) = read {
            return Err(self.unreadable(&error));
        }
        if block.is_empty() || block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if block.len() as u64 != BLOCK {
            return Err(self.broken("the archive is truncated behind this entry"));
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        let own: u32 = block[148..156].iter().map(|byte| u32::from(*byte)).sum();
        if header.cksum().ok() != Some(sum - own + 8 * u32::from(b' ')) {
            return Err(self.broken("not a tar archive, or damaged: a header checksum is wrong"));
        }
        Ok(Some(header))
    }

    /// The data of an extension header.
    fn meta(&mut self) -> Result<Vec<u8>, ImageError> {
        if self.left > MAX_META {
            return Err(self.broken(format!("an extension header is larger than {MAX_META} bytes")));
        }
        let mut data = Vec::new();
        match self.read_to_end(&mut data) {
            Ok(_) => Ok(data),
            Err(error) => Err(self.unreadable(&error)),
        }
    }

    fn entry(&mut self, header: &Header, kind: EntryType, extension: Extension) -> Result<Entry, ImageError> {
        let path = extension.path.unwrap_or_else(|| header.path_bytes().into_owned());
        self.entry = String::from_utf8_lossy(&path).into_owned();
        self.entries_left = match self.entries_left.checked_sub(1) {
            Some(left) => left,
            None => return Err(self.broken("the archive has too many entries")),
        };
        if extension.sparse || kind == EntryType::GNUSparse {
            return Err(self.broken("sparse files are not supported: make the archive without --sparse"));
        }
        let kind = match kind {
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::HardLink,
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char | EntryType::Block => {
                let number = |n: std::io::Result<Option<u32>>| n.ok().flatten().unwrap_or(u32::MAX);
                let (major, minor) = (number(header.device_major()), number(header.device_minor()));
                Kind::Device { block: kind == EntryType::Block, major, minor }
            }
            other => {
                return Err(self.broken(format!("has unsupported type {:?}", char::from(other.as_byte()))));
            }
        };
        self.left = if kind == Kind::File { extension.size.unwrap_or(self.left) } else { self.left };
        self.padding = padding(self.left);
        let old = header.as_old();
        let number = |own: Option<u64>, field: &[u8; 8], parsed: std::io::Result<u64>| {
            own.or_else(|| if is_blank(field) { Some(0) } else { parsed.ok() })
        };
        let dated = || if is_blank(&old.mtime) { Some(0) } else { i64::try_from(header.mtime().ok()?).ok() };
        let mtime = extension.mtime.or_else(|| Some((dated()?, 0)));
        let (Ok(mode), Some(uid), Some(gid), Some(mtime)) = (
            header.mode(),
            number(extension.uid, &old.uid, header.uid()),
            number(extension.gid, &old.gid, header.gid()),
            mtime,
        ) else {
            return Err(self.broken("its header has a malformed number"));
        };
        let link = extension.link.or_else(|| header.link_name_bytes().map(|name| name.into_owned()));
        let link = link.unwrap_or_default();
        if [&path, &link].iter().any(|name| name.contains(&0)) {
            return Err(self.broken("its name has a NUL byte"));
        }
        Ok(Entry { path, link, kind, size: self.left, mode, uid, gid, mtime, xattrs: extension.xattrs })
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buffer[..most])?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

/// Some writers leave numbers that are zero empty.
fn is_blank(field: &[u8]) -> bool {
    field.iter().all(|byte| matches!(byte, 0 | b' '))
}

/// Bytes that fill the last block of an entry.
fn padding(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

/// GNU long names end with a NUL byte.
fn c_string(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

/// PAX records: `length SP key = value LF`, where the length counts the whole record. Values may hold any byte.
fn parse_pax(mut records: &[u8], into: &mut Extension) -> Option<()> {
    while !records.is_empty() {
        let space = records.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
        let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (std::str::from_utf8(&record[..equals]).ok()?, &record[equals + 1..]);
        let number = || std::str::from_utf8(value).ok()?.parse::<u64>().ok();
        match key {
            "path" => into.path = Some(value.to_vec()),
            "linkpath" => into.link = Some(value.to_vec()),
            "size" => into.size = Some(number()?),
            "uid" => into.uid = Some(number()?),
            "gid" => into.gid = Some(number()?),
            "mtime" => into.mtime = Some(parse_time(std::str::from_utf8(value).ok()?)?),
            _ if key.starts_with("GNU.sparse.") => into.sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                    into.xattrs.push((name.to_owned(), value.to_vec()));
                }
            }
        }
        records = &records[length..];
    }
    Some(())
}

/// Decimal seconds, perhaps negative, perhaps with a fraction.
fn parse_time(text: &str) -> Option<(i64, i64)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: i64 = digits.parse().ok()?;
    match whole.starts_with('-') && nanos > 0 {
        true => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)),
        false => Some((seconds, nanos)),
    }
}
