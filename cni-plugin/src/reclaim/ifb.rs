//! The `ifb` device over which what a Pod sends goes, where that is limited: found again and removed.
//!
//! Its name carries no owner, and the reference's devices are named alike. Invariant: a device is removed only for the
//! network and container from which its name is made, and only by the attachment whose record names it, or without
//! any record when no other interface of the container has one.

use kernel::link::LinkState;
use kernel::qdisc::Qdisc;
use kernel::{KernelError, Rtnl};
use netstate::{LinkKind, TokenBucket};

use crate::plan::bandwidth::{Bandwidth, Facts, ifb_name};
use crate::protocol::attachment::{Attachment, ContainerId};
use crate::protocol::error::CniError;
use crate::state::record::Record;
use crate::state::records::Records;

/// Removes the device of `owner` in `network`. `record` is what the owner's record in `records` says.
///
/// # Errors
/// Code 100 when the kernel refuses; no device is a success.
pub(crate) fn remove(
    host: &mut Rtnl,
    records: &Records,
    network: &str,
    owner: &Attachment,
    record: Option<&Record>,
) -> Result<(), CniError> {
    if record.is_some_and(|record| !record.ifb) {
        return Ok(());
    }
    match find(host, network, &owner.container)? {
        Some(link) if record.is_some() || !has_sibling(records, owner) => {
            host.delete_link_aside(link.index).map_err(CniError::from)
        }
        _ => Ok(()),
    }
}

/// True when there is a device that [`remove`] would remove for `owner` without a record.
///
/// # Errors
/// Code 100 when the kernel cannot be asked.
pub(crate) fn is_there(
    host: &mut Rtnl,
    records: &Records,
    network: &str,
    owner: &Attachment,
) -> Result<bool, CniError> {
    Ok(find(host, network, &owner.container)?.is_some() && !has_sibling(records, owner))
}

/// Removes the device of `container`, all of whose interfaces are gone.
///
/// # Errors
/// As [`remove`].
pub(crate) fn remove_of_container(host: &mut Rtnl, network: &str, container: &ContainerId) -> Result<(), CniError> {
    match find(host, network, container)? {
        Some(link) => host.delete_link_aside(link.index).map_err(CniError::from),
        None => Ok(()),
    }
}

/// A link of that name and of another kind is not ours.
fn find(host: &mut Rtnl, network: &str, container: &ContainerId) -> Result<Option<LinkState>, CniError> {
    let Some(name) = ifb_name(network, container) else { return Ok(None) };
    let found = host.link(&name)?;
    Ok(found.filter(|link| link.link.kind == LinkKind::Other("ifb".to_owned())))
}

/// True when another interface of the container has a record.
fn has_sibling(records: &Records, owner: &Attachment) -> bool {
    records.attachments().any(|other| other.container == owner.container && other != *owner)
}

/// What is there of `bandwidth` on the host end with `index`.
///
/// # Errors
/// When the kernel cannot be read.
pub(crate) fn observe(host: &mut Rtnl, bandwidth: &Bandwidth, index: u32) -> Result<Facts, KernelError> {
    let mut facts = Facts { receive: bucket(host, index)?, ..Facts::default() };
    if bandwidth.conf.send.is_some()
        && let Some(ifb) = host.link(&bandwidth.ifb)?
    {
        facts.ifb = true;
        facts.send = bucket(host, ifb.index)?;
        facts.redirected = host.redirects(index)?.contains(&ifb.index);
    }
    Ok(facts)
}

fn bucket(host: &mut Rtnl, index: u32) -> Result<Option<TokenBucket>, KernelError> {
    let listed = host.qdiscs(index)?;
    Ok(listed.into_iter().find_map(|qdisc| match qdisc {
        Qdisc::Bucket(bucket) => Some(bucket),
        Qdisc::Ingress | Qdisc::Other(_) => None,
    }))
}
