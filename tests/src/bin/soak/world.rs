//! The cluster as the schedule sees it: nodes, members of etcd, Pods and Services.
//!
//! Invariant: what is wanted is decided here and nowhere else; the probes and the checks read it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::{Cluster, Etcd, Process, Topology, echo};

use crate::act::Action;
use crate::bounds;
use crate::ledger::Element;
use crate::node::Node;
use crate::options::Options;
use crate::paths::{OUTSIDE, PORT};
use crate::shared::{Shared, Spot, Station};

const DRAWING: &str = "network 10.4.7.0/24
e1 10.4.7.11 etcd
e2 10.4.7.12 etcd
e3 10.4.7.13 etcd
n1 10.4.7.31 node
n2 10.4.7.32 node
n3 10.4.7.33 node
n4 10.4.7.34 node
n5 10.4.7.35 node
outside 10.4.7.200
";

/// The machine that has nothing to do with the cluster, and is its gateway.
pub(crate) const GATEWAY: &str = "10.4.7.200";

/// Where netd's keys are.
pub(crate) const PREFIX: &str = "/coreos.com/network";

/// Members of etcd.
pub(crate) const MEMBERS: [&str; 3] = ["e1", "e2", "e3"];

/// The node whose daemons are never ended: what leaks is seen in them.
pub(crate) const VETERAN: &str = "n1";

/// The cluster.
pub(crate) struct World {
    pub(crate) shared: Arc<Shared>,
    pub(crate) nodes: BTreeMap<String, Node>,
    pub(crate) etcd: Etcd,
    /// What Pods reach by masquerade.
    _outside: Process,
    pub(crate) cluster: Cluster,
    pub(crate) options: Options,
    pub(crate) random: fastrand::Rng,
    /// Members of etcd that are down.
    pub(crate) down: BTreeSet<&'static str>,
    /// Nodes at which something is held: a daemon is down, a cable is out, a disk is full.
    pub(crate) busy: BTreeSet<String>,
    /// Current addresses of nodes.
    pub(crate) addresses: BTreeMap<String, std::net::Ipv4Addr>,
    /// The number of the next Pod, and of the next address.
    pub(crate) next_pod: u32,
    pub(crate) next_address: u8,
    /// Nodes whose disks are full.
    pub(crate) full: BTreeSet<String>,
    /// How often each action was begun, and each kind of row deleted.
    pub(crate) begun: BTreeMap<Action, u32>,
    pub(crate) deleted: BTreeMap<&'static str, u32>,
    /// Until when daemons may say that a disk is full.
    pub(crate) full_until: Duration,
}

impl World {
    /// Brings everything up: three members of etcd, five nodes with both daemons.
    pub(crate) fn start(options: Options, shared: Arc<Shared>) -> Result<Self> {
        let cluster = Cluster::start(&Topology::parse(DRAWING)?)?;
        let etcd = Etcd::start(cluster.with_role("etcd"))?;
        etcd.put(&format!("{PREFIX}/config"), &net_conf(&options.backend))?;
        let mut nodes = BTreeMap::new();
        let mut addresses = BTreeMap::new();
        for host in cluster.with_role("node") {
            addresses.insert(host.name().to_owned(), host.address()?);
            nodes.insert(host.name().to_owned(), Node::prepare(host, GATEWAY)?);
        }
        let random = fastrand::Rng::with_seed(options.seed);
        let (down, busy, full) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let (begun, deleted) = (BTreeMap::new(), BTreeMap::new());
        let outside = cluster.host(OUTSIDE)?.clone();
        let server = echo::serve(&outside, OUTSIDE, PORT)?;
        {
            let mut state = shared.lock();
            state.machines.insert(OUTSIDE.to_owned(), outside.address()?);
            state.stations.insert(OUTSIDE.to_owned(), Station { node: OUTSIDE.to_owned(), spot: Spot::Host(outside) });
        }
        let (next_pod, next_address, full_until) = (1, 101, Duration::ZERO);
        let mut world = Self {
            shared,
            nodes,
            etcd,
            _outside: server,
            cluster,
            options,
            random,
            down,
            busy,
            addresses,
            next_pod,
            next_address,
            full,
            begun,
            deleted,
            full_until,
        };
        for name in world.names() {
            world.start_daemons(&name)?;
        }
        for name in world.names() {
            world.node(&name)?.await_ready(bounds::STORE.mul_f64(bounds::scale()))?;
            world.enter(&name)?;
        }
        Ok(world)
    }

    /// Names of all machines that may be nodes.
    pub(crate) fn names(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    /// Names of the nodes that are in the cluster.
    pub(crate) fn joined(&self) -> Vec<String> {
        self.nodes.values().filter(|node| node.joined).map(|node| node.name.clone()).collect()
    }

    pub(crate) fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.get(name).with_context(|| format!("no node {name}"))
    }

    pub(crate) fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes.get_mut(name).with_context(|| format!("no node {name}"))
    }

    /// Starts both daemons of a node.
    pub(crate) fn start_daemons(&mut self, name: &str) -> Result<()> {
        let (endpoints, options) = (self.etcd.endpoints(), self.options.clone());
        let node = self.node_mut(name)?;
        node.start_netd(&endpoints)?;
        node.start_proxy(&endpoints, &options)
    }

    /// A node becomes part of what is wanted.
    pub(crate) fn enter(&mut self, name: &str) -> Result<()> {
        let address = *self.addresses.get(name).context("an address")?;
        let node = self.node_mut(name)?;
        node.joined = true;
        let station = Station { node: name.to_owned(), spot: Spot::Host(node.host.clone()) };
        let now = self.shared.now();
        let mut state = self.shared.lock();
        let elements = everything_of(name);
        state.ledger.disturb("a node joins", &elements, bounds::NODE, now);
        state.machines.insert(name.to_owned(), address);
        state.stations.insert(name.to_owned(), station);
        Ok(())
    }

    /// The nodes of the cluster at which nothing is held.
    pub(crate) fn idle(&self) -> Vec<String> {
        self.joined().into_iter().filter(|name| !self.busy.contains(name)).collect()
    }

    /// Names of the Pods of a node, or of all, in order.
    pub(crate) fn pods(&self, node: Option<&str>) -> Vec<String> {
        let state = self.shared.lock();
        let of_node = |station: &Station| node.is_none_or(|node| station.node == node) && station.address().is_some();
        state.stations.iter().filter(|(_, station)| of_node(station)).map(|(name, _)| name.clone()).collect()
    }

    /// Whether a majority of etcd's members runs.
    pub(crate) fn has_quorum(&self) -> bool {
        self.down.len() < 2
    }

    /// How long a quiet point waits for what must come: as long as a store that was away allows, and less where it is broken on purpose.
    pub(crate) fn patience(&self) -> Duration {
        if self.options.violate { bounds::CHANGE } else { bounds::STORE.mul_f64(bounds::scale()) }
    }

    /// One of these by chance.
    pub(crate) fn choose<T>(&mut self, among: Vec<T>) -> Option<T> {
        self.random.choice(among)
    }
}

/// Elements that a node's own end of paths consists of.
pub(crate) fn everything_of(name: &str) -> [Element; 4] {
    [Element::Node, Element::Uplink, Element::Services, Element::Translation].map(|element| element(name.to_owned()))
}

fn net_conf(backend: &str) -> String {
    format!(r#"{{"Network":"172.7.0.0/16","Backend":{{"Type":"{backend}"}}}}"#)
}
