//! What must be known of a qcow2 image before QEMU opens it.
//!
//! Images are other people's. A backing file that an image names is overridden where the disk is made; an external
//! data file could not be, and would have QEMU open any path that its user may read. So such images are refused
//! wherever QEMU would open them ([`check`]). One that comes from outside is looked through ([`examine`]): it has to be
//! whole and on its own. QEMU itself would show zeroes where a truncated image ends.

use crate::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;

pub(crate) const MAGIC: &[u8; 4] = b"QFI\xfb";
/// No disk is larger, in bytes: what a copy of it costs before it holds anything stays small.
pub(crate) const MAX_DISK_BYTES: u64 = 16 << 40;

/// Incompatible features. Dirty: reference counts are made anew when it is opened.
const DIRTY: u64 = 1;
/// The data are in another file.
const EXTERNAL_DATA: u64 = 1 << 2;
/// Another compression than zlib.
const COMPRESSION: u64 = 1 << 3;
/// Entries of the second table are twice as long.
const EXTENDED_L2: u64 = 1 << 4;
/// QEMU's own limit of the first table, in bytes.
const MAX_L1_BYTES: u64 = 32 << 20;
/// Where an offset stands in an entry of either table.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The entry's cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
const HEADER_BYTES: usize = 104;

/// Refuses what is no qcow2 image, or one whose data are elsewhere; the size of its disk in bytes.
pub(crate) fn check(file: &File) -> Result<u64, Error> {
    Ok(Header::read(file)?.size)
}

/// Refuses also what is a difference to another image, encrypted, damaged, too large or truncated.
pub(crate) fn examine(file: &File) -> Result<u64, Error> {
    let header = Header::read(file)?;
    let length = file.metadata().map_err(crate::error::system("look at a disk image"))?.len();
    header.examine()?;
    header.walk(file, length)?;
    Ok(header.size)
}

fn refuse<T>(why: &str) -> Result<T, Error> {
    Err(Error::Spec(format!("qcow2 image: {why}")))
}

struct Header {
    has_backing: bool,
    cluster_bits: u32,
    size: u64,
    encrypted: bool,
    l1_entries: u64,
    l1_offset: u64,
    features: u64,
}

