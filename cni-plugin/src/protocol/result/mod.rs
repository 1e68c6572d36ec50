//! The result of ADD, and its shape in every version of the specification.
//!
//! Invariant: one value holds what was done; the versions are renderings of it. Rendering then parsing in 0.3.0 or
//! newer gives the value back (without what that version cannot say).

mod merge;
mod parse;
mod render;

use std::net::IpAddr;

use netstate::{IfName, MacAddr, Prefix};

pub(crate) use merge::behind;
pub use parse::parse;
pub(crate) use parse::{chained, dns as parse_dns, route as parse_route};

/// What ADD did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddResult {
    /// Interfaces created, on the host and in the container.
    pub interfaces: Vec<Interface>,
    /// Addresses assigned.
    pub ips: Vec<IpConfig>,
    /// Routes installed in the container.
    pub routes: Vec<ResultRoute>,
    /// Name servers the container shall use.
    pub dns: Dns,
}

impl AddResult {
    /// Addresses of the container's interface `ifname`: those that name it, and those that name none. Other plugins of the
    /// chain may have made interfaces as well.
    pub fn ips_of(&self, ifname: &IfName) -> impl Iterator<Item = &IpConfig> {
        let is_own = |i: &Interface| i.name == ifname.as_str() && i.sandbox.is_some();
        self.ips.iter().filter(move |ip| ip.interface.and_then(|index| self.interfaces.get(index)).is_none_or(is_own))
    }
}

/// One interface of a result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, if it has one.
    pub mac: Option<MacAddr>,
    /// MTU in bytes; reported from 1.1.0 on.
    pub mtu: Option<u32>,
    /// Path of the container's namespace; `None` for an interface of the host.
    pub sandbox: Option<String>,
}

/// One address of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpConfig {
    /// Index of its interface in the result.
    pub interface: Option<usize>,
    /// The address.
    pub addr: IpAddr,
    /// Prefix length of the subnet it is in.
    pub len: u8,
    /// The subnet's gateway.
    pub gateway: Option<IpAddr>,
}

/// One route of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultRoute {
    /// Destination.
    pub dst: Prefix,
    /// Gateway; absent means the gateway of the address of the same family.
    pub gw: Option<IpAddr>,
    /// MTU of the route in bytes (1.1.0).
    pub mtu: Option<u32>,
    /// Segment size that TCP announces over the route (1.1.0).
    pub advmss: Option<u32>,
    /// Metric (1.1.0).
    pub priority: Option<u32>,
    /// Routing table (1.1.0).
    pub table: Option<u32>,
    /// rtm_scope by its number: 0 universe, 253 link, 254 host (1.1.0).
    pub scope: Option<u8>,
}

impl ResultRoute {
    /// A plain route.
    #[must_use]
    pub fn to(dst: Prefix, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// DNS settings of a network or a result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Name servers in order.
    pub nameservers: Vec<String>,
    /// Local domain.
    pub domain: String,
    /// Search list in order.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

impl Dns {
    /// True when nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
