//! Notifications as the kernel forms them, against interests of every kind.

use super::*;
use crate::attribute::Writer;

const LO: &str = "lo";

/// One message as the kernel sends it.
fn message(kind: u16, port: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&[0; 6]);
    bytes.extend_from_slice(&port.to_ne_bytes());
    bytes.extend_from_slice(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn link(index: u8, name: &str, kind: &str) -> Vec<u8> {
    let mut body = Writer::behind(vec![0, 0, 1, 0, index, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    body.put_str(IFLA_IFNAME, name).nest(IFLA_LINKINFO, |info| {
        info.put_str(IFLA_INFO_KIND, kind);
    });
    body.finish()
}

fn address(index: u8) -> Vec<u8> {
    let mut body = Writer::behind(vec![2, 24, 0, 0, index, 0, 0, 0]);
    body.put(2, &[10, 4, 7, 21]);
    body.finish()
}

fn route(dst: [u8; 4], len: u8, protocol: u8, table: u8) -> Vec<u8> {
    let mut body = Writer::behind(vec![2, len, 0, 0, table, protocol, 0, 1, 0, 0, 0, 0]);
    body.put(1, &dst);
    body.finish()
}

fn neighbour(family: u8, index: u8, mac: u8, dst: [u8; 4]) -> Vec<u8> {
    let mut body = Writer::behind(vec![family, 0, 0, 0, index, 0, 0, 0, 0x80, 0, 2, 0]);
    body.put(2, &[2, 0, 0, 0, 0, mac]).put(1, &dst);
    body.finish()
}

fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

/// Of interest are `dev7` with what is on it, `eth0`, links of the kind vxlan, and routes of protocol 121.
fn narrow() -> Filter {
    Filter::new(Interest {
        own: BTreeSet::from([77]),
        devices: Some(BTreeSet::from([name("dev7")])),
        links: BTreeSet::from([name("eth0")]),
        kinds: BTreeSet::from(["vxlan"]),
        routes: Some(Arc::new(|key, protocol| key.table == TABLE_MAIN && protocol == 121)),
        ..Interest::default()
    })
}

fn events(filter: &mut Filter, kind: u16, body: &[u8]) -> Vec<Event> {
    let mut events = BTreeSet::new();
    filter.read(&message(kind, 1, body), &mut events);
    events.into_iter().collect()
}

#[test]
fn without_an_interest_everything_counts_but_own_changes() {
    let all = [
        (RTM_NEWLINK, link(9, "veth1", "veth"), Event::Link),
        (RTM_DELLINK, link(9, "veth1", "veth"), Event::Link),
        (RTM_NEWADDR, address(9), Event::NewAddress),
        (RTM_DELADDR, address(9), Event::Address),
        (RTM_NEWROUTE, route([10, 9, 0, 0], 16, 3, 254), Event::Route),
        (RTM_DELROUTE, route([10, 9, 0, 0], 16, 3, 100), Event::Route),
        (RTM_NEWROUTE, route([0; 4], 0, 3, 254), Event::DefaultRoute),
        (RTM_NEWNEIGH, neighbour(2, 9, 1, [10, 4, 7, 1]), Event::Neighbour),
        (RTM_NEWRULE, vec![0; 12], Event::Rule),
        (RTM_DELNEIGH, neighbour(AF_BRIDGE, 9, 1, [10, 4, 7, 1]), Event::Forwarding),
    ];
    for (kind, body, event) in all {
        let mut filter = Filter::new(Interest { own: BTreeSet::from([77]), ..Interest::default() });
        assert_eq!(events(&mut filter, kind, &body), [event]);
        let mut none = BTreeSet::new();
        filter.read(&message(kind, 77, &body), &mut none);
        assert_eq!(none, BTreeSet::new(), "an own change");
    }
    assert_eq!(events(&mut Filter::new(Interest::default()), 36, &[0; 12]), [], "a queueing discipline");
    assert_eq!(events(&mut Filter::new(Interest::default()), OVERRUN, &[]), [Event::Resync]);
}

#[test]
fn link_is_followed_by_its_index_through_names_and_generations() {
    let mut filter = narrow();
    assert_eq!(events(&mut filter, RTM_NEWNEIGH, &neighbour(2, 7, 1, [1; 4])), [], "not there yet");
    assert_eq!(events(&mut filter, RTM_NEWLINK, &link(7, "dev7", "dummy")), [Event::Link]);
    assert_eq!(events(&mut filter, RTM_NEWNEIGH, &neighbour(2, 7, 1, [1; 4])), [Event::Neighbour]);
    assert_eq!(events(&mut filter, RTM_NEWADDR, &address(7)), [Event::NewAddress]);
    assert_eq!(events(&mut filter, RTM_DELADDR, &address(7)), [Event::Address]);
    assert_eq!(events(&mut filter, RTM_NEWLINK, &link(7, "gone0", "dummy")), [Event::Link], "renamed away");
    assert_eq!(events(&mut filter, RTM_NEWLINK, &link(7, "gone0", "dummy")), [Event::OtherLink]);
    assert_eq!(events(&mut filter, RTM_NEWNEIGH, &neighbour(2, 7, 1, [1; 4])), []);
    let mut none = BTreeSet::new();
    filter.read(&message(RTM_NEWLINK, 77, &link(8, "dev7", "dummy")), &mut none);
    assert_eq!(none, BTreeSet::new(), "made by ourselves");
    assert_eq!(events(&mut filter, RTM_NEWNEIGH, &neighbour(2, 8, 1, [1; 4])), [Event::Neighbour]);
    assert_eq!(events(&mut filter, RTM_DELLINK, &link(8, "dev7", "dummy")), [Event::Link]);
    assert_eq!(events(&mut filter, RTM_DELADDR, &address(8)), [Event::OtherLink]);
}

#[test]
fn links_and_what_is_on_them_count_as_far_as_they_are_of_interest() {
    let mut filter = narrow();
    assert_eq!(events(&mut filter, RTM_NEWLINK, &link(2, "eth0", "")), [Event::Link]);
    assert_eq!(events(&mut filter, RTM_NEWADDR, &address(2)), [Event::NewAddress]);
    assert_eq!(events(&mut filter, RTM_NEWNEIGH, &neighbour(2, 2, 1, [1; 4])), [], "its neighbours are not");
    assert_eq!(events(&mut filter, RTM_NEWLINK, &link(9, "veth1", "veth")), [Event::OtherLink]);
    assert_eq!(events(&mut filter, RTM_NEWLINK, &link(9, "tunnel", "vxlan")), [Event::Link]);
    assert_eq!(events(&mut filter, RTM_NEWROUTE, &route([10, 9, 0, 0], 16, 121, 254)), [Event::Route]);
    assert_eq!(events(&mut filter, RTM_NEWROUTE, &route([10, 9, 0, 0], 16, 3, 254)), [Event::OtherRoute]);
    assert_eq!(events(&mut filter, RTM_NEWROUTE, &route([10, 9, 0, 0], 16, 121, 100)), [Event::OtherRoute]);
    assert_eq!(events(&mut filter, RTM_NEWROUTE, &route([0; 4], 0, 3, 254)), [Event::DefaultRoute]);
    assert_eq!(events(&mut filter, RTM_NEWRULE, &[0; 12]), [Event::Rule]);
    assert_eq!(events(&mut filter, RTM_DELRULE, &[0; 12]), [Event::Rule]);
}

#[test]
fn forwarding_entry_that_is_announced_twice_counts_once() {
    let mut filter = narrow();
    assert_eq!(events(&mut filter, RTM_NEWLINK, &link(7, "dev7", "vxlan")), [Event::Link]);
    for kind in [RTM_NEWNEIGH, RTM_DELNEIGH] {
        let mut own = Writer::behind(neighbour(AF_BRIDGE, 7, 1, [10, 4, 7, 22]));
        own.put(3, &[0; 16]);
        assert_eq!(events(&mut filter, kind, &own.finish()), [Event::Forwarding], "by vxlan");
        let mut again = Writer::behind(vec![AF_BRIDGE, 0, 0, 0, 7, 0, 0, 0, 0x80, 0, 2, 0]);
        again.put(2, &[2, 0, 0, 0, 0, 1]);
        assert_eq!(events(&mut filter, kind, &again.finish()), [], "by rtnetlink");
    }
}

#[test]
fn what_cannot_be_read_counts() {
    let mut filter = narrow();
    assert_eq!(events(&mut filter, RTM_NEWLINK, &[0; 3]), [Event::Link]);
    assert_eq!(events(&mut filter, RTM_NEWADDR, &[0; 3]), [Event::Address]);
    assert_eq!(events(&mut filter, RTM_NEWROUTE, &[0; 3]), [Event::Route]);
    assert_eq!(events(&mut filter, RTM_NEWNEIGH, &[0; 3]), [Event::Neighbour]);
    let whole = message(RTM_NEWADDR, 1, &address(9));
    for length in 0..HEADER {
        let mut none = BTreeSet::new();
        filter.read(&whole[..length], &mut none);
        assert_eq!(none, BTreeSet::new(), "{length} bytes");
    }
}

#[test]
fn links_that_are_there_are_looked_up_and_looked_up_again_after_a_loss() {
    let interest = Interest { devices: Some(BTreeSet::from([name(LO)])), ..Interest::default() };
    let mut filter = Filter::new(interest);
    assert_eq!(filter.indexes, BTreeMap::from([(1, true)]));
    assert_eq!(events(&mut filter, RTM_DELLINK, &link(1, LO, "")), [Event::Link]);
    filter.start_over();
    assert_eq!(filter.indexes, BTreeMap::from([(1, true)]));
}
