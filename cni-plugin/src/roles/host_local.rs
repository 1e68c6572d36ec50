//! The `host-local` name: addresses for other plugins (macvlan, ipvlan, ptp, the stock bridge), which execute it and
//! attach the container themselves.
//!
//! Each owner has a record beside the reservations, see [`Class::Grant`]: DEL finds addresses without reading the directory, and
//! a full range gets back what was reserved before the node was started anew. Invariant: everything else counts as alive
//! until DEL or GC. Reservations without a record (of the stock plugin) are honoured, found by reading, and never
//! reclaimed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use super::Role;
use super::bridge::add::read_resolver;
use super::bridge::status::{not_available, reservations, takes_files};
use crate::plan::gc::Subject;
use crate::plan::status::{Facts, judge};
use crate::protocol::args::{Call, CniArgs};
use crate::protocol::attachment::Attachment;
use crate::protocol::error::{CniError, Code};
use crate::protocol::netconf::{IpamConf, NetConf, host_local};
use crate::protocol::range::Reservation;
use crate::protocol::result::{AddResult, IpConfig};
use crate::reclaim::release;
use crate::state::places::Places;
use crate::state::record::{self, Record};
use crate::state::records::{Class, Found, Held, Records};
use crate::state::reservations::locked::{is_blank, peek};
use crate::state::reservations::{Locked, Sharing, Store, StoreError};
use crate::state::{ATTACHMENT_WAIT, RESERVATION_WAIT};

/// The name `host-local`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostLocal;

impl Role for HostLocal {
    fn add(&self, conf: NetConf, call: &Call) -> Result<Value, CniError> {
        add(conf, call)
    }

    fn check(&self, conf: NetConf, call: &Call) -> Result<(), CniError> {
        check(&conf, call)
    }

    fn del(&self, conf: &NetConf, call: &Call) -> Result<(), CniError> {
        release::renamed(conf, call).iter().try_for_each(|earlier| del(earlier, call))?;
        del(conf, call)
    }

    fn status(&self, conf: NetConf) -> Result<(), CniError> {
        status(conf)
    }
}

/// Where the addresses of a network are kept, whatever else is wrong with its configuration.
struct Place {
    network: String,
    store: Store,
    grants: Records,
}

impl Place {
    fn of(conf: &NetConf) -> Self {
        let places = Places::of(conf, None);
        let dir = places.data_dirs.first().cloned().unwrap_or_default();
        let grants = Records::new(Class::Grant, &dir, &conf.name);
        Self { network: places.network, store: Store::new(&dir, &conf.name), grants }
    }

    fn lock(&self) -> Result<Locked, CniError> {
        self.store.lock(RESERVATION_WAIT).map_err(CniError::from)
    }

    fn lock_existing(&self) -> Result<Option<Locked>, CniError> {
        self.store.lock_existing(RESERVATION_WAIT).map_err(CniError::from)
    }
}

/// ADD: reserves addresses and answers them.
///
/// # Errors
/// Code 101 when the container has addresses of this network already, 11 when a set has none left, 7 when a requested
/// one cannot be had. Nothing is reserved then that was not before.
fn add(conf: NetConf, call: &Call) -> Result<Value, CniError> {
    let (place, version) = (Place::of(&conf), conf.version);
    let ipam = host_local::parse(conf, &CniArgs::parse(&call.args)?)?;
    let dns = read_resolver(Some(&ipam))?;
    let mut held = place.grants.hold(&call.attachment, ATTACHMENT_WAIT)?;
    let locked = place.lock()?;
    let earlier = earlier(&mut held, &locked, &place, &call.attachment)?;
    let outcome = reserve(&place, &locked, &ipam, &call.attachment, &earlier).and_then(|reserved| {
        let addresses: Vec<IpAddr> = reserved.iter().map(|r| r.addr).collect();
        let written =
            held.write(&Record { boot: record::boot_id(), addresses: addresses.clone(), ..Record::default() });
        written.map(|()| reserved).map_err(|error| match locked.free(&call.attachment, &addresses) {
            Ok(()) => error,
            Err(e) => error.details(format!("and could not undo: {e}")),
        })
    });
    match outcome {
        Ok(reserved) => {
            let ip = |r: Reservation| IpConfig { interface: None, addr: r.addr, len: r.len, gateway: Some(r.gateway) };
            let ips = reserved.into_iter().map(ip).collect();
            AddResult { interfaces: Vec::new(), ips, routes: ipam.routes, dns }.render(version)
        }
        Err(error) => Err(held.remove_after(error)),
    }
}

/// The addresses of an earlier ADD of the same attachment that nobody can be using: it was killed before it could
/// answer, or the node has been started anew since.
fn earlier(held: &mut Held, locked: &Locked, place: &Place, owner: &Attachment) -> Result<Vec<IpAddr>, CniError> {
    if !held.existed {
        return Ok(Vec::new());
    }
    let record = held.read();
    let addresses = addresses_of(owner, record.as_ref(), locked)?;
    match (addresses.first(), record) {
        (Some(addr), Some(record)) if !record.is_of_earlier_boot() => {
            let msg = format!("{addr} has been allocated to {}, duplicate allocation is not allowed", owner.container);
            let details = format!("{owner} has it in network {}: DEL it first", place.network);
            Err(CniError::new(Code::AlreadyAttached, msg).details(details))
        }
        _ => Ok(addresses),
    }
}

