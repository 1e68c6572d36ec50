//! Foreign chains of the forward hook that deny what none of their rules accepts, as Docker leaves `ip filter FORWARD`.
//!
//! An accept in our own chain does not help there: every base chain of a hook is passed, and one drop is the end. So
//! accept rules are put at the end of the foreign chain, marked as ours by their comment; where packets are denied in a
//! chain behind it that nothing else leads to, as firewalld does in a zone's, they stand there, and in the zones of
//! the links that the caller names.
//!
//! Invariants. An accept stands behind every rule that may deny, and before nothing but the denial of everything: a
//! denial of the chain's owner still denies. It accepts no more than what is denied there: where packets are told apart by
//! interfaces and networks, it has the denial's conditions. Rules with our marker are ours in either form, the nft tool's comment or
//! the match that `iptables-save | iptables-restore` makes of it, and are taken back from every chain of the hook that
//! needs none. Nothing else in a foreign table is touched. Each program has a marker of its own.
//!
//! A chain that denies in one that other hooks or other conditions lead to as well, and a table that one process keeps for
//! itself, are rows that fail and say so. iptables-legacy is out of sight.

mod accept;
#[cfg(any(test, feature = "fuzz"))]
pub(in crate::nft) mod fuzz;
mod judge;
mod line;
mod stage;
mod survey;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netstate::IfName;
use netstate::nft::{ChainKey, Match, Name, Policy, TableKey};
use reconcile::{Observed, Owner, Rows, Step, Target};

use self::judge::{End, Ends, Part};
use self::line::Line;
use super::tables::unwritable;
use super::transaction::{Refusal, commit};
use super::wire::{kind, message};
use super::{Nft, rule, table};
use crate::error::{Cause, KernelError, SocketError};
use crate::socket::Message;
use crate::writer::{Subject, Writers};

pub use self::accept::{Accept, Exception};
pub use self::stage::Forward;

/// Attempts on a ruleset that others change at the same time.
const TRIES: u32 = 30;

/// NFTA_RULE_POSITION.
const POSITION: u16 = 6;

/// What our rules in a chain accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Packets that pass.
    pub accepts: BTreeSet<Exception>,
    /// Each rule is there once, behind all denials.
    pub in_place: bool,
    /// Why no rule can stand behind all denials.
    pub obstacle: Option<String>,
}

impl fmt::Display for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let accepts: Vec<_> = self.accepts.iter().map(ToString::to_string).collect();
        write!(f, "accepts {}", accepts.join(", "))?;
        match &self.obstacle {
            Some(obstacle) => write!(f, ", but {obstacle}"),
            None if self.in_place => Ok(()),
            None => f.write_str(", not behind all denials"),
        }
    }
}

/// A chain that denies what none of its rules accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denying {
    /// The chain.
    pub key: ChainKey,
    /// What in it denies.
    pub by: Denier,
    /// Nothing can be accepted there, so as not to be denied.
    pub obstructed: bool,
}

/// What denies packets that no rule of a chain accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denier {
    /// The chain's policy.
    Policy,
    /// Its last rule.
    LastRule,
    /// A rule for interfaces or networks.
    Rule,
    /// Another chain behind it.
    Chain(Name),
}

impl fmt::Display for Denying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "foreign chain {} drops forwarded packets ", self.key)?;
        match &self.by {
            Denier::Policy => f.write_str("by policy"),
            Denier::LastRule => f.write_str("by its last rule"),
            Denier::Rule => f.write_str("by a rule for some interfaces"),
            Denier::Chain(name) => write!(f, "in its chain {name}"),
        }
    }
}

/// Our accept rules in foreign chains of the forward hook.
#[derive(Debug)]
pub struct Accepts {
    nft: Nft,
    own: BTreeSet<TableKey>,
    marker: Cow<'static, str>,
    /// Links whose packets shall pass, when they are in a zone of their own.
    links: BTreeSet<IfName>,
    /// Read, and not yet listed from.
    surveyed: Option<Vec<Chain>>,
    /// Tables with rules of ours in other chains than those of the hook; `None` before the first survey.
    inside: Option<BTreeSet<TableKey>>,
    writers: Writers,
}

