//! Which interface leads to the other nodes, chosen as flannel chooses it (pkg/ipmatch).
//!
//! Pure: facts of the host in, a choice out. The order is `--iface` (each in turn), `--iface-regex` (each in turn:
//! addresses first, then names), `--iface-can-reach`; when none of them is given, the owner of `--public-ip`, else the
//! interface of the default route. Invariant: the choice depends on the facts and the flags only, and a failed choice
//! says what was asked for and what there is.

use std::net::{IpAddr, Ipv4Addr};

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
    /// Its addresses, in the kernel's order.
    pub addresses: Vec<InterfaceAddress>,
}

impl Interface {
    /// True when `address` is one of its addresses.
    #[must_use]
    pub(crate) fn has(&self, address: Ipv4Addr) -> bool {
        ipv4(self).any(|own| own == address)
    }
}

/// The host as the choice sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// All interfaces.
    pub interfaces: Vec<Interface>,
    /// The interface of the IPv4 default route.
    pub default_route: Option<IfName>,
    /// Without one: default routes that only some packets take, each named with its table.
    pub elsewhere: Vec<String>,
    /// For `--iface-can-reach`: the interface and source address of the route to it, or why there is none.
    pub reach: Option<Result<(IfName, Option<Ipv4Addr>), String>>,
}

/// What the operator asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    /// `--iface`: names or addresses.
    pub ifaces: Vec<String>,
    /// `--iface-regex`.
    pub regexes: Vec<Regex>,
    /// `--iface-can-reach`.
    pub can_reach: Option<Ipv4Addr>,
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
}

/// The chosen interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct External {
    /// Its name.
    pub interface: IfName,
    /// Its address.
    pub address: Ipv4Addr,
    /// The network of that address.
    pub network: Prefix,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The address that other nodes use: `--public-ip`, else its own.
    pub public_ip: Ipv4Addr,
}

impl Wanted {
    /// True when the default route names the interface, because nothing else does.
    #[must_use]
    pub(crate) const fn is_open(&self) -> bool {
        self.ifaces.is_empty() && self.regexes.is_empty() && self.can_reach.is_none() && self.public_ip.is_none()
    }

    /// True when routes decide, which change.
    #[must_use]
    pub(crate) const fn follows_routes(&self) -> bool {
        self.is_open() || self.can_reach.is_some()
    }
}

impl External {
    /// The same address on `interface` as it is now; `None` when the address is gone.
    #[must_use]
    pub(crate) fn on(&self, interface: &Interface) -> Option<Self> {
        (interface.has(self.address) && interface.mtu != 0).then(|| Self { mtu: interface.mtu, ..self.clone() })
    }
}

/// Chooses the interface.
///
/// # Errors
/// A problem of the flag that names nothing, or of the host that has no such interface.
pub(crate) fn choose(wanted: &Wanted, facts: &Facts) -> Result<External, Problem> {
    let (interface, address) = find(wanted, facts)?;
    let picked = address.or_else(|| pick(interface)).and_then(|address| with_network(interface, address));
    let (address, network) = picked.ok_or_else(|| {
        let message = format!("interface {} has no IPv4 address", interface.name);
        Problem::new("--iface", message, "an interface with an IPv4 address")
    })?;
    if interface.mtu == 0 {
        return Err(Problem::new("--iface", format!("interface {} has MTU 0", interface.name), ""));
    }
    let public_ip = wanted.public_ip.unwrap_or(address);
    Ok(External { interface: interface.name.clone(), address, network, mtu: interface.mtu, public_ip })
}

type Found<'a> = Result<(&'a Interface, Option<Ipv4Addr>), Problem>;

