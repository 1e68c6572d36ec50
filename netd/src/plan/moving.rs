//! A plan on its way from one backend to another.
//!
//! Invariants: a node is reached by the new backend as soon as its lease names that, and by the old one until then; a lease
//! that names a backend which this node does not use takes nothing away from the node that wrote it.

use super::backend::Backend;
use super::{Changes, LocalNode, Planner, Tables};
use crate::format::lease::{Lease, StoredLease, SubnetKey};
use crate::format::net_conf::Network;

impl Planner {
    /// The same for a node that has used the backend `retiring` before.
    #[must_use]
    pub(crate) fn beside(self, retiring: Option<Backend>) -> Self {
        Self { retiring, ..self }
    }

    /// Plans anew for another network, with the backend `retiring` beside that of the network.
    pub(crate) fn set_network(&mut self, network: Network, retiring: Option<Backend>, local: LocalNode) -> Changes {
        let before = self.tables();
        (self.network, self.retiring, self.local) = (network, retiring, local);
        self.plan_anew(before)
    }

    /// Plans anew without the backend that was used before.
    pub(crate) fn retire(&mut self) -> Changes {
        let before = self.tables();
        self.retiring = None;
        self.plan_anew(before)
    }

    /// How many nodes are reached by the backend that was used before, and no other.
    #[must_use]
    pub(crate) fn waiting(&self) -> usize {
        let Some(_) = &self.retiring else { return 0 };
        self.used().filter(|lease| self.network.backend.lease_rows(&self.local, lease).is_err()).count()
    }

    /// How many leases name a backend that this node does not use, while the ones before them stay.
    #[must_use]
    pub(crate) fn kept_count(&self) -> usize {
        self.kept.len()
    }

    /// The backends whose devices stand, the network's last.
    pub(super) fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.retiring.iter().chain([&self.network.backend])
    }

    /// Rows that make the subnets of another node reachable.
    ///
    /// # Errors
    /// Why that node cannot be reached.
    pub(super) fn lease_rows(&self, lease: &Lease) -> Result<Tables, String> {
        let rows = self.network.backend.lease_rows(&self.local, lease);
        match (&self.retiring, rows) {
            (Some(retiring), Err(reason)) => retiring.lease_rows(&self.local, lease).map_err(|_| reason),
            (_, rows) => rows,
        }
    }

    /// Notes whether the lease that was there stays although another one came. A node that has moved to another backend
    /// is reached the old way until this one moves as well: it may have read the configuration first.
    pub(super) fn keeps(&mut self, key: &SubnetKey, new: Option<&StoredLease>) -> bool {
        let known = self.leases.get(key);
        let keeps = new.zip(known).is_some_and(|(new, known)| {
            let (after, before) = (&new.lease.attrs, &known.lease.attrs);
            after.backend.name() != before.backend.name()
                && after.public_ips == before.public_ips
                && !self.is_own(&new.lease)
                && !self.refused.contains_key(key)
                && self.lease_rows(&known.lease).is_ok()
                && self.lease_rows(&new.lease).is_err()
        });
        if keeps {
            self.kept.insert(*key)
        } else {
            self.kept.remove(key)
        };
        keeps
    }
}
