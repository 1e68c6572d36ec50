//! Whether a watch that is silent has missed something.
//!
//! Invariant: what is asked for is one number and one notice, whatever the number of keys. A watch is behind when its
//! member has not shown it the revision of a linearizable read in time; something is missing when as many keys as it has
//! shown are not there at that revision.

use etcd_client::{GetOptions, KeyValue};

use super::client::Client;
use super::prefix::Range;
use crate::{ClusterError, Origin};

/// What a watch has shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// How many keys there are.
    pub(super) keys: i64,
    /// The last revision that it has shown, with or without a change.
    pub(super) revision: i64,
    /// The revision of the last change.
    pub(super) changed: i64,
}

impl Seen {
    /// A key was listed.
    pub(super) const fn list(&mut self) {
        self.keys = self.keys.saturating_add(1);
    }

    /// A key was written.
    pub(super) fn put(&mut self, entry: &KeyValue) {
        if entry.create_revision() == entry.mod_revision() {
            self.list();
        }
        self.changed = entry.mod_revision();
    }

    /// A key was deleted, in `revision`.
    pub(super) const fn delete(&mut self, revision: i64) {
        self.keys = self.keys.saturating_sub(1);
        self.changed = revision;
    }
}

/// What the cluster as a whole holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    /// How many keys there are.
    pub(super) keys: i64,
    /// At which state of which cluster.
    pub(super) origin: Origin,
}

impl Count {
    /// Counts the keys of a range by a linearizable read.
    ///
    /// # Errors
    /// When no member answers, or one refuses.
    pub(super) async fn take(client: &Client, range: &Range) -> Result<Self, ClusterError> {
        let options = GetOptions::new().with_range(range.end()).with_count_only();
        let answer = client
            .call("count", &range.to_string(), |client| {
                let (start, options) = (range.start(), options.clone());
                async move { client.kv_client().get(start, Some(options)).await }
            })
            .await?;
        let origin = answer.header().map_or_else(Origin::default, |header| Origin {
            store: header.cluster_id(),
            member: header.member_id(),
            term: header.raft_term(),
            revision: header.revision(),
        });
        Ok(Self { keys: answer.count(), origin })
    }

    /// True when it is of the same store as `listed`.
    pub(super) fn is_of(&self, listed: &Origin) -> bool {
        self.origin.follows(listed).is_ok()
    }

    /// True when what a watch has shown is all there was when the keys were counted.
    pub(super) const fn agrees(&self, seen: &Seen) -> bool {
        // What changed after the count says nothing about it: the next audit will.
        seen.changed > self.origin.revision || seen.keys == self.keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: Origin = Origin { store: 1, member: 1, term: 4, revision: 100 };

    fn count(keys: i64, origin: Origin) -> Count {
        Count { keys, origin }
    }

    #[test]
    fn count_that_differs_shows_what_a_watch_has_missed() {
        let seen = Seen { keys: 10, revision: 120, changed: 110 };
        let now = Origin { revision: 120, ..LISTED };
        assert!(count(10, now).agrees(&seen));
        assert!(!count(11, now).agrees(&seen), "a key is missing");
        assert!(!count(9, now).agrees(&seen), "a deletion is missing");
        let later = Seen { changed: 121, ..seen };
        assert!(count(11, now).agrees(&later), "it changed after the count");
    }

    #[test]
    fn count_of_another_store_says_nothing_of_the_listed_one() {
        assert!(count(10, Origin { revision: 120, ..LISTED }).is_of(&LISTED));
        for now in [Origin { store: 2, ..LISTED }, Origin { revision: 99, ..LISTED }, Origin { term: 3, ..LISTED }] {
            assert!(!count(10, now).is_of(&LISTED), "{now:?}");
        }
    }

    #[test]
    fn creations_and_deletions_are_counted_and_rewritten_keys_are_not() {
        let mut seen = Seen::default();
        seen.list();
        seen.delete(7);
        assert_eq!(seen, Seen { keys: 0, revision: 0, changed: 7 });
    }
}
