//! Routes.
//!
//! Invariants. A route is replaced, never deleted and made again, so packets always find one. Routes to one
//! destination that differ in metric are different rows; a removal names the metric. Ownership is a question of the
//! caller: our protocol number, and what a predecessor left behind.

mod table;

use std::net::IpAddr;

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope as Scope, RouteType,
};
use netstate::route::TABLE_MAIN;
use netstate::{IfName, Prefix, Route, RouteKey, RouteKind, RouteMetrics, RouteScope};

use crate::address::family;
use crate::attribute;
use crate::error::KernelError;
use crate::rtnl::{Indexes, Operation, Rtnl, encode};
use crate::socket::{Frame, Message};

pub use table::{Foreign, OwnsRoute, Routes};

/// Bytes of `rtmsg` (include/uapi/linux/rtnetlink.h).
const RTMSG: usize = 12;
pub(crate) const RTM_NEWROUTE: u16 = 24;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
const RTM_F_CLONED: u32 = 0x200;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// What a listing of routes is called in errors.
const LIST: &str = "list routes";

/// Asks for the routes of `table`, or of all tables, that this protocol has made, or any.
fn routes_in(table: Option<u32>, protocol: Option<u8>) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.protocol = protocol.map(RouteProtocol::from).unwrap_or_default();
    message.attributes.extend(table.map(RouteAttribute::Table));
    RouteNetlinkMessage::GetRoute(message)
}

/// A route of `table`, or of any; no cached clone.
fn listed_in(frame: &Frame, table: Option<u32>) -> Option<Parsed> {
    parse(frame).filter(|row| !row.cloned && table.is_none_or(|table| row.key.table == table))
}

impl Rtnl {
    /// All routes of both families, cached clones left out. A route's link is given by name; one with several next hops,
    /// or with a next hop object, has neither link nor next hop of its own.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn routes(&mut self) -> Result<Vec<(RouteKey, Route)>, KernelError> {
        self.routes_of(None, |_, _| true)
    }

    /// The routes of one table, or of all, that `wanted` keeps before the name of their link is known.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn routes_of(
        &mut self,
        table: Option<u32>,
        wanted: impl Fn(&RouteKey, &Route) -> bool,
    ) -> Result<Vec<(RouteKey, Route)>, KernelError> {
        self.list_routes(&routes_in(table, None), table, wanted)
    }

    /// What the kernel lists at this request.
    fn list_routes(
        &mut self,
        request: &RouteNetlinkMessage,
        table: Option<u32>,
        wanted: impl Fn(&RouteKey, &Route) -> bool,
    ) -> Result<Vec<(RouteKey, Route)>, KernelError> {
        let read = |frame: &Frame| listed_in(frame, table).filter(|row| wanted(&row.key, &row.route));
        let rows = self.list(LIST, request, read)?;
        let indexes = Indexes::numbered(self, &rows.iter().filter_map(|row| row.link).collect())?;
        Ok(rows.into_iter().map(|row| row.named(&indexes)).collect())
    }

    /// The route the kernel would take to `addr` now.
    ///
    /// # Errors
    /// ENETUNREACH when there is none.
    pub fn route_to(&mut self, addr: IpAddr) -> Result<Route, KernelError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(addr);
        message.header.destination_prefix_length = if addr.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(addr)));
        let message = encode(&RouteNetlinkMessage::GetRoute(message), 0);
        let operation = Operation { op: "look up route to", object: addr.to_string(), message };
        let frames = self.ask(&operation)?;
        let none = || KernelError::new("look up route to", addr, crate::error::Cause::Missing("a route".to_owned()));
        let found = frames.iter().find_map(parse).ok_or_else(none)?;
        let indexes = Indexes::numbered(self, &found.link.into_iter().collect())?;
        Ok(found.named(&indexes).1)
    }

    /// Adds the routes of a new interface, all in one batch; a route that exists already is left as it is.
    ///
    /// # Errors
    /// The first route that the kernel refuses.
    pub fn add_routes(&mut self, routes: &[(RouteKey, Route)]) -> Result<(), KernelError> {
        let mut indexes = Indexes::default();
        let operations =
            routes.iter().map(|(key, route)| self.operation(key, route, NLM_F_CREATE, &mut indexes)).collect();
        let exists_is_fine = |result: Result<(), KernelError>| match result {
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
            other => other,
        };
        self.batch(operations).into_iter().try_for_each(exists_is_fine)
    }

    pub(crate) fn operation(
        &mut self,
        key: &RouteKey,
        route: &Route,
        flags: u16,
        indexes: &mut Indexes,
    ) -> Result<Operation, KernelError> {
        let message = upsert(self, (key, route), flags, indexes)?;
        Ok(Operation { op: "set", object: format!("{key} {route}"), message })
    }
}

