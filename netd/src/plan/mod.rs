//! From leases to kernel tables.
//!
//! Pure: values in, values out. Invariants: every row of the plan lies inside the Pod network or on this program's own
//! device; a lease that cannot be used is left out alone and named with its reason; the order in which leases come does
//! not matter. A changed lease costs its own rows and those of leases in conflict with it, however many there are.

pub(crate) mod backend;
mod blackhole;
mod flowtable;
mod local;
mod masquerade;
mod moving;
mod ownership;
mod peers;
mod refused;
mod rivals;
mod tables;
mod ways;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use netstate::family::PerFamily;
use netstate::{IfName, Prefix, Route, RouteKey, SysctlKey};

pub(crate) use local::{LocalNode, Place};
pub(crate) use masquerade::{Masquerade, TABLE};
pub(crate) use ownership::{Ownership, is_left, is_left_by_flannel};
pub(crate) use peers::Refusal;
pub(crate) use refused::Refused;
pub(crate) use rivals::{for_whom, foreign, in_front, taken};
pub(crate) use tables::{Changes, Passing, RowChanges, Tables};
pub(crate) use ways::{Ways, direct};

use self::moving::Moving;
use crate::format::lease::{Lease, StoredLease, SubnetKey};
use crate::format::net_conf::Network;
use peers::{Half, Peers, Slot, Standing};

/// The desired tables of one node, kept up to date lease by lease.
#[derive(Debug, Clone)]
pub(crate) struct Planner {
    network: Network,
    masquerade: Masquerade,
    local: LocalNode,
    /// Bridges of this node's own Pods.
    bridges: BTreeSet<IfName>,
    leases: BTreeMap<SubnetKey, Arc<StoredLease>>,
    peers: PerFamily<Peers>,
    refused: BTreeMap<SubnetKey, Refused>,
    /// What is odd about leases that are used.
    remarks: BTreeMap<SubnetKey, String>,
    /// How many leases are refused as a whole.
    unused: usize,
    /// On the way from one backend to another.
    moving: Moving,
}

/// A change of one lease with what is to be thought of each of its families.
struct Judged {
    key: SubnetKey,
    stored: Option<Arc<StoredLease>>,
    halves: PerFamily<Option<Half>>,
}

impl Planner {
    /// A plan without any other node.
    #[must_use]
    pub(crate) fn new(network: Network, masquerade: Masquerade, local: LocalNode) -> Self {
        Self {
            network,
            masquerade,
            local,
            bridges: BTreeSet::new(),
            leases: BTreeMap::new(),
            peers: PerFamily::default(),
            refused: BTreeMap::new(),
            remarks: BTreeMap::new(),
            unused: 0,
            moving: Moving::default(),
        }
    }

    /// This node as the plan sees it.
    #[must_use]
    pub(crate) const fn local(&self) -> &LocalNode {
        &self.local
    }

    /// MTU of Pod interfaces in bytes.
    #[must_use]
    pub(crate) fn pod_mtu(&self) -> u32 {
        self.backends().map(|backend| backend.pod_mtu(&self.local)).min().unwrap_or_default()
    }

    /// What of the network's configuration cannot be had on this node, for an operator.
    #[must_use]
    pub(crate) fn remark(&self) -> Option<String> {
        self.network.backend.remark(&self.local)
    }

    /// Kernel parameters that are desired.
    #[must_use]
    pub(crate) fn parameters(&self) -> Vec<SysctlKey> {
        self.local_rows().sysctls.into_keys().collect()
    }

    /// Leases that are not used, or not in each of their families, with the reasons.
    #[must_use]
    pub(crate) const fn refused(&self) -> &BTreeMap<SubnetKey, Refused> {
        &self.refused
    }

    /// What is odd about leases that are used, for an operator.
    pub(crate) fn remarks(&self) -> impl Iterator<Item = String> {
        self.remarks.iter().map(|(key, remark)| format!("{key}: {remark}"))
    }

    /// Leases of other nodes that are used.
    pub(crate) fn used(&self) -> impl Iterator<Item = &Lease> {
        let used =
            self.leases.iter().filter(|(key, _)| !self.refused.get(key).is_some_and(|refused| refused.is_all_of(key)));
        used.map(|(_, stored)| &stored.lease).filter(|lease| !self.is_own(lease))
    }

    /// The links by which packets leave for the subnets of `lease`.
    #[must_use]
    pub(crate) fn path(&self, lease: &Lease) -> String {
        let routes = self.lease_rows(lease).map(|tables| tables.routes).unwrap_or_default();
        let mut links: Vec<&str> =
            routes.values().filter_map(|route| route.link.as_ref()).map(IfName::as_str).collect();
        links.dedup();
        links.join(",")
    }

    /// How many these are, without walking them.
    #[must_use]
    pub(crate) fn used_count(&self) -> usize {
        let own = self.own_key().and_then(|key| self.leases.get(&key)).filter(|stored| self.is_own(&stored.lease));
        self.leases.len().saturating_sub(self.unused).saturating_sub(usize::from(own.is_some()))
    }

