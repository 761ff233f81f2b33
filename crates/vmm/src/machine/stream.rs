//! QEMU's migration stream without the guest's memory.
//!
//! `x-ignore-shared` leaves out memory that is shared. That of a clone is not, and all of it would come with the devices'
//! state; but it is a file to a template. The format is that of QEMU's `migration/savevm.c` and `migration/ram.c`:
//!
//! ```text
//! "QEVM" version configuration │ 01 id "ram" blocks 10 7e id │ 02 id pages 10 7e id │ 03 id pages 10 7e id │ devices
//!                              └─ kept                       └─ pages of the guest's memory are left out ─┘ └─ kept
//! ```
//!
//! QEMU is not trusted: everything is checked for its length, and what is not understood is an error.

use std::io::{self, BufRead, Read, Write};

/// Where a section of the memory is looked for. The configuration before it has some hundred bytes.
const HEAD: usize = 64 << 10;
/// "ram", instance 0, version 4.
const NAME: &[u8] = b"\x03ram\0\0\0\0\0\0\0\x04";
const SECTION_START: u8 = 1;
const SECTION_PART: u8 = 2;
const SECTION_END: u8 = 3;
const SECTION_FOOTER: u8 = 0x7e;
const PAGE: u64 = 4096;
/// What the low bits of an address say.
const FLAGS: u64 = PAGE - 1;
const ZERO: u64 = 0x02;
const SIZES: u64 = 0x04;
const DATA: u64 = 0x08;
const END: u64 = 0x10;
const SAME_BLOCK: u64 = 0x20;
/// Most blocks of memory that a machine has: the guest's, firmware, devices.
const MAX_BLOCKS: usize = 256;

/// Copies a stream, leaving out the pages of the block with this size, which is the guest's memory. The machine was
/// stopped, so that each of its pages is there once.
pub fn without_memory(from: impl Read, to: impl Write, memory_bytes: u64) -> io::Result<()> {
    let mut filter = Filter { from: io::BufReader::new(from), to: io::BufWriter::new(to), block: None };
    let id = filter.head()?;
    let memory = filter.blocks(memory_bytes)?;
    filter.footer(id)?;
    loop {
        let kind = filter.copy::<1>()?[0];
        if kind != SECTION_PART && kind != SECTION_END {
            return Err(wrong("another section among those of the memory"));
        }
        if u32::from_be_bytes(filter.copy()?) != id {
            return Err(wrong("a section of something else among those of the memory"));
        }
        filter.pages(&memory)?;
        filter.footer(id)?;
        if kind == SECTION_END {
            break;
        }
    }
    io::copy(&mut filter.from, &mut filter.to)?;
    filter.to.flush()
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("QEMU's state has {what}"))
}

struct Filter<R: Read, W: Write> {
    from: io::BufReader<R>,
    to: io::BufWriter<W>,
    /// Of the page before; it holds over the ends of sections.
    block: Option<Vec<u8>>,
}

