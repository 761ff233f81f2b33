//! The file: one redb database with the current records and the revision.
//!
//! ```text
//!   DIR/lock          flock of the process that has the store open; holds its pid
//!   DIR/objects.redb  meta:    "format" → 1, "revision" → the last durable revision
//!                     objects: resource NUL namespace NUL name → record
//! ```
//!
//! A record is `u64 revision · u64 created revision · u32 terms · (str name · str value)* · body`, little endian, a
//! `str` being `u32 length · bytes`. The file comes into being under another name and is renamed once it is
//! complete, so that a crash cannot leave a half-made one. History is not kept on disk: after a restart watchers
//! list again.

use crate::{IndexTerm, Key, OpenError, Record, ResourceTag, StoreError};
use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const OBJECTS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("objects");
const FORMAT: u64 = 1;
const FILE: &str = "objects.redb";
const LOCK: &str = "lock";

/// The final state of every key that a group changed; `None` for a deleted one.
pub(crate) type Changes = HashMap<Key, Option<Arc<Record>>>;

/// What the file holds.
pub(crate) struct Loaded {
    pub(crate) records: Vec<Record>,
    pub(crate) revision: u64,
}

/// The open file. The lock is held for as long as this lives.
pub(crate) struct Disk {
    /// `None` between a failed write and the next successful `reopen`.
    database: Option<Database>,
    path: PathBuf,
    cache_bytes: usize,
    _lock: DirLock,
}

/// Held lock on a store's directory.
pub(crate) struct DirLock(#[expect(dead_code, reason = "closing the file releases the lock")] File);

impl DirLock {
    /// Locks `dir`, which is made when missing.
    pub(crate) fn take(dir: &Path) -> Result<Self, OpenError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        std::fs::create_dir_all(dir).map_err(at(dir))?;
        let path = dir.join(LOCK);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(at(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Who holds it is a courtesy; that somebody does is what matters.
                let _ = Read::by_ref(&mut file).take(16).read_to_string(&mut holder);
                return Err(OpenError::Locked { dir: dir.to_owned(), pid: holder.trim().parse().ok() });
            }
            Err(TryLockError::Error(source)) => return Err(OpenError::Io { path, source }),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(at(&path))?;
        Ok(Self(file))
    }
}

impl Disk {
    /// Opens the store in `dir`, which is made when missing.
    pub(crate) fn open(dir: &Path, cache_bytes: usize) -> Result<(Self, Loaded), OpenError> {
        let lock = DirLock::take(dir)?;
        let path = dir.join(FILE);
        if !path.try_exists().map_err(|source| OpenError::Io { path: path.clone(), source })? {
            create(dir, &path, cache_bytes)?;
        }
        let database = guarded(&path, || open(&path, cache_bytes))?;
        let loaded = guarded(&path, || load(&database, &path))??;
        Ok((Self { database: Some(database), path, cache_bytes, _lock: lock }, loaded))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// False after a failed write, until `reopen` succeeds.
    pub(crate) fn is_open(&self) -> bool {
        self.database.is_some()
    }

    /// Makes the changes and the revision durable, all of them or none.
    pub(crate) fn write(&mut self, changes: &Changes, revision: u64) -> Result<(), StoreError> {
        let Some(database) = &self.database else {
            let reason = "it could not be opened again after a failed write".to_owned();
            return Err(StoreError::Unavailable { path: self.path.clone(), reason });
        };
        write(database, changes, revision).map_err(|error| {
            // The engine refuses to go on after a failed write.
            self.database = None;
            self.failure(&error)
        })
    }

    /// Opens the file again after a failed write and tells the revision that is durable.
    pub(crate) fn reopen(&mut self) -> Result<u64, StoreError> {
        self.database = None;
        let database = open(&self.path, self.cache_bytes).map_err(|error| self.failure(&error))?;
        let revision = meta(&database, "revision").map_err(|error| self.failure(&error))?.unwrap_or(0);
        self.database = Some(database);
        Ok(revision)
    }

    fn failure(&self, error: &redb::Error) -> StoreError {
        let path = self.path.clone();
        match error {
            redb::Error::Io(io) if matches!(io.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                StoreError::DiskFull { path }
            }
            other => StoreError::Unavailable { path, reason: other.to_string() },
        }
    }
}

fn write(database: &Database, changes: &Changes, revision: u64) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    {
        let mut objects = transaction.open_table(OBJECTS)?;
        let mut key_bytes = Vec::new();
        let mut record_bytes = Vec::new();
        for (key, record) in changes {
            encode_key(key, &mut key_bytes);
            match record {
                Some(record) => {
                    encode_record(record, &mut record_bytes);
                    objects.insert(&*key_bytes, &*record_bytes)?;
                }
                None => {
                    objects.remove(&*key_bytes)?;
                }
            }
        }
        transaction.open_table(META)?.insert("revision", revision)?;
    }
    transaction.commit()?;
    Ok(())
}

fn meta(database: &Database, name: &str) -> Result<Option<u64>, redb::Error> {
    let transaction = database.begin_read()?;
    Ok(transaction.open_table(META)?.get(name)?.map(|value| value.value()))
}

fn load(database: &Database, path: &Path) -> Result<Result<Loaded, OpenError>, redb::Error> {
    let corrupt =
        |reason: &str| Ok(Err(OpenError::Corrupt { path: path.to_owned(), reason: reason.to_owned() }));
    match meta(database, "format")? {
        Some(FORMAT) => {}
        Some(found) => {
            return Ok(Err(OpenError::Format { path: path.to_owned(), found, supported: FORMAT }));
        }
        None => return corrupt("it has no format version"),
    }
    let Some(revision) = meta(database, "revision")? else { return corrupt("it has no revision") };
    let transaction = database.begin_read()?;
    let objects = transaction.open_table(OBJECTS)?;
    let mut strings = Strings::default();
    let mut records = Vec::new();
    for entry in objects.iter()? {
        let (key, value) = entry?;
        let record = decode_key(key.value(), &mut strings)
            .and_then(|key| decode_record(key, value.value(), &mut strings))
            .filter(|record| record.revision <= revision);
        match record {
            Some(record) => records.push(record),
            None => return corrupt(&format!("record {} is malformed", String::from_utf8_lossy(key.value()))),
        }
    }
    Ok(Ok(Loaded { records, revision }))
}

fn open(path: &Path, cache_bytes: usize) -> Result<Database, redb::Error> {
    Ok(Database::builder().set_cache_size(cache_bytes).open(path)?)
}

/// Makes a new, empty file: complete before it gets its name.
fn create(dir: &Path, path: &Path, cache_bytes: usize) -> Result<(), OpenError> {
    let fresh = path.with_extension("new");
    let io = |source| OpenError::Io { path: fresh.clone(), source };
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let make = || -> Result<(), redb::Error> {
        let database = Database::builder().set_cache_size(cache_bytes).create(&fresh)?;
        let transaction = database.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            meta.insert("format", FORMAT)?;
            meta.insert("revision", 1)?;
            transaction.open_table(OBJECTS)?;
        }
        transaction.commit()?;
        Ok(())
    };
    make().map_err(|error| io(into_io(error)))?;
    std::fs::rename(&fresh, path).map_err(io)?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)
}

