//! Foreign chains that drop forwarded packets by policy, as Docker leaves `ip filter FORWARD`.
//!
//! An accept in our own chain does not help there: every base chain of a hook is passed, and one drop is the end. So an
//! accept rule for our networks is put at the head of the foreign chain, marked as ours by its comment. Invariants.
//! Nothing else in a foreign table is touched; only rules with our comment are ever removed. It works on chains of
//! iptables-nft as well, whose rules are the same kind; iptables-legacy is out of its sight.

use std::collections::BTreeSet;

use netlink_packet_core::NLM_F_CREATE;
use netstate::Prefix;
use netstate::nft::{ChainKind, Family, Hook, Match, Name, Op, Policy, Rule, Statement, TableKey, Verdict};

use super::expression::Expression;
use super::layout::put_rule;
use super::listing::base_chain;
use super::transaction::{Refusal, commit};
use super::wire::{comment, kind, message, name, payload};
use super::{Nft, chain, compile, recognise, rule, table};
use crate::attribute;
use crate::error::{Cause, KernelError};
use crate::socket::Message;

/// Attempts on a ruleset that others change at the same time.
const TRIES: u32 = 30;

/// A foreign chain that drops what is forwarded and not accepted in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DropChain {
    /// Its table.
    pub table: TableKey,
    /// Its name.
    pub chain: Name,
    /// Networks whose packets, to and from, our rules in it accept.
    pub accepted: BTreeSet<Prefix>,
}

/// A rule of ours in a foreign chain.
#[derive(Debug)]
struct Marked {
    handle: Vec<u8>,
    /// What it accepts; `None` when somebody changed it.
    accepts: Option<Match>,
}

impl Nft {
    /// Foreign chains that drop forwarded packets by policy. `own` are our tables; `marker` is the comment of our rules.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn forward_drops(&mut self, own: &BTreeSet<TableKey>, marker: &str) -> Result<Vec<DropChain>, KernelError> {
        let mut found = Vec::new();
        for (table, chain) in self.drop_chains(own)? {
            let marked = self.marked(&table, &chain, marker)?;
            let accepted = accepted(&marked);
            found.push(DropChain { table, chain, accepted });
        }
        Ok(found)
    }

    /// Makes every foreign chain that drops forwarded packets accept those from and to `networks`, and takes back what
    /// our rules accept there and `networks` does not hold: with none, all of them. Answers the chains as they are then.
    /// Changes nothing when everything is as it shall be, so it may be called on every notification.
    ///
    /// # Errors
    /// When the kernel cannot be read or refuses; then nothing is changed.
    pub fn accept_forwarded(
        &mut self,
        own: &BTreeSet<TableKey>,
        marker: &str,
        networks: &BTreeSet<Prefix>,
    ) -> Result<Vec<DropChain>, KernelError> {
        for _ in 0..TRIES {
            let generation = self.generation()?;
            let (mut messages, mut chains) = (Vec::new(), Vec::new());
            for (table, chain) in self.drop_chains(own)? {
                let marked = self.marked(&table, &chain, marker)?;
                let accepted = plan(&table, &chain, marker, &marked, networks, &mut messages);
                chains.push(DropChain { table, chain, accepted });
            }
            match commit(&mut self.socket, &messages, Some(generation)) {
                Ok(()) => return Ok(chains),
                Err(Refusal::Whole(nack)) if nack.errno == libc::ERESTART => {}
                Err(refusal) => return Err(error(refusal.into())),
            }
        }
        Err(error(Cause::Unexpected(format!("the ruleset changed during each of {TRIES} attempts"))))
    }

    fn drop_chains(&mut self, own: &BTreeSet<TableKey>) -> Result<Vec<(TableKey, Name)>, KernelError> {
        let frames = self.list("list chains of", "nftables", &message(kind::GETCHAIN, 0, 0, |_| {}))?;
        let read = |(family, attributes): (u8, &[u8])| {
            let base = base_chain(attributes)?;
            let drops = (base.kind, base.hook, base.policy) == (ChainKind::Filter, Hook::Forward, Policy::Drop);
            let family = Family::from_number(family).filter(|family| drops && *family != Family::Bridge)?;
            let table = TableKey { family, name: name(attributes, table::NAME)? };
            (!own.contains(&table)).then_some((table, name(attributes, chain::NAME)?))
        };
        Ok(frames.iter().filter_map(|frame| payload(frame, kind::NEWCHAIN)).filter_map(read).collect())
    }

    /// Our rules in a foreign chain.
    fn marked(&mut self, table: &TableKey, chain: &Name, marker: &str) -> Result<Vec<Marked>, KernelError> {
        let request = message(kind::GETRULE, 0, table.family.number(), |body| {
            body.put_str(table::NAME, table.name.as_str()).put_str(rule::CHAIN, chain.as_str());
        });
        let frames = self.list("list rules of", format!("nft chain {table} {chain}"), &request)?;
        let here = (table.family.number(), Some(&table.name), Some(chain));
        let read = |(family, attributes): (u8, &[u8])| {
            let place = (name(attributes, table::NAME), name(attributes, rule::CHAIN));
            let same = here == (family, place.0.as_ref(), place.1.as_ref());
            let ours = comment(attribute::find(attributes, rule::USERDATA)?)? == marker;
            let handle = attribute::find(attributes, rule::HANDLE)?.to_vec();
            let list = attribute::find(attributes, rule::EXPRESSIONS).unwrap_or_default();
            let statements = recognise::rule(table.family, &Expression::list(list));
            let accepts = match statements.as_slice() {
                [Statement::Match(condition), Statement::Verdict(Verdict::Accept)] => Some(condition.clone()),
                _ => None,
            };
            (same && ours).then_some(Marked { handle, accepts })
        };
        Ok(frames.iter().filter_map(|frame| payload(frame, kind::NEWRULE)).filter_map(read).collect())
    }
}

