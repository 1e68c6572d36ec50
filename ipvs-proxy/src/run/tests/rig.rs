//! A proxy on tables in memory, with handles on them.

use super::*;

/// The tables that a new start finds.
pub(super) type Kept =
    (FakeTable<nft_rows::RowKey, nft_rows::Row>, FakeTable<ServerKey, Server>, FakeTable<AddressKey, Address>);

/// A proxy on tables in memory, with handles on them.
pub(super) struct Rig {
    pub(super) proxy: Proxy,
    pub(super) log: Log,
    pub(super) life: Life,
    pub(super) sysctls: FakeTable<SysctlKey, String>,
    pub(super) nft: FakeTable<nft_rows::RowKey, nft_rows::Row>,
    pub(super) servers: FakeTable<ServerKey, Server>,
    pub(super) addresses: FakeTable<AddressKey, Address>,
    pub(super) routes: Arc<Mutex<Routes>>,
    pub(super) local: FakeTable<RouteKey, Route>,
    pub(super) busy: Arc<Mutex<BTreeSet<RealServerKey>>>,
    pub(super) flows: FakeFlows,
    pub(super) now: Duration,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::on(FakeTable::default(), FakeTable::default(), FakeTable::default())
    }

    /// A new start on tables that are there.
    pub(super) fn on(
        nft: FakeTable<nft_rows::RowKey, nft_rows::Row>,
        servers: FakeTable<ServerKey, Server>,
        addresses: FakeTable<AddressKey, Address>,
    ) -> Self {
        Self::at_boot(1000, nft, servers, addresses)
    }

    /// A new start in this mode on the tables of another rig, when the machine is up for so many seconds.
    pub(super) fn after(before: &Self, mode: Mode, boot: u64) -> Self {
        Self::in_mode(mode, boot, (before.nft.clone(), before.servers.clone(), before.addresses.clone()))
    }

    /// The same when the machine is up for so many seconds.
    pub(super) fn at_boot(
        boot: u64,
        nft: FakeTable<nft_rows::RowKey, nft_rows::Row>,
        servers: FakeTable<ServerKey, Server>,
        addresses: FakeTable<AddressKey, Address>,
    ) -> Self {
        Self::in_mode(Mode::Ipvs, boot, (nft, servers, addresses))
    }

    pub(super) fn in_mode(mode: Mode, boot: u64, kept: Kept) -> Self {
        Self::routed(mode, boot, kept, (FakeTable::default(), Vec::new()))
    }

    /// The same where these networks are to be local by routes, with those that are there.
    pub(super) fn routed(mode: Mode, boot: u64, kept: Kept, local: (FakeTable<RouteKey, Route>, Vec<Prefix>)) -> Self {
        let pods = PerFamily::only(IpFamily::V4, "172.7.0.0/16".parse().unwrap());
        Self::among(Networks { pods, services: PerFamily::default(), node: Vec::new() }, mode, boot, kept, local)
    }

    /// The same among these networks; the families of their Pods are served.
    pub(super) fn among(
        around: Networks,
        mode: Mode,
        boot: u64,
        (nft, servers, addresses): Kept,
        (local, networks): (FakeTable<RouteKey, Route>, Vec<Prefix>),
    ) -> Self {
        let (log, life, busy, flows) = (Log::default(), Life::default(), Arc::default(), FakeFlows::default());
        let routes = Arc::<Mutex<Routes>>::default();
        let sysctls = FakeTable::default();
        sysctls.contents().rows.insert(tracking(), Observed { value: "1".to_owned(), owner: Owner::Ours });
        let targets = Targets {
            sysctls: Box::new(Logged { name: "sysctl", table: sysctls.clone(), log: log.clone(), life: life.clone() }),
            nft: Box::new(Logged { name: "nft", table: nft.clone(), log: log.clone(), life: life.clone() }),
            forward: None,
            balance: Some(Balance {
                links: Box::new(Logged {
                    name: "link",
                    table: FakeTable::<IfName, Link>::default(),
                    log: log.clone(),
                    life: life.clone(),
                }),
                servers: Box::new(FakeServers::new(
                    Logged { name: "ipvs", table: servers.clone(), log: log.clone(), life: life.clone() },
                    Arc::clone(&busy),
                )),
                addresses: Box::new(FakeAddresses {
                    table: super::super::spared::Spared::new(
                        Logged { name: "address", table: addresses.clone(), log: log.clone(), life: life.clone() },
                        vec!["192.168.99.0/24".parse().unwrap()],
                    ),
                    routes: Arc::clone(&routes),
                }),
            }),
            routes: Box::new(Logged { name: "route", table: local.clone(), log: log.clone(), life: life.clone() }),
            flows: Box::new(flows.clone()),
        };
        let pods = around.pods;
        let options = Options {
            mode,
            link: IfName::new(vip::LINK_NAME).unwrap(),
            scheduler: "rr".to_owned().into(),
            pods: Pods::inside(pods),
            services: PerFamily::default(),
            local: networks,
            node: NodeAddresses::default(),
            announced: std::collections::BTreeSet::new(),
            guards: Guards::default(),
        };
        let plane = DataPlane::new(options);
        let drains = Drains::new(Duration::from_secs(900), Duration::from_secs(boot));
        let tables = Tables::new(targets, drains, &BTreeMap::from([(tracking(), "1".to_owned())]), &plane);
        let [v4, v6] = [pods.v4, pods.v6];
        let facts = Facts::of(&Here::on("hdss7-21.host.com").with_pods(v4.into_iter().chain(v6)));
        let proxy = Proxy::new(facts, around, plane, tables, 1_790_000_000);
        Self { proxy, log, life, sysctls, nft, servers, addresses, routes, local, busy, flows, now: Duration::ZERO }
    }

    pub(super) fn receive(&mut self, event: Event) {
        self.proxy.take(update(event, ObjectKey::from_etcd, true).unwrap());
    }

    pub(super) fn put(&mut self, key: &str, json: &serde_json::Value) {
        self.receive(Event::Put { key: key.to_owned(), value: json.to_string().into_bytes(), revision: 1 });
    }

    pub(super) fn service(&mut self, name: &str, last: u8, protocol: &str) {
        let ports = json!([{"name": "main", "port": 80, "protocol": protocol}]);
        let spec = json!({"clusterIP": format!("192.168.0.{last}"), "ports": ports});
        let json = json!({"kind": "Service", "metadata": {"name": name}, "spec": spec});
        self.put(&format!("services/default/{name}"), &json);
    }

    /// Endpoints 172.7.22.N of another node.
    pub(super) fn endpoints(&mut self, service: &str, protocol: &str, pods: &[u8]) {
        let endpoint = |last: &u8| json!({"addresses": [format!("172.7.22.{last}")], "nodeName": "hdss7-22.host.com"});
        let endpoints: Vec<_> = pods.iter().map(endpoint).collect();
        let json = json!({
            "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}},
            "ports": [{"name": "main", "port": 80, "protocol": protocol}],
        });
        self.put(&format!("endpointslices/default/{service}-1"), &json);
    }

    pub(super) fn complete(&mut self) {
        self.receive(Event::Complete);
    }

    /// Works until nothing is left to do now; returns what was done to the kernel.
    pub(super) fn work(&mut self) -> Vec<String> {
        self.receive(Event::Commit);
        self.work_midway()
    }

    /// As [`Self::work`], in the middle of a change.
    pub(super) fn work_midway(&mut self) -> Vec<String> {
        self.log.lock().unwrap().clear();
        for _ in 0..3 {
            self.proxy.work(self.now);
        }
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    pub(super) fn later(&mut self, seconds: u64) -> Vec<String> {
        self.now += Duration::from_secs(seconds);
        self.work()
    }

    /// Lists `web` on these Pods, as a new start does, and works.
    pub(super) fn restarted(mut self, pods: &[u8]) -> Self {
        self.receive(Event::Reset);
        self.service("web", 10, "TCP");
        self.endpoints("web", "TCP", pods);
        self.complete();
        self.work();
        self
    }

    /// The same with this specification, on two Pods.
    pub(super) fn restarted_as(mut self, spec: &serde_json::Value) -> Self {
        self.receive(Event::Reset);
        self.put("services/default/web", &json!({"kind": "Service", "metadata": {"name": "web"}, "spec": spec}));
        self.endpoints("web", "TCP", &[2, 3]);
        self.complete();
        self.work();
        self
    }

    /// `web` on two Pods, listed and in place.
    pub(super) fn web() -> Self {
        Self::new().restarted(&[2, 3])
    }
}

