//! ADD: from the configuration, the reserved addresses and what the host looks like to ordered steps and the result.
//!
//! Order, chosen so that a crash between two steps leaves nothing that a DEL or the next ADD does not put right: the
//! bridge and what Pods share, then the veth pair in one message, then the ports, then the Pod's side, and last the
//! neighbour entry, which only makes the first packet faster.

pub(crate) mod bridge;
mod pod;
pub(crate) mod vlan;

use std::net::IpAddr;

use netstate::nft::Ruleset;
use netstate::{IfName, MacAddr, PerFamily, PortOptions, Prefix};

use super::bandwidth::Bandwidth;
use super::hostports::HostPorts;
use super::tag::Tag;
use super::{Cidr, End, Step, masquerade, spoof};
use crate::protocol::attachment::{Attachment, mac_of_address};
use crate::protocol::error::CniError;
use crate::protocol::netconf::BridgeConf;
use crate::protocol::range::{Range, RangeSet, Reservation};
use crate::protocol::result::{AddResult, Dns, Interface, IpConfig};
use vlan::VlanLink;

/// MTU of a veth in bytes when nobody says otherwise (ETH_DATA_LEN).
const ETHERNET_MTU: u32 = 1500;

/// The bridge as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BridgeState {
    /// Interface index.
    pub index: u32,
    /// A link of that name exists, and it is a bridge.
    pub is_bridge: bool,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Hardware address.
    pub mac: Option<MacAddr>,
    /// Administratively up.
    pub up: bool,
    /// It has a port that is up, and sends what it shall send.
    pub operational: bool,
    /// It filters VLANs.
    pub filters_vlans: bool,
    /// Its addresses, those of link scope left out.
    pub addresses: Vec<Cidr>,
}

/// What is examined only when the bridge lacks something: a gateway's address, VLAN filtering.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Surroundings {
    /// Some link is a port of the bridge.
    pub has_ports: bool,
    /// Addresses of the host's other bridges.
    pub other_bridges: Vec<(IfName, Cidr)>,
}

/// What ADD found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The bridge, if a link has its name.
    pub bridge: Option<BridgeState>,
    /// The link that holds the gateways of the Pod's VLAN, see [`Attach::gateway_vlan`].
    pub vlan_link: Option<VlanLink>,
    /// See [`Attach::needs_surroundings`].
    pub surroundings: Surroundings,
    /// The host forwards packets of the family.
    pub forwards: PerFamily<bool>,
}

/// What shall be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attach<'a> {
    /// Which interface of which container.
    pub attachment: &'a Attachment,
    /// How.
    pub conf: &'a BridgeConf,
    /// The reserved addresses; empty in layer 2.
    pub reservations: &'a [Reservation],
    /// Settings from `ipam.resolvConf`.
    pub resolver: &'a Dns,
    /// Path of the Pod's namespace, for the result.
    pub netns: &'a str,
    /// The network's name.
    pub network: &'a str,
    /// Ports of the host that lead to the Pod; `None` where another plugin of the chain opens them.
    pub ports: Option<HostPorts<'a>>,
    /// BandwidthConf of the Pod's traffic.
    pub bandwidth: Option<Bandwidth>,
}

