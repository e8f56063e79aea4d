//! Times as the store and certificates write them: seconds since 1970.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

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

/// Seconds since 1970 as the clock said at the first call, and as many more as have passed since: how long ago something
/// was, whatever sets the clock meanwhile. Boards without a battery are years behind until they have asked somebody.
pub(crate) fn steady() -> u64 {
    static START: LazyLock<(Instant, u64)> = LazyLock::new(|| (Instant::now(), now()));
    let (start, seconds) = *START;
    seconds + start.elapsed().as_secs()
}
