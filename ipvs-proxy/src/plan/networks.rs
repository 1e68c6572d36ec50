//! The networks of a cluster and whether they can stand side by side.
//!
//! Invariant: a node's own address, a Pod's address and a Service's address are never the same address. An overlap is
//! refused with both networks named: it would show as traffic that vanishes, long after the mistake was made.

use std::fmt;
use std::net::IpAddr;

use netstate::Prefix;

/// A network of the node that this runs on, with the link it is on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeNetwork {
    /// Name of the link.
    pub(crate) link: String,
    /// The node's address.
    pub(crate) addr: IpAddr,
    /// Its network.
    pub(crate) network: Prefix,
}

/// The networks; see the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Networks {
    /// The Pod network of the cluster.
    pub(crate) pods: Prefix,
    /// The Service network, if it was given.
    pub(crate) services: Option<Prefix>,
    /// The node's own networks.
    pub(crate) node: Vec<NodeNetwork>,
}

/// Two networks that overlap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{first} overlaps {second}; give one of them another network")]
pub(crate) struct Overlap {
    first: String,
    second: String,
}

impl Networks {
    /// Every pair that overlaps.
    #[must_use]
    pub(crate) fn overlaps(&self) -> Vec<Overlap> {
        let pods = ("Pod network (cluster-cidr)", self.pods);
        let services = self.services.map(|net| ("Service network (service-cidr)", net));
        let mut found = Vec::new();
        let mut check = |first: (&str, Prefix), second: (&str, Prefix)| {
            if first.1.overlaps(&second.1) {
                let text = |(name, net): (&str, Prefix)| format!("{name} {net}");
                found.push(Overlap { first: text(first), second: text(second) });
            }
        };
        if let Some(services) = services {
            check(pods, services);
        }
        for node in &self.node {
            let name = format!("node network on {}", node.link);
            let network = (name.as_str(), node.network);
            check(network, pods);
            if let Some(services) = services {
                check(network, services);
            }
        }
        found
    }

    /// Whether `addr` can be a virtual address here.
    ///
    /// # Errors
    /// Which network it would take an address from.
    pub(crate) fn check_virtual(&self, addr: IpAddr) -> Result<(), Misplaced> {
        let misplaced = |place: String| Err(Misplaced { addr, place });
        if let Some(services) = self.services.filter(|services| !services.contains(addr)) {
            return misplaced(format!("is outside the Service network {services}"));
        }
        if self.pods.contains(addr) {
            return misplaced(format!("is in the Pod network {}", self.pods));
        }
        match self.node.iter().find(|node| node.network.contains(addr)) {
            Some(node) => misplaced(format!("is in the node network {} on {}", node.network, node.link)),
            None => Ok(()),
        }
    }
}

/// An address that cannot be virtual.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Misplaced {
    addr: IpAddr,
    place: String,
}

impl fmt::Display for Misplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spec.clusterIP: {} {}; accepted: an address of the Service network", self.addr, self.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(node: &str, pods: &str, services: Option<&str>) -> Networks {
        let network: Prefix = node.parse().unwrap();
        Networks {
            pods: pods.parse().unwrap(),
            services: services.map(|net| net.parse().unwrap()),
            node: vec![NodeNetwork { link: "eth0".into(), addr: network.nth(21).unwrap(), network }],
        }
    }

    fn texts(networks: &Networks) -> Vec<String> {
        networks.overlaps().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_reference_plans_are_accepted() {
        for (node, pods, services) in [
            ("10.4.7.0/24", "172.7.0.0/16", "192.168.0.0/16"),
            ("192.168.32.0/24", "10.244.0.0/16", "10.96.0.0/12"),
            ("192.168.197.0/24", "172.17.0.0/16", "192.254.0.0/16"),
        ] {
            assert!(texts(&networks(node, pods, Some(services))).is_empty(), "{node}");
        }
    }

    #[test]
    fn an_overlap_names_both_networks() {
        assert_eq!(
            texts(&networks("192.168.44.0/24", "172.7.0.0/16", Some("192.168.0.0/16"))),
            ["node network on eth0 192.168.44.0/24 overlaps Service network (service-cidr) 192.168.0.0/16; \
              give one of them another network"]
        );
        assert_eq!(texts(&networks("10.4.7.0/24", "10.0.0.0/8", Some("10.96.0.0/12"))).len(), 2);
    }

    #[test]
    fn a_virtual_address_comes_from_no_other_network() {
        let plan = networks("10.4.7.0/24", "172.7.0.0/16", Some("192.168.0.0/16"));
        assert!(plan.check_virtual("192.168.0.10".parse().unwrap()).is_ok());
        let unbound = networks("10.4.7.0/24", "172.7.0.0/16", None);
        for (plan, addr, part) in [
            (&plan, "10.0.0.1", "outside the Service network 192.168.0.0/16"),
            (&unbound, "172.7.1.1", "in the Pod network 172.7.0.0/16"),
            (&unbound, "10.4.7.22", "in the node network 10.4.7.0/24 on eth0"),
        ] {
            let text = plan.check_virtual(addr.parse().unwrap()).unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        }
    }
}
