//! Root filesystem images: an image's layers merged into one erofs file, which all machines read.
//!
//! The layers are directories in overlayfs' own form (whiteouts as devices 0/0, opaque directories by attribute), so
//! the kernel merges them: a short-lived child mounts them in a mount namespace of its own and runs `mkfs.erofs` on
//! the result. Nothing is mounted where others could see it, and nothing is left when the child is killed.
//!
//! One file per digest, made once however many ask at the same time, also from several processes. Not compressed:
//! unpacking in the guest costs more than reading, in emulation by far.

use crate::Error;
use crate::error::file;
use crate::files::Aside;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Overlayfs takes no more.
const MAX_LAYERS: usize = 500;

/// The serial number of the disk that an image becomes: the first 20 hexadecimal digits of its digest.
#[must_use]
pub fn serial(digest: &str) -> String {
    hex(digest).chars().take(20).collect()
}

/// Where the image of this digest is or would be.
#[must_use]
pub fn path(dir: &Path, digest: &str) -> PathBuf {
    dir.join(format!("{}.erofs", hex(digest)))
}

/// Makes the image, or finds it; its path. `layers` go from the lowest to the highest. Blocks while somebody else makes
/// the same.
///
/// # Errors
/// The digest is none, a layer is missing, the merge cannot be mounted, or `mkfs.erofs` failed.
pub fn build(dir: &Path, digest: &str, layers: &[PathBuf]) -> Result<PathBuf, Error> {
    let wrong = |reason: String| Error::Image { digest: digest.to_owned(), reason };
    let name = hex(digest);
    if name.len() != 64 || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(wrong("no SHA-256 digest".to_owned()));
    }
    if layers.len() > MAX_LAYERS {
        return Err(wrong(format!("{} layers, more than {MAX_LAYERS}", layers.len())));
    }
    let target = path(dir, digest);
    if target.is_file() {
        return Ok(target);
    }
    fs::create_dir_all(dir).map_err(file("make", dir))?;
    // The lock ends with the process that holds it, so its file may stay; it is removed with success.
    let lock_path = dir.join(format!(".{name}.lock"));
    let lock = File::create(&lock_path).map_err(file("make", &lock_path))?;
    let _held = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, e)| file("lock", &lock_path)(io::Error::from(e)))?;
    if target.is_file() {
        return Ok(target);
    }
    crate::files::sweep(dir);
    let work = Aside::dir(dir)?;
    let image = work.path().join("image");
    run(work.path(), name, layers).map_err(wrong)?;
    // Read only for everybody: QEMU's user gets a descriptor, and nobody changes what others read.
    fs::set_permissions(&image, Permissions::from_mode(0o444)).map_err(file("protect", &image))?;
    File::open(&image).and_then(|f| f.sync_all()).map_err(file("flush", &image))?;
    fs::rename(&image, &target).map_err(file("publish", &target))?;
    let _ = fs::remove_file(&lock_path);
    Ok(target)
}

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

/// Runs `mkfs.erofs` in a child that sees the merged layers at `root`.
fn run(work: &Path, name: &str, layers: &[PathBuf]) -> Result<(), String> {
    let make = |dir: &str| fs::create_dir(work.join(dir)).map_err(|e| format!("make {dir}: {e}"));
    make("root")?;
    // Overlayfs wants two lower directories when it has no upper one.
    make("empty")?;
    make("empty-too")?;
    let mut names = vec!["empty".to_owned()];
    for (n, layer) in layers.iter().enumerate() {
        if !layer.is_dir() {
            return Err(format!("the layer {} is missing", layer.display()));
        }
        // Mount options must fit a page, so layers are named through short links.
        std::os::unix::fs::symlink(layer, work.join(n.to_string())).map_err(|e| format!("link: {e}"))?;
        names.push(n.to_string());
    }
    // Overlayfs names the highest first.
    names.reverse();
    let below = if names.len() == 1 { "empty:empty-too".to_owned() } else { names.join(":") };
    let options = CString::new(format!("lowerdir={below}")).map_err(|e| e.to_string())?;
    let mut command = Command::new("mkfs.erofs");
    command
        .args(["--quiet", "-U", &uuid(name), "image", "root"])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir(work)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // SAFETY: between fork and exec the closure only makes system calls on values that were prepared before; it neither
    // allocates nor takes locks. JUSTIFICATION: the only way to mount something for one child alone.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            merge(&options)
        });
    }
    let output = command.output().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => "mkfs.erofs is missing: install the package erofs-utils".to_owned(),
        _ => format!("cannot merge the layers: {e}"),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    Err(format!("mkfs.erofs failed: {}", last.chars().take(500).collect::<String>()))
}

/// Mounts the layers on `root` in the current directory, for this process alone.
fn merge(options: &CString) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&std::ffi::CStr> = None;
    mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some(c"overlay"), c"root", Some(c"overlay"), MsFlags::MS_RDONLY, Some(options.as_c_str()))?;
    Ok(())
}

/// The filesystem's identity, out of the digest: the same image has the same one.
fn uuid(name: &str) -> String {
    format!("{}-{}-{}-{}-{}", &name[..8], &name[8..12], &name[12..16], &name[16..20], &name[20..32])
}

#[cfg(test)]
mod tests;
