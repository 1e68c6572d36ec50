//! `Doubt`: objects that a source does not show any more, and that stay until that can be believed.
//!
//! A directory that is not mounted yet, a store that was wiped or restored and a mistyped prefix look the same as a cluster
//! without Services. Invariants: when nothing or little would be left, nothing goes before the source has kept saying so
//! for [`GRACE`], while it was in reach; a store that went back is an alarm and takes nothing away by itself. One object
//! that is deleted by name is never doubted.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::object::key::{Kind, ObjectKey};

/// How long a source must go on showing little before that is believed.
pub(crate) const GRACE: Duration = Duration::from_secs(60);

/// Fewer deletions than these are somebody's work by hand, also when nothing is left.
const BURST: usize = 3;

/// Fewer than these may be more than half of what there is.
const MANY: usize = 10;

/// How objects would go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// A whole listing does not show them.
    Listing,
    /// They are deleted by name, together.
    Deletions,
}

/// True when `going` of `known` objects are too many to be believed at once.
pub(crate) const fn is_doubtful(known: usize, going: usize, how: How) -> bool {
    let nothing_is_left = going > 0 && going >= known;
    match how {
        How::Listing if nothing_is_left => true,
        How::Deletions if nothing_is_left => going >= BURST,
        _ => going >= MANY && going.saturating_mul(2) > known,
    }
}

/// What is withheld; see the module's text.
#[derive(Debug, Default)]
pub(crate) struct Doubt {
    withheld: BTreeSet<ObjectKey>,
    /// Since when the source has been saying so, on the caller's clock.
    since: Option<Duration>,
    /// How the store shows that it went back.
    went_back: Option<String>,
}

impl Doubt {
    /// Withholds objects; with `went_back` for good.
    pub(super) fn withhold(&mut self, keys: impl IntoIterator<Item = ObjectKey>, went_back: Option<String>) {
        let before = self.withheld.len();
        self.withheld.extend(keys);
        if self.withheld.len() > before {
            self.since = None;
        }
        self.went_back = went_back.or_else(|| self.went_back.take());
    }

    /// The object is there, or is deleted by name after all.
    pub(super) fn forget(&mut self, key: &ObjectKey) -> bool {
        let was = self.withheld.remove(key);
        if self.withheld.is_empty() {
            *self = Self::default();
        }
        was
    }

    /// Objects of one kind that are withheld.
    pub(super) fn count_of(&self, kind: Kind) -> usize {
        self.withheld.iter().filter(|key| key.kind == kind).count()
    }

    /// The objects that are to be believed gone now; `in_reach` says whether the source is in reach.
    pub(super) fn believed(&mut self, in_reach: bool, now: Duration) -> BTreeSet<ObjectKey> {
        if self.withheld.is_empty() || !in_reach || self.went_back.is_some() {
            self.since = None;
            return BTreeSet::new();
        }
        let since = *self.since.get_or_insert(now);
        if now.saturating_sub(since) < GRACE { BTreeSet::new() } else { std::mem::take(self).withheld }
    }

    /// What an operator must know, if anything is withheld.
    pub(crate) fn alarm(&self) -> Option<String> {
        let count = Some(self.withheld.len()).filter(|count| *count > 0)?;
        Some(match &self.went_back {
            Some(reason) => format!(
                "{reason}; {count} objects that it does not show any more stay in service: put them back, or restart \
                 this program to let them go"
            ),
            None => format!(
                "the source shows nothing of {count} objects that were there, and little else; they stay in service \
                 until it has said so for {} s",
                GRACE.as_secs()
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ObjectName;

    fn key(name: &str) -> ObjectKey {
        ObjectKey { kind: Kind::Service, name: ObjectName::new("default", name) }
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_share_that_would_go_decides() {
        for (known, going, listing, deletions) in [
            (0, 0, false, false),
            (1, 1, true, false),
            (2, 2, true, false),
            (3, 3, true, true),
            (3, 2, false, false),
            (30, 9, false, false),
            (30, 15, false, false),
            (30, 16, true, true),
        ] {
            assert_eq!(is_doubtful(known, going, How::Listing), listing, "{going} of {known}, listed");
            assert_eq!(is_doubtful(known, going, How::Deletions), deletions, "{going} of {known}, deleted");
        }
    }

    #[test]
    fn what_is_withheld_goes_when_the_source_has_said_so_for_the_grace_time_while_in_reach() {
        let mut doubt = Doubt::default();
        doubt.withhold([key("a"), key("b")], None);
        assert!(doubt.believed(true, at(0)).is_empty());
        assert!(doubt.believed(false, at(50)).is_empty(), "out of reach: the time begins anew");
        assert!(doubt.believed(true, at(70)).is_empty());
        assert!(doubt.believed(true, at(129)).is_empty());
        assert!(doubt.forget(&key("a")), "it is back");
        assert_eq!(doubt.believed(true, at(130)), BTreeSet::from([key("b")]));
        assert_eq!(doubt.alarm(), None);
    }

    #[test]
    fn a_store_that_went_back_takes_nothing_away() {
        let mut doubt = Doubt::default();
        doubt.withhold([key("a")], Some("the store went back".to_owned()));
        assert!(doubt.believed(true, at(0)).is_empty());
        assert!(doubt.believed(true, at(1_000_000)).is_empty());
        assert!(doubt.alarm().unwrap().starts_with("the store went back; 1 objects"));
    }
}
