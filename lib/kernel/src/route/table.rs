//! `Routes`: the table of our routes, and beside it those of others that a listing meets.
//!
//! Invariant: the kernel takes the first of several routes with one key, in the order in which it lists them. A route
//! behind one of ours takes nothing from it and is not kept, whoever made it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netstate::{Route, RouteKey};
use reconcile::{Observed, Owner, Parts, Rows, Step, Target};

use super::{LIST, Parsed, listed_in, removal, routes_in, upsert};
use crate::error::KernelError;
use crate::parts::Listing;
use crate::rtnl::{CHUNK, Indexes, Rtnl};

/// Which routes are ours, by key and value.
pub type OwnsRoute = Box<dyn Fn(&RouteKey, &Route) -> bool + Send + Sync>;

/// Which routes of others are kept, by key.
type Wanted = Box<dyn Fn(&RouteKey) -> bool + Send + Sync>;

/// Routes of others that the last listing has met. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Foreign(Arc<Mutex<Met>>);

#[derive(Debug, Default)]
struct Met {
    routes: Vec<(RouteKey, Route)>,
    listings: u64,
}

impl Foreign {
    /// How many listings there were.
    #[must_use]
    pub fn listings(&self) -> u64 {
        self.met().listings
    }

    /// What the last one has met.
    #[must_use]
    pub fn routes(&self) -> Vec<(RouteKey, Route)> {
        self.met().routes.clone()
    }

    fn put(&self, routes: Vec<(RouteKey, Route)>) {
        let mut met = self.met();
        *met = Met { routes, listings: met.listings + 1 };
    }

    fn met(&self) -> MutexGuard<'_, Met> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which routes a listing keeps.
struct Filter {
    owns: OwnsRoute,
    table: Option<u32>,
    protocols: Option<BTreeSet<u8>>,
    wanted: Option<Wanted>,
    /// The kernel leaves out what another protocol has made.
    only: Option<u8>,
}

impl Filter {
    /// Asks for the routes that may be kept.
    fn request(&self) -> RouteNetlinkMessage {
        routes_in(self.table, self.only)
    }

    fn may_be_ours(&self, route: &Route) -> bool {
        self.protocols.as_ref().is_none_or(|protocols| protocols.contains(&route.protocol))
    }

    fn keeps(&self, key: &RouteKey, route: &Route) -> bool {
        self.may_be_ours(route) || self.wanted.as_ref().is_some_and(|wanted| wanted(key))
    }
}

/// The routes of a listing in their order, taken apart into ours and others'.
#[derive(Default)]
struct Apart {
    /// Ours to the destination that was listed last.
    ours: Vec<RouteKey>,
    foreign: Vec<(RouteKey, Route)>,
}

impl Apart {
    /// Keeps one of somebody else's; returns one of ours, the first of its key.
    fn take(&mut self, (key, route): (RouteKey, Route), filter: &Filter) -> Option<(RouteKey, Observed<Route>)> {
        if self.ours.first().is_some_and(|ours| ours.dst != key.dst) {
            self.ours.clear();
        }
        let is_behind = self.ours.contains(&key);
        if filter.may_be_ours(&route) && (filter.owns)(&key, &route) {
            if is_behind {
                return None;
            }
            self.ours.push(key);
            return Some((key, Observed { value: route, owner: Owner::Ours }));
        }
        if filter.wanted.as_ref().is_some_and(|wanted| wanted(&key)) && !is_behind {
            self.foreign.push((key, route));
        }
        None
    }
}

/// The table of routes.
pub struct Routes {
    rtnl: Rtnl,
    /// Shared with a listing that is under way.
    filter: Arc<Filter>,
    foreign: Foreign,
}

impl Routes {
    /// The routes of `rtnl`'s namespace in every table, of which those that `owns` returns true for are ours. The others
    /// are no rows: where one has a desired key, it is replaced.
    pub fn new(rtnl: Rtnl, owns: OwnsRoute) -> Self {
        Self::with(rtnl, Filter { owns, table: None, protocols: None, wanted: None, only: None })
    }

    /// The routes of one routing table only, of which `owns` is asked of what these protocols made. A node with a hundred
    /// thousand foreign routes keeps none of them in memory but those whose key is `wanted`, in [`Routes::foreign`].
    pub fn within(
        rtnl: Rtnl,
        table: u32,
        protocols: impl IntoIterator<Item = u8>,
        owns: OwnsRoute,
        wanted: impl Fn(&RouteKey) -> bool + Send + Sync + 'static,
    ) -> Self {
        let protocols = Some(protocols.into_iter().collect());
        Self::with(rtnl, Filter { owns, table: Some(table), protocols, wanted: Some(Box::new(wanted)), only: None })
    }

    /// The routes of one routing table that one protocol has made, of which `owns` is asked. The kernel lists no others (since Linux 4.20),
    /// so that ten thousand of them cost next to nothing.
    pub fn made_by(rtnl: Rtnl, table: u32, protocol: u8, owns: OwnsRoute) -> Self {
        let protocols = Some(BTreeSet::from([protocol]));
        Self::with(rtnl, Filter { owns, table: Some(table), protocols, wanted: None, only: Some(protocol) })
    }

    fn with(rtnl: Rtnl, filter: Filter) -> Self {
        Self { rtnl, filter: Arc::new(filter), foreign: Foreign::default() }
    }

