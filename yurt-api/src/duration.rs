//! Durations as Kubernetes writes them: those of Go, `1h30m`, `-1.5s`, `0`. One reader for the plugin's flags and for
//! the annotations that controller and plugin look at, so that they never read one text as two things. Pure.
//!
//! The grammar is that of Go's [`time.ParseDuration`](https://pkg.go.dev/time#ParseDuration): a sign, then `0` alone or
//! one or more numbers with a fraction and a unit each (`ns`, `us`, `µs`, `ms`, `s`, `m`, `h`; a day is none). The
//! range is Go's too, 64 bits of nanoseconds or 292 years either way, and a fraction is rounded as Go rounds it.

use std::{fmt, str::FromStr, time::Duration};

/// A span of time that Go can hold, in nanoseconds; it may be negative.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoDuration(i64);

/// Why a text is not the duration that was wanted. Shown to people as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// It is no duration at all.
    #[error("invalid duration {0:?}: want a form such as 90s, 5m or 1h30m")]
    Form(String),
    /// It is longer than Go can say.
    #[error("invalid duration {0:?}: longer than 292 years")]
    Range(String),
    /// It is one, and time would have to run backwards.
    #[error("invalid duration {0:?}: must not be negative")]
    Negative(String),
}

/// Reads a duration that cannot be negative, which is what every flag and annotation here wants.
///
/// # Errors
///
/// [`DurationError`] with the text and what is wrong with it.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let read: GoDuration = text.parse()?;
    u64::try_from(read.0).map(Duration::from_nanos).map_err(|_| DurationError::Negative(text.to_owned()))
}

impl GoDuration {
    /// From nanoseconds.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// In nanoseconds.
    pub const fn as_nanos(self) -> i64 {
        self.0
    }
}

impl TryFrom<Duration> for GoDuration {
    type Error = std::num::TryFromIntError;

    /// Fails beyond 292 years.
    fn try_from(duration: Duration) -> Result<Self, Self::Error> {
        i64::try_from(duration.as_nanos()).map(Self)
    }
}

/// The lowest number that an `i64` cannot hold; its negative one can be held.
const LIMIT: u64 = 1 << 63;

impl FromStr for GoDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let range = || DurationError::Range(text.to_owned());
        let form = || DurationError::Form(text.to_owned());
        let (negative, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (true, text.get(1..).unwrap_or_default()),
            Some(b'+') => (false, text.get(1..).unwrap_or_default()),
            _ => (false, text),
        };
        if rest == "0" {
            return Ok(Self(0));
        }
        if rest.is_empty() {
            return Err(form());
        }
        let mut sum: u64 = 0;
        while !rest.is_empty() {
            let (whole, after) = rest.split_at(digits(rest));
            let (fraction, after) = match after.strip_prefix('.') {
                Some(after) => after.split_at(digits(after)),
                None => ("", after),
            };
            if whole.is_empty() && fraction.is_empty() {
                return Err(form());
            }
            let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
            let (name, after) = after.split_at(end);
            let unit = unit(name).ok_or_else(form)?;
            let whole = if whole.is_empty() { Some(0) } else { whole.parse::<u64>().ok() };
            let part = whole.and_then(|whole| whole.checked_mul(unit));
            let part = part.and_then(|part| part.checked_add(share(fraction, unit)));
            sum =
                part.and_then(|part| sum.checked_add(part)).filter(|sum| *sum <= LIMIT).ok_or_else(range)?;
            rest = after;
        }
        let nanos = if negative { 0i64.checked_sub_unsigned(sum) } else { i64::try_from(sum).ok() };
        nanos.map(Self).ok_or_else(range)
    }
}

/// How many digits a text begins with.
fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

