//! `Site`: a frontend with everything that its rows depend on.
//!
//! Invariant: who carries which class of clients is decided here, once for all its rows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netstate::ipvs::{Row as ServerRow, VirtualServerKey};
use netstate::nft::{Row, RowKey};
use netstate::{IpFamily, Prefix};

use super::nftables::dispatch::{Dispatch, backends, chosen};
use super::{Mode, NodeAddresses, Options, ipvs, local, nftables, record};
use crate::object::service::Sources;
use crate::plan::frontend::{Kind, Place};
use crate::plan::pods::Pods;
use crate::plan::select::{Backend, Locality};
use crate::plan::{Frontend, FrontendKey};

/// See the module's text.
pub(super) struct Site<'a> {
    /// Where it is.
    pub(super) key: &'a FrontendKey,
    /// What stands there.
    pub(super) frontend: &'a Frontend,
    /// How clients are known for Pods.
    pub(super) pods: &'a Pods,
    /// What nftables does for its clients.
    pub(super) dispatch: Dispatch,
    mode: Mode,
    options: &'a Options,
}

impl<'a> Site<'a> {
    /// `None` for a frontend that is not served.
    pub(super) fn new(key: &'a FrontendKey, frontend: &'a Frontend, options: &'a Options) -> Option<Self> {
        let pods = options.pods.get(key.family()).as_ref()?;
        // A node port may have its virtual server at that address already.
        let mode = if is_own(key, frontend.kind, options) { Mode::Nftables } else { options.mode };
        Some(Self { key, frontend, pods, dispatch: Dispatch::of(frontend, mode), mode, options })
    }

    /// The family it is reached in.
    pub(super) const fn family(&self) -> IpFamily {
        self.key.family()
    }

    /// The lists of endpoints that nftables chooses from.
    pub(super) fn lists(&self) -> Vec<&[Backend]> {
        chosen(self.frontend, self.mode)
    }

    /// The endpoints that nftables chooses from, in the order of their indexes.
    pub(super) fn chosen(&self) -> impl Iterator<Item = &Backend> {
        self.lists().into_iter().flatten()
    }

    /// Its own rows of the nft table.
    pub(super) fn elements(&self) -> BTreeMap<RowKey, Row> {
        let mut rows = nftables::own(self);
        rows.extend(self.virtual_servers().map(|server| record::element(&server, &self.frontend.owner)));
        rows
    }

    /// Rows of the nft table that other frontends may need too.
    pub(super) fn shared(&self) -> BTreeMap<RowKey, Row> {
        nftables::shared(self)
    }

    /// Their keys.
    pub(super) fn shared_keys(&self) -> BTreeSet<RowKey> {
        nftables::shared_keys(self)
    }

    /// True when a row that this one shares under a key may be another than that of `new`: where clients stay for another time, or are
    /// known for Pods otherwise.
    pub(super) fn may_share_otherwise(&self, new: &Self) -> bool {
        self.pods != new.pods || self.frontend.affinity != new.frontend.affinity
    }

    /// Its virtual servers with their real servers.
    pub(super) fn servers(&self) -> BTreeMap<VirtualServerKey, ServerRow> {
        let of = |server| (server, ipvs::row(self.frontend, &self.options.scheduler));
        self.virtual_servers().map(of).collect()
    }

    fn virtual_servers(&self) -> impl Iterator<Item = VirtualServerKey> {
        ipvs::servers(self.key, &self.options.node.node_ports).filter(|_| self.mode == Mode::Ipvs)
    }

    /// Its address, where nobody else answers at that.
    pub(super) fn vips(&self) -> BTreeSet<IpAddr> {
        match self.key.place {
            Place::Address(addr) if self.frontend.kind == Kind::ClusterIp => BTreeSet::from([addr]),
            _ => self.bound(),
        }
    }

    /// Its address, where that is an external one which the node has not itself.
    pub(super) fn external(&self) -> BTreeSet<IpAddr> {
        match self.key.place {
            Place::Address(addr) if self.frontend.kind != Kind::ClusterIp && !self.options.node.own.contains(&addr) => {
                BTreeSet::from([addr])
            }
            _ => BTreeSet::new(),
        }
    }

    /// Its address, where the node must have it for virtual servers. An external one is had whatever routes there are: others announce
    /// what they find on the link.
    pub(super) fn bound(&self) -> BTreeSet<IpAddr> {
        match self.key.place {
            Place::Address(addr) if self.mode == Mode::Ipvs && !self.is_routed(addr) => BTreeSet::from([addr]),
            _ => BTreeSet::new(),
        }
    }

    /// True when the route of a whole network makes its address local.
    fn is_routed(&self, addr: IpAddr) -> bool {
        self.frontend.kind == Kind::ClusterIp && local::covers(self.options, addr)
    }

    /// The clients that may connect, where not everybody may. The node may when the address may that it connects from elsewhere: where
    /// it has the frontend's address itself, it connects from that.
    pub(super) fn allowed(&self) -> Option<Vec<Prefix>> {
        let Sources::Only(sources) = &self.frontend.sources else { return None };
        let mut allowed: Vec<Prefix> = sources.iter().filter(|net| net.family() == self.family()).copied().collect();
        let NodeAddresses { own, primary, .. } = &self.options.node;
        let may = |addr: &IpAddr| allowed.iter().any(|net| net.contains(*addr));
        let is_node = primary.get(self.family()).as_ref().map_or_else(|| own.iter().any(may), may);
        if let Place::Address(addr) = self.key.place {
            allowed.extend(is_node.then(|| Prefix::host(addr)));
        }
        Some(allowed)
    }

    /// Addresses of endpoints that may be their own clients here: those on this node, and those of other nodes that come to an address
    /// outside the Service network and keep theirs. At a virtual address their own node leads them.
    pub(super) fn hairpins(&self) -> BTreeSet<IpAddr> {
        let pod = &self.frontend.routes.pod;
        let from_elsewhere = self.frontend.kind != Kind::ClusterIp && !pod.masquerade;
        let others = pod.answer.backends().iter().filter(|_| from_elsewhere);
        let maybe_here = backends(self.frontend).filter(|backend| backend.locality != Locality::Elsewhere);
        maybe_here.chain(others).map(|backend| backend.addr).collect()
    }
}

/// True for an external address that the node has itself: it is not ours to give or take.
fn is_own(key: &FrontendKey, kind: Kind, options: &Options) -> bool {
    kind != Kind::ClusterIp && matches!(key.place, Place::Address(addr) if options.node.own.contains(&addr))
}
