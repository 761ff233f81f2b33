//! Control groups by name, on version 1, hybrid and version 2 machines.
//!
//! A [`Cgroup`] is only a name such as `/cumulet-1a2b/pod<uid>/<container>`, relative to the root of each hierarchy;
//! nothing is held open, so any process can find the groups of a dead supervisor again by name. On version 1 (and
//! hybrid, which is version 1 with an empty version 2 mount beside it) the same name exists once per hierarchy.
//!
//! Absent on purpose: systemd. Cumulet owns one top-level group per state directory and nothing else.

mod devices;
mod kill;
mod v1;
mod v2;

use crate::spec::Resources;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Period of CPU bandwidth control, in microseconds; quotas are per this period.
const CPU_PERIOD_US: u64 = 100_000;

/// What can go wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The name is not a clean absolute path.
    #[error("{0:?} is not a cgroup name")]
    Name(String),
    /// No usable hierarchy is mounted.
    #[error("no cgroup hierarchy is mounted")]
    NoHierarchy,
    /// A file or directory of the hierarchy.
    #[error("cgroup: cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Processes that do not go away.
    #[error("cgroup {0:?} still has processes")]
    Busy(String),
}

type Result<T> = std::result::Result<T, CgroupError>;

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    move |source| CgroupError::Io { what, path: path.to_owned(), source }
}

/// Where cgroups are mounted on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hierarchies {
    /// Version 2 alone.
    Unified {
        /// Mount point.
        root: PathBuf,
    },
    /// Version 1 controllers, perhaps with an empty version 2 hierarchy beside them.
    Legacy {
        /// Controllers (`memory`, or `cpu` and `cpuacct` when mounted together) and mount point of each hierarchy.
        mounts: Vec<(Vec<String>, PathBuf)>,
    },
}

impl Hierarchies {
    /// The hierarchies of this machine, looked up once per process.
    pub fn get() -> Result<&'static Self> {
        static FOUND: OnceLock<Option<Hierarchies>> = OnceLock::new();
        FOUND
            .get_or_init(|| Self::parse(&fs::read_to_string("/proc/self/mountinfo").ok()?))
            .as_ref()
            .ok_or(CgroupError::NoHierarchy)
    }

    fn parse(mountinfo: &str) -> Option<Self> {
        let mut mounts: Vec<(Vec<String>, PathBuf)> = Vec::new();
        let mut unified = None;
        for line in mountinfo.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let (Some(point), mut after) = (before.split(' ').nth(4), after.split(' ')) else { continue };
            let (kind, options) = (after.next().unwrap_or(""), after.nth(1).unwrap_or(""));
            match kind {
                "cgroup2" if unified.is_none() => unified = Some(PathBuf::from(point)),
                "cgroup" => {
                    let known = |o: &&str| v1::CONTROLLERS.contains(o);
                    let controllers: Vec<String> =
                        options.split(',').filter(known).map(str::to_owned).collect();
                    let seen = mounts.iter().any(|(c, _)| *c == controllers);
                    if !controllers.is_empty() && !seen {
                        mounts.push((controllers, PathBuf::from(point)));
                    }
                }
                _ => {}
            }
        }
        match (mounts.is_empty(), unified) {
            (false, _) => Some(Self::Legacy { mounts }),
            (true, Some(root)) => Some(Self::Unified { root }),
            (true, None) => None,
        }
    }

    /// True on a machine with version 2 alone.
    pub fn is_unified(&self) -> bool {
        matches!(self, Self::Unified { .. })
    }

    fn roots(&self) -> impl Iterator<Item = &Path> {
        let (one, many) = match self {
            Self::Unified { root } => (Some(root.as_path()), &[][..]),
            Self::Legacy { mounts } => (None, &mounts[..]),
        };
        one.into_iter().chain(many.iter().map(|(_, point)| point.as_path()))
    }

    fn controller(&self, name: &str) -> Option<&Path> {
        match self {
            Self::Unified { root } => Some(root),
            Self::Legacy { mounts } => {
                mounts.iter().find(|(c, _)| c.iter().any(|c| c == name)).map(|(_, point)| point.as_path())
            }
        }
    }
}

/// What a cgroup uses at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Memory without the file cache that can be dropped at once, in bytes (what Kubernetes calls working set).
    pub memory_working_set_bytes: u64,
    /// All memory, in bytes.
    pub memory_bytes: u64,
    /// CPU time used since the start, in nanoseconds.
    pub cpu_ns: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// A cgroup by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    name: String,
}

