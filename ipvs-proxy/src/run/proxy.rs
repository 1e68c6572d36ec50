//! `Proxy`: what is known, what is planned and what the kernel holds, on one thread.
//!
//! It receives ([`Proxy::take`]) and it works ([`Proxy::work`]); the clock is an argument. Invariants: only Services that a
//! change concerns are planned; a Service that cannot be served as it is now goes on as it was; a Service that was malformed
//! before this program started goes on as the kernel remembers it.

mod node;
pub(super) mod occasions;
mod places;
mod planning;
mod succession;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use daemon::spent::Spent;
use reconcile::{Gate, Pass};

use self::node::{ChangedChecks, mode};
use self::occasions::Occasions;
use super::flows::{Locals, Masqueraded};
use super::log::log;
use super::memory::{is_in_doubt, remember};
use super::tables::{Tables, Touched};
use crate::dataplane::DataPlane;
use crate::object::ObjectName;
use crate::object::key::Kind;
use crate::plan::announced::Announced;
use crate::plan::check::HealthCheck;
use crate::plan::findings::Findings;
use crate::plan::here::{Facts, Here};
use crate::plan::networks::{Networks, NodeNetwork};
use crate::plan::{Claims, NoLocal, ServicePlan};
use crate::source::Update;
use crate::source::doubt::{GRACE, How, is_doubtful};
use crate::source::view::View;

/// The proxy; see the module's text.
pub(crate) struct Proxy {
    facts: Facts,
    /// What follows from them.
    here: Here,
    /// The source has, or had, its Node object.
    had_node: bool,
    networks: Networks,
    /// Those of the node's that were there at the start.
    node_networks: Vec<NodeNetwork>,
    announced: Announced,
    view: View,
    claims: Claims,
    plane: DataPlane,
    tables: Tables,
    gate: Gate<Kind>,
    dirty: BTreeSet<ObjectName>,
    /// Services that belong to a change whose end was not received yet.
    changed: BTreeSet<ObjectName>,
    misplaced: BTreeMap<ObjectName, String>,
    /// Services that ask for a scheduler that the kernel has not.
    lacking: BTreeSet<ObjectName>,
    /// Services with endpoints that are meant for zones.
    zoned: BTreeSet<ObjectName>,
    /// What is to be said of each Service and its slices.
    findings: Findings,
    /// Ports without an endpoint here, of all Services.
    no_local: NoLocal,
    /// What load balancers ask about.
    checks: BTreeMap<ObjectName, HealthCheck>,
    /// What of it changed since it was last taken, and where they ask.
    changed_checks: ChangedChecks,
    /// Services that are served as the kernel remembers them; `None` before the kernel was asked.
    remembered: Option<BTreeSet<ObjectName>>,
    /// Unix time of the clock's zero, in seconds.
    epoch: u64,
    /// The record is marked as whole.
    whole: bool,
    /// What the first listing leaves out may go.
    believed: bool,
    doubted_since: Option<Duration>,
    first_alarm: Option<String>,
    /// When tables that announce no changes are compared.
    occasions: Occasions,
    totals: Totals,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Passes over the tables.
    pub(crate) passes: u64,
    /// Tables listed.
    pub(crate) observed: u64,
    /// Rows created or changed.
    pub(crate) upserted: u64,
    /// Rows removed.
    pub(crate) removed: u64,
    /// Steps and listings that failed.
    pub(crate) failed: u64,
}

impl Proxy {
    /// A proxy that knows nothing yet; `epoch` is the Unix time at which its clock shows zero.
    #[must_use]
    pub(crate) fn new(facts: Facts, networks: Networks, plane: DataPlane, tables: Tables, epoch: u64) -> Self {
        let mut proxy = Self {
            here: facts.here(mode(&plane)),
            facts,
            had_node: false,
            node_networks: networks.node.clone(),
            networks,
            announced: Announced::default(),
            view: View::default(),
            claims: Claims::default(),
            plane,
            tables,
            gate: Gate::new(Kind::ALL),
            dirty: BTreeSet::new(),
            changed: BTreeSet::new(),
            misplaced: BTreeMap::new(),
            lacking: BTreeSet::new(),
            zoned: BTreeSet::new(),
            findings: Findings::default(),
            no_local: NoLocal::default(),
            checks: BTreeMap::new(),
            changed_checks: ChangedChecks::default(),
            remembered: None,
            epoch,
            whole: false,
            believed: false,
            doubted_since: None,
            first_alarm: None,
            occasions: Occasions::default(),
            totals: Totals::default(),
        };
        proxy.changed_checks.1 = Some(proxy.here.check_addresses.clone());
        proxy.move_node();
        proxy
    }

