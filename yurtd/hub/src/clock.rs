//! Times as the store and certificates write them: seconds since 1970.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970; 0 for clocks that are before that.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Seconds since 1970, now.
pub(crate) fn now() -> u64 {
    unix_seconds(SystemTime::now())
}

/// Days since 1970, today.
pub(crate) fn today() -> u64 {
    now() / DAY
}

/// Seconds a day has.
pub(crate) const DAY: u64 = 24 * 3600;
