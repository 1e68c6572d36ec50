//! The whole loop on fake tables and a fake store: what happens to rows when the kernel or the store misbehaves.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::daemon::http::{Health, Page, Probe, Vitals};
use ::daemon::shell::Shell;
use cluster::etcd::TlsMaterial;
use cluster::{ClusterError, Origin};
use kernel::fake::FakeTable;
use kernel::watch::Event as Watched;
use netstate::family::{IpFamily, PerFamily};
use netstate::nft::{Row, RowKey};
use netstate::{
    Address, AddressKey, Fdb, FdbKey, IfName, Link, Neighbour, NeighbourKey, Route, RouteKey, SysctlKey, TxChecksum,
};
use reconcile::{Gate, Observed, Owner};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::daemon::{Daemon, Node};
use super::external::External;
use super::identity::Identity;
use super::indexes::Unwritten;
use super::notification::Notification;
use super::report::is_local_done;
use super::tables::Stages;
use super::targets::Targets;
use super::{PROGRAM, TABLES};
use crate::choose::interface::{self, NodeAddress};
use crate::choose::policy::Policy;
use crate::choose::subnet::Candidate;
use crate::command::args::Invocation;
use crate::command::config::Config;
use crate::command::instance::Instance;
use crate::format::lease::{Lease, LeaseAttrs, StoredLease, SubnetKey};
use crate::format::net_conf::{NetConf, Network};
use crate::plan::{Changes, LocalNode, Ownership, Place};
use crate::source::{
    AcquireError, ConfigError, Configs, Held, Keeper, Keeping, LeaseEvent, LeaseEvents, LeaseRecord, LeaseRequest,
    LeaseSource,
};

mod crowd;

const ENETUNREACH: i32 = 101;
const ENOBUFS: i32 = 105;
const EINVAL: i32 = 22;

/// What must happen "at once", generous for a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Tables in memory.
#[derive(Default, Clone)]
struct Fakes {
    links: FakeTable<IfName, Link>,
    checksums: FakeTable<IfName, TxChecksum>,
    sysctls: FakeTable<SysctlKey, String>,
    addresses: FakeTable<AddressKey, Address>,
    nft: FakeTable<RowKey, Row>,
    ingress: FakeTable<RowKey, Row>,
    neighbours: FakeTable<NeighbourKey, Neighbour>,
    fdb: FakeTable<FdbKey, Fdb>,
    routes: FakeTable<RouteKey, Route>,
}

impl Fakes {
    fn targets(&self) -> Targets {
        let sysctls = self.sysctls.clone();
        Targets {
            links: Box::new(self.links.clone()),
            unwritten: Unwritten::default(),
            checksums: Box::new(self.checksums.clone()),
            wireguard: None,
            wireguard_differs: None,
            sysctls: Box::new(move |_| Box::new(sysctls.clone())),
            addresses: Box::new(self.addresses.clone()),
            nft: Box::new(self.nft.clone()),
            ingress: Box::new(self.ingress.clone()),
            neighbours: Box::new(self.neighbours.clone()),
            fdb: Box::new(self.fdb.clone()),
            routes: Box::new(self.routes.clone()),
            files: None,
            forward: None,
            rivals: None,
            interests: ::daemon::monitors::Interests::default(),
        }
    }

    /// Destinations of the routes.
    fn subnets(&self) -> Vec<String> {
        self.routes.contents().rows.keys().map(|key| key.dst.to_string()).collect()
    }

    /// Steps that were carried out for other nodes.
    fn peer_steps(&self) -> usize {
        self.routes.contents().log.len() + self.fdb.contents().log.len() + self.neighbours.contents().log.len()
    }
}

type ConfigSender = mpsc::Sender<Option<Vec<u8>>>;

/// A store in memory; clones are the same store.
#[derive(Clone, Default)]
struct FakeLeases {
    /// What a stream that begins says first.
    listing: Arc<Mutex<Vec<LeaseEvent>>>,
    streams: Arc<Mutex<Vec<mpsc::Sender<LeaseEvent>>>>,
    claims: Arc<Mutex<i64>>,
    configs: Arc<Mutex<Vec<ConfigSender>>>,
    announced: Arc<Mutex<String>>,
    /// Somebody else gives subnets out, and a claim writes nothing.
    given: bool,
}

impl FakeLeases {
    fn listing(leases: &[LeaseEvent]) -> Self {
        let source = Self::default();
        let all = [LeaseEvent::Reset].into_iter().chain(leases.iter().cloned()).chain([LeaseEvent::Complete]);
        *source.listing.lock().unwrap() = all.collect();
        source
    }

    /// Says it to all streams; a change is a transaction of its own.
    async fn say(&self, event: LeaseEvent) {
        let streams = self.streams.lock().unwrap().clone();
        let changes = matches!(event, LeaseEvent::Put(_) | LeaseEvent::Delete(..) | LeaseEvent::Invalid { .. });
        for stream in streams {
            stream.send(event.clone()).await.unwrap();
            if changes {
                stream.send(LeaseEvent::Commit).await.unwrap();
            }
        }
    }