impl Cgroup {
    /// A cgroup's name: absolute, without empty, `.` or `..` parts, and not the root.
    pub fn new(name: &str) -> Result<Self> {
        let parts = name.strip_prefix('/').filter(|rest| !rest.is_empty() && name.len() < 1024);
        let clean = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\0', '\n']);
        match parts {
            Some(parts) if parts.split('/').all(clean) => Ok(Self { name: name.to_owned() }),
            _ => Err(CgroupError::Name(name.to_owned())),
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A cgroup below this one.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::new(&format!("{}/{name}", self.name))
    }

    fn below(&self, root: &Path) -> PathBuf {
        root.join(self.name.trim_start_matches('/'))
    }

    fn directory(&self, controller: &str) -> Option<PathBuf> {
        Some(self.below(Hierarchies::get().ok()?.controller(controller)?))
    }

    /// Creates the cgroup in every hierarchy, with its parents. Creating an existing one succeeds.
    pub fn create(&self) -> Result<()> {
        match Hierarchies::get()? {
            Hierarchies::Unified { root } => v2::create(root, &self.name),
            Hierarchies::Legacy { mounts } => {
                mounts.iter().try_for_each(|(controllers, point)| v1::create(controllers, point, &self.name))
            }
        }
    }

    /// Sets limits. A controller that the machine lacks is an error only when a limit needs it.
    pub fn limit(&self, resources: &Resources) -> Result<()> {
        let found = Hierarchies::get()?;
        match found {
            Hierarchies::Unified { root } => v2::limit(&self.below(root), resources),
            Hierarchies::Legacy { .. } => v1::limit(|c| self.directory(c), resources),
        }
    }

    /// Allows only the devices that every container may use.
    pub fn restrict_devices(&self) -> Result<()> {
        match Hierarchies::get()? {
            Hierarchies::Unified { root } => devices::restrict_v2(&self.below(root)),
            Hierarchies::Legacy { .. } => match self.directory("devices") {
                Some(dir) => devices::restrict_v1(&dir),
                None => Ok(()),
            },
        }
    }

    /// Moves a process into the cgroup, in every hierarchy. 0 is the caller.
    pub fn add(&self, pid: i32) -> Result<()> {
        for root in Hierarchies::get()?.roots() {
            write(&self.below(root).join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// Moves the calling process, which has one thread, into the cgroup. On version 2 a process that was born there
    /// (`CLONE_INTO_CGROUP`) is not moved again.
    pub fn enter(&self) -> Result<()> {
        match Hierarchies::get()? {
            Hierarchies::Unified { root } => {
                let dir = self.below(root);
                let inside =
                    number_list(&dir.join("cgroup.procs")).contains(&std::process::id().cast_signed());
                if inside { Ok(()) } else { write(&dir.join("cgroup.procs"), "0") }
            }
            // A thread that moves itself does not need the lock that moving a process takes.
            Hierarchies::Legacy { mounts } => {
                mounts.iter().try_for_each(|(_, point)| write(&self.below(point).join("tasks"), "0"))
            }
        }
    }

    /// Moves the calling process to the root of every hierarchy, thread by thread where that is cheaper: a pool's idle
    /// threads may outlive what they were needed for by seconds.
    pub fn leave() -> Result<()> {
        match Hierarchies::get()? {
            Hierarchies::Unified { root } => write(&root.join("cgroup.procs"), "0"),
            Hierarchies::Legacy { mounts } => {
                let threads =
                    fs::read_dir("/proc/self/task").into_iter().flatten().filter_map(io::Result::ok);
                let threads: Vec<String> =
                    threads.map(|thread| thread.file_name().to_string_lossy().into_owned()).collect();
                for (_, point) in mounts {
                    for thread in &threads {
                        match write(&point.join("tasks"), thread) {
                            // It has ended meanwhile.
                            Err(CgroupError::Io { source, .. })
                                if source.raw_os_error() == Some(libc::ESRCH) => {}
                            result => result?,
                        }
                    }
                }
                Ok(())
            }
        }
    }

    /// The cgroup's directory on a machine with version 2 alone.
    pub(crate) fn unified_directory(&self) -> Result<Option<PathBuf>> {
        Ok(match Hierarchies::get()? {
            Hierarchies::Unified { root } => Some(self.below(root)),
            Hierarchies::Legacy { .. } => None,
        })
    }

    /// How often the kernel killed a process of this cgroup because of its memory limit.
    pub fn oom_kills(&self) -> u64 {
        let file = if Hierarchies::get().is_ok_and(Hierarchies::is_unified) {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        self.directory("memory").and_then(|dir| keyed(&dir.join(file), "oom_kill")).unwrap_or(0)
    }

    /// What the cgroup uses; zero where the machine does not tell.
    pub fn usage(&self) -> Usage {
        match Hierarchies::get() {
            Ok(Hierarchies::Unified { root }) => v2::usage(&self.below(root)),
            Ok(Hierarchies::Legacy { .. }) => v1::usage(|c| self.directory(c)),
            Err(_) => Usage::default(),
        }
    }

    /// Directories of this cgroup to show inside a container, and where below `/sys/fs/cgroup` (empty: there itself).
    pub fn views(&self) -> Vec<(PathBuf, String)> {
        const SHOWN: [&str; 5] = ["memory", "cpu", "cpuacct", "pids", "cpuset"];
        match Hierarchies::get() {
            Ok(Hierarchies::Unified { root }) => vec![(self.below(root), String::new())],
            Ok(Hierarchies::Legacy { mounts }) => mounts
                .iter()
                .filter(|(controllers, _)| controllers.iter().any(|c| SHOWN.contains(&c.as_str())))
                .map(|(controllers, point)| (self.below(point), controllers.join(",")))
                .collect(),
            Err(_) => Vec::new(),
        }
    }

    /// Processes of this cgroup and of those below it.
    pub fn processes(&self) -> Vec<i32> {
        kill::processes(self)
    }

    /// Sends KILL to every process of this cgroup and of those below it; they may still be dying on return.
    pub fn kill(&self) -> Result<()> {
        kill::kill(self)
    }

    /// Removes the cgroup and those below it, in every hierarchy. They must be empty. Removing what does not exist
    /// succeeds.
    pub fn remove(&self) -> Result<()> {
        kill::remove(self)
    }
}

/// Kills every process of a cgroup and removes it with everything below: what is done for a pod whose supervisor
/// died. Blocks until the processes are gone, some milliseconds in the usual case and two seconds at most.
pub fn kill_and_remove(name: &str) -> Result<()> {
    let cgroup = Cgroup::new(name)?;
    kill::kill_and_wait(&cgroup)?;
    cgroup.remove()
}

/// Moves the hierarchies of the calling process's own mount namespace from `/sys/fs/cgroup` to numbered directories
/// below `dir`, and leaves an empty tmpfs there. This module finds them by what they are, not by where they are, while
/// libcontainer does not find them and leaves processes in the cgroups where they were started (see
/// [`crate::launcher`]). To be called before anything else of this module.
pub fn conceal(dir: &Path) -> Result<()> {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    const USUAL: &str = "/sys/fs/cgroup";
    let text = fs::read_to_string("/proc/self/mountinfo")
        .map_err(io_error("read", Path::new("/proc/self/mountinfo")))?;
    let found = Hierarchies::parse(&text).ok_or(CgroupError::NoHierarchy)?;
    let none = None::<&str>;
    for (number, root) in found.roots().enumerate() {
        let at = dir.join(number.to_string());
        fs::create_dir_all(&at).map_err(io_error("create", &at))?;
        mount(Some(root), &at, none, MsFlags::MS_BIND, none)
            .map_err(|errno| io_error("bind a hierarchy to", &at)(errno.into()))?;
        umount2(root, MntFlags::MNT_DETACH).map_err(|errno| io_error("unmount", root)(errno.into()))?;
    }
    let usual = Path::new(USUAL);
    // Whatever else is there (systemd's hierarchy, the tmpfs) goes as one tree; nothing is fine too.
    let _ = umount2(usual, MntFlags::MNT_DETACH);
    mount(Some("tmpfs"), usual, Some("tmpfs"), MsFlags::MS_RDONLY, Some("size=0k"))
        .map_err(|errno| io_error("mount an empty directory at", usual)(errno.into()))
}

fn number_list(path: &Path) -> Vec<i32> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(io_error("write", path))
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number after `key` in a file of `key value` lines.
fn keyed(path: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.split(' ').next() == Some(key))?;
    line.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests;
