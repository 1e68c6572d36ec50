//! `Here`: what is true of this node, as far as plans and rows depend on it; and [`Facts`], what that follows from.
//!
//! Invariants. What the operator says counts before what the Node object says, and that before what the kernel has; an address of the
//! Node object that the machine has not counts for nothing. `Here` is a value: it is replaced as a whole, and what is planned again is what [`Here::change`] names. NodePorts are
//! never at loopback, at an IPv6 link-local address or at a virtual one, whatever is asked for: neither data path can serve them
//! there. As with kube-proxy, a family that no network is given for has NodePorts at all its addresses, and so has one whose
//! primary address nobody knows.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netstate::family::PerFamily;
use netstate::{IfName, InterfaceAddress, IpFamily, Prefix};

use super::pods::{Pods, PodsOfFamilies};
use crate::object::node::Node;

/// This node; see the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Here {
    /// Its name, as EndpointSlices write it.
    pub(crate) node: String,
    /// Its zone, if it is known.
    pub(crate) zone: Option<String>,
    /// Its own addresses: an endpoint with one of them is here, whatever its slice leaves open.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// The networks that they are in.
    pub(crate) networks: BTreeSet<Prefix>,
    /// The links that the default routes leave by.
    pub(crate) uplinks: PerFamily<Option<IfName>>,
    /// The address of each family that it has elsewhere, where it is known.
    pub(crate) primary: PerFamily<Option<IpAddr>>,
    /// Those of its addresses at which NodePorts are.
    pub(crate) node_port_addresses: BTreeSet<IpAddr>,
    /// Where load balancers ask for health: at those, or in a family that has NodePorts everywhere at every address, loopback too.
    pub(crate) check_addresses: BTreeSet<IpAddr>,
    /// How clients are known for Pods; in a family without it nobody knows.
    pub(crate) pods: PodsOfFamilies,
    /// Every connection to a virtual address is masqueraded, a Pod's too.
    pub(crate) masquerade_all: bool,
}

/// What a change of this node concerns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// Every Service.
    pub(crate) all: bool,
    /// Services with endpoints that are meant for zones.
    pub(crate) zone: bool,
    /// Services with an endpoint that has one of these addresses.
    pub(crate) addresses: BTreeSet<IpAddr>,
}

impl Here {
    /// The node called `node` of which nothing else is known: any client may be a Pod.
    #[must_use]
    pub(crate) fn on(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            zone: None,
            addresses: BTreeSet::new(),
            networks: BTreeSet::new(),
            uplinks: PerFamily::default(),
            primary: PerFamily::default(),
            node_port_addresses: BTreeSet::new(),
            check_addresses: BTreeSet::new(),
            pods: Pods::inside(PerFamily::from_fn(|family| Some(family.any()))),
            masquerade_all: false,
        }
    }

    /// The same with Pods in these networks.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn with_pods(self, networks: impl IntoIterator<Item = Prefix>) -> Self {
        let mut known = PerFamily::default();
        for network in networks {
            *known.get_mut(network.family()) = Some(network);
        }
        Self { pods: Pods::inside(known), ..self }
    }

    /// True when a Pod of this family can be known from other clients.
    #[must_use]
    pub(crate) fn knows_pods(&self, family: IpFamily) -> bool {
        self.pods.get(family).as_ref().is_some_and(Pods::are_known)
    }

    /// Which plans are others with `new` in its place.
    #[must_use]
    pub(crate) fn change(&self, new: &Self) -> Change {
        let pods_differ = IpFamily::ALL.iter().any(|family| self.knows_pods(*family) != new.knows_pods(*family));
        Change {
            all: self.node != new.node || self.masquerade_all != new.masquerade_all || pods_differ,
            zone: self.zone != new.zone,
            addresses: self.addresses.symmetric_difference(&new.addresses).copied().collect(),
        }
    }
}

/// A data path, as far as kube-proxy's settings differ between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// NodePorts are at all addresses when nobody says.
    Ipvs,
    /// NodePorts are at the primary addresses when nobody says.
    Nftables,
}

/// Where NodePorts are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum NodePorts {
    /// Wherever the data path has them when nobody says.
    #[default]
    Default,
    /// At the primary address of each family.
    Primary,
    /// At the addresses in these networks; of a family without one, at all.
    Inside(PerFamily<Vec<Prefix>>),
}

impl NodePorts {
    /// What is accepted, in words.
    pub(crate) const ACCEPTED: &'static str =
        "a list of networks such as 10.4.7.0/24, or one of the words primary and all, alone";