    async fn configure(&self, text: &str) {
        let streams = self.configs.lock().unwrap().clone();
        for stream in streams {
            stream.send(Some(text.as_bytes().to_vec())).await.unwrap();
        }
    }

    /// The backend that the lease names.
    fn announced(&self) -> String {
        self.announced.lock().unwrap().clone()
    }

    fn claims(&self) -> i64 {
        *self.claims.lock().unwrap()
    }
}

impl LeaseSource for FakeLeases {
    fn kind(&self) -> &'static str {
        "etcd"
    }

    fn is_chosen_from(&self) -> bool {
        !self.given
    }

    fn config_place(&self) -> String {
        "memory".to_owned()
    }

    async fn config(&self) -> Result<Option<Vec<u8>>, ConfigError> {
        Ok(None)
    }

    fn configs(&self) -> Configs {
        let streams = Arc::clone(&self.configs);
        Configs::spawn(|texts| async move {
            let (sender, mut written) = mpsc::channel(16);
            streams.lock().unwrap().push(sender);
            while let Some(text) = written.recv().await {
                texts.send(text).await;
            }
        })
    }

    fn events(&self) -> LeaseEvents {
        let (listing, streams) = (self.listing.lock().unwrap().clone(), Arc::clone(&self.streams));
        LeaseEvents::spawn(|events| async move {
            for event in listing {
                events.send(event).await;
            }
            let (sender, mut said) = mpsc::channel(16);
            streams.lock().unwrap().push(sender);
            while let Some(event) = said.recv().await {
                events.send(event).await;
            }
        })
    }

    async fn list(&self) -> Result<Vec<LeaseEvent>, ClusterError> {
        Ok(self.listing.lock().unwrap().clone())
    }

    async fn acquire(&self, request: &LeaseRequest) -> Result<Held, AcquireError> {
        let mut claims = self.claims.lock().unwrap();
        *claims += 1;
        *self.announced.lock().unwrap() = request.attrs.backend.name().to_owned();
        let lease = Lease { key: key(21), attrs: request.attrs.clone() };
        let revision = if self.given { 100 } else { *claims * 100 };
        Ok(Held { lease, token: Some(*claims), revision, how: "fake".to_owned(), others: Vec::new() })
    }

    async fn keep(&self, _: &Held, _: impl FnMut(Keeping) + Send) -> Result<String, ClusterError> {
        std::future::pending().await
    }
}

fn key(n: u8) -> SubnetKey {
    format!("172.7.{n}.0-24").parse().unwrap()
}

/// The lease of node `n`.
fn put(n: u8) -> LeaseEvent {
    let value = format!(
        r#"{{"PublicIP":"10.4.7.{n}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:01:{n:02x}"}}}}"#
    );
    let lease = Lease { key: key(n), attrs: LeaseAttrs::parse(value.as_bytes(), [IpFamily::V4].into_iter()).unwrap() };
    LeaseEvent::Put(Arc::new(StoredLease { lease, created: 1, revision: 1, token: Some(1) }))
}

const NETWORK: &str = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan"}}"#;

fn network() -> Network {
    NetConf::parse(NETWORK).unwrap().network
}

/// This machine's loopback as the interface towards the others: it is there wherever the tests run.
fn loopback() -> interface::External {
    let address = [127, 0, 0, 1].into();
    let own = NodeAddress { address, network: IpFamily::V4.loopback(), public_ip: address };
    interface::External { interface: IfName::literal("lo"), mtu: 65536, addresses: PerFamily::new(Some(own), None) }
}

fn daemon(fakes: &Fakes, source: &FakeLeases, folder: &std::path::Path) -> (Daemon<FakeLeases>, Shell) {
    let (run_dir, subnet_file) = (folder.join("run"), folder.join("subnet.env"));
    let args = ["netd".into(), "--run-dir".into(), run_dir.into_os_string(), "--subnet-file".into()];
    let args = args.into_iter().chain([subnet_file.into_os_string()]).collect::<Vec<OsString>>();
    let config = Config::read(&Invocation::read(args, |_| None).unwrap().flags, TlsMaterial::default(), 1).unwrap();
    let external = loopback();
    let place = |_, own: Option<NodeAddress>| Some(Place::new(&own?, "02:00:00:00:00:21".parse().unwrap()));
    let plain = LocalNode::plain(external.addresses.map(place), external.interface.clone());
    let local = LocalNode { mtu: external.mtu, ..plain };
    let request = LeaseRequest {
        network: network(),
        node: Candidate { addresses: external.addresses, ..Candidate::default() },
        policies: Policy::DEFAULT.into(),
        attrs: LeaseAttrs { public_ips: local.public_ips(), backend: network().backend.attrs(&local) },
        adopts_mac: false,
        record: LeaseRecord::default(),
        rival: None,
        objects: false,
    };
    let external = External::new(config.interface.clone(), vec![IpFamily::V4], external, Vec::new());
    let fakes = fakes.clone();
    let node = Node {
        config,
        claimed: None,
        network: network(),
        devices: BTreeSet::new(),
        machine: Vec::new(),
        ownership: Ownership::of(network(), local),
        record: LeaseRecord::default(),
        leftovers: BTreeSet::new(),
        text: NETWORK.to_owned(),
        identity: Identity::default(),
        open: Box::new(move |_, _, _| Ok(fakes.targets())),
    };
    let shell = Shell::new(&PROGRAM);
    let keeper = Keeper::start(source.clone(), request, 1);
    (Daemon::new(node, source.clone(), keeper, external, shell.clone()), shell)
}

