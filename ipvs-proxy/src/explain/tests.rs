//! What is said of plans and kernels made by hand: the whole text for some, the part that counts for many.

use std::collections::BTreeSet;
use std::net::IpAddr;

use cluster::Event;
use kernel::ipvs::Connections;
use kernel::query::Interface;
use netstate::family::PerFamily;
use netstate::ipvs::RealServer;
use netstate::nft::RowKey;
use netstate::{IfName, InterfaceAddress, IpFamily, Prefix};
use serde_json::{Value, json};

use super::report::Report;
use super::sites::{self, Site};
use super::text::text;
use crate::dataplane::{DataPlane, Guards, Mode, NodeAddresses, Options, vip};
use crate::facts::{Facts, Kernel, Planned, Server};
use crate::object::key::ObjectKey;
use crate::plan::here::Here;
use crate::plan::networks::Networks;
use crate::plan::pods::Pods;
use crate::source::update;
use crate::source::view::View;

pub(crate) const NFTABLES: Mode = Mode::Nftables;
pub(crate) const IPVS: Mode = Mode::Ipvs;

fn service(spec: Value) -> Value {
    json!({"kind": "Service", "metadata": {"name": "web"}, "spec": spec})
}

fn slice(endpoints: Value) -> Value {
    json!({"kind": "EndpointSlice", "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints,
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}})
}

/// A Service with a node port, and one endpoint on this node and one on another.
pub(crate) fn web() -> Vec<Value> {
    let endpoints =
        json!([{"addresses": ["172.7.21.2"], "nodeName": "n1"}, {"addresses": ["172.7.22.2"], "nodeName": "n2"}]);
    let ports = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
    vec![service(json!({"clusterIP": "192.168.0.10", "ports": ports})), slice(endpoints)]
}

fn view(objects: &[Value]) -> View {
    let mut view = View::default();
    for object in objects {
        let folder = if object["kind"] == "Service" { "services" } else { "endpointslices" };
        let key = format!("{folder}/default/{}", object["metadata"]["name"].as_str().unwrap());
        let put = Event::Put { key, value: object.to_string().into_bytes(), revision: 1 };
        view.take(update(put, ObjectKey::from_etcd, true).unwrap());
    }
    view
}

/// A node whose kernel holds what is planned.
pub(crate) fn node(mode: Mode, objects: &[Value]) -> Facts {
    node_with_local(mode, objects, &[])
}

/// The same with these networks to be local by routes, which are not there.
pub(crate) fn node_with_local(mode: Mode, objects: &[Value], networks: &[&str]) -> Facts {
    let local: Vec<Prefix> = networks.iter().map(|network| network.parse().unwrap()).collect();
    let network: Prefix = "172.7.0.0/16".parse().unwrap();
    let pods = PerFamily::only(IpFamily::V4, network);
    let link: IfName = vip::LINK_NAME.parse().unwrap();
    let options = Options {
        mode,
        link,
        scheduler: "rr".to_owned().into(),
        pods: Pods::inside(pods),
        services: PerFamily::default(),
        local: local.clone(),
        node: NodeAddresses::default(),
        announced: std::collections::BTreeSet::new(),
        guards: Guards::default(),
    };
    let plane = DataPlane::new(options);
    let services = PerFamily::only(IpFamily::V4, "192.168.0.0/16".parse().unwrap());
    let networks = Networks { pods, services, node: Vec::new() };
    let own = BTreeSet::from([[10, 4, 7, 21].into()]);
    let here = Here { addresses: own.clone(), node_port_addresses: own, ..Here::on("n1").with_pods([network]) };
    let view = view(objects);
    let planned = Planned::of(plane, &view, &here, &networks);
    let interface = |index, name: &str, addresses: Vec<InterfaceAddress>| Interface {
        index,
        name: name.parse().unwrap(),
        kind: String::new(),
        mtu: 1500,
        up: true,
        master: None,
        lower: None,
        addresses,
    };
    let own = vec![InterfaceAddress::lasting([10, 4, 7, 21].into(), 24)];
    let virtual_addresses = planned.addresses.iter().map(|addr| InterfaceAddress::lasting(*addr, 32)).collect();
    let interfaces = vec![interface(2, "eth0", own), interface(3, vip::LINK_NAME, virtual_addresses)];
    let mut kernel = Kernel { nft: planned.nft.clone(), interfaces, ..Kernel::default() };
    for (key, row) in &planned.ipvs {
        let reals = row.reals.iter().map(|(at, real)| (at, (real, Connections::default()))).collect();
        kernel.servers.insert(*key, Server { value: (*row.server).clone(), reals });
    }
    let scheduler = "rr".to_owned();
    Facts {
        silence: None,
        lost: None,
        view,
        here,
        remarks: Vec::new(),
        pods: vec![network],
        networks,
        scheduler,
        local,
        status: None,
        planned,
        kernel,
    }
}

