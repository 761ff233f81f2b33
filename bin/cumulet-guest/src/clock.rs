//! The wall clock.

use crate::error::{Doing, Error};
use crate::sys;
use std::time::{SystemTime, UNIX_EPOCH};

/// A clock that is right up to this, in microseconds, is left alone, so that it need not go back.
const TOLERANCE_US: i64 = 2_000;

/// Looks at both clocks, to be sure of one that was not interrupted.
const LOOKS: u32 = 8;

/// Microseconds since the epoch.
pub(crate) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Microseconds of the monotonic clock.
pub(crate) fn monotonic_us() -> u64 {
    u64::try_from(sys::monotonic().as_micros()).unwrap_or(u64::MAX)
}

/// Sets the clock to the host's, which it was at a moment of the monotonic clock, or is now.
pub(crate) fn set(us: i64, at_us: Option<u64>) -> Result<(), Error> {
    let at = at_us.unwrap_or_else(monotonic_us);
    let off = us.saturating_sub_unsigned(at).saturating_sub(ahead_us());
    if off.abs() <= TOLERANCE_US {
        return Ok(());
    }
    // By a difference, not to a time: before a time is set it can be another one, as the host may let the processor
    // stand still at any moment.
    sys::shift_clock(off).doing(|| "set the clock".to_owned())
}

/// How far the wall clock is ahead of the monotonic one.
fn ahead_us() -> i64 {
    let look = |_| {
        let before = monotonic_us();
        let wall = now_us();
        let took = monotonic_us().saturating_sub(before);
        (took, wall.saturating_sub_unsigned(before + took / 2))
    };
    // The look that was interrupted least.
    (0..LOOKS).map(look).min().map_or(0, |(_, ahead)| ahead)
}

/// Microseconds since the kernel began.
pub(crate) fn uptime_us() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    (seconds * 1e6) as u64
}
