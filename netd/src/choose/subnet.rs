//! Which subnet this node takes: one of its own leases, or one that nobody holds.
//!
//! Pure. Invariants: a node knows its own leases by more than its address, which can change; of several it keeps the one
//! that its Pods live in; a subnet that overlaps anybody else's lease, or a reservation, is never chosen; the same
//! inputs give the same choice.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use netstate::{MacAddr, Prefix};

use crate::format::lease::{Lease, SubnetKey};
use crate::format::net_conf::{Network, Pool};

/// One rule for choosing a subnet; they are asked in the configured order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// The subnet this node had before, as its subnet file says: Pods may still live in it.
    Previous,
    /// The node's host number inside its own network is the number of the subnet inside the Pod network:
    /// 10.4.7.21/24 is host 21, and subnet 21 of 172.7.0.0/16 is 172.7.21.0/24. It applies when that subnet lies
    /// between SubnetMin and SubnetMax.
    NodeIp,
    /// The first subnet that is free.
    FirstFree,
}

impl Policy {
    /// The name on the command line.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Previous => "previous",
            Self::NodeIp => "node-ip",
            Self::FirstFree => "first-free",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Policy {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        [Self::Previous, Self::NodeIp, Self::FirstFree].into_iter().find(|policy| policy.name() == s).ok_or(())
    }
}

/// The node that wants a subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Its address, as other nodes see it.
    pub public_ip: Ipv4Addr,
    /// Its own network, which gives it its host number.
    pub node_network: Prefix,
    /// The subnet that this run of the daemon has held, if it has: Pods live in it.
    pub held: Option<Prefix>,
    /// The subnet that its subnet file names, if there is one.
    pub previous: Option<Prefix>,
    /// Hardware address of the tunnel device that stands on it, if there is one.
    pub device_mac: Option<MacAddr>,
}

/// One lease in the store, as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The lease.
    pub lease: Lease,
    /// It has an end; one without is an operator's reservation.
    pub ends: bool,
    /// This node's record names it, with what ends it.
    pub recorded: bool,
}

/// Every claim on a subnet that the store holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    /// The leases that can be read, this node's included.
    pub leases: Vec<Claim>,
    /// Subnets of keys whose value cannot be read: somebody's, nobody knows whose.
    pub unreadable: Vec<Prefix>,
}

/// What to do about a subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Keep this lease: it is this node's.
    Keep(Lease),
    /// Take a free subnet.
    Take {
        /// The subnet.
        subnet: Prefix,
        /// What named it, for the log.
        how: String,
        /// Why what was asked before did not apply, for the log.
        passed_over: Vec<String>,
    },
}

/// There is nothing to take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no subnet to take: {}", .0.join("; "))]
pub(crate) struct NoSubnet(pub Vec<String>);

/// How many free subnets `first-free` chooses among: 1 at first, doubled with every lost race up to 128, so that
/// many nodes that start at once do not all want the same one again and again.
fn window(lost_races: u32) -> usize {
    1usize << lost_races.min(7)
}

/// Chooses the subnet for `node` beside the `claims` of all nodes; `lost_races` counts how often somebody else was
/// faster since the choosing began.
///
/// # Errors
/// When no policy names a free subnet, with the reason of each.
pub(crate) fn choose(
    network: &Network,
    node: &Candidate,
    claims: &Claims,
    policies: &[Policy],
    lost_races: u32,
) -> Result<Choice, NoSubnet> {
    let Some(network) = &network.pools.v4 else {
        return Err(NoSubnet(vec!["the network has no IPv4 addresses".to_owned()]));
    };
    if let Some(own) = own_lease(network, node, &claims.leases) {
        return Ok(Choice::Keep(own.clone()));
    }
    let occupied = Occupied::by_others(network, node, claims);
    let mut passed_over = Vec::new();
    // Pods live in the subnet that was held a moment ago, whatever the policies say.
    if let Some(held) = node.held.filter(|held| network.may_lease(held)) {
        match occupied.check(held) {
            Ok(subnet) => return Ok(Choice::Take { subnet, how: "held before".to_owned(), passed_over }),
            Err(reason) => passed_over.push(format!("held before: {reason}")),
        }
    }
    for policy in policies {
        let named = match policy {
            Policy::Previous => previous(network, node),
            Policy::NodeIp => by_node_ip(network, node),
            Policy::FirstFree => first_free(network, node, &occupied, window(lost_races)),
        };
        match named.and_then(|subnet| occupied.check(subnet)) {
            Ok(subnet) => return Ok(Choice::Take { subnet, how: format!("policy {policy}"), passed_over }),
            Err(reason) => passed_over.push(format!("{policy}: {reason}")),
        }
    }
    Err(NoSubnet(passed_over))
}

