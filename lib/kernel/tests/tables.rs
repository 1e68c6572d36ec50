//! Links, addresses, routes, neighbours, forwarding entries and parameters against the running kernel, with iproute2
//! as the independent observer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::{cases, converge, converge_at, ip, run};
use kernel::address::Addresses;
use kernel::fdb::Fdbs;
use kernel::link::{Links, VethEnd};
use kernel::neighbour::Neighbours;
use kernel::offload::TxChecksums;
use kernel::route::{Routes, main_key, via};
use kernel::sysctl::Sysctls;
use kernel::{Chain, Netns, Rtnl};
use netstate::route::{ROUTE_PROTOCOL, spread_metric};
use netstate::{
    Address, AddressKey, BridgeOptions, Fdb, FdbKey, IfName, Link, LinkKind, MacAddr, Neighbour, NeighbourKey,
    PortOptions, Prefix, Route, RouteKey, RouteKind, RouteScope, SysctlKey, TxChecksum, VxlanOptions,
};
use reconcile::{Audited, Observed, Owner, Pass, Reconciler, RetryClass, Stack, Stage, State, Step, Target};

fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

fn link(kind: LinkKind) -> Link {
    Link { kind, mtu: None, mac: None, up: true, master: None }
}

fn vxlan(lower: &str, mtu: u32) -> Link {
    let local = Some("10.4.7.21".parse().unwrap());
    let options = VxlanOptions { local, lower: Some(name(lower)), ..VxlanOptions::new(1, 8472) };
    Link { mtu: Some(mtu), mac: Some(MacAddr([2, 0, 0, 0, 0, 0x21])), ..link(LinkKind::Vxlan(options)) }
}

/// An uplink with the node's address, as every host has one.
fn uplink() {
    ip("link add eth0 type veth peer name switch");
    ip("link set switch up");
    ip("addr add 10.4.7.21/24 dev eth0");
    ip("link set eth0 up");
}

fn links() -> Reconciler<Links> {
    let ours = |name: &IfName, _: &Link| name.as_str().starts_with("flannel.") || name.as_str() == "cbr0";
    Reconciler::new("link", Links::new(Rtnl::open().unwrap(), Box::new(ours)))
}

fn made_vxlan_device_reads_back_as_desired() {
    uplink();
    let mut table = links();
    table.want(name("flannel.1"), Some(vxlan("eth0", 1450)));
    assert_eq!(converge(&mut table).upserted, 1);
    let shown = ip("-d link show flannel.1");
    for part in
        ["mtu 1450", "vxlan id 1 local 10.4.7.21 dev eth0", "dstport 8472", "nolearning", "02:00:00:00:00:21", "UP"]
    {
        assert!(shown.contains(part), "{part} in {shown}");
    }
}

/// The device stays, with what stands on it, where the kernel would not make the other one.
fn device_stays_where_another_cannot_be_made_in_its_place() {
    uplink();
    let mut links = Links::new(Rtnl::open().unwrap(), Box::new(|_, _| true));
    let have = vxlan("eth0", 1450);
    links.apply(&[Step::Create(name("flannel.1"), have.clone())]).into_iter().for_each(|made| made.unwrap());
    ip("route add 172.7.22.0/24 via 172.7.22.0 dev flannel.1 onlink");
    let before = ip("-d link show flannel.1");
    let other = |change: fn(&mut VxlanOptions)| {
        let mut other = have.clone();
        if let LinkKind::Vxlan(options) = &mut other.kind {
            change(options);
        }
        other
    };
    let busy = std::net::UdpSocket::bind("0.0.0.0:4789").unwrap();
    let on_port = other(|options| options.port = 4789);
    let wanted = [on_port.clone(), other(|options| (options.vni, options.lower) = (2, Some(name("gone"))))];
    for want in &wanted {
        let step = Step::Change(name("flannel.1"), have.clone(), want.clone());
        assert!(links.apply(&[step]).remove(0).is_err());
        assert_eq!(ip("-d link show flannel.1"), before);
        assert!(ip("route").contains("172.7.22.0/24 via 172.7.22.0 dev flannel.1"));
        assert!(!ip("link").contains("netd-try"), "{}", ip("link"));
    }
    drop(busy);
    links.apply(&[Step::Change(name("flannel.1"), have, on_port)]).remove(0).unwrap();
    assert!(ip("-d link show flannel.1").contains("dstport 4789") && !ip("link").contains("netd-try"));
}

fn indexes_that_could_not_be_kept_are_given_again_at_the_next_listing() {
    ip("link add cbr0 type bridge");
    let (given, taken) = std::sync::mpsc::channel();
    let mut calls = 0;
    let remember = move |indexes: &kernel::link::LinkIndexes| {
        given.send(indexes.clone()).unwrap();
        calls += 1;
        calls > 2
    };
    let links = Links::new(Rtnl::open().unwrap(), Box::new(|_, _| true)).only([name("cbr0")]);
    let mut links = links.known_as(BTreeMap::new(), remember);
    for _ in 0..5 {
        links.observe().unwrap();
    }
    drop(links);
    let given: Vec<_> = taken.iter().collect();
    assert_eq!(given.len(), 3, "{given:?}");
    assert!(given.iter().all(|indexes| indexes.contains_key(&name("cbr0"))), "{given:?}");
}

