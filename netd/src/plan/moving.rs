//! A plan on its way from one backend to another.
//!
//! Invariants: a node is reached by the new backend as soon as its lease names that, and by an old one until then, however
//! often the backend changes meanwhile; a lease that names a backend which this node does not use takes nothing away from
//! the node that wrote it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::backend::Backend;
use super::{Changes, LocalNode, PeerRows, Planner, Tables};
use crate::format::lease::{Lease, StoredLease, SubnetKey};
use crate::format::net_conf::Network;

/// How far a plan has come from one backend to another.
#[derive(Debug, Clone, Default)]
pub(super) struct Moving {
    /// The backends that were used before, for nodes that use them still, the oldest first.
    pub(super) retiring: Vec<Backend>,
    /// Nodes that have moved are reached the old way for now: they do not know this one by the new backend yet.
    holding: bool,
    /// What the leases of nodes that have moved said before, where such nodes must stay known to be received.
    earlier: BTreeMap<SubnetKey, Lease>,
    /// Leases that name a backend or a device which this node does not have, with what is to be said of the device; the ones
    /// before them stay.
    kept: BTreeMap<SubnetKey, Option<String>>,
}

impl Planner {
    /// The same for a node that has used the backends `retiring` before.
    #[must_use]
    pub(crate) fn beside(self, retiring: Vec<Backend>) -> Self {
        Self { moving: Moving { retiring, ..self.moving }, ..self }
    }

    /// Plans anew for another network, with the backends `retiring` beside that of the network.
    pub(crate) fn set_network(&mut self, network: Network, retiring: Vec<Backend>, local: LocalNode) -> Changes {
        let before = self.tables();
        // While the same backend retires, nodes that have left it may send that way still.
        if self.moving.retiring.iter().any(|old| old.needs_key() && !retiring.contains(old)) {
            self.moving.earlier.clear();
        }
        (self.network, self.moving.retiring, self.local) = (network, retiring, local);
        // WireGuard takes packets only from nodes that it knows.
        self.moving.holding = !self.moving.retiring.is_empty() && self.network.backend.needs_key();
        self.plan_anew(before)
    }

    pub(super) fn plan_anew(&mut self, before: Tables) -> Changes {
        let leases: Vec<Arc<StoredLease>> = self.leases.values().cloned().collect();
        self.set(leases.into_iter().map(|stored| (stored.lease.key, Some(stored))));
        let rows = self.settle_all();
        self.entered.clear();
        self.enter(&PeerRows::default(), &rows);
        Changes::between(before, self.whole(rows))
    }

    /// The other nodes know this one by the new backend: leases that are put in from now on are used.
    pub(crate) const fn release(&mut self) {
        self.moving.holding = false;
    }

    /// Plans anew without the backends that were used before.
    pub(crate) fn retire(&mut self) -> Changes {
        let before = self.tables();
        self.moving.retiring.clear();
        self.moving.earlier.clear();
        self.plan_anew(before)
    }

    /// How many nodes are reached by a backend that was used before, and not by that of the network.
    #[must_use]
    pub(crate) fn waiting(&self) -> usize {
        if self.moving.retiring.is_empty() {
            return 0;
        }
        let backend = &self.network.backend;
        let unreachable = |lease: &Lease| backend.lease_rows(&self.local, lease, &mut PeerRows::default()).is_err();
        self.used().filter(|lease| self.named(lease).is_some() || unreachable(lease)).count()
    }

    /// How many leases name a backend or a device that this node does not have, while the ones before them stay.
    #[must_use]
    pub(crate) fn kept_count(&self) -> usize {
        self.moving.kept.len()
    }

