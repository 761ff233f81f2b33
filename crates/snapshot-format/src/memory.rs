//! The one pass over a guest's memory: read what is there, compute or verify checksums, copy.
//!
//! Chunks are independent, so several threads share them. Holes are never read; pages that are zero are found and left
//! out, wherever the memory comes from.

use crate::envelope::{SUM_BYTES, Sum, chunks};
use crate::{CHUNK_BYTES, Error, PAGE_BYTES};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const PAGES: usize = CHUNK_BYTES / PAGE_BYTES;
pub(crate) const BITMAP_BYTES: usize = PAGES / 8;
/// What stands in the table for a chunk without data. No SHA-256 is known to be that.
const EMPTY: Sum = [0; SUM_BYTES];
/// More threads than this wait for memory, not for the processor.
const MOST_THREADS: usize = 4;
/// A thread for fewer chunks costs more than it brings.
const CHUNKS_PER_THREAD: u64 = 16;

/// A memory that is read: the file, its size in bytes and its name for messages.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) file: &'a File,
    pub(crate) bytes: u64,
    pub(crate) path: &'a Path,
}

/// What a pass found.
pub(crate) struct Pass {
    /// Checksums of all chunks.
    pub(crate) table: Vec<u8>,
    /// Pages that are not zero, in bytes.
    pub(crate) nonzero_bytes: u64,
}

/// Goes once through a memory. With a table, each chunk is verified; with a target, it is copied there afterwards.
pub(crate) fn pass(from: Source<'_>, to: Option<Source<'_>>, table: Option<&[u8]>) -> Result<Pass, Error> {
    let visit = |index: u64, chunk: &Chunk| {
        let sum = chunk.sum();
        if let Some(table) = table {
            check(&sum, index, table, from.path)?;
        }
        if let Some(to) = to {
            chunk.write(to)?;
        }
        Ok((sum, chunk.nonzero_bytes()))
    };
    let found = each_chunk(from, &visit)?;
    Ok(Pass {
        table: found.iter().flat_map(|(_, (sum, _))| *sum).collect(),
        nonzero_bytes: found.iter().map(|(_, (_, bytes))| bytes).sum(),
    })
}

/// Refuses a chunk that is not what the table says.
fn check(sum: &Sum, index: u64, table: &[u8], path: &Path) -> Result<(), Error> {
    match sum_in(table, index) == Some(sum) {
        true => Ok(()),
        false => {
            let offset = index * CHUNK_BYTES as u64;
            Err(Error::Chunk { path: path.to_owned(), chunk: index, offset })
        }
    }
}

fn sum_in(table: &[u8], index: u64) -> Option<&Sum> {
    table.get(usize::try_from(index).ok()?.checked_mul(SUM_BYTES)?..)?.first_chunk()
}

/// Whether a chunk has data by the table.
pub(crate) fn has_data(table: &[u8], index: u64) -> bool {
    sum_in(table, index).is_some_and(|sum| *sum != EMPTY)
}

/// Checksum of a chunk, and what of it is not zero in bytes.
type Found = (Sum, u64);

/// Visits all chunks, in threads, and gives what was found in the chunks' order. The first error ends it.
fn each_chunk(
    from: Source<'_>,
    visit: &(dyn Fn(u64, &Chunk) -> Result<Found, Error> + Sync),
) -> Result<Vec<(u64, Found)>, Error> {
    let count = chunks(from.bytes);
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let work = || {
        let mut chunk = Chunk::new();
        let mut found = Vec::new();
        // Relaxed: a number is taken once, and a late look at `stop` only wastes a chunk's time.
        while !stop.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            match chunk.read(from, index).and_then(|()| visit(index, &chunk)) {
                Ok(one) => found.push((index, one)),
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err((index, error));
                }
            }
        }
        Ok(found)
    };
    let available = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS) as u64;
    let threads = available.min(count / CHUNKS_PER_THREAD).max(1);
    let results = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut results = vec![work()];
        for other in others {
            results.push(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        results
    });
    let (good, bad): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    if let Some((_, error)) = bad.into_iter().filter_map(Result::err).min_by_key(|(index, _)| *index) {
        return Err(error);
    }
    let mut found: Vec<_> = good.into_iter().flatten().flatten().collect();
    found.sort_unstable_by_key(|(index, _)| *index);
    Ok(found)
}

