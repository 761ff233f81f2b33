//! Which modules a guest needs, and in which order they load.
//!
//! A package has no `modules.dep` (that is made when it is installed), so each module's own `.modinfo` is read: it
//! names what it depends on. Where a `modules.dep` exists it says the same.

use crate::Error;
use crate::error::file;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a guest's agent cannot do without.
pub(super) const REQUIRED: &[&str] =
    &["virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "erofs", "overlay"];

/// What is taken along when the kernel has it.
pub(super) const WELCOME: &[&str] =
    &["virtio_rng", "virtio_balloon", "fuse", "virtiofs", "inet_diag", "tcp_diag", "udp_diag"];

/// No module is larger.
const MODULE_LIMIT: u64 = 64 << 20;

/// A module, ready to load.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) contents: Vec<u8>,
}

/// The modules of one kernel, by name (with `_` for `-`, as the kernel has it).
#[derive(Debug)]
pub(super) struct Tree {
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

impl Tree {
    /// Lists a directory `lib/modules/RELEASE`.
    pub(super) fn read(root: &Path) -> Result<Self, Error> {
        let mut files = BTreeMap::new();
        list(&root.join("kernel"), 0, &mut files)?;
        let built_in = fs::read_to_string(root.join("modules.builtin")).unwrap_or_default();
        let built_in = built_in.lines().filter_map(|line| module_name(Path::new(line))).collect();
        Ok(Self { files, built_in })
    }

    /// The wanted modules with all that they depend on, in an order in which they load.
    pub(super) fn closure(&self) -> Result<Vec<Module>, Error> {
        let mut order = Vec::new();
        for name in REQUIRED {
            self.add(name, &mut order, 0)?;
        }
        for name in WELCOME.iter().filter(|name| self.files.contains_key(**name)) {
            self.add(name, &mut order, 0)?;
        }
        Ok(order)
    }

