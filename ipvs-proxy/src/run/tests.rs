//! The working half of the daemon on tables in memory: order, gate, drains, errors.

mod guarded;
mod local;
mod succession;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cluster::Event;
use kernel::conntrack::Selection;
use kernel::fake::FakeTable;
use kernel::{Cause, KernelError};
use netstate::family::PerFamily;
use netstate::ipvs::{RealServer, RealServerKey, Row, RowKey, VirtualServer, VirtualServerKey};
use netstate::{
    Address, AddressKey, IfName, IpFamily, Link, Prefix, Protocol, Route, RouteKey, SysctlKey, nft as nft_rows,
};
use proptest::prelude::*;
use reconcile::{Observed, Owner, Rows, Step, Target};
use serde_json::json;

use super::flows::sweep::sweep;
use super::flows::{Check, Checks, Locals, Tracked};
use super::proxy::{Proxy, pause};
use super::status::ProxyStatus;
use super::tables::{Tables, Touched};
use super::targets::{Balance, Flows, Servers, Stale, Sweeper, Targets, VirtualAddresses};
use crate::dataplane::drain::Drains;
use crate::dataplane::{DataPlane, Guards, Mode, NodeAddresses, Options, record, since, vip};
use crate::object::key::ObjectKey;
use crate::plan::FrontendKey;
use crate::plan::frontend::Kind;
use crate::plan::here::{Facts, Here};
use crate::plan::networks::Networks;
use crate::plan::pods::Pods;
use crate::source::update;

type Log = Arc<Mutex<Vec<String>>>;

/// A table in memory that also writes into a log that all tables share.
struct Logged<K, V> {
    name: &'static str,
    table: FakeTable<K, V>,
    log: Log,
}

impl<K: Ord + Clone + fmt::Display + Send + 'static, V: Clone + PartialEq + fmt::Display + Send + 'static> Target
    for Logged<K, V>
{
    type Key = K;
    type Value = V;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<K, V>, KernelError> {
        self.table.observe()
    }

    fn apply(&mut self, steps: &[Step<K, V>]) -> Vec<Result<(), KernelError>> {
        let results = self.table.apply(steps);
        for (step, _) in steps.iter().zip(&results).filter(|(_, result)| result.is_ok()) {
            let verb = match step {
                Step::Create(..) => '+',
                Step::Change(..) => '~',
                Step::Remove(..) => '-',
            };
            self.log.lock().unwrap().push(format!("{} {verb} {}", self.name, step.key()));
        }
        results
    }
}

/// IPVS in memory; `busy` are the real servers with connections.
struct FakeServers {
    rows: Logged<RowKey, Row>,
    busy: Arc<Mutex<BTreeSet<RealServerKey>>>,
    vanished: BTreeSet<VirtualServerKey>,
    /// Virtual servers when they were last compared.
    compared: Option<usize>,
}

impl FakeServers {
    /// How many virtual servers there are.
    fn count(&self) -> usize {
        self.rows.table.contents().rows.keys().filter(|key| matches!(key, RowKey::Virtual(_))).count()
    }

    /// The rows of a virtual server as they are.
    fn of(&self, service: VirtualServerKey) -> Rows<RowKey, Row> {
        let contents = self.rows.table.contents();
        let rows = contents.rows.iter().filter(|(key, _)| *key.service() == service);
        rows.map(|(key, row)| (*key, row.clone())).collect()
    }
}

impl Target for FakeServers {
    type Key = RowKey;
    type Value = Row;
    type Error = KernelError;

    /// As the kernel's table: real servers of foreign virtual servers are not listed.
    fn observe(&mut self) -> Result<Rows<RowKey, Row>, KernelError> {
        let rows = self.rows.observe()?;
        let owner = |key: &RowKey| rows.get(&RowKey::Virtual(*key.service())).map(|row| row.owner);
        let listed = |key: &RowKey| matches!(key, RowKey::Virtual(_)) || owner(key) == Some(Owner::Ours);
        Ok(rows.iter().filter(|(key, _)| listed(key)).map(|(key, row)| (*key, row.clone())).collect())
    }

    /// As the kernel's table: a real server needs its virtual server and goes with it.
    fn apply(&mut self, steps: &[Step<RowKey, Row>]) -> Vec<Result<(), KernelError>> {
        self.compared = None;
        let mut results = Vec::new();
        for step in steps {
            let service = RowKey::Virtual(*step.key().service());
            let missing = !self.rows.table.contents().rows.contains_key(&service);
            results.push(match step {
                Step::Create(RowKey::Real(real), _) | Step::Change(RowKey::Real(real), ..) if missing => {
                    self.vanished.insert(real.service);
                    Err(KernelError::new("write", real, Cause::Vanished(service.to_string())))
                }
                _ => self.rows.apply(std::slice::from_ref(step)).remove(0),
            });
        }
        results
    }
}

impl Servers for FakeServers {
    fn idle(&mut self, service: &VirtualServerKey) -> Result<BTreeMap<RealServerKey, bool>, KernelError> {
        let (contents, busy) = (self.rows.table.contents(), self.busy.lock().unwrap());
        let reals = contents.rows.keys().filter_map(|key| match key {
            RowKey::Real(real) if real.service == *service => Some((*real, !busy.contains(real))),
            _ => None,
        });
        Ok(reals.collect())
    }

    /// As the kernel's table: what is made later is not ours for that.
    fn adopt(&mut self, owned: BTreeSet<VirtualServerKey>, at: BTreeSet<IpAddr>) {
        let is_ours = |service: &VirtualServerKey| owned.contains(service) || at.contains(&service.addr);
        for (_, row) in self.rows.table.contents().rows.iter_mut().filter(|(key, _)| is_ours(key.service())) {
            row.owner = Owner::Ours;
        }
    }

    fn claim(&mut self, service: VirtualServerKey) {
        for (_, row) in self.rows.table.contents().rows.iter_mut().filter(|(key, _)| *key.service() == service) {
            row.owner = Owner::Ours;
        }
    }

    fn differs_in_number(&self) -> Result<bool, KernelError> {
        Ok(self.compared.is_some_and(|known| known != self.count()))
    }

    fn differing(&mut self, believed: &Rows<RowKey, Row>) -> Result<BTreeSet<VirtualServerKey>, KernelError> {
        self.compared = Some(self.count());
        self.differing_in_turn(believed)
    }

    /// Everything is in turn at once.
    fn differing_in_turn(&mut self, believed: &Rows<RowKey, Row>) -> Result<BTreeSet<VirtualServerKey>, KernelError> {
        let ours = believed.iter().filter(|(_, row)| row.owner == Owner::Ours).map(|(key, _)| *key.service());
        let same = |service: &VirtualServerKey| {
            let rows = believed.iter().filter(|(key, _)| key.service() == service);
            rows.map(|(key, row)| (*key, row.clone())).collect::<Rows<_, _>>() == self.of(*service)
        };
        Ok(ours.filter(|service| !same(service)).collect())
    }

    fn rows_of(&mut self, services: &BTreeSet<VirtualServerKey>) -> Result<Rows<RowKey, Row>, KernelError> {
        Ok(services.iter().flat_map(|service| self.of(*service)).collect())
    }

    fn has_scheduler(&mut self, name: &str) -> Result<bool, KernelError> {
        Ok(name != "nosuch")
    }

    fn take_vanished(&mut self) -> BTreeSet<VirtualServerKey> {
        std::mem::take(&mut self.vanished)
    }
}

/// Addresses without a local route, and how often they were asked for.
type Routes = (BTreeSet<AddressKey>, usize);

/// Addresses in memory.
struct FakeAddresses<T> {
    table: T,
    routes: Arc<Mutex<Routes>>,
}

impl<T: Target<Key = AddressKey, Value = Address, Error = KernelError>> Target for FakeAddresses<T> {
    type Key = AddressKey;
    type Value = Address;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<AddressKey, Address>, KernelError> {
        self.table.observe()
    }

    fn apply(&mut self, steps: &[Step<AddressKey, Address>]) -> Vec<Result<(), KernelError>> {
        let mut routes = self.routes.lock().unwrap();
        routes.0.retain(|key| steps.iter().all(|step| step.key() != key));
        self.table.apply(steps)
    }
}

impl<T: Target<Key = AddressKey, Value = Address, Error = KernelError>> VirtualAddresses for FakeAddresses<T> {
    fn unrouted(&mut self, held: &Rows<AddressKey, Address>) -> Result<BTreeSet<AddressKey>, KernelError> {
        let mut routes = self.routes.lock().unwrap();
        routes.1 += 1;
        Ok(routes.0.iter().filter(|key| held.contains_key(*key)).cloned().collect())
    }
}

/// Tracked connections in memory.
#[derive(Default)]
struct Connections {
    held: Vec<Tracked>,
    /// Readings to come that fail.
    failures: usize,
}

/// Connections that are read as soon as they are handed over.
#[derive(Clone, Default)]
struct FakeFlows(Arc<Mutex<Connections>>, Arc<Mutex<Checks>>);

impl Flows for FakeFlows {
    fn forget(&mut self, of: &Selection, stale: Stale<'_>) -> Result<usize, KernelError> {
        let mut connections = self.0.lock().unwrap();
        if connections.failures > 0 {
            connections.failures -= 1;
            return Err(KernelError::new("list", of, Cause::Unexpected("broken off".to_owned())));
        }
        let before = connections.held.len();
        connections.held.retain(|flow| !stale(flow));
        Ok(before - connections.held.len())
    }

    fn filters(&self) -> bool {
        true
    }
}

impl Sweeper for FakeFlows {
    fn put(&mut self, checks: BTreeMap<FrontendKey, Check>, locals: Locals) {
        let noted = Arc::clone(&self.1);
        noted.lock().unwrap().put(checks, locals);
        let _ = sweep(&noted, self);
    }

    fn welcome(&mut self, frontend: &FrontendKey, endpoint: SocketAddr) {
        self.1.lock().unwrap().welcome(frontend, endpoint);
    }
}

