//! Facts of the host: interfaces, addresses, routes, devices.
//!
//! Invariant: reads only. Everything that decides on these facts is pure and lies elsewhere.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use kernel::query::Query;
use kernel::{Chain, KernelError, Rtnl};
use netstate::family::IpFamily;
use netstate::{IfName, MacAddr, Route, RouteKey};

use crate::choose::interface::{Facts, Interface};
use crate::plan::backend::Backend;

/// Reads interfaces, addresses and the default route; for `can_reach` also the route to it.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) async fn gather(can_reach: Option<Ipv4Addr>) -> Result<Facts, KernelError> {
    let query = Query::open()?;
    let interfaces = query.interfaces().await?.into_iter().map(known).collect();
    // The kernel takes the lowest metric, and of several next hops whichever it likes.
    let mut hops = query.default_routes(IpFamily::V4).await?.into_iter().flat_map(|route| route.hops);
    let default_route = hops.find_map(|hop| hop.link);
    let elsewhere = if default_route.is_none() { elsewhere(&query).await? } else { Vec::new() };
    let reach = match can_reach {
        Some(addr) => Some(reach(&query, addr).await),
        None => None,
    };
    Ok(Facts { interfaces, default_route, elsewhere, reach })
}

/// Default routes of other tables, in words.
async fn elsewhere(query: &Query) -> Result<Vec<String>, KernelError> {
    let text = |(table, route): (u32, kernel::query::DefaultRoute)| {
        let links: Vec<String> = route.hops.iter().filter_map(|hop| Some(hop.link.as_ref()?.to_string())).collect();
        format!("one in table {table} by {}", links.join(" and "))
    };
    Ok(query.default_routes_elsewhere(IpFamily::V4).await?.into_iter().map(text).collect())
}

/// The interface and the source address of the route to `addr`, or why there is none.
async fn reach(query: &Query, addr: Ipv4Addr) -> Result<(IfName, Option<Ipv4Addr>), String> {
    let way = query.way_to(IpAddr::V4(addr)).await.map_err(|error| Chain(&error).to_string())?;
    let source = match way.source {
        Some(IpAddr::V4(source)) => Some(source),
        _ => None,
    };
    way.hop.link.map(|link| (link, source)).ok_or_else(|| "its route leads to no interface".to_owned())
}

/// The interface `name` with its addresses, if it is there.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) async fn interface(name: &IfName) -> Result<Option<Interface>, KernelError> {
    let all = Query::open()?.interfaces().await?;
    Ok(all.into_iter().find(|found| found.name == *name).map(known))
}

fn known(found: kernel::query::Interface) -> Interface {
    Interface { name: found.name, mtu: found.mtu, addresses: found.addresses }
}

/// The kernel's routes.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) fn routes() -> Result<Vec<(RouteKey, Route)>, KernelError> {
    Rtnl::open()?.routes()
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
