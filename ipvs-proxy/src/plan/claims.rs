//! `Desired`: the plans of all Services, and which kernel rows each change of one of them changes.
//!
//! Invariants. An address and port belongs to one Service: the oldest, then the first by name, whatever order they came
//! in; the others are told as [`Conflict`]s and take over when it goes. A row that several frontends need (an
//! address, a hairpin) is there as long as one of them does. The rows depend on the plans only, never on their history.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netstate::ipvs::VirtualServerKey;
use netstate::{Address, AddressKey, IfName, ipvs as ipvs_rows, nft as nft_rows};

use super::{FrontendPlan, ServicePlan};
use crate::dataplane::{ipvs, table as nft, vip};
use crate::object::ObjectName;

/// Rows that changed: their new value, or `None` when they are no longer desired. Keys are in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Elements of the nft table.
    pub(crate) nft: BTreeMap<nft_rows::RowKey, Option<nft_rows::Row>>,
    /// Virtual and real servers.
    pub(crate) ipvs: BTreeMap<ipvs_rows::RowKey, Option<ipvs_rows::Row>>,
    /// Virtual addresses.
    pub(crate) addresses: BTreeMap<AddressKey, Option<Address>>,
}

#[cfg(test)]
impl Changes {
    /// True when no row changed.
    fn is_empty(&self) -> bool {
        self.nft.is_empty() && self.ipvs.is_empty() && self.addresses.is_empty()
    }
}

/// A Service that is not served at an address and port because another one is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Conflict {
    /// Where.
    pub(crate) key: VirtualServerKey,
    /// Who is served.
    pub(crate) served: ObjectName,
    /// Who is not.
    pub(crate) refused: ObjectName,
}

/// Order in which Services claim: the oldest first, one without a creation time last.
type Claim = (bool, String, ObjectName);

/// The plans of all Services; see the module's text.
#[derive(Debug, Clone)]
pub(crate) struct Desired {
    link: IfName,
    plans: BTreeMap<ObjectName, ServicePlan>,
    claims: BTreeMap<VirtualServerKey, BTreeSet<Claim>>,
    served: BTreeMap<VirtualServerKey, FrontendPlan>,
    vips: BTreeMap<IpAddr, BTreeSet<VirtualServerKey>>,
    hairpins: BTreeMap<IpAddr, BTreeSet<VirtualServerKey>>,
}

impl Desired {
    /// No Services; addresses go to the link called `link`.
    #[must_use]
    pub(crate) const fn new(link: IfName) -> Self {
        Self {
            link,
            plans: BTreeMap::new(),
            claims: BTreeMap::new(),
            served: BTreeMap::new(),
            vips: BTreeMap::new(),
            hairpins: BTreeMap::new(),
        }
    }

    /// Puts the plan of a Service in place of its earlier one, or with `None` takes it away; answers what changed.
    pub(crate) fn set(&mut self, service: &ObjectName, plan: Option<ServicePlan>) -> Changes {
        let old = match plan.clone() {
            Some(plan) => self.plans.insert(service.clone(), plan),
            None => self.plans.remove(service),
        };
        let mut touched = BTreeSet::new();
        for (plan, holds) in [(old, false), (plan, true)] {
            let Some(plan) = plan else { continue };
            let claim = (plan.created.is_empty(), plan.created, service.clone());
            for key in plan.frontends.into_keys() {
                let claims = self.claims.entry(key).or_default();
                let _ = if holds { claims.insert(claim.clone()) } else { claims.remove(&claim) };
                touched.insert(key);
            }
        }
        let mut changes = Changes::default();
        for key in touched {
            self.settle(key, &mut changes);
        }
        changes
    }

    /// True when `service` has a plan.
    #[must_use]
    pub(crate) fn serves(&self, service: &ObjectName) -> bool {
        self.plans.contains_key(service)
    }

