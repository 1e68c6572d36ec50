//! GC, of every name: removes what attachments left that the runtime does not list.
//!
//! Goes on after a failure and reports all of them. Only this network's records, reservations and state files are
//! examined, those of every class: a list of plugins changes while Pods run. An attachment that another call is working on
//! at this moment is left to that call.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use kernel::Rtnl;

use super::release::{delete_link, forget_neighbours, remove_file, towards};
use super::{ifb, predecessor};
use crate::apply::{hostports, spoof};
use crate::plan::gc::{Subject, stale};
use crate::protocol::attachment::{Attachment, ContainerId};
use crate::protocol::error::{CniError, Code};
use crate::protocol::netconf::NetConf;
use crate::state::RESERVATION_WAIT;
use crate::state::places::{Places, flannel_draft, stored_network};
use crate::state::records::{Class, Found, Held};
use crate::state::reservations::locked::is_blank;

/// Removes everything that `cni.dev/valid-attachments` does not list. Without the list nothing is valid (SPEC "GC").
///
/// # Errors
/// The first failure, with the others in its details.
pub(crate) fn sweep(conf: &NetConf) -> Result<(), CniError> {
    let places = Places::of(conf, None);
    let valid = conf.valid_attachments.clone().unwrap_or_default();
    let subjects = subjects(&places)?;
    let mut host = Rtnl::open()?;
    let mut failures = Vec::new();
    // Before the records go: a GC or DEL that follows a killed one must still know.
    failures.extend(spoof::sweep(&conf.name, &valid).err());
    for subject in stale(subjects, &valid) {
        let outcome = match &subject {
            Subject::Attachment(attachment) => remove_attachment(attachment, &places, &mut host),
            Subject::Container(container) => remove_container(container, &places, &mut host),
        };
        failures.extend(outcome.err());
    }
    failures.extend(predecessor::sweep(&conf.name, &valid).err());
    failures.extend(hostports::sweep(&conf.name, &valid).err());
    let mut failures = failures.into_iter();
    match failures.next() {
        None => Ok(()),
        Some(first) => Err(failures.fold(first, |error, other| error.details(format!("and: {other}")))),
    }
}

/// Everybody who left something; what nobody owns is removed on the way.
fn subjects(places: &Places) -> Result<BTreeSet<Subject>, CniError> {
    let classes = [Class::Attachment, Class::HostPorts, Class::Bandwidth];
    let records = classes.into_iter().map(|class| places.records(class));
    let grants = places.leases().map(|(_, grants)| grants);
    let mut subjects: BTreeSet<Subject> = BTreeSet::new();
    for records in records.chain(grants) {
        subjects.extend(records.attachments().map(Subject::Attachment));
    }
    for (store, _) in places.leases() {
        let Some(locked) = store.lock_existing(RESERVATION_WAIT)? else { continue };
        for (addr, text) in locked.list()? {
            match Subject::of_reservation(&text) {
                Some(subject) => drop(subjects.insert(subject)),
                // A crash emptied it: nobody can ever ask for it back.
                None if is_blank(&text) => locked.discard(addr)?,
                None => {}
            }
        }
    }
    if let Some(dir) = &places.flannel_dir {
        let of_network =
            names(dir).into_iter().filter(|name| stored_network(&dir.join(name)).as_ref() == Some(&places.network));
        subjects.extend(of_network.filter_map(|name| ContainerId::new(&name)).map(Subject::Container));
    }
    Ok(subjects)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn remove_attachment(owner: &Attachment, places: &Places, host: &mut Rtnl) -> Result<(), CniError> {
    let network = &places.network;
    let records = places.records(Class::Attachment);
    let mut held = match records.find(owner)? {
        Found::None => None,
        Found::Held(held) => Some(held),
        Found::Busy => match outlived(owner, places, host)? {
            Some(held) => Some(held),
            None => return Ok(()),
        },
    };
    remove_device(owner, places, host)?;
    let record = held.as_mut().and_then(Held::read);
    let bridge = delete_link(host, owner.host_link())?;
    ifb::remove(host, &records, network, owner, record.as_ref())?;
    if record.is_none() {
        predecessor::remove(network, owner)?;
    }
    let bridge = towards(record.as_ref().and_then(|record| record.via.as_ref()), host)?.or(bridge);
    for (store, grants) in places.leases() {
        // Held until its address is released.
        let grant = match grants.find(owner)? {
            Found::Busy => continue,
            Found::None => None,
            Found::Held(grant) => Some(grant),
        };
        if let Some(locked) = store.lock_existing(RESERVATION_WAIT)? {
            let addresses = locked.find(owner)?;
            forget_neighbours(&addresses, bridge, host)?;
            locked.free(owner, &addresses)?;
        }
        grant.map_or(Ok(()), Held::remove)?;
    }
    if let Some(dir) = &places.flannel_dir {
        remove_file(&flannel_draft(dir, &owner.container))?;
    }
    if let Found::Held(ports) = places.records(Class::HostPorts).find(owner)? {
        // The ports themselves are found by their tags.
        ports.remove()?;
    }
    held.map_or(Ok(()), Held::remove)
}

/// The `ifb` device of the chained `bandwidth`. What another call works on is left to that call.
fn remove_device(owner: &Attachment, places: &Places, host: &mut Rtnl) -> Result<(), CniError> {
    let records = places.records(Class::Bandwidth);
    match records.hold_existing(owner, OUTLIVED_WAIT) {
        Err(error) if error.code == Code::TryAgainLater => Ok(()),
        Err(error) => Err(error),
        Ok(None) => Ok(()),
        Ok(Some(mut held)) => {
            let record = held.read();
            ifb::remove(host, &records, &places.network, owner, record.as_ref())?;
            held.remove()
        }
    }
}

/// The record of a DEL that was killed: the process that it left to wait for the link's removal holds the lock until
/// the link is gone. `None` when a call is at work: then the link is still there, or the record is gone, or the wait
/// is over.
fn outlived(owner: &Attachment, places: &Places, host: &mut Rtnl) -> Result<Option<Held>, CniError> {
    match places.records(Class::Attachment).hold_existing(owner, OUTLIVED_WAIT) {
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
fn remove_container(container: &ContainerId, places: &Places, host: &mut Rtnl) -> Result<(), CniError> {
    predecessor::remove_container(&places.network, container)?;
    for (store, _) in places.leases() {
        if let Some(locked) = store.lock_existing(RESERVATION_WAIT)? {
            for (addr, text) in locked.list()? {
                if text == container.as_str() {
                    forget_neighbours(&[addr], None, host)?;
                    locked.discard(addr)?;
                }
            }
        }
    }
    ifb::remove_of_container(host, &places.network, container)?;
    places.flannel_dir.as_ref().map_or(Ok(()), |dir| remove_file(&dir.join(container.as_str())))
}
