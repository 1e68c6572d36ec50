//! `Claims`: the plans of all Services, and which frontends each change of one of them changes.
//!
//! Invariants. An address and port belongs to one Service: the oldest, then the first by name, whatever order they came
//! in; the others are reported as [`Conflict`]s and take over when it goes. What is served depends on the plans only,
//! never on their history.

use std::collections::{BTreeMap, BTreeSet};

use super::{Frontend, FrontendKey, ServicePlan};
use crate::object::ObjectName;
use crate::object::few::Few;

/// A frontend that changed: what stood there and what stands there now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delta {
    /// Where.
    pub(crate) key: FrontendKey,
    /// What was served there.
    pub(crate) old: Option<Frontend>,
    /// What is served there now; `None` when nothing is.
    pub(crate) new: Option<Frontend>,
}

/// A Service that is not served at an address and port because another one is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Conflict {
    /// Where.
    pub(crate) key: FrontendKey,
    /// Who is served.
    pub(crate) served: ObjectName,
    /// Who is not.
    pub(crate) refused: ObjectName,
}

/// Order in which Services claim: the oldest first, one without a creation time last.
type Claim = (bool, String, ObjectName);

/// The plans of all Services; see the module's text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims {
    plans: BTreeMap<ObjectName, ServicePlan>,
    claims: BTreeMap<FrontendKey, Few<Claim>>,
    served: BTreeMap<FrontendKey, Frontend>,
}

impl Claims {
    /// Puts the plan of a Service in place of its earlier one, or with `None` takes it away; returns what changed.
    pub(crate) fn settle(&mut self, service: &ObjectName, plan: Option<ServicePlan>) -> Vec<Delta> {
        let mut touched = BTreeSet::new();
        if let Some(old) = self.plans.remove(service) {
            let claim = claim(service, &old);
            for (key, _) in old.frontends() {
                self.claims.entry(*key).or_default().remove(&claim);
                touched.insert(*key);
            }
        }
        if let Some(plan) = plan {
            let claim = claim(service, &plan);
            for (key, _) in plan.frontends() {
                self.claims.entry(*key).or_default().insert(claim.clone());
                touched.insert(*key);
            }
            self.plans.insert(service.clone(), plan);
        }
        touched.into_iter().filter_map(|key| self.settle_key(key)).collect()
    }

    /// True when `service` has a plan.
    #[must_use]
    pub(crate) fn serves(&self, service: &ObjectName) -> bool {
        self.plans.contains_key(service)
    }

    /// Services that want what another one has.
    #[must_use]
    pub(crate) fn conflicts(&self) -> Vec<Conflict> {
        let of_key = |(key, claims): (&FrontendKey, &Few<Claim>)| {
            let mut claims = claims.as_slice().iter().map(|(_, _, name)| name.clone());
            let served = claims.next();
            let conflict = |served: ObjectName| {
                claims.map(move |refused| Conflict { key: *key, served: served.clone(), refused }).collect()
            };
            served.map_or_else(Vec::new, conflict)
        };
        self.claims.iter().filter(|(_, claims)| claims.as_slice().len() > 1).flat_map(of_key).collect()
    }

    /// Gives `key` to who may have it.
    fn settle_key(&mut self, key: FrontendKey) -> Option<Delta> {
        if self.claims.get(&key).is_some_and(|claims| claims.as_slice().is_empty()) {
            self.claims.remove(&key);
        }
        let winner = self.claims.get(&key).and_then(|claims| claims.as_slice().first()).map(|(_, _, name)| name);
        let new = winner.and_then(|name| self.plans.get(name)?.frontend(&key)).cloned();
        let old = match &new {
            Some(new) => self.served.insert(key, new.clone()),
            None => self.served.remove(&key),
        };
        (old != new).then_some(Delta { key, old, new })
    }
}

fn claim(service: &ObjectName, plan: &ServicePlan) -> Claim {
    (plan.created.is_empty(), plan.created.clone(), service.clone())
}
