//! Going on with another configuration.
//!
//! Invariant: what is known of the cluster and of this node is kept; of the kernel nothing is known yet, so that its tables are compared
//! with what is desired now as behind a new start, in which nothing breaks.

use super::Proxy;
use crate::plan::here::Facts;

impl Proxy {
    /// Goes on where `before` has been. Everything is planned anew.
    pub(crate) fn succeed(&mut self, before: Self) {
        self.view = before.view;
        self.gate = before.gate;
        self.changed = before.changed;
        self.totals = before.totals;
        self.checks = before.checks;
        self.changed_checks.0 = before.changed_checks.0;
        // A Service that has gone and was not planned since may have something that load balancers ask about.
        self.dirty = before.dirty;
        self.dirty.extend(self.view.services().map(|service| service.name.clone()));
        self.dirty.extend(self.view.all_slices().map(|slice| slice.service.clone()));
        self.had_node = before.had_node;
        self.announce(before.announced);
        let Facts { own, object, .. } = before.facts;
        self.learn(|facts| (facts.own, facts.object) = (own, object));
    }
}