/// The tables that a new start finds.
type Kept = (FakeTable<nft_rows::RowKey, nft_rows::Row>, FakeTable<RowKey, Row>, FakeTable<AddressKey, Address>);

/// A proxy on tables in memory, with handles on them.
struct Rig {
    proxy: Proxy,
    log: Log,
    sysctls: FakeTable<SysctlKey, String>,
    nft: FakeTable<nft_rows::RowKey, nft_rows::Row>,
    servers: FakeTable<RowKey, Row>,
    addresses: FakeTable<AddressKey, Address>,
    routes: Arc<Mutex<Routes>>,
    local: FakeTable<RouteKey, Route>,
    busy: Arc<Mutex<BTreeSet<RealServerKey>>>,
    flows: FakeFlows,
    now: Duration,
}

impl Rig {
    fn new() -> Self {
        Self::on(FakeTable::default(), FakeTable::default(), FakeTable::default())
    }

    /// A new start on tables that are there.
    fn on(
        nft: FakeTable<nft_rows::RowKey, nft_rows::Row>,
        servers: FakeTable<RowKey, Row>,
        addresses: FakeTable<AddressKey, Address>,
    ) -> Self {
        Self::at_boot(1000, nft, servers, addresses)
    }

    /// A new start in this mode on the tables of another rig, when the machine is up for so many seconds.
    fn after(before: &Self, mode: Mode, boot: u64) -> Self {
        Self::in_mode(mode, boot, (before.nft.clone(), before.servers.clone(), before.addresses.clone()))
    }

    /// The same when the machine is up for so many seconds.
    fn at_boot(
        boot: u64,
        nft: FakeTable<nft_rows::RowKey, nft_rows::Row>,
        servers: FakeTable<RowKey, Row>,
        addresses: FakeTable<AddressKey, Address>,
    ) -> Self {
        Self::in_mode(Mode::Ipvs, boot, (nft, servers, addresses))
    }

    fn in_mode(mode: Mode, boot: u64, kept: Kept) -> Self {
        Self::routed(mode, boot, kept, (FakeTable::default(), Vec::new()))
    }

    /// The same where these networks are to be local by routes, with those that are there.
    fn routed(
        mode: Mode,
        boot: u64,
        (nft, servers, addresses): Kept,
        (local, networks): (FakeTable<RouteKey, Route>, Vec<Prefix>),
    ) -> Self {
        let (log, busy, flows) = (Log::default(), Arc::default(), FakeFlows::default());
        let routes = Arc::<Mutex<Routes>>::default();
        let sysctls = FakeTable::default();
        sysctls.contents().rows.insert(tracking(), Observed { value: "1".to_owned(), owner: Owner::Ours });
        let targets = Targets {
            sysctls: Box::new(Logged { name: "sysctl", table: sysctls.clone(), log: log.clone() }),
            nft: Box::new(Logged { name: "nft", table: nft.clone(), log: log.clone() }),
            forward: None,
            balance: Some(Balance {
                links: Box::new(Logged { name: "link", table: FakeTable::<IfName, Link>::default(), log: log.clone() }),
                servers: Box::new(FakeServers {
                    rows: Logged { name: "ipvs", table: servers.clone(), log: log.clone() },
                    busy: Arc::clone(&busy),
                    vanished: BTreeSet::new(),
                    compared: None,
                }),
                addresses: Box::new(FakeAddresses {
                    table: super::spared::Spared::new(
                        Logged { name: "address", table: addresses.clone(), log: log.clone() },
                        vec!["192.168.99.0/24".parse().unwrap()],
                    ),
                    routes: Arc::clone(&routes),
                }),
            }),
            routes: Box::new(Logged { name: "route", table: local.clone(), log: log.clone() }),
            flows: Box::new(flows.clone()),
        };
        let pods = PerFamily::only(IpFamily::V4, "172.7.0.0/16".parse().unwrap());
        let options = Options {
            mode,
            link: IfName::new(vip::LINK_NAME).unwrap(),
            scheduler: "rr".to_owned().into(),
            pods: Pods::inside(pods),
            services: PerFamily::default(),
            local: networks,
            node: NodeAddresses::default(),
            guards: Guards::default(),
        };
        let plane = DataPlane::new(options);
        let drains = Drains::new(Duration::from_secs(900), Duration::from_secs(boot));
        let tables = Tables::new(targets, drains, &BTreeMap::from([(tracking(), "1".to_owned())]), &plane);
        let [v4, v6] = [pods.v4, pods.v6];
        let facts = Facts::of(&Here::on("hdss7-21.host.com").with_pods(v4.into_iter().chain(v6)));
        let networks = Networks { pods, services: PerFamily::default(), node: Vec::new() };
        let proxy = Proxy::new(facts, networks, plane, tables, 1_790_000_000);
        Self { proxy, log, sysctls, nft, servers, addresses, routes, local, busy, flows, now: Duration::ZERO }
    }

    fn receive(&mut self, event: Event) {
        self.proxy.take(update(event, ObjectKey::from_etcd, true).unwrap());
    }

    fn put(&mut self, key: &str, json: &serde_json::Value) {
        self.receive(Event::Put { key: key.to_owned(), value: json.to_string().into_bytes(), revision: 1 });
    }

    fn service(&mut self, name: &str, last: u8, protocol: &str) {
        let ports = json!([{"name": "main", "port": 80, "protocol": protocol}]);
        let spec = json!({"clusterIP": format!("192.168.0.{last}"), "ports": ports});
        let json = json!({"kind": "Service", "metadata": {"name": name}, "spec": spec});
        self.put(&format!("services/default/{name}"), &json);
    }

    /// Endpoints 172.7.22.N of another node.
    fn endpoints(&mut self, service: &str, protocol: &str, pods: &[u8]) {
        let endpoint = |last: &u8| json!({"addresses": [format!("172.7.22.{last}")], "nodeName": "hdss7-22.host.com"});
        let endpoints: Vec<_> = pods.iter().map(endpoint).collect();
        let json = json!({
            "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}},
            "ports": [{"name": "main", "port": 80, "protocol": protocol}],
        });
        self.put(&format!("endpointslices/default/{service}-1"), &json);
    }

    fn complete(&mut self) {
        self.receive(Event::Complete);
    }

    /// Works until nothing is left to do now; returns what was done to the kernel.
    fn work(&mut self) -> Vec<String> {
        self.receive(Event::Commit);
        self.work_midway()
    }