fn into_io(error: redb::Error) -> std::io::Error {
    match error {
        redb::Error::Io(io) => io,
        other => std::io::Error::other(other),
    }
}

/// Reads a file that may be damaged: the engine answers some damage with a panic, which is turned into an error.
fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, OpenError> {
    let corrupt = |reason: String| OpenError::Corrupt { path: path.to_owned(), reason };
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(redb::Error::Io(source)))
            if !matches!(source.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            Err(OpenError::Io { path: path.to_owned(), source })
        }
        Ok(Err(redb::Error::DatabaseAlreadyOpen)) => {
            Err(OpenError::Locked { dir: path.parent().unwrap_or(path).to_owned(), pid: None })
        }
        Ok(Err(error)) => Err(corrupt(error.to_string())),
        Err(_) => Err(corrupt("its structure is broken".to_owned())),
    }
}

/// True when the key can be encoded so that it sorts and decodes.
pub(crate) fn is_encodable(key: &Key) -> bool {
    let parts = [key.resource.as_str(), &*key.namespace, &*key.name];
    !key.name.is_empty() && parts.iter().all(|part| !part.contains('\0'))
}

fn encode_key(key: &Key, into: &mut Vec<u8>) {
    into.clear();
    into.extend_from_slice(key.resource.as_str().as_bytes());
    into.push(0);
    into.extend_from_slice(key.namespace.as_bytes());
    into.push(0);
    into.extend_from_slice(key.name.as_bytes());
}

fn decode_key(bytes: &[u8], strings: &mut Strings) -> Option<Key> {
    let mut parts = std::str::from_utf8(bytes).ok()?.splitn(3, '\0');
    let (resource, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
    let resource = ResourceTag::from(strings.shared(resource));
    Some(Key { resource, namespace: strings.shared(namespace), name: Arc::from(name) })
}

fn encode_record(record: &Record, into: &mut Vec<u8>) {
    into.clear();
    into.extend_from_slice(&record.revision.to_le_bytes());
    into.extend_from_slice(&record.created_revision.to_le_bytes());
    put_length(record.index.len(), into);
    for term in &record.index {
        for part in [&term.name, &term.value] {
            put_length(part.len(), into);
            into.extend_from_slice(part.as_bytes());
        }
    }
    into.extend_from_slice(&record.body);
}

/// Lengths are those of things in memory that came in one request: far below 4 GiB.
fn put_length(length: usize, into: &mut Vec<u8>) {
    into.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
}

fn decode_record(key: Key, mut bytes: &[u8], strings: &mut Strings) -> Option<Record> {
    let revision = u64::from_le_bytes(*take(&mut bytes)?);
    let created_revision = u64::from_le_bytes(*take(&mut bytes)?);
    let terms = u32::from_le_bytes(*take(&mut bytes)?);
    let mut index = Vec::new();
    for _ in 0..terms {
        let name = strings.shared(take_str(&mut bytes)?);
        index.push(IndexTerm { name, value: Arc::from(take_str(&mut bytes)?) });
    }
    Some(Record { key, body: Bytes::copy_from_slice(bytes), revision, created_revision, index })
}

fn take<'a, const N: usize>(bytes: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(head)
}

fn take_str<'a>(bytes: &mut &'a [u8]) -> Option<&'a str> {
    let length = usize::try_from(u32::from_le_bytes(*take(bytes)?)).ok()?;
    let (text, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    std::str::from_utf8(text).ok()
}

/// Strings that occur in many records, kept once.
#[derive(Default)]
struct Strings(HashSet<Arc<str>>);

impl Strings {
    fn shared(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        let fresh: Arc<str> = Arc::from(text);
        self.0.insert(fresh.clone());
        fresh
    }
}
