//! `LocalNode`: what is particular to this node, and the rows that it needs by itself.
//!
//! Invariant: there is a place for each family that both the node and the network have, and for no other.

use std::net::IpAddr;

use netstate::family::{IpFamily, PerFamily};
use netstate::wireguard::PublicKey;
use netstate::{IfName, MacAddr, Prefix, SysctlKey};

use super::backend::Backend;
use super::{Flowtables, Planner, Tables, Ways, blackhole, masquerade};
use crate::choose::interface::NodeAddress;

/// What is particular to this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalNode {
    /// Its place in each family that both it and the network have; at least one.
    pub places: PerFamily<Option<Place>>,
    /// Subnets of its lease in the families that it has no place in: somebody else gave them to it.
    pub unserved: PerFamily<Option<Prefix>>,
    /// The interface towards the other nodes.
    pub interface: IfName,
    /// That interface's MTU in bytes.
    pub mtu: u32,
    /// The kernel has IPv6, and with it IPv6 parameters of every link.
    pub has_ipv6: bool,
    /// The interface takes the IPv6 routes that routers announce.
    pub accepts_routers: bool,
    /// What is known against the checksums that its kernel or network card counts inside tunnels.
    pub checksum_fault: Option<String>,
    /// What the flowtables of its kernel are good for.
    pub flowtables: Flowtables,
    /// Identity of its WireGuard devices, where there are any.
    pub public_key: Option<PublicKey>,
    /// What the operator's program says of it, where that carries the packets.
    pub data: Option<String>,
    /// What its kernel says of the other nodes' addresses.
    pub ways: Ways,
}

/// This node as one family of addresses has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The subnet it leases.
    pub subnet: Prefix,
    /// Its address as other nodes see it.
    pub public_ip: IpAddr,
    /// The interface's own address; differs from `public_ip` behind NAT.
    pub address: IpAddr,
    /// The network of that address.
    pub node_network: Prefix,
    /// Hardware address of the tunnel device.
    pub mac: MacAddr,
}

impl Place {
    /// The node at `own` before it has a lease: no subnet is its own yet.
    #[must_use]
    pub(crate) fn new(own: &NodeAddress, mac: MacAddr) -> Self {
        let NodeAddress { address, network, public_ip } = *own;
        Self { subnet: Prefix::host(address), public_ip, address, node_network: network, mac }
    }
}

#[cfg(test)]
impl LocalNode {
    /// A node of which nothing else is known, with an interface as most have it.
    pub(crate) fn plain(places: PerFamily<Option<Place>>, interface: IfName) -> Self {
        Self {
            places,
            unserved: PerFamily::default(),
            interface,
            mtu: 1500,
            has_ipv6: false,
            accepts_routers: false,
            checksum_fault: None,
            flowtables: Flowtables::OfBridges,
            public_key: None,
            data: None,
            ways: Ways::default(),
        }
    }
}

impl LocalNode {
    /// Why its Pods cannot have all of its families on interfaces of `mtu` bytes, if they cannot.
    #[must_use]
    pub(crate) fn refuses_mtu(&self, mtu: u32) -> Option<String> {
        let smallest = self.places.families().map(IpFamily::min_mtu).max().unwrap_or_default();
        let (interface, below) = (&self.interface, self.mtu);
        let text =
            || format!("interface {interface} with MTU {below} leaves {mtu} bytes to Pods; {smallest} are needed");
        (mtu < smallest).then(text)
    }

    /// The subnets that it leases.
    pub(crate) fn subnets(&self) -> impl Iterator<Item = Prefix> {
        self.places.present().map(|(_, place)| place.subnet)
    }

    /// Its addresses as other nodes see them.
    #[must_use]
    pub(crate) fn public_ips(&self) -> PerFamily<Option<IpAddr>> {
        self.places.map(|_, place| place.map(|place| place.public_ip))
    }

    /// True when `addresses` are of one of its subnets.
    #[must_use]
    pub(crate) fn has_pods_in(&self, addresses: &Prefix) -> bool {
        self.subnets().any(|subnet| subnet.covers(addresses))
    }
}

impl Planner {
    /// What cannot be had while the interface towards the other nodes is in a VRF.
    pub(super) fn vrf_remark(&self) -> Option<String> {
        let LocalNode { interface, ways, .. } = &self.local;
        let vrf = ways.vrf.as_ref()?;
        let without = self.network.backend.lost_in_vrf()?;
        Some(format!("{interface} is in VRF {vrf}: {without}"))
    }

    /// Rows that this node needs whatever the other nodes are.
    pub(super) fn local_rows(&self) -> Tables {
        let mut tables = Tables { ingress: self.flowtable(), ..Tables::default() };
        tables.ingress.extend(self.arriving());
        for backend in self.backends() {
            tables.extend(backend.local_rows(&self.network, &self.local));
            let devices = self.local.places.families().filter_map(|family| Some((family, backend.device(family)?)));
            // A link of fewer bytes has no parameters of IPv6 (net/ipv6/addrconf.c).
            let fits =
                |(family, _): &(IpFamily, IfName)| family.is_v4() || backend.pod_mtu(&self.local) >= family.min_mtu();
            tables.sysctls.extend(devices.filter(fits).map(|(family, device)| carries(family, &device)));
        }
        let ports = self.backends().flat_map(Backend::tunnel_ports).collect();
        for (family, place) in self.local.places.present() {
            if self.masquerade.forward {
                tables.forward.networks.extend(self.network.pools.get(family).as_ref().map(|pool| pool.network));
                let devices = self.backends().filter_map(|backend| backend.device(family));
                tables.forward.links.extend(devices.chain([self.local.interface.clone()]));
            }
            tables.nft.extend(masquerade::rows(&self.masquerade, &self.network, place, &ports));
            tables.routes.extend(blackhole::row(place).filter(|_| self.masquerade.blackhole));
            // Pods reach the other nodes through this host: without forwarding every packet ends here.
            tables.sysctls.insert(forwarding(family), "1".to_owned());
            // Each link of IPv4 has a switch of its own, which an interface that came later has from the default.
            let entered = family.is_v4() && self.backends().any(Backend::enters_plainly);
            tables.sysctls.extend(entered.then(|| carries(family, &self.local.interface)));
        }
        // A host that forwards takes no announced routes unless it says so: its default route would run out.
        if self.local.places.v6.is_some() && self.local.accepts_routers {
            let key = SysctlKey::of_link(IpFamily::V6, &self.local.interface, "accept_ra");
            tables.sysctls.insert(key, "2".to_owned());
        }
        tables
    }
}

/// What lets a link carry packets of `family`: a new one has what `default` says, which a host may have changed.
pub(super) fn carries(family: IpFamily, device: &IfName) -> (SysctlKey, String) {
    match family {
        IpFamily::V4 => (SysctlKey::of_link(family, device, "forwarding"), "1".to_owned()),
        IpFamily::V6 => (SysctlKey::of_link(family, device, "disable_ipv6"), "0".to_owned()),
    }
}

/// The kernel parameter that makes this host forward packets.
const fn forwarding(family: IpFamily) -> SysctlKey {
    match family {
        IpFamily::V4 => SysctlKey::literal("net/ipv4/ip_forward"),
        IpFamily::V6 => SysctlKey::literal("net/ipv6/conf/all/forwarding"),
    }
}
