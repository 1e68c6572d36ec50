//! Paths that are wanted, what each needs, and who may answer.
//!
//! Invariant: pure; all of it follows from what the schedule wants now. A path that needs what is no more is wanted no more.

use std::net::SocketAddr;
use std::time::Duration;

use crate::ledger::Element;
use crate::shared::{Service, Spot, State, Station};

/// The machine that has nothing to do with the cluster.
pub(crate) const OUTSIDE: &str = "outside";

/// Where everybody's server listens.
pub(crate) const PORT: u16 = 80;

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum To {
    /// A Pod's own address.
    Pod(String),
    /// A Service's virtual address.
    Service(String),
    /// A Service's port at a node.
    NodePort { service: String, node: String },
    /// A Pod's port at its node.
    HostPort(String),
    /// The machine outside, which has no route to a Pod: it answers to the node's address alone.
    Outside,
}

/// One path that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) from: String,
    pub(crate) to: To,
    pub(crate) udp: bool,
}

impl Path {
    pub(crate) fn text(&self) -> String {
        let to = match &self.to {
            To::Pod(name) | To::Service(name) => name.clone(),
            To::NodePort { service, node } => format!("the node port of {service} at {node}"),
            To::HostPort(pod) => format!("the host port of {pod}"),
            To::Outside => OUTSIDE.to_owned(),
        };
        format!("{} to {to} by {}", self.from, if self.udp { "UDP" } else { "TCP" })
    }
}

/// A path as it is now: the station that it begins at, the address it leads to, and what it needs.
pub(crate) type Resolved = (Station, SocketAddr, Vec<Element>);

impl State {
    /// What a path is now; `None` when it is wanted no more.
    pub(crate) fn resolve(&self, path: &Path) -> Option<Resolved> {
        let from = self.stations.get(&path.from)?.clone();
        let mut needs = vec![Element::Store, Element::Node(from.node.clone()), Element::Netd(from.node.clone())];
        if from.address().is_some() {
            needs.push(Element::Pod(path.from.clone()));
        }
        let address = match &path.to {
            To::Service(name) => {
                self.served(name, &from.node, &mut needs)?;
                self.services.get(name)?.address
            }
            To::NodePort { service, node } => {
                // Nobody is asked at a node that has left.
                self.stations.get(node)?;
                between(&from.node, node, &mut needs);
                self.served(service, node, &mut needs)?;
                self.machine(node, self.services.get(service)?.node_port)?
            }
            To::Pod(name) => {
                let to = self.stations.get(name)?;
                between(&from.node, &to.node, &mut needs);
                needs.push(Element::Pod(name.clone()));
                SocketAddr::new(to.address()?.into(), PORT)
            }
            To::HostPort(name) => {
                let to = self.stations.get(name)?;
                between(&from.node, &to.node, &mut needs);
                needs.extend([Element::Pod(name.clone()), Element::Translation(to.node.clone())]);
                self.machine(&to.node, to.host_port()?)?
            }
            To::Outside => {
                needs.extend([Element::Uplink(from.node.clone()), Element::Translation(from.node.clone())]);
                self.machine(OUTSIDE, PORT)?
            }
        };
        Some((from, address, needs))
    }

    /// What it needs that the node `at` serves a Service.
    fn served(&self, name: &str, at: &str, needs: &mut Vec<Element>) -> Option<()> {
        let node = at.to_owned();
        needs.extend([Element::Services(node.clone()), Element::Proxy(node), Element::Service(name.to_owned())]);
        for endpoint in &self.services.get(name)?.endpoints {
            let Some(station) = self.stations.get(endpoint) else { continue };
            between(at, &station.node, needs);
            needs.push(Element::Pod(endpoint.clone()));
        }
        Some(())
    }

    fn machine(&self, name: &str, port: u16) -> Option<SocketAddr> {
        self.machines.get(name).map(|address| SocketAddr::from((*address, port)))
    }

