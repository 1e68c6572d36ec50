//! Where leases come from.
//!
//! Invariant: a subnet is claimed by creating its key in a transaction that fails when the key exists. A key of another
//! node is never overwritten, and a reservation (a key without time to live) stays one.

mod etcd;
mod keeper;
pub mod view;

use crate::choose::subnet::{Applicant, Claims, NoSubnet, Policy, choose};
use crate::format::lease::{Lease, LeaseAttrs, SubnetKey};
use crate::format::net_conf::Network;

pub use etcd::{AcquireError, Held, LeaseStore};
pub use keeper::{Keeper, KeeperEvent};

/// What this node asks the store for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The network that is cut into subnets.
    pub network: Network,
    /// This node.
    pub node: Applicant,
    /// How a subnet is chosen.
    pub policies: Vec<Policy>,
    /// What the lease shall tell the other nodes.
    pub attrs: LeaseAttrs,
    /// This node's tunnel device does not exist yet: it may be made with the hardware address that an earlier lease of
    /// this node tells, and the other nodes notice nothing.
    pub adopts_mac: bool,
}

impl Wish {
    /// The lease of a node that is alone and needs no store.
    ///
    /// # Errors
    /// When no policy names a subnet.
    pub fn alone(&self) -> Result<Lease, NoSubnet> {
        match choose(&self.network, &self.node, &Claims::default(), &self.policies, 0)? {
            crate::choose::subnet::Choice::Keep(lease) => Ok(lease),
            crate::choose::subnet::Choice::Take { subnet, .. } => {
                Ok(Lease { key: SubnetKey::v4(subnet), attrs: self.attrs.clone() })
            }
        }
    }

    /// What to write into the lease that is kept.
    fn attrs_for(&self, kept: &LeaseAttrs) -> LeaseAttrs {
        use crate::format::lease::BackendAttrs::Vxlan;
        match (&self.attrs.backend, &kept.backend) {
            (Vxlan { vni, .. }, Vxlan { vni: before, .. }) if self.adopts_mac && vni == before => {
                LeaseAttrs { backend: kept.backend.clone(), ..self.attrs.clone() }
            }
            _ => self.attrs.clone(),
        }
    }
}
