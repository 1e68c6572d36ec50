//! Claiming and releasing elements, for a program that comes and goes: the CNI plugin.
//!
//! The program keeps no mirror of the kernel. It claims keys of a map for an owner, whose name it writes into each
//! element's comment, and later releases whatever that owner holds, or those keys that it remembers. The static part of
//! a table that several configurations share is what a shape makes of the table as it is. Invariants. A claim is one transaction: all keys or
//! none. A key that somebody else holds is refused with the holder's name, never taken. A decision made on a reading
//! is carried out only if the ruleset is still the one that was read (NFNL_BATCH_GENID), or read again.
//!
//! Closing the conversation right after a release takes about 10 ms: the kernel finishes its clean-up first. Answer the
//! caller before.

use netlink_packet_core::NLM_F_EXCL;
use netstate::nft::{Element, ElementKey, Ruleset, Table, TableKey};

use super::layout::Change;
use super::tables::unwritable;
use super::transaction::{Refusal, commit};
use super::wire::kind;
use super::{Nft, element, layout};
use crate::error::{Cause, KernelError};
use crate::socket::Message;

/// Attempts on a ruleset that others change at the same time.
const TRIES: u32 = 30;

/// Says whether an element is the caller's own, which a claim may replace and a release removes.
pub trait Owns: Fn(&ElementKey, &Element) -> bool {}

impl<F: Fn(&ElementKey, &Element) -> bool> Owns for F {}

/// Says what the static part of a table shall be, given what it is; `None` when the table does not exist. Called again
/// when the ruleset changed meanwhile.
pub trait Shape: Fn(Option<&Table>) -> Table {}

impl<F: Fn(Option<&Table>) -> Table> Shape for F {}

/// Why a claim failed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Somebody else holds one of the keys.
    #[error("nft element {key} is held by {}", .by.as_deref().unwrap_or("an unknown owner"))]
    Held {
        /// The key.
        key: Box<ElementKey>,
        /// The comment of the element that holds it.
        by: Option<String>,
    },
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// How an attempt ended that has to be made again.
enum Attempt {
    Done,
    Again,
}

impl Nft {
    /// Makes the static part of a table be `want`, creating the table if need be; elements of sets that are declared the
    /// same stay. Returns whether anything had to be changed.
    ///
    /// # Errors
    /// When the kernel cannot be read or refuses.
    pub fn ensure(&mut self, key: &TableKey, want: &Table) -> Result<bool, KernelError> {
        for _ in 0..TRIES {
            let generation = self.generation()?;
            let have = self.table(key)?;
            if have.as_ref() == Some(want) {
                return Ok(false);
            }
            let change = change(key, have.as_ref(), want)?;
            if matches!(self.attempt("write", key, &change.messages, generation)?, Attempt::Done) {
                return Ok(true);
            }
        }
        Err(busy("write", key))
    }

    /// Puts all elements of `ruleset` in, where every set is there and every key is free: one request, nothing is read.
    /// `false`: something is missing or taken, and nothing is changed.
    ///
    /// # Errors
    /// When an element has not the types that `ruleset` declares, or the kernel refuses the request as a whole.
    pub fn claim_free(&mut self, ruleset: &Ruleset) -> Result<bool, KernelError> {
        for (at, value) in &ruleset.elements {
            let set = ruleset.table.sets.get(&at.set);
            let reason =
                set.map_or_else(|| Err("its set is not declared".to_owned()), |set| element::check(set, at, value));
            reason.map_err(|reason| KernelError::new("claim", format!("nft element {at}"), unwritable(reason)))?;
        }
        let fresh: Vec<Message> = ruleset.elements.iter().map(|(at, value)| exclusive(at, value)).collect();
        match commit(&mut self.socket, &fresh, None) {
            Ok(()) => Ok(true),
            Err(Refusal::Messages(_)) => Ok(false),
            Err(other) => Err(refused("claim elements of", &ruleset.key, other)),
        }
    }

    /// Puts all elements of `ruleset` in, each in place of one that `owns` says is the caller's own. When something is
    /// missing or taken, the static part is made to be what `shape` says; otherwise that is one request.
    ///
    /// # Errors
    /// [`ClaimError::Held`] when somebody else holds a key; otherwise when the kernel cannot be read or refuses. Then
    /// nothing is changed.
    pub fn claim(&mut self, ruleset: &Ruleset, shape: impl Shape, owns: impl Owns) -> Result<(), ClaimError> {
        if self.claim_free(ruleset)? {
            return Ok(());
        }
        let key = &ruleset.key;
        for _ in 0..TRIES {
            let generation = self.generation()?;
            let messages = self.claim_messages(ruleset, &shape, &owns)?;
            if matches!(self.attempt("claim elements of", key, &messages, generation)?, Attempt::Done) {
                return Ok(());
            }
        }
        Err(busy("claim elements of", key).into())
    }

    /// What makes the claim hold, given what the table holds now.
    fn claim_messages(
        &mut self,
        ruleset: &Ruleset,
        shape: &impl Shape,
        owns: &impl Owns,
    ) -> Result<Vec<Message>, ClaimError> {
        let key = &ruleset.key;
        let have = self.table(key)?;
        let change = change(key, have.as_ref(), &shape(have.as_ref()))?;
        let mut messages = Vec::new();
        for (at, value) in &ruleset.elements {
            let declared = have.as_ref().and_then(|have| have.sets.get(&at.set));
            let kept = declared.filter(|_| !change.remade.contains(&at.set));
            if let Some(set) = kept
                && let Some(holder) = self.element(at, set)?
            {
                if !owns(at, &holder) {
                    return Err(ClaimError::Held {
                        key: Box::new(at.clone()),
                        by: holder.comment.map(|owner| owner.to_string()),
                    });
                }
                messages.push(removal(at));
            }
            let item = element::item(at, Some(value));
            messages.push(element::add_message(at, &item));
        }
        Ok(change.messages.into_iter().chain(messages).collect())
    }

