//! Reservations whose containers are gone although nobody ever said DEL.
//!
//! Searched for when a range has run out. A reservation is a leftover when nothing of its attachment can exist any more:
//! * its record is of an earlier boot, or of this one but the host end of its link is gone;
//! * it has no record (the chain that ran here before us made it), and no Pod of that chain can be alive: every veth
//!   of the host is a port of another bridge; nor was it given to another plugin since the node was started.
//!
//! What else the attachment held goes first: a host port or a rule that stayed would lead to whoever gets the address next.
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
use crate::reclaim::release::close_ports;
use crate::reclaim::{ifb, predecessor};
use crate::state::record::{self, Ports};
use crate::state::records::{Class, Found, Held, Records};
use crate::state::reservations::Locked;
use crate::state::reservations::locked::{is_blank, peek};

/// The host's links, as far as leftovers are concerned.
#[derive(Debug, Default)]
struct HostLinks {
    names: BTreeSet<IfName>,
    /// Some veth is a port of the network's bridge, or of none.
    foreign_pods: bool,
}

/// How leftovers of one network are distinguished from what lives.
#[derive(Debug)]
pub(crate) struct Leftovers<'a> {
    network: &'a str,
    /// The network's bridge.
    bridge: &'a IfName,
    records: &'a Records,
    /// Of what `host-local` gave to other plugins.
    grants: Records,
    boot: String,
    /// Reservations without a record are judged, too: by the links of the host's bridges.
    judges_unrecorded: bool,
}

impl<'a> Leftovers<'a> {
    /// Of `network` with its `bridge`, its `records` and its reservations below `data_dir`.
    #[must_use]
    pub(crate) fn new(network: &'a str, bridge: &'a IfName, records: &'a Records, data_dir: &Path) -> Self {
        let grants = Records::new(Class::Grant, data_dir, network);
        Self { network, bridge, records, grants, boot: record::boot_id(), judges_unrecorded: true }
    }

    /// The same for a network on whatever bridge: what has no record counts as alive.
    #[must_use]
    pub(crate) fn recorded_only(self) -> Self {
        Self { judges_unrecorded: false, ..self }
    }

    /// Releases what is left over in `reservations` and returns how many addresses that gave.
    ///
    /// # Errors
    /// When the reservations cannot be read or removed, or the kernel cannot be asked.
    pub(crate) fn release(&self, reservations: &Locked, host: &mut Rtnl) -> Result<usize, CniError> {
        let links = host_links(self.bridge, host)?;
        // Judged once: the record goes with the first address, and there may be one of each family.
        let mut judged: BTreeMap<Attachment, bool> = BTreeMap::new();
        let mut released = 0;
        for (addr, text) in reservations.list()? {
            let is_left = match Subject::of_reservation(&text) {
                Some(Subject::Attachment(owner)) => match judged.get(&owner) {
                    Some(is_left) => *is_left,
                    None => {
                        let is_left = self.is_left_over(&owner, &links, host)?;
                        judged.insert(owner, is_left);
                        is_left
                    }
                },
                Some(Subject::Container(owner)) => {
                    let is_left = self.judges_unrecorded && !links.foreign_pods;
                    if is_left {
                        predecessor::remove_container(self.network, &owner)?;
                    }
                    is_left
                }
                // No owner can ever ask for it back.
                None => is_blank(&text),
            };
            if is_left {
                reservations.discard(addr)?;
                released += 1;
            }
        }
        Ok(released)
    }

