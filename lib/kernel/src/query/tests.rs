//! From rtnetlink's messages to facts.

use std::num::NonZeroI32;

use netlink_packet_route::link::InfoKind;
use rtnetlink::packet_core::ErrorMessage;

use super::*;

fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

fn links() -> BTreeMap<u32, Interface> {
    let link = |(index, text): (u32, &str)| {
        let (name, kind) = (name(text), String::new());
        (index, Interface { index, name, kind, mtu: 1500, up: true, master: None, lower: None, addresses: Vec::new() })
    };
    [(2, "eth0"), (3, "eth1")].into_iter().map(link).collect()
}

fn route(attributes: Vec<RouteAttribute>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = 254;
    message.attributes = attributes;
    message
}

fn gateway(text: &str) -> RouteAttribute {
    RouteAttribute::Gateway(RouteAddress::from(text.parse::<IpAddr>().unwrap()))
}

fn next_hop(index: u32, via: &str) -> RouteNextHop {
    let mut hop = RouteNextHop::default();
    hop.interface_index = index;
    hop.attributes = vec![gateway(via)];
    hop
}

#[test]
fn link_is_a_fact_when_it_has_a_name() {
    let mut message = LinkMessage::default();
    message.header.index = 7;
    assert_eq!(interface(&message), None);
    message.attributes.push(LinkAttribute::IfName("a/b".to_owned()));
    assert_eq!(interface(&message), None, "no name that a link can have");
    message.attributes = vec![
        LinkAttribute::IfName("flannel.1".to_owned()),
        LinkAttribute::Mtu(1450),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan)]),
    ];
    message.header.flags = LinkFlags::Up | LinkFlags::Running;
    let found = interface(&message).unwrap();
    assert_eq!((found.index, found.name, found.kind.as_str()), (7, name("flannel.1"), "vxlan"));
    assert_eq!((found.mtu, found.up), (1450, true));
    message.attributes[2] = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Other("strange".to_owned()))]);
    assert_eq!(interface(&message).unwrap().kind, "strange");
}

#[test]
fn own_end_comes_before_the_other() {
    let mut message = AddressMessage::default();
    assert_eq!(address(&message), None);
    let other: IpAddr = "10.9.0.2".parse().unwrap();
    message.attributes.push(AddressAttribute::Address(other));
    assert_eq!(address(&message), Some(other));
    let own: IpAddr = "10.9.0.1".parse().unwrap();
    message.attributes.push(AddressAttribute::Local(own));
    assert_eq!(address(&message), Some(own));
}

#[test]
fn default_route_is_one_with_one_hop_or_several() {
    let one = default_route(&route(vec![gateway("10.4.7.1"), RouteAttribute::Oif(2)]), &links()).unwrap();
    let hop = |link: &str, via: &str| Hop { link: Some(name(link)), via: Some(via.parse().unwrap()) };
    assert_eq!((one.metric, one.hops), (0, vec![hop("eth0", "10.4.7.1")]));
    let several = vec![next_hop(2, "10.4.7.1"), next_hop(3, "10.4.8.1")];
    let message = route(vec![RouteAttribute::Priority(50), RouteAttribute::MultiPath(several)]);
    let found = default_route(&message, &links()).unwrap();
    assert_eq!((found.metric, found.hops), (50, vec![hop("eth0", "10.4.7.1"), hop("eth1", "10.4.8.1")]));
}

#[test]
fn router_may_be_of_the_other_family_or_missing() {
    let via = RouteAttribute::Via(RouteVia::Inet6("fd00::1".parse().unwrap()));
    let found = default_route(&route(vec![RouteAttribute::Oif(2), via]), &links()).unwrap();
    assert_eq!(found.hops[0].via, Some("fd00::1".parse().unwrap()));
    let direct = default_route(&route(vec![RouteAttribute::Oif(3)]), &links()).unwrap();
    assert_eq!(direct.hops, [Hop { link: Some(name("eth1")), via: None }]);
}

#[test]
fn what_is_no_way_out_is_no_default_route() {
    let leads = |message: &RouteMessage| default_route(message, &links()).is_some();
    assert!(leads(&route(vec![RouteAttribute::Oif(2)])));
    assert!(!leads(&route(vec![])), "unreachable and blackhole have no link");
    assert!(!leads(&route(vec![RouteAttribute::Oif(99)])), "a link that is gone");
    assert!(!leads(&route(vec![RouteAttribute::Oif(2), RouteAttribute::Table(77)])), "another table");
    let mut half = route(vec![RouteAttribute::Oif(2)]);
    half.header.destination_prefix_length = 1;
    assert!(!leads(&half), "half of the Internet");
    // The long table number counts, not the short one.
    let mut long = route(vec![RouteAttribute::Oif(2), RouteAttribute::Table(254)]);
    long.header.table = 0;
    assert!(leads(&long));
    // One of the next hops is enough.
    let hops = vec![next_hop(99, "10.4.9.1"), next_hop(3, "10.4.8.1")];
    assert!(leads(&route(vec![RouteAttribute::MultiPath(hops)])));
}

