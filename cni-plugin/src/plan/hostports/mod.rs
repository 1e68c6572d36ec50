//! Host ports: what of the node's table of them belongs to one attachment.
//!
//! | module | what it is |
//! |---|---|
//! | [`table`] | the static part, shared by all networks |
//! | [`policy`] | what of it depends on a network's options |
//! | [`keys`] | elements' keys as the record lists them |
//! | [`predecessor`] | tables of the form before this one |
//!
//! A port is an element in a map, which leads it to its Pod, and where its source may have to be rewritten one in a set
//! of its policy. Invariant: all elements of an attachment come and go in one transaction.

pub(crate) mod keys;
pub(crate) mod policy;
pub(crate) mod predecessor;
pub(crate) mod table;

use std::net::IpAddr;

use netstate::nft::{Data, Datum, Element, ElementKey, Ruleset};
use netstate::{IfName, IpFamily, Prefix, SysctlKey};

use super::{Cidr, Parameter, Step};
use crate::protocol::error::CniError;
use crate::protocol::netconf::{PortMapping, PortmapConf, Snat};

use super::tag::Tag;
use policy::Policy;
use table::Scope;

/// The ports of one attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostPorts<'a> {
    /// Whose ports.
    pub tag: Tag,
    /// Which ports; may be empty.
    pub mappings: &'a [PortMapping],
    /// The Pod's addresses; the first of each family is used.
    pub addresses: &'a [Cidr],
    /// How.
    pub conf: &'a PortmapConf,
}

/// A UDP flow that must be forgotten: its packets would go on to where they went before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StaleFlows {
    /// Port of the flow's first packet.
    pub host_port: u16,
    /// Destination of the flow's first packet; `None` is any address of this host.
    pub host_ip: Option<IpAddr>,
    /// The Pod that the port leads to, or led to.
    pub pod: IpAddr,
}

