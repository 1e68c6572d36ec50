//! `Peers`: one family of the leases of other nodes, and which of them packets may be sent to.
//!
//! Each family of a lease is judged for itself: what is wrong with one takes nothing from the other. Invariants: a lease
//! never redirects addresses that are not Pod addresses, nor this node's own Pods: a stray key such as `0.0.0.0-0` must
//! not become a default route. Of several leases with one end of the tunnel (hardware address, public key), one subnet or
//! one node and overlapping subnets the newest is used: a node that moved leaves older ones behind. Of overlapping leases
//! of different nodes the oldest is used: a stray key takes nothing from a node. What is not used is named with the lease
//! that it gave way to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use netstate::{IpFamily, Prefix};

use super::Place;
use super::backend::TunnelEnd;
use crate::choose::interface::{broadcast, no_host};
use crate::format::lease::{PUBLIC, StoredLease, SubnetKey};
use crate::format::net_conf::Network;

/// One family of a lease: a subnet and who holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Half {
    /// The whole lease.
    pub stored: Arc<StoredLease>,
    /// Its subnet of the family.
    pub subnet: Prefix,
    /// How it stands by itself.
    pub standing: Standing,
}

/// How a lease stands by itself, whatever the others say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Packets must not or cannot be sent there.
    Unusable(String),
    /// Another node; with its end of the tunnel, if it is reached through one.
    Usable(Option<TunnelEnd>),
}

/// Another lease that one gives way to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Other {
    subnet: Prefix,
    holder: IpAddr,
}

/// Why a lease is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It cannot be used by itself.
    Unusable(String),
    /// A newer lease has the same end of the tunnel.
    SameEnd {
        /// Holder of this lease.
        holder: IpAddr,
        /// What both have.
        end: TunnelEnd,
        /// The newer lease.
        other: Other,
    },
    /// A newer lease of the same node covers the same addresses.
    Superseded {
        /// This lease.
        subnet: Prefix,
        /// The key of the newer one.
        key: SubnetKey,
        /// The newer one.
        other: Other,
    },
    /// An older lease of another node overlaps.
    Overlaps {
        /// This lease.
        subnet: Prefix,
        /// Its holder.
        holder: IpAddr,
        /// The older one.
        other: Other,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable(reason) => f.write_str(reason),
            Self::SameEnd { holder, end, other: Other { subnet, holder: theirs } } => {
                write!(f, "{holder} has the {} of {theirs}, {end}, whose lease {subnet} is newer", end.kind())
            }
            Self::Superseded { subnet, key, other } => {
                write!(f, "{subnet} is superseded by the newer lease {key} of {}", other.holder)
            }
            Self::Overlaps { subnet, holder, other: Other { subnet: older, holder: theirs } } => {
                write!(f, "{subnet} of {holder} overlaps {older} of {theirs}, whose lease is older")
            }
        }
    }
}

/// Where a lease stands in the order of subnets: several keys can have one subnet of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot {
    subnet: Prefix,
    /// The key of the whole lease.
    pub key: SubnetKey,
}

impl Slot {
    /// The place of the lease under `key` with `subnet`.
    pub(super) const fn new(subnet: Prefix, key: SubnetKey) -> Self {
        Self { subnet, key }
    }

    /// The first of all places of `subnet`.
    const fn first(subnet: Prefix) -> Self {
        Self { subnet, key: SubnetKey::FIRST }
    }
}

impl Half {
    /// The key of the whole lease.
    fn key(&self) -> SubnetKey {
        self.stored.lease.key
    }

    /// The node's address of the family; unspecified when the lease names none.
    pub(super) fn holder(&self) -> IpAddr {
        let family = self.subnet.family();
        self.stored.lease.attrs.public_ips.get(family).unwrap_or(family.unspecified())
    }

    fn slot(&self) -> Slot {
        Slot::new(self.subnet, self.key())
    }

    /// Hardware address of the tunnel of a usable one, if it is reached through one.
    pub(super) const fn end(&self) -> Option<TunnelEnd> {
        match self.standing {
            Standing::Usable(end) => end,
            Standing::Unusable(_) => None,
        }
    }

    const fn is_usable(&self) -> bool {
        matches!(self.standing, Standing::Usable(_))
    }

    fn other(&self) -> Other {
        Other { subnet: self.subnet, holder: self.holder() }
    }

    /// True when this was written after `other`.
    fn is_newer(&self, other: &Self) -> bool {
        (self.stored.revision, self.key()) > (other.stored.revision, other.key())
    }

    /// True when this was made before `other`.
    fn is_older(&self, other: &Self) -> bool {
        (self.stored.created, self.key()) < (other.stored.created, other.key())
    }
}

