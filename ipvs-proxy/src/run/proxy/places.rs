//! Which port of which Service something was counted for.

use std::net::SocketAddr;

use super::Proxy;
use crate::dataplane::ipvs;
use crate::object::service::ServicePort;
use crate::plan::FrontendKey;
use crate::plan::frontend::Place;
use crate::run::traffic::{Counter, ServicePlace};

impl Proxy {
    /// The port of a Service that is served where `counter` counts; `None` where nobody is.
    #[must_use]
    pub(crate) fn place_of(&self, counter: Counter) -> Option<ServicePlace> {
        let (key, at) = match counter {
            Counter::Frontend(key) => (key, address(&key)),
            Counter::Server(server) => {
                (ipvs::frontend(&server, &self.here.node_port_addresses), SocketAddr::new(server.addr, server.port))
            }
        };
        let frontend = self.claims.served(&key)?;
        let service = self.view.service(&frontend.owner);
        let is_this = |port: &&ServicePort| {
            let number = match key.place {
                Place::Address(_) => Some(port.port),
                Place::AnyNode(_) => port.node_port,
            };
            port.protocol == key.protocol && number == Some(key.port)
        };
        // A Service that cannot be read goes on as it was, without the names of its ports.
        let port = service.and_then(|service| service.ports.iter().find(is_this));
        Some(ServicePlace {
            service: frontend.owner.clone(),
            port_name: port.map(|port| port.name.clone()).unwrap_or_default(),
            protocol: key.protocol,
            kind: frontend.kind,
            at,
        })
    }
}

fn address(key: &FrontendKey) -> SocketAddr {
    match key.place {
        Place::Address(addr) => SocketAddr::new(addr, key.port),
        Place::AnyNode(family) => SocketAddr::new(family.unspecified(), key.port),
    }
}
