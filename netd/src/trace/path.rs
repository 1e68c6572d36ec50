//! The steps of a packet through this node, out of facts: what it meets in which order, and what is not as it must be.
//!
//! Invariant: pure; a step is judged by what the kernel holds, and by the daemon's word where there is one.

use std::net::IpAddr;

use kernel::link::LinkState;
use netstate::route::{TABLE_LOCAL, TABLE_MAIN};
use netstate::{LinkKind, Prefix, RouteKey, RouteKind};

use super::facts::{Entry, Facts, Node, Refused};
use super::step::Step;

/// How what netd keeps comes back.
const RESTORE: &str =
    "netd puts it back within a second: is it running (`netd status`)? `netd tables` names what the kernel refused";

/// The same of what is not netd's.
const OWN_ROUTE: &str = "it is no address of the Pod network, so the route there is this host's own: `ip route`, a default route among them";

/// The kernel's default table, which holds nothing of its own.
const TABLE_DEFAULT: u32 = 253;

/// Bytes that VXLAN, ipip and WireGuard put in front of a packet, over IPv4 and over IPv6.
fn overhead(kind: &LinkKind, over_v6: bool) -> u32 {
    let outer = if over_v6 { 20 } else { 0 };
    match kind {
        LinkKind::Vxlan(_) => 50 + outer,
        LinkKind::Ipip(_) => 20,
        LinkKind::Wireguard => 60 + outer,
        _ => 0,
    }
}

/// What the packet meets.
#[must_use]
pub(crate) fn steps(facts: &Facts) -> Vec<Step> {
    let mut steps = Vec::new();
    pod(facts, &mut steps);
    bridge(facts, &mut steps);
    steps.extend(forwarding(facts));
    steps.extend(service(facts));
    steps.extend(route(facts));
    if let Some(link) = leaves_by(facts) {
        steps.push(device(facts, link));
        steps.extend(neighbour(facts, link));
        steps.extend(tunnel_end(facts, link));
        steps.extend(peer(facts, link));
        steps.extend(outer(facts, link));
    }
    steps.extend(receiver(facts));
    steps
}

/// The host's interface that the packet leaves by.
fn leaves_by(facts: &Facts) -> Option<&LinkState> {
    let Some(Ok((_, route))) = &facts.entry else { return None };
    let leaves = route.kind == RouteKind::Unicast;
    route.link.as_ref().filter(|_| leaves).and_then(|name| facts.link(name))
}

fn name_of(facts: &Facts, index: Option<u32>) -> String {
    let link = index.and_then(|index| facts.links.get(&index));
    link.map_or_else(|| "an interface that is gone".to_owned(), |link| link.name.to_string())
}

fn pod(facts: &Facts, steps: &mut Vec<Step>) {
    let Some(pod) = &facts.pod else { return };
    let found = format!("{} in {}, MTU {}", pod.interface, pod.netns, pod.mtu);
    steps.push(if pod.up {
        Step::ok("pod", found)
    } else {
        Step::wrong("pod", format!("{found}, down"), "make the Pod anew; its interface was turned off inside")
    });
    steps.push(match &pod.entry {
        Ok((key, route)) => Step::ok("pod route", format!("{} {route}", key.dst)),
        Err(reason) => Step::missing(
            "pod route",
            format!("the Pod has no route: {}", reason.text),
            "make the Pod anew (`netd-cni` sets its default route)",
        ),
    });
}