fn sites(facts: &Facts, target: &str) -> Vec<Site> {
    sites::find(&target.parse().unwrap(), facts).unwrap()
}

fn report(facts: &Facts, target: &str, from: &str) -> Report {
    Report::of(facts, &sites(facts, target), Some(from.parse().unwrap()))
}

fn explained(facts: &Facts, target: &str, from: &str) -> String {
    text(&report(facts, target, from))
}

#[test]
fn a_place_that_is_served_by_nftables_is_explained_from_its_service_to_its_rows() {
    let mut objects = web();
    objects[1] = slice(json!([
        {"addresses": ["172.7.21.2"], "nodeName": "n1"},
        {"addresses": ["172.7.21.3"], "nodeName": "n1", "conditions": {"ready": false}},
        {"addresses": ["172.7.22.2"], "nodeName": "n2"}
    ]));
    let facts = node(NFTABLES, &objects);
    let found = report(&facts, "192.168.0.10:80", "172.7.21.5");
    assert!(found.is_well());
    assert_eq!(
        text(&found),
        "\
tcp 192.168.0.10:80 (mode nftables)
  service   default/web, clusterIP, port http
  policy    internalTrafficPolicy Cluster
  endpoint  172.7.21.2:8080 on this node, takes connections
  endpoint  172.7.21.3:8080 on this node, out: not ready
  endpoint  172.7.22.2:8080 on another node, takes connections
  from 172.7.21.5 (pod): to one of 172.7.21.2:8080, 172.7.22.2:8080, which sees the client's address
  row       in place    chain ip ipvs-proxy choose/2/2m/2m { ip saddr != 172.7.0.0/16 meta mark set meta mark | 0x00004000 dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @endpoints drop }
  row       in place    element ip ipvs-proxy @services { 192.168.0.10 . tcp . 80 } comment \"default/web\" : goto choose/2/2m/2m
  row       in place    element ip ipvs-proxy @vips { 192.168.0.10 }
  row       in place    list ip ipvs-proxy @endpoints { 192.168.0.10 . tcp . 80 } 0 : 172.7.21.2 . 8080, 1 : 172.7.22.2 . 8080
"
    );
}

#[test]
fn a_client_of_the_other_family_is_not_said_to_reach_a_place() {
    let facts = node(NFTABLES, &web());
    let reached = |from: &str| sites::within_reach(sites(&facts, "192.168.0.10:80"), Some(from.parse().unwrap()));
    assert_eq!(reached("172.7.21.5").unwrap().len(), 1);
    let refusal = reached("fd00:7::5").unwrap_err();
    assert_eq!(refusal, "--from fd00:7::5 and 192.168.0.10:80 are of different families: nothing is sent there");
    let both = ["192.168.0.10:80", "[fd00:96::10]:80"].iter().flat_map(|place| sites(&facts, place)).collect();
    let near = sites::within_reach(both, Some("fd00:7::5".parse().unwrap())).unwrap();
    assert_eq!(near.iter().map(|site| site.at.to_string()).collect::<Vec<_>>(), ["[fd00:96::10]:80"]);
}

/// The virtual server of `web` at its virtual address.
fn of_web(facts: &mut Facts) -> &mut Server {
    let servers = &mut facts.kernel.servers;
    let (_, server) = servers.iter_mut().find(|(key, _)| key.addr == IpAddr::from([192, 168, 0, 10])).unwrap();
    server
}

#[test]
fn a_place_that_is_served_by_ipvs_is_explained_with_its_servers_and_their_connections() {
    let mut facts = node(IPVS, &web());
    let server = of_web(&mut facts);
    let draining = (RealServer::new(0), Connections { active: 2, inactive: 1 });
    server.reals.insert("172.7.21.9:8080".parse().unwrap(), draining);
    let found = report(&facts, "192.168.0.10:80", "172.7.21.5");
    assert!(found.is_well());
    let all = text(&found);
    for line in [
        "from 172.7.21.5 (pod): to one of 172.7.21.2:8080, 172.7.22.2:8080, which sees the client's address",
        "in place    virtual server tcp 192.168.0.10:80 scheduler rr",
        "in place    real server 172.7.21.2:8080 weight 1, 0 active and 0 other connections",
        "draining    real server 172.7.21.9:8080 weight 0, 2 active and 1 other connections",
        "in place    address 192.168.0.10 on kube-ipvs0 local",
    ] {
        assert!(all.contains(line), "{line}\n{all}");
    }
    let outside = explained(&facts, "192.168.0.10:80", "198.51.100.7");
    assert!(outside.contains("172.7.22.2:8080, which sees this node's address"), "{outside}");
}

