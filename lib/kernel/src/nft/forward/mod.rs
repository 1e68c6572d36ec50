//! Foreign chains of the forward hook that deny what none of their rules accepts, as Docker leaves `ip filter FORWARD`.
//!
//! An accept in our own chain does not help there: every base chain of a hook is passed, and one drop is the end. So
//! accept rules are put at the end of the foreign chain, marked as ours by their comment.
//!
//! Invariants. An accept stands behind every rule that may deny, and before nothing but the denial of everything: a
//! denial of the chain's owner still denies. Rules with our marker are ours in either form, the nft tool's comment or
//! the match that `iptables-save | iptables-restore` makes of it, and are taken back from every chain of the hook that
//! needs none. Nothing else in a foreign table is touched. Each program has a marker of its own.
//!
//! A chain that denies before its end, as firewalld's zones do, is a row that fails and says so. iptables-legacy is out
//! of sight.

mod accept;
mod judge;
mod line;
mod stage;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netstate::nft::{ChainKind, Family, Hook, Match, Name, Policy, TableKey};
use reconcile::{Observed, Owner, Rows, Step, Target};

use self::judge::End;
use self::line::{Effect, Line};
use super::listing::base_chain;
use super::tables::unwritable;
use super::transaction::{Refusal, commit};
use super::wire::{kind, message, name, payload};
use super::{Nft, chain, rule, table};
use crate::error::{Cause, KernelError, SocketError};
use crate::socket::Message;

pub use self::accept::Accept;
pub use self::stage::Forward;

/// Attempts on a ruleset that others change at the same time.
const TRIES: u32 = 30;

/// NFTA_RULE_POSITION.
const POSITION: u16 = 6;

/// A base chain of another program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainKey {
    /// Its table.
    pub table: TableKey,
    /// Its name.
    pub chain: Name,
}

impl fmt::Display for ChainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.table, self.chain)
    }
}

/// What our rules in a chain accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Packets that pass.
    pub accepts: BTreeSet<Accept>,
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
    /// Denied by the chain's policy, not by a rule.
    pub by_policy: bool,
    /// Where it denies, when that is another chain and no place in this one is behind it.
    pub within: Option<Name>,
}

impl fmt::Display for Denying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "foreign chain {} drops forwarded packets ", self.key)?;
        match &self.within {
            Some(name) => write!(f, "in its chain {name}"),
            None if self.by_policy => f.write_str("by policy"),
            None => f.write_str("by its last rule"),
        }
    }
}

/// Our accept rules in foreign chains of the forward hook.
#[derive(Debug)]
pub struct Accepts {
    nft: Nft,
    own: BTreeSet<TableKey>,
    marker: Cow<'static, str>,
    /// Read, and not yet listed from.
    surveyed: Option<Vec<Chain>>,
}

/// A foreign base chain with its rules.
#[derive(Debug)]
struct Chain {
    key: ChainKey,
    policy: Policy,
    lines: Vec<Line>,
    end: End,
    /// Every condition of the table that lets packets go on, when the chain denies within another one.
    mentioned: Vec<Match>,
}

impl Accepts {
    /// Rules that say `marker`, in every table but `own`.
    #[must_use]
    pub fn new(nft: Nft, own: BTreeSet<TableKey>, marker: impl Into<Cow<'static, str>>) -> Self {
        Self { nft, own, marker: marker.into(), surveyed: None }
    }

    /// Every foreign base chain of the hook, all of one generation of the ruleset.
    fn survey(&mut self) -> Result<Vec<Chain>, KernelError> {
        let mut before = self.nft.generation()?;
        for _ in 0..TRIES {
            let found = self.read();
            let after = self.nft.generation()?;
            if after == before {
                return found;
            }
            before = after;
        }
        Err(KernelError::new("list", "foreign nft chains", SocketError::Interrupted(TRIES)))
    }

    fn read(&mut self) -> Result<Vec<Chain>, KernelError> {
        let frames = self.nft.list("list chains of", "nftables", &message(kind::GETCHAIN, 0, 0, |_| {}))?;
        let mut chains = Vec::new();
        for (number, attributes) in frames.iter().filter_map(|frame| payload(frame, kind::NEWCHAIN)) {
            let Some((key, policy)) = forward_chain(number, attributes) else { continue };
            if !self.own.contains(&key.table) {
                chains.push(self.chain(key, policy)?);
            }
        }
        Ok(chains)
    }

    fn chain(&mut self, key: ChainKey, policy: Policy) -> Result<Chain, KernelError> {
        let lines = self.lines(&key.table, Some(&key.chain))?;
        let end = judge::end(policy, &lines, &mut |name| self.lines(&key.table, Some(name)))?;
        let mentioned = match end {
            End::DeniedIn(_) => self.mentioned(&key.table)?,
            _ => Vec::new(),
        };
        Ok(Chain { key, policy, lines, end, mentioned })
    }

