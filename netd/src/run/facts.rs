//! Facts of the host: interfaces, addresses, routes, devices.
//!
//! Invariant: reads only. Everything that decides on these facts is pure and lies elsewhere.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use kernel::feature::Feature;
use kernel::query::Query;
use kernel::{Chain, KernelError, Rtnl};
use netstate::family::{IpFamily, PerFamily};
use netstate::{IfName, InterfaceAddress, MacAddr, Prefix, Release, Route, RouteKey, SysctlKey};

use crate::choose::interface::{Facts, Interface, Wanted, broadcast};
use crate::format::net_conf::Network;
use crate::plan::backend::{Backend, known_fault};
use crate::plan::{Flowtables, Ownership};

/// Reads interfaces and addresses, and the routes that may name the one that is wanted: the default routes are found by
/// listing all of a table, thousands beside a full kernel.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) async fn gather(wanted: &Wanted) -> Result<Facts, KernelError> {
    let query = Query::open()?;
    let interfaces = interfaces_by(&query).await?;
    let mut default_routes = PerFamily::default();
    let asks = wanted.asks_for_default_routes();
    for family in IpFamily::ALL.into_iter().filter(|_| asks) {
        // The kernel takes the lowest metric, and of several next hops whichever it likes.
        let mut hops = query.default_routes(family).await?.into_iter().flat_map(|route| route.hops);
        *default_routes.get_mut(family) = hops.find_map(|hop| hop.link);
    }
    let elsewhere = if asks && default_routes.is_empty() { elsewhere(&query).await? } else { Vec::new() };
    let reach = match wanted.can_reach {
        Some(addr) => Some(reach(&query, addr).await),
        None => None,
    };
    Ok(Facts { interfaces, default_routes, elsewhere, reach })
}

/// Default routes of other tables, in words.
async fn elsewhere(query: &Query) -> Result<Vec<String>, KernelError> {
    let text = |(table, route): (u32, kernel::query::DefaultRoute)| {
        let links: Vec<String> = route.hops.iter().filter_map(|hop| Some(hop.link.as_ref()?.to_string())).collect();
        format!("one in table {table} by {}", links.join(" and "))
    };
    let mut found = Vec::new();
    for family in IpFamily::ALL {
        found.extend(query.default_routes_elsewhere(family).await?.into_iter().map(text));
    }
    Ok(found)
}

/// The interface and the source address of the route to `addr`, or why there is none.
async fn reach(query: &Query, addr: IpAddr) -> Result<(IfName, Option<IpAddr>), String> {
    let way = query.way_to(addr).await.map_err(|error| Chain(&error).to_string())?;
    way.hop.link.map(|link| (link, way.source)).ok_or_else(|| "its route leads to no interface".to_owned())
}

/// Every interface with its addresses.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) async fn interfaces() -> Result<Vec<Interface>, KernelError> {
    interfaces_by(&Query::open()?).await
}

/// The addresses of `interfaces` that are no other node's, each with its link: those of this node, and those for everybody on a link but
/// `towards`, whose network is known to the plan.
pub(super) fn addresses(interfaces: &[Interface], towards: &IfName) -> BTreeMap<IpAddr, IfName> {
    let others = interfaces.iter().filter(|found| found.name != *towards);
    let everybody_of =
        |own: &InterfaceAddress| Prefix::new(own.addr, own.len).ok().and_then(|network| broadcast(&network));
    let everybody =
        others.flat_map(|found| found.addresses.iter().filter_map(move |own| Some((everybody_of(own)?, found))));
    let own = interfaces.iter().flat_map(|found| found.addresses.iter().map(move |own| (own.addr, found)));
    everybody.chain(own).map(|(addr, found)| (addr, found.name.clone())).collect()
}

async fn interfaces_by(query: &Query) -> Result<Vec<Interface>, KernelError> {
    let listed = query.interfaces().await?;
    let names: BTreeMap<u32, IfName> = listed.iter().map(|found| (found.index, found.name.clone())).collect();
    let named = |index: Option<u32>| index.and_then(|index| names.get(&index).cloned());
    let known = |found: kernel::query::Interface| Interface {
        is_bridge: found.kind == "bridge",
        master: named(found.master),
        vlan_of: named(found.lower.filter(|_| found.kind == "vlan")),
        name: found.name,
        mtu: found.mtu,
        up: found.up,
        addresses: found.addresses,
    };
    Ok(listed.into_iter().map(known).collect())
}

/// What the flowtables of this kernel are good for. One that cannot be asked is taken for one that refuses names of links that are gone.
pub(super) fn flowtables() -> Flowtables {
    let takes_names_ahead = Feature::flowtable_takes_names_ahead().unwrap_or_else(|error| {
        tracing::warn!(error = %Chain(&error), "what this kernel's flowtables take cannot be found out");
        false
    });
    Flowtables::of(Release::of(&release()), takes_names_ahead)
}

