//! Facts of the host: interfaces, addresses, routes, devices.
//!
//! Invariant: reads only. Everything that decides on these facts is pure and lies elsewhere.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use kernel::{Chain, KernelError, Rtnl};
use netstate::route::TABLE_MAIN;
use netstate::{IfName, MacAddr, Route, RouteKey};

use crate::choose::interface::{Facts, Interface};
use crate::plan::backend::Backend;

/// Reads interfaces, addresses and the default route; for `can_reach` also the route to it.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) fn gather(can_reach: Option<Ipv4Addr>) -> Result<Facts, KernelError> {
    let mut rtnl = Rtnl::open()?;
    let mut addresses: BTreeMap<u32, Vec<(IpAddr, u8)>> = BTreeMap::new();
    for (index, addr, len) in rtnl.addresses()? {
        addresses.entry(index).or_default().push((addr, len));
    }
    let interface = |state: kernel::link::LinkState| Interface {
        name: state.name,
        mtu: state.link.mtu.unwrap_or(0),
        addresses: addresses.remove(&state.index).unwrap_or_default(),
    };
    let interfaces = rtnl.links()?.into_iter().map(interface).collect();
    let default_route = default_route(&mut rtnl)?;
    let reach = can_reach.map(|addr| match rtnl.route_to(IpAddr::V4(addr)) {
        Ok(route) => {
            let source = match route.src {
                Some(IpAddr::V4(source)) => Some(source),
                _ => None,
            };
            route.link.map(|link| (link, source)).ok_or_else(|| "its route leads to no interface".to_owned())
        }
        Err(error) => Err(Chain(&error).to_string()),
    });
    Ok(Facts { interfaces, default_route, reach })
}

/// The interface of the default route that the kernel would take: the one with the lowest metric.
fn default_route(rtnl: &mut Rtnl) -> Result<Option<IfName>, KernelError> {
    let defaults = rtnl.routes()?.into_iter();
    let defaults = defaults.filter(|(key, _)| key.table == TABLE_MAIN && key.dst.is_default() && key.dst.is_ipv4());
    Ok(defaults.min_by_key(|(key, _)| key.metric).and_then(|(_, route)| route.link))
}

/// The interface `name` with its addresses, if it is there.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) fn interface(name: &IfName) -> Result<Option<Interface>, KernelError> {
    let mut rtnl = Rtnl::open()?;
    let Some(state) = rtnl.link(name)? else { return Ok(None) };
    let addresses = rtnl.addresses()?.into_iter().filter(|(index, ..)| *index == state.index);
    let addresses = addresses.map(|(_, addr, len)| (addr, len)).collect();
    Ok(Some(Interface { name: state.name, mtu: state.link.mtu.unwrap_or(0), addresses }))
}

/// The kernel's routes.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) fn routes() -> Result<Vec<(RouteKey, Route)>, KernelError> {
    Ok(Rtnl::open()?.routes()?.into_iter().collect())
}

/// The hardware address of the tunnel device `name`, if it is there.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) fn tunnel_mac(name: &IfName) -> Result<Option<MacAddr>, KernelError> {
    let found = Rtnl::open()?.link(name)?;
    Ok(found.filter(|state| Backend::makes_link(&state.link)).and_then(|state| state.link.mac))
}

/// True when the kernel has IPv6 in this namespace, and with it `net/ipv6/conf`.
#[must_use]
pub(super) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf/all").is_dir()
}