impl Candidate {
    /// True for a lease of this node: it names its address, or the record names the lease, or both the subnet and the
    /// hardware address are the ones that stand on this node, from before its address changed.
    #[must_use]
    pub(crate) fn owns(&self, claim: &Claim) -> bool {
        let subnet = Some(claim.lease.key.v4);
        let lived_in = subnet == self.held || subnet == self.previous;
        let device = self.device_mac.is_some() && claim.lease.attrs.backend.mac() == self.device_mac;
        claim.lease.attrs.public_ip == self.public_ip || claim.recorded || (lived_in && device)
    }

    /// Which of several own leases is kept: the lowest, the subnet that Pods live in before all others.
    fn rank(&self, claim: &Claim) -> u8 {
        let subnet = Some(claim.lease.key.v4);
        if subnet == self.held {
            0
        } else if subnet == self.previous {
            1
        } else if claim.recorded {
            2
        } else if claim.ends {
            4
        } else {
            3
        }
    }
}

/// This node's lease that fits the network; of several the one with the best claim, then the first in key order.
fn own_lease<'a>(network: &Pool, node: &Candidate, claims: &'a [Claim]) -> Option<&'a Lease> {
    let fits = |claim: &&Claim| claim.lease.key.v6.is_none() && network.may_lease(&claim.lease.key.v4);
    let own = claims.iter().filter(|claim| node.owns(claim)).filter(fits);
    own.min_by_key(|claim| (node.rank(claim), claim.lease.key)).map(|claim| &claim.lease)
}

/// Leases of this node besides the one it `holds`: of another plan, of an earlier choice, or an operator's.
pub(crate) fn further<'a>(node: &Candidate, claims: &'a [Claim], holds: &SubnetKey) -> Vec<&'a Claim> {
    claims.iter().filter(|claim| node.owns(claim) && claim.lease.key != *holds).collect()
}

fn previous(network: &Pool, node: &Candidate) -> Result<Prefix, String> {
    let subnet = node.previous.ok_or("no earlier subnet is known")?;
    if network.may_lease(&subnet) { Ok(subnet) } else { Err(format!("{subnet} does not fit the network any more")) }
}

fn by_node_ip(network: &Pool, node: &Candidate) -> Result<Prefix, String> {
    let number = host_number(node)
        .ok_or_else(|| format!("{} is not in the node's network {}", node.public_ip, node.node_network))?;
    network.subnet(number).ok_or_else(|| {
        format!(
            "host number {number} of {} in {} is not the number of a subnet from {} to {}",
            node.public_ip, node.node_network, network.subnet_min, network.subnet_max
        )
    })
}

fn host_number(node: &Candidate) -> Option<u32> {
    let IpAddr::V4(first) = node.node_network.addr() else { return None };
    let inside = node.node_network.contains(IpAddr::V4(node.public_ip));
    inside.then(|| u32::from(node.public_ip) - u32::from(first))
}

fn first_free(network: &Pool, node: &Candidate, occupied: &Occupied, window: usize) -> Result<Prefix, String> {
    let free: Vec<Prefix> = network.subnets().filter(|subnet| occupied.check(*subnet).is_ok()).take(window).collect();
    let spread = usize::try_from(u32::from(node.public_ip)).unwrap_or(0);
    let chosen = spread.checked_rem(free.len()).and_then(|index| free.get(index));
    chosen
        .copied()
        .ok_or_else(|| format!("every subnet from {} to {} is leased", network.subnet_min, network.subnet_max))
}

