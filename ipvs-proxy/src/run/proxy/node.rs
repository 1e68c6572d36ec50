//! What becomes of this node while the proxy runs, and what load balancers ask it.
//!
//! Invariant: of a change only what depends on it is planned again, and of the rows only those at addresses of the node are made anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Proxy;
use crate::dataplane::{self, DataPlane, NodeAddresses};
use crate::object::ObjectName;
use crate::object::slice::EndpointSlice;
use crate::plan::announced::Announced;
use crate::plan::check::HealthCheck;
use crate::plan::depends_on_zone;
use crate::plan::here::{Facts, Mode};
use crate::plan::networks::NodeNetwork;
use crate::plan::remarks::remarks;

/// What load balancers ask about, as far as it changed, and where they ask when that did.
pub(crate) type ChangedChecks = (BTreeMap<ObjectName, Option<HealthCheck>>, Option<BTreeSet<IpAddr>>);

impl Proxy {
    /// Takes in what the source says of this node. A heartbeat changes nothing of that.
    pub(super) fn follow_node(&mut self) {
        let object = self.view.node(&self.facts.node);
        if object == self.facts.object.as_ref() {
            return;
        }
        let object = object.cloned();
        self.had_node = true;
        self.learn(|facts| facts.object = object);
    }

    /// Why no new traffic from outside is to come to this node, if so, as kube-proxy judges it: its Node is being deleted, is gone, or the
    /// autoscaler is about to remove it. A node that the source never had is like any other.
    #[must_use]
    pub(crate) fn ineligible(&self) -> Option<String> {
        match &self.facts.object {
            Some(node) => node.leaving.map(|leaving| format!("Node {}: {leaving}", node.name)),
            None => self.had_node.then(|| format!("Node {} is gone from the source", self.facts.node)),
        }
    }

    /// Where node ports are.
    pub(crate) const fn node_port_addresses(&self) -> &BTreeSet<IpAddr> {
        &self.here.node_port_addresses
    }

    /// What the operator should know where flags, Node object and machine differ.
    #[must_use]
    pub(crate) fn remarks(&self) -> Vec<String> {
        if self.gate.is_open() { remarks(&self.facts) } else { Vec::new() }
    }

    /// Takes in what has become of this node. What depends on it is planned again.
    pub(crate) fn learn(&mut self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts);
        let new = self.facts.here(mode(&self.plane));
        let change = self.here.change(&new);
        if self.here.check_addresses != new.check_addresses {
            self.changed_checks.1 = Some(new.check_addresses.clone());
        }
        self.here = new;
        self.tables.want(self.plane.set_pods(self.here.pods.clone(), self.claims.all()));
        self.move_node();
        if self.follow_networks() || change.all {
            self.dirty.extend(self.view.services().map(|service| service.name.clone()));
            return;
        }
        if change.zone {
            self.dirty.extend(self.zoned.iter().cloned());
        }
        if !change.addresses.is_empty() {
            let is_about = |slice: &&EndpointSlice| {
                slice.endpoints.iter().any(|endpoint| change.addresses.contains(&endpoint.addr))
            };
            self.dirty.extend(self.view.all_slices().filter(is_about).map(|slice| slice.service.clone()));
        }
    }

    /// Lets Services have what is no network of this node any more, until it is one again; returns whether that changed. One that comes
    /// while Services are served in it takes nothing from them.
    fn follow_networks(&mut self) -> bool {
        let is_there = |node: &&NodeNetwork| self.facts.own.all.contains(&node.addr);
        let there: Vec<_> = self.node_networks.iter().filter(is_there).cloned().collect();
        let differ = there != self.networks.node;
        self.networks.node = there;
        differ
    }

    /// Takes in which Service networks the API server announces.
    pub(crate) fn announce(&mut self, announced: Announced) {
        if let Some(trouble) =
            announced.trouble.as_ref().filter(|trouble| self.announced.trouble.as_ref() != Some(*trouble))
        {
            tracing::warn!("ServiceCIDRs: {trouble}; what is known of them stays");
        }
        self.tables.want(self.plane.set_announced(announced.networks()));
        self.announced = announced;
    }

    /// Lets the rows follow the addresses of this node.
    pub(super) fn move_node(&mut self) {
        self.tables.set_own(self.here.addresses.clone());
        self.tables.want(self.plane.set_node(NodeAddresses::from(&self.here), self.claims.all()));
    }

    /// Notes what of a Service that is planned depends on this node.
    pub(super) fn note(&mut self, name: &ObjectName) {
        let Some(service) = self.view.service(name) else { return };
        if depends_on_zone(self.view.slices(name)) {
            self.zoned.insert(name.clone());
        } else {
            self.zoned.remove(name);
        }
        let check = HealthCheck::of(service, self.view.slices(name), &self.here);
        self.check(name, check);
    }

    /// Puts what is asked about a Service in place of what was.
    pub(super) fn check(&mut self, name: &ObjectName, check: Option<HealthCheck>) {
        if self.checks.get(name) == check.as_ref() {
            return;
        }
        match check {
            Some(check) => drop(self.checks.insert(name.clone(), check)),
            None => drop(self.checks.remove(name)),
        }
        self.changed_checks.0.insert(name.clone(), check);
    }

    /// What load balancers ask about, as far as it changed since the last call; nothing before everything is listed.
    pub(crate) fn take_checks(&mut self) -> ChangedChecks {
        if self.gate.is_open() { std::mem::take(&mut self.changed_checks) } else { ChangedChecks::default() }
    }

    /// Endpoints are meant for zones, and the zone of this node is unknown.
    #[must_use]
    pub(crate) fn lacks_zone(&self) -> bool {
        self.here.zone.is_none() && !self.zoned.is_empty()
    }
}

/// The data path, as the facts of this node know it.
pub(super) fn mode(plane: &DataPlane) -> Mode {
    match plane.mode() {
        dataplane::Mode::Ipvs => Mode::Ipvs,
        dataplane::Mode::Nftables => Mode::Nftables,
    }
}
