//! `Rule`: what is done with packets, and with which.

use std::net::IpAddr;

use super::{Field, Match, Name};
use crate::IpFamily;

/// A rule: statements that are carried out in order until a match does not hold or a verdict is reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Rule {
    /// The statements.
    pub statements: Vec<Statement>,
    /// For who reads the ruleset; at most 128 bytes without quotes and control characters
    /// (NFTNL_UDATA_COMMENT_MAXLEN of libnftnl).
    pub comment: Option<String>,
}

impl Rule {
    /// A rule without statements.
    #[must_use]
    pub const fn new() -> Self {
        Self { statements: Vec::new(), comment: None }
    }

    /// Goes on only with packets of which `condition` holds.
    #[must_use]
    pub fn when(self, condition: Match) -> Self {
        self.then(Statement::Match(condition))
    }

    /// Does `statement`.
    #[must_use]
    pub fn then(mut self, statement: impl Into<Statement>) -> Self {
        self.statements.push(statement.into());
        self
    }

    /// Says what the rule is for.
    #[must_use]
    pub fn comment(mut self, text: impl Into<String>) -> Self {
        self.comment = Some(text.into());
        self
    }
}

/// One statement of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Statement {
    /// Goes on only with some packets.
    Match(Match),
    /// Counts. The numbers change by themselves and are no part of the value.
    Counter,
    /// Changes the packet's mark.
    SetMark(MarkChange),
    /// Gives the connection the source address of the interface it leaves by.
    Masquerade {
        /// Choose source ports at random: parallel connections do not race for one port (NF_NAT_RANGE_PROTO_RANDOM_FULLY).
        fully_random: bool,
    },
    /// Gives the connection another destination.
    Dnat(Destination),
    /// The verdict that a map holds for these fields; none when it holds none.
    Vmap(Vec<Field>, Name),
    /// Puts these fields into a dynamic set for this time, or anew when they are in it. In a set that is full, the rule ends here.
    Update {
        /// The element.
        fields: Vec<Field>,
        /// The set.
        set: Name,
        /// How long the element stays, in seconds.
        seconds: u32,
    },
    /// The packet belongs to no connection (NOTRACK of iptables); in chains that stand before the tracking.
    Notrack,
    /// Puts the packet's connection, when it is established, into a flowtable.
    Offload(Name),
    /// Ends the rule.
    Verdict(Verdict),
    /// Drops and sends an error back.
    Reject(Reject),
    /// Something in an observed rule that is none of the above, as text. It makes the rule unequal to every desired
    /// one and cannot be written.
    Unknown(String),
}

impl From<Match> for Statement {
    fn from(condition: Match) -> Self {
        Self::Match(condition)
    }
}

impl From<Verdict> for Statement {
    fn from(verdict: Verdict) -> Self {
        Self::Verdict(verdict)
    }
}

impl From<MarkChange> for Statement {
    fn from(change: MarkChange) -> Self {
        Self::SetMark(change)
    }
}

impl From<Destination> for Statement {
    fn from(destination: Destination) -> Self {
        Self::Dnat(destination)
    }
}

impl From<Reject> for Statement {
    fn from(reject: Reject) -> Self {
        Self::Reject(reject)
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It leaves this base chain and goes on; other base chains may still drop it.
    Accept,
    /// It is gone.
    Drop,
    /// Back to the chain that jumped here; in a base chain, the policy.
    Return,
    /// To another chain, and back here behind its end.
    Jump(Name),
    /// To another chain, without coming back here.
    Goto(Name),
}

/// What a refused sender receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reject {
    /// ICMP port unreachable, of the packet's own family.
    PortUnreachable,
    /// TCP reset; needs a match on TCP before it.
    TcpReset,
}

/// How a mark changes: the new one is `(old & mask) ^ xor` (NFTA_BITWISE_MASK and NFTA_BITWISE_XOR).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MarkChange {
    /// Bits that are kept.
    pub mask: u32,
    /// Bits that are flipped afterwards.
    pub xor: u32,
}

impl MarkChange {
    /// Sets the mark to `value`, whatever it was.
    #[must_use]
    pub const fn replace(value: u32) -> Self {
        Self { mask: 0, xor: value }
    }

    /// Sets `bits`, leaves the others.
    #[must_use]
    pub const fn set(bits: u32) -> Self {
        Self { mask: !bits, xor: bits }
    }

    /// Clears `bits`, leaves the others.
    #[must_use]
    pub const fn clear(bits: u32) -> Self {
        Self { mask: !bits, xor: 0 }
    }

    /// Flips `bits`, leaves the others.
    #[must_use]
    pub const fn flip(bits: u32) -> Self {
        Self { mask: u32::MAX, xor: bits }
    }
}

/// Where a connection is sent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Destination {
    /// To one address; to another port only with a match on the transport protocol before it.
    Fixed(IpAddr, Option<u16>),
    /// To what a map holds for these fields; nowhere else when it holds nothing.
    Map {
        /// Family of the map's addresses.
        family: IpFamily,
        /// The key.
        fields: Vec<Field>,
        /// The map.
        map: Name,
        /// The map holds `address . port`, not only addresses.
        port: bool,
    },
}
