//! Listing tables.
//!
//! A table is read in several requests. Invariant: all of them saw the same generation of the ruleset, or they are made
//! again; a listing never mixes a chain of before a change with a set of after it. A kernel without nftables has an empty ruleset.

use std::collections::BTreeMap;

use netstate::IfName;
use netstate::nft::{
    BaseChain, Chain, ChainKind, Datum, Element, ElementKey, Family, Hook, Name, Policy, Row, RowKey, Rule, Ruleset,
    Set, SetFlags, SetKind, Statement, Table, TableKey, Type,
};

use super::expression::Expression;
use super::wire::{comment, kind, message, name, number, payload, text};
use super::{Nft, chain, counter, element, flowtable, recognise, rule, set, table};
use crate::attribute::{self, Writer};
use crate::error::{Cause, KernelError, Nack, SocketError};
use crate::socket::{Fault, Frame, Message};

/// Readings of a ruleset before giving up on one that changes all the time.
const TRIES: u32 = 30;

/// NFTA_GEN_ID.
const GEN_ID: u16 = 1;

/// What stands for the generation of a ruleset that cannot be: the kernel's own are never 0.
const NO_GENERATION: u32 = 0;

/// NFT_SET_MAP.
const SET_MAP: u32 = 0x8;
/// NFT_DATA_VERDICT.
const DATA_VERDICT: u32 = 0xffff_ff00;

/// The sets of a table and its rows.
pub(super) type TableRows = (BTreeMap<Name, Set>, Vec<(RowKey, Row)>);