impl Attach<'_> {
    /// The gateways that the bridge must hold.
    #[must_use]
    pub(crate) fn gateways(&self) -> Vec<Cidr> {
        let all = self.reservations.iter().map(|r| (r.gateway, r.len));
        if self.conf.gateway { all.collect() } else { Vec::new() }
    }

    /// True when the bridge lacks a gateway's address, or must learn to look at VLANs: then the host's other links matter.
    #[must_use]
    pub(crate) fn needs_surroundings(&self, facts: &Facts) -> bool {
        let is_blind = |bridge: &BridgeState| self.conf.vlan.is_used() && !bridge.filters_vlans;
        let present = self.present(facts);
        facts.bridge.as_ref().is_some_and(is_blind) || self.gateways().iter().any(|cidr| !present.contains(cidr))
    }

    /// The addresses where the gateways belong.
    fn present<'f>(&self, facts: &'f Facts) -> &'f [Cidr] {
        match self.gateway_vlan() {
            Some(_) => facts.vlan_link.as_ref().map_or(&[], |link| &link.addresses),
            None => facts.bridge.as_ref().map_or(&[], |bridge| &bridge.addresses),
        }
    }

    fn mtu(&self) -> u32 {
        self.conf.mtu.unwrap_or(ETHERNET_MTU)
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.reservations.iter().map(|r| r.addr).collect()
    }

    fn host_end(&self) -> End {
        End { name: self.attachment.host_link().clone(), mac: self.attachment.host_mac() }
    }

    fn pod_end(&self) -> End {
        let mac = self.conf.mac.unwrap_or_else(|| self.attachment.pod_mac(&self.addresses()));
        End { name: self.attachment.ifname.clone(), mac }
    }

    /// The hardware address of the bridge, if it must be made.
    fn bridge_mac(&self) -> MacAddr {
        let gateway = self.reservations.first().map(|r| mac_of_address(r.gateway));
        gateway.unwrap_or_else(|| MacAddr::local(seed(self.conf.bridge.as_str())))
    }

    /// The steps of ADD.
    ///
    /// # Errors
    /// Code 7 when what was found cannot be reconciled with the configuration.
    pub(crate) fn plan(&self, facts: &Facts) -> Result<Vec<Step>, CniError> {
        let mut steps = self.bridge_steps(facts)?;
        steps.extend(self.vlan_link_steps(facts));
        steps.extend(self.gateway_steps(facts)?);
        steps.extend(self.guard()?.map(|ruleset| Step::GuardPort { ruleset: Box::new(ruleset), tag: self.tag() }));
        steps.push(Step::CreateVeth {
            host: self.host_end(),
            pod: self.pod_end(),
            bridge: self.conf.bridge.clone(),
            mtu: self.mtu(),
        });
        if self.conf.hairpin || self.conf.isolated {
            let options = PortOptions { hairpin: self.conf.hairpin, isolated: self.conf.isolated };
            steps.push(Step::SetPort { link: self.attachment.host_link().clone(), options });
        }
        steps.extend(self.port_vlan_step());
        if let Some(bandwidth) = &self.bandwidth {
            steps.extend(bandwidth.steps(self.attachment.host_link(), self.mtu()));
        }
        steps.extend(self.masquerade()?.map(|ruleset| Step::WriteTable(Box::new(ruleset))));
        if let Some(ports) = &self.ports {
            steps.extend(ports.plan(Some(&self.gateway_link()))?);
        }
        steps.extend(self.pod_steps()?);
        if !self.conf.interface_disabled {
            // A bridge wakes up with its first port.
            let asleep = facts.bridge.as_ref().is_none_or(|bridge| !bridge.operational);
            let links = [Some(self.attachment.host_link()), asleep.then_some(&self.conf.bridge)];
            steps.extend(links.into_iter().flatten().cloned().map(Step::AwaitCarrier));
            if asleep && facts.bridge.is_some() {
                // Another ADD that gave them to it may have failed, and taken them back while this Pod had no port yet.
                steps.extend(self.gateways().into_iter().map(|gateway| self.gateway_step(gateway)));
            }
        }
        if self.conf.gateway {
            let learn = |addr| Step::LearnNeighbour { bridge: self.gateway_link(), addr, mac: self.pod_end().mac };
            steps.extend(self.addresses().into_iter().map(learn));
        }
        Ok(steps)
    }

    /// The network's table of guarded ports with the Pod's, where they are guarded.
    fn guard(&self) -> Result<Option<Ruleset>, CniError> {
        let ruleset = |mac| spoof::ruleset(&self.tag(), mac).ok_or_else(|| self.unnameable());
        self.guarded().map(ruleset).transpose()
    }

    /// The one hardware address that may send by the Pod's port, where it is guarded.
    #[must_use]
    pub(crate) fn guarded(&self) -> Option<MacAddr> {
        self.conf.spoof_guard.then(|| self.pod_end().mac)
    }

    fn tag(&self) -> Tag {
        Tag::own(self.network, self.attachment)
    }

    fn unnameable(&self) -> CniError {
        CniError::invalid_field("name", self.network, "a name that is short enough for an nft table")
    }

    /// The network's table of masquerade rules, where they are wanted.
    ///
    /// # Errors
    /// Code 7 for a network whose name nftables cannot hold.
    pub(crate) fn masquerade(&self) -> Result<Option<Ruleset>, CniError> {
        let Some(networks) = self.conf.masquerade.as_ref().filter(|_| !self.reservations.is_empty()) else {
            return Ok(None);
        };
        // Those of every range, not of this Pod's addresses: the table is one for all Pods of the network.
        let ranges = self.conf.ipam.iter().flat_map(|ipam| &ipam.sets).flat_map(RangeSet::ranges);
        let mut subnets: Vec<Prefix> = ranges.map(Range::subnet).collect();
        subnets.sort();
        subnets.dedup();
        masquerade::ruleset(self.network, &subnets, networks).map(Some).ok_or_else(|| self.unnameable())
    }

    /// What ADD answers when every step is done. `facts` are from before.
    ///
    /// # Errors
    /// As [`Attach::plan`].
    pub(crate) fn result(&self, facts: &Facts) -> Result<AddResult, CniError> {
        let bridge_mac = facts.bridge.as_ref().and_then(|bridge| bridge.mac);
        let mtu = Some(self.mtu());
        let host = |name: &IfName, mac| Interface { name: name.to_string(), mac, mtu, sandbox: None };
        let (veth, pod) = (self.host_end(), self.pod_end());
        let ip = |r: &Reservation| IpConfig { interface: Some(2), addr: r.addr, len: r.len, gateway: Some(r.gateway) };
        let dns = if self.conf.dns.is_empty() { self.resolver } else { &self.conf.dns };
        let mut interfaces = vec![
            host(&self.conf.bridge, bridge_mac.or_else(|| Some(self.bridge_mac()))),
            host(&veth.name, Some(veth.mac)),
            Interface { sandbox: Some(self.netns.to_owned()), ..host(&pod.name, Some(pod.mac)) },
        ];
        if self.gateway_vlan().is_some() {
            let gateway = self.gateway_end();
            let found = facts.vlan_link.as_ref().and_then(|link| link.mac);
            interfaces.push(host(&gateway.name, found.or(Some(gateway.mac))));
        }
        let redirected = self.bandwidth.as_ref().filter(|bandwidth| bandwidth.conf.send.is_some());
        interfaces.extend(redirected.map(|bandwidth| host(&bandwidth.ifb, Some(bandwidth.mac))));
        Ok(AddResult {
            interfaces,
            ips: self.reservations.iter().map(ip).collect(),
            routes: self.routes()?,
            dns: dns.clone(),
        })
    }
}

