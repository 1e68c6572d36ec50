//! One Service from what is known of it to the rows that are desired.
//!
//! Invariants: what is said of a Service is found when it is planned, so that a report reads no object; a Service that cannot be served
//! as it is now goes on as it was.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use netstate::IpFamily;
use reconcile::Pass;

use super::super::memory::{is_in_doubt, recorded};
use super::Proxy;
use crate::dataplane::{Changes, Gathered, Mode};
use crate::object::ObjectName;
use crate::object::key::{Kind, ObjectKey};
use crate::object::service::{SCHEDULER, Service};
use crate::plan::findings::Finding;
use crate::plan::networks::placed;
use crate::plan::{ServicePlan, plan, unhinted, unmatched};

/// Services that are planned together.
const PART: usize = if cfg!(test) { 64 } else { 2048 };

/// With more Services than these a node that is new to them begins with those that others need.
const MANY: usize = if cfg!(test) { 8 } else { 256 };

/// The port of DNS.
const DNS: u16 = 53;

impl Proxy {
    /// On a node without virtual servers: puts the API server's Service and those of DNS in place before all others, which need them to
    /// start. nftables takes all Services with one transaction.
    pub(super) fn begin_with_those_that_others_need(
        &mut self,
        dirty: &mut BTreeSet<ObjectName>,
        now: Duration,
    ) -> Pass {
        if dirty.len() <= MANY || self.plane.mode() != Mode::Ipvs || !self.tables.have_no_servers() {
            return Pass::default();
        }
        let is_needed = |name: &ObjectName| {
            let has_dns = |service: &Service| service.ports.iter().any(|port| port.port == DNS);
            *name == ObjectName::new("default", "kubernetes") || self.view.service(name).is_some_and(has_dns)
        };
        let (first, rest) = std::mem::take(dirty).into_iter().partition(is_needed);
        *dirty = rest;
        self.plan_services(first);
        self.tables.arrive(now)
    }

    /// Plans Services as they are now, and notes what is to be said of them. Their rows are desired together: what comes together into a
    /// table takes half the memory of what comes one by one. What is new to the kernel comes in parts, so that it is not all there twice; of
    /// what the kernel holds already the tables keep one of two, which takes a walk along all of it.
    pub(super) fn plan_services(&mut self, names: BTreeSet<ObjectName>) {
        let many = names.len();
        let part = if self.tables.hold_few(many) { PART } else { many.max(1) };
        let mut names = names.into_iter().peekable();
        while names.peek().is_some() {
            let mut gathered = Gathered::default();
            for name in names.by_ref().take(part) {
                gathered.add(self.place_service(&name));
                self.find(&name);
            }
            self.tables.want(gathered.into_changes());
        }
        self.claims.planned(many);
    }

    /// Notes what of a Service and its slices is not served and what was left out of them.
    fn find(&mut self, name: &ObjectName) {
        let service = self.view.service(name).map(|service| {
            let mut not_served = self.plane.not_served(service);
            not_served.extend(unmatched(service, self.view.slices(name)));
            not_served.extend(unhinted(service, self.view.slices(name)));
            if let Some(scheduler) = service.scheduler.as_ref().filter(|_| self.lacking.contains(name)) {
                not_served.push(format!("metadata.annotations.{SCHEDULER}: {scheduler}, which the kernel has not"));
            }
            let key = ObjectKey { kind: Kind::Service, name: name.clone() };
            (key, Finding { not_served, skipped: service.skipped.clone() })
        });
        let slices = self.view.slices(name).map(|slice| {
            let key = ObjectKey { kind: Kind::EndpointSlice, name: slice.name.clone() };
            (key, Finding { not_served: slice.unserved.clone(), skipped: slice.skipped.clone() })
        });
        self.findings.set(name, service.into_iter().chain(slices));
    }

    /// Plans a Service; returns the rows that change with it.
    fn place_service(&mut self, name: &ObjectName) -> Changes {
        if self.remembered.as_ref().is_some_and(|names| names.contains(name)) && is_in_doubt(&self.view, name) {
            return Changes::default();
        }
        let Some(service) = self.view.service(name) else {
            self.misplaced.remove(name);
            self.zoned.remove(name);
            self.check(name, None);
            self.lacking.remove(name);
            return self.settle(name, None);
        };
        let (addresses, refused) = placed(service, &self.networks, || self.before(name));
        let reasons: Vec<_> = refused.iter().map(ToString::to_string).collect();
        if reasons.is_empty() {
            self.misplaced.remove(name);
        } else if self.misplaced.get(name) != Some(&reasons.join("; ")) {
            let reason = reasons.join("; ");
            tracing::warn!(service = %name, reason, "an address is not served; where the Service was before it goes on");
            self.misplaced.insert(name.clone(), reason);
        }
        if let Some(names) = &mut self.remembered {
            names.remove(name);
        }
        let mut plan = plan(service, &addresses, self.view.slices(name), &self.here);
        let scheduler = service.scheduler.as_ref();
        let lacking = scheduler.filter(|scheduler| !self.tables.may_have_scheduler(&scheduler.name));
        if let Some(scheduler) = lacking {
            plan.use_common_scheduler();
            if self.lacking.insert(name.clone()) {
                tracing::warn!(service = %name, %scheduler, "the kernel has not the scheduler, everybody's is used");
            }
        } else {
            self.lacking.remove(name);
        }
        self.note(name);
        self.settle(name, Some(plan))
    }

    /// The virtual addresses that a Service was served at: by this program, or in a family where it is not by the kernel's rows of before.
    fn before(&self, name: &ObjectName) -> Vec<IpAddr> {
        let planned = self.claims.plan(name).map(ServicePlan::virtual_addresses).unwrap_or_default();
        let is_new = |addr: &IpAddr| planned.iter().all(|known| IpFamily::of(*known) != IpFamily::of(*addr));
        let recorded = recorded(&self.tables, name, &self.here.addresses).into_iter().filter(is_new);
        planned.iter().copied().chain(recorded).collect()
    }

    /// Puts the plan of a Service in place of its earlier one; returns the rows that change with it.
    pub(super) fn settle(&mut self, name: &ObjectName, plan: Option<ServicePlan>) -> Changes {
        let of = |plan: Option<&ServicePlan>| plan.map(|plan| plan.no_local).unwrap_or_default();
        self.no_local = self.no_local.minus(of(self.claims.plan(name))).plus(of(plan.as_ref()));
        let deltas = self.claims.settle(name, plan);
        self.plane.rows(&deltas)
    }
}
