//! What becomes of the first packet of a connection, on either data path. kube-proxy's table of who reaches whom and is masqueraded
//! (TestInternalExternalMasquerade) is one test for both.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netstate::ipvs::VirtualServerKey;
use netstate::nft::{CtState, Match, Name, Op, Row, RowKey, Statement, Verdict};
use netstate::{IpFamily, Protocol};
use serde_json::{Value, json};

use super::super::*;
use super::model::{Fate, Kernel, UPLINK};
use crate::object::slice::EndpointSlice;
use crate::plan::here::Here;
use crate::plan::pods::Pods;
use crate::plan::{Claims, plan};

const LOCAL: [&str; 2] = ["172.7.21.2", "fd07:21::2"];
const REMOTE: [&str; 2] = ["172.7.22.2", "fd07:22::2"];
pub(super) const NODE: [&str; 2] = ["10.4.7.21", "fd04:7::21"];
/// The node's networks: its own, and others inside the Service networks.
const NETWORKS: [&str; 4] = ["10.4.7.21/24", "fd04:7::21/64", "192.168.122.1/24", "fd09::f00/120"];

/// The places of the Service of [`served`], of a family.
pub(super) fn places_of(family: IpFamily) -> [(&'static str, VirtualServerKey); 3] {
    let v = usize::from(!family.is_v4());
    let at = |addr: [&str; 2], port| VirtualServerKey { protocol: Protocol::Tcp, addr: addr[v].parse().unwrap(), port };
    [
        ("ClusterIP", at(["192.168.0.10", "fd09::10"], 80)),
        ("NodePort", at(NODE, 30_080)),
        ("LB", at(["10.4.7.99", "fd04:7::99"], 80)),
    ]
}

/// Both families, without addresses of the node.
pub(super) fn options(mode: Mode) -> Options {
    Options {
        services: PerFamily::new("192.168.0.0/16".parse().ok(), "fd09::/108".parse().ok()),
        mode,
        link: IfName::new(vip::LINK_NAME).unwrap(),
        scheduler: "rr".to_owned().into(),
        pods: Pods::inside(PerFamily::new("172.7.0.0/16".parse().ok(), "fd07::/16".parse().ok())),
        local: Vec::new(),
        node: NodeAddresses::default(),
        announced: std::collections::BTreeSet::new(),
        guards: Guards::default(),
    }
}

/// A Service of every kind on a node, with what `spec` adds and these endpoints.
fn served(mode: Mode, spec: &Value, endpoints: &[[&str; 2]], here: impl Fn(Here) -> Here) -> Kernel {
    served_under(options(mode), spec, endpoints, here)
}

/// The same under these options.
pub(super) fn served_under(
    options: Options,
    spec: &Value,
    endpoints: &[[&str; 2]],
    here: impl Fn(Here) -> Here,
) -> Kernel {
    let mut service = json!({"kind": "Service", "metadata": {"name": "web"}, "spec": {
        "type": "LoadBalancer", "clusterIP": "192.168.0.10", "clusterIPs": ["192.168.0.10", "fd09::10"],
        "ports": [{"port": 80, "nodePort": 30_080}],
    }, "status": {"loadBalancer": {"ingress": [{"ip": "10.4.7.99"}, {"ip": "fd04:7::99"}]}}});
    for (key, value) in spec.as_object().unwrap() {
        service["spec"][key] = value.clone();
    }
    let slice = |v: usize| {
        let node = |endpoint: &&[&str; 2]| if LOCAL.contains(&endpoint[0]) { "n1" } else { "n2" };
        let of = |endpoint: &[&str; 2]| json!({"addresses": [endpoint[v]], "nodeName": node(&endpoint)});
        let endpoints: Vec<_> = endpoints.iter().map(of).collect();
        let labels = json!({"kubernetes.io/service-name": "web"});
        json!({"kind": "EndpointSlice", "metadata": {"name": format!("web-{v}"), "labels": labels},
            "addressType": (["IPv4", "IPv6"][v]), "ports": [{"port": 8080}], "endpoints": endpoints})
    };
    kernel_under(options, &service, &[slice(0), slice(1)], here)
}

/// The rows of a Service with these slices on a node that is `here`.
pub(super) fn kernel(mode: Mode, service: &Value, slices: &[Value], here: impl Fn(Here) -> Here) -> Kernel {
    kernel_under(options(mode), service, slices, here)
}

fn kernel_under(options: Options, service: &Value, slices: &[Value], here: impl Fn(Here) -> Here) -> Kernel {
    let own: BTreeSet<IpAddr> = NODE.iter().map(|addr| addr.parse().unwrap()).collect();
    let pods = PerFamily::new("172.7.0.0/16".parse().ok(), "fd07::/16".parse().ok());
    let service = Service::from_json(service).unwrap();
    let slices: Vec<_> = slices.iter().map(|slice| EndpointSlice::from_json(slice).unwrap()).collect();
    let primary = PerFamily::new(NODE[0].parse().ok(), NODE[1].parse().ok());
    let node = Here::on("n1").with_pods([pods.v4.unwrap(), pods.v6.unwrap()]);
    let here = here(Here { addresses: own, primary, ..node });
    let planned = plan(&service, &service.cluster_ips, &slices, &here);
    let networks = NETWORKS.map(|network| network.parse().unwrap()).into();
    let uplinks = PerFamily::from_fn(|_| UPLINK.parse().ok());
    let own = here.addresses.clone();
    let node = NodeAddresses { node_ports: own.clone(), networks, uplinks, ..NodeAddresses::from(&here) };
    let options = Options { pods: here.pods.clone(), ..options };
    let (mut plane, mut kernel) = (DataPlane::new(options), Kernel { own, ..Kernel::default() });
    kernel.nft.extend(plane.tables());
    // The node's addresses are known last: rows do not depend on the order.
    let mut claims = Claims::default();
    kernel.take(plane.rows(&claims.settle(&service.name, Some(planned))));
    kernel.take(plane.set_node(node, claims.all()));
    kernel
}

pub(super) const BOTH: [[&str; 2]; 2] = [LOCAL, REMOTE];
const CLIENTS: [(&str, [&str; 2]); 3] =
    [("pod", ["172.7.21.50", "fd07:21::50"]), ("node", NODE), ("external", ["10.4.7.200", "fd04:7::200"])];

/// kube-proxy's table: for a client the endpoints and M where it is masqueraded, at ClusterIP, NodePort and LB.
type Line = (&'static str, [&'static str; 3]);