fn upsert(
    rtnl: &mut Rtnl,
    (key, route): (&RouteKey, &Route),
    flags: u16,
    indexes: &mut Indexes,
) -> Result<Message, KernelError> {
    let mut message = message(key);
    message.header.kind = route_type(route.kind);
    message.header.protocol = RouteProtocol::from(route.protocol);
    message.header.scope = scope(route.scope);
    message.header.flags.set(RouteFlags::Onlink, route.onlink);
    message.attributes.extend(route.via.map(|via| RouteAttribute::Gateway(RouteAddress::from(via))));
    message.attributes.extend(route.src.map(|src| RouteAttribute::PrefSource(RouteAddress::from(src))));
    if !route.metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metric_list(route.metrics)));
    }
    if let Some(link) = &route.link {
        let index = indexes.index(rtnl, link, "set", &format_args!("{key} {route}"))?;
        message.attributes.push(RouteAttribute::Oif(index));
    }
    Ok(encode(&RouteNetlinkMessage::NewRoute(message), flags))
}

fn metric_list(metrics: RouteMetrics) -> Vec<RouteMetric> {
    metrics.mtu.map(RouteMetric::Mtu).into_iter().chain(metrics.advmss.map(RouteMetric::Advmss)).collect()
}

fn message(key: &RouteKey) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(key.dst.addr());
    message.header.destination_prefix_length = key.dst.len();
    // A number that the header holds needs no attribute: eight bytes less to write and to read for each route.
    match u8::try_from(key.table) {
        Ok(table) => message.header.table = table,
        Err(_) => message.attributes.push(RouteAttribute::Table(key.table)),
    }
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(key.dst.addr())));
    if key.metric != 0 {
        message.attributes.push(RouteAttribute::Priority(key.metric));
    }
    message
}

fn removal(key: &RouteKey, value: &Route) -> Message {
    let mut message = message(key);
    message.header.scope = Scope::NoWhere;
    message.header.kind = route_type(value.kind);
    message.header.protocol = RouteProtocol::from(value.protocol);
    encode(&RouteNetlinkMessage::DelRoute(message), 0)
}

/// A route as it is listed, its link by index.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parsed {
    key: RouteKey,
    route: Route,
    pub(crate) link: Option<u32>,
    /// A cached clone.
    cloned: bool,
}

impl Parsed {
    pub(crate) fn named(self, indexes: &Indexes) -> (RouteKey, Route) {
        let link = self.link.and_then(|index| indexes.name(index).cloned());
        (self.key, Route { link, ..self.route })
    }
}

pub(crate) fn parse(frame: &Frame) -> Option<Parsed> {
    if frame.kind != RTM_NEWROUTE {
        return None;
    }
    let (key, protocol) = key_in(&frame.body)?;
    let [_, _, _, _, _, _, scope, kind, f0, f1, f2, f3] = *frame.body.first_chunk::<RTMSG>()?;
    let attributes = frame.body.get(RTMSG..)?;
    let find = |kind| attribute::find(attributes, kind);
    // The kernel lists the first hop of an object's route as well; it is not the route's own.
    let own_hop = find(RTA_NH_ID).is_none();
    let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
    let route = Route {
        kind: route_kind(kind),
        via: find(RTA_GATEWAY)
            .and_then(attribute::ip)
            .or_else(|| find(RTA_VIA).and_then(other_hop))
            .filter(|_| own_hop),
        link: None,
        onlink: RouteFlags::from_bits_retain(flags).contains(RouteFlags::Onlink),
        src: find(RTA_PREFSRC).and_then(attribute::ip),
        scope: route_scope(scope),
        protocol,
        metrics: find(RTA_METRICS).map(metrics).unwrap_or_default(),
    };
    let link = find(RTA_OIF).and_then(attribute::u32).filter(|_| own_hop);
    Some(Parsed { key, route, link, cloned: flags & RTM_F_CLONED != 0 })
}

