//! From leases to kernel tables.
//!
//! Pure: values in, values out. Invariants: every row of the plan lies inside the Pod network or on this program's own
//! device; a lease that cannot be used is left out alone and named with its reason; the order in which leases come does
//! not matter. A changed lease costs its own rows and those of leases in conflict with it, however many there are.

pub(crate) mod backend;
mod masquerade;
mod ownership;
mod peers;
mod rivals;
mod tables;

use std::collections::BTreeMap;
use std::net::IpAddr;

use netstate::family::{IpFamily, PerFamily};
use netstate::wireguard::PublicKey;
use netstate::{IfName, MacAddr, Prefix, Route, RouteKey, SysctlKey};

pub(crate) use masquerade::{Masquerade, TABLE};
pub(crate) use ownership::Ownership;
pub(crate) use peers::Refusal;
pub(crate) use rivals::{foreign, in_front};
pub(crate) use tables::{Changes, RowChanges, Tables};

use crate::choose::interface::NodeAddress;
use crate::format::lease::{Lease, StoredLease, SubnetKey};
use crate::format::net_conf::Network;
use peers::{Peers, Standing};

/// What is particular to this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalNode {
    /// Its place in each family that both it and the network have; at least one.
    pub places: PerFamily<Option<Place>>,
    /// The interface towards the other nodes.
    pub interface: IfName,
    /// That interface's MTU in bytes.
    pub mtu: u32,
    /// The kernel has IPv6, and with it IPv6 parameters of every link.
    pub has_ipv6: bool,
    /// Identity of its WireGuard devices, where there are any.
    pub public_key: Option<PublicKey>,
    /// What the operator's program says of it, where that carries the packets.
    pub data: Option<String>,
}

/// This node as one family of addresses has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The subnet it leases.
    pub subnet: Prefix,
    /// Its address as other nodes see it.
    pub public_ip: IpAddr,
    /// The interface's own address; differs from `public_ip` behind NAT.
    pub address: IpAddr,
    /// The network of that address.
    pub node_network: Prefix,
    /// Hardware address of the tunnel device.
    pub mac: MacAddr,
}

impl Place {
    /// The node at `own` before it has a lease: no subnet is its own yet.
    #[must_use]
    pub(crate) fn new(own: &NodeAddress, mac: MacAddr) -> Self {
        let NodeAddress { address, network, public_ip } = *own;
        Self { subnet: Prefix::host(address), public_ip, address, node_network: network, mac }
    }
}

impl LocalNode {
    /// The subnets that it leases.
    pub(crate) fn subnets(&self) -> impl Iterator<Item = Prefix> {
        self.places.present().map(|(_, place)| place.subnet)
    }

    /// Its addresses as other nodes see them.
    #[must_use]
    pub(crate) fn public_ips(&self) -> PerFamily<Option<IpAddr>> {
        self.places.map(|_, place| place.map(|place| place.public_ip))
    }

    /// True when `addresses` are of one of its subnets.
    #[must_use]
    pub(crate) fn has_pods_in(&self, addresses: &Prefix) -> bool {
        self.subnets().any(|subnet| subnet.covers(addresses))
    }
}

/// The desired tables of one node, kept up to date lease by lease.
#[derive(Debug, Clone)]
pub(crate) struct Planner {
    network: Network,
    masquerade: Masquerade,
    local: LocalNode,
    peers: Peers,
    refused: BTreeMap<SubnetKey, Refusal>,
}

impl Planner {
    /// A plan without any other node.
    #[must_use]
    pub(crate) fn new(network: Network, masquerade: Masquerade, local: LocalNode) -> Self {
        Self { network, masquerade, local, peers: Peers::default(), refused: BTreeMap::new() }
    }

    /// This node as the plan sees it.
    #[must_use]
    pub(crate) const fn local(&self) -> &LocalNode {
        &self.local
    }