    /// Removes every element of the table that `owns` says is the caller's own, and returns what was removed. A table
    /// that does not exist holds nothing.
    ///
    /// # Errors
    /// When the kernel cannot be read or refuses; then nothing is removed.
    pub fn release(&mut self, key: &TableKey, owns: impl Owns) -> Result<Vec<(ElementKey, Element)>, KernelError> {
        for _ in 0..TRIES {
            let generation = self.generation()?;
            let Some(ruleset) = self.ruleset(key)? else { return Ok(Vec::new()) };
            let mine: Vec<_> = ruleset.elements.into_iter().filter(|(at, value)| owns(at, value)).collect();
            let messages: Vec<Message> = mine.iter().map(|(at, _)| removal(at)).collect();
            if matches!(self.attempt("release elements of", key, &messages, generation)?, Attempt::Done) {
                return Ok(mine);
            }
        }
        Err(busy("release elements of", key))
    }

    /// Removes these elements if the ruleset still is of `generation`, all or none. `false`: it is not, or one of them
    /// is not there; then nothing is removed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove<'a>(
        &mut self,
        key: &TableKey,
        elements: impl IntoIterator<Item = &'a ElementKey>,
        generation: u32,
    ) -> Result<bool, KernelError> {
        let messages: Vec<Message> = elements.into_iter().map(removal).collect();
        match commit(&mut self.socket, &messages, Some(generation)) {
            Ok(()) => Ok(true),
            Err(Refusal::Whole(nack)) if nack.errno == libc::ERESTART => Ok(false),
            Err(Refusal::Messages(nacks)) if nacks.values().all(|nack| nack.errno == libc::ENOENT) => Ok(false),
            Err(other) => Err(refused("remove elements of", key, other)),
        }
    }

    /// Makes the static part of a table be what `shape` says, given the table with its elements; a table that does not
    /// exist is left so. Returns whether anything had to be changed.
    ///
    /// # Errors
    /// When the kernel cannot be read or refuses.
    pub fn reshape(&mut self, key: &TableKey, shape: impl Fn(&Ruleset) -> Table) -> Result<bool, KernelError> {
        for _ in 0..TRIES {
            let generation = self.generation()?;
            let Some(have) = self.ruleset(key)? else { return Ok(false) };
            let change = change(key, Some(&have.table), &shape(&have))?;
            if change.messages.is_empty() {
                return Ok(false);
            }
            if matches!(self.attempt("write", key, &change.messages, generation)?, Attempt::Done) {
                return Ok(true);
            }
        }
        Err(busy("write", key))
    }

    /// Removes a table with all that is in it, if `may_go` says yes to what that is. A table that does not exist is a
    /// success.
    ///
    /// # Errors
    /// When the kernel cannot be read or refuses.
    pub fn remove_table(&mut self, key: &TableKey, may_go: impl Fn(&Ruleset) -> bool) -> Result<(), KernelError> {
        for _ in 0..TRIES {
            let generation = self.generation()?;
            let Some(have) = self.ruleset(key)? else { return Ok(()) };
            if !may_go(&have)
                || matches!(self.attempt("remove", key, &[layout::removal(key)], generation)?, Attempt::Done)
            {
                return Ok(());
            }
        }
        Err(busy("remove", key))
    }

    fn attempt(
        &mut self,
        op: &'static str,
        key: &TableKey,
        messages: &[Message],
        generation: u32,
    ) -> Result<Attempt, KernelError> {
        match commit(&mut self.socket, messages, Some(generation)) {
            Ok(()) => Ok(Attempt::Done),
            Err(Refusal::Whole(nack)) if nack.errno == libc::ERESTART => Ok(Attempt::Again),
            Err(other) => Err(refused(op, key, other)),
        }
    }
}

/// Adds an element only if its key is free, even with the same data: the comment says whose it is.
fn exclusive(key: &ElementKey, element: &Element) -> Message {
    let mut message = element::add_message(key, &element::item(key, Some(element)));
    message.flags |= NLM_F_EXCL;
    message
}

/// Removes an element.
fn removal(key: &ElementKey) -> Message {
    let item = element::item(key, None);
    element::list_message(kind::DELSETELEM, &key.table, key.set.as_str(), [item.as_slice()])
}

fn change(key: &TableKey, have: Option<&Table>, want: &Table) -> Result<Change, KernelError> {
    layout::change(key, have, want)
        .map_err(|reason| KernelError::new("write", format!("nft table {key}"), unwritable(reason)))
}

fn refused(op: &'static str, key: &TableKey, refusal: Refusal) -> KernelError {
    KernelError::new(op, format!("nft table {key}"), refusal)
}

fn busy(op: &'static str, key: &TableKey) -> KernelError {
    let cause = Cause::Unexpected(format!("the ruleset changed during each of {TRIES} attempts"));
    KernelError::new(op, format!("nft table {key}"), cause)
}