fn bridge(facts: &Facts, steps: &mut Vec<Step>) {
    let Some(pod) = &facts.pod else { return };
    let Some(end) = pod.host_end.and_then(|index| facts.links.get(&index)) else {
        steps.push(Step::missing(
            "veth",
            format!("{} has no other end on this host", pod.interface),
            "make the Pod anew",
        ));
        return;
    };
    let port = match end.master_index {
        Some(index) => format!("{}, port of {}", end.name, name_of(facts, Some(index))),
        None => format!("{}, no port of a bridge", end.name),
    };
    steps.push(if end.link.up {
        Step::ok("veth", port)
    } else {
        Step::wrong("veth", format!("{port}, down"), format!("ip link set {} up", end.name))
    });
    let Some(bridge) = end.master_index.and_then(|index| facts.links.get(&index)) else { return };
    let gateway = match &pod.entry {
        Ok((_, route)) => route.via,
        Err(_) => None,
    };
    let own: Vec<String> =
        facts.addresses.iter().filter(|(index, _)| *index == bridge.index).map(|(_, addr)| addr.to_string()).collect();
    let found =
        format!("{} has {}", bridge.name, if own.is_empty() { "no address".to_owned() } else { own.join(", ") });
    let has = gateway.is_none_or(|gateway| facts.addresses.iter().any(|(_, addr)| *addr == gateway));
    steps.push(match gateway.filter(|_| !has) {
        Some(gateway) => Step::missing(
            "bridge",
            format!("{found}, not the Pod's gateway {gateway}"),
            format!("ip address add {gateway}/{} dev {}", own_length(facts, gateway), bridge.name),
        ),
        None if bridge.link.up => Step::ok("bridge", found),
        None => Step::wrong("bridge", format!("{found}, down"), format!("ip link set {} up", bridge.name)),
    });
}

fn own_length(facts: &Facts, address: IpAddr) -> u8 {
    let subnet = facts.subnets.iter().find(|subnet| subnet.contains(address));
    subnet.map_or_else(|| Prefix::host(address).len(), Prefix::len)
}

fn forwarding(facts: &Facts) -> Vec<Step> {
    let local = matches!(&facts.entry, Some(Ok((_, route))) if route.kind == RouteKind::Local);
    if facts.came_by.is_none() || local {
        return Vec::new();
    }
    let family = if facts.to.is_some_and(|to| to.is_ipv4()) { "ipv4" } else { "ipv6" };
    let off = facts.forwarding.iter().filter(|(_, on)| !**on);
    let step = |(name, _): (&String, &bool)| {
        let found = format!("net.{family}.conf.{name}.forwarding is 0: the host drops what is not its own");
        Step::wrong("forwarding", found, format!("sysctl -w net.{family}.conf.{name}.forwarding=1"))
    };
    off.map(step).collect()
}

fn service(facts: &Facts) -> Option<Step> {
    if let Some(to) = facts.to.filter(|_| facts.is_translated) {
        let found = format!("rules of this host send it to {to}; what follows is the way there");
        return Some(Step::ok("service", found));
    }
    let service = facts.service.as_ref()?;
    let servers: Vec<String> = service.servers.iter().map(|(addr, weight)| format!("{addr} weight {weight}")).collect();
    let found = format!("{} in IPVS, {}: {}", service.key, service.scheduler, servers.join(", "));
    if service.servers.iter().any(|(_, weight)| *weight > 0) {
        let chosen = facts.to.map(|to| format!("; what follows is the way to {to}")).unwrap_or_default();
        return Some(Step::ok("service", found + &chosen));
    }
    let fix = "no endpoint is ready: `kubectl get endpointslices`, or `ipvs-proxy status` and its source";
    Some(Step::wrong("service", format!("{} in IPVS has no server", service.key), fix))
}

fn route(facts: &Facts) -> Option<Step> {
    let entry = facts.entry.as_ref()?;
    let to = facts.to?;
    let in_network = facts.networks.iter().any(|network| network.contains(to.ip()));
    Some(match entry {
        Err(reason) => no_route(facts, reason),
        Ok((key, route)) => {
            let table = by_rule(key);
            let found = format!("{} {route} metric {}{table}", key.dst, key.metric);
            let own = facts.subnets.iter().any(|subnet| subnet.contains(to.ip()));
            match &facts.node {
                Some(node) if !node.subnet.covers(&key.dst) => elsewhere(node, &found),
                None if in_network && !own && !facts.subnets.is_empty() && is_outside(facts, &key.dst) => {
                    Step::missing(
                        "route",
                        format!("{to} is in the Pod network, but {found} takes it", to = to.ip()),
                        if facts.has_daemon { "no node has a lease of it: `netd lease list`" } else { RESTORE },
                    )
                }
                Some(node)
                    if route
                        .link
                        .as_ref()
                        .is_some_and(|link| !node.path.split(',').any(|path| path == link.as_str())) =>
                {
                    Step::wrong("route", format!("{found}; netd wants it by {}", node.path), RESTORE)
                }
                _ => Step::ok("route", found),
            }
        }
    })
}