    /// As [`Self::work`], in the middle of a change.
    fn work_midway(&mut self) -> Vec<String> {
        self.log.lock().unwrap().clear();
        for _ in 0..3 {
            self.proxy.work(self.now);
        }
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    fn later(&mut self, seconds: u64) -> Vec<String> {
        self.now += Duration::from_secs(seconds);
        self.work()
    }

    /// Lists `web` on these Pods, as a new start does, and works.
    fn restarted(mut self, pods: &[u8]) -> Self {
        self.receive(Event::Reset);
        self.service("web", 10, "TCP");
        self.endpoints("web", "TCP", pods);
        self.complete();
        self.work();
        self
    }

    /// The same with this specification, on two Pods.
    fn restarted_as(mut self, spec: &serde_json::Value) -> Self {
        self.receive(Event::Reset);
        self.put("services/default/web", &json!({"kind": "Service", "metadata": {"name": "web"}, "spec": spec}));
        self.endpoints("web", "TCP", &[2, 3]);
        self.complete();
        self.work();
        self
    }

    /// `web` on two Pods, listed and in place.
    fn web() -> Self {
        Self::new().restarted(&[2, 3])
    }
}

/// The parameter without which nothing that IPVS balances is masqueraded.
fn tracking() -> SysctlKey {
    "net/ipv4/vs/conntrack".parse().unwrap()
}

/// A connection of a client outside that is masqueraded and answered.
fn tracked(opened_to: SocketAddr, answered_by: ([u8; 4], u16)) -> Tracked {
    let (client, returns_to) = ("10.4.7.200:999".parse().unwrap(), "10.4.7.21:40000".parse().unwrap());
    Tracked { client, opened_to, answered_by: answered_by.into(), returns_to, answered: true, translated: false }
}

fn real(protocol: Protocol, last: u8) -> RealServerKey {
    let service = VirtualServerKey { protocol, addr: [192, 168, 0, 10].into(), port: 80 };
    RealServerKey { service, addr: [172, 7, 22, last].into(), port: 80 }
}

/// The Service's object with its port under another name.
fn renamed_port(rig: &mut Rig, name: &str) {
    let ports = json!([{"name": name, "port": 80, "protocol": "TCP"}]);
    let spec = json!({"clusterIP": "192.168.0.10", "ports": ports});
    rig.put("services/default/web", &json!({"kind": "Service", "metadata": {"name": "web"}, "spec": spec}));
}

#[test]
fn a_port_renamed_in_service_and_slice_together_takes_nothing_down() {
    let mut rig = Rig::web();
    renamed_port(&mut rig, "www");
    assert_eq!(rig.work_midway(), Vec::<String>::new(), "half of a change is no change");
    let endpoint = |last: u8| json!({"addresses": [format!("172.7.22.{last}")], "nodeName": "hdss7-22.host.com"});
    let endpoints = [2, 3].map(endpoint);
    rig.put(
        "endpointslices/default/web-1",
        &json!({
            "kind": "EndpointSlice", "addressType": "IPv4",
            "endpoints": endpoints,
            "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "www", "port": 80, "protocol": "TCP"}],
        }),
    );
    assert_eq!(rig.work_midway(), Vec::<String>::new());
    assert_eq!(rig.work(), Vec::<String>::new(), "the same servers behind another name");
    // Alone, each of them is a change of its own.
    renamed_port(&mut rig, "main");
    assert!(!rig.work().is_empty());
}

#[test]
fn services_that_change_their_addresses_or_names_together_take_nothing_down() {
    let mut rig = Rig::web();
    rig.service("api", 11, "TCP");
    rig.endpoints("api", "TCP", &[2, 3]);
    rig.receive(Event::Commit);
    assert!(!rig.work().is_empty());
    // Two Services of one file swap their addresses.
    rig.service("web", 11, "TCP");
    rig.service("api", 10, "TCP");
    assert_eq!(rig.work_midway(), Vec::<String>::new());
    let steps = rig.work();
    assert!(steps.iter().all(|step| step.starts_with("nft ~")), "only owners in the record change: {steps:?}");
    // A Service of one file is renamed, with its slice.
    for key in ["services/default/web", "endpointslices/default/web-1"] {
        rig.receive(Event::Delete { key: key.to_owned(), revision: 2 });
    }
    rig.service("www", 11, "TCP");
    rig.endpoints("www", "TCP", &[2, 3]);
    assert_eq!(rig.work_midway(), Vec::<String>::new());
    let steps = rig.work();
    assert!(steps.iter().all(|step| step.starts_with("nft ~")), "{steps:?}");
}

#[test]
fn a_change_that_begins_while_another_is_planned_is_left_for_its_end() {
    let mut rig = Rig::web();
    rig.endpoints("web", "TCP", &[2, 3, 4]);
    rig.receive(Event::Commit);
    renamed_port(&mut rig, "www");
    assert_eq!(rig.work_midway(), Vec::<String>::new());
    renamed_port(&mut rig, "main");
    assert!(rig.work().iter().any(|step| step.contains("+") && step.contains("172.7.22.4")));
}

#[test]
fn the_status_is_not_in_order_while_it_counts_objects_of_a_change_that_has_not_ended() {
    let mut rig = Rig::web();
    let status = |rig: &Rig| ProxyStatus::of(&rig.proxy, "hdss7-21", &[], rig.now);
    assert!(status(&rig).ok);
    rig.service("api", 11, "TCP");
    assert_eq!(rig.work_midway(), Vec::<String>::new());
    assert_eq!((status(&rig).services, status(&rig).ok), (2, false), "it is known, and not in the kernel");
    assert!(!rig.work().is_empty());
    assert!(status(&rig).ok);
}

#[test]
fn the_address_comes_last_and_goes_first() {
    let mut rig = Rig::new();
    rig.receive(Event::Reset);
    rig.service("web", 10, "TCP");
    rig.endpoints("web", "TCP", &[2]);
    rig.complete();
    assert_eq!(
        rig.work(),
        [
            "link + kube-ipvs0",
            "nft + table ip ipvs-proxy",
            "nft + chain ip ipvs-proxy choose/ipvs/ipvsm/ipvsm",
            "nft + element ip ipvs-proxy @record { 192.168.0.10 . tcp . 80 }",
            "nft + element ip ipvs-proxy @services { 192.168.0.10 . tcp . 80 }",
            "nft + element ip ipvs-proxy @vips { 192.168.0.10 }",
            "ipvs + tcp 192.168.0.10:80",
            "ipvs + tcp 192.168.0.10:80 -> 172.7.22.2:80",
            "address + 192.168.0.10/32 dev kube-ipvs0",
            "nft + element ip ipvs-proxy @record { 0.0.0.0 . tcp . 0 }",
        ]
    );
    rig.receive(Event::Delete { key: "services/default/web".to_owned(), revision: 2 });
    assert_eq!(
        rig.work(),
        [
            "address - 192.168.0.10/32 dev kube-ipvs0",
            "ipvs - tcp 192.168.0.10:80",
            "ipvs - tcp 192.168.0.10:80 -> 172.7.22.2:80",
            "nft - chain ip ipvs-proxy choose/ipvs/ipvsm/ipvsm",
            "nft - element ip ipvs-proxy @record { 192.168.0.10 . tcp . 80 }",
            "nft - element ip ipvs-proxy @services { 192.168.0.10 . tcp . 80 }",
            "nft - element ip ipvs-proxy @vips { 192.168.0.10 }",
        ]
    );
}

#[test]
fn one_changed_endpoint_is_one_step() {
    let mut rig = Rig::web();
    rig.endpoints("web", "TCP", &[2, 3, 4]);
    assert_eq!(rig.work(), ["ipvs + tcp 192.168.0.10:80 -> 172.7.22.4:80"]);
}

#[test]
fn nothing_is_removed_and_nothing_drains_before_the_first_listing_is_whole() {
    let before = Rig::web();
    let mut rig = Rig::on(before.nft.clone(), before.servers.clone(), before.addresses.clone());
    rig.receive(Event::Reset);
    assert_eq!(rig.work(), ["link + kube-ipvs0"]);
    rig.service("web", 10, "TCP");
    rig.endpoints("web", "TCP", &[3]);
    assert!(rig.work().is_empty());
    rig.complete();
    let one = [since_when('+', 2), "ipvs ~ tcp 192.168.0.10:80 -> 172.7.22.2:80".to_owned()];
    assert_eq!(rig.work(), one, "one is drained");
}

#[test]
fn a_new_start_changes_nothing() {
    let before = Rig::web();
    let mut rig = Rig::on(before.nft.clone(), before.servers.clone(), before.addresses.clone());
    rig.receive(Event::Reset);
    rig.endpoints("web", "TCP", &[2, 3]);
    rig.service("web", 10, "TCP");
    rig.complete();
    assert_eq!(rig.work(), ["link + kube-ipvs0"], "the link's table is new in this rig");
}

#[test]
fn a_tcp_endpoint_drains_and_a_udp_endpoint_goes_at_once() {
    let mut rig = Rig::web();
    rig.busy.lock().unwrap().insert(real(Protocol::Tcp, 2));
    rig.endpoints("web", "TCP", &[3]);
    let begins = [since_when('+', 2), "ipvs ~ tcp 192.168.0.10:80 -> 172.7.22.2:80".to_owned()];
    assert_eq!(rig.work(), begins, "since when stands before its weight does");
    assert!(rig.later(5).is_empty(), "it has a connection");
    rig.busy.lock().unwrap().clear();
    let ends = ["ipvs - tcp 192.168.0.10:80 -> 172.7.22.2:80".to_owned(), since_when('-', 2)];
    assert_eq!(rig.later(15), ends);

    rig.service("dns", 53, "UDP");
    rig.endpoints("dns", "UDP", &[2, 3]);
    rig.work();
    let vip: SocketAddr = "192.168.0.53:80".parse().unwrap();
    let flow = |last: u8| tracked(vip, ([172, 7, 22, last], 80));
    rig.flows.0.lock().unwrap().held.extend([flow(2), flow(3)]);
    rig.endpoints("dns", "UDP", &[3]);
    assert_eq!(rig.work(), ["ipvs - udp 192.168.0.53:80 -> 172.7.22.2:80"]);
    assert_eq!(rig.flows.0.lock().unwrap().held, [flow(3)], "the flow of the one that is gone is forgotten");
}

#[test]
fn clients_that_began_while_the_rules_were_away_begin_anew_when_the_rules_are_back() {
    let mut rig = Rig::web();
    let vip: SocketAddr = "192.168.0.10:80".parse().unwrap();
    let good = tracked(vip, ([172, 7, 22, 2], 80));
    let unmasked = Tracked { returns_to: good.client, answered: false, ..good };
    let elsewhere = Tracked { opened_to: "192.168.0.99:80".parse().unwrap(), ..unmasked };
    rig.flows.0.lock().unwrap().held.extend([good, unmasked, elsewhere]);
    rig.later(1);
    assert_eq!(rig.flows.0.lock().unwrap().held.len(), 3, "nothing has changed");
    rig.nft.contents().rows.clear();
    rig.proxy.touched(Touched::Nft);
    rig.nft.contents().errors.push_back(Some(16));
    rig.work();
    assert_eq!(rig.flows.0.lock().unwrap().held.len(), 3, "the rules are not back yet");
    rig.flows.0.lock().unwrap().failures = 1;
    rig.later(60);
    assert_eq!(rig.flows.0.lock().unwrap().held.len(), 3, "the connections could not be read");
    let _ = sweep(&rig.flows.1.clone(), &mut rig.flows);
    assert_eq!(rig.flows.0.lock().unwrap().held, [good, elsewhere]);
    // One element, or a rule, is enough.
    for table in [false, true] {
        rig.flows.0.lock().unwrap().held.push(unmasked);
        rig.nft.contents().rows.retain(|key, _| match key {
            nft_rows::RowKey::Table(_) => !table,
            key => table || !key.to_string().contains("@services"),
        });
        rig.proxy.touched(Touched::Nft);
        rig.later(60);
        assert_eq!(rig.flows.0.lock().unwrap().held, [good, elsewhere]);
    }
}

/// Positions of steps in a list of them, each of which must be there.
fn positions<const N: usize>(steps: &[String], parts: [&str; N]) -> [usize; N] {
    parts.map(|part| steps.iter().position(|step| step.contains(part)).unwrap_or_else(|| panic!("{part}: {steps:#?}")))
}

#[test]
fn on_the_way_to_nftables_virtual_servers_stay_until_their_connections_have_ended() {
    let before = Rig::web();
    let rig = Rig::after(&before, Mode::Nftables, 2000);
    rig.busy.lock().unwrap().extend([real(Protocol::Tcp, 2), real(Protocol::Tcp, 3)]);
    let log = rig.log.clone();
    let mut rig = rig.restarted(&[2, 3]);
    // The log is taken by the first pass, which is where the order shows.
    assert!(log.lock().unwrap().is_empty());
    assert!(endpoints_in_service(&rig).is_empty(), "new connections are chosen for by nftables");
    assert_eq!(rig.servers.contents().rows.len(), 3);
    assert_eq!(rig.addresses.contents().rows.len(), 1, "the address stays with them");
    let chosen =
        |rig: &Rig| rig.nft.contents().rows.keys().filter(|key| key.to_string().contains("@endpoints")).count();
    assert_eq!(chosen(&rig), 1);
    // Killed and started again, in the middle.
    let again = Rig::after(&rig, Mode::Nftables, 2300);
    again.busy.lock().unwrap().extend([real(Protocol::Tcp, 2), real(Protocol::Tcp, 3)]);
    rig = again.restarted(&[2, 3]);
    rig.busy.lock().unwrap().remove(&real(Protocol::Tcp, 2));
    rig.later(16);
    assert_eq!(rig.servers.contents().rows.len(), 2);
    assert!(rig.later(500).is_empty(), "816 s of 900 have passed");
    let steps = rig.later(90);
    let order = positions(
        &steps,
        ["address - 192.168.0.10", "ipvs - tcp 192.168.0.10:80", "nft - element ip ipvs-proxy @record"],
    );
    assert!(order.is_sorted(), "{steps:?}");
    assert!(rig.servers.contents().rows.is_empty() && rig.addresses.contents().rows.is_empty());
    assert_eq!(since::drains(&rig.nft.contents().rows).len(), 0);
    assert_eq!(chosen(&rig), 1);
    assert!(rig.later(60).is_empty());
}

#[test]
fn new_connections_are_nftables_before_the_weights_are_nothing() {
    let before = Rig::web();
    let mut rig = Rig::after(&before, Mode::Nftables, 2000);
    rig.busy.lock().unwrap().extend([real(Protocol::Tcp, 2), real(Protocol::Tcp, 3)]);
    rig.receive(Event::Reset);
    rig.service("web", 10, "TCP");
    rig.endpoints("web", "TCP", &[2, 3]);
    rig.complete();
    let steps = rig.work();
    let order = positions(
        &steps,
        ["nft ~ element ip ipvs-proxy @services", "nft + element ip ipvs-proxy @draining", "ipvs ~ tcp"],
    );
    assert!(order.is_sorted(), "{steps:?}");
    // Back in the middle: everything serves as before.
    let mut rig = Rig::after(&rig, Mode::Ipvs, 2100).restarted(&[2, 3]);
    assert_eq!(endpoints_in_service(&rig).len(), 2);
    assert_eq!(since::drains(&rig.nft.contents().rows).len(), 0);
    assert!(!rig.nft.contents().rows.keys().any(|key| key.to_string().contains("@endpoints")));
    assert!(rig.later(1000).is_empty());
}

#[test]
fn a_service_that_goes_while_its_virtual_server_retires_takes_it_along() {
    let before = Rig::web();
    let rig = Rig::after(&before, Mode::Nftables, 2000);
    rig.busy.lock().unwrap().insert(real(Protocol::Tcp, 2));
    let mut rig = rig.restarted(&[2, 3]);
    assert!(!rig.servers.contents().rows.is_empty());
    rig.receive(Event::Delete { key: "services/default/web".to_owned(), revision: 2 });
    rig.work();
    assert!(rig.servers.contents().rows.is_empty() && rig.addresses.contents().rows.is_empty());
}

#[test]
fn on_the_way_to_ipvs_nftables_chooses_until_server_and_address_stand() {
    let before = Rig::web();
    let mut nftables = Rig::after(&before, Mode::Nftables, 2000).restarted(&[2, 3]);
    nftables.later(20);
    assert!(nftables.servers.contents().rows.is_empty(), "nothing was connected");
    let mut rig = Rig::after(&nftables, Mode::Ipvs, 3000);
    rig.addresses.contents().errors.push_back(Some(16));
    rig.receive(Event::Reset);
    rig.service("web", 10, "TCP");
    rig.endpoints("web", "TCP", &[2, 3]);
    rig.complete();
    let mut steps = rig.work();
    let chosen =
        |rig: &Rig| rig.nft.contents().rows.keys().filter(|key| key.to_string().contains("@endpoints")).count();
    assert_eq!(chosen(&rig), 1, "the address is not local yet: {steps:?}");
    steps.extend(rig.later(60));
    let order = positions(
        &steps,
        [
            "nft + element ip ipvs-proxy @record { 192.168.0.10",
            "ipvs + tcp 192.168.0.10:80",
            "address + 192.168.0.10",
            "nft ~ element ip ipvs-proxy @services",
            "nft - list ip ipvs-proxy @endpoints",
        ],
    );
    assert!(order.is_sorted(), "{steps:#?}");
    assert_eq!(chosen(&rig), 0);
    assert_eq!(endpoints_in_service(&rig).len(), 2);
    assert!(rig.later(60).is_empty());
}

#[test]
fn an_endpoint_that_comes_back_gets_its_weight_and_is_not_made_anew() {
    let mut rig = Rig::web();
    rig.busy.lock().unwrap().insert(real(Protocol::Tcp, 2));
    rig.endpoints("web", "TCP", &[3]);
    rig.work();
    rig.endpoints("web", "TCP", &[2, 3]);
    assert_eq!(rig.work(), ["ipvs ~ tcp 192.168.0.10:80 -> 172.7.22.2:80".to_owned(), since_when('-', 2)]);
    rig.busy.lock().unwrap().clear();
    assert!(rig.later(60).is_empty(), "its drain is forgotten");
}

#[test]
fn a_drain_that_outlives_its_grace_period_is_cut() {
    let mut rig = Rig::web();
    rig.busy.lock().unwrap().insert(real(Protocol::Tcp, 2));
    rig.endpoints("web", "TCP", &[3]);
    rig.work();
    assert!(rig.later(890).is_empty());
    assert_eq!(rig.later(15), ["ipvs - tcp 192.168.0.10:80 -> 172.7.22.2:80".to_owned(), since_when('-', 2)]);
}

/// What a step of the drain of an endpoint of `web` is about, in the set of drains.
fn since_when(verb: char, last: u8) -> String {
    format!("nft {verb} element ip ipvs-proxy @draining {{ 192.168.0.10 . tcp . 80 . 172.7.22.{last} . 80 }}")
}

#[test]
fn the_bound_of_a_drain_goes_on_through_restarts_and_is_not_left_behind() {
    let mut rig = Rig::web();
    rig.busy.lock().unwrap().extend([real(Protocol::Tcp, 2), real(Protocol::Tcp, 3)]);
    rig.endpoints("web", "TCP", &[4]);
    rig.later(10);
    let mut boot = 1010;
    for _ in 0..3 {
        // 250 s each, of 900.
        boot += 250;
        let next = Rig::at_boot(boot, rig.nft.clone(), rig.servers.clone(), rig.addresses.clone());
        next.busy.lock().unwrap().extend([real(Protocol::Tcp, 2), real(Protocol::Tcp, 3)]);
        rig = next.restarted(&[4]);
        assert!(rig.work().is_empty(), "both drain as before");
        assert!(rig.later(1).is_empty());
    }
    assert!(rig.later(140).is_empty(), "891 s have passed");
    let gone = rig.later(15);
    assert_eq!(gone.iter().filter(|step| step.starts_with("ipvs - ")).count(), 2, "{gone:?}");
    assert!(gone.contains(&since_when('-', 2)) && gone.contains(&since_when('-', 3)), "{gone:?}");
    // An endpoint that is back when this program is has all of its time again.
    rig.busy.lock().unwrap().insert(real(Protocol::Tcp, 4));
    rig.endpoints("web", "TCP", &[5]);
    rig.work();
    let mut rig = Rig::at_boot(boot + 800, rig.nft, rig.servers, rig.addresses).restarted(&[4, 5]);
    rig.busy.lock().unwrap().insert(real(Protocol::Tcp, 4));
    rig.endpoints("web", "TCP", &[5]);
    rig.work();
    assert!(rig.later(800).is_empty());
    assert_eq!(since::drains(&rig.nft.contents().rows).len(), 1);
}

#[test]
fn a_service_made_again_while_an_endpoint_drained_has_its_endpoints_and_no_other() {
    let mut rig = Rig::web();
    rig.busy.lock().unwrap().insert(real(Protocol::Tcp, 2));
    rig.endpoints("web", "TCP", &[3]);
    assert!(rig.work().contains(&since_when('+', 2)));
    rig.receive(Event::Delete { key: "services/default/web".to_owned(), revision: 2 });
    let steps = rig.work();
    assert!(
        steps.contains(&"ipvs - tcp 192.168.0.10:80".to_owned()) && steps.contains(&since_when('-', 2)),
        "{steps:?}"
    );
    assert!(rig.servers.contents().rows.is_empty());
    assert!(rig.later(1).is_empty(), "nobody is found to have changed anything");
    rig.service("web", 10, "TCP");
    rig.work();
    let reals = |rig: &Rig| rig.servers.contents().rows.keys().filter(|key| matches!(key, RowKey::Real(_))).count();
    assert_eq!((reals(&rig), endpoints_in_service(&rig)), (1, vec![real(Protocol::Tcp, 3)]));
    assert!(rig.later(60).is_empty());
    // Back within one change, nothing has happened.
    rig.busy.lock().unwrap().insert(real(Protocol::Tcp, 3));
    rig.endpoints("web", "TCP", &[2]);
    rig.work();
    rig.receive(Event::Delete { key: "services/default/web".to_owned(), revision: 3 });
    rig.service("web", 10, "TCP");
    assert!(rig.work().is_empty());
    assert_eq!(reals(&rig), 2);
}

#[test]
fn no_address_turns_local_before_the_masquerade_stands() {
    let mut rig = Rig::new();
    rig.nft.contents().errors.extend([None, Some(95)]);
    rig.receive(Event::Reset);
    rig.service("web", 10, "TCP");
    rig.complete();
    assert!(!rig.work().iter().any(|line| line.starts_with("address")));
    assert!(rig.later(60).contains(&"address + 192.168.0.10/32 dev kube-ipvs0".to_owned()));
}

#[test]
fn no_address_turns_local_before_ipvs_has_its_connections_tracked() {
    let mut rig = Rig::new();
    rig.sysctls.contents().rows.clear();
    rig.sysctls.refuse(tracking(), 30);
    rig.receive(Event::Reset);
    rig.service("web", 10, "TCP");
    rig.complete();
    let steps = rig.work();
    assert!(steps.contains(&"ipvs + tcp 192.168.0.10:80".to_owned()), "{steps:?}");
    assert!(!steps.iter().any(|line| line.starts_with("address")), "{steps:?}");
    rig.sysctls.allow(&tracking());
    let steps = rig.later(60);
    assert!(steps.contains(&"address + 192.168.0.10/32 dev kube-ipvs0".to_owned()), "{steps:?}");
}

#[test]
fn what_others_change_is_found_by_notification_or_audit() {
    let mut rig = Rig::web();
    rig.addresses.contents().rows.clear();
    assert!(rig.work().is_empty());
    rig.proxy.touched(Touched::Links);
    assert_eq!(rig.work(), ["address + 192.168.0.10/32 dev kube-ipvs0"]);
    rig.servers.contents().rows.clear();
    assert_eq!(rig.later(1).len(), 3, "one virtual and two real servers");
}

#[test]
fn the_record_is_marked_whole_behind_the_pass_that_put_the_adopted_servers_in_order() {
    let marker = record::marker_key(IpFamily::V4);
    let mut rig = Rig::new();
    let left = RowKey::Virtual(VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, 99].into(), port: 80 });
    let value = Row::from(VirtualServer::new("rr".to_owned(), None));
    rig.servers.contents().rows.insert(left, Observed { value, owner: Owner::Ours });
    rig.work();
    let has_marker = |rig: &Rig| rig.nft.contents().rows.contains_key(&record::marker_key(IpFamily::V4));
    assert!(!has_marker(&rig), "a first start that finds no source adopts nothing for good");
    rig.receive(Event::Reset);
    rig.service("api", 11, "TCP");
    rig.servers.contents().errors.extend([None, Some(16)]);
    rig.complete();
    rig.work();
    assert!(!has_marker(&rig), "the kernel refused to give up what was adopted");
    rig.later(1);
    assert_eq!(rig.servers.contents().rows.len(), 1, "only what is desired");
    let since = |rig: &Rig| rig.nft.contents().rows.get(&marker).map(|row| row.value.clone());
    let first = since(&rig);
    assert_eq!(first, Some(record::marker(IpFamily::V4, 1_790_000_001).1));
    let mut again = Rig::on(rig.nft.clone(), rig.servers.clone(), rig.addresses.clone());
    again.receive(Event::Reset);
    again.service("api", 11, "TCP");
    again.complete();
    again.later(100);
    assert_eq!(since(&again), first, "a marker that is there stays as it is");
}

