//! GC: removes what attachments left that the runtime does not list.
//!
//! Goes on after a failure and reports all of them. Only this network's records, reservations and state files are
//! looked at. An attachment that another call is working on at this moment is left to that call.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use kernel::Rtnl;
use serde_json::Value;

use super::Bridge;
use super::del::{delete_link, forget_neighbours, remove_file, towards};
use super::network::{Places, STATE_FILE_MAX, draft_of};
use crate::apply::hostports;
use crate::apply::spoof;
use crate::plan::gc::{Subject, stale};
use crate::protocol::attachment::{Attachment, ContainerId};
use crate::protocol::error::{CniError, Code};
use crate::protocol::netconf::NetConf;
use crate::reclaim::ifb;
use crate::reclaim::predecessor::{self, Part};
use crate::roles::RESERVATION_WAIT;
use crate::state::record::{self, Found, Held};
use crate::state::reservations::{Store, owners};
use crate::state::safe_file::{self, Links};

/// Removes everything that `cni.dev/valid-attachments` does not list. Without the list nothing is valid (SPEC "GC").
///
/// # Errors
/// The first failure, with the others in its details.
pub fn gc(conf: &NetConf, role: Bridge) -> Result<(), CniError> {
    let places = Places::of(&conf.fields, role, None);
    let valid = conf.valid_attachments.clone().unwrap_or_default();
    let owners = owners(&places, &conf.name)?;
    let mut host = Rtnl::open()?;
    let mut failures = Vec::new();
    // Before the records go: a GC or DEL that follows a killed one must still know.
    failures.extend(spoof::sweep(&conf.name, &valid).err());
    for owner in stale(owners, &valid) {
        let outcome = match &owner {
            Subject::Attachment(attachment) => remove_attachment(attachment, &places, &conf.name, &mut host),
            Subject::Container(container) => remove_container(container, &places, &conf.name, &mut host),
        };
        failures.extend(outcome.err());
    }
    failures.extend(predecessor::sweep(&conf.name, &valid, Part::Chain).err());
    if role == Bridge::Native {
        failures.extend(hostports::sweep(&conf.name, &valid).err());
    }
    let mut failures = failures.into_iter();
    match failures.next() {
        None => Ok(()),
        Some(first) => Err(failures.fold(first, |error, other| error.details(format!("and: {other}")))),
    }
}

/// Everybody who left something; what nobody owns is removed on the way.
fn owners(places: &Places, network: &str) -> Result<BTreeSet<Subject>, CniError> {
    let mut owners: BTreeSet<Subject> = BTreeSet::new();
    owners.extend(names(&places.records.join(network)).iter().filter_map(|name| Subject::of_record(name)));
    for dir in &places.reservations {
        if let Some(locked) = Store::new(dir, network).lock_existing(RESERVATION_WAIT)? {
            for (addr, text) in locked.list()? {
                match Subject::of_reservation(&text) {
                    Some(owner) => drop(owners.insert(owner)),
                    // A crash emptied it: nobody can ever ask for it back.
                    None => locked.discard(addr)?,
                }
            }
        }
    }
    if let Some(dir) = &places.flannel_dir {
        let of_network = names(dir).into_iter().filter(|name| is_state_of(&dir.join(name), network));
        owners.extend(of_network.filter_map(|name| ContainerId::new(&name)).map(Subject::Container));
    }
    Ok(owners)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// True when flannel's plugin wrote the file for `network`.
fn is_state_of(path: &Path, network: &str) -> bool {
    let text = safe_file::read(path, STATE_FILE_MAX, Links::Refused).unwrap_or_default();
    serde_json::from_str::<Value>(&text).is_ok_and(|value| value.get("name").and_then(Value::as_str) == Some(network))
}

fn remove_attachment(owner: &Attachment, places: &Places, network: &str, host: &mut Rtnl) -> Result<(), CniError> {
    let mut held = match record::find(&places.records, network, owner)? {
        Found::None => None,
        Found::Held(held) => Some(held),
        Found::Busy => match outlived(owner, places, network, host)? {
            Some(held) => Some(held),
            None => return Ok(()),
        },
    };
    let record = held.as_mut().and_then(Held::read);
    let bridge = delete_link(host, owner.host_link())?;
    ifb::remove(host, &places.records, network, owner, record.as_ref())?;
    if record.is_none() {
        predecessor::remove(network, owner)?;
    }
    let bridge = towards(record.as_ref().and_then(|record| record.via.as_ref()), host)?.or(bridge);
    for dir in &places.reservations {
        if let Some(locked) = Store::new(dir, network).lock_existing(RESERVATION_WAIT)? {
            let addresses = locked.find(owner)?;
            forget_neighbours(&addresses, bridge, host)?;
            locked.free(owner, &addresses)?;
        }
        owners::forget(&dir.join(network), network, owner)?;
    }
    if let Some(dir) = &places.flannel_dir {
        remove_file(&draft_of(dir, &owner.container))?;
    }
    held.map_or(Ok(()), Held::remove)
}

/// The record of a DEL that was killed: the process that it left to wait for the link's removal holds the lock until
/// the link is gone. `None` when a call is at work: then the link is still there, or the record is gone, or the wait
/// is over.
fn outlived(owner: &Attachment, places: &Places, network: &str, host: &mut Rtnl) -> Result<Option<Held>, CniError> {
    match record::hold_existing(&places.records, network, owner, OUTLIVED_WAIT) {
        Err(error) if error.code == Code::TryAgainLater => Ok(None),
        Err(error) => Err(error),
        Ok(held) => {
            let has_link = host.link(owner.host_link())?.is_some();
            Ok(held.filter(|_| !has_link))
        }
    }
}

/// The kernel needs some 20 ms to remove a link.
const OUTLIVED_WAIT: Duration = Duration::from_secs(1);

/// What is known by its container alone: reservations from before host-local 0.7 and flannel's state file.
fn remove_container(container: &ContainerId, places: &Places, network: &str, host: &mut Rtnl) -> Result<(), CniError> {
    predecessor::remove_container(network, container)?;
    for dir in &places.reservations {
        if let Some(locked) = Store::new(dir, network).lock_existing(RESERVATION_WAIT)? {
            for (addr, text) in locked.list()? {
                if text == container.as_str() {
                    forget_neighbours(&[addr], None, host)?;
                    locked.discard(addr)?;
                }
            }
        }
    }
    ifb::remove_of_container(host, network, container)?;
    places.flannel_dir.as_ref().map_or(Ok(()), |dir| remove_file(&dir.join(container.as_str())))
}
