//! The guests' kernel: a distribution's, out of its package, never installed as the host's.
//!
//! ```text
//!   DIR/RELEASE/vmlinuz         as the package has it
//!   DIR/RELEASE/vmlinux         unpacked, with a PVH entry (absent when that cannot be had)
//!   DIR/RELEASE/modules/*.ko    those that guests load, unpacked
//!   DIR/RELEASE/manifest.json   their digests and the order in which they load
//!   DIR/current                 a link to RELEASE
//! ```
//!
//! A directory appears whole or not at all. Who fetched the package checked its signature; the digests find what
//! changed on the disk since.

mod image;
mod lz4;
mod modules;

use crate::Error;
use crate::error::file;
use crate::files::{Aside, sha256, sha256_file, sweep, write};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const MANIFEST: &str = "manifest.json";
const PACKED: &str = "vmlinuz";
const UNPACKED: &str = "vmlinux";
/// No kernel image is larger.
const IMAGE_LIMIT: u64 = 256 << 20;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Manifest {
    /// Layout of the directory.
    version: u32,
    release: String,
    /// Digest of `vmlinuz`.
    packed: String,
    /// Digest of `vmlinux`, or why there is none.
    unpacked: Result<String, String>,
    /// In the order in which they load.
    modules: Vec<ModuleEntry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct ModuleEntry {
    name: String,
    digest: String,
}

const LAYOUT: u32 = 1;

/// An installed kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    dir: PathBuf,
    manifest: Manifest,
    digest: String,
}

impl Kernel {
    /// Takes a kernel out of a package file (`.deb`) or an unpacked tree into `dir`, and makes it the current one. One
    /// that is there already is left as it is.
    ///
    /// # Errors
    /// The package cannot be unpacked, or lacks the kernel or a module that guests need.
    pub fn install(source: &Path, dir: &Path) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(file("make", dir))?;
        sweep(dir);
        let unpacked;
        let tree = if source.is_dir() {
            source
        } else {
            unpacked = Aside::dir(dir)?;
            unpack_package(source, unpacked.path())?;
            unpacked.path()
        };
        let (release, image, modules) = find(tree)?;
        let target = dir.join(&release);
        if Self::read(&target).and_then(|kernel| kernel.verify()).is_err() {
            let aside = Aside::dir(dir)?;
            fill(aside.path(), &release, &image, &modules)?;
            // What is there does not fit its manifest, or is no kernel.
            let _ = fs::remove_dir_all(&target);
            aside.publish(&target)?;
        }
        let link = Aside::name(dir);
        std::os::unix::fs::symlink(&release, link.path()).map_err(file("link", link.path()))?;
        link.publish(&dir.join("current"))?;
        Self::open(dir)
    }

    /// The current kernel of this directory, or the kernel whose own directory it is.
    ///
    /// # Errors
    /// There is none, or it is incomplete.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        if dir.join(MANIFEST).is_file() {
            return Self::read(dir);
        }
        let current = fs::canonicalize(dir.join("current")).map_err(|_| Error::Kernel {
            path: dir.to_owned(),
            reason: "no kernel is installed: install one from a package linux-image-…-cloud-amd64".to_owned(),
        })?;
        Self::read(&current)
    }

    fn read(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(MANIFEST);
        let bytes = fs::read(&path).map_err(file("read", &path))?;
        let wrong = |reason: String| Error::Kernel { path: path.clone(), reason };
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        if manifest.version != LAYOUT {
            return Err(wrong(format!("layout {}, want {LAYOUT}: install it again", manifest.version)));
        }
        let kernel = Self { dir: dir.to_owned(), digest: sha256(&bytes), manifest };
        for (path, _) in kernel.files() {
            if !path.is_file() {
                return Err(Error::Kernel {
                    path,
                    reason: "is missing: install the kernel again".to_owned(),
                });
            }
        }
        Ok(kernel)
    }

    /// Reads everything and compares digests; about a tenth of a second.
    ///
    /// # Errors
    /// Something has changed since the installation.
    pub fn verify(&self) -> Result<(), Error> {
        for (path, digest) in self.files() {
            if sha256_file(&path)? != digest {
                return Err(Error::Kernel {
                    path,
                    reason: "has changed: install the kernel again".to_owned(),
                });
            }
        }
        Ok(())
    }

    /// The kernel's release, as `uname -r` gives it in the guest.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.manifest.release
    }

    /// Identity of kernel and modules: hexadecimal SHA-256.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// What QEMU starts: the unpacked kernel where there is one.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.dir.join(if self.manifest.unpacked.is_ok() { UNPACKED } else { PACKED })
    }

    /// Why starts take longer than they could: no unpacked kernel, and for what reason.
    #[must_use]
    pub fn slow_because(&self) -> Option<&str> {
        self.manifest.unpacked.as_ref().err().map(String::as_str)
    }

    /// Modules in the order in which they load: name and file.
    pub fn modules(&self) -> impl Iterator<Item = (&str, PathBuf)> {
        self.manifest.modules.iter().map(|m| (m.name.as_str(), self.module_path(&m.name)))
    }

    fn module_path(&self, name: &str) -> PathBuf {
        self.dir.join("modules").join(format!("{name}.ko"))
    }

    /// All files with their digests.
    fn files(&self) -> Vec<(PathBuf, &str)> {
        let mut files = vec![(self.dir.join(PACKED), self.manifest.packed.as_str())];
        files.extend(self.manifest.unpacked.as_ref().ok().map(|d| (self.dir.join(UNPACKED), d.as_str())));
        files.extend(self.manifest.modules.iter().map(|m| (self.module_path(&m.name), m.digest.as_str())));
        files
    }
}

