//! The data tables of host-local's own unit tests (plugins/ipam/host-local/backend/allocator), on our types.
//!
//! The cases are the reference's; the expectations differ in nothing but the words of errors.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use netstate::IfName;

use super::{Locked, Sharing, Store};
use crate::protocol::attachment::{Attachment, ContainerId};
use crate::protocol::range::{InvalidRange, Range, RangeSet};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn some(text: &str) -> Option<IpAddr> {
    (!text.is_empty()).then(|| ip(text))
}

/// `subnet`, `rangeStart`, `rangeEnd`, `gateway`; empty means absent.
type RangeText = (&'static str, &'static str, &'static str, &'static str);

fn range((subnet, first, last, gateway): RangeText) -> Result<Range, InvalidRange> {
    Range::new(subnet.parse().unwrap(), some(first), some(last), some(gateway))
}

fn set(subnets: &[&'static str]) -> RangeSet {
    RangeSet::new(subnets.iter().map(|subnet| range((subnet, "", "", "")).unwrap()).collect()).unwrap()
}

fn owner(container: &str) -> Attachment {
    Attachment::new(ContainerId::new(container).unwrap(), IfName::new("eth0").unwrap())
}

/// The reference's fake store: these addresses are taken, this one was given last.
fn store(taken: &[&str], last: &str) -> (tempfile::TempDir, Locked) {
    let dir = tempfile::tempdir().unwrap();
    let locked = Store::new(dir.path(), "net").lock(Duration::from_millis(50)).unwrap();
    for addr in taken {
        fs::write(dir.path().join("net").join(addr), "id\r\neth0").unwrap();
    }
    if !last.is_empty() {
        fs::write(dir.path().join("net/last_reserved_ip.0"), last).unwrap();
    }
    (dir, locked)
}

fn get(locked: &Locked, set: &RangeSet, requested: &str) -> Result<String, String> {
    let requested: Vec<IpAddr> = some(requested).into_iter().collect();
    let reserved = locked
        .reserve(&owner("ID"), std::slice::from_ref(set), &requested, Sharing::Exclusive)
        .map_err(|e| e.to_string())?;
    Ok(reserved.iter().map(|r| r.addr.to_string()).collect())
}

fn walk(set: &RangeSet, last: &str) -> Vec<String> {
    set.candidates(some(last)).map(|(addr, _)| addr.to_string()).collect()
}

#[test]
fn range_iter_loops_correctly_from_beginning_end_and_middle() {
    let set = set(&["192.168.1.0/29"]);
    let order = |hosts: [u8; 5]| hosts.map(|host| format!("192.168.1.{host}"));
    for (last, hosts) in [("", [2, 3, 4, 5, 6]), ("192.168.1.6", [2, 3, 4, 5, 6]), ("192.168.1.3", [4, 5, 6, 2, 3])] {
        assert_eq!(walk(&set, last), order(hosts), "after {last:?}");
    }
}

#[test]
fn allocates_round_robin() {
    let four = ["10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"];
    let cases: [(&[&'static str], &[&str], &str, &str); 12] = [
        // Fresh start.
        (&["10.0.0.0/29"], &[], "", "10.0.0.2"),
        (&["2001:db8:1::0/64"], &[], "", "2001:db8:1::2"),
        (&["10.0.0.0/30"], &[], "", "10.0.0.2"),
        (&["10.0.0.0/29"], &["10.0.0.2"], "", "10.0.0.3"),
        // The one after the last.
        (&["10.0.0.0/29"], &[], "10.0.0.5", "10.0.0.6"),
        (&["10.0.0.0/29"], &["10.0.0.4", "10.0.0.5"], "10.0.0.3", "10.0.0.6"),
        // Round to the beginning.
        (&["10.0.0.0/29"], &["10.0.0.6"], "10.0.0.5", "10.0.0.2"),
        // The last one is out of range.
        (&["10.0.0.0/29"], &["10.0.0.2"], "10.0.0.128", "10.0.0.3"),
        // Wrap around and take the last one again.
        (&["10.0.0.0/29"], &four, "10.0.0.3", "10.0.0.3"),
        // Several subnets: the first, on to the next, round to the first.
        (&["10.0.0.0/30", "10.0.1.0/30"], &[], "", "10.0.0.2"),
        (&["10.0.0.0/30", "10.0.1.0/30"], &[], "10.0.0.2", "10.0.1.2"),
        (&["10.0.0.0/30", "10.0.1.0/30", "10.0.2.0/30"], &[], "10.0.2.2", "10.0.0.2"),
    ];
    for (subnets, taken, last, expected) in cases {
        let (_dir, locked) = store(taken, last);
        assert_eq!(get(&locked, &set(subnets), "").as_deref(), Ok(expected), "{subnets:?} {taken:?} {last:?}");
    }
}

#[test]
fn does_not_allocate_the_broadcast_address() {
    let (_dir, locked) = store(&[], "");
    let set = set(&["192.168.1.0/29"]);
    for host in 2..7 {
        assert_eq!(get(&locked, &set, "").unwrap(), format!("192.168.1.{host}"));
    }
    assert!(get(&locked, &set, "").is_err());
}

#[test]
fn allocates_in_a_round_robin_fashion_after_a_release() {
    let (_dir, locked) = store(&[], "");
    let set = set(&["192.168.1.0/29"]);
    assert_eq!(get(&locked, &set, "").unwrap(), "192.168.1.2");
    locked.free(&owner("ID"), &[ip("192.168.1.2")]).unwrap();
    assert_eq!(get(&locked, &set, "").unwrap(), "192.168.1.3");
}

#[test]
fn requested_addresses_are_had_when_free_and_inside() {
    let (_dir, locked) = store(&["192.168.1.5"], "");
    let whole = set(&["192.168.1.0/29"]);
    assert_eq!(get(&locked, &whole, "192.168.1.6").unwrap(), "192.168.1.6");
    let taken = "requested IP address 192.168.1.5 is not available in range set 192.168.1.1-192.168.1.6";
    assert_eq!(get(&locked, &whole, "192.168.1.5").unwrap_err(), taken);
    // After the end, before the start.
    for (bounds, addr) in [
        (("192.168.1.0/29", "", "192.168.1.4", ""), "192.168.1.5"),
        (("192.168.1.0/29", "192.168.1.3", "", ""), "192.168.1.2"),
    ] {
        let narrow = RangeSet::new(vec![range(bounds).unwrap()]).unwrap();
        assert!(get(&locked, &narrow, addr).is_err(), "{addr}");
    }
}

#[test]
fn running_out_of_addresses_is_reported_with_the_range_set() {
    let full = ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"];
    for (subnet, taken) in [("10.0.0.0/30", &full[..1]), ("10.0.0.0/29", &full[..])] {
        let (_dir, locked) = store(taken, "");
        let error = get(&locked, &set(&[subnet]), "").unwrap_err();
        assert!(error.starts_with("failed to allocate for range 0: no IP addresses available in range set"), "{error}");
    }
}

#[test]
fn next_range_starts_where_the_last_one_ended() {
    let two = RangeSet::new(vec![
        range(("192.168.1.0/24", "192.168.1.10", "192.168.1.20", "")).unwrap(),
        range(("192.168.2.0/24", "192.168.2.10", "192.168.2.20", "")).unwrap(),
    ])
    .unwrap();
    assert_eq!(walk(&two, "192.168.1.20")[0], "192.168.2.10", "last address at the end of one of several ranges");
    assert_eq!(walk(&two, "")[0], "192.168.1.10", "no last address");
}

/// What `Range` makes of a configuration: bounds, gateway.
fn sane(text: RangeText) -> String {
    let range = range(text).unwrap();
    format!("{range} via {}", range.gateway())
}

#[test]
fn ranges_have_sane_defaults() {
    for (text, expected) in [
        (("192.0.2.0/24", "", "", ""), "192.0.2.1-192.0.2.254 via 192.0.2.1"),
        (("192.0.2.0/25", "", "", ""), "192.0.2.1-192.0.2.126 via 192.0.2.1"),
        (("192.0.2.12/30", "", "", ""), "192.0.2.13-192.0.2.14 via 192.0.2.13"),
        (("2001:db8:1::/64", "", "", ""), "2001:db8:1::1-2001:db8:1:0:ffff:ffff:ffff:ffff via 2001:db8:1::1"),
        (("2001:db8:1::/126", "", "", ""), "2001:db8:1::1-2001:db8:1::3 via 2001:db8:1::1"),
        (("192.0.2.0/24", "192.0.2.40", "192.0.2.50", "192.0.2.254"), "192.0.2.40-192.0.2.50 via 192.0.2.254"),
        (
            ("2001:db8:1::/64", "2001:db8:1::40", "2001:db8:1::50", ""),
            "2001:db8:1::40-2001:db8:1::50 via 2001:db8:1::1",
        ),
    ] {
        assert_eq!(sane(text), expected);
    }
}

#[test]
fn ranges_that_make_no_sense_are_refused() {
    for (text, expected) in [
        (("192.0.2.0/31", "", "", ""), "network 192.0.2.0/31 too small to allocate from"),
        (("2001:db8:1::/127", "", "", ""), "network 2001:db8:1::/127 too small to allocate from"),
        (("192.0.2.0/24", "192.0.3.0", "", ""), "rangeStart 192.0.3.0 is not in network 192.0.2.0/24"),
        (("192.0.2.0/24", "", "192.0.4.0", ""), "rangeEnd 192.0.4.0 is not in network 192.0.2.0/24"),
        (("192.0.2.0/24", "192.0.2.50", "192.0.2.40", ""), "rangeStart 192.0.2.50 comes after rangeEnd 192.0.2.40"),
        (("192.0.2.0/24", "", "", "2001:db8::1"), "gateway 2001:db8::1 is not in network 192.0.2.0/24"),
    ] {
        let error = range(text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn addresses_are_in_range_between_start_and_end() {
    let v4 = range(("192.0.2.0/24", "192.0.2.40", "192.0.2.50", "192.0.2.60")).unwrap();
    let v6 = range(("2001:db8:1::/64", "2001:db8:1::40", "2001:db8:1::50", "2001:db8:1::60")).unwrap();
    for (range, inside, outside) in [
        (&v4, ["192.0.2.40", "192.0.2.42", "192.0.2.50"], ["192.0.2.39", "192.0.2.51", "192.0.2.60", "192.0.3.45"]),
        (
            &v6,
            ["2001:db8:1::40", "2001:db8:1::42", "2001:db8:1::50"],
            ["2001:db8:1::39", "2001:db8:1::51", "2001:db8:1::60", "2001:db8:2::45"],
        ),
    ] {
        assert!(inside.iter().all(|addr| range.contains(ip(addr))), "{range}");
        assert!(!outside.iter().any(|addr| range.contains(ip(addr))), "{range}");
    }
    assert!(!v4.contains(ip("::ffff:192.0.2.42")), "an address of the other family is never inside");
}

#[test]
fn overlaps_between_ranges() {
    let cases: [(RangeText, RangeText, bool); 6] = [
        (("10.1.2.0/24", "", "", ""), ("10.2.2.0/24", "", "", ""), false),
        (("fd00:1::/64", "", "", ""), ("fd00:2::/64", "", "", ""), false),
        // Parts of one subnet.
        (("10.1.2.0/24", "", "10.1.2.127", ""), ("10.1.2.0/24", "10.1.2.128", "", ""), false),
        (("10.1.2.0/24", "", "10.1.2.128", ""), ("10.1.2.0/24", "10.1.2.128", "", ""), true),
        // One inside the other, in both orders.
        (("10.1.0.0/16", "", "", ""), ("10.1.2.0/24", "", "", ""), true),
        (("fd00:1::/64", "", "", ""), ("fd00:1::/48", "", "", ""), true),
    ];
    for (one, two, expected) in cases {
        let (a, b) = (range(one).unwrap(), range(two).unwrap());
        let lone = |range: &Range| RangeSet::new(vec![range.clone()]).unwrap();
        assert_eq!(lone(&a).overlaps(&lone(&b)), expected, "{one:?} {two:?}");
        assert_eq!(lone(&b).overlaps(&lone(&a)), expected, "{two:?} {one:?}");
        assert_eq!(RangeSet::new(vec![a, b]).is_err(), expected, "within one set");
    }
    assert_eq!(
        RangeSet::new(vec![range(cases[0].0).unwrap(), range(cases[1].0).unwrap()]),
        Err(InvalidRange::MixedFamilies)
    );
}

#[test]
fn a_network_lock_excludes_a_second_holder_until_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path(), "net");
    let first = store.lock(Duration::from_millis(20)).unwrap();
    assert!(store.lock(Duration::from_millis(20)).is_err());
    drop(first);
    assert!(store.lock(Duration::from_millis(20)).is_ok());
}
