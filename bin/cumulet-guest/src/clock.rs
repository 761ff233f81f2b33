//! The wall clock.

use crate::error::{Doing, Error};
use crate::sys;
use std::time::{SystemTime, UNIX_EPOCH};

/// A clock that is right up to this, in microseconds, is left alone, so that it need not go back.
const TOLERANCE_US: i64 = 2_000;

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
    let since = at_us.map_or(0, |at| monotonic_us().saturating_sub(at));
    let us = us.saturating_add_unsigned(since);
    if now_us().abs_diff(us) <= TOLERANCE_US.unsigned_abs() {
        return Ok(());
    }
    sys::set_clock(us).doing(|| "set the clock".to_owned())
}

/// Microseconds since the kernel began.
pub(crate) fn uptime_us() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    (seconds * 1e6) as u64
}