#[test]
fn what_stands_on_our_link_is_adopted_while_the_record_is_not_whole_and_never_again() {
    let server = |last: u8| {
        RowKey::Virtual(VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, last].into(), port: 80 })
    };
    let link = IfName::new(vip::LINK_NAME).unwrap();
    let leave = |rig: &Rig, last: u8, on_link: bool| {
        let value = Row::from(VirtualServer::new("rr".to_owned(), None));
        rig.servers.contents().rows.insert(server(last), Observed { value, owner: Owner::Foreign });
        let address = AddressKey { link: link.clone(), addr: [192, 168, 0, last].into(), len: 32 };
        if on_link {
            rig.addresses.contents().rows.insert(address, Observed { value: Address, owner: Owner::Ours });
        }
    };
    let stands = |rig: &Rig, last: u8| rig.servers.contents().rows.contains_key(&server(last));
    let mut rig = Rig::new();
    leave(&rig, 77, true);
    leave(&rig, 78, false);
    // Without the record nothing of IPVS is listed, for it would be taken for somebody else's.
    rig.nft.contents().errors.push_back(Some(16));
    rig.receive(Event::Reset);
    rig.service("api", 11, "TCP");
    rig.complete();
    rig.work();
    assert!(stands(&rig, 77) && !stands(&rig, 11));
    rig.later(1);
    assert!(!stands(&rig, 77), "left by a predecessor");
    assert!(stands(&rig, 78) && stands(&rig, 11));
    leave(&rig, 79, true);
    let mut again = Rig::on(rig.nft.clone(), rig.servers.clone(), rig.addresses.clone());
    again.receive(Event::Reset);
    again.service("api", 11, "TCP");
    again.complete();
    again.work();
    assert!(stands(&again, 79), "the record is whole and does not name it");
    assert_eq!(
        (again.nft.contents().observed, again.servers.contents().observed),
        (3, 2),
        "each listed once by a start"
    );
}