/// Runs the daemon beside `scenario`, which ends it.
fn run<F: Future<Output = ()>>(fakes: &Fakes, source: &FakeLeases, scenario: impl FnOnce(Shell) -> F) {
    run_in(tempfile::tempdir().unwrap().path(), fakes, source, scenario);
}

/// The same with its files below `folder`.
fn run_in<F: Future<Output = ()>>(
    folder: &std::path::Path,
    fakes: &Fakes,
    source: &FakeLeases,
    scenario: impl FnOnce(Shell) -> F,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (daemon, shell) = daemon(fakes, source, folder);
        tokio::select! {
            ended = daemon.run() => panic!("the daemon ended: {ended:?}"),
            () = scenario(shell) => {}
        }
    });
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < end, "{what} within {SOON:?}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// MTU of the tunnel device.
fn mtu(fakes: &Fakes) -> Option<u32> {
    fakes.links.contents().rows[&IfName::literal("flannel.1")].value.mtu
}

fn is_ready(shell: &Shell) -> bool {
    shell.readiness.gates().contains(&(TABLES, true))
}

#[test]
fn leases_become_rows_and_cost_what_changed() {
    let fakes = Fakes::default();
    let source = FakeLeases::listing(&(100..=200).map(put).collect::<Vec<_>>());
    run(&fakes, &source, async |shell| {
        eventually("ready", || is_ready(&shell)).await;
        assert_eq!((fakes.subnets().len(), fakes.peer_steps()), (101, 303));
        assert!(fakes.links.contents().rows.contains_key(&IfName::literal("flannel.1")));
        source.say(put(99)).await;
        eventually("a route to the new node", || fakes.subnets().len() == 102).await;
        assert_eq!(fakes.peer_steps(), 306, "one lease, three rows");
        source.say(LeaseEvent::Delete(key(150), 2)).await;
        // The route goes before what it needs.
        eventually("no row of the node that went", || fakes.peer_steps() >= 309).await;
        assert_eq!((fakes.subnets().len(), fakes.peer_steps()), (101, 309));
    });
}

#[test]
fn status_that_is_written_does_not_grow_with_the_leases_and_who_asks_gets_all_of_them() {
    let written = |leases: &[u8]| {
        let fakes = Fakes::default();
        let source = FakeLeases::listing(&leases.iter().map(|&n| put(n)).collect::<Vec<_>>());
        let length = Cell::new(0);
        run(&fakes, &source, async |shell| {
            eventually("in sync", || shell.board.value()["node"]["in_sync"] == true).await;
            let (short, whole) = (shell.board.value(), shell.board.whole().await);
            assert_eq!((&short["lease_count"], &short["leases"]), (&json!(leases.len()), &Value::Null));
            assert_eq!(whole["leases"].as_object().unwrap().len(), leases.len());
            assert_eq!(whole["leases"]["172.7.99.0/24"]["public_ip"], "10.4.7.99");
            length.set(short.to_string().len());
        });
        length.get()
    };
    let (few, many) = (written(&[99]), written(&(50..=250).collect::<Vec<_>>()));
    assert!(many < few + 20, "{few} bytes for one lease, {many} for 201");
}

#[test]
fn row_that_the_kernel_refuses_holds_up_neither_the_others_nor_readiness() {
    for errno in [ENETUNREACH, EINVAL] {
        let fakes = Fakes::default();
        // The listing succeeds, the first route is refused.
        fakes.routes.contents().errors = [None, Some(errno)].into();
        let source = FakeLeases::listing(&[put(22), put(23), put(24)]);
        run(&fakes, &source, async |shell| {
            eventually("ready", || is_ready(&shell)).await;
            assert_eq!(fakes.subnets(), ["172.7.23.0/24", "172.7.24.0/24"], "errno {errno}");
            assert_eq!(fakes.neighbours.contents().rows.len(), 3);
        });
    }
}

#[test]
fn network_that_all_nodes_use_is_recorded_although_the_first_try_failed() {
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("run").join(super::reconfigure::SETTLED);
    // As a full disk does: the file cannot be put there.
    std::fs::create_dir_all(record.join("in the way")).unwrap();
    let (fakes, source) = (Fakes::default(), FakeLeases::listing(&[put(100)]));
    run_in(folder.path(), &fakes, &source, async |shell| {
        eventually("ready", || is_ready(&shell)).await;
        std::fs::remove_dir_all(&record).unwrap();
        eventually("the record", || std::fs::read_to_string(&record).is_ok_and(|text| text == NETWORK)).await;
        // WireGuard's PSK may be in it.
        assert_eq!(std::fs::metadata(&record).unwrap().permissions().mode() & 0o777, 0o600);
    });
}