/// A foreign chain with its rules: one of the hook, one that denies for it, or one with rules of ours.
#[derive(Debug)]
struct Chain {
    key: ChainKey,
    /// The chain of the hook.
    base: ChainKey,
    policy: Policy,
    lines: Vec<Line>,
    ends: Ends,
    parts: Vec<Part>,
    /// Why no rule of ours can stand in it.
    obstacle: Option<String>,
    /// Every condition of the table that lets packets go on, when there is an obstacle.
    mentioned: Vec<Match>,
}

impl Accepts {
    /// Rules that say `marker`, in every table but `own`.
    #[must_use]
    pub fn new(nft: Nft, own: BTreeSet<TableKey>, marker: impl Into<Cow<'static, str>>) -> Self {
        let links = BTreeSet::new();
        Self { nft, own, marker: marker.into(), links, surveyed: None, inside: None, writers: Writers::default() }
    }

    /// Makes a chain's rules of ours accept exactly `wanted`.
    fn settle(&mut self, key: &ChainKey, wanted: &BTreeSet<Exception>) -> Result<(), Cause> {
        for _ in 0..TRIES {
            let generation = self.nft.generation().map_err(|error| error.cause)?;
            let chain = self.read().map_err(|error| error.cause)?.into_iter().find(|chain| chain.key == *key);
            let messages = match &chain {
                Some(chain) => plan(chain, wanted, &self.marker)?,
                None if wanted.is_empty() => return Ok(()),
                None => return Err(Cause::Missing(format!("chain {key}"))),
            };
            match commit(&mut self.nft.socket, &messages, Some(generation)) {
                Ok(()) => return Ok(()),
                Err(Refusal::Whole(nack)) if nack.errno == libc::ERESTART => {}
                Err(refusal) => return Err(refusal.into()),
            }
        }
        Err(SocketError::Interrupted(TRIES).into())
    }
}

/// What takes our rules out of a chain and puts those for `wanted` where they belong.
fn plan(chain: &Chain, wanted: &BTreeSet<Exception>, marker: &str) -> Result<Vec<Message>, Cause> {
    let key = &chain.key;
    let about = |kind, flags| {
        let family = key.table.family.number();
        message(kind, flags, family, |body| {
            body.put_str(table::NAME, key.table.name.as_str()).put_str(rule::CHAIN, key.chain.as_str());
        })
    };
    let mut messages = Vec::new();
    for line in chain.lines.iter().filter(|line| line.ours) {
        let mut removal = about(kind::DELRULE, 0);
        crate::attribute::append(&mut removal.body, |body| {
            body.put(rule::HANDLE, &line.handle);
        });
        messages.push(removal);
    }
    for exception in wanted {
        let Some(denied) = judge::denied(exception, &chain.ends, &chain.parts) else { continue };
        let before = chain.lines.get(judge::place(&chain.lines, denied));
        let mut addition = about(kind::NEWRULE, NLM_F_CREATE | if before.is_none() { NLM_F_APPEND } else { 0 });
        let mut written = Ok(());
        crate::attribute::append(&mut addition.body, |body| {
            if let Some(line) = before {
                body.put(POSITION, &line.handle);
            }
            written = exception.write(body, &key.table, marker);
        });
        written.map_err(unwritable)?;
        messages.push(addition);
    }
    Ok(messages)
}

impl Chain {
    /// The row that makes `accepts` pass, if the chain denies any of it by default.
    fn desired(&self, accepts: &BTreeSet<Accept>) -> Option<Accepted> {
        let concerned = accepts.iter().filter(|accept| accept.concerns(self.key.table.family));
        let wanted: BTreeSet<Exception> = concerned
            .filter(|accept| self.obstacle.is_none() || !self.is_seen_to(accept))
            .flat_map(|accept| self.exceptions(accept))
            .collect();
        let obstacle = self.obstacle.clone();
        (!wanted.is_empty()).then_some(Accepted { accepts: wanted, in_place: true, obstacle })
    }

