//! Links: what a network interface is and how it is set.
//!
//! The name is the key. `None` in a value means "whatever the kernel chose": it is neither written nor compared, so
//! that adopting an existing link does not disturb what nobody asked for.

use std::fmt;
use std::net::Ipv4Addr;

use crate::{IfName, MacAddr, VxlanOptions};

/// How a link must be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// What the link is; where the kernel cannot change it, a difference here means delete and create again.
    pub kind: LinkKind,
    /// MTU in bytes, 68..=65535 (IPv6 needs 1280, RFC 8200 §5).
    pub mtu: Option<u32>,
    /// Hardware address.
    pub mac: Option<MacAddr>,
    /// Administratively up.
    pub up: bool,
    /// The bridge that the link is a port of, by name.
    pub master: Option<IfName>,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        if let Some(mac) = self.mac {
            write!(f, " lladdr {mac}")?;
        }
        if let Some(master) = &self.master {
            write!(f, " master {master}")?;
        }
        f.write_str(if self.up { " up" } else { " down" })
    }
}

/// What a link is, with the options of its kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkKind {
    /// An Ethernet bridge (net/bridge).
    Bridge(BridgeOptions),
    /// A VXLAN tunnel end point (RFC 7348, drivers/net/vxlan).
    Vxlan(VxlanOptions),
    /// An IPv4-in-IPv4 tunnel (RFC 2003, net/ipv4/ipip.c).
    Ipip(IpipOptions),
    /// A WireGuard device (drivers/net/wireguard); its key and peers are in [`crate::wireguard`].
    Wireguard,
    /// A device that swallows packets and holds addresses (drivers/net/dummy.c).
    Dummy,
    /// One end of a virtual Ethernet pair.
    Veth,
    /// Anything else, with the kernel's own name for it (empty for a physical device).
    Other(String),
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge(options) if options.vlan_filtering => f.write_str("bridge vlan_filtering 1"),
            Self::Bridge(_) => f.write_str("bridge"),
            Self::Vxlan(options) => write!(f, "vxlan {options}"),
            Self::Ipip(options) => write!(f, "ipip {options}"),
            Self::Wireguard => f.write_str("wireguard"),
            Self::Dummy => f.write_str("dummy"),
            Self::Veth => f.write_str("veth"),
            Self::Other(kind) if kind.is_empty() => f.write_str("device"),
            Self::Other(kind) => f.write_str(kind),
        }
    }
}

/// Options of a bridge.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BridgeOptions {
    /// Filter frames by VLAN.
    pub vlan_filtering: bool,
}

/// Options of an IPv4-in-IPv4 tunnel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct IpipOptions {
    /// Source address of outer packets, and the one that the tunnel receives at; `None` for any.
    pub local: Option<Ipv4Addr>,
    /// The only other end; `None` when routes say where packets go.
    pub remote: Option<Ipv4Addr>,
}

impl fmt::Display for IpipOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |addr: Option<Ipv4Addr>| addr.map_or_else(|| "any".to_owned(), |addr| addr.to_string());
        write!(f, "local {} remote {}", text(self.local), text(self.remote))
    }
}

/// How a bridge port must be set (net/bridge/br_netlink.c, IFLA_BRPORT_*).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortOptions {
    /// Frames may leave through the port they came in by: a Pod reaching itself through its Service.
    pub hairpin: bool,
    /// The port talks to ports that are not isolated only.
    pub isolated: bool,
}
