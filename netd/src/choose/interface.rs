//! Which interface leads to the other nodes, chosen as flannel chooses it (pkg/ipmatch).
//!
//! Pure: facts of the host in, a choice out. The order is `--iface` (each in turn), `--iface-regex` (each in turn:
//! addresses first, then names), `--iface-can-reach`; when none of them is given, the owner of `--public-ip` or
//! `--public-ipv6`, else the interface of the default route. One interface serves both families; a family that it has
//! no address of is left out, as long as another one of the network's is there (flannel ends then). Invariant: the
//! choice depends on the facts and the flags only, and a failed choice says what was asked for and what there is.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netstate::family::{IpFamily, PerFamily};
use netstate::{IfName, InterfaceAddress, Prefix};
use regex::Regex;

use cluster::Problem;

/// One interface of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    /// Its name.
    pub name: IfName,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// It is up, as far as the host is concerned.
    pub up: bool,
    /// Its addresses, in the kernel's order.
    pub addresses: Vec<InterfaceAddress>,
    /// It is a bridge.
    pub is_bridge: bool,
    /// The link that it is a port of: a bridge, a bond or a VRF.
    pub master: Option<IfName>,
    /// The link that it is a VLAN of.
    pub vlan_of: Option<IfName>,
}

impl Interface {
    /// True when `address` is one of its addresses.
    #[must_use]
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.addr == address)
    }

    /// Its addresses that other nodes can use, of one family.
    fn usable(&self, family: IpFamily) -> impl Iterator<Item = &InterfaceAddress> {
        self.addresses.iter().filter(move |own| IpFamily::of(own.addr) == family && !is_link_local_v6(&own.addr))
    }

    /// The first of the addresses that suit best: a lasting member of a network, before those that come and go.
    fn pick(&self, family: IpFamily) -> Option<IpAddr> {
        let link_local = |own: &InterfaceAddress| matches!(own.addr, IpAddr::V4(addr) if addr.is_link_local());
        let in_network = self.usable(family).any(|own| own.len < family.width() && !link_local(own));
        let rank = |own: &&InterfaceAddress| {
            // One alone beside members of a network is a virtual address, which may be at another host tomorrow
            // (keepalived).
            let is_virtual = in_network && own.len == family.width();
            (link_local(own), own.unfit, is_virtual, own.dynamic)
        };
        self.usable(family).min_by_key(rank).map(|own| own.addr)
    }
}

/// The links by which packets leave that are sent to one of `links`: the ports of a bridge, what a VLAN stands on, and so on below these.
#[must_use]
pub(crate) fn below(host: &[Interface], links: impl IntoIterator<Item = IfName>) -> BTreeSet<IfName> {
    let (mut open, mut found): (Vec<IfName>, _) = (links.into_iter().collect(), BTreeSet::new());
    while let Some(name) = open.pop() {
        let upper = host.iter().find(|link| link.name == name);
        let is_bridge = upper.is_some_and(|link| link.is_bridge);
        let ports = host.iter().filter(|link| is_bridge && link.master.as_ref() == Some(&name)).map(|link| &link.name);
        let next: Vec<&IfName> = ports.chain(upper.and_then(|link| link.vlan_of.as_ref())).collect();
        open.extend(next.into_iter().filter(|below| found.insert((*below).clone())).cloned());
    }
    found
}

/// An address of fe80::/10 means nothing to a node on another link, and nothing to this one without the link's name.
pub(crate) const fn is_link_local_v6(addr: &IpAddr) -> bool {
    matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
}

/// The address for everybody in an IPv4 network that has more than two.
pub(crate) fn broadcast(network: &Prefix) -> Option<IpAddr> {
    (network.is_ipv4() && network.len() <= 30).then(|| network.last())
}

/// Why no node is reached at `addr`, whatever network it is in, if so.
pub(crate) fn no_host(addr: IpAddr) -> Option<&'static str> {
    let broadcast = addr == IpFamily::V4.any().last();
    if addr.is_unspecified() || addr.is_multicast() || broadcast || addr.is_loopback() {
        return Some("is not the address of a host");
    }
    if is_link_local_v6(&addr) {
        return Some("is an address of one link only");
    }
    // No packet of IPv6 has it, and what it stands for was not judged.
    (addr.to_canonical() != addr).then_some("is an IPv4 address in the form of IPv6")
}