    fn write(&mut self, steps: &[Step<RouteKey, Route>]) -> Vec<Result<(), KernelError>> {
        self.rtnl.carry_out(steps, |rtnl, step, indexes| match step {
            Step::Create(key, want) | Step::Change(key, _, want) => {
                upsert(rtnl, (key, want), NLM_F_CREATE | NLM_F_REPLACE, indexes)
            }
            Step::Remove(key, have) => Ok(removal(key, have)),
        })
    }

    /// The routes of others that listings meet.
    #[must_use]
    pub fn foreign(&self) -> Foreign {
        self.foreign.clone()
    }
}

/// A listing of routes in parts.
struct RouteParts {
    listing: Listing<Parsed>,
    /// For the names of links.
    rtnl: Rtnl,
    indexes: Indexes,
    apart: Apart,
    filter: Arc<Filter>,
    foreign: Foreign,
}

impl RouteParts {
    fn named(&mut self, rows: Vec<Parsed>) -> Result<Vec<(RouteKey, Observed<Route>)>, KernelError> {
        let unknown = rows.iter().filter_map(|row| row.link).filter(|index| self.indexes.name(*index).is_none());
        self.indexes.extend(Indexes::numbered(&mut self.rtnl, &unknown.collect())?);
        let named = rows.into_iter().map(|row| row.named(&self.indexes));
        Ok(named.filter_map(|row| self.apart.take(row, &self.filter)).collect())
    }
}

impl Iterator for RouteParts {
    type Item = Result<Vec<(RouteKey, Observed<Route>)>, KernelError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.listing.next() {
            Some(part) => Some(part.and_then(|rows| self.named(rows))),
            None => {
                self.foreign.put(std::mem::take(&mut self.apart.foreign));
                None
            }
        }
    }
}

impl Target for Routes {
    type Key = RouteKey;
    type Value = Route;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<RouteKey, Route>, KernelError> {
        let filter = &self.filter;
        let listed = self.rtnl.list_routes(&filter.request(), filter.table, |key, route| filter.keeps(key, route))?;
        let mut apart = Apart::default();
        let rows = listed.into_iter().filter_map(|row| apart.take(row, &self.filter)).collect();
        self.foreign.put(apart.foreign);
        Ok(rows)
    }

    fn parts(&mut self) -> Result<Option<Parts<RouteKey, Route, KernelError>>, KernelError> {
        let (filter, table) = (Arc::clone(&self.filter), self.filter.table);
        let read = move |frame: &_| listed_in(frame, table).filter(|row| filter.keeps(&row.key, &row.route));
        Ok(Some(Box::new(RouteParts {
            listing: Listing::new(LIST, &self.filter.request(), Box::new(read)),
            rtnl: Rtnl::open()?,
            indexes: Indexes::default(),
            apart: Apart::default(),
            filter: Arc::clone(&self.filter),
            foreign: self.foreign.clone(),
        })))
    }

    /// The route to the same destination with another metric: the kernel would take one of the two, whatever the other says.
    fn successor<'a>(&self, key: &RouteKey, desired: &'a BTreeMap<RouteKey, Route>) -> Option<&'a RouteKey> {
        let metrics = RouteKey { metric: 0, ..*key }..=RouteKey { metric: u32::MAX, ..*key };
        desired.range(metrics).map(|(other, _)| other).find(|other| *other != key)
    }

    fn batch(&self) -> usize {
        CHUNK
    }

    fn apply(&mut self, steps: &[Step<RouteKey, Route>]) -> Vec<Result<(), KernelError>> {
        let mut results = self.write(steps);
        for (step, result) in steps.iter().zip(&mut results) {
            let is_behind = |error: &KernelError| error.errno() == Some(libc::EEXIST);
            if let Step::Change(key, have, _) = step
                && result.as_ref().is_err_and(is_behind)
            {
                // The kernel has what is wanted already, behind what was to be replaced (`fib_table_insert`).
                let uncovered = self.write(&[Step::Remove(*key, have.clone()), step.clone()]);
                *result = uncovered.into_iter().collect();
            }
        }
        results
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{main_key, via};

    fn row(dst: &str, metric: u32, protocol: u8) -> (RouteKey, Route) {
        (main_key(dst.parse().unwrap(), metric), via("eth0".parse().unwrap(), None, protocol))
    }

    #[test]
    fn routes_of_others_are_kept_where_they_are_wanted_and_not_behind_ours_of_one_metric() {
        let filter = Filter {
            owns: Box::new(|_, route| route.protocol == 121),
            only: None,
            table: None,
            protocols: Some(BTreeSet::from([121, 3])),
            wanted: Some(Box::new(|key| "172.7.0.0/16".parse::<netstate::Prefix>().unwrap().covers(&key.dst))),
        };
        let mut apart = Apart::default();
        let listed = [
            row("172.7.22.0/24", 5, 4),
            row("172.7.22.0/24", 9, 121),
            row("172.7.22.0/24", 9, 4),
            row("172.7.22.0/24", 9, 121),
            row("172.7.23.0/24", 9, 3),
            row("10.0.0.0/8", 9, 4),
        ];
        let ours: Vec<_> = listed.iter().cloned().filter_map(|row| apart.take(row, &filter)).collect();
        assert_eq!(ours.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [listed[1].0]);
        assert_eq!(apart.foreign, [listed[0].clone(), listed[4].clone()]);
    }
}
