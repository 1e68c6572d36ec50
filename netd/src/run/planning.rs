//! When a plan is made, and what of it the worker does not know yet.
//!
//! Invariants: what another node's lease says is planned only once the leases were listed whole, because a newer lease may
//! be in the other half of a first listing; a lease that changes alone is planned at once, however soon after another, but
//! for [`PAUSE`]; while leases keep changing a plan is made at least every [`LONGEST_WAIT`]; the worker is given what
//! changed, everything only once.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use netstate::IfName;
use tokio::time::Instant;

use crate::format::lease::SubnetKey;
use crate::format::net_conf::Network;
use crate::plan::backend::Backend;
use crate::plan::{Changes, LocalNode, Planner, Ways};
use crate::source::view::View;

/// A plan is made when no further lease has arrived for this long: what one write to the store changes arrives together.
const TOGETHER: Duration = Duration::from_millis(1);

/// The shortest time between two plans: a lease that changes right after another waits no longer, and leases that change
/// all the time cost a part of a processor that does not depend on how fast they change.
const PAUSE: Duration = Duration::from_millis(3);

/// A plan is made at the latest this long after the first change.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// What the worker shall do.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) changes: Changes,
    pub(super) revision: u64,
    /// Every source has listed everything, so removals may run.
    pub(super) complete: bool,
}

impl Planned {
    /// Adds what was planned later.
    pub(super) fn extend(&mut self, later: Self) {
        self.changes.extend(later.changes);
        self.revision = later.revision;
        self.complete |= later.complete;
    }
}

/// When plans are made.
#[derive(Debug, Default)]
struct Pace {
    /// First and last change that no plan knows of.
    since: Option<(Instant, Instant)>,
    /// When the last plan was made.
    last: Option<Instant>,
}

impl Pace {
    fn changed(&mut self, now: Instant) {
        self.since = Some((self.since.map_or(now, |(first, _)| first), now));
    }

    fn planned(&mut self, now: Instant) {
        *self = Self { since: None, last: Some(now) };
    }

    fn due(&self) -> Option<Instant> {
        let (first, last) = self.since?;
        let quiet = (last + TOGETHER).min(first + LONGEST_WAIT);
        Some(self.last.map_or(quiet, |planned| quiet.max(planned + PAUSE)))
    }
}

/// The plan and what is still to be planned.
pub(super) struct Planning {
    pub(super) planner: Planner,
    /// Leases that the plan does not know of.
    leases: BTreeSet<SubnetKey>,
    /// Planned, and not given to the worker.
    changes: Changes,
    pace: Pace,
    /// The worker knows nothing.
    fresh: bool,
    /// The worker knows that the listing is complete.
    complete: bool,
    revision: u64,
    /// The revision of the first plan that knew every lease.
    whole_since: Option<u64>,
}

impl Planning {
    pub(super) fn new(planner: Planner) -> Self {
        Self {
            planner,
            leases: BTreeSet::new(),
            changes: Changes::default(),
            pace: Pace::default(),
            fresh: true,
            complete: false,
            revision: 0,
            whole_since: None,
        }
    }

    /// `leases` differ, or something else that a plan depends on.
    pub(super) fn note(&mut self, leases: BTreeSet<SubnetKey>) {
        self.leases.extend(leases);
        self.pace.changed(Instant::now());
    }

    /// This node has another place.
    pub(super) fn set_local(&mut self, local: LocalNode) {
        let changes = self.planner.set_local(local);
        self.changes.extend(changes);
        self.note(BTreeSet::new());
    }

    /// The kernel says something else of the ways to the nodes.
    pub(super) fn set_ways(&mut self, ways: Ways) {
        if self.planner.local().ways != ways {
            let changes = self.planner.set_ways(ways);
            self.changes.extend(changes);
            self.note(BTreeSet::new());
        }
    }

    /// This node's Pods are on these bridges.
    pub(super) fn set_bridges(&mut self, bridges: BTreeSet<IfName>) {
        let changes = self.planner.set_bridges(bridges);
        if changes.rows() > 0 {
            self.changes.extend(changes);
            self.note(BTreeSet::new());
        }
    }

    /// The addresses of leases that the next plan adds.
    pub(super) fn new_addresses(&self, view: &View) -> Vec<IpAddr> {
        let leases = self.leases.iter().filter(|_| !view.is_partial()).filter_map(|key| view.get(key));
        leases.flat_map(|stored| stored.lease.attrs.public_ips.present().map(|(_, addr)| *addr)).collect()
    }

    /// The network has another configuration.
    pub(super) fn set_network(&mut self, network: Network, retiring: Option<Backend>, local: LocalNode) {
        let changes = self.planner.set_network(network, retiring, local);
        self.changes.extend(changes);
        self.note(BTreeSet::new());
    }

    /// The other nodes know this one by the new backend; `leases` are judged anew.
    pub(super) fn release(&mut self, leases: BTreeSet<SubnetKey>) {
        self.planner.release();
        self.note(leases);
    }

    /// Nobody uses the earlier backend any more.
    pub(super) fn retire(&mut self) {
        let changes = self.planner.retire();
        self.changes.extend(changes);
        self.note(BTreeSet::new());
    }

    /// A new worker knows nothing of what was given before.
    pub(super) fn start_over(&mut self) {
        self.fresh = true;
        self.note(BTreeSet::new());
    }

    /// When the next plan is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.pace.due()
    }

    /// Makes the plan; `None` when the worker knows it already.
    pub(super) fn plan(&mut self, view: &View) -> Option<Planned> {
        self.pace.planned(Instant::now());
        let leases = if view.is_partial() { BTreeSet::new() } else { std::mem::take(&mut self.leases) };
        let leases = leases.into_iter().map(|key| (key, view.get(&key).cloned()));
        let mut changes = std::mem::take(&mut self.changes);
        if self.fresh {
            changes = self.planner.update_all(leases);
        } else {
            changes.extend(self.planner.update(leases));
        }
        let complete = view.is_complete();
        if !self.fresh && complete == self.complete && changes.rows() == 0 && self.whole_since.is_some() {
            return None;
        }
        self.fresh = false;
        self.complete = complete;
        self.revision += 1;
        if complete || view.is_doubted() {
            self.whole_since.get_or_insert(self.revision);
        }
        Some(Planned { changes, revision: self.revision, complete })
    }

    /// True for the revision of the latest plan.
    pub(super) const fn is_latest(&self, revision: u64) -> bool {
        self.revision == revision
    }

    /// True for the revision of a plan that knew every lease.
    pub(super) fn is_whole(&self, revision: u64) -> bool {
        self.whole_since.is_some_and(|since| revision >= since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_that_changes_alone_is_planned_at_once_and_many_together() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut pace = Pace::default();
        assert_eq!(pace.due(), None);
        pace.changed(at(0));
        assert_eq!(pace.due(), Some(at(1)), "the first one");
        pace.planned(at(1));
        assert_eq!(pace.due(), None);
        pace.changed(at(2));
        assert_eq!(pace.due(), Some(at(4)), "right after a plan");
        pace.changed(at(8));
        assert_eq!(pace.due(), Some(at(9)), "another one of the same plan");
        pace.planned(at(9));
        pace.changed(at(20));
        assert_eq!(pace.due(), Some(at(21)), "soon after a plan");
        for ms in 21..200 {
            pace.changed(at(ms));
        }
        assert_eq!(pace.due(), Some(at(120)), "however many");
    }
}