#[test]
fn table_that_could_not_be_listed_at_first_keeps_no_quiet_node_from_being_ready() {
    let (fakes, source) = (Fakes::default(), FakeLeases::listing(&[put(100)]));
    fakes.ingress.contents().errors.extend([Some(ENOBUFS); 3]);
    run(&fakes, &source, async |shell| eventually("ready", || is_ready(&shell)).await);
}

#[test]
fn files_that_could_not_be_written_are_written_soon_on_a_quiet_node() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = folder.path().join("run");
    let (subnet, lease) = (folder.path().join("subnet.env"), run_dir.join(super::records::LEASE_RECORD));
    let mark = run_dir.join(super::records::ADOPTING);
    // As a full disk does: they cannot be put there, nor taken away.
    for file in [&subnet, &lease, &mark] {
        std::fs::create_dir_all(file.join("in the way")).unwrap();
    }
    let (fakes, source) = (Fakes::default(), FakeLeases::listing(&[put(100)]));
    run_in(folder.path(), &fakes, &source, async |shell| {
        eventually("ready", || is_ready(&shell)).await;
        for file in [&subnet, &lease, &mark] {
            std::fs::remove_dir_all(file).unwrap();
        }
        std::fs::write(&mark, "").unwrap();
        let says = |file, part| std::fs::read_to_string(file).is_ok_and(|text| text.contains(part));
        eventually("the subnet file", || says(&subnet, "FLANNEL_SUBNET=")).await;
        eventually("the record of the lease", || says(&lease, "172.7.21.0")).await;
        eventually("the end of the mark", || !mark.exists()).await;
    });
}

#[test]
#[allow(clippy::await_holding_lock, reason = "a kernel that does not answer, while the rest goes on")]
fn node_is_not_ready_before_its_subnet_file_is_written() {
    let fakes = Fakes::default();
    let source = FakeLeases::default();
    *source.listing.lock().unwrap() = vec![LeaseEvent::Reset];
    let of_folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (daemon, shell) = daemon(&fakes, &source, of_folder.path());
        let scenario = async {
            // Each pass is held up before its end, and what comes meanwhile is planned: the file waits for the latest plan.
            let planned = |leases: usize| shell.board.value()["lease_count"] == leases;
            let routes = fakes.routes.contents();
            eventually("a pass without leases", || fakes.fdb.contents().observed == 1).await;
            source.say(put(22)).await;
            source.say(LeaseEvent::Complete).await;
            eventually("the plan of the whole listing", || planned(1)).await;
            let entries = fakes.fdb.contents();
            drop(routes);
            eventually("its pass", || fakes.neighbours.contents().rows.len() == 1).await;
            source.say(put(99)).await;
            eventually("the next plan", || planned(2)).await;
            let routes = fakes.routes.contents();
            drop(entries);
            eventually("more of the pass", || fakes.fdb.contents().rows.len() == 1).await;
            let entries = fakes.fdb.contents();
            drop(routes);
            eventually("its end", || shell.board.value()["tables"]["routes"]["done"] == 1).await;
            let file = of_folder.path().join("subnet.env");
            assert_eq!((is_ready(&shell), file.exists()), (false, false));
            drop(entries);
            eventually("ready", || is_ready(&shell)).await;
            assert!(file.exists());
        };
        tokio::select! {
            ended = daemon.run() => panic!("the daemon ended: {ended:?}"),
            () = scenario => {}
        }
    });
}

#[test]
fn row_that_failed_for_a_moment_is_made_later() {
    let fakes = Fakes::default();
    fakes.fdb.contents().errors = [None, Some(ENOBUFS)].into();
    let source = FakeLeases::listing(&[put(22), put(23)]);
    run(&fakes, &source, async |_| {
        eventually("both entries", || fakes.fdb.contents().rows.len() == 2).await;
    });
}

#[test]
fn table_that_cannot_be_listed_is_not_touched_until_it_can() {
    let fakes = Fakes::default();
    fakes.routes.contents().errors = [Some(ENOBUFS), Some(ENOBUFS)].into();
    let source = FakeLeases::listing(&[put(22)]);
    run(&fakes, &source, async |shell| {
        eventually("neighbours, which do not wait", || fakes.neighbours.contents().rows.len() == 1).await;
        eventually("the route after the third listing", || fakes.subnets() == ["172.7.22.0/24"]).await;
        assert!(fakes.routes.contents().observed >= 3);
        eventually("ready", || is_ready(&shell)).await;
    });
}

