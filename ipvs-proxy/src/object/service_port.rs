//! `ServicePort`: a port of a Service.
//!
//! Invariant: of the ports of a Service each name, and each pair of protocol and port, or node port, is there once.

use std::collections::BTreeSet;

use cluster::Problem;
use netstate::Protocol;

use super::LONGEST_LABEL;
use super::field::{Field, keep, or_open, skip};

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ServicePort {
    /// Its name, which finds the port of an EndpointSlice; empty for an only port.
    pub(crate) name: String,
    /// Transport protocol.
    pub(crate) protocol: Protocol,
    /// The virtual port.
    pub(crate) port: u16,
    /// The port at every address of the node, if it has one.
    pub(crate) node_port: Option<u16>,
}

/// The ports of a Service; those that cannot be read go to `skipped`.
///
/// # Errors
/// When what stands there is no list, or nothing of it can be read.
pub(super) fn ports(root: &Field<'_>, skipped: &mut Vec<String>) -> Result<Vec<ServicePort>, Problem> {
    let items = root.get("spec").get("ports").items()?;
    let (mut ports, mut refused): (Vec<ServicePort>, Option<Problem>) = (Vec::new(), None);
    let mut taken = Taken::default();
    for item in &items {
        let mut port = port(item, items.len() > 1, skipped);
        if let Ok(port) = &mut port
            && !taken.has_room_for_node_port(port)
        {
            port.node_port = None;
            skip(skipped, &item.get("nodePort").problem("each pair of protocol and node port once"));
        }
        let once = "each name, and each pair of protocol and port, once";
        let port = port.and_then(|port| taken.take_in(&port).then_some(port).ok_or_else(|| item.problem(once)));
        refused = refused.or_else(|| port.as_ref().err().cloned());
        keep(&mut ports, skipped, port);
    }
    match refused {
        // Nothing would be left of the Service: it is malformed.
        Some(problem) if ports.is_empty() => Err(problem),
        _ => Ok(ports),
    }
}

/// A port; a node port that cannot be read goes to `skipped`.
fn port(item: &Field<'_>, one_of_several: bool, skipped: &mut Vec<String>) -> Result<ServicePort, Problem> {
    let name = item.get("name").text()?.unwrap_or_default().to_owned();
    // It is a label of what is counted.
    if name.len() > LONGEST_LABEL {
        return Err(item.get("name").problem("a name of at most 63 letters"));
    }
    if name.is_empty() && one_of_several {
        return Err(item.get("name").problem("a name for each of several ports"));
    }
    let port = item.get("port").port()?.ok_or_else(|| item.get("port").problem("a port from 1 to 65535"))?;
    let protocol = item.get("protocol").protocol()?;
    Ok(ServicePort { name, protocol, port, node_port: or_open(skipped, node_port(&item.get("nodePort"))) })
}

/// What the ports before have: whoever writes a Service chooses how many there are.
#[derive(Default)]
struct Taken {
    names: BTreeSet<String>,
    ports: BTreeSet<(Protocol, u16)>,
    node_ports: BTreeSet<(Protocol, u16)>,
}

impl Taken {
    fn has_room_for_node_port(&self, port: &ServicePort) -> bool {
        port.node_port.is_none_or(|number| !self.node_ports.contains(&(port.protocol, number)))
    }

    /// Takes a port in, unless one before has its name or its pair of protocol and port.
    fn take_in(&mut self, port: &ServicePort) -> bool {
        if self.names.contains(&port.name) || self.ports.contains(&(port.protocol, port.port)) {
            return false;
        }
        self.names.insert(port.name.clone());
        self.ports.insert((port.protocol, port.port));
        self.node_ports.extend(port.node_port.map(|number| (port.protocol, number)));
        true
    }
}

/// A port of the node; the API writes 0 for none.
///
/// # Errors
/// When something else stands there.
pub(super) fn node_port(field: &Field<'_>) -> Result<Option<u16>, Problem> {
    if field.is_zero() { Ok(None) } else { field.port() }
}