fn changed_mtu_is_set_in_place_and_changed_vni_makes_a_new_device() {
    uplink();
    let mut table = links();
    table.want(name("flannel.1"), Some(vxlan("eth0", 1450)));
    converge(&mut table);
    let index = |rtnl: &mut Rtnl| rtnl.link(&name("flannel.1")).unwrap().unwrap().index;
    let mut rtnl = Rtnl::open().unwrap();
    let before = index(&mut rtnl);
    table.want(name("flannel.1"), Some(vxlan("eth0", 1400)));
    converge(&mut table);
    assert_eq!(index(&mut rtnl), before);
    assert!(ip("link show flannel.1").contains("mtu 1400"));
    // Another address and lower device: the routes through it stay.
    ip("link add eth1 type veth peer name switch1");
    ip("link set eth1 up");
    ip("route add 172.7.22.0/24 via 172.7.22.0 dev flannel.1 onlink");
    let mut other = vxlan("eth1", 1400);
    if let LinkKind::Vxlan(options) = &mut other.kind {
        options.local = Some("10.4.7.121".parse().unwrap());
    }
    table.want(name("flannel.1"), Some(other.clone()));
    converge(&mut table);
    assert_eq!(index(&mut rtnl), before);
    assert!(ip("-d link show flannel.1").contains("local 10.4.7.121 dev eth1"));
    assert!(ip("route show dev flannel.1").contains("172.7.22.0/24"));
    if let LinkKind::Vxlan(options) = &mut other.kind {
        options.port = 4789;
    }
    table.want(name("flannel.1"), Some(other));
    converge(&mut table);
    assert_ne!(index(&mut rtnl), before);
}

/// What somebody else made of a device with this one's name, VNI, port and ends.
fn options_that_differ_are_changed_in_place_or_by_a_new_device() {
    uplink();
    let want = vxlan("eth0", 1450);
    let mut rtnl = Rtnl::open().unwrap();
    for (differs, stays) in [
        ("nolearning", true),
        ("learning", true),
        ("nolearning ttl 1", true),
        ("nolearning tos inherit", true),
        ("nolearning df set", true),
        ("nolearning ttl inherit", false),
        ("nolearning srcport 10000 10010", false),
        ("nolearning noudpcsum", false),
        ("nolearning udp6zerocsumtx", false),
        ("nolearning udp6zerocsumrx", false),
        ("nolearning l2miss", false),
        ("nolearning l3miss", false),
        ("nolearning proxy", false),
        ("nolearning rsc", false),
        ("nolearning maxaddr 5", false),
        ("nolearning remote 10.4.7.99", false),
        ("nolearning gbp", false),
    ] {
        let base = "link add flannel.1 address 02:00:00:00:00:21 mtu 1450 type vxlan id 1 local 10.4.7.21 dev eth0 dstport 8472";
        ip(&format!("{base} {differs}"));
        ip("link set flannel.1 up");
        let before = rtnl.link(&name("flannel.1")).unwrap().unwrap();
        let mut table = links();
        table.want(name("flannel.1"), Some(want.clone()));
        let changes = converge(&mut table).upserted;
        assert_eq!(changes, usize::from(differs != "nolearning"), "{differs}: {}", before.link);
        let after = rtnl.link(&name("flannel.1")).unwrap().unwrap();
        assert_eq!(after.index == before.index, stays, "{differs}: {} became {}", before.link, after.link);
        let shown = ip("-d link show flannel.1");
        let gone = differs.strip_prefix("nolearning").unwrap_or(differs).trim();
        assert!(gone.is_empty() || !shown.contains(&format!(" {gone} ")), "{gone}: {shown}");
        ip("link del flannel.1");
    }
}

/// `ip monitor link`, which listens, and ends with this.
struct LinkMonitor {
    child: std::process::Child,
    lines: mpsc::Receiver<String>,
}

impl LinkMonitor {
    fn start() -> Self {
        let mut command = std::process::Command::new("ip");
        let mut child = command.args(["monitor", "link"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let monitor = Self { child, lines };
        // What is changed before its socket is there is never printed, so a line of its own shows that it listens.
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            ip("link set switch mtu 1400");
            ip("link set switch mtu 1500");
            match monitor.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(_) => return monitor,
                Err(error) => assert!(Instant::now() < end, "ip monitor prints nothing: {error}"),
            }
        }
    }

    /// Waits for a line that contains `part`.
    fn wait_for(&self, part: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line =
                self.lines.recv_timeout(left).unwrap_or_else(|error| panic!("no notification of {part}: {error}"));
            if line.contains(part) {
                return;
            }
        }
    }
}

impl Drop for LinkMonitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn checksum_offload_is_turned_off_and_on_and_what_others_set_stays() {
    uplink();
    let mut devices = links();
    let mut table = Reconciler::new("offload", TxChecksums::open([name("flannel.1")]).unwrap());
    table.want(name("flannel.1"), Some(TxChecksum::Counted));
    let waits = run(&mut table);
    assert!(waits.errors[0].to_string().contains("link flannel.1"), "{waits:?}");
    devices.want(name("flannel.1"), Some(vxlan("eth0", 1450)));
    converge(&mut devices);
    table.invalidate();
    let value = |table: &mut Reconciler<TxChecksums>| table.target_mut().observe().unwrap()[&name("flannel.1")].clone();
    assert_eq!(value(&mut table).value, TxChecksum::Offloaded, "as the kernel makes it");
    let monitor = LinkMonitor::start();
    assert_eq!(table.pass(true, Duration::from_secs(60)).upserted, 1);
    assert_eq!(value(&mut table).value, TxChecksum::Counted);
    monitor.wait_for("flannel.1");
    drop(monitor);
    // Somebody turns it back.
    TxChecksums::open([name("flannel.1")]).unwrap().apply(&[Step::Create(name("flannel.1"), TxChecksum::Offloaded)]);
    table.invalidate();
    assert_eq!(converge_at(&mut table, Duration::from_secs(120)).upserted, 1);
    // Nobody desires it any more.
    table.want(name("flannel.1"), None);
    assert_eq!(converge_at(&mut table, Duration::from_secs(180)).removed, 1);
    assert_eq!(value(&mut table).value, TxChecksum::Offloaded);
    // What somebody else turned off stays.
    TxChecksums::open([name("flannel.1")]).unwrap().apply(&[Step::Create(name("flannel.1"), TxChecksum::Counted)]);
    table.invalidate();
    assert!(table.pass(true, Duration::from_secs(240)).is_idle());
    assert_eq!(value(&mut table), Observed { value: TxChecksum::Counted, owner: Owner::Foreign });
}

