//! `Site`: one place where clients connect, and the Service that has it.
//!
//! Invariant: a place that no Service has is a site as well: what the kernel does there is asked too.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use netstate::ipvs::VirtualServerKey;
use netstate::{IpFamily, Protocol};

use super::target::Target;
use crate::facts::Facts;
use crate::object::ObjectName;
use crate::object::service::{Service, ServicePort};
use crate::plan::frontend::{Kind, Place, places};
use crate::plan::{Frontend, FrontendKey};

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Site {
    pub(super) protocol: Protocol,
    /// Where a client connects.
    pub(super) at: SocketAddr,
    /// What is claimed there.
    pub(super) key: FrontendKey,
}

impl Site {
    /// A place at an address of its own.
    pub(super) const fn address(protocol: Protocol, at: SocketAddr) -> Self {
        Self { protocol, at, key: FrontendKey { protocol, place: Place::Address(at.ip()), port: at.port() } }
    }

    /// The virtual server that would stand there.
    pub(super) const fn server(&self) -> VirtualServerKey {
        VirtualServerKey { protocol: self.protocol, addr: self.at.ip(), port: self.at.port() }
    }

    /// What is planned there.
    pub(super) fn frontend<'a>(&self, facts: &'a Facts) -> Option<&'a Frontend> {
        facts.planned.claims.served(&self.key)
    }

    /// The Service that is served there, or would be, with its port and what the address is to it.
    pub(super) fn service<'a>(&self, facts: &'a Facts) -> Option<(&'a Service, &'a ServicePort, Kind)> {
        let owner = self.frontend(facts).map(|frontend| &frontend.owner);
        let of = |service: &'a Service| {
            let ports = service.ports.iter();
            let found = ports.flat_map(|port| {
                places(service, port, &service.cluster_ips).into_iter().map(move |place| (port, place))
            });
            let mut found = found.filter(|(_, (key, _))| *key == self.key);
            found.next().map(|(port, (_, kind))| (service, port, kind))
        };
        match owner {
            Some(owner) => facts.view.service(owner).and_then(of),
            None => facts.view.services().find_map(of),
        }
    }
}

/// The places that are asked about.
///
/// # Errors
/// Why there is none.
pub(super) fn find(target: &Target, facts: &Facts) -> Result<Vec<Site>, String> {
    match target {
        Target::Place { protocol, addr, port } => Ok(vec![at_address(facts, *protocol, SocketAddr::new(*addr, *port))]),
        Target::Service { name, port, protocol } => of_service(facts, name, port.as_deref(), *protocol),
    }
}

/// Those of `sites` that a client at `from` can send to: no packet leads from an address of one family to one of the other.
///
/// # Errors
/// When there is none.
pub(super) fn within_reach(sites: Vec<Site>, from: Option<IpAddr>) -> Result<Vec<Site>, String> {
    let Some(from) = from else { return Ok(sites) };
    let (near, far): (Vec<Site>, Vec<Site>) =
        sites.into_iter().partition(|site| IpFamily::of(site.at.ip()) == IpFamily::of(from));
    match (near.is_empty(), far.first()) {
        (true, Some(site)) => {
            Err(format!("--from {from} and {} are of different families: nothing is sent there", site.at))
        }
        _ => Ok(near),
    }
}

fn at_address(facts: &Facts, protocol: Protocol, at: SocketAddr) -> Site {
    let site = Site::address(protocol, at);
    let any = FrontendKey { place: Place::AnyNode(IpFamily::of(at.ip())), ..site.key };
    let is_node_port = site.frontend(facts).is_none()
        && facts.here.node_port_addresses.contains(&at.ip())
        && facts.planned.claims.served(&any).is_some();
    if is_node_port { Site { key: any, ..site } } else { site }
}

fn of_service(
    facts: &Facts,
    name: &ObjectName,
    wanted: Option<&str>,
    protocol: Option<Protocol>,
) -> Result<Vec<Site>, String> {
    let Some(service) = facts.view.service(name) else {
        let object = format!("services/{name}");
        let malformed = facts.view.malformed().find(|(key, ..)| *key == object).map(|(_, reason, _)| reason.to_owned());
        return Err(match (malformed, &facts.lost) {
            (Some(reason), _) => format!("{object} cannot be read: {reason}"),
            (None, Some(lost)) => format!("{object}: the source cannot be read ({lost}); ask for its address and port"),
            (None, None) => format!("there is no {object}"),
        });
    };
    let is_wanted = |port: &&ServicePort| {
        wanted.is_none_or(|wanted| port.name == wanted || port.port.to_string() == wanted)
            && protocol.is_none_or(|protocol| port.protocol == protocol)
    };
    let own = &facts.here.node_port_addresses;
    let sites: Vec<Site> = service
        .ports
        .iter()
        .filter(is_wanted)
        .flat_map(|port| places(service, port, &service.cluster_ips))
        .filter_map(|(key, _)| {
            Some(Site { protocol: key.protocol, at: SocketAddr::new(reached(&key, own)?, key.port), key })
        })
        .collect();
    if !sites.is_empty() {
        return Ok(sites);
    }
    let ports: Vec<_> = service.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect();
    Err(match ports.as_slice() {
        [] => format!("services/{name} is served by nobody: it is headless, an ExternalName, or another proxy's"),
        ports => format!("services/{name} has no such port; it has {}", ports.join(", ")),
    })
}

/// The address that a client connects to: of a NodePort the first one that has NodePorts.
fn reached(key: &FrontendKey, own: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let fits = |addr: &&IpAddr| IpFamily::of(**addr) == key.family();
    match key.place {
        Place::Address(addr) => Some(addr),
        Place::AnyNode(_) => own.iter().find(fits).copied(),
    }
}

/// Whether `addr` counts on one link only.
pub(super) const fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
}
