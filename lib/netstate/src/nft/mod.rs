//! nftables rulesets as values.
//!
//! A [`Ruleset`] is one table of the kernel: its static part, a [`Table`] of chains, rules and declared sets, and the
//! elements of those sets. The static part changes with the configuration, the elements change with the cluster; that
//! is why they are separate rows ([`RowKey`], [`Row`]) of one kernel table. So is a chain or set that only some states of the
//! cluster need: its name has a `/` in it ([`Name::is_of_row`]). The elements of an indexed map that differ in the index alone are one
//! row, a [`List`]. Elements that packets put into a dynamic set ([`Set::dynamic`]) are no rows: nobody desires them.
//!
//! Invariant: a rule is an ordered list of typed [`Statement`]s at the level of the nft language, never bytes, and two
//! rules that compare equal do the same to every packet. [`Ruleset::render`] gives the text that
//! `nft -s list table` prints for it.
//!
//! What leaves this node's Pods is masqueraded, what stays in the Pod network keeps its source:
//!
//! ```
//! use netstate::nft::*;
//! use netstate::Prefix;
//!
//! let pods: Prefix = "172.7.0.0/16".parse()?;
//! let local: Prefix = "172.7.21.0/24".parse()?;
//! let multicast: Prefix = "224.0.0.0/4".parse()?;
//! let masquerade = Statement::Masquerade { fully_random: true };
//!
//! let mut chain = Chain::base(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT, Policy::Accept);
//! chain.rules = vec![
//!     // Marked by the service proxy, which masquerades it itself.
//!     Rule::new().when(Match::Mark(Op::Is, 0x4000, 0x4000)).then(Verdict::Return),
//!     Rule::new().when(Match::Saddr(Op::Is, pods)).when(Match::Daddr(Op::Is, pods)).then(Verdict::Return),
//!     // What comes from outside to a Pod of this node keeps its source: the answer comes through here anyway.
//!     Rule::new().when(Match::Daddr(Op::Is, local)).then(Verdict::Return),
//!     Rule::new()
//!         .when(Match::Saddr(Op::Is, pods))
//!         .when(Match::Daddr(Op::IsNot, multicast))
//!         .then(masquerade.clone()),
//!     Rule::new().when(Match::Saddr(Op::IsNot, pods)).when(Match::Daddr(Op::Is, pods)).then(masquerade),
//! ];
//!
//! let mut ruleset = Ruleset::new(TableKey { family: Family::Ip, name: Name::literal("netd") });
//! ruleset.table.chains.insert(Name::literal("postrouting"), chain);
//! assert_eq!(ruleset.render(), "\
//! table ip netd {
//! \tchain postrouting {
//! \t\ttype nat hook postrouting priority srcnat; policy accept;
//! \t\tmeta mark & 0x00004000 == 0x00004000 return
//! \t\tip saddr 172.7.0.0/16 ip daddr 172.7.0.0/16 return
//! \t\tip daddr 172.7.21.0/24 return
//! \t\tip saddr 172.7.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
//! \t\tip saddr != 172.7.0.0/16 ip daddr 172.7.0.0/16 masquerade fully-random
//! \t}
//! }
//! ");
//! # Ok::<(), netstate::prefix::InvalidPrefix>(())
//! ```

mod chain;
mod flowtable;
mod list;
mod matching;
mod name;
mod render;
mod rule;
mod set;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::IpFamily;

pub use chain::{BaseChain, Chain, ChainKind, Hook, Policy, priority};
pub use flowtable::Flowtable;
pub use list::List;
pub use matching::{CtDirection, CtState, CtStatus, Field, Match, Op};
pub use name::{InvalidName, Name};
pub use rule::{Destination, MarkChange, Reject, Rule, Statement, Verdict};
pub use set::{ChainKey, Data, Datum, Element, ElementKey, Set, SetFlags, SetKey, SetKind, Type};

/// Which packets a table sees (NFPROTO_* in include/uapi/linux/netfilter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// NFPROTO_INET, 1: IPv4 and IPv6.
    Inet,
    /// NFPROTO_IPV4, 2.
    Ip,
    /// NFPROTO_NETDEV, 5: whatever arrives on a link.
    Netdev,
    /// NFPROTO_BRIDGE, 7: frames that a bridge forwards.
    Bridge,
    /// NFPROTO_IPV6, 10.
    Ip6,
}

impl Family {
    /// The family's number in messages to the kernel.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Netdev => 5,
            Self::Bridge => 7,
            Self::Ip6 => 10,
        }
    }

    /// The family of a number, if it is one of these.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Inet),
            2 => Some(Self::Ip),
            5 => Some(Self::Netdev),
            7 => Some(Self::Bridge),
            10 => Some(Self::Ip6),
            _ => None,
        }
    }
}

impl From<IpFamily> for Family {
    fn from(family: IpFamily) -> Self {
        match family {
            IpFamily::V4 => Self::Ip,
            IpFamily::V6 => Self::Ip6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Netdev => "netdev",
            Self::Bridge => "bridge",
            Self::Ip6 => "ip6",
        })
    }
}

/// Identifies a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableKey {
    /// Which packets it sees.
    pub family: Family,
    /// Its name, unique within the family.
    pub name: Name,
}

impl fmt::Display for TableKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// The static part of a table: everything but the elements of its sets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Table {
    /// Its chains see no packets (NFT_TABLE_F_DORMANT).
    pub dormant: bool,
    /// Chains by name.
    pub chains: BTreeMap<Name, Chain>,
    /// Sets and maps by name.
    pub sets: BTreeMap<Name, Set>,
    /// Flowtables by name.
    pub flowtables: BTreeMap<Name, Flowtable>,
}

