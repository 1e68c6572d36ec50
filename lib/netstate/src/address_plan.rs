//! `AddressPlan`: the named networks of a cluster, and which of them share addresses.
//!
//! An address of a node, of a Pod and of a Service is never the same address: packets would take the wrong path, and
//! nothing would say why. Invariant: every overlapping pair is found, once, with both networks by name; the networks of
//! one node are not compared with each other, since two links may well stand in one network.

use std::fmt;
use std::net::IpAddr;

use crate::{IfName, Prefix};

/// What a network's addresses are given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The nodes themselves.
    Node,
    /// Pods.
    Pod,
    /// Services.
    Service,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node network",
            Self::Pod => "Pod network",
            Self::Service => "Service network",
        })
    }
}

/// A network with its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    /// What its addresses are given to.
    pub role: Role,
    /// The network.
    pub prefix: Prefix,
    /// The link it is on, of a node's network.
    pub link: Option<IfName>,
}

impl fmt::Display for Network {
    /// `node network 10.4.7.0/24 on eth0`, `Pod network 172.7.0.0/16`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.prefix)?;
        self.link.as_ref().map_or(Ok(()), |link| write!(f, " on {link}"))
    }
}

/// Two networks that share addresses; the first one's role sorts no later than the second one's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap<'a> {
    /// The one.
    pub first: &'a Network,
    /// The other.
    pub second: &'a Network,
}

impl fmt::Display for Overlap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, second) = (self.first, self.second);
        let verb = if second.prefix.covers(&first.prefix) { "lies inside" } else { "contains part of" };
        write!(f, "{first} {verb} {second}: choose networks that share no address")
    }
}

/// The networks of a cluster, as far as one node knows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressPlan {
    networks: Vec<Network>,
}

impl AddressPlan {
    /// Adds a network of this node, with the link it is on where that is known.
    #[must_use]
    pub fn node(self, link: Option<IfName>, prefix: Prefix) -> Self {
        self.with(Network { role: Role::Node, prefix, link })
    }

    /// Adds a network of Pods.
    #[must_use]
    pub fn pods(self, prefix: Prefix) -> Self {
        self.with(Network { role: Role::Pod, prefix, link: None })
    }

    /// Adds a network of Services.
    #[must_use]
    pub fn services(self, prefix: Prefix) -> Self {
        self.with(Network { role: Role::Service, prefix, link: None })
    }

    fn with(mut self, network: Network) -> Self {
        // Behind those of the same role, so that pairs come in the order of roles.
        let place = self.networks.partition_point(|other| other.role <= network.role);
        self.networks.insert(place, network);
        self
    }

    /// The networks, nodes' first, then Pods', then Services'.
    #[must_use]
    pub fn networks(&self) -> &[Network] {
        &self.networks
    }

    /// The networks of one role.
    pub fn of(&self, role: Role) -> impl Iterator<Item = &Network> {
        self.networks.iter().filter(move |network| network.role == role)
    }

    /// The networks that hold `addr`.
    pub fn holding(&self, addr: IpAddr) -> impl Iterator<Item = &Network> {
        self.networks.iter().filter(move |network| network.prefix.contains(addr))
    }

