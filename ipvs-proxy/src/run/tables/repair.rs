//! What somebody else did to the servers: finding it and repairing it in place.
//!
//! IPVS announces no changes, so virtual servers are listed and compared from time to time. Invariant: what differs is read
//! again before it is believed, and only that; everything else goes on meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use kernel::{Chain, KernelError};
use netstate::ipvs::{Row, VirtualServerKey};
use reconcile::{Pass, Rows, Stage};

use super::super::targets::Servers;
use super::Tables;
use crate::dataplane::record;

/// Virtual servers that differ, or why that is not known.
type Differing = Result<BTreeSet<VirtualServerKey>, KernelError>;

impl Tables {
    /// True when virtual servers carry connections and there is none yet, of anybody's.
    pub(crate) fn have_no_servers(&mut self) -> bool {
        let is_empty = self.servers_mut().map(|servers| servers.target_mut().is_empty());
        is_empty.is_some_and(|is_empty| is_empty.unwrap_or(false))
    }

    /// Reads parameters again, and compares the real servers of the virtual servers whose turn it is. Returns whether there are as many
    /// virtual servers as when all were compared last.
    pub(crate) fn look(&mut self) -> bool {
        self.stack.invalidate(self.sysctls);
        self.compare(|servers, known| servers.differing_in_turn(known));
        // One that cannot be asked is found out by the comparison, which says so.
        self.servers_mut().is_none_or(|servers| servers.target_mut().is_as_many().unwrap_or(false))
    }

    /// Compares all virtual servers of ours with the kernel.
    pub(crate) fn audit(&mut self) {
        self.compare(|servers, known| servers.differing(known));
    }

    fn compare(&mut self, compare: impl FnOnce(&mut (dyn Servers + Send), &Rows<VirtualServerKey, Row>) -> Differing) {
        let Some(servers) = self.servers_mut() else { return };
        let differing = match servers.compare(|target, mirror| compare(target.as_mut(), mirror)) {
            None => return,
            Some(Ok(differing)) => differing,
            Some(Err(error)) => {
                // Said once, not every second.
                let reason = Chain(&error).to_string();
                if self.audit_failure.as_ref() != Some(&reason) {
                    tracing::warn!(error = reason, "virtual servers cannot be compared");
                }
                self.audit_failure = Some(reason);
                return;
            }
        };
        self.audit_failure = None;
        if differing.is_empty() {
            return;
        }
        let changed = self.read_again(&differing);
        if let Some(first) = changed.first() {
            tracing::warn!(count = changed.len(), %first, "virtual servers were changed by somebody else");
        }
    }

    /// Lets the record go of virtual servers that are gone. One that the kernel did not give up is still ours.
    pub(super) fn release_records(&mut self) {
        let Some(mirror) = self.observed_servers() else { return };
        let gone = |server: &VirtualServerKey| !mirror.contains_key(server);
        let gone: Vec<VirtualServerKey> = self.recorded.iter().copied().filter(gone).collect();
        for server in gone {
            self.recorded.remove(&server);
            self.stack.want(self.nft, record::key(&server), None);
        }
    }

    /// Reads virtual servers that were taken over, or that could not be read before.
    pub(super) fn read_unread(&mut self) {
        let unread = std::mem::take(&mut self.unread);
        if !unread.is_empty() {
            self.read_again(&unread);
        }
    }

    /// Makes virtual servers again, with their real servers, that turned out to be gone.
    pub(super) fn repair_vanished(&mut self, now: Duration) -> Pass {
        let Some(servers) = self.servers_mut() else { return Pass::default() };
        let vanished = servers.target_mut().take_vanished();
        if vanished.is_empty() {
            return Pass::default();
        }
        self.read_again(&vanished);
        self.servers_mut().map(|servers| servers.upsert(now)).unwrap_or_default()
    }

    /// Believes of these virtual servers what the kernel says now. Their real servers that nobody desires leave as others do.
    /// Returns those that were other than known.
    fn read_again(&mut self, services: &BTreeSet<VirtualServerKey>) -> BTreeSet<VirtualServerKey> {
        let Some(servers) = self.servers_mut() else { return BTreeSet::new() };
        let mut found = match servers.target_mut().rows_of(services) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "virtual servers cannot be read");
                self.unread.extend(services);
                return BTreeSet::new();
            }
        };
        let Some(mirror) = servers.mirror() else { return BTreeSet::new() };
        let value = |rows: &Rows<VirtualServerKey, Row>, key| rows.get(key).map(|row| row.value.clone());
        let changed = services.iter().filter(|key| value(mirror, key) != value(&found, key)).copied().collect();
        for key in services {
            let row = found.remove(key);
            let held = row.as_ref().map(|row| row.value.reals.clone()).unwrap_or_default();
            self.keep(*key, &held);
            if let Some(servers) = self.servers_mut() {
                servers.correct(*key, row);
            }
        }
        changed
    }
}
