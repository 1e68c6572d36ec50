//! Which subnets this node takes, one of each family that it and the network have: those of its own leases, or ones
//! that nobody holds.
//!
//! Pure. Invariants: a node knows its own leases by more than its address, which can change; of several it keeps the one
//! that its Pods live in, and when the families change, the subnet of each family that stays; a subnet that overlaps
//! anybody else's lease, or a reservation, is never chosen; the same inputs give the same choice.

use std::net::IpAddr;
use std::sync::Arc;

use netstate::family::{IpFamily, PerFamily};
use netstate::wireguard::PublicKey;
use netstate::{MacAddr, Prefix};

use super::interface::NodeAddress;
use super::occupied::Occupied;
use super::policy::Policy;
use crate::format::lease::{Lease, StoredLease, SubnetKey};
use crate::format::net_conf::{Network, Pool};

/// The node that wants subnets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Its addresses, which give it its host numbers; it wants a subnet of each of their families.
    pub addresses: PerFamily<Option<NodeAddress>>,
    /// The subnets that this run of the daemon has held, if it has: Pods live in them.
    pub held: PerFamily<Option<Prefix>>,
    /// The subnets that its subnet file names, if there is one.
    pub previous: PerFamily<Option<Prefix>>,
    /// Hardware addresses of the tunnel devices that stand on it, if there are any.
    pub device_macs: PerFamily<Option<MacAddr>>,
    /// Identity of its WireGuard devices, if it has one.
    pub public_key: Option<PublicKey>,
}

/// One lease in the store, as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    /// What the store holds.
    pub stored: Arc<StoredLease>,
    /// This node's record names it, with what ends it.
    pub recorded: bool,
}

impl Claim {
    /// The lease.
    pub(crate) fn lease(&self) -> &Lease {
        &self.stored.lease
    }

    /// True when it has an end; one without is an operator's reservation.
    fn ends(&self) -> bool {
        self.stored.token.is_some()
    }
}

/// Every claim on a subnet that the store holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    /// The leases that can be read, this node's included.
    pub leases: Vec<Claim>,
    /// Keys whose value cannot be read.
    pub unreadable: Vec<Unreadable>,
}

/// A key whose value cannot be read: somebody's, and nobody knows whose unless its subnets say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreadable {
    /// The key.
    pub key: SubnetKey,
    /// When it was written.
    pub revision: i64,
    /// This node's record names it.
    pub recorded: bool,
}

/// What to do about a subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Keep this lease: it is this node's.
    Keep(Lease),
    /// Make a lease of these subnets.
    Take {
        /// The subnets.
        key: SubnetKey,
        /// What named them, for the log.
        how: String,
        /// Why what was asked before did not apply, for the log.
        passed_over: Vec<String>,
    },
}

/// There is nothing to take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no subnet to take: {}", .reasons.join("; "))]
pub(crate) struct NoSubnet {
    /// Why each policy named none.
    pub reasons: Vec<String>,
    /// Another node holds the lease of a subnet that this one's Pods live in.
    pub taken: bool,
}

/// One try to get a subnet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// How often somebody else was faster since the choosing began.
    pub lost_races: u32,
    /// What `random` goes by, and nothing else.
    pub seed: u64,
}

/// Free subnets that `random` takes one of when those that it tried were all taken.
const RANDOM_WINDOW: usize = 100;

/// Subnets that it tries.
const RANDOM_TRIES: u64 = 100;

impl Attempt {
    /// How many free subnets `first-free` chooses among: 1 at first, doubled with every lost race up to 128, so that
    /// many nodes that start at once do not all want the same one again and again.
    fn window(self) -> usize {
        1usize << self.lost_races.min(7)
    }

