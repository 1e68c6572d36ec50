//! `Site`: a frontend with everything that its rows depend on.
//!
//! Invariant: who carries which class of clients is decided here, once for all its rows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netstate::ipvs::{Row as ServerRow, RowKey as ServerKey, VirtualServerKey};
use netstate::nft::{Row, RowKey};
use netstate::{IpFamily, Prefix};

use super::nftables::dispatch::{Dispatch, backends, chosen};
use super::{Mode, Options, ipvs, nftables, record, serves};
use crate::plan::frontend::{Kind, Place};
use crate::plan::select::{Backend, Locality};
use crate::plan::{Frontend, FrontendKey};

/// See the module's text.
pub(super) struct Site<'a> {
    /// Where it is.
    pub(super) key: &'a FrontendKey,
    /// What stands there.
    pub(super) frontend: &'a Frontend,
    /// The network whose clients are Pods.
    pub(super) pods: Prefix,
    /// What nftables does for its clients.
    pub(super) dispatch: Dispatch,
    options: &'a Options,
}

impl<'a> Site<'a> {
    /// `None` for a frontend that is not served.
    pub(super) fn new(key: &'a FrontendKey, frontend: &'a Frontend, options: &'a Options) -> Option<Self> {
        let pods = (*options.pods.get(key.family()))?;
        let served = options.mode == Mode::Nftables || serves::by_ipvs(key, frontend);
        let dispatch = Dispatch::of(frontend, options.mode);
        served.then_some(Self { key, frontend, pods, dispatch, options })
    }

    /// The family it is reached in.
    pub(super) const fn family(&self) -> IpFamily {
        self.key.family()
    }

    /// The endpoints that nftables chooses from, in the order of their indexes.
    pub(super) fn chosen(&self) -> impl Iterator<Item = &Backend> {
        chosen(self.frontend, self.options.mode)
    }

    /// Its own rows of the nft table.
    pub(super) fn elements(&self) -> BTreeMap<RowKey, Row> {
        let mut rows = nftables::own(self);
        rows.extend(self.virtual_servers().map(|server| record::element(&server, &self.frontend.owner)));
        rows
    }

    /// The chain that its clients go through, where there is one.
    pub(super) fn chain(&self) -> Option<(RowKey, Row)> {
        nftables::chain(self)
    }

    /// Its virtual servers with their real servers.
    pub(super) fn servers(&self) -> BTreeMap<ServerKey, ServerRow> {
        let of = |server| ipvs::rows(server, self.frontend, &self.options.scheduler);
        self.virtual_servers().flat_map(of).collect()
    }

    fn virtual_servers(&self) -> impl Iterator<Item = VirtualServerKey> {
        ipvs::server(self.key).filter(|_| self.options.mode == Mode::Ipvs).into_iter()
    }

    /// Its address, where nobody else answers at that.
    pub(super) fn vips(&self) -> BTreeSet<IpAddr> {
        match (self.frontend.kind, self.key.place) {
            (Kind::ClusterIp, Place::Address(addr)) => BTreeSet::from([addr]),
            _ => BTreeSet::new(),
        }
    }

    /// Addresses of endpoints that may be on this node.
    pub(super) fn hairpins(&self) -> BTreeSet<IpAddr> {
        let maybe_here = backends(self.frontend).filter(|backend| backend.locality != Locality::Elsewhere);
        maybe_here.map(|backend| backend.addr).collect()
    }
}