impl HostPorts<'_> {
    /// The table with the policy and the elements that this attachment needs.
    #[must_use]
    pub(crate) fn ruleset(&self) -> Ruleset {
        let mut ruleset = Ruleset::new(table::key());
        ruleset.table = table::empty();
        let subnets: Vec<Prefix> = IpFamily::ALL.into_iter().filter_map(|family| self.subnet(family)).collect();
        let policy = Policy::of(self.conf, &subnets);
        if let Some(policy) = &policy {
            policy.declare(&mut ruleset.table);
        }
        self.insert_elements(&mut ruleset, policy.as_ref());
        ruleset
    }

    fn address(&self, family: IpFamily) -> Option<Cidr> {
        self.addresses.iter().copied().find(|(addr, _)| IpFamily::of(*addr) == family)
    }

    fn subnet(&self, family: IpFamily) -> Option<Prefix> {
        self.address(family).and_then(|(addr, len)| Prefix::new(addr, len).ok())
    }

    /// Every mapping with every address of the Pod that it leads to.
    fn pairs(&self) -> impl Iterator<Item = (&PortMapping, IpAddr)> {
        self.mappings.iter().flat_map(move |mapping| {
            IpFamily::ALL.into_iter().filter_map(move |family| {
                let (pod, _) = self.address(family)?;
                mapping.host_ip.is_none_or(|ip| IpFamily::of(ip) == family).then_some((mapping, pod))
            })
        })
    }

    fn insert_elements(&self, ruleset: &mut Ruleset, policy: Option<&Policy>) {
        let comment = self.tag.comment();
        for (mapping, pod) in self.pairs() {
            let family = IpFamily::of(pod);
            let address = mapping.host_ip.filter(|ip| !ip.is_unspecified()).map(Datum::from);
            let port = [Datum::Protocol(mapping.protocol), Datum::Port(mapping.host_port)];
            let key: Vec<Datum> = address.into_iter().chain(port).collect();
            let scope = Scope::of(&key);
            let target = vec![Datum::from(pod), Datum::Port(mapping.container_port)];
            if let Some(policy) = policy.filter(|policy| policy.covers(family)) {
                ruleset.insert(policy.set(scope, family), key.clone(), Element::member().comment(comment.clone()));
            }
            ruleset.insert(scope.map(family), key, Element::value(target).comment(comment.clone()));
        }
    }

    /// Keys of the attachment's elements.
    #[must_use]
    pub(crate) fn keys(&self) -> Vec<ElementKey> {
        if self.mappings.is_empty() { Vec::new() } else { self.ruleset().elements.into_keys().collect() }
    }

    /// True when 127.0.0.1 must reach a Pod: the bridge must take packets from there (`route_localnet`).
    #[must_use]
    pub(crate) fn needs_localnet(&self) -> bool {
        self.conf.snat != Snat::Never && self.pairs().any(|(_, pod)| pod.is_ipv4())
    }

    /// The steps that open the ports, none without a mapping. `bridge` is the link through which the Pod is reached; none
    /// leads to that of an internal network.
    ///
    /// # Errors
    /// Code 7 for a port that two mappings lead to different places.
    pub(crate) fn plan(&self, bridge: Option<&IfName>) -> Result<Vec<Step>, CniError> {
        if self.mappings.is_empty() {
            return Ok(Vec::new());
        }
        self.check_unique()?;
        self.check_loopback()?;
        self.check_families()?;
        let mut steps = Vec::new();
        if let Some(bridge) = bridge.filter(|_| self.needs_localnet()) {
            let key = SysctlKey::of_link(IpFamily::V4, bridge, "route_localnet");
            steps.push(Step::HostParameter(Parameter::required(key, "1")));
        }
        steps.push(Step::OpenPorts { ruleset: Box::new(self.ruleset()), tag: self.tag.clone() });
        let flows = self.stale_flows();
        steps.extend((!flows.is_empty()).then_some(Step::ForgetFlows(flows)));
        Ok(steps)
    }

    /// One port of one address leads to one place. (portmap lets the first of two win, in silence.)
    fn check_unique(&self) -> Result<(), CniError> {
        for (at, (mapping, pod)) in self.pairs().enumerate() {
            let address = |mapping: &PortMapping| mapping.host_ip.filter(|ip| !ip.is_unspecified());
            let clashes = |(other, other_pod): &(&PortMapping, IpAddr)| {
                (other.protocol, other.host_port, address(other))
                    == (mapping.protocol, mapping.host_port, address(mapping))
                    && other_pod.is_ipv4() == pod.is_ipv4()
                    && other.container_port != mapping.container_port
            };
            if let Some((other, _)) = self.pairs().skip(at + 1).find(clashes) {
                let value = format!("{mapping}, and {other}");
                let accepted = "one container port for each host port";
                return Err(CniError::invalid_field("runtimeConfig.portMappings", &value, accepted));
            }
        }
        Ok(())
    }

    /// A port of 127.0.0.1 alone, whose answers would have no way back.
    fn check_loopback(&self) -> Result<(), CniError> {
        let is_local = |ip: IpAddr| ip.is_ipv4() && ip.is_loopback();
        let of_loopback = |mapping: &&PortMapping| mapping.host_ip.is_some_and(is_local);
        match self.mappings.iter().find(of_loopback).filter(|_| self.conf.snat == Snat::Never) {
            None => Ok(()),
            Some(mapping) => {
                let found = format!("{mapping}: with snat false no answer finds the way back to a loopback address");
                let accepted = "another hostIP, or snat true";
                Err(CniError::invalid_field("runtimeConfig.portMappings", &found, accepted))
            }
        }
    }

    /// A port of one address whose family the Pod does not have. One of all addresses of a family is for Pods that have it: runtimes
    /// list both.
    fn check_families(&self) -> Result<(), CniError> {
        let lacks = |ip: &IpAddr| !ip.is_unspecified() && self.address(IpFamily::of(*ip)).is_none();
        match self.mappings.iter().find(|mapping| mapping.host_ip.as_ref().is_some_and(lacks)) {
            None => Ok(()),
            Some(mapping) => {
                let found = format!("{mapping}: the Pod has no address of this family, so the port would lead nowhere");
                let accepted = "a hostIP of a family that the network gives addresses of";
                Err(CniError::invalid_field("runtimeConfig.portMappings", &found, accepted))
            }
        }
    }

    /// UDP flows that know another way than these ports now lead.
    #[must_use]
    pub(crate) fn stale_flows(&self) -> Vec<StaleFlows> {
        let udp = self.pairs().filter(|(mapping, _)| mapping.protocol == netstate::Protocol::Udp);
        let host_ip = |mapping: &PortMapping| mapping.host_ip.filter(|ip| !ip.is_unspecified());
        udp.map(|(mapping, pod)| StaleFlows { host_port: mapping.host_port, host_ip: host_ip(mapping), pod }).collect()
    }
}

