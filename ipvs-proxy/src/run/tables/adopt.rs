//! What of IPVS is ours from before: found once, before the servers are first listed; and the mark that the record of it is whole.
//!
//! Invariant: every table is listed once for it, and behind the opening of its notifications: what it says then is what the
//! first pass works on. Until it is known nothing of IPVS is listed or written.

use std::collections::BTreeSet;
use std::time::Duration;

use netstate::IpFamily;
use netstate::ipvs::{Row, VirtualServerKey};
use reconcile::{Observed, Owner, Pass, Stage};

use super::Tables;
use crate::dataplane::{record, since};

impl Tables {
    /// Says which virtual servers are ours: those in the record; while it is not whole, also those whose address is on our
    /// link and not excluded, for that is where a predecessor of either name keeps the addresses of its own. Tables of IPVS that rest go on resting when
    /// the record is empty.
    pub(super) fn adopt(&mut self, now: Duration) -> Pass {
        let mut pass = Pass::default();
        if self.adopted {
            return pass;
        }
        if self.servers.is_none() && self.resting.is_none() {
            // Whatever stands in a table of our name is ours.
            self.adopted = true;
            return pass;
        }
        pass += self.stack.get_mut(self.nft).map(|nft| nft.list(now)).unwrap_or_default();
        let Some(rows) = self.stack.mirror(self.nft) else { return pass };
        let (recorded, draining) = (record::servers(rows), since::drains(rows));
        let open: Vec<_> = self.families.iter().copied().filter(|family| !record::is_whole(rows, *family)).collect();
        if !recorded.is_empty() {
            self.wake();
        }
        if self.servers.is_none() {
            self.adopted = true;
            return pass;
        }
        let mut at = BTreeSet::new();
        if !open.is_empty() {
            pass += self.addresses_mut().map(|addresses| addresses.list(now)).unwrap_or_default();
            let Some(addresses) = self.addresses.and_then(|addresses| self.stack.mirror(addresses)) else {
                return pass;
            };
            let theirs = addresses.iter().filter(|(_, row)| row.owner == Owner::Ours).map(|(key, _)| key.addr);
            at.extend(theirs.filter(|addr| open.contains(&IpFamily::of(*addr))));
        }
        tracing::info!(recorded = recorded.len(), whole = open.is_empty(), "record of virtual servers read");
        self.drains.remember(draining);
        if let Some(servers) = self.servers_mut() {
            servers.target_mut().adopt(recorded, at);
        }
        self.adopted = true;
        pass
    }

    /// Keeps the marker of a record that was found whole; returns whether it was.
    pub(crate) fn keep_marker(&mut self) -> bool {
        if self.servers.is_none() {
            return true;
        }
        let keys: Vec<_> = self.families.iter().map(|family| record::marker_key(*family)).collect();
        let mut is_whole = true;
        for key in keys {
            let found = self.observed_nft().and_then(|rows| rows.get(&key)).map(|row| row.value.clone());
            is_whole &= found.is_some();
            self.stack.want(self.nft, key, found);
        }
        is_whole
    }

    /// Marks the record as whole, once whatever was adopted is in order: desired, or gone. Returns whether it is.
    pub(crate) fn mark_whole(&mut self, since: u64) -> bool {
        let Some(servers) = self.servers() else { return false };
        let in_order = |(key, row): (&VirtualServerKey, &Observed<Row>)| {
            row.owner == Owner::Foreign || servers.desired().contains_key(key)
        };
        let recorded = self.stack.get(self.nft).is_some_and(|nft| nft.status().is_done());
        let is_whole = recorded && servers.mirror().is_some_and(|rows| rows.iter().all(in_order));
        for (key, row) in self.families.iter().filter(|_| is_whole).map(|family| record::marker(*family, since)) {
            if !self.stack.holds(self.nft, &key) {
                self.stack.want(self.nft, key, Some(row));
            }
        }
        is_whole
    }
}
