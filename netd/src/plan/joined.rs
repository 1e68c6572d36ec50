//! The WireGuard peers of a node that has several leases.
//!
//! A device has one peer for each public key. Invariant: that peer has the subnets of every lease of its node that is used, and
//! the end that the newest of them names, whichever of them the row is made for.

use std::collections::BTreeSet;

use netstate::wireguard::{Row, RowKey};

use super::backend::TunnelEnd;
use super::judged::part;
use super::{PeerRows, Planner, used};
use crate::format::lease::SubnetKey;

impl Planner {
    /// Adds to the peers among `rows`, which are those of the lease under `key`, what other leases say of the same peers.
    pub(super) fn join(&self, key: &SubnetKey, rows: &mut [(RowKey, Row)]) {
        // Backends without peers plan thousands of leases, too.
        if rows.is_empty() {
            return;
        }
        let Some(mut newest) = self.leases.get(key).map(|stored| (stored.revision, *key)) else { return };
        let ends: Vec<TunnelEnd> = rows.iter().filter_map(|(row, _)| end(row)).collect();
        for other in self.sharing(key, &ends) {
            let Some(stored) = self.leases.get(&other) else { continue };
            let mut found = PeerRows::default();
            if let Some(part) = part(&stored.lease, used(&other, &self.verdicts(&other, None))) {
                // One that cannot be reached says nothing.
                let _ = self.lease_rows(&part, &mut found);
            }
            let age = (stored.revision, other);
            for (row, value) in rows.iter_mut() {
                let same = found.wireguard.iter().filter(|(found, _)| found == row);
                for (_, found) in same {
                    take_in(value, found, age > newest);
                }
            }
            newest = newest.max(age);
        }
    }

    /// The other leases that name one of `ends`.
    fn sharing(&self, key: &SubnetKey, ends: &[TunnelEnd]) -> BTreeSet<SubnetKey> {
        let named = self.peers.iter().flat_map(|(family, peers)| {
            ends.iter().flat_map(move |end| peers.with_end(*end, family)).map(|slot| slot.key)
        });
        named.filter(|other| other != key).collect()
    }
}

const fn end(row: &RowKey) -> Option<TunnelEnd> {
    match row {
        RowKey::Peer(_, key) => Some(TunnelEnd::Key(*key)),
        RowKey::Device(_) => None,
    }
}

fn take_in(value: &mut Row, found: &Row, is_newer: bool) {
    let (Row::Peer(peer), Row::Peer(found)) = (value, found) else { return };
    peer.allowed.extend(found.allowed.iter().copied());
    if is_newer {
        peer.endpoint = found.endpoint;
    }
}
