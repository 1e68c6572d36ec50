//! `Pending`: frontends whose tracked connections may lead past the servers as they are now.
//!
//! A flow of UDP sticks to an endpoint as long as packets come, also when the endpoint is gone; and a connection that began
//! before its frontend existed leads to no endpoint. Both are deleted, so that their next packet begins anew. A balanced
//! connection of TCP ends by itself and is left alone.
//!
//! Invariant: this happens behind the pass that put the servers in place; a packet in between would make the stale
//! connection again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use netstate::{IpFamily, Protocol};

use super::targets::Flows;
use crate::plan::FrontendKey;
use crate::plan::frontend::Place;

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub(super) struct Pending(BTreeSet<FrontendKey>);

/// Endpoints that may answer.
type Answering = BTreeSet<SocketAddr>;

/// Who may answer at frontends of one family and protocol.
#[derive(Debug, Default)]
struct Frontends {
    at_addresses: BTreeMap<SocketAddr, Answering>,
    at_any_address: BTreeMap<u16, Answering>,
}

impl Pending {
    /// Notes that what stands behind `frontend` has changed.
    pub(super) fn note(&mut self, frontend: FrontendKey) {
        self.0.insert(frontend);
    }

    /// Deletes the stale connections of what was noted; `answering` says who answers at a frontend now, `own` are this node's
    /// addresses. One listing of the connections per family and protocol, however many frontends changed.
    pub(super) fn settle(
        &mut self,
        answering: impl Fn(&FrontendKey) -> Answering,
        own: &BTreeSet<IpAddr>,
        flows: &mut dyn Flows,
    ) {
        let mut noted: BTreeMap<(IpFamily, Protocol), Frontends> = BTreeMap::new();
        for frontend in std::mem::take(&mut self.0) {
            let of_kind = noted.entry((frontend.family(), frontend.protocol)).or_default();
            let endpoints = answering(&frontend);
            match frontend.place {
                Place::Address(addr) => of_kind.at_addresses.insert(SocketAddr::new(addr, frontend.port), endpoints),
                Place::AnyNode(_) => of_kind.at_any_address.insert(frontend.port, endpoints),
            };
        }
        for ((family, protocol), frontends) in noted {
            let stale = |to: SocketAddr, by| frontends.is_stale(protocol, own.contains(&to.ip()), to, by);
            match flows.forget(family, protocol, &stale) {
                Ok(0) => {}
                Ok(count) => tracing::info!(%protocol, count, "stale connections deleted"),
                Err(error) => {
                    tracing::warn!(error = %kernel::Chain(&error), "stale connections stay until they time out")
                }
            }
        }
    }
}

impl Frontends {
    /// Whether a connection is stale; `to_node`: it was opened to an address of this node.
    fn is_stale(&self, protocol: Protocol, to_node: bool, opened_to: SocketAddr, answered_by: SocketAddr) -> bool {
        // The same port of somebody else's address is none of ours.
        let at_node = self.at_any_address.get(&opened_to.port()).filter(|_| to_node);
        match self.at_addresses.get(&opened_to).or(at_node) {
            Some(_) if protocol == Protocol::Tcp => answered_by == opened_to,
            Some(endpoints) => !endpoints.contains(&answered_by),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udp_is_stale_unless_a_server_of_now_answers_and_tcp_when_nobody_was_chosen() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (vip, pod, gone) = (address("192.168.0.53:53"), address("172.7.21.2:53"), address("172.7.21.9:53"));
        let frontends = Frontends {
            at_addresses: BTreeMap::from([(vip, Answering::from([pod]))]),
            at_any_address: BTreeMap::from([(30_053, Answering::from([pod]))]),
        };
        let stale = |protocol, by| frontends.is_stale(protocol, false, vip, by);
        assert_eq!([pod, gone, vip].map(|by| stale(Protocol::Udp, by)), [false, true, true]);
        assert_eq!([pod, gone, vip].map(|by| stale(Protocol::Tcp, by)), [false, false, true]);
        let elsewhere = address("10.4.7.21:8472");
        assert!(!frontends.is_stale(Protocol::Udp, true, elsewhere, gone), "not ours");
        let node_port = address("10.4.7.21:30053");
        let stale = |to_node, by| frontends.is_stale(Protocol::Udp, to_node, node_port, by);
        assert_eq!([pod, gone, node_port].map(|by| stale(true, by)), [false, true, true]);
        assert!(!stale(false, gone), "somebody else's address has the same port");
    }
}
