//! Permanent neighbours (ARP and ND entries) of some links.
//!
//! Invariant: only permanent entries are rows. What the kernel resolved by itself is unseen and stays, until a desired
//! permanent entry replaces it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netstate::{IfName, MacAddr, Neighbour, NeighbourKey};
use reconcile::{Observed, Owner, Parts, Rows, Step, Target};

use crate::address::family;
use crate::attribute;
use crate::error::KernelError;
use crate::parts::Listing;
use crate::rtnl::{CHUNK, Indexes, Operation, Rtnl, encode, gone_is_fine, verb};
use crate::socket::{Frame, Message};
use crate::written::Written;

/// Bytes of `ndmsg` (include/uapi/linux/neighbour.h).
const NDMSG: usize = 12;
const RTM_NEWNEIGH: u16 = 28;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;

/// One entry of a neighbour or forwarding table as the kernel lists it.
pub(crate) struct Entry {
    pub(crate) family: u8,
    pub(crate) index: u32,
    pub(crate) permanent: bool,
    pub(crate) flags: u8,
    pub(crate) dst: Option<IpAddr>,
    pub(crate) mac: Option<MacAddr>,
}

pub(crate) fn entry(frame: &Frame) -> Option<Entry> {
    if frame.kind == RTM_NEWNEIGH { entry_in(&frame.body) } else { None }
}

/// The entry that a message is about, whether it sets or removes it.
pub(crate) fn entry_in(body: &[u8]) -> Option<Entry> {
    let [family, _, _, _, i0, i1, i2, i3, s0, s1, flags, _] = *body.first_chunk::<NDMSG>()?;
    let attributes = body.get(NDMSG..)?;
    let mac = attribute::find(attributes, NDA_LLADDR).and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    Some(Entry {
        family,
        index: u32::from_ne_bytes([i0, i1, i2, i3]),
        permanent: u16::from_ne_bytes([s0, s1]) & NUD_PERMANENT != 0,
        flags,
        dst: attribute::find(attributes, NDA_DST).and_then(attribute::ip),
        mac: mac.map(MacAddr),
    })
}

fn message(index: u32, addr: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(addr);
    message.header.ifindex = index;
    message.attributes.push(NeighbourAttribute::Destination(match addr {
        IpAddr::V4(addr) => NeighbourAddress::Inet(addr),
        IpAddr::V6(addr) => NeighbourAddress::Inet6(addr),
    }));
    message
}