impl Header {
    fn read(file: &File) -> Result<Self, Error> {
        let mut bytes = [0; HEADER_BYTES];
        // Version 2 is shorter, but then a cluster follows that nothing is in yet.
        file.read_exact_at(&mut bytes, 0).map_err(|e| Error::Spec(format!("no qcow2 image: {e}")))?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Error> {
        let field = |at: usize, length: usize| {
            bytes[at..at + length].iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
        };
        if &bytes[..4] != MAGIC {
            return refuse("wrong magic number");
        }
        let features = match field(4, 4) {
            2 => 0,
            3 => field(72, 8),
            _ => return refuse("unknown version"),
        };
        if features & EXTERNAL_DATA != 0 {
            return refuse("its data are in another file");
        }
        Ok(Self {
            has_backing: field(8, 8) != 0,
            cluster_bits: u32::try_from(field(20, 4)).unwrap_or(u32::MAX),
            size: field(24, 8),
            encrypted: field(32, 4) != 0,
            l1_entries: field(36, 4),
            l1_offset: field(40, 8),
            features,
        })
    }

    fn examine(&self) -> Result<(), Error> {
        if self.has_backing {
            return refuse(
                "it is only the difference to another file: `qemu-img convert` makes one image of both",
            );
        }
        if self.encrypted {
            return refuse("it is encrypted");
        }
        if self.features & !(DIRTY | COMPRESSION | EXTENDED_L2) != 0 {
            return refuse("it is marked as damaged, or has features that are not known here");
        }
        if !(9..=21).contains(&self.cluster_bits) {
            return refuse("impossible size of clusters");
        }
        if self.size > MAX_DISK_BYTES || self.l1_entries * 8 > MAX_L1_BYTES {
            return refuse("a disk of more than 16 TiB");
        }
        if self.l1_entries < self.size.div_ceil(self.clusters_per_table() << self.cluster_bits) {
            return refuse("its first table is shorter than its disk");
        }
        Ok(())
    }

    fn entry_bytes(&self) -> u64 {
        if self.features & EXTENDED_L2 == 0 { 8 } else { 16 }
    }

    /// Clusters of which one second table knows.
    fn clusters_per_table(&self) -> u64 {
        (1 << self.cluster_bits) / self.entry_bytes()
    }

    /// Follows the tables: everything that they name must begin within the file. The last cluster may be shorter.
    fn walk(&self, file: &File, length: u64) -> Result<(), Error> {
        let first = table(file, self.l1_offset, self.l1_entries * 8, length)?;
        let table_bytes = 1_u64 << self.cluster_bits;
        let compressed_bits = 62 - (self.cluster_bits - 8);
        // No two entries share a table, so all of them fit the file; a hostile image does not make us read for ever.
        let mut budget = length;
        for second in entries(&first, 8).map(|entry| entry & OFFSET).filter(|offset| *offset != 0) {
            let Some(left) = budget.checked_sub(table_bytes) else { return refuse("its tables overlap") };
            budget = left;
            let second = table(file, second, table_bytes, length)?;
            let beyond = entries(&second, self.entry_bytes()).any(|entry| {
                let mask = if entry & COMPRESSED == 0 { OFFSET } else { (1 << compressed_bits) - 1 };
                entry & mask >= length
            });
            if beyond {
                return refuse("it is truncated: data that it names are behind its end");
            }
        }
        Ok(())
    }
}

fn table(file: &File, offset: u64, bytes: u64, length: u64) -> Result<Vec<u8>, Error> {
    if offset.checked_add(bytes).is_none_or(|end| end > length) {
        return refuse("it is truncated: a table is behind its end");
    }
    // At most [`MAX_L1_BYTES`], and no more than the file has.
    let mut table = vec![0; usize::try_from(bytes).unwrap_or_default()];
    file.read_exact_at(&mut table, offset).map_err(crate::error::system("read a disk image"))?;
    Ok(table)
}

/// The first eight bytes of every entry.
fn entries(table: &[u8], stride: u64) -> impl Iterator<Item = u64> {
    let stride = usize::try_from(stride).unwrap_or(8);
    table.chunks_exact(stride).map(|e| e[..8].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::Command;

    #[test]
    fn headers() {
        let header = |version: u8, features: u8| {
            let mut h = [0; HEADER_BYTES];
            h[..4].copy_from_slice(MAGIC);
            h[7] = version;
            h[79] = features;
            h
        };
        for (name, header, good) in [
            ("version 2", header(2, 0), true),
            ("version 2 has no features", header(2, 4), true),
            ("version 3", header(3, 1), true),
            ("external data", header(3, 4), false),
            ("version 9", header(9, 0), false),
            ("zeroes", [0; HEADER_BYTES], false),
        ] {
            assert_eq!(Header::parse(&header).is_ok(), good, "{name}");
        }
    }

    fn make(dir: &Path, options: &str, more: &[&str]) -> std::path::PathBuf {
        let raw = dir.join("raw");
        let mut bytes = vec![0; 3 << 20];
        (0_u32..).zip(&mut bytes).for_each(|(n, b)| *b = n.wrapping_mul(2_654_435_761).to_le_bytes()[3]);
        std::fs::write(&raw, bytes).unwrap();
        let image = dir.join("image.qcow2");
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-O", "qcow2", "-o", options]).args(more).args([&raw, &image]);
        assert!(convert.status().unwrap().success());
        image
    }

    #[test]
    fn whole_images_of_every_kind_pass_and_truncated_ones_do_not() {
        for (options, more) in [
            ("compat=v3", &[][..]),
            ("compat=0.10", &[]),
            ("cluster_size=512", &[]),
            ("cluster_size=2M", &[]),
            ("extended_l2=on,cluster_size=128k", &[]),
            ("compression_type=zstd", &["-c"]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = make(dir.path(), options, more);
            let file = File::options().read(true).write(true).open(&path).unwrap();
            assert_eq!(examine(&file).unwrap(), 3 << 20, "{options}");
            let length = file.metadata().unwrap().len();
            file.set_len(length / 2).unwrap();
            let error = examine(&file).unwrap_err().to_string();
            assert!(error.contains("truncated"), "{options}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_trusted_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, at: u64, bytes: &[u8], words: &str| {
            let path = make(dir.path(), "compat=v3", &[]);
            let file = File::options().read(true).write(true).open(&path).unwrap();
            file.write_all_at(bytes, at).unwrap();
            let error = examine(&file).unwrap_err().to_string();
            assert!(error.contains(words), "{name}: {error}");
        };
        check("backing file", 14, &[1, 0], "difference to another file");
        check("another data file", 79, &[4], "in another file");
        check("damaged", 79, &[2], "damaged");
        check("a feature of tomorrow", 72, &[0x80], "not known");
        check("clusters", 20, &[0, 0, 0, 60], "clusters");
        check("encrypted", 35, &[2], "encrypted");
        check("huge", 24, &[0x7f], "16 TiB");
        check("too many entries", 36, &[0xff], "16 TiB");
        check("a disk larger than its table", 24, &[0, 0, 1], "shorter than its disk");
        check("a table far away", 40, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "behind its end");
    }

    #[test]
    fn tables_that_are_named_again_and_again_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = make(dir.path(), "cluster_size=512", &[]);
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let header = Header::read(&file).unwrap();
        let length = file.metadata().unwrap().len();
        let many = length / 512 + 2;
        let again: Vec<u8> = (0..many).flat_map(|_| 512_u64.to_be_bytes()).collect();
        file.write_all_at(&again, length).unwrap();
        file.write_all_at(&u32::try_from(many).unwrap().to_be_bytes(), 36).unwrap();
        file.write_all_at(&length.to_be_bytes(), 40).unwrap();
        // Entries whose targets are in the file, but too many of them.
        file.write_all_at(&[0; 512], 512).unwrap();
        assert_eq!(header.cluster_bits, 9);
        file.set_len(length + many * 8).unwrap();
        let large: Vec<u8> = (0..many * 20).flat_map(|_| 512_u64.to_be_bytes()).collect();
        file.write_all_at(&large, length).unwrap();
        file.write_all_at(&u32::try_from(many * 20).unwrap().to_be_bytes(), 36).unwrap();
        assert!(examine(&file).unwrap_err().to_string().contains("overlap"));
    }
}