/// Unpacks a `.deb` with the machine's own tool, without installing it.
fn unpack_package(package: &Path, into: &Path) -> Result<(), Error> {
    let output = Command::new("dpkg-deb").arg("-x").arg(package).arg(into).output().map_err(|source| {
        Error::MissingProgram { program: "dpkg-deb".to_owned(), package: "dpkg", source }
    })?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Program { program: "dpkg-deb".to_owned(), message })
}

/// Finds the release, its image and its modules in a package's tree.
fn find(tree: &Path) -> Result<(String, PathBuf, PathBuf), Error> {
    let wrong = |reason: String| Error::Kernel { path: tree.to_owned(), reason };
    let boot = tree.join("boot");
    let mut releases: Vec<String> = fs::read_dir(&boot)
        .map_err(file("read", &boot))?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("vmlinuz-").map(str::to_owned))
        .filter(|release| release.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b)))
        .collect();
    releases.sort_unstable();
    let release = releases.pop().ok_or_else(|| wrong("no boot/vmlinuz-… in it".to_owned()))?;
    let modules = ["lib/modules", "usr/lib/modules"]
        .iter()
        .map(|dir| tree.join(dir).join(&release))
        .find(|dir| dir.join("kernel").is_dir())
        .ok_or_else(|| wrong(format!("no modules for {release} in it")))?;
    let image = boot.join(format!("vmlinuz-{release}"));
    Ok((release, image, modules))
}

/// Writes a kernel's directory.
fn fill(into: &Path, release: &str, image: &Path, modules: &Path) -> Result<(), Error> {
    let size = fs::metadata(image).map_err(file("look at", image))?.len();
    if size > IMAGE_LIMIT {
        return Err(Error::Kernel { path: image.to_owned(), reason: format!("{size} bytes") });
    }
    let packed = fs::read(image).map_err(file("read", image))?;
    write(&into.join(PACKED), &packed)?;
    let unpacked = image::unpack(&packed);
    if let Ok(unpacked) = &unpacked {
        write(&into.join(UNPACKED), unpacked)?;
    }
    let target = into.join("modules");
    fs::create_dir(&target).map_err(file("make", &target))?;
    let mut entries = Vec::new();
    for module in modules::Tree::read(modules)?.closure()? {
        write(&target.join(format!("{}.ko", module.name)), &module.contents)?;
        entries.push(ModuleEntry { digest: sha256(&module.contents), name: module.name });
    }
    let manifest = Manifest {
        version: LAYOUT,
        release: release.to_owned(),
        packed: sha256(&packed),
        unpacked: unpacked.map(|u| sha256(&u)),
        modules: entries,
    };
    let path = into.join(MANIFEST);
    let bytes = serde_json::to_vec_pretty(&manifest)
        .map_err(|e| Error::Kernel { path: path.clone(), reason: e.to_string() })?;
    write(&path, &bytes)
}

#[cfg(test)]
mod tests;
