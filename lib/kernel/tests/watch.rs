//! The monitor of rtnetlink against the running kernel, with iproute2 as the one who changes something.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

mod common;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{ip, sh};
use kernel::Rtnl;
use kernel::address_watch::{AddressChange, AddressWatch};
use kernel::fdb::Fdbs;
use kernel::neighbour::Neighbours;
use kernel::watch::{Event, Interest, Watch};
use netstate::{Fdb, FdbKey, IfName, InterfaceAddress, MacAddr, Neighbour, NeighbourKey};
use nix::net::if_::if_nametoindex;
use reconcile::{Step, Target};

const LIMIT: Duration = Duration::from_secs(60);

const CASES: &[common::Case] = &[
    ("forwarding_entries_that_we_write_do_not_count_and_those_of_others_do", forwarding),
    ("neighbours_that_we_write_and_remove_do_not_count_and_those_of_others_do", own_neighbours),
    ("neighbours_links_and_routes_of_others_do_not_count", others),
    ("device_that_is_made_anew_is_watched_again", anew),
    ("lost_notifications_are_reported", overrun),
    ("what_our_own_sockets_change_does_not_wait_in_the_monitor", own_changes),
    ("addresses_are_reported_as_they_come_and_go_but_for_those_of_one_link", addresses),
    ("thousands_of_addresses_of_the_excepted_link_crowd_nothing_out", addresses_of_the_excepted_link),
    ("a_link_that_is_renamed_while_it_is_up_is_reported", renamed_link),
    ("of_routes_default_ones_are_reported_and_local_ones_that_go", routes_of_addresses),
];

fn main() -> ExitCode {
    common::main(CASES)
}

/// The tunnel device and the one that it is on, of which the kernel has nothing left to announce by itself.
fn devices() {
    // Threads of the kernel make the routes of link-local addresses, and notice the carrier, when they get to it.
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    ip("link add eth0 type veth peer name switch");
    ip("link set switch up");
    ip("link set eth0 up");
    until(|| ["eth0", "switch"].iter().all(|link| ip(&format!("link show {link}")).contains("state UP")));
    ip("addr add 10.4.7.21/24 dev eth0");
    tunnel();
}

/// Waits for what the kernel does by itself.
fn until(is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < LIMIT, "the kernel has not got to it");
    }
}

fn tunnel() {
    ip("link add flannel.1 type vxlan id 1 dev eth0 dstport 8472 nolearning");
    ip("link set flannel.1 up");
}

fn interest() -> Interest {
    Interest {
        devices: Some(BTreeSet::from([IfName::literal("flannel.1")])),
        links: BTreeSet::from([IfName::literal("eth0")]),
        routes: Some(Arc::new(|key, _| {
            key.table == 254 && "172.7.0.0/16".parse::<netstate::Prefix>().unwrap().covers(&key.dst)
        })),
        ..Interest::default()
    }
}

fn on_tokio<T>(run: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run)
}

/// The next event that is not one of links and addresses of others, which the kernel makes by itself at any time.
async fn next(watch: &mut Watch) -> Event {
    loop {
        match tokio::time::timeout(LIMIT, watch.next()).await.expect("an event").unwrap() {
            Event::OtherLink => {}
            event => return event,
        }
    }
}

/// What is reported up to a route that ends the test's changes.
async fn until_the_end(watch: &mut Watch) -> Vec<Event> {
    let mut events = Vec::new();
    for verb in ["add", "del"] {
        ip(&format!("route {verb} blackhole 172.7.255.0/24"));
        loop {
            match next(watch).await {
                Event::Route => break,
                event => events.push(event),
            }
        }
    }
    events
}

fn addresses() {
    ip("link add eth0 type bridge");
    ip("link add kube-ipvs0 type bridge");
    on_tokio(async {
        let mut watch = AddressWatch::open(IfName::literal("kube-ipvs0")).unwrap();
        ip("addr add 192.168.0.10/32 dev kube-ipvs0");
        ip("addr add 10.4.7.21/24 dev eth0");
        ip("link set eth0 up");
        ip("addr add fd00:4:7::21/64 dev eth0 nodad");
        ip("addr del 10.4.7.21/24 dev eth0");
        ip("link del kube-ipvs0");
        let mut found = Vec::new();
        let gone = AddressChange::Gone(if_nametoindex("eth0").unwrap(), "10.4.7.21".parse().unwrap(), 24);
        let came = |found: &[AddressChange], text: &str, len| {
            let wanted = InterfaceAddress::lasting(text.parse().unwrap(), len);
            found.iter().any(|change| matches!(change, AddressChange::Came(_, address) if *address == wanted))
        };
        // The kernel announces an address of IPv6 when it gets to it.
        while !found.contains(&gone) || !came(&found, "fd00:4:7::21", 64) {
            found.extend(tokio::time::timeout(LIMIT, watch.next()).await.expect("changes").unwrap());
        }
        assert!(came(&found, "10.4.7.21", 24), "{found:?}");
        assert!(!came(&found, "192.168.0.10", 32), "{found:?}");
    });
}