    /// Everything that is desired.
    #[must_use]
    pub(crate) fn tables(&self) -> Tables {
        let mut tables = self.local_rows();
        for key in self.leases.keys() {
            tables.extend(self.rows_of(key, &self.verdicts(key)));
        }
        tables
    }

    /// Plans anew for another place of this node.
    pub(crate) fn set_local(&mut self, local: LocalNode) -> Changes {
        let before = self.tables();
        self.local = local;
        self.plan_anew(before)
    }

    /// As [`Planner::update`] for somebody who knows nothing of what was planned before: returns all rows.
    pub(crate) fn update_all(
        &mut self,
        leases: impl IntoIterator<Item = (SubnetKey, Option<Arc<StoredLease>>)>,
    ) -> Changes {
        self.set(leases);
        self.pack();
        Changes::between(Tables::default(), self.settle_all())
    }

    /// Plans anew for leases that are there, differ (with a lease) or are gone (without).
    pub(crate) fn update(
        &mut self,
        leases: impl IntoIterator<Item = (SubnetKey, Option<Arc<StoredLease>>)>,
    ) -> Changes {
        let leases: Vec<_> = leases.into_iter().filter(|(key, stored)| !self.keeps(key, stored.as_deref())).collect();
        let judged: Vec<Judged> = leases.into_iter().map(|(key, stored)| self.judged(key, stored)).collect();
        let related = self.related(&judged);
        let mut before = Tables::default();
        for key in &related {
            before.extend(self.rows_of(key, &self.verdicts(key)));
        }
        let most = judged.len() > self.leases.len();
        judged.into_iter().for_each(|judged| self.put(judged));
        if most {
            self.pack();
        }
        let mut after = Tables::default();
        self.settle(related, &mut after);
        Changes::between(before, after)
    }

    /// Builds the maps of leases anew with full nodes: filled in the order of their keys, they have them half empty.
    fn pack(&mut self) {
        self.leases = std::mem::take(&mut self.leases).into_iter().collect();
        self.peers.v4.pack();
        self.peers.v6.pack();
    }

    /// Plans anew for what the kernel says of addresses now.
    pub(crate) fn set_ways(&mut self, ways: Ways) -> Changes {
        let differing = self.local.ways.differing(&ways);
        let concerned = |stored: &&Arc<StoredLease>| {
            stored.lease.attrs.public_ips.present().any(|(_, addr)| differing.contains(addr))
        };
        let leases: Vec<Arc<StoredLease>> = self.leases.values().filter(concerned).cloned().collect();
        let old = std::mem::replace(&mut self.local.ways, ways);
        let judged: Vec<Judged> =
            leases.into_iter().map(|stored| self.judged(stored.lease.key, Some(stored))).collect();
        let new = std::mem::replace(&mut self.local.ways, old);
        let related = self.related(&judged);
        let mut before = Tables::default();
        for key in &related {
            before.extend(self.rows_of(key, &self.verdicts(key)));
        }
        self.local.ways = new;
        judged.into_iter().for_each(|judged| self.put(judged));
        let mut after = Tables::default();
        self.settle(related, &mut after);
        Changes::between(before, after)
    }

