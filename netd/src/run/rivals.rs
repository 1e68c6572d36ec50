//! What others have put in front of our routes: found by listing theirs, and by asking the kernel where packets go, those of
//! Pods and those that tunnels make of them.
//!
//! Invariants: they are searched for at audits only, in the listing that the table of routes makes there, and after the pass that
//! makes it due, which does not wait for it; [`ASKED`] routes at most are asked for at one audit, [`AT_ONCE`] after one pass, and
//! the next time goes on where the last one ended. A packet of a Pod is asked for as it comes, by the bridge and with a Pod's
//! address: rules look at both.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Bound;

use kernel::route::Foreign;
use kernel::way::{Asked, Packet};
use kernel::{Chain, KernelError, Rtnl};
use netstate::family::IpFamily;
use netstate::{Prefix, Route, RouteKey};

use super::outer::{Outer, Tunnels};
use crate::plan::{for_whom, in_front, taken};

/// Routes that are asked for at one audit.
const ASKED: usize = 512;

/// Routes that are asked for after one pass: two questions each, some five microseconds a question.
const AT_ONCE: usize = 64;

/// Others' routes beside ours.
pub(super) struct Rivals {
    /// What the table of routes meets when it is listed.
    foreign: Foreign,
    rtnl: Rtnl,
    own: Vec<Prefix>,
    /// What those in the listing take from ours.
    listed: Vec<String>,
    /// What they take from ours, all in all.
    found: Vec<String>,
    due: Due,
    /// Routes that are still to be asked for.
    left: usize,
    /// The route that was asked for last.
    last: Option<RouteKey>,
    /// What the questions found, by route.
    elsewhere: BTreeMap<RouteKey, String>,
    outer: Outer,
}

/// Whether a listing is to be searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Never,
    /// The one after so many.
    After(u64),
    /// After a pass that reported without it.
    Now,
}

/// What the kernel does with packets, by destination.
type Entries = BTreeMap<IpAddr, Option<(RouteKey, Route)>>;

/// The second address of a subnet is a Pod's, or the first one after the bridge's.
fn pod_in(key: &RouteKey) -> Option<IpAddr> {
    key.dst.nth(2)
}

impl Rivals {
    /// `foreign` are the routes of others inside the Pod networks; `own` are this node's subnets.
    pub(super) fn new(foreign: Foreign, rtnl: Rtnl, own: Vec<Prefix>) -> Self {
        Self {
            foreign,
            rtnl,
            own,
            listed: Vec::new(),
            found: Vec::new(),
            due: Due::After(0),
            left: 0,
            last: None,
            elsewhere: BTreeMap::new(),
            outer: Outer::default(),
        }
    }

    /// What is known may have changed: the next listing of routes is searched.
    pub(super) fn invalidate(&mut self) {
        self.due = Due::After(self.foreign.listings());
    }

    /// A rule has changed, which can send packets to another table.
    pub(super) fn note_rules(&mut self) {
        self.left = ASKED;
        self.outer.begin();
    }

    /// True when [`Rivals::compare`] waits for the next pass.
    pub(super) fn is_due(&self) -> bool {
        self.left > 0 || self.outer.is_due() || self.is_listed() || self.due == Due::Now
    }

    /// True when the listing is there that was to be searched.
    fn is_listed(&self) -> bool {
        matches!(self.due, Due::After(listings) if self.foreign.listings() > listings)
    }

