//! `Ways`: what this host's kernel says of the other nodes' addresses.
//!
//! Invariant: what was not asked is not known, and counts as beyond a router: a tunnel reaches it either way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netstate::{IfName, Route, RouteKind};

/// What the kernel says of addresses: the link of those that are reached without a router.
pub(crate) type Answers = BTreeMap<IpAddr, Option<IfName>>;

/// Addresses that are special to this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ways {
    /// Addresses that packets reach without a router, with the link that they leave by.
    pub direct: BTreeMap<IpAddr, IfName>,
    /// This host's own addresses, with their links.
    pub own: BTreeMap<IpAddr, IfName>,
    /// The VRF of the interface towards the other nodes: what comes in by that meets the VRF's routing table first, where
    /// this node's Pods are not, so nothing is direct.
    pub vrf: Option<IfName>,
}

impl Ways {
    /// The addresses that `other` says something else of.
    #[must_use]
    pub(crate) fn differing(&self, other: &Self) -> BTreeSet<IpAddr> {
        let one = |have: &BTreeMap<IpAddr, IfName>, want: &BTreeMap<IpAddr, IfName>| -> BTreeSet<IpAddr> {
            let keys = have.keys().chain(want.keys());
            keys.filter(|addr| have.get(addr) != want.get(addr)).copied().collect()
        };
        one(&self.direct, &other.direct).into_iter().chain(one(&self.own, &other.own)).collect()
    }

    /// Takes `answers` in, whatever else is known. Returns what was said of these addresses before.
    pub(crate) fn learn(&mut self, answers: Answers) -> Answers {
        let mut learn = |(addr, link): (IpAddr, Option<IfName>)| {
            let before = match link {
                Some(link) => self.direct.insert(addr, link),
                None => self.direct.remove(&addr),
            };
            (addr, before)
        };
        answers.into_iter().map(&mut learn).collect()
    }
}

/// The link by which a packet to `route`'s destination leaves without a router, if it does. `tunnels` are this program's own
/// devices.
#[must_use]
pub(crate) fn direct(route: &Route, tunnels: &BTreeSet<IfName>) -> Option<IfName> {
    let link = route.link.as_ref().filter(|link| !tunnels.contains(*link))?;
    (route.kind == RouteKind::Unicast && route.via.is_none()).then(|| link.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use netstate::{RouteMetrics, RouteScope};

    #[test]
    fn way_without_a_router_over_a_link_of_the_host_is_direct() {
        let route = |kind, via: Option<&str>, link: &str| Route {
            kind,
            via: via.map(|via| via.parse().unwrap()),
            link: Some(link.parse().unwrap()),
            onlink: false,
            src: None,
            scope: RouteScope::Universe,
            protocol: 0,
            metrics: RouteMetrics::default(),
        };
        let tunnels = BTreeSet::from(["flannel.1".parse().unwrap()]);
        let direct = |route: &Route| direct(route, &tunnels).map(|link| link.to_string());
        assert_eq!(direct(&route(RouteKind::Unicast, None, "eth0")).as_deref(), Some("eth0"));
        assert_eq!(direct(&route(RouteKind::Unicast, Some("10.4.7.1"), "eth0")), None);
        assert_eq!(direct(&route(RouteKind::Unicast, None, "flannel.1")), None, "a tunnel through itself");
        assert_eq!(direct(&route(RouteKind::Local, None, "lo")), None, "this host");
    }

    #[test]
    fn what_is_learned_can_be_taken_back() {
        let [eth0, eth1]: [IfName; 2] = ["eth0", "eth1"].map(|name| name.parse().unwrap());
        let addr = |n: u8| IpAddr::from([10, 4, 7, n]);
        let before = Ways { direct: [(addr(1), eth0.clone()), (addr(2), eth0)].into(), ..Ways::default() };
        let mut ways = before.clone();
        let answers: Answers = [(addr(1), Some(eth1.clone())), (addr(2), None), (addr(3), Some(eth1.clone()))].into();
        let said = ways.learn(answers.clone());
        assert_eq!(ways.direct, [(addr(1), eth1.clone()), (addr(3), eth1)].into());
        assert_eq!(ways.learn(said), answers);
        assert_eq!(ways, before);
    }

    #[test]
    fn only_addresses_with_another_answer_differ() {
        let link = |name: &str| name.parse::<IfName>().unwrap();
        let addr = |n: u8| IpAddr::from([10, 4, 7, n]);
        let before = Ways {
            direct: [(addr(1), link("eth0")), (addr(2), link("eth0"))].into(),
            own: [(addr(9), link("eth0"))].into(),
            ..Ways::default()
        };
        let after = Ways {
            direct: [(addr(1), link("eth0")), (addr(2), link("eth1"))].into(),
            own: [(addr(8), link("eth0"))].into(),
            ..Ways::default()
        };
        assert_eq!(before.differing(&after), [addr(2), addr(8), addr(9)].into());
        assert!(before.differing(&before).is_empty());
    }
}
