//! `Pending`: virtual servers whose tracked connections may lead past the servers as they are now.
//!
//! A flow of UDP sticks to an endpoint as long as packets come, also when the endpoint is gone; and a connection that began
//! before its virtual server existed is never balanced. Both are deleted, so that their next packet begins anew. A balanced
//! connection of TCP ends by itself and is left alone.
//!
//! Invariant: this happens behind the pass that put the servers in place; a packet in between would make the stale
//! connection again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use netstate::Protocol;
use netstate::ipvs::{Row, RowKey, VirtualServerKey};
use reconcile::Rows;

use super::targets::Flows;
use crate::dataplane::ipvs::reals_of;

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub(super) struct Pending(BTreeSet<VirtualServerKey>);

/// Who may answer at each address and port.
type Answering = BTreeMap<SocketAddr, BTreeSet<SocketAddr>>;

impl Pending {
    /// Notes that what stands behind `service` has changed.
    pub(super) fn note(&mut self, service: VirtualServerKey) {
        self.0.insert(service);
    }

    /// Deletes the stale connections of what was noted; `rows` are the servers as they are now. One listing of the
    /// connections per protocol, however many virtual servers changed.
    pub(super) fn settle(&mut self, rows: &Rows<RowKey, Row>, flows: &mut dyn Flows) {
        let mut by_protocol: BTreeMap<Protocol, Answering> = BTreeMap::new();
        for service in std::mem::take(&mut self.0) {
            let reals = reals_of(rows, service).map(|real| SocketAddr::new(real.addr, real.port)).collect();
            by_protocol.entry(service.protocol).or_default().insert(SocketAddr::new(service.addr, service.port), reals);
        }
        for (protocol, answering) in by_protocol {
            let stale = |to, by| is_stale(protocol, &answering, to, by);
            match flows.forget(protocol, &stale) {
                Ok(0) => {}
                Ok(count) => tracing::info!(%protocol, count, "stale connections deleted"),
                Err(error) => {
                    tracing::warn!(error = %kernel::Chain(&error), "stale connections stay until they time out")
                }
            }
        }
    }
}

fn is_stale(protocol: Protocol, answering: &Answering, opened_to: SocketAddr, answered_by: SocketAddr) -> bool {
    match answering.get(&opened_to) {
        Some(_) if protocol == Protocol::Tcp => answered_by == opened_to,
        Some(reals) => !reals.contains(&answered_by),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udp_is_stale_unless_a_server_of_now_answers_and_tcp_when_nobody_was_chosen() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (vip, pod, gone) = (address("192.168.0.53:53"), address("172.7.21.2:53"), address("172.7.21.9:53"));
        let answering = Answering::from([(vip, BTreeSet::from([pod]))]);
        let stale = |protocol, by| is_stale(protocol, &answering, vip, by);
        assert_eq!([pod, gone, vip].map(|by| stale(Protocol::Udp, by)), [false, true, true]);
        assert_eq!([pod, gone, vip].map(|by| stale(Protocol::Tcp, by)), [false, false, true]);
        assert!(!is_stale(Protocol::Udp, &answering, address("10.4.7.21:8472"), gone), "not ours");
    }
}