#[test]
fn what_stands_in_an_excluded_network_stays_at_a_take_over_and_in_either_mode() {
    let server = |addr: [u8; 4]| VirtualServerKey { protocol: Protocol::Tcp, addr: addr.into(), port: 80 };
    let (excluded, other) = ([192, 168, 99, 5], [192, 168, 0, 77]);
    let mut rig = Rig::new();
    for addr in [excluded, other] {
        let (service, value) = (server(addr), Row::from(VirtualServer::new("rr".to_owned(), None)));
        rig.servers.contents().rows.insert(RowKey::Virtual(service), Observed { value, owner: Owner::Foreign });
        let address = AddressKey { link: IfName::new(vip::LINK_NAME).unwrap(), addr: addr.into(), len: 32 };
        rig.addresses.contents().rows.insert(address, Observed { value: Address, owner: Owner::Ours });
    }
    let stands = |rig: &Rig, addr: [u8; 4]| {
        let at = rig.addresses.contents().rows.keys().any(|key| key.addr == IpAddr::from(addr));
        (rig.servers.contents().rows.contains_key(&RowKey::Virtual(server(addr))), at)
    };
    rig = rig.restarted(&[2, 3]);
    rig.later(1);
    assert_eq!(stands(&rig, other), (false, false), "left by a predecessor");
    assert_eq!(stands(&rig, excluded), (true, true));
    let mut rig = Rig::after(&rig, Mode::Nftables, 2000).restarted(&[2, 3]);
    for _ in 0..4 {
        rig.later(901);
    }
    assert_eq!(stands(&rig, excluded), (true, true));
    assert_eq!(stands(&rig, [192, 168, 0, 10]), (false, false), "nftables serves it");
}

/// Puts a virtual server with these endpoints into the kernel as somebody else.
fn foreign(rig: &Rig, pods: &[u8]) {
    let mut contents = rig.servers.contents();
    let value = Row::from(VirtualServer::new("rr".to_owned(), None));
    let service = real(Protocol::Tcp, 2).service;
    contents.rows.insert(RowKey::Virtual(service), Observed { value, owner: Owner::Foreign });
    for last in pods {
        let value = Row::Real(RealServer::new(1));
        contents.rows.insert(RowKey::Real(real(Protocol::Tcp, *last)), Observed { value, owner: Owner::Foreign });
    }
}

fn endpoints_in_service(rig: &Rig) -> Vec<RealServerKey> {
    let contents = rig.servers.contents();
    let serving = contents.rows.iter().filter_map(|(key, row)| match (key, &row.value) {
        (RowKey::Real(real), Row::Real(RealServer { weight: 1.., .. })) => Some(*real),
        _ => None,
    });
    serving.collect()
}

#[test]
fn a_virtual_server_of_somebody_else_at_a_desired_key_is_taken_over_whole() {
    let wanted = [real(Protocol::Tcp, 2), real(Protocol::Tcp, 3)];
    // There before the first listing.
    let mut rig = Rig::new();
    foreign(&rig, &[3, 9]);
    rig.receive(Event::Reset);
    rig.service("web", 10, "TCP");
    rig.endpoints("web", "TCP", &[2, 3]);
    rig.complete();
    rig.work();
    assert_eq!(endpoints_in_service(&rig), wanted, "the old endpoint takes no connection");
    rig.later(20);
    assert_eq!(rig.servers.contents().rows.len(), 3, "and is gone when it has none");
    // There while the proxy runs, before the Service is.
    let mut rig = Rig::new();
    foreign(&rig, &[3, 9]);
    rig.receive(Event::Reset);
    rig.complete();
    rig.work();
    assert_eq!(rig.servers.contents().rows.len(), 3, "nobody desires it");
    rig.service("web", 10, "TCP");
    rig.endpoints("web", "TCP", &[2, 3]);
    rig.work();
    assert_eq!(endpoints_in_service(&rig), wanted);
    rig.receive(Event::Delete { key: "services/default/web".to_owned(), revision: 2 });
    rig.later(20);
    assert!(rig.servers.contents().rows.is_empty(), "what was taken over goes as ours does");
}

#[test]
fn a_virtual_server_that_is_gone_when_its_endpoint_changes_is_made_again_at_once() {
    let mut rig = Rig::web();
    rig.servers.contents().rows.clear();
    rig.endpoints("web", "TCP", &[3, 4]);
    rig.work();
    assert_eq!(endpoints_in_service(&rig), [real(Protocol::Tcp, 3), real(Protocol::Tcp, 4)]);
    assert_eq!(rig.servers.contents().rows.len(), 3, "the endpoint that left is not made again");
}

#[test]
fn virtual_servers_are_listed_more_than_once_a_second_and_for_little_of_the_processor() {
    let (millis, micros) = (Duration::from_millis, Duration::from_micros);
    let pauses = [0, 100, 500, 700, 900, 60_000].map(|took| pause(micros(took)));
    assert_eq!(pauses, [500, 500, 500, 700, 900, 900].map(millis));
}

#[test]
fn virtual_servers_are_counted_twice_a_second_and_one_that_is_gone_is_back_then() {
    let mut rig = Rig::web();
    rig.work();
    let server = RowKey::Virtual(real(Protocol::Tcp, 2).service);
    for _ in 0..3 {
        rig.servers.contents().rows.clear();
        let next = rig.proxy.next();
        assert!(next > rig.now && next <= rig.now + Duration::from_millis(500), "next {next:?} after {:?}", rig.now);
        rig.now = next;
        rig.work();
        assert!(rig.servers.contents().rows.contains_key(&server));
        // Nobody fights about it any more.
        rig.now += Duration::from_secs(60);
        rig.work();
    }
}