/// A chunk that was read. Bytes of pages that the bitmap does not name are of no meaning.
pub(crate) struct Chunk {
    bytes: Vec<u8>,
    bitmap: [u8; BITMAP_BYTES],
    offset: u64,
}

impl Chunk {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; CHUNK_BYTES], bitmap: [0; BITMAP_BYTES], offset: 0 }
    }

    /// Reads what of a chunk is not a hole, and finds the pages that are not zero.
    pub(crate) fn read(&mut self, from: Source<'_>, index: u64) -> Result<(), Error> {
        self.offset = index * CHUNK_BYTES as u64;
        self.bitmap = [0; BITMAP_BYTES];
        let end = from.bytes.min(self.offset + CHUNK_BYTES as u64);
        let mut at = self.offset;
        while let Some((start, stop)) = next_data(from, at, end)? {
            // Data is found in whole pages: what a page has beyond it is a hole, and so reads as zero.
            let first = (start - self.offset) as usize / PAGE_BYTES;
            let last = ((stop - self.offset) as usize).div_ceil(PAGE_BYTES);
            let part = &mut self.bytes[first * PAGE_BYTES..last * PAGE_BYTES];
            let from_offset = self.offset + (first * PAGE_BYTES) as u64;
            from.file.read_exact_at(part, from_offset).map_err(Error::io("read", from.path))?;
            for page in first..last {
                if !is_zero(&self.bytes[page * PAGE_BYTES..(page + 1) * PAGE_BYTES]) {
                    self.bitmap[page / 8] |= 1 << (page % 8);
                }
            }
            at = self.offset + (last * PAGE_BYTES) as u64;
        }
        Ok(())
    }

    /// Reads a chunk and refuses it when it is not what the table says.
    pub(crate) fn read_checked(&mut self, from: Source<'_>, index: u64, table: &[u8]) -> Result<(), Error> {
        self.read(from, index)?;
        check(&self.sum(), index, table, from.path)
    }

    /// Adds the bitmap of pages that are not zero, and those pages.
    pub(crate) fn pack(&self, to: &mut Vec<u8>) {
        to.extend(self.bitmap);
        self.runs().for_each(|run| to.extend(&self.bytes[run]));
    }

    fn has(&self, page: usize) -> bool {
        page < PAGES && self.bitmap[page / 8] & (1 << (page % 8)) != 0
    }

    /// Runs of pages that are not zero, as ranges of bytes.
    fn runs(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let mut page = 0;
        std::iter::from_fn(move || {
            let start = (page..PAGES).find(|page| self.has(*page))?;
            page = (start..=PAGES).find(|page| !self.has(*page)).unwrap_or(PAGES);
            Some(start * PAGE_BYTES..page * PAGE_BYTES)
        })
    }

    fn nonzero_bytes(&self) -> u64 {
        self.bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>() * PAGE_BYTES as u64
    }

    fn sum(&self) -> Sum {
        if self.bitmap == [0; BITMAP_BYTES] {
            return EMPTY;
        }
        let mut hash = Sha256::new();
        hash.update(self.bitmap);
        self.runs().for_each(|run| hash.update(&self.bytes[run]));
        hash.finalize().into()
    }

    fn write(&self, to: Source<'_>) -> Result<(), Error> {
        self.runs().try_for_each(|run| {
            let offset = self.offset + run.start as u64;
            to.file.write_all_at(&self.bytes[run], offset).map_err(Error::io("write", to.path))
        })
    }
}

/// The next range below `end` that is not a hole.
fn next_data(from: Source<'_>, at: u64, end: u64) -> Result<Option<(u64, u64)>, Error> {
    let seek = |at: u64, whence| {
        let at = i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
        lseek(from.file, at, whence).map(|found| u64::try_from(found).unwrap_or_default())
    };
    if at >= end {
        return Ok(None);
    }
    let start = match seek(at, Whence::SeekData) {
        Ok(start) if start < end => start,
        // Nothing but a hole, up to the end of the chunk or of the file.
        Ok(_) | Err(Errno::ENXIO) => return Ok(None),
        Err(error) => return Err(Error::io("look for data in", from.path)(error)),
    };
    let stop = seek(start, Whence::SeekHole).map_err(Error::io("look for holes in", from.path))?;
    Ok(Some((start, stop.min(end))))
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|w| u128::from_ne_bytes(*w) == 0) && rest.iter().all(|b| *b == 0)
}
