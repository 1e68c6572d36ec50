//! The Services of the benchmark: in Kubernetes' own shape, each with one EndpointSlice.
//!
//! Invariant: every Service has an address of its own in 192.168.0.0/16 and endpoints of its own in 172.16.0.0/12; a changed
//! Service has one endpoint exchanged and the others as they were.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde_json::json;

/// Addresses kept for one Service: its endpoints, ten at most, and one to exchange.
const ROOM: u32 = 16;
/// The network of their addresses.
pub(crate) const NETWORK: &str = "192.168.0.0/16";
const SERVICES: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 0);
const PODS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 0);

/// A Service by number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Service {
    number: u32,
    endpoints: u32,
}

impl Service {
    pub(crate) fn new(index: usize, endpoints: usize) -> Self {
        let [number, endpoints] = [index, endpoints].map(|number| u32::try_from(number).unwrap_or(u32::MAX));
        Self { number, endpoints }
    }

    /// The virtual address and port.
    pub(crate) fn address(self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::from_bits(SERVICES.to_bits() + 10 + self.number), 80)
    }

    /// The endpoint that is not there at first.
    pub(crate) fn other_endpoint(self) -> SocketAddrV4 {
        self.endpoint(self.endpoints)
    }

    /// The endpoints; the first one exchanged when `changed`.
    pub(crate) fn endpoints(self, changed: bool) -> Vec<SocketAddrV4> {
        let first = if changed { self.other_endpoint() } else { self.endpoint(0) };
        std::iter::once(first).chain((1..self.endpoints).map(|place| self.endpoint(place))).collect()
    }

    fn endpoint(self, place: u32) -> SocketAddrV4 {
        // From 1 on: the network's own address is no endpoint.
        SocketAddrV4::new(Ipv4Addr::from_bits(PODS.to_bits() + 1 + self.number * ROOM + place), 8080)
    }

    /// Name of the slice.
    pub(crate) fn slice_name(self) -> String {
        format!("{}-1", self.name())
    }

    pub(crate) fn name(self) -> String {
        format!("s{:05}", self.number)
    }

    /// Keys and values of the Service and of its slice below `prefix`.
    pub(crate) fn entries(self, prefix: &str) -> [(String, String); 2] {
        let name = self.name();
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "clusterIP": self.address().ip(),
                "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
            },
        });
        [(format!("{prefix}services/default/{name}"), service.to_string()), self.slice(prefix, false)]
    }

    /// Key and value of the slice.
    pub(crate) fn slice(self, prefix: &str, changed: bool) -> (String, String) {
        let (name, own) = (self.name(), self.slice_name());
        let endpoint = |addr: SocketAddrV4| json!({"addresses": [addr.ip()], "conditions": {"ready": true, "serving": true, "terminating": false}, "nodeName": "elsewhere"});
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": own, "namespace": "default",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            "endpoints": self.endpoints(changed).into_iter().map(endpoint).collect::<Vec<_>>(),
        });
        (format!("{prefix}endpointslices/default/{own}"), slice.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_services_share_an_address() {
        let all = || (0..20_000).map(|index| Service::new(index, 10));
        let virtuals: BTreeSet<SocketAddrV4> = all().map(Service::address).collect();
        assert_eq!(virtuals.len(), 20_000);
        assert!(virtuals.iter().all(|addr| addr.ip().octets()[..2] == [192, 168]));
        let pods: BTreeSet<SocketAddrV4> =
            all().flat_map(|service| [service.endpoints(false), service.endpoints(true)].concat()).collect();
        assert_eq!(pods.len(), 20_000 * 11);
        assert!(pods.iter().all(|addr| addr.ip().octets()[0] == 172 && (16..32).contains(&addr.ip().octets()[1])));
    }

    #[test]
    fn change_exchanges_one_endpoint() {
        let service = Service::new(7, 5);
        let (before, after) = (service.endpoints(false), service.endpoints(true));
        assert_eq!((before.len(), after.len()), (5, 5));
        assert_eq!(before[1..], after[1..]);
        assert_ne!(before[0], after[0]);
    }
}