    /// Takes in what the source of objects says. Costs no more than the object it is about.
    pub(crate) fn take(&mut self, update: Update) {
        log(&update, &self.view, &self.plane);
        let (end, complete) = (update.is_end(), update.completes());
        let before = self.view.doubt().alarm();
        self.changed.extend(self.view.take(update));
        if let Some(alarm) = self.view.doubt().alarm().filter(|alarm| end && before.as_ref() != Some(alarm)) {
            tracing::error!("{alarm}");
        }
        if end {
            self.dirty.append(&mut self.changed);
        }
        for kind in complete {
            self.gate.complete(kind);
        }
        self.release_remembered();
    }

    /// Forgets what the kernel held in a table that somebody else may have changed.
    pub(crate) fn touched(&mut self, touched: Touched) {
        self.tables.touched(touched);
    }

    /// Takes in that no local routes lead to these addresses any more.
    pub(crate) fn unrouted(&mut self, addresses: &BTreeSet<IpAddr>) {
        self.tables.unrouted(addresses);
    }

    /// Compares tables that announce no changes when it is time, plans what is dirty and brings the kernel's tables there. Returns what was done.
    pub(crate) fn work(&mut self, now: Duration) -> Pass {
        if self.occasions.is_due(now) {
            self.audit(now);
        }
        self.follow(now)
    }

    /// The same when somebody waits for a change: what goes by the clock comes behind it, and not at once unless it is late.
    pub(crate) fn work_on_order(&mut self, now: Duration) -> Pass {
        self.occasions.postpone(now);
        let mut pass = self.follow(now);
        if self.occasions.is_due(now) {
            pass += self.work(now);
        }
        pass
    }

    /// Plans what is dirty and brings the kernel's tables there.
    fn follow(&mut self, now: Duration) -> Pass {
        self.dirty.extend(self.view.believe(now));
        self.follow_node();
        // A Service of which only a part of a change is known is planned with the rest of it.
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.retain(|name| !self.changed.contains(name));
        let mut pass = self.begin_with_those_that_others_need(&mut dirty, now);
        self.plan_services(dirty);
        self.tables.look_at_drains(now);
        pass += self.tables.arrive(now);
        if self.gate.is_open() && self.remember() {
            // Or it would be in order at the next pass only, half a second later.
            pass += self.tables.arrive(now);
        }
        if self.gate.is_open() && self.believes(now) {
            pass += self.tables.leave(now);
            if !self.whole && self.tables.mark_whole(self.epoch.saturating_add(now.as_secs())) {
                self.whole = true;
                pass += self.tables.arrive(now);
            }
        }
        let locals = || Locals {
            own: self.here.addresses.clone(),
            node_ports: self.here.node_port_addresses.clone(),
            pods: self.plane.pods().clone(),
        };
        self.tables.settle_flows(locals, |frontend| Masqueraded::at(self.claims.served(frontend)));
        self.count(&pass);
        pass
    }

    /// Compares tables that announce no changes.
    fn audit(&mut self, now: Duration) {
        let is_time = self.occasions.look(now);
        if self.tables.look() && !is_time {
            return;
        }
        let spent = Spent::begin();
        self.tables.audit();
        if self.whole && occasions::is_large(spent.so_far()) {
            // It needed megabytes for a moment. What giving them back costs counts with it.
            kernel::heap::trim();
        }
        self.occasions.listed(now, spent.so_far());
    }

    /// The kernel's tables, to be audited.
    pub(crate) const fn tables_mut(&mut self) -> &mut Tables {
        &mut self.tables
    }

    /// When there is work again.
    #[must_use]
    pub(crate) fn next(&self) -> Duration {
        let own = self.occasions.next();
        self.tables.next().map_or(own, |next| next.min(own))
    }

    /// True when the first listing may take away what the kernel holds from before: when it shows enough of it, or has gone
    /// on showing little for [`GRACE`].
    fn believes(&mut self, now: Duration) -> bool {
        if self.believed {
            return true;
        }
        if !self.tables.is_read() {
            return false;
        }
        let (ours, desired) = self.tables.frontends();
        let doubtful = is_doubtful(ours, ours.saturating_sub(desired), How::Listing);
        let since = *self.doubted_since.get_or_insert(now);
        if doubtful && (self.view.lost().is_some() || now.saturating_sub(since) < GRACE) {
            let reason = format!(
                "the source shows {desired} of {ours} addresses and ports that are in the kernel from before; they stay until \
                 it has said so for {} s",
                GRACE.as_secs()
            );
            if self.first_alarm.replace(reason.clone()).is_none() {
                tracing::error!("{reason}");
            }
            return false;
        }
        self.first_alarm = None;
        self.believed = true;
        true
    }

