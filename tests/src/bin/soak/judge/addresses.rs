//! No address and no subnet twice.
//!
//! Invariant: two leases may not overlap, no node may have two, and no two Pods of the cluster may have one address.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// A lease as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) subnet: Ipv4Addr,
    pub(crate) prefix: u8,
    pub(crate) node: Ipv4Addr,
    /// Hardware address of the node's VXLAN device, where the backend is that.
    pub(crate) vtep: Option<String>,
}

impl Lease {
    /// Reads the last part of a key, `172.7.21.0-24`, and its value.
    pub(crate) fn read(key: &str, value: &str) -> Option<Self> {
        let (subnet, prefix) = key.split_once('-')?;
        let value: serde_json::Value = serde_json::from_str(value).ok()?;
        let vtep = value.pointer("/BackendData/VtepMAC").and_then(serde_json::Value::as_str);
        Some(Self {
            subnet: subnet.parse().ok()?,
            prefix: prefix.parse().ok().filter(|prefix| (1..=32).contains(prefix))?,
            node: value.get("PublicIP")?.as_str()?.parse().ok()?,
            vtep: vtep.map(str::to_owned),
        })
    }

    /// `172.7.21.0/24`.
    pub(crate) fn network(&self) -> String {
        format!("{}/{}", self.subnet, self.prefix)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let shift = 32 - u32::from(self.prefix.min(other.prefix));
        u32::from(self.subnet) >> shift == u32::from(other.subnet) >> shift
    }
}

/// Leases that may not both be.
pub(crate) fn of_leases(leases: &[Lease]) -> Vec<String> {
    let mut found = Vec::new();
    for (index, lease) in leases.iter().enumerate() {
        for other in leases.get(index + 1..).unwrap_or_default() {
            if lease.overlaps(other) {
                let (first, second) = (lease.network(), other.network());
                found.push(format!("leases overlap: {first} of {} and {second} of {}", lease.node, other.node));
            }
            if lease.node == other.node {
                let node = lease.node;
                found.push(format!("node {node} has two leases: {} and {}", lease.network(), other.network()));
            }
        }
    }
    found
}

/// Addresses that two Pods have; each Pod with its name.
pub(crate) fn of_pods(pods: &[(String, Ipv4Addr)]) -> Vec<String> {
    let mut owners: BTreeMap<Ipv4Addr, &str> = BTreeMap::new();
    let mut found = Vec::new();
    for (name, address) in pods {
        if let Some(owner) = owners.insert(*address, name).filter(|owner| owner != name) {
            found.push(format!("{address} is the address of {owner} and of {name}"));
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panic")]
mod tests {
    use super::*;

    fn lease(key: &str, node: &str) -> Lease {
        Lease::read(key, &format!(r#"{{"PublicIP":"{node}","BackendType":"host-gw"}}"#)).unwrap()
    }

    #[test]
    fn leases_that_overlap_and_nodes_with_two_are_found() {
        let fine = [lease("172.7.21.0-24", "10.4.7.21"), lease("172.7.22.0-24", "10.4.7.22")];
        assert!(of_leases(&fine).is_empty());
        let twice = [lease("172.7.21.0-24", "10.4.7.21"), lease("172.7.20.0-22", "10.4.7.22")];
        assert!(of_leases(&twice).first().unwrap().contains("overlap"));
        let two = [lease("172.7.21.0-24", "10.4.7.21"), lease("172.7.22.0-24", "10.4.7.21")];
        assert!(of_leases(&two).first().unwrap().contains("10.4.7.21 has two leases"));
    }

    #[test]
    fn address_of_two_pods_is_found() {
        let pods =
            |last: &str| vec![("a".to_owned(), "172.7.21.2".parse().unwrap()), ("b".to_owned(), last.parse().unwrap())];
        assert!(of_pods(&pods("172.7.21.3")).is_empty());
        assert_eq!(of_pods(&pods("172.7.21.2")), ["172.7.21.2 is the address of a and of b"]);
    }
}