#[test]
fn nothing_is_removed_before_the_listing_is_complete() {
    let fakes = Fakes::default();
    let source = FakeLeases::default();
    *source.listing.lock().unwrap() = vec![LeaseEvent::Reset, put(22), put(23), put(24)];
    // A route of an earlier run to a node that is gone.
    let old = FakeTable::<RouteKey, Route>::default();
    run(&Fakes { routes: old.clone(), ..Fakes::default() }, &FakeLeases::listing(&[put(99)]), async |shell| {
        eventually("ready", || is_ready(&shell)).await;
    });
    let rows: Vec<_> = old.contents().rows.iter().map(|(key, row)| (*key, row.value.clone())).collect();
    for (key, value) in rows {
        fakes.routes.contents().rows.insert(key, Observed { value, owner: Owner::Ours });
    }
    run(&fakes, &source, async |shell| {
        eventually("the stream", || source.streams.lock().unwrap().len() == 1).await;
        source.say(LeaseEvent::Lost(Box::new(lost().await))).await;
        eventually("a status that names the loss", || shell.board.value()["store"]["lost"].is_string()).await;
        assert_eq!(fakes.subnets(), ["172.7.99.0/24"], "half a listing is no plan");
        assert!(!is_ready(&shell));
        source.say(LeaseEvent::Complete).await;
        eventually("ready", || is_ready(&shell)).await;
        eventually("the plan of the whole listing", || {
            fakes.subnets() == ["172.7.22.0/24", "172.7.23.0/24", "172.7.24.0/24"]
        })
        .await;
    });
}

#[test]
fn listing_that_stalls_stops_no_plans_and_removes_nothing() {
    let fakes = Fakes::default();
    let source = FakeLeases::listing(&[put(22), put(23)]);
    run(&fakes, &source, async |shell| {
        eventually("ready", || is_ready(&shell)).await;
        // The store is listed anew and falls silent on the way.
        source.say(LeaseEvent::Reset).await;
        source.say(put(24)).await;
        let planned = || fakes.subnets() == ["172.7.22.0/24", "172.7.23.0/24", "172.7.24.0/24"];
        eventually("what is known by now", planned).await;
        source.configure(r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}"#).await;
        assert!(is_ready(&shell), "ready once, ready for good");
        eventually("another configuration", || mtu(&fakes) == Some(1350)).await;
        source.say(LeaseEvent::Lost(Box::new(lost().await))).await;
        source.say(LeaseEvent::Reset).await;
        source.say(put(23)).await;
        source.say(put(24)).await;
        source.say(LeaseEvent::Complete).await;
        eventually("the end of the listing", || fakes.subnets() == ["172.7.23.0/24", "172.7.24.0/24"]).await;
    });
}

#[test]
fn listing_that_repeats_everything_costs_no_row_and_what_differs_is_changed() {
    let fakes = Fakes::default();
    let source = FakeLeases::listing(&[put(22), put(23), put(24)]);
    run(&fakes, &source, async |shell| {
        eventually("ready", || is_ready(&shell)).await;
        let steps = fakes.peer_steps();
        for event in [LeaseEvent::Reset, put(22), put(23), put(24), LeaseEvent::Complete, put(25)] {
            source.say(event).await;
        }
        eventually("what came after it", || fakes.subnets().len() == 4).await;
        assert_eq!(fakes.peer_steps(), steps + 3, "the new node alone");
        // Another hardware address under the same key, and nothing else.
        let LeaseEvent::Put(moved) = put(99) else { panic!("a lease") };
        let lease = Lease { key: key(23), ..moved.lease.clone() };
        let moved = LeaseEvent::Put(Arc::new(StoredLease { lease, revision: 9, ..StoredLease::clone(&moved) }));
        for event in [LeaseEvent::Reset, put(22), moved, put(24), put(25), LeaseEvent::Complete] {
            source.say(event).await;
        }
        let macs =
            || fakes.neighbours.contents().rows.values().map(|row| row.value.mac.to_string()).collect::<Vec<_>>();
        eventually("the other hardware address", || macs().contains(&"02:00:00:00:01:63".to_owned())).await;
        assert_eq!((macs().len(), fakes.subnets().len()), (4, 4), "{:?}", macs());
    });
}

#[test]
fn removal_of_what_is_gone_already_delays_nothing() {
    let fakes = Fakes::default();
    let source = FakeLeases::listing(&(22..=60).map(put).collect::<Vec<_>>());
    run(&fakes, &source, async |shell| {
        eventually("ready", || is_ready(&shell)).await;
        // Somebody else has removed all that there is of a node, which leaves the store then.
        fakes.routes.contents().rows.retain(|key, _| key.dst.to_string() != "172.7.22.0/24");
        fakes.neighbours.contents().rows.clear();
        fakes.fdb.contents().rows.clear();
        let begin = Instant::now();
        source.say(LeaseEvent::Delete(key(22), 2)).await;
        source.say(put(99)).await;
        eventually("the next node", || fakes.subnets().contains(&"172.7.99.0/24".to_owned())).await;
        assert!(!fakes.subnets().contains(&"172.7.22.0/24".to_owned()));
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}; flannel tries for 10 s", begin.elapsed());
    });
}

