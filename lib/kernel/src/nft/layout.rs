//! From one static part of a table to another, in messages of one transaction.
//!
//! Invariant: only what differs is touched. A chain whose rules differ is emptied and filled again; a set that is
//! declared the same keeps its elements; a set that is declared otherwise is made anew, and with it the rules of the
//! chains that look into it, because the kernel binds them to the set and not to its name.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netstate::nft::{
    BaseChain, Chain, ChainKey, Destination, Match, Name, Policy, Rule, Set, SetKey, SetKind, Statement, Table,
    TableKey, Type, Verdict,
};

use super::compile::{self, Unwritable};
use super::listing::fold;
use super::wire::{comment_bytes, kind, message, put_number};
use super::{chain, counter, element, flowtable, rule, set, table, userdata};
use crate::attribute::Writer;
use crate::socket::Message;

/// What turns a table into another one.
#[derive(Debug)]
pub(super) struct Change {
    /// The messages, in order.
    pub(super) messages: Vec<Message>,
    /// Sets that are made anew although their name stays: what was in them is gone.
    pub(super) remade: BTreeSet<Name>,
}

/// The change from `have`, `None` when the table does not exist, to `want`.
pub(super) fn change(key: &TableKey, have: Option<&Table>, want: &Table) -> Result<Change, Unwritable> {
    let empty = Table::default();
    let plan = Plan { key, have: have.unwrap_or(&empty), want };
    let mut messages = Vec::new();
    if have.is_none_or(|have| have.dormant != want.dormant) {
        messages.push(plan.about(kind::NEWTABLE, NLM_F_CREATE, |body| {
            put_number(body, table::FLAGS, if want.dormant { table::DORMANT } else { 0 });
        }));
    }
    let stale = plan.stale();
    let refill = plan.refill(&stale);
    plan.withdraw(&stale, &refill, &mut messages);
    plan.declare(&stale, &mut messages)?;
    for (name, chain) in &want.chains {
        if refill.contains(name) || stale.chains.contains(name) || !plan.have.chains.contains_key(name) {
            plan.fill(name, chain, &mut messages)?;
        }
    }
    let remade = stale.sets.into_iter().filter(|name| want.sets.contains_key(name)).collect();
    Ok(Change { messages, remade })
}

/// True when `chain` names a set, chain or flowtable that goes with the change from `have` to `want`, and none takes its place.
pub(super) fn names_what_goes(chain: &Chain, have: &Table, want: &Table) -> bool {
    let gone = Stale {
        sets: have.sets.keys().filter(|name| !name.is_of_row() && !want.sets.contains_key(*name)).cloned().collect(),
        chains: have
            .chains
            .keys()
            .filter(|name| !name.is_of_row() && !want.chains.contains_key(*name))
            .cloned()
            .collect(),
        flowtables: have.flowtables.keys().filter(|name| !want.flowtables.contains_key(*name)).cloned().collect(),
    };
    chain.rules.iter().any(|rule| gone.is_named_by(rule))
}

/// What declares a set that is a row of its own, in place of one that is declared otherwise; no rule may name that any more.
pub(super) fn set_change(key: &SetKey, want: &Set, is_there: bool) -> Result<Vec<Message>, Unwritable> {
    if !key.set.is_of_row() {
        return Err(format!("set {}: a row is a set with a / in its name", key.set));
    }
    let plan = Plan { key: &key.table, have: &Table::default(), want: &Table::default() };
    let removal = is_there.then(|| plan.delete_set(&key.set));
    // Nobody asks for it by its number.
    Ok(removal.into_iter().chain([plan.set(&key.set, want, 0)?]).collect())
}

/// Removes a set with its elements; the kernel refuses while a rule names it.
pub(super) fn set_removal(key: &SetKey) -> Message {
    let plan = Plan { key: &key.table, have: &Table::default(), want: &Table::default() };
    plan.delete_set(&key.set)
}

/// What makes a chain that is a row of its own exist without rules, and what then makes its rules be those of `want`; the chain
/// may be there with others.
pub(super) fn chain_change(key: &ChainKey, want: &Chain) -> Result<(Vec<Message>, Vec<Message>), Unwritable> {
    if want.base.is_some() || !key.chain.is_of_row() {
        return Err(format!("chain {}: a row is a chain that is jumped to, with a / in its name", key.chain));
    }
    let plan = Plan { key: &key.table, have: &Table::default(), want: &Table::default() };
    let mut rules = Vec::new();
    plan.fill(&key.chain, want, &mut rules)?;
    Ok((vec![plan.chain(&key.chain, want), plan.flush(&key.chain)], rules))
}

