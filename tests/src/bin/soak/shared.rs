//! What the schedule and the probes share: places, Services, and what is known of paths.
//!
//! Invariant: whoever changes a place says so in the ledger under the same lock, so a probe is judged by what held while it was under way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use lab::cni::Sandbox;
use lab::echo::{self, Answer};
use lab::{Host, Process};

use crate::ledger::{Element, Ledger};

/// A Pod with its server.
#[derive(Debug)]
pub(crate) struct RunningPod {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) sandbox: Sandbox,
    /// Ends before the Pod's network does.
    pub(crate) server: Process,
}

/// Where a question begins.
#[derive(Debug, Clone)]
pub(crate) enum Spot {
    Host(Host),
    Pod(Arc<RunningPod>),
}

/// A node or a Pod.
#[derive(Debug, Clone)]
pub(crate) struct Station {
    pub(crate) node: String,
    pub(crate) spot: Spot,
}

/// A Service as it was published last.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    /// Names of the Pods.
    pub(crate) endpoints: BTreeSet<String>,
}

/// A thing that must not be.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub(crate) at: Duration,
    pub(crate) invariant: &'static str,
    pub(crate) text: String,
}

/// One path that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) udp: bool,
}

impl Path {
    pub(crate) fn text(&self) -> String {
        format!("{} to {} by {}", self.from, self.to, if self.udp { "UDP" } else { "TCP" })
    }
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) ledger: Ledger,
    pub(crate) stations: BTreeMap<String, Station>,
    pub(crate) services: BTreeMap<String, Service>,
    /// All that were endpoints of a Service of this name before.
    pub(crate) previous: BTreeMap<String, BTreeSet<String>>,
    /// Paths that failed, with the time at which they are asked again.
    pub(crate) failing: Vec<(Duration, Path)>,
    pub(crate) violations: Vec<Violation>,
    /// How often each invariant was verified.
    pub(crate) checks: BTreeMap<&'static str, u64>,
}

/// The state behind its lock, and the clock.
#[derive(Debug)]
pub(crate) struct Shared {
    began: Instant,
    state: Mutex<State>,
    ends: AtomicBool,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), state: Mutex::new(State::default()), ends: AtomicBool::new(false) }
    }

    /// Time since the beginning.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn end(&self) {
        self.ends.store(true, Ordering::Relaxed);
    }

    pub(crate) fn ends(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }

    /// Notes that an invariant was verified, and what is against it.
    pub(crate) fn verified(&self, invariant: &'static str, found: impl IntoIterator<Item = String>) {
        let at = self.now();
        let mut state = self.lock();
        *state.checks.entry(invariant).or_default() += 1;
        state.violations.extend(found.into_iter().map(|text| Violation { at, invariant, text }));
    }
}

impl Station {
    /// One question from here.
    pub(crate) fn ask(&self, to: SocketAddr, udp: bool, limit: Duration) -> Result<Answer> {
        match (&self.spot, udp) {
            (Spot::Host(host), false) => echo::ask_tcp(host, to, limit),
            (Spot::Host(host), true) => echo::ask_udp(host, to, limit),
            (Spot::Pod(pod), false) => echo::ask_tcp(pod.sandbox.pod(), to, limit),
            (Spot::Pod(pod), true) => echo::ask_udp(pod.sandbox.pod(), to, limit),
        }
    }

    /// A Pod's address.
    pub(crate) fn address(&self) -> Option<Ipv4Addr> {
        match &self.spot {
            Spot::Host(_) => None,
            Spot::Pod(pod) => Some(pod.sandbox.address()),
        }
    }
}

impl State {
    /// The station that a path begins at, the address it leads to and what it needs; `None` when it is wanted no more.
    pub(crate) fn resolve(&self, path: &Path) -> Option<(Station, SocketAddr, Vec<Element>)> {
        let from = self.stations.get(&path.from)?;
        let mut needs = vec![Element::Store, Element::Node(from.node.clone()), Element::Netd(from.node.clone())];
        if from.address().is_some() {
            needs.push(Element::Pod(path.from.clone()));
        }
        if let Some(service) = self.services.get(&path.to) {
            let node = from.node.clone();
            needs.extend([Element::Services(node.clone()), Element::Proxy(node), Element::Service(path.to.clone())]);
            for (endpoint, station) in
                service.endpoints.iter().filter_map(|name| Some((name, self.stations.get(name)?)))
            {
                between(&from.node, &station.node, &mut needs);
                needs.push(Element::Pod(endpoint.clone()));
            }
            return Some((from.clone(), service.address, needs));
        }
        let to = self.stations.get(&path.to)?;
        between(&from.node, &to.node, &mut needs);
        needs.push(Element::Pod(path.to.clone()));
        Some((from.clone(), SocketAddr::new(to.address()?.into(), 80), needs))
    }

    /// Whether the one of this name may answer what was asked at `began`: until a path is due, an endpoint that was one before may as well.
    pub(crate) fn may_answer(&self, path: &Path, name: &str, began: Duration, scale: f64) -> bool {
        let Some(service) = self.services.get(&path.to) else { return name == path.to };
        let due = self.resolve(path).and_then(|(.., needs)| self.ledger.due(&needs, scale));
        let changes = due.is_none_or(|due| began < due);
        let was_endpoint = || self.previous.get(&path.to).is_some_and(|previous| previous.contains(name));
        service.endpoints.contains(name) || (changes && was_endpoint())
    }

    /// Every path that is wanted now.
    pub(crate) fn paths(&self) -> Vec<Path> {
        let pods = self.stations.iter().filter(|(_, station)| station.address().is_some()).map(|(name, _)| name);
        let reachable = self.services.iter().filter(|(_, service)| !service.endpoints.is_empty());
        let targets: Vec<&String> = pods.chain(reachable.map(|(name, _)| name)).collect();
        let mut paths = Vec::new();
        for from in self.stations.keys() {
            for to in targets.iter().filter(|to| **to != from) {
                let udp = (paths.len() + from.len()) % 2 == 1;
                paths.push(Path { from: from.clone(), to: (*to).clone(), udp });
            }
        }
        paths
    }
}

/// What packets between Pods of two nodes need.
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
    use super::*;

    #[test]
    fn endpoint_of_before_may_answer_until_the_path_is_due_and_no_other_pod_ever() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let mut state = State::default();
        let address = SocketAddr::from(([192, 168, 0, 11], 80));
        state.services.insert("s1".to_owned(), Service { address, endpoints: names(&["p2"]) });
        state.previous.insert("s1".to_owned(), names(&["p1"]));
        let path = Path { from: "p9".to_owned(), to: "s1".to_owned(), udp: false };
        // A station that is gone has no path, and nothing is due.
        let may = |state: &State, name: &str| state.may_answer(&path, name, Duration::from_secs(3), 1.0);
        assert!(may(&state, "p2") && may(&state, "p1") && !may(&state, "p3"));
        let direct = Path { to: "p4".to_owned(), ..path.clone() };
        assert!(
            state.may_answer(&direct, "p4", Duration::ZERO, 1.0)
                && !state.may_answer(&direct, "p5", Duration::ZERO, 1.0)
        );
    }
}
