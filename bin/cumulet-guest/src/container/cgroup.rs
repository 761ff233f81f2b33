//! Control groups inside the guest (version 2).
//!
//! ```text
//!   /            the agent
//!   ├ pod        frozen as a whole
//!   │ └ <container>-<attempt>
//!   └ hook       what runs while the pod is frozen
//! ```

use crate::error::{Doing, Error};
use cumulet_guest_proto::message::ContainerStats;
use cumulet_guest_proto::spec::Resources;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const CONTROLLERS: [&str; 4] = ["+cpu", "+memory", "+pids", "+io"];

/// One group, by its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    /// The root of the hierarchy.
    pub(crate) fn root() -> Self {
        Self { dir: "/sys/fs/cgroup".into() }
    }

    /// The group of all containers.
    pub(crate) fn pod() -> Self {
        Self::root().below("pod")
    }

    /// The group of what is never frozen.
    pub(crate) fn hook() -> Self {
        Self::root().below("hook")
    }

    pub(crate) fn below(&self, name: &str) -> Self {
        Self { dir: self.dir.join(name) }
    }

    /// Makes the groups that every guest has. A controller that the kernel lacks is only told.
    pub(crate) fn prepare() -> Result<Vec<String>, Error> {
        let mut problems = vec![];
        for group in [Self::root(), Self::pod(), Self::hook()] {
            group.create()?;
            if group == Self::hook() {
                continue;
            }
            for controller in CONTROLLERS {
                if let Err(error) = group.write("cgroup.subtree_control", controller) {
                    problems.push(format!("no cgroup controller {}: {error}", &controller[1..]));
                }
            }
        }
        Ok(problems)
    }

    pub(crate) fn create(&self) -> Result<(), Error> {
        match fs::create_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
        .doing(|| format!("make cgroup {}", self.dir.display()))
    }

    /// The directory, to make a process in it.
    pub(crate) fn open(&self) -> Result<File, Error> {
        File::open(&self.dir).doing(|| format!("open cgroup {}", self.dir.display()))
    }

    /// Sets the limits. A limit that is asked for and cannot be set is an error.
    pub(crate) fn limit(&self, resources: &Resources) -> Result<(), Error> {
        for (file, value) in settings(resources) {
            self.write(file, &value).doing(|| format!("set {file} to {value}"))?;
        }
        // A container that exceeds its limit is killed as a whole, as Kubernetes has it on version 2. The files are
        // missing where the kernel has no such controller, and then there is no such limit either.
        if resources.memory_limit_bytes.is_some() {
            for (file, value) in [("memory.oom.group", "1"), ("memory.swap.max", "0")] {
                let _ = self.write(file, value);
            }
        }
        Ok(())
    }

    /// Kills every process in it.
    pub(crate) fn kill(&self) -> Result<(), Error> {
        self.write("cgroup.kill", "1").doing(|| format!("kill cgroup {}", self.dir.display()))
    }

    /// Removes it; false while there is still a process.
    pub(crate) fn remove(&self) -> bool {
        match fs::remove_dir(&self.dir) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Freezes or thaws it, and waits until it stands still or moves.
    pub(crate) fn set_frozen(&self, frozen: bool, limit: Duration) -> Result<(), Error> {
        let word = if frozen { "1" } else { "0" };
        let what = || format!("{} the containers", if frozen { "freeze" } else { "thaw" });
        let events = File::open(self.dir.join("cgroup.events")).doing(what)?;
        let deadline = Instant::now() + limit;
        self.write("cgroup.freeze", word).doing(what)?;
        loop {
            // Reading also arms the notification that is polled for, so that none is missed.
            (&events).rewind().doing(what)?;
            let mut text = String::new();
            (&events).read_to_string(&mut text).doing(what)?;
            if flat(&text).get("frozen") == Some(&u64::from(frozen)) {
                return Ok(());
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Err(Error::Timeout(format!("cannot {} in {} ms", what(), limit.as_millis())));
            };
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout).doing(what)?;
        }
    }

    /// How often the kernel killed one of its processes for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.flat("memory.events").get("oom_kill").copied().unwrap_or(0)
    }

    /// What it uses.
    pub(crate) fn stats(&self) -> ContainerStats {
        let usage = self.number("memory.current");
        let inactive = self.flat("memory.stat").get("inactive_file").copied().unwrap_or(0);
        ContainerStats {
            cpu_usage_us: self.flat("cpu.stat").get("usage_usec").copied().unwrap_or(0),
            memory_usage_bytes: usage,
            memory_working_set_bytes: usage.saturating_sub(inactive),
            processes: self.number("pids.current"),
            oom_kills: self.oom_kills(),
        }
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        fs::write(self.dir.join(file), value)
    }

    fn number(&self, file: &str) -> u64 {
        let text = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    fn flat(&self, file: &str) -> BTreeMap<String, u64> {
        flat(&fs::read_to_string(self.dir.join(file)).unwrap_or_default())
    }
}

/// A file of lines `name value`.
pub(crate) fn flat(text: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// Files of a group, and what to write into them.
fn settings(resources: &Resources) -> Vec<(&'static str, String)> {
    let mut all = vec![];
    all.extend(resources.memory_limit_bytes.map(|bytes| ("memory.max", bytes.to_string())));
    all.extend(resources.cpu_shares.map(|shares| ("cpu.weight", weight(shares).to_string())));
    all.extend(resources.cpu_quota_us.map(|quota| ("cpu.max", format!("{quota} 100000"))));
    all.extend(resources.pids_limit.map(|limit| ("pids.max", limit.to_string())));
    all
}

/// The kernel's scale 2…262144 of version 1 on the scale 1…10000 of version 2, as the container runtimes map it.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_files() {
        let resources = Resources {
            memory_limit_bytes: Some(1 << 20),
            cpu_shares: Some(1024),
            cpu_quota_us: Some(50_000),
            pids_limit: None,
            oom_score_adj: Some(5),
        };
        let expected = [("memory.max", "1048576"), ("cpu.weight", "39"), ("cpu.max", "50000 100000")];
        assert_eq!(settings(&resources), expected.map(|(file, value)| (file, value.to_owned())));
        assert_eq!((weight(0), weight(2), weight(262_144), weight(u64::MAX)), (1, 1, 10_000, 10_000));
    }

    #[test]
    fn flat_files() {
        let parsed = flat("populated 1\nfrozen 0\nbroken\nx y\n");
        assert_eq!(parsed, BTreeMap::from([("populated".to_owned(), 1), ("frozen".to_owned(), 0)]));
    }
}
