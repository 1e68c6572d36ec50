//! `LeaseRecord`: which leases this node has held, so that it knows them again when its address has changed.
//!
//! Invariant: a lease counts as ours by its key and the store's own number of what ends it, together; the same key with
//! another number is somebody's new lease.

use std::fmt;
use std::str::FromStr;

use super::Held;
use crate::format::lease::SubnetKey;

/// One lease that was held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recorded {
    /// Its key.
    pub key: SubnetKey,
    /// What ended it, by the store's number.
    pub token: i64,
}

/// The leases that were held, the latest last. As text: a key and a number in hexadecimal on each line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LeaseRecord(Vec<Recorded>);

/// Leases that are remembered: one is in use, the others wait to be deleted.
const REMEMBERED: usize = 16;

impl LeaseRecord {
    /// Adds the lease that is held now; a reservation is an operator's and is not recorded.
    pub(super) fn add(&mut self, held: &Held) {
        let Some(token) = held.token else { return };
        let key = held.lease.key;
        self.0.retain(|known| known.key != key);
        self.0.push(Recorded { key, token });
        let surplus = self.0.len().saturating_sub(REMEMBERED);
        self.0.drain(..surplus);
    }

    /// The same with the lease that is held now.
    #[must_use]
    pub(crate) fn with(mut self, held: &Held) -> Self {
        self.add(held);
        self
    }

    /// True when the lease under `key` that `token` ends is one of ours.
    #[must_use]
    pub(crate) fn has(&self, key: &SubnetKey, token: Option<i64>) -> bool {
        token.is_some_and(|token| self.0.contains(&Recorded { key: *key, token }))
    }

    /// True when a lease of ours was under `key`.
    #[must_use]
    pub(crate) fn names(&self, key: &SubnetKey) -> bool {
        self.0.iter().any(|known| known.key == *key)
    }
}

impl fmt::Display for LeaseRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|Recorded { key, token }| writeln!(f, "{key} {token:x}"))
    }
}

impl FromStr for LeaseRecord {
    type Err = std::convert::Infallible;

    /// Lines that are no record are left out: a damaged file costs knowledge, never the start.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let line = |line: &str| {
            let (key, token) = line.split_once(' ')?;
            Some(Recorded { key: key.parse().ok()?, token: u64::from_str_radix(token, 16).ok()?.cast_signed() })
        };
        Ok(Self(text.lines().filter_map(line).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_reads_what_it_writes_and_knows_a_lease_by_key_and_number() {
        let text = "172.7.21.0-24 694d7c1b2a3e4f50\n172.7.22.0-24 1\n";
        let record: LeaseRecord = format!("{text}junk\n172.7.23.0-24 x\n").parse().unwrap();
        assert_eq!(record.to_string(), text);
        let key = "172.7.21.0-24".parse().unwrap();
        assert!(record.has(&key, Some(0x694d_7c1b_2a3e_4f50)));
        // etcd takes any number from a client, a negative one as well.
        let negative = LeaseRecord(vec![Recorded { key, token: -2 }]);
        assert_eq!(negative.to_string().parse(), Ok(negative));
        assert!(!record.has(&key, Some(1)) && !record.has(&key, None));
    }
}
