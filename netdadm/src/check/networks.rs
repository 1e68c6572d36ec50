//! Networks: no two share addresses, each family is whole, and they are large enough.

use netstate::Prefix;
use netstate::address_plan::{AddressPlan, Overlap, Role};
use netstate::family::IpFamily;

use crate::document::{Findings, Located, Position};
use crate::topology::{Networks, Topology};

/// The largest Service network of IPv4 that an API server takes: 20 bits of addresses.
const SERVICE_BITS: u8 = 20;

/// The tenth address is the DNS server's, as kubeadm has it.
const SERVICE_BITS_LEAST: u8 = 4;

/// Addresses that belong to nobody in the Internet: RFC 1918, RFC 6598, RFC 4193.
const PRIVATE: [Prefix; 5] = [
    Prefix::v4_literal([10, 0, 0, 0], 8),
    Prefix::v4_literal([172, 16, 0, 0], 12),
    Prefix::v4_literal([192, 168, 0, 0], 16),
    Prefix::v4_literal([100, 64, 0, 0], 10),
    Prefix::v6_literal([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7),
];

/// Asks whether the networks go together.
pub(super) fn check(topology: &Topology, findings: &mut Findings) {
    let networks = &topology.networks;
    overlaps(networks, findings);
    nested(networks, findings);
    families(networks, findings);
    service_size(networks, findings);
    public(networks, findings);
}

fn overlaps(networks: &Networks, findings: &mut Findings) {
    let mut plan = AddressPlan::default();
    for network in &networks.nodes {
        plan = plan.node(None, network.value);
    }
    for network in &networks.pods {
        plan = plan.pods(network.value);
    }
    for network in &networks.services {
        plan = plan.services(network.value);
    }
    for overlap in plan.overlaps() {
        if let Some((at, name)) = place(networks, &overlap) {
            findings.error(at, name, overlap.to_string(), "");
        }
    }
}

/// A node's number is that in its network, which is one.
fn nested(networks: &Networks, findings: &mut Findings) {
    for (index, one) in networks.nodes.iter().enumerate() {
        let shares = |other: &&Located<Prefix>| other.value.covers(&one.value) || one.value.covers(&other.value);
        if let Some(other) = networks.nodes.iter().take(index).find(shares) {
            let found = format!("{} shares addresses with {}", one.value, other.value);
            findings.error(one.at, "networks.nodes", found, "networks of nodes that share no address");
        }
    }
}

/// Where the second network of a pair is written.
fn place(networks: &Networks, overlap: &Overlap<'_>) -> Option<(Position, &'static str)> {
    let (list, name) = match overlap.second.role {
        Role::Node => (&networks.nodes, "networks.nodes"),
        Role::Pod => (&networks.pods, "networks.pods"),
        Role::Service => (&networks.services, "networks.services"),
    };
    // Of two equal ones of one role the last is the one too many.
    let found = list.iter().rev().find(|network| network.value == overlap.second.prefix);
    found.map(|network| (network.at, name))
}

/// Pods and Services have one network of each family that they have, and both the same families; hosts have them too.
fn families(networks: &Networks, findings: &mut Findings) {
    let has = |list: &[Located<Prefix>], family| list.iter().any(|network| network.value.family() == family);
    let lists = [("networks.pods", &networks.pods), ("networks.services", &networks.services)];
    for (name, list) in lists {
        for family in IpFamily::ALL {
            let mut own = list.iter().filter(|network| network.value.family() == family).skip(1);
            if let Some(second) = own.next() {
                findings.error(second.at, name, format!("a second network of {family}"), "one network of each family");
            }
        }
    }
    for (name, list) in lists {
        for network in list {
            let family = network.value.family();
            if !has(&networks.nodes, family) {
                findings.error(network.at, name, format!("{family}, which no network of nodes has"), "");
            }
        }
    }
    let both = [
        ("networks.pods", &networks.services, &networks.pods),
        ("networks.services", &networks.pods, &networks.services),
    ];
    for (name, theirs, own) in both {
        for network in theirs {
            let family = network.value.family();
            if let (false, Some(first)) = (has(own, family), own.first()) {
                findings.error(
                    first.at,
                    name,
                    format!("no network of {family}"),
                    "the families of Pods and of Services",
                );
            }
        }
    }
}

fn service_size(networks: &Networks, findings: &mut Findings) {
    for network in &networks.services {
        let bits = network.value.width().saturating_sub(network.value.len());
        if bits < SERVICE_BITS_LEAST {
            let found = format!("{} has no eleven addresses: the tenth is that of the DNS", network.value);
            findings.error(network.at, "networks.services", found, "/28 or larger, of IPv6 /124");
        } else if bits > SERVICE_BITS && network.value.is_ipv4() {
            let found = format!("{} is larger than an API server takes", network.value);
            findings.error(network.at, "networks.services", found, "/12 or smaller");
        } else if bits > SERVICE_BITS {
            let found = format!("{} is larger than an API server takes", network.value);
            findings.error(network.at, "networks.services", found, "/108 or smaller");
        }
    }
}

fn public(networks: &Networks, findings: &mut Findings) {
    for (name, list) in [("networks.pods", &networks.pods), ("networks.services", &networks.services)] {
        for network in list.iter().filter(|network| !PRIVATE.iter().any(|own| own.covers(&network.value))) {
            let found = format!(
                "{} is not all private: hosts of the Internet that have such addresses are out of reach",
                network.value
            );
            findings.warning(
                network.at,
                name,
                found,
                "a part of 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10 or fc00::/7",
            );
        }
    }
}
