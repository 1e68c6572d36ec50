//! Rules and chains of other programs, taken away by whoever knows that they are left over.
//!
//! Rules of iptables-nft are nftables rules as well: their matches are opaque (`match`), their comment is one of these
//! matches, and where they jump to is a verdict like any other. Invariant: only what the caller picks is removed, all of
//! it or nothing, and only if the ruleset still is the one that was picked from.

use std::collections::BTreeSet;

use netstate::nft::{Family, Name, TableKey, Verdict};

use super::expression::Expression;
use super::layout::removal as removal_of_table;
use super::transaction::{Refusal, commit};
use super::wire::{LIST_ELEM, comment, kind, message, name, payload, text};
use super::{Nft, chain, rule, table};
use crate::attribute::{self, Writer};
use crate::error::{Cause, KernelError};
use crate::socket::Message;

/// Attempts on a ruleset that others change at the same time.
const TRIES: u32 = 30;

/// NFTA_MATCH_NAME and NFTA_MATCH_INFO; the name of the match that only says something.
const MATCH_NAME: u16 = 1;
const MATCH_INFO: u16 = 3;
const COMMENT: &str = "comment";

/// NFTA_COUNTER_PACKETS.
const COUNTER_PACKETS: u16 = 2;

/// A rule of somebody else's, as far as it can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignRule {
    /// The chain that it stands in.
    pub chain: Name,
    /// What it says about itself: the nft tool's comment, or the match `comment` of iptables.
    pub comment: Option<String>,
    /// The chain that it sends packets to.
    pub target: Option<Name>,
    handle: Vec<u8>,
}

/// What shall become of a foreign rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Stay,
    /// It goes.
    Go,
    /// It goes, and with it the chain that it sends packets to.
    GoWithTarget,
}

/// A rule that denies, with the packets that it counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The rule, for an operator: where it stands, its handle and comment.
    pub rule: String,
    /// Packets so far.
    pub packets: u64,
}

impl Nft {
    /// Every rule of any table that drops or rejects and counts; those of iptables-nft do.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn denials(&mut self) -> Result<Vec<Denial>, KernelError> {
        let mut found = Vec::new();
        for family in [Family::Inet, Family::Ip, Family::Ip6] {
            for key in self.tables(family)? {
                let op = "list rules of";
                let frames = self.list(op, format!("nft table {key}"), &about(&key, kind::GETRULE, 0, |_| {}))?;
                let rules = frames.iter().filter_map(|frame| payload(frame, kind::NEWRULE));
                let own = rules.filter(|(_, body)| text(body, table::NAME).as_deref() == Some(key.name.as_str()));
                found.extend(own.filter_map(|(_, attributes)| denial(&key, attributes)));
            }
        }
        Ok(found)
    }

    /// Names a rule for an operator, as [`Denial`] does: by where it stands, its handle and its comment; without a handle
    /// the chain's policy.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn describe(&mut self, key: &TableKey, chain: &Name, rule: Option<u64>) -> Result<String, KernelError> {
        let Some(handle) = rule else { return Ok(format!("the policy of {key} {chain}")) };
        let rules = self.foreign_rules(key)?;
        let found = rules.into_iter().find(|rule| rule.handle == handle.to_be_bytes());
        let comment = found.and_then(|rule| rule.comment);
        Ok(title(handle, key, chain, comment))
    }

    /// True when the table has this chain: one request, nothing is listed.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn has_chain(&mut self, key: &TableKey, chain: &Name) -> Result<bool, KernelError> {
        let request = about(key, kind::GETCHAIN, 0, |body| {
            body.put_str(chain::NAME, chain.as_str());
        });
        self.is_there("find chain", format!("{chain} of nft table {key}"), &request)
    }

    /// True when the table exists: one request, nothing is listed.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn has_table(&mut self, key: &TableKey) -> Result<bool, KernelError> {
        self.is_there("find", format!("nft table {key}"), &about(key, kind::GETTABLE, 0, |_| {}))
    }

    fn is_there(&mut self, op: &'static str, object: String, request: &Message) -> Result<bool, KernelError> {
        match self.ask(op, object, request) {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
            other => other.map(|_| true),
        }
    }

    /// Removes a whole table of somebody else's; returns whether there was one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_foreign_table(&mut self, key: &TableKey) -> Result<bool, KernelError> {
        match commit(&mut self.socket, &[removal_of_table(key)], None) {
            Ok(()) => Ok(true),
            Err(refusal) => {
                let error = KernelError::new("remove", format!("nft table {key}"), refusal);
                if error.errno() == Some(libc::ENOENT) { Ok(false) } else { Err(error) }
            }
        }
    }

    /// Removes those rules of the table that `fate` lets go, chains that go with them, and those of `chains` that are
    /// there, with every rule that sends packets to one. A chain that holds on to a removed one loses that rule. A table
    /// that does not exist holds nothing.
    ///
    /// # Errors
    /// When the kernel cannot be read or refuses; then nothing is removed.
    pub fn remove_foreign(
        &mut self,
        key: &TableKey,
        chains: &BTreeSet<Name>,
        fate: impl Fn(&ForeignRule) -> Fate,
    ) -> Result<(), KernelError> {
        let object = || format!("nft table {key}");
        for _ in 0..TRIES {
            let generation = self.generation()?;
            let mut present = BTreeSet::new();
            for chain in chains {
                if self.has_chain(key, chain)? {
                    present.insert(chain.clone());
                }
            }
            let messages = removal(key, &self.foreign_rules(key)?, present, &fate);
            match commit(&mut self.socket, &messages, Some(generation)) {
                Ok(()) => return Ok(()),
                Err(Refusal::Whole(nack)) if nack.errno == libc::ERESTART => {}
                Err(refusal) => return Err(KernelError::new("remove leftovers from", object(), refusal)),
            }
        }
        let cause = Cause::Unexpected(format!("the ruleset changed during each of {TRIES} attempts"));
        Err(KernelError::new("remove leftovers from", object(), cause))
    }

    /// Every rule of the table, as far as it can be read. A table that does not exist has none.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn foreign_rules(&mut self, key: &TableKey) -> Result<Vec<ForeignRule>, KernelError> {
        let frames = self.list("list rules of", format!("nft table {key}"), &about(key, kind::GETRULE, 0, |_| {}))?;
        let read = |(family, attributes): (u8, &[u8])| {
            let same = family == key.family.number() && text(attributes, table::NAME)? == key.name.as_str();
            same.then(|| foreign_rule(attributes)).flatten()
        };
        Ok(frames.iter().filter_map(|frame| payload(frame, kind::NEWRULE)).filter_map(read).collect())
    }
}