#[test]
fn first_listing_that_stalls_keeps_the_own_tables_from_nothing() {
    let fakes = Fakes::default();
    let source = FakeLeases::default();
    *source.listing.lock().unwrap() = vec![LeaseEvent::Reset, put(22)];
    run(&fakes, &source, async |shell| {
        eventually("the own device", || fakes.links.contents().rows.contains_key(&IfName::literal("flannel.1"))).await;
        eventually("a status of it", || shell.board.value()["tables"]["links"]["done"] == 1).await;
        assert_eq!(fakes.subnets(), Vec::<String>::new(), "a newer lease may be in the other half");
        assert!(!is_ready(&shell), "{:?}", shell.readiness.gates());
        source.say(LeaseEvent::Complete).await;
        eventually("the other node", || fakes.subnets() == ["172.7.22.0/24"]).await;
        eventually("ready", || is_ready(&shell)).await;
    });
}

#[test]
fn every_loop_has_a_heartbeat_and_one_that_is_blocked_or_has_ended_is_named_by_livez() {
    let livez = |shell: &Shell, after: u64| {
        let stuck = shell.liveness.stuck_at(std::time::Instant::now() + Duration::from_secs(after));
        let stuck = stuck.iter().map(ToString::to_string).collect();
        super::health::page(Probe::Live, &Health { stuck, ready: true, awaited: Vec::new(), vitals: Vitals::default() })
    };
    let fakes = Fakes::default();
    let source = FakeLeases::listing(&[put(22)]);
    run(&fakes, &source, async |shell| {
        eventually("ready", || is_ready(&shell)).await;
        let loops = [
            "configuration source",
            "lease keeper",
            "lease source",
            "leases",
            "nftables",
            "responder at 127.0.0.1",
            "rtnetlink",
            "second listing",
            "ways",
            "worker",
        ];
        eventually("every loop", || loops.iter().all(|name| shell.liveness.names().contains(&(*name).to_owned())))
            .await;
        assert_eq!(livez(&shell, 0), Page::text(200, "flanneld is running"));
        // A responder whose address is not here or taken by another test is late sooner.
        let others_alive = |page: Page| page.body.lines().skip(1).all(|line| line.starts_with("responder at "));
        eventually("all alive", || others_alive(livez(&shell, 59))).await;
        // The kernel does not answer the thread that owns the tables.
        let (table, (go, wait), (locked, is_locked)) = (fakes.routes.clone(), channel::<()>(), channel());
        let kernel = std::thread::spawn(move || {
            let _rows = table.contents();
            locked.send(()).unwrap();
            let _ = wait.recv();
        });
        is_locked.recv().unwrap();
        source.say(put(23)).await;
        eventually("the worker, a minute later", || {
            let page = livez(&shell, 61);
            page.code == 503 && page.body.contains("\nworker: no progress, ")
        })
        .await;
        drop(go);
        kernel.join().unwrap();
        eventually("a worker that goes on", || others_alive(livez(&shell, 59))).await;
        // The loop that passes leases on ends.
        source.streams.lock().unwrap().clear();
        eventually("the loop that has ended", || {
            livez(&shell, 0) == Page::text(503, "flanneld is stuck\nlease source: has ended")
        })
        .await;
    });
}

/// An error of a store that nobody serves.
async fn lost() -> ClusterError {
    let config = cluster::etcd::Config {
        endpoints: "http://127.0.0.1:1".to_owned(),
        limits: cluster::etcd::Limits { operation: Duration::from_millis(50), ..Default::default() },
        ..Default::default()
    };
    let client = cluster::etcd::Client::new(&config, 0).unwrap();
    cluster::etcd::Store::new(client).get("key").await.unwrap_err()
}

#[test]
fn lost_key_is_claimed_again_and_costs_no_row() {
    let fakes = Fakes::default();
    let source = FakeLeases::listing(&[put(22), put(23), put(24)]);
    run(&fakes, &source, async |shell| {
        eventually("ready", || is_ready(&shell)).await;
        let steps = (fakes.peer_steps(), fakes.links.contents().log.len());
        // Behind the first claim, and before the second one.
        source.say(LeaseEvent::Delete(key(21), 150)).await;
        eventually("another claim", || source.claims() == 2).await;
        source.say(put(25)).await;
        eventually("the next change", || fakes.subnets().len() == 4).await;
        assert_eq!((fakes.peer_steps(), fakes.links.contents().log.len()), (steps.0 + 3, steps.1));
    });
}

#[test]
fn lease_is_acquired_anew_in_a_store_that_went_back() {
    let fakes = Fakes::default();
    let LeaseEvent::Put(own) = put(21) else { unreachable!() };
    let mut own = (*own).clone();
    own.lease.attrs.public_ips = loopback().public_ips();
    let own = LeaseEvent::Put(Arc::new(own));
    let source = FakeLeases::listing(&[own.clone(), put(22)]);
    run(&fakes, &source, async |shell| {
        eventually("ready", || is_ready(&shell)).await;
        // The first listing of this store, one behind it, and one of a backup; the own key is in each.
        for (revision, claims) in [(5000, 1), (5001, 1), (3000, 2)] {
            let origin = LeaseEvent::Origin(Origin { revision, ..Origin::default() });
            let next = u8::try_from(revision % 100 + 30).unwrap();
            for event in [LeaseEvent::Reset, origin, own.clone(), put(22), put(next), LeaseEvent::Complete] {
                source.say(event).await;
            }
            eventually("the listing", || fakes.subnets().contains(&format!("172.7.{next}.0/24"))).await;
            eventually("the claims", || source.claims() >= claims).await;
            assert_eq!(source.claims(), claims, "{revision}");
        }
    });
}

