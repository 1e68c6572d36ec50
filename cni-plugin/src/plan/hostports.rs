//! Host ports: the nftables table that leads them to Pods.
//!
//! One table per network, `inet netd-ports-<network>`. Its chains are static; a port is an element in two sets. What a
//! packet to a local address meets:
//!
//! 1. it comes from the Pods' subnet or from 127.0.0.0/8 to an open port: mark it, its source must be rewritten, or the
//!    answer would bypass this node's translation (and a Pod could not reach itself);
//! 2. a port that is open on the packet's very destination address, then one that is open on all of them, gives it its
//!    new destination;
//! 3. leaving, what is marked is masqueraded.
//!
//! Invariants: only destinations that are this host's are looked at (portmap's nft rules once took everybody's
//! traffic, GHSA-jv3w-x3r3-g6rm); every element's comment begins with the name of its owner's host end, which no two
//! attachments share.

use std::net::IpAddr;

use netstate::nft::{
    Chain, ChainKind, Datum, Destination, Element, ElementKey, Family, Field, Hook, MarkChange, Match, Name,
    NetworkFamily, Op, Policy, Rule, Ruleset, Set, Statement, TableKey, Type, Verdict, priority,
};
use netstate::{IfName, Prefix};

use super::{Cidr, Step, parameter};
use crate::attachment::Attachment;
use crate::error::CniError;
use crate::netconf::{PortMapping, PortmapConf, Snat};

const OPEN: [Name; 2] = [Name::literal("open4"), Name::literal("open6")];
const PORTS: [Name; 2] = [Name::literal("ports4"), Name::literal("ports6")];
const HOST_OPEN: [Name; 2] = [Name::literal("host-open4"), Name::literal("host-open6")];
const HOST_PORTS: [Name; 2] = [Name::literal("host-ports4"), Name::literal("host-ports6")];
const HOSTPORTS: Name = Name::literal("hostports");

/// Comments of elements hold at most this many bytes.
const COMMENT_MAX: usize = 120;

/// The ports of one attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPorts<'a> {
    /// The network's name.
    pub network: &'a str,
    /// Whose ports.
    pub attachment: &'a Attachment,
    /// Which ports; may be empty.
    pub mappings: &'a [PortMapping],
    /// The Pod's addresses; the first of each family is used.
    pub addresses: &'a [Cidr],
    /// How.
    pub conf: PortmapConf,
}

/// The table of `network`; `None` for a name that nftables cannot hold.
#[must_use]
pub fn table_key(network: &str) -> Option<TableKey> {
    let name = Name::new(format!("netd-ports-{network}")).ok()?;
    Some(TableKey { family: Family::Inet, name })
}

/// True when `element` belongs to `attachment`.
#[must_use]
pub fn owns(attachment: &Attachment, element: &Element) -> bool {
    owner_link(element).is_some_and(|link| link == attachment.host_link().as_str())
}

/// The name of the host end of the attachment that `element` belongs to.
#[must_use]
pub fn owner_link(element: &Element) -> Option<&str> {
    element.comment.as_deref()?.split(' ').next()
}

/// A UDP flow that must be forgotten: its packets would go on to where they went before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleFlows {
    /// Port of the flow's first packet.
    pub host_port: u16,
    /// Destination of the flow's first packet; `None` is any address of this host.
    pub host_ip: Option<IpAddr>,
    /// The Pod that the port leads to, or led to.
    pub pod: IpAddr,
}