fn refused_mtu_is_named_and_keeps_no_link_down() {
    uplink();
    let mut table = links();
    let failed = |pass: &Pass, part: &str| {
        assert_eq!((pass.upserted, pass.failed), (0, 1), "{pass:?}");
        assert!(pass.errors[0].to_string().contains(part), "{pass:?}");
    };
    // More than the lower device takes, from the start.
    table.want(name("flannel.1"), Some(vxlan("eth0", 9000)));
    failed(&run(&mut table), "set link flannel.1 mtu 9000: ");
    let shown = ip("link show flannel.1");
    assert!(shown.contains(",UP") && shown.contains("02:00:00:00:00:21"), "{shown}");
    // Taken down by somebody while the MTU is refused again.
    ip("link set flannel.1 down");
    table.invalidate();
    table.want(name("flannel.1"), Some(vxlan("eth0", 8000)));
    failed(&run(&mut table), "set link flannel.1 mtu 8000: ");
    assert!(ip("link show flannel.1").contains(",UP"));
    // A master that is not there keeps nothing else from being set.
    let lonely = Link { mtu: Some(1400), master: Some(name("cbr0")), ..vxlan("eth0", 0) };
    ip("link set flannel.1 down");
    table.invalidate();
    table.want(name("flannel.1"), Some(lonely));
    failed(&run(&mut table), "link cbr0 does not exist");
    let shown = ip("link show flannel.1");
    assert!(shown.contains(",UP") && shown.contains("mtu 1400"), "{shown}");
}

fn undesired_link_of_ours_goes_and_a_foreign_one_stays() {
    uplink();
    ip("link add flannel.7 type vxlan id 7 dstport 8472 local 10.4.7.21 dev eth0");
    ip("link add docker0 type bridge");
    let mut table = links();
    assert_eq!(converge(&mut table).removed, 1);
    let left = ip("-br link");
    assert!(!left.contains("flannel.7") && left.contains("docker0"), "{left}");
}

fn bridge_keeps_its_mtu_when_a_smaller_port_joins() {
    let mut table = links();
    let bridge = LinkKind::Bridge(BridgeOptions::default());
    table.want(name("cbr0"), Some(Link { mtu: Some(1450), ..link(bridge) }));
    converge(&mut table);
    ip("link add p0 mtu 1400 type veth peer name p1");
    ip("link set p0 master cbr0");
    assert!(ip("link show cbr0").contains("mtu 1450"));
}

fn veth_is_born_with_its_peer_in_the_pods_namespace() {
    let pod = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        Netns::open(std::path::Path::new("/proc/thread-self/ns/net")).unwrap()
    });
    let pod = pod.join().unwrap();
    let mut rtnl = Rtnl::open().unwrap();
    let bridge = Link { mtu: Some(1450), ..link(LinkKind::Bridge(BridgeOptions::default())) };
    rtnl.create_link(&name("cbr0"), &bridge).unwrap();
    let master = rtnl.link(&name("cbr0")).unwrap().unwrap().index;
    let end = |text: &str, last| VethEnd { name: name(text), mac: MacAddr([2, 0, 0, 0, 0, last]) };
    let pair = rtnl.create_veth(&end("veth1", 1), master, &end("eth0", 2), &pod, 1450).unwrap();
    rtnl.set_port(pair.host, PortOptions { hairpin: true, isolated: false }).unwrap();
    let shown = ip("-d link show veth1");
    for part in ["mtu 1450", "master cbr0", "hairpin on", "qlen 1000", "02:00:00:00:00:01", "link-netnsid"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let mut inside = Rtnl::open_in(&pod).unwrap();
    let peer = inside.link(&name("eth0")).unwrap().unwrap();
    assert_eq!((peer.link.mac, peer.link.mtu), (Some(MacAddr([2, 0, 0, 0, 0, 2])), Some(1450)));
    assert_eq!((peer.lower_index, peer.index), (Some(pair.host), pair.peer));
    let again = rtnl.create_veth(&end("veth1", 1), master, &end("eth1", 3), &pod, 1450).unwrap_err();
    assert_eq!(again.errno(), Some(nix::libc::EEXIST));
    rtnl.delete_link(&name("veth1")).unwrap();
    rtnl.delete_link(&name("veth1")).expect("deleting a link that is gone");
    assert_eq!(inside.link(&name("eth0")).unwrap(), None);
}

