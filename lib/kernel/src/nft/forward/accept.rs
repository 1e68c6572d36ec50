//! `Accept`: packets that shall pass a foreign chain; `Exception`: the rule that lets them, in front of one denial.
//!
//! A chain of iptables-nft has to stay one that iptables reads: it knows conditions on addresses and marks as the nft
//! tool writes them, but connection states only as its own match.

use std::fmt;

use netstate::nft::{CtState, Family, Match, Op, Rule, TableKey, Verdict};
use netstate::{IpFamily, Prefix, nft};

use crate::attribute::Writer;
use crate::nft::compile::{self, Unwritable};
use crate::nft::expression::Expression;
use crate::nft::rule;
use crate::nft::wire::{LIST_ELEM, comment_bytes, put_number};

/// Packets that shall pass.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Accept {
    /// Sent from the network.
    From(Prefix),
    /// Sent to the network.
    To(Prefix),
    /// Their mark has these bits.
    Marked(u32),
    /// Of connections that are established, or related to one.
    Established,
}

impl fmt::Display for Accept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From(network) => write!(f, "from {network}"),
            Self::To(network) => write!(f, "to {network}"),
            Self::Marked(bits) => write!(f, "mark {bits:#x}"),
            Self::Established => f.write_str("established"),
        }
    }
}

/// What a rule of ours accepts, and of which denial it is an exception.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exception {
    /// Packets that pass.
    pub accept: Accept,
    /// The conditions of the denial; none for that of everything.
    pub of: Vec<Match>,
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = |condition: &Match| match condition {
            Match::Iifname(_, name) => format!(" in by {name}"),
            Match::IifnamePrefix(_, name) => format!(" in by {name}*"),
            Match::Oifname(_, name) => format!(" out by {name}"),
            Match::Daddr(_, network) => format!(" to {network}"),
            other => format!(" of {other:?}"),
        };
        write!(f, "{}{}", self.accept, self.of.iter().map(by).collect::<String>())
    }
}

impl Accept {
    /// The condition of the rule, as the nft tool writes it.
    pub(super) const fn condition(&self) -> Match {
        match self {
            Self::From(network) => Match::Saddr(Op::Is, *network),
            Self::To(network) => Match::Daddr(Op::Is, *network),
            Self::Marked(bits) => Match::Mark(Op::Is, *bits, *bits),
            Self::Established => Match::CtState(ESTABLISHED),
        }
    }

    /// What a rule with this condition alone accepts.
    pub(super) fn of(condition: &Match) -> Option<Self> {
        match condition {
            Match::Saddr(Op::Is, network) => Some(Self::From(*network)),
            Match::Daddr(Op::Is, network) => Some(Self::To(*network)),
            Match::Mark(Op::Is, mask, value) if mask == value => Some(Self::Marked(*mask)),
            Match::CtState(ESTABLISHED) => Some(Self::Established),
            _ => None,
        }
    }

    /// The family of all these packets, if they have one.
    pub(super) const fn family(&self) -> Option<IpFamily> {
        match self {
            Self::From(network) | Self::To(network) => Some(network.family()),
            Self::Marked(_) | Self::Established => None,
        }
    }

    /// True when packets of this kind come by chains of `family`.
    pub(super) fn concerns(&self, family: Family) -> bool {
        match (self, family) {
            (Self::From(network) | Self::To(network), Family::Ip) => network.is_ipv4(),
            (Self::From(network) | Self::To(network), Family::Ip6) => !network.is_ipv4(),
            _ => true,
        }
    }
}

impl Exception {
    /// Of the denial of everything.
    #[cfg(test)]
    pub(super) const fn to_all(accept: Accept) -> Self {
        Self { accept, of: Vec::new() }
    }

    /// What a rule with these conditions accepts.
    pub(super) fn read(conditions: &[Match]) -> Option<Self> {
        // States as iptables writes them are known before what the nft tool writes; else ours is the last one.
        let states = conditions.iter().position(|condition| matches!(condition, Match::CtState(_)));
        let at = states.unwrap_or(conditions.len().checked_sub(1)?);
        let mut of = conditions.to_vec();
        let accept = Accept::of(&of.remove(at))?;
        Some(Self { accept, of })
    }

