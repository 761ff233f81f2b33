//! A read-only disk with a few small files on it: how a machine that has no agent of ours is told who it is.
//!
//! cloud-init (`NoCloud`) looks for a filesystem with the label `cidata` and the files `user-data`, `meta-data` and
//! `network-config` in it. This writes ISO 9660, level 1 but for `-` in names, without extensions: Linux shows such
//! names in lower case and without their version. Same files, same bytes.

use crate::Error;
use crate::error::file;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The label that cloud-init looks for.
pub const CLOUD_INIT_LABEL: &str = "cidata";

const SECTOR: usize = 2048;
/// Sectors: 16 of nothing, the descriptor, its end, the path tables, the root directory, the files.
const DESCRIPTOR: usize = 16;
const PATH_TABLE: u32 = 18;
const ROOT: u32 = 20;
const FIRST_FILE: usize = 21;
const PATH_TABLE_BYTES: u32 = 10;
/// The root directory is one sector.
const MAX_FILES: usize = 16;
const MAX_NAME: usize = 30;
/// No file is larger: these are texts.
const MAX_BYTES: usize = 16 << 20;

/// Writes the disk (mode 0600: there are secrets in such files).
///
/// # Errors
/// A name or the label has other characters than `[a-z0-9.-]`, something is too much, or the file cannot be written.
pub fn create(path: &Path, label: &str, files: &[(&str, &[u8])]) -> Result<(), Error> {
    let image = image(label, files)?;
    // Not over another one, whose mode might be another.
    let _ = fs::remove_file(path);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut out| out.write_all(&image));
    written.map_err(file("write", path))
}

fn image(label: &str, files: &[(&str, &[u8])]) -> Result<Vec<u8>, Error> {
    let plain = |s: &str, max: usize| {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        !s.is_empty() && s.len() <= max && s.bytes().all(fits)
    };
    let mut sorted = files.to_vec();
    sorted.sort_unstable_by_key(|(name, _)| *name);
    let fail = |message: String| Err(Error::Spec(format!("seed disk: {message}")));
    if files.len() > MAX_FILES || sorted.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return fail(format!("more than {MAX_FILES} files, or one twice"));
    }
    if let Some((name, _)) = sorted.iter().find(|(n, b)| !plain(n, MAX_NAME) || b.len() > MAX_BYTES) {
        return fail(format!("the file {name:?}"));
    }
    if !plain(label, 32) {
        return fail(format!("the label {label:?}"));
    }
    let mut root = [record(&[0], ROOT, SECTOR, true), record(&[1], ROOT, SECTOR, true)].concat();
    let mut contents = Vec::new();
    let mut sector = FIRST_FILE;
    for (name, bytes) in sorted {
        let version = if name.contains('.') { ";1" } else { ".;1" };
        let name = format!("{}{version}", name.to_ascii_uppercase());
        root.extend(record(name.as_bytes(), number(sector), bytes.len(), false));
        contents.extend_from_slice(bytes);
        contents.resize(contents.len().next_multiple_of(SECTOR), 0);
        sector = FIRST_FILE + contents.len() / SECTOR;
    }
    let mut image = vec![0; DESCRIPTOR * SECTOR];
    let mut push = |part: &[u8]| {
        image.extend_from_slice(part);
        image.resize(image.len().next_multiple_of(SECTOR), 0);
    };
    push(&descriptor(label, number(sector)));
    push(b"\xffCD001\x01");
    for extent in [ROOT.to_le_bytes(), ROOT.to_be_bytes()] {
        // Only the byte order differs, and the parent's number is 1 in it as well.
        let parent = if extent == ROOT.to_le_bytes() { [1, 0] } else { [0, 1] };
        push(&[&[1, 0], &extent[..], &parent, &[0, 0]].concat());
    }
    push(&root);
    image.extend(contents);
    Ok(image)
}

