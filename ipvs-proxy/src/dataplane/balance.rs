//! The IPVS data path: virtual servers, their addresses, and the elements of the nft table that go with them.
//!
//! Invariants. A row that several frontends need (an address, a hairpin) is there as long as one of them does. The rows depend on
//! the frontends only, never on their history.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netstate::ipvs::VirtualServerKey;
use netstate::{Address, IfName, Prefix};

use super::{Changes, ipvs, nft, record, serves, table, vip};
use crate::object::few::Few;
use crate::plan::select::Locality;
use crate::plan::{Delta, Frontend};

/// Who needs each address.
type Users = BTreeMap<IpAddr, Few<VirtualServerKey>>;

/// See the module's text.
#[derive(Debug, Clone)]
pub(crate) struct IpvsPlane {
    link: IfName,
    scheduler: String,
    pods: Prefix,
    vips: Users,
    hairpins: Users,
}

impl IpvsPlane {
    /// No frontends; see [`super::DataPlane::ipvs`].
    #[must_use]
    pub(super) const fn new(link: IfName, scheduler: String, pods: Prefix) -> Self {
        Self { link, scheduler, pods, vips: BTreeMap::new(), hairpins: BTreeMap::new() }
    }

    /// The link that holds virtual addresses.
    pub(super) const fn link(&self) -> &IfName {
        &self.link
    }

    /// The network whose clients are Pods.
    pub(super) const fn pods(&self) -> Prefix {
        self.pods
    }

    /// The rows that change with these frontends.
    pub(super) fn rows(&mut self, deltas: &[Delta]) -> Changes {
        let mut changes = Changes::default();
        for Delta { key, old, new } in deltas {
            let Some(server) = ipvs::server(key) else { continue };
            let served = |frontend: &&Frontend| serves::serves(key, frontend);
            let (old, new) = (old.as_ref().filter(served), new.as_ref().filter(served));
            if old.is_none() && new.is_none() {
                continue;
            }
            self.change_servers(server, old, new, &mut changes);
            change_record(server, old, new, &mut changes);
            self.change_vip(server, new.is_some(), &mut changes);
            self.change_hairpins(server, old, new, &mut changes);
        }
        changes
    }

    fn change_servers(
        &self,
        server: VirtualServerKey,
        old: Option<&Frontend>,
        new: Option<&Frontend>,
        changes: &mut Changes,
    ) {
        let rows = |frontend| ipvs::rows(server, frontend, &self.scheduler);
        let (old, new) = (old.map(rows).unwrap_or_default(), new.map(rows).unwrap_or_default());
        changes.ipvs.extend(old.keys().filter(|row| !new.contains_key(row)).map(|row| (*row, None)));
        let differing = new.into_iter().filter(|(row, value)| old.get(row) != Some(value));
        changes.ipvs.extend(differing.map(|(row, value)| (row, Some(value))));
    }

    fn change_vip(&mut self, server: VirtualServerKey, wanted: bool, changes: &mut Changes) {
        if let Some(there) = count(&mut self.vips, server.addr, server, wanted) {
            let (row, value) = nft::vip(server.addr);
            changes.nft.insert(row, there.then_some(value));
            changes.addresses.insert(vip::address(&self.link, server.addr), there.then_some(Address));
        }
    }

    fn change_hairpins(
        &mut self,
        server: VirtualServerKey,
        old: Option<&Frontend>,
        new: Option<&Frontend>,
        changes: &mut Changes,
    ) {
        let (old, new) = (maybe_here(old), maybe_here(new));
        for addr in old.symmetric_difference(&new) {
            if let Some(there) = count(&mut self.hairpins, *addr, server, new.contains(addr)) {
                let (row, value) = nft::hairpin(*addr);
                changes.nft.insert(row, there.then_some(value));
            }
        }
    }
}

/// Its element in the record and its place in the set that is masqueraded.
fn change_record(server: VirtualServerKey, old: Option<&Frontend>, new: Option<&Frontend>, changes: &mut Changes) {
    let (old, new) = (old.map(|old| &old.owner), new.map(|new| &new.owner));
    if let Some(owner) = new.or(old).filter(|_| old != new) {
        let (row, value) = record::element(&server, owner);
        changes.nft.insert(row, new.map(|_| value));
    }
    if old.is_some() != new.is_some() {
        let (row, value) = table::service(&server);
        changes.nft.insert(row, new.map(|_| value));
    }
}

/// Addresses of backends that may be on this node.
fn maybe_here(frontend: Option<&Frontend>) -> BTreeSet<IpAddr> {
    let backends = frontend.into_iter().flat_map(ipvs::backends);
    backends.filter(|backend| backend.locality != Locality::Elsewhere).map(|backend| backend.addr).collect()
}

/// Notes that `server` needs `addr` or no longer does; returns whether `addr` is needed at all when that changed.
fn count(users: &mut Users, addr: IpAddr, server: VirtualServerKey, wanted: bool) -> Option<bool> {
    let of_addr = users.entry(addr).or_default();
    let before = !of_addr.as_slice().is_empty();
    if wanted {
        of_addr.insert(server);
    } else {
        of_addr.remove(&server);
    }
    let after = !of_addr.as_slice().is_empty();
    if !after {
        users.remove(&addr);
    }
    (before != after).then_some(after)
}
