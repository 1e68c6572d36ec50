//! Plans in, rows out: what the rows of a frontend are, and that they depend on nothing else.

mod local;
mod model;
mod packets;
mod table;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use netstate::family::PerFamily;
use netstate::{IpFamily, Protocol};
use proptest::prelude::*;

use super::*;
use crate::object::ObjectName;
use crate::object::service::{Policy, Sources};
use crate::plan::claims::{Conflict, Reason};
use crate::plan::frontend::{Kind, Place};
use crate::plan::here::Here;
use crate::plan::pods::Pods;
use crate::plan::route::Routes;
use crate::plan::select::{Backend, Choice, Locality};
use crate::plan::{Claims, Frontend, FrontendKey, ServicePlan};

/// Plans and rows together, as the program holds them.
struct Desired {
    claims: Claims,
    plane: DataPlane,
}

impl Desired {
    fn new() -> Self {
        Self { claims: Claims::default(), plane: plane(Mode::Ipvs) }
    }

    fn set(&mut self, service: &ObjectName, plan: Option<ServicePlan>) -> Changes {
        let deltas = self.claims.settle(service, plan);
        self.plane.rows(&deltas)
    }
}

/// No frontends; the Pods of IPv4 are known.
pub(super) fn plane(mode: Mode) -> DataPlane {
    let pods = PerFamily::only(IpFamily::V4, "172.7.0.0/16".parse().unwrap());
    let services = PerFamily::only(IpFamily::V4, "192.168.0.0/16".parse().unwrap());
    let link = IfName::new(vip::LINK_NAME).unwrap();
    DataPlane::new(Options {
        mode,
        link,
        scheduler: "rr".to_owned().into(),
        pods: Pods::inside(pods),
        services,
        local: Vec::new(),
        node: NodeAddresses::default(),
        announced: std::collections::BTreeSet::new(),
        guards: Guards::default(),
    })
}

fn key(last: u8, port: u16) -> FrontendKey {
    FrontendKey { protocol: Protocol::Tcp, place: Place::Address([192, 168, 0, last].into()), port }
}

fn frontend(owner: &str, pods: &[u8]) -> Frontend {
    let backend =
        |last: &u8| Backend { addr: IpAddr::from([172, 7, 21, *last]), port: 80, weight: 1, locality: Locality::Here };
    let cluster = pods.iter().map(backend).collect::<BTreeSet<_>>().into_iter().collect::<Arc<[_]>>();
    let choice = Choice { any: !cluster.is_empty(), local: Arc::clone(&cluster), cluster };
    Frontend {
        kind: Kind::ClusterIp,
        owner: name(owner),
        affinity: None,
        scheduler: None,
        sources: Sources::Any,
        routes: Routes::internal((Policy::Cluster, IpFamily::V4), &choice, &Here::on("hdss7-21.host.com")),
    }
}