    /// Rules of a chain, or of all chains of a table.
    fn lines(&mut self, table: &TableKey, chain: Option<&Name>) -> Result<Vec<Line>, KernelError> {
        let request = message(kind::GETRULE, 0, table.family.number(), |body| {
            body.put_str(table::NAME, table.name.as_str());
            if let Some(chain) = chain {
                body.put_str(rule::CHAIN, chain.as_str());
            }
        });
        let frames = self.nft.list("list rules of", format!("nft table {table}"), &request)?;
        let read = |(family, attributes): (u8, &[u8])| {
            let same = family == table.family.number() && name(attributes, table::NAME)? == table.name;
            let line = Line::read(table.family, attributes, &self.marker)?;
            (same && chain.is_none_or(|chain| line.chain == *chain)).then_some(line)
        };
        Ok(frames.iter().filter_map(|frame| payload(frame, kind::NEWRULE)).filter_map(read).collect())
    }

    /// Conditions of rules that accept or lead elsewhere.
    fn mentioned(&mut self, table: &TableKey) -> Result<Vec<Match>, KernelError> {
        let lines = self.lines(table, None)?;
        let leads_on = |line: &Line| matches!(line.effect, Effect::Accept | Effect::Jump(_) | Effect::Goto(_));
        Ok(lines.into_iter().filter(leads_on).flat_map(|line| line.conditions).collect())
    }

    /// Makes a chain's rules of ours accept exactly `wanted`.
    fn settle(&mut self, key: &ChainKey, wanted: &BTreeSet<Accept>) -> Result<(), Cause> {
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

/// A chain that packets enter at the forward hook, with its policy.
fn forward_chain(family: u8, attributes: &[u8]) -> Option<(ChainKey, Policy)> {
    let base = base_chain(attributes)?;
    let family = Family::from_number(family).filter(|family| *family != Family::Bridge)?;
    let table = TableKey { family, name: name(attributes, table::NAME)? };
    let key = ChainKey { table, chain: name(attributes, chain::NAME)? };
    (base.kind == ChainKind::Filter && base.hook == Hook::Forward).then_some((key, base.policy))
}

/// What takes our rules out of a chain and puts those for `wanted` where they belong.
fn plan(chain: &Chain, wanted: &BTreeSet<Accept>, marker: &str) -> Result<Vec<Message>, Cause> {
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
    let End::Denied(denied) = chain.end else { return Ok(messages) };
    let before = chain.lines.get(judge::place(&chain.lines, denied));
    for accept in wanted {
        let mut addition = about(kind::NEWRULE, NLM_F_CREATE | if before.is_none() { NLM_F_APPEND } else { 0 });
        let mut written = Ok(());
        crate::attribute::append(&mut addition.body, |body| {
            if let Some(line) = before {
                body.put(POSITION, &line.handle);
            }
            written = accept.write(body, &key.table, marker);
        });
        written.map_err(unwritable)?;
        messages.push(addition);
    }
    Ok(messages)
}

impl Chain {
    /// The row that makes `accepts` pass, if the chain denies any of it by default.
    fn desired(&self, accepts: &BTreeSet<Accept>) -> Option<Accepted> {
        let concerned = || accepts.iter().filter(|accept| accept.concerns(self.key.table.family));
        let wanted: BTreeSet<Accept> = match &self.end {
            End::Passes => return None,
            End::Denied(_) => concerned().cloned().collect(),
            End::DeniedIn(_) => concerned().filter(|accept| !self.is_seen_to(accept)).cloned().collect(),
        };
        let obstacle = match &self.end {
            End::DeniedIn(name) => Some(format!(
                "it is denied at the end of chain {name}, and no place in {} is behind all denials: accept it there, \
                 in firewalld by adding the network to a zone that forwards (--zone=trusted --add-source)",
                self.key.chain
            )),
            _ => None,
        };
        (!wanted.is_empty()).then_some(Accepted { accepts: wanted, in_place: true, obstacle })
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
        let (at, within) = match &self.end {
            End::Passes => return None,
            End::Denied(at) => (Some(*at), None),
            End::DeniedIn(name) => (None, Some(name.clone())),
        };
        let by_policy = self.policy == Policy::Drop && at == Some(self.lines.len());
        Some(Denying { key: self.key.clone(), by_policy, within })
    }

    fn observed(&self) -> Option<Observed<Accepted>> {
        let (accepts, in_place) = judge::accepted(&self.lines, &self.end);
        let ours = self.lines.iter().any(|line| line.ours);
        ours.then_some(Observed { value: Accepted { accepts, in_place, obstacle: None }, owner: Owner::Ours })
    }
}

impl Target for Accepts {
    type Key = ChainKey;
    type Value = Accepted;
    type Error = KernelError;

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