    /// One for every denial here of what `accept` lets pass.
    fn exceptions(&self, accept: &Accept) -> Vec<Exception> {
        let all = (*self.ends.of(Some(accept)) != End::Passes).then(Vec::new);
        let parts = self.parts.iter().filter(|part| part.may_concern(accept)).map(|part| part.of.clone());
        all.into_iter().chain(parts).map(|of| Exception { accept: accept.clone(), of }).collect()
    }

    /// True when a rule of the table's owner concerns these packets and accepts them or leads them elsewhere.
    fn is_seen_to(&self, accept: &Accept) -> bool {
        self.mentioned.iter().any(|condition| match (accept, condition) {
            (Accept::From(network), Match::Saddr(netstate::nft::Op::Is, wider))
            | (Accept::To(network), Match::Daddr(netstate::nft::Op::Is, wider)) => wider.covers(network),
            (accept, condition) => accept.condition() == *condition,
        })
    }

    fn denying(&self) -> Option<Denying> {
        let by = match self.ends.iter().find(|end| **end != End::Passes) {
            Some(End::DeniedIn(spot)) => spot.path.last().map_or(Denier::Rule, |chain| Denier::Chain(chain.clone())),
            None if self.parts.is_empty() => return None,
            _ if self.key != self.base => Denier::Chain(self.key.chain.clone()),
            Some(End::Denied(at)) if self.policy == Policy::Drop && *at == self.lines.len() => Denier::Policy,
            Some(_) => Denier::LastRule,
            None => Denier::Rule,
        };
        Some(Denying { key: self.base.clone(), by, obstructed: self.obstacle.is_some() })
    }

    fn observed(&self) -> Option<Observed<Accepted>> {
        let (accepts, in_place) = judge::accepted(&self.lines, &self.ends, &self.parts);
        self.has_ours()
            .then_some(Observed { value: Accepted { accepts, in_place, obstacle: None }, owner: Owner::Ours })
    }
}

impl Target for Accepts {
    type Key = ChainKey;
    type Value = Accepted;
    type Error = KernelError;

    fn rival(&self, key: &ChainKey) -> Option<String> {
        self.writers.last(&Subject::Table(key.table.clone()))
    }

    fn observe(&mut self) -> Result<Rows<ChainKey, Accepted>, KernelError> {
        let chains = match self.surveyed.take() {
            Some(chains) => chains,
            None => self.survey()?,
        };
        Ok(chains.iter().filter_map(|chain| Some((chain.key.clone(), chain.observed()?))).collect())
    }

    fn apply(&mut self, steps: &[Step<ChainKey, Accepted>]) -> Vec<Result<(), KernelError>> {
        let mut one = |step: &Step<ChainKey, Accepted>| {
            let (op, key, cause) = match step {
                Step::Create(key, Accepted { obstacle: Some(reason), .. })
                | Step::Change(key, _, Accepted { obstacle: Some(reason), .. }) => {
                    ("accept forwarded packets in", key, Err(Cause::Obstacle(reason.clone())))
                }
                Step::Create(key, value) | Step::Change(key, _, value) => {
                    ("accept forwarded packets in", key, self.settle(key, &value.accepts))
                }
                Step::Remove(key, _) => ("take accept rules back from", key, self.settle(key, &BTreeSet::new())),
            };
            cause.map_err(|cause| KernelError::new(op, format!("nft chain {key}"), cause))
        };
        steps.iter().map(&mut one).collect()
    }
}

/// Rows for every chain that denies by default.
fn rows(chains: &[Chain], accepts: &BTreeSet<Accept>) -> BTreeMap<ChainKey, Accepted> {
    chains.iter().filter_map(|chain| Some((chain.key.clone(), chain.desired(accepts)?))).collect()
}

#[cfg(target_endian = "little")]
#[cfg(test)]
mod tests;