    /// Services that want what another one has.
    #[must_use]
    pub(crate) fn conflicts(&self) -> Vec<Conflict> {
        let of_key = |(key, claims): (&VirtualServerKey, &BTreeSet<Claim>)| {
            let mut claims = claims.iter().map(|(_, _, name)| name.clone());
            let served = claims.next();
            let conflict = |served: ObjectName| {
                claims.map(move |refused| Conflict { key: *key, served: served.clone(), refused }).collect()
            };
            served.map_or_else(Vec::new, conflict)
        };
        self.claims.iter().filter(|(_, claims)| claims.len() > 1).flat_map(of_key).collect()
    }

    /// Gives `key` to who may have it.
    fn settle(&mut self, key: VirtualServerKey, changes: &mut Changes) {
        if self.claims.get(&key).is_some_and(BTreeSet::is_empty) {
            self.claims.remove(&key);
        }
        let winner = self.claims.get(&key).and_then(BTreeSet::first).map(|(_, _, name)| name);
        let new = winner.and_then(|name| self.plans.get(name)?.frontends.get(&key)).cloned();
        let old = self.served.remove(&key);
        if old != new {
            self.change_ipvs(key, old.as_ref(), new.as_ref(), changes);
            self.change_record(key, old.as_ref(), new.as_ref(), changes);
            self.change_vip(key, new.is_some(), changes);
            self.change_hairpins(key, old.as_ref(), new.as_ref(), changes);
        }
        if let Some(new) = new {
            self.served.insert(key, new);
        }
    }

    fn change_ipvs(
        &self,
        key: VirtualServerKey,
        old: Option<&FrontendPlan>,
        new: Option<&FrontendPlan>,
        changes: &mut Changes,
    ) {
        let old = old.map(|plan| ipvs::rows(key, plan)).unwrap_or_default();
        let new = new.map(|plan| ipvs::rows(key, plan)).unwrap_or_default();
        changes.ipvs.extend(old.keys().filter(|row| !new.contains_key(row)).map(|row| (*row, None)));
        changes
            .ipvs
            .extend(new.into_iter().filter(|(row, value)| old.get(row) != Some(value)).map(|(r, v)| (r, Some(v))));
    }

    fn change_record(
        &self,
        key: VirtualServerKey,
        old: Option<&FrontendPlan>,
        new: Option<&FrontendPlan>,
        changes: &mut Changes,
    ) {
        let comment = |plan: Option<&FrontendPlan>| plan.map(|plan| plan.comment.clone());
        if comment(old) != comment(new) {
            let text = comment(new);
            let (row, value) = nft::service(&key, text.as_deref().unwrap_or_default());
            changes.nft.insert(row, text.map(|_| value));
        }
    }

    fn change_vip(&mut self, key: VirtualServerKey, wanted: bool, changes: &mut Changes) {
        if let Some(there) = count(&mut self.vips, key.addr, key, wanted) {
            let (row, value) = nft::vip(key.addr);
            changes.nft.insert(row, there.then_some(value));
            changes.addresses.insert(vip::address(&self.link, key.addr), there.then_some(Address));
        }
    }

    fn change_hairpins(
        &mut self,
        key: VirtualServerKey,
        old: Option<&FrontendPlan>,
        new: Option<&FrontendPlan>,
        changes: &mut Changes,
    ) {
        let local = |plan: Option<&FrontendPlan>| plan.map(|plan| plan.maybe_local.clone()).unwrap_or_default();
        let (old, new) = (local(old), local(new));
        for addr in old.symmetric_difference(&new) {
            if let Some(there) = count(&mut self.hairpins, *addr, key, new.contains(addr)) {
                let (row, value) = nft::hairpin(*addr);
                changes.nft.insert(row, there.then_some(value));
            }
        }
    }
}

