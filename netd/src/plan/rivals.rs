//! Routes of others that take packets of Pods elsewhere: in front of a route of ours, or of this node's own Pods.
//!
//! Nobody's route is touched for that; an operator should know. Invariant: what links and Pods have of their own is not
//! in front of anything.

use std::collections::{BTreeMap, BTreeSet};

use netstate::{Prefix, Route, RouteKey, RouteKind};

/// RTPROT_KERNEL (include/uapi/linux/rtnetlink.h).
const KERNEL: u8 = 2;

/// The routes of others among `routes`, which are in the kernel's order, without those behind an own one of the same
/// destination and metric: the kernel takes the first.
#[must_use]
pub(crate) fn foreign(
    mut routes: Vec<(RouteKey, Route)>,
    owns: impl Fn(&RouteKey, &Route) -> bool,
) -> Vec<(RouteKey, Route)> {
    let mut ours = BTreeSet::new();
    routes.retain(|(key, route)| {
        let own = owns(key, route);
        if own {
            ours.insert(*key);
        }
        !own && !ours.contains(key)
    });
    routes
}

/// What `foreign` routes of the main table take from `desired` ones and from the Pods in the subnets `own`.
#[must_use]
pub(crate) fn in_front(
    own: &[Prefix],
    desired: &BTreeMap<RouteKey, Route>,
    foreign: &[(RouteKey, Route)],
) -> Vec<String> {
    let leads_away = |route: &Route| route.kind != RouteKind::Unicast || route.via.is_some() || route.link.is_none();
    let text = |(key, route): &(RouteKey, Route)| {
        if route.protocol != KERNEL && own.iter().any(|own| own.covers(&key.dst)) && leads_away(route) {
            return Some(format!("{key} {route}, of somebody else, takes this node's own Pods away"));
        }
        let taken = desired.keys().find(|ours| {
            let as_long = ours.dst == key.dst && key.metric <= ours.metric;
            as_long || (ours.dst != key.dst && ours.dst.covers(&key.dst))
        });
        taken.map(|ours| format!("{key} {route}, of somebody else, is in front of netd's to {}", ours.dst))
    };
    foreign.iter().filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(dst: &str, metric: u32, via: Option<&str>, link: Option<&str>, protocol: u8) -> (RouteKey, Route) {
        let (key, route) =
            crate::plan::route(dst.parse().unwrap(), "10.4.7.22".parse().unwrap(), &"eth0".parse().unwrap(), false);
        let via = via.map(|via| via.parse().unwrap());
        (RouteKey { metric, ..key }, Route { via, link: link.map(|link| link.parse().unwrap()), protocol, ..route })
    }

    #[test]
    fn only_what_takes_packets_away_is_in_front() {
        let own = ["172.7.21.0/24".parse().unwrap()];
        let desired = [row("172.7.22.0/24", 1790, Some("172.7.22.0"), Some("flannel.1"), 121)].into();
        let reported = |foreign| in_front(&own, &desired, &[foreign]).len();
        let (hop, eth0) = (Some("10.4.7.200"), Some("eth0"));
        assert_eq!(reported(row("172.7.22.0/24", 5, hop, eth0, 4)), 1);
        assert_eq!(reported(row("172.7.22.0/24", 0, None, None, 3)), 1, "several next hops");
        assert_eq!(reported(row("172.7.22.7/32", 9999, hop, eth0, 3)), 1, "a longer destination");
        assert_eq!(reported(row("172.7.22.0/24", 1790, hop, eth0, 3)), 1, "the same metric");
        assert_eq!(reported(row("172.7.22.0/24", 1791, hop, eth0, 3)), 0, "behind ours");
        assert_eq!(reported(row("172.7.0.0/16", 0, hop, eth0, 3)), 0, "a shorter destination");
        assert_eq!(reported(row("172.7.23.0/24", 0, hop, eth0, 3)), 0, "no node's");
        assert_eq!(reported(row("172.7.21.0/24", 0, hop, eth0, 4)), 1, "the own Pods");
        assert_eq!(reported(row("172.7.21.0/24", 0, None, Some("cbr0"), 2)), 0, "the bridge's");
        assert_eq!(reported(row("172.7.21.7/32", 0, None, Some("veth1"), 3)), 0, "a Pod's");
    }

    #[test]
    fn of_routes_with_one_metric_the_first_counts() {
        let own = row("172.7.22.0/24", 1790, Some("172.7.22.0"), Some("flannel.1"), 121);
        let theirs = row("172.7.22.0/24", 1790, Some("10.4.7.200"), Some("eth0"), 3);
        let beside = row("172.7.22.0/24", 5, Some("10.4.7.200"), Some("eth0"), 3);
        let found = |routes: &[&(RouteKey, Route)]| {
            foreign(routes.iter().copied().cloned().collect(), |_, route| route.protocol == 121)
        };
        assert_eq!(found(&[&theirs, &own]), vec![theirs.clone()]);
        assert_eq!(found(&[&own, &theirs, &beside]), vec![beside.clone()]);
    }
}