    /// Reads a list of networks, or one word, separated by commas.
    ///
    /// # Errors
    /// What is accepted.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let words: Vec<&str> = text.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
        match words.as_slice() {
            [] => Ok(Self::Default),
            ["primary"] => Ok(Self::Primary),
            ["all"] => Ok(Self::Inside(PerFamily::default())),
            words => {
                let networks = words.iter().map(|word| word.parse().map_err(|_| Self::ACCEPTED));
                let networks = networks.collect::<Result<Vec<Prefix>, _>>()?;
                Ok(Self::Inside(PerFamily::partition(networks, Prefix::family)))
            }
        }
    }

    /// The networks among those asked for whose addresses are loopback's, where there are no NodePorts.
    pub(crate) fn loopback(&self) -> impl Iterator<Item = &Prefix> {
        let networks = match self {
            Self::Inside(networks) => Some(networks),
            Self::Default | Self::Primary => None,
        };
        let networks = networks.into_iter().flat_map(|networks| networks.values().flatten());
        networks.filter(|network| network.family().loopback().covers(network))
    }

    /// True when a family has NodePorts at all its addresses.
    fn is_everywhere(&self, family: IpFamily, own: &OwnAddresses, mode: Mode) -> bool {
        match (self, mode) {
            (Self::Default, Mode::Ipvs) => true,
            (Self::Primary, _) | (Self::Default, Mode::Nftables) => own.primary.get(family).is_none(),
            (Self::Inside(networks), _) => {
                let networks = networks.get(family);
                networks.is_empty() || networks.iter().any(Prefix::is_default)
            }
        }
    }

    /// Those of the node's addresses at which NodePorts are.
    fn among(&self, own: &OwnAddresses, mode: Mode) -> BTreeSet<IpAddr> {
        let is_chosen = |addr: &&IpAddr| match (self, mode) {
            (Self::Default, Mode::Ipvs) => true,
            (Self::Primary, _) | (Self::Default, Mode::Nftables) => {
                own.primary.get(IpFamily::of(**addr)).is_none_or(|primary| primary == **addr)
            }
            (Self::Inside(networks), _) => {
                let networks = networks.get(IpFamily::of(**addr));
                networks.is_empty() || networks.iter().any(|network| network.contains(**addr))
            }
        };
        own.all.iter().filter(is_chosen).copied().collect()
    }
}

/// The addresses of this node, as the kernel has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OwnAddresses {
    /// All but those of loopback, IPv6 link-local ones and virtual ones.
    pub(crate) all: BTreeSet<IpAddr>,
    /// The networks that these are in.
    pub(crate) networks: BTreeSet<Prefix>,
    /// The links that the default routes leave by.
    pub(crate) uplinks: PerFamily<Option<IfName>>,
    /// The first address of that link.
    pub(crate) primary: PerFamily<Option<IpAddr>>,
}

impl OwnAddresses {
    /// The addresses of `links`, each by its link; packets to anywhere leave by the link `uplink` of each family.
    #[must_use]
    pub(crate) fn of<'a>(
        links: impl IntoIterator<Item = (&'a IfName, &'a [InterfaceAddress])>,
        except: &IfName,
        uplink: &PerFamily<Option<IfName>>,
    ) -> Self {
        let mut own = Self { uplinks: uplink.clone(), ..Self::default() };
        for (link, addresses) in links.into_iter().filter(|(link, _)| *link != except) {
            for address in addresses.iter().filter(|address| is_own(address.addr)) {
                own.all.insert(address.addr);
                own.networks.extend(Prefix::new(address.addr, address.len));
                let family = IpFamily::of(address.addr);
                let may_be_primary = !address.unfit && !address.temporary && uplink.get(family).as_ref() == Some(link);
                if may_be_primary {
                    own.primary.get_mut(family).get_or_insert(address.addr);
                }
            }
        }
        own
    }
}

/// True for an address that leads to this node from elsewhere.
pub(crate) fn is_own(addr: IpAddr) -> bool {
    let link_local = matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local());
    !addr.is_loopback() && !link_local
}

/// The families whose clients a process that listens at `at` loses to a port of the node at the addresses `node_ports`. One at every
/// address of IPv6 may have the clients of both.
pub(crate) fn hidden(at: IpAddr, node_ports: &BTreeSet<IpAddr>) -> &'static [IpFamily] {
    match at {
        IpAddr::V6(v6) if v6.is_unspecified() => &IpFamily::ALL,
        _ if !at.is_unspecified() && !node_ports.contains(&at) => &[],
        IpAddr::V4(_) => &[IpFamily::V4],
        IpAddr::V6(_) => &[IpFamily::V6],
    }
}

