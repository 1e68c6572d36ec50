//! How links, times and numbers are said.

use std::fmt::{self, Display};
use std::time::Duration;

use super::facts::Snapshot;
use crate::format::status::Probe;

/// How a link stands, as far as anybody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// Nobody has probed it.
    Unprobed,
    /// Packets of Pods arrived, up to their MTU.
    Reached(Probe),
    /// They arrived, but the largest did not.
    Narrow(Probe, u32),
    /// None arrived.
    Lost(Probe),
}

impl Link {
    /// The link to the node of `subnet`.
    pub(super) fn of(snapshot: &Snapshot, subnet: &str) -> Self {
        match snapshot.probes.get(subnet).copied() {
            None => Self::Unprobed,
            Some(probe) if !probe.reached => Self::Lost(probe),
            Some(probe) => match probe.largest {
                Some(largest) if largest < snapshot.status.node.mtu => Self::Narrow(probe, largest),
                _ => Self::Reached(probe),
            },
        }
    }

    /// Its class in the style sheet.
    pub(super) const fn class(self) -> &'static str {
        match self {
            Self::Unprobed => "unprobed",
            Self::Reached(_) => "reached",
            Self::Narrow(..) => "narrow",
            Self::Lost(_) => "lost",
        }
    }

    /// In few words, for a drawing.
    pub(super) fn short(self) -> String {
        match self {
            Self::Narrow(_, largest) => format!("up to {largest}"),
            Self::Unprobed | Self::Reached(_) | Self::Lost(_) => self.to_string(),
        }
    }

    /// When it was probed, in seconds since 1970.
    pub(super) const fn at(self) -> Option<u64> {
        match self {
            Self::Unprobed => None,
            Self::Reached(probe) | Self::Narrow(probe, _) | Self::Lost(probe) => Some(probe.at),
        }
    }
}

impl Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unprobed => f.write_str("not probed"),
            Self::Reached(_) => f.write_str("reached"),
            Self::Narrow(_, largest) => write!(f, "reached, but no packet above {largest} bytes"),
            Self::Lost(_) => f.write_str("lost"),
        }
    }
}

/// How long ago `then` is at `now`, in minutes: it is said anew no more often.
pub(super) fn ago(now: u64, then: u64) -> String {
    match now.saturating_sub(then) / 60 {
        0 => "less than a minute ago".to_owned(),
        1 => "a minute ago".to_owned(),
        minutes @ 2..120 => format!("{minutes} minutes ago"),
        minutes @ 120..2880 => format!("{} hours ago", minutes / 60),
        minutes => format!("{} days ago", minutes / 1440),
    }
}

/// A time of a computer.
pub(super) fn time(at: u64) -> String {
    cluster::time::rfc3339(Duration::from_secs(at))
}

/// The same for people.
pub(super) fn clock(at: u64) -> String {
    time(at).replace('T', " ").replace('Z', " UTC")
}

/// `count` of something, in one form or the other.
pub(super) fn counted(count: usize, one: &str, several: &str) -> String {
    let word = if count == 1 { one } else { several };
    let digits = count.to_string();
    let mut number = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            number.push(',');
        }
        number.push(digit);
    }
    format!("{number} {word}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_numbers_are_said_as_people_read_them() {
        for (age, text) in [
            (59, "less than a minute ago"),
            (60, "a minute ago"),
            (7199, "119 minutes ago"),
            (7200, "2 hours ago"),
            (172_800, "2 days ago"),
        ] {
            assert_eq!(ago(1_000_000, 1_000_000 - age), text);
        }
        assert_eq!(ago(5, 10), "less than a minute ago", "a clock that went back");
        assert_eq!((time(0), clock(0)), ("1970-01-01T00:00:00Z".to_owned(), "1970-01-01 00:00:00 UTC".to_owned()));
        assert_eq!(counted(1, "node", "nodes"), "1 node");
        assert_eq!(counted(12_345, "node", "nodes"), "12,345 nodes");
        assert_eq!(counted(100, "node", "nodes"), "100 nodes");
    }
}
