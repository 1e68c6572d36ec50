//! Whole networks of Services as local routes, in place of an address for each virtual one (`--ipvs-local-cidrs`).
//!
//! The kernel walks all addresses of a link for each one that it gets; a route of type `local` makes every address of a network this host's
//! at once, and costs the same whatever number of Services there is. Packets come to IPVS as they do at an address, and what no virtual server takes is refused behind it
//! where a Service is, and dropped where none is ([`super::nftables::unallocated`]): before this host answers a ping, or a process of it
//! that listens on all addresses does.
//!
//! Invariant: a network of a link of this node, or of the Pods, that lies in such a network is no part of the routes: the table of local
//! routes is asked before every other.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netstate::route::{PROXY_ROUTE_PROTOCOL, TABLE_LOCAL};
use netstate::{IfName, IpFamily, Prefix, Route, RouteKey, RouteKind, RouteMetrics, RouteScope};

use super::nftables::unallocated::{self, Unallocated};
use super::{Mode, Options};

/// The link of what this host sends to itself.
pub(crate) const LINK: IfName = IfName::literal("lo");

/// The kernel's own metric of routes of IPv6 (IP6_RT_PRIO_USER).
const METRIC_OF_IPV6: u32 = 1024;

/// The networks that are to be local, each once, of the families that are served.
fn wanted(options: &Options) -> impl Iterator<Item = Prefix> + '_ {
    let is_of_ipvs = |_: &&Prefix| options.mode == Mode::Ipvs;
    let is_served = |network: &&Prefix| options.pods.get(network.family()).is_some();
    let networks = options.local.iter().filter(is_of_ipvs).filter(is_served).copied();
    networks.filter(|network| !options.local.iter().any(|other| other != network && other.covers(network)))
}

/// What of them no Service has, by network.
pub(super) fn to_nobody(family: IpFamily, options: &Options) -> Vec<Unallocated> {
    let of_family = wanted(options).filter(|network| network.family() == family);
    of_family.filter_map(|network| Unallocated::inside(network, options)).collect()
}

/// True for an address that one of the routes makes local.
#[must_use]
pub(crate) fn covers(options: &Options, addr: IpAddr) -> bool {
    wanted(options).any(|network| network.contains(addr)) && unallocated::is_free(addr, options)
}

/// The routes that make the networks local.
#[must_use]
pub(crate) fn routes(options: &Options) -> BTreeMap<RouteKey, Route> {
    let networks = IpFamily::ALL.into_iter().flat_map(|family| to_nobody(family, options));
    networks.flat_map(|network| network.parts()).map(route).collect()
}

/// The route of a network.
fn route(network: Prefix) -> (RouteKey, Route) {
    let (metric, scope) = match network.family() {
        IpFamily::V4 => (0, RouteScope::Host),
        IpFamily::V6 => (METRIC_OF_IPV6, RouteScope::Universe),
    };
    let route = Route {
        kind: RouteKind::Local,
        via: None,
        link: Some(LINK),
        onlink: false,
        src: None,
        scope,
        protocol: PROXY_ROUTE_PROTOCOL,
        metrics: RouteMetrics::default(),
    };
    (RouteKey { table: TABLE_LOCAL, dst: network, metric }, route)
}

/// True for a route that this program has made.
#[must_use]
pub(crate) fn is_ours(key: &RouteKey, route: &Route) -> bool {
    key.table == TABLE_LOCAL && route.kind == RouteKind::Local && route.protocol == PROXY_ROUTE_PROTOCOL
}

/// True for a route that is ours by its protocol, or may have taken the place of one: those of single addresses come with the addresses.
#[must_use]
pub(crate) fn is_of_interest(key: &RouteKey, protocol: u8) -> bool {
    key.table == TABLE_LOCAL && (protocol == PROXY_ROUTE_PROTOCOL || key.dst.len() < key.dst.width())
}

/// What changes in the routes when the options become others.
pub(super) fn changes(before: &Options, after: &Options) -> BTreeMap<RouteKey, Option<Route>> {
    let (before, after) = (routes(before), routes(after));
    let gone = before.keys().filter(|key| !after.contains_key(key)).map(|key| (*key, None));
    let come = after.iter().filter(|(key, _)| !before.contains_key(key));
    gone.chain(come.map(|(key, route)| (*key, Some(route.clone())))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_ours_in_the_local_table_as_a_local_one_of_our_protocol_only() {
        let (key, route) = route("192.168.0.0/16".parse().unwrap());
        let (main, single) =
            (RouteKey { table: 254, ..key }, RouteKey { dst: "192.168.0.10/32".parse().unwrap(), ..key });
        let unicast = Route { kind: RouteKind::Unicast, ..route.clone() };
        let kernels = Route { protocol: 2, ..route.clone() };
        assert!(is_ours(&key, &route));
        for (key, route) in [(&main, &route), (&key, &unicast), (&key, &kernels)] {
            assert!(!is_ours(key, route), "{key} {route:?}");
        }
        for (key, protocol, interests) in [
            (&key, PROXY_ROUTE_PROTOCOL, true),
            (&key, 2, true),
            (&single, PROXY_ROUTE_PROTOCOL, true),
            (&single, 2, false),
            (&main, PROXY_ROUTE_PROTOCOL, false),
            (&main, 2, false),
        ] {
            assert_eq!(is_of_interest(key, protocol), interests, "{key} of protocol {protocol}");
        }
    }
}