impl Nft {
    /// The generation of the network namespace's ruleset; every committed transaction makes a new one.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn generation(&mut self) -> Result<u32, KernelError> {
        let frames = match self.ask("read generation of", "nftables", &generation_message()) {
            Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(NO_GENERATION),
            other => other?,
        };
        let found = frames.iter().find_map(|frame| number(payload(frame, kind::NEWGEN)?.1, GEN_ID));
        let missing = || Cause::Unexpected("no generation".to_owned());
        found.ok_or_else(|| KernelError::new("read generation of", "nftables", missing()))
    }

    /// Every table of `family`.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn tables(&mut self, family: Family) -> Result<Vec<TableKey>, KernelError> {
        let request = message(kind::GETTABLE, 0, family.number(), |_| {});
        let frames = self.list("list", format!("nft tables of family {family}"), &request)?;
        let read = |(number, attributes): (u8, &[u8])| {
            let name = name(attributes, table::NAME)?;
            (number == family.number()).then_some(TableKey { family, name })
        };
        Ok(frames.iter().filter_map(|frame| payload(frame, kind::NEWTABLE)).filter_map(read).collect())
    }

    /// The whole table with its elements, but for those of dynamic sets; `None` when it does not exist.
    ///
    /// # Errors
    /// When the kernel cannot be read, or the ruleset changes each time it is read.
    pub fn ruleset(&mut self, key: &TableKey) -> Result<Option<Ruleset>, KernelError> {
        self.steady(key, |nft| {
            let Some(table) = nft.table(key)? else { return Ok(None) };
            let mut elements = BTreeMap::new();
            // Packets put elements into a dynamic set: they are nobody's rows, however many there are.
            for (name, set) in table.sets.iter().filter(|(_, set)| !set.is_dynamic()) {
                elements.extend(nft.elements(key, name, set)?);
            }
            Ok(Some(Ruleset { key: key.clone(), table, elements }))
        })
    }

    /// The table's sets as they are declared, and the table as rows in no order, but for elements of dynamic sets; `None` when it does not
    /// exist.
    pub(super) fn rows(&mut self, key: &TableKey) -> Result<Option<TableRows>, KernelError> {
        self.steady(key, |nft| {
            let Some(table) = nft.table(key)? else { return Ok(None) };
            let (sets, mut rows) = (table.sets.clone(), Vec::new());
            for (name, set) in sets.iter().filter(|(_, set)| !set.is_dynamic()) {
                nft.set_rows(key, name, set, &mut rows)?;
            }
            rows.extend(Ruleset { key: key.clone(), table, elements: BTreeMap::new() }.into_rows());
            Ok(Some((sets, rows)))
        })
    }

    /// The elements of a set as rows.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(super) fn set_rows(
        &mut self,
        key: &TableKey,
        name: &Name,
        set: &Set,
        rows: &mut Vec<(RowKey, Row)>,
    ) -> Result<(), KernelError> {
        let at = |parts: Vec<Datum>| ElementKey { table: key.clone(), set: name.clone(), key: parts.into() };
        let frames = self.set_frames(key, name)?;
        let found = frames.iter().filter_map(|frame| of_table(frame, kind::NEWSETELEM, key));
        if set.is_list() {
            let (lists, elements) = element::read_lists(set, found);
            rows.extend(lists.into_iter().map(|(parts, list)| (RowKey::List(at(parts)), list.into())));
            rows.extend(elements.into_iter().map(|(parts, value)| (RowKey::Element(at(parts)), value.into())));
            return Ok(());
        }
        for attributes in found {
            let read = element::read(set, attributes);
            rows.extend(read.map(|(parts, value)| (RowKey::Element(at(parts)), value.into())));
        }
        Ok(())
    }

    /// Reads until nothing changed meanwhile.
    pub(super) fn steady<T>(
        &mut self,
        object: &TableKey,
        read: impl Fn(&mut Self) -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        let mut before = self.generation()?;
        for _ in 0..TRIES {
            let found = read(self);
            let after = self.generation()?;
            match found {
                Ok(found) if after == before => return Ok(found),
                // What was listed a moment ago may be gone.
                Err(error) if after == before => return Err(error),
                Ok(_) | Err(_) => before = after,
            }
        }
        Err(KernelError::new("list table", object, SocketError::Interrupted(TRIES)))
    }

    /// The static part of a table; `None` when it does not exist.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn table(&mut self, key: &TableKey) -> Result<Option<Table>, KernelError> {
        let family = key.family.number();
        let named = |kind, flags| message(kind, flags, family, |body| put_table(body, key));
        let frames = match self.ask("find table", key, &named(kind::GETTABLE, 0)) {
            Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(None),
            other => other?,
        };
        let flags = frames.iter().find_map(|frame| number(of_table(frame, kind::NEWTABLE, key)?, table::FLAGS));
        let mut found = Table { dormant: flags.unwrap_or(0) & table::DORMANT != 0, ..Table::default() };
        for frame in self.list("list chains of", key, &message(kind::GETCHAIN, 0, family, |_| {}))? {
            let Some(attributes) = of_table(&frame, kind::NEWCHAIN, key) else { continue };
            if let Some(name) = name(attributes, chain::NAME) {
                found.chains.insert(name, read_chain(key.family, attributes));
            }
        }
        for frame in self.list("list rules of", key, &named(kind::GETRULE, 0))? {
            let Some(attributes) = of_table(&frame, kind::NEWRULE, key) else { continue };
            let chain = name(attributes, rule::CHAIN).and_then(|name| found.chains.get_mut(&name));
            if let Some(chain) = chain {
                chain.rules.push(read_rule(key.family, attributes));
            }
        }
        for frame in self.list("list sets of", key, &named(kind::GETSET, 0))? {
            let Some(attributes) = of_table(&frame, kind::NEWSET, key) else { continue };
            if let Some(name) = name(attributes, set::NAME) {
                found.sets.insert(name, read_set(attributes));
            }
        }
        let every = message(kind::GETFLOWTABLE, 0, family, |body| put_table(body, key));
        for frame in self.list("list flowtables of", key, &every)? {
            let attributes = of_table(&frame, kind::NEWFLOWTABLE, key);
            found.flowtables.extend(attributes.and_then(flowtable::read));
        }
        Ok(Some(found))
    }

    /// The elements of a set.
    pub(super) fn elements(
        &mut self,
        key: &TableKey,
        name: &Name,
        set: &Set,
    ) -> Result<Vec<(ElementKey, Element)>, KernelError> {
        let frames = self.set_frames(key, name)?;
        let at = |parts: Vec<Datum>| ElementKey { table: key.clone(), set: name.clone(), key: parts.into() };
        let row = |(parts, element)| (at(parts), element);
        Ok(frames
            .iter()
            .filter_map(|frame| of_table(frame, kind::NEWSETELEM, key))
            .flat_map(|attributes| element::read(set, attributes).map(row).collect::<Vec<_>>())
            .collect())
    }

    fn set_frames(&mut self, key: &TableKey, name: &Name) -> Result<Vec<Frame>, KernelError> {
        let request = element::list_message(kind::GETSETELEM, key, name.as_str(), []);
        self.list("list elements of", format!("{key} @{name}"), &request)
    }

    /// One element; `None` when it, its set or its table does not exist. `set` is how the set is declared.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn element(&mut self, key: &ElementKey, set: &Set) -> Result<Option<Element>, KernelError> {
        let item = element::item(key, None);
        let request = element::list_message(kind::GETSETELEM, &key.table, key.set.as_str(), [item.as_slice()]);
        let frames = match self.ask("find element", key, &request) {
            Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(None),
            other => other?,
        };
        let attributes = frames.iter().filter_map(|frame| of_table(frame, kind::NEWSETELEM, &key.table));
        let mut found =
            attributes.flat_map(|attributes| element::read(set, attributes).collect::<Vec<(Vec<Datum>, Element)>>());
        Ok(found.find(|(parts, _)| parts[..] == *key.key).map(|(_, element)| element))
    }

    pub(super) fn ask(
        &mut self,
        op: &'static str,
        object: impl std::fmt::Display,
        request: &Message,
    ) -> Result<Vec<Frame>, KernelError> {
        self.socket.ask(request).map_err(|fault| {
            let absent = || Nack { errno: libc::ENOENT, text: Some("this kernel has no nftables".to_owned()) };
            let cause = if self.lacks_all(&fault) { absent().into() } else { Cause::from(fault) };
            KernelError::new(op, object, cause)
        })
    }

    pub(super) fn list(
        &mut self,
        op: &'static str,
        object: impl std::fmt::Display,
        request: &Message,
    ) -> Result<Vec<Frame>, KernelError> {
        match self.socket.dump(request) {
            Err(fault) if self.lacks_all(&fault) => Ok(Vec::new()),
            other => other.map_err(|fault: Fault| KernelError::new(op, object, fault)),
        }
    }

    /// Whether `fault` says that this kernel has no nftables: nfnetlink has EINVAL for each request of a part that is not there
    /// (`nfnetlink_rcv_msg`), so for a second one as well.
    fn lacks_all(&mut self, fault: &Fault) -> bool {
        let is_refused = |fault: &Fault| matches!(fault, Fault::Nack(nack) if nack.errno == libc::EINVAL);
        is_refused(fault) && self.socket.ask(&generation_message()).is_err_and(|again| is_refused(&again))
    }
}

