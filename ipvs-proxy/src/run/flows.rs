//! Tracked connections that lead past what is served now: which they are ([`Checks`]), and who deletes them ([`sweep`]).
//!
//! A flow of UDP sticks to an endpoint as long as packets come, also when the endpoint is gone; a connection that began before its
//! frontend existed leads to no endpoint; one whose virtual server has gone leads nowhere; and one that began while our rules were away keeps its client's address, so that the answer
//! goes to the client past this node. All of them are deleted, so that their next packet begins anew. A balanced connection of TCP ends
//! by itself and is left alone.
//!
//! Invariants. This happens behind the pass that put the rows in place; a packet in between would make the stale connection again. A
//! frontend is noted until its connections have been read to the end. An endpoint that is about to serve is welcome before its first
//! packet, so no reading that goes on meanwhile takes its connections for stale.

pub(crate) mod sweep;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use netstate::{IpFamily, Protocol};

use crate::plan::frontend::Place;
use crate::plan::pods::PodsOfFamilies;
use crate::plan::route::Routes;
use crate::plan::{Frontend, FrontendKey};

/// A tracked connection as far as it can be stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tracked {
    /// Who opened it.
    pub(crate) client: SocketAddr,
    /// Where it was opened to.
    pub(crate) opened_to: SocketAddr,
    /// Who answers it.
    pub(crate) answered_by: SocketAddr,
    /// Where answers go.
    pub(crate) returns_to: SocketAddr,
    /// An answer has come through this node.
    pub(crate) answered: bool,
    /// nftables has chosen who answers; where it has not, and somebody was chosen, a virtual server has.
    pub(crate) translated: bool,
}

/// What decides whether the connections of a frontend are stale.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Check {
    /// Who may answer.
    pub(crate) answering: BTreeSet<SocketAddr>,
    /// Whose source address is replaced.
    pub(crate) masqueraded: Masqueraded,
    /// A virtual server stands.
    pub(crate) balanced: bool,
}

/// The classes of clients whose source address is replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Masqueraded {
    pod: bool,
    node: bool,
    outside: bool,
}

/// Which addresses are whose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Locals {
    /// This node's, without virtual ones.
    pub(crate) own: BTreeSet<IpAddr>,
    /// Those of them at which node ports are: the same port of another one is somebody else's.
    pub(crate) node_ports: BTreeSet<IpAddr>,
    /// How clients are known for Pods.
    pub(crate) pods: PodsOfFamilies,
}

/// The frontends whose connections are to be read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Checks {
    locals: Arc<Locals>,
    waiting: BTreeMap<FrontendKey, Check>,
    /// Those whose connections are being read.
    active: BTreeMap<FrontendKey, Check>,
}

impl Masqueraded {
    /// At a frontend.
    #[must_use]
    pub(crate) fn at(frontend: Option<&Frontend>) -> Self {
        let Some(Routes { pod, node, outside }) = frontend.map(|frontend| &frontend.routes) else {
            return Self::default();
        };
        Self { pod: pod.masquerade, node: node.masquerade, outside: outside.masquerade }
    }

    fn applies_to(self, flow: &Tracked, locals: &Locals) -> bool {
        let client = flow.client.ip();
        let is_pod = locals.pods.get(IpFamily::of(client)).as_ref().map_or(Some(false), |pods| pods.has(client));
        if is_pod == Some(true) {
            self.pod
        } else if locals.own.contains(&client) {
            // Its address may well be the one that replaces it.
            false
        } else if client == flow.opened_to.ip() {
            // This node took the virtual address for its own.
            self.node
        } else {
            // One that may be a Pod's is left as it is, unless a Pod's source is replaced as well.
            self.outside && (is_pod.is_some() || self.pod)
        }
    }
}

impl Check {
    fn is_stale(&self, protocol: Protocol, flow: &Tracked, locals: &Locals) -> bool {
        let may_be_led_past = protocol != Protocol::Tcp || flow.answered_by == flow.opened_to;
        let is_led_past = may_be_led_past && !self.answering.contains(&flow.answered_by);
        // One that is answered all the same found another way back, and another address would break it.
        let keeps_its_source = !flow.answered && flow.returns_to.ip() == flow.client.ip();
        let has_lost_its_server = !self.balanced && !flow.translated && flow.answered_by != flow.opened_to;
        is_led_past || has_lost_its_server || keeps_its_source && self.masqueraded.applies_to(flow, locals)
    }
}

impl Checks {
    /// Takes in frontends to check, each in place of an earlier check of it.
    pub(crate) fn put(&mut self, checks: BTreeMap<FrontendKey, Check>, locals: Locals) {
        self.locals = Arc::new(locals);
        self.waiting.extend(checks);
    }

    /// From now on `endpoint` may answer at `frontend`.
    pub(crate) fn welcome(&mut self, frontend: &FrontendKey, endpoint: SocketAddr) {
        for check in [self.waiting.get_mut(frontend), self.active.get_mut(frontend)].into_iter().flatten() {
            check.answering.insert(endpoint);
        }
    }