/// The primary volume descriptor.
fn descriptor(label: &str, sectors: u32) -> Vec<u8> {
    let mut out = vec![0; SECTOR];
    out[..7].copy_from_slice(b"\x01CD001\x01");
    // Texts are filled up with spaces: system, volume, then sets, publisher, preparer, application and three files.
    for range in [8..40, 40..72, 190..813] {
        out[range].fill(b' ');
    }
    out[40..40 + label.len()].copy_from_slice(label.as_bytes());
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(80, &both(sectors));
    put(120, &[1, 0, 0, 1]);
    put(124, &[1, 0, 0, 1]);
    put(128, &[0, 8, 8, 0]);
    put(132, &both(PATH_TABLE_BYTES));
    put(140, &PATH_TABLE.to_le_bytes());
    put(148, &(PATH_TABLE + 1).to_be_bytes());
    put(156, &record(&[0], ROOT, SECTOR, true));
    // Four dates that are not given.
    for at in [813, 830, 847, 864] {
        put(at, &[b'0'; 16]);
    }
    put(881, &[1]);
    out
}

/// A directory's record.
fn record(name: &[u8], extent: u32, size: usize, directory: bool) -> Vec<u8> {
    let mut out = vec![0, 0];
    out.extend(both(extent));
    out.extend(both(number(size)));
    // 1 January 1970.
    out.extend([70, 1, 1, 0, 0, 0, 0]);
    out.extend([if directory { 2 } else { 0 }, 0, 0, 1, 0, 0, 1]);
    out.push(u8::try_from(name.len()).unwrap_or_default());
    out.extend(name);
    if out.len() % 2 == 1 {
        out.push(0);
    }
    out[0] = u8::try_from(out.len()).unwrap_or_default();
    out
}

/// A number in both byte orders.
fn both(number: u32) -> [u8; 8] {
    let mut out = [0; 8];
    out[..4].copy_from_slice(&number.to_le_bytes());
    out[4..].copy_from_slice(&number.to_be_bytes());
    out
}

/// Sizes are limited far below.
fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn files_are_where_the_directory_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed.iso");
        let long = vec![b'x'; 5000];
        let files: &[(&str, &[u8])] =
            &[("user-data", &long), ("meta-data", b"instance-id: a\n"), ("vendor.cfg", b"")];
        create(&path, CLOUD_INIT_LABEL, files).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let image = fs::read(&path).unwrap();
        assert_eq!(image.len(), (FIRST_FILE + 1 + 3) * SECTOR);
        assert_eq!(&image[16 * SECTOR + 40..16 * SECTOR + 47], b"cidata ");
        let mut found = Vec::new();
        let mut at = 20 * SECTOR;
        while image[at] != 0 {
            let field = |offset: usize| {
                u32::from_le_bytes(image[at + offset..at + offset + 4].try_into().unwrap()) as usize
            };
            let name = &image[at + 33..at + 33 + usize::from(image[at + 32])];
            let start = field(2) * SECTOR;
            found
                .push((String::from_utf8_lossy(name).into_owned(), image[start..start + field(10)].to_vec()));
            at += usize::from(image[at]);
        }
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["\0", "\u{1}", "META-DATA.;1", "USER-DATA.;1", "VENDOR.CFG;1"]);
        assert_eq!(found[2].1, b"instance-id: a\n");
        assert_eq!(found[3].1, long);
    }

    #[test]
    fn what_cannot_be_named_is_refused() {
        let many: Vec<String> = (0..17).map(|n| n.to_string()).collect();
        let many: Vec<(&str, &[u8])> = many.iter().map(|n| (n.as_str(), &b""[..])).collect();
        for (label, files) in [
            ("a label", vec![]),
            ("", vec![]),
            ("cidata", vec![("../x/y", &b""[..])]),
            ("cidata", vec![("", &b""[..])]),
            ("cidata", vec![("a", &b""[..]), ("a", &b""[..])]),
            ("cidata", many),
        ] {
            assert!(image(label, &files).is_err(), "{label:?} {files:?}");
        }
    }
}