    /// True when something in the directory of reservations `dir` is a leftover. Takes no lock and changes nothing: what is
    /// at work at this moment may be taken for one. Links are asked for one by one; they are listed only when a
    /// reservation of the chain that ran here before us is all that could be one.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub(crate) fn any(&self, dir: &Path, host: &mut Rtnl) -> Result<bool, CniError> {
        let mut may_be_predecessors = false;
        for text in peek(dir) {
            match Subject::of_reservation(&text) {
                None if is_blank(&text) => return Ok(true),
                None => {}
                Some(Subject::Container(_)) => may_be_predecessors = true,
                Some(Subject::Attachment(owner)) => match self.records.peek(&owner) {
                    Some(Some(record)) if record.boot != self.boot => return Ok(true),
                    _ if host.link(owner.host_link())?.is_some() => {}
                    Some(_) => return Ok(true),
                    None => may_be_predecessors |= !self.is_granted(&owner),
                },
            }
        }
        Ok(self.judges_unrecorded && may_be_predecessors && !host_links(self.bridge, host)?.foreign_pods)
    }

    /// True when `host-local` gave `owner` addresses for another plugin, and no reboot was since. So does a record that
    /// cannot be read.
    fn is_granted(&self, owner: &Attachment) -> bool {
        self.grants.peek(owner).is_some_and(|record| record.is_none_or(|record| !record.is_of_earlier_boot()))
    }

    fn is_left_over(&self, owner: &Attachment, links: &HostLinks, host: &mut Rtnl) -> Result<bool, CniError> {
        let has_link = links.names.contains(owner.host_link());
        match self.records.find(owner) {
            // Something that is no record stands in its place: whose, nobody knows. One such must not keep all others.
            Err(_) | Ok(Found::Busy) => Ok(false),
            Ok(Found::None) => {
                let is_left = self.judges_unrecorded && !has_link && !links.foreign_pods && !self.is_granted(owner);
                if !is_left || !self.release_chained(owner, Ports::None, host)? {
                    return Ok(false);
                }
                predecessor::remove(self.network, owner)?;
                if let Found::Held(grant) = self.grants.find(owner)? {
                    grant.remove()?;
                }
                Ok(true)
            }
            Ok(Found::Held(mut held)) => {
                let record = held.read();
                let of_this_boot = record.as_ref().is_none_or(|record| record.boot == self.boot);
                if of_this_boot && has_link {
                    return Ok(false);
                }
                let ports = match &record {
                    None => Ports::Unlisted,
                    // The table went with that boot.
                    Some(_) if !of_this_boot => Ports::None,
                    Some(record) => record.ports.clone(),
                };
                if !self.release_chained(owner, ports, host)? {
                    return Ok(false);
                }
                ifb::remove(host, self.records, self.network, owner, record.as_ref())?;
                held.remove().map(|()| true)
            }
        }
    }

    /// Releases the host ports of `owner`, `known` from its own record, and what chained names made for it; `false` when another
    /// call works on that.
    fn release_chained(&self, owner: &Attachment, known: Ports, host: &mut Rtnl) -> Result<bool, CniError> {
        let limited = self.records.chained(Class::Bandwidth);
        let (ports, limits) = (self.records.chained(Class::HostPorts).find(owner), limited.find(owner));
        let (Ok(ports), Ok(limits)) = (ports, limits) else { return Ok(false) };
        let (mut known, mut held) = (known, None);
        match (ports, &limits) {
            (Found::Busy, _) | (_, Found::Busy) => return Ok(false),
            (Found::Held(mut ports), _) => {
                known = known.and(ports.read().map_or(Ports::Unlisted, |record| record.ports));
                held = Some(ports);
            }
            (Found::None, _) => {}
        }
        close_ports(self.network, owner, &known)?;
        held.map_or(Ok(()), Held::remove)?;
        if let Found::Held(mut held) = limits {
            let record = held.read();
            ifb::remove(host, &limited, self.network, owner, record.as_ref())?;
            held.remove()?;
        }
        Ok(true)
    }
}

fn host_links(bridge: &IfName, host: &mut Rtnl) -> Result<HostLinks, KernelError> {
    let all = host.links()?;
    let foreign = |link: &LinkState| {
        link.link.kind == LinkKind::Veth && link.link.master.as_ref().is_none_or(|master| master == bridge)
    };
    let records_know = |name: &IfName| name.as_str().len() == 15;
    let bridges = bridge_names(&all);
    // Our own Pods' links have names of 15 bytes; the predecessor's are shorter.
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