/// The parameter without which nothing that IPVS balances is masqueraded.
pub(super) fn tracking() -> SysctlKey {
    "net/ipv4/vs/conntrack".parse().unwrap()
}

/// A connection of a client outside that is masqueraded and answered.
pub(super) fn tracked(opened_to: SocketAddr, answered_by: ([u8; 4], u16)) -> Tracked {
    let (client, returns_to) = ("10.4.7.200:999".parse().unwrap(), "10.4.7.21:40000".parse().unwrap());
    Tracked { client, opened_to, answered_by: answered_by.into(), returns_to, answered: true, translated: false }
}

pub(super) fn real(protocol: Protocol, last: u8) -> RealServerKey {
    let service = VirtualServerKey { protocol, addr: [192, 168, 0, 10].into(), port: 80 };
    RealServerKey { service, addr: [172, 7, 22, last].into(), port: 80 }
}

/// Positions of steps in a list of them, each of which must be there.
pub(super) fn positions<const N: usize>(steps: &[String], parts: [&str; N]) -> [usize; N] {
    parts.map(|part| steps.iter().position(|step| step.contains(part)).unwrap_or_else(|| panic!("{part}: {steps:#?}")))
}

/// What a step of the drain of an endpoint of `web` is about, in the set of drains.
pub(super) fn since_when(verb: char, last: u8) -> String {
    format!("nft {verb} element ip ipvs-proxy @draining {{ 192.168.0.10 . tcp . 80 . 172.7.22.{last} . 80 }}")
}

pub(super) fn endpoints_in_service(rig: &Rig) -> Vec<RealServerKey> {
    let contents = rig.servers.contents();
    let serving = contents.rows.iter().filter_map(|(key, row)| match (key, &row.value) {
        (ServerKey::Real(real), Server::Real(RealServer { weight: 1.., .. })) => Some(*real),
        _ => None,
    });
    serving.collect()
}