/// Removes a chain with its rules; the kernel refuses while something names it.
pub(super) fn chain_removal(key: &ChainKey) -> Message {
    let plan = Plan { key: &key.table, have: &Table::default(), want: &Table::default() };
    plan.delete_chain(&key.chain)
}

/// Removes the whole table.
pub(super) fn removal(key: &TableKey) -> Message {
    let plan = Plan { key, have: &Table::default(), want: &Table::default() };
    plan.about(kind::DELTABLE, 0, |_| {})
}

/// What must go: not desired, or declared otherwise.
struct Stale {
    sets: BTreeSet<Name>,
    chains: BTreeSet<Name>,
    flowtables: BTreeSet<Name>,
}

impl Stale {
    /// True when `rule` names something that goes.
    fn is_named_by(&self, rule: &Rule) -> bool {
        rule.statements.iter().any(|statement| match statement {
            Statement::Match(Match::Lookup(_, _, set))
            | Statement::Vmap(_, set)
            | Statement::Update { set, .. }
            | Statement::Dnat(Destination::Map { map: set, .. }) => self.sets.contains(set),
            Statement::Offload(flowtable) => self.flowtables.contains(flowtable),
            Statement::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => self.chains.contains(chain),
            _ => false,
        })
    }
}

struct Plan<'a> {
    key: &'a TableKey,
    have: &'a Table,
    want: &'a Table,
}

