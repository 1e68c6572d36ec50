//! What somebody else did to the servers: finding it and repairing it in place.
//!
//! IPVS announces no changes, so virtual servers are listed and compared from time to time. Invariant: what differs is read
//! again before it is believed, and only that; everything else goes on meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kernel::{Chain, KernelError};
use netstate::ipvs::{Row, RowKey, VirtualServerKey};
use reconcile::{Observed, Pass, Rows, Stage};

use super::super::targets::Servers;
use super::Tables;
use crate::dataplane::ipvs::reals_of;
use crate::dataplane::record;

/// Virtual servers that differ, or why that is not known.
type Differing = Result<BTreeSet<VirtualServerKey>, KernelError>;

impl Tables {
    /// True when virtual servers carry connections and there is none yet, of anybody's.
    pub(crate) fn have_no_servers(&mut self) -> bool {
        let is_empty = self.servers_mut().map(|servers| servers.target_mut().is_empty());
        is_empty.is_some_and(|is_empty| is_empty.unwrap_or(false))
    }

    /// Reads parameters again and compares all virtual servers of ours with the kernel.
    pub(crate) fn audit(&mut self) {
        self.stack.invalidate(self.sysctls);
        self.compare(|servers, known| servers.differing(known));
    }

    /// Compares the real servers of the virtual servers whose turn it is.
    pub(crate) fn audit_in_turn(&mut self) {
        self.compare(|servers, known| servers.differing_in_turn(known));
    }

    fn compare(&mut self, compare: impl FnOnce(&mut (dyn Servers + Send), &Rows<RowKey, Row>) -> Differing) {
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
            tracing::warn!(count = changed.len(), %first, "rows of virtual servers were changed by somebody else");
        }
    }

    /// Lets the record go of virtual servers that are gone. One that the kernel did not give up is still ours.
    pub(super) fn release_records(&mut self) {
        let Some(mirror) = self.observed_servers() else { return };
        let gone = |server: &VirtualServerKey| !mirror.contains_key(&RowKey::Virtual(*server));
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
    /// Returns the rows that were other than known.
    fn read_again(&mut self, services: &BTreeSet<VirtualServerKey>) -> BTreeSet<RowKey> {
        let Some(servers) = self.servers.and_then(|servers| self.stack.get_mut(servers)) else {
            return BTreeSet::new();
        };
        let found = match servers.target_mut().rows_of(services) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "virtual servers cannot be read");
                self.unread.extend(services);
                return BTreeSet::new();
            }
        };
        let Some(mirror) = servers.mirror() else { return BTreeSet::new() };
        let rows = |service: &VirtualServerKey| rows_of(mirror, *service).chain(rows_of(servers.desired(), *service));
        let gone: BTreeSet<RowKey> = services.iter().flat_map(rows).filter(|key| !found.contains_key(key)).collect();
        let differs =
            |(key, row): &(&RowKey, &Observed<Row>)| mirror.get(key).map(|known| &known.value) != Some(&row.value);
        let mut changed: BTreeSet<RowKey> = found.iter().filter(differs).map(|(key, _)| *key).collect();
        changed.extend(gone.iter().filter(|key| mirror.contains_key(key)));
        for key in gone {
            servers.correct(key, None);
        }
        for (key, row) in found {
            if let RowKey::Real(real) = key
                && !servers.desired().contains_key(&key)
            {
                self.leaving.insert(real);
            }
            servers.correct(key, Some(row));
        }
        changed
    }
}

/// The keys of a virtual server and of its real servers among `rows`.
fn rows_of<V>(rows: &BTreeMap<RowKey, V>, service: VirtualServerKey) -> impl Iterator<Item = RowKey> {
    std::iter::once(RowKey::Virtual(service)).chain(reals_of(rows, service).map(RowKey::Real))
}
