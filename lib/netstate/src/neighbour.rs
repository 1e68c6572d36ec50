//! Neighbours (ARP and ND entries) and forwarding database entries of tunnels.
//!
//! Only permanent entries are described: what the kernel resolves or learns by itself is never ours.

use std::fmt;
use std::net::IpAddr;

use crate::{IfName, MacAddr};

/// One permanent neighbour: an address on a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NeighbourKey {
    /// The link on which the neighbour is.
    pub link: IfName,
    /// The neighbour's address.
    pub addr: IpAddr,
}

impl fmt::Display for NeighbourKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "neighbour {} dev {}", self.addr, self.link)
    }
}

/// Where a neighbour is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// Its hardware address.
    pub mac: MacAddr,
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lladdr {}", self.mac)
    }
}

/// One permanent forwarding entry of a tunnel device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbKey {
    /// The tunnel device.
    pub link: IfName,
    /// Destination hardware address of inner frames.
    pub mac: MacAddr,
}

impl fmt::Display for FdbKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fdb {} dev {}", self.mac, self.link)
    }
}

/// Where frames for a hardware address are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fdb {
    /// Outer destination: the remote tunnel end point.
    pub dst: IpAddr,
}

impl fmt::Display for Fdb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dst {}", self.dst)
    }
}
