//! `Targets`: the kernel tables this program writes, behind traits, so that what stands above works on tables in memory too.
//!
//! Invariant: the order of the fields is the order of dependency; [`super::tables`] keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use kernel::KernelError;
use kernel::conntrack::{Conntrack, Flow, Selection};
use kernel::ipvs::IpvsTable;
use kernel::nft::forward::Forward;
use netstate::ipvs::{RealServerKey, Row, VirtualServerKey};
use netstate::{Address, AddressKey, IfName, Link, Route, RouteKey, SysctlKey, nft};
use reconcile::{Rows, Target};

use super::flows::{Check, Locals, Tracked};
use crate::plan::FrontendKey;

/// A kernel table whatever stands behind it.
pub(crate) type AnyTarget<K, V> = Box<dyn Target<Key = K, Value = V, Error = KernelError> + Send>;

/// The IPVS tables with what is no row.
pub(crate) trait Servers: Target<Key = VirtualServerKey, Value = Row, Error = KernelError> {
    /// The real servers of a virtual server, each with whether it is without connections.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn idle(&mut self, service: &VirtualServerKey) -> Result<BTreeMap<RealServerKey, bool>, KernelError>;

    /// Before the first listing: `owned` are ours, and so is whatever stands at the addresses `at` then.
    fn adopt(&mut self, owned: BTreeSet<VirtualServerKey>, at: BTreeSet<IpAddr>);

    /// Takes a virtual server over, whoever made it.
    fn claim(&mut self, service: VirtualServerKey);

    /// True when the kernel holds no virtual server, whoever's.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn is_empty(&self) -> Result<bool, KernelError>;

    /// True when there are as many virtual servers, whoever's, as when all were compared last, and no step has made or removed one since.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn is_as_many(&self) -> Result<bool, KernelError>;

    /// The virtual servers of ours in `believed` that are missing, are different, or have a real server more or less.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn differing(&mut self, believed: &Rows<VirtualServerKey, Row>) -> Result<BTreeSet<VirtualServerKey>, KernelError>;

    /// Of the virtual servers of ours in `believed` whose turn it is, those whose real servers are others.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn differing_in_turn(
        &mut self,
        believed: &Rows<VirtualServerKey, Row>,
    ) -> Result<BTreeSet<VirtualServerKey>, KernelError>;

    /// The rows of these virtual servers as the kernel holds them now.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn rows_of(&mut self, services: &BTreeSet<VirtualServerKey>) -> Result<Rows<VirtualServerKey, Row>, KernelError>;

    /// True when virtual servers can have this scheduler.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn has_scheduler(&mut self, name: &str) -> Result<bool, KernelError>;

    /// Virtual servers that steps since the last call relied on and that were gone.
    fn take_vanished(&mut self) -> BTreeSet<VirtualServerKey>;
}

impl Servers for IpvsTable {
    fn idle(&mut self, service: &VirtualServerKey) -> Result<BTreeMap<RealServerKey, bool>, KernelError> {
        let servers = self.ipvs().real_servers(service)?;
        Ok(servers.into_iter().map(|(key, (_, connections))| (key, connections.is_empty())).collect())
    }

    fn adopt(&mut self, owned: BTreeSet<VirtualServerKey>, at: BTreeSet<IpAddr>) {
        Self::adopt(self, owned, at);
    }

    fn claim(&mut self, service: VirtualServerKey) {
        Self::claim(self, service);
    }

    fn is_empty(&self) -> Result<bool, KernelError> {
        Self::is_empty(self)
    }

    fn is_as_many(&self) -> Result<bool, KernelError> {
        Self::is_as_many(self)
    }

    fn differing(&mut self, believed: &Rows<VirtualServerKey, Row>) -> Result<BTreeSet<VirtualServerKey>, KernelError> {
        Self::differing(self, believed)
    }

    fn differing_in_turn(
        &mut self,
        believed: &Rows<VirtualServerKey, Row>,
    ) -> Result<BTreeSet<VirtualServerKey>, KernelError> {
        Self::differing_in_turn(self, believed)
    }

    fn rows_of(&mut self, services: &BTreeSet<VirtualServerKey>) -> Result<Rows<VirtualServerKey, Row>, KernelError> {
        Self::rows_of(self, services)
    }

    fn has_scheduler(&mut self, name: &str) -> Result<bool, KernelError> {
        self.ipvs().has_scheduler(name)
    }

    fn take_vanished(&mut self) -> BTreeSet<VirtualServerKey> {
        Self::take_vanished(self)
    }
}

/// The addresses of our link, with what is no row.
pub(crate) trait VirtualAddresses: Target<Key = AddressKey, Value = Address, Error = KernelError> {
    /// Those of ours in `held` that no local route leads to: packets to them go elsewhere. The next time that one is made, it is made anew.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn unrouted(&mut self, held: &Rows<AddressKey, Address>) -> Result<BTreeSet<AddressKey>, KernelError>;
}

/// Whether a tracked connection is stale.
pub(crate) type Stale<'a> = &'a dyn Fn(&Tracked) -> bool;

/// Tracked connections.
pub(crate) trait Flows {
    /// Deletes the selected connections that `stale` says yes to, and returns how many.
    ///
    /// # Errors
    /// When the kernel cannot be read or refuses.
    fn forget(&mut self, of: &Selection, stale: Stale<'_>) -> Result<usize, KernelError>;

    /// False when every connection is read whatever is selected.
    fn filters(&self) -> bool;
}

impl Flows for Conntrack {
    fn forget(&mut self, of: &Selection, stale: Stale<'_>) -> Result<usize, KernelError> {
        let tracked = |flow: &Flow| Tracked {
            client: flow.original.src,
            opened_to: flow.original.dst,
            answered_by: flow.reply.src,
            returns_to: flow.reply.dst,
            answered: flow.answered,
            translated: flow.translated,
        };
        self.delete_stale(of, |flow| stale(&tracked(flow)))
    }

    fn filters(&self) -> bool {
        Self::filters(self)
    }
}

/// Who deletes the stale connections of frontends, behind the pass that put their rows in place.
pub(crate) trait Sweeper {
    /// Takes in frontends whose connections are to be read.
    fn put(&mut self, checks: BTreeMap<FrontendKey, Check>, locals: Locals);

    /// Takes in that `endpoint` is about to serve at `frontend`.
    fn welcome(&mut self, frontend: &FrontendKey, endpoint: SocketAddr);
}

/// Every table.
pub(crate) struct Targets {
    /// Kernel parameters.
    pub(crate) sysctls: AnyTarget<SysctlKey, String>,
    /// The nft tables.
    pub(crate) nft: AnyTarget<nft::RowKey, nft::Row>,
    /// Our rules in foreign chains; none without a kernel.
    pub(crate) forward: Option<Forward>,
    /// Where the kernel has IPVS.
    pub(crate) balance: Option<Balance>,
    /// Routes that make whole networks local; of either data path, so that those go which the other one has left.
    pub(crate) routes: AnyTarget<RouteKey, Route>,
    /// Who deletes stale connections.
    pub(crate) flows: Box<dyn Sweeper + Send>,
}

/// The tables of IPVS.
pub(crate) struct Balance {
    /// The link that holds virtual addresses.
    pub(crate) links: AnyTarget<IfName, Link>,
    /// Virtual and real servers.
    pub(crate) servers: Box<dyn Servers + Send>,
    /// Virtual addresses.
    pub(crate) addresses: Box<dyn VirtualAddresses + Send>,
}
