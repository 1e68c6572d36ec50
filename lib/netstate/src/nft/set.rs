//! `Set`: a declared set or map, and its elements.
//!
//! Invariant: an element's key and data have as many parts, of the same types, as the set declares; the kernel holds
//! bytes only and would take any of the right length.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::{Field, Name, TableKey, Verdict};
use crate::ifname::IfName;
use crate::mac::MacAddr;
use crate::{IpFamily, Protocol};

/// A declared set or map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Set {
    /// Types of the key's parts, at least one, at most 64 bytes together (NFT_DATA_VALUE_MAXLEN).
    pub key: Vec<Type>,
    /// What an element leads to.
    pub kind: SetKind,
    /// What else it can do.
    pub flags: SetFlags,
    /// Each element counts the packets that find it, and their bytes. What it has counted is no part of the element.
    pub counts: bool,
}

impl Set {
    /// A set without data: what is in it and what is not.
    #[must_use]
    pub const fn of(key: Vec<Type>) -> Self {
        Self { key, kind: SetKind::Set, flags: SetFlags::NONE, counts: false }
    }

    /// A map to values.
    #[must_use]
    pub const fn map(key: Vec<Type>, data: Vec<Type>) -> Self {
        Self { key, kind: SetKind::Map(data), flags: SetFlags::NONE, counts: false }
    }

    /// A map to verdicts.
    #[must_use]
    pub const fn verdict_map(key: Vec<Type>) -> Self {
        Self { key, kind: SetKind::VerdictMap, flags: SetFlags::NONE, counts: false }
    }

    /// A set that rules put elements into ([`super::Statement::Update`]), each for a time. It takes 65,535 of them, the kernel's
    /// limit where none is given (`nft_dynset_init` in net/netfilter/nft_dynset.c).
    #[must_use]
    pub const fn dynamic(key: Vec<Type>) -> Self {
        Self { key, kind: SetKind::Set, flags: SetFlags::DYNAMIC, counts: false }
    }

    /// The same with elements that count.
    #[must_use]
    pub fn counting(self) -> Self {
        Self { counts: true, ..self }
    }

    /// True for a map to addresses and ports whose key ends with an index: its elements are rows by key without the index
    /// ([`super::List`]).
    #[must_use]
    pub fn is_list(&self) -> bool {
        let SetKind::Map(data) = &self.kind else { return false };
        matches!(self.key.as_slice(), [_, .., Type::Index])
            && matches!(data.as_slice(), [Type::Ipv4Addr | Type::Ipv6Addr, Type::InetService])
    }

    /// True when packets put elements in: then these are nobody's rows.
    #[must_use]
    pub const fn is_dynamic(&self) -> bool {
        self.flags.0 & SetFlags::EVAL != 0
    }
}

/// What an element of a set leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SetKind {
    /// To nothing: it is in the set.
    Set,
    /// To a value with parts of these types.
    Map(Vec<Type>),
    /// To a verdict.
    VerdictMap,
}

/// Flags of a set beside NFT_SET_MAP (enum nft_set_flags in include/uapi/linux/netfilter/nf_tables.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetFlags(pub u32);

impl SetFlags {
    /// Elements come and go by messages only.
    pub const NONE: Self = Self(0);
    /// NFT_SET_EVAL: rules put elements in.
    const EVAL: u32 = 0x20;
    /// NFT_SET_TIMEOUT: elements leave by themselves.
    const TIMEOUT: u32 = 0x10;
    /// Rules put elements in, each for a time.
    pub const DYNAMIC: Self = Self(Self::EVAL | Self::TIMEOUT);
}

