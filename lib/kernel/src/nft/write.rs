//! Carrying out changes of many rows in one transaction, with an answer for each row.
//!
//! A transaction is all or nothing, but one bad element must not hold up thousands of good ones. So when messages are
//! refused, the rows in them are left out and the rest is sent again; a message with many elements is halved until the
//! bad one is alone. Invariant: a row whose change takes two messages is left out of both.

mod items;

use std::borrow::Cow;
use std::collections::BTreeMap;

use netstate::nft::{ElementKey, Name, TableKey};

use super::element::{self, MESSAGE_BYTES};
use super::flowtable;
use super::transaction::{Refusal, commit};
use super::wire::{SUBSYSTEM, kind};
use crate::error::{Cause, Nack};
use crate::socket::{Message, Socket};
use items::Items;

/// What is sent for some rows. A row is known by its index among the steps.
#[derive(Debug)]
enum Unit {
    /// Messages that one row needs, all of them.
    Layout { row: usize, messages: Vec<Message> },
    /// Elements of one set in one message, each with its row.
    Elements { kind: u16, table: TableKey, set: Name, items: Items },
}

/// A transaction in the making. Elements go before the chains their verdicts hold on to are taken away, and come when
/// their sets are there.
#[derive(Debug, Default)]
pub(super) struct Work {
    deletes: Vec<Unit>,
    layouts: Vec<Unit>,
    adds: Vec<Unit>,
    /// Rows that failed.
    failed: BTreeMap<usize, Cause>,
    /// Transactions that were committed.
    commits: u32,
    /// Rows that were carried out but for a part, which is still to do.
    unfinished: BTreeMap<usize, Cause>,
}

impl Work {
    /// Adds the messages that change a table's static part.
    pub(super) fn layout(&mut self, row: usize, messages: Vec<Message>) {
        if !messages.is_empty() {
            self.layouts.push(Unit::Layout { row, messages });
        }
    }

    /// Adds an element, an item made by [`element::item`].
    pub(super) fn add(&mut self, row: usize, key: &ElementKey, item: Vec<u8>) {
        push(&mut self.adds, kind::NEWSETELEM, row, key, &item);
    }

    /// Removes an element.
    pub(super) fn delete(&mut self, row: usize, key: &ElementKey) {
        self.delete_item(row, key, element::item(key, None));
    }

    /// Removes an element of the set of `key`, an item of which only the key is read.
    pub(super) fn delete_item(&mut self, row: usize, key: &ElementKey, item: Vec<u8>) {
        push(&mut self.deletes, kind::DELSETELEM, row, key, &item);
    }

    /// Marks a row as failed; nothing of it is sent.
    pub(super) fn fail(&mut self, row: usize, cause: Cause) {
        for list in [&mut self.deletes, &mut self.layouts, &mut self.adds] {
            list.retain_mut(|unit| match unit {
                Unit::Layout { row: of, .. } => *of != row,
                Unit::Elements { items, .. } => {
                    if items.rows().any(|of| of == row) {
                        items.retain(|_, of| of != row);
                    }
                    items.len() > 0
                }
            });
        }
        self.failed.insert(row, cause);
    }

    /// Carries everything out and returns the rows that failed, and how many transactions that took.
    pub(super) fn run(mut self, socket: &mut Socket) -> (BTreeMap<usize, Cause>, u32) {
        let mut later = Vec::new();
        // Each round takes out at least one row, or makes at least one message or the whole work smaller.
        while !(self.deletes.is_empty() && self.layouts.is_empty() && self.adds.is_empty()) {
            let mut places = Vec::new();
            let sent = self.messages().inspect(|(place, _)| places.push(*place)).map(|(_, message)| message);
            match commit(socket, sent, None) {
                Ok(()) => {
                    self.commits += 1;
                    break;
                }
                Err(Refusal::Messages(refused)) => self.narrow(&refused, &places),
                Err(Refusal::TooLarge) => later.extend(self.split_behind()),
                Err(Refusal::Whole(nack)) => self.fail_all(|| nack.clone().into()),
                Err(Refusal::Socket(error)) => self.fail_all(|| Cause::Unexpected(error.to_string())),
            }
        }
        self.failed.extend(self.unfinished);
        for work in later.into_iter().rev() {
            let (failed, commits) = work.run(socket);
            self.failed.extend(failed);
            self.commits += commits;
        }
        (self.failed, self.commits)
    }