#[test]
fn subnet_that_somebody_else_gave_to_two_nodes_is_named_and_claimed_no_second_time() {
    let fakes = Fakes::default();
    let LeaseEvent::Put(other) = put(21) else { unreachable!() };
    let mut own = (*other).clone();
    own.lease.attrs.public_ips = loopback().public_ips();
    let source = FakeLeases { given: true, ..FakeLeases::listing(&[LeaseEvent::Put(Arc::new(own)), put(22)]) };
    run(&fakes, &source, async |shell| {
        eventually("ready", || is_ready(&shell)).await;
        source.say(LeaseEvent::Put(Arc::new(StoredLease { revision: 500, ..(*other).clone() }))).await;
        eventually("the refusal", || shell.board.value()["skipped"].to_string().contains("own subnet")).await;
        source.say(put(25)).await;
        eventually("the next change", || fakes.subnets().len() == 2).await;
        assert_eq!(source.claims(), 1);
    });
}

#[test]
fn options_that_change_are_followed_and_what_cannot_change_is_named() {
    let fakes = Fakes::default();
    let source = FakeLeases::listing(&[put(22)]);
    let warnings = |shell: &Shell| shell.board.value()["warnings"].to_string();
    run(&fakes, &source, async |shell| {
        eventually("ready", || is_ready(&shell)).await;
        source.configure(r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}"#).await;
        eventually("the smaller MTU", || mtu(&fakes) == Some(1350)).await;
        eventually("in status", || shell.board.value()["node"]["mtu"] == 1350).await;
        let claims = source.claims();
        for wrong in [r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#, r#"{"Network":"172.7.0.0/16""#] {
            source.configure(wrong).await;
            eventually("a reason", || warnings(&shell).contains("runs on with what it had")).await;
            assert_eq!((mtu(&fakes), fakes.subnets()), (Some(1350), vec!["172.7.22.0/24".to_owned()]));
            source.configure(r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}"#).await;
            eventually("no reason", || !warnings(&shell).contains("runs on")).await;
        }
        assert_eq!(source.claims(), claims, "the lease says the same");
    });
}

