//! Which routes are this daemon's: those it made, and at the first start after flannel those that flannel made.
//!
//! Invariant: neither a protocol number nor a destination alone makes a route ours. Ours has our protocol number, the
//! metric that this program gives to that destination, and a destination inside a Pod network that this daemon is known
//! to have served.

use std::collections::BTreeSet;

use netstate::family::{IpFamily, PerFamily};
use netstate::route::{ROUTE_PROTOCOL, TABLE_MAIN, spread_metric};
use netstate::{IfName, Prefix, Route, RouteKey, RouteKind};

use super::LocalNode;
use super::backend::Backend;
use super::blackhole;
use crate::format::net_conf::Network;

/// RTPROT_BOOT (include/uapi/linux/rtnetlink.h): flannel's netlink library sets nothing else, and neither does iproute2.
const BOOT: u8 = 3;

/// The metric of a route that was made without one: IP6_RT_PRIO_USER in IPv6 (include/uapi/linux/ipv6_route.h).
const fn unset_metric(family: IpFamily) -> u32 {
    match family {
        IpFamily::V4 => 0,
        IpFamily::V6 => 1024,
    }
}

/// What this daemon may call its own.
#[derive(Debug, Clone)]
pub(crate) struct Ownership {
    /// The network that it serves.
    pub network: Network,
    /// This node.
    pub local: LocalNode,
    /// The backend that was used before and whose devices stand still.
    pub retiring: Option<Backend>,
    /// Pod networks that earlier runs of it served.
    pub earlier: Vec<Prefix>,
    /// Routes that flannel left, found at the first start after it.
    pub adopted: BTreeSet<(RouteKey, Route)>,
}

impl Ownership {
    /// The table where a route of ours can stand, and the protocols that it can have.
    pub(crate) const CANDIDATES: (u32, [u8; 2]) = (TABLE_MAIN, [ROUTE_PROTOCOL, BOOT]);

    /// The devices that carry tunnels.
    #[must_use]
    pub(crate) fn devices(&self) -> BTreeSet<IfName> {
        self.devices_of(|_| true)
    }

    /// Those of them that have this node's key.
    #[must_use]
    pub(crate) fn key_devices(&self) -> BTreeSet<IfName> {
        self.devices_of(Backend::needs_key)
    }

    fn devices_of(&self, wanted: impl Fn(&Backend) -> bool) -> BTreeSet<IfName> {
        let backends = self.retiring.iter().chain([&self.network.backend]).filter(|backend| wanted(backend));
        let families: Vec<IpFamily> = self.network.pools.families().collect();
        backends.flat_map(|backend| families.iter().filter_map(|family| backend.device(*family))).collect()
    }

    /// Calls what flannel left among `routes` our own. `previous` are the subnets that its file names.
    #[must_use]
    pub(crate) fn adopting(
        mut self,
        routes: impl IntoIterator<Item = (RouteKey, Route)>,
        previous: &PerFamily<Option<Prefix>>,
    ) -> Self {
        let routes: Vec<(RouteKey, Route)> = routes.into_iter().collect();
        let local = self.reaching(&routes);
        // In Kubernetes the controller-manager gives subnets their length, not the network's configuration.
        let is_leased = |dst: &Prefix| {
            let len = |subnet: &Prefix| subnet.len() == dst.len();
            previous.get(dst.family()).as_ref().is_some_and(len)
                || self.network.pool(dst).is_some_and(|pool| pool.subnet_len == dst.len())
        };
        let made = |key: &RouteKey, route: &Route| self.flannel_made(&local, &is_leased, key, route);
        self.adopted = routes.into_iter().filter(|(key, route)| made(key, route)).collect();
        self
    }

    /// This node, with the next hops that it reaches without a router by one of `routes`: a host address has no network
    /// that could say so.
    fn reaching(&self, routes: &[(RouteKey, Route)]) -> LocalNode {
        let interface = Some(&self.local.interface);
        let served = |dst: &Prefix| self.network.networks().any(|pods| pods.covers(dst));
        let on_link: Vec<&Prefix> = routes
            .iter()
            .filter(|(key, route)| key.table == TABLE_MAIN && route.link.as_ref() == interface && !served(&key.dst))
            .filter(|(_, route)| route.kind == RouteKind::Unicast && route.via.is_none())
            .map(|(key, _)| &key.dst)
            .collect();
        let hops =
            routes.iter().filter(|(_, route)| route.link.as_ref() == interface).filter_map(|(_, route)| route.via);
        let direct = hops.filter(|hop| on_link.iter().any(|dst| dst.contains(*hop)));
        let mut local = self.local.clone();
        local.ways.direct.extend(direct.map(|hop| (hop, self.local.interface.clone())));
        local
    }

