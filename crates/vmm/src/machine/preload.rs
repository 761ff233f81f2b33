//! An uncompressed kernel, put into the guest's memory by us instead of by QEMU.
//!
//! QEMU would map the kernel's file, copy it, and keep some 45 MB mapped for as long as the machine lives. The memory
//! is ours before QEMU has it, so the segments are copied here, and QEMU gets an ELF file of two pages that has only the
//! note with the kernel's PVH entry and the kernel's first page. Such a machine cannot be reset: nothing would bring the
//! kernel back.

use crate::Error;
use crate::error::system;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::os::unix::fs::FileExt;

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// A kernel has about five.
const MAX_SEGMENTS: usize = 64;
const PAGE: usize = 4096;
const CHUNK: usize = 1 << 20;
/// Notes are some hundred bytes.
const NOTE_LIMIT: u64 = 1 << 16;
/// Below this, an address is the offset in the guest's memory on every machine.
const LOW_MEMORY: u64 = 1 << 30;

/// A segment of the kernel.
#[derive(Debug, Clone, Copy)]
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

/// Copies the kernel to where it belongs in `memory` and returns what QEMU is given in its place. None when the image
/// is no ELF file: QEMU then loads it itself.
pub(super) fn preload(image: &File, memory: &File, memory_bytes: u64) -> Result<Option<File>, Error> {
    let mut header = [0; HEADER];
    image.read_exact_at(&mut header, 0).map_err(system("read the kernel"))?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Ok(None);
    }
    let segments = segments(image, &header)?;
    let mut buffer = vec![0; CHUNK];
    for segment in segments.iter().filter(|s| s.kind == PT_LOAD) {
        let end = segment.address.checked_add(segment.size);
        if end.is_none_or(|end| end > memory_bytes.min(LOW_MEMORY)) {
            return Err(Error::Spec(format!("the kernel does not fit into {memory_bytes} bytes of memory")));
        }
        copy(image, memory, *segment, &mut buffer)?;
    }
    stub(image, &header, &segments).map(Some)
}

fn segments(image: &File, header: &[u8; HEADER]) -> Result<Vec<Segment>, Error> {
    let table = u64_at(header, 32);
    let count = usize::from(u16::from_le_bytes([header[56], header[57]]));
    if count > MAX_SEGMENTS {
        return Err(Error::Spec(format!("a kernel with {count} segments")));
    }
    let mut entry = [0; PROGRAM_HEADER];
    let mut segments = Vec::with_capacity(count);
    for n in 0..count {
        let at = table.saturating_add((n * PROGRAM_HEADER) as u64);
        image.read_exact_at(&mut entry, at).map_err(system("read the kernel"))?;
        let kind = u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]);
        segments.push(Segment {
            kind,
            offset: u64_at(&entry, 8),
            address: u64_at(&entry, 24),
            size: u64_at(&entry, 32),
        });
    }
    Ok(segments)
}

fn copy(image: &File, memory: &File, segment: Segment, buffer: &mut [u8]) -> Result<(), Error> {
    let mut done = 0;
    while done < segment.size {
        let length = buffer.len().min(usize::try_from(segment.size - done).unwrap_or(CHUNK));
        let chunk = &mut buffer[..length];
        image.read_exact_at(chunk, segment.offset.saturating_add(done)).map_err(system("read the kernel"))?;
        memory.write_all_at(chunk, segment.address + done).map_err(system("load the kernel"))?;
        done += length as u64;
    }
    Ok(())
}