fn lines(kernel: &Kernel, family: IpFamily) -> Vec<(String, [String; 3])> {
    let v = usize::from(!family.is_v4());
    let word = |from: &str, (_, to): &(&str, VirtualServerKey)| match kernel.fate(from.parse().unwrap(), to) {
        Fate::Led(endpoints, masqueraded) => {
            let which = match endpoints.len() {
                2 => "all",
                _ if endpoints.contains(&LOCAL[v].parse().unwrap()) => "local",
                _ => "remote",
            };
            format!("{which}{}", if masqueraded { " M" } else { "" })
        }
        other => format!("{other:?}").to_lowercase(),
    };
    let line = |(name, from): &(&str, [&str; 2])| {
        ((*name).to_owned(), places_of(family).each_ref().map(|place| word(from[v], place)))
    };
    CLIENTS.iter().map(line).collect()
}

fn ensure(spec: &Value, endpoints: &[[&str; 2]], here: impl Fn(Here) -> Here + Copy, expected: [Line; 3]) {
    let expected: Vec<_> =
        expected.iter().map(|(name, words)| ((*name).to_owned(), words.map(str::to_owned))).collect();
    for mode in [Mode::Ipvs, Mode::Nftables] {
        let kernel = served(mode, spec, endpoints, here);
        for family in IpFamily::ALL {
            assert_eq!(lines(&kernel, family), expected, "{spec} {endpoints:?} on {mode:?}, {family}");
        }
    }
}

