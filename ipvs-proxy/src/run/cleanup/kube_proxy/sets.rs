//! The sets of ipset that a kube-proxy of the mode ipvs keeps, and what they say of its virtual servers.
//!
//! Invariant: a set is its by its whole name; kube-router's and others' begin alike.

use std::collections::BTreeSet;
use std::net::UdpSocket;

use kernel::KernelError;
use kernel::ipset::{Entry, Sets};
use netstate::ipvs::VirtualServerKey;
use netstate::{IpFamily, Protocol};

/// Their names behind `KUBE-`, or `KUBE-6-` for IPv6 (pkg/proxy/ipvs/proxier.go).
const NAMES: [&str; 17] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];

/// The set that it has as long as it runs in that mode.
const CLUSTER_IPS: [&str; 2] = ["KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP"];

/// The longest name of a set.
const LONGEST: usize = 31;

const fn prefix(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "KUBE-",
        IpFamily::V6 => "KUBE-6-",
    }
}

fn name(family: IpFamily, rest: &str) -> String {
    format!("{}{rest}", prefix(family)).chars().take(LONGEST).collect()
}

/// Those of its sets that are there.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) fn present(sets: &mut Sets) -> Result<Vec<String>, KernelError> {
    let known: BTreeSet<String> =
        IpFamily::ALL.into_iter().flat_map(|family| NAMES.iter().map(move |rest| name(family, rest))).collect();
    Ok(sets.names()?.into_iter().filter(|name| known.contains(name)).collect())
}

/// True when a kube-proxy of the mode ipvs works here, or did.
///
/// # Errors
/// When the kernel cannot be read.
pub(crate) fn are_of_ipvs(sets: &mut Sets) -> Result<bool, KernelError> {
    Ok(sets.names()?.iter().any(|name| CLUSTER_IPS.contains(&name.as_str())))
}

/// Where it made virtual servers, as its sets say.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// At addresses of Services.
    exact: BTreeSet<VirtualServerKey>,
    /// At every address of this node.
    node_ports: BTreeSet<(IpFamily, Protocol, u16)>,
}

/// Its sets of addresses and ports, and those of ports for each protocol.
const EXACT: [&str; 5] = ["CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL", "LOAD-BALANCER", "NODE-PORT-SCTP-HASH"];
const PORTS: [(&str, Protocol); 2] = [("NODE-PORT-TCP", Protocol::Tcp), ("NODE-PORT-UDP", Protocol::Udp)];

impl Places {
    /// Reads them from those of its sets that are there.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(super) fn read(sets: &mut Sets, present: &[String]) -> Result<Self, KernelError> {
        let mut places = Self::default();
        let mut entries = |name: String| {
            if present.contains(&name) { sets.entries(&name) } else { Ok(Vec::new()) }
        };
        for family in IpFamily::ALL {
            for rest in EXACT {
                places.exact.extend(entries(name(family, rest))?.iter().filter_map(server));
            }
            for (rest, protocol) in PORTS {
                let ports = entries(name(family, rest))?.into_iter().map(|entry| (family, protocol, entry.port));
                places.node_ports.extend(ports);
            }
        }
        Ok(places)
    }

    /// True for a virtual server that it made.
    pub(super) fn have(&self, server: &VirtualServerKey) -> bool {
        let is_here = || UdpSocket::bind((server.addr, 0)).is_ok();
        let port = (IpFamily::of(server.addr), server.protocol, server.port);
        self.exact.contains(server) || self.node_ports.contains(&port) && is_here()
    }
}

fn server(entry: &Entry) -> Option<VirtualServerKey> {
    let protocol = Protocol::from_number(entry.protocol?)?;
    Some(VirtualServerKey { protocol, addr: entry.addr?, port: entry.port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kube_proxys_whole_ones() {
        assert_eq!(name(IpFamily::V4, "LOAD-BALANCER-SOURCE-CIDR"), "KUBE-LOAD-BALANCER-SOURCE-CIDR");
        assert_eq!(name(IpFamily::V6, "LOAD-BALANCER-SOURCE-CIDR"), "KUBE-6-LOAD-BALANCER-SOURCE-CID");
        assert!(NAMES.contains(&"CLUSTER-IP"));
    }
}
