//! A template put together from what a registry gave: hostile until its checksums are those of its configuration.

use crate::envelope::{check_memory_size, chunks};
use crate::memory::BITMAP_BYTES;
use crate::pack::{digest, part_bytes};
use crate::{CHUNK_BYTES, Config, Error, MAX_HEADER_BYTES, MAX_STATE_BYTES, PAGE_BYTES, Template, Writer};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Most that zstd may look back, as a power of two: the decoder's memory. Our own parts need 2 MiB.
const WINDOW_LOG: u32 = 23;

/// A template that is being put together. Dropped before it is finished, it leaves nothing.
#[derive(Debug)]
pub struct Unpacker {
    config: Config,
    writer: Writer,
    memory: File,
    /// What of the memory was not zero so far, in bytes.
    written: u64,
}

impl Config {
    /// Reads a configuration, and refuses one that no template can have.
    ///
    /// # Errors
    /// It is too large, no configuration, or has impossible sizes.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        // The digests and the size of parts come on top of the header.
        if bytes.len() > MAX_HEADER_BYTES + 4096 {
            return Err(packed(format!("its configuration has {} bytes", bytes.len())));
        }
        let config: Self = serde_json::from_slice(bytes)
            .map_err(|error| packed(format!("its configuration does not say what it should: {error}")))?;
        let header = &config.header;
        check_memory_size(header.memory_bytes, Path::new("memory"))?;
        if header.state_bytes > MAX_STATE_BYTES as u64 {
            return Err(packed(format!("its device state has {} bytes", header.state_bytes)));
        }
        if header.pages.nonzero_bytes > header.memory_bytes {
            return Err(packed("it has more pages than memory".to_owned()));
        }
        let expected = part_bytes(header.memory_bytes);
        if config.part_bytes != expected {
            return Err(packed(format!("its parts cover {} bytes, not {expected}", config.part_bytes)));
        }
        Ok(config)
    }

    /// Refuses a place where no part can begin.
    ///
    /// # Errors
    /// It is no multiple of the size of parts, or beyond the memory.
    pub fn check_part(&self, offset: u64) -> Result<(), Error> {
        match offset.is_multiple_of(self.part_bytes) && offset < self.header.memory_bytes {
            true => Ok(()),
            false => Err(packed(format!("no part of its memory begins at byte {offset}"))),
        }
    }
}

impl Unpacker {
    /// Begins a template as its configuration says.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn begin(dir: &Path, config: Config) -> Result<Self, Error> {
        let mut writer = Writer::create(dir, config.header.key)?;
        let memory = writer.memory_file(config.header.memory_bytes)?;
        let memory = memory.try_clone().map_err(Error::io("open", dir))?;
        Ok(Self { config, writer, memory, written: 0 })
    }

    /// Takes the compressed state of the devices.
    ///
    /// # Errors
    /// It cannot be read, or is not as large as the configuration says.
    pub fn state(&mut self, from: impl Read) -> Result<(), Error> {
        let expected = self.config.header.state_bytes;
        let mut state = Vec::new();
        decoder(from)?.take(expected + 1).read_to_end(&mut state).map_err(unreadable)?;
        if state.len() as u64 != expected {
            return Err(packed(format!(
                "its device state does not have the {expected} bytes it should have"
            )));
        }
        self.writer.state(&state)
    }

    /// Takes a compressed part of the memory that begins at `offset`.
    ///
    /// # Errors
    /// It cannot be read, is no part, or there is no room.
    pub fn part(&mut self, offset: u64, from: impl Read) -> Result<(), Error> {
        self.config.check_part(offset)?;
        let memory_bytes = self.config.header.memory_bytes;
        let mut from = decoder(from)?;
        let first = offset / CHUNK_BYTES as u64;
        let end = chunks(memory_bytes).min(first + self.config.part_bytes / CHUNK_BYTES as u64);
        let mut pages = Vec::with_capacity(CHUNK_BYTES);
        for index in first..end {
            let at = index * CHUNK_BYTES as u64;
            let most = memory_bytes.min(at + CHUNK_BYTES as u64) - at;
            self.chunk(&mut from, at, most, &mut pages)?;
        }
        match from.read(&mut [0]).map_err(unreadable)? {
            0 => Ok(()),
            _ => Err(packed(format!("the part of its memory at byte {offset} is too long"))),
        }
    }

    /// Takes a MiB of memory: a bitmap, and the pages that it names.
    fn chunk(&mut self, from: &mut impl Read, at: u64, most: u64, pages: &mut Vec<u8>) -> Result<(), Error> {
        let mut bitmap = [0; BITMAP_BYTES];
        from.read_exact(&mut bitmap).map_err(unreadable)?;
        let named: Vec<u64> = (0..(CHUNK_BYTES / PAGE_BYTES) as u64)
            .filter(|page| bitmap[*page as usize / 8] & (1 << (page % 8)) != 0)
            .collect();
        if named.last().is_some_and(|page| (page + 1) * PAGE_BYTES as u64 > most) {
            return Err(packed("it has pages beyond its memory".to_owned()));
        }
        // Also keeps a few bytes from growing into a full disk: no more is written than was said at first.
        self.written += (named.len() * PAGE_BYTES) as u64;
        if self.written > self.config.header.pages.nonzero_bytes {
            return Err(packed("it has more pages than it says".to_owned()));
        }
        pages.resize(named.len() * PAGE_BYTES, 0);
        from.read_exact(pages).map_err(unreadable)?;
        let mut rest = &pages[..];
        for run in named.chunk_by(|a, b| a + 1 == *b) {
            let (data, after) = rest.split_at(run.len() * PAGE_BYTES);
            let place = at + run[0] * PAGE_BYTES as u64;
            self.memory.write_all_at(data, place).map_err(Error::io("write", Path::new("memory")))?;
            rest = after;
        }
        Ok(())
    }

    /// Compares everything with the configuration, then gives the template its name. When a whole one of its key is
    /// there already, that one is kept and given.
    ///
    /// # Errors
    /// Something is missing or differs, or the file system refuses.
    pub fn finish(mut self) -> Result<Template, Error> {
        self.writer.memory_in_place()?;
        let header = &self.config.header;
        let (bytes, nonzero, table, state) =
            self.writer.measured().ok_or_else(|| packed("it has no device state".to_owned()))?;
        let pairs = [
            ("the size of its memory", bytes.to_string(), header.memory_bytes.to_string()),
            ("the number of its pages", nonzero.to_string(), header.pages.nonzero_bytes.to_string()),
            ("its memory", digest(&table), self.config.memory_digest.clone()),
            ("its device state", digest(&state), self.config.state_digest.clone()),
        ];
        for (what, found, expected) in pairs {
            if found != expected {
                return Err(packed(format!("{what} is {found}, its configuration says {expected}")));
            }
        }
        self.writer.finish(self.config.header.description)
    }
}

fn decoder<R: Read>(from: R) -> Result<zstd::stream::read::Decoder<'static, std::io::BufReader<R>>, Error> {
    let mut decoder = zstd::stream::read::Decoder::new(from).map_err(unreadable)?;
    decoder.window_log_max(WINDOW_LOG).map_err(unreadable)?;
    Ok(decoder)
}

fn unreadable(error: std::io::Error) -> Error {
    packed(format!("a part cannot be read: {error}"))
}

fn packed(reason: String) -> Error {
    Error::Packed { reason }
}
