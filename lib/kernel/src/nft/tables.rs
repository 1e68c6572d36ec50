//! `Tables`: whole tables, static parts and elements, as one kernel table under the loop.
//!
//! Invariants. What one pass changes is one transaction: when a set is declared otherwise, its new elements come with
//! it, and no packet meets an empty map. A table that is being changed is read first, so that repeating a change, or
//! carrying it out on a table that somebody flushed meanwhile, ends in the same state.

mod parts;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use netstate::nft::{Chain, ChainKey, Element, ElementKey, List, Name, Row, RowKey, Set, Table, TableKey};
use nix::sys::socket::{setsockopt, sockopt};
use reconcile::{Observed, Owner, PartsOf, Rows, Step, Target};

use self::parts::TableParts;
use super::counter::Tally;
use super::wire::check_comment;
use super::write::Work;
use super::{Nft, element, layout};
use crate::error::{Cause, KernelError, Nack};

/// Receive buffer in bytes: 20,000 refused elements are answered with as many errors.
const RECEIVE_BUFFER: usize = 16 * 1024 * 1024;

/// Our tables. Everything in them is ours.
#[derive(Debug)]
pub struct Tables {
    nft: Nft,
    keys: BTreeSet<TableKey>,
    /// The sets as the kernel held them last, for their types.
    declared: BTreeMap<TableKey, BTreeMap<Name, Set>>,
    /// The generation of the ruleset in which the tables are as they were listed or written last; none where that is not known.
    listed: Option<u32>,
    /// The generation in which a listing in parts began; none once something was written.
    begun: Option<u32>,
}

type TableStep = Step<RowKey, Row>;

impl Tables {
    /// The tables `keys`, none of which another program may use.
    #[must_use]
    pub fn new(nft: Nft, keys: impl IntoIterator<Item = TableKey>) -> Self {
        if setsockopt(&nft.socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            let _ = setsockopt(&nft.socket, sockopt::RcvBuf, &RECEIVE_BUFFER);
        }
        Self { nft, keys: keys.into_iter().collect(), declared: BTreeMap::new(), listed: None, begun: None }
    }

    /// The conversation, for what is no row.
    pub const fn nft_mut(&mut self) -> &mut Nft {
        &mut self.nft
    }

    /// Adds to `work` what makes the static part of `key` be `want`.
    fn change_table(&mut self, work: &mut Work, row: usize, key: &TableKey, want: &Table, steps: &[TableStep]) {
        let read = self.nft.steady(key, |nft| nft.table(key));
        let have = match read {
            Ok(have) => have,
            Err(error) => return work.fail(row, error.cause),
        };
        let whole = with_rows(want, have.as_ref(), key, steps);
        let mut change = match layout::change(key, have.as_ref(), &whole) {
            Ok(change) => change,
            Err(reason) => return work.fail(row, unwritable(reason)),
        };
        let dynamic =
            |name: &&Name| have.as_ref().is_some_and(|have| have.sets.get(*name).is_some_and(Set::is_dynamic));
        for name in change.remade.iter().filter(|name| !dynamic(name)) {
            let (Some(before), Some(after)) = (have.as_ref().and_then(|have| have.sets.get(name)), want.sets.get(name))
            else {
                continue;
            };
            match self.nft.elements(key, name, before) {
                Ok(elements) => {
                    let stay = |(key, element): &&(ElementKey, Element)| {
                        element::check(after, key, element).is_ok() && !steps.iter().any(|step| concerns(step, key))
                    };
                    for (key, kept) in elements.iter().filter(stay) {
                        let item = element::item(key, Some(kept));
                        change.messages.push(element::add_message(key, &item));
                    }
                }
                Err(error) => return work.fail(row, error.cause),
            }
        }
        self.declared.insert(key.clone(), want.sets.clone());
        work.layout(row, change.messages);
    }

    /// Adds an element, which has counted `tally` already.
    fn add(&self, work: &mut Work, row: usize, (key, value): (&ElementKey, &Element), tally: Option<Tally>) {
        // The kernel knows of sets that we have not seen.
        let unseen = || check_comment(value.comment.as_deref());
        match self.set(key).map_or_else(unseen, |set| element::check(set, key, value)) {
            Err(reason) => work.fail(row, unwritable(reason)),
            Ok(()) => work.add(row, key, element::counting_item(key, Some(value), tally)),
        }
    }