fn error(cause: Cause) -> KernelError {
    KernelError::new("accept forwarded packets in", "foreign nft chains", cause)
}

fn both_ways(network: Prefix) -> [Match; 2] {
    [Match::Saddr(Op::Is, network), Match::Daddr(Op::Is, network)]
}

/// Networks that are accepted both ways.
fn accepted(marked: &[Marked]) -> BTreeSet<Prefix> {
    let has = |condition: &Match| marked.iter().any(|rule| rule.accepts.as_ref() == Some(condition));
    let networks = marked.iter().filter_map(|rule| match rule.accepts {
        Some(Match::Saddr(Op::Is, network)) => Some(network),
        _ => None,
    });
    networks.filter(|network| both_ways(*network).iter().all(has)).collect()
}

/// Appends what makes a chain accept exactly `networks`, as far as its family has them; answers these.
fn plan(
    table: &TableKey,
    chain: &Name,
    marker: &str,
    marked: &[Marked],
    networks: &BTreeSet<Prefix>,
    messages: &mut Vec<Message>,
) -> BTreeSet<Prefix> {
    let about = |kind, flags, fill: &dyn Fn(&mut crate::attribute::Writer)| {
        message(kind, flags, table.family.number(), |body| {
            body.put_str(table::NAME, table.name.as_str()).put_str(rule::CHAIN, chain.as_str());
            fill(body);
        })
    };
    let mut wanted = BTreeSet::new();
    let mut missing: Vec<Match> = Vec::new();
    for network in networks {
        let conditions = both_ways(*network);
        let program = compile::rule(table.family, &Rule::new().when(conditions[0].clone()));
        // A table of the other family never sees this network.
        if program.is_ok() {
            wanted.insert(*network);
            missing.extend(conditions);
        }
    }
    for rule in marked {
        match rule.accepts.as_ref().and_then(|accepts| missing.iter().position(|condition| condition == accepts)) {
            Some(index) => {
                missing.remove(index);
            }
            // Not wanted, changed, or there twice.
            None => messages.push(about(kind::DELRULE, 0, &|body| {
                body.put(rule::HANDLE, &rule.handle);
            })),
        }
    }
    for condition in missing {
        let rule = Rule::new().when(condition).then(Verdict::Accept);
        if let Ok(program) = compile::rule(table.family, &rule) {
            // Without NLM_F_APPEND a rule becomes the first.
            messages.push(about(kind::NEWRULE, NLM_F_CREATE, &|body| put_rule(body, &program, Some(marker))));
        }
    }
    wanted
}
