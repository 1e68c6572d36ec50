//! When a plan is made, and what of it the worker does not know yet.
//!
//! Invariants: what another node's lease says is planned only once the leases were listed whole, because a newer lease may
//! be in the other half of a first listing; what the store changed together is planned together, and as soon as it is all
//! there, but for [`PAUSE`]; the worker is given what changed, everything only once. A plan of all leases is given in parts,
//! of which only the last one lets removals run.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::reach::Learned;
use crate::format::lease::SubnetKey;
use crate::format::net_conf::Network;
use crate::plan::backend::Backend;
use crate::plan::{Changes, LocalNode, Planner, PodLinks, Ways};
use crate::source::view::View;

/// The shortest time between two plans: leases that change all the time cost a part of a processor that does not depend on
/// how fast they change.
const PAUSE: Duration = Duration::from_millis(3);

/// A change whose end does not come is planned this long after it began.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// What the worker shall do.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) changes: Changes,
    pub(super) revision: u64,
    /// Every source has listed everything, so removals may run.
    pub(super) complete: bool,
    /// When the first change came that it is about.
    pub(super) since: Option<Instant>,
}

impl Planned {
    /// Adds what was planned later.
    pub(super) fn extend(&mut self, later: Self) {
        self.changes.extend(later.changes);
        self.revision = later.revision;
        self.complete |= later.complete;
        self.since = self.since.or(later.since);
    }
}

/// When plans are made.
#[derive(Debug, Default)]
struct Pace {
    /// The first change that no plan knows of.
    since: Option<Instant>,
    /// What belongs together has come.
    ended: bool,
    /// When the last plan was made.
    last: Option<Instant>,
}