#[test]
fn another_backend_is_announced_when_its_devices_stand_and_the_old_one_stays_meanwhile() {
    let fakes = Fakes::default();
    let source = FakeLeases::listing(&[put(22), put(23)]);
    let direct = |n: u8| {
        let value = format!(r#"{{"PublicIP":"10.4.7.{n}","BackendType":"host-gw"}}"#);
        let lease =
            Lease { key: key(n), attrs: LeaseAttrs::parse(value.as_bytes(), [IpFamily::V4].into_iter()).unwrap() };
        LeaseEvent::Put(Arc::new(StoredLease { lease, created: 1, revision: 5, token: Some(1) }))
    };
    let via = |fakes: &Fakes| -> Vec<String> {
        let routes = fakes.routes.contents();
        routes.rows.values().filter_map(|row| row.value.via).map(|via| via.to_string()).collect()
    };
    let remark = |shell: &Shell| shell.board.value()["warnings"].to_string();
    run(&fakes, &source, async |shell| {
        eventually("ready", || is_ready(&shell)).await;
        assert_eq!(via(&fakes), ["172.7.22.0", "172.7.23.0"]);
        source.configure(r#"{"Network":"172.7.0.0/16","Backend":{"Type":"host-gw"}}"#).await;
        eventually("the lease is written anew", || source.announced() == "host-gw").await;
        eventually("a remark", || remark(&shell).contains("backend vxlan stays beside host-gw until 2 nodes more"))
            .await;
        assert!(fakes.links.contents().rows.contains_key(&IfName::literal("flannel.1")));
        assert_eq!(via(&fakes), ["172.7.22.0", "172.7.23.0"]);
        source.say(direct(22)).await;
        eventually("a plain route to the node that moved", || via(&fakes) == ["10.4.7.22", "172.7.23.0"]).await;
        source.say(direct(23)).await;
        eventually("and to the other", || via(&fakes) == ["10.4.7.22", "10.4.7.23"]).await;
        eventually("the old device goes", || fakes.links.contents().rows.is_empty()).await;
        eventually("nothing more to say", || !remark(&shell).contains("vxlan")).await;
        assert_eq!(shell.board.value()["node"]["backend"], "host-gw");
    });
}

#[test]
fn every_backend_that_a_node_still_uses_stays_when_the_backend_changes_again() {
    let fakes = Fakes::default();
    let source = FakeLeases::listing(&[put(22), put(23)]);
    let says = |n: u8, backend: &str| {
        let value = format!(r#"{{"PublicIP":"10.4.7.{n}",{backend}}}"#);
        let lease =
            Lease { key: key(n), attrs: LeaseAttrs::parse(value.as_bytes(), [IpFamily::V4].into_iter()).unwrap() };
        LeaseEvent::Put(Arc::new(StoredLease { lease, created: 1, revision: 5, token: Some(1) }))
    };
    const HOST_GW: &str = r#""BackendType":"host-gw""#;
    let second =
        |n: u8| format!(r#""BackendType":"vxlan","BackendData":{{"VNI":2,"VtepMAC":"02:00:00:00:02:{n:02x}"}}"#);
    let links = |fakes: &Fakes| -> Vec<String> {
        let routes = fakes.routes.contents();
        let links = routes.rows.values().filter_map(|row| row.value.link.clone());
        links.map(|link| link.to_string()).collect()
    };
    let devices =
        |fakes: &Fakes| fakes.links.contents().rows.keys().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let remark = |shell: &Shell| shell.board.value()["warnings"].to_string();
    run(&fakes, &source, async |shell| {
        eventually("ready", || is_ready(&shell)).await;
        source.configure(r#"{"Network":"172.7.0.0/16","Backend":{"Type":"host-gw"}}"#).await;
        eventually("the lease is written anew", || source.announced() == "host-gw").await;
        source.say(says(23, HOST_GW)).await;
        eventually("a plain route to the node that moved", || links(&fakes) == ["flannel.1", "lo"]).await;
        source.configure(r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#).await;
        eventually("the lease is written once more", || source.announced() == "vxlan").await;
        eventually("a remark", || remark(&shell).contains("vxlan and host-gw stay beside vxlan until 2 nodes more"))
            .await;
        assert_eq!(links(&fakes), ["flannel.1", "lo"]);
        assert_eq!(devices(&fakes), "flannel.1 flannel.2");
        source.say(says(23, &second(23))).await;
        eventually("through the tunnel", || links(&fakes) == ["flannel.1", "flannel.2"]).await;
        source.say(says(22, &second(22))).await;
        eventually("the first device goes", || devices(&fakes) == "flannel.2").await;
        eventually("nothing more to say", || !remark(&shell).contains("host-gw")).await;
    });
}

/// EOPNOTSUPP: a kernel without flowtables.
const NOT_SUPPORTED: i32 = 95;
const NO_DEVICE: i32 = 19;

#[test]
fn flowtable_or_untracked_tunnel_that_the_kernel_refuses_is_reported_and_holds_nothing_up() {
    let [flowtable, untracked] = Instance::of(std::path::Path::new("/run/flannel/subnet.env")).ingress();
    refused_is_reported_and_holds_nothing_up(RowKey::Table(flowtable), "Flowtable: packets take the ordinary way");
    refused_is_reported_and_holds_nothing_up(
        RowKey::Table(untracked),
        "--untracked-tunnel: the tunnel's packets are tracked",
    );
}

fn refused_is_reported_and_holds_nothing_up(key: RowKey, warning: &str) {
    let table = FakeTable::default();
    table.refuse(key.clone(), NO_DEVICE);
    let mut stages = Stages::on(Targets { ingress: Box::new(table.clone()), ..Fakes::default().targets() });
    let wanted = Some(Row::from(netstate::nft::Table::default()));
    stages.want(Changes { ingress: [(key.clone(), wanted)].into(), ..Changes::default() });
    let gate = Gate::new([]);
    stages.pass(&gate, Duration::ZERO);
    assert!(stages.warnings().is_empty(), "that a link has gone may not have been announced yet");
    table.refuse(key.clone(), NOT_SUPPORTED);
    stages.pass(&gate, Duration::from_secs(1));
    let warnings = stages.warnings();
    assert!(warnings.len() == 1 && warnings[0].starts_with(warning), "{warnings:?}");
    assert!(is_local_done(&stages.status()));
    table.allow(&key);
    stages.pass(&gate, Duration::from_secs(3600));
    assert_eq!((stages.warnings(), table.contents().rows.len()), (Vec::new(), 1));
    stages.want(Changes { ingress: [(key, None)].into(), ..Changes::default() });
    stages.pass(&gate, Duration::from_secs(3601));
    assert!(table.contents().rows.is_empty());
}

#[test]
fn address_that_comes_has_addresses_listed_and_one_that_goes_what_is_on_its_link() {
    let mut stages = Stages::on(Fakes::default().targets());
    let gate = Gate::new([]);
    let mut listed_for = |event| {
        stages.pass(&gate, Duration::ZERO);
        let before = stages.counts();
        stages.invalidate(Notification::Rtnl(event));
        stages.pass(&gate, Duration::ZERO);
        let counts = stages.counts();
        let more = counts.iter().filter(|(name, counts)| counts.listings > before[*name].listings);
        more.map(|(name, _)| *name).collect::<Vec<_>>()
    };
    assert_eq!(listed_for(Watched::NewAddress), ["addresses"]);
    let all = ["addresses", "checksums", "fdb", "links", "neighbours", "routes", "sysctls"];
    assert_eq!(listed_for(Watched::Address), all);
    assert_eq!(listed_for(Watched::Link), all);
}