/// An ELF file with the first page of the first segment and the notes.
fn stub(image: &File, header: &[u8; HEADER], segments: &[Segment]) -> Result<File, Error> {
    let find = |kind| segments.iter().find(|s| s.kind == kind && s.size > 0);
    let (Some(load), Some(note)) = (find(PT_LOAD), find(PT_NOTE)) else {
        return Err(Error::Spec("a kernel without segments or notes".to_owned()));
    };
    if note.size > NOTE_LIMIT {
        return Err(Error::Spec(format!("a kernel with {} bytes of notes", note.size)));
    }
    let first = Segment { size: load.size.min(PAGE as u64), offset: PAGE as u64, ..*load };
    let notes = Segment { offset: 2 * PAGE as u64, ..*note };
    let mut contents = vec![0; PAGE];
    contents[..HEADER].copy_from_slice(header);
    contents[32..40].copy_from_slice(&(HEADER as u64).to_le_bytes());
    // No section headers, two program headers.
    contents[40..48].fill(0);
    contents[56..58].copy_from_slice(&2u16.to_le_bytes());
    contents[60..64].fill(0);
    for (n, segment) in [first, notes].into_iter().enumerate() {
        let entry = &mut contents[HEADER + n * PROGRAM_HEADER..][..PROGRAM_HEADER];
        entry[..4].copy_from_slice(&segment.kind.to_le_bytes());
        let fields = [
            (8, segment.offset),
            (16, segment.address),
            (24, segment.address),
            (32, segment.size),
            (40, segment.size),
            (48, 4),
        ];
        for (at, value) in fields {
            entry[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
    }
    for (from, size, at) in [(load.offset, first.size, PAGE), (note.offset, notes.size, 2 * PAGE)] {
        let size = usize::try_from(size).unwrap_or_default();
        contents.resize(at + size, 0);
        image.read_exact_at(&mut contents[at..], from).map_err(system("read the kernel"))?;
    }
    let stub =
        memfd_create(c"kernel-entry", MFdFlags::MFD_CLOEXEC).map_err(system("make a file in memory"))?;
    let stub = File::from(stub);
    stub.write_all_at(&contents, 0).map_err(system("write a file in memory"))?;
    Ok(stub)
}

/// A little-endian number in a header; `at` is a constant within it.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn kernel(load: (u64, u64), note_size: u64) -> File {
        let mut bytes = vec![0; HEADER + 2 * PROGRAM_HEADER];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32] = 64;
        bytes[56] = 2;
        let mut entry = |n: usize, kind: u8, fields: [(usize, u64); 3]| {
            let at = HEADER + n * PROGRAM_HEADER;
            bytes[at] = kind;
            for (field, value) in fields {
                bytes[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
            }
        };
        entry(0, 1, [(8, 256), (24, load.0), (32, load.1)]);
        entry(1, 4, [(8, 260), (24, 0), (32, note_size)]);
        bytes.resize(256, 0);
        bytes.extend((0..10_000u32).map(|n| n as u8));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn segments_go_to_their_addresses() {
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(1 << 20).unwrap();
        let stub = preload(&kernel((8192, 6000), 16), &memory, 1 << 20).unwrap().unwrap();
        let mut copied = [0; 6001];
        memory.read_exact_at(&mut copied, 8192).unwrap();
        assert!(copied[..6000].iter().enumerate().all(|(n, b)| *b == n as u8) && copied[6000] == 0);
        assert_eq!(stub.metadata().unwrap().len(), 2 * PAGE as u64 + 16);
        let mut header = [0; HEADER];
        stub.read_exact_at(&mut header, 0).unwrap();
        let parts = segments(&stub, &header).unwrap();
        assert_eq!((parts[0].address, parts[0].size, parts[1].size), (8192, 4096, 16));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let memory = tempfile::tempfile().unwrap();
        for (name, load, note, expected) in [
            ("above the memory", (1 << 20, 1), 16, "does not fit"),
            ("around the end of numbers", (u64::MAX, 2), 16, "does not fit"),
            ("no notes", (0, 10), 0, "notes"),
            ("cut off", (0, 60_000), 16, "read the kernel"),
        ] {
            let error = preload(&kernel(load, note), &memory, 1 << 20).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
        let mut packed = tempfile::tempfile().unwrap();
        packed.write_all(&[0; 1024]).unwrap();
        assert!(preload(&packed, &memory, 1 << 20).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn nonsense_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 64..2000)) {
            bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            let memory = tempfile::tempfile().unwrap();
            let _ = preload(&file, &memory, 1 << 20);
        }
    }
}