/// The next hop of an IPv4 route that is an address of IPv6: its family, then the address (struct rtvia).
fn other_hop(via: &[u8]) -> Option<IpAddr> {
    via.get(2..).and_then(attribute::ip)
}

/// Key and protocol of the route that a message is about, whether it sets or removes it.
pub(crate) fn key_in(body: &[u8]) -> Option<(RouteKey, u8)> {
    let [family, len, _, _, table, protocol, ..] = *body.first_chunk::<RTMSG>()?;
    let attributes = body.get(RTMSG..)?;
    let any = match family {
        AF_INET => IpAddr::from([0; 4]),
        AF_INET6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let dst = attribute::find(attributes, RTA_DST).and_then(attribute::ip).unwrap_or(any);
    let number = |kind| attribute::find(attributes, kind).and_then(attribute::u32);
    let key = RouteKey {
        table: number(RTA_TABLE).unwrap_or(u32::from(table)),
        dst: Prefix::new(dst, len).ok()?,
        metric: number(RTA_PRIORITY).unwrap_or(0),
    };
    Some((key, protocol))
}

fn metrics(list: &[u8]) -> RouteMetrics {
    let number = |kind| attribute::find(list, kind).and_then(attribute::u32);
    RouteMetrics { mtu: number(RTAX_MTU), advmss: number(RTAX_ADVMSS) }
}

/// rtm_type (include/uapi/linux/rtnetlink.h).
const fn route_kind(kind: u8) -> RouteKind {
    match kind {
        1 => RouteKind::Unicast,
        2 => RouteKind::Local,
        6 => RouteKind::Blackhole,
        7 => RouteKind::Unreachable,
        other => RouteKind::Other(other),
    }
}

fn route_type(kind: RouteKind) -> RouteType {
    match kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Local => RouteType::Local,
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Other(number) => RouteType::from(number),
    }
}

/// rtm_scope: everything that is not the host or a link is somewhere behind a gateway.
const fn route_scope(scope: u8) -> RouteScope {
    match scope {
        254 => RouteScope::Host,
        253 => RouteScope::Link,
        _ => RouteScope::Universe,
    }
}

const fn scope(scope: RouteScope) -> Scope {
    match scope {
        RouteScope::Universe => Scope::Universe,
        RouteScope::Link => Scope::Link,
        RouteScope::Host => Scope::Host,
    }
}

/// The key of a route in the main table.
#[must_use]
pub const fn main_key(dst: Prefix, metric: u32) -> RouteKey {
    RouteKey { table: TABLE_MAIN, dst, metric }
}