fn set(index: u32, addr: IpAddr, mac: MacAddr, state: NeighbourState) -> Message {
    let mut message = message(index, addr);
    message.header.state = state;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    encode(&RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
}

fn removal(index: u32, addr: IpAddr) -> Message {
    encode(&RouteNetlinkMessage::DelNeighbour(message(index, addr)), 0)
}

/// Asks for the entries of the link with `index`.
fn entries_of(family: AddressFamily, index: u32) -> (&'static str, RouteNetlinkMessage) {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::IfIndex(index));
    let op = if family == AddressFamily::Bridge { "list forwarding entries" } else { "list neighbours" };
    (op, RouteNetlinkMessage::GetNeighbour(message))
}

/// Makes a row of an entry of the link with that index and name.
type MakeRow<K, V> = fn(Entry, u32, &IfName) -> Option<(K, Observed<V>)>;

/// The entries of each link of `indexes` in parts; `row` makes a row of those of the link with that index and name.
pub(crate) fn entries_in_parts<K: 'static, V: 'static>(
    family: AddressFamily,
    indexes: &Indexes,
    row: MakeRow<K, V>,
) -> Parts<K, V, KernelError> {
    let listing = |(index, link): (u32, &IfName)| {
        let ((op, message), link) = (entries_of(family, index), link.clone());
        Listing::new(op, &message, Box::new(move |frame| row(entry(frame)?, index, &link)))
    };
    let listings: Vec<_> = indexes.links().map(listing).collect();
    Box::new(listings.into_iter().flatten())
}

/// The permanent neighbour on the link with that index and name.
fn row(entry: Entry, index: u32, link: &IfName) -> Option<(NeighbourKey, Observed<Neighbour>)> {
    if entry.index != index || !entry.permanent {
        return None;
    }
    let key = NeighbourKey { link: link.clone(), addr: entry.dst? };
    Some((key, Observed { value: Neighbour { mac: entry.mac? }, owner: Owner::Ours }))
}

impl Rtnl {
    /// Enters which hardware address `addr` now has on the link with `index`, as a fresh ARP reply would: an
    /// address that was used before by another interface is reachable at once.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn learn_neighbour(&mut self, index: u32, addr: IpAddr, mac: MacAddr) -> Result<(), KernelError> {
        let object = format!("{addr} lladdr {mac} on interface {index}");
        let message = set(index, addr, mac, NeighbourState::Stale);
        self.request(&Operation { op: "set neighbour", object, message }).map(drop)
    }

    /// Entries of the link with `index` that `wanted` keeps. The kernel leaves others out since Linux 4.20 (NDA_IFINDEX);
    /// `wanted` has to do so as well.
    pub(crate) fn entries(
        &mut self,
        family: AddressFamily,
        index: u32,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Result<Vec<Entry>, KernelError> {
        let (op, message) = entries_of(family, index);
        match self.list(op, &message, |frame| entry(frame).filter(&wanted)) {
            // The link is gone, and its entries with it.
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(Vec::new()),
            other => other,
        }
    }

    /// Removes what the kernel knows of `addresses` on the link with `index`: nobody has them any more.
    ///
    /// # Errors
    /// The first entry that the kernel refuses to remove; one that does not exist is a success.
    pub fn forget_neighbours(&mut self, index: u32, addresses: &[IpAddr]) -> Result<(), KernelError> {
        let operation = |addr: &IpAddr| {
            let object = format!("{addr} on interface {index}");
            Ok(Operation { op: "delete neighbour", object, message: removal(index, *addr) })
        };
        let operations = addresses.iter().map(operation).collect();
        self.batch(operations).into_iter().try_for_each(gone_is_fine)
    }
}

/// The neighbour of an address on the link with that index is removed: the kernel says who set one, and not who removed it
/// (`neigh_cleanup_and_release`).
pub type RemovedNeighbours = Written<(u32, IpAddr), ()>;

/// The table of permanent neighbours on some links.
#[derive(Debug)]
pub struct Neighbours {
    rtnl: Rtnl,
    links: BTreeSet<IfName>,
    removed: RemovedNeighbours,
}

impl Neighbours {
    /// The permanent neighbours on `links`, all of them ours.
    pub fn new(rtnl: Rtnl, links: impl IntoIterator<Item = IfName>) -> Self {
        Self { rtnl, links: links.into_iter().collect(), removed: RemovedNeighbours::default() }
    }

    /// What this table removes, for whoever reads the kernel's announcements of it.
    #[must_use]
    pub fn removed(&self) -> RemovedNeighbours {
        self.removed.clone()
    }
}

fn encoded(index: u32, step: &Step<NeighbourKey, Neighbour>) -> Message {
    let addr = step.key().addr;
    match step {
        Step::Create(_, want) | Step::Change(_, _, want) => set(index, addr, want.mac, NeighbourState::Permanent),
        Step::Remove(..) => removal(index, addr),
    }
}

impl Target for Neighbours {
    type Key = NeighbourKey;
    type Value = Neighbour;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<NeighbourKey, Neighbour>, KernelError> {
        let indexes = Indexes::named(&mut self.rtnl, &self.links)?;
        let mut rows = Rows::new();
        for (index, link) in indexes.links() {
            let ours = |entry: &Entry| entry.index == index && entry.permanent;
            let entries = self.rtnl.entries(AddressFamily::Unspec, index, ours)?;
            rows.extend(entries.into_iter().filter_map(|entry| row(entry, index, link)));
        }
        Ok(rows)
    }

    fn parts(&mut self) -> Result<Option<Parts<NeighbourKey, Neighbour, KernelError>>, KernelError> {
        let indexes = Indexes::named(&mut self.rtnl, &self.links)?;
        Ok(Some(entries_in_parts(AddressFamily::Unspec, &indexes, row)))
    }

    fn batch(&self) -> usize {
        CHUNK
    }

    fn apply(&mut self, steps: &[Step<NeighbourKey, Neighbour>]) -> Vec<Result<(), KernelError>> {
        let removed = &self.removed;
        let results = self.rtnl.carry_out(steps, |rtnl, step, indexes| {
            let key = step.key();
            let index = indexes.index(rtnl, &key.link, verb(step), key)?;
            match step {
                Step::Remove(..) => removed.note((index, key.addr), ()),
                // It is somebody else who removes this one.
                _ => removed.forget_key((index, key.addr)),
            }
            Ok(encoded(index, step))
        });
        let refused = steps.iter().zip(&results).filter(|(_, result)| result.is_err());
        removed.forget(&refused.map(|(step, _)| step.key().addr).collect(), |(_, addr)| *addr);
        results
    }
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;
    use crate::attribute::Writer;
    use crate::golden;

    fn listed(family: u8, state: u16, fill: impl FnOnce(&mut Writer)) -> Frame {
        let [s0, s1] = state.to_ne_bytes();
        let mut body = Writer::behind(vec![family, 0, 0, 0, 7, 0, 0, 0, s0, s1, 0x02, 0]);
        fill(&mut body);
        golden::frame(RTM_NEWNEIGH, body.finish())
    }

    #[test]
    fn permanent_entry_is_written_in_one_message() {
        let message = set(7, "172.7.22.0".parse().unwrap(), MacAddr([2, 0, 0, 0, 0, 0x22]), NeighbourState::Permanent);
        assert_eq!(
            golden::message(&message, NDMSG),
            "type 28 flags 0x500\n02000000070000008000000\n".replace("8000000\n", "80000000\n")
                + "1: ac071600\n2: 020000000022\n"
        );
        let six = set(7, "fd00::1".parse().unwrap(), MacAddr([2; 6]), NeighbourState::Stale);
        let text = golden::message(&six, NDMSG);
        assert!(text.contains("\n0a0000000700000004000000\n1: fd000000000000000000000000000001\n"), "{text}");
    }

    #[test]
    fn removal_names_the_address_only() {
        assert_eq!(
            golden::message(&removal(7, "172.7.22.0".parse().unwrap()), NDMSG),
            "type 29 flags 0x0\n020000000700000000000000\n1: ac071600\n"
        );
    }

    #[test]
    fn entry_is_read_with_state_flags_and_both_addresses() {
        let frame = listed(2, NUD_PERMANENT, |body| {
            body.put(NDA_DST, &[172, 7, 22, 0]).put(NDA_LLADDR, &[2, 0, 0, 0, 0, 0x22]).put(99, b"unknown");
        });
        let read = entry(&frame).unwrap();
        assert_eq!((read.family, read.index, read.permanent, read.flags), (2, 7, true, 2));
        assert_eq!(read.dst, Some("172.7.22.0".parse().unwrap()));
        assert_eq!(read.mac, Some(MacAddr([2, 0, 0, 0, 0, 0x22])));
        // Reachable, with other bits.
        assert!(!entry(&listed(2, 0x02, |_| {})).unwrap().permanent);
    }

    #[test]
    fn entry_without_or_with_other_addresses_is_still_one() {
        let bare = entry(&listed(7, NUD_PERMANENT, |_| {})).unwrap();
        assert_eq!((bare.dst, bare.mac), (None, None));
        let long = entry(&listed(7, NUD_PERMANENT, |body| {
            // An InfiniBand address, and one of no family.
            body.put(NDA_LLADDR, &[0; 20]).put(NDA_DST, &[0; 5]);
        }));
        let long = long.unwrap();
        assert_eq!((long.dst, long.mac), (None, None));
    }

    #[test]
    fn torn_and_other_messages_are_no_entries() {
        let whole = listed(2, NUD_PERMANENT, |_| {});
        assert!(golden::torn(RTM_NEWNEIGH, &whole.body).all(|frame| entry(&frame).is_none()));
        assert!(entry(&golden::frame(29, whole.body)).is_none(), "a removal");
    }
}
