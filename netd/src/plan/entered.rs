//! The links, besides the interface towards the other nodes, by which packets of Pods come in as they are: those of plain routes.
//!
//! Invariant: a link has its parameter for as long as a route of the plan leads through it, and no longer.

use std::collections::{BTreeMap, BTreeSet};

use netstate::family::IpFamily;
use netstate::{IfName, SysctlKey};

use super::backend::Backend;
use super::local::carries;
use super::{Changes, PeerRows, Planner, RowChanges, Tables};

/// Links with the number of routes through each.
pub(super) type Entered = BTreeMap<IfName, usize>;

/// The parameter of a link.
fn parameter(link: &IfName) -> (SysctlKey, String) {
    carries(IpFamily::V4, link)
}

impl Planner {
    /// The links of plain routes among `rows`. IPv6 has one switch for all links, and the interface's is among the node's own rows.
    fn entered_by(&self, rows: &PeerRows) -> Entered {
        let plain = rows.routes.iter().filter(|(key, route)| key.dst.is_ipv4() && route.via.is_some());
        let links = plain.filter_map(|(_, route)| route.link.as_ref());
        let mut entered = Entered::new();
        for link in links.filter(|link| **link != self.local.interface && !Backend::owns_device(link)) {
            *entered.entry(link.clone()).or_default() += 1;
        }
        entered
    }

    /// The rows of all leases and of this node as tables.
    pub(super) fn whole(&self, rows: PeerRows) -> Tables {
        let entered = self.entered_by(&rows);
        let mut tables = rows.beside(self.local_rows());
        tables.sysctls.extend(entered.keys().map(parameter));
        tables
    }

    /// What makes `after` of `before`, which are the rows of some leases.
    pub(super) fn between(&mut self, before: PeerRows, after: PeerRows) -> Changes {
        let parameters = self.enter(&before, &after);
        let mut changes = Changes::between(before.into_tables(), after.into_tables());
        changes.sysctls.extend(parameters);
        changes
    }

    /// What `rows`, of which none was there before, change.
    pub(super) fn added(&mut self, rows: PeerRows) -> Changes {
        let parameters = self.enter(&PeerRows::default(), &rows);
        Changes { sysctls: parameters, ..rows.into_changes() }
    }

    /// Counts the routes of `after` in the place of those of `before`.
    pub(super) fn enter(&mut self, before: &PeerRows, after: &PeerRows) -> RowChanges<SysctlKey, String> {
        let (before, after) = (self.entered_by(before), self.entered_by(after));
        let mut changes = RowChanges::new();
        let links: BTreeSet<&IfName> = before.keys().chain(after.keys()).collect();
        for link in links {
            let [less, more] = [&before, &after].map(|counts| counts.get(link).copied().unwrap_or_default());
            let known = self.entered.remove(link).unwrap_or_default();
            let count = known.saturating_add(more).saturating_sub(less);
            if count > 0 {
                self.entered.insert(link.clone(), count);
            }
            let (key, value) = parameter(link);
            if (known > 0) != (count > 0) {
                changes.insert(key, (count > 0).then_some(value));
            }
        }
        changes
    }
}