    /// Whether the one of this name may answer what was asked at `began`: until a path is due, an endpoint that was one before may as well.
    pub(crate) fn may_answer(&self, path: &Path, name: &str, began: Duration, scale: f64) -> bool {
        let service = match &path.to {
            To::Pod(pod) | To::HostPort(pod) => return name == pod,
            To::Outside => return name == OUTSIDE,
            To::Service(service) | To::NodePort { service, .. } => service,
        };
        let Some(Service { endpoints, .. }) = self.services.get(service) else { return false };
        let due = self.resolve(path).and_then(|(.., needs)| self.ledger.due(&needs, scale));
        let changes = due.is_none_or(|due| began < due);
        let was_endpoint = || self.previous.get(service).is_some_and(|previous| previous.contains(name));
        endpoints.contains(name) || (changes && was_endpoint())
    }

    /// Every path that is wanted now.
    pub(crate) fn paths(&self) -> Vec<Path> {
        let (pods, hosts): (Vec<_>, Vec<_>) =
            self.stations.iter().partition(|(_, station)| station.address().is_some());
        let services: Vec<&String> =
            self.services.iter().filter(|(_, service)| !service.endpoints.is_empty()).map(|(name, _)| name).collect();
        let nodes = || hosts.iter().map(|(name, _)| *name).filter(|name| *name != OUTSIDE);
        let mut wanted: Vec<(&String, To)> = Vec::new();
        for from in pods.iter().map(|(name, _)| *name).chain(nodes()) {
            let others = pods.iter().filter(|(name, _)| *name != from).map(|(name, _)| To::Pod((*name).clone()));
            let virtual_ones = services.iter().map(|name| To::Service((*name).clone()));
            wanted.extend(others.chain(virtual_ones).map(|to| (from, to)));
        }
        wanted.extend(pods.iter().map(|(pod, _)| (*pod, To::Outside)));
        if let Some((outside, _)) = self.stations.get_key_value(OUTSIDE) {
            wanted.extend(pods.iter().map(|(pod, _)| (outside, To::HostPort((*pod).clone()))));
            let at = |service: &&String| {
                let service = (*service).clone();
                nodes().map(move |node| (outside, To::NodePort { service: service.clone(), node: node.clone() }))
            };
            wanted.extend(services.iter().flat_map(at));
        }
        let paths = wanted.into_iter().enumerate();
        paths.map(|(number, (from, to))| Path { from: from.clone(), to, udp: number % 2 == 1 }).collect()
    }
}

impl Station {
    /// A Pod's port at its node.
    pub(crate) fn host_port(&self) -> Option<u16> {
        match &self.spot {
            Spot::Host(_) => None,
            Spot::Pod(pod) => Some(pod.host_port),
        }
    }
}

/// What packets between two machines, or Pods of them, need.
fn between(one: &str, other: &str, needs: &mut Vec<Element>) {
    needs.push(Element::Node(other.to_owned()));
    if one != other {
        needs.extend([
            Element::Uplink(one.to_owned()),
            Element::Uplink(other.to_owned()),
            Element::Netd(other.to_owned()),
        ]);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn endpoint_of_before_may_answer_until_the_path_is_due_and_no_other_pod_ever() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let mut state = State::default();
        let address = SocketAddr::from(([192, 168, 0, 11], 80));
        let service = Service { address, node_port: 30011, endpoints: names(&["p2"]) };
        state.services.insert("s1".to_owned(), service);
        state.previous.insert("s1".to_owned(), names(&["p1"]));
        let path = |to| Path { from: "p9".to_owned(), to, udp: false };
        // A station that is gone has no path, and nothing is due.
        let may = |to, name: &str| state.may_answer(&path(to), name, Duration::from_secs(3), 1.0);
        let node_port = To::NodePort { service: "s1".to_owned(), node: "n1".to_owned() };
        for to in [To::Service("s1".to_owned()), node_port] {
            assert!(may(to.clone(), "p2") && may(to.clone(), "p1") && !may(to, "p3"));
        }
        for to in [To::Pod("p4".to_owned()), To::HostPort("p4".to_owned())] {
            assert!(may(to.clone(), "p4") && !may(to, "p5"));
        }
        assert!(may(To::Outside, OUTSIDE) && !may(To::Outside, "p4"));
    }
}