#[test]
fn who_reaches_whom_and_is_masqueraded_is_kube_proxys_table_on_both_data_paths() {
    let cluster = [("pod", ["all", "all M", "all M"]), ("node", ["all M"; 3]), ("external", ["all M"; 3])];
    ensure(&json!({}), &BOTH, |here| here, cluster);
    let external = [("pod", ["all"; 3]), ("node", ["all M"; 3]), ("external", ["all M", "local", "local"])];
    ensure(&json!({"externalTrafficPolicy": "Local"}), &BOTH, |here| here, external);
    let internal = [
        ("pod", ["local", "all M", "all M"]),
        ("node", ["local M", "all M", "all M"]),
        ("external", ["local M", "all M", "all M"]),
    ];
    ensure(&json!({"internalTrafficPolicy": "Local"}), &BOTH, |here| here, internal);
}

#[test]
fn the_table_with_every_client_masqueraded() {
    let all = |here: Here| Here { masquerade_all: true, ..here };
    let cluster = [("pod", ["all M"; 3]), ("node", ["all M"; 3]), ("external", ["all M"; 3])];
    ensure(&json!({}), &BOTH, all, cluster);
    let external =
        [("pod", ["all M", "all", "all"]), ("node", ["all M"; 3]), ("external", ["all M", "local", "local"])];
    ensure(&json!({"externalTrafficPolicy": "Local"}), &BOTH, all, external);
}

/// With IPVS the node connects from the virtual address, which leads nowhere back.
#[test]
fn the_table_where_nobody_is_known_for_a_pod() {
    let nobody = |here: Here| Here { pods: PerFamily::from_fn(|_| Some(Pods::Unknown)), ..here };
    for (mode, node) in [(Mode::Ipvs, "all M"), (Mode::Nftables, "all")] {
        for (policy, outside) in [("Cluster", "all M"), ("Local", "local")] {
            let kernel = served(mode, &json!({"externalTrafficPolicy": policy}), &BOTH, nobody);
            for family in IpFamily::ALL {
                let [pod, node_line, external] = &lines(&kernel, family)[..] else { panic!("three clients") };
                assert_eq!(pod.1, ["all", outside, outside], "{mode:?} {policy} {family}");
                assert_eq!(node_line.1, [node, "all M", "all M"], "{mode:?} {policy} {family}");
                assert_eq!(external.1, ["all", outside, outside], "{mode:?} {policy} {family}");
            }
        }
    }
}

#[test]
fn without_an_endpoint_here_the_policy_local_drops_and_without_any_everybody_is_refused() {
    let external =
        [("pod", ["remote"; 3]), ("node", ["remote M"; 3]), ("external", ["remote M", "dropped", "dropped"])];
    ensure(&json!({"externalTrafficPolicy": "Local"}), &[REMOTE], |here| here, external);
    let kernel = served(Mode::Ipvs, &json!({"externalTrafficPolicy": "Local"}), &[REMOTE], |here| here);
    let reals: Vec<_> = kernel.ipvs[&places_of(IpFamily::V4)[2].1].reals.iter().map(|(at, _)| at.to_string()).collect();
    assert_eq!(reals, [format!("{}:8080", REMOTE[0])], "a scheduler chooses for those who are not dropped");
    let internal = [
        ("pod", ["dropped", "remote M", "remote M"]),
        ("node", ["dropped", "remote M", "remote M"]),
        ("external", ["dropped", "remote M", "remote M"]),
    ];
    ensure(&json!({"internalTrafficPolicy": "Local"}), &[REMOTE], |here| here, internal);
    for policy in ["Cluster", "Local"] {
        let refused = [("pod", ["refused"; 3]), ("node", ["refused"; 3]), ("external", ["refused"; 3])];
        let spec = json!({"externalTrafficPolicy": policy, "internalTrafficPolicy": policy});
        ensure(&spec, &[], |here| here, refused);
    }
}