    /// The set that an element or list is in, as far as it was seen.
    fn set(&self, key: &ElementKey) -> Option<&Set> {
        self.declared_set(&key.table, &key.set)
    }

    /// How a set is declared, as far as it was seen.
    pub(super) fn declared_set(&self, table: &TableKey, set: &Name) -> Option<&Set> {
        self.declared.get(table)?.get(set)
    }

    /// Adds to `work` what makes the list under `key` be `want` where it is `have`: only indexes at which they differ.
    fn change_list(&self, work: &mut Work, row: usize, key: &ElementKey, (have, want): (&List, &List)) {
        if want.is_strange() {
            return work.fail(row, unwritable("a list has values from index 0 on".to_owned()));
        }
        if let Some(Err(reason)) = self.set(key).map(|set| element::check_list(set, key, want)) {
            return work.fail(row, unwritable(reason));
        }
        let place = element::place_bytes(key);
        let stays = |index: &u32| have.value(*index).is_some() && have.value(*index) == want.value(*index);
        for index in have.indexes().filter(|index| !stays(index)) {
            work.delete_item(row, key, element::listed_item(&place, index, None));
        }
        for index in want.indexes().filter(|index| !stays(index)) {
            work.add(row, key, element::listed_item(&place, index, want.value(index)));
        }
    }

    fn prepare(&mut self, steps: &[TableStep], rows: &[usize], work: &mut Work) {
        // Static parts first: the types that elements are checked against come with them.
        for (row, step) in chosen(steps, rows) {
            match step {
                Step::Create(RowKey::Table(key), Row::Table(want))
                | Step::Change(RowKey::Table(key), _, Row::Table(want)) => {
                    self.change_table(work, row, key, want, steps);
                }
                Step::Remove(RowKey::Table(key), _) => {
                    self.declared.remove(key);
                    work.layout(row, vec![layout::removal(key)]);
                }
                _ => {}
            }
        }
        prepare_chains_and_sets(steps, rows, work);
        let tallies = self.counted_before(steps, rows);
        for (row, step) in chosen(steps, rows) {
            match step {
                Step::Create(RowKey::Element(key), Row::Element(value)) => self.add(work, row, (key, value), None),
                Step::Change(RowKey::Element(key), _, Row::Element(value)) => {
                    work.delete(row, key);
                    self.add(work, row, (key, value), tallies.get(&row).copied());
                }
                Step::Remove(RowKey::Element(key), _) => work.delete(row, key),
                Step::Create(RowKey::Element(_), _) | Step::Change(RowKey::Element(_), _, _) => {
                    work.fail(row, unwritable("the row is no element".to_owned()));
                }
                step => self.prepare_list(work, row, step),
            }
        }
    }

    fn prepare_list(&self, work: &mut Work, row: usize, step: &TableStep) {
        let none = List::default();
        match step {
            Step::Create(RowKey::List(key), Row::List(want)) => self.change_list(work, row, key, (&none, want)),
            Step::Change(RowKey::List(key), Row::List(have), Row::List(want)) => {
                self.change_list(work, row, key, (have, want));
            }
            Step::Remove(RowKey::List(key), Row::List(have)) => self.change_list(work, row, key, (have, &none)),
            step if matches!(step.key(), RowKey::List(_)) => {
                work.fail(row, unwritable("the row is no list".to_owned()))
            }
            _ => {}
        }
    }
}

/// `want` with the chains and sets that are rows of their own and that the table has: they stay, and chains that name something
/// which is made anew are filled again. A chain that a step is about is filled by that step; one that names what goes for good is
/// left empty until it goes too.
fn with_rows(want: &Table, have: Option<&Table>, key: &TableKey, steps: &[TableStep]) -> Table {
    let mut whole = want.clone();
    let Some(have) = have else { return whole };
    let mut there = have.clone();
    whole.sets.extend(there.take_sets_of_rows());
    let mut chains = there.take_chains_of_rows();
    for chain in chains.values_mut().filter(|chain| layout::names_what_goes(chain, have, want)) {
        *chain = Chain::default();
    }
    for step in steps {
        if let RowKey::Chain(ChainKey { table, chain }) = step.key()
            && table == key
            && let Some(found) = chains.get_mut(chain)
        {
            *found = Chain::default();
        }
    }
    whole.chains.extend(chains);
    whole
}