    /// MTU of Pod interfaces in bytes.
    #[must_use]
    pub(crate) fn pod_mtu(&self) -> u32 {
        self.network.backend.pod_mtu(&self.local)
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

    /// Leases that are not used, with the reason.
    #[must_use]
    pub(crate) const fn refused(&self) -> &BTreeMap<SubnetKey, Refusal> {
        &self.refused
    }

    /// Leases of other nodes that are used.
    pub(crate) fn used(&self) -> impl Iterator<Item = &Lease> {
        let others = self.peers.leases().filter(|(key, _)| !self.refused.contains_key(key));
        others.map(|(_, stored)| &stored.lease).filter(|lease| !self.is_own(lease))
    }

    /// How many these are, without walking them.
    #[must_use]
    pub(crate) fn used_count(&self) -> usize {
        self.peers.count_of_others().saturating_sub(self.refused.len())
    }

    /// Everything that is desired.
    #[must_use]
    pub(crate) fn tables(&self) -> Tables {
        let mut tables = self.local_rows();
        for (key, _) in self.peers.leases() {
            if let Some(Ok(lease)) = self.peers.verdict(key) {
                tables.extend(self.rows_of(lease));
            }
        }
        tables
    }

    /// Plans anew for another place of this node.
    pub(crate) fn set_local(&mut self, local: LocalNode) -> Changes {
        let before = self.tables();
        self.local = local;
        let leases: Vec<StoredLease> = self.peers.leases().map(|(_, stored)| stored.clone()).collect();
        self.set(leases.into_iter().map(|stored| (stored.lease.key, Some(stored))));
        Changes::between(before, self.settle_all())
    }

    /// As [`Planner::update`] for somebody who knows nothing of what was planned before: returns all rows.
    pub(crate) fn update_all(&mut self, leases: impl IntoIterator<Item = (SubnetKey, Option<StoredLease>)>) -> Changes {
        self.set(leases);
        Changes::between(Tables::default(), self.settle_all())
    }

    /// Plans anew for leases that are there, differ (with a lease) or are gone (without).
    pub(crate) fn update(&mut self, leases: impl IntoIterator<Item = (SubnetKey, Option<StoredLease>)>) -> Changes {
        let judged: Vec<_> = leases.into_iter().map(|(key, stored)| (key, self.judged(stored))).collect();
        let seeds = judged.iter().map(|(key, new)| match new {
            Some((_, Standing::Usable(mac))) => (*key, *mac),
            _ => (*key, None),
        });
        let related = self.peers.related(seeds);
        let mut before = Tables::default();
        for key in &related {
            if let Some(Ok(lease)) = self.peers.verdict(key) {
                before.extend(self.rows_of(lease));
            }
        }
        for (key, new) in judged {
            self.peers.set(key, new);
        }
        let mut after = Tables::default();
        self.settle(related, &mut after);
        Changes::between(before, after)
    }

    fn set(&mut self, leases: impl IntoIterator<Item = (SubnetKey, Option<StoredLease>)>) {
        for (key, stored) in leases {
            let new = self.judged(stored);
            self.peers.set(key, new);
        }
    }

    fn judged(&self, stored: Option<StoredLease>) -> Option<(StoredLease, Standing)> {
        stored.map(|stored| {
            let standing = self.standing(&stored.lease);
            (stored, standing)
        })
    }

    /// Decides about the leases under `keys`: notes those that are refused, and adds the rows of the others to `rows`.
    fn settle(&mut self, keys: impl IntoIterator<Item = SubnetKey>, rows: &mut Tables) {
        for key in keys {
            match self.peers.verdict(&key) {
                Some(Err(refusal)) => drop(self.refused.insert(key, refusal)),
                Some(Ok(lease)) => {
                    rows.extend(self.rows_of(lease));
                    self.refused.remove(&key);
                }
                None => drop(self.refused.remove(&key)),
            }
        }
    }

    /// Decides about all leases, and returns all rows.
    fn settle_all(&mut self) -> Tables {
        self.refused.clear();
        let keys: Vec<SubnetKey> = self.peers.leases().map(|(key, _)| *key).collect();
        let mut rows = self.local_rows();
        self.settle(keys, &mut rows);
        rows
    }

    fn is_own(&self, lease: &Lease) -> bool {
        let own = self.local.places.map(|_, place| place.map(|place| place.subnet));
        lease.key.subnets() == own && lease.attrs.public_ips == self.local.public_ips()
    }

    fn standing(&self, lease: &Lease) -> Standing {
        if self.is_own(lease) {
            return Standing::Own;
        }
        if let Some(reason) = peers::refusal(&self.network, &self.local, lease) {
            return Standing::Unusable(reason);
        }
        match self.backend_rows(lease) {
            Ok(rows) => Standing::Usable(rows.fdb.keys().next().map(|entry| entry.mac)),
            Err(reason) => Standing::Unusable(reason),
        }
    }

    /// Rows of a lease that is used.
    fn rows_of(&self, lease: &Lease) -> Tables {
        self.backend_rows(lease).unwrap_or_default()
    }

    fn backend_rows(&self, lease: &Lease) -> Result<Tables, String> {
        self.network.backend.lease_rows(&self.local, lease)
    }

    /// Rows that this node needs whatever the other nodes are.
    fn local_rows(&self) -> Tables {
        let mut tables = self.network.backend.local_rows(&self.network, &self.local);
        for (family, pool) in self.network.pools.present() {
            if self.masquerade.forward {
                tables.forward.insert(pool.network);
            }
            if let Some(place) = self.local.places.get(family) {
                tables.nft.extend(masquerade::rows(&self.masquerade, pool.network, place.subnet));
            }
            // Pods reach the other nodes through this host: without forwarding every packet ends here.
            tables.sysctls.insert(forwarding(family), "1".to_owned());
        }
        tables
    }
}

/// The kernel parameter that makes this host forward packets.
const fn forwarding(family: IpFamily) -> SysctlKey {
    match family {
        IpFamily::V4 => SysctlKey::literal("net/ipv4/ip_forward"),
        IpFamily::V6 => SysctlKey::literal("net/ipv6/conf/all/forwarding"),
    }
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
