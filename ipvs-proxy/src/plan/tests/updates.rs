//! kube-proxy's tests of its maps of Services and endpoints, on plans: what is served before and after an update, and that nothing
//! else changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use netstate::IpFamily;
use serde_json::{Value, json};

use crate::object::service::Service;
use crate::object::slice::EndpointSlice;
use crate::plan::check::HealthCheck;
use crate::plan::here::Here;
use crate::plan::select::{Backend, Choice};
use crate::plan::{Claims, Delta, plan};

fn service(name: &str, spec: &Value, status: &Value) -> Service {
    let json = json!({"kind": "Service", "metadata": {"name": name}, "spec": spec, "status": status});
    Service::from_json(&json).unwrap()
}

fn put(claims: &mut Claims, service: &Service, slices: &[EndpointSlice]) -> Vec<Delta> {
    let planned = plan(service, &service.cluster_ips, slices, &Here::on("n1"));
    claims.settle(&service.name, Some(planned))
}

fn asked(service: &Service) -> Option<u16> {
    HealthCheck::of(service, [], &Here::on("n1")).map(|check| check.port)
}

/// TestBuildServiceMapAddRemove, TestBuildServiceMapServiceHeadless, TestBuildServiceMapServiceTypeExternalName.
#[test]
fn services_come_and_go_with_all_their_places() {
    let lb = |addr: &str| json!({"loadBalancer": {"ingress": [{"ip": addr}]}});
    let all = [
        service(
            "cluster-ip",
            &json!({"clusterIP": "172.16.55.4", "ports": [{"name": "something", "port": 1234, "protocol": "UDP"},
                {"name": "somethingelse", "port": 1235, "protocol": "UDP"}, {"name": "sctpport", "port": 1236, "protocol": "SCTP"}]}),
            &json!({}),
        ),
        service(
            "node-port",
            &json!({"type": "NodePort", "clusterIP": "172.16.55.10", "ports": [{"name": "blahblah", "port": 345, "nodePort": 30_345},
                {"name": "moreblahblah", "port": 344, "nodePort": 30_344}]}),
            &json!({}),
        ),
        service(
            "load-balancer",
            &json!({"type": "LoadBalancer", "clusterIP": "172.16.55.11", "ports": [{"name": "a", "port": 8675, "protocol": "UDP"},
                {"name": "b", "port": 8676, "protocol": "UDP"}]}),
            &lb("10.1.2.4"),
        ),
        service(
            "only-local-load-balancer",
            &json!({"type": "LoadBalancer", "clusterIP": "172.16.55.12", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30_999,
                "ports": [{"name": "a", "port": 8677, "protocol": "UDP"}, {"name": "b", "port": 8678, "protocol": "UDP"}]}),
            &lb("10.1.2.3"),
        ),
        service("headless", &json!({"clusterIP": "None", "ports": [{"name": "rpc", "port": 1235}]}), &json!({})),
        service(
            "external-name",
            &json!({"type": "ExternalName", "clusterIP": "172.16.55.4", "externalName": "foo2.bar.com", "ports": [{"port": 1235}]}),
            &json!({}),
        ),
    ];
    let mut claims = Claims::default();
    let added: usize = all.iter().map(|service| put(&mut claims, service, &[]).len()).sum();
    assert_eq!((added, claims.all().count()), (3 + 4 + 4 + 4, 15), "each port at each of its places");
    assert_eq!(all.iter().filter_map(asked).collect::<Vec<_>>(), [30_999]);
    let removed: usize = all[1..].iter().map(|service| claims.settle(&service.name, None).len()).sum();
    assert_eq!((removed, claims.all().count()), (12, 3));
}

