//! Moments in the past, as people and Postgres name them.

use std::fmt;
use std::str::FromStr;

use super::super::output;
use crate::catalog::now_ms;
use crate::postgres::wal::Lsn;

/// A moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Moment {
    /// Milliseconds since 1970.
    Time(i64),
    /// A position in the WAL.
    Lsn(Lsn),
}

const UNITS: [(&[&str], i64); 5] = [
    (&["s", "sec", "secs", "second", "seconds"], 1_000),
    (&["m", "min", "mins", "minute", "minutes"], 60_000),
    (&["h", "hour", "hours"], 3_600_000),
    (&["d", "day", "days"], 86_400_000),
    (&["w", "week", "weeks"], 7 * 86_400_000),
];

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Moment, String> {
        let text = text.trim();
        if let Some(span) = text.strip_suffix("ago") {
            let ms = span_ms(span).map(|ms| now_ms().saturating_sub(ms));
            // There was no time before 1970.
            return ms.filter(|&ms| ms > 0).map(Moment::Time).ok_or_else(|| rule(text));
        }
        if let Ok(lsn) = text.parse() {
            return Ok(Moment::Lsn(lsn));
        }
        if let Ok(at) = text.parse::<jiff::Timestamp>() {
            return Ok(Moment::Time(at.as_millisecond()));
        }
        // Without an offset it is the time of this machine's zone.
        let civil = text.parse::<jiff::civil::DateTime>().ok();
        let zoned = civil.and_then(|civil| civil.to_zoned(jiff::tz::TimeZone::system()).ok());
        zoned.map(|at| Moment::Time(at.timestamp().as_millisecond())).ok_or_else(|| rule(text))
    }
}

fn rule(text: &str) -> String {
    format!(
        "{text:?} is not a moment such as 2026-11-22T10:00:00Z, '10 minutes ago' or the position \
         0/16B3748 in the WAL"
    )
}

/// `10 minutes`, `90s`, `2 h`.
fn span_ms(text: &str) -> Option<i64> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let (_, ms) = UNITS.iter().find(|(names, _)| names.contains(&unit.trim()))?;
    number.parse::<i64>().ok()?.checked_mul(*ms)
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Moment::Time(ms) => f.write_str(&output::time_ms(*ms)),
            Moment::Lsn(lsn) => lsn.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn moments_that_people_name() {
        let time = |text: &str| match text.parse::<Moment>().unwrap() {
            Moment::Time(ms) => ms,
            Moment::Lsn(lsn) => panic!("{lsn}"),
        };
        assert_eq!(time("2023-11-14T22:13:20.5Z"), 1_700_000_000_500);
        assert_eq!(time("2023-11-14 23:13:20+01"), 1_700_000_000_000);
        for (text, ms) in
            [("10 minutes ago", 600_000), ("90s ago", 90_000), ("1 day ago", 86_400_000)]
        {
            let ago = now_ms() - time(text);
            assert!((ms..ms + 5_000).contains(&ago), "{text}: {ago}");
        }
        assert_eq!("1/A0".parse(), Ok(Moment::Lsn(Lsn(0x1_0000_00a0))));
        assert!("2023-11-14 22:13:20".parse::<Moment>().is_ok(), "the time of this machine's zone");
        for text in [
            "",
            "ago",
            "x ago",
            "10 ago",
            "9999999999999 minutes ago",
            "10 parsecs ago",
            "yesterday",
            "2023-13-01T00:00:00Z",
        ] {
            let error = text.parse::<Moment>().unwrap_err();
            assert!(error.contains("is not a moment such as"), "{error}");
        }
    }
}