fn find<'a>(wanted: &Wanted, facts: &'a Facts) -> Found<'a> {
    let first = wanted.ifaces.iter().find_map(|iface| by_name_or_address(iface, facts));
    if let Some(found) = first.or_else(|| wanted.regexes.iter().find_map(|regex| by_regex(regex, facts))) {
        return Ok(found);
    }
    match (&facts.reach, wanted.can_reach) {
        (Some(Ok((name, source))), Some(_)) => {
            let interface = named(name, facts).ok_or_else(|| missing("--iface-can-reach", name.as_str(), facts))?;
            return Ok((interface, *source));
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
    match wanted.public_ip {
        Some(public_ip) => owner(public_ip, facts).map(|interface| (interface, Some(public_ip))).ok_or_else(|| {
            let message = format!("{public_ip} is on no interface");
            Problem::new("--public-ip", message, "an address of this host, or --iface as well when it is behind NAT")
        }),
        None => by_default_route(facts),
    }
}

fn by_default_route(facts: &Facts) -> Found<'_> {
    let found = facts.default_route.as_ref().and_then(|name| named(name, facts));
    found.map(|interface| (interface, None)).ok_or_else(|| {
        let elsewhere: String = facts.elsewhere.iter().map(|route| format!("; there is {route}")).collect();
        let message = format!("not given, and there is no IPv4 default route that names the interface{elsewhere}");
        Problem::new("--iface", message, format!("one of {}", names(facts)))
    })
}

fn by_name_or_address<'a>(iface: &str, facts: &'a Facts) -> Option<(&'a Interface, Option<Ipv4Addr>)> {
    match iface.parse::<Ipv4Addr>() {
        Ok(addr) => owner(addr, facts).map(|interface| (interface, Some(addr))),
        Err(_) => facts.interfaces.iter().find(|i| i.name.as_str() == iface).map(|interface| (interface, None)),
    }
}

fn by_regex<'a>(regex: &Regex, facts: &'a Facts) -> Option<(&'a Interface, Option<Ipv4Addr>)> {
    let address = facts.interfaces.iter().find_map(|interface| {
        let matching = |addr: &Ipv4Addr| regex.is_match(&addr.to_string());
        ipv4(interface).find(matching).map(|addr| (interface, Some(addr)))
    });
    address.or_else(|| facts.interfaces.iter().find(|i| regex.is_match(i.name.as_str())).map(|i| (i, None)))
}

fn named<'a>(name: &IfName, facts: &'a Facts) -> Option<&'a Interface> {
    facts.interfaces.iter().find(|interface| interface.name == *name)
}

fn owner(addr: Ipv4Addr, facts: &Facts) -> Option<&Interface> {
    facts.interfaces.iter().find(|interface| ipv4(interface).any(|own| own == addr))
}

fn ipv4(interface: &Interface) -> impl Iterator<Item = Ipv4Addr> {
    settings(interface).map(|(addr, _)| addr)
}

fn settings(interface: &Interface) -> impl Iterator<Item = (Ipv4Addr, &InterfaceAddress)> {
    interface.addresses.iter().filter_map(|own| match own.addr {
        IpAddr::V4(addr) => Some((addr, own)),
        IpAddr::V6(_) => None,
    })
}

/// The first of the addresses that suit best: a lasting member of a network, before those that come and go.
fn pick(interface: &Interface) -> Option<Ipv4Addr> {
    let in_network =
        settings(interface).any(|(addr, own)| own.len < Prefix::host(own.addr).len() && !addr.is_link_local());
    let rank = |(addr, own): &(Ipv4Addr, &InterfaceAddress)| {
        // One alone beside members of a network is a virtual address, which may be at another host tomorrow (keepalived).
        let is_virtual = in_network && own.len == Prefix::host(own.addr).len();
        (addr.is_link_local(), own.unfit, is_virtual, own.dynamic)
    };
    settings(interface).min_by_key(rank).map(|(addr, _)| addr)
}

fn with_network(interface: &Interface, address: Ipv4Addr) -> Option<(Ipv4Addr, Prefix)> {
    let (_, own) = settings(interface).find(|(addr, _)| *addr == address)?;
    Prefix::new(own.addr, own.len).ok().map(|network| (address, network))
}

fn missing(flag: &str, wanted: &str, facts: &Facts) -> Problem {
    Problem::new(flag, format!("{wanted:?} names no interface of this host"), format!("one of {}", names(facts)))
}