    /// True when nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Begins with what waits: the frontends of each family and protocol.
    fn begin(&mut self) -> BTreeMap<(IpFamily, Protocol), Vec<FrontendKey>> {
        self.active = std::mem::take(&mut self.waiting);
        let mut kinds: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for key in self.active.keys() {
            kinds.entry((key.family(), key.protocol)).or_default().push(*key);
        }
        kinds
    }

    /// The connections of these frontends have been read to the end.
    fn done(&mut self, frontends: &[FrontendKey]) {
        frontends.iter().for_each(|frontend| drop(self.active.remove(frontend)));
    }

    /// What was begun and is not done waits again.
    fn again(&mut self) {
        for (frontend, check) in std::mem::take(&mut self.active) {
            self.waiting.entry(frontend).or_insert(check);
        }
    }

    /// Whether a connection of `protocol` is stale by what is known now.
    fn is_stale(&self, protocol: Protocol, flow: &Tracked) -> bool {
        let (addr, port) = (flow.opened_to.ip(), flow.opened_to.port());
        let at = |place| FrontendKey { protocol, place, port };
        let address = at(Place::Address(addr));
        let node = self.locals.node_ports.contains(&addr).then(|| at(Place::AnyNode(IpFamily::of(addr))));
        let known = |key: &FrontendKey| self.waiting.get(key).or_else(|| self.active.get(key));
        let check = known(&address).or_else(|| known(&node?));
        check.is_some_and(|check| check.is_stale(protocol, flow, &self.locals))
    }
}

#[cfg(test)]
mod tests {
    use netstate::family::PerFamily;

    use super::*;
    use crate::plan::pods::Pods;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// A connection that is masqueraded and answered.
    fn tracked(opened_to: SocketAddr, answered_by: SocketAddr) -> Tracked {
        let (client, returns_to) = (address("10.4.7.200:999"), address("10.4.7.21:40000"));
        Tracked { client, opened_to, answered_by, returns_to, answered: true, translated: true }
    }

    fn frontend(protocol: Protocol, place: Place, port: u16) -> FrontendKey {
        FrontendKey { protocol, place, port }
    }

    fn pods() -> PodsOfFamilies {
        Pods::inside(PerFamily::only(IpFamily::V4, "172.7.0.0/16".parse().unwrap()))
    }

    fn checks(protocol: Protocol, answering: &[SocketAddr], masqueraded: Masqueraded) -> Checks {
        let check = Check { answering: answering.iter().copied().collect(), masqueraded, balanced: false };
        let mut checks = Checks::default();
        let own = BTreeSet::from([[10, 4, 7, 21].into(), [10, 9, 9, 21].into()]);
        let locals = Locals { own, node_ports: BTreeSet::from([[10, 4, 7, 21].into()]), pods: pods() };
        let at_vip = frontend(protocol, Place::Address([192, 168, 0, 53].into()), 53);
        let at_node = frontend(protocol, Place::AnyNode(IpFamily::V4), 30_053);
        checks.put(BTreeMap::from([(at_vip, check.clone()), (at_node, check)]), locals);
        checks
    }

    #[test]
    fn udp_is_stale_unless_a_server_of_now_answers_and_tcp_when_nobody_was_chosen() {
        let (vip, pod, gone) = (address("192.168.0.53:53"), address("172.7.21.2:53"), address("172.7.21.9:53"));
        let stale =
            |protocol, to, by| checks(protocol, &[pod], Masqueraded::default()).is_stale(protocol, &tracked(to, by));
        assert_eq!([pod, gone, vip].map(|by| stale(Protocol::Udp, vip, by)), [false, true, true]);
        assert_eq!([pod, gone, vip].map(|by| stale(Protocol::Tcp, vip, by)), [false, false, true]);
        assert!(!stale(Protocol::Udp, address("10.4.7.21:8472"), gone), "not ours");
        let node_port = address("10.4.7.21:30053");
        assert_eq!([pod, gone, node_port].map(|by| stale(Protocol::Udp, node_port, by)), [false, true, true]);
        assert!(!stale(Protocol::Udp, address("10.4.7.99:30053"), gone), "somebody else's address has the same port");
        let elsewhere = address("10.9.9.21:30053");
        for protocol in Protocol::ALL {
            assert!(
                !stale(protocol, elsewhere, elsewhere),
                "{protocol}: a process of this node at an address without node ports"
            );
            assert!(!stale(protocol, elsewhere, gone), "{protocol}: a host port there");
        }
    }

    #[test]
    fn every_flow_of_a_frontend_without_endpoints_is_stale() {
        let (vip, gone) = (address("192.168.0.53:53"), address("172.7.21.9:53"));
        let checks = checks(Protocol::Udp, &[], Masqueraded::default());
        assert!(checks.is_stale(Protocol::Udp, &tracked(vip, gone)));
    }

