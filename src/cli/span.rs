//! Spans of time as people write them, in hours and days too.

use std::fmt;

use crate::catalog::now_ms;

/// A span of whole seconds, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    seconds: u32,
}

const UNITS: [(&str, u32); 5] =
    [("w", 7 * 86_400), ("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];

impl Span {
    /// The time that lies so far ahead, in milliseconds since 1970.
    pub fn ahead_ms(self) -> i64 {
        now_ms().saturating_add(self.ms())
    }

    /// The time that lies so far back, in milliseconds since 1970.
    pub fn ago_ms(self) -> i64 {
        now_ms().saturating_sub(self.ms())
    }

    /// Of so many milliseconds, cut to seconds.
    pub fn of_ms(ms: i64) -> Span {
        Span { seconds: u32::try_from(ms / 1000).unwrap_or(u32::MAX).max(1) }
    }

    /// In milliseconds.
    pub fn ms(self) -> i64 {
        i64::from(self.seconds) * 1000
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The largest unit that it is a multiple of.
        let unit = UNITS.iter().find(|(_, seconds)| self.seconds.is_multiple_of(*seconds));
        let (unit, seconds) = unit.unwrap_or(&("s", 1));
        write!(f, "{}{unit}", self.seconds / seconds)
    }
}

/// Parses a span such as `90s`, `30m`, `12h`, `7d` or `2w`.
pub(super) fn parse(text: &str) -> Result<Span, String> {
    let rule = || format!("{text:?} is not a span of time such as 90s, 30m, 12h, 7d or 2w");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u32 = number.parse().map_err(|_| rule())?;
    let (_, seconds) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(rule)?;
    let seconds = number.checked_mul(*seconds).filter(|&seconds| seconds > 0);
    seconds
        .map(|seconds| Span { seconds })
        .ok_or_else(|| format!("{text} is not between 1s and 7000w"))
}

/// Parses a span, or `never`.
pub(super) fn parse_or_never(text: &str) -> Result<OrNever, String> {
    if text == "never" {
        return Ok(OrNever(None));
    }
    parse(text).map(|span| OrNever(Some(span))).map_err(|error| format!("{error}, nor never"))
}

/// A span, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OrNever(pub Option<Span>);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn spans() {
        for (text, ms, shown) in [
            ("90s", 90_000, "90s"),
            ("120s", 120_000, "2m"),
            ("12h", 43_200_000, "12h"),
            ("7d", 604_800_000, "1w"),
            ("36h", 129_600_000, "36h"),
        ] {
            let span = parse(text).unwrap();
            assert_eq!((span.ms(), span.to_string().as_str()), (ms, shown));
        }
        for bad in ["", "7", "d", "-1d", "1.5h", "0d", "1y", "99999999w", "never"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_or_never("never"), Ok(OrNever(None)));
        assert!(parse_or_never("nope").is_err());
    }
}
