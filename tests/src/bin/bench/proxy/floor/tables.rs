//! The nft table of `ipvs-proxy`, as messages (include/uapi/linux/netfilter/nf_tables.h).
//!
//! Invariant: what is listed is written with the same attributes but those that only the kernel gives (handles, counts of users), in one
//! transaction.

use anyhow::Result;
use lab::Host;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::calls::{Calls, question};
use super::conversation::Conversation;
use crate::proxy::TABLE;
use crate::proxy::bytes::{attribute, attributes, find, kept, message};

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `nfgenmsg` of IPv4, and of a batch for nftables.
const INET: [u8; 4] = [2, 0, 0, 0];
const NFTABLES: [u8; 4] = [0, 0, 0, 10];
/// NFTA_SET_ID.
const SET_ID: u16 = 10;
/// NFTA_SET_ELEM_LIST_ELEMENTS.
const ELEMENTS: u16 = 3;

/// A kind of object: the messages that list and make it, and which of its attributes are its own.
struct Kind {
    get: u16,
    new: u16,
    flags: u16,
    own: &'static [u16],
}

const TABLES: Kind = Kind { get: 1, new: 0, flags: 0, own: &[1, 2, 6] };
const CHAINS: Kind = Kind { get: 4, new: 3, flags: 0, own: &[1, 3, 4, 5, 7, 12] };
const SETS: Kind = Kind { get: 10, new: 9, flags: 0, own: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 17, 18] };
const RULES: Kind = Kind { get: 7, new: 6, flags: NLM_F_APPEND, own: &[1, 2, 4, 7] };
const ITEMS: Kind = Kind { get: 13, new: 12, flags: 0, own: &[1, 2, 3] };

/// The table's objects, each as its own attributes.
#[derive(Debug)]
pub(super) struct Tables {
    table: Vec<Vec<u8>>,
    chains: Vec<Vec<u8>>,
    sets: Vec<Vec<u8>>,
    rules: Vec<Vec<u8>>,
    elements: Vec<Vec<u8>>,
}

impl Tables {
    /// Reads the table.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(super) fn read(host: &Host) -> Result<Self> {
        let kernel = Conversation::open(host, NETLINK_NETFILTER)?;
        let of = |kind: &Kind| kind.read(&kernel, &[]);
        let sets = of(&SETS)?;
        let mut elements = Vec::new();
        for set in &sets {
            elements.extend(ITEMS.read(&kernel, &kept(set, &[1, 2]))?);
        }
        Ok(Self { table: of(&TABLES)?, chains: of(&CHAINS)?, rules: of(&RULES)?, sets, elements })
    }

    /// One transaction that makes the table.
    pub(super) fn fill(&self, calls: &mut Calls) {
        let numbered = (1_u32..)
            .zip(&self.sets)
            .map(|(number, set)| [&set[..], &attribute(SET_ID, &number.to_be_bytes())].concat());
        let sets: Vec<Vec<u8>> = numbered.collect();
        let parts = [
            (&TABLES, &self.table),
            (&CHAINS, &self.chains),
            (&SETS, &sets),
            (&RULES, &self.rules),
            (&ITEMS, &self.elements),
        ];
        let messages = parts.into_iter().flat_map(|(kind, objects)| objects.iter().map(|object| kind.make(object)));
        let edge = |kind| message(kind, NLM_F_REQUEST, &NFTABLES);
        calls.transaction(NETLINK_NETFILTER, &edge(BATCH_BEGIN), &messages.collect::<Vec<_>>(), &edge(BATCH_END));
    }

    /// The questions that list the table.
    pub(super) fn list(&self, calls: &mut Calls) {
        for kind in [&TABLES, &CHAINS, &SETS, &RULES] {
            calls.dump(NETLINK_NETFILTER, &kind.question(&[]));
        }
        for set in &self.sets {
            calls.dump(NETLINK_NETFILTER, &ITEMS.question(&kept(set, &[1, 2])));
        }
    }

    /// Numbers of chains, sets, rules and elements.
    pub(super) fn counts(&self) -> Vec<usize> {
        let items = self.elements.iter().filter_map(|list| find(list, ELEMENTS)).map(|list| attributes(list).count());
        vec![self.chains.len(), self.sets.len(), self.rules.len(), items.sum()]
    }
}

impl Kind {
    fn question(&self, of: &[u8]) -> Vec<u8> {
        question(SUBSYSTEM | self.get, &[&INET[..], of].concat())
    }

    /// The objects of the table, each with its own attributes.
    fn read(&self, kernel: &Conversation, of: &[u8]) -> Result<Vec<Vec<u8>>> {
        let name = [TABLE.as_bytes(), b"\0"].concat();
        let found = kernel.list(&self.question(of))?;
        let objects = found.iter().filter_map(|message| message.get(INET.len()..));
        Ok(objects.filter(|object| find(object, 1) == Some(&name)).map(|object| kept(object, self.own)).collect())
    }

    fn make(&self, object: &[u8]) -> Vec<u8> {
        message(SUBSYSTEM | self.new, NLM_F_REQUEST | NLM_F_CREATE | self.flags, &[&INET[..], object].concat())
    }
}
