//! Routes.
//!
//! Invariants. A route is replaced, never deleted and made again, so packets always find one. Routes to one
//! destination that differ in metric are different rows; a removal names the metric. Ownership is a question of the
//! caller: our protocol number, and what a predecessor left behind.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope as Scope, RouteType,
};
use netstate::route::TABLE_MAIN;
use netstate::{IfName, Prefix, Route, RouteKey, RouteKind, RouteMetrics, RouteScope};
use reconcile::{Observed, Owner, Rows, Step, Target};

use crate::address::family;
use crate::attribute;
use crate::error::KernelError;
use crate::rtnl::{Indexes, Operation, Rtnl, encode, gone_is_fine};
use crate::socket::Frame;

/// Bytes of `rtmsg` (include/uapi/linux/rtnetlink.h).
const RTMSG: usize = 12;
const RTM_NEWROUTE: u16 = 24;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
const RTM_F_CLONED: u32 = 0x200;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

impl Rtnl {
    /// All routes of both families with a single next hop, cached clones left out. A route's link is told by name.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn routes(&mut self) -> Result<Vec<(RouteKey, Route)>, KernelError> {
        let indexes = Indexes::all(self)?;
        let frames = self.dump("list routes", &RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
        Ok(frames.iter().filter_map(|frame| row(frame, &indexes)).collect())
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
        let frames = self.request(&operation)?;
        let indexes = Indexes::all(self)?;
        let found = frames.iter().find_map(|frame| parse(frame, &indexes));
        let none = || KernelError::new("look up route to", addr, crate::error::Cause::Missing("a route".to_owned()));
        found.map(|(_, route, _)| route).ok_or_else(none)
    }

    /// Adds the routes of a new interface, all in one batch; a route that exists already is left as it is.
    ///
    /// # Errors
    /// The first route that the kernel refuses.
    pub fn add_routes(&mut self, routes: &[(RouteKey, Route)]) -> Result<(), KernelError> {
        let mut indexes = Indexes::default();
        let operations =
            routes.iter().map(|(key, route)| self.upsert(key, route, NLM_F_CREATE, &mut indexes)).collect();
        let exists_is_fine = |result: Result<(), KernelError>| match result {
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
            other => other,
        };
        self.batch(operations).into_iter().try_for_each(exists_is_fine)
    }

    pub(crate) fn upsert(
        &mut self,
        key: &RouteKey,
        route: &Route,
        flags: u16,
        indexes: &mut Indexes,
    ) -> Result<Operation, KernelError> {
        let op = "set";
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
            let index = indexes.index(self, link, op, &format!("{key} {route}"))?;
            message.attributes.push(RouteAttribute::Oif(index));
        }
        let message = encode(&RouteNetlinkMessage::NewRoute(message), flags);
        Ok(Operation { op, object: format!("{key} {route}"), message })
    }
}

fn metric_list(metrics: RouteMetrics) -> Vec<RouteMetric> {
    metrics.mtu.map(RouteMetric::Mtu).into_iter().chain(metrics.advmss.map(RouteMetric::Advmss)).collect()
}

fn message(key: &RouteKey) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(key.dst.addr());
    message.header.destination_prefix_length = key.dst.len();
    message.header.table = u8::try_from(key.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.attributes.push(RouteAttribute::Table(key.table));
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(key.dst.addr())));
    if key.metric != 0 {
        message.attributes.push(RouteAttribute::Priority(key.metric));
    }
    message
}

fn remove(key: &RouteKey, value: &Route) -> Operation {
    let mut message = message(key);
    message.header.scope = Scope::NoWhere;
    message.header.kind = route_type(value.kind);
    message.header.protocol = RouteProtocol::from(value.protocol);
    let message = encode(&RouteNetlinkMessage::DelRoute(message), 0);
    Operation { op: "delete", object: format!("{key} {value}"), message }
}

fn row(frame: &Frame, indexes: &Indexes) -> Option<(RouteKey, Route)> {
    parse(frame, indexes).filter(|(.., cloned)| !cloned).map(|(key, route, _)| (key, route))
}

/// The row and whether it is a cached clone.
fn parse(frame: &Frame, indexes: &Indexes) -> Option<(RouteKey, Route, bool)> {
    let [family, len, _, _, table, protocol, scope, kind, f0, f1, f2, f3] = *frame.body.first_chunk::<RTMSG>()?;
    let attributes = frame.body.get(RTMSG..)?;
    let find = |kind| attribute::find(attributes, kind);
    if frame.kind != RTM_NEWROUTE || find(RTA_MULTIPATH).is_some() {
        return None;
    }
    let any = match family {
        AF_INET => IpAddr::from([0; 4]),
        AF_INET6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let dst = find(RTA_DST).and_then(attribute::ip).unwrap_or(any);
    let number = |kind| find(kind).and_then(attribute::u32);
    let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
    let key = RouteKey {
        table: number(RTA_TABLE).unwrap_or(u32::from(table)),
        dst: Prefix::new(dst, len).ok()?,
        metric: number(RTA_PRIORITY).unwrap_or(0),
    };
    let route = Route {
        kind: route_kind(kind),
        via: find(RTA_GATEWAY).and_then(attribute::ip),
        link: number(RTA_OIF).and_then(|index| indexes.name(index).cloned()),
        onlink: RouteFlags::from_bits_retain(flags).contains(RouteFlags::Onlink),
        src: find(RTA_PREFSRC).and_then(attribute::ip),
        scope: route_scope(scope),
        protocol,
        metrics: find(RTA_METRICS).map(metrics).unwrap_or_default(),
    };
    Some((key, route, flags & RTM_F_CLONED != 0))
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

/// Which routes are ours, by key and value.
pub type OwnsRoute = Box<dyn Fn(&RouteKey, &Route) -> bool + Send>;

/// The table of routes.
pub struct Routes {
    rtnl: Rtnl,
    owns: OwnsRoute,
}

impl Routes {
    /// The routes of `rtnl`'s namespace in every table, of which those that `owns` answers true for are ours.
    pub fn new(rtnl: Rtnl, owns: OwnsRoute) -> Self {
        Self { rtnl, owns }
    }
}

impl Target for Routes {
    type Key = RouteKey;
    type Value = Route;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<RouteKey, Route>, KernelError> {
        let owner = |key: &RouteKey, route: &Route| match (self.owns)(key, route) {
            true => Owner::Ours,
            false => Owner::Foreign,
        };
        let mut rows = Rows::new();
        for (key, value) in self.rtnl.routes()? {
            let owner = owner(&key, &value);
            rows.insert(key, Observed { value, owner });
        }
        Ok(rows)
    }

    fn apply(&mut self, steps: &[Step<RouteKey, Route>]) -> Vec<Result<(), KernelError>> {
        let mut indexes = Indexes::default();
        let operation = |step: &Step<RouteKey, Route>| match step {
            Step::Create(key, want) | Step::Change(key, _, want) => {
                self.rtnl.upsert(key, want, NLM_F_CREATE | NLM_F_REPLACE, &mut indexes)
            }
            Step::Remove(key, have) => Ok(remove(key, have)),
        };
        let operations = steps.iter().map(operation).collect();
        let results = self.rtnl.batch(operations);
        let settle = |(step, result)| if matches!(step, &Step::Remove(..)) { gone_is_fine(result) } else { result };
        steps.iter().zip(results).map(settle).collect()
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
