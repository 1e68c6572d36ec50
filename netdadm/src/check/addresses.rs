//! Addresses of hosts: inside the networks of nodes, each once; the endpoint is one that clients reach.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netstate::Prefix;
use netstate::family::IpFamily;

use crate::document::{Findings, Located};
use crate::topology::{Endpoint, Host, Role, Topology};

/// Asks whether hosts can have their addresses.
pub(super) fn check(topology: &Topology, findings: &mut Findings) {
    let mut holders: BTreeMap<IpAddr, &Host> = BTreeMap::new();
    for host in &topology.hosts {
        let field = format!("hosts.{}.address", host.name.value);
        for address in &host.addresses {
            place(topology, address, &field, findings);
            if let Some(other) = holders.insert(address.value, host) {
                let found = format!("{} is the address of {} as well", address.value, other.name.value);
                findings.error(address.at, &field, found, "an address of its own");
            }
        }
        one_of_a_family(host, &field, findings);
        names(topology, host, findings);
    }
    if let Some(endpoint) = &topology.endpoint {
        reached(topology, endpoint, &holders, findings);
    }
}

fn network_of(topology: &Topology, address: IpAddr) -> Option<Prefix> {
    topology.networks.nodes.iter().map(|network| network.value).find(|network| network.contains(address))
}

fn place(topology: &Topology, address: &Located<IpAddr>, field: &str, findings: &mut Findings) {
    let Some(network) = network_of(topology, address.value) else {
        let networks: Vec<String> = topology.networks.nodes.iter().map(|network| network.value.to_string()).collect();
        let found = format!("{} is in no network of nodes", address.value);
        findings.error(address.at, field, found, format!("an address in {}", networks.join(" or ")));
        return;
    };
    ends(network, address, field, findings);
}

/// Neither end of a network is an address of anybody.
fn ends(network: Prefix, address: &Located<IpAddr>, field: &str, findings: &mut Findings) {
    // A network of two addresses has neither (RFC 3021).
    if network.width().saturating_sub(network.len()) < 2 {
        return;
    }
    if address.value == network.addr() {
        findings.error(address.at, field, format!("{} names the network {network}", address.value), "one behind it");
    } else if network.is_ipv4() && address.value == network.last() {
        findings.error(address.at, field, format!("{} is the broadcast address of {network}", address.value), "");
    }
}

fn one_of_a_family(host: &Host, field: &str, findings: &mut Findings) {
    let of = |family| host.addresses.iter().filter(move |address| IpFamily::of(address.value) == family);
    for second in IpFamily::ALL.into_iter().filter_map(|family| of(family).nth(1)) {
        findings.error(second.at, field, "a second address of its family", "one of each family");
    }
}

/// A name that is the address of another host, or that another has with the domain, leads everybody to that one.
fn names(topology: &Topology, host: &Host, findings: &mut Findings) {
    let name = &host.name.value;
    let field = format!("hosts.{name}");
    let mut others = topology.hosts.iter().filter(|other| other.name.value != *name);
    let has = |host: &Host, address: IpAddr| host.addresses.iter().any(|one| one.value == address);
    let Ok(address) = name.parse::<IpAddr>() else {
        let long = |other: &&Host| {
            topology.domain.as_ref().is_some_and(|domain| *name == format!("{}.{}", other.name.value, domain.value))
        };
        if let (Some(other), Some(domain)) = (others.find(long), &topology.domain) {
            let found = format!("it is {} in the domain {}", other.name.value, domain.value);
            findings.error(host.name.at, &field, found, "another name");
        }
        return;
    };
    let found = match others.find(|other| has(other, address)) {
        Some(other) => format!("the name is the address of {}", other.name.value),
        // An address that could not be read has its finding already.
        None if has(host, address) || host.addresses.is_empty() => return,
        None => "the name is an address that is not its own".to_owned(),
    };
    findings.error(host.name.at, &field, found, "its own address, or a name");
}

fn reached(topology: &Topology, endpoint: &Endpoint, holders: &BTreeMap<IpAddr, &Host>, findings: &mut Findings) {
    if let Some(host) = holders.get(&endpoint.address) {
        if !host.has(Role::ControlPlane) {
            let found = format!("{} is {}, which has no API server", endpoint.address, host.name.value);
            findings.error(
                endpoint.at,
                "endpoint",
                found,
                "a host of the control plane, or an address that leads to them",
            );
        }
        if topology.of(Role::ControlPlane).count() > 1 {
            let found =
                format!("{} is {} alone: without it no client finds the others", endpoint.address, host.name.value);
            findings.warning(
                endpoint.at,
                "endpoint",
                found,
                "an address that moves between the hosts of the control plane",
            );
        }
        return;
    }
    if let Some(network) = network_of(topology, endpoint.address) {
        ends(network, &Located { at: endpoint.at, value: endpoint.address }, "endpoint", findings);
    } else {
        let networks: Vec<String> = topology.networks.nodes.iter().map(|network| network.value.to_string()).collect();
        let found = format!("{} is outside the networks of nodes", endpoint.address);
        findings.error(endpoint.at, "endpoint", found, format!("an address in {}", networks.join(" or ")));
    }
}