    /// The `n`th number of a sequence that differs with the seed and with every lost race (SplitMix64).
    fn random(self, n: u64) -> u64 {
        let race = u64::from(self.lost_races).wrapping_mul(RANDOM_TRIES);
        let state = self.seed.wrapping_add(race.wrapping_add(n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Chooses the subnets for `node` beside the `claims` of all nodes.
///
/// # Errors
/// When no policy names a free subnet of a family, with the reason of each.
pub(crate) fn choose(
    network: &Network,
    node: &Candidate,
    claims: &Claims,
    policies: &[Policy],
    attempt: Attempt,
) -> Result<Choice, NoSubnet> {
    let own = own_leases(node, &claims.leases);
    let families: Vec<Asked> = network
        .pools
        .present()
        .filter_map(|(family, pool)| Some(Asked { family, pool, at: node.addresses.get(family).as_ref()?, node }))
        .collect();
    let (mut subnets, mut how, mut passed_over) = (PerFamily::default(), Vec::new(), Vec::new());
    for asked in &families {
        let of = if asked.is_alone(network) { String::new() } else { format!("{} ", asked.family) };
        let mut passed = Vec::new();
        let found = match asked.own(&own) {
            Some((subnet, lease)) => Some((subnet, format!("subnet of its lease {}", lease.key))),
            None => asked.find(claims, policies, attempt, &mut passed),
        };
        passed_over.extend(passed.into_iter().map(|reason| format!("{of}{reason}")));
        let Some((subnet, named)) = found else {
            let taken = families.iter().any(|asked| asked.is_taken(claims));
            return Err(NoSubnet { reasons: passed_over, taken });
        };
        *subnets.get_mut(asked.family) = Some(subnet);
        how.push(format!("{of}{named}"));
    }
    let Some(key) = SubnetKey::new(subnets) else {
        let reasons = vec![format!("this node has no address of a family of {network}")];
        return Err(NoSubnet { reasons, taken: false });
    };
    match own.iter().find(|lease| lease.key == key) {
        Some(lease) => Ok(Choice::Keep((*lease).clone())),
        None => Ok(Choice::Take { key, how: how.join(", "), passed_over }),
    }
}

impl Candidate {
    /// True for a lease of this node: it names an address of it, or the record names the lease, or both a subnet and the
    /// hardware address or public key are the ones that stand on this node, from before its address changed.
    #[must_use]
    pub(crate) fn owns(&self, claim: &Claim) -> bool {
        let (macs, keys) = (claim.lease().attrs.backend.macs(), claim.lease().attrs.backend.keys());
        let stands = |family| {
            let device = self.device_macs.get(family).is_some() && macs.get(family) == self.device_macs.get(family);
            let key = self.public_key.is_some() && *keys.get(family) == self.public_key;
            (device || key) && claim.lease().key.get(family).is_some_and(|subnet| self.lived_in(subnet))
        };
        let public_ips = self.addresses.map(|_, own| own.map(|own| own.public_ip));
        claim.recorded || claim.lease().attrs.is_node_of(&public_ips) || IpFamily::ALL.into_iter().any(stands)
    }

    /// True when only its address says that a lease that this node `owns` is its own: two nodes may have one address.
    #[must_use]
    pub(crate) fn doubts(&self, claim: &Claim) -> bool {
        let lived_in = || claim.lease().key.subnets().present().any(|(_, subnet)| self.lived_in(*subnet));
        claim.ends() && !claim.recorded && !lived_in()
    }

    /// True for a lease of this node, by what stands on it or its record, that names another address, and that this run has not held: it
    /// is from before its address changed, unless this node is a copy of the one that has the address.
    #[must_use]
    pub(crate) fn may_be_a_copys(&self, claim: &Claim) -> bool {
        let public_ips = self.addresses.map(|_, own| own.map(|own| own.public_ip));
        claim.ends() && self.held.is_empty() && !claim.lease().attrs.is_node_of(&public_ips)
    }

    /// True for a key that this node held when something else was written there: Pods live in its subnets, and no other node can have
    /// claimed a key that was there.
    #[must_use]
    pub(crate) fn held_key(&self, other: &Unreadable) -> bool {
        let subnets = other.key.subnets();
        subnets == self.held || other.recorded && subnets == self.previous
    }

    fn lived_in(&self, subnet: Prefix) -> bool {
        let family = subnet.family();
        [self.held, self.previous].iter().any(|subnets| *subnets.get(family) == Some(subnet))
    }

    /// Which of several own leases is kept: the lowest, the subnets that Pods live in before all others.
    fn rank(&self, claim: &Claim) -> u8 {
        let shares = |subnets: &PerFamily<Option<Prefix>>| {
            claim.lease().key.subnets().present().any(|(family, subnet)| subnets.get(family).as_ref() == Some(subnet))
        };
        if shares(&self.held) {
            0
        } else if shares(&self.previous) {
            1
        } else if claim.recorded {
            2
        } else if claim.ends() {
            4
        } else {
            3
        }
    }
}

/// This node's leases: the one with the best claim first, then in key order.
fn own_leases<'a>(node: &Candidate, claims: &'a [Claim]) -> Vec<&'a Lease> {
    let mut own: Vec<&Claim> = claims.iter().filter(|claim| node.owns(claim)).collect();
    own.sort_by_key(|claim| (node.rank(claim), claim.lease().key));
    own.into_iter().map(Claim::lease).collect()
}

/// The question for a subnet of one family.
struct Asked<'a> {
    family: IpFamily,
    pool: &'a Pool,
    at: &'a NodeAddress,
    node: &'a Candidate,
}

impl Asked<'_> {
    /// True when the network has no other family.
    const fn is_alone(&self, network: &Network) -> bool {
        network.pools.get(self.family.other()).is_none()
    }

