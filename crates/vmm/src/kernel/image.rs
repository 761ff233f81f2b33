//! The uncompressed ELF kernel inside a `bzImage`.
//!
//! QEMU starts such a kernel directly through its PVH entry. In emulation that saves the unpacking, about a second. What
//! it costs: the kernel is not moved to a random address, so the guest's kernel lies where its file says.

use super::lz4;
use std::io::Read;

/// No kernel unpacks to more.
const UNPACKED_LIMIT: usize = 256 << 20;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Type of the Xen note that says where to enter the kernel.
const PHYS32_ENTRY: u32 = 18;
const PROGRAM_HEADER: usize = 56;

/// Unpacks the kernel. The reason why not, where it is packed in a way that we do not know or has no PVH entry: such a
/// kernel is started as it is.
pub(super) fn unpack(image: &[u8]) -> Result<Vec<u8>, String> {
    let payload = payload(image)?;
    let unpacked = match payload.first_chunk::<4>() {
        Some(&lz4::MAGIC) => lz4::unpack(&payload[4..], UNPACKED_LIMIT).map_err(|e| format!("LZ4: {e}"))?,
        Some([0x28, 0xb5, 0x2f, 0xfd]) => unpack_zstd(payload)?,
        other => return Err(format!("packed in an unknown way ({other:02x?})")),
    };
    trim(unpacked)
}

fn payload(image: &[u8]) -> Result<&[u8], String> {
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err("no Linux kernel image".to_owned());
    }
    let word = |at: usize| u32_at(image, at).map(|n| n as usize).ok_or("the header is cut off");
    let setup = match image[0x1f1] {
        0 => 4,
        n => usize::from(n),
    };
    let start = (setup + 1) * 512 + word(0x248)?;
    let end = start.checked_add(word(0x24c)?).ok_or("lengths overflow")?;
    image.get(start..end).ok_or_else(|| "the packed kernel is cut off".to_owned())
}

fn unpack_zstd(payload: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let broken = |e: std::io::Error| format!("zstd: {e}");
    // The unpacked size follows the frame, so only one frame is read.
    let decoder = zstd::stream::read::Decoder::new(payload).map_err(broken)?.single_frame();
    decoder.take(UNPACKED_LIMIT as u64 + 1).read_to_end(&mut out).map_err(broken)?;
    if out.len() > UNPACKED_LIMIT { Err("unpacks to too much".to_owned()) } else { Ok(out) }
}

/// Keeps what is loaded: drops section headers and symbols behind the last segment, and the zeroes at its end, which
/// QEMU makes by itself. QEMU keeps the file mapped as long as the machine lives.
fn trim(mut elf: Vec<u8>) -> Result<Vec<u8>, String> {
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err("unpacks to something that is no 64-bit ELF file".to_owned());
    }
    let cut_off = || "the ELF header is cut off".to_owned();
    let table = usize::try_from(u64_at(&elf, 32).ok_or_else(cut_off)?).map_err(|e| e.to_string())?;
    let count = elf.get(56..58).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]]))).ok_or_else(cut_off)?;
    let mut segments = Vec::new();
    for n in 0..count {
        let at = table + n * PROGRAM_HEADER;
        let header = elf.get(at..at + PROGRAM_HEADER).ok_or_else(cut_off)?;
        let number =
            |offset| u64_at(header, offset).and_then(|n| usize::try_from(n).ok()).ok_or_else(cut_off);
        let kind = u32_at(header, 0).ok_or_else(cut_off)?;
        let (start, size) = (number(8)?, number(32)?);
        let end = start.checked_add(size).filter(|end| *end <= elf.len()).ok_or("a segment is cut off")?;
        segments.push((kind, at, start, end));
    }
    let pvh = segments.iter().filter(|s| s.0 == PT_NOTE).any(|s| has_entry(&elf[s.2..s.3]));
    if !pvh {
        return Err("no PVH entry".to_owned());
    }
    let (_, at, start, end) =
        segments.iter().filter(|s| s.0 == PT_LOAD).max_by_key(|s| s.3).copied().ok_or("nothing to load")?;
    let used = elf[start..end].iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    elf[at + 32..at + 40].copy_from_slice(&(used as u64).to_le_bytes());
    // No section headers: offset, count and index of names.
    elf[40..48].fill(0);
    elf[60..64].fill(0);
    elf.truncate((start + used).max(table + count * PROGRAM_HEADER));
    Ok(elf)
}

/// Whether these notes have Xen's entry for PVH.
fn has_entry(mut notes: &[u8]) -> bool {
    while let (Some(name), Some(size), Some(kind)) = (u32_at(notes, 0), u32_at(notes, 4), u32_at(notes, 8)) {
        if kind == PHYS32_ENTRY && notes.get(12..15) == Some(b"Xen") {
            return true;
        }
        let padded = |n: u32| (n as usize).next_multiple_of(4);
        match notes.get(12 + padded(name) + padded(size)..) {
            Some(rest) => notes = rest,
            None => return false,
        }
    }
    false
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An ELF file with a note and one segment that ends with zeroes, and something behind it.
    fn elf(note: u32) -> Vec<u8> {
        let mut out = vec![0; 64 + 2 * PROGRAM_HEADER];
        out[..6].copy_from_slice(b"\x7fELF\x02\x01");
        out[32] = 64;
        out[40] = 99;
        out[56] = 2;
        out[60] = 7;
        let mut header = |n: usize, kind: u32, start: u64, size: u64| {
            let at = 64 + n * PROGRAM_HEADER;
            out[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            out[at + 8..at + 16].copy_from_slice(&start.to_le_bytes());
            out[at + 32..at + 40].copy_from_slice(&size.to_le_bytes());
        };
        header(0, PT_NOTE, 176, 20);
        header(1, PT_LOAD, 196, 100);
        out.extend([4, 8, note].map(u32::to_le_bytes).concat());
        out.extend(b"Xen\0\0\0\0\0");
        out.truncate(196);
        out.extend(b"code");
        out.resize(296, 0);
        out.extend(b"symbols");
        out
    }

    #[test]
    fn what_is_not_loaded_goes() {
        let trimmed = trim(elf(PHYS32_ENTRY)).unwrap();
        assert_eq!(trimmed.len(), 200);
        assert!(trimmed.ends_with(b"code"));
        assert_eq!(u64_at(&trimmed, 64 + PROGRAM_HEADER + 32), Some(4));
        assert_eq!(u64_at(&trimmed, 40), Some(0));
        assert_eq!(trim(elf(3)).unwrap_err(), "no PVH entry");
        assert!(trim(elf(PHYS32_ENTRY)[..250].to_vec()).unwrap_err().contains("cut off"));
    }

    proptest! {
        #[test]
        fn nonsense_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 600..2000), magic in 0..3) {
            bytes[0x202..0x206].copy_from_slice(b"HdrS");
            bytes[0x1f1] = 0;
            bytes[0x248..0x24c].fill(0);
            let _ = unpack(&bytes);
            if magic > 0 {
                bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            }
            let _ = trim(bytes);
        }
    }
}