/// What [`Here`] follows from: what the operator asks for, what the cluster says, and what the kernel has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// This node's name.
    pub(crate) node: String,
    /// Its zone, if the operator says.
    pub(crate) zone: Option<String>,
    /// Its primary address, if the operator says.
    pub(crate) bind: Option<IpAddr>,
    /// Where NodePorts are asked for.
    pub(crate) node_ports: NodePorts,
    /// How clients are known for Pods; a family without it is not served.
    pub(crate) pods: PodsOfFamilies,
    /// They are known by the networks of the Node object instead, in the same families.
    pub(crate) pods_of_node: bool,
    /// The Node object, if the source has it.
    pub(crate) object: Option<Node>,
    /// The data paths on which every connection to a virtual address is masqueraded.
    pub(crate) masquerade_all: Vec<Mode>,
    /// Its addresses.
    pub(crate) own: OwnAddresses,
}

impl Facts {
    /// Facts that `here` follows from.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn of(here: &Here) -> Self {
        Self {
            node: here.node.clone(),
            zone: here.zone.clone(),
            bind: None,
            node_ports: NodePorts::Default,
            pods: here.pods.clone(),
            pods_of_node: false,
            object: None,
            masquerade_all: if here.masquerade_all { vec![Mode::Ipvs, Mode::Nftables] } else { Vec::new() },
            own: OwnAddresses {
                all: here.addresses.clone(),
                networks: here.networks.clone(),
                uplinks: here.uplinks.clone(),
                primary: here.primary,
            },
        }
    }

    /// What follows, on a data path.
    #[must_use]
    pub(crate) fn here(&self, mode: Mode) -> Here {
        let own = OwnAddresses { primary: PerFamily::from_fn(|family| self.primary(family)), ..self.own.clone() };
        let node_port_addresses = self.node_ports.among(&own, mode);
        let check_addresses = IpFamily::ALL.into_iter().flat_map(|family| {
            if self.node_ports.is_everywhere(family, &own, mode) {
                BTreeSet::from([family.unspecified()])
            } else {
                node_port_addresses.iter().copied().filter(|addr| IpFamily::of(*addr) == family).collect()
            }
        });
        Here {
            node: self.node.clone(),
            zone: self.zone.clone().or_else(|| self.object.as_ref()?.zone.as_deref().map(str::to_owned)),
            check_addresses: check_addresses.collect(),
            node_port_addresses,
            addresses: own.all,
            networks: own.networks,
            uplinks: own.uplinks,
            primary: PerFamily::from_fn(|family| self.primary(family)),
            pods: self.pods(),
            masquerade_all: self.masquerade_all.contains(&mode),
        }
    }

    /// The primary address of a family.
    fn primary(&self, family: IpFamily) -> Option<IpAddr> {
        let asked = self.bind.filter(|addr| IpFamily::of(*addr) == family);
        let of_node = self.object.as_ref().and_then(|node| *node.addresses.get(family));
        let here = of_node.filter(|addr| self.own.all.contains(addr));
        asked.or(here).or(*self.own.primary.get(family))
    }

    /// How clients are known for Pods: by a network of the Node object that is not known nobody is.
    fn pods(&self) -> PodsOfFamilies {
        if !self.pods_of_node {
            return self.pods.clone();
        }
        let network = |family| self.object.as_ref().and_then(|node| *node.pods.get(family));
        self.pods
            .as_ref()
            .map(|family, pods| pods.as_ref().map(|_| network(family).map_or(Pods::Unknown, Pods::Inside)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> IfName {
        IfName::new(text).unwrap()
    }

    fn own(uplink: PerFamily<Option<IfName>>) -> OwnAddresses {
        let list = |texts: &[&str]| -> Vec<InterfaceAddress> {
            texts.iter().map(|text| InterfaceAddress::lasting(text.parse().unwrap(), 24)).collect()
        };
        let links = [
            (name("lo"), list(&["127.0.0.1", "::1"])),
            (name("eth0"), list(&["10.4.7.21", "10.4.7.121", "fd00:4:7::21", "fd00:4:7::121", "fe80::1"])),
            (name("cbr0"), list(&["172.7.21.1", "fd00:7:21::1"])),
            (name("kube-ipvs0"), list(&["192.168.0.1"])),
        ];
        OwnAddresses::of(links.iter().map(|(link, all)| (link, all.as_slice())), &name("kube-ipvs0"), &uplink)
    }

    fn chosen(node_ports: &str, uplink: PerFamily<Option<IfName>>) -> Vec<String> {
        let addresses = NodePorts::parse(node_ports).unwrap().among(&own(uplink), Mode::Ipvs);
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn node_ports_are_where_they_are_asked_for_and_never_at_loopback() {
        let eth0 = || PerFamily::new(Some(name("eth0")), Some(name("eth0")));
        let all = ["10.4.7.21", "10.4.7.121", "172.7.21.1", "fd00:4:7::21", "fd00:4:7::121", "fd00:7:21::1"];
        assert_eq!(chosen("all", eth0()), all);
        assert_eq!(chosen("0.0.0.0/0,::/0", eth0()), all);
        assert_eq!(chosen("primary", eth0()), ["10.4.7.21", "fd00:4:7::21"]);
        let near = chosen("10.4.7.0/24,fd00:4:7::/64,127.0.0.0/8", eth0());
        assert_eq!(near, ["10.4.7.21", "10.4.7.121", "fd00:4:7::21", "fd00:4:7::121"]);
        assert_eq!(chosen("127.0.0.0/8,::1/128", eth0()), [""; 0]);
    }

    #[test]
    fn no_address_that_is_on_its_way_out_or_temporary_is_the_one_that_the_node_connects_from() {
        let (eth0, ipvs) = (name("eth0"), name("kube-ipvs0"));
        let at = |last: u8| InterfaceAddress::lasting([10, 4, 7, last].into(), 24);
        let primary = |addresses: &[InterfaceAddress]| {
            let uplink = PerFamily::only(IpFamily::V4, eth0.clone());
            *OwnAddresses::of([(&eth0, addresses)], &ipvs, &uplink).primary.get(IpFamily::V4)
        };
        let (unfit, temporary) =
            (InterfaceAddress { unfit: true, ..at(1) }, InterfaceAddress { temporary: true, ..at(2) });
        assert_eq!(primary(&[at(1), at(2)]), Some(at(1).addr));
        assert_eq!(primary(&[unfit, temporary, at(3)]), Some(at(3).addr));
        assert_eq!(primary(&[unfit, temporary]), None);
    }

    #[test]
    fn health_is_asked_at_every_address_of_a_family_that_has_node_ports_everywhere() {
        let own = own(PerFamily::new(Some(name("eth0")), Some(name("eth0"))));
        for (said, expected) in [
            ("10.4.7.0/24", &["10.4.7.21", "10.4.7.121", "::"][..]),
            ("10.4.7.0/24,::/0", &["10.4.7.21", "10.4.7.121", "::"]),
            ("0.0.0.0/0,fd00:4:7::/64", &["0.0.0.0", "fd00:4:7::21", "fd00:4:7::121"]),
            ("10.4.7.0/24,fd00:7:21::/64", &["10.4.7.21", "10.4.7.121", "fd00:7:21::1"]),
            ("primary", &["10.4.7.21", "fd00:4:7::21"]),
        ] {
            let node_ports = NodePorts::parse(said).unwrap();
            let facts = Facts { node_ports, own: own.clone(), ..Facts::of(&Here::on("n1")) };
            let found: Vec<_> = facts.here(Mode::Ipvs).check_addresses.iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{said}");
        }
    }

    #[test]
    fn a_family_that_nothing_is_said_of_has_node_ports_at_all_its_addresses() {
        let six = ["fd00:4:7::21", "fd00:4:7::121", "fd00:7:21::1"];
        assert_eq!(chosen("10.4.7.21/32", PerFamily::default()), [&["10.4.7.21"], &six[..]].concat());
        let primary = chosen("primary", PerFamily::only(IpFamily::V4, name("eth0")));
        assert_eq!(primary, [&["10.4.7.21"], &six[..]].concat(), "its primary address is unknown");
    }

    #[test]
    fn words_stand_alone_and_what_is_none_is_refused() {
        for bad in ["primary,10.4.7.0/24", "all,primary", "localhost", "10.4.7.0/33", "secondary"] {
            assert_eq!(NodePorts::parse(bad), Err(NodePorts::ACCEPTED), "{bad}");
        }
        assert_eq!(NodePorts::parse(""), Ok(NodePorts::Default));
        let loopback = NodePorts::parse("10.4.7.0/24,127.0.0.0/8,::1/128").unwrap();
        assert_eq!(loopback.loopback().map(ToString::to_string).collect::<Vec<_>>(), ["127.0.0.0/8", "::1/128"]);
    }

    #[test]
    fn a_change_concerns_what_depends_on_it_and_nothing_else() {
        let pods: Prefix = "172.7.0.0/16".parse().unwrap();
        let before = Here { zone: Some("z1".to_owned()), ..Here::on("n1").with_pods([pods]) };
        assert_eq!(before.change(&before), Change::default());
        let addresses = BTreeSet::from([IpAddr::from([10, 4, 7, 99])]);
        let ports = Here { node_port_addresses: addresses.clone(), ..before.clone() };
        assert_eq!(before.change(&ports), Change::default(), "these are the data path's");
        let more = Here { addresses: addresses.clone(), ..before.clone() };
        assert_eq!(before.change(&more), Change { addresses, ..Change::default() });
        let moved = Here { zone: Some("z2".to_owned()), ..before.clone() };
        assert_eq!(before.change(&moved), Change { zone: true, ..Change::default() });
        let renamed = Here { node: Here::on("n2").node, ..before.clone() };
        for all in [renamed, Here { masquerade_all: true, ..before.clone() }, before.clone().with_pods([])] {
            assert!(before.change(&all).all);
        }
        let other = before.clone().with_pods(["172.8.0.0/16".parse().unwrap()]);
        assert!(!before.change(&other).all, "which network it is concerns the data path only");
    }

    #[test]
    fn what_the_operator_says_of_the_primary_address_counts() {
        let own = own(PerFamily::new(Some(name("eth0")), Some(name("eth0"))));
        let facts = Facts { bind: Some([10, 4, 7, 121].into()), own, ..Facts::of(&Here::on("n1")) };
        let at = |mode| facts.here(mode).node_port_addresses;
        assert_eq!(
            at(Mode::Nftables),
            BTreeSet::from(["10.4.7.121", "fd00:4:7::21"].map(|addr| addr.parse().unwrap()))
        );
        assert_eq!(at(Mode::Ipvs), facts.own.all);
        let asked = |mode| facts.here(mode).check_addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            (asked(Mode::Nftables), asked(Mode::Ipvs)),
            (vec!["10.4.7.121".to_owned(), "fd00:4:7::21".to_owned()], vec!["0.0.0.0".to_owned(), "::".to_owned()],)
        );
    }

    /// A Node of these addresses, Pod networks and zone.
    fn object(addresses: [&str; 2], pods: [&str; 2]) -> Option<Node> {
        Node::from_json(&serde_json::json!({
            "kind": "Node", "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}},
            "spec": {"podCIDRs": pods},
            "status": {"addresses": addresses.map(|addr| serde_json::json!({"type": "InternalIP", "address": addr}))},
        }))
        .ok()
    }

    #[test]
    fn the_node_object_counts_behind_the_operator_and_before_the_kernel() {
        let own = own(PerFamily::new(Some(name("eth0")), Some(name("eth0"))));
        let facts = Facts { own, ..Facts::of(&Here::on("n1")) };
        let here = |facts: &Facts| facts.here(Mode::Nftables);
        let primary = |facts: &Facts| -> Vec<String> {
            here(facts).node_port_addresses.iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            (here(&facts).zone, primary(&facts)),
            (None, vec!["10.4.7.21".to_owned(), "fd00:4:7::21".to_owned()])
        );
        let pods = ["172.7.21.0/24", "fd07:21::/64"];
        let object = object(["10.4.7.121", "fd00:4:7::99"], pods);
        let known = Facts { object, ..facts };
        assert_eq!(here(&known).zone.as_deref(), Some("z1"));
        assert_eq!(primary(&known), ["10.4.7.121", "fd00:4:7::21"], "the machine has not fd00:4:7::99");
        assert_eq!(here(&known).pods, known.pods, "nobody asks for its networks");
        let asked = Facts { zone: Some("z9".to_owned()), bind: Some([10, 4, 7, 21].into()), ..known };
        assert_eq!((here(&asked).zone.as_deref(), primary(&asked)[0].as_str()), (Some("z9"), "10.4.7.21"));
    }

    #[test]
    fn pods_of_the_node_are_those_in_its_networks_and_nobody_while_it_is_unknown() {
        let facts = Facts { pods_of_node: true, ..Facts::of(&Here::on("n1")) };
        let pods = |facts: &Facts| facts.here(Mode::Ipvs).pods;
        assert_eq!(pods(&facts), PerFamily::from_fn(|_| Some(Pods::Unknown)));
        let known = Facts { object: object(["10.4.7.21", "fd00::21"], ["172.7.21.0/24", "172.7.22.0/24"]), ..facts };
        let network = "172.7.21.0/24".parse().map(Pods::Inside).unwrap();
        assert_eq!(pods(&known), PerFamily::new(Some(network.clone()), Some(Pods::Unknown)));
        let only_v4 = Facts { pods: PerFamily::only(IpFamily::V4, Pods::Unknown), ..known };
        assert_eq!(pods(&only_v4), PerFamily::only(IpFamily::V4, network), "a family that is not served stays so");
    }
}
