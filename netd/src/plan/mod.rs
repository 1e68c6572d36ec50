//! From leases to kernel tables.
//!
//! Pure: values in, values out. Invariants: every row of the plan lies inside the Pod network or on this program's own
//! device; a lease that cannot be used is left out alone and named with its reason; the order in which leases come does
//! not matter. A changed lease costs its own rows and those of leases in conflict with it, however many there are.

pub(crate) mod backend;
mod blackhole;
mod entered;
mod flowtable;
mod joined;
mod judged;
mod local;
mod masquerade;
mod moving;
mod ownership;
mod parts;
mod peers;
mod refused;
mod rivals;
mod rows;
mod tables;
mod untracked;
mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use netstate::family::{IpFamily, PerFamily};
use netstate::{IfName, Prefix, Route, RouteKey, SysctlKey};

pub(crate) use flowtable::{Flowtables, PodLinks};
pub(crate) use local::{LocalNode, Place};
pub(crate) use masquerade::{Masquerade, TABLE};
pub(crate) use ownership::{Ownership, is_left, is_left_by_flannel};
pub(crate) use peers::{Refusal, unreachable};
pub(crate) use refused::Refused;
pub(crate) use rivals::{for_whom, in_front, taken};
pub(crate) use rows::PeerRows;
pub(crate) use tables::{Changes, Passing, RowChanges, Tables};
pub(crate) use ways::{Answers, Ways, direct};

use self::entered::Entered;
use self::moving::Moving;
use crate::format::lease::{Lease, StoredLease, SubnetKey};
use crate::format::net_conf::Network;
use judged::{Judged, part};
use peers::{Half, Peers, Slot};

/// The desired tables of one node, kept up to date lease by lease.
#[derive(Debug, Clone)]
pub(crate) struct Planner {
    network: Network,
    masquerade: Masquerade,
    local: LocalNode,
    /// The links by which this node's own Pods are reached.
    pod_links: PodLinks,
    leases: BTreeMap<SubnetKey, Arc<StoredLease>>,
    peers: PerFamily<Peers>,
    refused: BTreeMap<SubnetKey, Refused>,
    /// What is odd about leases that are used.
    remarks: BTreeMap<SubnetKey, String>,
    /// Leases of which something else is to be said than when that was asked for last.
    changed: BTreeSet<SubnetKey>,
    /// How many leases are refused as a whole.
    unused: usize,
    /// On the way from one backend to another.
    moving: Moving,
    /// Other links by which packets of Pods come in as they are.
    entered: Entered,
}

/// What is to be said of each family of a lease.
type Verdicts = PerFamily<Option<Result<(), Refusal>>>;

/// The leases of each family that others have a say in.
type Disputed = PerFamily<BTreeSet<Slot>>;

