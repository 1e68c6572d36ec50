//! `Judged`: what is to be thought of a lease by itself, and how it gets into the plan.
//!
//! Invariant: what is put in one by one and what is put in at once give the same plan.

use std::borrow::Cow;
use std::sync::Arc;

use netstate::family::PerFamily;
use netstate::{IpFamily, Prefix};

use super::peers::{self, Half, Peers, Slot, Standing};
use super::{PeerRows, Planner};
use crate::format::lease::{Lease, LeaseAttrs, StoredLease, SubnetKey};

/// A change of one lease with what is to be thought of each of its families.
pub(super) struct Judged {
    pub(super) key: SubnetKey,
    stored: Option<Arc<StoredLease>>,
    pub(super) halves: PerFamily<Option<Half>>,
}

impl Planner {
    /// Puts `leases` in, or takes them out, one by one.
    pub(super) fn set(&mut self, leases: impl IntoIterator<Item = (SubnetKey, Option<Arc<StoredLease>>)>) {
        for (key, stored) in leases {
            if !self.keeps(&key, stored.as_deref()) {
                let judged = self.judged(key, stored);
                self.put(judged);
            }
        }
    }

    /// Puts all of `leases` into a plan without any.
    pub(super) fn fill(&mut self, leases: impl IntoIterator<Item = (SubnetKey, Option<Arc<StoredLease>>)>) {
        let mut halves = PerFamily::<Vec<(Slot, Half)>>::default();
        let judge = |(key, stored): (SubnetKey, Arc<StoredLease>)| {
            for (family, half) in self.judged(key, Some(Arc::clone(&stored))).halves {
                halves.get_mut(family).extend(half.map(|half| (Slot::new(half.subnet, key), half)));
            }
            (key, stored)
        };
        let there = leases.into_iter().filter_map(|(key, stored)| Some((key, stored?)));
        let leases = there.map(judge).collect();
        (self.leases, self.peers) = (leases, halves.map(|_, halves| Peers::of(halves)));
    }

    /// Puts one in, or takes it out.
    pub(super) fn put(&mut self, judged: Judged) {
        self.remember_earlier(&judged.key, judged.stored.as_deref());
        let Judged { key, stored, halves } = judged;
        for (family, half) in halves {
            if let Some(subnet) = key.get(family) {
                self.peers.get_mut(family).set(Slot::new(subnet, key), half);
            }
        }
        match stored {
            Some(stored) => drop(self.leases.insert(key, stored)),
            None => drop(self.leases.remove(&key)),
        }
    }

    /// What is to be thought of each family of a lease, or of its absence.
    pub(super) fn judged(&self, key: SubnetKey, stored: Option<Arc<StoredLease>>) -> Judged {
        let other = stored.as_ref().filter(|stored| !self.is_own(&stored.lease));
        let halves = PerFamily::from_fn(|family| self.half(other?, key.get(family)?));
        Judged { key, stored, halves }
    }

    /// One family of a lease of another node.
    fn half(&self, stored: &Arc<StoredLease>, subnet: Prefix) -> Option<Half> {
        let (family, attrs) = (subnet.family(), &stored.lease.attrs);
        let mut half = Half { stored: Arc::clone(stored), subnet, standing: Standing::Usable(None) };
        let refusal = attrs.public_ip(family).err();
        let refusal = refusal.or_else(|| peers::refusal(&self.network, self.local.places.get(family).as_ref(), &half));
        let refusal = refusal.or_else(|| self.no_node(attrs, subnet));
        let end = || {
            let mut rows = PeerRows::default();
            let part = part(&stored.lease, PerFamily::only(family, subnet));
            part.map_or(Ok(()), |part| self.lease_rows(&part, &mut rows)).map(|()| rows.tunnel_end())
        };
        half.standing = refusal.map_or_else(end, Err).map_or_else(Standing::Unusable, Standing::Usable);
        Some(half)
    }

    /// Why an address to which packets for `subnet` would go cannot be another node's, if so: a tunnel may go over the other family.
    fn no_node(&self, attrs: &LeaseAttrs, subnet: Prefix) -> Option<String> {
        let family = subnet.family();
        let over =
            self.backends().map(|backend| backend.over(&self.local, attrs, family)).filter(|over| *over != family);
        let mut addresses = std::iter::once(family).chain(over).filter_map(|family| *attrs.public_ips.get(family));
        addresses.find_map(|addr| {
            let own = self.local.ways.own.get(&addr);
            let own = own.map(|link| format!("{subnet} names {addr}, an address of this node's own {link}"));
            let place = self.local.places.get(IpFamily::of(addr)).as_ref();
            own.or_else(|| peers::no_node(&self.network, place, subnet, addr))
        })
    }
}

/// The same lease of some of its subnets; `None` of none.
pub(super) fn part(lease: &Lease, subnets: PerFamily<Option<Prefix>>) -> Option<Cow<'_, Lease>> {
    if subnets == lease.key.subnets() {
        return Some(Cow::Borrowed(lease));
    }
    SubnetKey::new(subnets).map(|key| Cow::Owned(Lease { key, attrs: lease.attrs.clone() }))
}