/// TestBuildServiceMapServiceUpdate.
#[test]
fn a_service_that_changes_its_type_changes_its_places_and_one_that_changes_nothing_none() {
    let ports = json!([{"name": "something", "port": 1234, "protocol": "UDP", "nodePort": 5321},
        {"name": "somethingelse", "port": 1235, "protocol": "UDP", "nodePort": 7002}]);
    let cluster_ip = service(
        "svc1",
        &json!({"clusterIP": "172.16.55.4", "ports": [
        {"name": "something", "port": 1234, "protocol": "UDP"}, {"name": "somethingelse", "port": 1235, "protocol": "UDP"}]}),
        &json!({}),
    );
    let spec = json!({"type": "LoadBalancer", "clusterIP": "172.16.55.4", "ports": ports, "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 30_345});
    let balanced = service("svc1", &spec, &json!({"loadBalancer": {"ingress": [{"ip": "10.1.2.3"}]}}));
    let mut claims = Claims::default();
    for (service, changed, places, check) in [
        (&cluster_ip, 2, 2, None),
        (&balanced, 4, 6, Some(30_345)),
        (&balanced, 0, 6, Some(30_345)),
        (&cluster_ip, 4, 2, None),
    ] {
        assert_eq!(
            (put(&mut claims, service, &[]).len(), claims.all().count(), asked(service)),
            (changed, places, check)
        );
    }
}

/// Ports by name, and endpoints by the last number of their address and whether they are here.
type Slice = (&'static [(&'static str, u16)], &'static [(u8, bool)]);

/// A name, slices before and after, and the ports whose endpoints change.
type Case = (&'static str, &'static [Slice], &'static [Slice], &'static [&'static str]);

/// Test_updateEndpointsMap.
const CASES: [Case; 14] = [
    ("nothing", &[], &[], &[]),
    ("no change, named port, local", &[(&[("p11", 11)], &[(1, true)])], &[(&[("p11", 11)], &[(1, true)])], &[]),
    (
        "no change, two slices",
        &[(&[("p11", 11)], &[(1, false)]), (&[("p12", 12)], &[(2, false)])],
        &[(&[("p11", 11)], &[(1, false)]), (&[("p12", 12)], &[(2, false)])],
        &[],
    ),
    (
        "no change, two slices, several ports, local",
        &[(&[("p11", 11), ("p12", 12)], &[(1, true)]), (&[("p13", 13)], &[(3, false)])],
        &[(&[("p13", 13)], &[(3, false)]), (&[("p12", 12), ("p11", 11)], &[(1, true)])],
        &[],
    ),
    (
        "no change, several endpoints, slices and ports",
        &[
            (&[("p11", 11), ("p12", 12)], &[(1, false), (2, true)]),
            (&[("p13", 13), ("p14", 14)], &[(3, false), (4, true)]),
        ],
        &[
            (&[("p11", 11), ("p12", 12)], &[(2, true), (1, false)]),
            (&[("p13", 13), ("p14", 14)], &[(4, true), (3, false)]),
        ],
        &[],
    ),
    ("add a slice with an endpoint", &[], &[(&[("p11", 11)], &[(1, true)])], &["p11"]),
    ("remove it", &[(&[("p11", 11)], &[(1, true)])], &[], &["p11"]),
    (
        "add an address and a port",
        &[(&[("p11", 11)], &[(1, false)])],
        &[(&[("p11", 11), ("p12", 12)], &[(1, false), (2, true)])],
        &["p11", "p12"],
    ),
    (
        "remove an address and a port",
        &[(&[("p11", 11), ("p12", 12)], &[(1, false), (2, true)])],
        &[(&[("p11", 11)], &[(1, false)])],
        &["p11", "p12"],
    ),
    (
        "add a slice",
        &[(&[("p11", 11)], &[(1, false)])],
        &[(&[("p11", 11)], &[(1, false)]), (&[("p22", 22)], &[(2, true)])],
        &["p22"],
    ),
    (
        "remove a slice",
        &[(&[("p11", 11)], &[(1, false)]), (&[("p22", 22)], &[(2, false)])],
        &[(&[("p11", 11)], &[(1, false)])],
        &["p22"],
    ),
    ("rename a port", &[(&[("p11", 11)], &[(1, false)])], &[(&[("p11-2", 11)], &[(1, false)])], &["p11", "p11-2"]),
    ("renumber a port", &[(&[("p11", 11)], &[(1, false)])], &[(&[("p11", 22)], &[(1, false)])], &["p11"]),
    (
        "add and remove at once",
        &[(&[("p11", 11)], &[(1, false)]), (&[("p22", 22)], &[(2, true), (3, true)]), (&[("p44", 44)], &[(4, true)])],
        &[
            (&[("p11", 11)], &[(1, false), (11, false)]),
            (&[("p122", 122)], &[(2, false)]),
            (&[("p44", 44)], &[(4, true)]),
        ],
        &["p11", "p22", "p122"],
    ),
];

fn address((last, here): (u8, bool)) -> IpAddr {
    [10, 1, if here { 1 } else { 2 }, last].into()
}

fn read(slices: &[Slice]) -> Vec<EndpointSlice> {
    let read = |(number, (ports, endpoints)): (usize, &Slice)| {
        let ports: Vec<_> =
            ports.iter().map(|(name, port)| json!({"name": name, "port": port, "protocol": "UDP"})).collect();
        let node = |here| if here { "n1" } else { "n2" };
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|endpoint| json!({"addresses": [address(*endpoint)], "nodeName": node(endpoint.1)}))
            .collect();
        let metadata = json!({"name": format!("ep1-{number}"), "labels": {"kubernetes.io/service-name": "ep1"}});
        EndpointSlice::from_json(
            &json!({"kind": "EndpointSlice", "metadata": metadata, "addressType": "IPv4", "ports": ports,
            "endpoints": endpoints}),
        )
        .unwrap()
    };
    slices.iter().enumerate().map(read).collect()
}

/// The endpoints of a port by the slices, and those of them that are here.
fn expected(slices: &[Slice], name: &str) -> [BTreeSet<SocketAddr>; 2] {
    let of = |(ports, endpoints): &Slice| {
        let numbers: Vec<u16> = ports.iter().filter(|(other, _)| *other == name).map(|(_, port)| *port).collect();
        let at = |port| endpoints.iter().map(move |endpoint| (SocketAddr::new(address(*endpoint), port), endpoint.1));
        numbers.into_iter().flat_map(at).collect::<Vec<_>>()
    };
    let all: Vec<_> = slices.iter().flat_map(of).collect();
    [false, true].map(|only_here| all.iter().filter(|(_, here)| *here || !only_here).map(|(addr, _)| *addr).collect())
}

#[test]
fn endpoints_that_change_change_the_ports_that_have_them_and_no_others() {
    let addresses = |backends: &[Backend]| -> BTreeSet<SocketAddr> {
        backends.iter().map(|b| SocketAddr::new(b.addr, b.port)).collect()
    };
    for (name, before, after, changed) in CASES {
        let names: BTreeSet<&str> =
            before.iter().chain(after).flat_map(|(ports, _)| ports.iter()).map(|(name, _)| *name).collect();
        let numbers: BTreeMap<&str, u16> = names.iter().copied().zip(1000..).collect();
        let ports: Vec<_> = numbers
            .iter()
            .map(|(name, port)| json!({"name": name, "port": port, "protocol": "UDP", "nodePort": port + 29_000}))
            .collect();
        let spec =
            json!({"type": "NodePort", "clusterIP": "172.16.55.4", "externalTrafficPolicy": "Local", "ports": ports});
        let service = service("ep1", &spec, &json!({}));
        let mut claims = Claims::default();
        put(&mut claims, &service, &read(before));
        let deltas = put(&mut claims, &service, &read(after));
        let number = |delta: &Delta| if delta.key.port > 29_000 { delta.key.port - 29_000 } else { delta.key.port };
        let found: BTreeSet<u16> = deltas.iter().map(number).collect();
        assert_eq!(found, changed.iter().map(|name| numbers[name]).collect(), "{name}");
        for port in &service.ports {
            let choice = Choice::of(port, IpFamily::V4, &read(after), &Here::on("n1"));
            let found = [addresses(&choice.cluster), addresses(&choice.local)];
            assert_eq!(found, expected(after, &port.name), "{name}: {}", port.name);
        }
    }
}
