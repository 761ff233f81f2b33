//! A container's file system: the overlay, what every container finds mounted, its volumes, and what is hidden.
//!
//! Runs in the child, in a mount namespace of its own; what fails here ends the child. Destinations are resolved
//! inside the new root by the kernel, so that an image cannot direct a mount elsewhere.
//!
//! No file system that a container can write allows devices (`nodev`), and those that it has are bind mounts of the
//! agent's: the right to make device nodes, which containers have by default, so opens none of the guest's, above all
//! not the channel to the host.

use super::rootfs::{Place, Tree, checked};
use crate::error::{Doing, Error};
use crate::sys;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mknod};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// Paths that tell or change things of the machine; hidden. The same list as for container pods.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Paths that can be read but not written.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Devices of every container.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// What a container's file system is made of; paths are the agent's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    /// Mounted images, lowest first.
    pub(crate) images: Vec<PathBuf>,
    /// An empty directory for the writable layer.
    pub(crate) writable: PathBuf,
    pub(crate) read_only_root: bool,
    pub(crate) privileged: bool,
    /// Hide nothing in /proc.
    pub(crate) unmasked: bool,
    pub(crate) binds: Vec<Bind>,
    /// Device nodes of the agent's, and where they are to be.
    pub(crate) devices: Vec<(PathBuf, String)>,
    /// Working directory, made when missing.
    pub(crate) cwd: String,
    /// The file that stands in for the kernel's boot_id.
    pub(crate) boot_id: Option<PathBuf>,
}

/// One bind mount.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bind {
    /// Directory or file.
    pub(crate) source: PathBuf,
    /// A path in the tree `source`, which is not trusted; all of it when empty.
    pub(crate) sub_path: String,
    /// Absolute path in the container.
    pub(crate) destination: String,
    pub(crate) read_only: bool,
    /// Only where the image has such a file.
    pub(crate) only_over_existing: bool,
}

/// Makes all of it and leaves the old root.
pub(super) fn enter(layout: &Layout) -> Result<(), Error> {
    let none = None::<&str>;
    // Nothing that happens here reaches the agent.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).doing(|| "detach mounts".to_owned())?;
    let root = overlay(layout)?;
    let tree = Tree::open(&root).doing(|| "open the root file system".to_owned())?;
    standard(&tree, layout.privileged)?;
    devices(&tree, layout)?;
    for wanted in &layout.binds {
        bind(&tree, wanted)?;
    }
    if let Some(cwd) = checked(&layout.cwd).filter(|cwd| tree.at(cwd).is_err()) {
        tree.make_dir(cwd).doing(|| format!("make the working directory {}", layout.cwd))?;
    }
    if let Some(file) = &layout.boot_id {
        let destination = "/proc/sys/kernel/random/boot_id".to_owned();
        bind(&tree, &Bind { source: file.clone(), destination, read_only: true, ..Bind::default() })?;
    }
    if !layout.privileged && !layout.unmasked {
        hide(&tree)?;
    }
    leave_for(&root)?;
    if layout.read_only_root {
        let tree = Tree::open(Path::new("/")).doing(|| "open the root".to_owned())?;
        let place = tree.at(Path::new("/")).doing(|| "open the root".to_owned())?;
        read_only(&place, false)?;
    }
    Ok(())
}

/// The writable layer over the images. It is volatile: it does not survive its container, so `fsync` costs nothing.
fn overlay(layout: &Layout) -> Result<PathBuf, Error> {
    if layout.images.is_empty() {
        return Err(Error::Invalid("a container without an image".to_owned()));
    }
    let [upper, work, root] = ["upper", "work", "root"].map(|name| layout.writable.join(name));
    for dir in [&upper, &work, &root] {
        fs::create_dir_all(dir).doing(|| format!("make {}", dir.display()))?;
    }
    let lower: Vec<String> = layout.images.iter().rev().map(|path| path.display().to_string()).collect();
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
    let volatile = format!("{options},volatile");
    let flags = no_devices(layout.privileged);
    let try_mount = |options: &str| mount(Some("overlay"), &root, Some("overlay"), flags, Some(options));
    // Kernels before 5.10 do not know the option.
    try_mount(&volatile)
        .or_else(|_| try_mount(&options))
        .doing(|| "mount the container's overlay".to_owned())?;
    Ok(root)
}

fn no_devices(privileged: bool) -> MsFlags {
    if privileged { MsFlags::empty() } else { MsFlags::MS_NODEV }
}