/// Nanoseconds in a unit. Both ways to write a micro sign are in use.
fn unit(name: &str) -> Option<u64> {
    Some(match name {
        "ns" => 1,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// Nanoseconds of the digits behind the point. Digits that 63 bits cannot take change nothing. In floating point, because
/// Go rounds so.
fn share(fraction: &str, unit: u64) -> u64 {
    let (mut value, mut scale) = (0u64, 1f64);
    for digit in fraction.bytes() {
        let next = value.checked_mul(10).and_then(|value| value.checked_add(u64::from(digit - b'0')));
        let Some(next) = next.filter(|next| *next <= LIMIT) else { break };
        value = next;
        scale *= 10.0;
    }
    (value as f64 * (unit as f64 / scale)) as u64
}

impl fmt::Display for GoDuration {
    /// As Go's `Duration.String` has it: `1h30m0s`, `1.5s`, `250ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        let sign = if self.0 < 0 { "-" } else { "" };
        // Below a second the unit shrinks, so that something stands before the point.
        let (unit, name) = match nanos {
            0 => return f.write_str("0s"),
            1..1_000 => (1, "ns"),
            1_000..1_000_000 => (1_000, "µs"),
            1_000_000..1_000_000_000 => (1_000_000, "ms"),
            _ => (1_000_000_000, "s"),
        };
        let (whole, part) = (nanos / unit, nanos % unit);
        f.write_str(sign)?;
        let whole = if name == "s" {
            let (hours, minutes) = (whole / 3600, whole / 60 % 60);
            match (hours, minutes) {
                (0, 0) => {}
                (0, _) => write!(f, "{minutes}m")?,
                _ => write!(f, "{hours}h{minutes}m")?,
            }
            whole % 60
        } else {
            whole
        };
        if part == 0 {
            return write!(f, "{whole}{name}");
        }
        let width = unit.ilog10() as usize;
        let part = format!("{part:0width$}");
        write!(f, "{whole}.{}{name}", part.trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nanos(text: &str) -> Option<i64> {
        text.parse().ok().map(GoDuration::as_nanos)
    }

    #[test]
    fn durations_are_read_as_go_reads_them() {
        const SECOND: i64 = 1_000_000_000;
        for (text, expected) in [
            ("0", 0),
            ("+0", 0),
            ("-0", 0),
            ("0s", 0),
            ("+5s", 5 * SECOND),
            ("-5m", -300 * SECOND),
            ("1h15m30.5s", 4530 * SECOND + SECOND / 2),
            ("1.5h", 5400 * SECOND),
            (".5m", 30 * SECOND),
            ("-.5s", -SECOND / 2),
            ("5.s", 5 * SECOND),
            ("100ms", SECOND / 10),
            ("3us", 3_000),
            ("3µs", 3_000),
            ("3μs", 3_000),
            ("1m1m", 120 * SECOND),
            ("0.1234567890123456789s", 123_456_789),
            // More digits than 63 bits hold, and one that floating point rounds.
            ("0.100000000000000000000h", 360 * SECOND),
            ("0.830103483285477580700h", 2_988_372_539_827),
            ("9223372036854775807ns", i64::MAX),
            ("9223372036854775.807us", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
            ("-9223372036854775.808us", i64::MIN),
        ] {
            assert_eq!(nanos(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for text in [
            "", "+", "-", "3", "30", "5 m", "m", "1d", "1h ", " 1h", "1..5s", ".", ".s", "-.s", "+.s",
            "五分", "é", "1h-5m", "1e3s", "++1s", "0x1s", "1S", "1h30",
        ] {
            assert_eq!(text.parse::<GoDuration>(), Err(DurationError::Form(text.into())), "{text:?}");
        }
        for text in [
            "9999999h",
            "999999999999999999999h",
            "9223372036854775808ns",
            "9223372036854775.808us",
            "-9223372036854775809ns",
            "9223372036s1s",
        ] {
            assert_eq!(text.parse::<GoDuration>(), Err(DurationError::Range(text.into())), "{text:?}");
        }
    }

    #[test]
    fn a_flag_and_an_annotation_take_no_negative_one() {
        assert_eq!(parse("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse("-0s"), Ok(Duration::ZERO));
        assert_eq!(parse("-5m"), Err(DurationError::Negative("-5m".into())));
        assert_eq!(
            parse("soon").unwrap_err().to_string(),
            "invalid duration \"soon\": want a form such as 90s, 5m or 1h30m"
        );
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (nanos, expected) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (2_200_000, "2.2ms"),
            (3_300_000_000, "3.3s"),
            (245_000_000_000, "4m5s"),
            (245_001_000_000, "4m5.001s"),
            (18_367_001_000_000, "5h6m7.001s"),
            (480_000_000_001, "8m0.000000001s"),
            (5_400_000_000_000, "1h30m0s"),
            (i64::MAX, "2562047h47m16.854775807s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(GoDuration::from_nanos(nanos).to_string(), expected);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(nanos in any::<i64>()) {
            let written = GoDuration::from_nanos(nanos).to_string();
            // The nine digits of a second are exact in floating point.
            prop_assert_eq!(written.parse::<GoDuration>().map(GoDuration::as_nanos), Ok(nanos));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[-+0-9.a-zµ ]{0,24}") {
            let _ = text.parse::<GoDuration>();
        }
    }
}