/// The parts of the Pod network that other nodes claim, each with its holder if that can be read.
///
/// Ordered, so that the check of one subnet costs the same beside ten claims and beside ten thousand.
struct Occupied(BTreeMap<Prefix, Option<Ipv4Addr>>);

impl Occupied {
    fn by_others(network: &Pool, node: &Candidate, claims: &Claims) -> Self {
        let others = claims.leases.iter().filter(|claim| !node.owns(claim));
        let read = others.map(|claim| (claim.lease.key.v4, Some(claim.lease.attrs.public_ip)));
        let others = read.chain(claims.unreadable.iter().map(|subnet| (*subnet, None)));
        // A stray key such as `0.0.0.0-0` claims no Pod subnet: it must not keep every node out.
        Self(others.filter(|(subnet, _)| network.has_subnet(subnet)).collect())
    }

    fn check(&self, subnet: Prefix) -> Result<Prefix, String> {
        match self.overlapping(subnet) {
            None => Ok(subnet),
            Some((claim, None)) => Err(format!("{subnet} overlaps {claim}, whose lease cannot be read")),
            Some((claim, Some(holder))) if *claim == subnet => Err(format!("{subnet} is leased to {holder}")),
            Some((claim, Some(holder))) => Err(format!("{subnet} overlaps {claim} of {holder}")),
        }
    }