fn service(created: &str, frontends: &[(FrontendKey, &[u8])], owner: &str) -> Option<ServicePlan> {
    let frontends = frontends.iter().map(|(key, pods)| (*key, frontend(owner, pods))).collect();
    Some(ServicePlan::new(created.to_owned(), frontends))
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn text(changes: &Changes) -> Vec<String> {
    let sign = |there: bool| if there { '+' } else { '-' };
    let nft = changes.nft.iter().map(|(row, value)| format!("{} {row}", sign(value.is_some())));
    let ipvs = changes.ipvs.iter().map(|(key, row)| {
        let reals = row.iter().flat_map(|row| row.reals.iter()).map(|(at, _)| at.to_string());
        std::iter::once(format!("{} {key}", sign(row.is_some()))).chain(reals).collect::<Vec<_>>().join(" ")
    });
    let addresses = changes.addresses.iter().map(|(row, value)| format!("{} {row}", sign(value.is_some())));
    nft.chain(ipvs).chain(addresses).collect()
}

#[test]
fn a_new_service_brings_elements_servers_and_its_address() {
    let mut desired = Desired::new();
    let changes = desired.set(&name("web"), service("", &[(key(10, 80), &[2, 3])], "web"));
    assert_eq!(
        text(&changes),
        [
            "+ chain ip ipvs-proxy choose/ipvs/ipvsm/ipvsm",
            "+ element ip ipvs-proxy @hairpin { 172.7.21.2 . 172.7.21.2 }",
            "+ element ip ipvs-proxy @hairpin { 172.7.21.3 . 172.7.21.3 }",
            "+ element ip ipvs-proxy @record { 192.168.0.10 . tcp . 80 }",
            "+ element ip ipvs-proxy @services { 192.168.0.10 . tcp . 80 }",
            "+ element ip ipvs-proxy @vips { 192.168.0.10 }",
            "+ tcp 192.168.0.10:80 172.7.21.2:80 172.7.21.3:80",
            "+ 192.168.0.10/32 dev kube-ipvs0",
        ]
    );
    assert!(desired.set(&name("web"), service("", &[(key(10, 80), &[2, 3])], "web")).is_empty());
}

#[test]
fn one_changed_endpoint_changes_its_rows_only() {
    let mut desired = Desired::new();
    for last in 1..100 {
        let plan = service("", &[(key(last, 80), &[2, 3])], "x");
        desired.set(&name(&format!("s{last}")), plan);
    }
    let changes = desired.set(&name("s7"), service("", &[(key(7, 80), &[2])], "x"));
    assert_eq!(text(&changes), ["+ tcp 192.168.0.7:80 172.7.21.2:80"]);
    let changes = desired.set(&name("s7"), service("", &[(key(7, 80), &[2, 9])], "x"));
    assert_eq!(
        text(&changes),
        [
            "+ element ip ipvs-proxy @hairpin { 172.7.21.9 . 172.7.21.9 }",
            "+ tcp 192.168.0.7:80 172.7.21.2:80 172.7.21.9:80"
        ]
    );
}

#[test]
fn an_address_stays_as_long_as_one_port_needs_it() {
    let mut desired = Desired::new();
    desired.set(&name("web"), service("", &[(key(10, 80), &[]), (key(10, 443), &[])], "x"));
    let changes = desired.set(&name("web"), service("", &[(key(10, 443), &[])], "x"));
    assert_eq!(
        text(&changes),
        ["- element ip ipvs-proxy @record { 192.168.0.10 . tcp . 80 }", "- tcp 192.168.0.10:80"]
    );
    let changes = desired.set(&name("web"), None);
    assert!(text(&changes).contains(&"- 192.168.0.10/32 dev kube-ipvs0".to_owned()));
}

#[test]
fn the_oldest_service_has_the_address_and_the_next_takes_over() {
    let (old, young) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    let mut desired = Desired::new();
    desired.set(&name("young"), service(young, &[(key(10, 80), &[3])], "young"));
    let changes = desired.set(&name("old"), service(old, &[(key(10, 80), &[2])], "old"));
    assert!(text(&changes).contains(&"+ tcp 192.168.0.10:80 172.7.21.2:80".to_owned()));
    let conflict = Conflict { key: key(10, 80), served: name("old"), refused: name("young"), reason: Reason::Age };
    assert_eq!(desired.claims.conflicts().collect::<Vec<_>>(), [conflict]);
    let changes = desired.set(&name("old"), None);
    assert!(text(&changes).contains(&"+ tcp 192.168.0.10:80 172.7.21.3:80".to_owned()));
    assert!(desired.claims.conflicts().next().is_none());
}

/// The addresses of the node become these; node ports are at all of them.
fn node(desired: &mut Desired, addresses: &[[u8; 4]]) -> Changes {
    let own: BTreeSet<IpAddr> = addresses.iter().map(|addr| IpAddr::from(*addr)).collect();
    desired
        .plane
        .set_node(NodeAddresses { node_ports: own.clone(), own, ..NodeAddresses::default() }, desired.claims.all())
}

fn exposed(kind: Kind, place: Place, port: u16) -> Option<ServicePlan> {
    let key = FrontendKey { protocol: Protocol::Tcp, place, port };
    let frontend = Frontend { kind, ..frontend("web", &[2]) };
    Some(ServicePlan::new(String::new(), BTreeMap::from([(key, frontend)])))
}

#[test]
fn a_node_port_has_a_virtual_server_at_each_address_of_the_node() {
    let mut desired = Desired::new();
    node(&mut desired, &[[10, 4, 7, 21]]);
    let changes = desired.set(&name("web"), exposed(Kind::NodePort, Place::AnyNode(IpFamily::V4), 30_080));
    let text_of = |changes: &Changes| -> Vec<String> {
        text(changes).into_iter().filter(|line| !line.contains("hairpin") && !line.contains("chain")).collect()
    };
    let rows = [
        "+ element ip ipvs-proxy @node-ports { tcp . 30080 }",
        "+ element ip ipvs-proxy @record { 10.4.7.21 . tcp . 30080 }",
        "+ tcp 10.4.7.21:30080 172.7.21.2:80",
    ];
    assert_eq!(text_of(&changes), rows, "the node's address is not ours to give");
    let changes = node(&mut desired, &[[10, 4, 7, 22]]);
    assert_eq!(
        text_of(&changes),
        [
            "- element ip ipvs-proxy @node-port-addresses { 10.4.7.21 }",
            "+ element ip ipvs-proxy @node-port-addresses { 10.4.7.22 }",
            "- element ip ipvs-proxy @record { 10.4.7.21 . tcp . 30080 }",
            "+ element ip ipvs-proxy @record { 10.4.7.22 . tcp . 30080 }",
            "- tcp 10.4.7.21:30080",
            "+ tcp 10.4.7.22:30080 172.7.21.2:80",
        ]
    );
    assert!(node(&mut desired, &[[10, 4, 7, 22]]).is_empty());
}

#[test]
fn an_external_address_is_bound_unless_the_node_has_it() {
    let mut desired = Desired::new();
    let external = Place::Address([10, 4, 7, 99].into());
    let changes = desired.set(&name("web"), exposed(Kind::External, external, 80));
    let bound = "10.4.7.99/32 dev kube-ipvs0";
    assert!(text(&changes).contains(&format!("+ {bound}")), "{:?}", text(&changes));
    let changes = text(&node(&mut desired, &[[10, 4, 7, 99]]));
    let sets = ["vips", "external"].map(|set| format!("element ip ipvs-proxy @{set} {{ 10.4.7.99 }}"));
    for row in [bound, &sets[0], &sets[1], "tcp 10.4.7.99:80"] {
        assert!(changes.contains(&format!("- {row}")), "{row}: {changes:?}");
    }
    assert!(changes.contains(&"+ list ip ipvs-proxy @endpoints { 10.4.7.99 . tcp . 80 }".to_owned()));
    let changes = text(&node(&mut desired, &[]));
    assert!(changes.contains(&format!("+ {bound}")), "{changes:?}");
}

#[test]
fn a_virtual_address_that_the_node_has_too_keeps_its_virtual_server_and_is_bound() {
    let mut desired = Desired::new();
    let changes = desired.set(&name("dns"), service("", &[(key(10, 53), &[2])], "dns"));
    let bound = "+ 192.168.0.10/32 dev kube-ipvs0".to_owned();
    assert!(text(&changes).contains(&bound), "{:?}", text(&changes));
    let changes = node(&mut desired, &[[192, 168, 0, 10]]);
    assert_eq!(text(&changes), ["+ element ip ipvs-proxy @node-port-addresses { 192.168.0.10 }"]);
}

#[test]
fn who_may_connect_follows_the_address_that_the_node_connects_from() {
    let mut desired = Desired::new();
    let (place, listed) = (Place::Address([10, 4, 7, 99].into()), "10.4.7.0/24".parse().unwrap());
    let only = Frontend { sources: Sources::Only([listed].into()), kind: Kind::LoadBalancer, ..frontend("web", &[2]) };
    let at = FrontendKey { protocol: Protocol::Tcp, place, port: 80 };
    desired.set(&name("web"), Some(ServicePlan::new(String::new(), BTreeMap::from([(at, only)]))));
    desired.set(&name("api"), service("", &[(key(10, 80), &[3])], "api"));
    let mut from = |addr: [u8; 4]| {
        let primary = PerFamily::only(IpFamily::V4, addr.into());
        text(&desired.plane.set_node(NodeAddresses { primary, ..NodeAddresses::default() }, desired.claims.all()))
    };
    let chain = ["+ chain ip ipvs-proxy sources/10.4.7.99/tcp/80"];
    assert_eq!(from([10, 4, 7, 21]), chain, "the node with the address of the load balancer itself");
    assert_eq!(from([10, 4, 7, 22]), [""; 0]);
    assert_eq!(from([10, 5, 7, 21]), chain);
}

#[test]
fn networks_that_are_announced_later_are_known_in_the_tables() {
    let options = Options { services: PerFamily::default(), ..plane(Mode::Ipvs).options };
    let mut plane = DataPlane::new(options);
    let announced = || BTreeSet::from(["192.168.0.0/16".parse().unwrap()]);
    assert_eq!(text(&plane.set_announced(announced())), ["+ table ip ipvs-proxy"]);
    assert!(plane.set_announced(announced()).is_empty());
}

type Op = (u8, Option<(bool, Vec<(u8, Vec<u8>)>)>);

fn op() -> impl Strategy<Value = Op> {
    let frontends = prop::collection::vec((0u8..4, prop::collection::vec(0u8..4, 0..3)), 0..3);
    (0u8..4, prop::option::of((any::<bool>(), frontends)))
}

fn apply(desired: &mut Desired, (who, plan): &Op) -> Changes {
    let plan = plan.as_ref().map(|(dated, frontends)| {
        let created = if *dated { format!("2026-01-0{who}") } else { String::new() };
        let frontend = |(last, pods): &(u8, Vec<u8>)| (key(*last, 80), frontend(&who.to_string(), pods));
        ServicePlan::new(created, frontends.iter().map(frontend).collect())
    });
    desired.set(&name(&who.to_string()), plan)
}

fn fold<K: Ord + Clone, V: Clone>(rows: &mut BTreeMap<K, V>, changes: &BTreeMap<K, Option<V>>) {
    for (key, value) in changes {
        match value {
            Some(value) => rows.insert(key.clone(), value.clone()),
            None => rows.remove(key),
        };
    }
}

proptest! {
    /// Rows after any history equal the rows of the final plans put in at once, in whatever order.
    #[test]
    fn rows_depend_on_the_plans_and_not_on_their_history(ops in prop::collection::vec(op(), 0..30)) {
        let mut desired = Desired::new();
        let (mut nft, mut ipvs, mut addresses) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for op in &ops {
            let changes = apply(&mut desired, op);
            fold(&mut nft, &changes.nft);
            fold(&mut ipvs, &changes.ipvs);
            fold(&mut addresses, &changes.addresses);
        }
        let last: BTreeMap<u8, &Op> = ops.iter().map(|op| (op.0, op)).collect();
        let mut fresh = Desired::new();
        let (mut nft2, mut ipvs2, mut addresses2) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for op in last.values().rev() {
            let changes = apply(&mut fresh, op);
            fold(&mut nft2, &changes.nft);
            fold(&mut ipvs2, &changes.ipvs);
            fold(&mut addresses2, &changes.addresses);
        }
        prop_assert_eq!(nft, nft2);
        prop_assert_eq!(ipvs, ipvs2);
        prop_assert_eq!(addresses, addresses2);
        prop_assert!(desired.claims.conflicts().eq(fresh.claims.conflicts()));
    }
}
