//! Steps on what Pods share: the bridge, the link of a VLAN, the gateways' addresses.
//!
//! Invariants: what was there before, whoever made it, counts as done and is never undone. What this call made is undone only
//! while no Pod uses it. Another ADD may come between the look and the removal: one that finds a bridge asleep gives it its
//! gateways again once its own port is there, and an address whose removal was overtaken by a port is put back.

use kernel::{KernelError, Netns};
use netstate::{IfName, Link, LinkKind};
use nix::libc;
use std::path::Path;

use super::{KernelExecutor, bridge_link, set, up, veth_end, vlans_refused};
use crate::apply::Made;
use crate::plan::{Cidr, End, Step};
use crate::protocol::error::CniError;

impl KernelExecutor<'_> {
    /// Executes a step on what Pods share; `None` for any other.
    pub(super) fn apply_shared(&mut self, step: &Step) -> Result<Option<Made>, CniError> {
        let done = |()| Made::Here;
        let made = match step {
            Step::CreateBridge { name, mac, mtu, filters_vlans } => {
                self.create_bridge(name, &bridge_link(*mtu, Some(*mac), *filters_vlans))?
            }
            Step::FilterVlans(name) => self.host.filter_vlans(name).map(done).map_err(vlans_refused)?,
            Step::CreateVlanLink { bridge, port, gateway, mtu } => {
                self.create_vlan_link(bridge, port, gateway, *mtu)?
            }
            Step::SetUp { name, mtu } => self.host.set_link(name, &up(*mtu)).map(done)?,
            Step::SetBridge { name, mtu } => self.host.set_link(name, &bridge_link(*mtu, None, false)).map(done)?,
            Step::SetPromiscuous(name) => {
                let index = self.index(name)?;
                self.host.set_promiscuous(index).map(done)?
            }
            Step::RemoveBridgeAddress(name, (addr, len)) => {
                let index = self.index(name)?;
                self.host.delete_address(index, *addr, *len).map(done)?
            }
            Step::AddGateway { link, gateway, .. } => self.add_gateway(link, *gateway)?,
            Step::HostParameter(parameter) => set(parameter).map(done)?,
            _ => return Ok(None),
        };
        Ok(Some(made))
    }

    fn create_bridge(&mut self, name: &IfName, link: &Link) -> Result<Made, CniError> {
        let filters = |kind: &LinkKind| matches!(kind, LinkKind::Bridge(options) if options.vlan_filtering);
        let wanted = filters(&link.kind);
        match self.host.create_link(name, link) {
            Ok(()) => Ok(Made::Here),
            // Another ADD was faster: its bridge is as good as ours, if it filters VLANs where ours must.
            Err(e) if e.errno() == Some(libc::EEXIST) => match self.host.link(name)? {
                Some(found) if !wanted && matches!(found.link.kind, LinkKind::Bridge(_)) => Ok(Made::Before),
                Some(found) if filters(&found.link.kind) => Ok(Made::Before),
                _ => Err(CniError::from(e)),
            },
            Err(e) if wanted => Err(vlans_refused(e)),
            Err(e) => Err(e.into()),
        }
    }

    fn create_vlan_link(&mut self, bridge: &IfName, port: &End, gateway: &End, mtu: u32) -> Result<Made, CniError> {
        let master = self.index(bridge)?;
        let here = Netns::open(Path::new("/proc/thread-self/ns/net"))?;
        // Another ADD was faster: its link is as good as ours, and is made whole by both.
        made(self.host.create_veth(&veth_end(port), master, &veth_end(gateway), &here, mtu).map(drop))
    }

    fn add_gateway(&mut self, link: &IfName, (addr, len): Cidr) -> Result<Made, CniError> {
        let index = self.index(link)?;
        made(self.host.add_address(index, addr, len))
    }

    /// Deletes `link`, the bridge itself or the link of a VLAN on it, unless the bridge has come into use.
    pub(super) fn remove_shared(&mut self, bridge: &IfName, link: &IfName) -> Result<(), CniError> {
        if self.is_in_use(bridge, link)? { Ok(()) } else { Ok(self.host.delete_link(link)?) }
    }

    /// Takes a gateway's address off `link` again, unless the bridge has come into use.
    pub(super) fn remove_gateway(&mut self, bridge: &IfName, link: &IfName, gateway: Cidr) -> Result<(), CniError> {
        if self.is_in_use(bridge, link)? {
            return Ok(());
        }
        let index = self.index(link)?;
        self.host.delete_address(index, gateway.0, gateway.1)?;
        if self.is_in_use(bridge, link)? { self.add_gateway(link, gateway).map(drop) } else { Ok(()) }
    }

    /// Gives `link` an address back that had to give way.
    pub(super) fn restore_address(&mut self, link: &IfName, address: Cidr) -> Result<(), CniError> {
        self.add_gateway(link, address).map(drop)
    }

    /// True when `bridge` has a port besides the one through which `link` is on it.
    fn is_in_use(&mut self, bridge: &IfName, link: &IfName) -> Result<bool, CniError> {
        let links = self.host.links()?;
        let find = |name: &IfName| links.iter().find(|link| link.name == *name);
        let Some(master) = find(bridge).map(|bridge| bridge.index) else { return Ok(false) };
        let own = find(link).filter(|link| link.index != master).and_then(|link| link.lower_index);
        Ok(links.iter().any(|port| port.master_index == Some(master) && Some(port.index) != own))
    }
}

fn made(result: Result<(), KernelError>) -> Result<Made, CniError> {
    match result {
        Ok(()) => Ok(Made::Here),
        Err(e) if e.errno() == Some(libc::EEXIST) => Ok(Made::Before),
        Err(e) => Err(e.into()),
    }
}
