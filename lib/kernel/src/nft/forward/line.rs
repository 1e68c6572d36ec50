//! `Line`: a rule of a foreign chain, as far as it has to be understood: may it deny, does it concern every packet, is
//! it ours.
//!
//! Invariant: what is not understood may deny.

use netstate::IpFamily;
use netstate::nft::{CtState, Family, Match, Name, Op, Statement, Verdict};

use super::accept::{CONNTRACK, Exception, MATCH_INFO, MATCH_NAME, conntrack};
use crate::attribute;
use crate::nft::expression::{Expression, Found};
use crate::nft::foreign::match_comment;
use crate::nft::wire::{LIST_ELEM, comment, name, text};
use crate::nft::{recognise, rule};

/// What a rule does with the packets that it concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    /// Counts or logs, no more.
    Nothing,
    Accept,
    Deny,
    Return,
    Jump(Name),
    Goto(Name),
    /// A map of verdicts, which may lead to any chain.
    Map,
    /// Something that is not understood.
    Unclear,
}

/// A rule of a foreign chain.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) chain: Name,
    pub(super) handle: Vec<u8>,
    /// Carries the marker, in either form.
    pub(super) ours: bool,
    /// It does not concern every packet.
    pub(super) conditional: bool,
    /// Its conditions are networks and interfaces only.
    pub(super) dispatches: bool,
    pub(super) effect: Effect,
    /// The conditions that are understood.
    pub(super) conditions: Vec<Match>,
    /// What it accepts, when it is nothing but that.
    pub(super) accepts: Option<Exception>,
}

impl Line {
    /// A rule from the attributes of its message.
    pub(super) fn read(family: Family, attributes: &[u8], marker: &str) -> Option<Self> {
        let list = attribute::find(attributes, rule::EXPRESSIONS).unwrap_or_default();
        let said = attribute::find(attributes, rule::USERDATA).and_then(comment).or_else(|| match_comment(list));
        let elements: Vec<&[u8]> =
            attribute::iter(list).filter(|(kind, _)| *kind == LIST_ELEM).map(|(_, element)| element).collect();
        let mut effect = Effect::Nothing;
        let (mut rest, mut conditions) = (Vec::new(), Vec::new());
        for element in elements {
            match Part::read(element) {
                Part::Neutral => {}
                Part::Effect(found) => effect = found,
                Part::Condition(None) => rest.push(Expression::read(element)),
                Part::Condition(Some(condition)) => conditions.push(condition),
            }
        }
        // What is read and compared with nothing is no condition: `-i +` of iptables.
        while effect != Effect::Map && matches!(rest.last(), Some(Expression::Meta { .. })) {
            rest.pop();
        }
        let has_conditions = !(rest.is_empty() && conditions.is_empty());
        let statements = recognise::rule(family, &rest);
        let understood = statements.iter().all(|statement| matches!(statement, Statement::Match(_)));
        conditions.extend(statements.into_iter().filter_map(|statement| match statement {
            Statement::Match(condition) => Some(condition),
            _ => None,
        }));
        // A denial of every first packet is one of everything: nothing follows what it denied.
        if understood && effect == Effect::Deny {
            conditions.retain(|condition| !is_met_by_every_first(condition));
        }
        let conditional = has_conditions && !(understood && conditions.is_empty());
        let accepts = (understood && effect == Effect::Accept).then(|| Exception::read(&conditions)).flatten();
        Some(Self {
            chain: name(attributes, rule::CHAIN)?,
            handle: attribute::find(attributes, rule::HANDLE)?.to_vec(),
            ours: said.as_deref() == Some(marker),
            conditional,
            dispatches: understood && conditions.iter().all(is_place),
            effect,
            conditions,
            accepts,
        })
    }

    /// The rule as packets of `family` meet it: a condition on the family alone, as `reject with icmp` has one in a table of both,
    /// is none to them.
    pub(super) fn met_by(self, family: IpFamily) -> Self {
        match self.conditions.as_slice() {
            [Match::Nfproto(op, named)] if self.dispatches => match (*op == Op::Is) == (*named == family) {
                true => Self { conditional: false, ..self },
                false => Self { effect: Effect::Nothing, ..self },
            },
            _ => self,
        }
    }

    /// True when no packet is denied by it, so that it may stand behind an accept.
    pub(super) const fn is_harmless(&self) -> bool {
        matches!(self.effect, Effect::Accept | Effect::Nothing)
    }
}

/// True for conditions that the first packet of each connection meets.
fn is_met_by_every_first(condition: &Match) -> bool {
    match condition {
        Match::CtState(states) => states.0 & CtState::NEW.0 != 0,
        Match::Saddr(Op::Is, network) | Match::Daddr(Op::Is, network) => network.is_default(),
        _ => false,
    }
}

/// True for conditions that say where a packet comes from or goes to, and nothing else about it.
const fn is_place(condition: &Match) -> bool {
    matches!(
        condition,
        Match::Nfproto(..)
            | Match::Iifname(..)
            | Match::IifnamePrefix(..)
            | Match::Oifname(..)
            | Match::Saddr(..)
            | Match::Daddr(..)
    )
}

/// What one instruction means for its rule.
enum Part {
    Neutral,
    Effect(Effect),
    Condition(Option<Match>),
}

impl Part {
    fn read(element: &[u8]) -> Self {
        let data = attribute::find(element, 2).unwrap_or_default();
        let extension = || text(data, MATCH_NAME).unwrap_or_default();
        match text(element, 1).unwrap_or_default().as_str() {
            "counter" | "log" => Self::Neutral,
            "reject" => Self::Effect(Effect::Deny),
            "target" => match extension().as_str() {
                "REJECT" | "DROP" => Self::Effect(Effect::Deny),
                "LOG" | "NFLOG" | "ULOG" | "AUDIT" => Self::Neutral,
                _ => Self::Effect(Effect::Unclear),
            },
            "match" => match extension().as_str() {
                "comment" => Self::Neutral,
                CONNTRACK => Self::Condition(attribute::find(data, MATCH_INFO).and_then(conntrack)),
                _ => Self::Condition(None),
            },
            "immediate" => Self::immediate(&Expression::read(element)),
            "lookup" => match Expression::read(element) {
                Expression::Lookup { to: Found::Verdict, .. } | Expression::Unknown(_) => Self::Effect(Effect::Map),
                _ => Self::Condition(None),
            },
            "meta" | "ct" | "payload" | "cmp" | "bitwise" | "byteorder" | "range" | "limit" | "quota" | "connlimit"
            | "fib" | "rt" | "socket" | "osf" | "hash" | "numgen" | "exthdr" | "tunnel" | "xfrm" | "last"
            | "dynset" => Self::Condition(None),
            _ => Self::Effect(Effect::Unclear),
        }
    }

    fn immediate(expression: &Expression) -> Self {
        match expression {
            // Data for what comes behind.
            Expression::Immediate { .. } => Self::Condition(None),
            Expression::Verdict(verdict) => Self::Effect(match verdict {
                Verdict::Accept => Effect::Accept,
                Verdict::Drop => Effect::Deny,
                Verdict::Return => Effect::Return,
                Verdict::Jump(chain) => Effect::Jump(chain.clone()),
                Verdict::Goto(chain) => Effect::Goto(chain.clone()),
            }),
            _ => Self::Effect(Effect::Unclear),
        }
    }
}
