//! Times as the store and certificates write them: seconds since 1970. And a clock that nobody sets, for what may not
//! last longer because somebody has.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use yurt_node::random::random;

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

/// This boot of the node, and the time since: over the ends of processes, suspended or not. Times of two boots cannot
/// be compared.
#[derive(Debug, Clone)]
pub(crate) struct Boot {
    name: Arc<str>,
}

/// A moment of a boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Moment {
    boot: String,
    second: u64,
}

impl Boot {
    /// By its name. One without a name cannot be told from others: then every process has a boot of its own.
    pub(crate) fn new(name: &str) -> Self {
        let name = match name.trim() {
            "" => format!("unnamed-{:08x}{:08x}", random(), random()).into(),
            name => name.into(),
        };
        Self { name }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Seconds since it began.
    pub(crate) fn seconds(&self) -> u64 {
        u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or_default()
    }

    /// Now.
    pub(crate) fn moment(&self) -> Moment {
        Moment { boot: self.name.to_string(), second: self.seconds() }
    }

    /// How long ago that was; nothing if it was in another boot.
    pub(crate) fn since(&self, moment: &Moment) -> Option<Duration> {
        let seconds = self.seconds().checked_sub(moment.second)?;
        (moment.boot == *self.name).then(|| Duration::from_secs(seconds))
    }
}
