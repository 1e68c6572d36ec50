//! Ports: nobody listens where somebody else does, nor where Services have their node ports.

use std::ops::RangeInclusive;

use crate::document::{Findings, Position};
use crate::topology::{Backend, Host, Purpose, Topology, Transport};

/// Where Services have their node ports (`--service-node-port-range`).
const NODE_PORTS: RangeInclusive<u16> = 30000..=32767;

/// Where netd answers probes of other nodes, by UDP (`--probe-port`).
const PROBES: u16 = 10247;

struct Taken {
    purpose: Purpose,
    port: u16,
    at: Option<Position>,
}

impl Taken {
    const fn is_tunnel(&self) -> bool {
        matches!(self.purpose, Purpose::Vxlan | Purpose::Wireguard)
    }
}

/// Asks whether every port has one purpose on each host.
pub(super) fn check(topology: &Topology, findings: &mut Findings) {
    let used = |purpose: Purpose| match purpose {
        Purpose::Vxlan => topology.pods.backend.value == Backend::Vxlan,
        Purpose::Wireguard => topology.pods.backend.value == Backend::Wireguard,
        _ => true,
    };
    let taken: Vec<Taken> = topology
        .ports
        .iter()
        .filter(|(purpose, ..)| used(*purpose))
        .map(|(purpose, port, at)| Taken { purpose, port, at })
        .collect();
    for (index, one) in taken.iter().enumerate() {
        let place = one.at.map(|at| (at, format!("ports.{}", one.purpose)));
        if let (Some((at, field)), true) = (&place, NODE_PORTS.contains(&one.port)) {
            findings.error(
                *at,
                field,
                format!("{} is where node ports of Services are", one.port),
                "below 30000 or above 32767",
            );
        }
        if let (Some((at, field)), true) = (&place, one.is_tunnel() && one.port == PROBES) {
            findings.error(*at, field, format!("netd answers probes at {PROBES}"), "a port of its own");
        }
        for other in taken.iter().take(index).filter(|other| clash(topology, one, other)) {
            // Two usual ports never clash: one of both is written.
            let place = place.clone().or_else(|| other.at.map(|at| (at, format!("ports.{}", other.purpose))));
            if let Some((at, field)) = place {
                let found = format!("{} is taken by {} and by {}", one.port, other.purpose, one.purpose);
                findings.error(at, &field, found, "a port of its own");
            }
        }
    }
}

/// True when both listen at one port of one host.
fn clash(topology: &Topology, one: &Taken, other: &Taken) -> bool {
    let listens = |taken: &Taken, host: &Host| taken.purpose.is_served_by(topology, host);
    let meet = topology.hosts.iter().any(|host| listens(one, host) && listens(other, host));
    let transport = |taken: &Taken| -> Transport { taken.purpose.transport() };
    one.port == other.port && transport(one) == transport(other) && meet
}
