//! What others have put in front of our routes: found by listing theirs, and by asking the kernel where packets go.
//!
//! Invariants: only at audits, because a node can have a hundred thousand routes, and after the pass that makes it due, which
//! does not wait for it; the questions of one audit are [`ASKED`] at most, and go on where the last one ended.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Bound;

use kernel::way::Asked;
use kernel::{Chain, KernelError, Rtnl};
use netstate::{Prefix, Route, RouteKey};

use crate::plan::{in_front, taken};

/// Questions of one audit.
const ASKED: usize = 512;

/// Lists some routes.
pub(super) type ListRoutes = Box<dyn FnMut() -> Result<Vec<(RouteKey, Route)>, KernelError> + Send>;

/// Others' routes beside ours.
pub(super) struct Rivals {
    list: ListRoutes,
    rtnl: Rtnl,
    own: Vec<Prefix>,
    /// What they take from ours.
    found: Vec<String>,
    due: Due,
    /// The route that was asked for last.
    last: Option<RouteKey>,
    /// What the questions found, by route.
    elsewhere: BTreeMap<RouteKey, String>,
}

/// Whether others' routes are to be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Never,
    /// After the pass that is to come.
    Later,
    Now,
}

impl Rivals {
    /// `list` lists the routes of others inside the Pod networks; `own` are this node's subnets.
    pub(super) const fn new(list: ListRoutes, rtnl: Rtnl, own: Vec<Prefix>) -> Self {
        Self { list, rtnl, own, found: Vec::new(), due: Due::Later, last: None, elsewhere: BTreeMap::new() }
    }

    /// What is known may have changed.
    pub(super) fn invalidate(&mut self) {
        self.due = Due::Later;
    }

    /// True when [`Rivals::compare`] waits for the next pass.
    pub(super) fn is_due(&self) -> bool {
        self.due != Due::Never
    }

    /// Finds what takes packets from the `desired` routes, at the second call since something may have changed.
    pub(super) fn compare(&mut self, desired: &BTreeMap<RouteKey, Route>) {
        match self.due {
            Due::Never => return,
            Due::Later => return self.due = Due::Now,
            Due::Now => self.due = Due::Never,
        }
        match (self.list)().and_then(|foreign| self.ask(desired).map(|()| foreign)) {
            Ok(foreign) => {
                let mut found = in_front(&self.own, desired, &foreign);
                // What both have found is said once.
                let known = |key: &RouteKey| found.iter().any(|text| text.contains(&format!("{} ", key.dst)));
                let more: Vec<String> =
                    self.elsewhere.iter().filter(|(key, _)| !known(key)).map(|(_, text)| text.clone()).collect();
                found.extend(more);
                self.found = found;
            }
            Err(error) => tracing::warn!(error = %Chain(&error), "the routes of others cannot be listed"),
        }
    }

    /// Asks the kernel which route it takes to the Pods behind some of `desired`.
    fn ask(&mut self, desired: &BTreeMap<RouteKey, Route>) -> Result<(), KernelError> {
        self.elsewhere.retain(|key, _| desired.contains_key(key));
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let round = desired.range((after, Bound::Unbounded)).chain(desired);
        let asked: Vec<(&RouteKey, &Route)> = round.take(ASKED.min(desired.len())).collect();
        // The second address of a subnet is a Pod's, or the first one after the bridge's.
        let addresses: Vec<IpAddr> = asked.iter().filter_map(|(key, _)| key.dst.nth(2)).collect();
        let answers: BTreeMap<IpAddr, Option<(RouteKey, Route)>> =
            self.rtnl.routes_to(addresses, Asked::Entry)?.into_iter().collect::<BTreeMap<_, _>>();
        for (key, route) in &asked {
            let Some(entry) = key.dst.nth(2).and_then(|addr| answers.get(&addr)) else { continue };
            match taken((key, route), entry.as_ref()) {
                Some(text) => drop(self.elsewhere.insert(**key, text)),
                None => drop(self.elsewhere.remove(*key)),
            }
        }
        self.last = asked.last().map(|(key, _)| **key);
        Ok(())
    }

    /// What an operator should know.
    pub(super) fn warnings(&self) -> impl Iterator<Item = &String> {
        self.found.iter()
    }
}
