//! `PeerRows`: the rows that make other nodes reachable, gathered lease by lease.
//!
//! Invariant: of two rows with one key the later one stays. Lists, because maps are built from many sorted rows at once in a
//! fraction of the time that it takes to insert them one by one.

use std::collections::BTreeMap;

use netstate::{Fdb, FdbKey, Neighbour, NeighbourKey, Route, RouteKey, wireguard};

use super::backend::{FileText, TunnelEnd};
use super::{Changes, RowChanges, Tables};

/// Rows of other nodes.
#[derive(Debug, Default)]
pub(crate) struct PeerRows {
    /// Neighbours behind the tunnel.
    pub neighbours: Vec<(NeighbourKey, Neighbour)>,
    /// Remote ends of the tunnel.
    pub fdb: Vec<(FdbKey, Fdb)>,
    /// Nodes behind WireGuard devices.
    pub wireguard: Vec<(wireguard::RowKey, wireguard::Row)>,
    /// Routes to the nodes' subnets.
    pub routes: Vec<(RouteKey, Route)>,
    /// Files for the operator's own program.
    pub files: Vec<(String, FileText)>,
}

/// How many rows of each table there are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark([usize; 5]);

impl PeerRows {
    /// How many rows there are now, for [`PeerRows::truncate`].
    pub(crate) const fn mark(&self) -> Mark {
        let Self { neighbours, fdb, wireguard, routes, files } = self;
        Mark([neighbours.len(), fdb.len(), wireguard.len(), routes.len(), files.len()])
    }

    /// Drops the rows that were added since `mark`.
    pub(crate) fn truncate(&mut self, mark: Mark) {
        let Self { neighbours, fdb, wireguard, routes, files } = self;
        let Mark([of_neighbours, of_fdb, of_wireguard, of_routes, of_files]) = mark;
        neighbours.truncate(of_neighbours);
        fdb.truncate(of_fdb);
        wireguard.truncate(of_wireguard);
        routes.truncate(of_routes);
        files.truncate(of_files);
    }

    /// Where the rows of one node lead, when they lead through a tunnel.
    pub(crate) fn tunnel_end(&self) -> Option<TunnelEnd> {
        let mac = self.fdb.first().map(|(entry, _)| TunnelEnd::Mac(entry.mac));
        let peer = |(row, _): &(wireguard::RowKey, wireguard::Row)| match row {
            wireguard::RowKey::Peer(_, key) => Some(TunnelEnd::Key(*key)),
            wireguard::RowKey::Device(_) => None,
        };
        mac.or_else(|| self.wireguard.iter().find_map(peer))
    }

    /// These rows with those of this node itself.
    pub(crate) fn beside(self, local: Tables) -> Tables {
        Tables {
            neighbours: map(local.neighbours, self.neighbours),
            fdb: map(local.fdb, self.fdb),
            wireguard: map(local.wireguard, self.wireguard),
            routes: map(local.routes, self.routes),
            files: map(local.files, self.files),
            ..local
        }
    }

    /// As tables.
    pub(crate) fn into_tables(self) -> Tables {
        self.beside(Tables::default())
    }

    /// As rows of which none was there before.
    pub(crate) fn into_changes(self) -> Changes {
        Changes {
            neighbours: new(self.neighbours),
            fdb: new(self.fdb),
            wireguard: new(self.wireguard),
            routes: new(self.routes),
            files: new(self.files),
            ..Changes::default()
        }
    }
}

fn new<K: Ord, V>(rows: Vec<(K, V)>) -> RowChanges<K, V> {
    rows.into_iter().map(|(key, value)| (key, Some(value))).collect()
}

/// `first` with the rows of `then`, whose values stay.
fn map<K: Ord, V>(first: BTreeMap<K, V>, then: Vec<(K, V)>) -> BTreeMap<K, V> {
    if first.is_empty() { then.into_iter().collect() } else { first.into_iter().chain(then).collect() }
}