/// Adds to `work` what the chains and sets that are rows of their own need: all of them exist before a chain is filled, since
/// rules name them; chains go in the opposite order of their names, and sets behind them. A chain must sort behind those that it
/// names.
fn prepare_chains_and_sets(steps: &[TableStep], rows: &[usize], work: &mut Work) {
    let (mut sets, mut fills, mut removals, mut last) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (row, step) in chosen(steps, rows) {
        match step {
            Step::Create(RowKey::Set(key), Row::Set(want)) => sets.push((row, layout::set_change(key, want, false))),
            Step::Change(RowKey::Set(key), _, Row::Set(want)) => sets.push((row, layout::set_change(key, want, true))),
            Step::Remove(RowKey::Set(key), _) => last.push((row, vec![layout::set_removal(key)])),
            Step::Create(RowKey::Set(_), _) | Step::Change(RowKey::Set(_), _, _) => {
                work.fail(row, unwritable("the row is no set".to_owned()));
            }
            Step::Create(RowKey::Chain(key), Row::Chain(want))
            | Step::Change(RowKey::Chain(key), _, Row::Chain(want)) => match layout::chain_change(key, want) {
                Ok((declare, rules)) => {
                    work.layout(row, declare);
                    fills.push((row, rules));
                }
                Err(reason) => work.fail(row, unwritable(reason)),
            },
            Step::Remove(RowKey::Chain(key), _) => removals.push((row, vec![layout::chain_removal(key)])),
            Step::Create(RowKey::Chain(_), _) | Step::Change(RowKey::Chain(_), _, _) => {
                work.fail(row, unwritable("the row is no chain".to_owned()));
            }
            _ => {}
        }
    }
    for (row, messages) in sets {
        match messages {
            Ok(messages) => work.layout(row, messages),
            Err(reason) => work.fail(row, unwritable(reason)),
        }
    }
    let removals = removals.into_iter().rev().chain(last);
    fills.into_iter().chain(removals).for_each(|(row, messages)| work.layout(row, messages));
}

fn chosen<'a>(steps: &'a [TableStep], rows: &'a [usize]) -> impl Iterator<Item = (usize, &'a TableStep)> {
    rows.iter().filter_map(|row| steps.get(*row).map(|step| (*row, step)))
}

fn concerns(step: &TableStep, key: &ElementKey) -> bool {
    match step.key() {
        RowKey::Element(of) => of == key,
        RowKey::List(of) => key.listed().is_some_and(|(place, _)| place == *of),
        RowKey::Table(_) | RowKey::Set(_) | RowKey::Chain(_) => false,
    }
}

/// A row that the kernel was not even asked about.
pub(super) fn unwritable(reason: String) -> Cause {
    Nack { errno: libc::EINVAL, text: Some(reason) }.into()
}

/// Rows whose table goes as a whole in the same pass: they go with it.
fn gone_with_table(steps: &[TableStep]) -> BTreeMap<usize, usize> {
    let removed: BTreeMap<&TableKey, usize> = steps
        .iter()
        .enumerate()
        .filter_map(|(row, step)| match step {
            Step::Remove(RowKey::Table(key), _) => Some((key, row)),
            _ => None,
        })
        .collect();
    let with = |(row, step): (usize, &TableStep)| match step {
        Step::Remove(RowKey::Element(key) | RowKey::List(key), _) => removed.get(&key.table).map(|table| (row, *table)),
        Step::Remove(RowKey::Chain(key), _) => removed.get(&key.table).map(|table| (row, *table)),
        Step::Remove(RowKey::Set(key), _) => removed.get(&key.table).map(|table| (row, *table)),
        _ => None,
    };
    steps.iter().enumerate().filter_map(with).collect()
}

