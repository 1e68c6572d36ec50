//! What Services ask for that stands in the way of this host, or this host in theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use daemon::doctor::Trouble;
use kernel::listener::Listener;
use netstate::{IpFamily, Protocol};

use super::Facts;
use crate::object::ObjectName;
use crate::object::service::{IngressMode, Service, ServicePort};
use crate::plan::here::hidden;

/// What of this node's Node object is not as flags and machine have it.
pub(super) fn node(facts: &Facts) -> Vec<Trouble> {
    let fix = "if that is not meant: change the flag, or the Node object in the source (`ipvs-proxy status --json`: nodeObject)";
    let remarks = facts.known.remarks.iter().map(|remark| Trouble::note(remark.clone(), fix));
    remarks.chain(namesake(facts)).collect()
}

/// The node that EndpointSlices call otherwise than this one is called: with the domain, or without it.
fn namesake(facts: &Facts) -> Option<Trouble> {
    let own = facts.known.here.node.as_str();
    let first = |name: &str| name.split('.').next().map(str::to_owned);
    let endpoints = facts.known.view.all_slices().flat_map(|slice| &slice.endpoints);
    let names: BTreeSet<&str> = endpoints.filter_map(|endpoint| endpoint.topology.node.as_deref()).collect();
    let other = names.iter().find(|name| first(name) == first(own)).filter(|_| !names.contains(own))?;
    let found = format!(
        "this node is {own}, and EndpointSlices have endpoints on {other}: with a traffic policy of Local they count as another node's"
    );
    Some(Trouble::problem(found, format!("if that is this node: --hostname-override={other}")))
}

/// Networks that overlap.
pub(super) fn networks(facts: &Facts) -> Vec<Trouble> {
    let overlaps = facts.known.networks.overlaps();
    let fix = "a Service whose address lies in both is not served (see the check objects)";
    overlaps.into_iter().map(|overlap| Trouble::note(overlap, fix)).collect()
}

/// Endpoints that no route leads to.
pub(super) fn endpoints(facts: &Facts) -> Vec<Trouble> {
    let mut lost: BTreeMap<&ObjectName, Vec<IpAddr>> = BTreeMap::new();
    for slice in facts.known.view.all_slices() {
        let addresses = slice.endpoints.iter().map(|endpoint| endpoint.addr);
        for addr in addresses.filter(|addr| facts.unreachable.contains_key(addr)) {
            lost.entry(&slice.service).or_default().push(addr);
        }
    }
    let trouble = |(service, addresses): (&ObjectName, Vec<IpAddr>)| {
        let first = addresses.first().map(ToString::to_string).unwrap_or_default();
        let found = format!("services/{service}: {} of its endpoints have no route, such as {first}", addresses.len());
        Trouble::problem(
            found,
            "see `netd status` or the network plugin for the node that it is on; `ip route get ADDRESS`",
        )
    };
    lost.into_iter().map(trouble).collect()
}

/// Two Services that claim one place.
pub(super) fn conflicts(facts: &Facts) -> Vec<Trouble> {
    let trouble = |conflict: crate::plan::claims::Conflict| {
        let found = format!("services/{}: {conflict}", conflict.refused);
        Trouble::problem(found, "give one of them another address or port")
    };
    let (claims, own) = (&facts.known.planned.claims, &facts.known.here.node_port_addresses);
    claims.conflicts().chain(claims.captured(own)).map(trouble).collect()
}

/// Every node port with its Service.
fn node_ports(facts: &Facts) -> impl Iterator<Item = (&Service, &ServicePort, u16)> {
    let ports = facts.known.view.services().flat_map(|service| service.ports.iter().map(move |port| (service, port)));
    ports.filter_map(|(service, port)| Some((service, port, port.node_port?)))
}

/// Node ports among those that the kernel gives to this host's own connections.
pub(super) fn ports(facts: &Facts) -> Vec<Trouble> {
    let range = facts.parameters.get("ipv4/ip_local_port_range").map(String::as_str).unwrap_or_default();
    let mut ends = range.split_whitespace().filter_map(|end| end.parse::<u16>().ok());
    let (Some(first), Some(last)) = (ends.next(), ends.next()) else { return Vec::new() };
    let reserved = facts.parameters.get("ipv4/ip_local_reserved_ports").map(String::as_str).unwrap_or_default();
    let taken: Vec<u16> = node_ports(facts)
        .map(|(_, _, port)| port)
        .filter(|port| (first..=last).contains(port) && !is_listed(reserved, *port))
        .collect();
    let Some(one) = taken.first() else { return Vec::new() };
    let found = format!(
        "{} node ports, such as {one}, are in net.ipv4.ip_local_port_range {first} {last}: answers to a connection of this host \
         that got such a port may be taken for a client",
        taken.len()
    );
    vec![Trouble::note(found, "sysctl -w net.ipv4.ip_local_reserved_ports=30000-32767")]
}

/// Whether a list such as `22,30000-32767` has the port.
fn is_listed(list: &str, port: u16) -> bool {
    let has = |word: &str| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        first.trim().parse().is_ok_and(|first: u16| first <= port)
            && last.trim().parse().is_ok_and(|last: u16| port <= last)
    };
    list.split(',').any(has)
}

/// Processes of this host whose clients reach a Service instead.
pub(super) fn listeners(facts: &Facts) -> Vec<Trouble> {
    let (own, node_ports_at) = (&facts.known.kernel.own(), &facts.known.here.node_port_addresses);
    let waits = |protocol: Protocol, port: u16, fits: &dyn Fn(IpAddr) -> bool| {
        let is_it = |listener: &&Listener| {
            listener.protocol == protocol && listener.at.port() == port && fits(listener.at.ip())
        };
        facts.listeners.iter().find(is_it)
    };
    let fix = "give the process or the Service another port: clients from elsewhere reach the Service";
    let mut troubles = Vec::new();
    for (service, port, number) in node_ports(facts) {
        let of_service = |at| hidden(at, node_ports_at).iter().any(|family| service.families().contains(family));
        if let Some(listener) = waits(port.protocol, number, &of_service) {
            let at = listener.at;
            let found = format!(
                "a process of this host listens at {at}/{}, the node port of services/{}",
                port.protocol, service.name
            );
            troubles.push(Trouble::problem(found, fix));
        }
    }
    for service in facts.known.view.services() {
        let vips = service.load_balancer.iter().filter(|ingress| ingress.mode == IngressMode::Vip);
        for addr in service.external_ips.iter().chain(vips.map(|ingress| &ingress.addr)) {
            let of_all = own.contains(addr).then(|| IpFamily::of(*addr));
            let there = |at: IpAddr| {
                at == *addr || at.is_unspecified() && of_all.is_some_and(|family| hidden(at, own).contains(&family))
            };
            let taken = service.ports.iter().filter(|port| waits(port.protocol, port.port, &there).is_some());
            troubles.extend(taken.map(|port| {
                let place = format!("{}/{}", std::net::SocketAddr::new(*addr, port.port), port.protocol);
                let found = format!("a process of this host listens at {place}, which services/{} has", service.name);
                Trouble::problem(found, fix)
            }));
        }
    }
    troubles
}
