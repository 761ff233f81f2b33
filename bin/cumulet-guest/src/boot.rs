//! From the kernel's first process to a system on which pods can run: modules, a root that can be left, mounts.
//!
//! The initial RAM file system cannot be a process's pivoted-away root, so the agent moves to a tmpfs first. What it
//! leaves behind is deleted, since it would be memory that never comes back.

use crate::error::{Doing, Error};
use crate::sys;
use nix::mount::{MsFlags, mount};
use std::ffi::CString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// The list of modules in the initramfs, in load order, one path per line; parameters may follow after a space.
const MODULE_ORDER: &str = "/modules/order";
const NEW_ROOT: &str = "/sysroot";

/// A mount of the agent's own.
struct Mount {
    kind: &'static str,
    at: &'static str,
    flags: MsFlags,
    options: &'static str,
}

const fn plain(kind: &'static str, at: &'static str, options: &'static str) -> Mount {
    let flags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
    Mount { kind, at, flags, options }
}

/// What is mounted below the root, in order.
const MOUNTS: [Mount; 8] = [
    plain("proc", "/proc", ""),
    plain("sysfs", "/sys", ""),
    plain("cgroup2", "/sys/fs/cgroup", "nsdelegate"),
    Mount { kind: "devtmpfs", at: "/dev", flags: MsFlags::MS_NOSUID, options: "mode=755" },
    Mount {
        kind: "devpts",
        at: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        options: "newinstance,ptmxmode=0666,mode=0620,gid=5",
    },
    plain("mqueue", "/dev/mqueue", ""),
    plain("tmpfs", "/dev/shm", "mode=1777,size=64m"),
    // Holds root file systems when there is no scratch disk, so programs and devices must be possible.
    Mount { kind: "tmpfs", at: "/run", flags: MsFlags::MS_NOATIME, options: "mode=755" },
];

/// Kernel parameters of every guest: (file below /proc/sys, value).
const PARAMETERS: [(&str, &str); 3] = [
    // A guest that is broken ends; the host starts another one.
    ("kernel/panic", "-1"),
    ("kernel/panic_on_oops", "1"),
    // As every container engine has it.
    ("net/ipv4/ping_group_range", "0 2147483647"),
];

/// Makes the system ready. Goes on without what is not essential; those problems are returned.
///
/// # Errors
/// Without proc, sysfs, /dev, cgroups or /run nothing can work.
pub(crate) fn prepare() -> Result<Vec<String>, Error> {
    let mut problems = load_modules(Path::new(MODULE_ORDER));
    switch_root()?;
    for (file, value) in PARAMETERS {
        if let Err(error) = fs::write(Path::new("/proc/sys").join(file), value) {
            problems.push(format!("cannot set {file}: {error}"));
        }
    }
    // The kernel must find anybody else to kill.
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
        problems.push(format!("cannot set oom_score_adj: {error}"));
    }
    Ok(problems)
}

fn load_modules(order: &Path) -> Vec<String> {
    let text = match fs::read_to_string(order) {
        Ok(text) => text,
        // A kernel may have everything built in.
        Err(error) if error.kind() == ErrorKind::NotFound => return vec![],
        Err(error) => return vec![format!("cannot read {}: {error}", order.display())],
    };
    let load = |line: &str| -> std::io::Result<()> {
        let (path, parameters) = line.split_once(' ').unwrap_or((line, ""));
        let path = Path::new("/modules").join(path);
        let compressed = path.extension().is_some_and(|e| e != "ko");
        let parameters = CString::new(parameters)?;
        match sys::load_module(&fs::File::open(path)?, &parameters, compressed) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            result => result,
        }
    };
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .filter_map(|line| load(line).err().map(|error| format!("cannot load module {line}: {error}")))
        .collect()
}

fn switch_root() -> Result<(), Error> {
    let flags = MsFlags::MS_NOATIME;
    make_dir(NEW_ROOT)?;
    mount(Some("tmpfs"), NEW_ROOT, Some("tmpfs"), flags, Some("mode=755,size=16m"))
        .doing(|| "mount the new root".to_owned())?;
    for Mount { kind, at, flags, options } in &MOUNTS {
        let at = format!("{NEW_ROOT}{at}");
        make_dir(&at)?;
        mount(Some(*kind), at.as_str(), Some(*kind), *flags, Some(*options))
            .doing(|| format!("mount {kind}"))?;
    }
    // Not needed any more, and memory otherwise.
    let _ = fs::remove_dir_all("/modules");
    let _ = fs::remove_file("/init");
    let move_it = || -> nix::Result<()> {
        nix::unistd::chdir(NEW_ROOT)?;
        mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
        nix::unistd::chroot(".")?;
        nix::unistd::chdir("/")
    };
    move_it().doing(|| "move to the new root".to_owned())
}

fn make_dir(path: &str) -> Result<(), Error> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.doing(|| format!("make {path}"))
}