/// A default or subnet route of an interface by way of `via`, as a CNI plugin installs it.
#[must_use]
pub const fn via(link: IfName, via: Option<IpAddr>, protocol: u8) -> Route {
    Route {
        kind: RouteKind::Unicast,
        via,
        link: Some(link),
        onlink: false,
        src: None,
        scope: if via.is_some() { RouteScope::Universe } else { RouteScope::Link },
        protocol,
        metrics: RouteMetrics { mtu: None, advmss: None },
    }
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;
    use crate::attribute::Writer;

    fn frame(header: [u8; RTMSG], fill: impl FnOnce(&mut Writer)) -> Frame {
        let mut body = Writer::behind(header.to_vec());
        fill(&mut body);
        Frame { kind: RTM_NEWROUTE, flags: 0, sequence: 1, body: body.finish() }
    }

    /// IPv4, /24, table main, protocol, scope universe, type.
    const fn header(protocol: u8, kind: u8) -> [u8; RTMSG] {
        [AF_INET, 24, 0, 0, 254, protocol, 0, kind, 0, 0, 0, 0]
    }

    #[test]
    fn route_is_read_with_every_part_that_is_compared() {
        let mut onlink = header(121, 1);
        onlink[8] = 4;
        let parsed = parse(&frame(onlink, |body| {
            body.put(RTA_DST, &[172, 7, 22, 0]).put(RTA_OIF, &[7, 0, 0, 0]).put(RTA_GATEWAY, &[172, 7, 22, 0]);
            body.put(RTA_PRIORITY, &[0xe9, 3, 0, 0]).put(RTA_PREFSRC, &[172, 7, 21, 0]).put(99, b"what nobody knows");
            body.nest(RTA_METRICS, |list| {
                list.put(RTAX_MTU, &[0xaa, 5, 0, 0]);
            });
        }));
        let parsed = parsed.unwrap();
        assert_eq!(parsed.key, RouteKey { table: 254, dst: "172.7.22.0/24".parse().unwrap(), metric: 1001 });
        assert_eq!((parsed.link, parsed.cloned), (Some(7), false));
        assert_eq!(
            parsed.route,
            Route {
                kind: RouteKind::Unicast,
                via: Some([172, 7, 22, 0].into()),
                link: None,
                onlink: true,
                src: Some([172, 7, 21, 0].into()),
                scope: RouteScope::Universe,
                protocol: 121,
                metrics: RouteMetrics { mtu: Some(1450), advmss: None },
            }
        );
    }

    #[test]
    fn routes_of_other_kinds_are_rows_as_well() {
        let several = parse(&frame(header(121, 1), |body| {
            body.put(RTA_DST, &[172, 7, 22, 0]).put(9, &[16, 0, 0, 0, 7, 0, 0, 0]);
        }));
        let several = several.unwrap();
        assert_eq!((several.route.via, several.link), (None, None), "several next hops are none of its own");
        let object = parse(&frame(header(121, 1), |body| {
            body.put(RTA_DST, &[172, 7, 22, 0]).put(RTA_OIF, &[7, 0, 0, 0]).put(RTA_GATEWAY, &[10, 4, 7, 22]);
            body.put(RTA_NH_ID, &[1, 0, 0, 0]);
        }));
        let object = object.unwrap();
        assert_eq!((object.route.via, object.link), (None, None));
        for (number, kind) in
            [(6, RouteKind::Blackhole), (7, RouteKind::Unreachable), (2, RouteKind::Local), (9, RouteKind::Other(9))]
        {
            let parsed = parse(&frame(header(3, number), |body| {
                body.put(RTA_TABLE, &[0x39, 5, 0, 0]);
            }));
            let parsed = parsed.unwrap();
            assert_eq!((parsed.route.kind, parsed.key.table, parsed.route.protocol), (kind, 1337, 3));
            assert_eq!(route_kind(u8::from(route_type(kind))), kind);
        }
    }

    #[test]
    fn next_hop_of_the_other_family_is_a_next_hop() {
        let router: IpAddr = "fe80::1".parse().unwrap();
        let IpAddr::V6(octets) = router else { panic!("{router}") };
        let via = [&10u16.to_ne_bytes()[..], &octets.octets()].concat();
        let read = |via: &[u8]| {
            let route = frame(header(121, 1), |body| {
                body.put(RTA_DST, &[10, 4, 7, 22]).put(RTA_OIF, &[7, 0, 0, 0]).put(18, via);
            });
            let parsed = parse(&route).unwrap();
            (parsed.route.via, parsed.link)
        };
        assert_eq!(read(&via), (Some(router), Some(7)));
        assert_eq!(read(&via[..1]), (None, Some(7)), "a torn one");
    }

    #[test]
    fn clones_are_known_and_torn_messages_are_no_routes() {
        let mut cloned = header(0, 1);
        cloned[9] = 2;
        assert!(parse(&frame(cloned, |_| {})).unwrap().cloned);
        let whole = frame(header(121, 1), |_| {});
        for length in 0..RTMSG {
            let body = whole.body[..length].to_vec();
            assert_eq!(parse(&Frame { body, ..whole.clone() }), None, "{length} bytes");
        }
        assert_eq!(parse(&Frame { kind: 25, ..whole.clone() }), None, "a deletion");
        let mut other = header(121, 1);
        other[0] = 28;
        assert_eq!(parse(&frame(other, |_| {})), None, "a family nobody here knows");
    }

    #[test]
    fn default_route_has_the_empty_prefix_of_its_family() {
        for (family, prefix) in [(AF_INET, "0.0.0.0/0"), (AF_INET6, "::/0")] {
            let parsed = parse(&frame([family, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0], |_| {})).unwrap();
            assert_eq!(parsed.key, RouteKey { table: 254, dst: prefix.parse().unwrap(), metric: 0 });
        }
    }
}
