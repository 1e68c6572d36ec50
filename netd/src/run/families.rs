//! A family of addresses that comes while the daemon runs.
//!
//! Invariant: it is judged as the families at the start are (MTU, address plan, backend), and one that cannot be served costs
//! nothing of the other: it is left out and named until it can.

use netstate::family::IpFamily;

use super::daemon::Daemon;
use super::start::check_plan;
use crate::choose::interface::External;
use crate::plan::LocalNode;
use crate::source::LeaseSource;

impl<S: LeaseSource> Daemon<S> {
    /// Leaves out what has come since `before` and cannot be served. Returns the interface if it still differs.
    pub(super) fn admit(&mut self, before: &External) -> Option<External> {
        let all = self.external.current.clone();
        let known = self.planning.planner.local().places;
        let coming: Vec<IpFamily> = all.addresses.families().filter(|family| known.get(*family).is_none()).collect();
        let check = |local: &LocalNode| check_plan(&self.node.config, &self.node.network, local);
        let Some(reason) = check(&self.local(None)).err().filter(|_| !coming.is_empty()) else { return Some(all) };
        let known = |family, own| if coming.contains(&family) { None } else { own };
        self.external.current.addresses = all.addresses.map(known);
        if check_plan(&self.node.config, &self.node.network, &self.local(None)).is_err() {
            // It is not due to what has come.
            self.external.current = all.clone();
            return Some(all);
        }
        let families = coming.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let text = format!("this node has no Pods of {families}: {reason:#}");
        self.reporter.complain(text.clone(), |text| tracing::warn!("{text}"));
        self.reporter.refused_family = Some(text);
        (self.external.current != *before).then(|| self.external.current.clone())
    }
}