    /// How many elements go and come.
    #[cfg(test)]
    pub(super) fn counts(&self) -> [usize; 2] {
        let elements = |unit: &Unit| if let Unit::Elements { items, .. } = unit { items.len() } else { 0 };
        [&self.deletes, &self.adds].map(|units| units.iter().map(elements).sum())
    }

    /// True when a row has failed already.
    #[cfg(test)]
    pub(super) fn has_failed(&self, row: usize) -> bool {
        self.failed.contains_key(&row)
    }

    fn units(&self) -> impl Iterator<Item = &Unit> {
        self.deletes.iter().chain(&self.layouts).chain(&self.adds)
    }

    /// All messages, each with the index of its unit and its index therein. Those with elements are made as they are asked for: a hundred
    /// thousand elements stand here once.
    fn messages(&self) -> impl Iterator<Item = ((usize, usize), Cow<'_, Message>)> {
        self.units().enumerate().flat_map(|(index, unit)| {
            let (layout, elements) = match unit {
                Unit::Layout { messages, .. } => (&**messages, None),
                Unit::Elements { kind, table, set, items } => {
                    (&[][..], Some(element::list_message(*kind, table, set.as_str(), [items.bytes()])))
                }
            };
            let messages = layout.iter().map(Cow::Borrowed).chain(elements.map(Cow::Owned));
            messages.enumerate().map(move |(within, message)| ((index, within), message))
        })
    }

    /// Takes out what was refused, as exactly as it is known.
    fn narrow(&mut self, refused: &BTreeMap<usize, Nack>, places: &[(usize, usize)]) {
        let mut by_unit: BTreeMap<usize, BTreeMap<usize, Nack>> = BTreeMap::new();
        for (message, nack) in refused {
            if let Some((unit, within)) = places.get(*message) {
                by_unit.entry(*unit).or_default().insert(*within, nack.clone());
            }
        }
        let (deletes, layouts) = (self.deletes.len(), self.layouts.len());
        let all = std::mem::take(&mut self.deletes).into_iter();
        let all = all.chain(std::mem::take(&mut self.layouts)).chain(std::mem::take(&mut self.adds));
        let mut verdicts = Verdicts::default();
        let mut kept: [Vec<Unit>; 3] = Default::default();
        for (index, unit) in all.enumerate() {
            let [first, second, third] = &mut kept;
            let list = if index < deletes {
                first
            } else if index < deletes + layouts {
                second
            } else {
                third
            };
            match by_unit.get(&index) {
                None => list.push(unit),
                Some(nacks) => list.extend(verdicts.judge(unit, nacks)),
            }
        }
        [self.deletes, self.layouts, self.adds] = kept;
        self.unfinished.extend(verdicts.unfinished);
        for (row, cause) in verdicts.failed {
            self.fail(row, cause);
        }
    }

    /// Takes the latter half off, to be sent by itself. One unit that is too large by itself fails.
    fn split_behind(&mut self) -> Option<Self> {
        let count = self.units().count();
        if count < 2 {
            self.fail_all(|| Refusal::TooLarge.into());
            return None;
        }
        let first = count.div_ceil(2);
        let adds =
            self.adds.split_off(first.saturating_sub(self.deletes.len() + self.layouts.len()).min(self.adds.len()));
        let layouts = self.layouts.split_off(first.saturating_sub(self.deletes.len()).min(self.layouts.len()));
        let deletes = self.deletes.split_off(first.min(self.deletes.len()));
        Some(Self { deletes, layouts, adds, ..Self::default() })
    }

    fn fail_all(&mut self, cause: impl Fn() -> Cause) {
        let rows = |unit: &Unit| match unit {
            Unit::Layout { row, .. } => vec![*row],
            Unit::Elements { items, .. } => items.rows().collect(),
        };
        let rows: Vec<usize> = self.units().flat_map(rows).collect();
        for row in rows {
            self.failed.insert(row, cause());
        }
        (self.deletes, self.layouts, self.adds) = Default::default();
    }
}

