//! Reservations whose containers are gone although nobody ever said DEL.
//!
//! Looked for when a range has run out. A reservation is a leftover when nothing of its attachment can exist any more:
//! * its record is of an earlier boot, or of this one but the host end of its link is gone;
//! * it has no record (the chain that ran here before us made it), and no Pod of that chain can be alive: every veth
//!   of the host is a port of another bridge; nor was it given to another plugin since the node was started.
//!
//! Invariant: whoever is at work on an attachment holds its record's lock; such a reservation is never touched. File
//! times play no part: clocks are set back, and jump forward when the network comes up.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use kernel::link::LinkState;
use kernel::{KernelError, Rtnl};
use netstate::{IfName, LinkKind};

use crate::plan::gc::Subject;
use crate::protocol::attachment::Attachment;
use crate::protocol::error::CniError;
use crate::reclaim::ifb;
use crate::state::record::{self, Found, Record};
use crate::state::reservations::{Locked, locked, owners};

/// The host's links, as far as leftovers are concerned.
#[derive(Debug, Default)]
struct HostLinks {
    names: BTreeSet<IfName>,
    /// Some veth is a port of the network's bridge, or of none.
    foreign_pods: bool,
}

/// Releases what is left over in `reservations` and answers how many addresses that gave. The network's records are in
/// `records`; its bridge is `bridge`.
///
/// # Errors
/// When the reservations cannot be read or removed, or the kernel cannot be asked.
pub fn release(
    reservations: &Locked,
    records: &Path,
    network: &str,
    bridge: &IfName,
    host: &mut Rtnl,
) -> Result<usize, CniError> {
    let links = host_links(bridge, host)?;
    let boot = record::boot_id();
    // Judged once: the record goes with the first address, and there may be one of each family.
    let mut judged: BTreeMap<Attachment, bool> = BTreeMap::new();
    let mut released = 0;
    for (addr, text) in reservations.list()? {
        let is_left = match Subject::of_reservation(&text) {
            Some(Subject::Attachment(owner)) => match judged.get(&owner) {
                Some(is_left) => *is_left,
                None => {
                    let is_left = is_left_over(&owner, reservations, records, network, &boot, &links, host)?;
                    judged.insert(owner, is_left);
                    is_left
                }
            },
            Some(Subject::Container(_)) => !links.foreign_pods,
            // No owner can ever ask for it back.
            None => true,
        };
        if is_left {
            reservations.discard(addr)?;
            released += 1;
        }
    }
    Ok(released)
}

/// True when something in the directory of reservations `dir` is a leftover. Takes no lock and changes nothing: what is at
/// work at this moment may be taken for one. Links are looked up one by one; they are listed only when a reservation of
/// the chain that ran here before us is all that could be one.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn any(dir: &Path, records: &Path, network: &str, bridge: &IfName, host: &mut Rtnl) -> Result<bool, CniError> {
    let boot = record::boot_id();
    let mut may_be_former = false;
    for text in locked::peek(dir) {
        match Subject::of_reservation(&text) {
            None => return Ok(true),
            Some(Subject::Container(_)) => may_be_former = true,
            Some(Subject::Attachment(owner)) => {
                let is_elsewhen = |record: &Record| record.boot != boot;
                match record::peek(records, network, &owner) {
                    Some(Some(record)) if is_elsewhen(&record) => return Ok(true),
                    _ if host.link(owner.host_link())?.is_some() => {}
                    Some(_) => return Ok(true),
                    None => may_be_former |= !owners::has_living(dir, network, &owner),
                }
            }
        }
    }
    Ok(may_be_former && !host_links(bridge, host)?.foreign_pods)
}

fn is_left_over(
    owner: &Attachment,
    reservations: &Locked,
    records: &Path,
    network: &str,
    boot: &str,
    links: &HostLinks,
    host: &mut Rtnl,
) -> Result<bool, CniError> {
    let has_link = links.names.contains(owner.host_link());
    match record::find(records, network, owner) {
        // Something that is no record stands in its place: whose, nobody knows. One such must not keep all others.
        Err(_) | Ok(Found::Busy) => Ok(false),
        Ok(Found::None) => {
            let is_left = !has_link && !links.foreign_pods && !owners::has_living(reservations.dir(), network, owner);
            if is_left {
                owners::forget(reservations.dir(), network, owner)?;
            }
            Ok(is_left)
        }
        Ok(Found::Held(mut held)) => {
            let record = held.read();
            let of_this_boot = record.as_ref().is_none_or(|record| record.boot == boot);
            if of_this_boot && has_link {
                return Ok(false);
            }
            ifb::remove(host, records, network, owner, record.as_ref())?;
            held.remove().map(|()| true)
        }
    }
}

fn host_links(bridge: &IfName, host: &mut Rtnl) -> Result<HostLinks, KernelError> {
    let all = host.links()?;
    let foreign = |link: &LinkState| {
        link.link.kind == LinkKind::Veth && link.link.master.as_ref().is_none_or(|master| master == bridge)
    };
    let records_know = |name: &IfName| name.as_str().len() == 15;
    let bridges = bridge_names(&all);
    // Our own Pods' links have names of 15 bytes; the former chain's are shorter.
    let may_be_theirs = |name: &IfName| !records_know(name) && !is_vlan_link(name, &bridges);
    let foreign_pods = all.iter().filter(|link| may_be_theirs(&link.name)).any(foreign);
    Ok(HostLinks { names: all.into_iter().map(|link| link.name).collect(), foreign_pods })
}

/// Names of the bridges among `links`.
pub(crate) fn bridge_names(links: &[LinkState]) -> BTreeSet<IfName> {
    let is_bridge = |link: &&LinkState| matches!(link.link.kind, LinkKind::Bridge(_));
    links.iter().filter(is_bridge).map(|link| link.name.clone()).collect()
}

/// True for the name of a link that holds the gateways of a VLAN, `<bridge>.<vlan>`; no Pod is behind it.
pub(crate) fn is_vlan_link(name: &IfName, bridges: &BTreeSet<IfName>) -> bool {
    let Some((bridge, vlan)) = name.as_str().rsplit_once('.') else { return false };
    vlan.parse::<u16>().is_ok() && bridges.iter().any(|name| name.as_str() == bridge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_vlans_are_named_after_a_bridge_and_a_number() {
        let name = |text: &str| IfName::new(text).unwrap();
        let bridges = BTreeSet::from([name("cbr0"), name("br.7")]);
        for (text, expected) in [
            ("cbr0.100", true),
            ("br.7.100", true),
            ("cbr0", false),
            ("cbr0.x", false),
            ("cbr0.", false),
            ("cni0.100", false),
            ("veth0badcafe", false),
        ] {
            assert_eq!(is_vlan_link(&name(text), &bridges), expected, "{text}");
        }
    }
}