impl Planner {
    /// A plan without any other node.
    #[must_use]
    pub(crate) fn new(network: Network, masquerade: Masquerade, local: LocalNode) -> Self {
        Self {
            network,
            masquerade,
            local,
            pod_links: PodLinks::default(),
            leases: BTreeMap::new(),
            peers: PerFamily::default(),
            refused: BTreeMap::new(),
            remarks: BTreeMap::new(),
            changed: BTreeSet::new(),
            unused: 0,
            moving: Moving::default(),
            entered: Entered::default(),
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
    pub(crate) fn node_remarks(&self) -> impl Iterator<Item = String> {
        [self.remark(), self.vrf_remark(), self.flowtable_remark()].into_iter().flatten()
    }

    /// What of the backend's options cannot be had on this node.
    fn remark(&self) -> Option<String> {
        self.network.backend.remark(&self.local)
    }

    /// Kernel parameters that are desired.
    #[must_use]
    pub(crate) fn parameters(&self) -> Vec<SysctlKey> {
        let entered = self.entered.keys().map(|link| local::carries(IpFamily::V4, link));
        self.local_rows().sysctls.into_iter().chain(entered).map(|(key, _)| key).collect()
    }

    /// Leases that are not used, or not in each of their families, with the reasons.
    #[must_use]
    pub(crate) const fn refused(&self) -> &BTreeMap<SubnetKey, Refused> {
        &self.refused
    }

    /// The leases whose refusal or remark has changed since this was called last, with what is to be said of them now.
    pub(crate) fn take_changed(&mut self) -> Vec<(SubnetKey, Option<&Refused>, Option<&String>)> {
        let keys = std::mem::take(&mut self.changed);
        keys.into_iter().map(|key| (key, self.refused.get(&key), self.remarks.get(&key))).collect()
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
        let mut rows = PeerRows::default();
        // One that cannot be reached has no rows.
        let _ = self.lease_rows(lease, &mut rows);
        let links = rows.routes.iter().filter_map(|(_, route)| route.link.as_ref());
        let mut links: Vec<&str> = links.map(IfName::as_str).collect();
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
        self.whole(self.rows(self.leases.keys(), Some(&self.disputed())))
    }

    /// The rows of the leases under `keys`, of which those that are not `disputed` stand by themselves.
    fn rows<'a>(&self, keys: impl IntoIterator<Item = &'a SubnetKey>, disputed: Option<&Disputed>) -> PeerRows {
        let mut rows = PeerRows::default();
        for key in keys {
            self.add_rows(key, &self.verdicts(key, disputed), &mut rows);
        }
        rows
    }

    fn disputed(&self) -> Disputed {
        self.peers.as_ref().map(|_, peers| peers.disputed())
    }

    /// Plans anew for another place of this node.
    pub(crate) fn set_local(&mut self, local: LocalNode) -> Changes {
        let before = self.tables();
        self.local = local;
        self.plan_anew(before)
    }

    /// Plans anew for leases that are there, differ (with a lease) or are gone (without).
    pub(crate) fn update(
        &mut self,
        leases: impl IntoIterator<Item = (SubnetKey, Option<Arc<StoredLease>>)>,
    ) -> Changes {
        let leases: Vec<_> = leases.into_iter().filter(|(key, stored)| !self.keeps(key, stored.as_deref())).collect();
        let judged: Vec<Judged> = leases.into_iter().map(|(key, stored)| self.judged(key, stored)).collect();
        let related = self.related(&judged);
        let before = self.rows(&related, None);
        let most = judged.len() > self.leases.len();
        judged.into_iter().for_each(|judged| self.put(judged));
        if most {
            self.pack();
        }
        let mut after = PeerRows::default();
        self.settle(related, None, &mut after);
        self.between(before, after)
    }

    /// Builds the maps of leases anew with full nodes: filled in the order of their keys, they have them half empty.
    fn pack(&mut self) {
        self.leases = std::mem::take(&mut self.leases).into_iter().collect();
        self.peers.v4.pack();
        self.peers.v6.pack();
    }

    /// Plans anew for what the kernel says of this host and of all addresses now.
    pub(crate) fn set_ways(&mut self, ways: Ways) -> Changes {
        let differing = self.local.ways.differing(&ways);
        let leases = Self::naming(self.leases.values(), |addr| differing.contains(addr));
        let mut other = ways;
        self.plan_by(leases, |ways| std::mem::swap(ways, &mut other))
    }

    /// Plans anew for what the kernel says of some addresses now. They are those of the leases `among` these, or of any lease.
    pub(crate) fn learn_ways(&mut self, answers: Answers, among: Option<&[SubnetKey]>) -> Changes {
        let is_asked = |addr: &IpAddr| answers.contains_key(addr);
        let leases = match among {
            Some(keys) => Self::naming(keys.iter().filter_map(|key| self.leases.get(key)), is_asked),
            None => Self::naming(self.leases.values(), is_asked),
        };
        let mut other = answers;
        self.plan_by(leases, |ways| other = ways.learn(std::mem::take(&mut other)))
    }

    /// Those of `leases` whose node has an address that is `concerned`.
    fn naming<'a>(
        leases: impl Iterator<Item = &'a Arc<StoredLease>>,
        concerned: impl Fn(&IpAddr) -> bool,
    ) -> Vec<Arc<StoredLease>> {
        let names =
            |stored: &&Arc<StoredLease>| stored.lease.attrs.public_ips.present().any(|(_, addr)| concerned(addr));
        leases.filter(names).cloned().collect()
    }