#[test]
fn one_changed_server_is_repaired_in_place_and_nothing_is_listed_again() {
    let mut rig = Rig::new();
    rig.receive(Event::Reset);
    for last in 10..200 {
        let name = format!("s{last}");
        rig.service(&name, last, "TCP");
        rig.endpoints(&name, "TCP", &[2]);
    }
    rig.complete();
    rig.work();
    let listings = rig.servers.contents().observed;
    rig.servers.contents().rows.remove(&RowKey::Real(real(Protocol::Tcp, 2)));
    assert_eq!(rig.later(1), ["ipvs + tcp 192.168.0.10:80 -> 172.7.22.2:80"]);
    rig.servers.contents().rows.clear();
    assert_eq!(rig.later(1).len(), 2 * 190, "all of them as soon as one");
    assert_eq!(rig.servers.contents().observed, listings);
}

#[test]
fn an_address_turns_local_only_when_a_virtual_server_stands_behind_it() {
    let mut rig = Rig::new();
    rig.servers.contents().errors.extend([None, Some(2)]);
    rig.receive(Event::Reset);
    rig.service("web", 10, "TCP");
    rig.complete();
    assert!(!rig.work().iter().any(|line| line.starts_with("address")), "the kernel knows no such scheduler");
    assert!(rig.later(60).contains(&"address + 192.168.0.10/32 dev kube-ipvs0".to_owned()));
}

#[test]
fn a_virtual_address_whose_local_route_is_gone_is_made_again_and_routes_of_others_have_nothing_listed() {
    let mut rig = Rig::web();
    rig.work();
    let web = vip::address(&IfName::new(vip::LINK_NAME).unwrap(), [192, 168, 0, 10].into());
    let asked = |rig: &Rig| rig.routes.lock().unwrap().1;
    let before = asked(&rig);
    rig.proxy.unrouted(&BTreeSet::from([[10, 4, 7, 21].into()]));
    assert_eq!((rig.work(), asked(&rig)), (Vec::new(), before), "an address of somebody else");
    rig.routes.lock().unwrap().0.insert(web.clone());
    rig.proxy.unrouted(&BTreeSet::from([web.addr]));
    assert_eq!(rig.work(), ["address + 192.168.0.10/32 dev kube-ipvs0"]);
    assert_eq!((rig.work(), asked(&rig)), (Vec::new(), before + 1));
    // Where nobody said so the next listing finds it, that of a new start too.
    for touched in [true, false] {
        rig.routes.lock().unwrap().0.insert(web.clone());
        if touched {
            rig.proxy.touched(Touched::Links);
        } else {
            let routes = std::mem::take(&mut *rig.routes.lock().unwrap());
            rig = Rig::after(&rig, Mode::Ipvs, 1000);
            *rig.routes.lock().unwrap() = routes;
            rig.receive(Event::Reset);
            rig.service("web", 10, "TCP");
            rig.endpoints("web", "TCP", &[2, 3]);
            rig.complete();
        }
        let done = rig.work();
        assert!(done.contains(&"address + 192.168.0.10/32 dev kube-ipvs0".to_owned()), "{touched}: {done:?}");
    }
}

#[test]
fn a_row_that_somebody_keeps_undoing_is_put_back_ever_more_slowly_and_named() {
    let mut rig = Rig::web();
    let mut undone = 0;
    for _ in 0..300 {
        rig.now += Duration::from_millis(200);
        undone += usize::from(!std::mem::take(&mut rig.addresses.contents().rows).is_empty());
        rig.proxy.touched(Touched::Links);
        rig.work();
    }
    assert!((4..15).contains(&undone), "put back {undone} times in a minute");
    let rows = rig.proxy.tables().stack().stage("address").unwrap().status();
    assert!(format!("{rows:?}").contains("somebody else has undone it"), "{rows:?}");
    // Left alone, it is back for good, and a single deletion later is mended at once.
    rig.later(60);
    rig.later(120);
    rig.addresses.contents().rows.clear();
    rig.proxy.touched(Touched::Links);
    assert_eq!(rig.work(), ["address + 192.168.0.10/32 dev kube-ipvs0"]);
}

#[test]
fn a_virtual_server_that_the_kernel_does_not_give_up_stays_in_the_record() {
    let mut rig = Rig::web();
    rig.service("api", 11, "TCP");
    rig.work();
    let recorded = |rig: &Rig| rig.nft.contents().rows.contains_key(&record::key(&real(Protocol::Tcp, 2).service));
    rig.servers.contents().errors.push_back(Some(16));
    rig.receive(Event::Delete { key: "services/default/web".to_owned(), revision: 2 });
    rig.work();
    assert!(recorded(&rig), "it is still ours");
    rig.later(1);
    assert!(!recorded(&rig) && rig.servers.contents().rows.len() == 1, "gone, and the record with it");
}

#[test]
fn a_source_that_shows_nothing_is_believed_after_a_while_and_not_at_once() {
    let mut rig = Rig::web();
    rig.receive(Event::Reset);
    rig.complete();
    assert!(rig.work().is_empty());
    assert!(rig.proxy.alarm().unwrap().contains("shows nothing of 2 objects"));
    assert!(rig.later(59).is_empty());
    rig.service("web", 10, "TCP");
    rig.endpoints("web", "TCP", &[2, 3]);
    assert!(rig.later(60).is_empty(), "it is back");
    assert_eq!(rig.proxy.alarm(), None);
    rig.receive(Event::Reset);
    rig.complete();
    rig.work();
    assert!(rig.later(60).contains(&"address - 192.168.0.10/32 dev kube-ipvs0".to_owned()));
}

#[test]
fn a_first_listing_that_shows_nothing_takes_nothing_of_an_earlier_run_before_its_time() {
    let before = Rig::web();
    let mut rig = Rig::on(before.nft.clone(), before.servers.clone(), before.addresses.clone());
    rig.receive(Event::Reset);
    rig.complete();
    assert_eq!(rig.work(), ["link + kube-ipvs0"], "the link's table is new in this rig");
    assert!(rig.proxy.alarm().unwrap().contains("shows 0 of 1 addresses and ports"));
    assert!(rig.later(59).is_empty());
    assert!(rig.later(1).contains(&"address - 192.168.0.10/32 dev kube-ipvs0".to_owned()));
    assert_eq!(rig.proxy.alarm(), None);
}

#[test]
fn a_malformed_service_goes_on_as_the_kernel_remembers_it_until_it_is_gone() {
    let before = Rig::web();
    let mut rig = Rig::on(before.nft.clone(), before.servers.clone(), before.addresses.clone());
    rig.receive(Event::Reset);
    rig.put("services/default/web", &json!({"kind": "Service", "metadata": {"name": "web"}}));
    rig.complete();
    assert_eq!(rig.work(), ["link + kube-ipvs0"]);
    assert_eq!(rig.proxy.remembered().count(), 1);
    rig.receive(Event::Delete { key: "services/default/web".to_owned(), revision: 2 });
    assert!(rig.work().contains(&"ipvs - tcp 192.168.0.10:80".to_owned()));
    assert_eq!(rig.proxy.remembered().count(), 0);
}

#[test]
fn a_malformed_service_keeps_its_external_address_for_an_external_one() {
    let mut before = Rig::web();
    let spec = json!({"clusterIP": "192.168.0.10", "externalIPs": ["10.4.7.99"],
        "ports": [{"name": "main", "port": 80}]});
    before.put("services/default/web", &json!({"kind": "Service", "metadata": {"name": "web"}, "spec": spec}));
    before.work();
    for mode in [Mode::Ipvs, Mode::Nftables] {
        let before = Rig::after(&before, mode, 1000).restarted_as(&spec);
        let mut rig = Rig::after(&before, mode, 1000);
        rig.receive(Event::Reset);
        rig.put("services/default/web", &json!({"kind": "Service"}));
        rig.endpoints("web", "TCP", &[2, 3]);
        rig.complete();
        let done = rig.work();
        assert!(done.iter().all(|step| step.starts_with("link")), "{mode:?}: {done:?}");
        let plan = rig.proxy.claims().plan(&crate::object::ObjectName::new("default", "web")).unwrap();
        let kinds: Vec<_> = plan.frontends().iter().map(|(key, frontend)| (key.to_string(), frontend.kind)).collect();
        let expected = [("tcp 10.4.7.99:80", Kind::LoadBalancer), ("tcp 192.168.0.10:80", Kind::ClusterIp)];
        assert_eq!(kinds, expected.map(|(key, kind)| (key.to_owned(), kind)), "{mode:?}");
    }
}

#[test]
fn a_service_whose_only_slice_is_malformed_keeps_the_endpoints_that_the_kernel_remembers() {
    let before = Rig::web();
    let mut rig = Rig::on(before.nft.clone(), before.servers.clone(), before.addresses.clone());
    rig.receive(Event::Reset);
    rig.service("web", 10, "TCP");
    rig.put("endpointslices/default/web-1", &json!({"kind": "EndpointSlice", "metadata": {"name": "web-1"}}));
    rig.complete();
    assert_eq!(rig.work(), ["link + kube-ipvs0"]);
    rig.service("other", 11, "TCP");
    assert_eq!(rig.work().len(), 4, "others go on");
    rig.endpoints("web", "TCP", &[3]);
    assert!(
        rig.work().contains(&"ipvs ~ tcp 192.168.0.10:80 -> 172.7.22.2:80".to_owned()),
        "a good slice counts at once"
    );
}

#[test]
fn a_service_whose_address_cannot_be_virtual_keeps_its_earlier_one() {
    let mut rig = Rig::web();
    let ports = json!([{"name": "main", "port": 80}]);
    let spec = json!({"clusterIP": "172.7.21.9", "ports": ports});
    rig.put("services/default/web", &json!({"kind": "Service", "metadata": {"name": "web"}, "spec": spec}));
    assert!(rig.work().is_empty());
    assert!(rig.proxy.misplaced().values().any(|reason| reason.contains("in the Pod network")));
    rig.endpoints("web", "TCP", &[2, 3, 4]);
    assert_eq!(rig.work(), ["ipvs + tcp 192.168.0.10:80 -> 172.7.22.4:80"], "its endpoints are followed");
}