fn standard(tree: &Tree, privileged: bool) -> Result<(), Error> {
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let system = if privileged { strict } else { strict | MsFlags::MS_RDONLY };
    let dev = MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME | no_devices(privileged);
    let mounts = [
        ("proc", "/proc", strict, ""),
        ("tmpfs", "/dev", dev, "mode=755,size=65536k"),
        (
            "devpts",
            "/dev/pts",
            MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
            "newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        ("mqueue", "/dev/mqueue", strict, ""),
        ("sysfs", "/sys", system, ""),
        ("cgroup2", "/sys/fs/cgroup", system, "nsdelegate"),
    ];
    for (kind, at, flags, options) in mounts {
        let place = tree.make_dir(Path::new(at)).doing(|| format!("make {at}"))?;
        mount(Some(kind), &place.path(), Some(kind), flags, Some(options)).doing(|| format!("mount {at}"))?;
    }
    // Shared by the pod, like the IPC namespace.
    bind(tree, &Bind { source: "/dev/shm".into(), destination: "/dev/shm".to_owned(), ..Bind::default() })
}

fn devices(tree: &Tree, layout: &Layout) -> Result<(), Error> {
    for name in DEVICES {
        let (source, destination) = (Path::new("/dev").join(name), format!("/dev/{name}"));
        bind(tree, &Bind { source, destination, ..Bind::default() })?;
    }
    let open = tree.at(Path::new("/dev")).doing(|| "open /dev".to_owned())?;
    let dev = open.path();
    for (name, target) in LINKS {
        symlink(target, dev.join(name)).doing(|| format!("make /dev/{name}"))?;
    }
    if layout.privileged {
        for (name, kind, number) in all_devices() {
            // One that is there already stays.
            let _ = mknod(&dev.join(name), kind, Mode::from_bits_truncate(0o660), number);
        }
    }
    for (source, destination) in &layout.devices {
        bind(tree, &Bind { source: source.clone(), destination: destination.clone(), ..Bind::default() })?;
    }
    Ok(())
}

/// The agent's own device nodes, for privileged containers.
fn all_devices() -> Vec<(String, SFlag, u64)> {
    use std::os::unix::fs::FileTypeExt;
    let of = |entry: fs::DirEntry| {
        let found = entry.metadata().ok()?;
        let kind = match found.file_type() {
            t if t.is_char_device() => SFlag::S_IFCHR,
            t if t.is_block_device() => SFlag::S_IFBLK,
            _ => return None,
        };
        Some((entry.file_name().into_string().ok()?, kind, found.rdev()))
    };
    fs::read_dir("/dev").into_iter().flatten().flatten().filter_map(of).collect()
}

fn not_plain(destination: &str) -> Error {
    Error::Invalid(format!("mount path {destination:?} must be absolute and without .."))
}

fn bind(tree: &Tree, wanted: &Bind) -> Result<(), Error> {
    let Bind { source, sub_path, destination, .. } = wanted;
    let path = checked(destination).ok_or_else(|| not_plain(destination))?;
    let from = source_of(source, sub_path)?;
    let what = || format!("mount {destination}");
    let is_dir = from.is_dir().doing(what)?;
    if wanted.only_over_existing && tree.at(path).is_err() {
        return Ok(());
    }
    let onto = if is_dir { tree.make_dir(path) } else { tree.make_file(path) }.doing(what)?;
    let none = None::<&str>;
    mount(Some(&from.path()), &onto.path(), none, MsFlags::MS_BIND | MsFlags::MS_REC, none).doing(what)?;
    if wanted.read_only {
        // The path leads to the new mount now.
        read_only(&tree.at(path).doing(what)?, true)?;
    }
    Ok(())
}

/// Opens what is to be mounted. A missing sub-path becomes a directory with the volume's own mode, as the kubelet has it.
fn source_of(source: &Path, sub_path: &str) -> Result<Place, Error> {
    let what = || format!("open mount source {} {sub_path}", source.display());
    if sub_path.is_empty() {
        let parent = Tree::open(source.parent().unwrap_or(source)).doing(what)?;
        return parent.at(Path::new(source.file_name().unwrap_or_default())).doing(what);
    }
    let inside = format!("/{sub_path}");
    let path = checked(&inside)
        .ok_or_else(|| Error::Invalid(format!("subPath {sub_path:?} is not inside the volume")))?;
    let tree = Tree::open(source).doing(what)?;
    tree.at(path).or_else(|_| tree.make_dir_like_root(path)).doing(what)
}

fn read_only(place: &Place, recursive: bool) -> Result<(), Error> {
    use std::os::fd::AsFd;
    sys::set_mount_attributes(place.as_fd(), libc::MOUNT_ATTR_RDONLY, recursive)
        .doing(|| "make a mount read-only".to_owned())
}

fn hide(tree: &Tree) -> Result<(), Error> {
    let none = None::<&str>;
    for path in MASKED {
        let Ok(place) = tree.at(Path::new(path)) else { continue };
        let what = || format!("hide {path}");
        if place.is_dir().doing(what)? {
            let flags = MsFlags::MS_RDONLY;
            mount(Some("tmpfs"), &place.path(), Some("tmpfs"), flags, Some("size=0k")).doing(what)?;
        } else {
            mount(Some("/dev/null"), &place.path(), none, MsFlags::MS_BIND, none).doing(what)?;
        }
    }
    for path in READ_ONLY {
        let Ok(place) = tree.at(Path::new(path)) else { continue };
        let what = || format!("protect {path}");
        mount(Some(&place.path()), &place.path(), none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
            .doing(what)?;
        read_only(&tree.at(Path::new(path)).doing(what)?, true)?;
    }
    Ok(())
}

/// Makes `root` the root of this process and its mount namespace; the agent's tree is out of reach afterwards.
fn leave_for(root: &Path) -> Result<(), Error> {
    let go = || -> nix::Result<()> {
        nix::unistd::chdir(root)?;
        nix::unistd::pivot_root(".", ".")?;
        // The old root lies over the new one now.
        umount2(".", MntFlags::MNT_DETACH)?;
        nix::unistd::chdir("/")
    };
    go().doing(|| "enter the root file system".to_owned())
}
