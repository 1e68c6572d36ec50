//! CHECK: compares an attachment as ADD reported it with what is there.
//!
//! Pure: a list of differences, empty when all is well. What later plugins of the chain may have added is tolerated
//! (SPEC "CHECK"): only what the previous result promises is examined.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netstate::nft::{Element, ElementKey};
use netstate::{IfName, MacAddr, PortVlans, Prefix, Route, RouteKey};

use super::Cidr;
use super::hostports::keys;
use super::tag::ObservedTag;
use crate::protocol::attachment::Attachment;
use crate::protocol::result::{AddResult, Interface, ResultRoute};

/// A link as CHECK found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LinkFact {
    /// Interface index in its namespace.
    pub index: u32,
    /// Hardware address.
    pub mac: Option<MacAddr>,
    /// Up.
    pub up: bool,
    /// It receives frames for any hardware address.
    pub promiscuous: bool,
    /// It is a veth.
    pub is_veth: bool,
    /// It is a bridge.
    pub is_bridge: bool,
    /// Index of its master.
    pub master: Option<u32>,
    /// Index of its other end.
    pub peer: Option<u32>,
}

/// What CHECK found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The bridge.
    pub bridge: Option<LinkFact>,
    /// The host's end.
    pub host: Option<LinkFact>,
    /// The Pod's end.
    pub pod: Option<LinkFact>,
    /// VLANs that the host's end carries as a port.
    pub vlans: PortVlans,
    /// The link that holds the gateways of the Pod's VLAN.
    pub vlan_link: Option<LinkFact>,
    /// Addresses of the Pod's end.
    pub addresses: Vec<Cidr>,
    /// Routes of the Pod.
    pub routes: Vec<(RouteKey, Route)>,
    /// Addresses reserved for the attachment.
    pub reserved: Vec<IpAddr>,
    /// Elements of the network's tables of host ports and guarded ports.
    pub elements: BTreeMap<ElementKey, Element>,
}

/// What CHECK compares with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected<'a> {
    /// Which attachment.
    pub attachment: &'a Attachment,
    /// The bridge's name.
    pub bridge: &'a IfName,
    /// Path of the Pod's namespace.
    pub netns: &'a str,
    /// What ADD reported.
    pub result: &'a AddResult,
    /// Addresses come from our own reservations.
    pub has_ipam: bool,
    /// The Pod's end must be up.
    pub pod_up: bool,
    /// The bridge must receive frames for any hardware address; another network may want it where this one does not.
    pub promiscuous: bool,
    /// VLANs that the host's end must carry; none where the bridge does not look at them.
    pub vlans: &'a PortVlans,
    /// The link that must hold the gateways, where it is not the bridge.
    pub vlan_link: Option<&'a IfName>,
    /// Elements that its host ports and the guard of its own port need.
    pub elements: &'a BTreeMap<ElementKey, Element>,
}

impl Expected<'_> {
    /// The name of the host's end: the one this plugin gives, or for a Pod of the chain that ran here before us the
    /// one that the previous result says.
    #[must_use]
    pub(crate) fn host_link(&self) -> IfName {
        let ours = self.attachment.host_link();
        let mut on_host = self.result.interfaces.iter().filter(|i| i.sandbox.is_none());
        if on_host.clone().any(|i| i.name == ours.as_str()) {
            return ours.clone();
        }
        let foreign = on_host.find(|i| i.name != self.bridge.as_str());
        foreign.and_then(|i| IfName::new(i.name.clone()).ok()).unwrap_or_else(|| ours.clone())
    }
}

/// The differences, each as one sentence.
#[must_use]
pub(crate) fn differences(expected: &Expected<'_>, facts: &Facts) -> Vec<String> {
    let mut found = Vec::new();
    links(expected, facts, &mut found);
    vlans(expected, facts, &mut found);
    addresses(expected, facts, &mut found);
    routes(expected, facts, &mut found);
    found.extend(missing_elements(expected.elements, &facts.elements));
    found
}