impl Plan<'_> {
    fn about(&self, kind: u16, flags: u16, fill: impl FnOnce(&mut Writer)) -> Message {
        message(kind, flags, self.key.family.number(), |body| {
            body.put_str(table::NAME, self.key.name.as_str());
            fill(body);
        })
    }

    fn stale(&self) -> Stale {
        // The policy of a chain alone can be changed in place.
        let place = |chain: &Chain| chain.base.clone().map(|base| BaseChain { policy: Policy::Accept, ..base });
        let other_place =
            |(name, chain): &(&Name, &Chain)| self.want.chains.get(*name).map(place) != Some(place(chain));
        Stale {
            sets: differing(&self.have.sets, &self.want.sets),
            chains: self.have.chains.iter().filter(other_place).map(|(name, _)| name.clone()).collect(),
            flowtables: differing(&self.have.flowtables, &self.want.flowtables),
        }
    }

    /// Chains that stay and whose rules are written anew.
    fn refill(&self, stale: &Stale) -> BTreeSet<Name> {
        let stay = self.have.chains.iter().filter(|(name, _)| !stale.chains.contains(*name));
        stay.filter(|(name, have)| {
            let same = self.want.chains.get(*name).is_some_and(|want| want.rules == have.rules);
            !same || have.rules.iter().any(|rule| stale.is_named_by(rule))
        })
        .map(|(name, _)| name.clone())
        .collect()
    }

    fn withdraw(&self, stale: &Stale, refill: &BTreeSet<Name>, messages: &mut Vec<Message>) {
        // Rules first, since they hold on to sets and chains; then sets, whose verdicts hold on to chains.
        for name in stale.chains.union(refill) {
            messages.push(self.flush(name));
        }
        for name in &stale.flowtables {
            messages.push(self.about(kind::DELFLOWTABLE, 0, |body| flowtable::put_name(body, name)));
        }
        for name in &stale.sets {
            messages.push(self.delete_set(name));
        }
        for name in &stale.chains {
            messages.push(self.delete_chain(name));
        }
    }

    /// Removes every rule of a chain.
    fn flush(&self, name: &Name) -> Message {
        self.about(kind::DELRULE, 0, |body| {
            body.put_str(rule::CHAIN, name.as_str());
        })
    }

    fn delete_set(&self, name: &Name) -> Message {
        self.about(kind::DELSET, 0, |body| {
            body.put_str(set::NAME, name.as_str());
        })
    }

    fn delete_chain(&self, name: &Name) -> Message {
        self.about(kind::DELCHAIN, 0, |body| {
            body.put_str(chain::NAME, name.as_str());
        })
    }

    /// Declares new sets and chains, and sets policies; rules come when everything that they name is there.
    fn declare(&self, stale: &Stale, messages: &mut Vec<Message>) -> Result<(), Unwritable> {
        let mut id = 0u32;
        for (name, set) in &self.want.sets {
            if stale.sets.contains(name) || !self.have.sets.contains_key(name) {
                id = id.saturating_add(1);
                messages.push(self.set(name, set, id)?);
            }
        }
        for (name, value) in &self.want.flowtables {
            if stale.flowtables.contains(name) || !self.have.flowtables.contains_key(name) {
                messages.push(self.about(kind::NEWFLOWTABLE, NLM_F_CREATE, |body| flowtable::put(body, name, value)));
            }
        }
        for (name, chain) in &self.want.chains {
            let policy =
                |table: &Table| table.chains.get(name).and_then(|chain| chain.base.as_ref()).map(|base| base.policy);
            let new = stale.chains.contains(name) || !self.have.chains.contains_key(name);
            if new || policy(self.have) != policy(self.want) {
                messages.push(self.chain(name, chain));
            }
        }
        Ok(())
    }

    fn set(&self, name: &Name, set: &Set, id: u32) -> Result<Message, Unwritable> {
        let known = |types: &[Type]| !types.is_empty() && !types.iter().any(|ty| matches!(ty, Type::Unknown(_)));
        let sizes = |types: &[Type]| u32::try_from(element::size(types)).unwrap_or(u32::MAX);
        let data: &[Type] = if let SetKind::Map(data) = &set.kind { data } else { &[] };
        let writable = known(&set.key) && (known(data) || !matches!(set.kind, SetKind::Map(_)));
        // Five types of six bits; NFT_DATA_VALUE_MAXLEN.
        if !writable || set.key.len().max(data.len()) > 5 || sizes(&set.key).max(sizes(data)) > 64 {
            return Err(format!(
                "set {name}: keys and values are one to five known types of at most 64 bytes together"
            ));
        }
        let flags = if set.kind == SetKind::Set { 0 } else { SET_MAP };
        Ok(self.about(kind::NEWSET, NLM_F_CREATE, |body| {
            body.put_str(set::NAME, name.as_str());
            put_number(body, set::ID, id);
            put_number(body, set::FLAGS, set.flags.0 | flags);
            put_number(body, set::KEY_TYPE, fold(&set.key));
            put_number(body, set::KEY_LEN, sizes(&set.key));
            match &set.kind {
                SetKind::Set => {}
                SetKind::Map(data) => {
                    put_number(body, set::DATA_TYPE, fold(data));
                    put_number(body, set::DATA_LEN, sizes(data));
                }
                SetKind::VerdictMap => put_number(body, set::DATA_TYPE, DATA_VERDICT),
            }
            body.put(set::USERDATA, &userdata::of_set(&set.key, data));
            if set.counts {
                body.nest(set::EXPRESSION, |expression| counter::put(expression, None));
            }
        }))
    }

    fn chain(&self, name: &Name, chain: &Chain) -> Message {
        self.about(kind::NEWCHAIN, NLM_F_CREATE, |body| {
            body.put_str(chain::NAME, name.as_str());
            let Some(base) = &chain.base else { return };
            body.nest(chain::HOOK, |hook| {
                put_number(hook, chain::HOOK_NUMBER, base.hook.number());
                hook.put(chain::HOOK_PRIORITY, &base.priority.to_be_bytes());
                if let Some(device) = &base.device {
                    hook.put_str(chain::HOOK_DEV, device.as_str());
                }
            });
            let policy = if base.policy == Policy::Drop { chain::NF_DROP } else { chain::NF_ACCEPT };
            put_number(body, chain::POLICY, policy);
            body.put_str(chain::TYPE, base.kind.as_str());
        })
    }

    fn fill(&self, name: &Name, chain: &Chain, messages: &mut Vec<Message>) -> Result<(), Unwritable> {
        for rule in &chain.rules {
            let program = compile::rule(self.key.family, rule).map_err(|reason| format!("chain {name}: {reason}"))?;
            let flags = NLM_F_CREATE | NLM_F_APPEND;
            messages.push(self.about(kind::NEWRULE, flags, |body| {
                body.put_str(rule::CHAIN, name.as_str());
                put_rule(body, &program, rule.comment.as_deref());
            }));
        }
        Ok(())
    }
}

/// NFT_SET_MAP.
const SET_MAP: u32 = 0x8;
/// NFT_DATA_VERDICT.
const DATA_VERDICT: u32 = 0xffff_ff00;

/// Writes a rule's instructions and comment.
pub(super) fn put_rule(body: &mut Writer, program: &[super::expression::Expression], comment: Option<&str>) {
    body.nest(rule::EXPRESSIONS, |list| program.iter().for_each(|expression| expression.write(list)));
    if let Some(comment) = comment {
        body.put(rule::USERDATA, &comment_bytes(comment));
    }
}

/// What of `have` is not desired or desired otherwise.
fn differing<V: PartialEq>(have: &BTreeMap<Name, V>, want: &BTreeMap<Name, V>) -> BTreeSet<Name> {
    have.iter().filter(|(name, value)| want.get(*name) != Some(*value)).map(|(name, _)| name.clone()).collect()
}

#[cfg(target_endian = "little")]
#[cfg(test)]
mod tests;
