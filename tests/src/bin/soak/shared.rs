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

use crate::ledger::Ledger;
use crate::paths::Path;

/// A Pod with its server.
#[derive(Debug)]
pub(crate) struct RunningPod {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) sandbox: Sandbox,
    /// Its port 80 at the node.
    pub(crate) host_port: u16,
    /// Ends before the Pod's network does.
    pub(crate) server: Process,
}

/// Where a question begins.
#[derive(Debug, Clone)]
pub(crate) enum Spot {
    Host(Host),
    Pod(Arc<RunningPod>),
}

/// A node, a Pod, or the machine outside.
#[derive(Debug, Clone)]
pub(crate) struct Station {
    /// The node that it is or runs on; of the machine outside its own name.
    pub(crate) node: String,
    pub(crate) spot: Spot,
}

/// A Service as it was published last.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    /// The same at each node.
    pub(crate) node_port: u16,
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

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) ledger: Ledger,
    pub(crate) stations: BTreeMap<String, Station>,
    /// Current addresses of the machines.
    pub(crate) machines: BTreeMap<String, Ipv4Addr>,
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