    /// Every pair that shares addresses, the networks of one node among themselves apart.
    #[must_use]
    pub fn overlaps(&self) -> Vec<Overlap<'_>> {
        let mut found = Vec::new();
        for (index, first) in self.networks.iter().enumerate() {
            let later = self.networks.iter().skip(index.saturating_add(1));
            let shared = later.filter(|second| second.role != Role::Node && second.prefix.overlaps(&first.prefix));
            found.extend(shared.map(|second| Overlap { first, second }));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan(nodes: &[&str], pods: &[&str], services: &[&str]) -> AddressPlan {
        let parse = |text: &&str| text.parse::<Prefix>().unwrap();
        let plan = services.iter().map(parse).fold(AddressPlan::default(), AddressPlan::services);
        let plan = pods.iter().map(parse).fold(plan, AddressPlan::pods);
        nodes.iter().map(parse).fold(plan, |plan, prefix| plan.node(Some(IfName::literal("eth0")), prefix))
    }

    fn texts(plan: &AddressPlan) -> Vec<String> {
        plan.overlaps().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn address_plans_that_must_come_up_have_no_overlap() {
        for (nodes, pods, services) in [
            ("10.4.7.0/24", "172.7.0.0/16", "192.168.0.0/16"),
            ("192.168.32.0/24", "10.244.0.0/16", "10.96.0.0/12"),
            ("192.168.197.0/24", "172.7.0.0/16", "192.254.0.0/16"),
            ("192.168.197.0/24", "172.17.0.0/16", "192.254.0.0/16"),
        ] {
            assert!(texts(&plan(&[nodes], &[pods], &[services])).is_empty(), "{nodes}");
        }
    }

    #[test]
    fn overlap_is_reported_with_both_networks() {
        assert_eq!(
            texts(&plan(&["192.168.44.0/24"], &["172.7.0.0/16"], &["192.168.0.0/16"])),
            ["node network 192.168.44.0/24 on eth0 lies inside Service network 192.168.0.0/16: \
              choose networks that share no address"]
        );
        assert_eq!(texts(&plan(&["172.0.0.0/8"], &["172.7.0.0/16"], &["172.7.9.0/24"])).len(), 3);
        let unnamed =
            AddressPlan::default().pods("10.0.0.0/8".parse().unwrap()).node(None, "10.4.7.0/24".parse().unwrap());
        assert!(texts(&unnamed)[0].starts_with("node network 10.4.7.0/24 lies inside Pod network 10.0.0.0/8:"));
    }

    #[test]
    fn two_links_of_a_node_may_stand_in_one_network() {
        assert!(texts(&plan(&["10.4.7.0/24", "10.4.0.0/16"], &["172.7.0.0/16"], &[])).is_empty());
    }

    #[test]
    fn families_do_not_overlap_and_each_has_its_own_networks() {
        let dual = plan(&["10.4.7.0/24", "fd00:4::/64"], &["172.7.0.0/16", "fd00:7::/48"], &["::/0"]);
        assert_eq!(texts(&dual).len(), 2, "the default network of IPv6 holds the other two of IPv6 only");
    }

    #[test]
    fn an_address_is_found_in_the_networks_that_hold_it() {
        let plan = plan(&["10.4.7.0/24"], &["172.7.0.0/16"], &["192.168.0.0/16"]);
        let roles = |addr: &str| plan.holding(addr.parse().unwrap()).map(|network| network.role).collect::<Vec<_>>();
        assert_eq!(roles("10.4.7.22"), [Role::Node]);
        assert_eq!(roles("172.7.1.1"), [Role::Pod]);
        assert_eq!(roles("8.8.8.8"), []);
        assert_eq!(plan.of(Role::Service).count(), 1);
    }

    proptest! {
        #[test]
        fn every_pair_that_shares_an_address_is_found_in_order_of_roles(
            networks in prop::collection::vec((0_u8..3, any::<u8>(), 4_u8..=24), 0..10),
        ) {
            let mut plan = AddressPlan::default();
            for (role, first, len) in &networks {
                let prefix = Prefix::new(IpAddr::from([10, *first, 0, 0]), *len).unwrap();
                plan = match role {
                    0 => plan.node(None, prefix),
                    1 => plan.pods(prefix),
                    _ => plan.services(prefix),
                };
            }
            let all = plan.networks();
            let mut expected = 0;
            for (index, first) in all.iter().enumerate() {
                for second in &all[index + 1..] {
                    let one_node = first.role == Role::Node && second.role == Role::Node;
                    let shared = first.prefix.contains(second.prefix.addr()) || second.prefix.contains(first.prefix.addr());
                    expected += usize::from(shared && !one_node);
                }
            }
            let found = plan.overlaps();
            prop_assert_eq!(found.len(), expected);
            prop_assert!(found.iter().all(|pair| pair.first.role <= pair.second.role));
        }
    }
}
