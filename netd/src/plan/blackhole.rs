//! The route that drops what is sent to addresses of the own subnet that no Pod has (`--ip-blackhole-route`).
//!
//! flannel's stands in front of a bridge's route to the same subnet and stays when the subnet is another one. Invariant: ours
//! has a metric behind those of bridges and Pods, and goes with the subnet.

use netstate::route::{ROUTE_PROTOCOL, TABLE_MAIN, spread_metric};
use netstate::{IfName, Prefix, Route, RouteKey, RouteKind, RouteMetrics, RouteScope};

use super::Place;

/// The link that the kernel gives to IPv6 routes that refuse.
const LOOPBACK: IfName = IfName::literal("lo");

/// The route for the subnet of `place`; none before it has one.
pub(super) fn row(place: &Place) -> Option<(RouteKey, Route)> {
    let subnet = Some(place.subnet).filter(|subnet| *subnet != Prefix::host(place.address))?;
    let key = RouteKey { table: TABLE_MAIN, dst: subnet, metric: spread_metric(&subnet) };
    let route = Route {
        kind: RouteKind::Blackhole,
        via: None,
        link: (!subnet.is_ipv4()).then_some(LOOPBACK),
        onlink: false,
        src: None,
        scope: RouteScope::Universe,
        protocol: ROUTE_PROTOCOL,
        metrics: RouteMetrics::default(),
    };
    Some((key, route))
}

/// True for a route that this program made for a subnet of `networks`.
pub(super) fn is_ours(key: &RouteKey, route: &Route, mut networks: impl Iterator<Item = Prefix>) -> bool {
    let made = route.kind == RouteKind::Blackhole && route.protocol == ROUTE_PROTOCOL;
    made && (key.table, key.metric) == (TABLE_MAIN, spread_metric(&key.dst))
        && networks.any(|pods| pods.covers(&key.dst))
}
