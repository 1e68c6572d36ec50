//! Frontends in, rows out: the tables as the nft tool prints them, what a change costs, and that rows depend on nothing else.

mod affinity;

use std::collections::BTreeSet;
use std::sync::Arc;

use netstate::nft::{Chain, Ruleset};
use netstate::{IpFamily, Protocol};
use proptest::prelude::*;

use super::dispatch::Dispatch;
use super::observed::remembered;
use super::*;
use crate::dataplane::nft::{EXTERNAL, VIPS};
use crate::dataplane::{self, DataPlane, Mode};
use crate::object::ObjectName;
use crate::object::service::{Policy, Sources};
use crate::plan::frontend::{Affinity, Kind};
use crate::plan::here::Here;
use crate::plan::pods::Pods;
use crate::plan::route::Routes;
use crate::plan::select::{Backend, Choice, Locality};
use crate::plan::{Claims, Delta, Frontend, FrontendKey, ServicePlan};

const PODS: &str = "172.7.0.0/16";

fn backends_of(pods: &[u8], locality: Locality) -> Vec<Backend> {
    let backend = |last: &u8| Backend { addr: [172, 7, 21, *last].into(), port: 8080, weight: 1, locality };
    pods.iter().map(backend).collect()
}

/// Endpoints `here` and `elsewhere`.
fn choice(here: &[u8], elsewhere: &[u8]) -> Choice {
    let local: Arc<[Backend]> = backends_of(here, Locality::Here).into();
    let all = local.iter().copied().chain(backends_of(elsewhere, Locality::Elsewhere));
    let cluster: Arc<[Backend]> = all.collect();
    Choice { any: !cluster.is_empty(), cluster, local }
}

fn frontend(kind: Kind, policy: Policy, choice: &Choice, sources: Sources) -> Frontend {
    let here = Here::on("hdss7-21.host.com");
    let routes = match kind {
        Kind::ClusterIp => Routes::internal((policy, IpFamily::V4), choice, &here),
        _ => Routes::external((policy, IpFamily::V4), choice, &here),
    };
    Frontend { kind, owner: ObjectName::new("default", "web"), affinity: None, scheduler: None, sources, routes }
}

fn at(text: &str, port: u16) -> FrontendKey {
    FrontendKey { protocol: Protocol::Tcp, place: Place::Address(text.parse().unwrap()), port }
}

const NODE: Place = Place::AnyNode(IpFamily::V4);

/// Rows as they stand after some changes.
#[derive(Default)]
struct Kernel(Rows);

impl Kernel {
    fn take(&mut self, changes: BTreeMap<RowKey, Option<Row>>) -> usize {
        let count = changes.len();
        for (key, value) in changes {
            match value {
                Some(value) => self.0.insert(key, value),
                None => self.0.remove(&key),
            };
        }
        count
    }