#[test]
fn a_service_whose_address_cannot_be_virtual_follows_its_endpoints_after_a_restart_too() {
    let before = Rig::web();
    let mut rig = Rig::on(before.nft.clone(), before.servers.clone(), before.addresses.clone());
    rig.receive(Event::Reset);
    let spec = json!({"clusterIP": "172.7.21.9", "ports": [{"name": "main", "port": 80}]});
    rig.put("services/default/web", &json!({"kind": "Service", "metadata": {"name": "web"}, "spec": spec}));
    rig.endpoints("web", "TCP", &[2, 3, 4]);
    rig.complete();
    assert_eq!(rig.work(), ["link + kube-ipvs0", "ipvs + tcp 192.168.0.10:80 -> 172.7.22.4:80"]);
    assert_eq!(rig.proxy.misplaced().len(), 1);
}

#[test]
fn zones_that_cannot_be_followed_are_named() {
    let mut rig = Rig::web();
    let advice = |rig: &Rig| super::status::ProxyStatus::of(&rig.proxy, "n", &[], rig.now).advice;
    assert_eq!(advice(&rig), [""; 0]);
    let spec = json!({"clusterIP": "192.168.0.10", "trafficDistribution": "PreferClose",
        "ports": [{"name": "main", "port": 80}]});
    rig.put("services/default/web", &json!({"kind": "Service", "metadata": {"name": "web"}, "spec": spec}));
    rig.work();
    let not_served = |rig: &Rig| super::status::ProxyStatus::of(&rig.proxy, "n", &[], rig.now).not_served;
    let asked = "spec.trafficDistribution: PreferSameZone, for which no endpoint has a hint: all are used";
    assert_eq!(not_served(&rig)[0].fields, [asked]);
    assert_eq!(advice(&rig), [""; 0], "nothing depends on the zone");
    let slice = |endpoints: serde_json::Value| {
        json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "main", "port": 80}]})
    };
    let hint = json!({"addresses": ["172.7.22.2"], "hints": {"forZones": [{"name": "z1"}]}});
    rig.put("endpointslices/default/web-1", &slice(json!([hint])));
    rig.work();
    assert!(not_served(&rig).is_empty(), "{:?}", not_served(&rig));
    assert!(advice(&rig)[0].contains("set --node-zone"), "{:?}", advice(&rig));
    rig.proxy.learn(|facts| facts.zone = Some("z1".to_owned()));
    assert_eq!(advice(&rig), [""; 0]);
}

#[test]
fn a_report_behind_one_change_reads_as_much_among_ten_thousand_services_as_among_ten() {
    let reads = |services: u16| {
        let mut rig = Rig::after(&Rig::new(), Mode::Nftables, 1000);
        rig.receive(Event::Reset);
        for number in 0..services {
            let [high, low] = number.to_be_bytes();
            let spec = json!({"clusterIP": format!("10.96.{high}.{low}"), "ports": [{"name": "main", "port": 80}]});
            let name = format!("s{number}");
            rig.put(
                &format!("services/default/{name}"),
                &json!({"kind": "Service", "metadata": {"name": name}, "spec": spec}),
            );
        }
        rig.service("web", 10, "TCP");
        rig.endpoints("web", "TCP", &[2, 3]);
        rig.complete();
        rig.work();
        let start = rig.proxy.view().reads();
        rig.endpoints("web", "UDP", &[2]);
        rig.work();
        let planned = rig.proxy.view().reads();
        let status = super::status::ProxyStatus::of(&rig.proxy, "n", &[], rig.now);
        assert_eq!(status.services, usize::from(services) + 1);
        assert_eq!(status.not_served[0].fields, ["spec.ports: tcp \"main\", which no EndpointSlice has a port for"]);
        (planned - start, rig.proxy.view().reads() - planned)
    };
    let few = reads(10);
    assert!(few.0 > 0, "who plans a Service reads it");
    assert_eq!(few.1, 0, "who reports reads nothing");
    assert_eq!(reads(10_000), few);
}

#[test]
fn conflicts_and_elements_that_were_left_out_have_lists_of_their_own() {
    let mut rig = Rig::new();
    rig.receive(Event::Reset);
    for (last, name, made) in [(11, "old", "2026-01-01T00:00:00Z"), (12, "young", "2026-02-01T00:00:00Z")] {
        let spec = json!({"clusterIP": format!("192.168.0.{last}"), "externalIPs": ["10.4.7.9", name],
            "ports": [{"name": "main", "port": 80}]});
        let metadata = json!({"name": name, "creationTimestamp": made});
        rig.put(&format!("services/default/{name}"), &json!({"kind": "Service", "metadata": metadata, "spec": spec}));
    }
    rig.complete();
    rig.work();
    let status = super::status::ProxyStatus::of(&rig.proxy, "n", &[], rig.now);
    assert_eq!(status.refused, []);
    let conflicts: Vec<_> = status.conflicts.iter().map(|c| [&*c.place, &c.served, &c.not_served, &c.reason]).collect();
    assert_eq!(conflicts, [["tcp 10.4.7.9:80", "services/default/old", "services/default/young", "which is older"]]);
    let skipped: Vec<_> = status.skipped.iter().map(|skipped| (&*skipped.object, &*skipped.elements[0])).collect();
    assert_eq!(skipped[0].0, "services/default/old");
    assert!(skipped[0].1.starts_with("spec.externalIPs[1]: \"old\"; accepted: "), "{skipped:?}");
    assert_eq!(skipped.len(), 2);
    assert!(status.ok, "neither hinders the others");
}

#[test]
fn what_is_said_of_a_service_goes_with_it_and_with_its_slice() {
    let mut rig = Rig::web();
    let status = |rig: &Rig| {
        let status = super::status::ProxyStatus::of(&rig.proxy, "n", &[], rig.now);
        let fields = status.not_served.iter().map(|asking| (asking.object.clone(), asking.fields.len()));
        fields.collect::<Vec<_>>()
    };
    assert_eq!(status(&rig), []);
    rig.endpoints("web", "UDP", &[2]);
    rig.work();
    assert_eq!(status(&rig), [("services/default/web".to_owned(), 1)]);
    rig.endpoints("web", "TCP", &[2]);
    rig.work();
    assert_eq!(status(&rig), []);
    rig.endpoints("web", "UDP", &[2]);
    rig.work();
    rig.receive(Event::Delete { key: "services/default/web".to_owned(), revision: 2 });
    rig.work();
    assert_eq!(status(&rig), []);
}

/// A rig with a Service beside `web`, whose two endpoints are meant for clients of two zones.
fn near() -> Rig {
    let mut rig = Rig::web();
    rig.service("near", 11, "TCP");
    let endpoint = |last: u8, zone: &str| {
        json!({"addresses": [format!("172.7.22.{last}")], "nodeName": "hdss7-22.host.com",
            "hints": {"forZones": [{"name": zone}]}})
    };
    let json = json!({
        "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [endpoint(4, "z1"), endpoint(5, "z2")],
        "metadata": {"name": "near-1", "labels": {"kubernetes.io/service-name": "near"}},
        "ports": [{"name": "main", "port": 80, "protocol": "TCP"}],
    });
    rig.put("endpointslices/default/near-1", &json);
    rig.work();
    rig
}

#[test]
fn a_change_of_this_node_changes_the_rows_that_depend_on_it() {
    let mut rig = near();
    rig.proxy.learn(|facts| facts.zone = Some("z1".to_owned()));
    let drain = "nft + element ip ipvs-proxy @draining { 192.168.0.11 . tcp . 80 . 172.7.22.5 . 80 }";
    assert_eq!(rig.work(), [drain, "ipvs ~ tcp 192.168.0.11:80 -> 172.7.22.5:80"], "web stays");
    rig.proxy.learn(|facts| facts.zone = None);
    assert!(rig.work().contains(&"ipvs ~ tcp 192.168.0.11:80 -> 172.7.22.5:80".to_owned()), "it is back");
    let own: IpAddr = [172, 7, 22, 2].into();
    rig.proxy.learn(|facts| {
        facts.own.all.insert(own);
    });
    assert_eq!(
        rig.work(),
        [
            "nft + element ip ipvs-proxy @hairpin { 172.7.22.2 . 172.7.22.2 }",
            "nft + element ip ipvs-proxy @node-port-addresses { 172.7.22.2 }"
        ],
        "an endpoint of web is here now"
    );
    rig.proxy.learn(|facts| {
        facts.own.all.remove(&own);
    });
    assert_eq!(
        rig.work(),
        [
            "nft - element ip ipvs-proxy @hairpin { 172.7.22.2 . 172.7.22.2 }",
            "nft - element ip ipvs-proxy @node-port-addresses { 172.7.22.2 }"
        ]
    );
    rig.proxy.learn(|facts| facts.own.primary.v4 = Some(own));
    assert_eq!(rig.work(), [""; 0], "nothing depends on that here");
}

