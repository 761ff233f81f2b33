//! A template that is there: opened by its header, then used or verified.

use crate::directory::{self, Usage};
use crate::envelope::{self, PRELUDE_BYTES, Prelude, Sums};
use crate::files::{open_dir, open_file};
use crate::memory::{Source, pass};
use crate::{Error, Header, Key, Part};
use std::fs::{File, FileTimes};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The file with header, table and state.
pub(crate) const TEMPLATE: &str = "template";
/// The file with the guest's memory.
pub(crate) const MEMORY: &str = "memory";

/// A template whose header was read and checked. Its files stay open, so it can be used even when somebody removes it.
#[derive(Debug)]
pub struct Template {
    dir: PathBuf,
    header: Header,
    sums: Sums,
    /// Where the table begins, in bytes.
    table_at: u64,
    template: File,
    memory: File,
}

impl Template {
    /// Opens a template and reads its header; nothing else is read.
    ///
    /// # Errors
    /// There is none, or what is there is foreign, of another version, of the wrong size, or damaged in its header.
    pub fn open(dir: &Path, key: &Key) -> Result<Self, Error> {
        let path = dir.join(key.to_string());
        let not_found = || Error::NotFound { key: *key, dir: dir.to_owned() };
        let folder = open_dir(&path)?.ok_or_else(not_found)?;
        let template = open_file(&folder, &path, TEMPLATE)?;
        let memory = open_file(&folder, &path, MEMORY)?;
        let template_path = path.join(TEMPLATE);
        let found = size(&template, &template_path)?;
        if found < PRELUDE_BYTES as u64 {
            return Err(Error::foreign(&template_path, format!("it has only {found} bytes")));
        }
        let mut prelude = [0; PRELUDE_BYTES];
        template.read_exact_at(&mut prelude, 0).map_err(Error::io("read", &template_path))?;
        let prelude = Prelude::decode(prelude, &template_path)?;
        let table_at = (PRELUDE_BYTES + prelude.header_bytes) as u64;
        check_size(&template_path, found.min(table_at), table_at)?;
        let mut json = vec![0; prelude.header_bytes];
        template.read_exact_at(&mut json, PRELUDE_BYTES as u64).map_err(Error::io("read", &template_path))?;
        let (header, sums) = prelude.header(&json, &template_path)?;
        envelope::check_key(&header, key, &template_path)?;
        check_size(&template_path, found, envelope::file_bytes(&prelude, &header))?;
        let memory_path = path.join(MEMORY);
        check_size(&memory_path, size(&memory, &memory_path)?, header.memory_bytes)?;
        Ok(Self { dir: dir.to_owned(), header, sums, table_at, template, memory })
    }

    /// What it was made of, for whom, and what it needs.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The directory with its two files.
    pub fn path(&self) -> PathBuf {
        self.dir.join(self.header.key.to_string())
    }

    /// The guest's memory as it lies on the disk, not verified.
    pub fn memory(&self) -> &File {
        &self.memory
    }

    /// SHA-256 of the table of the memory's checksums, and so of the memory.
    pub fn memory_sum(&self) -> [u8; 32] {
        self.sums.table
    }

    /// The devices' state, verified.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn state(&self) -> Result<Vec<u8>, Error> {
        let at = self.table_at + envelope::table_bytes(&self.header) as u64;
        let length = usize::try_from(self.header.state_bytes).unwrap_or(usize::MAX);
        self.part(at, length, &self.sums.state, Part::State)
    }

    /// Copies the memory into an empty file, without holes and zeroes, and verifies each chunk before it is written.
    /// How many bytes were copied. After an error the file has no meaning. Blocks, and uses several threads.
    ///
    /// # Errors
    /// The file is not empty or cannot be written; the memory cannot be read, or is damaged.
    pub fn load_memory(&self, to: &File) -> Result<u64, Error> {
        let target = Path::new("the clone's memory");
        let bytes = size(to, target)?;
        if bytes != 0 {
            return Err(Error::NotEmpty { key: self.header.key, bytes });
        }
        to.set_len(self.header.memory_bytes).map_err(Error::io("size", target))?;
        let to = Source { file: to, bytes: self.header.memory_bytes, path: target };
        self.pass(Some(to))
    }

    /// Reads everything and compares it with its checksums. Blocks, and uses several threads.
    ///
    /// # Errors
    /// Something cannot be read, or is damaged.
    pub fn verify(&self) -> Result<(), Error> {
        self.state()?;
        self.pass(None).map(|_| ())
    }

    /// Marks it as used at a time, for those who evict what was not used for the longest time.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn touch(&self, now: SystemTime) -> Result<(), Error> {
        let times = FileTimes::new().set_modified(now);
        self.template.set_times(times).map_err(Error::io("mark", &self.path().join(TEMPLATE)))
    }

    /// When it was last used, or made, and what it takes up.
    ///
    /// # Errors
    /// The file system refuses to tell.
    pub fn usage(&self) -> Result<Usage, Error> {
        let path = self.path();
        let template = self.template.metadata().map_err(Error::io("look at", &path))?;
        let memory = self.memory.metadata().map_err(Error::io("look at", &path))?;
        Ok(Usage {
            key: self.header.key,
            disk_bytes: (template.blocks() + memory.blocks()) * 512,
            last_used: template.modified().map_err(Error::io("look at", &path))?,
        })
    }

    /// Removes it from its directory. Who has it open keeps it.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove(&self) -> Result<(), Error> {
        directory::remove(&self.dir, &self.header.key)
    }

    /// The checksums of the memory's chunks, verified.
    pub(crate) fn table(&self) -> Result<Vec<u8>, Error> {
        self.part(self.table_at, envelope::table_bytes(&self.header), &self.sums.table, Part::Table)
    }

    /// SHA-256 of the devices' state.
    pub(crate) fn state_sum(&self) -> [u8; 32] {
        self.sums.state
    }

    fn pass(&self, to: Option<Source<'_>>) -> Result<u64, Error> {
        let table = self.table()?;
        let path = self.path().join(MEMORY);
        let from = Source { file: &self.memory, bytes: self.header.memory_bytes, path: &path };
        Ok(pass(from, to, Some(&table))?.nonzero_bytes)
    }

    fn part(&self, at: u64, length: usize, sum: &envelope::Sum, part: Part) -> Result<Vec<u8>, Error> {
        let path = self.path().join(TEMPLATE);
        let mut bytes = vec![0; length];
        self.template.read_exact_at(&mut bytes, at).map_err(Error::io("read", &path))?;
        envelope::check_part(&bytes, sum, part, &path)?;
        Ok(bytes)
    }
}

fn size(file: &File, path: &Path) -> Result<u64, Error> {
    Ok(file.metadata().map_err(Error::io("look at", path))?.len())
}

fn check_size(path: &Path, found: u64, expected: u64) -> Result<(), Error> {
    match found == expected {
        true => Ok(()),
        false => Err(Error::Length { path: path.to_owned(), expected, found }),
    }
}
