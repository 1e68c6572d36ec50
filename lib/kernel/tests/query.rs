//! What the daemons ask outside their tables, against the running kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

mod common;

use std::collections::BTreeSet;
use std::process::ExitCode;

use common::{cases, feed, ip};
use kernel::query::{DefaultRoute, Hop, Query};
use kernel::way::{Asked, Packet};
use kernel::{Chain, Rtnl};
use netstate::family::IpFamily;
use netstate::{IfName, InterfaceAddress, Protocol};

fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

fn hop(link: &str, via: &str) -> Hop {
    Hop { link: Some(name(link)), via: Some(via.parse().unwrap()) }
}

fn uplinks() {
    for (index, link) in ["eth0", "eth1"].iter().enumerate() {
        ip(&format!("link add {link} mtu {} type veth peer name switch{index}", 1500 - index));
        ip(&format!("link set switch{index} up"));
        ip(&format!("addr add 10.4.{index}.21/24 dev {link}"));
        ip(&format!("addr add fd00:{index}::21/64 dev {link} nodad"));
        ip(&format!("link set {link} up"));
    }
}

/// Runs `test` on a runtime of its own in the calling thread's namespace.
fn ask(test: impl AsyncFnOnce(Query)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { test(Query::open().unwrap()).await });
}

fn interfaces_are_listed_with_kind_mtu_and_addresses() {
    uplinks();
    ip("link add br0 type bridge");
    ip("addr add 10.9.0.1 peer 10.9.0.2/32 dev eth1");
    ask(async |query| {
        let found = query.interfaces().await.unwrap();
        let named = |wanted: &str| found.iter().find(|interface| interface.name.as_str() == wanted).unwrap();
        let eth1 = named("eth1");
        assert_eq!((eth1.kind.as_str(), eth1.mtu, eth1.up), ("veth", 1499, true));
        let lasting = |addr: &str, len| InterfaceAddress::lasting(addr.parse().unwrap(), len);
        assert_eq!(eth1.addresses[0], lasting("10.4.1.21", 24));
        assert_eq!(eth1.addresses[1], lasting("10.9.0.1", 32), "our end, not the other");
        assert!(eth1.addresses.contains(&lasting("fd00:1::21", 64)), "{eth1:?}");
        assert_eq!((named("br0").kind.as_str(), named("br0").up), ("bridge", false));
        assert_eq!(named("lo").kind, "");
    });
}

fn addresses_that_end_or_are_on_their_way_out_are_told_apart() {
    uplinks();
    ip("addr add 10.4.0.22/24 dev eth0 valid_lft 600 preferred_lft 300");
    ip("addr add 10.4.0.23/24 dev eth0 valid_lft 600 preferred_lft 0");
    ip("addr add fd00:0::22/64 dev eth0 nodad valid_lft forever preferred_lft 0");
    ask(async |query| {
        let found = query.interfaces().await.unwrap();
        let eth0 = found.iter().find(|interface| interface.name.as_str() == "eth0").unwrap();
        let named = |addr: &str| *eth0.addresses.iter().find(|own| own.addr.to_string() == addr).unwrap();
        let of = |addr: &str| (named(addr).unfit, named(addr).dynamic, named(addr).temporary);
        assert_eq!(of("10.4.0.21"), (false, false, false));
        assert_eq!(of("10.4.0.22"), (false, true, false), "secondary, which is not temporary");
        assert_eq!(of("10.4.0.23"), (true, true, false));
        assert_eq!(of("fd00::22"), (true, false, false));
    });
}

