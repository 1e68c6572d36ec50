//! Options of VXLAN devices (RFC 7348, drivers/net/vxlan).
//!
//! Invariant: every option that changes what the device sends or takes is here, so that two devices with equal options do
//! the same to packets, whoever made them.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use crate::IfName;

/// Options of a VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VxlanOptions {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP port that the tunnel receives on and sends to.
    pub port: u16,
    /// Source address of outer packets; decides the tunnel's family.
    pub local: Option<IpAddr>,
    /// Name of the lower device that outer packets leave through.
    pub lower: Option<IfName>,
    /// Learn remote end points from traffic; off where leases say everything.
    pub learning: bool,
    /// Group policy extension (IFLA_VXLAN_GBP).
    pub gbp: bool,
    /// Time to live of outer packets; 0 for the host's own.
    pub ttl: u8,
    /// Type of service of outer packets; 1 for that of the inner packet.
    pub tos: u8,
    /// Whether routers may cut outer packets of IPv4 (IFLA_VXLAN_DF): 0 when they may, 1 when not, 2 as the inner packet says.
    pub df: u8,
    /// What a device does not have that is made without further options. Only birth sets it.
    pub extras: BTreeSet<VxlanExtra>,
}

impl VxlanOptions {
    /// A device that was made without further options, and does not learn.
    #[must_use]
    pub const fn new(vni: u32, port: u16) -> Self {
        let extras = BTreeSet::new();
        Self { vni, port, local: None, lower: None, learning: false, gbp: false, ttl: 0, tos: 0, df: 0, extras }
    }
}

impl fmt::Display for VxlanOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "id {} dstport {}", self.vni, self.port)?;
        if let Some(local) = self.local {
            write!(f, " local {local}")?;
        }
        if let Some(lower) = &self.lower {
            write!(f, " dev {lower}")?;
        }
        f.write_str(if self.learning { " learning" } else { " nolearning" })?;
        f.write_str(if self.gbp { " gbp" } else { "" })?;
        for (name, value) in [("ttl", self.ttl), ("tos", self.tos), ("df", self.df)] {
            if value != 0 {
                write!(f, " {name} {value}")?;
            }
        }
        self.extras.iter().try_for_each(|extra| write!(f, " {extra}"))
    }
}

/// An option that nobody needs between nodes which know each other, in iproute2's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum VxlanExtra {
    /// Frames without a forwarding entry go there, often to a multicast group.
    Group(IpAddr),
    /// Outer packets leave from these UDP ports instead of the host's range.
    SourcePorts(u16, u16),
    /// Forwarding entries that it learns at most.
    MaxAddresses(u32),
    /// The time to live of the inner packet.
    TtlInherit,
    /// Outer packets of IPv4 without checksum.
    NoUdpChecksum,
    /// Outer packets of IPv6 without checksum: nodes drop them that do not take such.
    ZeroChecksumSent,
    /// Outer packets of IPv6 without checksum are taken.
    ZeroChecksumTaken,
    /// Programs are notified of hardware addresses without a forwarding entry.
    L2Miss,
    /// Programs are notified of next hops without a neighbour.
    L3Miss,
    /// It answers ARP itself.
    Proxy,
    /// It routes frames for routers itself.
    RouteShortCircuit,
    /// Where packets go says whoever sends them.
    External,
    /// Remote checksum offload, sent or taken.
    RemoteChecksum,
    /// The generic protocol extension.
    Gpe,
    /// VNIs are filtered.
    VniFilter,
}

impl fmt::Display for VxlanExtra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Group(addr) => return write!(f, "remote {addr}"),
            Self::SourcePorts(low, high) => return write!(f, "srcport {low} {high}"),
            Self::MaxAddresses(count) => return write!(f, "maxaddr {count}"),
            Self::TtlInherit => "ttl inherit",
            Self::NoUdpChecksum => "noudpcsum",
            Self::ZeroChecksumSent => "udp6zerocsumtx",
            Self::ZeroChecksumTaken => "udp6zerocsumrx",
            Self::L2Miss => "l2miss",
            Self::L3Miss => "l3miss",
            Self::Proxy => "proxy",
            Self::RouteShortCircuit => "rsc",
            Self::External => "external",
            Self::RemoteChecksum => "remcsum",
            Self::Gpe => "gpe",
            Self::VniFilter => "vnifilter",
        })
    }
}
