//! What elements of sets have counted ([`Set::counts`]).
//!
//! Invariant: what is counted is no part of a row. It is read when somebody asks, and an element in place of another one goes on from
//! where that was.

use std::collections::BTreeMap;

use netstate::nft::{Datum, ElementKey, Row, RowKey, Set, SetKey};
use reconcile::Step;

use super::element::{self, MESSAGE_BYTES};
use super::listing::of_table;
use super::wire::{kind, number_64, text};
use super::{Nft, Tables};
use crate::attribute::{self, Writer};
use crate::error::KernelError;
use crate::socket::{Fault, Frame};

/// NFTA_EXPR_NAME and NFTA_EXPR_DATA.
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
/// NFTA_COUNTER_BYTES and NFTA_COUNTER_PACKETS.
const BYTES: u16 = 1;
const PACKETS: u16 = 2;
/// The expression's name.
const COUNTER: &str = "counter";

/// What a counter has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets.
    pub packets: u64,
    /// Their bytes, headers of IP among them.
    pub bytes: u64,
}

/// An element with what it has counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The element's key.
    pub key: Vec<Datum>,
    /// What it has counted.
    pub tally: Tally,
}

/// Writes a counter, which begins with `tally`, as the inside of an attribute that holds one expression.
pub(super) fn put(expression: &mut Writer, tally: Option<Tally>) {
    expression.put_str(EXPRESSION_NAME, COUNTER);
    expression.nest(EXPRESSION_DATA, |data| {
        if let Some(Tally { packets, bytes }) = tally {
            data.put(BYTES, &bytes.to_be_bytes()).put(PACKETS, &packets.to_be_bytes());
        }
    });
}

/// True for a counter.
pub(super) fn is_counter(expression: &[u8]) -> bool {
    text(expression, EXPRESSION_NAME).as_deref() == Some(COUNTER)
}

/// What a counter has counted; `None` for another expression.
pub(super) fn read(expression: &[u8]) -> Option<Tally> {
    let data = attribute::find(expression, EXPRESSION_DATA).filter(|_| is_counter(expression))?;
    Some(Tally { packets: number_64(data, PACKETS)?, bytes: number_64(data, BYTES)? })
}

impl Nft {
    /// The elements of a set, declared as `set`, that have counted anything; none when there is no such set.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn counted(&mut self, at: &SetKey, set: &Set) -> Result<Vec<Counted>, KernelError> {
        let request = element::list_message(kind::GETSETELEM, &at.table, at.set.as_str(), []);
        let read = |frame| {
            let counted = of_frame(at, set, &frame).filter(|counted| counted.tally != Tally::default());
            Some(counted.collect::<Vec<_>>())
        };
        match self.socket.list(&request, read) {
            Ok(found) => Ok(found.into_iter().flatten().collect()),
            Err(Fault::Nack(nack)) if nack.errno == libc::ENOENT => Ok(Vec::new()),
            Err(fault) => Err(KernelError::new("list counters of", at, fault)),
        }
    }
}

impl Tables {
    /// What the elements that others take the place of have counted, by step. One that is not there any more takes what the others of its
    /// message have counted along: a number is worth no failed change.
    pub(super) fn counted_before(&mut self, steps: &[Step<RowKey, Row>], rows: &[usize]) -> BTreeMap<usize, Tally> {
        let mut asked: BTreeMap<SetKey, BTreeMap<&[Datum], usize>> = BTreeMap::new();
        for row in rows {
            if let Some(Step::Change(RowKey::Element(key), _, _)) = steps.get(*row)
                && self.declared_set(&key.table, &key.set).is_some_and(|set| set.counts)
            {
                let at = SetKey { table: key.table.clone(), set: key.set.clone() };
                asked.entry(at).or_default().insert(&key.key, *row);
            }
        }
        let mut found = BTreeMap::new();
        for (at, rows) in asked {
            let item = |key: &&[Datum]| {
                element::item(&ElementKey { table: at.table.clone(), set: at.set.clone(), key: (*key).into() }, None)
            };
            let items: Vec<Vec<u8>> = rows.keys().map(item).collect();
            let Some(set) = self.declared_set(&at.table, &at.set).cloned() else { continue };
            for some in items.chunks(MESSAGE_BYTES / items.first().map_or(1, |item| item.len().max(1))) {
                let counted = self.nft_mut().counted_of(&at, &set, some).into_iter();
                found.extend(counted.filter_map(|counted| Some((*rows.get(&*counted.key)?, counted.tally))));
            }
        }
        found
    }
}

impl Nft {
    /// What these elements have counted; nothing when one of them is not there.
    fn counted_of(&mut self, at: &SetKey, set: &Set, items: &[Vec<u8>]) -> Vec<Counted> {
        let items = items.iter().map(Vec::as_slice);
        let request = element::list_message(kind::GETSETELEM, &at.table, at.set.as_str(), items);
        let frames = self.socket.request(&request).unwrap_or_default();
        frames.iter().flat_map(|frame| of_frame(at, set, frame)).collect()
    }
}

/// What elements have counted that a message of the kernel is about.
fn of_frame<'a>(at: &SetKey, set: &'a Set, frame: &'a Frame) -> impl Iterator<Item = Counted> + use<'a> {
    of_table(frame, kind::NEWSETELEM, &at.table).into_iter().flat_map(|attributes| element::counted(set, attributes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(tally: Option<Tally>) -> Vec<u8> {
        let mut writer = Writer::default();
        put(&mut writer, tally);
        writer.finish()
    }

    #[test]
    fn a_counter_is_read_as_it_was_written() {
        let tally = Tally { packets: 1 << 40, bytes: u64::MAX };
        assert_eq!(read(&written(Some(tally))), Some(tally));
        assert!(is_counter(&written(None)));
        assert_eq!(read(&written(None)), None, "a declaration has counted nothing");
    }

    #[test]
    fn another_expression_is_no_counter() {
        let mut other = Writer::default();
        other.put_str(EXPRESSION_NAME, "quota").nest(EXPRESSION_DATA, |_| {});
        let other = other.finish();
        assert_eq!((is_counter(&other), read(&other)), (false, None));
    }
}
