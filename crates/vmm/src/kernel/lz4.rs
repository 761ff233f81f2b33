//! The LZ4 "legacy" stream in which Linux kernels are packed: blocks of at most 8 MiB, each independent of the others.
//!
//! Written here because the container is the kernel's own (no frame, the unpacked size behind the last block), and one
//! function of safe code decodes it. Packages are signed, but nothing here trusts a length.

/// First bytes of such a stream.
pub(super) const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const BLOCK_LIMIT: usize = 8 << 20;

/// Unpacks a stream that begins behind its magic number.
pub(super) fn unpack(mut packed: &[u8], limit: usize) -> Result<Vec<u8>, &'static str> {
    let mut out = Vec::new();
    // What is shorter than a block's length and its first byte is the unpacked size that the kernel's build appends.
    while packed.len() > 4 {
        let (length, rest) = packed.split_first_chunk::<4>().ok_or("cut off")?;
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 || length > rest.len() {
            break;
        }
        let start = out.len();
        block(&rest[..length], &mut out, start)?;
        if out.len() > limit {
            return Err("unpacks to too much");
        }
        packed = &rest[length..];
    }
    if out.is_empty() { Err("empty") } else { Ok(out) }
}

/// Unpacks one block to the end of `out`; references reach back to `start` at most.
fn block(mut packed: &[u8], out: &mut Vec<u8>, start: usize) -> Result<(), &'static str> {
    const CUT_OFF: &str = "a block is cut off";
    while let Some(token) = byte(&mut packed) {
        let literals = length(token >> 4, &mut packed).ok_or(CUT_OFF)?;
        out.extend_from_slice(packed.get(..literals).ok_or(CUT_OFF)?);
        packed = &packed[literals..];
        // The last sequence of a block has no reference.
        let Some(low) = byte(&mut packed) else { break };
        let high = byte(&mut packed).ok_or(CUT_OFF)?;
        let distance = usize::from(u16::from_le_bytes([low, high]));
        let count = length(token & 15, &mut packed).ok_or(CUT_OFF)? + 4;
        if distance == 0 || distance > out.len() - start {
            return Err("a reference to before its block");
        }
        if out.len() - start + count > BLOCK_LIMIT {
            return Err("a block unpacks to too much");
        }
        let from = out.len() - distance;
        if distance >= count {
            out.extend_from_within(from..from + count);
        } else {
            // The source overlaps what is being written: the pattern repeats.
            for at in from..from + count {
                out.push(out[at]);
            }
        }
    }
    Ok(())
}

fn byte(packed: &mut &[u8]) -> Option<u8> {
    let (first, rest) = packed.split_first()?;
    *packed = rest;
    Some(*first)
}

/// A length that begins with four bits of the token and goes on as long as bytes are 255.
fn length(nibble: u8, packed: &mut &[u8]) -> Option<usize> {
    let mut total = usize::from(nibble);
    if nibble == 15 {
        loop {
            let more = byte(packed)?;
            total += usize::from(more);
            if more != 255 {
                break;
            }
        }
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream(blocks: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for block in blocks {
            out.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
            out.extend(*block);
        }
        out.extend(1234u32.to_le_bytes());
        out
    }

    #[test]
    fn blocks() {
        let table: [(_, _, Result<&[u8], &str>); 9] = [
            ("literals", stream(&[b"\x30abc"]), Ok(b"abc")),
            ("two blocks", stream(&[b"\x30abc", b"\x10d"]), Ok(b"abcd")),
            ("overlap", stream(&[b"\x12a\x01\x00\x10b"]), Ok(b"aaaaaaab")),
            ("copy", stream(&[b"\x40abcd\x04\x00\x10e"]), Ok(b"abcdabcde")),
            ("before the block", stream(&[b"\x30abc", b"\x10d\x02\x00"]), Err("before")),
            ("no distance", stream(&[b"\x10d\x00\x00"]), Err("before")),
            ("literals missing", stream(&[b"\x50abc"]), Err("cut off")),
            ("nothing", stream(&[]), Err("empty")),
            ("short", vec![1, 2], Err("empty")),
        ];
        for (name, packed, expected) in table {
            match (unpack(&packed, 100), expected) {
                (Ok(out), Ok(wanted)) => assert_eq!(out, wanted, "{name}"),
                (Err(e), Err(part)) => assert!(e.contains(part), "{name}: {e}"),
                (result, _) => panic!("{name}: {result:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn nonsense_never_panics_and_stays_small(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let packed = stream(&[&bytes]);
            let _ = unpack(&packed, 1 << 20);
        }
    }
}