/// One family of the leases of other nodes, in the order of their subnets.
#[derive(Debug, Clone, Default)]
pub(super) struct Peers {
    by_slot: BTreeMap<Slot, Half>,
    by_end: BTreeSet<(TunnelEnd, Slot)>,
    /// How many leases have subnets of each length: a network around another one has one of these.
    lengths: BTreeMap<u8, usize>,
}

impl Peers {
    /// Puts a lease in, replaces it, or with `None` takes it out.
    pub(super) fn set(&mut self, slot: Slot, half: Option<Half>) {
        if let Some(before) = self.by_slot.remove(&slot) {
            self.forget_length(slot.subnet.len());
            if let Some(end) = before.end() {
                self.by_end.remove(&(end, slot));
            }
        }
        let Some(half) = half else { return };
        *self.lengths.entry(slot.subnet.len()).or_default() += 1;
        if let Some(end) = half.end() {
            self.by_end.insert((end, slot));
        }
        self.by_slot.insert(slot, half);
    }

    /// All of them at once.
    pub(super) fn of(halves: Vec<(Slot, Half)>) -> Self {
        let by_slot: BTreeMap<Slot, Half> = halves.into_iter().collect();
        let by_end = by_slot.iter().filter_map(|(slot, half)| Some((half.end()?, *slot))).collect();
        let mut lengths = BTreeMap::new();
        for slot in by_slot.keys() {
            *lengths.entry(slot.subnet.len()).or_default() += 1;
        }
        Self { by_slot, by_end, lengths }
    }

    /// The leases that share addresses or an end of the tunnel with another one; nobody has a say in the others. One walk
    /// over all, where [`Peers::verdict`] searches for each.
    pub(super) fn disputed(&self) -> BTreeSet<Slot> {
        let mut disputed = BTreeSet::new();
        let mut around: Option<&Slot> = None;
        // Behind a network come those inside it, before any other.
        for slot in self.by_slot.keys() {
            match around.filter(|around| around.subnet.covers(&slot.subnet)) {
                Some(around) => disputed.extend([*around, *slot]),
                None => around = Some(slot),
            }
        }
        let ends = self.by_end.iter();
        for ((end, slot), (next, other)) in ends.clone().zip(ends.skip(1)) {
            if end == next {
                disputed.extend([*slot, *other]);
            }
        }
        disputed
    }

    /// Builds the maps anew with full nodes.
    pub(super) fn pack(&mut self) {
        self.by_slot = std::mem::take(&mut self.by_slot).into_iter().collect();
        self.by_end = std::mem::take(&mut self.by_end).into_iter().collect();
    }