/// The routing table, where it is none of the usual ones.
fn by_rule(key: &RouteKey) -> String {
    match key.table {
        TABLE_MAIN | TABLE_LOCAL | TABLE_DEFAULT => String::new(),
        table => format!(" table {table}, by a rule of `ip rule`"),
    }
}

/// The route is none of a node's, but one of the host's own.
fn is_outside(facts: &Facts, dst: &Prefix) -> bool {
    facts.networks.iter().all(|network| !network.covers(dst) || network == dst)
}

fn elsewhere(node: &Node, found: &str) -> Step {
    let found = format!("there is no route for {}: {found} takes it", node.subnet);
    Step::missing("route", found, RESTORE)
}

fn no_route(facts: &Facts, reason: &Refused) -> Step {
    let to = facts.to.map(|to| to.ip().to_string()).unwrap_or_default();
    let came_by = name_of(facts, facts.came_by);
    match reason.errno {
        Some(libc::EXDEV) => Step::wrong(
            "route",
            format!("the source check of {came_by} drops the packet: its source is reached another way"),
            format!(
                "sysctl -w net.ipv4.conf.{came_by}.rp_filter=2, or remove the route that leads elsewhere (`ip route get`)"
            ),
        ),
        Some(libc::EHOSTUNREACH) if facts.forwarding.values().any(|on| !on) => Step::wrong(
            "route",
            format!("nothing is forwarded to {to}: {}", reason.text),
            "turn forwarding on, see above",
        ),
        _ => {
            let is_of_pods = facts.to.is_none_or(|to| facts.networks.iter().any(|network| network.contains(to.ip())));
            let fix = if is_of_pods { RESTORE } else { OWN_ROUTE };
            Step::missing("route", format!("no route to {to}: {}", reason.text), fix)
        }
    }
}

fn device(facts: &Facts, link: &LinkState) -> Step {
    let mtu = link.link.mtu.unwrap_or_default();
    let found = format!("{} {}, MTU {mtu}", link.name, link.link.kind);
    if !link.link.up {
        return Step::wrong("device", format!("{found}, down"), format!("ip link set {} up", link.name));
    }
    match facts.pod.as_ref().filter(|pod| pod.mtu > mtu) {
        Some(pod) => Step::note(
            "device",
            format!("{found}, below the Pod's {}: its large packets are answered by \"fragmentation needed\"", pod.mtu),
            "Pods that are made anew get the right MTU; until then nothing may drop ICMP",
        ),
        None => Step::ok("device", found),
    }
}

fn neighbour(facts: &Facts, link: &LinkState) -> Option<Step> {
    let hop = facts.beyond.hop?;
    let tunnel = matches!(link.link.kind, LinkKind::Vxlan(_));
    Some(match facts.beyond.neighbour {
        Some((mac, true)) => Step::ok("neighbour", format!("{hop} lladdr {mac} permanent")),
        Some((mac, false)) if tunnel => {
            let found = format!("{hop} lladdr {mac} on {} is not permanent: it will be forgotten", link.name);
            Step::wrong("neighbour", found, RESTORE)
        }
        Some((mac, false)) => Step::ok("neighbour", format!("{hop} lladdr {mac}")),
        None if tunnel => {
            Step::missing("neighbour", format!("{hop} has no hardware address on {}", link.name), RESTORE)
        }
        None => Step::note("neighbour", format!("{hop} is not known on {} yet; the kernel asks for it", link.name), ""),
    })
}

fn tunnel_end(facts: &Facts, link: &LinkState) -> Option<Step> {
    let (mac, _) = facts.beyond.neighbour.filter(|_| matches!(link.link.kind, LinkKind::Vxlan(_)))?;
    let ends = &facts.beyond.ends;
    let texts: Vec<String> = ends.iter().map(IpAddr::to_string).collect();
    let found = format!("{mac} dev {} dst {}", link.name, texts.join(", "));
    let stranger = ends.iter().find(|end| facts.node.as_ref().is_some_and(|node| !node.addresses.contains(end)));
    Some(match stranger {
        _ if ends.is_empty() => Step::missing(
            "tunnel end",
            format!("{} does not know where {mac} is: no forwarding entry", link.name),
            RESTORE,
        ),
        Some(_) => {
            let wanted: Vec<String> =
                facts.node.iter().flat_map(|node| &node.addresses).map(IpAddr::to_string).collect();
            Step::wrong("tunnel end", format!("{found}; the lease says {}", wanted.join(", ")), RESTORE)
        }
        None => Step::ok("tunnel end", found),
    })
}