fn renamed_link() {
    ip("link add eth0 type bridge");
    ip("link add kube-ipvs0 type bridge");
    ip("link set eth0 up");
    let index = if_nametoindex("eth0").unwrap();
    on_tokio(async {
        let mut watch = AddressWatch::open(IfName::literal("kube-ipvs0")).unwrap();
        // Says which link is excepted.
        ip("addr add 192.168.0.1/32 dev kube-ipvs0");
        // Kernels before 6.2 rename no link that is up.
        sh(
            "sh",
            &[
                "-c",
                "ip link set eth0 name wan0 || { ip link set eth0 down; ip link set eth0 name wan0; ip link set wan0 up; }",
            ],
        );
        ip("link set wan0 down");
        let mut found = Vec::new();
        let said = |name: &str, up| AddressChange::Link { index, name: name.parse().unwrap(), up };
        while !found.contains(&said("wan0", true)) || found.last() != Some(&said("wan0", false)) {
            let changes = tokio::time::timeout(LIMIT, watch.next()).await.expect("changes").unwrap();
            found.extend(changes.into_iter().filter(|change| matches!(change, AddressChange::Link { .. })));
        }
    });
}

fn addresses_of_the_excepted_link() {
    ip("link add eth0 type bridge");
    ip("link add kube-ipvs0 type bridge");
    let eth0 = if_nametoindex("eth0").unwrap();
    let came = |text: &str| AddressChange::Came(eth0, InterfaceAddress::lasting(text.parse().unwrap(), 24));
    on_tokio(async {
        let mut watch = AddressWatch::open(IfName::literal("kube-ipvs0")).unwrap();
        // The first one says which link it is.
        ip("addr add 192.168.0.1/32 dev kube-ipvs0");
        ip("addr add 10.4.7.1/24 dev eth0");
        let first = tokio::time::timeout(LIMIT, watch.next()).await.expect("a change").unwrap();
        assert_eq!(first, [came("10.4.7.1")]);
        // A socket has room for some hundred announcements, and nobody reads meanwhile.
        let many =
            "for n in $(seq 2 9); do seq -f \"addr add 192.168.$n.%.0f/32 dev kube-ipvs0\" 1 250; done | ip -batch -";
        sh("sh", &["-c", many]);
        ip("addr add 10.4.8.1/24 dev eth0");
        let next = tokio::time::timeout(LIMIT, watch.next()).await.expect("a change").unwrap();
        assert_eq!(next, [came("10.4.8.1")]);
    });
}

fn routes_of_addresses() {
    ip("link add eth0 type bridge");
    ip("addr add 10.4.7.21/24 dev eth0");
    ip("addr add fd00:4:7::21/64 dev eth0 nodad");
    ip("link set eth0 up");
    // A kernel's thread makes the local route of an IPv6 address when it gets to it.
    until(|| !ip("-6 route show table local fd00:4:7::21").is_empty());
    on_tokio(async {
        let mut watch = AddressWatch::open(IfName::literal("kube-ipvs0")).unwrap();
        ip("route add 172.7.22.0/24 via 10.4.7.22");
        ip("route add local 10.4.7.99 dev eth0");
        ip("route add default via 10.4.7.1");
        ip("route del 172.7.22.0/24 via 10.4.7.22");
        ip("route del local 10.4.7.21 dev eth0 table local");
        ip("-6 route add default via fd00:4:7::1");
        ip("-6 route del local fd00:4:7::21 dev eth0 table local");
        let unrouted = |text: &str| AddressChange::Unrouted(text.parse().unwrap());
        let last = unrouted("fd00:4:7::21");
        let mut found = Vec::new();
        while !found.contains(&last) {
            let changes = tokio::time::timeout(LIMIT, watch.next()).await.expect("changes").unwrap();
            // Addresses of IPv6 are announced when the kernel gets to them.
            let of_routes =
                |change: &AddressChange| !matches!(change, AddressChange::Came(..) | AddressChange::Link { .. });
            found.extend(changes.into_iter().filter(of_routes));
        }
        let default = AddressChange::DefaultRoute;
        assert_eq!(found, [default.clone(), unrouted("10.4.7.21"), default, last]);
    });
}