impl<R: Read, W: Write> Filter<R, W> {
    fn read<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn copy<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let bytes = self.read()?;
        self.to.write_all(&bytes)?;
        Ok(bytes)
    }

    /// Up to the start of the memory's section, whose number it gives.
    fn head(&mut self) -> io::Result<u32> {
        let mut head = Vec::new();
        while !head.ends_with(NAME) {
            let available = self.from.fill_buf()?;
            let Some(byte) = available.first().copied().filter(|_| head.len() < HEAD) else {
                return Err(wrong("no section of the memory at its beginning"));
            };
            self.from.consume(1);
            head.push(byte);
        }
        self.to.write_all(&head)?;
        let start = head.len() - NAME.len();
        match head.get(start.saturating_sub(5)..start) {
            Some(&[SECTION_START, a, b, c, d]) if head.starts_with(b"QEVM") => {
                Ok(u32::from_be_bytes([a, b, c, d]))
            }
            _ => Err(wrong("no section of the memory at its beginning")),
        }
    }

    fn name(&mut self) -> io::Result<Vec<u8>> {
        let [length] = self.read()?;
        let mut name = vec![0; usize::from(length)];
        self.from.read_exact(&mut name)?;
        Ok(name)
    }

    fn write_name(&mut self, name: &[u8]) -> io::Result<()> {
        self.to.write_all(&[u8::try_from(name.len()).unwrap_or(u8::MAX)])?;
        self.to.write_all(name)
    }

    /// The table of blocks: name, size, and, as shared ones are ignored, address. Gives the name of the memory's.
    fn blocks(&mut self, memory_bytes: u64) -> io::Result<Vec<u8>> {
        let total = u64::from_be_bytes(self.copy()?);
        if total & FLAGS != SIZES {
            return Err(wrong("no table of blocks"));
        }
        let mut left = total & !FLAGS;
        let mut memory = None;
        for _ in 0..MAX_BLOCKS {
            if left == 0 {
                break;
            }
            let name = self.name()?;
            self.write_name(&name)?;
            let size = u64::from_be_bytes(self.copy()?);
            self.copy::<8>()?;
            left = left.checked_sub(size).ok_or_else(|| wrong("blocks that are larger than all together"))?;
            if size == memory_bytes && memory.replace(name).is_some() {
                return Err(wrong("two blocks of the memory's size"));
            }
        }
        if left != 0 || u64::from_be_bytes(self.copy()?) != END {
            return Err(wrong("a table of blocks that does not end"));
        }
        memory.ok_or_else(|| wrong("no block of the memory's size"))
    }

    /// The pages of a section, without those of the memory. Each is written with the name of its block, since the one
    /// before it may be gone.
    fn pages(&mut self, memory: &[u8]) -> io::Result<()> {
        loop {
            let word = u64::from_be_bytes(self.read()?);
            let (address, flags) = (word & !FLAGS, word & FLAGS);
            if flags == END {
                return self.to.write_all(&END.to_be_bytes());
            }
            if flags & SAME_BLOCK == 0 {
                self.block = Some(self.name()?);
            }
            let name = self.block.take().ok_or_else(|| wrong("a page of no block"))?;
            let kind = flags & !SAME_BLOCK;
            let kept = name != memory;
            if kept {
                self.to.write_all(&(address | kind).to_be_bytes())?;
                self.write_name(&name)?;
            }
            let length = match kind {
                ZERO => 1,
                DATA => PAGE,
                _ => return Err(wrong("pages of a kind that is not known")),
            };
            let mut page = (&mut self.from).take(length);
            let copied =
                if kept { io::copy(&mut page, &mut self.to)? } else { io::copy(&mut page, &mut io::sink())? };
            if copied != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.block = Some(name);
        }
    }

    fn footer(&mut self, id: u32) -> io::Result<()> {
        let [kind, a, b, c, d] = self.copy()?;
        if kind == SECTION_FOOTER && u32::from_be_bytes([a, b, c, d]) == id {
            Ok(())
        } else {
            Err(wrong("a section of the memory that does not end"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MEMORY: u64 = 16 * PAGE;

    fn head() -> Vec<u8> {
        let mut stream = b"QEVM\0\0\0\x03\x07\0\0\0\x06pc-q35".to_vec();
        stream.extend([SECTION_START, 0, 0, 0, 2]);
        stream.extend(NAME);
        stream.extend(((MEMORY + PAGE) | SIZES).to_be_bytes());
        for (name, size) in [("memory", MEMORY), ("bios", PAGE)] {
            stream.push(u8::try_from(name.len()).unwrap());
            stream.extend(name.as_bytes());
            stream.extend(size.to_be_bytes());
            stream.extend([0; 8]);
        }
        stream.extend(END.to_be_bytes());
        stream.extend([SECTION_FOOTER, 0, 0, 0, 2]);
        stream
    }

    fn page(word: u64, name: Option<&str>, data: &[u8]) -> Vec<u8> {
        let mut record = word.to_be_bytes().to_vec();
        if let Some(name) = name {
            record.push(u8::try_from(name.len()).unwrap());
            record.extend(name.as_bytes());
        }
        record.extend(data);
        record
    }

    fn section(kind: u8, records: &[Vec<u8>]) -> Vec<u8> {
        let mut section = vec![kind, 0, 0, 0, 2];
        records.iter().for_each(|record| section.extend(record));
        section.extend(END.to_be_bytes());
        section.extend([SECTION_FOOTER, 0, 0, 0, 2]);
        section
    }

    fn stream(part: &[Vec<u8>], end: &[Vec<u8>]) -> Vec<u8> {
        [head(), section(SECTION_PART, part), section(SECTION_END, end), b"\x04devices".to_vec()].concat()
    }

    fn filtered(stream: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        without_memory(stream, &mut out, MEMORY).map(|()| out)
    }

    #[test]
    fn pages_of_the_memory_are_left_out_and_nothing_else() {
        let data = [7; PAGE as usize];
        let bios = page(DATA, Some("bios"), &data);
        let part = [
            page(DATA, Some("memory"), &data),
            page(PAGE | ZERO | SAME_BLOCK, None, &[0]),
            bios.clone(),
            page(ZERO | SAME_BLOCK, None, &[0]),
            page((2 * PAGE) | DATA, Some("memory"), &data),
        ];
        let kept = [bios, page(ZERO, Some("bios"), &[0])];
        assert_eq!(filtered(&stream(&part, &part)).unwrap(), stream(&kept, &kept));
        // The block of the page before holds over the end of a section.
        let more = [page(ZERO | SAME_BLOCK, None, &[0])];
        assert_eq!(filtered(&stream(&part, &more)).unwrap(), stream(&kept, &[]));
        let last = page(ZERO, Some("bios"), &[0]);
        assert_eq!(filtered(&stream(&part[..4], &more)).unwrap(), stream(&kept, &[last]));
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        let check = |stream: &[u8], words: &str| {
            let error = filtered(stream).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        };
        check(b"", "no section");
        check(&[0; HEAD + 1], "no section");
        check(&[b"QEVM".as_slice(), NAME].concat(), "no section");
        check(&stream(&[page(0x100, Some("memory"), &[])], &[]), "not known");
        check(&stream(&[page(SAME_BLOCK | ZERO, None, &[0])], &[]), "no block");
        check(&[head(), section(4, &[])].concat(), "another section");
        let mut other = head();
        let at = other.len() - 1;
        other[at] = 9;
        check(&other, "does not end");
        let mut out = Vec::new();
        let error = without_memory(&stream(&[], &[])[..], &mut out, 3 * PAGE).unwrap_err();
        assert!(error.to_string().contains("no block"), "{error}");
    }

    proptest! {
        /// A damaged stream is an error or another stream, never a panic, and never longer than what went in by more
        /// than the names that are written out.
        #[test]
        fn any_damage_is_answered(at in 0usize..9000, with: u8, cut in 0usize..9000) {
            let data = [7; PAGE as usize];
            let mut bytes = stream(&[page(DATA, Some("bios"), &data)], &[page(ZERO, Some("memory"), &[0])]);
            let (at, cut) = (at % bytes.len(), cut % bytes.len());
            bytes[at] = with;
            let _ = filtered(&bytes);
            prop_assert!(filtered(&bytes[..cut]).is_err() || cut > bytes.len() - 9);
        }
    }
}
