//! What a set or map contains, as bytes, and whether a key of which some bytes are known is in it.

use netstate::nft::{Name, TableKey, Verdict};

use super::machine::Truth;
use crate::attribute;
use crate::error::KernelError;
use crate::nft::wire::{LIST_ELEM, be32, kind, payload, value, verdict};
use crate::nft::{Nft, element};
use crate::socket::Frame;

/// enum nft_set_elem_attributes, enum nft_set_elem_flags.
const KEY: u16 = 1;
const DATA: u16 = 2;
const FLAGS: u16 = 3;
const KEY_END: u16 = 10;
const INTERVAL_END: u32 = 1;

/// NFTA_SET_ELEM_LIST_ELEMENTS.
const LIST_ELEMENTS: u16 = 3;

/// One element.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    key: Vec<u8>,
    /// The first key behind an interval.
    ends: bool,
    verdict: Option<Verdict>,
}

/// The elements of a set or map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Elements {
    /// In the order of their keys.
    items: Vec<Item>,
    /// Something in it is not understood.
    opaque: bool,
}

impl Elements {
    /// Lists them.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(super) fn list(nft: &mut Nft, table: &TableKey, set: &Name) -> Result<Self, KernelError> {
        let request = element::list_message(kind::GETSETELEM, table, set.as_str(), []);
        Ok(Self::read(&nft.list("list elements of", format!("{table} @{set}"), &request)?))
    }

    /// From the messages of a listing.
    pub(super) fn read(frames: &[Frame]) -> Self {
        let mut elements = Self::default();
        for (_, attributes) in frames.iter().filter_map(|frame| payload(frame, kind::NEWSETELEM)) {
            let list = attribute::find(attributes, LIST_ELEMENTS).unwrap_or_default();
            attribute::iter(list).filter(|(kind, _)| *kind == LIST_ELEM).for_each(|(_, item)| elements.add(item));
        }
        // Where one interval ends, the next may start.
        elements.items.sort_by(|one, other| (&one.key, !one.ends).cmp(&(&other.key, !other.ends)));
        elements
    }

    fn add(&mut self, item: &[u8]) {
        let flags = attribute::find(item, FLAGS).and_then(be32).unwrap_or(0);
        let Some(key) = attribute::find(item, KEY).and_then(value).map(<[u8]>::to_vec) else {
            return self.opaque = true;
        };
        let data = attribute::find(item, DATA);
        let verdict = data.and_then(verdict);
        // Intervals of several fields, the element of everything else, and verdicts such as queues.
        let strange = data.is_some_and(|data| verdict.is_none() && value(data).is_none());
        self.opaque |= attribute::find(item, KEY_END).is_some() || flags & !INTERVAL_END != 0 || strange;
        self.items.push(Item { key, ends: flags & INTERVAL_END != 0, verdict });
    }

    /// Whether the key that a register starts with is in it, with the verdicts that it may lead to.
    pub(super) fn find(&self, register: &[Option<u8>]) -> (Truth, Vec<Verdict>) {
        let every = || self.items.iter().filter_map(|item| item.verdict.clone()).collect();
        if self.opaque {
            return (Truth::Perhaps, every());
        }
        let Some(length) = self.items.first().map(|item| item.key.len()) else { return (Truth::No, Vec::new()) };
        let bytes = register.get(..length).unwrap_or_default();
        let known: Option<Vec<u8>> = bytes.iter().copied().collect();
        if self.items.iter().any(|item| item.ends) {
            let Some(known) = known else { return (Truth::Perhaps, every()) };
            let found = self.items.iter().rev().find(|item| item.key <= known).filter(|item| !item.ends);
            return found.map_or((Truth::No, Vec::new()), |item| (Truth::Yes, item.verdict.iter().cloned().collect()));
        }
        let possible: Vec<&Item> =
            self.items.iter().filter(|item| Truth::equal(bytes, &item.key) != Truth::No).collect();
        let verdicts = possible.iter().filter_map(|item| item.verdict.clone()).collect();
        match (possible.is_empty(), known) {
            (true, _) => (Truth::No, Vec::new()),
            (false, Some(_)) => (Truth::Yes, verdicts),
            (false, None) => (Truth::Perhaps, verdicts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: &[u8], ends: bool, verdict: Option<Verdict>) -> Item {
        Item { key: key.to_vec(), ends, verdict }
    }

    fn known(bytes: &[u8]) -> Vec<Option<u8>> {
        bytes.iter().copied().map(Some).collect()
    }

    #[test]
    fn key_is_in_a_set_when_all_its_bytes_are() {
        let items = vec![item(&[0, 22], false, None), item(&[0x21, 0x18], false, None)];
        let set = Elements { items, opaque: false };
        assert_eq!(set.find(&known(&[0x21, 0x18, 0, 0])).0, Truth::Yes);
        assert_eq!(set.find(&known(&[0x21, 0x19])).0, Truth::No);
        assert_eq!(set.find(&[Some(0x21), None]).0, Truth::Perhaps);
        assert_eq!(set.find(&[Some(0x22), None]).0, Truth::No, "the byte that is known is in none");
        assert_eq!(Elements::default().find(&[None]).0, Truth::No, "nothing is in an empty set");
        assert_eq!(Elements { opaque: true, ..set }.find(&known(&[0, 22])).0, Truth::Perhaps);
    }

    #[test]
    fn interval_reaches_from_its_element_to_its_end() {
        let items = vec![
            item(&[10, 4, 0, 0], false, Some(Verdict::Accept)),
            item(&[10, 5, 0, 0], true, None),
            item(&[10, 9, 0, 0], false, Some(Verdict::Drop)),
            item(&[10, 10, 0, 0], true, None),
        ];
        let map = Elements { items, opaque: false };
        assert_eq!(map.find(&known(&[10, 4, 7, 22])), (Truth::Yes, vec![Verdict::Accept]));
        assert_eq!(map.find(&known(&[10, 9, 7, 22])), (Truth::Yes, vec![Verdict::Drop]));
        for outside in [[10, 3, 0, 0], [10, 5, 0, 0], [10, 10, 0, 0]] {
            assert_eq!(map.find(&known(&outside)), (Truth::No, vec![]), "{outside:?}");
        }
        assert_eq!(map.find(&[Some(10), None, None, None]).1, [Verdict::Accept, Verdict::Drop]);
    }
}