fn address_table_touches_its_own_links_only() {
    uplink();
    ip("link add cbr0 type bridge");
    ip("addr add 172.7.99.1/24 dev cbr0");
    let mut table = Reconciler::new("address", Addresses::new(Rtnl::open().unwrap(), [name("cbr0")]));
    let key = AddressKey { link: name("cbr0"), addr: "172.7.21.1".parse().unwrap(), len: 24 };
    table.want(key, Some(Address));
    let six = AddressKey { link: name("cbr0"), addr: "fd00::1".parse().unwrap(), len: 64 };
    table.want(six, Some(Address));
    let first = converge(&mut table);
    assert_eq!((first.upserted, first.removed), (2, 1));
    let shown = ip("addr show cbr0");
    assert!(shown.contains("172.7.21.1/24 brd 172.7.21.255") && shown.contains("fd00::1/64"), "{shown}");
    assert!(!shown.contains("tentative") && !shown.contains("172.7.99.1"), "{shown}");
    assert!(ip("addr show eth0").contains("10.4.7.21/24"));
}

fn overlay_tables() -> (Reconciler<Neighbours>, Reconciler<Fdbs>, Reconciler<Routes>) {
    let device = name("flannel.1");
    let owns = |_: &RouteKey, route: &Route| route.protocol == ROUTE_PROTOCOL;
    (
        Reconciler::new("neighbour", Neighbours::new(Rtnl::open().unwrap(), [device.clone()])),
        Reconciler::new("fdb", Fdbs::new(Rtnl::open().unwrap(), [device])),
        Reconciler::new("route", Routes::new(Rtnl::open().unwrap(), Box::new(owns))),
    )
}

/// The rows of one lease as flannel's VXLAN backend has them.
struct Peer {
    neighbour: (NeighbourKey, Neighbour),
    fdb: (FdbKey, Fdb),
    route: (RouteKey, Route),
}

fn peer(subnet: &str, node: &str, last: u8) -> Peer {
    let device = name("flannel.1");
    let subnet: Prefix = subnet.parse().unwrap();
    let mac = MacAddr([2, 0, 0, 0, 0, last]);
    let route = Route { onlink: true, ..via(device.clone(), Some(subnet.addr()), ROUTE_PROTOCOL) };
    Peer {
        neighbour: (NeighbourKey { link: device.clone(), addr: subnet.addr() }, Neighbour { mac }),
        fdb: (FdbKey { link: device, mac }, Fdb { dst: node.parse().unwrap() }),
        route: (main_key(subnet, spread_metric(&subnet)), route),
    }
}

fn route_that_somebody_gave_other_next_hops_is_put_right() {
    uplink();
    ip("addr add 10.4.8.21/24 dev switch");
    let ours = |_: &RouteKey, route: &Route| route.protocol == ROUTE_PROTOCOL;
    let mut routes = Reconciler::new(
        "route",
        Routes::within(Rtnl::open().unwrap(), 254, [ROUTE_PROTOCOL], Box::new(ours), |_| false),
    );
    let key = main_key("172.7.22.0/24".parse().unwrap(), 1022);
    routes.want(key, Some(via(name("eth0"), Some("10.4.7.22".parse().unwrap()), ROUTE_PROTOCOL)));
    converge(&mut routes);
    let shown = || ip("route show 172.7.22.0/24").trim_end().to_owned();
    let wanted = shown();
    let hops = "nexthop via 10.4.7.22 dev eth0 nexthop via 10.4.8.1 dev switch";
    ip("nexthop add id 7 via 10.4.7.99 dev eth0");
    let changes = [
        format!("route replace 172.7.22.0/24 metric 1022 proto 121 {hops}"),
        "route replace 172.7.22.0/24 metric 1022 proto 121 nhid 7".to_owned(),
        "route replace blackhole 172.7.22.0/24 metric 1022 proto 121".to_owned(),
        // Another program's at our key: no row of ours, and in its place.
        "route replace 172.7.22.0/24 metric 1022 proto static via 10.4.7.99".to_owned(),
    ];
    for (hour, change) in (1..).zip(changes) {
        ip(&change);
        assert_ne!(shown(), wanted);
        routes.invalidate();
        assert_eq!(converge_at(&mut routes, Duration::from_hours(hour)).upserted, 1, "{change}");
        assert_eq!(shown(), wanted, "{change}");
    }
}

/// The kernel keeps several with one key, and takes the first.
fn route_of_our_protocol_before_or_behind_ours_takes_nothing_from_it() {
    uplink();
    let ours = |_: &RouteKey, route: &Route| route.protocol == ROUTE_PROTOCOL;
    let rtnl = || Rtnl::open().unwrap();
    let mut routes = Reconciler::new("route", Routes::within(rtnl(), 254, [ROUTE_PROTOCOL], Box::new(ours), |_| false));
    let key = main_key("172.7.22.0/24".parse().unwrap(), 1022);
    routes.want(key, Some(via(name("eth0"), Some("10.4.7.22".parse().unwrap()), ROUTE_PROTOCOL)));
    converge(&mut routes);
    let shown = || ip("route show 172.7.22.0/24").trim_end().to_owned();
    let wanted = shown();
    let verbs = ["append", "prepend", "append", "prepend"].iter().enumerate();
    for (hour, (hop, verb)) in (1..).zip(verbs) {
        ip(&format!("route {verb} 172.7.22.0/24 metric 1022 proto 121 via 10.4.7.9{hop} dev eth0"));
        routes.invalidate();
        converge_at(&mut routes, Duration::from_hours(hour));
        assert!(shown().starts_with(&wanted), "{verb}: {}", shown());
    }
    routes.want(key, None);
    for hour in 5..9 {
        routes.invalidate();
        assert_eq!(routes.pass(true, Duration::from_hours(hour)).errors, vec![]);
    }
    assert_eq!(shown(), "", "nobody wants one of them");
}