#[test]
fn who_is_not_listed_is_dropped_at_the_load_balancer_only() {
    let spec = json!({"loadBalancerSourceRanges": ["10.4.7.200/32", "fd04:7::200/128"]});
    let listed = [
        ("pod", ["all", "all M", "dropped"]),
        ("node", ["all M", "all M", "dropped"]),
        ("external", ["all M", "all M", "all M"]),
    ];
    ensure(&spec, &BOTH, |here| here, listed);
    // A node that is listed comes from the address that it connects to, where that is its own.
    let spec = json!({"loadBalancerSourceRanges": ["10.4.7.0/24"]});
    let kernel = served(Mode::Ipvs, &spec, &BOTH, |here| here);
    let (_, lb) = places_of(IpFamily::V4)[2];
    assert!(matches!(kernel.fate(lb.addr, &lb), Fate::Led(..)));
    let kernel = served(Mode::Ipvs, &json!({"loadBalancerSourceRanges": ["10.5.0.0/24"]}), &BOTH, |here| here);
    assert_eq!(kernel.fate(lb.addr, &lb), Fate::Dropped);
}

#[test]
fn an_external_address_that_the_node_has_is_led_at_its_ports_only() {
    for mode in [Mode::Ipvs, Mode::Nftables] {
        let kernel = served(mode, &json!({"externalIPs": [NODE[0]]}), &BOTH, |here| here);
        let at = |port| VirtualServerKey { protocol: Protocol::Tcp, addr: NODE[0].parse().unwrap(), port };
        let from = "10.4.7.200".parse().unwrap();
        assert!(matches!(kernel.fate(from, &at(80)), Fate::Led(..)), "{mode:?}");
        assert_eq!(kernel.fate(from, &at(22)), Fate::Passes, "{mode:?}: a process of the node");
        assert!(!kernel.has(IpFamily::V4, "vips", vec![at(80).addr.into()]), "{mode:?}");
    }
}

/// A port that nobody serves at an address that a router sends here: nftables has not the address, IPVS has.
#[test]
fn what_would_leave_again_by_the_uplink_that_it_came_by_is_dropped_at_external_addresses() {
    for (family, v) in IpFamily::ALL.into_iter().zip(0..) {
        let fates = |mode: Mode| {
            let kernel = served(mode, &json!({}), &BOTH, |here| here);
            let (_, lb) = places_of(family)[2];
            let to = VirtualServerKey { port: 22, ..lb };
            CLIENTS.map(|(_, from)| kernel.fate(from[v].parse().unwrap(), &to))
        };
        assert_eq!(
            fates(Mode::Nftables),
            [Fate::Passes, Fate::Passes, Fate::Dropped],
            "{family}: somebody else's, or round"
        );
        assert_eq!(fates(Mode::Ipvs), [const { Fate::Refused }; 3], "{family}");
    }
}

#[test]
fn what_comes_from_elsewhere_to_loopback_is_dropped_unless_that_is_left_to_others() {
    let to = VirtualServerKey { protocol: Protocol::Tcp, addr: "127.0.0.1".parse().unwrap(), port: 10_249 };
    for (loopback, others) in [(true, Fate::Dropped), (false, Fate::Passes)] {
        let mut kernel = served(Mode::Nftables, &json!({}), &BOTH, |here| here);
        kernel.own.insert(to.addr);
        let guards = Guards { loopback, ..Guards::default() };
        kernel.nft.extend(DataPlane::new(Options { guards, ..options(Mode::Nftables) }).tables());
        let fates = CLIENTS.map(|(_, from)| kernel.fate(from[0].parse().unwrap(), &to));
        assert_eq!(fates, [others.clone(), Fate::Passes, others], "a Pod, this node, anybody");
    }
}

