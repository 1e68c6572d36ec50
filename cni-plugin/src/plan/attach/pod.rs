//! ADD, the Pod's side: parameters, addresses, routes.

use std::net::IpAddr;

use netstate::route::TABLE_MAIN;
use netstate::{IfName, IpFamily, Prefix, Route, RouteKey, RouteKind, RouteMetrics, RouteScope, SysctlKey};

use super::Attach;
use crate::plan::{Parameter, Step, everywhere};
use crate::protocol::error::CniError;
use crate::protocol::range::Reservation;
use crate::protocol::result::ResultRoute;

/// Protocol number of a Pod's routes: RTPROT_BOOT, as every CNI plugin leaves it.
const PROTOCOL_BOOT: u8 = 3;

impl Attach<'_> {
    pub(super) fn pod_steps(&self) -> Result<Vec<Step>, CniError> {
        let ifname = &self.attachment.ifname;
        if self.conf.interface_disabled {
            return Ok(Vec::new());
        }
        let mut steps = Vec::new();
        let mut set = |parameter| steps.push(Step::PodParameter(parameter));
        let own = |family, name| SysctlKey::of_link(family, ifname, name);
        if self.reservations.iter().any(|r| r.addr.is_ipv6()) {
            // An interface without IPv6 would refuse the address; containers often start that way.
            set(Parameter::required(SysctlKey::literal("net/ipv6/conf/lo/disable_ipv6"), "0"));
            set(Parameter::required(own(IpFamily::V6, "disable_ipv6"), "0"));
            set(Parameter::optional(own(IpFamily::V6, "keep_addr_on_down"), "1"));
            if self.conf.detect_duplicates {
                // Its own probes, come back over a hairpin port, must not count (RFC 7527).
                set(Parameter::optional(own(IpFamily::V6, "enhanced_dad"), "1"));
                set(Parameter::required(own(IpFamily::V6, "accept_dad"), "1"));
            }
        }
        if self.reservations.iter().any(|r| r.addr.is_ipv4()) {
            // Announces the address when the link comes up: other Pods may remember its earlier owner.
            set(Parameter::optional(own(IpFamily::V4, "arp_notify"), "1"));
        }
        steps.push(Step::ConfigurePod {
            ifname: ifname.clone(),
            addresses: self.reservations.iter().map(|r| (r.addr, r.len)).collect(),
            detect_duplicates: self.conf.detect_duplicates,
            routes: self.routes()?.iter().map(|route| kernel_route(route, self.gateway_of(route), ifname)).collect(),
        });
        let detected: Vec<IpAddr> = self.addresses().into_iter().filter(IpAddr::is_ipv6).collect();
        if self.conf.detect_duplicates && !detected.is_empty() {
            steps.push(Step::AwaitAddresses { ifname: ifname.clone(), addresses: detected });
        }
        Ok(steps)
    }

    fn gateway_of(&self, route: &ResultRoute) -> Option<IpAddr> {
        let same_family = |r: &&Reservation| r.addr.is_ipv4() == route.dst.is_ipv4();
        route.gw.or_else(|| self.reservations.iter().find(same_family).map(|r| r.gateway))
    }

    /// Of routes that are equal in this the kernel of IPv6 keeps the first.
    fn place(&self, route: &ResultRoute) -> (Prefix, Option<IpAddr>, u32, Option<u32>, Option<u8>) {
        (route.dst, self.gateway_of(route), route.table.unwrap_or(TABLE_MAIN), route.priority, route.scope)
    }

    /// The Pod's routes: the configured ones, and one default route per family unless the user has one already.
    pub(super) fn routes(&self) -> Result<Vec<ResultRoute>, CniError> {
        let mut routes: Vec<ResultRoute> = Vec::new();
        for route in self.conf.ipam.iter().flat_map(|ipam| &ipam.routes) {
            if self.gateway_of(route).is_none() {
                let found = format!("{} has no gateway: the network has no address of its family", route.dst);
                return Err(CniError::invalid_field("ipam.routes", &found, "a route of a family with a range"));
            }
            match routes.iter().find(|known| self.place(known) == self.place(route)) {
                None => routes.push(route.clone()),
                Some(known) if (known.mtu, known.advmss) == (route.mtu, route.advmss) => {}
                Some(_) => {
                    let found = format!("{} twice, with another mtu or advmss", route.dst);
                    let accepted = "one route for each dst, gw, priority and table";
                    return Err(CniError::invalid_field("ipam.routes", &found, accepted));
                }
            }
        }
        if self.conf.default_gateway {
            for family in IpFamily::ALL {
                let gateway = self.reservations.iter().find(|r| IpFamily::of(r.addr) == family).map(|r| r.gateway);
                let in_main = |r: &ResultRoute| r.table.is_none_or(|table| table == TABLE_MAIN);
                let has_default = routes.iter().any(|r| r.dst.is_default() && r.dst.family() == family && in_main(r));
                if gateway.is_some() && !has_default {
                    routes.push(ResultRoute::to(everywhere(family), gateway));
                }
            }
        }
        Ok(routes)
    }
}

fn kernel_route(route: &ResultRoute, via: Option<IpAddr>, ifname: &IfName) -> (RouteKey, Route) {
    let scope = match route.scope {
        Some(253) => RouteScope::Link,
        Some(254) => RouteScope::Host,
        _ => RouteScope::Universe,
    };
    let key =
        RouteKey { table: route.table.unwrap_or(TABLE_MAIN), dst: route.dst, metric: route.priority.unwrap_or(0) };
    let value = Route {
        kind: RouteKind::Unicast,
        // A route of link scope has no gateway (fib_semantics.c fib_create_info).
        via: via.filter(|_| scope == RouteScope::Universe),
        link: Some(ifname.clone()),
        onlink: false,
        src: None,
        scope,
        protocol: PROTOCOL_BOOT,
        metrics: RouteMetrics { mtu: route.mtu, advmss: route.advmss },
    };
    (key, value)
}