    /// The elements and chains as the nft tool prints them.
    fn text(&self) -> String {
        let mut ruleset = Ruleset::new(table_key(IpFamily::V4));
        for (_, table) in plane().tables() {
            if let Row::Table(table) = table {
                ruleset.table = *table;
            }
        }
        for (key, row) in &self.0 {
            match (key.clone(), row.clone()) {
                (RowKey::Chain(key), Row::Chain(chain)) => {
                    ruleset.table.chains.insert(key.chain, *chain);
                }
                (RowKey::Set(key), Row::Set(set)) => {
                    ruleset.table.sets.insert(key.set, *set);
                }
                (RowKey::Element(key), Row::Element(element)) => {
                    ruleset.elements.insert(key, element);
                }
                (RowKey::List(key), Row::List(list)) => {
                    for index in list.indexes() {
                        let at = [&*key.key, &[Datum::Index(index)]].concat();
                        ruleset.insert(key.set.clone(), at, list.element(index).unwrap());
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        ruleset.render()
    }

    fn observed(&self) -> reconcile::Rows<RowKey, Row> {
        let owner = reconcile::Owner::Ours;
        self.0.iter().map(|(key, value)| (key.clone(), reconcile::Observed { value: value.clone(), owner })).collect()
    }
}

fn plane() -> DataPlane {
    dataplane::tests::plane(Mode::Nftables)
}

fn put(
    plane: &mut DataPlane,
    key: FrontendKey,
    old: Option<&Frontend>,
    new: Option<&Frontend>,
) -> BTreeMap<RowKey, Option<Row>> {
    plane.rows(&[Delta { key, old: old.cloned(), new: new.cloned() }]).nft
}

fn chain(text: &str, name: &str) -> Vec<String> {
    let from = text.split_once(&format!("\tchain {name} {{\n")).unwrap_or_else(|| panic!("{name} in {text}")).1;
    let rules = from.split_once("\n\t}").unwrap().0;
    rules.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn the_whole_table_as_nft_prints_it() {
    let (mut plane, mut kernel) = (plane(), Kernel::default());
    let web = frontend(Kind::ClusterIp, Policy::Cluster, &choice(&[2], &[3]), Sources::Any);
    let empty = frontend(Kind::ClusterIp, Policy::Cluster, &choice(&[], &[]), Sources::Any);
    let node_port = frontend(Kind::NodePort, Policy::Cluster, &choice(&[2], &[3]), Sources::Any);
    kernel.take(put(&mut plane, at("192.168.0.10", 80), None, Some(&web)));
    kernel.take(put(&mut plane, at("192.168.0.11", 80), None, Some(&empty)));
    kernel.take(put(
        &mut plane,
        FrontendKey { protocol: Protocol::Tcp, place: NODE, port: 30_080 },
        None,
        Some(&node_port),
    ));
    assert_eq!(kernel.text(), include_str!("whole.nft"));
}

#[test]
fn classes_of_clients_are_told_apart_where_they_are_led_elsewhere() {
    let (mut plane, mut kernel) = (plane(), Kernel::default());
    let local = frontend(Kind::LoadBalancer, Policy::Local, &choice(&[2], &[3, 4]), Sources::Any);
    kernel.take(put(&mut plane, at("10.4.7.99", 80), None, Some(&local)));
    let dnat =
        |random: &str| format!("dnat ip to ip daddr . meta l4proto . th dport . numgen random {random} map @endpoints");
    let (all, here) = (dnat("mod 3"), dnat("mod 1 offset 3"));
    let text = kernel.text();
    assert_eq!(
        chain(&text, "choose/3/3m/1-at-3"),
        [
            format!("ip saddr {PODS} {all}"),
            format!("ip saddr {PODS} drop"),
            "fib saddr type local meta mark set meta mark | 0x00004000".to_owned(),
            format!("fib saddr type local {all}"),
            "fib saddr type local drop".to_owned(),
            here,
            "drop".to_owned(),
        ]
    );
    assert!(text.contains("10.4.7.99 . tcp . 80 . 3 : 172.7.21.2 . 8080"), "{text}");
    assert!(
        !text.contains("set vips {\n\t\ttype ipv4_addr\n\t\telements"),
        "only virtual addresses refuse what they do not serve"
    );
    // No endpoint here: the load balancer shall try another node.
    let elsewhere = frontend(Kind::LoadBalancer, Policy::Local, &choice(&[], &[3, 4]), Sources::Any);
    kernel.take(put(&mut plane, at("10.4.7.99", 80), Some(&local), Some(&elsewhere)));
    assert_eq!(chain(&kernel.text(), "choose/2/2m/drop").last().map(String::as_str), Some("drop"));
}

#[test]
fn what_nobody_serves_is_refused_and_what_nobody_serves_here_is_dropped() {
    let (mut plane, mut kernel) = (plane(), Kernel::default());
    let nobody = frontend(Kind::External, Policy::Cluster, &choice(&[], &[]), Sources::Any);
    kernel.take(put(&mut plane, at("10.4.7.98", 80), None, Some(&nobody)));
    assert!(kernel.text().contains("elements = { 10.4.7.98 . tcp . 80 }"), "{}", kernel.text());
    let not_here = frontend(Kind::ClusterIp, Policy::Local, &choice(&[], &[3]), Sources::Any);
    kernel.take(put(&mut plane, at("192.168.0.10", 80), None, Some(&not_here)));
    assert_eq!(chain(&kernel.text(), "choose/drop/drop/drop"), ["drop"]);
}

#[test]
fn only_listed_clients_pass_to_an_address_with_source_ranges() {
    let (mut plane, mut kernel) = (plane(), Kernel::default());
    let ranges = ["10.4.7.0/24", "fd00::/48"].map(|range| range.parse().unwrap());
    let only = Sources::Only(Arc::from(ranges));
    let guarded = frontend(Kind::LoadBalancer, Policy::Cluster, &choice(&[2], &[3]), only);
    kernel.take(put(&mut plane, at("10.4.7.99", 80), None, Some(&guarded)));
    let text = kernel.text();
    assert!(text.contains(": goto sources/10.4.7.99/tcp/80"), "{text}");
    assert_eq!(chain(&text, "sources/10.4.7.99/tcp/80"), ["ip saddr 10.4.7.0/24 goto choose/2m/2m/2m", "drop"]);
    kernel.take(put(&mut plane, at("10.4.7.99", 80), Some(&guarded), None));
    assert_eq!(kernel.0, Rows::new());
}

#[test]
fn masquerade_follows_the_class_of_the_client() {
    let pods = Pods::Inside(PODS.parse().unwrap());
    let mark = "meta mark set meta mark | 0x00004000";
    for (classes, expected) in [
        ([false, true, true], vec![format!("ip saddr != {PODS} {mark}")]),
        ([true, true, true], vec![mark.to_owned()]),
        ([false, false, false], vec![]),
        ([false, true, false], vec![format!("ip saddr != {PODS} fib saddr type local {mark}")]),
        ([true, false, false], vec![format!("ip saddr {PODS} {mark}")]),
    ] {
        let mut web = frontend(Kind::ClusterIp, Policy::Cluster, &choice(&[2], &[]), Sources::Any);
        (web.routes.pod.masquerade, web.routes.node.masquerade, web.routes.outside.masquerade) = classes.into();
        let chain = Dispatch::of(&web, Mode::Nftables).chain(at("192.168.0.10", 80).place, IpFamily::V4, &pods);
        let text = Row::from(chain).to_string();
        let marks = text.strip_prefix("{ ").unwrap().split_once("dnat").unwrap().0.trim().to_owned();
        assert_eq!(marks, expected.join(" "), "{classes:?}");
    }
}

/// At 1,000 frontends as at ten.
#[test]
fn one_changed_endpoint_costs_its_own_elements_only() {
    let (mut plane, mut kernel) = (plane(), Kernel::default());
    let web = |here: &[u8]| frontend(Kind::ClusterIp, Policy::Cluster, &choice(here, &[]), Sources::Any);
    let five = web(&[2, 3, 4, 5, 6]);
    for number in 0..1000_u16 {
        kernel.take(put(&mut plane, at("192.168.0.10", number), None, Some(&five)));
    }
    let key = at("192.168.0.10", 7);
    let replaced = web(&[2, 3, 4, 5, 9]);
    assert_eq!(kernel.take(put(&mut plane, key, Some(&five), Some(&replaced))), 2, "its list and a hairpin");
    // One less: the verdict and the chain, the list, a hairpin.
    let fewer = web(&[2, 3, 4, 5]);
    assert_eq!(kernel.take(put(&mut plane, key, Some(&replaced), Some(&fewer))), 4);
    assert_eq!(kernel.take(put(&mut plane, key, Some(&fewer), Some(&fewer))), 0);
}

#[test]
fn frontends_of_a_family_without_pods_have_no_rows() {
    let web = frontend(Kind::ClusterIp, Policy::Cluster, &choice(&[2], &[]), Sources::Any);
    assert_eq!(put(&mut plane(), at("fd00::10", 80), None, Some(&web)), BTreeMap::new());
}

/// Where, what for, by which policy, endpoints here and elsewhere, only listed clients, session affinity.
type Drawn = (u8, Kind, Policy, Vec<u8>, Vec<u8>, (bool, bool));

fn kinds() -> impl Strategy<Value = Drawn> {
    let kind = prop::sample::select(vec![Kind::ClusterIp, Kind::LoadBalancer, Kind::NodePort]);
    let policy = prop::sample::select(vec![Policy::Cluster, Policy::Local]);
    let pods = |from: u8| prop::collection::btree_set(from..from + 4, 0..4).prop_map(|set| set.into_iter().collect());
    (0u8..3, kind, policy, pods(2), pods(10), any::<(bool, bool)>())
}

fn plan((last, kind, policy, here, elsewhere, (guarded, sticky)): &Drawn) -> (FrontendKey, Frontend) {
    let place = if *kind == Kind::NodePort { NODE } else { Place::Address([192, 168, 0, *last].into()) };
    let sources = if *guarded && *kind == Kind::LoadBalancer {
        Sources::Only(Arc::from(["10.4.7.0/24".parse().unwrap()]))
    } else {
        Sources::Any
    };
    let key = FrontendKey { protocol: Protocol::Tcp, place, port: 30_000 + u16::from(*last) };
    let affinity = sticky.then_some(Affinity { seconds: 90, port: 80, prefix: None });
    (key, Frontend { affinity, ..frontend(*kind, *policy, &choice(here, elsewhere), sources) })
}

proptest! {
    /// Rows after any history equal the rows of what stands in the end; and who reads them knows what stands.
    #[test]
    fn rows_depend_on_the_frontends_and_not_on_their_history(
        steps in prop::collection::vec((0u8..4, prop::collection::vec(kinds(), 0..3)), 0..20),
    ) {
        let (mut claims, mut plane, mut kernel) = (Claims::default(), plane(), Kernel::default());
        let mut last: BTreeMap<u8, ServicePlan> = BTreeMap::new();
        for (who, frontends) in &steps {
            let name = ObjectName::new("default", &who.to_string());
            let plan = ServicePlan::new(String::new(), frontends.iter().map(plan).collect());
            last.insert(*who, plan.clone());
            kernel.take(plane.rows(&claims.settle(&name, Some(plan))).nft);
        }
        let (mut fresh, mut rows, mut afresh) = (Claims::default(), super::tests::plane(), Kernel::default());
        for (who, plan) in last.iter().rev() {
            let name = ObjectName::new("default", &who.to_string());
            afresh.take(rows.rows(&fresh.settle(&name, Some(plan.clone()))).nft);
        }
        prop_assert_eq!(&kernel.0, &afresh.0);

        // Taken up again from the kernel's rows they are the same rows.
        let (mut again, mut third) = (super::tests::plane(), Kernel::default());
        for (key, frontend) in remembered(&kernel.observed(), |_| BTreeSet::new()) {
            third.take(put(&mut again, key, None, Some(&frontend)));
        }
        let served = |rows: &Rows| -> Rows {
            let of_served = |row: &&RowKey| !matches!(row, RowKey::Element(element) if [VIPS, EXTERNAL, REFUSED, REFUSED_NODE_PORTS].contains(&element.set.as_str()));
            rows.iter().filter(|(row, _)| of_served(row)).map(|(row, value)| (row.clone(), value.clone())).collect()
        };
        prop_assert_eq!(served(&kernel.0), served(&third.0));

        // Nothing is left of them when all are gone.
        for who in last.keys() {
            kernel.take(plane.rows(&claims.settle(&ObjectName::new("default", &who.to_string()), None)).nft);
        }
        prop_assert_eq!(kernel.0, Rows::new());
    }
}

#[test]
fn what_an_address_is_to_its_service_is_read_back_from_the_rows() {
    let (mut plane, mut kernel) = (plane(), Kernel::default());
    let own = BTreeSet::from([IpAddr::from([10, 4, 7, 21])]);
    let node = dataplane::NodeAddresses { own, ..dataplane::NodeAddresses::default() };
    kernel.take(plane.set_node(node, std::iter::empty()).nft);
    for (place, kind) in
        [("192.168.0.10", Kind::ClusterIp), ("10.4.7.99", Kind::LoadBalancer), ("10.4.7.21", Kind::External)]
    {
        let frontend = frontend(kind, Policy::Cluster, &choice(&[2], &[]), Sources::Any);
        kernel.take(put(&mut plane, at(place, 80), None, Some(&frontend)));
    }
    let found: BTreeMap<_, _> = remembered(&kernel.observed(), |_| BTreeSet::new()).collect();
    let kinds = ["192.168.0.10", "10.4.7.99", "10.4.7.21"].map(|place| found[&at(place, 80)].kind);
    assert_eq!(kinds, [Kind::ClusterIp, Kind::LoadBalancer, Kind::LoadBalancer], "all but virtual ones alike");
}

#[test]
fn a_frontend_has_a_chain_of_its_own_where_only_some_clients_may_connect() {
    let entry = entry(&at("10.4.7.99", 80));
    let own = |name: &str| {
        let verdict = Verdict::Goto(Name::observed(name.to_owned()));
        own_chain(&entry, &Element::verdict(verdict).into()).map(|row| row.to_string())
    };
    let sources = "sources/10.4.7.99/tcp/80";
    assert_eq!(own(sources), Some(format!("chain ip ipvs-proxy {sources}")));
    assert_eq!(["choose/2m/2m/2m", "lead/2/2/2/10.4.7.99/tcp/80"].map(own), [None, None]);
}

/// A chain's rules are those that its name says.
#[test]
fn a_chain_is_known_by_its_name() {
    for name in ["choose/3/3m/1-at-3", "choose-node/2m/2m/drop", "choose/drop/drop/drop", "choose/1/1/reject"] {
        let place = if name.starts_with("choose-node") { NODE } else { at("192.168.0.10", 80).place };
        let dispatch = Dispatch::named(&Name::new(name).unwrap()).unwrap();
        assert_eq!(dispatch.name(place).as_str(), name);
    }
    for other in ["choose", "choose/1/1", "choose/x/1/1", "sources/1/1/1"] {
        assert_eq!(Dispatch::named(&Name::new(other).unwrap()), None, "{other}");
    }
    let empty: Chain = Chain::default();
    assert_eq!(Row::from(empty).to_string(), "{ }");
}