    /// The first subnet of this node's leases that fits the network, with its lease.
    fn own<'l>(&self, own: &[&'l Lease]) -> Option<(Prefix, &'l Lease)> {
        let fitting = |lease: &&'l Lease| {
            let subnet = lease.key.get(self.family).filter(|subnet| self.pool.may_lease(subnet))?;
            Some((subnet, *lease))
        };
        own.iter().find_map(fitting)
    }

    /// The first free subnet that something names, and what did; `passed` gets the reasons of what came before it.
    fn find(
        &self,
        claims: &Claims,
        policies: &[Policy],
        attempt: Attempt,
        passed: &mut Vec<String>,
    ) -> Option<(Prefix, String)> {
        let occupied = Occupied::by_others(self.family, self.pool, self.node, claims);
        // Pods live in the subnet that was held a moment ago, whatever the policies say.
        if let Some(held) = self.node.held.get(self.family).filter(|held| self.pool.may_lease(held)) {
            match occupied.check(held) {
                Ok(subnet) => return Some((subnet, "held before".to_owned())),
                Err(reason) => passed.push(format!("held before: {reason}")),
            }
        }
        for policy in policies {
            let named = match policy {
                Policy::Previous => self.previous(),
                Policy::NodeIp => self.by_node_ip(),
                Policy::FirstFree if policies.contains(&Policy::NodeIp) => {
                    self.first_spare(&occupied, attempt.window())
                }
                Policy::FirstFree => self.first_free(&occupied, self.pool.subnets(), attempt.window()),
                Policy::Random => self.random(&occupied, attempt),
            };
            match named.and_then(|subnet| occupied.check(subnet)) {
                Ok(subnet) => return Some((subnet, format!("policy {policy}"))),
                Err(reason) => passed.push(format!("{policy}: {reason}")),
            }
        }
        None
    }

    /// True when another node holds the lease of the subnet that this one's Pods live in; of a lease that cannot be read nobody
    /// knows.
    fn is_taken(&self, claims: &Claims) -> bool {
        let lived_in = self.node.held.get(self.family).or(*self.node.previous.get(self.family));
        let occupied = Occupied::by_others(self.family, self.pool, self.node, claims);
        lived_in.is_some_and(|subnet| matches!(occupied.overlapping(subnet), Some((_, Some(_)))))
    }

    fn previous(&self) -> Result<Prefix, String> {
        let subnet = self.node.previous.get(self.family).ok_or("no earlier subnet is known")?;
        if self.pool.may_lease(&subnet) {
            Ok(subnet)
        } else {
            Err(format!("{subnet} does not fit the network any more"))
        }
    }

    fn by_node_ip(&self) -> Result<Prefix, String> {
        let NodeAddress { public_ip, network, .. } = *self.at;
        let number = network
            .number_of(public_ip)
            .ok_or_else(|| format!("{public_ip} is not in the node's network {network}"))?;
        self.pool.subnet(number).ok_or_else(|| {
            format!(
                "host number {number} of {public_ip} in {network} is not the number of a subnet from {} to {}",
                self.pool.subnet_min, self.pool.subnet_max
            )
        })
    }

    fn first_free(
        &self,
        occupied: &Occupied,
        subnets: impl Iterator<Item = Prefix>,
        window: usize,
    ) -> Result<Prefix, String> {
        let free: Vec<Prefix> = subnets.filter(|subnet| occupied.check(*subnet).is_ok()).take(window).collect();
        let spread = usize::try_from(number(self.at.public_ip) & u128::from(u32::MAX)).unwrap_or(0);
        let chosen = spread.checked_rem(free.len()).and_then(|index| free.get(index));
        let (min, max) = (self.pool.subnet_min, self.pool.subnet_max);
        chosen.copied().ok_or_else(|| format!("every subnet from {min} to {max} is leased"))
    }

    /// The first free subnet that no host number names; else the last, which the fewest hosts have.
    fn first_spare(&self, occupied: &Occupied, window: usize) -> Result<Prefix, String> {
        let host_bits = u32::from(self.at.network.width().saturating_sub(self.at.network.len()));
        let hosts = 1u128.checked_shl(host_bits);
        // Of IPv4 the last number is the broadcast address.
        let hosts = hosts.map(|hosts| hosts.saturating_sub(u128::from(self.family.is_v4() && host_bits > 1)));
        let first = self.pool.number(&self.pool.subnet_min);
        let spare = hosts.and_then(|hosts| self.pool.subnet(hosts.max(first)));
        let spare = std::iter::successors(spare, Prefix::next).take_while(|subnet| *subnet <= self.pool.subnet_max);
        let last = self.pool.number(&self.pool.subnet_max);
        let others = (0..=last.saturating_sub(first)).map_while(|back| self.pool.subnet(last.saturating_sub(back)));
        self.first_free(occupied, spare.chain(others), window)
    }

    fn random(&self, occupied: &Occupied, attempt: Attempt) -> Result<Prefix, String> {
        let (first, last) = (self.pool.number(&self.pool.subnet_min), self.pool.number(&self.pool.subnet_max));
        let count = last.saturating_sub(first).saturating_add(1);
        let tried = (0..RANDOM_TRIES).filter_map(|n| {
            let number = u128::from(attempt.random(n)).checked_rem(count)?;
            self.pool.subnet(first.saturating_add(number))
        });
        let found = tried.filter_map(|subnet| occupied.check(subnet).ok()).next();
        found.map_or_else(|| self.first_free(occupied, self.pool.subnets(), RANDOM_WINDOW), Ok)
    }
}

fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => u128::from(u32::from(addr)),
        IpAddr::V6(addr) => u128::from(addr),
    }
}

