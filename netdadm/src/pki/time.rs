//! `Time`: seconds since 1970 in UTC, as certificates have it.
//!
//! Pure. Invariant: no arithmetic overflows; a date outside what X.509 writes is not made here.

use std::fmt;
use std::time::Duration;

/// Seconds of a day.
const DAY: i64 = 86_400;

/// A moment, in seconds since 1970 in UTC; before it, negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time(i64);

impl Time {
    /// `seconds` after 1970.
    pub(crate) const fn new(seconds: i64) -> Self {
        Self(seconds)
    }

    /// `since_1970` after 1970.
    pub(crate) fn after_1970(since_1970: Duration) -> Self {
        Self(i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX))
    }

    /// Seconds since 1970.
    pub(crate) const fn seconds(self) -> i64 {
        self.0
    }

    /// `days` of 86,400 seconds later.
    pub(crate) const fn plus_days(self, days: i64) -> Self {
        Self(self.0.saturating_add(days.saturating_mul(DAY)))
    }

    /// `seconds` earlier.
    pub(crate) const fn minus(self, seconds: i64) -> Self {
        Self(self.0.saturating_sub(seconds))
    }

    /// Whole days until `later`; negative when it has passed.
    pub(crate) const fn days_until(self, later: Self) -> i64 {
        later.0.saturating_sub(self.0).div_euclid(DAY)
    }
}

impl fmt::Display for Time {
    /// As RFC 3339 has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match u64::try_from(self.0) {
            Ok(seconds) => f.write_str(&cluster::time::rfc3339(Duration::from_secs(seconds))),
            Err(_) => f.write_str("before 1970"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_whole_and_a_passed_date_is_negative() {
        let now = Time::new(1_764_253_505);
        assert_eq!(now.to_string(), "2025-11-27T14:25:05Z");
        assert_eq!(now.days_until(now.plus_days(30)), 30);
        assert_eq!(now.days_until(now.plus_days(30).minus(1)), 29);
        assert_eq!(now.days_until(now.minus(1)), -1);
        assert_eq!(Time::new(-1).to_string(), "before 1970");
    }
}
