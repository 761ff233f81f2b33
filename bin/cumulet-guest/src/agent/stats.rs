//! What the guest and its containers use.

use super::Agent;
use super::containers::State;
use cumulet_guest_proto::message::{GuestStats, Stats};
use std::collections::BTreeMap;
use std::fs;

impl Agent {
    pub(super) fn stats(&self) -> Stats {
        let running = self.containers.iter().filter(|(_, c)| matches!(c.state, State::Running { .. }));
        Stats {
            guest: guest(),
            containers: running.map(|(name, c)| (name.clone(), c.cgroup.stats())).collect(),
        }
    }
}

fn guest() -> GuestStats {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let text = read("/proc/meminfo");
    let memory = memory(&text);
    let bytes = |name: &str| memory.get(name).copied().unwrap_or(0);
    let network =
        |name: &str| read(&format!("/sys/class/net/eth0/statistics/{name}")).trim().parse().unwrap_or(0);
    let mut stats = GuestStats {
        memory_total_bytes: bytes("MemTotal"),
        memory_available_bytes: bytes("MemAvailable"),
        memory_free_bytes: bytes("MemFree"),
        cpu_usage_us: busy_us(&read("/proc/stat")),
        network_rx_bytes: network("rx_bytes"),
        network_tx_bytes: network("tx_bytes"),
        ..GuestStats::default()
    };
    if let Ok(found) = nix::sys::statvfs::statvfs("/run/writable") {
        let block = found.fragment_size();
        stats.writable_total_bytes = found.blocks() * block;
        stats.writable_used_bytes = found.blocks().saturating_sub(found.blocks_free()) * block;
    }
    stats
}

/// `/proc/meminfo` in bytes.
fn memory(text: &str) -> BTreeMap<&str, u64> {
    let line = |line| {
        let (name, rest) = str::split_once(line, ':')?;
        let kib: u64 = rest.split_whitespace().next()?.parse().ok()?;
        Some((name, kib * 1024))
    };
    text.lines().filter_map(line).collect()
}

/// Time that was not idle, of all processors, from `/proc/stat`.
fn busy_us(text: &str) -> u64 {
    /// The kernel tells in hundredths of a second, whatever its own clock is.
    const TICK_US: u64 = 10_000;
    const IDLE: usize = 3;
    const IO_WAIT: usize = 4;
    /// Guest time is counted in user time already.
    const GUEST: usize = 8;
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "));
    let fields = line.unwrap_or_default().split_whitespace().map(|field| field.parse::<u64>().unwrap_or(0));
    let busy = fields.enumerate().take(GUEST).filter(|(at, _)| !matches!(*at, IDLE | IO_WAIT));
    busy.map(|(_, ticks)| ticks * TICK_US).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_proc() {
        let found = memory("MemTotal:  100 kB\nHugePages_Total:   0\nodd\n");
        assert_eq!(found["MemTotal"], 102_400);
        assert_eq!(busy_us("cpu  1 2 3 400 50 6 7 8 9 10\ncpu0 1 1 1 1\n"), 270_000);
        assert_eq!(busy_us(""), 0);
    }
}