impl HostPorts<'_> {
    /// The table as it must be, with this attachment's elements. `None` for a name that nftables cannot hold.
    #[must_use]
    pub fn ruleset(&self) -> Option<Ruleset> {
        let mut ruleset = Ruleset::new(table_key(self.network)?);
        for v4 in [true, false] {
            declare_sets(&mut ruleset, v4);
        }
        let chains = [("prerouting", Hook::Prerouting, priority::DSTNAT), ("output", Hook::Output, priority::DSTNAT)];
        for (name, hook, priority) in chains {
            let mut chain = Chain::base(ChainKind::Nat, hook, priority, Policy::Accept);
            chain.rules = vec![Rule::new().when(Match::DaddrLocal(Op::Is)).then(Verdict::Jump(HOSTPORTS))];
            ruleset.table.chains.insert(Name::literal(name), chain);
        }
        ruleset.table.chains.insert(HOSTPORTS, Chain::regular(self.hostport_rules()));
        if self.conf.snat != Snat::Never {
            ruleset.table.chains.insert(Name::literal("postrouting"), self.postrouting());
            ruleset.table.chains.insert(Name::literal("localnet"), localnet());
        }
        self.insert_elements(&mut ruleset);
        Some(ruleset)
    }

    fn mark(&self) -> u32 {
        1_u32.checked_shl(u32::from(self.conf.mark_bit)).unwrap_or(0)
    }

    fn hostport_rules(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        for v4 in [true, false] {
            rules.extend(self.mark_rules(v4));
        }
        for v4 in [true, false] {
            let dnat = |fields: Vec<Field>, map: &Name| {
                let (family, map) = (network_family(v4), map.clone());
                // Without this match a packet of the other family would be looked up by bytes that it does not have.
                let only = Match::Nfproto(Op::Is, family);
                Rule::new().when(only).then(Destination::Map { family, fields, map, port: true })
            };
            rules.push(dnat(host_key(v4), of(&HOST_PORTS, v4)));
            rules.push(dnat(port_key(), of(&PORTS, v4)));
        }
        rules
    }

    /// Marks packets whose source must be rewritten.
    fn mark_rules(&self, v4: bool) -> Vec<Rule> {
        if self.conf.snat == Snat::Never {
            return Vec::new();
        }
        let mut sources: Vec<Option<Prefix>> = Vec::new();
        if self.conf.snat == Snat::Always {
            sources.push(None);
        } else {
            let own = self.address(v4).and_then(|(addr, len)| Prefix::new(addr, len).ok());
            sources.extend(own.map(Some));
            sources.extend(loopback().filter(|_| v4).map(Some));
        }
        let mut rules = Vec::new();
        for source in sources {
            for (fields, set) in [(host_key(v4), of(&HOST_OPEN, v4)), (port_key(), of(&OPEN, v4))] {
                let rule = Rule::new().when(Match::Nfproto(Op::Is, network_family(v4)));
                let rule = match source {
                    Some(source) => rule.when(Match::Saddr(Op::Is, source)),
                    None => rule,
                };
                let mark = MarkChange::set(self.mark());
                rules.push(rule.when(Match::Lookup(Op::Is, fields, set.clone())).then(mark));
            }
        }
        rules
    }

    fn postrouting(&self) -> Chain {
        let mut chain = Chain::base(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT, Policy::Accept);
        let marked = Match::Mark(Op::Is, self.mark(), self.mark());
        chain.rules = vec![Rule::new().when(marked).then(Statement::Masquerade { fully_random: false })];
        chain
    }

    fn address(&self, v4: bool) -> Option<Cidr> {
        self.addresses.iter().copied().find(|(addr, _)| addr.is_ipv4() == v4)
    }

    /// Every mapping with every address of the Pod that it leads to.
    fn pairs(&self) -> impl Iterator<Item = (&PortMapping, IpAddr)> {
        self.mappings.iter().flat_map(move |mapping| {
            [true, false].into_iter().filter_map(move |v4| {
                let (pod, _) = self.address(v4)?;
                mapping.host_ip.is_none_or(|ip| ip.is_ipv4() == v4).then_some((mapping, pod))
            })
        })
    }

    fn insert_elements(&self, ruleset: &mut Ruleset) {
        let mut comment =
            format!("{} {}@{}", self.attachment.host_link(), self.attachment.container, self.attachment.ifname);
        comment.truncate(COMMENT_MAX);
        for (mapping, pod) in self.pairs() {
            let v4 = pod.is_ipv4();
            let port = vec![Datum::Protocol(mapping.protocol), Datum::Port(mapping.host_port)];
            let (key, open, ports) = match mapping.host_ip.filter(|ip| !ip.is_unspecified()) {
                Some(ip) => ([vec![Datum::from(ip)], port].concat(), &HOST_OPEN, &HOST_PORTS),
                None => (port, &OPEN, &PORTS),
            };
            let target = vec![Datum::from(pod), Datum::Port(mapping.container_port)];
            ruleset.insert(of(open, v4).clone(), key.clone(), Element::member().comment(comment.clone()));
            ruleset.insert(of(ports, v4).clone(), key, Element::value(target).comment(comment.clone()));
        }
    }

    /// True when 127.0.0.1 must reach a Pod: the bridge must take packets from there (`route_localnet`).
    #[must_use]
    pub fn needs_localnet(&self) -> bool {
        self.conf.snat != Snat::Never && self.pairs().any(|(_, pod)| pod.is_ipv4())
    }

    /// The steps that open the ports, none without a mapping. `bridge` is the link through which the Pod is reached.
    ///
    /// # Errors
    /// Code 7 for a network whose name nftables cannot hold.
    pub fn plan(&self, bridge: &IfName) -> Result<Vec<Step>, CniError> {
        if self.mappings.is_empty() {
            return Ok(Vec::new());
        }
        let unnameable =
            || CniError::invalid_field("name", self.network, "a name that is short enough for an nft table");
        let ruleset = Box::new(self.ruleset().ok_or_else(unnameable)?);
        let mut steps = Vec::new();
        if self.needs_localnet() {
            steps.extend(
                parameter(&format!("net/ipv4/conf/{bridge}/route_localnet"), "1", true).map(Step::HostParameter),
            );
        }
        steps.push(Step::OpenPorts { ruleset, owner: self.attachment.clone() });
        let flows = self.stale_flows();
        steps.extend((!flows.is_empty()).then_some(Step::ForgetFlows(flows)));
        Ok(steps)
    }

    /// UDP flows that know another way than these ports now lead.
    #[must_use]
    pub fn stale_flows(&self) -> Vec<StaleFlows> {
        let udp = self.pairs().filter(|(mapping, _)| mapping.protocol == netstate::ipvs::Protocol::Udp);
        let host_ip = |mapping: &PortMapping| mapping.host_ip.filter(|ip| !ip.is_unspecified());
        udp.map(|(mapping, pod)| StaleFlows { host_port: mapping.host_port, host_ip: host_ip(mapping), pod }).collect()
    }
}