/// Six bytes that depend on every byte of `text` (FNV-1a): a bridge without addresses gets its hardware address so.
fn seed(text: &str) -> [u8; 6] {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let [_, _, bytes @ ..] = hash.to_be_bytes();
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::args::CniArgs;
    use crate::protocol::attachment::ContainerId;
    use crate::protocol::error::Code;
    use crate::protocol::fields::Fields;
    use crate::protocol::netconf::bridge::Defaults;
    use crate::protocol::netconf::{BandwidthConf, RuntimeConfig};
    use serde_json::{Value, json};

    pub(super) fn conf(value: Value) -> BridgeConf {
        let fields = Fields::of(value, "").unwrap();
        let defaults = Defaults { bridge: IfName::literal("cbr0"), lease: None };
        let conf = BridgeConf::parse(fields, defaults, &CniArgs::default(), &RuntimeConfig::default()).unwrap();
        let masquerade = conf.masquerade.map(|_| vec!["172.7.0.0/16".parse().unwrap()]);
        BridgeConf { is_leased: true, masquerade, ..conf }
    }

    fn stock() -> Value {
        json!({"isDefaultGateway": true, "hairpinMode": true, "mtu": 1450,
               "ipam": {"type": "host-local", "ranges": [[{"subnet": "172.7.21.0/24"}]], "routes": [{"dst": "172.7.0.0/16"}]}})
    }

    pub(super) fn reservation(addr: &str, len: u8, gateway: &str) -> Reservation {
        Reservation { addr: addr.parse().unwrap(), len, gateway: gateway.parse().unwrap() }
    }

    pub(super) fn with_attach<T>(
        conf: &BridgeConf,
        reservations: &[Reservation],
        work: impl FnOnce(&Attach<'_>) -> T,
    ) -> T {
        let attachment = Attachment::new(ContainerId::new("web-1").unwrap(), IfName::new("eth0").unwrap());
        let resolver = Dns::default();
        let (attachment, netns, network) = (&attachment, "/ns", "cbr0");
        work(&Attach {
            attachment,
            conf,
            reservations,
            resolver: &resolver,
            netns,
            network,
            ports: None,
            bandwidth: None,
        })
    }

    fn steps(conf: &BridgeConf, facts: &Facts) -> Result<Vec<String>, CniError> {
        let reservations = [reservation("172.7.21.2", 24, "172.7.21.1")];
        let steps = with_attach(conf, &reservations, |attach| attach.plan(facts))?;
        Ok(steps.iter().map(ToString::to_string).collect())
    }

    pub(super) fn bridge() -> BridgeState {
        BridgeState {
            index: 3,
            is_bridge: true,
            mtu: Some(1450),
            mac: Some("0a:58:ac:07:15:01".parse().unwrap()),
            up: true,
            operational: true,
            filters_vlans: false,
            addresses: vec![("172.7.21.1".parse().unwrap(), 24)],
        }
    }

    fn settled() -> Facts {
        Facts { bridge: Some(bridge()), forwards: PerFamily::new(true, false), ..Facts::default() }
    }

    const POD: [&str; 6] = [
        "create veth vethgn5ac9sfczt address 6e:84:74:94:ca:b5 master cbr0 mtu 1450 peer eth0 address 0a:58:ac:07:15:02",
        "set port vethgn5ac9sfczt hairpin on isolated off",
        "pod: set net/ipv4/conf/eth0/arp_notify=1",
        "pod: set eth0 up, address 172.7.21.2/24, route 172.7.0.0/16 metric 0 via 172.7.21.1 dev eth0 proto 3, \
         route 0.0.0.0/0 metric 0 via 172.7.21.1 dev eth0 proto 3",
        "await carrier of vethgn5ac9sfczt",
        "learn neighbour 172.7.21.2 lladdr 0a:58:ac:07:15:02 dev cbr0",
    ];

    #[test]
    fn on_a_settled_node_only_the_pods_own_objects_are_made() {
        assert_eq!(steps(&conf(stock()), &settled()).unwrap(), POD);
    }

    #[test]
    fn the_first_pod_of_a_node_brings_the_bridge() {
        let all = steps(&conf(stock()), &Facts::default()).unwrap();
        assert_eq!(
            all[..4],
            [
                "create bridge cbr0 address 0a:58:ac:07:15:01 mtu 1450",
                "set net/ipv6/conf/cbr0/accept_ra=0",
                "add address 172.7.21.1/24 dev cbr0",
                "set net/ipv4/ip_forward=1",
            ]
        );
        let mut rest = POD.to_vec();
        rest.insert(5, "await carrier of cbr0");
        assert_eq!(all[4..], rest);
        let asleep = Facts { bridge: Some(BridgeState { operational: false, ..bridge() }), ..settled() };
        rest.insert(6, "add address 172.7.21.1/24 dev cbr0");
        assert_eq!(steps(&conf(stock()), &asleep).unwrap(), rest, "taken back meanwhile, maybe");
    }

    #[test]
    fn a_bridge_is_set_only_where_it_differs() {
        let mut facts = settled();
        facts.bridge = Some(BridgeState { mtu: Some(1500), ..bridge() });
        assert_eq!(steps(&conf(stock()), &facts).unwrap()[0], "set bridge cbr0 up mtu 1450");
        facts.bridge = Some(BridgeState { up: false, ..bridge() });
        assert_eq!(steps(&conf(stock()), &facts).unwrap()[0], "set bridge cbr0 up");
        facts.bridge = Some(BridgeState { is_bridge: false, ..bridge() });
        let error = steps(&conf(stock()), &facts).unwrap_err();
        assert!(error.code == Code::InvalidConfig && error.msg.contains("is not a bridge"), "{error}");
    }

    #[test]
    fn a_foreign_address_gives_way_when_the_bridge_is_empty_or_by_force() {
        let mut facts = settled();
        facts.bridge = Some(BridgeState { addresses: vec![("172.7.33.1".parse().unwrap(), 24)], ..bridge() });
        let expected = ["delete address 172.7.33.1/24 dev cbr0", "add address 172.7.21.1/24 dev cbr0"];
        assert_eq!(steps(&conf(stock()), &facts).unwrap()[..2], expected);
        facts.surroundings.has_ports = true;
        assert_eq!(steps(&conf(stock()), &facts).unwrap_err().code, Code::InvalidConfig);
        let mut forced = stock();
        forced["forceAddress"] = json!(true);
        assert_eq!(steps(&conf(forced), &facts).unwrap()[..2], expected);
    }

    #[test]
    fn ipv6_addresses_conflict_only_when_their_subnets_overlap() {
        let reservations = [reservation("fd00:21::2", 64, "fd00:21::1")];
        let conf = conf(json!({"isGateway": true, "ipam": {"type": "host-local", "subnet": "fd00:21::/64"}}));
        let plan = |present: &str| {
            let addresses = vec![(present.parse().unwrap(), 64), ("10.0.0.1".parse().unwrap(), 24)];
            let mut facts = Facts { bridge: Some(BridgeState { addresses, ..bridge() }), ..Facts::default() };
            facts.surroundings.has_ports = true;
            with_attach(&conf, &reservations, |attach| attach.plan(&facts)).map(|steps| steps[0].to_string())
        };
        assert_eq!(plan("fd00:99::1").unwrap(), "add address fd00:21::1/64 dev cbr0");
        assert!(plan("fd00:21::99").is_err());
    }

    #[test]
    fn subnet_of_another_bridge_is_refused_by_name() {
        let mut facts = Facts::default();
        facts.surroundings.other_bridges = vec![(IfName::new("cni0").unwrap(), ("172.7.21.1".parse().unwrap(), 24))];
        let error = steps(&conf(stock()), &facts).unwrap_err();
        assert!(error.msg.contains("bridge cni0 already has 172.7.21.1/24"), "{error}");
    }

    #[test]
    fn layer_two_has_no_addresses_and_a_disabled_interface_stays_down() {
        let plan = |value: Value| {
            let conf = conf(value);
            with_attach(&conf, &[], |attach| attach.plan(&Facts { bridge: Some(bridge()), ..Facts::default() }))
                .unwrap()
        };
        let last = |value| plan(value).last().map(ToString::to_string).unwrap();
        assert!(last(json!({"mtu": 1450})).starts_with("await carrier of veth"));
        assert!(last(json!({"mtu": 1450, "disableContainerInterface": true})).starts_with("create veth"));
    }

    #[test]
    fn a_route_without_any_gateway_is_refused() {
        let mut value = stock();
        value["ipam"]["routes"] = json!([{"dst": "fd00::/48"}]);
        let error = steps(&conf(value), &settled()).unwrap_err();
        assert!(error.msg.contains("fd00::/48 has no gateway"), "{error}");
    }

    #[test]
    fn of_one_route_that_is_configured_twice_the_first_is_installed_unless_they_contradict() {
        let first = json!({"dst": "10.8.0.0/16", "mtu": 1400});
        for (second, count) in [
            (json!({"dst": "10.8.0.0/16", "mtu": 1400}), Some(1)),
            (json!({"dst": "10.8.0.0/16", "mtu": 1400, "gw": "172.7.21.1"}), Some(1)),
            (json!({"dst": "10.8.0.0/16", "mtu": 1400, "table": 254}), Some(1)),
            (json!({"dst": "10.8.0.0/16", "gw": "172.7.21.9"}), Some(2)),
            (json!({"dst": "10.8.0.0/16", "priority": 7}), Some(2)),
            (json!({"dst": "10.8.0.0/16", "table": 1000}), Some(2)),
            (json!({"dst": "10.8.0.0/16", "mtu": 1300}), None),
            (json!({"dst": "10.8.0.0/16", "mtu": 1400, "advmss": 1200, "gw": "172.7.21.1"}), None),
        ] {
            let mut value = stock();
            value["isDefaultGateway"] = json!(false);
            value["ipam"]["routes"] = json!([first, second]);
            let found =
                with_attach(&conf(value), &[reservation("172.7.21.2", 24, "172.7.21.1")], |attach| attach.routes());
            match count {
                Some(count) => assert_eq!(found.unwrap().len(), count, "{second}"),
                None => {
                    let error = found.unwrap_err().msg;
                    assert!(error.contains("ipam.routes") && error.contains("10.8.0.0/16 twice"), "{second}: {error}");
                }
            }
        }
    }

    #[test]
    fn each_option_brings_its_steps_in_their_place() {
        let first_words = |step: &String| step.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let usual = ["create veth", "pod: set", "pod: set", "await carrier", "learn neighbour"];
        let with = |key: &str, value: Value| {
            let mut value = json!({key: value});
            value["isGateway"] = json!(true);
            value["mtu"] = json!(1450);
            value["ipam"] = json!({"type": "host-local", "subnet": "172.7.21.0/24"});
            steps(&conf(value), &settled()).unwrap().iter().map(first_words).collect::<Vec<_>>()
        };
        assert_eq!(with("hairpinMode", json!(false)), usual);
        for (key, step, at) in [
            ("promiscMode", "set bridge", 0),
            ("macspoofchk", "guard the", 0),
            ("hairpinMode", "set port", 1),
            ("portIsolation", "set port", 1),
            ("ipMasq", "write nft", 1),
        ] {
            let mut expected = usual.to_vec();
            expected.insert(at, step);
            assert_eq!(with(key, json!(true)), expected, "{key}");
        }
    }

    #[test]
    fn ipv6_is_switched_on_and_probed_for_only_where_it_is_asked_for() {
        let v6 = json!({"type": "host-local", "subnet": "fd00:21::/64"});
        let v4 = json!({"type": "host-local", "subnet": "172.7.21.0/24"});
        let pod = |value: Value, reservation: Reservation| {
            let steps = with_attach(&conf(value), &[reservation], |attach| attach.plan(&settled())).unwrap();
            let texts = steps.iter().map(ToString::to_string).filter(|step| step.starts_with("pod: "));
            texts
                .filter(|step| !step.contains("eth0 up"))
                .map(|step| step["pod: ".len()..].to_owned())
                .collect::<Vec<_>>()
        };
        let on = [
            "set net/ipv6/conf/lo/disable_ipv6=0",
            "set net/ipv6/conf/eth0/disable_ipv6=0",
            "set net/ipv6/conf/eth0/keep_addr_on_down=1",
        ];
        assert_eq!(pod(json!({"ipam": v6}), reservation("fd00:21::2", 64, "fd00:21::1")), on);
        let probed = [
            "set net/ipv6/conf/eth0/enhanced_dad=1",
            "set net/ipv6/conf/eth0/accept_dad=1",
            "await duplicate address detection on eth0, fd00:21::2",
        ];
        let asked = pod(json!({"ipam": v6, "enabledad": true}), reservation("fd00:21::2", 64, "fd00:21::1"));
        assert_eq!(asked, [on, probed].concat());
        let of_v4 = pod(json!({"ipam": v4, "enabledad": true}), reservation("172.7.21.2", 24, "172.7.21.1"));
        assert_eq!(of_v4, ["set net/ipv4/conf/eth0/arp_notify=1"]);
    }

    #[test]
    fn default_route_is_added_for_each_family_that_has_none_in_the_main_table() {
        let both = [reservation("172.7.21.2", 24, "172.7.21.1"), reservation("fd00:21::2", 64, "fd00:21::1")];
        let routes = |configured: Value, reservations: &[Reservation]| {
            let conf = conf(json!({"isDefaultGateway": true, "ipam": {"type": "host-local", "routes": configured,
                "ranges": [[{"subnet": "172.7.21.0/24"}], [{"subnet": "fd00:21::/64"}]]}}));
            let routes = with_attach(&conf, reservations, |attach| attach.routes()).unwrap();
            let text = |r: &crate::protocol::result::ResultRoute| {
                format!("{} {}", r.dst, r.gw.map(|gw| gw.to_string()).unwrap_or_default())
            };
            routes.iter().map(text).collect::<Vec<_>>()
        };
        let (v4, v6) = ("0.0.0.0/0 172.7.21.1", "::/0 fd00:21::1");
        assert_eq!(routes(json!([]), &both), [v4, v6]);
        assert_eq!(routes(json!([]), &both[..1]), [v4]);
        assert_eq!(routes(json!([]), &both[1..]), [v6]);
        assert_eq!(routes(json!([{"dst": "::/0"}]), &both), ["::/0 ", v4]);
        assert_eq!(routes(json!([{"dst": "10.0.0.0/8"}]), &both), ["10.0.0.0/8 ", v4, v6]);
        assert_eq!(routes(json!([{"dst": "0.0.0.0/0", "table": 1000}]), &both), ["0.0.0.0/0 ", v4, v6]);
        assert_eq!(routes(json!([{"dst": "0.0.0.0/0", "table": 254}]), &both), ["0.0.0.0/0 ", v6]);
        assert_eq!(routes(json!([{"dst": "10.0.0.0/8"}, {"dst": "10.0.0.0/8"}]), &both), ["10.0.0.0/8 ", v4, v6]);
    }

    #[test]
    fn gateways_of_other_ranges_stay_and_strangers_stay_without_a_lease() {
        let two = json!({"isGateway": true, "ipam": {"type": "host-local",
            "ranges": [[{"subnet": "172.7.21.0/24"}, {"subnet": "172.7.22.0/24"}]]}});
        let at = |addr: &str| Facts {
            bridge: Some(BridgeState { addresses: vec![(addr.parse().unwrap(), 24)], ..bridge() }),
            ..settled()
        };
        let all = steps(&conf(two.clone()), &at("172.7.22.1")).unwrap();
        assert_eq!(all[0], "add address 172.7.21.1/24 dev cbr0");
        assert!(!all.iter().any(|step| step.starts_with("delete address")), "{all:?}");
        let unleased = BridgeConf { is_leased: false, ..conf(two) };
        let error = steps(&unleased, &at("172.7.33.1")).unwrap_err();
        assert!(error.msg.contains("already has an IP address different from 172.7.21.1/24: 172.7.33.1/24"), "{error}");
    }

    #[test]
    fn masquerade_names_each_subnet_once_and_none_without_addresses() {
        let halves = json!([[{"subnet": "172.7.21.0/24", "rangeEnd": "172.7.21.99"}],
            [{"subnet": "172.7.21.0/24", "rangeStart": "172.7.21.100"}, {"subnet": "172.7.20.0/24"}]]);
        let conf = conf(json!({"ipMasq": true, "ipam": {"type": "host-local", "ranges": halves}}));
        let one = [reservation("172.7.21.2", 24, "172.7.21.1")];
        let text = |reservations: &[Reservation]| {
            with_attach(&conf, reservations, |attach| attach.masquerade()).unwrap().map(|ruleset| ruleset.render())
        };
        let subnets = ["172.7.20.0/24", "172.7.21.0/24"].map(|subnet| subnet.parse().unwrap());
        let wanted = masquerade::ruleset("cbr0", &subnets, &["172.7.0.0/16".parse().unwrap()]).unwrap().render();
        assert_eq!((text(&one), text(&[])), (Some(wanted), None));
    }

    #[test]
    fn result_lists_bridge_host_end_and_pod_in_this_order_and_what_else_was_made() {
        let names = |value: Value, reservations: &[Reservation], send: bool| {
            let conf = conf(value);
            let result = with_attach(&conf, reservations, |attach| {
                let bucket = netstate::TokenBucket::new(1000, 1000).ok();
                let limits = BandwidthConf { receive: bucket, send: bucket.filter(|_| send) };
                let bandwidth = Bandwidth::new(limits, "cbr0", attach.attachment);
                Attach { bandwidth, ..attach.clone() }.result(&Facts::default())
            })
            .unwrap();
            assert!(result.ips.iter().all(|ip| ip.interface == Some(2)), "{result:?}");
            result
                .interfaces
                .iter()
                .map(|i| format!("{}{}", i.name, i.sandbox.as_deref().unwrap_or_default()))
                .collect::<Vec<_>>()
        };
        let pod = [reservation("172.7.21.2", 24, "172.7.21.1")];
        let usual = ["cbr0", "vethgn5ac9sfczt", "eth0/ns"];
        assert_eq!(names(stock(), &pod, false), usual);
        let mut vlan = stock();
        vlan["vlan"] = json!(100);
        assert_eq!(names(vlan, &pod, false), [&usual[..], &["cbr0.100"]].concat());
        assert_eq!(
            names(json!({"vlan": 100, "isGateway": true}), &[], false),
            usual,
            "nothing holds gateways without addresses"
        );
        assert_eq!(names(json!({"vlan": 100}), &pod, false), usual, "nor without isGateway");
        let device = crate::plan::bandwidth::ifb_name("cbr0", &ContainerId::new("web-1").unwrap()).unwrap();
        assert_eq!(names(stock(), &pod, true), [&usual[..], &[device.as_str()]].concat());
    }
}