    /// The backends whose devices stand, the network's last.
    pub(super) fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.moving.retiring.iter().chain([&self.network.backend])
    }

    /// Adds the rows that make the subnets of another node reachable.
    ///
    /// # Errors
    /// Why that node cannot be reached; nothing is added then.
    pub(super) fn lease_rows(&self, lease: &Lease, rows: &mut PeerRows) -> Result<(), String> {
        if let Some(named) = self.named(lease) {
            return named.lease_rows(&self.local, lease, rows);
        }
        let Err(reason) = self.network.backend.lease_rows(&self.local, lease, rows) else { return Ok(()) };
        let mut retiring = self.moving.retiring.iter().rev();
        retiring.find_map(|old| old.lease_rows(&self.local, lease, rows).ok()).ok_or(reason)
    }

    /// The backend of before whose device a lease says that its node has, where it has not that of the network.
    fn named(&self, lease: &Lease) -> Option<&Backend> {
        if self.moving.retiring.is_empty() || self.network.backend.remark_on(lease).is_none() {
            return None;
        }
        let takes = |old: &&Backend| {
            old.remark_on(lease).is_none() && old.lease_rows(&self.local, lease, &mut PeerRows::default()).is_ok()
        };
        self.moving.retiring.iter().rev().find(takes)
    }

    /// What is odd about a lease that is used all the same, or about the one that has come in its place, for an operator.
    pub(super) fn remark_on(&self, lease: &Lease) -> Option<String> {
        let remark = self.network.backend.remark_on(lease).filter(|_| self.named(lease).is_none());
        remark.or_else(|| self.moving.kept.get(&lease.key).cloned().flatten())
    }

    /// True when the node of `lease` can be reached.
    fn reaches(&self, lease: &Lease) -> bool {
        self.lease_rows(lease, &mut PeerRows::default()).is_ok()
    }

    /// Remembers what the lease of a node that moves away from a retiring backend said: it sends that way until it has
    /// noticed this node's move, and WireGuard takes packets only from nodes that it knows.
    pub(super) fn remember_earlier(&mut self, key: &SubnetKey, new: Option<&StoredLease>) {
        let Some(new) = new else { return drop(self.moving.earlier.remove(key)) };
        if let Some(known) = self.leases.get(key)
            && known.lease.attrs.backend.name() != new.lease.attrs.backend.name()
            && self.leaving().any(|old| old.name() == known.lease.attrs.backend.name())
            && !self.is_own(&new.lease)
        {
            self.moving.earlier.insert(*key, known.lease.clone());
        }
    }

    /// Adds the rows that keep a node known which has moved; its routes are those of its new lease.
    pub(super) fn earlier_rows(&self, key: &SubnetKey, rows: &mut PeerRows) {
        let Some(lease) = self.moving.earlier.get(key) else { return };
        let routes = rows.routes.len();
        for old in self.leaving() {
            // One that cannot be reached any more adds nothing.
            let _ = old.lease_rows(&self.local, lease, rows);
        }
        rows.routes.truncate(routes);
    }

    /// The retiring backends that take packets only from nodes that they know.
    fn leaving(&self) -> impl Iterator<Item = &Backend> {
        self.moving.retiring.iter().filter(|old| old.needs_key())
    }

    /// Notes whether the lease that was there stays although another one came. A node that has moved to another backend, or to
    /// another device, is reached the old way until this one moves as well: it may have read the configuration first.
    pub(super) fn keeps(&mut self, key: &SubnetKey, new: Option<&StoredLease>) -> bool {
        let pair = new.zip(self.leases.get(key)).filter(|(new, known)| self.may_keep(&known.lease, &new.lease));
        let kept = pair.and_then(|(new, known)| {
            if new.lease.attrs.backend.name() == known.lease.attrs.backend.name() {
                return self.other_device(&known.lease, &new.lease).map(Some);
            }
            (self.moving.holding || !self.reaches(&new.lease)).then_some(None)
        });
        let Some(remark) = kept else {
            self.moving.kept.remove(key);
            return false;
        };
        if let Some(remark) = &remark
            && self.remarks.insert(*key, remark.clone()).as_ref() != Some(remark)
        {
            self.changed.insert(*key);
        }
        self.moving.kept.insert(*key, remark);
        true
    }

    /// True when `known` can go on being used beside `new`, of the same node.
    fn may_keep(&self, known: &Lease, new: &Lease) -> bool {
        new.attrs.public_ips == known.attrs.public_ips
            && !self.is_own(new)
            && !self.refused.contains_key(&known.key)
            && self.reaches(known)
    }

    /// What is to be said of `new` when it names a device that none of this node's answers to, and `known` did not.
    fn other_device(&self, known: &Lease, new: &Lease) -> Option<String> {
        let remark = |lease| self.network.backend.remark_on(lease).filter(|_| self.named(lease).is_none());
        remark(new).filter(|_| remark(known).is_none())
    }
}