    /// Networks overlap only when one is inside the other: a claim is one of the networks around `subnet`, or begins
    /// inside it and so is the next one in order.
    fn overlapping(&self, subnet: Prefix) -> Option<(&Prefix, &Option<Ipv4Addr>)> {
        let around = (0..=subnet.len()).filter_map(|len| Prefix::new(subnet.addr(), len).ok());
        let around = around.filter_map(|network| self.0.get_key_value(&network)).next();
        around.or_else(|| self.0.range(subnet..).next().filter(|(claim, _)| subnet.covers(claim)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::lease::LeaseAttrs;
    use crate::format::net_conf::NetConf;
    use crate::plan::backend::BackendAttrs;
    use proptest::prelude::*;

    const ALL: [Policy; 3] = [Policy::Previous, Policy::NodeIp, Policy::FirstFree];

    fn network(text: &str) -> Network {
        NetConf::parse(text).unwrap().network
    }

    fn pool(text: &str) -> Pool {
        network(text).pools.v4.unwrap()
    }

    fn pods() -> Network {
        network(r#"{"Network":"172.7.0.0/16"}"#)
    }

    fn node(addr: &str, len: u8) -> Candidate {
        let public_ip: Ipv4Addr = addr.parse().unwrap();
        Candidate {
            public_ip,
            node_network: Prefix::new(public_ip.into(), len).unwrap(),
            held: None,
            previous: None,
            device_mac: None,
        }
    }

    fn lease(subnet: &str, holder: &str) -> Lease {
        let attrs = LeaseAttrs { public_ip: holder.parse().unwrap(), public_ipv6: None, backend: BackendAttrs::HostGw };
        Lease { key: SubnetKey::v4(subnet.parse().unwrap()), attrs }
    }

    fn claim(lease: Lease) -> Claim {
        Claim { lease, ends: true, recorded: false }
    }

    fn claims(leases: &[Lease]) -> Claims {
        Claims { leases: leases.iter().cloned().map(claim).collect(), unreadable: Vec::new() }
    }

    fn vxlan(subnet: &str, holder: &str, mac: &str) -> Claim {
        let mut lease = lease(subnet, holder);
        lease.attrs.backend = BackendAttrs::Vxlan { vni: 1, mac: mac.parse().unwrap() };
        claim(lease)
    }

    fn kept(node: &Candidate, leases: &[Claim]) -> Option<String> {
        let claims = Claims { leases: leases.to_vec(), unreadable: Vec::new() };
        match choose(&pods(), node, &claims, &ALL, 0).unwrap() {
            Choice::Keep(lease) => Some(lease.key.to_string()),
            Choice::Take { .. } => None,
        }
    }

    fn taken(choice: Result<Choice, NoSubnet>) -> (String, String) {
        match choice.unwrap() {
            Choice::Take { subnet, how, .. } => (subnet.to_string(), how),
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
            let named = by_node_ip(&pool(conf), &node(addr, len));
            assert_eq!(named.ok().map(|subnet| subnet.to_string()).as_deref(), expected, "{addr}/{len} {conf}");
        }
    }

    #[test]
    fn policies_are_asked_in_order_and_say_why_they_pass() {
        let mut candidate = node("10.4.7.21", 24);
        candidate.previous = Some("172.7.9.0/24".parse().unwrap());
        assert_eq!(
            taken(choose(&pods(), &candidate, &claims(&[]), &ALL, 0)),
            ("172.7.9.0/24".to_owned(), "policy previous".to_owned())
        );
        let others = [lease("172.7.9.0/24", "10.4.7.9"), lease("172.7.21.0/25", "10.4.7.99")];
        match choose(&pods(), &candidate, &claims(&others), &ALL, 0).unwrap() {
            Choice::Take { subnet, how, passed_over } => {
                assert_eq!((subnet.to_string().as_str(), how.as_str()), ("172.7.1.0/24", "policy first-free"));
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
        assert_eq!(choose(&pods(), &candidate, &claims(std::slice::from_ref(&own)), &ALL, 0), Ok(Choice::Keep(own)));
        let unfit = [lease("10.1.0.0/24", "10.4.7.21"), lease("172.7.40.0/25", "10.4.7.21")];
        assert_eq!(taken(choose(&pods(), &candidate, &claims(&unfit), &ALL, 0)).0, "172.7.21.0/24");
        assert_eq!(further(&candidate, &claims(&unfit).leases, &"172.7.21.0-24".parse().unwrap()).len(), 2);
    }

    #[test]
    fn node_with_another_address_knows_its_lease_again() {
        let mut moved = node("10.4.7.121", 24);
        let own = vxlan("172.7.21.0/24", "10.4.7.21", "02:00:00:00:00:21");
        assert_eq!(kept(&moved, std::slice::from_ref(&own)), None, "nothing says that it is ours");
        let recorded = Claim { recorded: true, ..own.clone() };
        assert_eq!(kept(&moved, &[recorded]).as_deref(), Some("172.7.21.0-24"), "the record names it");
        moved.previous = Some("172.7.21.0/24".parse().unwrap());
        assert_eq!(kept(&moved, std::slice::from_ref(&own)), None, "a subnet file alone may be old");
        moved.device_mac = Some("02:00:00:00:00:21".parse().unwrap());
        assert_eq!(kept(&moved, std::slice::from_ref(&own)).as_deref(), Some("172.7.21.0-24"), "as flannel left it");
        moved.previous = None;
        assert_eq!(kept(&moved, &[own]), None, "a hardware address alone may be copied");
    }

    #[test]
    fn of_several_own_leases_the_one_that_pods_live_in_is_kept() {
        let mut candidate = node("10.4.7.21", 24);
        let (first, second) = (claim(lease("172.7.5.0/24", "10.4.7.21")), claim(lease("172.7.21.0/24", "10.4.7.21")));
        let reserved = Claim { ends: false, ..claim(lease("172.7.9.0/24", "10.4.7.21")) };
        let recorded = Claim { recorded: true, ..claim(lease("172.7.11.0/24", "10.4.7.21")) };
        let all = [first.clone(), second.clone(), reserved.clone(), recorded.clone()];
        assert_eq!(kept(&candidate, &[first.clone(), second.clone()]).as_deref(), Some("172.7.5.0-24"));
        assert_eq!(kept(&candidate, &[first, second, reserved]).as_deref(), Some("172.7.9.0-24"), "the reservation");
        assert_eq!(kept(&candidate, &all).as_deref(), Some("172.7.11.0-24"), "the record before a reservation");
        candidate.previous = Some("172.7.21.0/24".parse().unwrap());
        assert_eq!(kept(&candidate, &all).as_deref(), Some("172.7.21.0-24"), "the subnet file before all others");
        candidate.held = Some("172.7.5.0/24".parse().unwrap());
        assert_eq!(kept(&candidate, &all).as_deref(), Some("172.7.5.0-24"), "what this run holds before all others");
        assert_eq!(further(&candidate, &all, &"172.7.5.0-24".parse().unwrap()).len(), 3);
    }

    #[test]
    fn held_subnet_comes_first_after_a_loss_whatever_the_policy() {
        let mut candidate = node("10.4.7.21", 24);
        candidate.held = Some("172.7.77.0/24".parse().unwrap());
        let policies = [Policy::NodeIp, Policy::FirstFree];
        assert_eq!(taken(choose(&pods(), &candidate, &claims(&[]), &policies, 0)).0, "172.7.77.0/24");
        let others = claims(&[lease("172.7.77.0/24", "10.4.7.99")]);
        match choose(&pods(), &candidate, &others, &policies, 0).unwrap() {
            Choice::Take { subnet, passed_over, .. } => {
                assert_eq!(subnet.to_string(), "172.7.21.0/24");
                assert_eq!(passed_over, ["held before: 172.7.77.0/24 is leased to 10.4.7.99"]);
            }
            Choice::Keep(lease) => panic!("kept {lease:?}"),
        }
    }

    #[test]
    fn subnet_of_an_unreadable_lease_is_left_alone() {
        let claims = Claims { leases: Vec::new(), unreadable: vec!["172.7.21.0/24".parse().unwrap()] };
        assert_eq!(taken(choose(&pods(), &node("10.4.7.21", 24), &claims, &ALL, 0)).0, "172.7.1.0/24");
    }

    #[test]
    fn junk_claim_on_more_than_a_subnet_keeps_nobody_out() {
        let stray = claims(&[lease("0.0.0.0/0", "10.4.7.66"), lease("172.7.0.0/16", "10.4.7.67")]);
        assert_eq!(taken(choose(&pods(), &node("10.4.7.21", 24), &stray, &ALL, 0)).0, "172.7.21.0/24");
    }

    #[test]
    fn full_network_is_an_error_with_every_reason() {
        let small = network(r#"{"Network":"10.0.0.0/28"}"#);
        let full: Vec<Lease> =
            small.pools.v4.as_ref().unwrap().subnets().map(|subnet| lease(&subnet.to_string(), "10.4.7.9")).collect();
        let error = choose(&small, &node("10.4.7.21", 24), &claims(&full), &ALL, 3).unwrap_err().to_string();
        assert!(error.contains("previous: ") && error.contains("node-ip: ") && error.contains("is leased"), "{error}");
    }

    #[test]
    fn nodes_that_lost_a_race_spread() {
        let policies = [Policy::FirstFree];
        let choices: Vec<String> = (1..=8)
            .map(|n| taken(choose(&pods(), &node(&format!("10.4.7.{n}"), 24), &claims(&[]), &policies, 3)).0)
            .collect();
        let distinct: std::collections::BTreeSet<&String> = choices.iter().collect();
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
            let occupied = Occupied::by_others(&pods().pools.v4.unwrap(), &node("10.4.7.21", 24), &claims(&leases));
            let expected = leases.iter().any(|lease| lease.key.v4.overlaps(&subnet));
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
            if let Ok(Choice::Take { subnet, .. }) = choose(&network, &node(&format!("10.4.7.{own}"), 24), &claims(&leases), &ALL, races) {
                prop_assert!(network.pools.v4.unwrap().may_lease(&subnet));
                prop_assert!(leases.iter().all(|lease| !lease.key.v4.overlaps(&subnet)));
            }
        }
    }
}