/// Host ports that are not open, or lead elsewhere than to the container.
#[must_use]
pub(crate) fn missing_elements(
    expected: &BTreeMap<ElementKey, Element>,
    present: &BTreeMap<ElementKey, Element>,
) -> Vec<String> {
    // A later network of the same container has the port.
    let is_its = |element: &Element, other: &Element| {
        let (own, found) = (ObservedTag::of(element), ObservedTag::of(other));
        own.zip(found).is_some_and(|(own, found)| !own.is_same(&found) && own.shares_container(&found))
    };
    let is_missing = |(key, element): &(&ElementKey, &Element)| {
        let mut others = present.iter().filter(|(other, _)| keys::is_same_port(other, key));
        present.get(key) != Some(element) && !others.any(|(_, other)| is_its(element, other))
    };
    expected.iter().filter(is_missing).map(|(key, _)| format!("nft element {key} is missing or another's")).collect()
}

fn links(expected: &Expected<'_>, facts: &Facts, found: &mut Vec<String>) {
    let ifname = expected.attachment.ifname.as_str();
    let listed = |name: &str, sandbox: Option<&str>| {
        let same = |i: &&Interface| i.name == name && i.sandbox.as_deref() == sandbox;
        expected.result.interfaces.iter().find(same)
    };
    let pod = listed(ifname, Some(expected.netns));
    if pod.is_none() {
        found.push(format!("prevResult lists no interface {ifname} in {}", expected.netns));
    }
    let host_name = expected.host_link();
    let ends = [
        (expected.bridge.as_str(), "bridge", &facts.bridge, listed(expected.bridge.as_str(), None)),
        (host_name.as_str(), "host end", &facts.host, listed(host_name.as_str(), None)),
        (ifname, "interface", &facts.pod, pod),
    ];
    for (name, what, fact, reported) in ends {
        let Some(fact) = fact else {
            found.push(format!("{what} {name} is missing"));
            continue;
        };
        if let Some(mac) = reported.and_then(|r| r.mac).filter(|mac| fact.mac != Some(*mac)) {
            let now = fact.mac.map_or_else(|| "none".to_owned(), |mac| mac.to_string());
            found.push(format!("{what} {name} has hardware address {now} instead of {mac}"));
        }
        if !fact.up && (expected.pod_up || what != "interface") {
            found.push(format!("{what} {name} is down"));
        }
    }
    let (Some(bridge), Some(host), Some(pod)) = (&facts.bridge, &facts.host, &facts.pod) else { return };
    if !bridge.is_bridge {
        found.push(format!("link {} is not a bridge", expected.bridge));
    }
    if expected.promiscuous && !bridge.promiscuous {
        found.push(format!("bridge {} is not in promiscuous mode (promiscMode)", expected.bridge));
    }
    if host.master != Some(bridge.index) {
        found.push(format!("host end {host_name} is not a port of bridge {}", expected.bridge));
    }
    if !pod.is_veth || pod.peer != Some(host.index) || host.peer != Some(pod.index) {
        found.push(format!("interface {ifname} is not the other end of {host_name}"));
    }
}

fn vlans(expected: &Expected<'_>, facts: &Facts, found: &mut Vec<String>) {
    let missing = expected.vlans.0.iter().filter(|(id, mode)| facts.vlans.0.get(id) != Some(mode));
    let missing = PortVlans(missing.map(|(id, mode)| (*id, *mode)).collect());
    if !missing.0.is_empty() {
        found.push(format!("host end {} lacks VLANs: {missing}", expected.host_link()));
    }
    let Some(name) = expected.vlan_link else { return };
    match &facts.vlan_link {
        None => found.push(format!("VLAN link {name} is missing")),
        Some(link) if !link.up => found.push(format!("VLAN link {name} is down")),
        Some(_) => {}
    }
}

fn addresses(expected: &Expected<'_>, facts: &Facts, found: &mut Vec<String>) {
    for ip in expected.result.ips_of(&expected.attachment.ifname) {
        if !facts.addresses.contains(&(ip.addr, ip.len)) {
            found.push(format!("address {}/{} is missing on {}", ip.addr, ip.len, expected.attachment.ifname));
        }
        if expected.has_ipam && !facts.reserved.contains(&ip.addr) {
            found.push(format!("address {} is not reserved for this container", ip.addr));
        }
    }
}

fn routes(expected: &Expected<'_>, facts: &Facts, found: &mut Vec<String>) {
    let subnets =
        expected.result.ips_of(&expected.attachment.ifname).filter_map(|ip| Prefix::new(ip.addr, ip.len).ok());
    let connected = subnets.map(|subnet| ResultRoute::to(subnet, None));
    for wanted in connected.chain(expected.result.routes.iter().cloned()) {
        if !facts.routes.iter().any(|row| is_route(row, &wanted)) {
            let via = wanted.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
            let finer =
                [("table", wanted.table), ("metric", wanted.priority), ("mtu", wanted.mtu), ("advmss", wanted.advmss)];
            let finer = finer.iter().filter_map(|(what, value)| value.map(|value| format!(" {what} {value}")));
            found.push(format!("route {}{via}{} is missing", wanted.dst, finer.collect::<String>()));
        }
    }
}

