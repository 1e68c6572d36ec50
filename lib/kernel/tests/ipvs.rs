//! Virtual and real servers against a kernel with IPVS, with ipvsadm as the independent observer.
//!
//! When the running kernel has no IPVS, the whole binary runs inside the lab kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::{cases, converge, ip, run, sh};
use kernel::Chain;
use kernel::ipvs::{Connections, Ipvs, IpvsTable, Timeouts};
use netstate::Protocol;
use netstate::ipvs::{Persistence, RealServer, RealServerKey, Row, Scheduler, VirtualServer, VirtualServerKey};
use reconcile::{Observed, Owner, Reconciler, RetryClass, Rows, Stage, State, Step, Target};

const VIP: [u8; 4] = [192, 168, 0, 10];

fn virtual_key(port: u16) -> VirtualServerKey {
    VirtualServerKey { protocol: Protocol::Tcp, addr: VIP.into(), port }
}

fn real_key(service: VirtualServerKey, last: u8) -> RealServerKey {
    let addr = if service.addr.is_ipv4() {
        IpAddr::from([10, 4, 7, last])
    } else {
        format!("fd00:7::{last}").parse().unwrap()
    };
    RealServerKey { service, addr, port: 8080 }
}

fn scheduler(name: &str) -> Row {
    Row::from(VirtualServer::new(name.to_owned(), None))
}

/// Real servers of `service` by the last number of their address, each with its weight.
fn serving(row: Row, service: VirtualServerKey, reals: &[(u8, u32)]) -> Row {
    let real = |(last, weight): &(u8, u32)| (real_key(service, *last).at(), RealServer::new(*weight));
    row.with(reals.iter().map(real).collect())
}

/// A row of round robin at this port.
fn row(port: u16, reals: &[(u8, u32)]) -> Row {
    serving(scheduler("rr"), virtual_key(port), reals)
}

/// A network with addresses that real servers can have.
fn uplink() {
    ip("link add eth0 type veth peer name switch");
    ip("link set switch up");
    ip("addr add 10.4.7.21/24 dev eth0");
    ip("addr add fd00:7::15/64 dev eth0 nodad");
    ip("link set eth0 up");
}

fn table(owned: &[VirtualServerKey]) -> Reconciler<IpvsTable> {
    Reconciler::new("ipvs", IpvsTable::new(Ipvs::open().unwrap(), owned.iter().copied()))
}

/// What ipvsadm prints, sorted.
fn shown() -> Vec<String> {
    let mut lines: Vec<_> = sh("ipvsadm", &["-Sn"]).lines().map(|line| line.trim_end().to_owned()).collect();
    lines.sort();
    lines
}

fn servers_read_back_as_desired_and_go_without_a_trace() {
    uplink();
    let mut table = table(&[]);
    let udp6 = VirtualServerKey { protocol: Protocol::Udp, addr: "fd00::a".parse().unwrap(), port: 53 };
    table.want(virtual_key(80), Some(row(80, &[(2, 1), (3, 1)])));
    let sticky = VirtualServer::new("rr".to_owned(), Some(10_800.into()));
    table.want(virtual_key(443), Some(sticky.into()));
    table.want(udp6, Some(serving(scheduler("rr"), udp6, &[(2, 1)])));
    assert_eq!(converge(&mut table).upserted, 3);
    assert_eq!(
        shown(),
        [
            "-A -t 192.168.0.10:443 -s rr -p 10800",
            "-A -t 192.168.0.10:80 -s rr",
            "-A -u [fd00::a]:53 -s rr",
            "-a -t 192.168.0.10:80 -r 10.4.7.2:8080 -m -w 1",
            "-a -t 192.168.0.10:80 -r 10.4.7.3:8080 -m -w 1",
            "-a -u [fd00::a]:53 -r [fd00:7::2]:8080 -m -w 1",
        ]
    );
    table.want_all([].into());
    let gone = converge(&mut table);
    assert_eq!((gone.removed, shown().len()), (3, 0));
}

