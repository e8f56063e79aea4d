//! Words and numbers in a sentence. Pure.

use std::time::Duration;

/// `1 node` or `3 nodes`.
pub fn nodes(count: usize) -> String {
    count_of(count, "node")
}

/// `1 thing` or `3 things`.
pub fn count_of(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Names in one line.
pub fn join<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    names.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// A version with exactly one `v` in front.
pub fn version(text: &str) -> String {
    format!("v{}", text.trim_start_matches('v'))
}

/// A duration for a person: the two largest units.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, m) => format!("{m}m{}s", seconds % 60),
        (0, h, m) => format!("{h}h{m}m"),
        (d, h, _) => format!("{d}d{h}h"),
    }
}

/// How long ago an RFC 3339 time was.
pub fn age(time: &str, now: jiff::Timestamp) -> String {
    let Ok(time) = time.parse::<jiff::Timestamp>() else { return "<unknown>".into() };
    let seconds = now.as_second().saturating_sub(time.as_second());
    human(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// A round trip: two digits at least.
pub fn round_trip(micros: u64) -> String {
    if micros < 10_000 {
        format!("{}.{}ms", micros / 1000, micros % 1000 / 100)
    } else {
        format!("{}ms", micros / 1000)
    }
}

/// A number of bytes: two digits at least.
pub fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
    for (unit, size) in UNITS {
        if count >= size {
            let (whole, tenth) = (count / size, count % size * 10 / size);
            return if size == 1 || whole >= 10 {
                format!("{whole}{unit}")
            } else {
                format!("{whole}.{tenth}{unit}")
            };
        }
    }
    "0B".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_reads_two_units() {
        assert_eq!(human(Duration::from_secs(7)), "7s");
        assert_eq!(human(Duration::from_secs(67)), "1m7s");
        assert_eq!(human(Duration::from_secs(3660)), "1h1m");
        assert_eq!(human(Duration::from_secs(90_000)), "1d1h");
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!((nodes(1), nodes(2)), ("1 node".into(), "2 nodes".into()));
        assert_eq!(join(&["a".to_owned(), "b".to_owned()]), "a, b");
        assert_eq!((version("1.2.3"), version("v1.2.3")), ("v1.2.3".into(), "v1.2.3".into()));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(bytes(0), "0B");
        assert_eq!(bytes(1023), "1023B");
        assert_eq!(bytes(1536), "1.5KiB");
        assert_eq!(bytes(20 << 20), "20MiB");
        assert_eq!(round_trip(1_234), "1.2ms");
        assert_eq!(round_trip(45_678), "45ms");
    }

    #[test]
    fn an_age_is_never_negative() {
        let now: jiff::Timestamp = "2026-01-01T00:01:30Z".parse().unwrap();
        assert_eq!(age("2026-01-01T00:00:00Z", now), "1m30s");
        assert_eq!(age("2026-01-02T00:00:00Z", now), "0s");
        assert_eq!(age("yesterday", now), "<unknown>");
    }
}
