//! What ADD finds on the host before it plans.
//!
//! Invariant: what a settled node does not need is not asked for: other links only when the bridge lacks something, the
//! link of a VLAN only where its gateways are.

use std::net::IpAddr;

use kernel::link::LinkState;
use kernel::{KernelError, Rtnl, sysctl};
use netstate::{IfName, IpFamily, LinkKind};

use crate::plan::Cidr;
use crate::plan::attach::bridge::FORWARD;
use crate::plan::attach::vlan::VlanLink;
use crate::plan::attach::{Attach, BridgeState, Facts, Surroundings};
use crate::protocol::error::CniError;
use crate::reclaim::leftovers::{bridge_names, is_vlan_link};

/// Examines the host for `attach`; `bridge` has been examined already.
///
/// # Errors
/// Code 100 when the kernel cannot be asked.
pub(super) fn survey(attach: &Attach<'_>, bridge: Option<&LinkState>, host: &mut Rtnl) -> Result<Facts, CniError> {
    let bridge = bridge.map(|link| bridge_state(link, host)).transpose()?;
    let mut facts = Facts { bridge, ..Facts::default() };
    if attach.gateway_vlan().is_some() {
        facts.vlan_link = vlan_link(&attach.gateway_link(), host)?;
    }
    if attach.needs_surroundings(&facts) {
        facts.surroundings = surroundings(attach, host)?;
    }
    let gateways = attach.gateways();
    facts.forwards = FORWARD.map(|family, key| {
        gateways.iter().any(|(addr, _)| IpFamily::of(*addr) == family)
            && sysctl::read(&key).is_ok_and(|value| value == "1")
    });
    Ok(facts)
}

fn bridge_state(state: &LinkState, host: &mut Rtnl) -> Result<BridgeState, KernelError> {
    let mut addresses = host.addresses_of(state.index)?;
    addresses.retain(is_routable);
    Ok(BridgeState {
        index: state.index,
        is_bridge: matches!(state.link.kind, LinkKind::Bridge(_)),
        mtu: state.link.mtu,
        mac: state.link.mac,
        up: state.link.up,
        operational: state.operational,
        filters_vlans: matches!(&state.link.kind, LinkKind::Bridge(options) if options.vlan_filtering),
        addresses,
    })
}

fn vlan_link(name: &IfName, host: &mut Rtnl) -> Result<Option<VlanLink>, KernelError> {
    let Some(state) = host.link(name)? else { return Ok(None) };
    let mut addresses = host.addresses_of(state.index)?;
    addresses.retain(is_routable);
    Ok(Some(VlanLink {
        index: state.index,
        up: state.link.up,
        is_veth: state.link.kind == LinkKind::Veth,
        mtu: state.link.mtu,
        mac: state.link.mac,
        addresses,
    }))
}

fn is_routable((addr, _): &Cidr) -> bool {
    !matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn surroundings(attach: &Attach<'_>, host: &mut Rtnl) -> Result<Surroundings, KernelError> {
    let links = host.links()?;
    let own = links.iter().find(|link| link.name == attach.conf.bridge).map(|link| link.index);
    let (gateway, bridges) = (attach.gateway_link(), bridge_names(&links));
    let may_clash = |link: &&LinkState| {
        link.name != gateway && (matches!(link.link.kind, LinkKind::Bridge(_)) || is_vlan_link(&link.name, &bridges))
    };
    let others: Vec<&LinkState> = links.iter().filter(may_clash).collect();
    let mut other_bridges = Vec::new();
    for (index, addr, len) in host.addresses()? {
        if let Some(link) = others.iter().find(|link| link.index == index).filter(|_| is_routable(&(addr, len))) {
            other_bridges.push((link.name.clone(), (addr, len)));
        }
    }
    let has_ports = own.is_some() && links.iter().any(|link| link.master_index == own);
    Ok(Surroundings { has_ports, other_bridges })
}