fn about(key: &TableKey, kind: u16, flags: u16, fill: impl FnOnce(&mut Writer)) -> Message {
    message(kind, flags, key.family.number(), |body| {
        body.put_str(table::NAME, key.name.as_str());
        fill(body);
    })
}

/// What takes the picked rules and chains away: rules first, since they hold on to chains.
fn removal(
    key: &TableKey,
    rules: &[ForeignRule],
    mut chains: BTreeSet<Name>,
    fate: impl Fn(&ForeignRule) -> Fate,
) -> Vec<Message> {
    let goes_with = |rule: &&ForeignRule| fate(rule) == Fate::GoWithTarget;
    chains.extend(rules.iter().filter(goes_with).filter_map(|rule| rule.target.clone()));
    let leads_there = |rule: &ForeignRule| rule.target.as_ref().is_some_and(|target| chains.contains(target));
    let mut messages = Vec::new();
    for rule in rules.iter().filter(|rule| !chains.contains(&rule.chain)) {
        if leads_there(rule) || fate(rule) != Fate::Stay {
            messages.push(about(key, kind::DELRULE, 0, |body| {
                body.put_str(self::rule::CHAIN, rule.chain.as_str());
                body.put(self::rule::HANDLE, &rule.handle);
            }));
        }
    }
    let naming = |kind, attribute: u16, chain: &Name| {
        about(key, kind, 0, |body| {
            body.put_str(attribute, chain.as_str());
        })
    };
    // Emptied all before one is removed: they may lead to each other.
    messages.extend(chains.iter().map(|chain| naming(kind::DELRULE, self::rule::CHAIN, chain)));
    messages.extend(chains.iter().map(|chain| naming(kind::DELCHAIN, self::chain::NAME, chain)));
    messages
}

pub(super) fn denial(key: &TableKey, attributes: &[u8]) -> Option<Denial> {
    let list = attribute::find(attributes, rule::EXPRESSIONS)?;
    let named = |name: &str| attribute::iter(list).find(|(_, data)| text(data, 1).as_deref() == Some(name));
    let target = named("target").and_then(|(_, data)| text(attribute::find(data, 2)?, MATCH_NAME));
    let drops = Expression::list(list).contains(&Expression::Verdict(Verdict::Drop));
    let denies = drops || named("reject").is_some() || target.is_some_and(|name| name == "REJECT");
    let counted = attribute::find(named("counter")?.1, 2)?;
    let packets = u64::from_be_bytes(attribute::find(counted, COUNTER_PACKETS)?.try_into().ok()?);
    let read = foreign_rule(attributes).filter(|_| denies)?;
    let handle = u64::from_be_bytes(read.handle.as_slice().try_into().ok()?);
    Some(Denial { rule: title(handle, key, &read.chain, read.comment), packets })
}

fn title(handle: u64, key: &TableKey, chain: &Name, comment: Option<String>) -> String {
    let comment = comment.map(|comment| format!(" ({comment:?})")).unwrap_or_default();
    format!("rule {handle} of {key} {chain}{comment}")
}

pub(super) fn foreign_rule(attributes: &[u8]) -> Option<ForeignRule> {
    let list = attribute::find(attributes, rule::EXPRESSIONS).unwrap_or_default();
    let target = Expression::list(list).into_iter().find_map(|expression| match expression {
        Expression::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => Some(chain),
        _ => None,
    });
    let said = attribute::find(attributes, rule::USERDATA).and_then(comment);
    Some(ForeignRule {
        chain: name(attributes, rule::CHAIN)?,
        comment: said.or_else(|| match_comment(list)),
        target,
        handle: attribute::find(attributes, rule::HANDLE)?.to_vec(),
    })
}

/// The text of iptables' match `comment` (struct xt_comment_info: 256 bytes).
pub(super) fn match_comment(list: &[u8]) -> Option<String> {
    let expressions = attribute::iter(list).filter(|(kind, _)| *kind == LIST_ELEM);
    expressions.filter(|(_, expression)| text(expression, 1).as_deref() == Some("match")).find_map(|(_, expression)| {
        let data = attribute::find(expression, 2)?;
        (text(data, MATCH_NAME)? == COMMENT).then(|| text(data, MATCH_INFO)).flatten()
    })
}

#[cfg(target_endian = "little")]
#[cfg(test)]
mod tests;