    fn forget_length(&mut self, len: u8) {
        let Some(count) = self.lengths.get_mut(&len) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.lengths.remove(&len);
        }
    }

    /// Leases with this end of the tunnel.
    pub(super) fn with_end(&self, end: TunnelEnd, family: IpFamily) -> impl Iterator<Item = &Slot> {
        let first = (end, Slot::first(family.any()));
        self.by_end.range(first..).take_while(move |(other, _)| *other == end).map(|(_, slot)| slot)
    }

    /// Whether the lease at `slot` is used, or why it is not; `None` when there is none. `disputed` are those that others
    /// have a say in, if that was found out.
    pub(super) fn verdict(&self, slot: &Slot, disputed: Option<&BTreeSet<Slot>>) -> Option<Result<(), Refusal>> {
        let half = self.by_slot.get(slot)?;
        if let Standing::Unusable(reason) = &half.standing {
            return Some(Err(Refusal::Unusable(reason.clone())));
        }
        if disputed.is_some_and(|disputed| !disputed.contains(slot)) {
            return Some(Ok(()));
        }
        Some(self.newer(half).or_else(|| self.older(half)).map_or(Ok(()), Err))
    }

    /// A newer lease that this one gives way to.
    fn newer(&self, half: &Half) -> Option<Refusal> {
        let twin = half.end().and_then(|end| {
            let mut twins = self.with_end(end, half.subnet.family()).filter_map(|slot| self.by_slot.get(slot));
            let newer = twins.find(|twin| twin.holder() != half.holder() && twin.is_newer(half))?;
            Some(Refusal::SameEnd { holder: half.holder(), end, other: newer.other() })
        });
        twin.or_else(|| {
            let same = |other: &&Half| other.holder() == half.holder() && other.is_newer(half);
            let newer = self.overlapping(half.slot()).find(same)?;
            Some(Refusal::Superseded { subnet: half.subnet, key: newer.key(), other: newer.other() })
        })
    }

    /// An older lease of another node that this one may not take addresses from.
    fn older(&self, half: &Half) -> Option<Refusal> {
        let stays =
            |other: &&Half| other.holder() != half.holder() && other.is_older(half) && self.newer(other).is_none();
        let older = self.overlapping(half.slot()).find(stays)?;
        Some(Refusal::Overlaps { subnet: half.subnet, holder: half.holder(), other: older.other() })
    }

    /// Other usable leases that share addresses with `slot`: networks around it, and networks that begin inside it.
    fn overlapping(&self, slot: Slot) -> impl Iterator<Item = &Half> {
        let subnet = slot.subnet;
        let shorter = self.lengths.keys().take_while(move |len| **len < subnet.len());
        let around = shorter.filter_map(move |len| Prefix::new(subnet.addr(), *len).ok());
        let around = around.flat_map(|around| {
            self.by_slot.range(Slot::first(around)..).take_while(move |(other, _)| other.subnet == around)
        });
        let inside =
            self.by_slot.range(Slot::first(subnet)..).take_while(move |(other, _)| subnet.covers(&other.subnet));
        around.chain(inside).filter(move |(other, half)| **other != slot && half.is_usable()).map(|(_, half)| half)
    }

    /// Every lease whose use may depend on `seeds`: those with their ends of the tunnel or overlapping subnets, and so
    /// on. Each seed comes with the ends that it has and will have.
    pub(super) fn related(&self, seeds: impl IntoIterator<Item = (Slot, Option<TunnelEnd>)>) -> BTreeSet<Slot> {
        let mut found = BTreeSet::new();
        let mut open: Vec<(Slot, Option<TunnelEnd>, bool)> = Vec::new();
        for (slot, end) in seeds {
            found.insert(slot);
            open.push((slot, end, true));
        }
        while let Some((slot, end, seed)) = open.pop() {
            let known = self.by_slot.get(&slot).filter(|half| half.is_usable());
            if known.is_none() && !seed {
                continue;
            }
            let ends = end.into_iter().chain(known.and_then(Half::end));
            let by_end = ends.flat_map(|end| self.with_end(end, slot.subnet.family())).copied();
            let related = by_end.chain(self.overlapping(slot).map(Half::slot));
            let new: Vec<Slot> = related.filter(|other| found.insert(*other)).collect();
            open.extend(new.into_iter().map(|slot| (slot, None, false)));
        }
        found
    }
}

/// Why packets must not be sent to the holder of `half`, which this node sees from `place`, if so.
pub(super) fn refusal(network: &Network, place: Option<&Place>, half: &Half) -> Option<String> {
    let (subnet, family) = (half.subnet, half.subnet.family());
    if !network.has_subnet(&subnet) {
        return Some(format!("{subnet} is no subnet of the Pod network {network}"));
    }
    let Some(place) = place else {
        return Some(format!("{subnet}: this node has no address of {family}"));
    };
    if subnet.overlaps(&place.subnet) {
        return Some(format!("{subnet} of {} overlaps this node's own subnet {}", half.holder(), place.subnet));
    }
    None
}

/// Why `public_ip` cannot be another node's, as this node sees it from its `place` of that family, if so.
pub(super) fn no_node(network: &Network, place: Option<&Place>, subnet: Prefix, public_ip: IpAddr) -> Option<String> {
    if let Some(place) = place.filter(|place| public_ip == place.public_ip || public_ip == place.address) {
        let own = place.subnet;
        return Some(format!("{subnet} names this node's own address {public_ip}, but this node leases {own}"));
    }
    unreachable(network, place.map(|place| place.node_network), public_ip)
}

/// Why no node of a network is reached at `public_ip`, as one sees it whose own address is in `node_network`, if so.
pub(crate) fn unreachable(network: &Network, node_network: Option<Prefix>, public_ip: IpAddr) -> Option<String> {
    if let Some(reason) = no_host(public_ip) {
        return Some(format!("{} {public_ip} {reason}", PUBLIC.get(IpFamily::of(public_ip))));
    }
    let inside = |network: Prefix| network.contains(public_ip);
    // A tunnel would lead through itself.
    if network.networks().any(inside) && !node_network.is_some_and(inside) {
        return Some(format!("PublicIP {public_ip} is an address of the Pod network {network}"));
    }
    // The kernel refuses it as a gateway, but a tunnel would send every packet to the whole link.
    let tunnelled = network.backend.device(IpFamily::of(public_ip)).is_some();
    let link = node_network.filter(|link| tunnelled && broadcast(link) == Some(public_ip))?;
    Some(format!("PublicIP {public_ip} is the broadcast address of {link}"))
}
