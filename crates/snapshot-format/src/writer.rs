//! Making a template: aside, under a lock, then by its name all at once.

use crate::directory::{aside, remove};
use crate::envelope::{self, Sum, Sums, check_memory_size, sum_of, too_large};
use crate::files::{create_file, sync_dir};
use crate::memory::{Pass, Source, pass};
use crate::template::{MEMORY, TEMPLATE};
use crate::{Description, Error, Header, Key, MAX_STATE_BYTES, Pages, Part, Template};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A template that is being made. Dropped before it is finished, it leaves nothing.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    key: Key,
    partial: Partial,
    memory: File,
    found: Option<Found>,
    state: Option<Vec<u8>>,
}

/// What is known of a memory that was written.
#[derive(Debug)]
struct Found {
    bytes: u64,
    nonzero_bytes: u64,
    table: Vec<u8>,
}

impl Writer {
    /// Begins a template. The directory of templates is made when it is not there.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn create(dir: &Path, key: Key) -> Result<Self, Error> {
        private_dir(true).create(dir).map_err(Error::io("make", dir))?;
        let partial = Partial::create(dir, &key)?;
        let memory = create_file(&*partial.lock, &partial.path, MEMORY)?;
        Ok(Self { dir: dir.to_owned(), key, partial, memory, found: None, state: None })
    }

    /// Copies a guest's memory, which must not change meanwhile, without holes and zeroes. How many bytes were copied.
    /// Blocks, and uses several threads.
    ///
    /// # Errors
    /// The memory is too large or cannot be read, or there is no room.
    pub fn memory_from(&mut self, from: &File) -> Result<u64, Error> {
        let name = Path::new("the guest's memory");
        let bytes = from.metadata().map_err(Error::io("look at", name))?.len();
        let path = self.partial.path.join(MEMORY);
        check_memory_size(bytes, &path)?;
        // A second memory replaces the first.
        self.memory.set_len(0).and_then(|()| self.memory.set_len(bytes)).map_err(Error::io("size", &path))?;
        let to = Source { file: &self.memory, bytes, path: &path };
        let pass = pass(Source { file: from, bytes, path: name }, Some(to), None)?;
        Ok(self.keep_memory(bytes, pass))
    }

    /// The template's memory, to be filled by the caller, who then calls [`Self::memory_in_place`]. What is not written
    /// to stays a hole.
    ///
    /// # Errors
    /// The memory is too large, or the file system refuses.
    pub fn memory_file(&mut self, bytes: u64) -> Result<&File, Error> {
        let path = self.partial.path.join(MEMORY);
        check_memory_size(bytes, &path)?;
        self.memory.set_len(0).and_then(|()| self.memory.set_len(bytes)).map_err(Error::io("size", &path))?;
        self.found = None;
        Ok(&self.memory)
    }

    /// Takes the memory as the caller has left it in [`Self::memory_file`], and computes its checksums. Blocks.
    ///
    /// # Errors
    /// The memory cannot be read.
    pub fn memory_in_place(&mut self) -> Result<u64, Error> {
        let path = self.partial.path.join(MEMORY);
        let bytes = self.memory.metadata().map_err(Error::io("look at", &path))?.len();
        check_memory_size(bytes, &path)?;
        let pass = pass(Source { file: &self.memory, bytes, path: &path }, None, None)?;
        Ok(self.keep_memory(bytes, pass))
    }

    /// What would stand in the header of size and contents: memory in bytes, what of it is not zero, checksum of the
    /// table, checksum of the state.
    pub(crate) fn measured(&self) -> Option<(u64, u64, Sum, Sum)> {
        let (found, state) = (self.found.as_ref()?, self.state.as_ref()?);
        Some((found.bytes, found.nonzero_bytes, sum_of(&found.table), sum_of(state)))
    }

    /// Takes the devices' state.
    ///
    /// # Errors
    /// It is larger than [`MAX_STATE_BYTES`].
    pub fn state(&mut self, state: &[u8]) -> Result<(), Error> {
        if state.len() > MAX_STATE_BYTES {
            let path = self.partial.path.join(TEMPLATE);
            return Err(too_large(&path, Part::State, state.len() as u64, MAX_STATE_BYTES as u64));
        }
        self.state = Some(state.to_owned());
        Ok(())
    }

    /// Writes and flushes everything, and gives the template its name. When a whole template of this key is there
    /// already, that one is kept and given, and this one dropped; a broken one is replaced.
    ///
    /// # Errors
    /// Memory or state are missing, the description is too large, or the file system refuses.
    pub fn finish(self, description: Description) -> Result<Template, Error> {
        self.seal(description)?;
        self.publish()
    }

    /// As [`Self::finish`], but a template that is there under this key is replaced; after an error it is there still.
    ///
    /// # Errors
    /// As of [`Self::finish`].
    pub fn replace(self, description: Description) -> Result<Template, Error> {
        self.seal(description)?;
        let name = self.dir.join(self.key.to_string());
        // What was there has the name of the unfinished one then, and goes with it.
        match renameat2(AT_FDCWD, &self.partial.path, AT_FDCWD, &name, RenameFlags::RENAME_EXCHANGE) {
            Ok(()) => sync_dir(&self.dir)?,
            Err(Errno::ENOENT) => return self.publish(),
            Err(error) => return Err(Error::io("name", &name)(error)),
        }
        Template::open(&self.dir, &self.key)
    }

    fn seal(&self, description: Description) -> Result<(), Error> {
        let missing = |part| Error::Unfinished { key: self.key, part };
        let found = self.found.as_ref().ok_or_else(|| missing(Part::Memory))?;
        let state = self.state.as_ref().ok_or_else(|| missing(Part::State))?;
        let header = Header {
            key: self.key,
            memory_bytes: found.bytes,
            state_bytes: state.len() as u64,
            pages: Pages { nonzero_bytes: found.nonzero_bytes },
            description,
        };
        let sums = Sums { table: sum_of(&found.table), state: sum_of(state) };
        let folder = &self.partial.path;
        let path = folder.join(TEMPLATE);
        let envelope = envelope::encode(&header, &sums, &path)?;
        let mut file = create_file(&*self.partial.lock, folder, TEMPLATE)?;
        for part in [&envelope, &found.table, state] {
            file.write_all(part).map_err(Error::io("write", &path))?;
        }
        file.sync_all().map_err(Error::io("flush", &path))?;
        self.memory.sync_all().map_err(Error::io("flush", &folder.join(MEMORY)))?;
        self.partial.lock.sync_all().map_err(Error::io("flush", folder))
    }

    fn publish(self) -> Result<Template, Error> {
        let name = self.dir.join(self.key.to_string());
        loop {
            match renameat2(AT_FDCWD, &self.partial.path, AT_FDCWD, &name, RenameFlags::RENAME_NOREPLACE) {
                Ok(()) => break sync_dir(&self.dir)?,
                Err(Errno::EEXIST) => match Template::open(&self.dir, &self.key) {
                    Ok(kept) => return Ok(kept),
                    // Another writer may have replaced it between the two calls: then the name is taken again.
                    Err(error) if error.is_damage() => remove(&self.dir, &self.key)?,
                    Err(Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                },
                Err(error) => return Err(Error::io("name", &name)(error)),
            }
        }
        Template::open(&self.dir, &self.key)
    }

    fn keep_memory(&mut self, bytes: u64, pass: Pass) -> u64 {
        self.found = Some(Found { bytes, nonzero_bytes: pass.nonzero_bytes, table: pass.table });
        pass.nonzero_bytes
    }
}

/// A directory of a writer, locked as long as the writer lives.
#[derive(Debug)]
struct Partial {
    path: PathBuf,
    lock: Flock<File>,
}

impl Partial {
    fn create(dir: &Path, key: &Key) -> Result<Self, Error> {
        loop {
            let path = dir.join(aside(key, "partial"));
            private_dir(false).create(&path).map_err(Error::io("make", &path))?;
            let folder = File::open(&path).map_err(Error::io("open", &path))?;
            let lock = Flock::lock(folder, FlockArg::LockExclusive)
                .map_err(|(_, error)| Error::io("lock", &path)(error))?;
            let inode = lock.metadata().map_err(Error::io("look at", &path))?.ino();
            // A cleaner may have seen the directory before its lock, and removed it: then another one is made.
            if std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.ino() == inode) {
                return Ok(Self { path, lock });
            }
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After a success the name is gone, and what cannot be removed here is removed by the next cleaner.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn private_dir(recursive: bool) -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(0o700).recursive(recursive);
    builder
}