fn route_of_another_metric_goes_when_the_one_to_its_destination_is_there_and_no_other() {
    uplink();
    ip("addr add fd00:4:7::21/64 dev eth0 nodad");
    for (family, subnet, other, hop) in [
        ("-4", "172.7.22.0/24", "172.7.44.0/24", "10.4.7.22"),
        ("-6", "fd00:7:0:22::/64", "fd00:7:0:44::/64", "fd00:4:7::22"),
    ] {
        let v6 = family == "-6";
        let mine = move |key: &RouteKey, route: &Route| key.dst.addr().is_ipv6() == v6 && route.via.is_some();
        let (rtnl, protocols) = (Rtnl::open().unwrap(), [3, ROUTE_PROTOCOL]);
        let mut stack = Stack::new();
        let routes = Routes::within(rtnl, 254, protocols, Box::new(mine), |_| true);
        let table = stack.push(Reconciler::new("route", routes));
        for dst in [subnet, other] {
            ip(&format!("{family} route add {dst} via {hop} dev eth0"));
        }
        let shown = |dst: &str| ip(&format!("{family} route show {dst}")).trim_end().to_owned();
        let (left, dst): (String, Prefix) = (shown(other), subnet.parse().unwrap());
        assert!(stack.pass(false, Duration::ZERO).is_idle(), "{family}: nothing is desired yet");
        let route = via(name("eth0"), Some(hop.parse().unwrap()), ROUTE_PROTOCOL);
        stack.want(table, main_key(dst, spread_metric(&dst)), Some(route));
        let pass = stack.pass(false, Duration::ZERO);
        assert_eq!((pass.upserted, pass.removed, pass.failed), (1, 1, 0), "{family}: {:?}", pass.errors);
        assert!(shown(subnet).lines().count() == 1 && shown(subnet).contains("proto 121"), "{}", shown(subnet));
        assert_eq!(shown(other), left, "no lease names it, and the listing may be wrong");
        assert_eq!(stack.pass(true, Duration::ZERO).removed, 1);
        assert_eq!(shown(other), "");
    }
}

fn tables_list_what_they_are_about_and_nothing_else() {
    uplink();
    ip("link add docker0 type bridge");
    ip("link add flannel.1 type vxlan id 1 dstport 8472 local 10.4.7.21 dev eth0");
    ip("link add flannel.2 type vxlan id 2 dstport 8473 local 10.4.7.21 dev eth0");
    ip("link set flannel.1 up");
    ip("link set flannel.2 up");
    for device in ["flannel.1", "flannel.2"] {
        ip(&format!("neigh add 172.7.22.0 lladdr 02:00:00:00:00:22 nud permanent dev {device}"));
        common::sh("bridge", &["fdb", "add", "02:00:00:00:00:22", "dst", "10.4.7.22", "dev", device, "self"]);
    }
    ip("neigh add 172.7.23.0 lladdr 02:00:00:00:00:23 nud stale dev flannel.1");
    ip("addr add 172.7.21.0/32 dev flannel.1");
    for (table, proto) in [("main", "static"), ("main", "121"), ("77", "121"), ("main", "bird")] {
        let subnet = if proto == "bird" { 98 } else { 99 };
        ip(&format!("route add 10.{subnet}.0.0/16 via 10.4.7.1 proto {proto} table {table} metric {}", proto.len()));
    }
    let device = [name("flannel.1")];
    let rtnl = || Rtnl::open().unwrap();
    let all = Box::new(|_: &IfName, _: &Link| true);
    let links = Links::new(rtnl(), all).only([name("flannel.1"), name("flannel.9")]).observe().unwrap();
    assert_eq!(links.keys().map(IfName::as_str).collect::<Vec<_>>(), ["flannel.1"]);
    match &links[&device[0]].value.kind {
        LinkKind::Vxlan(options) => assert_eq!(options.lower, Some(name("eth0"))),
        other => panic!("{other:?}"),
    }
    let neighbours = Neighbours::new(rtnl(), device.clone()).observe().unwrap();
    assert_eq!(neighbours.keys().map(ToString::to_string).collect::<Vec<_>>().len(), 1, "{neighbours:?}");
    let fdbs = Fdbs::new(rtnl(), device.clone()).observe().unwrap();
    assert_eq!(fdbs.len(), 1, "{fdbs:?}");
    let addresses = Addresses::new(rtnl(), device).observe().unwrap();
    assert_eq!(addresses.len(), 1, "{addresses:?}");
    let every = Box::new(|_: &RouteKey, _: &Route| true);
    let routes = Routes::within(rtnl(), 254, [ROUTE_PROTOCOL, 4], every, |_| false).observe().unwrap();
    assert_eq!(routes.keys().map(|key| (key.table, key.metric)).collect::<Vec<_>>(), [(254, 3), (254, 6)]);
    // A device that is not there has no rows.
    assert!(Fdbs::new(rtnl(), [name("flannel.9")]).observe().unwrap().is_empty());
}