fn push(units: &mut Vec<Unit>, kind: u16, row: usize, key: &ElementKey, item: &[u8]) {
    if let Some(Unit::Elements { table, set, items, .. }) = units.last_mut()
        && (&*table, &*set) == (&key.table, &key.set)
        && items.bytes().len().saturating_add(item.len()) <= MESSAGE_BYTES
    {
        items.push(row, item);
        return;
    }
    let (table, set, mut items) = (key.table.clone(), key.set.clone(), Items::default());
    items.push(row, item);
    units.push(Unit::Elements { kind, table, set, items });
}

/// What becomes of refused units.
#[derive(Default)]
struct Verdicts {
    failed: BTreeMap<usize, Cause>,
    unfinished: BTreeMap<usize, Cause>,
}

impl Verdicts {
    /// What is left of a unit whose messages `nacks`, by index, were refused.
    fn judge(&mut self, unit: Unit, nacks: &BTreeMap<usize, Nack>) -> Vec<Unit> {
        match unit {
            Unit::Layout { row, messages } => self.judge_layout(row, messages, nacks).into_iter().collect(),
            Unit::Elements { kind, table, set, mut items } => {
                if items.len() > 1 {
                    let behind = items.split_off();
                    let half = |items| Unit::Elements { kind, table: table.clone(), set: set.clone(), items };
                    return vec![half(items), half(behind)];
                }
                if let (Some(row), Some(nack)) = (items.rows().next(), nacks.values().next()) {
                    let absent = nack.errno == libc::ENOENT;
                    // A removed element that is not there is as it shall be.
                    if absent && kind == kind::NEWSETELEM {
                        self.failed.insert(row, Cause::Missing("its set or the chain that it names".to_owned()));
                    } else if !absent {
                        self.failed.insert(row, nack.clone().into());
                    }
                }
                Vec::new()
            }
        }
    }

    fn judge_layout(&mut self, row: usize, messages: Vec<Message>, nacks: &BTreeMap<usize, Nack>) -> Option<Unit> {
        let is = |index: &usize, kind: u16| messages.get(*index).is_some_and(|m| m.kind == SUBSYSTEM | kind);
        let without_refused = |messages: Vec<Message>| {
            let kept = messages.into_iter().enumerate().filter(|(index, _)| !nacks.contains_key(index));
            let messages: Vec<Message> = kept.map(|(_, message)| message).collect();
            (!messages.is_empty()).then_some(Unit::Layout { row, messages })
        };
        // A removed table, chain or set that is not there is as it shall be.
        let removes = |index| is(index, kind::DELTABLE) || is(index, kind::DELCHAIN) || is(index, kind::DELSET);
        if nacks.iter().all(|(index, nack)| removes(index) && nack.errno == libc::ENOENT) {
            return without_refused(messages);
        }
        // Verdicts in a map hold on to a chain; they are rows of their own, and the chain goes when they are gone.
        if nacks.iter().all(|(index, nack)| is(index, kind::DELCHAIN) && nack.errno == libc::EBUSY) {
            let text = Some("a chain is still named by verdicts in a map; it goes when they are gone".to_owned());
            self.unfinished.insert(row, Nack { errno: libc::EBUSY, text }.into());
            return without_refused(messages);
        }
        if nacks.iter().all(|(index, nack)| is(index, kind::DELSET) && nack.errno == libc::EBUSY) {
            let text = Some("a rule still names the set; it goes when that is gone".to_owned());
            self.unfinished.insert(row, Nack { errno: libc::EBUSY, text }.into());
            return without_refused(messages);
        }
        // The kernel says neither which of them it has not nor that it knows no flowtables.
        let absent = |errno| errno == libc::ENOENT || errno == libc::EOPNOTSUPP;
        if nacks.iter().any(|(index, nack)| is(index, kind::NEWFLOWTABLE) && absent(nack.errno)) {
            self.failed.insert(row, Cause::Missing(flowtable::MISSING.to_owned()));
        } else if let Some(nack) = nacks.values().next() {
            self.failed.insert(row, nack.clone().into());
        }
        None
    }
}

#[cfg(test)]
mod tests;