/// What an element leads to, as a flow of a UDP port; `None` for other protocols and for elements without a target.
#[must_use]
pub fn flow_of(key: &ElementKey, element: &Element) -> Option<StaleFlows> {
    let netstate::nft::Data::Value(target) = &element.data else { return None };
    let pod = match target.first()? {
        Datum::Ipv4(addr) => IpAddr::V4(*addr),
        Datum::Ipv6(addr) => IpAddr::V6(*addr),
        _ => return None,
    };
    let (host_ip, rest) = match key.key.as_slice() {
        [Datum::Ipv4(ip), rest @ ..] => (Some(IpAddr::V4(*ip)), rest),
        [Datum::Ipv6(ip), rest @ ..] => (Some(IpAddr::V6(*ip)), rest),
        rest => (None, rest),
    };
    match rest {
        [Datum::Protocol(netstate::ipvs::Protocol::Udp), Datum::Port(port)] => {
            Some(StaleFlows { host_port: *port, host_ip, pod })
        }
        _ => None,
    }
}

fn of(names: &[Name; 2], v4: bool) -> &Name {
    let [first, second] = names;
    if v4 { first } else { second }
}

fn network_family(v4: bool) -> NetworkFamily {
    if v4 { NetworkFamily::Ip } else { NetworkFamily::Ip6 }
}

fn port_key() -> Vec<Field> {
    vec![Field::L4Proto, Field::Dport]
}

fn host_key(v4: bool) -> Vec<Field> {
    vec![Field::Daddr(network_family(v4)), Field::L4Proto, Field::Dport]
}

fn declare_sets(ruleset: &mut Ruleset, v4: bool) {
    let addr = if v4 { Type::Ipv4Addr } else { Type::Ipv6Addr };
    let (port, host) = (vec![Type::InetProto, Type::InetService], vec![addr, Type::InetProto, Type::InetService]);
    let target = vec![addr, Type::InetService];
    let sets = &mut ruleset.table.sets;
    sets.insert(of(&OPEN, v4).clone(), Set::of(port.clone()));
    sets.insert(of(&PORTS, v4).clone(), Set::map(port, target.clone()));
    sets.insert(of(&HOST_OPEN, v4).clone(), Set::of(host.clone()));
    sets.insert(of(&HOST_PORTS, v4).clone(), Set::map(host, target));
}

fn loopback() -> Option<Prefix> {
    Prefix::new(IpAddr::from([127, 0, 0, 0]), 8).ok()
}