fn names(facts: &Facts) -> String {
    let name = |interface: &Interface| match pick(interface) {
        Some(addr) => format!("{} ({addr})", interface.name),
        None => interface.name.to_string(),
    };
    facts.interfaces.iter().map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, mtu: u32, addresses: &[(&str, u8)]) -> Interface {
        let addresses = addresses.iter().map(|(addr, len)| InterfaceAddress::lasting(addr.parse().unwrap(), *len));
        let addresses = addresses.collect();
        Interface { name: name.parse().unwrap(), mtu, addresses }
    }

    fn host() -> Facts {
        Facts {
            interfaces: vec![
                interface("lo", 65536, &[("127.0.0.1", 8)]),
                interface("eth0", 1500, &[("fe80::1", 64), ("169.254.3.4", 16), ("10.4.7.21", 24), ("10.4.7.121", 32)]),
                interface("eth1", 9000, &[("192.168.44.100", 24)]),
                interface("bare", 1500, &[]),
            ],
            default_route: Some("eth0".parse().unwrap()),
            elsewhere: Vec::new(),
            reach: Some(Ok(("eth1".parse().unwrap(), Some("192.168.44.100".parse().unwrap())))),
        }
    }

    fn wanted(ifaces: &[&str], regexes: &[&str], can_reach: Option<&str>, public_ip: Option<&str>) -> Wanted {
        Wanted {
            ifaces: ifaces.iter().map(ToString::to_string).collect(),
            regexes: regexes.iter().map(|regex| Regex::new(regex).unwrap()).collect(),
            can_reach: can_reach.map(|addr| addr.parse().unwrap()),
            public_ip: public_ip.map(|addr| addr.parse().unwrap()),
        }
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
            let chosen = choose(&wanted, &host()).unwrap();
            let got = (chosen.interface.as_str().to_owned(), chosen.address.to_string(), chosen.public_ip.to_string());
            assert_eq!(got, (interface.to_owned(), address.to_owned(), public_ip.to_owned()), "{wanted:?}");
        }
    }

    #[test]
    fn network_and_mtu_are_those_of_the_interface() {
        let chosen = choose(&wanted(&["eth1"], &[], None, None), &host()).unwrap();
        assert_eq!((chosen.network.to_string().as_str(), chosen.mtu), ("192.168.44.0/24", 9000));
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
            assert_eq!(pick(&eth0).unwrap().to_string(), picked, "{addresses:?}");
        }
    }

    #[test]
    fn default_route_that_only_some_packets_take_is_named() {
        let elsewhere = vec!["one in table 10 by eth1".to_owned()];
        let facts = Facts { default_route: None, elsewhere, ..host() };
        let problem = choose(&wanted(&[], &[], None, None), &facts).unwrap_err().to_string();
        assert!(
            problem.contains("no IPv4 default route that names the interface; there is one in table 10 by eth1"),
            "{problem}"
        );
    }

    #[test]
    fn address_in_use_is_followed_until_it_is_gone() {
        let used = choose(&wanted(&[], &[], None, None), &host()).unwrap();
        let jumbo = interface("eth0", 9000, &[("192.0.2.1", 24), ("10.4.7.21", 24)]);
        assert_eq!(used.on(&jumbo), Some(External { mtu: 9000, ..used.clone() }));
        assert_eq!(used.on(&interface("eth0", 1500, &[("10.4.7.121", 32)])), None);
    }

    #[test]
    fn failed_choice_says_what_was_asked_for_and_what_there_is() {
        let no_default = Facts { default_route: None, ..host() };
        let unreachable = Facts { reach: Some(Err("Network is unreachable".to_owned())), ..host() };
        for (wanted, facts, part) in [
            (
                wanted(&["eth9"], &[], None, None),
                host(),
                "--iface: \"eth9\" names no interface of this host; accepted: one of lo (127.0.0.1), eth0 (10.4.7.21)",
            ),
            (wanted(&[], &["^ens"], None, None), host(), "--iface-regex: \"^ens\""),
            (wanted(&[], &[], None, Some("203.0.113.9")), host(), "--public-ip: 203.0.113.9 is on no interface"),
            (wanted(&[], &[], None, None), no_default, "no IPv4 default route"),
            (wanted(&["bare"], &[], None, None), host(), "bare has no IPv4 address"),
            (
                wanted(&[], &[], Some("192.0.2.1"), None),
                unreachable,
                "--iface-can-reach: 192.0.2.1: Network is unreachable",
            ),
        ] {
            let problem = choose(&wanted, &facts).unwrap_err().to_string();
            assert!(problem.contains(part), "{problem} lacks {part}");
        }
    }
}
