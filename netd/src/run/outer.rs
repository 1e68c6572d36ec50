//! Whether the tunnels' own packets have a route, asked at audits and when rules have changed.
//!
//! Invariant: [`ASKED`] ends of a table at most are asked for at one audit, [`AT_ONCE`] after one pass, and the next time goes on
//! where the last one ended; what is not asked costs nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;

use kernel::{KernelError, Rtnl};
use netstate::family::IpFamily;
use netstate::wireguard::{Endpoint, Row, RowKey};
use netstate::{Fdb, FdbKey, IfName, Route, RouteKey};
use reconcile::{Stack, Table};

use super::targets::Rows;
use crate::plan::backend::Ipip;
use crate::trace::astray::{self, Astray, End};

/// Ends of a table that are asked for at one audit.
const ASKED: usize = 512;

/// Those that are asked for after one pass.
const AT_ONCE: usize = 64;

/// What is desired of the tunnels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tunnels<'a> {
    /// Of VXLAN.
    pub(super) fdb: Option<&'a BTreeMap<FdbKey, Fdb>>,
    /// Those of ipip name its ends.
    pub(super) routes: Option<&'a BTreeMap<RouteKey, Route>>,
    /// Of WireGuard.
    pub(super) peers: Option<&'a BTreeMap<RowKey, Row>>,
}

/// The row that names an end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Fdb(FdbKey),
    Route(RouteKey),
    Peer(RowKey),
}

/// What is known of the tunnels' packets.
#[derive(Debug, Default)]
pub(super) struct Outer {
    /// Ends of a table that are still to be asked for.
    left: usize,
    /// The rows that were asked for last.
    fdb: Option<FdbKey>,
    route: Option<RouteKey>,
    peer: Option<RowKey>,
    astray: BTreeMap<Key, Astray>,
    warnings: Vec<String>,
}

impl<'a> Tunnels<'a> {
    /// What `stack` has of them.
    pub(super) fn of(
        stack: &'a Stack,
        fdb: Table<Rows<FdbKey, Fdb>>,
        peers: Option<Table<Rows<RowKey, Row>>>,
        routes: Table<Rows<RouteKey, Route>>,
    ) -> Self {
        Self {
            fdb: stack.get(fdb).map(|table| table.desired()),
            routes: stack.get(routes).map(|table| table.desired()),
            peers: peers.and_then(|peers| stack.get(peers)).map(|table| table.desired()),
        }
    }

    fn has(&self, key: &Key) -> bool {
        match key {
            Key::Fdb(key) => self.fdb.is_some_and(|rows| rows.contains_key(key)),
            Key::Route(key) => self.routes.is_some_and(|rows| rows.contains_key(key)),
            Key::Peer(key) => self.peers.is_some_and(|rows| rows.contains_key(key)),
        }
    }

    /// Rows of the largest table.
    fn most(&self) -> usize {
        let lengths = [self.fdb.map(BTreeMap::len), self.routes.map(BTreeMap::len), self.peers.map(BTreeMap::len)];
        lengths.into_iter().flatten().max().unwrap_or_default()
    }

    /// The port that a WireGuard device receives on.
    fn own_port(&self, device: &IfName) -> Option<u16> {
        match self.peers?.get(&RowKey::Device(device.clone()))? {
            Row::Device(device) => Some(device.listen_port),
            Row::Peer(_) => None,
        }
    }
}

impl Outer {
    /// Everything is to be asked for again.
    pub(super) const fn begin(&mut self) {
        self.left = ASKED;
    }

    /// True when something is still to be asked for.
    pub(super) const fn is_due(&self) -> bool {
        self.left > 0
    }

    /// Asks for some of the ends.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(super) fn ask(&mut self, rtnl: &mut Rtnl, tunnels: &Tunnels<'_>) -> Result<(), KernelError> {
        self.astray.retain(|key, _| tunnels.has(key));
        self.left = self.left.min(tunnels.most()).saturating_sub(AT_ONCE);
        let asked = self.next(tunnels);
        for (key, _) in &asked {
            self.astray.remove(key);
        }
        let found = astray::find(rtnl, |device| tunnels.own_port(device), asked)?;
        self.astray.extend(found);
        let findings = astray::findings(self.astray.values());
        self.warnings = findings.into_iter().map(|(text, fix)| format!("{text}; {fix}")).collect();
        Ok(())
    }

    /// The ends that have their turn.
    fn next(&mut self, tunnels: &Tunnels<'_>) -> Vec<(Key, End)> {
        let mut ends = Vec::new();
        for (key, entry) in turn(tunnels.fdb, &mut self.fdb) {
            ends.push((Key::Fdb(key.clone()), (key.link.clone(), end(entry.dst))));
        }
        let ipip = Ipip::device(IpFamily::V4);
        for (key, route) in turn(tunnels.routes, &mut self.route) {
            let through = route.link.as_ref().filter(|link| Some(*link) == ipip.as_ref()).zip(route.via);
            ends.extend(through.map(|(link, via)| (Key::Route(*key), (link.clone(), end(via)))));
        }
        for (key, row) in turn(tunnels.peers, &mut self.peer) {
            if let Row::Peer(peer) = row
                && let Endpoint::At(to) = peer.endpoint
            {
                ends.push((Key::Peer(key.clone()), (key.link().clone(), to)));
            }
        }
        ends
    }

    /// What an operator should know.
    pub(super) fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// An end of a tunnel that has a port of its own, or none.
const fn end(to: IpAddr) -> SocketAddr {
    SocketAddr::new(to, 0)
}

/// The rows behind `last`, and from the first one on behind the last of all.
fn turn<'a, K: Ord + Clone, V>(rows: Option<&'a BTreeMap<K, V>>, last: &mut Option<K>) -> Vec<(&'a K, &'a V)> {
    let Some(rows) = rows else { return Vec::new() };
    let behind = last.clone().map_or(Bound::Unbounded, Bound::Excluded);
    let round = rows.range((behind, Bound::Unbounded)).chain(rows);
    let taken: Vec<(&K, &V)> = round.take(AT_ONCE.min(rows.len())).collect();
    *last = taken.last().map(|(key, _)| (*key).clone());
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_its_turn_once_in_a_round() {
        let rows: BTreeMap<u32, ()> = (0..150).map(|key| (key, ())).collect();
        let mut last = None;
        let mut asked: Vec<u32> = (0..3).flat_map(|_| turn(Some(&rows), &mut last)).map(|(key, ())| *key).collect();
        assert_eq!((asked.len(), asked[149], asked[150]), (192, 149, 0));
        asked.truncate(150);
        assert_eq!(asked, rows.into_keys().collect::<Vec<_>>());
        let few = BTreeMap::from([(1, ()), (2, ())]);
        assert_eq!(turn(Some(&few), &mut Some(1)).len(), 2);
        assert_eq!(turn::<u32, ()>(None, &mut None).len(), 0);
    }
}