/// The host as the choice sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// All interfaces.
    pub interfaces: Vec<Interface>,
    /// The interface of the default route of each family.
    pub default_routes: PerFamily<Option<IfName>>,
    /// Without any: default routes that only some packets take, each named with its table.
    pub elsewhere: Vec<String>,
    /// For `--iface-can-reach`: the interface and source address of the route to it, or why there is none.
    pub reach: Option<Result<(IfName, Option<IpAddr>), String>>,
}

/// What the operator asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    /// `--iface`: names or addresses.
    pub ifaces: Vec<String>,
    /// `--iface-regex`.
    pub regexes: Vec<Regex>,
    /// `--iface-can-reach`.
    pub can_reach: Option<IpAddr>,
    /// `--public-ip` and `--public-ipv6`.
    pub public_ips: PerFamily<Option<IpAddr>>,
}

/// This node's address of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeAddress {
    /// The interface's own address.
    pub address: IpAddr,
    /// The network of that address.
    pub network: Prefix,
    /// The address that other nodes use: `--public-ip` or `--public-ipv6`, else the interface's own.
    pub public_ip: IpAddr,
}

/// The chosen interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct External {
    /// Its name.
    pub interface: IfName,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// This node's addresses of the network's families; at least one.
    pub addresses: PerFamily<Option<NodeAddress>>,
}

impl Wanted {
    /// True when the default route names the interface, because nothing else does.
    #[must_use]
    pub(crate) const fn is_open(&self) -> bool {
        self.ifaces.is_empty() && self.regexes.is_empty() && self.can_reach.is_none() && self.public_ips.is_empty()
    }

    /// True when a default route may name the interface: nothing else does for every family.
    #[must_use]
    pub(crate) const fn asks_for_default_routes(&self) -> bool {
        self.ifaces.is_empty() && self.regexes.is_empty() && self.can_reach.is_none()
    }

    /// True when routes decide, which change.
    #[must_use]
    pub(crate) const fn follows_routes(&self) -> bool {
        self.is_open() || self.can_reach.is_some()
    }
}

impl External {
    /// The same addresses on `interface` as it is now, as far as it still has them; `None` when it has none.
    #[must_use]
    pub(crate) fn on(&self, interface: &Interface) -> Option<Self> {
        let addresses = self.addresses.map(|_, own| own.filter(|own| interface.has(own.address)));
        let stands = !addresses.is_empty() && interface.mtu != 0;
        stands.then(|| Self { mtu: interface.mtu, addresses, interface: self.interface.clone() })
    }

    /// The same with the addresses of `other` in the families that it has none of.
    #[must_use]
    pub(crate) fn or(self, other: &Self) -> Self {
        let addresses = self.addresses.zip(other.addresses).map(|_, (own, other)| own.or(other));
        Self { addresses, ..self }
    }

    /// The addresses that other nodes use.
    #[must_use]
    pub(crate) fn public_ips(&self) -> PerFamily<Option<IpAddr>> {
        self.addresses.map(|_, own| own.map(|own| own.public_ip))
    }
}

/// Chooses the interface for a network of `families`.
///
/// # Errors
/// A problem of the flag that names nothing, or of the host that has no such interface.
pub(crate) fn choose(wanted: &Wanted, facts: &Facts, families: &[IpFamily]) -> Result<External, Problem> {
    let (interface, asked) = find(wanted, facts, families)?;
    let address = |family: IpFamily| {
        let own = wanted.public_ips.get(family).filter(|addr| interface.has(*addr));
        let address = asked.get(family).or(own).or_else(|| interface.pick(family));
        let public_ip = *wanted.public_ips.get(family);
        let (address, network) = address.and_then(|address| with_network(interface, address))?;
        Some(NodeAddress { address, network, public_ip: public_ip.unwrap_or(address) })
    };
    let addresses = PerFamily::from_fn(|family| families.contains(&family).then(|| address(family)).flatten());
    if addresses.is_empty() {
        let names: Vec<String> = families.iter().map(ToString::to_string).collect();
        let message = format!("interface {} has no {} address", interface.name, names.join(" or "));
        return Err(Problem::new("--iface", message, format!("an interface with an {} address", names.join(" or "))));
    }
    if interface.mtu == 0 {
        return Err(Problem::new("--iface", format!("interface {} has MTU 0", interface.name), ""));
    }
    Ok(External { interface: interface.name.clone(), mtu: interface.mtu, addresses })
}

/// An interface, with the addresses on it that were asked for.
type Found<'a> = (&'a Interface, PerFamily<Option<IpAddr>>);

