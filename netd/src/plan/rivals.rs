//! Routes of others that take packets of Pods elsewhere: in front of a route of ours, or of this node's own Pods.
//!
//! Nobody's route is touched for that; an operator should know. Invariant: what links and Pods have of their own is not
//! in front of anything.

use std::collections::BTreeMap;

use netstate::{Prefix, Route, RouteKey, RouteKind};

/// RTPROT_KERNEL (include/uapi/linux/rtnetlink.h).
const KERNEL: u8 = 2;

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
        // One that drops is behind the Pods' own routes on purpose.
        let mut leading = desired.iter().filter(|(_, route)| route.kind == RouteKind::Unicast).map(|(key, _)| key);
        let taken = leading.find(|ours| {
            let as_long = ours.dst == key.dst && key.metric <= ours.metric;
            as_long || (ours.dst != key.dst && ours.dst.covers(&key.dst))
        });
        taken.map(|ours| format!("{key} {route}, of somebody else, is in front of netd's to {}", ours.dst))
    };
    foreign.iter().filter_map(text).collect()
}

/// What is wrong when the kernel takes `entry` to the Pods behind `ours`, if something is: a route in another table that a
/// rule prefers, one that only looks like ours.
#[must_use]
pub(crate) fn taken(ours: (&RouteKey, &Route), entry: Option<&(RouteKey, Route)>) -> Option<String> {
    let (key, route) = ours;
    let dst = key.dst;
    if route.kind != RouteKind::Unicast {
        return None;
    }
    match entry {
        None => Some(format!("{dst} cannot be reached: a rule or a route of somebody else's is in front of netd's")),
        // Not in place, which is the table's to say.
        Some((found, _)) if !dst.covers(&found.dst) && found.table == key.table => None,
        Some((found, other)) if found != key => {
            let table = found.table;
            Some(format!("{found} {other}, of somebody else in table {table}, is in front of netd's to {dst}"))
        }
        Some((_, found)) if (found.via, &found.link) != (route.via, &route.link) => {
            Some(format!("{dst} {found}, which only looks like netd's, is in front of it"))
        }
        Some(_) => None,
    }
}

/// What is wrong with the packets of this node itself and with those of its Pods, in one sentence. `of_pods` is `None` while
/// there are no Pods to ask for.
#[must_use]
pub(crate) fn for_whom(own: Option<String>, of_pods: Option<Option<String>>) -> Option<String> {
    match (own, of_pods) {
        (own, None) => own,
        (Some(own), Some(Some(pods))) if own == pods => Some(own),
        (_, Some(Some(pods))) => Some(format!("{pods}, for packets of this node's Pods")),
        (own, Some(None)) => own.map(|own| format!("{own}, for packets of this node itself")),
    }
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
    fn what_the_kernel_takes_instead_of_ours_is_named() {
        let ours = row("172.7.22.0/24", 1790, Some("172.7.22.0"), Some("flannel.1"), 121);
        let reported = |entry: Option<(RouteKey, Route)>| taken((&ours.0, &ours.1), entry.as_ref());
        assert_eq!(reported(Some(ours.clone())), None);
        let (forged_key, mut forged) = ours.clone();
        forged.via = Some("10.4.7.200".parse().unwrap());
        assert!(reported(Some((forged_key, forged))).unwrap().contains("only looks like netd's"));
        let (mut key, route) = row("0.0.0.0/0", 0, Some("10.4.7.200"), Some("eth0"), 3);
        assert_eq!(reported(Some((key, route.clone()))), None, "ours is missing");
        key.table = 77;
        assert!(reported(Some((key, route))).unwrap().contains("table 77"));
        assert!(reported(None).unwrap().contains("cannot be reached"));
    }

    #[test]
    fn what_only_some_packets_meet_is_said_of_those() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(for_whom(text("wrong"), None), text("wrong"), "no Pods yet");
        assert_eq!(for_whom(text("wrong"), Some(text("wrong"))), text("wrong"));
        assert_eq!(for_whom(text("other"), Some(text("wrong"))), text("wrong, for packets of this node's Pods"));
        assert_eq!(for_whom(None, Some(text("wrong"))), text("wrong, for packets of this node's Pods"));
        assert_eq!(for_whom(text("wrong"), Some(None)), text("wrong, for packets of this node itself"));
        assert_eq!(for_whom(None, Some(None)), None);
    }
}