fn table_read_in_parts_is_the_table_listed_whole() {
    uplink();
    ip("link add flannel.1 type vxlan id 1 dstport 8472 local 10.4.7.21 dev eth0");
    ip("link add flannel.9 type vxlan id 9 dstport 8473 local 10.4.7.21 dev eth0");
    ip("link set flannel.1 up");
    ip("neigh add 172.7.23.0 lladdr 02:00:00:00:00:23 nud stale dev flannel.1");
    ip("neigh add 172.7.23.0 lladdr 02:00:00:00:00:23 nud permanent dev flannel.9");
    ip("route add 172.7.99.0/24 via 10.4.7.1 proto static");
    ip("route add 10.9.0.0/16 via 10.4.7.1 proto static");
    let (mut neighbours, mut fdbs, _) = overlay_tables();
    let owns = |_: &RouteKey, route: &Route| route.protocol == ROUTE_PROTOCOL;
    let pods: Prefix = "172.7.0.0/16".parse().unwrap();
    let table =
        Routes::within(Rtnl::open().unwrap(), 254, [ROUTE_PROTOCOL], Box::new(owns), move |key| pods.covers(&key.dst));
    let foreign = table.foreign();
    let mut routes = Reconciler::new("route", table);
    for number in 0..2000u32 {
        let [_, _, high, low] = number.to_be_bytes();
        let mut peer = peer(&format!("172.7.{high}.{}/32", low), &format!("10.4.{high}.{low}"), low);
        let mac = MacAddr([2, 0, 0, 0, high, low]);
        peer.fdb.0.mac = mac;
        neighbours.want(peer.neighbour.0, Some(peer.neighbour.1));
        fdbs.want(peer.fdb.0, Some(peer.fdb.1));
        routes.want(peer.route.0, Some(peer.route.1));
    }
    converge(&mut neighbours);
    converge(&mut fdbs);
    converge(&mut routes);
    same_in_parts(&mut neighbours);
    same_in_parts(&mut fdbs);
    same_in_parts(&mut routes);
    let theirs = foreign.routes();
    assert_eq!(theirs.iter().map(|(key, _)| key.dst.to_string()).collect::<Vec<_>>(), ["172.7.99.0/24"]);
    // Another program's change is found, and a device that goes takes its rows along.
    ip("route del 172.7.3.3/32");
    assert_eq!(outcome(&mut routes), Audited::Due);
    assert_eq!(converge(&mut routes).upserted, 1);
    ip("link del flannel.1");
    assert_eq!(outcome(&mut neighbours), Audited::Due);
}

/// How the audit of a table ends.
fn outcome<T: Target>(table: &mut Reconciler<T>) -> Audited {
    std::iter::repeat_with(|| table.audit()).find(|audited| *audited != Audited::More).unwrap()
}

fn same_in_parts<T: Target>(table: &mut Reconciler<T>) {
    assert_eq!(table.mirror().unwrap().len(), 2000);
    let parts: Vec<_> = table.target_mut().parts().unwrap().unwrap().map(Result::unwrap).collect();
    assert!(parts.len() > 3, "{} parts", parts.len());
    let rows: BTreeMap<_, _> = parts.into_iter().flatten().collect();
    assert!(rows.keys().eq(table.mirror().unwrap().keys()), "{} rows", rows.len());
    assert_eq!(outcome(table), Audited::Same);
}

fn lease_rows_read_back_as_desired_and_go_without_touching_others() {
    uplink();
    let mut devices = links();
    devices.want(name("flannel.1"), Some(vxlan("eth0", 1450)));
    converge(&mut devices);
    ip("route add 10.99.0.0/16 via 10.4.7.1 dev eth0");
    let (mut neighbours, mut fdbs, mut routes) = overlay_tables();
    for peer in [peer("172.7.22.0/24", "10.4.7.22", 0x22), peer("172.7.23.0/24", "10.4.7.23", 0x23)] {
        neighbours.want(peer.neighbour.0, Some(peer.neighbour.1));
        fdbs.want(peer.fdb.0, Some(peer.fdb.1));
        routes.want(peer.route.0, Some(peer.route.1));
    }
    for upserted in [converge(&mut neighbours).upserted, converge(&mut fdbs).upserted, converge(&mut routes).upserted] {
        assert_eq!(upserted, 2);
    }
    assert!(ip("route show 172.7.22.0/24").contains("via 172.7.22.0 dev flannel.1 proto 121 metric"), "onlink route");
    assert!(ip("route show 172.7.22.0/24").contains("onlink"));
    assert!(ip("neigh show dev flannel.1").contains("172.7.22.0 lladdr 02:00:00:00:00:22 PERMANENT"));
    let shown = common::sh("bridge", &["fdb", "show", "dev", "flannel.1"]);
    assert!(shown.contains("02:00:00:00:00:22 dst 10.4.7.22 self permanent"), "{shown}");
    neighbours.want_all(BTreeMap::new());
    fdbs.want_all(BTreeMap::new());
    routes.want_all(BTreeMap::new());
    let mut stack = Stack::new();
    stack.push(neighbours);
    stack.push(fdbs);
    stack.push(routes);
    assert_eq!(stack.pass(true, Duration::ZERO).removed, 6);
    assert_eq!(ip("route show dev flannel.1"), "");
    assert_eq!(ip("neigh show dev flannel.1"), "");
    assert!(ip("route").contains("10.99.0.0/16"));
}

fn moved_peer_changes_rows_in_place() {
    uplink();
    let mut devices = links();
    devices.want(name("flannel.1"), Some(vxlan("eth0", 1450)));
    converge(&mut devices);
    let (mut neighbours, mut fdbs, _) = overlay_tables();
    let before = peer("172.7.22.0/24", "10.4.7.22", 0x22);
    neighbours.want(before.neighbour.0.clone(), Some(before.neighbour.1));
    fdbs.want(before.fdb.0.clone(), Some(before.fdb.1));
    converge(&mut neighbours);
    converge(&mut fdbs);
    neighbours.want(before.neighbour.0, Some(Neighbour { mac: MacAddr([2, 0, 0, 0, 0, 0x99]) }));
    fdbs.want(before.fdb.0, Some(Fdb { dst: "10.4.7.99".parse().unwrap() }));
    assert_eq!((converge(&mut neighbours).upserted, converge(&mut fdbs).upserted), (1, 1));
    assert!(ip("neigh show dev flannel.1").contains("172.7.22.0 lladdr 02:00:00:00:00:99 PERMANENT"));
}