/// True when the row is the route that `wanted` promises; what it leaves open may be anything.
fn is_route((key, route): &(RouteKey, Route), wanted: &ResultRoute) -> bool {
    let same = |wanted: Option<u32>, found: Option<u32>| wanted.is_none() || wanted == found;
    key.dst == wanted.dst
        && (wanted.gw.is_none() || route.via == wanted.gw)
        && same(wanted.table, Some(key.table))
        && same(wanted.priority, Some(key.metric))
        && same(wanted.mtu, route.metrics.mtu)
        && same(wanted.advmss, route.metrics.advmss)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::attachment::ContainerId;
    use crate::protocol::result;
    use netstate::{RouteKind, RouteMetrics, RouteScope, VlanMode};
    use serde_json::json;

    fn attachment() -> Attachment {
        Attachment::new(ContainerId::new("c1").unwrap(), IfName::new("eth0").unwrap())
    }

    fn reported() -> AddResult {
        let host = attachment().host_link().to_string();
        result::parse(json!({
            "interfaces": [{"name": "cbr0", "mac": "0a:58:ac:07:15:01"}, {"name": host, "mac": "02:00:00:00:00:02"},
                           {"name": "eth0", "mac": "0a:58:ac:07:15:02", "sandbox": "/ns"}],
            "ips": [{"interface": 2, "address": "172.7.21.2/24", "gateway": "172.7.21.1"}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "172.7.21.1"}, {"dst": "172.7.0.0/16"}]}))
        .unwrap()
    }

    fn route(dst: &str, via: Option<&str>) -> (RouteKey, Route) {
        let via = via.map(|via| via.parse().unwrap());
        let key = RouteKey { table: 254, dst: dst.parse().unwrap(), metric: 0 };
        let (kind, scope) = (RouteKind::Unicast, RouteScope::Universe);
        (
            key,
            Route {
                kind,
                via,
                link: None,
                onlink: false,
                src: None,
                scope,
                protocol: 3,
                metrics: RouteMetrics::default(),
            },
        )
    }

    fn whole() -> Facts {
        let link = |index, mac: &str, master, peer, is_bridge: bool| LinkFact {
            index,
            mac: Some(mac.parse().unwrap()),
            up: true,
            promiscuous: is_bridge,
            is_veth: !is_bridge,
            is_bridge,
            master,
            peer,
        };
        Facts {
            bridge: Some(link(3, "0a:58:ac:07:15:01", None, None, true)),
            host: Some(link(4, "02:00:00:00:00:02", Some(3), Some(2), false)),
            pod: Some(link(2, "0a:58:ac:07:15:02", None, Some(4), false)),
            vlans: PortVlans([(1, VlanMode::Native), (100, VlanMode::Tagged), (101, VlanMode::Tagged)].into()),
            vlan_link: Some(link(5, "02:00:00:00:00:05", None, Some(6), false)),
            addresses: vec![("172.7.21.2".parse().unwrap(), 24)],
            routes: vec![
                route("0.0.0.0/0", Some("172.7.21.1")),
                route("172.7.0.0/16", Some("172.7.21.1")),
                route("172.7.21.0/24", None),
            ],
            reserved: vec!["172.7.21.2".parse().unwrap()],
            elements: BTreeMap::new(),
        }
    }

    fn check(facts: &Facts) -> Vec<String> {
        check_with(facts, &reported(), |_| ())
    }

    fn check_with(facts: &Facts, result: &AddResult, change: fn(&mut Expected<'_>)) -> Vec<String> {
        let (attachment, bridge) = (attachment(), IfName::new("cbr0").unwrap());
        let elements = BTreeMap::new();
        let vlans = PortVlans([(1, VlanMode::Native), (100, VlanMode::Tagged)].into());
        let vlan_link = IfName::new("cbr0.100").unwrap();
        let mut expected = Expected {
            attachment: &attachment,
            bridge: &bridge,
            netns: "/ns",
            result,
            has_ipam: true,
            pod_up: true,
            promiscuous: true,
            vlans: &vlans,
            vlan_link: Some(&vlan_link),
            elements: &elements,
        };
        change(&mut expected);
        differences(&expected, facts)
    }

    #[test]
    fn whole_attachment_has_no_difference() {
        assert_eq!(check(&whole()), Vec::<String>::new());
    }

    #[test]
    fn additions_of_later_plugins_are_tolerated() {
        let mut facts = whole();
        facts.addresses.push(("10.9.9.9".parse().unwrap(), 32));
        facts.routes.push(route("10.9.0.0/16", None));
        assert_eq!(check(&facts), Vec::<String>::new());
    }

    #[test]
    fn each_damage_is_reported_in_its_own_words() {
        type Damage = fn(&mut Facts);
        let cases: [(Damage, &str); 19] = [
            (|f| f.bridge = None, "bridge cbr0 is missing"),
            (|f| f.host = None, "host end"),
            (|f| f.pod = None, "interface eth0 is missing"),
            (|f| f.pod.as_mut().unwrap().up = false, "interface eth0 is down"),
            (|f| f.pod.as_mut().unwrap().mac = None, "hardware address none instead of 0a:58:ac:07:15:02"),
            (|f| f.host.as_mut().unwrap().master = None, "is not a port of bridge cbr0"),
            (|f| f.host.as_mut().unwrap().peer = Some(9), "is not the other end of"),
            (|f| f.pod.as_mut().unwrap().peer = Some(9), "interface eth0 is not the other end of"),
            (|f| f.pod.as_mut().unwrap().is_veth = false, "interface eth0 is not the other end of"),
            (|f| f.host.as_mut().unwrap().up = false, " is down"),
            (|f| f.bridge.as_mut().unwrap().up = false, "bridge cbr0 is down"),
            (|f| f.bridge.as_mut().unwrap().is_bridge = false, "link cbr0 is not a bridge"),
            (|f| f.bridge.as_mut().unwrap().promiscuous = false, "bridge cbr0 is not in promiscuous mode"),
            (|f| f.vlans.0.retain(|id, _| *id != 100), "lacks VLANs: 100 tagged"),
            (|f| f.vlan_link = None, "VLAN link cbr0.100 is missing"),
            (|f| f.vlan_link.as_mut().unwrap().up = false, "VLAN link cbr0.100 is down"),
            (|f| f.addresses.clear(), "address 172.7.21.2/24 is missing on eth0"),
            (|f| f.reserved.clear(), "address 172.7.21.2 is not reserved"),
            (|f| _ = f.routes.remove(0), "route 0.0.0.0/0 via 172.7.21.1 is missing"),
        ];
        for (damage, text) in cases {
            let mut facts = whole();
            damage(&mut facts);
            let found = check(&facts);
            assert!(found.len() == 1 && found[0].contains(text), "{found:?} should say {text}");
        }
    }
    #[test]
    fn what_nobody_asked_for_is_no_difference() {
        let result = reported();
        let mut facts = whole();
        facts.pod.as_mut().unwrap().up = false;
        assert_eq!(check_with(&facts, &result, |e| e.pod_up = false), Vec::<String>::new());
        facts.host.as_mut().unwrap().up = false;
        let found = check_with(&facts, &result, |e| e.pod_up = false);
        assert!(found.len() == 1 && found[0].starts_with("host end ") && found[0].ends_with(" is down"), "{found:?}");
        let mut facts = whole();
        facts.bridge.as_mut().unwrap().promiscuous = false;
        assert_eq!(check_with(&facts, &result, |e| e.promiscuous = false), Vec::<String>::new());
        facts.bridge.as_mut().unwrap().promiscuous = true;
        facts.reserved.clear();
        assert_eq!(check_with(&facts, &result, |e| e.has_ipam = false), Vec::<String>::new());
        facts.vlan_link = None;
        assert_eq!(check_with(&facts, &result, |e| (e.has_ipam, e.vlan_link) = (false, None)), Vec::<String>::new());
    }

    #[test]
    fn route_is_there_when_all_that_was_reported_of_it_is() {
        type Change = fn(&mut (RouteKey, Route));
        type LeaveOpen = fn(&mut ResultRoute);
        let changes: [(Change, LeaveOpen, &str); 5] = [
            (|row| row.1.via = None, |wanted| wanted.gw = None, " via 172.7.21.9"),
            (|row| row.0.table = 254, |wanted| wanted.table = None, " table 1000"),
            (|row| row.0.metric = 8, |wanted| wanted.priority = None, " metric 7"),
            (|row| row.1.metrics.mtu = None, |wanted| wanted.mtu = None, " mtu 1280"),
            (|row| row.1.metrics.advmss = Some(9), |wanted| wanted.advmss = None, " advmss 1200"),
        ];
        let wanted = result::parse(json!({"routes": [{"dst": "10.8.0.0/16", "gw": "172.7.21.9", "table": 1000,
            "priority": 7, "mtu": 1280, "advmss": 1200}]}));
        let wanted = wanted.unwrap().routes.remove(0);
        let mut there = route("10.8.0.0/16", Some("172.7.21.9"));
        (there.0.table, there.0.metric) = (1000, 7);
        there.1.metrics = RouteMetrics { mtu: Some(1280), advmss: Some(1200) };
        assert!(is_route(&there, &wanted) && !is_route(&route("10.8.0.0/17", Some("172.7.21.9")), &wanted));
        for (change, leave_open, words) in changes {
            let (mut row, mut open, mut result) = (there.clone(), wanted.clone(), reported());
            change(&mut row);
            leave_open(&mut open);
            assert!(!is_route(&row, &wanted) && is_route(&row, &open) && is_route(&there, &open), "{words}");
            let mut facts = whole();
            facts.routes.push(row);
            result.routes.push(wanted.clone());
            let found = check_with(&facts, &result, |_| ());
            assert!(found.len() == 1 && found[0].contains(words) && found[0].ends_with(" is missing"), "{found:?}");
        }
    }

    #[test]
    fn host_end_is_the_own_one_or_the_one_that_the_predecessor_reported() {
        let named = |names: &[(&str, Option<&str>)]| {
            let (attachment, bridge, mut result) = (attachment(), IfName::new("cbr0").unwrap(), reported());
            let interface = |(name, sandbox): &(&str, Option<&str>)| Interface {
                name: (*name).to_owned(),
                sandbox: sandbox.map(str::to_owned),
                ..Interface::default()
            };
            result.interfaces = names.iter().map(interface).collect();
            let (vlans, elements) = (PortVlans::default(), BTreeMap::new());
            let expected = Expected {
                attachment: &attachment,
                bridge: &bridge,
                netns: "/ns",
                result: &result,
                has_ipam: true,
                pod_up: true,
                promiscuous: false,
                vlans: &vlans,
                vlan_link: None,
                elements: &elements,
            };
            expected.host_link().to_string()
        };
        let own = attachment().host_link().to_string();
        let pod = ("eth0", Some("/ns"));
        for (names, expected) in [
            (vec![("cbr0", None), ("veth0badcafe", None), pod], "veth0badcafe"),
            (vec![("cbr0", None), ("bwp0", None), (&own, None), pod], &own),
            (vec![pod, ("cbr0", None)], &own),
            (vec![], &own),
        ] {
            assert_eq!(named(&names), expected, "{names:?}");
        }
    }

    #[test]
    fn previous_result_must_list_the_interface_in_this_namespace() {
        let mut result = reported();
        result.interfaces[2].sandbox = Some("/other".to_owned());
        let found = check_with(&whole(), &result, |_| ());
        assert_eq!(found[0], "prevResult lists no interface eth0 in /ns");
        // The address of another name is not looked at either.
        result.interfaces[2] = Interface { name: "net1".to_owned(), ..reported().interfaces[2].clone() };
        assert_eq!(check_with(&whole(), &result, |_| ())[0], "prevResult lists no interface eth0 in /ns");
    }

    #[test]
    fn element_that_is_missing_or_says_something_else_is_a_difference() {
        let tag = crate::plan::tag::Tag::own("cbr0", &attachment());
        let wanted = crate::plan::spoof::ruleset(&tag, MacAddr([2, 0, 0, 0, 0, 1])).unwrap().elements;
        assert_eq!(missing_elements(&wanted, &wanted), Vec::<String>::new());
        let mut present = wanted.clone();
        let (key, _) = present.pop_first().unwrap();
        let words = [format!("nft element {key} is missing or another's")];
        assert_eq!(missing_elements(&wanted, &present), words);
        present.insert(key, Element::member().comment("another's".to_owned()));
        assert_eq!(missing_elements(&wanted, &present), words);
    }
}