fn changes_are_made_in_place() {
    uplink();
    let mut table = table(&[]);
    table.want(virtual_key(80), Some(row(80, &[(2, 1), (3, 1), (5, 1)])));
    converge(&mut table);
    let other = serving(scheduler("wrr"), virtual_key(80), &[(2, 0), (4, 7), (5, 1)]);
    table.want(virtual_key(80), Some(other));
    assert_eq!(converge(&mut table).upserted, 1);
    let real = |last, weight| format!("-a -t 192.168.0.10:80 -r 10.4.7.{last}:8080 -m -w {weight}");
    assert_eq!(shown(), ["-A -t 192.168.0.10:80 -s wrr".to_owned(), real(2, 0), real(4, 7), real(5, 1)]);
}

/// What hashes, with its flags; what does not, with time and mask of clients.
fn schedulers_with_their_flags_and_clients_are_what_the_tool_shows() {
    uplink();
    let six = VirtualServerKey { protocol: Protocol::Tcp, addr: "fd00::a".parse().unwrap(), port: 80 };
    let sctp = VirtualServerKey { protocol: Protocol::Sctp, ..virtual_key(7) };
    let mut table = table(&[]);
    let desired = [
        (virtual_key(1), "mh", None, "-A -t 192.168.0.10:1 -s mh -b mh-port"),
        (virtual_key(2), "mh,none", Some((60, None)), "-A -t 192.168.0.10:2 -s mh -p 60"),
        (virtual_key(3), "mh,mh-fallback,mh-port", None, "-A -t 192.168.0.10:3 -s mh -b mh-fallback,mh-port"),
        (virtual_key(4), "sh,sh-port", None, "-A -t 192.168.0.10:4 -s sh -b sh-port"),
        (virtual_key(5), "wlc", Some((86_400, None)), "-A -t 192.168.0.10:5 -s wlc -p 86400"),
        (virtual_key(6), "rr", Some((60, Some(24))), "-A -t 192.168.0.10:6 -s rr -p 60 -M 255.255.255.0"),
        (sctp, "rr", Some((1, None)), "-A --sctp-service 192.168.0.10:7 -s rr -p 1"),
        (six, "sh,sh-fallback", Some((10_800, Some(64))), "-A -t [fd00::a]:80 -s sh -p 10800 -M 64 -b sh-fallback"),
    ];
    for (key, scheduler, persistence, _) in desired {
        let persistence = persistence.map(|(seconds, prefix)| Persistence { seconds, prefix });
        let value = VirtualServer::new(scheduler.parse::<Scheduler>().unwrap(), persistence);
        table.want(key, Some(value.into()));
    }
    assert_eq!(converge(&mut table).upserted, 8);
    let mut expected = desired.map(|(.., line)| line.to_owned());
    expected.sort();
    assert_eq!(shown(), expected);
    // Whatever somebody changes is changed back in place.
    for (change, of) in [
        (&["-E", "-t", "192.168.0.10:1", "-s", "mh"][..], virtual_key(1)),
        (&["-E", "-t", "192.168.0.10:3", "-s", "mh", "-b", "mh-port"], virtual_key(3)),
        (&["-E", "-t", "192.168.0.10:4", "-s", "rr"], virtual_key(4)),
        (&["-E", "-t", "192.168.0.10:5", "-s", "wlc", "-p", "86400", "-M", "255.255.255.0"], virtual_key(5)),
        (&["-E", "-t", "192.168.0.10:5", "-s", "wlc"], virtual_key(5)),
        (&["-E", "-t", "192.168.0.10:6", "-s", "rr", "-p", "60"], virtual_key(6)),
        (&["-E", "-t", "[fd00::a]:80", "-s", "sh", "-p", "10800", "-b", "sh-fallback"], six),
    ] {
        sh("ipvsadm", change);
        let believed = table.mirror().unwrap().clone();
        let target = table.target_mut();
        let mut found = target.differing(&believed).unwrap();
        // Those of IPv6 are listed the more seldom the longer that takes.
        let deadline = Instant::now() + Duration::from_secs(60);
        while found.is_empty() && Instant::now() < deadline {
            found.extend(target.differing_in_turn(&believed).unwrap());
        }
        assert_eq!(found, [of].into(), "{change:?}");
        table.invalidate();
        assert_eq!(converge(&mut table).upserted, 1, "{change:?}");
        assert_eq!(shown(), expected, "{change:?}");
    }
}

