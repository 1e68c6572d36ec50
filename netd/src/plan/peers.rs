//! `Peers`: the leases of all nodes, and which of them packets may be sent to.
//!
//! Invariants: a lease never redirects addresses that are not Pod addresses, nor this node's own Pods: a stray key such
//! as `0.0.0.0-0` must not become a default route. Of several leases with one hardware address, one subnet or one node
//! and overlapping subnets the newest is used: a node that moved leaves older ones behind. Of overlapping leases of
//! different nodes the oldest is used: a stray key takes nothing from a node. What is not used is named with the lease
//! that it gave way to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use netstate::family::IpFamily;
use netstate::{MacAddr, Prefix};

use super::LocalNode;
use crate::format::lease::{Lease, StoredLease, SubnetKey};
use crate::format::net_conf::Network;

/// How a lease stands by itself, whatever the others say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// This node's own.
    Own,
    /// Packets must not or cannot be sent there.
    Unusable(String),
    /// Another node; with the hardware address of its tunnel, if it is reached through one.
    Usable(Option<MacAddr>),
}

/// Why a lease is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It cannot be used by itself.
    Unusable(String),
    /// A newer lease has the same hardware address.
    SameMac {
        /// Holder of this lease.
        holder: IpAddr,
        /// The hardware address.
        mac: MacAddr,
        /// The newer lease.
        other: Lease,
    },
    /// A newer lease of the same subnet or node covers the same addresses.
    Superseded {
        /// This lease.
        subnet: Prefix,
        /// The newer one.
        other: Lease,
    },
    /// An older lease of another node overlaps.
    Overlaps {
        /// This lease.
        subnet: Prefix,
        /// Its holder.
        holder: IpAddr,
        /// The older one.
        other: Lease,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable(reason) => f.write_str(reason),
            Self::SameMac { holder, mac, other } => {
                let (theirs, subnet) = (other.attrs.public_ips.list(), other.key);
                write!(f, "{holder} has the hardware address of {theirs}, {mac}, whose lease {subnet} is newer")
            }
            Self::Superseded { subnet, other } => {
                write!(
                    f,
                    "{subnet} is superseded by the newer lease {} of {}",
                    other.key,
                    other.attrs.public_ips.list()
                )
            }
            Self::Overlaps { subnet, holder, other } => {
                let (older, theirs) = (subnet_of(&other.key), other.attrs.public_ips.list());
                write!(f, "{subnet} of {holder} overlaps {older} of {theirs}, whose lease is older")
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Peer {
    stored: StoredLease,
    standing: Standing,
}

/// The leases of all nodes, in the order of their subnets.
#[derive(Debug, Clone, Default)]
pub(super) struct Peers {
    by_key: BTreeMap<SubnetKey, Peer>,
    by_mac: BTreeSet<(MacAddr, SubnetKey)>,
    /// How many leases have subnets of each length: a network around another one has one of these.
    lengths: BTreeMap<u8, usize>,
    /// Leases of this node among them.
    own: usize,
}

impl Peers {
    /// Puts a lease in, replaces it, or with `None` takes it out.
    pub(super) fn set(&mut self, key: SubnetKey, lease: Option<(StoredLease, Standing)>) {
        if let Some(before) = self.by_key.remove(&key) {
            self.forget_length(subnet_of(&key).len());
            match before.standing {
                Standing::Usable(Some(mac)) => drop(self.by_mac.remove(&(mac, key))),
                Standing::Own => self.own = self.own.saturating_sub(1),
                Standing::Usable(None) | Standing::Unusable(_) => {}
            }
        }
        let Some((stored, standing)) = lease else { return };
        *self.lengths.entry(subnet_of(&key).len()).or_default() += 1;
        match standing {
            Standing::Usable(Some(mac)) => drop(self.by_mac.insert((mac, key))),
            Standing::Own => self.own += 1,
            Standing::Usable(None) | Standing::Unusable(_) => {}
        }
        self.by_key.insert(key, Peer { stored, standing });
    }

    fn forget_length(&mut self, len: u8) {
        let Some(count) = self.lengths.get_mut(&len) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.lengths.remove(&len);
        }
    }

    /// Leases with this hardware address.
    fn with_mac(&self, mac: MacAddr) -> impl Iterator<Item = &SubnetKey> {
        self.by_mac.range((mac, SubnetKey::FIRST)..).take_while(move |(other, _)| *other == mac).map(|(_, key)| key)
    }

    /// How many leases are of other nodes, used or not.
    pub(super) fn count_of_others(&self) -> usize {
        self.by_key.len().saturating_sub(self.own)
    }

    /// The leases, in the order of their subnets.
    pub(super) fn leases(&self) -> impl Iterator<Item = (&SubnetKey, &StoredLease)> {
        self.by_key.iter().map(|(key, peer)| (key, &peer.stored))
    }

    /// The lease under `key` when it is used, or why it is not; `None` when there is none, and for this node's own.
    pub(super) fn verdict(&self, key: &SubnetKey) -> Option<Result<&Lease, Refusal>> {
        let peer = self.by_key.get(key)?;
        match &peer.standing {
            Standing::Own => None,
            Standing::Unusable(reason) => Some(Err(Refusal::Unusable(reason.clone()))),
            Standing::Usable(mac) => {
                let refusal = self.newer(key, peer, *mac).or_else(|| self.older(key, peer));
                Some(refusal.map_or(Ok(&peer.stored.lease), Err))
            }
        }
    }

    /// A newer lease that this one gives way to.
    fn newer(&self, key: &SubnetKey, peer: &Peer, mac: Option<MacAddr>) -> Option<Refusal> {
        let age = |key: &SubnetKey, peer: &Peer| (peer.stored.revision, *key);
        let (lease, own_age) = (&peer.stored.lease, age(key, peer));
        let holder = holder_of(lease);
        let twin = mac.and_then(|mac| {
            let others = self.with_mac(mac).filter_map(|other| Some((other, self.by_key.get(other)?)));
            let mut newer =
                others.filter(|(other, twin)| holder_of(&twin.stored.lease) != holder && age(other, twin) > own_age);
            newer.next().map(|(_, twin)| Refusal::SameMac { holder, mac, other: twin.stored.lease.clone() })
        });
        twin.or_else(|| {
            let same = |(other, twin): &(&SubnetKey, &Peer)| {
                (subnet_of(other) == subnet_of(key) || holder_of(&twin.stored.lease) == holder)
                    && age(other, twin) > own_age
            };
            let newer = self.overlapping(key).find(same);
            newer.map(|(_, twin)| Refusal::Superseded { subnet: subnet_of(key), other: twin.stored.lease.clone() })
        })
    }

    /// An older lease of another node that this one may not take addresses from.
    fn older(&self, key: &SubnetKey, peer: &Peer) -> Option<Refusal> {
        let age = |key: &SubnetKey, peer: &Peer| (peer.stored.created, *key);
        let (holder, own_age) = (holder_of(&peer.stored.lease), age(key, peer));
        let stays = |(other, older): &(&SubnetKey, &Peer)| {
            let mac = match older.standing {
                Standing::Usable(mac) => mac,
                Standing::Own | Standing::Unusable(_) => return false,
            };
            holder_of(&older.stored.lease) != holder
                && age(other, older) < own_age
                && self.newer(other, older, mac).is_none()
        };
        let older = self.overlapping(key).find(stays);
        older.map(|(_, older)| Refusal::Overlaps { subnet: subnet_of(key), holder, other: older.stored.lease.clone() })
    }

    /// Other usable leases that share addresses with `key`: networks around it, and networks that begin inside it.
    fn overlapping(&self, key: &SubnetKey) -> impl Iterator<Item = (&SubnetKey, &Peer)> {
        let subnet = subnet_of(key);
        let shorter = self.lengths.keys().take_while(move |len| **len < subnet.len());
        let around = shorter.filter_map(move |len| Prefix::new(subnet.addr(), *len).ok());
        let around = around.flat_map(|around| {
            self.by_key.range(SubnetKey::of(around)..).take_while(move |(other, _)| subnet_of(other) == around)
        });
        let inside =
            self.by_key.range(SubnetKey::of(subnet)..).take_while(move |(other, _)| subnet.covers(&subnet_of(other)));
        let own = *key;
        around.chain(inside).filter(move |(other, peer)| **other != own && matches!(peer.standing, Standing::Usable(_)))
    }

    /// Every lease whose use may depend on `seeds`: those with their hardware addresses or overlapping subnets, and so
    /// on. Each seed comes with the hardware addresses that it has and will have.
    pub(super) fn related(&self, seeds: impl IntoIterator<Item = (SubnetKey, Option<MacAddr>)>) -> BTreeSet<SubnetKey> {
        let mut found = BTreeSet::new();
        let mut open: Vec<(SubnetKey, Option<MacAddr>, bool)> = Vec::new();
        for (key, mac) in seeds {
            found.insert(key);
            open.push((key, mac, true));
        }
        while let Some((key, mac, seed)) = open.pop() {
            let own = self.by_key.get(&key);
            let known = match own.map(|peer| &peer.standing) {
                Some(Standing::Usable(mac)) => *mac,
                _ if seed => None,
                _ => continue,
            };
            let by_mac = mac.into_iter().chain(known).flat_map(|mac| self.with_mac(mac));
            let related = by_mac.chain(self.overlapping(&key).map(|(other, _)| other));
            let new: Vec<SubnetKey> = related.filter(|other| found.insert(**other)).copied().collect();
            open.extend(new.into_iter().map(|key| (key, None, false)));
        }
        found
    }
}

/// The subnet that a lease is judged by.
fn subnet_of(key: &SubnetKey) -> Prefix {
    key.get(IpFamily::V4).unwrap_or(IpFamily::V4.any())
}

fn holder_of(lease: &Lease) -> IpAddr {
    lease.attrs.public_ips.v4.unwrap_or(IpFamily::V4.unspecified())
}

/// Why packets must not be sent to the holder of `lease`, if so.
pub(super) fn refusal(network: &Network, local: &LocalNode, lease: &Lease) -> Option<String> {
    let (subnet, public_ip) = (subnet_of(&lease.key), holder_of(lease));
    if !network.has_subnet(&subnet) {
        return Some(format!("{subnet} is no subnet of the Pod network {network}"));
    }
    let Some(place) = local.places.get(subnet.family()) else {
        return Some(format!("this node has no address of {}", subnet.family()));
    };
    if subnet.overlaps(&place.subnet) {
        return Some(format!("{subnet} of {public_ip} overlaps this node's own subnet {}", place.subnet));
    }
    if public_ip == place.public_ip || public_ip == place.address {
        let own = place.subnet;
        return Some(format!("{subnet} names this node's own address {public_ip}, but this node leases {own}"));
    }
    let broadcast = public_ip == IpFamily::V4.any().last();
    if public_ip.is_unspecified() || public_ip.is_multicast() || broadcast || public_ip.is_loopback() {
        return Some(format!("PublicIP {public_ip} is not the address of a host"));
    }
    let inside = |network: Prefix| network.contains(public_ip);
    // A tunnel would lead through itself.
    if network.networks().any(inside) && !inside(place.node_network) {
        return Some(format!("PublicIP {public_ip} is an address of the Pod network {network}"));
    }
    // The kernel refuses it as a gateway, but a tunnel would send every packet to the whole link.
    if network.backend.device(subnet.family()).is_some() && is_broadcast(&place.node_network, public_ip) {
        return Some(format!("PublicIP {public_ip} is the broadcast address of {}", place.node_network));
    }
    None
}

/// True for the last address of an IPv4 network that has more than two.
fn is_broadcast(network: &Prefix, addr: IpAddr) -> bool {
    network.is_ipv4() && network.len() <= 30 && addr == network.last()
}