#[test]
fn packets_of_no_connection_are_dropped_behind_ipvs_unless_tracking_is_liberal() {
    for (invalid, family) in [true, false].into_iter().flat_map(|invalid| IpFamily::ALL.map(|family| (invalid, family)))
    {
        let guards = Guards { invalid, ..Guards::default() };
        let plane = DataPlane::new(Options { guards, ..options(Mode::Ipvs) });
        let tables: BTreeMap<_, _> = plane.tables().collect();
        let Row::Table(table) = &tables[&RowKey::Table(nft::table_key(family))] else { panic!("no table") };
        let chain = &table.chains[&Name::literal("refuse-forward")];
        let last = chain.rules.last().map(|rule| rule.statements.clone()).unwrap_or_default();
        let of_none = [
            Statement::Match(Match::CtState(CtState::INVALID)),
            Statement::Match(Match::SaddrLocal(Op::IsNot)),
            Statement::Verdict(Verdict::Drop),
        ];
        assert_eq!(last == of_none, invalid, "{family}: {last:?}");
        assert!(chain.base.as_ref().is_some_and(|base| base.priority > 100), "{family}: IPVS translates before");
    }
}

#[test]
fn what_goes_to_an_address_of_the_service_network_that_no_service_has_is_dropped_unless_others_have_it() {
    for (mode, v) in [Mode::Ipvs, Mode::Nftables].into_iter().flat_map(|mode| [(mode, 0), (mode, 1)]) {
        let kernel = served(mode, &json!({}), &BOTH, |here| here);
        let fate = |addr: [&str; 2], port| {
            let to = VirtualServerKey { protocol: Protocol::Udp, addr: addr[v].parse().unwrap(), port };
            CLIENTS.map(|(_, from)| kernel.fate(from[v].parse().unwrap(), &to))
        };
        assert_eq!(fate(["192.168.7.200", "fd09::7:200"], 53), [const { Fate::Dropped }; 3], "{mode:?}");
        assert_eq!(fate(["192.168.0.10", "fd09::10"], 53), [const { Fate::Refused }; 3], "{mode:?}: a live address");
        assert_eq!(fate(["192.168.122.7", "fd09::f07"], 53), [const { Fate::Passes }; 3], "{mode:?}: another network");
        assert_eq!(fate(["192.167.0.1", "fd0a::1"], 53), [const { Fate::Passes }; 3], "{mode:?}: outside");
    }
}

#[test]
fn nothing_is_dropped_where_the_service_network_is_unknown_or_all_others() {
    let options = |services: Option<&str>, network: &str| {
        let mut options = Options {
            mode: Mode::Nftables,
            link: IfName::new(vip::LINK_NAME).unwrap(),
            scheduler: "rr".to_owned().into(),
            pods: Pods::inside(PerFamily::only(IpFamily::V4, "172.7.0.0/16".parse().unwrap())),
            services: PerFamily::default(),
            local: Vec::new(),
            node: NodeAddresses::default(),
            announced: std::collections::BTreeSet::new(),
            guards: Guards::default(),
        };
        options.services.v4 = services.map(|services| services.parse().unwrap());
        options.node.networks.insert(network.parse().unwrap());
        options
    };
    let of = |options: &Options| nftables::unallocated::Unallocated::of(IpFamily::V4, options);
    assert!(of(&options(None, "10.4.7.0/24")).is_empty());
    assert!(of(&options(Some("192.168.0.0/16"), "192.160.0.0/12")).is_empty());
    assert!(of(&options(Some("172.7.8.0/24"), "10.4.7.0/24")).is_empty(), "Pods have it");
    assert_eq!(of(&options(Some("192.168.0.0/16"), "10.4.7.0/24")).len(), 1);
    let networks = ["10.96.0.0/16", "10.97.0.0/16", "fd09::/108"].map(|network| network.parse().unwrap());
    let announced = |services| Options { announced: networks.into(), ..options(services, "10.4.7.0/24") };
    assert_eq!(of(&announced(None)).len(), 2, "both that the API server announces");
    assert_eq!(of(&announced(Some("192.168.0.0/16"))), of(&options(Some("192.168.0.0/16"), "10.4.7.0/24")));
}
