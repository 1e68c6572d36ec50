//! What becomes of one client's connections, by the plan and by the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use kernel::query::Interface;
use netstate::ipvs::{Row, VirtualServerKey};
use netstate::{IfName, InterfaceAddress, IpFamily, Prefix, Route, RouteKey};
use serde::Serialize;

use super::super::sites::{Site, is_link_local};
use super::super::walk::{Outcome, Sender, Walk, World, follow};
use super::service::why;
use crate::facts::Facts;
use crate::plan::pods::Pods;

/// What becomes of a client's connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Client {
    /// Its address.
    pub(crate) address: IpAddr,
    /// What it is to this node.
    pub(crate) class: Class,
    /// What the rows of the kernel do.
    pub(crate) kernel: Vec<String>,
    /// What those that are planned would do, where that is something else.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) planned: Vec<String>,
    /// Why it reaches no endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// Every connection reaches an endpoint.
    pub(crate) reaches: bool,
}

/// What a client is to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Class {
    /// A Pod.
    Pod,
    /// This node itself.
    Node,
    /// Anybody else.
    Outside,
}

/// Where the planned rows and those of the kernel lead.
pub(crate) struct Walks {
    pub(crate) planned: Walk,
    pub(crate) kernel: Walk,
}

/// The clients that are asked about, with the rows that they meet.
pub(super) fn all(facts: &Facts, site: &Site, from: Option<IpAddr>) -> Vec<(Client, Walks)> {
    let of = |address: IpAddr| client(facts, site, address);
    match from {
        Some(from) => vec![of(from)],
        None => examples(facts, site).into_iter().map(of).collect(),
    }
}

/// A Pod, this node, and a host outside (RFC 5737, RFC 3849), of the family that is asked about.
fn examples(facts: &Facts, site: &Site) -> Vec<IpAddr> {
    let family = IpFamily::of(site.at.ip());
    let networks = networks(facts, family);
    let pod = networks.first().map(|(pods, _)| pods.nth(2).unwrap_or_else(|| pods.addr()));
    let own = facts.kernel.own();
    let usable = |addr: &&IpAddr| IpFamily::of(**addr) == family && !addr.is_loopback() && !is_link_local(**addr);
    let is_of_pods = |addr: &&IpAddr| networks.iter().any(|(pods, _)| pods.contains(**addr));
    let node = own.iter().filter(usable).find(|addr| !is_of_pods(addr)).or_else(|| own.iter().find(usable));
    let outside: IpAddr = match family {
        IpFamily::V4 => Ipv4Addr::new(203, 0, 113, 1).into(),
        IpFamily::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    pod.into_iter().chain(node.copied()).chain([outside]).collect()
}

/// The networks whose clients are known for Pods, with the interface that they come in by where that decides.
fn networks(facts: &Facts, family: IpFamily) -> Vec<(Prefix, Option<IfName>)> {
    let Some(pods) = facts.here.pods.get(family) else { return Vec::new() };
    if let Pods::Inside(network) = pods {
        return vec![(*network, None)];
    }
    let behind = facts.kernel.interfaces.iter().filter(|link| pods.are_behind(&link.name));
    let of = |link: &Interface| {
        let name = link.name.clone();
        let network = move |address: &InterfaceAddress| {
            let network = Prefix::new(address.addr, address.len).ok().filter(|network| network.family() == family)?;
            Some((network, Some(name.clone())))
        };
        link.addresses.iter().filter_map(network).collect::<Vec<_>>()
    };
    behind.flat_map(of).collect()
}

/// Virtual servers with the real servers that take new connections.
type Balanced = BTreeMap<VirtualServerKey, Vec<SocketAddr>>;

fn planned_servers(facts: &Facts, site: &Site) -> Balanced {
    let key = site.server();
    let taking = |row: &Row| row.reals.iter().filter(|(_, real)| real.weight > 0).map(|(at, _)| at).collect();
    facts.planned.ipvs.get(&key).map(|row| (key, taking(row))).into_iter().collect()
}

fn kernel_servers(facts: &Facts) -> Balanced {
    let of = |(key, server): (&VirtualServerKey, &crate::facts::Server)| {
        let taking = server.reals.iter().filter(|(_, (real, _))| real.weight > 0).map(|(at, _)| *at).collect();
        (*key, taking)
    };
    facts.kernel.servers.iter().map(of).collect()
}

fn client(facts: &Facts, site: &Site, address: IpAddr) -> (Client, Walks) {
    let own = facts.kernel.own();
    let is_node = own.contains(&address) || address.is_loopback();
    let networks = networks(facts, IpFamily::of(address));
    let pods = networks.into_iter().find(|(pods, _)| pods.contains(address));
    let (class, link) = match pods {
        _ if is_node => (Class::Node, None),
        Some((_, link)) => (Class::Pod, link),
        None => (Class::Outside, None),
    };
    let sender = Sender { addr: address, link, is_node };
    let (wanted, held) = (planned_servers(facts, site), kernel_servers(facts));
    let (mut with_virtual, mut local): (BTreeSet<IpAddr>, _) =
        (own.union(&facts.planned.addresses).copied().collect(), facts.kernel.local());
    let routed = |routes: &BTreeMap<RouteKey, Route>| {
        let addr = site.at.ip();
        Some(addr).filter(|addr| routes.keys().any(|key| key.dst.contains(*addr)))
    };
    with_virtual.extend(routed(&facts.planned.plane.local_routes()));
    local.extend(routed(&facts.kernel.routes));
    let planned = World { rows: &facts.planned.nft, servers: &wanted, local: &with_virtual };
    let kernel = World { rows: &facts.kernel.nft, servers: &held, local: &local };
    let walks = Walks {
        planned: follow(&planned, site.protocol, &sender, site.at),
        kernel: follow(&kernel, site.protocol, &sender, site.at),
    };
    let is_local = local.contains(&site.at.ip());
    let said = |walk: &Walk| outcomes(&walk.outcomes, is_local);
    let as_planned = facts.lost.is_some() || walks.planned.outcomes == walks.kernel.outcomes;
    let reaches = walks.kernel.outcomes.iter().all(|outcome| matches!(outcome, Outcome::Endpoint { .. }));
    let client = Client {
        address,
        class,
        kernel: said(&walks.kernel),
        planned: if as_planned { Vec::new() } else { said(&walks.planned) },
        reason: (!reaches).then(|| why(facts, site, &walks, (address, class))).flatten(),
        reaches,
    };
    (client, walks)
}

/// What can become of a connection, in words.
fn outcomes(found: &BTreeSet<Outcome>, is_local: bool) -> Vec<String> {
    let mut said = Vec::new();
    for (sees, masquerade) in [("the client's address", false), ("this node's address", true)] {
        let to: Vec<String> = found
            .iter()
            .filter_map(|outcome| match outcome {
                Outcome::Endpoint { to, masquerade: masked } if *masked == masquerade => Some(to.to_string()),
                _ => None,
            })
            .collect();
        match to.as_slice() {
            [] => {}
            [one] => said.push(format!("to {one}, which sees {sees}")),
            several => said.push(format!("to one of {}, which sees {sees}", several.join(", "))),
        }
    }
    let rest = found.iter().filter_map(|outcome| match outcome {
        Outcome::Endpoint { .. } => None,
        Outcome::Refused => Some("refused at once"),
        Outcome::Dropped => Some("dropped without an answer"),
        Outcome::Passed if is_local => Some("to this node itself: to who listens there, or refused"),
        Outcome::Passed => Some("sent on by this node's routes, to no endpoint"),
    });
    said.extend(rest.map(str::to_owned));
    said
}