impl Pace {
    fn changed(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    const fn end(&mut self) {
        self.ended = self.since.is_some();
    }

    fn planned(&mut self, now: Instant) {
        *self = Self { last: Some(now), ..Self::default() };
    }

    fn due(&self) -> Option<Instant> {
        let first = self.since?;
        let whole = if self.ended { first } else { first + LONGEST_WAIT };
        Some(self.last.map_or(whole, |planned| whole.max(planned + PAUSE)))
    }
}

/// The plan and what is still to be planned.
pub(super) struct Planning {
    pub(super) planner: Planner,
    /// Leases that the plan does not know of, as they came: some more than once.
    leases: Vec<SubnetKey>,
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
            leases: Vec::new(),
            changes: Changes::default(),
            pace: Pace::default(),
            fresh: true,
            complete: false,
            revision: 0,
            whole_since: None,
        }
    }

    /// `leases` differ, until [`Planning::end`] perhaps not all of those that do.
    pub(super) fn note(&mut self, leases: BTreeSet<SubnetKey>) {
        self.leases.extend(leases);
        self.pace.changed(Instant::now());
    }

    /// What belongs together was noted.
    pub(super) const fn end(&mut self) {
        self.pace.end();
    }

    /// `leases` are all that differ.
    pub(super) fn note_all(&mut self, leases: BTreeSet<SubnetKey>) {
        self.note(leases);
        self.end();
    }

    /// Something else differs that a plan depends on.
    pub(super) fn note_other(&mut self) {
        self.note_all(BTreeSet::new());
    }

    /// This node has another place.
    pub(super) fn set_local(&mut self, local: LocalNode) {
        let changes = self.planner.set_local(local);
        self.changes.extend(changes);
        self.note_other();
    }

    /// The kernel says something else of the ways to the nodes.
    pub(super) fn set_ways(&mut self, ways: Ways) {
        if self.planner.local().ways != ways {
            let changes = self.planner.set_ways(ways);
            self.changes.extend(changes);
            self.note_other();
        }
    }

    /// The kernel was asked for the ways to some nodes: those of the leases that wait to be planned, or of any.
    pub(super) fn learn_ways(&mut self, Learned { answers, anew }: Learned) {
        let among = (!anew).then_some(self.leases.as_slice());
        let changes = self.planner.learn_ways(answers, among);
        if changes.rows() > 0 {
            self.changes.extend(changes);
            self.note_other();
        }
    }

    /// This node's Pods are reached by these links.
    pub(super) fn set_pod_links(&mut self, links: PodLinks) {
        let changes = self.planner.set_pod_links(links);
        if changes.rows() > 0 {
            self.changes.extend(changes);
            self.note_other();
        }
    }

    /// The addresses of leases that the next plan adds.
    pub(super) fn new_addresses(&self, view: &View) -> Vec<IpAddr> {
        let leases = self.leases.iter().filter(|_| !view.is_partial()).filter_map(|key| view.get(key));
        leases.flat_map(|stored| stored.lease.attrs.public_ips.present().map(|(_, addr)| *addr)).collect()
    }

    /// The network has another configuration.
    pub(super) fn set_network(&mut self, network: Network, retiring: Vec<Backend>, local: LocalNode) {
        let changes = self.planner.set_network(network, retiring, local);
        self.changes.extend(changes);
        self.note_other();
    }

    /// The other nodes know this one by the new backend; `leases` are judged anew.
    pub(super) fn release(&mut self, leases: BTreeSet<SubnetKey>) {
        self.planner.release();
        self.note_all(leases);
    }

    /// Nobody uses the earlier backends any more.
    pub(super) fn retire(&mut self) {
        let changes = self.planner.retire();
        self.changes.extend(changes);
        self.note_other();
    }

    /// A new worker knows nothing of what was given before.
    pub(super) fn start_over(&mut self) {
        self.fresh = true;
        self.note_other();
    }

    /// When the next plan is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.pace.due()
    }

    /// Makes the plan and has `give` pass it on, in parts when it is about all leases. Returns false when the worker knows it
    /// already.
    pub(super) fn plan(&mut self, view: &View, mut give: impl FnMut(Planned)) -> bool {
        let since = self.pace.since;
        self.pace.planned(Instant::now());
        let mut leases = if view.is_partial() { Vec::new() } else { std::mem::take(&mut self.leases) };
        leases.sort_unstable();
        leases.dedup();
        let leases = leases.into_iter().map(|key| (key, view.get(&key).cloned()));
        let mut changes = std::mem::take(&mut self.changes);
        let mut next = |changes, complete| {
            self.revision += 1;
            Planned { changes, revision: self.revision, complete, since }
        };
        let mut given = false;
        if self.fresh || self.planner.is_empty() {
            let mut parts = self.planner.begin(leases);
            if self.fresh {
                changes = self.planner.own_part();
            }
            changes.extend(self.planner.part(&mut parts));
            while !parts.is_empty() {
                give(next(std::mem::take(&mut changes), false));
                changes = self.planner.part(&mut parts);
                given = true;
            }
        } else {
            changes.extend(self.planner.update(leases));
        }
        let complete = view.is_complete();
        let known = complete == self.complete && changes.rows() == 0 && self.whole_since.is_some();
        if !self.fresh && !given && known {
            return false;
        }
        self.fresh = false;
        self.complete = complete;
        give(next(changes, complete));
        if complete || view.is_doubted() {
            self.whole_since.get_or_insert(self.revision);
        }
        true
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
    fn what_changed_together_is_planned_at_its_end_and_no_more_often_than_the_pause_allows() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut pace = Pace::default();
        pace.end();
        assert_eq!(pace.due(), None, "nothing has changed");
        pace.changed(at(7));
        assert_eq!(pace.due(), Some(at(107)), "more of it may come");
        pace.changed(at(8));
        pace.end();
        assert!(pace.due().unwrap() <= at(8), "at once");
        pace.planned(at(8));
        assert_eq!(pace.due(), None);
        pace.changed(at(9));
        pace.end();
        assert_eq!(pace.due(), Some(at(11)), "right after a plan");
        for ms in 10..200 {
            pace.changed(at(ms));
            pace.end();
        }
        assert_eq!(pace.due(), Some(at(11)), "however many");
        pace.planned(at(200));
        pace.changed(at(300));
        assert_eq!(pace.due(), Some(at(400)), "an end that does not come");
    }
}
