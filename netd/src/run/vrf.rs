//! The VRF of the interface towards the other nodes, followed while the daemon runs, and compared at its start.
//!
//! Invariant: a device that listens in another VRF than its interface is in now is made anew, because the kernel binds its
//! socket when it comes up, and never again.

use std::collections::BTreeSet;

use kernel::{Chain, KernelError, Rtnl, bound};
use netstate::family::IpFamily;
use netstate::{IfName, LinkKind};

use super::daemon::Daemon;
use super::facts;
use crate::format::net_conf::Network;
use crate::source::LeaseSource;

/// Deletes the network's devices that an earlier run left listening in another VRF than `interface` is in now.
///
/// # Errors
/// When the kernel cannot be read, or refuses.
pub(super) fn release(network: &Network, interface: &IfName) -> Result<(), KernelError> {
    if !network.backend.keeps_vrf() {
        return Ok(());
    }
    let mut rtnl = Rtnl::open()?;
    let vrf = rtnl.vrf_of(interface)?.map_or(0, |vrf| vrf.index);
    for device in network.pools.families().filter_map(|family| network.backend.device(family)) {
        let Some(state) = rtnl.link(&device)? else { continue };
        let LinkKind::Vxlan(options) = &state.link.kind else { continue };
        let family = options.local.map_or(IpFamily::V4, IpFamily::of);
        let listens = bound::udp(family, options.port).unwrap_or_else(|error| {
            tracing::debug!(error = %Chain(&error), "the VRF that the tunnel listens in is not known");
            BTreeSet::new()
        });
        if !listens.is_empty() && !listens.contains(&vrf) {
            let text = "the tunnel listens in another VRF than its interface is in; it is made anew";
            tracing::info!(%device, %interface, "{text}");
            rtnl.delete_link(&device)?;
        }
    }
    Ok(())
}

impl<S: LeaseSource> Daemon<S> {
    /// Reads the VRF, and has the tunnel's devices made anew when it is another one.
    pub(super) fn follow_vrf(&mut self) {
        let interface = &self.external.current.interface;
        let changed = facts::vrf(interface).map(|vrf| (self.reach.set_vrf(vrf.clone()), vrf));
        let result = match changed {
            Ok((true, vrf)) => {
                let vrf = vrf.map_or_else(|| "none".to_owned(), |vrf| vrf.to_string());
                tracing::info!(%interface, vrf, "this node's interface is in another VRF");
                self.delete_devices()
            }
            Ok((false, _)) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::warn!(error = %Chain(&error), "the VRF of the interface towards the others cannot be followed");
        }
    }

    /// Deletes the devices that listen where they came up; the worker makes them anew.
    fn delete_devices(&self) -> Result<(), KernelError> {
        let network = &self.node.network;
        if !network.backend.keeps_vrf() {
            return Ok(());
        }
        let mut rtnl = Rtnl::open()?;
        for device in network.pools.families().filter_map(|family| network.backend.device(family)) {
            if rtnl.link(&device)?.is_some() {
                rtnl.delete_link(&device)?;
            }
        }
        Ok(())
    }
}