/// The peer that a WireGuard device sends it to.
fn peer(facts: &Facts, link: &LinkState) -> Option<Step> {
    let (sessions, to) = (facts.beyond.sessions.as_ref()?, facts.to?.ip());
    let Some(peer) = sessions.peer_of(to) else {
        let found = format!("no peer of {} has {to} among its allowed IPs: the kernel refuses the packet", link.name);
        return Some(Step::missing("peer", found, RESTORE));
    };
    let Some(endpoint) = peer.endpoint else {
        let found = format!("{} has no end point: nothing is sent before it has sent something", peer.key);
        return Some(Step::wrong("peer", found, RESTORE));
    };
    let spoken = match peer.handshake {
        Some(then) => format!("last handshake {} s ago", facts.beyond.now.saturating_sub(then)),
        None => "no handshake yet".to_owned(),
    };
    let found = format!("{} at {endpoint}, {spoken}, {} bytes received, {} sent", peer.key, peer.received, peer.sent);
    let roamed = facts.node.as_ref().is_some_and(|node| !node.addresses.contains(&endpoint.ip()));
    Some(match peer.handshake {
        None => {
            let fix = "the probe begins one; if nothing comes back the UDP port is closed on the way or there (`netd doctor` on both \
                       nodes), or the two have other keys (`netd lease list`)";
            Step::note("peer", found, fix)
        }
        Some(_) if roamed => Step::note("peer", format!("{found}; it sends from another address than its lease's"), ""),
        Some(_) => Step::ok("peer", found),
    })
}

/// The way of the tunnel's own packets.
fn outer(facts: &Facts, link: &LinkState) -> Option<Step> {
    let (remote, entry): &(IpAddr, Entry) = facts.beyond.outer.as_ref()?;
    Some(match entry {
        Err(reason) => Step::missing(
            "outer route",
            format!("no route for the tunnel's packets to the node {remote}: {}", reason.text),
            format!(
                "give this host a route to {remote} (`ip route`), or see which rule of `ip rule` takes them elsewhere"
            ),
        ),
        Ok((key, route)) => {
            let found = format!("{remote} by {} {route}{}", key.dst, by_rule(key));
            let under = route.link.as_ref().and_then(|name| facts.link(name));
            let through_itself = under.is_some_and(|under| under.index == link.index);
            if through_itself {
                let fix = format!("the route {} must not cover the nodes' addresses", key.dst);
                return Some(Step::wrong("outer route", format!("{found}: the tunnel leads into itself"), fix));
            }
            let (inner, lower) =
                (link.link.mtu.unwrap_or_default(), under.and_then(|under| under.link.mtu).unwrap_or(u32::MAX));
            let needs = inner.saturating_add(overhead(&link.link.kind, remote.is_ipv6()));
            if needs > lower {
                let fits = lower.saturating_sub(overhead(&link.link.kind, remote.is_ipv6()));
                let found = format!("{found}, MTU {lower}: packets of {inner} bytes need {needs}");
                return Some(Step::wrong("outer route", found, format!("netd config edit Backend.MTU={fits}")));
            }
            Step::ok("outer route", found)
        }
    })
}

/// The Pod of this node that shall get the packet.
fn receiver(facts: &Facts) -> Option<Step> {
    let to = facts.to?.ip();
    let own = facts.subnets.iter().any(|subnet| subnet.contains(to));
    if !own || facts.addresses.iter().any(|(_, addr)| *addr == to) {
        return None;
    }
    Some(match &facts.receiver {
        Some(netns) => Step::ok("receiver", format!("{to} in {netns}")),
        None => Step::missing(
            "receiver",
            format!("no network namespace of this node has {to}"),
            "the Pod is gone, or its interface: whoever sends there has an old address",
        ),
    })
}

#[cfg(test)]
mod tests;