#[test]
fn refusal_keeps_its_number_and_anything_else_its_text() {
    let mut message = ErrorMessage::default();
    message.code = NonZeroI32::new(-libc::ENETUNREACH);
    match cause(rtnetlink::Error::NetlinkError(message)) {
        Cause::Nack(nack) => assert_eq!(nack, Nack { errno: libc::ENETUNREACH, text: None }),
        other => panic!("{other:?}"),
    }
    assert!(matches!(cause(rtnetlink::Error::RequestFailed), Cause::Unexpected(_)));
}

/// A conversation with the kernel of this process, and what drives it.
fn conversation() -> (tokio::runtime::Runtime, Query) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let query = runtime.block_on(async { Query::open() }).unwrap();
    (runtime, query)
}

/// What a refusal says with its causes.
fn said<T: std::fmt::Debug>(refused: Result<T, KernelError>) -> String {
    crate::Chain(&refused.unwrap_err()).to_string()
}

#[test]
fn answers_that_end_because_the_socket_failed_are_an_error_with_its_number() {
    let (runtime, query) = conversation();
    assert!(!runtime.block_on(query.interfaces()).unwrap().is_empty(), "there is a loopback");
    // As rtnetlink leaves it: the answers just end.
    let answers = |count: usize| futures_util::stream::iter(vec![Ok(7); count]);
    let collected = runtime.block_on(query.collect("list links", &"all", || answers(2)));
    assert_eq!(collected.unwrap(), [7, 7]);
    query.ended.fail("send", libc::ENOMEM);
    for count in [0, 2] {
        let collected = runtime.block_on(query.collect("list links", &"all", || answers(count)));
        assert_eq!(said(collected), "list links all: netlink socket: send: Cannot allocate memory (os error 12)");
    }
    // Whatever is asked next cannot be answered either.
    let way = runtime.block_on(query.way_to("127.0.0.1".parse().unwrap()));
    assert_eq!(said(way), "look up route to 127.0.0.1: netlink socket: send: Cannot allocate memory (os error 12)");
}

#[test]
fn conversation_that_is_over_says_so_where_the_socket_did_not_fail() {
    let (runtime, query) = conversation();
    query.connection.abort();
    runtime.block_on(tokio::task::yield_now());
    let listed = said(runtime.block_on(query.interfaces()));
    assert_eq!(listed, "list links all: unexpected answer: A netlink request failed");
}

#[test]
fn families_have_their_numbers() {
    assert_eq!(address_family(IpFamily::V4), AddressFamily::Inet);
    assert_eq!(address_family(IpFamily::V6), AddressFamily::Inet6);
    assert_eq!(ip(&RouteAddress::Other(vec![1, 2, 3])), None);
}

/// A route as it is listed.
fn listed(dst: &str, kind: u16) -> Frame {
    let dst: Prefix = dst.parse().unwrap();
    let mut message = route(vec![gateway("10.4.7.1"), RouteAttribute::Oif(2)]);
    message.header.destination_prefix_length = dst.len();
    message.header.kind = RouteType::Unicast;
    if !dst.is_default() {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(dst.addr())));
    }
    let body = crate::rtnl::encode(&RouteNetlinkMessage::NewRoute(message), 0).body;
    Frame { kind, flags: 0, sequence: 1, body }
}

#[test]
fn of_listed_routes_only_default_ones_are_parsed() {
    let found = default_route_message(&listed("0.0.0.0/0", RTM_NEWROUTE)).unwrap();
    let found = default_route(&found, &links()).unwrap();
    assert_eq!(found.hops, [Hop { link: Some(name("eth0")), via: Some("10.4.7.1".parse().unwrap()) }]);
    for other in ["0.0.0.0/1", "172.7.22.0/24", "10.4.7.9/32"] {
        assert!(default_route_message(&listed(other, RTM_NEWROUTE)).is_none(), "{other}");
    }
    // RTM_DELROUTE.
    assert!(default_route_message(&listed("0.0.0.0/0", 25)).is_none(), "a removal");
}

#[test]
fn torn_default_route_is_none() {
    let whole = listed("0.0.0.0/0", RTM_NEWROUTE);
    for length in 0..12 {
        let body = whole.body[..length].to_vec();
        assert!(default_route_message(&Frame { body, ..whole.clone() }).is_none(), "{length} bytes");
    }
}
