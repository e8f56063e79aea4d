//! Durations as kubectl's flags take them: Go's syntax (`1h30m`, `90s`, `1.5m`), a bare `0`, or whole seconds.

use std::time::Duration;

/// Why a text is not a duration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid duration {0:?}: want a form such as 90s, 5m or 1h30m")]
pub struct DurationError(String);

/// Parses a duration. Negative ones are refused.
///
/// # Errors
///
/// [`DurationError`] with the text.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let error = || DurationError(text.to_owned());
    if text.is_empty() {
        return Err(error());
    }
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut rest = text;
    let mut nanos: f64 = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(error)?;
        let (number, tail) = rest.split_at(digits);
        let number: f64 = number.parse().map_err(|_| error())?;
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        nanos += number
            * match unit {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return Err(error()),
            };
        rest = tail;
    }
    // Go's int64 of nanoseconds ends after 292 years; what is longer is a typing error.
    if nanos.is_finite() && nanos < i64::MAX as f64 {
        Ok(Duration::from_nanos(nanos as u64))
    } else {
        Err(error())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_forms_and_bare_seconds_are_read() {
        assert_eq!(parse("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("0"), Ok(Duration::ZERO));
        assert_eq!(parse("30"), Ok(Duration::from_secs(30)));
    }

    #[test]
    fn what_is_not_a_duration_is_refused() {
        for text in ["", "m", "-5m", "5x", "1h30", "5 m", "1e400s", "999999999999999h", "."] {
            assert_eq!(parse(text), Err(DurationError(text.into())), "{text:?}");
        }
    }

    #[test]
    fn a_person_reads_two_units() {
        assert_eq!(human(Duration::from_secs(7)), "7s");
        assert_eq!(human(Duration::from_secs(67)), "1m7s");
        assert_eq!(human(Duration::from_secs(3660)), "1h1m");
        assert_eq!(human(Duration::from_secs(90_000)), "1d1h");
    }
}
