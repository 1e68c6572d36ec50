//! What a source says, with the barrier of a listing in the type.
//!
//! # Contract
//!
//! * A source starts with [`Event::Reset`], says what it lists ([`Event::Origin`], where its store has revisions), lists what exists as
//!   [`Event::Put`], then says [`Event::Complete`].
//! * On `Reset` **nothing is removed yet**: what the consumer knows stays valid while the listing runs.
//! * On `Complete` whatever was not `Put` since the `Reset` is gone. This is where a deletion that happened
//!   during a disconnect is found.
//! * After `Complete`, `Put` and `Delete` are changes, in the order the source saw them.
//! * What came since the last [`Event::Commit`] or `Complete` belongs together: one transaction of etcd, the files that
//!   were written in one go, a whole listing. A consumer acts at these two and never between them, since half of such a
//!   change (a Service whose ports are renamed, without its slices) is a state that nobody asked for.
//! * A listing can break off: the source then says `Reset` again and starts anew. A `Complete` always belongs
//!   to the last `Reset`.
//! * A listing that finds nothing is passed on truthfully (`Reset`, `Complete`). Whether an empty answer is
//!   believed is decided by the consumer, which can ask [`crate::Snapshot::pending_removals`] and
//!   [`Origin::follows`] before it applies `Complete`.
//! * [`Event::Lost`], [`Event::Invalid`], [`Event::Valid`] and [`Event::Notes`] change no data. They feed the status: how
//!   old what we know may be, what could not be read, and what is of no use.
//!
//! A source may yield objects of several kinds, or there may be a source for each kind. Each kind has a
//! [`crate::Snapshot`] of its own, so that the `Complete` of one never removes the objects of another.

use std::convert::Infallible;
use std::fmt;

use crate::{ClusterError, Words};

/// One message of a source. Keys are text and values bytes for etcd and directories, until [`Event::filter_map`] makes
/// them what a program works with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<K = String, V = Vec<u8>> {
    /// A listing begins. Nothing is removed yet.
    Reset,
    /// The listing that began shows this state of this store.
    Origin(Origin),
    /// The key has this value now.
    Put {
        /// Below the watched prefix (etcd) or `<kind>/<namespace>/<name>` (directory).
        key: K,
        /// The whole value; never a difference.
        value: V,
        /// Grows with every change of this source; etcd's `mod_revision`, a counter elsewhere.
        revision: i64,
    },
    /// The key is gone.
    Delete {
        /// As in `Put`.
        key: K,
        /// Revision of the deletion.
        revision: i64,
    },
    /// What came since the last `Commit` or `Complete` belongs together and is all there.
    Commit,
    /// The listing is whole: what was not `Put` since `Reset` does not exist.
    Complete,
    /// The source is out of reach: what is known may be old. It goes on trying by itself, and lists anew when it
    /// succeeds. Said again only when the reason changes.
    Lost(ClusterError),
    /// One item (a file, a key) cannot be read, or not all of it. What it said before stays; everything else goes on.
    Invalid {
        /// File name or key.
        source: String,
        /// What is wrong with it, with the accepted form.
        reason: String,
        /// The names that it may hold.
        words: Words,
    },
    /// An item reported as [`Event::Invalid`] can be read again, or is gone.
    Valid {
        /// File name or key.
        source: String,
    },
    /// What an item holds beside what is used: objects of other kinds, duplicates. Nothing is missing because of it.
    /// Replaces the notes that were said of the item before; none is the end of them.
    Notes {
        /// File name or key.
        source: String,
        /// One line each.
        notes: Vec<String>,
    },
}

/// Which state of which store a listing shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Origin {
    /// The cluster's id (etcd), 0 where there is none.
    pub store: u64,
    /// The member that answered, 0 where there are none.
    pub member: u64,
    /// Its raft term, 0 where there is none. It never falls while a cluster lives.
    pub term: u64,
    /// The revision that the listing shows, 0 where there is none.
    pub revision: i64,
}

/// How a store shows that it is not the one that was listed before: wiped, restored from a backup, or another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// It has another id.
    Other,
    /// It is at an earlier revision.
    Revision {
        /// What was seen before.
        before: i64,
        /// What it is now.
        now: i64,
    },
    /// Its raft term is an earlier one: the members were made anew from a backup.
    Term {
        /// What was seen before.
        before: u64,
        /// What it is now.
        now: u64,
    },
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other => f.write_str("another store answers under the same address"),
            Self::Revision { before, now } => write!(f, "the store went back from revision {before} to {now}"),
            Self::Term { before, now } => {
                write!(f, "the store was made anew: its raft term fell from {before} to {now}")
            }
        }
    }
}

impl Origin {
    /// The store has been seen at this revision since, by a change. The Kubernetes API, which has no id, is believed what it says after a
    /// restore: its controllers have seen to the rest, and kube-proxy follows it as well.
    pub fn advance(&mut self, revision: i64) {
        if self.store != 0 {
            self.revision = self.revision.max(revision);
        }
    }