/// The Node object of the node, with `spec`.
fn node(zone: &str, spec: &serde_json::Value, beat: u8) -> serde_json::Value {
    json!({
        "kind": "Node", "spec": spec,
        "metadata": {"name": "hdss7-21.host.com", "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {"conditions": [{"type": "Ready", "lastHeartbeatTime": format!("2026-11-26T00:{beat:02}:00Z")}]},
    })
}

const NODE: &str = "nodes/hdss7-21.host.com";

#[test]
fn the_zone_of_the_node_object_is_followed_and_a_heartbeat_causes_no_work() {
    let mut rig = near();
    rig.put(NODE, &node("z1", &json!({}), 0));
    let drain = "nft + element ip ipvs-proxy @draining { 192.168.0.11 . tcp . 80 . 172.7.22.5 . 80 }";
    let weight = "ipvs ~ tcp 192.168.0.11:80 -> 172.7.22.5:80";
    assert_eq!(rig.work(), [drain, weight], "web stays");
    let reads = rig.proxy.view().reads();
    rig.put(NODE, &node("z1", &json!({}), 5));
    assert_eq!((rig.work(), rig.proxy.view().reads()), (Vec::new(), reads), "no object is read for a heartbeat");
    rig.put(NODE, &node("z1", &json!({"podCIDRs": ["172.7.21.0/24"]}), 5));
    assert_eq!((rig.work(), rig.proxy.view().reads()), (Vec::new(), reads), "nothing depends on the Pod network");
    rig.receive(Event::Delete { key: NODE.to_owned(), revision: 2 });
    assert!(rig.work().contains(&weight.to_owned()), "it is back");
}

#[test]
fn who_is_a_pod_follows_the_networks_of_the_node_object_where_that_is_asked_for() {
    let mut rig = Rig::web();
    let conditions = |rig: &Rig| {
        let contents = rig.nft.contents();
        let rows = contents.rows.iter().map(|(key, row)| format!("{key} {}", row.value));
        rows.filter(|row| row.contains("choose/ipvs"))
            .filter_map(|row| Some(row.split_once(" saddr ")?.1.to_owned()))
            .collect::<Vec<_>>()
    };
    assert!(conditions(&rig)[0].contains("172.7.0.0/16"), "{:?}", conditions(&rig));
    rig.proxy.learn(|facts| facts.pods_of_node = true);
    rig.work();
    assert!(!format!("{:?}", conditions(&rig)).contains("172.7."), "{:?}", conditions(&rig));
    let advice = |rig: &Rig| super::status::ProxyStatus::of(&rig.proxy, "hdss7-21.host.com", &[], rig.now).advice;
    assert!(advice(&rig)[0].contains("has no Node hdss7-21.host.com"), "{:?}", advice(&rig));
    for network in ["172.7.21.0/24", "172.7.31.0/24"] {
        rig.put(NODE, &node("z1", &json!({"podCIDRs": [network]}), 0));
        rig.work();
        assert!(conditions(&rig)[0].contains(network), "{:?}", conditions(&rig));
        assert_eq!(advice(&rig), [""; 0]);
    }
}

#[test]
fn a_node_that_leaves_or_is_gone_is_not_eligible_and_one_that_never_was_is() {
    let mut rig = Rig::web();
    assert_eq!(rig.proxy.ineligible(), None);
    let tainted = json!({"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]});
    for (spec, reason) in [(json!({}), None), (tainted, Some("spec.taints")), (json!({}), None)] {
        rig.put(NODE, &node("z1", &spec, 0));
        assert_eq!(rig.work(), [""; 0]);
        let found = rig.proxy.ineligible();
        assert_eq!(
            found.as_deref().map(|text| text.contains(reason.unwrap_or("?"))),
            reason.map(|_| true),
            "{found:?}"
        );
    }
    rig.receive(Event::Delete { key: NODE.to_owned(), revision: 2 });
    rig.work();
    assert_eq!(rig.proxy.ineligible().as_deref(), Some("Node hdss7-21.host.com is gone from the source"));
    rig.put("nodes/hdss7-22.host.com", &json!({"kind": "Node", "metadata": {"name": "hdss7-22.host.com"}}));
    rig.work();
    assert!(rig.proxy.ineligible().is_some(), "another Node");
}

#[test]
fn an_object_that_stands_in_two_files_keeps_no_deleted_service_alive() {
    let before = Rig::web();
    let mut rig = Rig::on(before.nft.clone(), before.servers.clone(), before.addresses.clone());
    rig.receive(Event::Reset);
    rig.service("other", 11, "TCP");
    let notes = vec!["Service/default/other stands in a.yaml as well, and that one counts".to_owned()];
    rig.receive(Event::Notes { source: "b.yaml".to_owned(), notes });
    rig.complete();
    rig.work();
    rig.later(61);
    assert!(!rig.servers.contents().rows.keys().any(|key| key.to_string().contains("192.168.0.10:80")));
}

#[test]
fn a_file_that_cannot_be_read_keeps_those_alive_that_it_may_hold_and_no_other() {
    let mut before = Rig::web();
    before.service("api", 11, "TCP");
    before.work();
    let mut rig = Rig::on(before.nft.clone(), before.servers.clone(), before.addresses.clone());
    let stands = |rig: &Rig, last: u8| {
        let of = format!("192.168.0.{last}:80");
        rig.servers.contents().rows.keys().any(|key| key.to_string().contains(&of))
    };
    let torn = |text: &str| Event::Invalid {
        source: "torn.yaml".to_owned(),
        reason: "torn".to_owned(),
        words: cluster::Words::of(text.as_bytes()),
    };
    rig.receive(Event::Reset);
    rig.service("other", 12, "TCP");
    rig.receive(torn("kind: Service\nmetadata: {name: api"));
    rig.complete();
    rig.work();
    rig.later(61);
    assert_eq!((stands(&rig, 10), stands(&rig, 11)), (false, true), "web is deleted, api may stand in the file");
    rig.receive(torn("kind: Service\nmetadata: {name: third"));
    rig.work();
    assert!(!stands(&rig, 11), "the file does not name it any more");
}

proptest! {
    /// Whatever the kernel refuses on the way, in the end it holds what is wanted, and then nothing is left to do.
    #[test]
    fn any_refusal_at_any_step_converges_later(
        refusals in prop::collection::vec(prop::collection::vec(prop::option::weighted(0.4, prop::sample::select(vec![1, 2, 3, 12, 16, 22, 105])), 0..12), 3),
        changes in prop::collection::vec((10u8..13, prop::collection::vec(2u8..6, 0..4)), 1..6),
    ) {
        let mut rig = Rig::new();
        rig.nft.contents().errors.extend(&refusals[0]);
        rig.servers.contents().errors.extend(&refusals[1]);
        rig.addresses.contents().errors.extend(&refusals[2]);
        rig.receive(Event::Reset);
        rig.complete();
        for (last, pods) in &changes {
            let name = format!("s{last}");
            rig.service(&name, *last, "TCP");
            rig.endpoints(&name, "TCP", pods);
            rig.later(1);
        }
        for _ in 0..40 {
            rig.later(61);
        }
        for stage in rig.proxy.tables().stack().stages() {
            prop_assert!(stage.status().is_done(), "{}: {:?}", stage.name(), stage.status());
        }
        let wanted: BTreeMap<u8, BTreeSet<u8>> =
            changes.iter().map(|(last, pods)| (*last, pods.iter().copied().collect())).collect();
        let rows = wanted.len() + wanted.values().map(BTreeSet::len).sum::<usize>();
        prop_assert_eq!(rig.servers.contents().rows.len(), rows);
        prop_assert_eq!(rig.addresses.contents().rows.len(), wanted.len());
        prop_assert!(rig.later(61).is_empty());
    }
}

#[test]
fn what_nobody_announced_is_found_by_the_audit() {
    use daemon::worker::{Cause, Work};

    let mut rig = Rig::web();
    rig.later(1);
    rig.log.lock().unwrap().clear();
    let (addresses, nft, log, now) = (rig.addresses.clone(), rig.nft.clone(), rig.log.clone(), rig.now);
    let shell = daemon::shell::Shell::new(&super::PROGRAM);
    let mut work = super::worker::ProxyWork::new(rig.proxy, super::checks::Checks::default(), shell);
    addresses.contents().rows.clear();
    nft.contents().rows.retain(|key, _| matches!(key, nft_rows::RowKey::Table(_)));
    work.pass(Cause::Timer, now);
    assert!(log.lock().unwrap().is_empty(), "nobody has said anything");
    work.invalidate_all();
    work.pass(Cause::Timer, now);
    let done = log.lock().unwrap().clone();
    assert!(done.contains(&"address + 192.168.0.10/32 dev kube-ipvs0".to_owned()), "{done:?}");
    assert!(done.iter().any(|line| line.starts_with("nft + element ip ipvs-proxy @services")), "{done:?}");
}

#[test]
fn a_restart_is_in_order_with_the_pass_behind_its_listing() {
    let before = Rig::web();
    let mut rig = Rig::on(before.nft.clone(), before.servers.clone(), before.addresses.clone());
    rig.receive(Event::Reset);
    rig.service("web", 10, "TCP");
    rig.endpoints("web", "TCP", &[2, 3]);
    rig.complete();
    rig.proxy.work(rig.now);
    for (name, counts) in rig.proxy.tables().stack().counts() {
        // Readiness waits for it, and the next pass may be half a second away.
        assert_eq!(counts.done, counts.desired, "{name}");
    }
    assert!(rig.log.lock().unwrap().iter().all(|line| line.starts_with("link +")), "{:?}", rig.log);
}

#[test]
fn a_service_has_the_scheduler_of_its_annotation_or_everybodys_where_the_kernel_has_not_its_own() {
    let mut rig = Rig::new();
    rig.endpoints("web", "TCP", &[2]);
    rig.complete();
    let key = RowKey::Virtual(VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, 10].into(), port: 80 });
    for (asked, has) in
        [("mh,mh-fallback", "scheduler mh,mh-fallback"), ("nosuch", "scheduler rr"), ("wlc", "scheduler wlc")]
    {
        let metadata = json!({"name": "web", "annotations": {"ipvs-proxy/scheduler": asked}});
        let spec = json!({"clusterIP": "192.168.0.10", "ports": [{"name": "main", "port": 80}]});
        rig.put("services/default/web", &json!({"kind": "Service", "metadata": metadata, "spec": spec}));
        rig.work();
        assert_eq!(rig.servers.contents().rows[&key].value.to_string(), has);
        let named =
            rig.proxy.findings().iter().any(|(_, found)| found.not_served.iter().any(|text| text.contains("nosuch")));
        assert_eq!(named, asked == "nosuch");
    }
}
