//! `Held`: node ports at which a process of this host waits for clients: those of other hosts reach the Service instead. A process at an
//! address without node ports, or of a family in which no Service has the port, has its clients.
//!
//! Invariant: the thread that plans writes down which ports there are and reads what was found; the sockets are read elsewhere, once a
//! minute and when the ports change, and only where there are node ports.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use daemon::slot::locked;
use kernel::listener::{self, Listener};
use netstate::{IpFamily, Protocol};
use tokio::sync::Notify;

use crate::object::ObjectName;
use crate::plan::Claims;
use crate::plan::here::hidden;

/// Time between two readings of the sockets.
const PERIOD: Duration = Duration::from_secs(60);

/// Node ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct NodePorts {
    /// Whose each is.
    ports: BTreeMap<(IpFamily, Protocol, u16), ObjectName>,
    /// Where they are.
    addresses: BTreeSet<IpAddr>,
}

/// See the module's text; clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    ports: Mutex<NodePorts>,
    found: Mutex<Vec<HeldPort>>,
    changed: Notify,
}

/// A node port at which a process waits for clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HeldPort {
    /// Whose node port it is.
    pub(super) service: ObjectName,
    protocol: Protocol,
    at: SocketAddr,
}

impl fmt::Display for HeldPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, at, .. } = self;
        write!(
            f,
            "a process of this host listens at {at}/{protocol}, the node port of this Service, whose clients from elsewhere it does not \
             get; give one of them another port"
        )
    }
}

impl Held {
    /// Takes in which node ports there are, and at which addresses.
    pub(super) fn set(&self, claims: &Claims, addresses: &BTreeSet<IpAddr>) {
        let ports = claims.node_ports().map(|(key, service)| ((key.family(), key.protocol, key.port), service.clone()));
        let ports = NodePorts { ports: ports.collect(), addresses: addresses.clone() };
        let differ = *locked(&self.shared.ports) != ports;
        if differ {
            *locked(&self.shared.ports) = ports;
            self.shared.changed.notify_one();
        }
    }

    /// What was found last.
    pub(super) fn found(&self) -> Vec<HeldPort> {
        locked(&self.shared.found).clone()
    }

    /// Reads the sockets again and again, for as long as the future is polled.
    pub(super) async fn follow(self) {
        loop {
            let ports = locked(&self.shared.ports).clone();
            let found = if ports.ports.is_empty() {
                Vec::new()
            } else {
                // Thousands of connections are a long text.
                tokio::task::spawn_blocking(move || held(&ports, listener::listeners())).await.unwrap_or_default()
            };
            *locked(&self.shared.found) = found;
            tokio::select! {
                () = tokio::time::sleep(PERIOD) => {}
                () = self.shared.changed.notified() => {}
            }
        }
    }
}

/// The first listener at each of the ports.
fn held(ports: &NodePorts, listeners: impl IntoIterator<Item = Listener>) -> Vec<HeldPort> {
    let mut found: BTreeMap<(Protocol, u16), HeldPort> = BTreeMap::new();
    for Listener { protocol, at } in listeners {
        let of = |family: &IpFamily| ports.ports.get(&(*family, protocol, at.port()));
        if let Some(service) = hidden(at.ip(), &ports.addresses).iter().find_map(of) {
            found.entry((protocol, at.port())).or_insert_with(|| HeldPort { service: service.clone(), protocol, at });
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(protocol: Protocol, at: &str) -> Listener {
        Listener { protocol, at: at.parse().unwrap() }
    }

    fn node_ports(ports: &[(IpFamily, Protocol, u16)]) -> NodePorts {
        let addresses = ["10.4.7.21", "fd00:4:7::21"].map(|addr| addr.parse().unwrap()).into();
        NodePorts { ports: ports.iter().map(|port| (*port, ObjectName::new("shop", "web"))).collect(), addresses }
    }

    #[test]
    fn a_port_is_held_by_a_listener_of_its_protocol_that_is_not_at_loopback() {
        let ports = node_ports(&[(IpFamily::V4, Protocol::Tcp, 30_080), (IpFamily::V4, Protocol::Udp, 30_053)]);
        let found = held(
            &ports,
            [
                listener(Protocol::Tcp, "127.0.0.1:30080"),
                listener(Protocol::Udp, "0.0.0.0:30080"),
                listener(Protocol::Tcp, "0.0.0.0:30053"),
                listener(Protocol::Tcp, "10.4.7.21:30080"),
                listener(Protocol::Tcp, "[::]:30080"),
            ],
        );
        let texts: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert!(texts.len() == 1 && texts[0].contains("listens at 10.4.7.21:30080/tcp"), "{texts:?}");
    }

    #[test]
    fn a_listener_where_the_service_has_no_clients_holds_no_port() {
        for (family, at, is_held) in [
            (IpFamily::V4, "0.0.0.0:30080", true),
            (IpFamily::V4, "[::]:30080", true),
            (IpFamily::V4, "10.4.7.121:30080", false),
            (IpFamily::V4, "[fd00:4:7::21]:30080", false),
            (IpFamily::V6, "[::]:30080", true),
            (IpFamily::V6, "[fd00:4:7::21]:30080", true),
            (IpFamily::V6, "[fe80::1]:30080", false),
            (IpFamily::V6, "[::1]:30080", false),
            (IpFamily::V6, "0.0.0.0:30080", false),
            (IpFamily::V6, "10.4.7.21:30080", false),
        ] {
            let found = held(&node_ports(&[(family, Protocol::Tcp, 30_080)]), [listener(Protocol::Tcp, at)]);
            assert_eq!(found.len(), usize::from(is_held), "{family} {at}");
        }
    }
}
