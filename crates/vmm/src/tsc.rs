//! How fast this machine's time stamp counter runs.
//!
//! In emulation the guest sees the host's counter. A guest's kernel finds its rate out by counting a few milliseconds
//! of an emulated timer, and on a busy host it gets that wrong, sometimes by a factor of ten: all its clocks are then
//! wrong by that factor. So it is told the rate, which is measured here.

use std::time::{Duration, Instant};

/// Two readings nearer than this would give a rate that is off by more than some parts in ten thousand.
const MIN_INTERVAL: Duration = Duration::from_millis(5);
/// Readings that took longer were interrupted.
const GOOD_READING: Duration = Duration::from_nanos(500);

/// The counter and the clock at the same moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    ticks: u64,
    at: Instant,
}

impl Reading {
    /// Reads both; the best of some tries, since anything may come between.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn take() -> Option<Self> {
        // SAFETY: the instruction reads a register and has no other effect. JUSTIFICATION: there is no safe name for it.
        let counter = || unsafe { core::arch::x86_64::_rdtsc() };
        let mut best: Option<(Duration, Self)> = None;
        for _ in 0..20 {
            let before = Instant::now();
            let ticks = counter();
            let took = before.elapsed();
            if best.is_none_or(|(least, _)| took < least) {
                best = Some((took, Self { ticks, at: before + took / 2 }));
            }
            if took < GOOD_READING {
                break;
            }
        }
        best.map(|(_, reading)| reading)
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn take() -> Option<Self> {
        None
    }

    /// The rate between two readings in kHz; none when they are too near or the counter is no clock.
    pub(crate) fn khz_since(self, earlier: Self) -> Option<u32> {
        let elapsed = self.at.checked_duration_since(earlier.at)?;
        if elapsed < MIN_INTERVAL || !steady() {
            return None;
        }
        let ticks = u128::from(self.ticks.checked_sub(earlier.ticks)?);
        u32::try_from(ticks * 1_000_000 / elapsed.as_nanos()).ok().filter(|khz| *khz >= 100_000)
    }
}

/// Whether the counter runs at one rate whatever the processor does.
fn steady() -> bool {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "constant_tsc"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        let start = Instant::now();
        let reading = |ticks, ms| Reading { ticks, at: start + Duration::from_millis(ms) };
        let expected = steady().then_some(2_000_000);
        assert_eq!(reading(40_000_000, 20).khz_since(reading(0, 0)), expected);
        assert_eq!(reading(4_000_000, 2).khz_since(reading(0, 0)), None, "too near");
        assert_eq!(reading(0, 20).khz_since(reading(1, 0)), None, "backwards");
        assert_eq!(reading(20_000, 20).khz_since(reading(0, 0)), None, "no processor is so slow");
    }
}