fn route_on_a_missing_link_waits_and_names_the_link() {
    let (.., mut routes) = overlay_tables();
    let peer = peer("172.7.22.0/24", "10.4.7.22", 0x22);
    routes.want(peer.route.0, Some(peer.route.1));
    run(&mut routes);
    let status = routes.status();
    let State::Failed { class, reason, .. } = &status.open[0].state else { panic!("{status:?}") };
    assert_eq!(*class, RetryClass::Wait);
    assert!(reason.contains("172.7.22.0/24") && reason.contains("link flannel.1 does not exist"), "{reason}");
}

fn kernels_own_words_are_in_the_error() {
    let options = VxlanOptions::new(1 << 24, 8472);
    let error = Rtnl::open().unwrap().create_link(&name("vx"), &link(LinkKind::Vxlan(options))).unwrap_err();
    let text = Chain(&error).to_string();
    assert!(text.starts_with("create link vx: VXLAN ID must be lower than 16777216"), "{text}");
}

fn five_thousand_leases_go_in_and_out_and_one_bad_row_stops_none() {
    uplink();
    let mut devices = links();
    devices.want(name("flannel.1"), Some(vxlan("eth0", 1450)));
    converge(&mut devices);
    let (.., mut routes) = overlay_tables();
    let mut subnet: Prefix = "10.100.0.0/24".parse().unwrap();
    let mut desired = BTreeMap::new();
    for _ in 0..5000 {
        let route = Route { onlink: true, ..via(name("flannel.1"), Some(subnet.addr()), ROUTE_PROTOCOL) };
        desired.insert(main_key(subnet, spread_metric(&subnet)), route);
        subnet = subnet.next().unwrap();
    }
    let bad = main_key("10.99.0.0/24".parse().unwrap(), 5);
    let unreachable = via(name("eth0"), Some("203.0.113.1".parse().unwrap()), ROUTE_PROTOCOL);
    desired.insert(bad, unreachable);
    routes.want_all(desired);
    let first = run(&mut routes);
    assert_eq!((first.upserted, first.failed), (5000, 1), "{:?}", first.errors);
    assert!(first.errors[0].to_string().contains("10.99.0.0/24"), "{:?}", first.errors);
    assert_eq!(routes.target_mut().observe().unwrap().keys().filter(|key| key.metric >= 1000).count(), 5000);
    routes.want_all(BTreeMap::new());
    assert_eq!(run(&mut routes).removed, 5000);
}

fn blackhole_and_local_routes_read_back_as_desired() {
    ip("link add vip0 type veth peer name vip1");
    ip("link set vip0 up");
    let mut routes = Reconciler::new("route", {
        let owns = |_: &RouteKey, route: &Route| route.protocol == ROUTE_PROTOCOL;
        Routes::new(Rtnl::open().unwrap(), Box::new(owns))
    });
    let base = Route {
        kind: RouteKind::Blackhole,
        via: None,
        link: None,
        onlink: false,
        src: None,
        scope: RouteScope::Universe,
        protocol: ROUTE_PROTOCOL,
        metrics: netstate::RouteMetrics::default(),
    };
    routes.want(main_key("172.7.21.0/24".parse().unwrap(), 0), Some(base.clone()));
    let local = Route { kind: RouteKind::Local, link: Some(name("vip0")), scope: RouteScope::Host, ..base };
    let key = RouteKey { table: 255, dst: "192.168.0.10/32".parse().unwrap(), metric: 0 };
    routes.want(key, Some(local));
    assert_eq!(converge(&mut routes).upserted, 2);
    assert!(ip("route show table local").contains("local 192.168.0.10 dev vip0 proto 121"));
}

fn routes_that_one_protocol_has_made_are_listed_without_the_others() {
    ip("link set lo up");
    ip("address add 10.96.0.10/32 dev lo");
    ip("route add local 10.97.0.0/16 dev lo table local proto 3");
    let owns = |_: &RouteKey, route: &Route| route.kind == RouteKind::Local;
    let mut routes = Reconciler::new("route", Routes::made_by(Rtnl::open().unwrap(), 255, 122, Box::new(owns)));
    for (network, metric, scope) in [("10.96.0.0/12", 0, RouteScope::Host), ("fd09::/108", 1024, RouteScope::Universe)]
    {
        let route = Route {
            kind: RouteKind::Local,
            via: None,
            link: Some(name("lo")),
            onlink: false,
            src: None,
            scope,
            protocol: 122,
            metrics: netstate::RouteMetrics::default(),
        };
        let key = RouteKey { table: 255, dst: network.parse().unwrap(), metric };
        routes.want(key, Some(route));
    }
    assert_eq!(converge(&mut routes).upserted, 2);
    let listed = routes.target_mut().observe().unwrap();
    assert_eq!(listed.keys().map(|key| key.dst.to_string()).collect::<Vec<_>>(), ["10.96.0.0/12", "fd09::/108"]);
    let parts = routes.target_mut().parts().unwrap().unwrap();
    assert_eq!(parts.map(|part| part.unwrap().len()).sum::<usize>(), 2);
    routes.want_all(BTreeMap::new());
    assert_eq!(converge(&mut routes).removed, 2);
    assert!(ip("route show table local").contains("local 10.97.0.0/16"), "another protocol's");
}