    #[test]
    fn a_connection_that_should_be_masqueraded_and_keeps_its_source_is_stale_until_it_is_answered() {
        let (vip, pod) = (address("192.168.0.53:53"), address("172.7.21.2:53"));
        let flow = |client: &str, answered| {
            let client = address(client);
            Tracked { client, returns_to: client, answered, ..tracked(vip, pod) }
        };
        let all = Masqueraded { pod: true, node: true, outside: true };
        let as_usual = Masqueraded { pod: false, ..all };
        let clients = ["10.4.7.200:999", "192.168.0.53:999", "172.7.21.5:999", "10.4.7.21:999"];
        for protocol in Protocol::ALL {
            let stale = |masqueraded, answered| {
                let checks = checks(protocol, &[pod], masqueraded);
                clients.map(|client| checks.is_stale(protocol, &flow(client, answered)))
            };
            assert_eq!(stale(as_usual, false), [true, true, false, false], "{protocol}");
            assert_eq!(stale(all, false), [true, true, true, false], "{protocol}");
            assert_eq!(stale(all, true), [false; 4], "{protocol}");
            assert_eq!(stale(Masqueraded::default(), false), [false; 4], "{protocol}");
            let node = Masqueraded { node: true, ..Masqueraded::default() };
            assert_eq!(stale(node, false), [false, true, false, false], "{protocol}");
            let masqueraded = Tracked { answered: false, ..tracked(vip, pod) };
            assert!(!checks(protocol, &[pod], all).is_stale(protocol, &masqueraded), "{protocol}: on its way");
        }
    }

    #[test]
    fn a_client_that_may_be_a_pod_is_left_as_it_is_unless_pods_are_masqueraded_too() {
        let (vip, pod, client) = (address("192.168.0.53:53"), address("172.7.21.2:53"), address("10.4.7.200:999"));
        let flow = Tracked { client, returns_to: client, answered: false, ..tracked(vip, pod) };
        let outside = Masqueraded { outside: true, ..Masqueraded::default() };
        for (masqueraded, known, unknown) in
            [(outside, true, false), (Masqueraded { pod: true, ..outside }, true, true)]
        {
            let mut checks = checks(Protocol::Tcp, &[pod], masqueraded);
            assert_eq!(checks.is_stale(Protocol::Tcp, &flow), known, "{masqueraded:?}");
            let pods = PerFamily::only(IpFamily::V4, Pods::From("cbr0".parse().unwrap()));
            checks.locals = Arc::new(Locals { pods, ..Locals::clone(&checks.locals) });
            assert_eq!(checks.is_stale(Protocol::Tcp, &flow), unknown, "{masqueraded:?}, by the interface");
        }
    }

    /// A process of the node whose own address and port the Service has, as an ingress controller's.
    #[test]
    fn a_connection_that_an_endpoint_answers_at_the_very_address_and_port_is_none_of_nobodys() {
        let at = address("192.168.0.53:53");
        for protocol in Protocol::ALL {
            let flow = Tracked { translated: false, ..tracked(at, at) };
            let stale = |answering: &[SocketAddr]| {
                checks(protocol, answering, Masqueraded::default()).is_stale(protocol, &flow)
            };
            assert_eq!([stale(&[at]), stale(&[])], [false, true], "{protocol}");
        }
    }

    #[test]
    fn a_connection_that_ipvs_carried_is_stale_when_its_virtual_server_is_gone() {
        let (vip, pod) = (address("192.168.0.53:53"), address("172.7.21.2:53"));
        for protocol in Protocol::ALL {
            let mut checks = checks(protocol, &[pod], Masqueraded::default());
            let flow = |translated| Tracked { translated, ..tracked(vip, pod) };
            assert_eq!([true, false].map(|by_nft| checks.is_stale(protocol, &flow(by_nft))), [false, true]);
            checks.waiting.values_mut().for_each(|check| check.balanced = true);
            assert_eq!([true, false].map(|by_nft| checks.is_stale(protocol, &flow(by_nft))), [false, false]);
        }
    }

    #[test]
    fn an_endpoint_that_comes_while_connections_are_read_loses_none() {
        let (vip, pod, new) = (address("192.168.0.53:53"), address("172.7.21.2:53"), address("172.7.21.3:53"));
        let mut checks = checks(Protocol::Udp, &[pod], Masqueraded::default());
        let at_vip = frontend(Protocol::Udp, Place::Address(vip.ip()), 53);
        assert_eq!(checks.begin().len(), 1);
        assert!(checks.is_stale(Protocol::Udp, &tracked(vip, new)));
        checks.welcome(&at_vip, new);
        assert!(!checks.is_stale(Protocol::Udp, &tracked(vip, new)));
        // What failed waits again, and what came meanwhile is not overwritten.
        checks.put(BTreeMap::from([(at_vip, Check::default())]), Locals::default());
        checks.again();
        assert!(checks.is_stale(Protocol::Udp, &tracked(vip, pod)));
    }
}
