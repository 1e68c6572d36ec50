//! `Tables`: the desired rows of every kernel table that netd writes, and `Changes`: what differs between two of them.
//!
//! Invariant: applying the changes between two tables to the first gives the second; a row that both have is in none.

use std::collections::{BTreeMap, BTreeSet};

use netstate::{
    Address, AddressKey, Fdb, FdbKey, IfName, Link, Neighbour, NeighbourKey, Prefix, Route, RouteKey, SysctlKey,
    TxChecksum,
};
use netstate::{nft, wireguard};

use super::backend::FileText;

/// The desired rows of every kernel table that netd writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tables {
    /// Links.
    pub links: BTreeMap<IfName, Link>,
    /// Who counts the checksums of packets that links send; links are left as they are without a row.
    pub checksums: BTreeMap<IfName, TxChecksum>,
    /// Addresses of those links.
    pub addresses: BTreeMap<AddressKey, Address>,
    /// Kernel parameters.
    pub sysctls: BTreeMap<SysctlKey, String>,
    /// Masquerade rules.
    pub nft: BTreeMap<nft::RowKey, nft::Row>,
    /// What sees packets as they arrive on links, in nft tables of their own: the short way of established flows, and what is not tracked.
    pub ingress: BTreeMap<nft::RowKey, nft::Row>,
    /// What foreign chains of the forward hook must not drop.
    pub forward: Passing,
    /// Neighbours behind the tunnel.
    pub neighbours: BTreeMap<NeighbourKey, Neighbour>,
    /// Remote ends of the tunnel.
    pub fdb: BTreeMap<FdbKey, Fdb>,
    /// WireGuard devices and the nodes behind them.
    pub wireguard: BTreeMap<wireguard::RowKey, wireguard::Row>,
    /// Routes to the other nodes' subnets.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Files for the operator's own program, by their name in its folder.
    pub files: BTreeMap<String, FileText>,
}

/// What foreign chains of the forward hook must not drop.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Passing {
    /// Packets from and to these networks.
    pub networks: BTreeSet<Prefix>,
    /// Links by which they come from the other nodes, which a firewall may have in zones of their own.
    pub links: BTreeSet<IfName>,
}

impl Tables {
    /// Adds the rows of `other`; where both have a row, `other`'s stays.
    pub(crate) fn extend(&mut self, other: Self) {
        add(&mut self.links, other.links);
        add(&mut self.checksums, other.checksums);
        add(&mut self.addresses, other.addresses);
        add(&mut self.sysctls, other.sysctls);
        add(&mut self.nft, other.nft);
        add(&mut self.ingress, other.ingress);
        self.forward.networks.extend(other.forward.networks);
        self.forward.links.extend(other.forward.links);
        add(&mut self.neighbours, other.neighbours);
        add(&mut self.fdb, other.fdb);
        add(&mut self.wireguard, other.wireguard);
        add(&mut self.routes, other.routes);
        add(&mut self.files, other.files);
    }
}

/// Adds `more`, whose values stay; into an empty map it is moved, and with a small one merged.
fn add<K: Ord, V>(map: &mut BTreeMap<K, V>, mut more: BTreeMap<K, V>) {
    if map.is_empty() {
        *map = more;
    } else if more.len() > map.len() / 8 {
        map.append(&mut more);
    } else {
        map.extend(more);
    }
}

/// Rows by key: the new value, or `None` for a row that shall be gone.
pub(crate) type RowChanges<K, V> = BTreeMap<K, Option<V>>;

/// Rows that are desired anew, differently or no more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Links.
    pub links: RowChanges<IfName, Link>,
    /// Who counts the checksums of packets that links send.
    pub checksums: RowChanges<IfName, TxChecksum>,
    /// Addresses of those links.
    pub addresses: RowChanges<AddressKey, Address>,
    /// Kernel parameters.
    pub sysctls: RowChanges<SysctlKey, String>,
    /// Masquerade rules.
    pub nft: RowChanges<nft::RowKey, nft::Row>,
    /// What sees packets as they arrive on links.
    pub ingress: RowChanges<nft::RowKey, nft::Row>,
    /// All that foreign chains must not drop, when it differs.
    pub forward: Option<Passing>,
    /// Neighbours behind the tunnel.
    pub neighbours: RowChanges<NeighbourKey, Neighbour>,
    /// Remote ends of the tunnel.
    pub fdb: RowChanges<FdbKey, Fdb>,
    /// WireGuard devices and the nodes behind them.
    pub wireguard: RowChanges<wireguard::RowKey, wireguard::Row>,
    /// Routes to the other nodes' subnets.
    pub routes: RowChanges<RouteKey, Route>,
    /// Files for the operator's own program.
    pub files: RowChanges<String, FileText>,
}

impl Changes {
    /// What makes `after` of `before`.
    #[must_use]
    pub(crate) fn between(before: Tables, after: Tables) -> Self {
        Self {
            links: rows(before.links, after.links),
            checksums: rows(before.checksums, after.checksums),
            addresses: rows(before.addresses, after.addresses),
            sysctls: rows(before.sysctls, after.sysctls),
            nft: rows(before.nft, after.nft),
            ingress: rows(before.ingress, after.ingress),
            forward: (before.forward != after.forward).then_some(after.forward),
            neighbours: rows(before.neighbours, after.neighbours),
            fdb: rows(before.fdb, after.fdb),
            wireguard: rows(before.wireguard, after.wireguard),
            routes: rows(before.routes, after.routes),
            files: rows(before.files, after.files),
        }
    }

    /// Rows that change.
    #[must_use]
    pub(crate) fn rows(&self) -> usize {
        self.links.len()
            + self.checksums.len()
            + self.addresses.len()
            + self.sysctls.len()
            + self.nft.len()
            + self.ingress.len()
            + self.neighbours.len()
            + self.fdb.len()
            + self.wireguard.len()
            + self.routes.len()
            + self.files.len()
            + usize::from(self.forward.is_some())
    }

    /// Adds later changes.
    pub(crate) fn extend(&mut self, later: Self) {
        add(&mut self.links, later.links);
        add(&mut self.checksums, later.checksums);
        add(&mut self.addresses, later.addresses);
        add(&mut self.sysctls, later.sysctls);
        add(&mut self.nft, later.nft);
        add(&mut self.ingress, later.ingress);
        self.forward = later.forward.or(self.forward.take());
        add(&mut self.neighbours, later.neighbours);
        add(&mut self.fdb, later.fdb);
        add(&mut self.wireguard, later.wireguard);
        add(&mut self.routes, later.routes);
        add(&mut self.files, later.files);
    }
}

fn rows<K: Ord, V: PartialEq>(mut before: BTreeMap<K, V>, after: BTreeMap<K, V>) -> RowChanges<K, V> {
    let differing = after.into_iter().filter_map(|(key, value)| match before.remove(&key) {
        Some(same) if same == value => None,
        _ => Some((key, Some(value))),
    });
    // Collected, a large table has full nodes.
    let mut changes: RowChanges<K, V> = differing.collect();
    changes.extend(before.into_keys().map(|key| (key, None)));
    changes
}