fn reserve(
    place: &Place,
    locked: &Locked,
    ipam: &IpamConf,
    owner: &Attachment,
    earlier: &[IpAddr],
) -> Result<Vec<Reservation>, CniError> {
    locked.free(owner, earlier)?;
    let wanted = ipam.wanted(earlier);
    let outcome = match locked.reserve(owner, &ipam.sets, &wanted, Sharing::Avoided) {
        Err(StoreError::Exhausted { .. }) if reclaim(place, locked)? => {
            locked.reserve(owner, &ipam.sets, &wanted, Sharing::Avoided)
        }
        outcome => outcome,
    };
    outcome.map_err(CniError::from)
}

/// What the record says where that is still true, what the directory says otherwise.
fn addresses_of(owner: &Attachment, record: Option<&Record>, locked: &Locked) -> Result<Vec<IpAddr>, CniError> {
    let recorded = record.iter().flat_map(|record| &record.addresses);
    let owned: Vec<IpAddr> = recorded.copied().filter(|addr| locked.is_owned(owner, *addr)).collect();
    if owned.is_empty() { locked.find(owner).map_err(CniError::from) } else { Ok(owned) }
}

/// Releases what was reserved in an earlier boot, and what a crash left without any owner; `true` when that gave
/// something.
fn reclaim(place: &Place, locked: &Locked) -> Result<bool, CniError> {
    let mut dead: BTreeMap<Attachment, Option<Held>> = BTreeMap::new();
    let mut released = false;
    for (addr, text) in locked.list()? {
        let is_left = match Subject::of_reservation(&text) {
            Some(Subject::Attachment(owner)) => {
                if !dead.contains_key(&owner) {
                    let held = record_of_earlier_boot(place, &owner);
                    dead.insert(owner.clone(), held);
                }
                dead.get(&owner).is_some_and(Option::is_some)
            }
            Some(Subject::Container(_)) => false,
            None => is_blank(&text),
        };
        if is_left {
            locked.discard(addr)?;
            released = true;
        }
    }
    dead.into_values().flatten().try_for_each(Held::remove)?;
    Ok(released)
}

/// The record of `owner`, if it is of an earlier boot and no other call works on it. Something that is no record in its
/// place says nothing.
fn record_of_earlier_boot(place: &Place, owner: &Attachment) -> Option<Held> {
    match place.grants.find(owner) {
        Ok(Found::Held(mut held)) => held.read().as_ref().is_some_and(Record::is_of_earlier_boot).then_some(held),
        Ok(Found::None | Found::Busy) | Err(_) => None,
    }
}

/// CHECK: the container has an address.
///
/// # Errors
/// Code 102 when it has none.
fn check(conf: &NetConf, call: &Call) -> Result<(), CniError> {
    let place = Place::of(conf);
    let record = place.grants.hold_existing(&call.attachment, ATTACHMENT_WAIT)?.and_then(|mut held| held.read());
    let addresses = match place.lock_existing()? {
        Some(locked) => addresses_of(&call.attachment, record.as_ref(), &locked)?,
        None => Vec::new(),
    };
    if !addresses.is_empty() {
        return Ok(());
    }
    let msg = format!("host-local: Failed to find address added by container {}", call.attachment.container);
    Err(CniError::new(Code::Differs, msg).details("delete the container and let it be attached anew"))
}

/// DEL: releases the container's addresses, and whatever else another name made for it.
///
/// # Errors
/// When a reservation that exists cannot be removed.
fn del(conf: &NetConf, call: &Call) -> Result<(), CniError> {
    release::of_other_names(conf, call)?;
    let place = Place::of(conf);
    let mut held = place.grants.hold_existing(&call.attachment, ATTACHMENT_WAIT)?;
    if let Some(locked) = place.lock_existing()? {
        let record = held.as_mut().and_then(Held::read);
        let addresses = addresses_of(&call.attachment, record.as_ref(), &locked)?;
        locked.free(&call.attachment, &addresses)?;
        if record.is_none() {
            // An ADD that was killed may have left a file in which nobody's name stands yet.
            locked.remove_empty()?;
        }
    }
    held.map_or(Ok(()), Held::remove)
}

/// STATUS: every range set has an address to give, or will have when ADD asks for one. Takes no lock.
///
/// # Errors
/// Code 50 when one has none, and for whatever else would make ADD fail.
fn status(conf: NetConf) -> Result<(), CniError> {
    let place = Place::of(&conf);
    let ipam = host_local::parse(conf, &CniArgs::default()).map_err(not_available)?;
    takes_files(place.store.dir())?;
    let (taken, last_reserved) = reservations(&ipam, &[place.store.dir().to_owned()]);
    let facts = Facts { bridge_up: None, has_attachments: false, taken, last_reserved };
    judge(&place.network, "", &ipam.sets, &facts).or_else(|full| {
        let is_left = |text: String| match Subject::of_reservation(&text) {
            Some(Subject::Attachment(owner)) => {
                let record = place.grants.peek(&owner).flatten();
                record.is_some_and(|record| record.is_of_earlier_boot())
            }
            Some(Subject::Container(_)) => false,
            None => is_blank(&text),
        };
        // A runtime that gets 50 sends no ADD: nobody would release what a reboot left.
        if peek(place.store.dir()).any(is_left) { Ok(()) } else { Err(full) }
    })
}