fn forwarding() {
    devices();
    let rtnl = Rtnl::open().unwrap();
    let port = rtnl.port().unwrap();
    let mut fdbs = Fdbs::new(rtnl, [IfName::literal("flannel.1")]);
    on_tokio(async {
        let own = BTreeSet::from([port]);
        let mut by_port = Watch::open(Interest { own: own.clone(), ..interest() }).unwrap();
        let mut watch = Watch::open(Interest { own, written: fdbs.written(), ..interest() }).unwrap();
        let key = FdbKey { link: IfName::literal("flannel.1"), mac: MacAddr([2, 0, 0, 0, 0, 0x22]) };
        let to = |n: u8| Fdb { dst: [10, 4, 7, n].into() };
        for step in [
            Step::Create(key.clone(), to(22)),
            Step::Change(key.clone(), to(22), to(23)),
            Step::Remove(key.clone(), to(23)),
            Step::Create(key.clone(), to(22)),
        ] {
            assert!(fdbs.apply(&[step])[0].is_ok());
        }
        assert_eq!(until_the_end(&mut watch).await, []);
        // The kernel does not say who wrote.
        while next(&mut by_port).await != Event::Forwarding {}
        common::sh("bridge", &["fdb", "replace", "02:00:00:00:00:22", "dev", "flannel.1", "dst", "10.4.7.99"]);
        assert_eq!(next(&mut watch).await, Event::Forwarding, "another value");
        common::sh("bridge", &["fdb", "del", "02:00:00:00:00:22", "dev", "flannel.1"]);
        assert_eq!(next(&mut watch).await, Event::Forwarding, "a removal");
        common::sh("bridge", &["fdb", "add", "02:00:00:00:00:24", "dev", "flannel.1", "dst", "10.4.7.24"]);
        assert_eq!(next(&mut watch).await, Event::Forwarding, "a row that is nobody's");
    });
}

fn own_neighbours() {
    devices();
    let rtnl = Rtnl::open().unwrap();
    let port = rtnl.port().unwrap();
    let mut neighbours = Neighbours::new(rtnl, [IfName::literal("flannel.1")]);
    on_tokio(async {
        let own = BTreeSet::from([port]);
        let mut by_port = Watch::open(Interest { own: own.clone(), ..interest() }).unwrap();
        let mut watch = Watch::open(Interest { own, removed: neighbours.removed(), ..interest() }).unwrap();
        let key = |n: u8| NeighbourKey { link: IfName::literal("flannel.1"), addr: [172, 7, n, 0].into() };
        let mac = |n: u8| Neighbour { mac: MacAddr([2, 0, 0, 0, 0, n]) };
        for step in [
            Step::Create(key(22), mac(22)),
            Step::Change(key(22), mac(22), mac(23)),
            Step::Remove(key(22), mac(23)),
            Step::Create(key(23), mac(23)),
        ] {
            assert!(neighbours.apply(&[step])[0].is_ok());
        }
        assert_eq!(until_the_end(&mut watch).await, []);
        // The kernel does not say who removed.
        while next(&mut by_port).await != Event::Neighbour {}
        ip("neigh del 172.7.23.0 dev flannel.1");
        assert!(until_the_end(&mut watch).await.contains(&Event::Neighbour), "a removal by somebody else");
        // What was gone already is announced by nobody, and its next life ends by somebody else.
        assert!(neighbours.apply(&[Step::Remove(key(24), mac(24))])[0].is_ok());
        assert!(neighbours.apply(&[Step::Create(key(24), mac(24))])[0].is_ok());
        assert_eq!(until_the_end(&mut watch).await, []);
        ip("neigh del 172.7.24.0 dev flannel.1");
        assert!(until_the_end(&mut watch).await.contains(&Event::Neighbour), "of one that we made again");
    });
}

/// The line of the monitor's socket, the only one with groups in this namespace: `sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode`.
fn monitor() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let monitor = table.lines().skip(1).map(fields).find(|fields| fields[1] == "0" && fields[3] != "00000000");
    monitor.expect("the monitor's socket")
}