/// Type of a part of a key or value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Type {
    /// An IPv4 address.
    Ipv4Addr,
    /// An IPv6 address.
    Ipv6Addr,
    /// A hardware address of Ethernet.
    EtherAddr,
    /// A transport protocol.
    InetProto,
    /// A port.
    InetService,
    /// A packet mark.
    Mark,
    /// An interface name.
    IfName,
    /// A number that says which: what [`super::Field::Random`] makes, in a concatenation only. The nft language has no name
    /// for the type, it shows such a set with the expressions that its keys come from.
    Index,
    /// In an observed set, a type that is none of these, as the nft tool numbers it. It makes the set unequal to every
    /// desired one and cannot be written.
    Unknown(u32),
}

impl Type {
    /// Every type that can be written.
    pub const ALL: [Self; 8] = [
        Self::Ipv4Addr,
        Self::Ipv6Addr,
        Self::EtherAddr,
        Self::InetProto,
        Self::InetService,
        Self::Mark,
        Self::IfName,
        Self::Index,
    ];

    /// The number by which the nft tool knows the type (enum datatypes in include/datatype.h of nftables). The kernel
    /// only keeps it.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Index => 4,
            Self::Ipv4Addr => 7,
            Self::Ipv6Addr => 8,
            Self::EtherAddr => 9,
            Self::InetProto => 12,
            Self::InetService => 13,
            Self::Mark => 19,
            Self::IfName => 41,
            Self::Unknown(number) => number,
        }
    }

    /// The type of a number.
    #[must_use]
    pub fn from_number(number: u32) -> Self {
        Self::ALL.into_iter().find(|ty| ty.number() == number).unwrap_or(Self::Unknown(number))
    }

    /// The field that stands for the type where the nft tool shows a set by what its keys come from; `None` for types that are
    /// in no set with an [`Type::Index`].
    #[must_use]
    pub const fn source(self) -> Option<Field> {
        Some(match self {
            Self::Ipv4Addr => Field::Daddr(IpFamily::V4),
            Self::Ipv6Addr => Field::Daddr(IpFamily::V6),
            Self::InetProto => Field::L4Proto,
            Self::InetService => Field::Dport,
            Self::Index => Field::Random { below: Self::MOST_INDEXES, offset: 0 },
            Self::EtherAddr | Self::Mark | Self::IfName | Self::Unknown(_) => return None,
        })
    }

    /// Below this are the indexes that a set shows; the kernel takes any.
    pub const MOST_INDEXES: u32 = 65_536;

    /// True when a value stands in the order of this machine's numbers, not in network order.
    #[must_use]
    pub const fn is_host_order(self) -> bool {
        matches!(self, Self::Mark | Self::IfName | Self::Index)
    }

    /// Bytes of a value, without padding.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Ipv4Addr | Self::Mark | Self::Index => 4,
            Self::Ipv6Addr | Self::IfName => 16,
            Self::EtherAddr => 6,
            Self::InetProto => 1,
            Self::InetService => 2,
            Self::Unknown(_) => 0,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipv4Addr => f.write_str("ipv4_addr"),
            Self::Ipv6Addr => f.write_str("ipv6_addr"),
            Self::EtherAddr => f.write_str("ether_addr"),
            Self::InetProto => f.write_str("inet_proto"),
            Self::InetService => f.write_str("inet_service"),
            Self::Mark => f.write_str("mark"),
            Self::IfName => f.write_str("ifname"),
            Self::Index => f.write_str("integer"),
            Self::Unknown(number) => write!(f, "type#{number}"),
        }
    }
}

/// A part of a key or value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Datum {
    /// An IPv4 address.
    Ipv4(Ipv4Addr),
    /// An IPv6 address.
    Ipv6(Ipv6Addr),
    /// A hardware address.
    Mac(MacAddr),
    /// A transport protocol.
    Protocol(Protocol),
    /// A port.
    Port(u16),
    /// A packet mark.
    Mark(u32),
    /// An interface name.
    IfName(IfName),
    /// A number that says which.
    Index(u32),
    /// The whole of an observed key or value whose types are none of these; it can be removed, not written.
    Raw(Vec<u8>),
}