    /// Whether this can be a later state of the store that `earlier` was a state of. A restored store that has passed the
    /// revision and the term of the old one cannot be recognised here; only its listing shows the difference.
    ///
    /// # Errors
    /// Why it cannot.
    pub const fn follows(&self, earlier: &Self) -> Result<(), Break> {
        if self.store != earlier.store {
            return Err(Break::Other);
        }
        if self.revision < earlier.revision {
            return Err(Break::Revision { before: earlier.revision, now: self.revision });
        }
        if self.term < earlier.term {
            return Err(Break::Term { before: earlier.term, now: self.term });
        }
        Ok(())
    }
}

impl<K, V> Event<K, V> {
    /// The key a `Put` or `Delete` is about.
    #[must_use]
    pub const fn key(&self) -> Option<&K> {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => Some(key),
            _ => None,
        }
    }

    /// True at the end of what belongs together: the time to act on it.
    #[must_use]
    pub const fn is_end(&self) -> bool {
        matches!(self, Self::Commit | Self::Complete)
    }

    /// The event when it is about no key: begin and end of a listing or a change, and the state of the source. A source of
    /// several kinds says it for each of them.
    pub fn keyless<L, W>(self) -> Option<Event<L, W>> {
        let event = self.try_map(|_| Err::<Infallible, ()>(()), |never, _| -> W { match *never {} }).ok()?;
        Some(event.map(|never| match never {}, |_, value| value))
    }

    /// The same event with another form of key and value.
    pub fn map<L, W>(self, key: impl FnOnce(K) -> L, value: impl FnOnce(&L, V) -> W) -> Event<L, W> {
        match self.try_map(|old| Ok::<_, Infallible>(key(old)), value) {
            Ok(event) => event,
            Err(never) => match never {},
        }
    }

    /// As [`Event::map`]; an event whose key `key` makes nothing of, because it is somebody else's, is left out.
    pub fn filter_map<L, W>(
        self,
        key: impl FnOnce(K) -> Option<L>,
        value: impl FnOnce(&L, V) -> W,
    ) -> Option<Event<L, W>> {
        self.try_map(|old| key(old).ok_or(()), value).ok()
    }

    /// As [`Event::map`].
    ///
    /// # Errors
    /// What `key` returns of a key that it cannot read.
    pub fn try_map<L, W, E>(
        self,
        key: impl FnOnce(K) -> Result<L, E>,
        value: impl FnOnce(&L, V) -> W,
    ) -> Result<Event<L, W>, E> {
        Ok(match self {
            Self::Put { key: old, value: form, revision } => {
                let key = key(old)?;
                Event::Put { value: value(&key, form), key, revision }
            }
            Self::Delete { key: old, revision } => Event::Delete { key: key(old)?, revision },
            Self::Reset => Event::Reset,
            Self::Origin(origin) => Event::Origin(origin),
            Self::Commit => Event::Commit,
            Self::Complete => Event::Complete,
            Self::Lost(error) => Event::Lost(error),
            Self::Invalid { source, reason, words } => Event::Invalid { source, reason, words },
            Self::Valid { source } => Event::Valid { source },
            Self::Notes { source, notes } => Event::Notes { source, notes },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: String) -> Option<u8> {
        text.parse().ok()
    }

    #[test]
    fn mapping_changes_keys_and_values_and_leaves_out_what_is_somebody_elses() {
        let put = |key: &str| Event::Put { key: key.to_owned(), value: b"x".to_vec(), revision: 7 };
        let doubled = |key: &u8, value: Vec<u8>| value.len() + usize::from(*key);
        assert_eq!(put("2").filter_map(number, doubled), Some(Event::Put { key: 2, value: 3, revision: 7 }));
        assert_eq!(put("two").filter_map(number, doubled), None);
        assert_eq!(put("2").keyless::<u8, u8>(), None);
        let delete = Event::<String, Vec<u8>>::Delete { key: "3".to_owned(), revision: 8 };
        assert_eq!(delete.filter_map(number, doubled), Some(Event::Delete { key: 3, revision: 8 }));
        let keyless = [Event::Reset, Event::Commit, Event::Complete, Event::Origin(Origin::default())];
        for event in keyless as [Event; 4] {
            let text = format!("{event:?}");
            let keyless: Event<u8, u8> = event.clone().keyless().unwrap();
            let mapped: Event<u8, usize> = event.map(|_| 0, doubled);
            assert_eq!([format!("{mapped:?}"), format!("{keyless:?}")], [text.clone(), text]);
        }
    }

    #[test]
    fn a_store_that_went_back_is_known_by_id_revision_or_term() {
        let seen = Origin { store: 1, member: 1, term: 5, revision: 100 };
        let reason = |now: Origin| now.follows(&seen).map_err(|reason| reason.to_string());
        assert_eq!(reason(seen), Ok(()));
        assert_eq!(
            reason(Origin { member: 2, term: 6, revision: 101, ..seen }),
            Ok(()),
            "another member, a new leader"
        );
        for (now, part) in [
            (Origin { store: 2, ..seen }, "another store"),
            (Origin { revision: 99, ..seen }, "from revision 100 to 99"),
            (Origin { term: 2, revision: 400, ..seen }, "term fell from 5 to 2"),
        ] {
            assert!(reason(now).unwrap_err().contains(part), "{part}");
        }
    }
}