fn route_metrics_read_back_as_desired_and_are_repaired() {
    uplink();
    let owns = |_: &RouteKey, route: &Route| route.protocol == ROUTE_PROTOCOL;
    let mut routes = Reconciler::new("route", Routes::new(Rtnl::open().unwrap(), Box::new(owns)));
    let metrics = netstate::RouteMetrics { mtu: Some(1280), advmss: Some(1200) };
    let base = via(name("eth0"), Some("10.4.7.1".parse().unwrap()), ROUTE_PROTOCOL);
    routes.want(main_key("172.7.21.0/24".parse().unwrap(), 7), Some(Route { metrics, ..base.clone() }));
    routes.want(main_key("172.7.22.0/24".parse().unwrap(), 7), Some(base));
    assert_eq!(converge(&mut routes).upserted, 2);
    assert!(ip("route show 172.7.21.0/24").contains("mtu 1280 advmss 1200"));
    ip("route replace 172.7.21.0/24 via 10.4.7.1 dev eth0 proto 121 metric 7 mtu 1400");
    routes.invalidate();
    assert_eq!(converge(&mut routes).upserted, 1);
    assert!(ip("route show 172.7.21.0/24").contains("mtu 1280 advmss 1200"));
}

fn parameters_are_written_when_they_differ_and_wait_for_their_link() {
    let key = |text: &str| text.parse::<SysctlKey>().unwrap();
    let (forward, later) = (key("net/ipv4/ip_forward"), key("net/ipv6/conf/late0/accept_ra"));
    // A new namespace begins with the values of the machine, which may forward.
    kernel::sysctl::write(&forward, "0").unwrap();
    let mut table = Reconciler::new("sysctl", Sysctls::new([forward.clone(), later.clone()]));
    table.want(forward.clone(), Some("1".to_owned()));
    table.want(later, Some("0".to_owned()));
    let first = run(&mut table);
    assert_eq!((first.upserted, first.failed), (1, 1), "{first:?}");
    assert_eq!(kernel::sysctl::read(&forward).unwrap(), "1");
    ip("link add late0 type veth peer name late1");
    table.invalidate();
    assert_eq!(converge(&mut table).upserted, 1);
}

fn parameter_is_read_as_it_is_now_and_that_of_a_link_made_anew_is_the_new_ones() {
    let key: SysctlKey = "net/ipv6/conf/again0/accept_ra".parse().unwrap();
    let mut table = Reconciler::new("sysctl", Sysctls::new([key.clone()]));
    let value = || kernel::sysctl::read(&key).unwrap();
    table.want(key.clone(), Some("0".to_owned()));
    for _ in 0..2 {
        ip("link add again0 type veth peer name again1");
        assert_eq!(
            (
                value(),
                {
                    table.invalidate();
                    converge(&mut table).upserted
                },
                value()
            ),
            ("1".into(), 1, "0".into())
        );
        kernel::sysctl::write(&key, "2").unwrap();
        table.invalidate();
        assert_eq!((converge(&mut table).upserted, value()), (1, "0".into()), "what somebody else changed");
        ip("link del again0");
    }
    table.invalidate();
    assert_eq!((run(&mut table).failed, table.mirror().map(|rows| rows.len())), (1, Some(0)), "it went with its link");
}

fn ordinary_file_is_no_namespace() {
    let file = std::env::current_exe().unwrap();
    let error = Chain(&Netns::open(&file).unwrap_err()).to_string();
    assert!(error.contains("an ordinary file, no namespace is mounted there"), "{error}");
}

fn main() -> ExitCode {
    common::main(cases![
        made_vxlan_device_reads_back_as_desired,
        device_stays_where_another_cannot_be_made_in_its_place,
        indexes_that_could_not_be_kept_are_given_again_at_the_next_listing,
        changed_mtu_is_set_in_place_and_changed_vni_makes_a_new_device,
        options_that_differ_are_changed_in_place_or_by_a_new_device,
        checksum_offload_is_turned_off_and_on_and_what_others_set_stays,
        refused_mtu_is_named_and_keeps_no_link_down,
        undesired_link_of_ours_goes_and_a_foreign_one_stays,
        bridge_keeps_its_mtu_when_a_smaller_port_joins,
        veth_is_born_with_its_peer_in_the_pods_namespace,
        address_table_touches_its_own_links_only,
        route_that_somebody_gave_other_next_hops_is_put_right,
        route_of_our_protocol_before_or_behind_ours_takes_nothing_from_it,
        route_of_another_metric_goes_when_the_one_to_its_destination_is_there_and_no_other,
        tables_list_what_they_are_about_and_nothing_else,
        table_read_in_parts_is_the_table_listed_whole,
        lease_rows_read_back_as_desired_and_go_without_touching_others,
        moved_peer_changes_rows_in_place,
        route_on_a_missing_link_waits_and_names_the_link,
        kernels_own_words_are_in_the_error,
        five_thousand_leases_go_in_and_out_and_one_bad_row_stops_none,
        blackhole_and_local_routes_read_back_as_desired,
        routes_that_one_protocol_has_made_are_listed_without_the_others,
        route_metrics_read_back_as_desired_and_are_repaired,
        parameters_are_written_when_they_differ_and_wait_for_their_link,
        parameter_is_read_as_it_is_now_and_that_of_a_link_made_anew_is_the_new_ones,
        ordinary_file_is_no_namespace,
    ])
}