    fn add(&self, name: &str, order: &mut Vec<Module>, depth: usize) -> Result<(), Error> {
        if self.built_in.contains(name) || order.iter().any(|m| m.name == name) {
            return Ok(());
        }
        let wrong = |path: &Path, reason: String| Error::Kernel { path: path.to_owned(), reason };
        let path = self
            .files
            .get(name)
            .ok_or_else(|| wrong(Path::new(name), "this module is missing".to_owned()))?;
        // Real chains are some five long; a circle would have no end.
        if depth > 20 {
            return Err(wrong(path, "modules depend on each other in a circle".to_owned()));
        }
        let mut contents = read(path)?;
        drop_signature(&mut contents);
        for other in depends(&contents).ok_or_else(|| wrong(path, "no module".to_owned()))? {
            self.add(&other, order, depth + 1)?;
        }
        order.push(Module { name: name.to_owned(), contents });
        Ok(())
    }
}

fn list(dir: &Path, depth: usize, files: &mut BTreeMap<String, PathBuf>) -> Result<(), Error> {
    if depth > 16 {
        return Ok(());
    }
    for entry in fs::read_dir(dir).map_err(file("read", dir))? {
        let entry = entry.map_err(file("read", dir))?;
        let kind = entry.file_type().map_err(file("look at", entry.path()))?;
        if kind.is_dir() {
            list(&entry.path(), depth + 1, files)?;
        } else if kind.is_file()
            && let Some(name) = module_name(&entry.path())
        {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// `virtio_rng` from `…/virtio-rng.ko.xz`.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let (stem, packing) = name.rsplit_once(".ko")?;
    matches!(packing, "" | ".xz" | ".zst").then(|| stem.replace('-', "_"))
}

/// A module's contents, unpacked.
fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let size = fs::metadata(path).map_err(file("look at", path))?.len();
    let fail = |reason: String| Error::Kernel { path: path.to_owned(), reason };
    if size > MODULE_LIMIT {
        return Err(fail(format!("{size} bytes")));
    }
    match path.extension().and_then(|e| e.to_str()) {
        Some("zst") => {
            let packed = fs::read(path).map_err(file("read", path))?;
            let limit = usize::try_from(MODULE_LIMIT).unwrap_or(usize::MAX);
            zstd::bulk::decompress(&packed, limit).map_err(|e| fail(format!("zstd: {e}")))
        }
        Some("xz") => {
            // Only newer releases pack modules so, and only at installation: the program is on every Debian.
            let output = Command::new("xz").args(["-dc", "--"]).arg(path).stdin(Stdio::null()).output();
            let output = output.map_err(|source| Error::MissingProgram {
                program: "xz".to_owned(),
                package: "xz-utils",
                source,
            })?;
            if output.status.success() { Ok(output.stdout) } else { Err(fail("xz failed".to_owned())) }
        }
        _ => fs::read(path).map_err(file("read", path)),
    }
}

/// Cuts the signature off that follows a module. The guest's kernel does not demand one, and checking it costs a
/// twentieth of a boot in emulation; the manifest's digest is what protects the file.
fn drop_signature(module: &mut Vec<u8>) {
    // include/linux/module_signature.h: a structure of 12 bytes that ends with the signature's length, then this.
    const MARK: &[u8] = b"~Module signature appended~\n";
    const STRUCTURE: usize = 12;
    let Some(rest) = module.strip_suffix(MARK) else { return };
    let Some((_, length)) = rest.split_last_chunk::<4>() else { return };
    let signature = (u32::from_be_bytes(*length) as usize).saturating_add(STRUCTURE);
    if let Some(end) = rest.len().checked_sub(signature) {
        module.truncate(end);
    }
}

/// Names in `depends=` of the section `.modinfo`, a list of strings that end with a zero.
fn depends(module: &[u8]) -> Option<Vec<String>> {
    let info = section(module, b".modinfo")?;
    let list = info.split(|b| *b == 0).find_map(|s| s.strip_prefix(b"depends="))?;
    let list = std::str::from_utf8(list).ok()?;
    Some(list.split(',').filter(|n| !n.is_empty()).map(|n| n.replace('-', "_")).collect())
}

/// A section of a 64-bit little-endian ELF file.
fn section<'a>(elf: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let half = |at: usize| elf.get(at..)?.first_chunk().map(|b| usize::from(u16::from_le_bytes(*b)));
    let word = |at: usize| elf.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b) as usize);
    let long =
        |at: usize| elf.get(at..)?.first_chunk().and_then(|b| usize::try_from(u64::from_le_bytes(*b)).ok());
    let (table, count, names) = (long(40)?, half(60)?, half(62)?);
    let header = |n: usize| table.checked_add(n * 64);
    let body = |n: usize| {
        let at = header(n)?;
        let start = long(at.checked_add(24)?)?;
        elf.get(start..start.checked_add(long(at.checked_add(32)?)?)?)
    };
    let names = body(names)?;
    (0..count).find_map(|n| {
        let name = names.get(word(header(n)?)?..)?.split(|b| *b == 0).next()?;
        if name == wanted { body(n) } else { None }
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file with the sections that are read, and nothing else.
    pub(in crate::kernel) fn module(depends: &str) -> Vec<u8> {
        let info = format!("license=GPL\0depends={depends}\0name=x\0");
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut out = vec![0; 64];
        out[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let info_at = out.len();
        out.extend(info.as_bytes());
        let names_at = out.len();
        out.extend(names);
        let table = out.len();
        for (name, at, size) in [(0, 0, 0), (1, info_at, info.len()), (10, names_at, names.len())] {
            let mut header = [0; 64];
            header[0] = name;
            header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            out.extend(header);
        }
        out[40..48].copy_from_slice(&(table as u64).to_le_bytes());
        out[60] = 3;
        out[62] = 2;
        out
    }

    fn tree(modules: &[(&str, &str)], built_in: &str) -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("kernel/drivers")).unwrap();
        for (name, depends) in modules {
            fs::write(dir.path().join("kernel/drivers").join(name), module(depends)).unwrap();
        }
        fs::write(dir.path().join("modules.builtin"), built_in).unwrap();
        let tree = Tree::read(dir.path()).unwrap();
        (dir, tree)
    }

    const ALL: &[(&str, &str)] = &[
        ("virtio.ko", ""),
        ("virtio_pci.ko", "virtio"),
        ("virtio_blk.ko", "virtio"),
        ("net_failover.ko", ""),
        ("virtio_net.ko", "virtio,net_failover"),
        ("virtio_console.ko", "virtio"),
        ("virtio-rng.ko", "virtio"),
        ("erofs.ko", "libcrc32c"),
        ("overlay.ko", ""),
        ("unwanted.ko", ""),
    ];

    #[test]
    fn order_and_built_in_ones() {
        let (_dir, tree) = tree(ALL, "kernel/lib/libcrc32c.ko\n");
        let names: Vec<String> = tree.closure().unwrap().into_iter().map(|m| m.name).collect();
        assert_eq!(
            names.join(" "),
            "virtio virtio_pci virtio_blk net_failover virtio_net virtio_console erofs overlay virtio_rng"
        );
    }

    #[test]
    fn what_is_missing_or_broken_is_named() {
        let (_dir, incomplete) = tree(ALL, "");
        let error = incomplete.closure().unwrap_err().to_string();
        assert!(error.contains("libcrc32c") && error.contains("missing"), "{error}");
        let mut circle = ALL.to_vec();
        circle[0].1 = "virtio_pci";
        let (_dir, circle) = tree(&circle, "kernel/lib/libcrc32c.ko\n");
        assert!(circle.closure().unwrap_err().to_string().contains("circle"));
    }

    #[test]
    fn signatures_go() {
        let mark = b"~Module signature appended~\n";
        let signed = |length: u32| [&b"module"[..], b"sig", &[0; 8], &length.to_be_bytes(), mark].concat();
        for (length, expected) in [(3, b"module".to_vec()), (4, b"modul".to_vec()), (100, signed(100))] {
            let mut module = signed(length);
            drop_signature(&mut module);
            assert_eq!(module, expected, "{length}");
        }
        for unsigned in [&b"module"[..], mark, b""] {
            let mut module = unsigned.to_vec();
            drop_signature(&mut module);
            assert_eq!(module, unsigned);
        }
    }

    #[test]
    fn packed_modules_are_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a-b.ko.zst");
        fs::write(&path, zstd::bulk::compress(b"module", 1).unwrap()).unwrap();
        assert_eq!(read(&path).unwrap(), b"module");
        assert_eq!(module_name(&path).as_deref(), Some("a_b"));
        assert_eq!(module_name(Path::new("a.txt")), None);
    }

    proptest! {
        #[test]
        fn broken_modules_never_panic(at in 0usize..300, value: u8, cut in 0usize..400) {
            let mut bytes = module("a,b");
            let len = bytes.len();
            bytes[at % len] = value;
            bytes.truncate(cut);
            let _ = depends(&bytes);
        }
    }
}
