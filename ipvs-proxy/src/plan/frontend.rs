//! `Frontend`: an address and port that clients connect to on behalf of a Service.
//!
//! One Service port has one frontend for its ClusterIP; node ports, external and load-balancer addresses will be further
//! frontends of the same port, so whatever stands behind a frontend does not care which kind it is.

use netstate::ipvs::VirtualServerKey;

use crate::object::service::{Service, ServicePort};

/// A frontend of a Service port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Frontend<'a> {
    /// Protocol, address and port.
    pub(crate) key: VirtualServerKey,
    /// The Service port behind it.
    pub(crate) port: &'a ServicePort,
}

/// The frontends of a Service, in the order of its ports.
#[must_use]
pub(crate) fn frontends(service: &Service) -> Vec<Frontend<'_>> {
    let Some(addr) = service.cluster_ip else { return Vec::new() };
    let key = |port: &ServicePort| VirtualServerKey { protocol: port.protocol, addr, port: port.port };
    service.ports.iter().map(|port| Frontend { key: key(port), port }).collect()
}
