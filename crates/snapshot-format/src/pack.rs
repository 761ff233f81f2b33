//! A template taken apart for registries: a configuration, the devices' state, and parts of the memory.
//!
//! A part covers a fixed range of the guest's addresses, so that memory which is the same in two templates is the same
//! part and is stored and sent once. In it, for each MiB, stand a bitmap of the pages that are not zero and those pages,
//! compressed with zstd. Ranges without data have no part. Where a part belongs is not in it: the caller keeps that.

use crate::envelope::{Sum, chunks};
use crate::memory::{Chunk, Source, has_data};
use crate::template::MEMORY;
use crate::{CHUNK_BYTES, Error, Header, Key, Template};
use serde::{Deserialize, Serialize};
use std::io::{self, Read};
use std::path::PathBuf;

/// What a part covers, in bytes of memory: small enough for changed pages to cost little, large enough for zstd.
const PART_BYTES: u64 = 16 << 20;
/// A memory has at most so many parts; of a larger one they cover more. Registries accept some hundred blobs.
const MOST_PARTS: u64 = 200;
/// zstd's own default: stronger levels bring little on memory.
const LEVEL: i32 = 3;

/// What a registry shows of a template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// The template's header.
    pub header: Header,
    /// What a part covers, in bytes of memory.
    pub part_bytes: u64,
    /// SHA-256 of the table of the memory's checksums.
    pub memory_digest: String,
    /// SHA-256 of the devices' state.
    pub state_digest: String,
}

/// A template that is being taken apart.
#[derive(Debug)]
pub struct Packed<'a> {
    template: &'a Template,
    table: Vec<u8>,
    part_bytes: u64,
}

impl Template {
    /// Takes a template apart.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn pack(&self) -> Result<Packed<'_>, Error> {
        let part_bytes = part_bytes(self.header().memory_bytes);
        Ok(Packed { template: self, table: self.table()?, part_bytes })
    }
}

impl Packed<'_> {
    /// The configuration.
    pub fn config(&self) -> Config {
        Config {
            header: self.template.header().clone(),
            part_bytes: self.part_bytes,
            memory_digest: digest(&self.template.memory_sum()),
            state_digest: digest(&self.template.state_sum()),
        }
    }

    /// The devices' state, compressed.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn state(&self) -> Result<Vec<u8>, Error> {
        let state = self.template.state()?;
        zstd::bulk::compress(&state, LEVEL).map_err(Error::io("compress", &self.template.path()))
    }

    /// Where the parts that have data begin, in bytes of memory.
    pub fn parts(&self) -> Vec<u64> {
        let count = chunks(self.template.header().memory_bytes);
        let per_part = self.part_bytes / CHUNK_BYTES as u64;
        let has_part =
            |first: &u64| (*first..count.min(first + per_part)).any(|index| has_data(&self.table, index));
        (0..count)
            .step_by(usize::try_from(per_part).unwrap_or(usize::MAX))
            .filter(has_part)
            .map(|first| first * CHUNK_BYTES as u64)
            .collect()
    }

    /// A part, compressed, to be read as it is sent. Each MiB is verified before it is given; an error of the reader has
    /// ours inside.
    ///
    /// # Errors
    /// There is no memory for the compressor.
    pub fn part(&self, offset: u64) -> Result<impl Read, Error> {
        let first = offset / CHUNK_BYTES as u64;
        let end =
            chunks(self.template.header().memory_bytes).min(first + self.part_bytes / CHUNK_BYTES as u64);
        let raw = Raw {
            packed: self,
            path: self.template.path().join(MEMORY),
            next: first,
            end,
            chunk: Chunk::new(),
            bytes: Vec::new(),
            at: 0,
        };
        zstd::stream::read::Encoder::new(raw, LEVEL).map_err(Error::io("compress", &self.template.path()))
    }
}

/// A part as it is before it is compressed.
struct Raw<'a> {
    packed: &'a Packed<'a>,
    path: PathBuf,
    next: u64,
    end: u64,
    chunk: Chunk,
    bytes: Vec<u8>,
    at: usize,
}

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.bytes.len() && self.next < self.end {
            let template = self.packed.template;
            let bytes = template.header().memory_bytes;
            let from = Source { file: template.memory(), bytes, path: &self.path };
            self.chunk.read_checked(from, self.next, &self.packed.table).map_err(io::Error::other)?;
            self.bytes.clear();
            self.at = 0;
            self.chunk.pack(&mut self.bytes);
            self.next += 1;
        }
        let rest = &self.bytes[self.at..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}

/// A checksum as registries write it.
pub(crate) fn digest(sum: &Sum) -> String {
    format!("sha256:{}", Key(*sum))
}

/// What a part of a memory covers, in bytes.
pub(crate) fn part_bytes(memory_bytes: u64) -> u64 {
    let mut part = PART_BYTES;
    while memory_bytes.div_ceil(part) > MOST_PARTS {
        part *= 2;
    }
    part
}