/// Notes that `key` needs `addr` or no longer does; answers whether `addr` is needed at all when that changed.
fn count(
    users: &mut BTreeMap<IpAddr, BTreeSet<VirtualServerKey>>,
    addr: IpAddr,
    key: VirtualServerKey,
    wanted: bool,
) -> Option<bool> {
    let of_addr = users.entry(addr).or_default();
    let before = !of_addr.is_empty();
    let _ = if wanted { of_addr.insert(key) } else { of_addr.remove(&key) };
    let after = !of_addr.is_empty();
    if !after {
        users.remove(&addr);
    }
    (before != after).then_some(after)
}

#[cfg(test)]
mod tests {
    use netstate::Protocol;
    use netstate::ipvs::VirtualServer;
    use proptest::prelude::*;

    use super::*;

    fn link() -> IfName {
        IfName::new(vip::LINK_NAME).unwrap()
    }

    fn key(last: u8, port: u16) -> VirtualServerKey {
        VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, last].into(), port }
    }

    fn frontend(comment: &str, pods: &[u8]) -> FrontendPlan {
        let addr = |last: &u8| IpAddr::from([172, 7, 21, *last]);
        FrontendPlan {
            comment: comment.to_owned(),
            virtual_server: VirtualServer { scheduler: "rr".to_owned(), persistence: None },
            backends: pods.iter().map(|last| (addr(last), 80)).collect(),
            maybe_local: pods.iter().map(addr).collect(),
        }
    }

    fn service(created: &str, frontends: &[(VirtualServerKey, &[u8])], comment: &str) -> Option<ServicePlan> {
        let frontends = frontends.iter().map(|(key, pods)| (*key, frontend(comment, pods))).collect();
        Some(ServicePlan { created: created.to_owned(), frontends })
    }

    fn name(name: &str) -> ObjectName {
        ObjectName::new("default", name)
    }

    fn text(changes: &Changes) -> Vec<String> {
        let sign = |there: bool| if there { '+' } else { '-' };
        let nft = changes.nft.iter().map(|(row, value)| format!("{} {row}", sign(value.is_some())));
        let ipvs = changes.ipvs.iter().map(|(row, value)| format!("{} {row}", sign(value.is_some())));
        let addresses = changes.addresses.iter().map(|(row, value)| format!("{} {row}", sign(value.is_some())));
        nft.chain(ipvs).chain(addresses).collect()
    }

    #[test]
    fn a_new_service_brings_elements_servers_and_its_address() {
        let mut desired = Desired::new(link());
        let changes = desired.set(&name("web"), service("", &[(key(10, 80), &[2, 3])], "default/web"));
        assert_eq!(
            text(&changes),
            [
                "+ element ip ipvs-proxy @hairpin { 172.7.21.2 . 172.7.21.2 }",
                "+ element ip ipvs-proxy @hairpin { 172.7.21.3 . 172.7.21.3 }",
                "+ element ip ipvs-proxy @services { 192.168.0.10 . tcp . 80 }",
                "+ element ip ipvs-proxy @vips { 192.168.0.10 }",
                "+ tcp 192.168.0.10:80",
                "+ tcp 192.168.0.10:80 -> 172.7.21.2:80",
                "+ tcp 192.168.0.10:80 -> 172.7.21.3:80",
                "+ 192.168.0.10/32 dev kube-ipvs0",
            ]
        );
        assert!(desired.set(&name("web"), service("", &[(key(10, 80), &[2, 3])], "default/web")).is_empty());
    }

    #[test]
    fn one_changed_endpoint_changes_its_rows_only() {
        let mut desired = Desired::new(link());
        for last in 1..100 {
            let plan = service("", &[(key(last, 80), &[2, 3])], "x");
            desired.set(&name(&format!("s{last}")), plan);
        }
        let changes = desired.set(&name("s7"), service("", &[(key(7, 80), &[2])], "x"));
        assert_eq!(text(&changes), ["- tcp 192.168.0.7:80 -> 172.7.21.3:80"]);
        let changes = desired.set(&name("s7"), service("", &[(key(7, 80), &[2, 9])], "x"));
        assert_eq!(
            text(&changes),
            ["+ element ip ipvs-proxy @hairpin { 172.7.21.9 . 172.7.21.9 }", "+ tcp 192.168.0.7:80 -> 172.7.21.9:80"]
        );
    }

    #[test]
    fn an_address_stays_as_long_as_one_port_needs_it() {
        let mut desired = Desired::new(link());
        desired.set(&name("web"), service("", &[(key(10, 80), &[]), (key(10, 443), &[])], "x"));
        let changes = desired.set(&name("web"), service("", &[(key(10, 443), &[])], "x"));
        assert_eq!(
            text(&changes),
            ["- element ip ipvs-proxy @services { 192.168.0.10 . tcp . 80 }", "- tcp 192.168.0.10:80"]
        );
        let changes = desired.set(&name("web"), None);
        assert!(text(&changes).contains(&"- 192.168.0.10/32 dev kube-ipvs0".to_owned()));
    }

    #[test]
    fn the_oldest_service_has_the_address_and_the_next_takes_over() {
        let (old, young) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
        let mut desired = Desired::new(link());
        desired.set(&name("young"), service(young, &[(key(10, 80), &[3])], "default/young"));
        let changes = desired.set(&name("old"), service(old, &[(key(10, 80), &[2])], "default/old"));
        assert!(text(&changes).contains(&"- tcp 192.168.0.10:80 -> 172.7.21.3:80".to_owned()));
        let conflict = Conflict { key: key(10, 80), served: name("old"), refused: name("young") };
        assert_eq!(desired.conflicts(), [conflict]);
        let changes = desired.set(&name("old"), None);
        assert!(text(&changes).contains(&"+ tcp 192.168.0.10:80 -> 172.7.21.3:80".to_owned()));
        assert!(desired.conflicts().is_empty());
    }

    type Op = (u8, Option<(bool, Vec<(u8, Vec<u8>)>)>);

    fn op() -> impl Strategy<Value = Op> {
        let frontends = prop::collection::vec((0u8..4, prop::collection::vec(0u8..4, 0..3)), 0..3);
        (0u8..4, prop::option::of((any::<bool>(), frontends)))
    }

    fn apply(desired: &mut Desired, (who, plan): &Op) -> Changes {
        let plan = plan.as_ref().map(|(dated, frontends)| ServicePlan {
            created: if *dated { format!("2026-01-0{who}") } else { String::new() },
            frontends: frontends
                .iter()
                .map(|(last, pods)| (key(*last, 80), frontend(&who.to_string(), pods)))
                .collect(),
        });
        desired.set(&name(&who.to_string()), plan)
    }

    fn fold<K: Ord + Clone, V: Clone>(rows: &mut BTreeMap<K, V>, changes: &BTreeMap<K, Option<V>>) {
        for (key, value) in changes {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
    }

    proptest! {
        /// Rows after any history equal the rows of the final plans put in at once, in whatever order.
        #[test]
        fn rows_depend_on_the_plans_and_not_on_their_history(ops in prop::collection::vec(op(), 0..30)) {
            let mut desired = Desired::new(link());
            let (mut nft, mut ipvs, mut addresses) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
            for op in &ops {
                let changes = apply(&mut desired, op);
                fold(&mut nft, &changes.nft);
                fold(&mut ipvs, &changes.ipvs);
                fold(&mut addresses, &changes.addresses);
            }
            let last: BTreeMap<u8, &Op> = ops.iter().map(|op| (op.0, op)).collect();
            let mut fresh = Desired::new(link());
            let (mut nft2, mut ipvs2, mut addresses2) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
            for op in last.values().rev() {
                let changes = apply(&mut fresh, op);
                fold(&mut nft2, &changes.nft);
                fold(&mut ipvs2, &changes.ipvs);
                fold(&mut addresses2, &changes.addresses);
            }
            prop_assert_eq!(nft, nft2);
            prop_assert_eq!(ipvs, ipvs2);
            prop_assert_eq!(addresses, addresses2);
            prop_assert_eq!(desired.conflicts(), fresh.conflicts());
        }
    }
}