    /// The family of all these packets, if they have one.
    pub(super) fn family(&self) -> Option<IpFamily> {
        self.accept.family()
    }

    /// Writes the rule's instructions and its comment.
    pub(super) fn write(&self, body: &mut Writer, table: &TableKey, comment: &str) -> Result<(), Unwritable> {
        let mut rule = self.of.iter().fold(Rule::new(), |rule, condition| rule.when(condition.clone()));
        let compat = self.accept == Accept::Established && is_of_iptables(table);
        if !compat {
            rule = rule.when(self.accept.condition());
        }
        let program = compile::rule(table.family, &rule.then(Verdict::Accept))?;
        body.nest(rule::EXPRESSIONS, |list| {
            if compat {
                put_conntrack(list);
            }
            program.iter().for_each(|expression: &Expression| expression.write(list));
        });
        body.put(rule::USERDATA, &comment_bytes(comment));
        Ok(())
    }
}

const ESTABLISHED: CtState = CtState(CtState::ESTABLISHED.0 | CtState::RELATED.0);

/// True for tables that iptables-nft and ip6tables-nft claim by name.
fn is_of_iptables(table: &nft::TableKey) -> bool {
    matches!(table.family, Family::Ip | Family::Ip6)
        && ["filter", "mangle", "raw", "nat", "security"].contains(&table.name.as_str())
}

/// enum nft_match_attributes.
pub(super) const MATCH_NAME: u16 = 1;
const MATCH_REVISION: u16 = 2;
pub(super) const MATCH_INFO: u16 = 3;
/// The match's name.
pub(super) const CONNTRACK: &str = "conntrack";
/// Bytes of `struct xt_conntrack_mtinfo3`, aligned to eight (include/uapi/linux/netfilter/xt_conntrack.h).
const CONNTRACK_SIZE: usize = 168;
/// Where its match_flags, invert_flags and state_mask stand, of two bytes each.
const CONNTRACK_FLAGS: usize = 146;
/// XT_CONNTRACK_STATE, no inversion; XT_CONNTRACK_STATE_BIT of IP_CT_ESTABLISHED and IP_CT_RELATED.
const CONNTRACK_STATES: [u16; 3] = [1, 0, 0x2 | 0x4];

/// Writes `-m conntrack --ctstate RELATED,ESTABLISHED`.
fn put_conntrack(list: &mut Writer) {
    list.nest(LIST_ELEM, |element| {
        element.put_str(1, "match");
        element.nest(2, |data| {
            data.put_str(MATCH_NAME, CONNTRACK);
            put_number(data, MATCH_REVISION, 3);
            data.put(MATCH_INFO, &conntrack_info());
        });
    });
}

fn conntrack_info() -> Vec<u8> {
    let mut info = vec![0; CONNTRACK_FLAGS];
    info.extend(CONNTRACK_STATES.iter().flat_map(|number| number.to_ne_bytes()));
    info.resize(CONNTRACK_SIZE, 0);
    info
}

/// The condition of a match `conntrack` that asks for nothing but states.
pub(super) fn conntrack(info: &[u8]) -> Option<Match> {
    // iptables fills in port ranges that no flag asks for; the flags say what counts.
    let flags = info.get(CONNTRACK_FLAGS..CONNTRACK_FLAGS + 6).filter(|_| info.len() >= CONNTRACK_SIZE - 8)?;
    let [asked, inverted, states]: [u16; 3] =
        std::array::from_fn(|at| flags.as_chunks::<2>().0.get(at).map_or(0, |bytes| u16::from_ne_bytes(*bytes)));
    let [states_alone, no_inversion, _] = CONNTRACK_STATES;
    ((asked, inverted) == (states_alone, no_inversion)).then(|| Match::CtState(CtState(u32::from(states))))
}
