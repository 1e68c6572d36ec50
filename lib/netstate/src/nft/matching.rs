//! `Match`: what must hold of a packet for a rule to go on, and `Field`: what of a packet is a key into a set.
//!
//! Invariant: a match carries a value of its field's own type, and an address says by itself which network header it is
//! read from. A port says of which protocol: without it the bytes would mean something else.

use std::ops::BitOr;

use super::{Name, Type};
use crate::{IfName, IpFamily, Prefix, Protocol};

/// Whether a match asks for equality or for its opposite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// Equal, or inside.
    Is,
    /// Not equal, or outside.
    IsNot,
}

/// States of a connection, one or more (NF_CT_STATE_BIT in include/uapi/linux/netfilter/nf_conntrack_common.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CtState(pub u32);

impl CtState {
    /// Belongs to no connection and starts none.
    pub const INVALID: Self = Self(0x01);
    /// Of a connection with packets in both directions.
    pub const ESTABLISHED: Self = Self(0x02);
    /// Starts a connection that another one announced, or is an error about one.
    pub const RELATED: Self = Self(0x04);
    /// Starts a connection.
    pub const NEW: Self = Self(0x08);
}

impl BitOr for CtState {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Properties of a connection, one or more (enum ip_conntrack_status in the same file).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CtStatus(pub u32);

impl CtStatus {
    /// IPS_SRC_NAT: its source was translated.
    pub const SNAT: Self = Self(0x10);
    /// IPS_DST_NAT: its destination was translated.
    pub const DNAT: Self = Self(0x20);
}

impl BitOr for CtStatus {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Which way a packet goes in its connection (enum ip_conntrack_dir in include/uapi/linux/netfilter/nf_conntrack_tuple_common.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CtDirection {
    /// As the connection's first packet.
    Original,
    /// Back.
    Reply,
}

impl CtDirection {
    /// The kernel's number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Original => 0,
            Self::Reply => 1,
        }
    }
}

/// What must hold of a packet for its rule to go on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Match {
    /// The mark under a mask: `Mark(op, mask, value)`, `value` without bits outside `mask`.
    Mark(Op, u32, u32),
    /// The network protocol; for tables of family inet.
    Nfproto(Op, IpFamily),
    /// The transport protocol.
    L4Proto(Op, Protocol),
    /// Name of the interface it came in by.
    Iifname(Op, IfName),
    /// What the name of the interface it came in by begins with, of fewer bytes than a name may have.
    IifnamePrefix(Op, IfName),
    /// Name of the interface it leaves by.
    Oifname(Op, IfName),
    /// The source address is in the network.
    Saddr(Op, Prefix),
    /// The destination address is in the network.
    Daddr(Op, Prefix),
    /// The packet is of this network protocol and no fragment of one.
    Whole(IpFamily),
    /// The transport protocol is this one, and the source port is, or is not, that.
    Sport(Op, Protocol, u16),
    /// The transport protocol is this one, and the destination port is, or is not, that.
    Dport(Op, Protocol, u16),
    /// The transport protocol is TCP, and of SYN and ACK the packet has, or has not, SYN alone, as a connection's first one has.
    TcpSyn(Op),
    /// The destination is an address of this host (RTN_LOCAL in the routing table).
    DaddrLocal(Op),
    /// The source is an address of this host.
    SaddrLocal(Op),
    /// The connection is in one of the states.
    CtState(CtState),
    /// The packet goes this way in its connection.
    CtDirection(CtDirection),
    /// The connection has one of the properties.
    CtStatus(CtStatus),
    /// The destination of the connection's first packet, before any translation, is in the network.
    CtOriginalDaddr(Op, Prefix),
    /// One packet of so many, chosen at random.
    OneOf(u32),
    /// The fields together are, or are not, an element of the set.
    Lookup(Op, Vec<Field>, Name),
}

/// A field of a packet, as part of a key into a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// The mark.
    Mark,
    /// The transport protocol.
    L4Proto,
    /// Name of the interface it came in by.
    Iifname,
    /// Name of the interface it leaves by.
    Oifname,
    /// The sender's hardware address; in tables of family bridge, where every packet is an Ethernet frame.
    EtherSaddr,
    /// The source address.
    Saddr(IpFamily),
    /// The destination address.
    Daddr(IpFamily),
    /// The source port, of whatever transport protocol.
    Sport,
    /// The destination port, of whatever transport protocol.
    Dport,
    /// The destination of the connection's first packet, before any translation.
    CtOriginalDaddr(IpFamily),
    /// A random number, for each packet anew, from `offset` on one of as many as `below` says.
    Random {
        /// How many numbers there are to choose from.
        below: u32,
        /// The lowest of them.
        offset: u32,
    },
}

impl Field {
    /// The type that the set must have for this field.
    #[must_use]
    pub const fn ty(self) -> Type {
        match self {
            Self::Mark => Type::Mark,
            Self::L4Proto => Type::InetProto,
            Self::Iifname | Self::Oifname => Type::IfName,
            Self::EtherSaddr => Type::EtherAddr,
            Self::Sport | Self::Dport => Type::InetService,
            Self::Random { .. } => Type::Index,
            Self::Saddr(family) | Self::Daddr(family) | Self::CtOriginalDaddr(family) => match family {
                IpFamily::V4 => Type::Ipv4Addr,
                IpFamily::V6 => Type::Ipv6Addr,
            },
        }
    }
}
