//! Version 1 hierarchies.

use super::{CPU_PERIOD_US, CgroupError, Result, Usage, io_error, keyed, number, write};
use crate::spec::Resources;
use std::fs;
use std::path::{Path, PathBuf};

/// Controllers of version 1 that Cumulet's groups live in; named hierarchies (systemd's) are left alone.
pub(super) const CONTROLLERS: [&str; 12] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "blkio",
    "freezer",
    "pids",
];

pub(super) fn create(controllers: &[String], root: &Path, name: &str) -> Result<()> {
    let cpuset = controllers.iter().any(|c| c == "cpuset");
    let leaf = root.join(name.trim_start_matches('/'));
    if !cpuset {
        return fs::create_dir_all(&leaf).map_err(io_error("create", &leaf));
    }
    let mut dir = root.to_owned();
    for part in name.trim_start_matches('/').split('/') {
        let child = dir.join(part);
        fs::create_dir_all(&child).map_err(io_error("create", &child))?;
        // A new cpuset is empty, and no process can enter it before it has CPUs and memory nodes.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let inherited = fs::read_to_string(dir.join(file)).unwrap_or_default();
            let own = fs::read_to_string(child.join(file)).unwrap_or_default();
            if own.trim().is_empty() && !inherited.trim().is_empty() {
                write(&child.join(file), inherited.trim())?;
            }
        }
        dir = child;
    }
    Ok(())
}

pub(super) fn limit(directory: impl Fn(&str) -> Option<PathBuf>, resources: &Resources) -> Result<()> {
    let set = |controller: &str, file: &str, value: String| match directory(controller) {
        Some(dir) => write(&dir.join(file), &value),
        None => Err(CgroupError::NoHierarchy),
    };
    if let Some(bytes) = resources.memory_limit_bytes {
        set("memory", "memory.limit_in_bytes", bytes.to_string())?;
        // Swap on top of the memory limit would make the limit soft. The file is missing when the kernel does not
        // account swap.
        let _ = set("memory", "memory.memsw.limit_in_bytes", bytes.to_string());
    }
    if let Some(shares) = resources.cpu_shares {
        set("cpu", "cpu.shares", shares.max(2).to_string())?;
    }
    if let Some(quota) = resources.cpu_quota_us {
        set("cpu", "cpu.cfs_period_us", CPU_PERIOD_US.to_string())?;
        set("cpu", "cpu.cfs_quota_us", quota.to_string())?;
    }
    if let Some(most) = resources.pids_limit {
        set("pids", "pids.max", if most > 0 { most.to_string() } else { "max".into() })?;
    }
    Ok(())
}

pub(super) fn usage(directory: impl Fn(&str) -> Option<PathBuf>) -> Usage {
    let read = |controller: &str, file: &str| directory(controller).and_then(|dir| number(&dir.join(file)));
    let memory_bytes = read("memory", "memory.usage_in_bytes").unwrap_or(0);
    let cache = directory("memory").and_then(|dir| keyed(&dir.join("memory.stat"), "total_inactive_file"));
    Usage {
        memory_bytes,
        memory_working_set_bytes: memory_bytes.saturating_sub(cache.unwrap_or(0)),
        cpu_ns: read("cpuacct", "cpuacct.usage").unwrap_or(0),
        pids: read("pids", "pids.current").unwrap_or(0),
    }
}