    /// The addresses of all nodes, by which the kernel is asked for the ways.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.leases.values().flat_map(|stored| stored.lease.attrs.public_ips.present().map(|(_, addr)| *addr))
    }

    /// True when it matters how the other nodes are reached.
    #[must_use]
    pub(crate) const fn asks_for_ways(&self) -> bool {
        self.network.backend.routes_directly()
    }

    /// The keys of every lease whose use may depend on `judged`, in either family.
    fn related(&self, judged: &[Judged]) -> BTreeSet<SubnetKey> {
        let mut related: BTreeSet<SubnetKey> = judged.iter().map(|judged| judged.key).collect();
        for (family, peers) in self.peers.iter() {
            let seeds = judged.iter().filter_map(|judged| {
                let slot = Slot::new(judged.key.get(family)?, judged.key);
                Some((slot, judged.halves.get(family).as_ref().and_then(Half::end)))
            });
            related.extend(peers.related(seeds).into_iter().map(|slot| slot.key));
        }
        related
    }

    fn set(&mut self, leases: impl IntoIterator<Item = (SubnetKey, Option<Arc<StoredLease>>)>) {
        for (key, stored) in leases {
            if !self.keeps(&key, stored.as_deref()) {
                let judged = self.judged(key, stored);
                self.put(judged);
            }
        }
    }

    fn put(&mut self, judged: Judged) {
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

    fn judged(&self, key: SubnetKey, stored: Option<Arc<StoredLease>>) -> Judged {
        let other = stored.as_ref().filter(|stored| !self.is_own(&stored.lease));
        let halves = PerFamily::from_fn(|family| self.half(other?, key.get(family)?));
        Judged { key, stored, halves }
    }

    /// One family of a lease of another node.
    fn half(&self, stored: &Arc<StoredLease>, subnet: Prefix) -> Option<Half> {
        let (family, attrs) = (subnet.family(), &stored.lease.attrs);
        let mut half = Half { stored: Arc::clone(stored), subnet, standing: Standing::Usable(None) };
        let holder = half.holder();
        let refusal = attrs.public_ip(family).err();
        let own = self.local.ways.own.get(&holder);
        let own = own.map(|link| format!("{subnet} names {holder}, an address of this node's own {link}"));
        let refusal =
            refusal.or(own).or_else(|| peers::refusal(&self.network, self.local.places.get(family).as_ref(), &half));
        let rows = || match part(&stored.lease, PerFamily::only(family, subnet)) {
            Some(part) => self.lease_rows(&part),
            None => Ok(Tables::default()),
        };
        half.standing = match refusal.map_or_else(rows, Err) {
            Ok(rows) => Standing::Usable(rows.tunnel_end()),
            Err(reason) => Standing::Unusable(reason),
        };
        Some(half)
    }

    /// What is to be said of each family of the lease under `key`; nothing of this node's own.
    fn verdicts(&self, key: &SubnetKey) -> PerFamily<Option<Result<(), Refusal>>> {
        PerFamily::from_fn(|family| self.peers.get(family).verdict(&Slot::new(key.get(family)?, *key)))
    }

    /// Decides about the leases under `keys`: notes those that are refused, and adds the rows of the others to `rows`.
    fn settle(&mut self, keys: impl IntoIterator<Item = SubnetKey>, rows: &mut Tables) {
        for key in keys {
            let verdicts = self.verdicts(&key);
            rows.extend(self.rows_of(&key, &verdicts));
            let is_used = verdicts.values().any(|verdict| matches!(verdict, Some(Ok(()))));
            let refused = Refused(verdicts.map(|_, verdict| verdict.and_then(Result::err)));
            let used = is_used.then(|| self.leases.get(&key)).flatten();
            match used.and_then(|stored| self.network.backend.remark_on(&stored.lease)) {
                Some(remark) => drop(self.remarks.insert(key, remark)),
                None => drop(self.remarks.remove(&key)),
            }
            self.note(key, refused);
        }
    }

    fn note(&mut self, key: SubnetKey, refused: Refused) {
        let now = refused.is_all_of(&key);
        let before = if refused.0.is_empty() { self.refused.remove(&key) } else { self.refused.insert(key, refused) };
        if before.is_some_and(|before| before.is_all_of(&key)) {
            self.unused = self.unused.saturating_sub(1);
        }
        self.unused += usize::from(now);
    }

    /// Decides about all leases, and returns all rows.
    fn settle_all(&mut self) -> Tables {
        self.refused.clear();
        self.remarks.clear();
        self.unused = 0;
        let keys: Vec<SubnetKey> = self.leases.keys().copied().collect();
        let mut rows = self.local_rows();
        self.settle(keys, &mut rows);
        rows
    }

    fn own_key(&self) -> Option<SubnetKey> {
        SubnetKey::new(self.local.places.map(|_, place| place.map(|place| place.subnet)))
    }

    fn is_own(&self, lease: &Lease) -> bool {
        self.own_key() == Some(lease.key) && lease.attrs.public_ips == self.local.public_ips()
    }

    /// Rows of the families of a lease that are used.
    fn rows_of(&self, key: &SubnetKey, verdicts: &PerFamily<Option<Result<(), Refusal>>>) -> Tables {
        let Some(stored) = self.leases.get(key) else { return Tables::default() };
        let used =
            PerFamily::from_fn(|family| key.get(family).filter(|_| matches!(verdicts.get(family), Some(Ok(())))));
        let rows = |lease: Cow<Lease>| self.lease_rows(&lease).unwrap_or_default();
        let mut rows = part(&stored.lease, used).map(rows).unwrap_or_default();
        rows.extend(self.earlier_rows(key));
        rows
    }
}

/// The same lease of some of its subnets; `None` of none.
fn part(lease: &Lease, subnets: PerFamily<Option<Prefix>>) -> Option<Cow<'_, Lease>> {
    if subnets == lease.key.subnets() {
        return Some(Cow::Borrowed(lease));
    }
    SubnetKey::new(subnets).map(|key| Cow::Owned(Lease { key, attrs: lease.attrs.clone() }))
}

/// A route to `subnet` by way of `via`.
fn route(subnet: Prefix, via: IpAddr, link: &IfName, onlink: bool) -> (RouteKey, Route) {
    let key =
        RouteKey { table: netstate::route::TABLE_MAIN, dst: subnet, metric: netstate::route::spread_metric(&subnet) };
    let route = Route {
        kind: netstate::RouteKind::Unicast,
        via: Some(via),
        link: Some(link.clone()),
        onlink,
        src: None,
        scope: netstate::RouteScope::Universe,
        protocol: netstate::route::ROUTE_PROTOCOL,
        metrics: netstate::RouteMetrics::default(),
    };
    (key, route)
}

#[cfg(test)]
mod tests;