impl Datum {
    /// The type, `None` for raw bytes.
    #[must_use]
    pub const fn ty(&self) -> Option<Type> {
        Some(match self {
            Self::Ipv4(_) => Type::Ipv4Addr,
            Self::Ipv6(_) => Type::Ipv6Addr,
            Self::Mac(_) => Type::EtherAddr,
            Self::Protocol(_) => Type::InetProto,
            Self::Port(_) => Type::InetService,
            Self::Mark(_) => Type::Mark,
            Self::IfName(_) => Type::IfName,
            Self::Index(_) => Type::Index,
            Self::Raw(_) => return None,
        })
    }
}

impl From<IpAddr> for Datum {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(addr) => Self::Ipv4(addr),
            IpAddr::V6(addr) => Self::Ipv6(addr),
        }
    }
}

impl fmt::Display for Datum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipv4(addr) => write!(f, "{addr}"),
            Self::Ipv6(addr) => write!(f, "{addr}"),
            Self::Mac(mac) => write!(f, "{mac}"),
            Self::Protocol(protocol) => write!(f, "{protocol}"),
            Self::Port(port) => write!(f, "{port}"),
            Self::Mark(mark) => write!(f, "0x{mark:08x}"),
            Self::IfName(name) => write!(f, "\"{name}\""),
            Self::Index(index) => write!(f, "{index}"),
            Self::Raw(bytes) => {
                f.write_str("0x")?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

/// Writes `parts` with ` . ` between them.
pub(super) fn joined<T: fmt::Display>(parts: &[T]) -> String {
    parts.iter().map(T::to_string).collect::<Vec<_>>().join(" . ")
}

/// Identifies an element.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ElementKey {
    /// The table of the set.
    pub table: TableKey,
    /// The set or map.
    pub set: Name,
    /// The key's parts; a copy shares them.
    pub key: Arc<[Datum]>,
}

impl ElementKey {
    /// The key without the index that it ends with, and that; `None` for one without.
    #[must_use]
    pub fn listed(&self) -> Option<(Self, u32)> {
        let (Datum::Index(index), place) = self.key.split_last()? else { return None };
        Some((Self { key: place.into(), ..self.clone() }, *index))
    }
}

impl fmt::Display for ElementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} @{} {{ {} }}", self.table, self.set, joined(&self.key))
    }
}

/// Identifies a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetKey {
    /// The table of the set.
    pub table: TableKey,
    /// Its name; one that is a row of its own has a name of its kind, see [`Name::is_of_row`].
    pub set: Name,
}

impl fmt::Display for SetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} @{}", self.table, self.set)
    }
}

/// Identifies a chain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainKey {
    /// The table of the chain.
    pub table: TableKey,
    /// Its name; one that is a row of its own has a name of its kind, see [`Name::is_of_row`].
    pub chain: Name,
}

impl fmt::Display for ChainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.table, self.chain)
    }
}

/// An element without its key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// What it leads to.
    pub data: Data,
    /// For who reads the ruleset, or whose the element is; at most 128 bytes without quotes and
    /// control characters.
    pub comment: Option<Arc<str>>,
}

impl Element {
    /// An element of a set.
    #[must_use]
    pub const fn member() -> Self {
        Self { data: Data::Nothing, comment: None }
    }

    /// An element of a map to values.
    #[must_use]
    pub const fn value(parts: Vec<Datum>) -> Self {
        Self { data: Data::Value(parts), comment: None }
    }

    /// An element of a map to verdicts.
    #[must_use]
    pub const fn verdict(verdict: Verdict) -> Self {
        Self { data: Data::Verdict(verdict), comment: None }
    }

    /// Says what the element is for.
    #[must_use]
    pub fn comment(mut self, text: impl Into<Arc<str>>) -> Self {
        self.comment = Some(text.into());
        self
    }
}

/// What an element leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Data {
    /// To nothing: it is in the set.
    Nothing,
    /// To a value.
    Value(Vec<Datum>),
    /// To a verdict.
    Verdict(Verdict),
}
