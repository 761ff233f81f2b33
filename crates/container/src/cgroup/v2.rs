//! The version 2 hierarchy.

use super::{CPU_PERIOD_US, Result, Usage, io_error, keyed, number, write};
use crate::spec::Resources;
use std::fs;
use std::path::Path;

/// Controllers that limits need.
const CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "cpuset", "io"];

pub(super) fn create(root: &Path, name: &str) -> Result<()> {
    let mut dir = root.to_owned();
    for part in name.trim_start_matches('/').split('/') {
        enable(&dir);
        dir.push(part);
        match fs::create_dir(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(io_error("create", &dir)(e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Passes the controllers on to the children. One that is not available is not missed before a limit needs it.
fn enable(dir: &Path) {
    let enabled = fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
    for controller in CONTROLLERS {
        if !enabled.split_whitespace().any(|e| e == controller) {
            let _ = write(&dir.join("cgroup.subtree_control"), &format!("+{controller}"));
        }
    }
}

pub(super) fn limit(dir: &Path, resources: &Resources) -> Result<()> {
    let set = |file: &str, value: String| write(&dir.join(file), &value);
    if let Some(bytes) = resources.memory_limit_bytes {
        set("memory.max", bytes.to_string())?;
        // Missing when the kernel does not account swap.
        let _ = set("memory.swap.max", "0".into());
    }
    if let Some(shares) = resources.cpu_shares {
        set("cpu.weight", weight(shares).to_string())?;
    }
    if let Some(quota) = resources.cpu_quota_us {
        let quota = if quota > 0 { quota.to_string() } else { "max".into() };
        set("cpu.max", format!("{quota} {CPU_PERIOD_US}"))?;
    }
    if let Some(most) = resources.pids_limit {
        set("pids.max", if most > 0 { most.to_string() } else { "max".into() })?;
    }
    Ok(())
}

/// Maps version 1 shares (2 to 262144) onto version 2 weights (1 to 10000) as Kubernetes has always done it.
pub(super) fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

pub(super) fn usage(dir: &Path) -> Usage {
    let memory_bytes = number(&dir.join("memory.current")).unwrap_or(0);
    let cache = keyed(&dir.join("memory.stat"), "inactive_file").unwrap_or(0);
    Usage {
        memory_bytes,
        memory_working_set_bytes: memory_bytes.saturating_sub(cache),
        cpu_ns: keyed(&dir.join("cpu.stat"), "usage_usec").unwrap_or(0).saturating_mul(1000),
        pids: number(&dir.join("pids.current")).unwrap_or(0),
    }
}
