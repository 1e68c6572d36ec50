//! `Guarded`: virtual servers, of which those that belong to a program that lives are left alone.
//!
//! A virtual server that stands where a Service shall be is a predecessor's, and is taken over with everything in it, or that of a
//! balancer that works beside us (keepalived), which puts back what we change. Invariant: while such a program lives here, a virtual server
//! that is not ours and not on our link is not written to, and the row says whose it is; once the program or the virtual server is gone it
//! is taken over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kernel::{Cause, KernelError};
use netstate::ipvs::{RealServerKey, Row, VirtualServerKey};
use reconcile::{Layer, Owner, Rows, Step};

use super::targets::Servers;

/// Names a program that balances here, with its process, if one lives.
type Living = fn() -> Option<String>;

/// See the module's text.
pub(super) struct Guarded<T> {
    table: T,
    living: Living,
    /// Desired virtual servers, until it is known which of them stand.
    claimed: Option<BTreeSet<VirtualServerKey>>,
    /// Virtual servers that are somebody else's, as of the last listing.
    foreign: BTreeSet<VirtualServerKey>,
    /// Of these, those that are desired.
    refused: BTreeSet<VirtualServerKey>,
}

impl<T: Servers> Guarded<T> {
    /// The virtual servers of `table`, before they are listed.
    pub(super) fn new(table: T, living: Living) -> Self {
        let (foreign, refused) = (BTreeSet::new(), BTreeSet::new());
        Self { table, living, claimed: Some(BTreeSet::new()), foreign, refused }
    }

    /// Takes a virtual server over unless it is that of a program that lives.
    fn judge(&mut self, service: VirtualServerKey) {
        if self.foreign.contains(&service) && (self.living)().is_some() {
            self.refused.insert(service);
        } else {
            self.table.claim(service);
        }
    }

    /// Why a virtual server is not written to; `None` when it is ours now.
    fn refusal(&mut self, service: &VirtualServerKey) -> Option<String> {
        let owner = (self.living)();
        let stands = |table: &mut T| table.rows_of(&BTreeSet::from([*service])).is_ok_and(|rows| !rows.is_empty());
        if let Some(owner) = owner.filter(|_| stands(&mut self.table)) {
            return Some(format!(
                "{owner} has a virtual server there, which is left alone; give one of the two another address or port"
            ));
        }
        self.refused.remove(service);
        self.foreign.remove(service);
        self.table.claim(*service);
        None
    }
}

impl<T: Servers> Layer for Guarded<T> {
    type Inner = T;

    fn inner(&self) -> &T {
        &self.table
    }

    fn inner_mut(&mut self) -> &mut T {
        &mut self.table
    }

    fn observe(&mut self) -> Result<Rows<VirtualServerKey, Row>, KernelError> {
        if (self.living)().is_none() {
            let desired = std::mem::take(&mut self.refused).into_iter().chain(self.claimed.take().unwrap_or_default());
            desired.for_each(|service| self.table.claim(service));
        }
        let rows = self.table.observe()?;
        let foreign = rows.iter().filter(|(_, row)| row.owner == Owner::Foreign).map(|(key, _)| *key);
        self.foreign = foreign.collect();
        self.refused.retain(|service| self.foreign.contains(service));
        for service in self.claimed.take().unwrap_or_default() {
            self.judge(service);
        }
        Ok(rows)
    }

    fn apply(&mut self, steps: &[Step<VirtualServerKey, Row>]) -> Vec<Result<(), KernelError>> {
        if self.refused.is_empty() {
            return self.table.apply(steps);
        }
        let concerned: BTreeSet<_> = steps.iter().map(|step| *step.key()).collect();
        let refused: Vec<_> = self.refused.intersection(&concerned).copied().collect();
        let reasons: BTreeMap<_, _> =
            refused.into_iter().filter_map(|service| Some((service, self.refusal(&service)?))).collect();
        let passed: Vec<_> = steps.iter().filter(|step| !reasons.contains_key(step.key())).cloned().collect();
        let mut results = self.table.apply(&passed).into_iter();
        let result = |step: &Step<VirtualServerKey, Row>| match reasons.get(step.key()) {
            Some(reason) => Err(KernelError::new("take over", step.key(), Cause::Taken(reason.clone()))),
            None => results.next().unwrap_or(Ok(())),
        };
        steps.iter().map(result).collect()
    }
}

impl<T: Servers> Servers for Guarded<T> {
    fn idle(&mut self, service: &VirtualServerKey) -> Result<BTreeMap<RealServerKey, bool>, KernelError> {
        self.table.idle(service)
    }

    fn adopt(&mut self, owned: BTreeSet<VirtualServerKey>, at: BTreeSet<IpAddr>) {
        self.table.adopt(owned, at);
    }

    fn claim(&mut self, service: VirtualServerKey) {
        match &mut self.claimed {
            Some(claimed) => drop(claimed.insert(service)),
            None => self.judge(service),
        }
    }

    fn is_empty(&self) -> Result<bool, KernelError> {
        self.table.is_empty()
    }

    fn is_as_many(&self) -> Result<bool, KernelError> {
        self.table.is_as_many()
    }

    fn differing(&mut self, believed: &Rows<VirtualServerKey, Row>) -> Result<BTreeSet<VirtualServerKey>, KernelError> {
        self.table.differing(believed)
    }

    fn differing_in_turn(
        &mut self,
        believed: &Rows<VirtualServerKey, Row>,
    ) -> Result<BTreeSet<VirtualServerKey>, KernelError> {
        self.table.differing_in_turn(believed)
    }

    fn rows_of(&mut self, services: &BTreeSet<VirtualServerKey>) -> Result<Rows<VirtualServerKey, Row>, KernelError> {
        self.table.rows_of(services)
    }

    fn has_scheduler(&mut self, name: &str) -> Result<bool, KernelError> {
        self.table.has_scheduler(name)
    }

    fn take_vanished(&mut self) -> BTreeSet<VirtualServerKey> {
        self.table.take_vanished()
    }
}