    /// True for routes that this daemon made, or that flannel left before its first start.
    #[must_use]
    pub(crate) fn owns(&self, key: &RouteKey, route: &Route) -> bool {
        let unicast = key.table == TABLE_MAIN
            && route.kind == RouteKind::Unicast
            && (route.via.is_some() || Backend::needs_no_hop(route))
            && (self.made(key, route) || self.adopted.contains(&(*key, route.clone())));
        unicast || blackhole::is_ours(key, route, self.network.networks().chain(self.earlier.iter().copied()))
    }

    /// True when a change of a route with this key by somebody of `protocol` can concern one of ours: those inside the Pod
    /// networks, but not those of this node's own Pods.
    #[must_use]
    pub(crate) fn concerns(&self, key: &RouteKey, protocol: u8) -> bool {
        let served = self.network.networks().chain(self.earlier.iter().copied()).any(|pods| pods.covers(&key.dst));
        let of_pods = self.local.subnets().any(|own| own != key.dst && own.covers(&key.dst));
        key.table == TABLE_MAIN && served && (protocol == ROUTE_PROTOCOL || !of_pods)
    }

    fn made(&self, key: &RouteKey, route: &Route) -> bool {
        let served = self.network.has_subnet(&key.dst) || self.earlier.iter().any(|pods| pods.covers(&key.dst));
        // Inside the own subnet only what leads away from this node: Pods have routes of their own.
        let of_pods = self.local.has_pods_in(&key.dst) && !Backend::leads_to_nodes(&self.local, route);
        route.protocol == ROUTE_PROTOCOL && key.metric == spread_metric(&key.dst) && served && !of_pods
    }

    /// flannel's shapes: to a subnet of a lease's length without metric or source address, by way of that subnet's
    /// first address on the tunnel device, or of a node on the external interface where the backend routes directly.
    fn flannel_made(
        &self,
        local: &LocalNode,
        is_leased: &impl Fn(&Prefix) -> bool,
        key: &RouteKey,
        route: &Route,
    ) -> bool {
        key.table == TABLE_MAIN
            && route.kind == RouteKind::Unicast
            && route.protocol == BOOT
            && key.metric == unset_metric(key.dst.family())
            && route.src.is_none()
            && self.network.pool(&key.dst).is_some_and(|pool| match pool.network == key.dst {
                true => self.network.backend.flannel_made_whole(key, route),
                false => {
                    pool.has_subnet(&key.dst)
                        && is_leased(&key.dst)
                        && self.network.backend.flannel_made(local, key, route)
                }
            })
    }
}

/// True for a route that a daemon left which served `networks`: of our protocol, with the metric that its destination has.
#[must_use]
pub(crate) fn is_left(networks: &BTreeSet<Prefix>, key: &RouteKey, route: &Route) -> bool {
    let is_ours = route.protocol == ROUTE_PROTOCOL && key.metric == spread_metric(&key.dst);
    let unicast = key.table == TABLE_MAIN
        && route.kind == RouteKind::Unicast
        && (route.via.is_some() || Backend::needs_no_hop(route))
        && is_ours
        && networks.iter().any(|pods| pods.covers(&key.dst));
    unicast || blackhole::is_ours(key, route, networks.iter().copied())
}

/// True for a route that flannel left to a subnet of one of these lengths in one of `networks`, whatever its backend.
#[must_use]
pub(crate) fn is_left_by_flannel(networks: &BTreeSet<Prefix>, lens: &[u8], key: &RouteKey, route: &Route) -> bool {
    key.table == TABLE_MAIN
        && route.kind == RouteKind::Unicast
        && route.protocol == BOOT
        && key.metric == unset_metric(key.dst.family())
        && (route.src.is_none(), route.via.is_some()) == (true, true)
        && lens.contains(&key.dst.len())
        && networks.iter().any(|pods| pods.covers(&key.dst))
}