/// Rows of a predecessor as much as our own.
fn options_of_others_are_put_right_also_in_what_is_adopted() {
    uplink();
    for (server, options) in
        [("192.168.0.10:80", &["-p", "60", "-M", "255.255.0.0"][..]), ("192.168.0.10:81", &["-b", "flag-3"])]
    {
        sh("ipvsadm", &[&["-A", "-t", server, "-s", "rr"], options].concat());
        sh("ipvsadm", &["-a", "-t", server, "-r", "10.4.7.2:8080", "-g", "-w", "1"]);
        sh("ipvsadm", &["-a", "-t", server, "-r", "10.4.7.3:8080", "-i", "-w", "1", "-x", "9", "-y", "3"]);
    }
    let mut table = table(&[]);
    table.target_mut().adopt([].into(), [VIP.into()].into());
    for port in [80, 81] {
        table.want(virtual_key(port), Some(row(port, &[(2, 1), (3, 1)])));
    }
    assert_eq!(converge(&mut table).upserted, 2);
    let expected = |port| {
        let real = move |last| format!("-a -t 192.168.0.10:{port} -r 10.4.7.{last}:8080 -m -w 1");
        [format!("-A -t 192.168.0.10:{port} -s rr"), real(2), real(3)]
    };
    let mut lines = [expected(80), expected(81)].concat();
    lines.sort();
    assert_eq!(shown(), lines);
}

fn foreign_servers_stay_and_recorded_ones_are_adopted() {
    uplink();
    sh("ipvsadm", &["-A", "-t", "10.4.7.21:8080", "-s", "wlc"]);
    sh("ipvsadm", &["-a", "-t", "10.4.7.21:8080", "-r", "10.4.7.9:80", "-i"]);
    sh("ipvsadm", &["-A", "-f", "7", "-s", "rr"]);
    let foreign = shown();
    sh("ipvsadm", &["-A", "-t", "192.168.0.10:80", "-s", "rr"]);
    sh("ipvsadm", &["-a", "-t", "192.168.0.10:80", "-r", "10.4.7.2:8080", "-m", "-w", "1"]);
    let mut table = table(&[virtual_key(80)]);
    table.want(virtual_key(80), Some(row(80, &[(3, 1)])));
    assert_eq!(converge(&mut table).upserted, 1, "one real server is new, one is ours from before");
    assert!(shown().contains(&"-a -t 192.168.0.10:80 -r 10.4.7.3:8080 -m -w 1".to_owned()));
    table.want_all([].into());
    converge(&mut table);
    assert_eq!(shown(), foreign);
}

fn rows_that_are_there_or_gone_already_are_no_errors() {
    uplink();
    let mut table = IpvsTable::new(Ipvs::open().unwrap(), []);
    let (key, whole) = (virtual_key(80), row(80, &[(2, 1)]));
    for round in 0..2 {
        assert!(table.apply(&[Step::Create(key, whole.clone())])[0].is_ok(), "round {round}");
    }
    assert!(table.apply(&[Step::Create(key, row(80, &[(2, 0)]))])[0].is_ok());
    assert!(shown()[1].ends_with("-w 0"), "{:?}", shown());
    let without = Step::Change(key, whole.clone(), row(80, &[]));
    for round in 0..2 {
        assert!(table.apply(std::slice::from_ref(&without))[0].is_ok(), "round {round}");
    }
    for round in 0..2 {
        assert!(table.apply(&[Step::Remove(key, whole.clone())])[0].is_ok(), "round {round}");
    }
    let other = serving(scheduler("wrr"), key, &[(2, 1)]);
    assert!(
        table.apply(&[Step::Change(key, row(80, &[(2, 0)]), other)])[0].is_ok(),
        "a change of what is gone makes it"
    );
    assert_eq!(shown().len(), 2);
}

