//! `Agreement`: the listing of virtual servers that was last compared with what is believed, so that the next comparison costs what
//! changed since, on either side.
//!
//! Invariant: a virtual server is left out of a comparison only when its entry is the one that was compared last, and nothing that is
//! believed of it or of its real servers has changed since.

use std::collections::BTreeSet;

use netstate::ipvs::VirtualServerKey;

use super::sockopt::{Entry, key};

/// So many entries that are others where they stand are taken for listings that have shifted against each other.
const FEW: usize = 256;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Agreement {
    /// The listing that was compared last, in its order; none before the first.
    listed: Option<Vec<Entry>>,
    /// Virtual servers that are to be compared whatever the next listing says of them.
    open: BTreeSet<VirtualServerKey>,
}

impl Agreement {
    /// Has everything compared the next time.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Has this virtual server compared the next time: what is believed of it changes.
    pub(super) fn reopen(&mut self, key: VirtualServerKey) {
        if self.listed.is_some() {
            self.open.insert(key);
        }
    }

    /// Takes in a listing; returns the virtual servers that are to be compared with it, `None` for all.
    pub(super) fn suspects<'a>(
        &mut self,
        listing: impl Iterator<Item = &'a Entry> + Clone,
    ) -> Option<BTreeSet<VirtualServerKey>> {
        let Some(before) = &mut self.listed else {
            // A list that grows would have room for twice as many.
            let mut listed = Vec::with_capacity(listing.clone().count());
            listed.extend(listing.copied());
            self.listed = Some(listed);
            return None;
        };
        let mut suspects = std::mem::take(&mut self.open);
        let other = |(known, listed): &(&Entry, &Entry)| known != listed;
        let (stand, found) = (before.len(), listing.clone().count());
        if stand == found && before.iter().zip(listing.clone()).filter(other).take(FEW).count() < FEW {
            // Entries that stay where they are and have other numbers of real servers: no list is made of so many for these.
            for (known, listed) in before.iter_mut().zip(listing).filter(|(known, listed)| known != listed) {
                suspects.extend([key(known.as_slice()), key(listed.as_slice())].into_iter().flatten());
                *known = *listed;
            }
        } else {
            let mut listed: Vec<Entry> = Vec::with_capacity(found);
            listed.extend(listing.copied());
            suspects.extend(changed(before, &listed));
            *before = listed;
        }
        Some(suspects)
    }

    /// Has those compared again that were found to differ.
    pub(super) fn keep_open(&mut self, differing: &BTreeSet<VirtualServerKey>) {
        self.open.clone_from(differing);
    }
}

/// The virtual servers of entries that stand in one of two listings only. The kernel lists in an order of its own, in which what did not
/// change stays.
fn changed(before: &[Entry], after: &[Entry]) -> BTreeSet<VirtualServerKey> {
    let same = |pair: &(&Entry, &Entry)| pair.0 == pair.1;
    let front = before.iter().zip(after).take_while(same).count();
    let (before, after) = (before.get(front..).unwrap_or_default(), after.get(front..).unwrap_or_default());
    let back = before.iter().rev().zip(after.iter().rev()).take_while(same).count();
    let rests = [before, after].map(|part| part.iter().take(part.len().saturating_sub(back)).collect::<BTreeSet<_>>());
    let [before, after] = &rests;
    before.symmetric_difference(after).filter_map(|entry| key(*entry)).collect()
}

#[cfg(test)]
mod tests {
    use netstate::Protocol;
    use proptest::prelude::*;

    use super::super::sockopt::entry;
    use super::*;

    fn key(port: u16) -> VirtualServerKey {
        VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, 10].into(), port }
    }

    /// Entries of virtual servers at these ports, each with something that may change.
    fn marks(entries: &[(u16, u8)]) -> Vec<Entry> {
        entries.iter().map(|(port, other)| entry(key(*port), *other)).collect()
    }

    fn keys(ports: &[u16]) -> BTreeSet<VirtualServerKey> {
        ports.iter().copied().map(key).collect()
    }

    #[test]
    fn only_what_changed_on_either_side_is_compared() {
        let listing = marks(&[(3, 0), (1, 0), (2, 0), (4, 0)]);
        let compared = |agreement: &mut Agreement, listing: &[Entry]| agreement.suspects(listing.iter());
        let mut agreement = Agreement::default();
        agreement.reopen(key(1));
        assert_eq!(compared(&mut agreement, &listing), None, "nothing was compared before");
        assert_eq!(compared(&mut agreement, &listing), Some(keys(&[])));
        agreement.reopen(key(2));
        assert_eq!(compared(&mut agreement, &listing), Some(keys(&[2])), "what was written is compared");
        assert_eq!(compared(&mut agreement, &listing), Some(keys(&[])), "once");
        let changed = marks(&[(3, 0), (1, 1), (2, 0), (4, 0)]);
        assert_eq!(compared(&mut agreement, &changed), Some(keys(&[1])));
        agreement.keep_open(&keys(&[1]));
        assert_eq!(compared(&mut agreement, &changed), Some(keys(&[1])), "until it is as it should be");
        agreement.forget();
        assert_eq!(compared(&mut agreement, &changed), None);
    }

    #[test]
    fn servers_that_come_go_or_take_the_place_of_another_are_named() {
        let before = marks(&[(3, 0), (1, 0), (2, 0), (4, 0)]);
        for (after, named) in [
            (marks(&[(3, 0), (2, 0), (4, 0)]), keys(&[1])),
            (marks(&[(5, 0), (3, 0), (1, 0), (2, 0), (4, 0)]), keys(&[5])),
            (marks(&[(3, 0), (5, 0), (2, 0), (4, 0)]), keys(&[1, 5])),
            (marks(&[(3, 0), (2, 0), (1, 0), (4, 0)]), keys(&[])),
            (marks(&[(3, 1), (1, 0), (2, 0), (4, 1)]), keys(&[3, 4])),
            (Vec::new(), keys(&[1, 2, 3, 4])),
        ] {
            assert_eq!(changed(&before, &after), named, "{after:?}");
            assert_eq!(changed(&after, &before), named, "{after:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_two_listings_do_not_share_is_named(
            before in prop::collection::vec((0..20u16, 0..2u8), 0..20),
            after in prop::collection::vec((0..20u16, 0..2u8), 0..20),
        ) {
            let (before, after) = (marks(&before), marks(&after));
            let named = changed(&before, &after);
            for mark in before.iter().chain(&after) {
                let is_shared = before.contains(mark) && after.contains(mark);
                let key = super::key(mark).unwrap();
                prop_assert!(is_shared || named.contains(&key), "{key} of {before:?} and {after:?}");
            }
        }
    }
}