fn find<'a>(wanted: &Wanted, facts: &'a Facts, families: &[IpFamily]) -> Result<Found<'a>, Problem> {
    let first = wanted.ifaces.iter().find_map(|iface| by_name_or_address(iface, facts));
    if let Some(found) = first.or_else(|| wanted.regexes.iter().find_map(|regex| by_regex(regex, facts, families))) {
        return Ok(found);
    }
    match (&facts.reach, wanted.can_reach) {
        (Some(Ok((name, source))), Some(_)) => {
            let interface = named(name, facts).ok_or_else(|| missing("--iface-can-reach", name.as_str(), facts))?;
            return Ok((interface, source.map(at).unwrap_or_default()));
        }
        (Some(Err(reason)), Some(addr)) => {
            return Err(Problem::new("--iface-can-reach", format!("{addr}: {reason}"), "an address that has a route"));
        }
        _ => {}
    }
    if let Some(last) = wanted.ifaces.last() {
        return Err(missing("--iface", last, facts));
    }
    if let Some(last) = wanted.regexes.last() {
        return Err(missing("--iface-regex", last.as_str(), facts));
    }
    by_public_ip(wanted, facts, families).unwrap_or_else(|| by_default_route(facts, families))
}

fn at(addr: IpAddr) -> PerFamily<Option<IpAddr>> {
    PerFamily::only(IpFamily::of(addr), addr)
}

/// The owner of the first public address that was given.
fn by_public_ip<'a>(wanted: &Wanted, facts: &'a Facts, families: &[IpFamily]) -> Option<Result<Found<'a>, Problem>> {
    let (family, addr) = wanted.public_ips.present().find(|(family, _)| families.contains(family))?;
    let found = owner(*addr, facts).map(|interface| (interface, at(*addr)));
    Some(found.ok_or_else(|| {
        let flag = if family.is_v4() { "--public-ip" } else { "--public-ipv6" };
        let accepted = "an address of this host, or --iface as well when it is behind NAT";
        Problem::new(flag, format!("{addr} is on no interface"), accepted)
    }))
}

/// The interface of a default route: one with an address of every family, if there is one.
fn by_default_route<'a>(facts: &'a Facts, families: &[IpFamily]) -> Result<Found<'a>, Problem> {
    let named = |family: &IpFamily| named(facts.default_routes.get(*family).as_ref()?, facts);
    let has_all = |interface: &&Interface| families.iter().all(|family| interface.pick(*family).is_some());
    let mut candidates = families.iter().filter_map(named);
    let found = candidates.clone().find(has_all).or_else(|| candidates.next());
    found.map(|interface| (interface, PerFamily::default())).ok_or_else(|| {
        let names: Vec<String> = families.iter().map(ToString::to_string).collect();
        let elsewhere: String = facts.elsewhere.iter().map(|route| format!("; there is {route}")).collect();
        let names = names.join(" or ");
        let message = format!("not given, and there is no {names} default route that names the interface{elsewhere}");
        Problem::new("--iface", message, format!("one of {}", names_of(facts)))
    })
}

fn by_name_or_address<'a>(iface: &str, facts: &'a Facts) -> Option<Found<'a>> {
    match iface.parse::<IpAddr>() {
        Ok(addr) => owner(addr, facts).map(|interface| (interface, at(addr))),
        Err(_) => {
            let interface = facts.interfaces.iter().find(|i| i.name.as_str() == iface)?;
            Some((interface, PerFamily::default()))
        }
    }
}

/// An interface whose addresses of as many families as possible match, else one whose name does.
fn by_regex<'a>(regex: &Regex, facts: &'a Facts, families: &[IpFamily]) -> Option<Found<'a>> {
    let matching = |interface: &'a Interface| {
        let matches = |addr: &IpAddr| regex.is_match(&addr.to_string());
        let address = |family| {
            families.contains(&family).then(|| interface.usable(family).map(|own| own.addr).find(matches)).flatten()
        };
        (interface, PerFamily::from_fn(address))
    };
    let by_address = || facts.interfaces.iter().map(matching);
    let all = by_address().find(|(_, found)| families.iter().all(|family| found.get(*family).is_some()));
    let some = all.or_else(|| by_address().find(|(_, found)| !found.is_empty()));
    let named = || facts.interfaces.iter().find(|interface| regex.is_match(interface.name.as_str()));
    some.or_else(|| named().map(|interface| (interface, PerFamily::default())))
}

