//! Keys, leases and the outcomes of conditional writes, as values.

use std::fmt;
use std::time::Duration;

use etcd_client::KeyValue;

use crate::Origin;

/// A lease as etcd knows it; never 0. Shown in hexadecimal, as `etcdctl` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(i64);

impl LeaseId {
    /// `None` for 0, etcd's "no lease".
    #[must_use]
    pub fn new(id: i64) -> Option<Self> {
        (id != 0).then_some(Self(id))
    }

    /// etcd's number.
    #[must_use]
    pub fn get(self) -> i64 {
        self.0
    }

    /// 63 random bits: a collision is less likely than a broken disk, so "exists already" means our own earlier
    /// request arrived.
    pub(super) fn random() -> Self {
        Self(fastrand::i64(1..=i64::MAX))
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A key as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The whole key from `Store::get` and the transactions; the name below the prefix from `Store::list`.
    pub key: String,
    /// The stored bytes.
    pub value: Vec<u8>,
    /// The lease that ends the key; `None` for a key that stays (flannel's reservation).
    pub lease: Option<LeaseId>,
    /// Revision in which the key was made; it stays while the key is only written again.
    pub create_revision: i64,
    /// Revision of the key's last change: the handle for `Store::replace_if` and `Store::delete_if`.
    pub mod_revision: i64,
}

impl Entry {
    pub(super) fn new(key: String, entry: KeyValue) -> Self {
        let (lease, create_revision) = (LeaseId::new(entry.lease()), entry.create_revision());
        let mod_revision = entry.mod_revision();
        let (_, value) = entry.into_key_value();
        Self { key, value, lease, create_revision, mod_revision }
    }
}

/// All keys below a prefix at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// In key order.
    pub entries: Vec<Entry>,
    /// Which state of which cluster they are.
    pub origin: Origin,
}

/// How long a written key stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Until it is deleted.
    Forever,
    /// For so many seconds (1 or more), with a new lease.
    Seconds(u32),
    /// As long as this lease.
    Lease(LeaseId),
}

/// Outcome of `Store::create`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Creation {
    /// The key is ours.
    Created {
        /// The new lease; `None` when held for ever.
        lease: Option<LeaseId>,
        /// Revision of the creation.
        mod_revision: i64,
    },
    /// Somebody was first: this is the winner's entry.
    Exists(Entry),
}

/// Outcome of `Store::replace_if`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replacement {
    /// The key holds the new value.
    Replaced {
        /// The lease it is attached to now.
        lease: Option<LeaseId>,
        /// Revision of the replacement.
        mod_revision: i64,
    },
    /// The key has changed since it was read: this is how it stands, `None` when it is gone.
    Changed(Option<Entry>),
}

/// Outcome of `Store::delete_if`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deletion {
    /// The key does not exist (any more).
    Gone,
    /// The key has changed since it was read and stays.
    Changed(Entry),
}

/// How long a lease has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeToLive {
    /// Until it expires unless renewed; whole seconds, rounded down by etcd.
    pub remaining: Duration,
    /// What was granted.
    pub granted: Duration,
}

/// What a listing of a prefix that was just made has shown, in the order of the keys, and of which state of the store.
#[derive(Debug)]
pub struct Shown<V> {
    /// Key, revision of its last change, and what was read.
    pub values: Vec<(String, i64, V)>,
    /// The state that was listed.
    pub origin: Origin,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_shown_as_etcdctl_shows_it() {
        assert_eq!(LeaseId::new(0x694d_7c1b_2a3e_4f50).unwrap().to_string(), "694d7c1b2a3e4f50");
        assert_eq!(LeaseId::new(0), None);
    }

    #[test]
    fn a_chosen_lease_id_is_positive() {
        assert!((0..1000).all(|_| LeaseId::random().get() > 0));
    }
}
