//! Permanent forwarding entries of tunnel devices.
//!
//! Invariant: only entries of the device itself (NTF_SELF) that name a remote end are rows. The all-zero hardware
//! address, where flooded frames go, is one like any other.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netstate::{Fdb, FdbKey, IfName};
use reconcile::{Observed, Owner, Rows, Step, Target};

use crate::error::KernelError;
use crate::neighbour::Entry;
use crate::rtnl::{Indexes, Rtnl, encode, verb};
use crate::socket::Message;

/// PF_BRIDGE, the family of forwarding entries.
const AF_BRIDGE: u8 = 7;
/// NTF_SELF: the entry is the device's own, not its bridge's.
const NTF_SELF: u8 = 0x02;

/// The table of permanent forwarding entries on some tunnel devices.
#[derive(Debug)]
pub struct Fdbs {
    rtnl: Rtnl,
    links: BTreeSet<IfName>,
}

impl Fdbs {
    /// The permanent forwarding entries on `links`, all of them ours.
    pub fn new(rtnl: Rtnl, links: impl IntoIterator<Item = IfName>) -> Self {
        Self { rtnl, links: links.into_iter().collect() }
    }
}

fn encoded(rtnl: &mut Rtnl, step: &Step<FdbKey, Fdb>, indexes: &mut Indexes) -> Result<Message, KernelError> {
    let key = step.key();
    let index = indexes.index(rtnl, &key.link, verb(step), key)?;
    Ok(match step {
        Step::Create(_, value) | Step::Change(_, _, value) => {
            let message = RouteNetlinkMessage::NewNeighbour(message(index, key, value.dst));
            encode(&message, NLM_F_CREATE | NLM_F_REPLACE)
        }
        Step::Remove(_, value) => encode(&RouteNetlinkMessage::DelNeighbour(message(index, key, value.dst)), 0),
    })
}

fn message(index: u32, key: &FdbKey, dst: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(key.mac.0.to_vec()),
        NeighbourAttribute::Destination(match dst {
            IpAddr::V4(dst) => NeighbourAddress::Inet(dst),
            IpAddr::V6(dst) => NeighbourAddress::Inet6(dst),
        }),
    ];
    message
}

impl Target for Fdbs {
    type Key = FdbKey;
    type Value = Fdb;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<FdbKey, Fdb>, KernelError> {
        let indexes = Indexes::named(&mut self.rtnl, &self.links)?;
        let mut rows = Rows::new();
        for (index, link) in indexes.links() {
            let ours = |entry: &Entry| {
                entry.family == AF_BRIDGE && entry.index == index && entry.permanent && entry.flags & NTF_SELF != 0
            };
            let entries = self.rtnl.entries(AddressFamily::Bridge, index, ours)?;
            rows.extend(entries.into_iter().filter_map(|entry| {
                let key = FdbKey { link: link.clone(), mac: entry.mac? };
                Some((key, Observed { value: Fdb { dst: entry.dst? }, owner: Owner::Ours }))
            }));
        }
        Ok(rows)
    }

    fn apply(&mut self, steps: &[Step<FdbKey, Fdb>]) -> Vec<Result<(), KernelError>> {
        self.rtnl.carry_out(steps, encoded)
    }
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;
    use netstate::MacAddr;

    use crate::golden;

    fn key() -> FdbKey {
        FdbKey { link: IfName::new("flannel.1").unwrap(), mac: MacAddr([2, 0, 0, 0, 0, 0x22]) }
    }

    #[test]
    fn entry_is_the_devices_own_and_permanent() {
        for (dst, hex) in [("10.4.7.22", "0a040716"), ("fd00::22", "fd000000000000000000000000000022")] {
            let message = message(7, &key(), dst.parse().unwrap());
            let message = encode(&RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE);
            // PF_BRIDGE; interface; NUD_PERMANENT; NTF_SELF.
            assert_eq!(
                golden::message(&message, 12),
                format!("type 28 flags 0x500\n070000000700000080000200\n2: 020000000022\n1: {hex}\n")
            );
        }
    }

    #[test]
    fn flooded_frames_have_the_empty_address() {
        let flood = FdbKey { mac: MacAddr([0; 6]), ..key() };
        let message = encode(&RouteNetlinkMessage::DelNeighbour(message(7, &flood, [10, 4, 7, 22].into())), 0);
        assert!(golden::message(&message, 12).contains("2: 000000000000\n"));
    }
}
