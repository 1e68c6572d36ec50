//! ADD, the bridge: made, set, given the gateways' addresses.
//!
//! Invariants: an address of the bridge gives way only when no Pod can be using it, or when the user forces it; two
//! bridges of one host never get one subnet.

use netstate::{IfName, IpFamily, PerFamily, Prefix, SysctlKey};

use super::{Attach, Facts, Surroundings};
use crate::plan::{Cidr, Parameter, Step};
use crate::protocol::error::{CniError, Code};
use crate::protocol::range::RangeSet;

/// The node forwards packets of the family.
pub(crate) const FORWARD: PerFamily<SysctlKey> =
    PerFamily::new(SysctlKey::literal("net/ipv4/ip_forward"), SysctlKey::literal("net/ipv6/conf/all/forwarding"));

impl Attach<'_> {
    pub(super) fn bridge_steps(&self, facts: &Facts) -> Result<Vec<Step>, CniError> {
        let name = self.conf.bridge.clone();
        let mut steps = Vec::new();
        match &facts.bridge {
            None => {
                let (mac, mtu, filters_vlans) = (self.bridge_mac(), self.conf.mtu, self.conf.vlan.is_used());
                steps.push(Step::CreateBridge { name: name.clone(), mac, mtu, filters_vlans });
                // Ports must not teach the host routes.
                let accept_ra = SysctlKey::of_link(IpFamily::V6, &name, "accept_ra");
                steps.push(Step::HostParameter(Parameter::optional(accept_ra, "0")));
            }
            Some(bridge) if !bridge.is_bridge => {
                let msg = format!("link {name} already exists but is not a bridge");
                return Err(
                    CniError::new(Code::InvalidConfig, msg).details("choose another name with the option bridge")
                );
            }
            Some(bridge) => {
                steps.extend(self.filter_step(bridge, facts.surroundings.has_ports)?);
                let mtu = self.conf.mtu.filter(|mtu| bridge.mtu != Some(*mtu));
                if mtu.is_some() || !bridge.up {
                    steps.push(Step::SetBridge { name: name.clone(), mtu });
                }
            }
        }
        if self.conf.promiscuous {
            steps.push(Step::SetPromiscuous(name));
        }
        Ok(steps)
    }

    pub(super) fn gateway_steps(&self, facts: &Facts) -> Result<Vec<Step>, CniError> {
        let (link, present) = (self.gateway_link(), self.present(facts));
        let (gateways, own) = (self.gateways(), self.configured_gateways());
        let mut steps = Vec::new();
        for gateway in gateways.iter().filter(|gateway| !present.contains(gateway)) {
            self.check_other_bridges(gateway, &facts.surroundings)?;
            for foreign in present.iter().filter(|cidr| conflicts(**cidr, *gateway) && !own.contains(cidr)) {
                self.check_replaceable(*foreign, *gateway, &facts.surroundings)?;
                let step = Step::RemoveBridgeAddress(link.clone(), *foreign);
                if !steps.contains(&step) {
                    steps.push(step);
                }
            }
            steps.push(self.gateway_step(*gateway));
        }
        for (family, key) in FORWARD {
            let has_gateway = gateways.iter().any(|(addr, _)| IpFamily::of(*addr) == family);
            if has_gateway && !facts.forwards.get(family) {
                steps.push(Step::HostParameter(Parameter::required(key, "1")));
            }
        }
        Ok(steps)
    }

    /// Gives the link that holds gateways one of them.
    pub(super) fn gateway_step(&self, gateway: Cidr) -> Step {
        Step::AddGateway { bridge: self.conf.bridge.clone(), link: self.gateway_link(), gateway }
    }

    /// The gateways of all ranges: a pool of several subnets has several, and each Pod needs one of them.
    fn configured_gateways(&self) -> Vec<Cidr> {
        let ranges = self.conf.ipam.iter().flat_map(|ipam| &ipam.sets).flat_map(RangeSet::ranges);
        ranges.map(|range| (range.gateway(), range.subnet().len())).collect()
    }

    /// Two bridges with one subnet break routing for every Pod on either of them.
    fn check_other_bridges(&self, gateway: &Cidr, surroundings: &Surroundings) -> Result<(), CniError> {
        let Ok(subnet) = Prefix::new(gateway.0, gateway.1) else { return Ok(()) };
        let clash = |(_, (addr, len)): &&(IfName, Cidr)| Prefix::new(*addr, *len).is_ok_and(|p| p.overlaps(&subnet));
        let Some((other, (addr, len))) = surroundings.other_bridges.iter().find(clash) else { return Ok(()) };
        let bridge = self.gateway_link();
        let msg = format!("bridge {bridge} cannot have subnet {subnet}: bridge {other} already has {addr}/{len}");
        Err(CniError::new(Code::InvalidConfig, msg)
            .details(format!("set the option bridge to {other}, or delete {other} when no Pod uses it any more")))
    }

    /// A lease that changed replaces the address of an empty bridge; with Pods on it only `forceAddress` may.
    fn check_replaceable(&self, (addr, len): Cidr, gateway: Cidr, around: &Surroundings) -> Result<(), CniError> {
        if self.conf.force_address || (self.conf.is_leased && !around.has_ports) {
            return Ok(());
        }
        let (link, wanted, bits) = (self.gateway_link(), gateway.0, gateway.1);
        let msg = format!("{:?} already has an IP address different from {wanted}/{bits}: {addr}/{len}", link.as_str());
        Err(CniError::new(Code::InvalidConfig, msg).details(match self.conf.is_leased {
            true => "Pods of the earlier subnet are still on it: remove them, or set forceAddress",
            false => "take that address off, choose another name with the option bridge, or set forceAddress",
        }))
    }
}

/// An address that keeps a gateway off the bridge: any other IPv4 address, or an IPv6 one of an overlapping subnet.
fn conflicts(present: Cidr, gateway: Cidr) -> bool {
    let network = |(addr, len)| Prefix::new(addr, len).ok();
    match (present.0.is_ipv4(), gateway.0.is_ipv4()) {
        (true, true) => true,
        (false, false) => network(present).zip(network(gateway)).is_some_and(|(a, b)| a.overlaps(&b)),
        _ => false,
    }
}