/// Leases of this node besides the one it `holds`: of another plan, of an earlier choice, or an operator's.
pub(crate) fn further<'a>(node: &Candidate, claims: &'a [Claim], holds: &SubnetKey) -> Vec<&'a Claim> {
    claims.iter().filter(|claim| node.owns(claim) && claim.lease().key != *holds).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::lease::LeaseAttrs;
    use crate::format::net_conf::NetConf;
    use crate::plan::backend::{BackendAttrs, End, Vtep};
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    const ALL: [Policy; 3] = Policy::DEFAULT;

    const FIRST: Attempt = Attempt { lost_races: 0, seed: 1 };

    fn network(text: &str) -> Network {
        NetConf::parse(text).unwrap().network
    }

    fn pool(text: &str) -> Pool {
        network(text).pools.v4.unwrap()
    }

    fn pods() -> Network {
        network(r#"{"Network":"172.7.0.0/16"}"#)
    }

    fn at(address: IpAddr, len: u8) -> NodeAddress {
        NodeAddress { address, network: Prefix::new(address, len).unwrap(), public_ip: address }
    }

    fn v4(text: &str) -> PerFamily<Option<Prefix>> {
        PerFamily::new(Some(text.parse().unwrap()), None)
    }

    fn node(addr: &str, len: u8) -> Candidate {
        let public_ip: IpAddr = addr.parse().unwrap();
        Candidate { addresses: PerFamily::only(IpFamily::of(public_ip), at(public_ip, len)), ..Candidate::default() }
    }

    fn lease(subnet: &str, holder: &str) -> Lease {
        let attrs = LeaseAttrs {
            public_ips: PerFamily::new(Some(holder.parse().unwrap()), None),
            backend: BackendAttrs::HostGw,
        };
        Lease { key: SubnetKey::of(subnet.parse().unwrap()), attrs }
    }

    fn claim(lease: Lease) -> Claim {
        bound(lease, Some(1))
    }

    fn bound(lease: Lease, token: Option<i64>) -> Claim {
        Claim { stored: Arc::new(StoredLease { lease, created: 1, revision: 1, token }), recorded: false }
    }

    fn claims(leases: &[Lease]) -> Claims {
        Claims { leases: leases.iter().cloned().map(claim).collect(), unreadable: Vec::new() }
    }

    fn vxlan(subnet: &str, holder: &str, mac: &str) -> Claim {
        let mut lease = lease(subnet, holder);
        lease.attrs.backend =
            BackendAttrs::Vxlan(PerFamily::new(Some(Vtep { vni: Some(1), mac: mac.parse().unwrap() }), None));
        claim(lease)
    }

    fn asked<'a>(node: &'a Candidate, pool: &'a Pool) -> Asked<'a> {
        Asked { family: IpFamily::V4, pool, at: node.addresses.v4.as_ref().unwrap(), node }
    }

    fn kept(node: &Candidate, leases: &[Claim]) -> Option<String> {
        let claims = Claims { leases: leases.to_vec(), unreadable: Vec::new() };
        match choose(&pods(), node, &claims, &ALL, FIRST).unwrap() {
            Choice::Keep(lease) => Some(lease.key.to_string()),
            Choice::Take { .. } => None,
        }
    }

    #[test]
    fn subnet_of_another_node_is_known_from_one_that_is_nobodys_or_unreadable() {
        let three = network(r#"{"Network":"172.7.0.0/22"}"#);
        let mut leases = [1, 2, 3].map(|n| lease(&format!("172.7.{n}.0/24"), &format!("10.4.7.9{n}")));
        let none = |node: &Candidate, claims: &Claims, policies: &[Policy]| {
            choose(&three, node, claims, policies, FIRST).map(drop).unwrap_err()
        };
        let node = node("10.4.7.21", 24);
        let lived = Candidate { previous: v4("172.7.3.0/24"), ..node.clone() };
        let held = Candidate { held: v4("172.7.2.0/24"), ..lived.clone() };
        for (node, taken) in [(&node, false), (&lived, true), (&held, true)] {
            let none = none(node, &claims(&leases), &[Policy::FirstFree]);
            assert_eq!(none.taken, taken, "{none}");
        }
        // A larger lease around it, or a part of it, is another node's as well.
        leases[2] = lease("172.7.3.128/25", "10.4.7.93");
        assert!(none(&lived, &claims(&leases), &[Policy::FirstFree]).taken);
        // One that nobody can read may be this node's own.
        let unreadable =
            Claims { leases: claims(&leases[..2]).leases, unreadable: vec![unreadable("172.7.3.0-24", false)] };
        assert!(!none(&lived, &unreadable, &[Policy::FirstFree]).taken);
        // Nobody has it, and the policies ask for another one.
        assert!(!none(&lived, &claims(&leases[..2]), &[Policy::NodeIp]).taken);
    }

    fn taken(choice: Result<Choice, NoSubnet>) -> (String, String) {
        match choice.unwrap() {
            Choice::Take { key, how, .. } => (key.list(), how),
            Choice::Keep(lease) => panic!("kept {lease:?}"),
        }
    }

    #[test]
    fn host_number_in_the_node_network_is_the_subnet_number() {
        for (addr, len, conf, expected) in [
            ("10.4.7.21", 24, r#"{"Network":"172.7.0.0/16"}"#, Some("172.7.21.0/24")),
            ("10.4.7.22", 24, r#"{"Network":"172.7.0.0/16"}"#, Some("172.7.22.0/24")),
            ("192.168.44.101", 24, r#"{"Network":"10.244.0.0/16"}"#, Some("10.244.101.0/24")),
            // Host 2 of a /28; host 1813 of a /16 is more than a /16 of Pods has; but a /8 has it.
            ("10.4.7.18", 28, r#"{"Network":"172.7.0.0/16"}"#, Some("172.7.2.0/24")),
            ("10.4.7.21", 16, r#"{"Network":"172.7.0.0/16"}"#, None),
            ("10.4.7.21", 16, r#"{"Network":"172.0.0.0/8"}"#, Some("172.7.21.0/24")),
            ("10.4.7.3", 24, r#"{"Network":"172.7.0.0/16","SubnetLen":28}"#, Some("172.7.0.48/28")),
            ("10.4.7.21", 24, r#"{"Network":"172.7.0.0/16","SubnetMin":"172.7.30.0"}"#, None),
        ] {
            let (node, pool) = (node(addr, len), pool(conf));
            let named = asked(&node, &pool).by_node_ip();
            assert_eq!(named.ok().map(|subnet| subnet.to_string()).as_deref(), expected, "{addr}/{len} {conf}");
        }
    }

    #[test]
    fn policies_are_asked_in_order_and_say_why_they_pass() {
        let mut candidate = node("10.4.7.21", 24);
        candidate.previous = v4("172.7.9.0/24");
        assert_eq!(
            taken(choose(&pods(), &candidate, &claims(&[]), &ALL, FIRST)),
            ("172.7.9.0/24".to_owned(), "policy previous".to_owned())
        );
        let others = [lease("172.7.9.0/24", "10.4.7.9"), lease("172.7.21.0/25", "10.4.7.99")];
        match choose(&pods(), &candidate, &claims(&others), &ALL, FIRST).unwrap() {
            Choice::Take { key, how, passed_over } => {
                assert_eq!((key.list().as_str(), how.as_str()), ("172.7.255.0/24", "policy first-free"));
                assert_eq!(
                    passed_over,
                    [
                        "previous: 172.7.9.0/24 is leased to 10.4.7.9",
                        "node-ip: 172.7.21.0/24 overlaps 172.7.21.0/25 of 10.4.7.99"
                    ]
                );
            }
            Choice::Keep(lease) => panic!("kept {lease:?}"),
        }
    }

    #[test]
    fn lease_that_names_this_node_is_kept_when_it_fits() {
        let candidate = node("10.4.7.21", 24);
        let own = lease("172.7.50.0/24", "10.4.7.21");
        assert_eq!(
            choose(&pods(), &candidate, &claims(std::slice::from_ref(&own)), &ALL, FIRST),
            Ok(Choice::Keep(own))
        );
        let unfit = [lease("10.1.0.0/24", "10.4.7.21"), lease("172.7.40.0/25", "10.4.7.21")];
        assert_eq!(taken(choose(&pods(), &candidate, &claims(&unfit), &ALL, FIRST)).0, "172.7.21.0/24");
        assert_eq!(further(&candidate, &claims(&unfit).leases, &"172.7.21.0-24".parse().unwrap()).len(), 2);
    }

    #[test]
    fn node_with_another_address_knows_its_lease_again() {
        let mut moved = node("10.4.7.121", 24);
        let own = vxlan("172.7.21.0/24", "10.4.7.21", "02:00:00:00:00:21");
        assert_eq!(kept(&moved, std::slice::from_ref(&own)), None, "nothing says that it is ours");
        let recorded = Claim { recorded: true, ..own.clone() };
        assert_eq!(kept(&moved, &[recorded]).as_deref(), Some("172.7.21.0-24"), "the record names it");
        moved.previous = v4("172.7.21.0/24");
        assert_eq!(kept(&moved, std::slice::from_ref(&own)), None, "a subnet file alone may be old");
        moved.device_macs.v4 = Some("02:00:00:00:00:21".parse().unwrap());
        assert_eq!(kept(&moved, std::slice::from_ref(&own)).as_deref(), Some("172.7.21.0-24"), "as flannel left it");
        moved.previous = PerFamily::default();
        assert_eq!(kept(&moved, &[own]), None, "a hardware address alone may be copied");
        let end = End { key: PublicKey([7; 32]), port: Some(51820) };
        let mut own = lease("172.7.21.0/24", "10.4.7.21");
        own.attrs.backend = BackendAttrs::Wireguard(Box::new(PerFamily::new(Some(end), None)));
        let own = claim(own);
        moved.public_key = Some(PublicKey([7; 32]));
        assert_eq!(kept(&moved, std::slice::from_ref(&own)), None, "so may a file with a key");
        moved.previous = v4("172.7.21.0/24");
        assert_eq!(kept(&moved, std::slice::from_ref(&own)).as_deref(), Some("172.7.21.0-24"));
        moved.public_key = Some(PublicKey([8; 32]));
        assert_eq!(kept(&moved, &[own]), None, "another node's key");
    }

    #[test]
    fn of_several_own_leases_the_one_that_pods_live_in_is_kept() {
        let mut candidate = node("10.4.7.21", 24);
        let (first, second) = (claim(lease("172.7.5.0/24", "10.4.7.21")), claim(lease("172.7.21.0/24", "10.4.7.21")));
        let reserved = bound(lease("172.7.9.0/24", "10.4.7.21"), None);
        let recorded = Claim { recorded: true, ..claim(lease("172.7.11.0/24", "10.4.7.21")) };
        let all = [first.clone(), second.clone(), reserved.clone(), recorded.clone()];
        assert_eq!(kept(&candidate, &[first.clone(), second.clone()]).as_deref(), Some("172.7.5.0-24"));
        assert_eq!(kept(&candidate, &[first, second, reserved]).as_deref(), Some("172.7.9.0-24"), "the reservation");
        assert_eq!(kept(&candidate, &all).as_deref(), Some("172.7.11.0-24"), "the record before a reservation");
        candidate.previous = v4("172.7.21.0/24");
        assert_eq!(kept(&candidate, &all).as_deref(), Some("172.7.21.0-24"), "the subnet file before all others");
        candidate.held = v4("172.7.5.0/24");
        assert_eq!(kept(&candidate, &all).as_deref(), Some("172.7.5.0-24"), "what this run holds before all others");
        assert_eq!(further(&candidate, &all, &"172.7.5.0-24".parse().unwrap()).len(), 3);
    }

    fn dual() -> Network {
        network(
            r#"{"Network":"172.7.0.0/16","IPv6Network":"fd00:7::/48","EnableIPv6":true,"Backend":{"Type":"host-gw"}}"#,
        )
    }

    fn dual_node() -> Candidate {
        let addresses = PerFamily::new(node("10.4.7.21", 24).addresses.v4, node("fd00:10:4:7::21", 64).addresses.v6);
        Candidate { addresses, ..Candidate::default() }
    }

    /// A lease of the key `key`, of a node with these addresses.
    fn dual_lease(key: &str, v4: &str, v6: &str) -> Lease {
        let public_ips = PerFamily::new(v4.parse().ok(), v6.parse().ok());
        Lease { key: key.parse().unwrap(), attrs: LeaseAttrs { public_ips, backend: BackendAttrs::HostGw } }
    }

    #[test]
    fn one_lease_holds_a_subnet_of_each_family() {
        let (key, how) = taken(choose(&dual(), &dual_node(), &claims(&[]), &ALL, FIRST));
        assert_eq!(key, "172.7.21.0/24,fd00:7:0:21::/64");
        assert_eq!(how, "IPv4 policy node-ip, IPv6 policy node-ip");
        // What one family finds taken moves only that family.
        let other = dual_lease("172.7.9.0-24&fd00:7:0:21::-64", "10.4.7.9", "fd00:10:4:7::9");
        let (key, how) = taken(choose(&dual(), &dual_node(), &claims(&[other]), &ALL, FIRST));
        assert_eq!(key, "172.7.21.0/24,fd00:7:0:ffff::/64");
        assert!(how.starts_with("IPv4 policy node-ip, IPv6 policy first-free"), "{how}");
        // A node with one family of two takes a lease of that one.
        let v6_only = Candidate { addresses: node("fd00:10:4:7::21", 64).addresses, ..Candidate::default() };
        assert_eq!(taken(choose(&dual(), &v6_only, &claims(&[]), &ALL, FIRST)).0, "fd00:7:0:21::/64");
        let nobody = choose(&pods(), &v6_only, &claims(&[]), &ALL, FIRST).unwrap_err();
        assert!(nobody.to_string().contains("no address of a family of 172.7.0.0/16"), "{nobody}");
    }

    #[test]
    fn nodes_without_ipv4_differ_by_their_ipv6_addresses() {
        let v6 = network(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:7::/48"}"#);
        let first = dual_lease("0.0.0.0-0&fd00:7:0:1::-64", "", "fd00:10:4:7::9");
        let second = Candidate { addresses: node("fd00:10:4:7::a:21", 64).addresses, ..Candidate::default() };
        assert_eq!(
            taken(choose(&v6, &second, &claims(std::slice::from_ref(&first)), &ALL, FIRST)).0,
            "fd00:7:0:ffff::/64"
        );
        let same = Candidate { addresses: node("fd00:10:4:7::9", 64).addresses, ..Candidate::default() };
        assert_eq!(choose(&v6, &same, &claims(std::slice::from_ref(&first)), &ALL, FIRST), Ok(Choice::Keep(first)));
    }

    #[test]
    fn subnet_of_a_family_that_stays_is_kept_when_the_other_comes_or_goes() {
        let both = dual_lease("172.7.50.0-24&fd00:7:0:50::-64", "10.4.7.21", "fd00:10:4:7::21");
        let v4 = dual_lease("172.7.50.0-24", "10.4.7.21", "");
        let keys = |network: &Network, lease: &Lease| match choose(
            network,
            &dual_node(),
            &claims(std::slice::from_ref(lease)),
            &ALL,
            FIRST,
        ) {
            Ok(Choice::Take { key, .. }) => format!("take {key}"),
            Ok(Choice::Keep(lease)) => format!("keep {}", lease.key),
            Err(error) => error.to_string(),
        };
        assert_eq!(keys(&dual(), &both), "keep 172.7.50.0-24&fd00:7:0:50::-64");
        assert_eq!(keys(&pods(), &both), "take 172.7.50.0-24");
        assert_eq!(keys(&dual(), &v4), "take 172.7.50.0-24&fd00:7:0:21::-64");
        assert_eq!(further(&dual_node(), &[claim(both)], &v4.key).len(), 1, "the earlier key is given up");
    }

    #[test]
    fn held_subnet_comes_first_after_a_loss_whatever_the_policy() {
        let mut candidate = node("10.4.7.21", 24);
        candidate.held = v4("172.7.77.0/24");
        let policies = [Policy::NodeIp, Policy::FirstFree];
        assert_eq!(taken(choose(&pods(), &candidate, &claims(&[]), &policies, FIRST)).0, "172.7.77.0/24");
        let others = claims(&[lease("172.7.77.0/24", "10.4.7.99")]);
        match choose(&pods(), &candidate, &others, &policies, FIRST).unwrap() {
            Choice::Take { key, passed_over, .. } => {
                assert_eq!(key.list(), "172.7.21.0/24");
                assert_eq!(passed_over, ["held before: 172.7.77.0/24 is leased to 10.4.7.99"]);
            }
            Choice::Keep(lease) => panic!("kept {lease:?}"),
        }
    }

    fn unreadable(key: &str, recorded: bool) -> Unreadable {
        Unreadable { key: key.parse().unwrap(), revision: 7, recorded }
    }

    #[test]
    fn subnet_of_an_unreadable_lease_is_left_alone_unless_this_node_held_it() {
        let node = node("10.4.7.21", 24);
        let held = Candidate { held: v4("172.7.21.0/24"), ..node.clone() };
        let previous = Candidate { previous: v4("172.7.21.0/24"), ..node.clone() };
        let cases = [(&node, true, 255), (&previous, false, 255), (&previous, true, 21), (&held, false, 21)];
        for (node, recorded, chosen) in cases {
            let claims = |key| Claims { leases: Vec::new(), unreadable: vec![unreadable(key, recorded)] };
            let subnet = |key| taken(choose(&pods(), node, &claims(key), &ALL, FIRST)).0;
            assert_eq!(subnet("172.7.21.0-24"), format!("172.7.{chosen}.0/24"));
            assert_eq!(subnet("172.7.21.0-25"), "172.7.255.0/24", "it is another key");
        }
    }

    #[test]
    fn first_free_leaves_to_others_what_node_ip_owes_them() {
        let policies = [Policy::NodeIp, Policy::FirstFree];
        let first = |conf: &str, addr: &str, len: u8, held: &[&str]| {
            let leases: Vec<Lease> = held.iter().map(|subnet| lease(subnet, "10.4.9.9")).collect();
            taken(choose(&network(conf), &node(addr, len), &claims(&leases), &policies, FIRST)).0
        };
        let whole = r#"{"Network":"172.7.0.0/16"}"#;
        // Host 1813 of a /16 names no subnet; each of 1 to 255 is owed to some host, and the last to the fewest.
        assert_eq!(first(whole, "10.4.7.21", 16, &[]), "172.7.255.0/24");
        assert_eq!(first(whole, "10.4.7.21", 16, &["172.7.255.0/24", "172.7.253.0/24"]), "172.7.254.0/24");
        // Of a /28 the hosts are 1 to 14, of a /24 they are 1 to 254.
        assert_eq!(first(whole, "10.4.7.18", 28, &["172.7.2.0/24"]), "172.7.15.0/24");
        assert_eq!(first(whole, "10.4.7.21", 24, &["172.7.21.0/24", "172.7.255.0/24"]), "172.7.254.0/24");
        let small = r#"{"Network":"172.7.0.0/16","SubnetMin":"172.7.30.0","SubnetMax":"172.7.31.0"}"#;
        assert_eq!(first(small, "10.4.7.18", 28, &["172.7.2.0/24"]), "172.7.30.0/24");
        assert_eq!(first(small, "10.4.7.18", 28, &["172.7.30.0/24"]), "172.7.31.0/24");
        let alone = choose(&pods(), &node("10.4.7.21", 24), &claims(&[]), &[Policy::FirstFree], FIRST);
        assert_eq!(taken(alone).0, "172.7.1.0/24", "without node-ip nothing is owed");
    }

    #[test]
    fn only_its_address_says_that_a_lease_is_own_where_neither_record_nor_subnet_does() {
        let lived = |held: &str, previous: &str| {
            let subnet = |text: &str| PerFamily::new(text.parse().ok(), None);
            Candidate { held: subnet(held), previous: subnet(previous), ..node("10.4.7.21", 24) }
        };
        let (own, forever) =
            (claim(lease("172.7.21.0/24", "10.4.7.21")), bound(lease("172.7.21.0/24", "10.4.7.21"), None));
        let recorded = Claim { recorded: true, ..own.clone() };
        for (candidate, claim, doubted) in [
            (lived("", ""), &own, true),
            (lived("172.7.22.0/24", "172.7.23.0/24"), &own, true),
            (lived("172.7.21.0/24", ""), &own, false),
            (lived("", "172.7.21.0/24"), &own, false),
            (lived("", ""), &recorded, false),
            (lived("", ""), &forever, false),
        ] {
            assert!(candidate.owns(claim));
            assert_eq!(candidate.doubts(claim), doubted, "{candidate:?} {claim:?}");
        }
    }

    #[test]
    fn lease_with_another_address_may_be_that_of_the_node_that_this_one_is_a_copy_of() {
        let node = Candidate { previous: v4("172.7.21.0/24"), ..node("10.4.7.21", 24) };
        let elsewhere = |recorded| Claim { recorded, ..claim(lease("172.7.21.0/24", "10.4.7.99")) };
        assert!(node.may_be_a_copys(&elsewhere(true)) && !node.doubts(&elsewhere(true)));
        let held = Candidate { held: v4("172.7.21.0/24"), ..node.clone() };
        assert!(!held.may_be_a_copys(&elsewhere(true)), "this run has held it");
        assert!(!node.may_be_a_copys(&claim(lease("172.7.21.0/24", "10.4.7.21"))));
        assert!(!node.may_be_a_copys(&bound(lease("172.7.21.0/24", "10.4.7.99"), None)), "an operator's");
    }

    #[test]
    fn random_takes_any_free_subnet_of_each_family() {
        let any = |network: &Network, node: &Candidate, leases: &[Lease], attempt: Attempt| {
            taken(choose(network, node, &claims(leases), &[Policy::Random], attempt)).0
        };
        let all = |network: &Network, node: &Candidate, leases: &[Lease]| -> BTreeSet<String> {
            (0..64).map(|seed| any(network, node, leases, Attempt { seed, lost_races: 0 })).collect()
        };
        assert!(all(&dual(), &dual_node(), &[]).len() > 60);
        // Nearly full: what is left is found.
        let others = (1..=255).filter(|n| *n != 77).map(|n| lease(&format!("172.7.{n}.0/24"), "10.4.9.9"));
        let full: Vec<Lease> = others.collect();
        assert_eq!(all(&pods(), &node("10.4.7.21", 24), &full), ["172.7.77.0/24".to_owned()].into());
        let races =
            (0..16).map(|lost_races| any(&pods(), &node("10.4.7.21", 24), &[], Attempt { seed: 1, lost_races }));
        assert!(races.collect::<BTreeSet<String>>().len() > 10);
    }

    #[test]
    fn junk_claim_on_more_than_a_subnet_keeps_nobody_out() {
        let stray = claims(&[lease("0.0.0.0/0", "10.4.7.66"), lease("172.7.0.0/16", "10.4.7.67")]);
        assert_eq!(taken(choose(&pods(), &node("10.4.7.21", 24), &stray, &ALL, FIRST)).0, "172.7.21.0/24");
    }

    #[test]
    fn full_network_is_an_error_with_every_reason() {
        let small = network(r#"{"Network":"10.0.0.0/28"}"#);
        let full: Vec<Lease> =
            small.pools.v4.as_ref().unwrap().subnets().map(|subnet| lease(&subnet.to_string(), "10.4.7.9")).collect();
        let error = choose(&small, &node("10.4.7.21", 24), &claims(&full), &ALL, Attempt { lost_races: 3, ..FIRST })
            .unwrap_err()
            .to_string();
        assert!(error.contains("previous: ") && error.contains("node-ip: ") && error.contains("is leased"), "{error}");
    }

    #[test]
    fn however_many_races_are_lost_the_window_is_bounded() {
        let windows = [0, 1, 3, 7, 8, 63, 64, u32::MAX].map(|lost_races| Attempt { lost_races, seed: 1 }.window());
        assert_eq!(windows, [1, 2, 8, 128, 128, 128, 128, 128]);
    }

    #[test]
    fn nodes_that_lost_a_race_spread() {
        let policies = [Policy::FirstFree];
        let choices: Vec<String> = (1..=8)
            .map(|n| {
                taken(choose(
                    &pods(),
                    &node(&format!("10.4.7.{n}"), 24),
                    &claims(&[]),
                    &policies,
                    Attempt { lost_races: 3, ..FIRST },
                ))
                .0
            })
            .collect();
        let distinct: BTreeSet<&String> = choices.iter().collect();
        assert_eq!(distinct.len(), 8, "{choices:?}");
    }

    proptest! {
        #[test]
        fn overlap_is_found_as_by_looking_at_every_claim(
            held in prop::collection::vec((any::<u16>(), 17u8..=30), 0..40), at in any::<u16>(), len in 17u8..=30,
        ) {
            let prefix = |(addr, len): (u16, u8)| {
                Prefix::new(Ipv4Addr::from(0xac07_0000 | u32::from(addr)).into(), len).unwrap()
            };
            let leases: Vec<Lease> = held.into_iter().map(|at| lease(&prefix(at).to_string(), "10.4.9.9")).collect();
            let subnet = prefix((at, len));
            let (node, pool) = (node("10.4.7.21", 24), pods().pools.v4.unwrap());
            let occupied = Occupied::by_others(IpFamily::V4, &pool, &node, &claims(&leases));
            let expected = leases.iter().any(|lease| lease.key.get(IpFamily::V4).unwrap().overlaps(&subnet));
            prop_assert_eq!(occupied.check(subnet).is_err(), expected);
        }

        #[test]
        fn chosen_subnet_overlaps_nobody_elses(held in prop::collection::vec((1u8..=30, 20u8..=29), 0..60), races in 0u32..20, own in 1u8..=40) {
            let network = network(r#"{"Network":"172.7.0.0/19"}"#);
            let leases: Vec<Lease> = held
                .iter()
                .map(|(third, len)| {
                    let subnet = Prefix::new(Ipv4Addr::new(172, 7, *third, 0).into(), *len).unwrap();
                    lease(&subnet.to_string(), "10.4.9.9")
                })
                .collect();
            if let Ok(Choice::Take { key, .. }) = choose(&network, &node(&format!("10.4.7.{own}"), 24), &claims(&leases), &ALL, Attempt { lost_races: races, ..FIRST }) {
                let subnet = key.get(IpFamily::V4).unwrap();
                prop_assert!(network.pools.v4.unwrap().may_lease(&subnet));
                prop_assert!(leases.iter().all(|lease| !lease.key.get(IpFamily::V4).unwrap().overlaps(&subnet)));
            }
        }
    }
}