fn a_refused_row_stops_none_and_says_what_to_do() {
    uplink();
    let mut table = table(&[]);
    table.want(virtual_key(80), Some(serving(scheduler("nosuch"), virtual_key(80), &[(2, 1)])));
    let group = RealServerKey { addr: [224, 0, 0, 1].into(), ..real_key(virtual_key(443), 2) };
    let whole = row(443, &[(2, 1), (3, 1)]);
    let with_group = whole.with(whole.reals.with(group.at(), Some(RealServer::new(1))));
    table.want(virtual_key(443), Some(with_group));
    table.want(virtual_key(444), Some(row(444, &[(2, 1)])));
    let pass = run(&mut table);
    assert_eq!((pass.upserted, pass.failed), (1, 2), "{:?}", pass.errors);
    let open = table.status().open;
    let reasons: Vec<_> = open
        .iter()
        .map(|row| match &row.state {
            State::Failed { class, reason, .. } => (*class, reason.clone()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(reasons[0].1.contains("scheduler \"nosuch\" (kernel module ip_vs_nosuch"), "{reasons:?}");
    assert_eq!(reasons[0].0, RetryClass::Wait);
    assert!(reasons[1].1.contains("tcp 192.168.0.10:443 -> 224.0.0.1:8080"), "{reasons:?}");
    assert!(reasons[1].1.contains("it must be unicast"), "{reasons:?}");
    // The others are served, and it is known that they are.
    let real = |port, last| format!("-a -t 192.168.0.10:{port} -r 10.4.7.{last}:8080 -m -w 1");
    let virtual_server = |port| format!("-A -t 192.168.0.10:{port} -s rr");
    assert_eq!(shown(), [virtual_server(443), virtual_server(444), real(443, 2), real(443, 3), real(444, 2)]);
    assert_eq!(table.mirror().unwrap()[&virtual_key(443)].value, whole);
    assert_eq!(table.mirror().unwrap().get(&virtual_key(80)), None);
    table.want(virtual_key(443), Some(whole));
    assert_eq!(run(&mut table).upserted, 0, "nothing is left to do for it");
}

fn two_thousand_servers_go_in_and_out() {
    uplink();
    let mut table = table(&[]);
    for port in 1..=400 {
        table.want(virtual_key(port), Some(row(port, &[(2, 1), (3, 1), (4, 1), (5, 1)])));
    }
    assert_eq!(converge(&mut table).upserted, 400);
    assert_eq!(shown().len(), 2000);
    table.want_all([].into());
    assert_eq!(converge(&mut table).removed, 400);
    assert_eq!(shown().len(), 0);
}

fn comparing_finds_what_another_program_changed_among_many() {
    uplink();
    let mut table = IpvsTable::new(Ipvs::open().unwrap(), (1..=200).map(virtual_key));
    let mut rows = std::collections::BTreeMap::new();
    for port in 1..=200 {
        let persistence = (port % 2 == 0).then_some(10_800.into());
        let value = VirtualServer::new("rr".to_owned(), persistence);
        rows.insert(virtual_key(port), serving(value.into(), virtual_key(port), &[(2, 1), (3, 1), (4, 1)]));
    }
    let six = VirtualServerKey { protocol: Protocol::Udp, addr: "fd00::a".parse().unwrap(), port: 53 };
    let sticky = VirtualServer::new("rr".to_owned(), Some(60.into()));
    rows.insert(six, serving(sticky.into(), six, &[(2, 3)]));
    let steps: Vec<_> = rows.iter().map(|(key, value)| Step::Create(*key, value.clone())).collect();
    assert!(table.apply(&steps).iter().all(Result::is_ok));
    let ours = |(key, value)| (key, Observed { value, owner: Owner::Ours });
    let rows: Rows<VirtualServerKey, Row> = rows.into_iter().map(ours).collect();
    sh("ipvsadm", &["-A", "-t", "10.4.7.21:8080", "-s", "wlc"]);
    sh("ipvsadm", &["-A", "-f", "7", "-s", "rr"]);
    assert_eq!(table.differing(&rows).unwrap(), [].into(), "foreign servers do not count");

    for change in [
        &["-d", "-t", "192.168.0.10:80", "-r", "10.4.7.2:8080"][..],
        &["-e", "-t", "192.168.0.10:81", "-r", "10.4.7.2:8080", "-m", "-w", "5"],
        &["-a", "-t", "192.168.0.10:83", "-r", "10.4.7.9:8080", "-m"],
        &["-E", "-t", "192.168.0.10:84", "-s", "rr", "-p", "10801"],
        &["-D", "-t", "192.168.0.10:85"],
        &["-E", "-u", "[fd00::a]:53", "-s", "wrr", "-p", "60"],
    ] {
        sh("ipvsadm", change);
    }
    let mut found = std::collections::BTreeSet::new();
    // At least 4 virtual servers a turn.
    for _ in 0..51 {
        found.extend(table.differing(&rows).unwrap());
        found.extend(table.differing_in_turn(&rows).unwrap());
    }
    assert!(found.remove(&six), "{found:?}");
    assert_eq!(found, [80, 81, 83, 84, 85].map(virtual_key).into());
    // Only these are read again.
    let again = table.rows_of(&[virtual_key(80), virtual_key(85)].into()).unwrap();
    let found: Vec<_> = again.into_iter().map(|(key, row)| (key, row.value)).collect();
    assert_eq!(
        found,
        [(virtual_key(80), serving(rows[&virtual_key(80)].value.clone(), virtual_key(80), &[(3, 1), (4, 1)]))]
    );
}

/// The listing is the same as before then: as many real servers of each virtual server.
fn what_others_change_while_a_step_is_taken_is_found() {
    uplink();
    let mut table = IpvsTable::new(Ipvs::open().unwrap(), []);
    let mut rows = made(&mut table, 50);
    assert_eq!(table.differing(&rows).unwrap(), [].into());
    sh("ipvsadm", &["-d", "-t", "192.168.0.10:7", "-r", "10.4.7.2:8080"]);
    let (before, after) = (row(7, &[(2, 1), (3, 1), (4, 1)]), row(7, &[(2, 1), (3, 1), (4, 1), (9, 1)]));
    assert!(table.apply(&[Step::Change(virtual_key(7), before, after.clone())])[0].is_ok());
    rows.insert(virtual_key(7), Observed { value: after, owner: Owner::Ours });
    for _ in 0..2 {
        assert_eq!(table.differing(&rows).unwrap(), [virtual_key(7)].into(), "until it is read again");
    }
    let again = table.rows_of(&[virtual_key(7)].into()).unwrap();
    rows.extend(again);
    assert_eq!(table.differing(&rows).unwrap(), [].into());
}

/// Netlink alone lists virtual servers of IPv6: who serves none does not ask it, unless some are left from before.
fn servers_of_ipv6_are_listed_where_they_are_served_or_left() {
    uplink();
    let six = VirtualServerKey { protocol: Protocol::Udp, addr: "fd00::a".parse().unwrap(), port: 53 };
    let mut table = IpvsTable::new(Ipvs::open().unwrap(), []);
    let mut rows = made(&mut table, 3);
    sh("ipvsadm", &["-A", "-u", "[fd00::a]:53", "-s", "rr"]);
    let listed = |mut table: IpvsTable, owned: &[VirtualServerKey]| {
        let four = (1..=3).map(virtual_key);
        table.adopt(four.chain(owned.iter().copied()).collect(), [].into());
        table.observe().unwrap()
    };
    let new = || IpvsTable::new(Ipvs::open().unwrap(), []);
    assert_eq!(listed(new().without_ipv6(), &[]), rows);
    let row = |owner| Observed { value: scheduler("rr"), owner };
    rows.insert(six, row(Owner::Ours));
    assert_eq!(listed(new().without_ipv6(), &[six]), rows);
    rows.insert(six, row(Owner::Foreign));
    assert_eq!(listed(new(), &[]), rows);
}

fn one_reading_finds_one_server_among_ten_thousand() {
    uplink();
    let mut table = IpvsTable::new(Ipvs::open().unwrap(), []);
    let rows: BTreeMap<_, _> = (1..=10_000).map(|port| (virtual_key(port), row(port, &[(2, 1)]))).collect();
    let steps: Vec<_> = rows.iter().map(|(key, value)| Step::Create(*key, value.clone())).collect();
    assert!(table.apply(&steps).iter().all(Result::is_ok));
    let ours = |(key, value)| (key, Observed { value, owner: Owner::Ours });
    let rows: Rows<VirtualServerKey, Row> = rows.into_iter().map(ours).collect();
    let timed = |what: &str, table: &mut IpvsTable| {
        let begun = Instant::now();
        let found = table.differing(&rows).unwrap();
        eprintln!("{what}: {:?}", begun.elapsed());
        found
    };
    assert_eq!(timed("compared", &mut table), [].into());
    assert_eq!(timed("not changed since", &mut table), [].into());
    for change in [&["-D", "-t", "192.168.0.10:7777"][..], &["-d", "-t", "192.168.0.10:5", "-r", "10.4.7.2:8080"]] {
        sh("ipvsadm", change);
        let found = timed("changed by another program", &mut table);
        let port = if change[0] == "-D" { 7777 } else { 5 };
        assert_eq!(found, [virtual_key(port)].into());
        let key = virtual_key(port);
        assert!(table.apply(&[Step::Create(key, rows[&key].value.clone())])[0].is_ok());
        assert_eq!(timed("repaired", &mut table), [].into());
    }
}

fn what_is_ours_is_listed_with_the_options_of_others() {
    uplink();
    let made = [80, 81].map(virtual_key);
    for port in ["80", "81", "443", "444"] {
        let server = format!("192.168.0.10:{port}");
        sh("ipvsadm", &["-A", "-t", &server, "-s", "rr"]);
        sh("ipvsadm", &["-a", "-t", &server, "-r", "10.4.7.2:8080", "-m", "-w", "2"]);
    }
    sh("ipvsadm", &["-a", "-t", "192.168.0.10:81", "-r", "10.4.7.3:81", "-g", "-w", "2"]);
    for port in ["80", "443"] {
        let server = format!("192.168.0.10:{port}");
        sh("ipvsadm", &["-e", "-t", &server, "-r", "10.4.7.2:8080", "-m", "-w", "2", "-x", "9", "-y", "3"]);
    }
    let mut table = IpvsTable::new(Ipvs::open().unwrap(), []);
    table.claim(virtual_key(443));
    table.adopt(made.into(), [].into());
    let rows = table.observe().unwrap();
    let real = |port| rows[&virtual_key(port)].value.reals.get(real_key(virtual_key(port), 2).at());
    let with = |foreign_options| Some(RealServer { weight: 2, foreign_options });
    assert_eq!([80, 81, 443, 444].map(real), [with(true), with(false), with(true), None]);
    let routed = RealServerKey { port: 81, ..real_key(virtual_key(81), 3) };
    assert_eq!(rows[&virtual_key(81)].value.reals.get(routed.at()), with(true));
    assert_eq!(rows[&virtual_key(444)].owner, Owner::Foreign);
    // A predecessor's, by the address.
    let mut table = IpvsTable::new(Ipvs::open().unwrap(), []);
    table.adopt([].into(), [VIP.into()].into());
    let rows = table.observe().unwrap();
    assert_eq!(
        rows.values().map(|row| (row.owner, row.value.reals.len())).collect::<Vec<_>>(),
        [1, 2, 1, 1].map(|reals| (Owner::Ours, reals))
    );
}

/// Many real servers of one virtual server, more than a first question has room for.
fn real_servers_are_read_whole_however_many_there_are() {
    uplink();
    let mut table = table(&[]);
    let reals = (1..=200).map(|last| (SocketAddr::from(([10, 4, 8, last], 8080)), RealServer::new(1)));
    table.want(virtual_key(80), Some(scheduler("rr").with(reals.collect())));
    assert_eq!(converge(&mut table).upserted, 1);
    assert_eq!(shown().len(), 201);
}

/// `count` virtual servers with three real servers each, as rows that are in the kernel.
fn made(table: &mut IpvsTable, count: u16) -> Rows<VirtualServerKey, Row> {
    let rows: BTreeMap<_, _> =
        (1..=count).map(|port| (virtual_key(port), row(port, &[(2, 1), (3, 1), (4, 1)]))).collect();
    let steps: Vec<_> = rows.iter().map(|(key, value)| Step::Create(*key, value.clone())).collect();
    assert!(table.apply(&steps).iter().all(Result::is_ok));
    rows.into_iter().map(|(key, value)| (key, Observed { value, owner: Owner::Ours })).collect()
}

/// Where all network namespaces have one table, the kernel's text of servers (/proc/net/ip_vs) leaves some out then.
fn servers_of_another_network_namespace_hide_none_of_ours() {
    uplink();
    let mut table = IpvsTable::new(Ipvs::open().unwrap(), []);
    let rows = made(&mut table, 300);
    let others = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        uplink();
        let mut others = IpvsTable::new(Ipvs::open().unwrap(), []);
        made(&mut others, 400);
        others
    });
    let mut others = others.join().unwrap();
    let text = std::fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap();
    let shown = text.lines().filter(|line| line.starts_with("TCP")).count();
    eprintln!("the kernel's text shows {shown} of 300 servers");
    assert!(shown <= 300, "servers of another network namespace are in the text");
    for _ in 0..30 {
        assert_eq!(table.differing(&rows).unwrap(), [].into());
        assert_eq!(table.differing_in_turn(&rows).unwrap(), [].into());
    }
    table.adopt((1..=300).map(virtual_key).collect(), [].into());
    assert_eq!(table.observe().unwrap(), rows);
    assert_eq!(table.differing(&rows).unwrap(), [].into());
    // Each sees its own: what happens here is not theirs.
    sh("ipvsadm", &["-D", "-t", "192.168.0.10:150"]);
    assert_eq!(table.differing(&rows).unwrap(), [virtual_key(150)].into());
    others.adopt((1..=400).map(virtual_key).collect(), [].into());
    let others: Vec<_> = others.observe().unwrap().into_values().map(|row| row.value.reals.len()).collect();
    assert_eq!(others, [3; 400]);
}

fn real_servers_are_compared_in_turn_until_all_were() {
    uplink();
    let mut table = IpvsTable::new(Ipvs::open().unwrap(), []);
    let rows = made(&mut table, 500);
    for damage in [
        &["-e", "-t", "192.168.0.10:499", "-r", "10.4.7.2:8080", "-m", "-w", "5"][..],
        &["-e", "-t", "192.168.0.10:3", "-r", "10.4.7.2:8080", "-m", "-w", "0"],
        &["-e", "-t", "192.168.0.10:250", "-r", "10.4.7.2:8080", "-m", "-w", "1", "-x", "9", "-y", "3"],
    ] {
        sh("ipvsadm", damage);
    }
    let mut found = std::collections::BTreeSet::new();
    for turn in 0.. {
        // At least 4 virtual servers a turn.
        assert!(turn < 128, "after {turn} turns only {found:?}");
        assert_eq!(table.differing(&rows).unwrap(), [].into(), "the listing of virtual servers does not show it");
        found.extend(table.differing_in_turn(&rows).unwrap());
        if found == [3, 250, 499].map(virtual_key).into() {
            break;
        }
    }
}

/// Their real servers are compared in turn, which takes longer than anybody should wait for a virtual server.
fn one_listing_finds_every_server_of_ipv6_that_is_gone_or_different() {
    uplink();
    let mut table = IpvsTable::new(Ipvs::open().unwrap(), []);
    let six = |port| VirtualServerKey { protocol: Protocol::Tcp, addr: "fd00::a".parse().unwrap(), port };
    let mut rows = made(&mut table, 300);
    let of_ipv6 = (1..=300).map(|port| (six(port), serving(scheduler("rr"), six(port), &[(2, 1)])));
    let steps: Vec<_> = of_ipv6.map(|(key, value)| Step::Create(key, value)).collect();
    assert!(table.apply(&steps).iter().all(Result::is_ok));
    rows.extend(steps.into_iter().filter_map(|step| match step {
        Step::Create(key, value) => Some((key, Observed { value, owner: Owner::Ours })),
        _ => None,
    }));
    sh("ipvsadm", &["-A", "-t", "[fd00::b]:80", "-s", "wlc"]);
    sh("ipvsadm", &["-D", "-t", "[fd00::a]:299"]);
    sh("ipvsadm", &["-E", "-t", "[fd00::a]:300", "-s", "wrr"]);
    assert_eq!(table.differing_in_turn(&rows).unwrap(), [six(299), six(300)].into());
    // Whoever takes those of IPv4 away has the others listed at once.
    sh("ipvsadm", &["-C"]);
    assert_eq!(table.differing(&rows).unwrap().len(), 300);
    let of_ipv6 = table.differing_in_turn(&rows).unwrap().into_iter().filter(|key| key.addr.is_ipv6());
    assert_eq!(of_ipv6.count(), 300);
}

fn virtual_server_that_is_gone_is_named_by_the_steps_that_relied_on_it() {
    uplink();
    let mut table = IpvsTable::new(Ipvs::open().unwrap(), []);
    let key = virtual_key(80);
    table.apply(&[Step::Create(key, row(80, &[(2, 1)]))]);
    for wanted in [row(80, &[(2, 2)]), row(80, &[(2, 1), (3, 1)])] {
        sh("ipvsadm", &["-C"]);
        assert_eq!(table.take_vanished(), [].into());
        let step = Step::Change(key, row(80, &[(2, 1)]), wanted);
        let error = Chain(table.apply(&[step])[0].as_ref().unwrap_err()).to_string();
        assert!(error.ends_with("virtual server tcp 192.168.0.10:80 is gone"), "{error}");
        assert_eq!(table.take_vanished(), [key].into());
    }
    // A change makes it again, and its real servers are to be doubted all the same.
    let wrr = serving(scheduler("wrr"), key, &[(2, 1)]);
    assert!(table.apply(&[Step::Change(key, row(80, &[(2, 1)]), wrr)])[0].is_ok());
    assert_eq!(shown(), ["-A -t 192.168.0.10:80 -s wrr"]);
    assert_eq!(table.take_vanished(), [key].into());
}

fn scheduler_is_asked_for_without_making_anything() {
    let mut ipvs = Ipvs::open().unwrap();
    assert!(ipvs.has_scheduler("rr").unwrap());
    assert!(!ipvs.has_scheduler("nosuch").unwrap());
    assert!(ipvs.virtual_servers().unwrap().is_empty());
}

fn connections_are_counted() {
    uplink();
    ip("addr add 192.168.0.10/32 dev lo");
    let server = TcpListener::bind("10.4.7.21:8080").unwrap();
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let mut byte = [0];
        while stream.read(&mut byte).unwrap_or(0) == 1 {
            stream.write_all(&byte).unwrap();
        }
    });
    let mut table = IpvsTable::new(Ipvs::open().unwrap(), []);
    let real = real_key(virtual_key(80), 21);
    assert!(table.apply(&[Step::Create(virtual_key(80), row(80, &[(21, 1)]))])[0].is_ok());
    let counted = |table: &mut IpvsTable| table.ipvs().real_servers(&virtual_key(80)).unwrap()[&real].1;
    assert!(counted(&mut table).is_empty());
    let mut client = TcpStream::connect(SocketAddr::from((VIP, 80))).unwrap();
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    assert_eq!(counted(&mut table), Connections { active: 1, inactive: 0 });
    drop(client);
    echo.join().unwrap();
    assert_eq!(counted(&mut table).active, 0);
}