fn generation_message() -> Message {
    message(kind::GETGEN, 0, 0, |_| {})
}

/// Names the table in requests; attribute 1 is the table's name in messages about tables, rules and sets alike
/// (NFTA_TABLE_NAME, NFTA_RULE_TABLE, NFTA_SET_TABLE).
fn put_table(body: &mut Writer, key: &TableKey) {
    body.put_str(table::NAME, key.name.as_str());
}

/// The attributes of a message of type `kind` about something in the table `key`.
pub(super) fn of_table<'a>(frame: &'a Frame, kind: u16, key: &TableKey) -> Option<&'a [u8]> {
    let (family, attributes) = payload(frame, kind)?;
    let same = family == key.family.number() && text(attributes, table::NAME)? == key.name.as_str();
    same.then_some(attributes)
}

pub(super) fn read_chain(family: Family, attributes: &[u8]) -> Chain {
    if attribute::find(attributes, chain::HOOK).is_none() {
        return Chain::default();
    }
    match base_chain(family, attributes) {
        Some(base) => Chain { base: Some(base), rules: Vec::new() },
        // A hook or kind that we never write; the statement makes the chain unequal to every desired one.
        None => Chain::regular(vec![Rule::new().then(Statement::Unknown("base chain".to_owned()))]),
    }
}

/// Where packets enter the chain, if that is a place we know.
pub(super) fn base_chain(family: Family, attributes: &[u8]) -> Option<BaseChain> {
    let hook = attribute::find(attributes, chain::HOOK)?;
    let priority = attribute::find(hook, chain::HOOK_PRIORITY)?;
    let device = match family {
        // One that has lost its link, or has several, is none that we write.
        Family::Netdev => Some(IfName::new(text(hook, chain::HOOK_DEV)?).ok()?),
        _ => None,
    };
    Some(BaseChain {
        kind: ChainKind::from_name(&text(attributes, chain::TYPE)?)?,
        hook: Hook::from_number(family, number(hook, chain::HOOK_NUMBER)?)?,
        priority: i32::from_be_bytes(*priority.first_chunk::<4>()?),
        policy: if number(attributes, chain::POLICY)? == chain::NF_DROP { Policy::Drop } else { Policy::Accept },
        device,
    })
}

pub(super) fn read_rule(family: Family, attributes: &[u8]) -> Rule {
    let expressions = Expression::list(attribute::find(attributes, rule::EXPRESSIONS).unwrap_or_default());
    let comment = attribute::find(attributes, rule::USERDATA).and_then(comment);
    Rule { statements: recognise::rule(family, &expressions), comment }
}

pub(super) fn read_set(attributes: &[u8]) -> Set {
    let flags = number(attributes, set::FLAGS).unwrap_or(0);
    let types = |kind, length| {
        let folded = number(attributes, kind).unwrap_or(0);
        unfold(folded, number(attributes, length).unwrap_or(0))
    };
    let kind = match number(attributes, set::DATA_TYPE) {
        _ if flags & SET_MAP == 0 => SetKind::Set,
        Some(DATA_VERDICT) => SetKind::VerdictMap,
        _ => SetKind::Map(types(set::DATA_TYPE, set::DATA_LEN)),
    };
    let counts = attribute::find(attributes, set::EXPRESSION).is_some_and(counter::is_counter);
    Set { key: types(set::KEY_TYPE, set::KEY_LEN), kind, flags: SetFlags(flags & !SET_MAP), counts }
}

/// The types of a concatenation, six bits each (TYPE_BITS of nftables), if they make up `length` bytes.
fn unfold(folded: u32, length: u32) -> Vec<Type> {
    let shifts = (0..5u32).rev().map(|place| place * 6);
    let types: Vec<Type> =
        shifts.map(|shift| folded >> shift & 0x3f).skip_while(|number| *number == 0).map(Type::from_number).collect();
    if u32::try_from(element::size(&types)) == Ok(length) && !types.is_empty() {
        types
    } else {
        vec![Type::Unknown(folded)]
    }
}

/// The types of a concatenation as one number.
pub(super) fn fold(types: &[Type]) -> u32 {
    types.iter().fold(0, |folded, ty| folded << 6 | ty.number())
}

#[cfg(target_endian = "little")]
#[cfg(test)]
mod tests;