    /// What an operator must know of a source that shows next to nothing.
    pub(crate) fn alarm(&self) -> Option<String> {
        self.first_alarm.clone().or_else(|| self.view.doubt().alarm())
    }

    /// Once, when the kernel has been read: lets Services in doubt go on as it holds them. Returns whether it was now.
    fn remember(&mut self) -> bool {
        if self.remembered.is_some() || !self.tables.is_read() {
            return false;
        }
        self.whole = self.tables.keep_marker();
        let plans = remember(&self.view, &self.tables, &self.here);
        self.remembered = Some(plans.keys().cloned().collect());
        for (name, plan) in plans {
            tracing::warn!(service = %name, "Service cannot be read and goes on as the kernel remembers it, with the endpoints that it had");
            let changes = self.settle(&name, Some(plan));
            self.tables.want(changes);
        }
        // Only now it can be known where they were served before.
        self.plan_services(self.misplaced.keys().cloned().collect());
        true
    }

    fn count(&mut self, pass: &Pass) {
        let add = |total: &mut u64, n: usize| *total = total.saturating_add(u64::try_from(n).unwrap_or(u64::MAX));
        self.totals.passes = self.totals.passes.saturating_add(1);
        add(&mut self.totals.observed, pass.observed);
        add(&mut self.totals.upserted, pass.upserted);
        add(&mut self.totals.removed, pass.removed);
        add(&mut self.totals.failed, pass.failed);
    }

    /// Lets go of remembered Services that nobody is malformed about any more.
    fn release_remembered(&mut self) {
        let Some(names) = self.remembered.as_mut().filter(|names| !names.is_empty()) else { return };
        let kept = |name: &ObjectName| is_in_doubt(&self.view, name);
        let released: Vec<_> = names.iter().filter(|name| !kept(name)).cloned().collect();
        for name in released {
            names.remove(&name);
            self.dirty.insert(name);
        }
    }

    /// What is known of the cluster.
    #[must_use]
    pub(crate) const fn view(&self) -> &View {
        &self.view
    }

    /// True when the kernel has all that is desired for a Service, and nothing that is not.
    #[must_use]
    pub(crate) fn is_in_place(&self, service: &ObjectName) -> bool {
        let mut frontends = self.claims.plan(service).map(ServicePlan::frontends).into_iter().flatten();
        frontends.all(|(frontend, _)| self.tables.is_settled(frontend))
    }

    /// The kernel's tables.
    #[must_use]
    pub(crate) const fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The name of this node.
    #[must_use]
    pub(crate) fn node(&self) -> &str {
        &self.facts.node
    }

    /// The data path.
    #[must_use]
    pub(crate) const fn plane(&self) -> &DataPlane {
        &self.plane
    }

    /// True while a change is coming in whose end is not there yet: what is known of it is not planned.
    #[must_use]
    pub(crate) fn is_mid_change(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The Service networks, and those that the API server announces.
    #[must_use]
    pub(crate) const fn service_networks(&self) -> (&Networks, &Announced) {
        (&self.networks, &self.announced)
    }

    /// What is planned.
    #[must_use]
    pub(crate) const fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The sources that have not been listed once.
    #[must_use]
    pub(crate) const fn gate(&self) -> &Gate<Kind> {
        &self.gate
    }

    /// Services whose address cannot be virtual here, with the reason.
    #[must_use]
    pub(crate) const fn misplaced(&self) -> &BTreeMap<ObjectName, String> {
        &self.misplaced
    }

    /// Ports of Services that have endpoints, but none here, where the policy asks for one.
    #[must_use]
    pub(crate) const fn no_local(&self) -> NoLocal {
        self.no_local
    }

    /// What is to be said of Services and their slices.
    #[must_use]
    pub(crate) const fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Services that are served as the kernel remembers them.
    pub(crate) fn remembered(&self) -> impl Iterator<Item = &ObjectName> {
        self.remembered.iter().flatten()
    }

    /// Counters since the start.
    #[must_use]
    pub(crate) const fn totals(&self) -> Totals {
        self.totals
    }
}