/// The kernel goes on at an address's place in its link's list, which moves when an earlier one goes; it marks such a listing.
fn addresses_that_stay_are_listed_while_others_go() {
    ip("link add many type bridge");
    let addresses = |from: u32, to: u32| (from..to).map(|n| std::net::Ipv4Addr::from(0x0a63_0000 + n));
    let batch = |verb: &str, from, to| {
        let lines: Vec<String> = addresses(from, to).map(|addr| format!("addr {verb} {addr}/32 dev many\n")).collect();
        feed("ip", &["-batch", "-"], &lines.concat());
    };
    batch("add", 0, 6000);
    std::thread::scope(|scope| {
        let own = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let going = scope.spawn(move || {
            nix::sched::setns(own, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            batch("del", 0, 5000);
        });
        ask(async |query| {
            let mut rtnl = Rtnl::open().unwrap();
            while !going.is_finished() {
                let asked = query.interfaces().await.map(|found| {
                    let many = found.into_iter().find(|interface| interface.name.as_str() == "many").unwrap();
                    many.addresses.iter().map(|own| own.addr).collect::<BTreeSet<_>>()
                });
                let listed = rtnl.addresses().map(|found| found.into_iter().map(|(_, addr, _)| addr).collect());
                for found in [asked, listed] {
                    match found {
                        Ok(found) => {
                            let missing = addresses(5000, 6000).filter(|addr| !found.contains(&(*addr).into())).count();
                            assert_eq!(missing, 0, "of {} listed", found.len());
                        }
                        Err(error) => {
                            assert!(Chain(&error).to_string().contains("changed during"), "{}", Chain(&error));
                        }
                    }
                }
            }
        });
    });
}

fn default_routes_of_other_tables_are_found_with_their_table() {
    uplinks();
    ip("route add default via 10.4.1.1 dev eth1 table 10");
    ask(async |query| {
        assert_eq!(query.default_routes(IpFamily::V4).await.unwrap(), []);
        let found = query.default_routes_elsewhere(IpFamily::V4).await.unwrap();
        assert_eq!(found, [(10, DefaultRoute { metric: 0, hops: vec![hop("eth1", "10.4.1.1")] })]);
    });
}

fn default_route_with_several_next_hops_is_a_default_route() {
    uplinks();
    ip("route add default metric 50 nexthop via 10.4.0.1 dev eth0 nexthop via 10.4.1.1 dev eth1");
    ip("route add default via 10.4.1.9 metric 100");
    ip("route add default via 10.4.1.8 table 77");
    ip("route add unreachable default metric 4000");
    ip("route add 0.0.0.0/1 via 10.4.1.7");
    ip("-6 route add default via fd00:1::1");
    // The kernel gives these the link lo.
    ip("-6 route add unreachable default metric 7");
    ip("-6 route add blackhole default metric 4000");
    ask(async |query| {
        let several = DefaultRoute { metric: 50, hops: vec![hop("eth0", "10.4.0.1"), hop("eth1", "10.4.1.1")] };
        let one = DefaultRoute { metric: 100, hops: vec![hop("eth1", "10.4.1.9")] };
        assert_eq!(query.default_routes(IpFamily::V4).await.unwrap(), [several, one]);
        let six = query.default_routes(IpFamily::V6).await.unwrap();
        assert_eq!(six.len(), 1, "{six:?}");
        assert_eq!(six[0].hops, [hop("eth1", "fd00:1::1")]);
    });
}

fn default_route_of_a_next_hop_object_and_of_the_other_family_is_one() {
    uplinks();
    ip("nexthop add id 7 via 10.4.1.1 dev eth1");
    ip("route add default nhid 7 metric 10");
    ip("-4 route add default via inet6 fd00:0::1 dev eth0 metric 20");
    ask(async |query| {
        let found = query.default_routes(IpFamily::V4).await.unwrap();
        let hops: Vec<_> = found.into_iter().flat_map(|route| route.hops).collect();
        assert_eq!(hops, [hop("eth1", "10.4.1.1"), hop("eth0", "fd00:0::1")]);
    });
}

fn way_to_an_address_is_the_one_that_the_kernel_takes() {
    uplinks();
    ip("route add 10.99.0.0/16 via 10.4.1.1 src 10.4.1.21");
    ask(async |query| {
        let way = query.way_to("10.99.1.1".parse().unwrap()).await.unwrap();
        assert_eq!((way.hop, way.source), (hop("eth1", "10.4.1.1"), Some("10.4.1.21".parse().unwrap())));
        let way = query.way_to("fd00:0::99".parse().unwrap()).await.unwrap();
        assert_eq!((way.hop.link, way.hop.via), (Some(name("eth0")), None));
        let none = query.way_to("203.0.113.1".parse().unwrap()).await.unwrap_err();
        assert_eq!(none.errno(), Some(101), "ENETUNREACH: {}", Chain(&none));
        assert!(none.to_string().contains("203.0.113.1"), "{none}");
    });
}

fn ways_and_entries_are_what_tables_and_rules_make_of_them() {
    uplinks();
    ip("route add 172.7.22.0/24 via 10.4.0.22 metric 1790 proto 121");
    ip("route add blackhole 172.7.23.0/24");
    ip("route add default via 10.4.1.1 table 77");
    ip("rule add to 172.7.24.0/24 lookup 77");
    ip("-4 route add 10.98.0.9/32 via inet6 fd00:0::1 dev eth0");
    let mut rtnl = Rtnl::open().unwrap();
    let mut ask = |addr: &str, asked| {
        let (_, found) = rtnl.routes_to([Packet::own(addr.parse().unwrap())], asked).unwrap().remove(0);
        found.map(|(key, route)| (key.table, key.dst.to_string(), key.metric, route.via.map(|via| via.to_string())))
    };
    let via = |text: &str| Some(text.to_owned());
    let main = netstate::route::TABLE_MAIN;
    assert_eq!(ask("172.7.22.2", Asked::Entry), Some((main, "172.7.22.0/24".to_owned(), 1790, via("10.4.0.22"))));
    assert_eq!(ask("172.7.24.2", Asked::Entry), Some((77, "0.0.0.0/0".to_owned(), 0, via("10.4.1.1"))));
    assert_eq!(ask("172.7.23.2", Asked::Entry), None);
    assert_eq!(ask("172.7.24.2", Asked::Way).unwrap().3, via("10.4.1.1"));
    assert_eq!(ask("10.4.0.22", Asked::Way).unwrap().3, None);
    assert_eq!(ask("10.98.0.9", Asked::Way).unwrap().3, via("fd00::1"), "a router of the other family");
    assert_eq!(ask("10.98.0.9", Asked::Entry).unwrap().3, via("fd00::1"));
    assert_eq!(ask("203.0.113.1", Asked::Way), None);
}

fn rule_by_protocol_and_ports_is_met_by_the_packet_that_has_them() {
    uplinks();
    ip("route add 10.9.9.9/32 via 10.4.0.1");
    ip("route add unreachable default table 77");
    let mut rtnl = Rtnl::open().unwrap();
    let own = Packet::own("10.9.9.9".parse().unwrap());
    let udp = |source_port, port| Packet { port: Some((Protocol::Udp, port)), source_port, ..own };
    let tcp = Packet { port: Some((Protocol::Tcp, 51820)), ..own };
    for (rule, met, others) in [
        ("ipproto udp dport 8472", vec![udp(None, 8472), udp(Some(40000), 8472)], vec![own, tcp, udp(None, 8473)]),
        ("ipproto udp sport 51820", vec![udp(Some(51820), 7)], vec![own, tcp, udp(None, 51820), udp(Some(7), 51820)]),
    ] {
        ip(&format!("rule add {rule} lookup 77"));
        let mut passes = |packet: &Packet| rtnl.entry_for(packet).is_ok();
        assert!(!met.iter().any(&mut passes), "{rule}");
        assert!(others.iter().all(&mut passes), "{rule}");
        ip(&format!("rule del {rule} lookup 77"));
    }
}

fn main() -> ExitCode {
    common::main(cases![
        interfaces_are_listed_with_kind_mtu_and_addresses,
        addresses_that_end_or_are_on_their_way_out_are_told_apart,
        addresses_that_stay_are_listed_while_others_go,
        default_routes_of_other_tables_are_found_with_their_table,
        default_route_with_several_next_hops_is_a_default_route,
        default_route_of_a_next_hop_object_and_of_the_other_family_is_one,
        way_to_an_address_is_the_one_that_the_kernel_takes,
        ways_and_entries_are_what_tables_and_rules_make_of_them,
        rule_by_protocol_and_ports_is_met_by_the_packet_that_has_them,
    ])
}
