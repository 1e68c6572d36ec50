//! `Trigger`: when what a slice says came about, as its writer notes it.
//!
//! Invariant: two triggers are always equal: when something came about makes no other kernel state.

use std::time::Duration;

use super::field::Field;

/// The annotation of EndpointSlices and Endpoints that says so, in Go's RFC3339Nano.
const ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Time since 1970; see the module's text.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Trigger(pub(crate) Option<Duration>);

impl PartialEq for Trigger {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Trigger {}

impl Trigger {
    /// What the annotations of an object say; nothing when they do not say a time.
    pub(super) fn of(root: &Field<'_>) -> Self {
        let text = root.get("metadata").get("annotations").get(ANNOTATION).text();
        Self(text.ok().flatten().and_then(rfc3339))
    }
}

/// The time since 1970 that a text in RFC 3339 says; in UTC, as the controller writes it.
fn rfc3339(text: &str) -> Option<Duration> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    let is_in_range = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !is_in_range || hour > 23 || minute > 59 || second > 60 || fraction.len() > 9 {
        return None;
    }
    let nanos = number(&format!("{fraction:0<9}"))?;
    let seconds = days(year, month, day)? * 86_400 + hour * 3600 + minute * 60 + second;
    Some(Duration::from_secs(seconds) + Duration::from_nanos(nanos))
}

fn numbers(text: &str, separator: char) -> Option<[u64; 3]> {
    let found: Option<Vec<u64>> = text.split(separator).map(number).collect();
    found?.try_into().ok()
}

fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Days since 1970 (Howard Hinnant, chrono-compatible date algorithms).
const fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * month + 2) / 5 + day - 1;
    (era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_utc_are_read_and_nothing_else_is_guessed() {
        let at = |text| rfc3339(text).map(|time| time.as_millis());
        for (text, milliseconds) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-28T23:59:59Z", Some(951_782_399_000)),
            ("2000-03-01T00:00:00Z", Some(951_868_800_000)),
            ("2026-11-26T00:00:00.5Z", Some(1_795_651_200_500)),
            ("2026-11-26T00:00:00.123456789Z", Some(1_795_651_200_123)),
            ("2026-12-31T23:59:60Z", Some(1_798_761_600_000)),
            ("2026-11-26T24:00:00Z", None),
            ("2026-11-26T00:60:00Z", None),
            ("2026-11-26T00:00:61Z", None),
            ("2026-11-32T00:00:00Z", None),
            ("2026-11-00T00:00:00Z", None),
            ("2026-00-26T00:00:00Z", None),
            ("2026-11-26T00:00:00.1234567890Z", None),
            ("2026-11-26T00:00:00+01:00", None),
            ("2026-13-26T00:00:00Z", None),
            ("1969-12-31T00:00:00Z", None),
            ("0000-01-01T00:00:00Z", None),
            ("+2026-11-26T00:00:00Z", None),
            ("2026-11-26", None),
            ("", None),
        ] {
            assert_eq!(at(text), milliseconds, "{text}");
        }
    }
}