/// What `uname -r` says.
fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// The VRF that `link` belongs to.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) fn vrf(link: &IfName) -> Result<Option<IfName>, KernelError> {
    Ok(Rtnl::open()?.vrf_of(link)?.map(|state| state.name))
}

/// The kernel's routes that can be ours or a predecessor's, and those without a next hop: others are reached by them.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) fn routes() -> Result<Vec<(RouteKey, Route)>, KernelError> {
    let (table, protocols) = Ownership::CANDIDATES;
    Rtnl::open()?.routes_of(Some(table), |_, route| protocols.contains(&route.protocol) || route.via.is_none())
}

/// The hardware addresses of the network's tunnel devices that are there, or of those of a `retiring` backend, the newest
/// first: the nodes that use one know its address.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) fn tunnel_macs(network: &Network, retiring: &[Backend]) -> Result<PerFamily<Option<MacAddr>>, KernelError> {
    let mut rtnl = Rtnl::open()?;
    PerFamily::from_fn(|family| network.pools.get(family).as_ref().map(|_| family)).try_map(|_, family| {
        let backends = std::iter::once(&network.backend).chain(retiring.iter().rev());
        for device in backends.filter_map(|backend| backend.device(family?)) {
            let found = rtnl.link(&device)?.filter(|state| Backend::makes_link(&state.link));
            if let Some(mac) = found.and_then(|state| state.link.mac) {
                return Ok(Some(mac));
            }
        }
        Ok(None)
    })
}

/// Files that identify a machine, the first one that is there: of systemd, of D-Bus, of the firmware.
const MACHINE: [&str; 3] = ["/etc/machine-id", "/var/lib/dbus/machine-id", "/sys/class/dmi/id/product_uuid"];

/// What distinguishes this machine from others: its id, and the hardware address of `interface`, because copies of a virtual machine
/// often have one id.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) fn machine(interface: &IfName) -> Result<Vec<u8>, KernelError> {
    let id = MACHINE.iter().find_map(|file| {
        bounded::read(Path::new(file), bounded::SETTINGS).ok().filter(|id| !id.trim_ascii().is_empty())
    });
    let mut machine = id.unwrap_or_default().trim_ascii().to_vec();
    let found = Rtnl::open()?.link(interface)?;
    machine.extend(found.and_then(|state| state.link.mac).into_iter().flat_map(|mac| mac.0));
    Ok(machine)
}

/// True when the kernel has IPv6 in this namespace, and with it `net/ipv6/conf`.
#[must_use]
pub(super) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf/all").is_dir()
}

/// True when `link` takes the routes that routers announce: `accept_ra` is 1 while it does not forward, or 2
/// (Documentation/networking/ip-sysctl.rst).
#[must_use]
pub(super) fn accepts_routers(link: &IfName) -> bool {
    let read = |name: &'static str| {
        let key = SysctlKey::of_link(IpFamily::V6, link, name);
        std::fs::read_to_string(Path::new("/proc/sys").join(key.as_str())).unwrap_or_default()
    };
    match read("accept_ra").trim() {
        "2" => true,
        "1" => read("forwarding").trim() == "0",
        _ => false,
    }
}

/// What is known against the checksums that this kernel or the network card of `link` counts inside tunnels.
#[must_use]
pub(super) fn checksum_fault(link: &IfName) -> Option<String> {
    let driver = std::fs::read_link(format!("/sys/class/net/{link}/device/driver"));
    let driver = driver.as_ref().ok().and_then(|path| path.file_name()?.to_str());
    known_fault(&release(), driver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_for_everybody_on_another_link_is_no_nodes() {
        let link = |name: &str, addresses: &[(&str, u8)]| Interface {
            name: name.parse().unwrap(),
            mtu: 1500,
            up: true,
            addresses: addresses
                .iter()
                .map(|(addr, len)| InterfaceAddress::lasting(addr.parse().unwrap(), *len))
                .collect(),
            is_bridge: false,
            master: None,
            vlan_of: None,
        };
        let host = [
            link("eth0", &[("10.4.7.21", 24), ("fd00::21", 64)]),
            link("eth1", &[("10.9.8.21", 23), ("10.9.255.1", 31), ("192.0.2.1", 32), ("fd00:9::21", 64)]),
        ];
        let found = addresses(&host, &IfName::literal("eth0"));
        let texts: Vec<String> = found.iter().map(|(addr, link)| format!("{addr} {link}")).collect();
        assert_eq!(
            texts,
            [
                "10.4.7.21 eth0",
                "10.9.8.21 eth1",
                "10.9.9.255 eth1",
                "10.9.255.1 eth1",
                "192.0.2.1 eth1",
                "fd00::21 eth0",
                "fd00:9::21 eth1"
            ]
        );
    }
}