    /// Plans `leases` anew by other ways; `swap` puts them in the place of those that are known, and back.
    fn plan_by(&mut self, leases: Vec<Arc<StoredLease>>, mut swap: impl FnMut(&mut Ways)) -> Changes {
        swap(&mut self.local.ways);
        let judged: Vec<Judged> =
            leases.into_iter().map(|stored| self.judged(stored.lease.key, Some(stored))).collect();
        swap(&mut self.local.ways);
        let related = self.related(&judged);
        let before = self.rows(&related, None);
        swap(&mut self.local.ways);
        judged.into_iter().for_each(|judged| self.put(judged));
        let mut after = PeerRows::default();
        self.settle(related, None, &mut after);
        self.between(before, after)
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

    /// What is to be said of each family of the lease under `key`; nothing of this node's own.
    fn verdicts(&self, key: &SubnetKey, disputed: Option<&Disputed>) -> Verdicts {
        PerFamily::from_fn(|family| {
            let slot = Slot::new(key.get(family)?, *key);
            self.peers.get(family).verdict(&slot, disputed.map(|disputed| disputed.get(family)))
        })
    }

    /// Decides about the leases under `keys`: notes those that are refused, and adds the rows of the others to `rows`.
    fn settle(&mut self, keys: impl IntoIterator<Item = SubnetKey>, disputed: Option<&Disputed>, rows: &mut PeerRows) {
        for key in keys {
            let verdicts = self.verdicts(&key, disputed);
            self.add_rows(&key, &verdicts, rows);
            let is_used = verdicts.values().any(|verdict| matches!(verdict, Some(Ok(()))));
            let refused = Refused(verdicts.map(|_, verdict| verdict.and_then(Result::err)));
            let used = is_used.then(|| self.leases.get(&key)).flatten();
            let remark = used.and_then(|stored| self.remark_on(&stored.lease));
            let same = self.remarks.get(&key) == remark.as_ref()
                && self.refused.get(&key) == Some(&refused).filter(|refused| !refused.0.is_empty());
            if !same {
                self.changed.insert(key);
            }
            match remark {
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

    /// Decides about all leases, and returns the rows of all that are used.
    fn settle_all(&mut self) -> PeerRows {
        self.forget_verdicts();
        let keys: Vec<SubnetKey> = self.leases.keys().copied().collect();
        let (mut rows, disputed) = (PeerRows::default(), self.disputed());
        self.settle(keys, Some(&disputed), &mut rows);
        rows
    }

    /// Every lease is about to be decided about.
    fn forget_verdicts(&mut self) {
        self.refused.clear();
        self.remarks.clear();
        self.unused = 0;
    }

    fn own_key(&self) -> Option<SubnetKey> {
        let leased = |_, (place, unserved): (Option<Place>, _)| place.map(|place| place.subnet).or(unserved);
        SubnetKey::new(self.local.places.zip(self.local.unserved).map(leased))
    }

    fn is_own(&self, lease: &Lease) -> bool {
        self.own_key() == Some(lease.key) && lease.attrs.public_ips == self.local.public_ips()
    }

    /// Adds the rows of the families of a lease that are used.
    fn add_rows(&self, key: &SubnetKey, verdicts: &Verdicts, rows: &mut PeerRows) {
        let Some(stored) = self.leases.get(key) else { return };
        if let Some(part) = part(&stored.lease, used(key, verdicts)) {
            let peers = rows.wireguard.len();
            // Each family was found to be reachable.
            let _ = self.lease_rows(&part, rows);
            self.join(key, rows.wireguard.get_mut(peers..).unwrap_or_default());
        }
        self.earlier_rows(key, rows);
    }
}

/// The subnets of a lease that are used.
fn used(key: &SubnetKey, verdicts: &Verdicts) -> PerFamily<Option<Prefix>> {
    PerFamily::from_fn(|family| key.get(family).filter(|_| matches!(verdicts.get(family), Some(Ok(())))))
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