#[test]
fn annotations_of_a_service_are_explained_with_what_they_say() {
    let mut objects = spec(|spec| spec["sessionAffinity"] = json!("ClientIP"));
    objects[0]["metadata"]["annotations"] =
        json!({"ipvs-proxy/weights": "here=4", "ipvs-proxy/affinity-prefix": "ipv4=24"});
    let text = explained(&node(Mode::Ipvs, &objects), "192.168.0.10:80", "172.7.21.9");
    for line in [
        "  affinity  a client, all addresses of a network (ipv4=24), stays with its endpoint for 10800 s\n",
        "  weights   here=4,elsewhere=1\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn clients_are_explained_by_their_class_and_one_of_each_where_nobody_is_named() {
    let facts = node(NFTABLES, &web());
    let all = text(&Report::of(&facts, &sites(&facts, "default/web:http"), None));
    assert_eq!(all.matches("(mode nftables)").count(), 2, "{all}");
    for line in ["from 172.7.0.2 (pod)", "from 10.4.7.21 (node)", "from 203.0.113.1 (outside)"] {
        assert_eq!(all.matches(line).count(), 2, "{line}\n{all}");
    }
    assert!(all.contains("tcp 10.4.7.21:30080") && all.contains("default/web, node port, port http"), "{all}");
    let hairpin = explained(&facts, "192.168.0.10:80", "172.7.21.2");
    assert!(hairpin.contains("to 172.7.21.2:8080, which sees this node's address"), "{hairpin}");
    assert!(hairpin.contains("to 172.7.22.2:8080, which sees the client's address"), "{hairpin}");
}

#[test]
fn a_pod_of_another_node_that_comes_through_this_one_is_masqueraded_towards_itself_alone() {
    for mode in [NFTABLES, IPVS] {
        let text = explained(&node(mode, &web()), "192.168.0.10:80", "172.7.22.2");
        assert!(text.contains("to 172.7.22.2:8080, which sees this node's address"), "{text}");
        assert!(text.contains("to 172.7.21.2:8080, which sees the client's address"), "{text}");
    }
}

/// The objects of [`web`] with another specification.
pub(crate) fn spec(change: impl FnOnce(&mut Value)) -> Vec<Value> {
    let mut objects = web();
    change(&mut objects[0]["spec"]);
    objects
}

fn local(objects: &mut [Value], node: &str) {
    objects[0]["spec"]["externalTrafficPolicy"] = "Local".into();
    objects[1]["endpoints"] = json!([{"addresses": ["172.7.22.2"], "nodeName": node}]);
}

#[test]
fn every_refusal_drop_and_silence_has_its_reason() {
    let ready = |ready: bool| {
        vec![web().swap_remove(0), slice(json!([{"addresses": ["172.7.21.2"], "conditions": {"ready": ready}}]))]
    };
    let mut at_other = web();
    local(&mut at_other, "n2");
    let mut guarded = web();
    guarded[0]["spec"]["type"] = "LoadBalancer".into();
    guarded[0]["spec"]["loadBalancerSourceRanges"] = json!(["10.0.0.0/8"]);
    guarded[0]["status"] = json!({"loadBalancer": {"ingress": [{"ip": "10.4.7.99"}]}});
    let misnamed = spec(|spec| spec["ports"][0]["name"] = "web".into());
    let outside = spec(|spec| spec["clusterIP"] = "10.9.9.9".into());
    for (objects, target, from, parts) in [
        (
            ready(false),
            "192.168.0.10:80",
            "172.7.21.5",
            ["refused at once", "because none of the 1 endpoints takes connections"],
        ),
        (
            vec![web().swap_remove(0)],
            "192.168.0.10:80",
            "172.7.21.5",
            ["refused at once", "because the port has no endpoint"],
        ),
        (at_other, "10.4.7.21:30080", "198.51.100.7", ["dropped without an answer", "because the policy Local asks"]),
        (guarded, "10.4.7.99:80", "198.51.100.7", ["dropped", "loadBalancerSourceRanges let only 10.0.0.0/8 in"]),
        (misnamed, "192.168.0.10:80", "172.7.21.5", ["refused at once", "which no EndpointSlice has a port for"]),
        (outside, "10.9.9.9:80", "172.7.21.5", ["sent on by this node's routes", "is outside the Service network"]),
        (
            web(),
            "192.168.0.10:81",
            "172.7.21.5",
            ["refused at once", "services/default/web has the address and no such port; it has 80/tcp"],
        ),
        (
            web(),
            "192.168.0.11:80",
            "172.7.21.5",
            ["sent on by this node's routes", "no Service has this address and port"],
        ),
    ] {
        let facts = node(NFTABLES, &objects);
        let found = explained(&facts, target, from);
        assert!(!report(&facts, target, from).is_well(), "{found}");
        for part in parts {
            assert!(found.contains(part), "{part}\n{found}");
        }
    }
}

#[test]
fn what_the_kernel_does_wins_over_the_plan_and_each_row_that_differs_is_named() {
    let mut facts = node(NFTABLES, &web());
    let is_services = |key: &RowKey| matches!(key, RowKey::Element(element) if element.set.as_str() == "services");
    facts.kernel.nft.retain(|key, _| !is_services(key));
    let found = explained(&facts, "192.168.0.10:80", "172.7.21.5");
    for part in [
        "from 172.7.21.5 (pod): refused at once",
        "PLANNED to one of 172.7.21.2:8080, 172.7.22.2:8080",
        "because the kernel does not hold what is planned",
        "MISSING     element ip ipvs-proxy @services { 192.168.0.10 . tcp . 80 }",
    ] {
        assert!(found.contains(part), "{part}\n{found}");
    }
    let mut facts = node(IPVS, &web());
    let server = of_web(&mut facts);
    server.reals.remove(&"172.7.21.2:8080".parse().unwrap());
    server.reals.insert("172.7.66.6:80".parse().unwrap(), (RealServer::new(1), Connections::default()));
    let found = explained(&facts, "192.168.0.10:80", "172.7.21.5");
    for part in [
        "to one of 172.7.22.2:8080, 172.7.66.6:80, which",
        "MISSING     real server 172.7.21.2:8080 weight 1",
        "NOT PLANNED real server 172.7.66.6:80 weight 1",
    ] {
        assert!(found.contains(part), "{part}\n{found}");
    }
    let mut facts = node(IPVS, &web());
    of_web(&mut facts).reals.clear();
    let found = explained(&facts, "192.168.0.10:80", "172.7.21.5");
    assert!(found.contains("(pod): refused at once"), "{found}");
    let mut facts = node(NFTABLES, &web());
    facts.kernel.nft.clear();
    let found = explained(&facts, "192.168.0.10:80", "172.7.21.5");
    assert!(found.contains("MISSING     table ip ipvs-proxy"), "{found}");
}

#[test]
fn without_its_source_the_kernel_is_explained_alone() {
    for mode in [NFTABLES, IPVS] {
        let known = node(mode, &web());
        let mut facts = node(mode, &[]);
        facts.kernel = known.kernel;
        (facts.lost, facts.silence) =
            (Some("connection refused".to_owned()), Some("ipvs-proxy is not running".to_owned()));
        let found = explained(&facts, "192.168.0.10:80", "172.7.21.5");
        for part in [
            "note: ipvs-proxy is not running",
            "note: Services cannot be read, only the kernel is shown: connection refused",
            "service   default/web, of the kernel's rows",
            "to one of 172.7.21.2:8080, 172.7.22.2:8080",
        ] {
            assert!(found.contains(part), "{part}\n{found}");
        }
        assert!(
            !found.contains("NOT PLANNED") && !report(&facts, "192.168.0.10:80", "172.7.21.5").is_well(),
            "{found}"
        );
    }
}

#[test]
fn two_claims_to_one_place_are_said_and_a_service_that_nobody_serves_is_no_place() {
    let mut objects = web();
    let mut other = objects[0].clone();
    other["metadata"]["name"] = "other".into();
    objects.push(other);
    let facts = node(NFTABLES, &objects);
    let found = explained(&facts, "192.168.0.10:80", "172.7.21.5");
    assert!(found.contains("services/default/other claims it as well"), "{found}");
    let none =
        |objects: &[Value], target: &str| sites::find(&target.parse().unwrap(), &node(NFTABLES, objects)).unwrap_err();
    assert_eq!(none(&web(), "default/shop:80"), "there is no services/default/shop");
    assert_eq!(none(&web(), "default/web:81"), "services/default/web has no such port; it has 80/tcp");
    let headless = none(&spec(|spec| spec["clusterIP"] = "None".into()), "default/web");
    assert!(headless.contains("served by nobody"), "{headless}");
    let servers: BTreeSet<_> = sites(&facts, "default/web").iter().map(Site::server).collect();
    assert_eq!(servers.len(), 2);
}

#[test]
fn the_route_that_makes_an_address_local_is_a_row_of_it() {
    let mut facts = node_with_local(Mode::Ipvs, &web(), &["192.168.0.0/16"]);
    let said = explained(&facts, "192.168.0.10:80", "10.4.7.200");
    assert!(said.contains("route 192.168.0.0/16 metric 0 table 255") && said.contains("MISSING"), "{said}");
    assert!(!said.contains("address 192.168.0.10"), "{said}");
    facts.kernel.routes = facts.planned.plane.local_routes();
    let said = explained(&facts, "192.168.0.10:80", "10.4.7.200");
    assert!(said.contains("to one of 172.7.21.2:8080, 172.7.22.2:8080") && !said.contains("MISSING"), "{said}");
}
