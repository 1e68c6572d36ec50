//! Routes.
//!
//! A route is identified by table, destination and metric: the kernel holds several routes to one destination when
//! their metrics differ (net/ipv4/fib_trie.c, `fib_priority`). The metric plays no part in choosing between
//! different destinations, so it may be spread freely; `spread_metric` says why that pays.

use std::fmt;
use std::net::IpAddr;

use crate::{IfName, Prefix};

/// Protocol number of routes made by this product (rtm_protocol, include/uapi/linux/rtnetlink.h leaves numbers
/// above RTPROT_STATIC to user space; 121 is not in iproute2's `rt_protos`). It marks our routes among foreign ones.
pub const ROUTE_PROTOCOL: u8 = 121;

/// Protocol number of the routes that the service proxy makes: the two programs of a node tell theirs apart by it.
pub const PROXY_ROUTE_PROTOCOL: u8 = 122;

/// The main routing table (RT_TABLE_MAIN).
pub const TABLE_MAIN: u32 = 254;

/// The table of local addresses (RT_TABLE_LOCAL).
pub const TABLE_LOCAL: u32 = 255;

/// One route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// Routing table, 254 is main.
    pub table: u32,
    /// Destination network.
    pub dst: Prefix,
    /// Metric; 0 is the kernel's default for IPv4.
    pub metric: u32,
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route {} metric {}", self.dst, self.metric)?;
        if self.table == TABLE_MAIN { Ok(()) } else { write!(f, " table {}", self.table) }
    }
}

/// Where packets of a route go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// What happens to a packet.
    pub kind: RouteKind,
    /// The next hop, if the destination is not on the link itself.
    pub via: Option<IpAddr>,
    /// The link packets leave through.
    pub link: Option<IfName>,
    /// The next hop is reachable on the link although no address of ours covers it.
    pub onlink: bool,
    /// Preferred source address.
    pub src: Option<IpAddr>,
    /// How far the destination is.
    pub scope: RouteScope,
    /// Who made the route (rtm_protocol).
    pub protocol: u8,
    /// Sizes that connections over the route keep to.
    pub metrics: RouteMetrics,
}

/// Sizes that connections over a route keep to (RTA_METRICS, include/uapi/linux/rtnetlink.h). `None` leaves them to the
/// link and to path MTU discovery.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteMetrics {
    /// MTU in bytes (RTAX_MTU); the kernel keeps at most 65,520.
    pub mtu: Option<u32>,
    /// Segment size that TCP announces, in bytes (RTAX_ADVMSS); the kernel keeps at most 65,495.
    pub advmss: Option<u32>,
}

impl RouteMetrics {
    /// True when nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What happens to a packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Sent on.
    #[default]
    Unicast,
    /// Delivered to this host (RTN_LOCAL).
    Local,
    /// Dropped without a word (RTN_BLACKHOLE).
    Blackhole,
    /// Dropped with ICMP "unreachable" (RTN_UNREACHABLE).
    Unreachable,
    /// Any other type, by its number.
    Other(u8),
}

/// How far a destination is (rtm_scope).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteScope {
    /// Somewhere behind a gateway.
    #[default]
    Universe,
    /// On a directly attached link.
    Link,
    /// This host.
    Host,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        match self.kind {
            RouteKind::Unicast => {}
            RouteKind::Local => words.push("local".to_owned()),
            RouteKind::Blackhole => words.push("blackhole".to_owned()),
            RouteKind::Unreachable => words.push("unreachable".to_owned()),
            RouteKind::Other(n) => words.push(format!("type {n}")),
        }
        words.extend(self.via.map(|via| format!("via {via}")));
        words.extend(self.link.as_ref().map(|link| format!("dev {link}")));
        words.extend(self.onlink.then(|| "onlink".to_owned()));
        words.extend(self.src.map(|src| format!("src {src}")));
        words.push(format!("proto {}", self.protocol));
        words.extend(self.metrics.mtu.map(|mtu| format!("mtu {mtu}")));
        words.extend(self.metrics.advmss.map(|size| format!("advmss {size}")));
        f.write_str(&words.join(" "))
    }
}

/// The metric for the route to `dst`: 1000..=2023, the same on every run.
///
/// IPv4 routes that share a device and a metric but not a gateway collide in the kernel's table of next hops
/// (`fib_info_hash` leaves the gateway out), so inserting n of them costs n² steps: 20,000 routes take 5.4 s with one
/// metric and 0.1 s with 1,024 of them. Neighbouring Pod subnets get different metrics because the lowest network
/// bits choose.
#[must_use]
pub fn spread_metric(dst: &Prefix) -> u32 {
    let host_bits = u32::from(dst.width() - dst.len());
    let bits = match dst.addr() {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    };
    let index = bits.checked_shr(host_bits).unwrap_or(0) % 1024;
    1000 + u32::try_from(index).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn neighbouring_subnets_get_different_metrics() {
        let mut seen: BTreeMap<u32, usize> = BTreeMap::new();
        let mut subnet: Prefix = "10.0.0.0/24".parse().unwrap();
        for _ in 0..4096 {
            *seen.entry(spread_metric(&subnet)).or_default() += 1;
            subnet = subnet.next().unwrap();
        }
        assert_eq!(seen.len(), 1024);
        assert!(seen.values().all(|n| *n == 4));
        assert!(seen.keys().all(|m| (1000..2024).contains(m)));
    }

    #[test]
    fn default_route_has_a_metric_too() {
        assert_eq!(spread_metric(&"0.0.0.0/0".parse().unwrap()), 1000);
        assert_eq!(spread_metric(&"::/0".parse().unwrap()), 1000);
    }
}
