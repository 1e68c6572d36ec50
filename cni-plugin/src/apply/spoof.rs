//! Guarded ports in the kernel: who may send from which hardware address.
//!
//! Invariant: only elements that carry the attachment's tag are removed. A kernel without nftables has none, so
//! removing there is a success.

use std::collections::BTreeMap;

use kernel::KernelError;
use kernel::nft::{ClaimError, Nft};
use netstate::MacAddr;
use netstate::nft::{Element, ElementKey, Ruleset, TableKey};
use nix::libc;

use crate::plan::spoof;
use crate::plan::tag::{ObservedTag, Tag};
use crate::protocol::attachment::Attachment;
use crate::protocol::error::{CniError, Code};

/// Makes the table as `ruleset` says and guards the port of `tag` in it.
///
/// # Errors
/// Code 100 when the kernel refuses, or somebody else put an element for the port there. Then it is not guarded.
pub(crate) fn guard(nft: &mut Nft, ruleset: &Ruleset, tag: &Tag) -> Result<(), CniError> {
    nft.ensure(&ruleset.key, &ruleset.table)?;
    let shape = |_: Option<&_>| ruleset.table.clone();
    nft.claim(ruleset, shape, |_: &ElementKey, element: &Element| tag.owns(element)).map_err(|error| match error {
        ClaimError::Kernel(e) => CniError::from(e),
        held @ ClaimError::Held { .. } => CniError::new(Code::Kernel, held.to_string()).details("remove that element"),
    })
}

/// Those of the elements of `ruleset` that are there; none where the table has lost its rule and guards nothing.
///
/// # Errors
/// What the kernel said.
pub(crate) fn present(ruleset: &Ruleset) -> Result<BTreeMap<ElementKey, Element>, KernelError> {
    let mut nft = Nft::open()?;
    if nft.table(&ruleset.key)?.as_ref() != Some(&ruleset.table) {
        return Ok(BTreeMap::new());
    }
    elements(&mut nft, ruleset)
}

fn elements(nft: &mut Nft, ruleset: &Ruleset) -> Result<BTreeMap<ElementKey, Element>, KernelError> {
    let mut found = BTreeMap::new();
    for key in ruleset.elements.keys() {
        if let Some(set) = ruleset.table.sets.get(&key.set)
            && let Some(element) = nft.element(key, set)?
        {
            found.insert(key.clone(), element);
        }
    }
    Ok(found)
}

/// Removes whatever `tag` has in `table`.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub(crate) fn release(nft: &mut Nft, table: &TableKey, tag: &Tag) -> Result<(), CniError> {
    settled(nft.release(table, |_: &ElementKey, element: &Element| tag.owns(element)).map(drop))
}

/// Removes the guard of `tag`'s port: what it is for the hardware address `mac`, without listing anything; whatever is
/// found where nobody knows that address any more. The conversation is answered: closing it takes the kernel some 10 ms
/// when something was removed.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub(crate) fn unguard(tag: &Tag, mac: Option<MacAddr>) -> Result<Option<Nft>, CniError> {
    let Some(table) = spoof::table_key(&tag.network) else { return Ok(None) };
    let Some(mut nft) = open()? else { return Ok(None) };
    let known = mac.and_then(|mac| spoof::ruleset(tag, mac));
    if let Some(ruleset) = known
        && remove_known(&mut nft, &ruleset, tag)?
    {
        return Ok(Some(nft));
    }
    release(&mut nft, &table, tag).map(|()| Some(nft))
}

/// `false`: the ruleset changed meanwhile, or is not as it was made; nothing is removed then.
fn remove_known(nft: &mut Nft, ruleset: &Ruleset, tag: &Tag) -> Result<bool, KernelError> {
    let generation = nft.generation()?;
    let mut found = elements(nft, ruleset)?;
    found.retain(|_, element| tag.owns(element));
    Ok(found.len() == ruleset.elements.len() && nft.remove(&ruleset.key, found.keys(), generation)?)
}

/// Removes everything in the table of `network` whose holder is not among `valid`.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub(crate) fn sweep(network: &str, valid: &[Attachment]) -> Result<(), CniError> {
    let Some(table) = spoof::table_key(network) else { return Ok(()) };
    let Some(mut nft) = open()? else { return Ok(()) };
    let is_stale =
        |_: &ElementKey, element: &Element| ObservedTag::of(element).is_none_or(|holder| !holder.is_among(valid));
    settled(nft.release(&table, is_stale).map(drop))
}

fn open() -> Result<Option<Nft>, CniError> {
    match Nft::open() {
        Err(e) if is_without_nftables(&e) => Ok(None),
        other => other.map(Some).map_err(CniError::from),
    }
}

fn settled(outcome: Result<(), KernelError>) -> Result<(), CniError> {
    match outcome {
        Err(e) if is_without_nftables(&e) => Ok(()),
        other => other.map_err(CniError::from),
    }
}

/// The netlink protocol, the nftables subsystem in it, or the family bridge is missing.
fn is_without_nftables(error: &KernelError) -> bool {
    matches!(error.errno(), Some(libc::EPROTONOSUPPORT | libc::EINVAL | libc::EOPNOTSUPP | libc::EAFNOSUPPORT))
}