fn named<'a>(name: &IfName, facts: &'a Facts) -> Option<&'a Interface> {
    facts.interfaces.iter().find(|interface| interface.name == *name)
}

fn owner(addr: IpAddr, facts: &Facts) -> Option<&Interface> {
    facts.interfaces.iter().find(|interface| interface.has(addr))
}

fn with_network(interface: &Interface, address: IpAddr) -> Option<(IpAddr, Prefix)> {
    let own = interface.addresses.iter().find(|own| own.addr == address)?;
    Prefix::new(own.addr, own.len).ok().map(|network| (address, network))
}

fn missing(flag: &str, wanted: &str, facts: &Facts) -> Problem {
    Problem::new(flag, format!("{wanted:?} names no interface of this host"), format!("one of {}", names_of(facts)))
}

fn names_of(facts: &Facts) -> String {
    let name = |interface: &Interface| {
        let addresses = PerFamily::from_fn(|family| interface.pick(family));
        if addresses.is_empty() {
            interface.name.to_string()
        } else {
            format!("{} ({})", interface.name, addresses.list())
        }
    };
    facts.interfaces.iter().map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, mtu: u32, addresses: &[(&str, u8)]) -> Interface {
        let addresses = addresses.iter().map(|(addr, len)| InterfaceAddress::lasting(addr.parse().unwrap(), *len));
        let addresses = addresses.collect();
        Interface {
            name: name.parse().unwrap(),
            mtu,
            up: true,
            addresses,
            is_bridge: false,
            master: None,
            vlan_of: None,
        }
    }

    #[test]
    fn packets_leave_by_ports_of_bridges_and_by_what_a_vlan_stands_on() {
        let name = |text: &str| IfName::new(text).unwrap();
        let port = |link: &str, master: &str| Interface { master: Some(name(master)), ..interface(link, 1500, &[]) };
        let bridge = |link: &str| Interface { is_bridge: true, ..interface(link, 1500, &[]) };
        let vlan = Interface { vlan_of: Some(name("br0")), ..interface("br0.7", 1500, &[]) };
        let host = [
            bridge("cbr0"),
            port("veth1", "cbr0"),
            port("veth2", "cbr0"),
            vlan,
            bridge("br0"),
            port("eth0", "br0"),
            interface("bond0", 1500, &[]),
            port("eth1", "bond0"),
        ];
        let found = |links: &[&str]| {
            let found = below(&host, links.iter().map(|link| name(link)));
            found.iter().map(IfName::as_str).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(found(&["cbr0"]), "veth1 veth2");
        assert_eq!(found(&["cbr0", "br0.7"]), "br0 eth0 veth1 veth2");
        assert_eq!((found(&["eth0", "bond0"]), found(&["gone"])), (String::new(), String::new()));
    }

    fn host() -> Facts {
        Facts {
            interfaces: vec![
                interface("lo", 65536, &[("127.0.0.1", 8)]),
                interface(
                    "eth0",
                    1500,
                    &[
                        ("fe80::1", 64),
                        ("169.254.3.4", 16),
                        ("10.4.7.21", 24),
                        ("10.4.7.121", 32),
                        ("fd00:10:4:7::21", 64),
                    ],
                ),
                interface("eth2", 1500, &[("fe80::2", 64), ("fd00:9::1", 64)]),
                interface("eth1", 9000, &[("192.168.44.100", 24)]),
                interface("bare", 1500, &[]),
            ],
            default_routes: PerFamily::new(Some("eth0".parse().unwrap()), Some("eth2".parse().unwrap())),
            elsewhere: Vec::new(),
            reach: Some(Ok(("eth1".parse().unwrap(), Some("192.168.44.100".parse().unwrap())))),
        }
    }

    fn wanted(ifaces: &[&str], regexes: &[&str], can_reach: Option<&str>, public_ip: Option<&str>) -> Wanted {
        Wanted {
            ifaces: ifaces.iter().map(ToString::to_string).collect(),
            regexes: regexes.iter().map(|regex| Regex::new(regex).unwrap()).collect(),
            can_reach: can_reach.map(|addr| addr.parse().unwrap()),
            public_ips: public_ip.map(|addr| at(addr.parse().unwrap())).unwrap_or_default(),
        }
    }

    const V4: &[IpFamily] = &[IpFamily::V4];
    const V6: &[IpFamily] = &[IpFamily::V6];

    /// Interface, addresses and public addresses that are chosen.
    fn chosen(wanted: &Wanted, families: &[IpFamily]) -> (String, String, String) {
        let chosen = choose(wanted, &host(), families).unwrap();
        let own = chosen.addresses.map(|_, own| own.map(|own| own.address));
        (chosen.interface.to_string(), own.list(), chosen.public_ips().list())
    }

    #[test]
    fn interface_is_chosen_in_flannels_order() {
        for (wanted, interface, address, public_ip) in [
            (wanted(&[], &[], None, None), "eth0", "10.4.7.21", "10.4.7.21"),
            (wanted(&["eth9", "eth1"], &["eth0"], None, None), "eth1", "192.168.44.100", "192.168.44.100"),
            (wanted(&["10.4.7.121"], &[], None, None), "eth0", "10.4.7.121", "10.4.7.121"),
            (wanted(&["eth9"], &["^10\\.4"], None, None), "eth0", "10.4.7.21", "10.4.7.21"),
            (wanted(&[], &["^ens", "eth1|wlan"], None, None), "eth1", "192.168.44.100", "192.168.44.100"),
            (wanted(&["eth9"], &[], Some("192.168.44.1"), None), "eth1", "192.168.44.100", "192.168.44.100"),
            (wanted(&[], &[], None, Some("192.168.44.100")), "eth1", "192.168.44.100", "192.168.44.100"),
            (wanted(&["eth0"], &[], None, Some("203.0.113.9")), "eth0", "10.4.7.21", "203.0.113.9"),
        ] {
            let expected = (interface.to_owned(), address.to_owned(), public_ip.to_owned());
            assert_eq!(chosen(&wanted, V4), expected, "{wanted:?}");
        }
    }

    #[test]
    fn interface_is_chosen_for_the_families_of_the_network() {
        let (v6, both) = ("fd00:10:4:7::21", "10.4.7.21,fd00:10:4:7::21");
        for (wanted, families, interface, addresses, public) in [
            (wanted(&[], &[], None, None), V6, "eth2", "fd00:9::1", "fd00:9::1"),
            (wanted(&["eth0"], &[], None, None), V6, "eth0", v6, v6),
            (wanted(&["eth0"], &[], None, None), &IpFamily::ALL, "eth0", both, both),
            // The default routes differ: the one whose interface has both.
            (wanted(&[], &[], None, None), &IpFamily::ALL, "eth0", both, both),
            // One family of two is better than none.
            (wanted(&["eth1"], &[], None, None), &IpFamily::ALL, "eth1", "192.168.44.100", "192.168.44.100"),
            (wanted(&[v6], &[], None, None), &IpFamily::ALL, "eth0", both, both),
            (
                wanted(&["10.4.7.121"], &[], None, None),
                &IpFamily::ALL,
                "eth0",
                "10.4.7.121,fd00:10:4:7::21",
                "10.4.7.121,fd00:10:4:7::21",
            ),
            (wanted(&[], &["^(192|fd00:10)"], None, None), &IpFamily::ALL, "eth0", both, both),
            (wanted(&[], &["^fd00:9"], None, None), &IpFamily::ALL, "eth2", "fd00:9::1", "fd00:9::1"),
            (wanted(&[], &[], None, Some(v6)), &IpFamily::ALL, "eth0", both, both),
            (wanted(&["eth0"], &[], None, Some("2001:db8::9")), V6, "eth0", v6, "2001:db8::9"),
            // A public address of a family that the network does not have says nothing.
            (wanted(&["eth0"], &[], None, Some("2001:db8::9")), V4, "eth0", "10.4.7.21", "10.4.7.21"),
        ] {
            let expected = (interface.to_owned(), addresses.to_owned(), public.to_owned());
            assert_eq!(chosen(&wanted, families), expected, "{wanted:?} {families:?}");
        }
    }

    #[test]
    fn network_and_mtu_are_those_of_the_interface() {
        let chosen = choose(&wanted(&["eth1"], &[], None, None), &host(), V4).unwrap();
        assert_eq!((chosen.addresses.v4.unwrap().network.to_string().as_str(), chosen.mtu), ("192.168.44.0/24", 9000));
    }

    #[test]
    fn lasting_member_of_a_network_comes_before_addresses_that_come_and_go() {
        let own = |text: &str, len| InterfaceAddress::lasting(text.parse().unwrap(), len);
        let (subnet, other) = (own("10.4.7.21", 24), own("10.4.7.22", 24));
        let deprecated = InterfaceAddress { unfit: true, ..own("10.4.7.9", 24) };
        let dynamic = InterfaceAddress { dynamic: true, ..own("10.4.7.8", 24) };
        let (vip, local) = (own("10.4.7.100", 32), own("169.254.1.1", 16));
        for (addresses, picked) in [
            (vec![deprecated, dynamic, vip, local, subnet, other], "10.4.7.21"),
            (vec![deprecated, vip, dynamic, local], "10.4.7.8"),
            (vec![local, deprecated, vip], "10.4.7.100"),
            (vec![local, deprecated], "10.4.7.9"),
            (vec![local], "169.254.1.1"),
            (vec![vip], "10.4.7.100"),
            (vec![local, vip], "10.4.7.100"),
        ] {
            let eth0 = Interface { addresses: addresses.clone(), ..interface("eth0", 1500, &[]) };
            assert_eq!(eth0.pick(IpFamily::V4).unwrap().to_string(), picked, "{addresses:?}");
        }
    }

    #[test]
    fn default_route_that_only_some_packets_take_is_named() {
        let elsewhere = vec!["one in table 10 by eth1".to_owned()];
        let facts = Facts { default_routes: PerFamily::default(), elsewhere, ..host() };
        let problem = choose(&wanted(&[], &[], None, None), &facts, V4).unwrap_err().to_string();
        assert!(
            problem.contains("no IPv4 default route that names the interface; there is one in table 10 by eth1"),
            "{problem}"
        );
    }

    #[test]
    fn where_default_routes_are_not_asked_for_they_decide_nothing() {
        let without = Facts { default_routes: PerFamily::default(), ..host() };
        for wanted in [
            wanted(&["eth1"], &[], None, None),
            wanted(&[], &["^eth1"], None, None),
            wanted(&[], &[], Some("192.0.2.9"), None),
            wanted(&["eth9"], &[], None, Some("10.4.7.21")),
        ] {
            assert!(!wanted.asks_for_default_routes());
            let text = |facts: &Facts| choose(&wanted, facts, V4).map_err(|problem| problem.to_string());
            assert_eq!(text(&host()), text(&without), "{wanted:?}");
        }
        // A public address of the other family leaves it to the default route.
        assert!(wanted(&[], &[], None, Some("203.0.113.9")).asks_for_default_routes());
    }

    #[test]
    fn address_in_use_is_followed_until_it_is_gone() {
        let used = choose(&wanted(&[], &[], None, None), &host(), V4).unwrap();
        let jumbo = interface("eth0", 9000, &[("192.0.2.1", 24), ("10.4.7.21", 24)]);
        assert_eq!(used.on(&jumbo), Some(External { mtu: 9000, ..used.clone() }));
        assert_eq!(used.on(&interface("eth0", 1500, &[("10.4.7.121", 32)])), None);
        // One family of two that is gone leaves the other.
        let both = choose(&wanted(&["eth0"], &[], None, None), &host(), &IpFamily::ALL).unwrap();
        let left = both.on(&jumbo).unwrap();
        assert_eq!((left.addresses.v6, left.addresses.v4), (None, both.addresses.v4));
        assert_eq!(left.or(&both), External { mtu: 9000, ..both });
    }

    #[test]
    fn failed_choice_says_what_was_asked_for_and_what_there_is() {
        let no_default = Facts { default_routes: PerFamily::default(), ..host() };
        let unreachable = Facts { reach: Some(Err("Network is unreachable".to_owned())), ..host() };
        for (wanted, facts, part) in [
            (
                wanted(&["eth9"], &[], None, None),
                host(),
                "--iface: \"eth9\" names no interface of this host; accepted: one of lo (127.0.0.1), eth0 (10.4.7.21,fd00:10:4:7::21)",
            ),
            (wanted(&[], &["^ens"], None, None), host(), "--iface-regex: \"^ens\""),
            (wanted(&[], &[], None, Some("203.0.113.9")), host(), "--public-ip: 203.0.113.9 is on no interface"),
            (wanted(&[], &[], None, None), no_default, "no IPv4 default route"),
            (wanted(&["bare"], &[], None, None), host(), "bare has no IPv4 address"),
            (wanted(&["eth2"], &[], None, None), host(), "eth2 has no IPv4 address"),
            (
                wanted(&[], &[], Some("192.0.2.1"), None),
                unreachable,
                "--iface-can-reach: 192.0.2.1: Network is unreachable",
            ),
        ] {
            let problem = choose(&wanted, &facts, V4).unwrap_err().to_string();
            assert!(problem.contains(part), "{problem} lacks {part}");
        }
    }
}
