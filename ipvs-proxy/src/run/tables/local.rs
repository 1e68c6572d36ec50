//! Routes that make whole networks local, in place of an address for each virtual one.
//!
//! Invariants. A network turns local behind a pass that tried every virtual server, and with the nft tables in place, as an address does
//! behind its own. Where one takes the place of the other, the new one stands before the old one goes. A route stays as long as something
//! drains that may need it, whichever data path is in use.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use daemon::status::is_tried;
use netstate::{Route, RouteKey};
use reconcile::{Observed, Owner, Pass, Stage, Table};

use super::Tables;
use crate::run::targets::AnyTarget;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Local {
    routes: Table<AnyTarget<RouteKey, Route>>,
    /// Those that wait for virtual servers to stand.
    waiting: BTreeMap<RouteKey, Route>,
    /// Those that stay although nobody asks for them any more.
    kept: BTreeSet<RouteKey>,
}

impl Local {
    /// The table, in which these are to be.
    pub(super) const fn new(routes: Table<AnyTarget<RouteKey, Route>>, waiting: BTreeMap<RouteKey, Route>) -> Self {
        Self { routes, waiting, kept: BTreeSet::new() }
    }
}

impl Tables {
    /// Takes in a route that is desired, or is so no longer.
    pub(super) fn want_route(&mut self, key: RouteKey, route: Option<Route>) {
        self.local.kept.remove(&key);
        if let Some(route) = route {
            self.local.waiting.insert(key, route);
        } else {
            self.local.waiting.remove(&key);
            self.stack.want(self.local.routes, key, None);
        }
    }

    /// Lets networks turn local when every virtual server was tried.
    pub(super) fn admit_routes(&mut self, now: Duration) -> Pass {
        let tried = self.servers().is_some_and(|servers| servers.mirror().is_some() && is_tried(&servers.counts()));
        if self.local.waiting.is_empty() || !tried || !self.footing.holds(&self.stack) {
            return Pass::default();
        }
        for (key, route) in std::mem::take(&mut self.local.waiting) {
            self.stack.want(self.local.routes, key, Some(route));
        }
        self.stack.get_mut(self.local.routes).map(|routes| routes.upsert(now)).unwrap_or_default()
    }

    /// Forgets which routes the kernel held.
    pub(super) fn invalidate_routes(&mut self) {
        self.stack.invalidate(self.local.routes);
    }

    /// False while a route does not stand that is to take the place of addresses.
    pub(super) fn local_stands(&self) -> bool {
        let Some(routes) = self.stack.get(self.local.routes) else { return true };
        self.local.waiting.is_empty() && routes.desired().keys().all(|key| routes.holds(key))
    }

    /// False while an address is not local that a route is to make so.
    pub(super) fn is_local(&self, addr: IpAddr) -> bool {
        let Some(routes) = self.stack.get(self.local.routes) else { return true };
        let covers = |key: &&RouteKey| key.dst.contains(addr);
        !self.local.waiting.keys().any(|key| covers(&key))
            && routes.desired().keys().filter(covers).all(|key| routes.holds(key))
    }

    /// True while a route that nobody asks for any more may be needed: by a virtual server that drains, or by one whose address, or other
    /// route, is not there yet.
    fn needs_routes(&self) -> bool {
        let addresses = self.addresses.and_then(|addresses| self.stack.get(addresses));
        let is_behind =
            addresses.is_some_and(|addresses| !is_tried(&addresses.counts()) || addresses.counts().failed > 0);
        let is_unknown = self.servers().is_some_and(|servers| servers.mirror().is_none());
        is_behind || is_unknown || !self.waiting.is_empty() || self.is_retiring() || !self.local_stands()
    }

    /// Keeps such routes as long as they are needed, and lets them go then.
    fn keep_routes(&mut self) {
        if !self.needs_routes() {
            for key in std::mem::take(&mut self.local.kept) {
                self.stack.want(self.local.routes, key, None);
            }
            return;
        }
        let Some(routes) = self.stack.get(self.local.routes) else { return };
        let undesired = |(key, row): &(&RouteKey, &Observed<Route>)| {
            row.owner == Owner::Ours && !routes.desired().contains_key(key)
        };
        let held = routes.mirror().into_iter().flatten().filter(undesired);
        let held: Vec<_> = held.map(|(key, row)| (*key, row.value.clone())).collect();
        for (key, route) in held {
            self.local.kept.insert(key);
            self.stack.want(self.local.routes, key, Some(route));
        }
    }

    /// Removes what nobody desires, but what has to stay until something else stands.
    pub(super) fn remove_unneeded(&mut self, now: Duration) -> Pass {
        self.keep_routes();
        let kept = self.addresses.filter(|_| !self.local_stands());
        kept.into_iter().for_each(|addresses| self.stack.rest(addresses, true));
        let pass = self.remove_undesired(now);
        kept.into_iter().for_each(|addresses| self.stack.rest(addresses, false));
        pass
    }
}