impl Target for Tables {
    type Key = RowKey;
    type Value = Row;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<RowKey, Row>, KernelError> {
        let mut rows = Vec::new();
        let before = self.nft.generation()?;
        self.declared.clear();
        for key in &self.keys {
            let Some((sets, found)) = self.nft.rows(key)? else { continue };
            self.declared.insert(key.clone(), sets);
            rows.extend(found.into_iter().map(|(key, value)| (key, Observed { value, owner: Owner::Ours })));
        }
        self.listed = Some(self.nft.generation()?).filter(|after| *after == before);
        // Built from all of them at once, the tree has full nodes.
        Ok(rows.into_iter().collect())
    }

    fn parts(&mut self) -> Result<Option<PartsOf<Self>>, KernelError> {
        self.begun = Some(self.nft.generation()?);
        Ok(Some(Box::new(TableParts::begin(self.keys.iter().cloned())?)))
    }

    /// Whatever was changed since it began made another generation, which the next audit finds.
    fn confirm(&mut self) {
        self.listed = self.begun.take();
    }

    /// Every change of any table, by whomever, makes another generation.
    fn is_unchanged(&mut self) -> bool {
        self.listed.is_some() && self.nft.generation().ok() == self.listed
    }

    fn apply(&mut self, steps: &[TableStep]) -> Vec<Result<(), KernelError>> {
        let before = self.listed.take();
        self.begun = None;
        let with_table = gone_with_table(steps);
        let rows: Vec<usize> = (0..steps.len()).filter(|row| !with_table.contains_key(row)).collect();
        let mut work = Work::default();
        self.prepare(steps, &rows, &mut work);
        let (mut failed, commits) = work.run(&mut self.nft.socket);
        if failed.is_empty() {
            self.listed = before.and_then(|before| self.generation_behind(before, commits));
        }
        self.replace_occupied(steps, &mut failed);
        let reasons: BTreeMap<usize, String> =
            with_table.values().filter_map(|table| Some((*table, failed.get(table)?.to_string()))).collect();
        let answer = |(row, step): (usize, &TableStep)| match failed.remove(&row) {
            Some(cause) => Err(KernelError::new(verb(step), format!("nft {}", step.key()), cause)),
            None => match with_table.get(&row).and_then(|table| reasons.get(table)) {
                Some(reason) => {
                    let cause = Cause::Unexpected(format!("its table was not removed: {reason}"));
                    Err(KernelError::new(verb(step), format!("nft {}", step.key()), cause))
                }
                None => Ok(()),
            },
        };
        steps.iter().enumerate().map(answer).collect()
    }
}

impl Tables {
    /// Puts elements in whose keys turned out to be taken by other values, in place of these.
    fn replace_occupied(&mut self, steps: &[TableStep], failed: &mut BTreeMap<usize, Cause>) {
        let taken = |row: &usize| matches!(failed.get(row), Some(Cause::Nack(nack)) if nack.errno == libc::EEXIST);
        let mut work = Work::default();
        let mut again = Vec::new();
        for (row, step) in steps.iter().enumerate().filter(|(row, _)| taken(row)) {
            match step {
                Step::Create(RowKey::Element(key), Row::Element(value)) => {
                    work.delete(row, key);
                    work.add(row, key, element::item(key, Some(value)));
                }
                Step::Create(RowKey::List(key), Row::List(want))
                | Step::Change(RowKey::List(key), _, Row::List(want)) => {
                    let place = element::place_bytes(key);
                    for index in want.indexes() {
                        work.delete_item(row, key, element::listed_item(&place, index, None));
                        work.add(row, key, element::listed_item(&place, index, want.value(index)));
                    }
                }
                _ => continue,
            }
            again.push(row);
        }
        if again.is_empty() {
            return;
        }
        again.iter().for_each(|row| drop(failed.remove(row)));
        failed.extend(work.run(&mut self.nft.socket).0);
    }

    /// The generation of the ruleset, when nobody but `commits` transactions of ours has made another one of `before`.
    fn generation_behind(&mut self, before: u32, commits: u32) -> Option<u32> {
        self.nft.generation().ok().filter(|now| *now == before.wrapping_add(commits))
    }
}

const fn verb(step: &TableStep) -> &'static str {
    match step {
        Step::Create(..) => "create",
        Step::Change(..) => "change",
        Step::Remove(..) => "remove",
    }
}