impl Table {
    /// Takes the chains out that are rows of their own.
    pub fn take_chains_of_rows(&mut self) -> BTreeMap<Name, Chain> {
        self.chains.extract_if(.., |name, _| name.is_of_row()).collect()
    }

    /// Takes the sets out that are rows of their own.
    pub fn take_sets_of_rows(&mut self) -> BTreeMap<Name, Set> {
        self.sets.extract_if(.., |name, _| name.is_of_row()).collect()
    }
}

/// One whole table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ruleset {
    /// Which table.
    pub key: TableKey,
    /// Its static part.
    pub table: Table,
    /// The elements of its sets that are not dynamic; their keys name this table.
    pub elements: BTreeMap<ElementKey, Element>,
}

impl Ruleset {
    /// An empty table.
    #[must_use]
    pub const fn new(key: TableKey) -> Self {
        let chains = BTreeMap::new();
        let sets = BTreeMap::new();
        let flowtables = BTreeMap::new();
        let table = Table { dormant: false, chains, sets, flowtables };
        Self { key, table, elements: BTreeMap::new() }
    }

    /// Puts an element into the set or map `set`, replacing the one with the same key.
    pub fn insert(&mut self, set: Name, key: impl Into<Arc<[Datum]>>, element: Element) {
        self.elements.insert(ElementKey { table: self.key.clone(), set, key: key.into() }, element);
    }

    /// The table as rows of a kernel table: one for the static part, one for each element, one for each set and chain whose name says so.
    #[must_use]
    pub fn rows(&self) -> BTreeMap<RowKey, Row> {
        self.clone().into_rows().collect()
    }

    /// As [`Ruleset::rows`], without copying.
    pub fn into_rows(self) -> impl Iterator<Item = (RowKey, Row)> {
        let Self { key, mut table, elements } = self;
        let elements = element_rows(elements, &table);
        let at = key.clone();
        let sets = table.take_sets_of_rows().into_iter();
        let sets = sets.map(move |(set, value)| (RowKey::Set(SetKey { table: at.clone(), set }), value.into()));
        let at = key.clone();
        let chains = table.take_chains_of_rows().into_iter();
        let chains =
            chains.map(move |(chain, value)| (RowKey::Chain(ChainKey { table: at.clone(), chain }), value.into()));
        std::iter::once((RowKey::Table(key), table.into())).chain(sets).chain(chains).chain(elements)
    }

    /// The text that `nft -s list table` prints, elements in key order.
    #[must_use]
    pub fn render(&self) -> String {
        render::ruleset(self)
    }
}

/// The rows of elements; those of an indexed map that differ in the index alone are one.
fn element_rows(elements: BTreeMap<ElementKey, Element>, table: &Table) -> Vec<(RowKey, Row)> {
    let (mut rows, mut lists) = (Vec::new(), BTreeMap::<ElementKey, Vec<(u32, Element)>>::new());
    for (key, value) in elements {
        let is_list = table.sets.get(&key.set).is_some_and(Set::is_list);
        match key.listed().filter(|_| is_list) {
            Some((place, index)) => lists.entry(place).or_default().push((index, value)),
            None => rows.push((RowKey::Element(key), value.into())),
        }
    }
    rows.extend(lists.into_iter().map(|(key, list)| (RowKey::List(key), List::of_elements(list).into())));
    rows
}

/// Identifies a row. Static parts sort first, then sets and chains, so that what elements need is there before them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// The static part of a table.
    Table(TableKey),
    /// A set that comes and goes.
    Set(SetKey),
    /// A chain that comes and goes.
    Chain(ChainKey),
    /// One element of a set.
    Element(ElementKey),
    /// The elements of an indexed map that have this key in front of the index.
    List(ElementKey),
}

impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(key) => write!(f, "table {key}"),
            Self::Set(key) => write!(f, "set {key}"),
            Self::Chain(key) => write!(f, "chain {key}"),
            Self::Element(key) => write!(f, "element {key}"),
            Self::List(key) => write!(f, "list {key}"),
        }
    }
}

/// The rest of a row: of the kind that its key says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    /// The static part of a table; there are few of them, and every row has their room.
    Table(Box<Table>),
    /// A set that comes and goes; few as well.
    Set(Box<Set>),
    /// A chain that comes and goes; few as well.
    Chain(Box<Chain>),
    /// One element of a set.
    Element(Element),
    /// Elements of an indexed map.
    List(List),
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(table) => f.write_str(&render::table_line(table)),
            Self::Set(set) => f.write_str(&render::set_line(set)),
            Self::Chain(chain) => f.write_str(&render::chain_line(chain)),
            Self::Element(element) => f.write_str(&render::element_line(element)),
            Self::List(list) => list.fmt(f),
        }
    }
}

impl From<Table> for Row {
    fn from(table: Table) -> Self {
        Self::Table(Box::new(table))
    }
}

impl From<Set> for Row {
    fn from(set: Set) -> Self {
        Self::Set(Box::new(set))
    }
}

impl From<Chain> for Row {
    fn from(chain: Chain) -> Self {
        Self::Chain(Box::new(chain))
    }
}

impl From<Element> for Row {
    fn from(element: Element) -> Self {
        Self::Element(element)
    }
}

impl From<List> for Row {
    fn from(list: List) -> Self {
        Self::List(list)
    }
}
