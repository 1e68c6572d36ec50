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
    /// The backends that were used before and whose devices stand still, the oldest first.
    pub retiring: Vec<Backend>,
    /// Pod networks that earlier runs of it served.
    pub earlier: Vec<Prefix>,
    /// Routes that flannel left, found at the first start after it.
    pub adopted: BTreeSet<(RouteKey, Route)>,
}

impl Ownership {
    /// The table where a route of ours can stand, and the protocols that it can have.
    pub(crate) const CANDIDATES: (u32, [u8; 2]) = (TABLE_MAIN, [ROUTE_PROTOCOL, BOOT]);

    /// What a node that has served nothing before may call its own.
    #[must_use]
    pub(crate) const fn of(network: Network, local: LocalNode) -> Self {
        Self { network, local, retiring: Vec::new(), earlier: Vec::new(), adopted: BTreeSet::new() }
    }

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

    /// The backends whose devices stand, the network's last.
    pub(crate) fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.retiring.iter().chain([&self.network.backend])
    }

    /// Serves `network` from now on. The backend of before, and those before that, retire beside it where they can stand there.
    pub(crate) fn serve(&mut self, network: Network) {
        let before = std::mem::replace(&mut self.network, network);
        self.retiring.push(before.backend);
        let wanted = &self.network.backend;
        self.retiring.retain(|old| old.stands_beside(wanted) && old.refuses_change(wanted).is_none());
    }

    fn devices_of(&self, wanted: impl Fn(&Backend) -> bool) -> BTreeSet<IfName> {
        let backends = self.backends().filter(|backend| wanted(backend));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::net_conf::NetConf;
    use crate::plan::{Place, route};
    use netstate::{RouteMetrics, RouteScope};

    /// One difference, by its name.
    type Difference = (&'static str, fn(&mut RouteKey, &mut Route));

    /// What makes somebody else's of a route.
    const FOREIGN: [Difference; 6] = [
        ("table", |key, _| key.table = 255),
        ("kind", |_, route| route.kind = RouteKind::Local),
        ("protocol", |_, route| route.protocol = 4),
        ("metric", |key, _| key.metric += 1),
        ("next hop", |_, route| (route.via, route.kind) = (None, RouteKind::Unicast)),
        ("network", |key, _| {
            let was_spread = key.metric == spread_metric(&key.dst);
            key.dst = "10.9.22.0/24".parse().unwrap();
            key.metric = if was_spread { spread_metric(&key.dst) } else { key.metric };
        }),
    ];

    fn place(node_network: &str) -> Place {
        let address = "10.4.7.21".parse().unwrap();
        Place {
            subnet: "172.7.21.0/24".parse().unwrap(),
            public_ip: address,
            address,
            node_network: node_network.parse().unwrap(),
            mac: "02:00:00:00:00:21".parse().unwrap(),
        }
    }

    fn ownership(node_network: &str) -> Ownership {
        let network = NetConf::parse(r#"{"Network":"172.7.0.0/16","Backend":{"Type":"host-gw"}}"#).unwrap().network;
        let local = LocalNode::plain(PerFamily::new(Some(place(node_network)), None), IfName::literal("eth0"));
        Ownership::of(network, local)
    }

    fn ours(dst: &str, link: &str) -> (RouteKey, Route) {
        route(dst.parse().unwrap(), "10.4.7.22".parse().unwrap(), &IfName::new(link).unwrap(), false)
    }

    fn flannels(dst: &str) -> (RouteKey, Route) {
        let (key, value) = ours(dst, "eth0");
        (RouteKey { metric: 0, ..key }, Route { protocol: BOOT, ..value })
    }

    #[test]
    fn a_route_that_differs_in_one_thing_from_ours_is_somebody_elses() {
        let ownership = ownership("10.4.7.0/24");
        let networks = BTreeSet::from(["172.7.0.0/16".parse().unwrap()]);
        for made in [ours("172.7.22.0/24", "eth0"), blackhole::row(&place("10.4.7.0/24")).unwrap()] {
            assert!(ownership.owns(&made.0, &made.1) && is_left(&networks, &made.0, &made.1), "{}", made.0);
            for (what, change) in FOREIGN {
                let (mut key, mut route) = made.clone();
                change(&mut key, &mut route);
                assert!(!ownership.owns(&key, &route), "{what} of {}", made.0);
                assert!(!is_left(&networks, &key, &route), "{what} of {}", made.0);
            }
        }
    }

    #[test]
    fn a_route_that_differs_in_one_thing_from_flannels_is_not_adopted_and_not_left_by_it() {
        let networks = BTreeSet::from(["172.7.0.0/16".parse().unwrap()]);
        let is_adopted = |key: &RouteKey, route: &Route| {
            ownership("10.4.7.0/24").adopting([(*key, route.clone())], &PerFamily::default()).owns(key, route)
        };
        let made = flannels("172.7.22.0/24");
        assert!(is_adopted(&made.0, &made.1) && is_left_by_flannel(&networks, &[24], &made.0, &made.1));
        let further: [Difference; 2] = [
            ("source", |_, route| route.src = "10.4.7.21".parse().ok()),
            ("length", |key, _| key.dst = "172.7.22.0/25".parse().unwrap()),
        ];
        for (what, change) in FOREIGN.into_iter().chain(further) {
            let (mut key, mut route) = made.clone();
            change(&mut key, &mut route);
            assert!(!is_adopted(&key, &route), "{what}");
            assert!(!is_left_by_flannel(&networks, &[24], &key, &route), "{what}");
        }
    }

    #[test]
    fn networks_of_before_are_served_and_pods_of_the_own_subnet_have_their_routes() {
        let mut ownership = ownership("10.4.7.0/24");
        let (earlier, away, to_pods) =
            (ours("10.9.22.0/24", "eth0"), ours("172.7.21.0/24", "eth0"), ours("172.7.21.0/24", "cbr0"));
        assert!(!ownership.owns(&earlier.0, &earlier.1));
        ownership.earlier.push("10.9.0.0/16".parse().unwrap());
        assert!(ownership.owns(&earlier.0, &earlier.1));
        assert!(ownership.owns(&away.0, &away.1), "it would lead packets for this node's Pods away");
        assert!(!ownership.owns(&to_pods.0, &to_pods.1));
    }

    #[test]
    fn next_hops_of_a_host_address_are_those_in_networks_on_the_interface() {
        let by_node = flannels("172.7.22.0/24");
        let on_link = |dst: &str| {
            let key = RouteKey { table: TABLE_MAIN, dst: dst.parse().unwrap(), metric: 0 };
            let route =
                Route { via: None, scope: RouteScope::Link, metrics: RouteMetrics::default(), ..by_node.1.clone() };
            (key, route)
        };
        let is_adopted = |beside: (RouteKey, Route)| {
            ownership("10.4.7.21/32")
                .adopting([beside, by_node.clone()], &PerFamily::default())
                .owns(&by_node.0, &by_node.1)
        };
        assert!(is_adopted(on_link("10.4.7.0/24")));
        assert!(!is_adopted(on_link("10.4.8.0/24")));
        let others: [Difference; 4] = [
            ("table", |key, _| key.table = 255),
            ("link", |_, route| route.link = IfName::new("eth1").ok()),
            ("kind", |_, route| route.kind = RouteKind::Blackhole),
            ("router", |_, route| route.via = "10.4.7.1".parse().ok()),
        ];
        for (what, change) in others {
            let (mut key, mut route) = on_link("10.4.7.0/24");
            change(&mut key, &mut route);
            assert!(!is_adopted((key, route)), "{what}");
        }
    }
}
