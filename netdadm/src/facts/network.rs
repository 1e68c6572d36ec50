//! Links, routes, and the ways to the other hosts.
//!
//! Invariant: reads only.

use std::collections::BTreeMap;

use kernel::{Chain, KernelError, Rtnl};
use netstate::route::{PROXY_ROUTE_PROTOCOL, ROUTE_PROTOCOL, TABLE_LOCAL};

use crate::preflight::{Facts, Link, Plan, Route, Way};

/// Reads them.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) fn read(facts: &mut Facts, plan: Option<&Plan>) -> Result<(), KernelError> {
    let mut rtnl = Rtnl::open()?;
    let mut links: BTreeMap<u32, Link> = BTreeMap::new();
    for state in rtnl.links()? {
        let link =
            Link { name: state.name.to_string(), mtu: state.link.mtu.unwrap_or_default(), addresses: Vec::new() };
        links.insert(state.index, link);
    }
    for (index, address, len) in rtnl.addresses()? {
        if let Some(link) = links.get_mut(&index) {
            link.addresses.push((address, len));
        }
    }
    facts.links = links.into_values().filter(|link| link.name != "lo").collect();
    // IPv6 has link-local and multicast routes on every link.
    let global = |dst: &netstate::Prefix| !dst.is_default() && !dst.addr().is_multicast() && !is_link_local(dst);
    let routes = rtnl.routes_of(None, |key, _| key.table != TABLE_LOCAL && global(&key.dst))?;
    let ours = |protocol: u8| protocol == ROUTE_PROTOCOL || protocol == PROXY_ROUTE_PROTOCOL;
    facts.routes = routes
        .into_iter()
        .map(|(key, route)| {
            let link = route.link.as_ref().map_or_else(|| "several links".to_owned(), ToString::to_string);
            Route { dst: key.dst, link, ours: ours(route.protocol) }
        })
        .collect();
    let others = plan.into_iter().flat_map(|plan| {
        plan.topology
            .hosts
            .iter()
            .filter(|host| host.name.value != plan.host.name.value)
            .flat_map(|host| &host.addresses)
    });
    for address in others.map(|address| address.value) {
        let way = rtnl.route_to(address).map(|route| Way {
            link: route.link.as_ref().map(ToString::to_string).unwrap_or_default(),
            source: route.src,
        });
        facts.ways.insert(address, way.map_err(|error| Chain(&error).to_string()));
    }
    Ok(())
}

fn is_link_local(dst: &netstate::Prefix) -> bool {
    matches!(dst.addr(), std::net::IpAddr::V6(address) if address.is_unicast_link_local())
}