fn time_outs_are_set_one_by_one() {
    let mut ipvs = Ipvs::open().unwrap();
    assert_eq!(ipvs.timeouts().unwrap(), Timeouts { tcp: 900, tcp_fin: 120, udp: 300 });
    ipvs.set_timeouts(Timeouts { tcp: 0, tcp_fin: 30, udp: 0 }).unwrap();
    assert_eq!(ipvs.timeouts().unwrap(), Timeouts { tcp: 900, tcp_fin: 30, udp: 300 });
    assert_eq!(ipvs.info().unwrap().version, (1, 2, 1));
}

fn main() -> ExitCode {
    common::main_in_lab(
        "IPVS",
        || Ipvs::open().is_ok(),
        cases![
            servers_read_back_as_desired_and_go_without_a_trace,
            changes_are_made_in_place,
            schedulers_with_their_flags_and_clients_are_what_the_tool_shows,
            options_of_others_are_put_right_also_in_what_is_adopted,
            foreign_servers_stay_and_recorded_ones_are_adopted,
            rows_that_are_there_or_gone_already_are_no_errors,
            a_refused_row_stops_none_and_says_what_to_do,
            two_thousand_servers_go_in_and_out,
            comparing_finds_what_another_program_changed_among_many,
            what_others_change_while_a_step_is_taken_is_found,
            servers_of_ipv6_are_listed_where_they_are_served_or_left,
            one_reading_finds_one_server_among_ten_thousand,
            what_is_ours_is_listed_with_the_options_of_others,
            real_servers_are_read_whole_however_many_there_are,
            servers_of_another_network_namespace_hide_none_of_ours,
            real_servers_are_compared_in_turn_until_all_were,
            one_listing_finds_every_server_of_ipv6_that_is_gone_or_different,
            virtual_server_that_is_gone_is_named_by_the_steps_that_relied_on_it,
            scheduler_is_asked_for_without_making_anything,
            connections_are_counted,
            time_outs_are_set_one_by_one,
        ],
    )
}