/// What an element leads to, as a flow of a UDP port; `None` for other protocols and for elements without a target.
#[must_use]
pub(crate) fn flow_of(key: &ElementKey, element: &Element) -> Option<StaleFlows> {
    let Data::Value(target) = &element.data else { return None };
    let pod = match target.first()? {
        Datum::Ipv4(addr) => IpAddr::V4(*addr),
        Datum::Ipv6(addr) => IpAddr::V6(*addr),
        _ => return None,
    };
    let (host_ip, protocol, host_port) = keys::port_of(&key.key)?;
    (protocol == netstate::Protocol::Udp).then_some(StaleFlows { host_port, host_ip, pod })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::attachment::{Attachment, ContainerId};
    use crate::protocol::error::Code;
    use crate::protocol::netconf::conditions::Conditions;
    use netstate::Protocol;
    use netstate::nft::{Name, Table};

    fn tag(network: &str) -> Tag {
        let attachment = Attachment::new(ContainerId::new("web-1").unwrap(), IfName::new("eth0").unwrap());
        Tag { attachment, network: network.to_owned(), has_own_link: true }
    }

    fn mapping(protocol: Protocol, host_port: u16, host_ip: &str, container_port: u16) -> PortMapping {
        PortMapping { protocol, host_port, host_ip: host_ip.parse().ok(), container_port }
    }

    fn conf(snat: Snat, mark_bit: u8) -> PortmapConf {
        PortmapConf { snat, mark_bit, conditions: Conditions::default() }
    }

    const POD: [&str; 2] = ["172.7.21.2/24", "fd00:7:0:21::2/64"];

    fn ports<T>(
        mappings: &[PortMapping],
        conf: &PortmapConf,
        pod: &[&str],
        work: impl FnOnce(&HostPorts<'_>) -> T,
    ) -> T {
        let addresses: Vec<Cidr> = pod
            .iter()
            .map(|text| text.split_once('/').unwrap())
            .map(|(a, l)| (a.parse().unwrap(), l.parse().unwrap()))
            .collect();
        work(&HostPorts { tag: tag("cbr0"), mappings, addresses: &addresses, conf })
    }

    fn table_of(conf: &PortmapConf, pod: &[&str]) -> Table {
        ports(&[], conf, pod, |p| p.ruleset().table)
    }

    #[test]
    fn golden_table() {
        let mappings = [mapping(Protocol::Tcp, 8080, "", 80), mapping(Protocol::Udp, 53, "10.4.7.21", 5353)];
        let text = ports(&mappings, &conf(Snat::WhereNeeded, 13), &POD, |p| p.ruleset().render());
        assert_eq!(text, include_str!("table.golden"));
    }

    #[test]
    fn steps_are_those_that_the_mappings_need() {
        let plan = |host_ip: &str, protocol, snat, pod: &[&str]| {
            let mapping = [mapping(protocol, 53, host_ip, 53)];
            let steps = ports(&mapping, &conf(snat, 13), pod, |p| p.plan(Some(&IfName::literal("br0"))))?;
            // What a step is of, by its first words.
            let word = |step: &Step| step.to_string().split(' ').take(2).collect::<Vec<_>>().join(" ");
            Ok::<_, CniError>(steps.iter().map(word).collect::<Vec<_>>())
        };
        const LOCALNET: &str = "set net/ipv4/conf/br0/route_localnet=1";
        let (v4, v6, needed) = (&POD[..1], &POD[1..], Snat::WhereNeeded);
        for (host_ip, protocol, snat, pod, expected) in [
            ("", Protocol::Tcp, needed, &POD[..], &[LOCALNET, "open host"][..]),
            ("", Protocol::Udp, needed, &POD, &[LOCALNET, "open host", "forget flows"]),
            ("", Protocol::Tcp, Snat::Never, &POD, &["open host"]),
            ("", Protocol::Tcp, Snat::Always, v4, &[LOCALNET, "open host"]),
            ("", Protocol::Sctp, needed, v6, &["open host"]),
            ("::", Protocol::Tcp, needed, &POD, &["open host"]),
            ("127.0.0.1", Protocol::Tcp, needed, v4, &[LOCALNET, "open host"]),
            ("10.4.7.21", Protocol::Tcp, Snat::Never, v4, &["open host"]),
            // Runtimes list one of each family, whatever the Pod has.
            ("::", Protocol::Tcp, needed, v4, &["open host"]),
        ] {
            assert_eq!(plan(host_ip, protocol, snat, pod).unwrap(), expected, "{host_ip} {protocol} {snat:?} {pod:?}");
        }
        for (host_ip, snat, pod, words) in [
            ("127.0.0.1", Snat::Never, v4, "no answer finds the way back"),
            ("127.9.9.9", Snat::Never, &POD[..], "no answer finds the way back"),
            ("fd00::21", needed, v4, "the Pod has no address of this family"),
            ("10.4.7.21", needed, v6, "the Pod has no address of this family"),
        ] {
            let error = plan(host_ip, Protocol::Tcp, snat, pod).unwrap_err();
            assert!(error.code == Code::InvalidConfig && error.msg.contains(words), "{host_ip}: {error}");
        }
        assert!(ports(&[], &conf(needed, 13), &POD, |p| p.plan(Some(&IfName::literal("br0")))).unwrap().is_empty());
    }

    #[test]
    fn host_addresses_choose_family_and_map() {
        let sets = |host_ip: &str, snat: Snat| {
            let mapping = [mapping(Protocol::Tcp, 8080, host_ip, 80)];
            let keys = ports(&mapping, &conf(snat, 13), &POD, |p| p.keys());
            // A policy's sets end in its identifier.
            let kind = |name: &str| {
                name.rsplit_once('-').filter(|(_, id)| id.len() == 8).map_or(name, |(kind, _)| kind).to_owned()
            };
            keys.iter().map(|key| kind(key.set.as_str())).collect::<Vec<_>>()
        };
        assert_eq!(sets("", Snat::Never), ["open4", "ports4", "ports6"], "loopback addresses are let be");
        assert_eq!(sets("0.0.0.0", Snat::Never), ["open4", "ports4"]);
        assert_eq!(sets("::", Snat::Never), ["ports6"]);
        assert_eq!(sets("10.4.7.21", Snat::Never), ["host-open4", "host-ports4"]);
        assert_eq!(sets("fd00::21", Snat::Never), ["host-ports6"]);
        assert_eq!(sets("10.4.7.21", Snat::WhereNeeded), ["host-open4", "host-ports4"]);
    }

    #[test]
    fn sources_are_rewritten_as_configured() {
        let marks = |snat| {
            let text = ports(&[], &conf(snat, 13), &POD, |p| p.ruleset().render());
            (text.matches("meta mark set").count(), text.contains("masquerade"))
        };
        assert_eq!(marks(Snat::Never), (0, false));
        assert_eq!(marks(Snat::WhereNeeded), (6, true));
        assert_eq!(marks(Snat::Always), (4, true));
    }

    #[test]
    fn static_part_does_not_depend_on_ports_nor_on_who_came_last() {
        let (first, second) = (conf(Snat::WhereNeeded, 13), conf(Snat::Always, 7));
        let with = ports(&[mapping(Protocol::Tcp, 1, "", 1)], &first, &POD, |p| p.ruleset().table);
        assert_eq!(with, table_of(&first, &POD));
        let (one, other) = (table_of(&first, &POD), table_of(&second, &["172.7.22.2/24"]));
        let plain = table_of(&conf(Snat::Never, 1), &POD);
        let all = table::merged(Some(&table::merged(Some(&one), &other)), &plain);
        assert_eq!(all, table::merged(Some(&table::merged(Some(&plain), &other)), &one));
        let text = {
            let mut ruleset = Ruleset::new(table::key());
            ruleset.table = all.clone();
            ruleset.render()
        };
        assert_eq!(text.matches("jump policy-").count(), 3, "{text}");
        assert_eq!(text.matches(" masquerade").count(), 2, "{text}");
        assert_eq!(table::merged(Some(&all), &one), all, "nothing new changes nothing");
    }

    #[test]
    fn policies_differ_by_every_option_and_by_subnet() {
        let id = |conf: PortmapConf, pod: &[&str]| {
            let chains = table_of(&conf, pod).chains;
            chains.keys().find(|name| policy::is_chain(name)).map(Name::to_string)
        };
        let ids = [
            id(conf(Snat::WhereNeeded, 13), &POD),
            id(conf(Snat::WhereNeeded, 14), &POD),
            id(conf(Snat::Always, 13), &POD),
            id(conf(Snat::WhereNeeded, 13), &["172.7.22.2/24"]),
            id(conf(Snat::Never, 13), &POD),
        ];
        let different: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(different.len(), ids.len(), "{ids:?}");
        let of_ipv6_alone = id(conf(Snat::Never, 13), &["fd00:7:0:21::2/64"]);
        assert_eq!(of_ipv6_alone, None, "nothing to say, no policy");
        assert_eq!(ids[0], id(conf(Snat::WhereNeeded, 13), &["172.7.21.9/24", "fd00:7:0:21::9/64"]));
    }

    #[test]
    fn policies_without_ports_are_pruned_with_their_bits_when_they_are_many() {
        let used = ports(&[mapping(Protocol::Tcp, 1, "", 1)], &conf(Snat::WhereNeeded, 13), &POD, |p| p.ruleset());
        let few = table::merged(Some(&used.table), &table_of(&conf(Snat::Always, 7), &POD));
        let have = Ruleset { table: few.clone(), ..used.clone() };
        assert_eq!(table::pruned(&have), few, "the next Pod may need it");
        let many = (0..=8).map(|bit| table_of(&conf(Snat::Always, bit), &POD));
        let many = many.fold(used.table.clone(), |all, one| table::merged(Some(&all), &one));
        let have = Ruleset { table: many, ..have };
        assert_eq!(table::pruned(&have), used.table);
        let empty = Ruleset { elements: Default::default(), ..have };
        assert_eq!(table::pruned(&empty), table::empty());
    }

    #[test]
    fn one_port_of_one_address_cannot_lead_to_two_places() {
        let plan = |mappings: &[PortMapping]| {
            ports(mappings, &conf(Snat::Never, 1), &POD, |p| p.plan(Some(&IfName::literal("cbr0"))))
        };
        let tcp = |host_ip: &str, container| mapping(Protocol::Tcp, 80, host_ip, container);
        for (one, other) in
            [(tcp("", 1), tcp("", 2)), (tcp("", 1), tcp("0.0.0.0", 2)), (tcp("10.0.0.1", 1), tcp("10.0.0.1", 2))]
        {
            let error = plan(&[one, other]).unwrap_err();
            assert!(error.code == Code::InvalidConfig && error.msg.contains("portMappings"), "{error}");
        }
        for fine in [[tcp("", 1), tcp("", 1)], [tcp("", 1), tcp("10.0.0.1", 2)], [tcp("0.0.0.0", 1), tcp("::", 2)]] {
            plan(&fine).unwrap();
        }
    }

    #[test]
    fn udp_ports_name_the_flows_that_must_go() {
        let mappings = [mapping(Protocol::Tcp, 80, "", 80), mapping(Protocol::Udp, 53, "10.4.7.21", 5353)];
        let flow = StaleFlows {
            host_port: 53,
            host_ip: Some("10.4.7.21".parse().unwrap()),
            pod: "172.7.21.2".parse().unwrap(),
        };
        let conf = conf(Snat::WhereNeeded, 13);
        assert_eq!(ports(&mappings, &conf, &POD, |p| p.stale_flows()), std::slice::from_ref(&flow));
        let elements = ports(&mappings, &conf, &POD, |p| p.ruleset().elements);
        let flows: Vec<StaleFlows> = elements.iter().filter_map(|(key, element)| flow_of(key, element)).collect();
        assert_eq!(flows, [flow]);
    }
}