/// Bytes that wait in it.
fn waiting() -> u64 {
    monitor()[4].parse().unwrap()
}

fn own_changes() {
    devices();
    let mut rtnl = Rtnl::open().unwrap();
    let own = BTreeSet::from([rtnl.port().unwrap()]);
    on_tokio(async {
        let _watch = Watch::open(Interest { own, ..interest() }).unwrap();
        let route = |n: u8| {
            let key = kernel::route::main_key(format!("172.7.{n}.0/24").parse().unwrap(), 0);
            (key, kernel::route::via(IfName::literal("eth0"), Some([10, 4, 7, n].into()), 121))
        };
        rtnl.add_routes(&[route(22), route(23)]).unwrap();
        assert_eq!(waiting(), 0, "routes that we made");
        ip("route add blackhole 172.7.24.0/24");
        assert!(waiting() > 0, "a route of somebody else's");
    });
}

fn others() {
    devices();
    on_tokio(async {
        let mut watch = Watch::open(interest()).unwrap();
        ip("neigh add 10.4.7.22 lladdr 02:00:00:00:00:01 dev eth0");
        ip("link add veth1 type veth peer name veth2");
        ip("neigh add 10.4.7.23 lladdr 02:00:00:00:00:01 dev veth1");
        ip("link del veth1");
        let seen = until_the_end(&mut watch).await;
        assert_eq!(seen, [], "of others");
        ip("route add 10.99.0.0/16 via 10.4.7.1");
        assert_eq!(next(&mut watch).await, Event::OtherRoute);
        ip("route add default via 10.4.7.1");
        assert_eq!(next(&mut watch).await, Event::DefaultRoute);
        for rule in ["rule add from 172.7.21.0/24 lookup 100", "-6 rule add from fd00:7::/64 lookup 100"] {
            ip(rule);
            assert_eq!(next(&mut watch).await, Event::Rule, "{rule}");
        }
        ip("route add 172.7.22.0/24 via 10.4.7.22");
        assert_eq!(next(&mut watch).await, Event::Route);
        ip("neigh add 172.7.22.0 lladdr 02:00:00:00:00:22 dev flannel.1");
        assert_eq!(next(&mut watch).await, Event::Neighbour);
        ip("addr add 10.4.7.99/24 dev eth0");
        assert_eq!(next(&mut watch).await, Event::NewAddress);
        ip("addr del 10.4.7.99/24 dev eth0");
        // Its routes come and go with it.
        while next(&mut watch).await != Event::Address {}
    });
}

fn anew() {
    devices();
    on_tokio(async {
        let mut watch = Watch::open(interest()).unwrap();
        ip("link del flannel.1");
        tunnel();
        while next(&mut watch).await != Event::Link {}
        ip("neigh add 172.7.22.0 lladdr 02:00:00:00:00:22 dev flannel.1");
        while next(&mut watch).await != Event::Neighbour {}
    });
}

fn overrun() {
    devices();
    on_tokio(async {
        let mut watch = Watch::open(interest()).unwrap();
        shrink_buffer();
        // Each needs some 500 bytes.
        let routes: String =
            (0..1000u32).map(|n| format!("route add blackhole 10.{}.{}.0/24\n", n >> 8, n & 0xff)).collect();
        common::feed("ip", &["-batch", "-"], &routes);
        while next(&mut watch).await != Event::Resync {}
        ip("neigh add 172.7.22.0 lladdr 02:00:00:00:00:22 dev flannel.1");
        while next(&mut watch).await != Event::Neighbour {}
    });
}

/// Leaves the monitor's socket room for some ten notifications instead of its 32 MiB, which no machine is too small or too slow to fill.
#[allow(unsafe_code)]
fn shrink_buffer() {
    let socket = format!("socket:[{}]", monitor()[9]);
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let is_monitor = |entry: &std::fs::DirEntry| {
        std::fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == socket.as_str())
    };
    let descriptors = descriptors.filter(is_monitor).map(|entry| entry.file_name().to_str().unwrap().parse().unwrap());
    for descriptor in descriptors {
        // SAFETY: the caller holds the monitor, and with it the descriptor, for longer than this.
        let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) };
        nix::sys::socket::setsockopt(&descriptor, nix::sys::socket::sockopt::RcvBuf, &4096).unwrap();
    }
}