/// `route_localnet` would let neighbours on the bridge reach what listens on 127.0.0.1 only (CVE-2020-8558).
fn localnet() -> Chain {
    let mut chain = Chain::base(ChainKind::Filter, Hook::Prerouting, priority::RAW, Policy::Accept);
    let lo = IfName::new("lo").ok().map(|lo| Match::Iifname(Op::IsNot, lo));
    let daddr = loopback().map(|net| Match::Daddr(Op::Is, net));
    if let (Some(lo), Some(daddr)) = (lo, daddr) {
        chain.rules = vec![Rule::new().when(lo).when(daddr).then(Verdict::Drop)];
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachment::ContainerId;
    use netstate::ipvs::Protocol;

    fn attachment() -> Attachment {
        Attachment { container: ContainerId::new("web-1").unwrap(), ifname: IfName::new("eth0").unwrap() }
    }

    fn mapping(protocol: Protocol, host_port: u16, host_ip: &str, container_port: u16) -> PortMapping {
        PortMapping { protocol, host_port, host_ip: host_ip.parse().ok(), container_port }
    }

    fn ports<T>(mappings: &[PortMapping], snat: Snat, work: impl FnOnce(&HostPorts<'_>) -> T) -> T {
        let addresses = [("172.7.21.2".parse().unwrap(), 24), ("fd00:7:0:21::2".parse().unwrap(), 64)];
        let conf = PortmapConf { snat, mark_bit: 13 };
        work(&HostPorts { network: "cbr0", attachment: &attachment(), mappings, addresses: &addresses, conf })
    }

    #[test]
    fn golden_table() {
        let mappings = [mapping(Protocol::Tcp, 8080, "", 80), mapping(Protocol::Udp, 53, "10.4.7.21", 5353)];
        let text = ports(&mappings, Snat::WhereNeeded, |p| p.ruleset().unwrap().render());
        assert_eq!(text, include_str!("hostports.golden"));
    }

    #[test]
    fn host_addresses_choose_family_and_map() {
        let sets = |host_ip: &str| {
            let mapping = [mapping(Protocol::Tcp, 8080, host_ip, 80)];
            let ruleset = ports(&mapping, Snat::Never, |p| p.ruleset().unwrap());
            ruleset.elements.keys().map(|key| key.set.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(sets(""), ["open4", "open6", "ports4", "ports6"]);
        assert_eq!(sets("0.0.0.0"), ["open4", "ports4"]);
        assert_eq!(sets("::"), ["open6", "ports6"]);
        assert_eq!(sets("10.4.7.21"), ["host-open4", "host-ports4"]);
        assert_eq!(sets("fd00::21"), ["host-open6", "host-ports6"]);
    }

    #[test]
    fn sources_are_rewritten_as_configured() {
        let marks = |snat| {
            let text = ports(&[], snat, |p| p.ruleset().unwrap().render());
            (text.matches("meta mark set").count(), text.contains("masquerade"))
        };
        assert_eq!(marks(Snat::Never), (0, false));
        assert_eq!(marks(Snat::WhereNeeded), (6, true));
        assert_eq!(marks(Snat::Always), (4, true));
    }

    #[test]
    fn static_part_is_the_same_with_and_without_ports() {
        let with = ports(&[mapping(Protocol::Tcp, 1, "", 1)], Snat::WhereNeeded, |p| p.ruleset().unwrap().table);
        assert_eq!(with, ports(&[], Snat::WhereNeeded, |p| p.ruleset().unwrap().table));
    }

    #[test]
    fn udp_ports_name_the_flows_that_must_go() {
        let mappings = [mapping(Protocol::Tcp, 80, "", 80), mapping(Protocol::Udp, 53, "10.4.7.21", 5353)];
        let flow = StaleFlows {
            host_port: 53,
            host_ip: Some("10.4.7.21".parse().unwrap()),
            pod: "172.7.21.2".parse().unwrap(),
        };
        assert_eq!(ports(&mappings, Snat::WhereNeeded, |p| p.stale_flows()), std::slice::from_ref(&flow));
        let elements = ports(&mappings, Snat::WhereNeeded, |p| p.ruleset().unwrap().elements);
        let flows: Vec<StaleFlows> = elements.iter().filter_map(|(key, element)| flow_of(key, element)).collect();
        assert_eq!(flows, [flow]);
    }

    #[test]
    fn elements_know_their_owner_however_long_its_name() {
        let other = Attachment { container: ContainerId::new("web-2").unwrap(), ..attachment() };
        let long = Attachment { container: ContainerId::new(&"x".repeat(200)).unwrap(), ..attachment() };
        let mappings = [mapping(Protocol::Tcp, 8080, "", 80)];
        for owner in [attachment(), long] {
            let addresses = [("172.7.21.2".parse().unwrap(), 24)];
            let conf = PortmapConf { snat: Snat::WhereNeeded, mark_bit: 13 };
            let ports =
                HostPorts { network: "n", attachment: &owner, mappings: &mappings, addresses: &addresses, conf };
            for element in ports.ruleset().unwrap().elements.values() {
                assert!(owns(&owner, element) && !owns(&other, element));
                assert!(element.comment.as_ref().unwrap().len() <= 128);
            }
        }
    }
}