    /// Finds what takes packets from the `desired` routes and from `tunnels`, at the second call since routes were listed.
    pub(super) fn compare(&mut self, desired: &BTreeMap<RouteKey, Route>, tunnels: &Tunnels<'_>) {
        if self.due == Due::Now {
            self.due = Due::Never;
            self.listed = in_front(&self.own, desired, &self.foreign.routes());
            self.left = ASKED;
            self.outer.begin();
        } else if self.is_listed() {
            self.due = Due::Now;
        }
        if self.left == 0 {
            return self.ask_for(tunnels);
        }
        if let Err(error) = self.ask(desired) {
            tracing::warn!(error = %Chain(&error), "the kernel cannot be asked which routes packets to Pods take");
        }
        // What both have found is said once.
        let known = |key: &RouteKey| self.listed.iter().any(|text| text.contains(&format!("{} ", key.dst)));
        let more = self.elsewhere.iter().filter(|(key, _)| !known(key)).map(|(_, text)| text.clone());
        self.found = self.listed.iter().cloned().chain(more).collect();
    }

    /// Asks the kernel which route the tunnels' own packets take.
    fn ask_for(&mut self, tunnels: &Tunnels<'_>) {
        if !self.outer.is_due() {
            return;
        }
        if let Err(error) = self.outer.ask(&mut self.rtnl, tunnels) {
            tracing::warn!(error = %Chain(&error), "the kernel cannot be asked which routes the tunnels' packets take");
        }
    }

    /// Asks the kernel which route it takes to the Pods behind some of `desired`.
    fn ask(&mut self, desired: &BTreeMap<RouteKey, Route>) -> Result<(), KernelError> {
        self.elsewhere.retain(|key, _| desired.contains_key(key));
        self.left = self.left.min(desired.len());
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let round = desired.range((after, Bound::Unbounded)).chain(desired);
        let asked: Vec<(&RouteKey, &Route)> = round.take(AT_ONCE.min(self.left)).collect();
        self.left -= asked.len();
        self.last = asked.last().map(|(key, _)| **key);
        let own = self.entries(&asked, |to| Some(Packet::own(to)))?;
        let mut places = BTreeMap::new();
        for family in IpFamily::ALL {
            places.insert(family, self.place_of_pods(family)?);
        }
        let of_pods = self.entries(&asked, |to| {
            let (from, came_by) = (*places.get(&IpFamily::of(to))?)?;
            Some(Packet { from: Some(from), came_by: Some(came_by), ..Packet::own(to) })
        })?;
        for ours in asked {
            let taken = |entries: &Entries| Some(taken(ours, entries.get(&pod_in(ours.0)?)?.as_ref()));
            match for_whom(taken(&own).flatten(), taken(&of_pods)) {
                Some(text) => drop(self.elsewhere.insert(*ours.0, text)),
                None => drop(self.elsewhere.remove(ours.0)),
            }
        }
        Ok(())
    }

    /// What the kernel does with a packet to a Pod behind each route.
    fn entries(
        &mut self,
        routes: &[(&RouteKey, &Route)],
        packet: impl Fn(IpAddr) -> Option<Packet>,
    ) -> Result<Entries, KernelError> {
        let packets: Vec<Packet> = routes.iter().filter_map(|(key, _)| packet(pod_in(key)?)).collect();
        Ok(self.rtnl.routes_to(packets, Asked::Entry)?.into_iter().collect())
    }

    /// An address of this node's own Pods and the index of the link that their packets come in by; `None` while there is none.
    fn place_of_pods(&mut self, family: IpFamily) -> Result<Option<(IpAddr, u32)>, KernelError> {
        let Some(own) = self.own.iter().find(|own| own.family() == family) else { return Ok(None) };
        let Some(pod) = own.nth(2) else { return Ok(None) };
        let found = self.rtnl.routes_to([Packet::own(pod)], Asked::Entry)?.pop().and_then(|(_, found)| found);
        let on_link = |(key, route): &(RouteKey, Route)| own.covers(&key.dst) && route.via.is_none();
        let Some(link) = found.filter(on_link).and_then(|(_, route)| route.link) else { return Ok(None) };
        Ok(self.rtnl.link(&link)?.map(|state| (pod, state.index)))
    }

    /// What an operator should know.
    pub(super) fn warnings(&self) -> impl Iterator<Item = &String> {
        self.found.iter().chain(self.outer.warnings())
    }
}
