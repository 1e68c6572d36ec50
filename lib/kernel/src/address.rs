//! Addresses of links.
//!
//! Invariant: the table reads and writes only the links it was given; every other address of the host is unseen.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
#[cfg(feature = "watch")]
use netstate::InterfaceAddress;
use netstate::{Address, AddressKey, IfName, IpFamily, Prefix};
use reconcile::{Observed, Owner, PartsOf, Rows, Step, Target};

use crate::attribute;
use crate::error::KernelError;
use crate::parts::Listing;
use crate::rtnl::{Indexes, Operation, Rtnl, encode, gone_is_fine, verb};
use crate::socket::{Frame, Message};

/// Bytes of `ifaddrmsg` (include/uapi/linux/if_addr.h).
const IFADDRMSG: usize = 8;
pub(crate) const RTM_NEWADDR: u16 = 20;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_TENTATIVE: u32 = 0x40;
#[cfg(feature = "watch")]
const IFA_F_SECONDARY: u32 = 0x01;
#[cfg(feature = "watch")]
const IFA_F_DEPRECATED: u32 = 0x20;
#[cfg(feature = "watch")]
const IFA_F_PERMANENT: u32 = 0x80;

/// How far the search for a second owner of an IPv6 address is (RFC 4862 §5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DuplicateDetection {
    /// It still runs: nothing is sent from the address, nothing taken for it.
    Running,
    /// Another machine on the link has the address.
    Failed,
}

impl Rtnl {
    /// All addresses of the namespace, as (interface index, address, prefix length).
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn addresses(&mut self) -> Result<Vec<(u32, IpAddr, u8)>, KernelError> {
        self.list_addresses(0)
    }

    /// The addresses of the link with `index`.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn addresses_of(&mut self, index: u32) -> Result<Vec<(IpAddr, u8)>, KernelError> {
        let all = self.list_addresses(index)?;
        Ok(all.into_iter().map(|(_, addr, len)| (addr, len)).collect())
    }

    /// Of the link with `index`, or with 0 of all.
    fn list_addresses(&mut self, index: u32) -> Result<Vec<(u32, IpAddr, u8)>, KernelError> {
        let mut found = Vec::new();
        for of in IpFamily::ALL {
            match self.list("list addresses", &addresses_in(of, index), |frame| row_in(frame, of, index)) {
                Ok(rows) => found.extend(rows),
                // With a filter the kernel says so when the link is gone.
                Err(error) if error.errno() == Some(libc::ENODEV) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Addresses of the link with `index` that cannot be used, or not yet, because of the search for a second owner.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn unusable_addresses(&mut self, index: u32) -> Result<Vec<(IpAddr, DuplicateDetection)>, KernelError> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.family = AddressFamily::Inet6;
        let frames = self.dump("list addresses", &RouteNetlinkMessage::GetAddress(message))?;
        let of_link = |frame: &&Frame| row(frame).is_some_and(|(of, ..)| of == index);
        Ok(frames.iter().filter(of_link).filter_map(detection).collect())
    }

    /// Adds `addr/len` to the link with `index`; the broadcast address of an IPv4 network is set, and an IPv6 address
    /// is usable at once (no duplicate address detection: the address was leased to us alone).
    ///
    /// # Errors
    /// EEXIST when it is there already; anything the kernel refuses.
    pub fn add_address(&mut self, index: u32, addr: IpAddr, len: u8) -> Result<(), KernelError> {
        let operation = add(index, addr, len, false, NLM_F_CREATE | NLM_F_EXCL);
        self.request(&operation).map(drop)
    }

    /// Takes `addr/len` off the link with `index`.
    ///
    /// # Errors
    /// When the kernel refuses; an address that is not there is a success.
    pub fn delete_address(&mut self, index: u32, addr: IpAddr, len: u8) -> Result<(), KernelError> {
        gone_is_fine(self.request(&remove(index, addr, len)).map(drop))
    }
}

/// Asks for the addresses of the link with `index`, or with 0 of all. Each family is a listing of its own: of one of all families the
/// kernel does not mark as interrupted what it has left out at the end of one (`rtnl_dump_all`).
fn addresses_in(of: IpFamily, index: u32) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.family = if of == IpFamily::V4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    RouteNetlinkMessage::GetAddress(message)
}

/// What was asked for: a kernel without IPv6 lists all families when it is asked for that.
fn row_in(frame: &Frame, of: IpFamily, index: u32) -> Option<(u32, IpAddr, u8)> {
    row(frame).filter(|(link, addr, _)| IpFamily::of(*addr) == of && (index == 0 || *link == index))
}

pub(crate) const fn family(addr: IpAddr) -> AddressFamily {
    if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn message(index: u32, addr: IpAddr, len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(addr);
    message.header.prefix_len = len;
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![AddressAttribute::Local(addr), AddressAttribute::Address(addr)];
    message
}

/// With `detect`, an IPv6 address becomes usable only when nobody else on the link turns out to have it.
pub(crate) fn add(index: u32, addr: IpAddr, len: u8, detect: bool, flags: u16) -> Operation {
    let mut message = message(index, addr, len);
    if addr.is_ipv6() && !detect {
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message.attributes.extend(broadcast(addr, len).map(AddressAttribute::Broadcast));
    let object = format!("{addr}/{len} on interface {index}");
    Operation { op: "add address", object, message: encode(&RouteNetlinkMessage::NewAddress(message), flags) }
}

fn remove(index: u32, addr: IpAddr, len: u8) -> Operation {
    let object = format!("{addr}/{len} on interface {index}");
    let message = RouteNetlinkMessage::DelAddress(message(index, addr, len));
    Operation { op: "delete address", object, message: encode(&message, 0) }
}

/// The last address of an IPv4 network that has room for one.
fn broadcast(addr: IpAddr, len: u8) -> Option<Ipv4Addr> {
    if len > 30 {
        return None;
    }
    match Prefix::new(addr, len).ok()?.last() {
        IpAddr::V4(last) => Some(last),
        IpAddr::V6(_) => None,
    }
}

pub(crate) fn row(frame: &Frame) -> Option<(u32, IpAddr, u8)> {
    if frame.kind != RTM_NEWADDR {
        return None;
    }
    fields(frame)
}

/// Index of the link, address and prefix length in the message, whatever it says of them.
fn fields(frame: &Frame) -> Option<(u32, IpAddr, u8)> {
    let [_, len, _, _, i0, i1, i2, i3] = *frame.body.first_chunk::<IFADDRMSG>()?;
    let attributes = frame.body.get(IFADDRMSG..)?;
    // On a point-to-point link IFA_ADDRESS is the other end.
    let addr = attribute::find(attributes, IFA_LOCAL).or_else(|| attribute::find(attributes, IFA_ADDRESS))?;
    Some((u32::from_ne_bytes([i0, i1, i2, i3]), attribute::ip(addr)?, len))
}

/// The flags: the long ones hold all of them, those of the header the first eight.
fn flags(frame: &Frame) -> Option<u32> {
    let short = u32::from(*frame.body.get(2)?);
    Some(attribute::find(frame.body.get(IFADDRMSG..)?, IFA_FLAGS).and_then(attribute::u32).unwrap_or(short))
}

/// The address that a notification is about, with the index of its link.
#[cfg(feature = "watch")]
pub(crate) fn interface_address(frame: &Frame) -> Option<(u32, InterfaceAddress)> {
    let (index, addr, len) = fields(frame)?;
    let flags = flags(frame)?;
    let address = InterfaceAddress {
        addr,
        len,
        unfit: flags & (IFA_F_DEPRECATED | IFA_F_TENTATIVE | IFA_F_DADFAILED) != 0,
        dynamic: flags & IFA_F_PERMANENT == 0,
        temporary: addr.is_ipv6() && flags & IFA_F_SECONDARY != 0,
    };
    Some((index, address))
}

pub(crate) fn detection(frame: &Frame) -> Option<(IpAddr, DuplicateDetection)> {
    let (_, addr, _) = row(frame)?;
    let flags = flags(frame)?;
    if flags & IFA_F_DADFAILED != 0 {
        return Some((addr, DuplicateDetection::Failed));
    }
    (flags & IFA_F_TENTATIVE != 0).then_some((addr, DuplicateDetection::Running))
}

/// The table of addresses on some links.
#[derive(Debug)]
pub struct Addresses {
    rtnl: Rtnl,
    links: BTreeSet<IfName>,
}

impl Addresses {
    /// The addresses of `links`, all of them ours, except IPv6 link-local ones, which the kernel makes.
    pub fn new(rtnl: Rtnl, links: impl IntoIterator<Item = IfName>) -> Self {
        Self { rtnl, links: links.into_iter().collect() }
    }
}

/// The row of an address on `link`; none of an IPv6 link-local one.
fn row_of(link: &IfName, (addr, len): (IpAddr, u8)) -> Option<(AddressKey, Observed<Address>)> {
    if matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        return None;
    }
    Some((AddressKey { link: link.clone(), addr, len }, Observed { value: Address, owner: Owner::Ours }))
}

fn encoded(rtnl: &mut Rtnl, step: &Step<AddressKey, Address>, indexes: &mut Indexes) -> Result<Message, KernelError> {
    let key = step.key();
    let index = indexes.index(rtnl, &key.link, verb(step), key)?;
    Ok(match step {
        Step::Remove(..) => remove(index, key.addr, key.len).message,
        _ => add(index, key.addr, key.len, false, NLM_F_CREATE | NLM_F_REPLACE).message,
    })
}

impl Target for Addresses {
    type Key = AddressKey;
    type Value = Address;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<AddressKey, Address>, KernelError> {
        let indexes = Indexes::named(&mut self.rtnl, &self.links)?;
        let mut rows = Rows::new();
        for (index, link) in indexes.links() {
            let found = self.rtnl.addresses_of(index)?;
            rows.extend(found.into_iter().filter_map(|address| row_of(link, address)));
        }
        Ok(rows)
    }

    fn parts(&mut self) -> Result<Option<PartsOf<Self>>, KernelError> {
        let listing = |index: u32, link: &IfName, of: IpFamily| {
            let link = link.clone();
            let read =
                move |frame: &Frame| row_in(frame, of, index).and_then(|(_, addr, len)| row_of(&link, (addr, len)));
            Listing::new("list addresses", &addresses_in(of, index), Box::new(read))
        };
        let indexes = Indexes::named(&mut self.rtnl, &self.links)?;
        let listings: Vec<_> =
            indexes.links().flat_map(|(index, link)| IpFamily::ALL.map(|of| listing(index, link, of))).collect();
        Ok(Some(Box::new(listings.into_iter().flatten())))
    }

    fn apply(&mut self, steps: &[Step<AddressKey, Address>]) -> Vec<Result<(), KernelError>> {
        self.rtnl.carry_out(steps, encoded)
    }
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;
    use crate::attribute::Writer;
    use crate::golden;

    fn listed(header: [u8; IFADDRMSG], fill: impl FnOnce(&mut Writer)) -> Frame {
        let mut body = Writer::behind(header.to_vec());
        fill(&mut body);
        golden::frame(RTM_NEWADDR, body.finish())
    }

    /// IPv6, /64, scope universe, interface 7.
    const fn six(flags: u8) -> [u8; IFADDRMSG] {
        [10, 64, flags, 0, 7, 0, 0, 0]
    }

    #[test]
    fn address_is_added_with_its_broadcast() {
        let added = |addr: &str, len, detect| {
            golden::message(&add(7, addr.parse().unwrap(), len, detect, NLM_F_CREATE).message, IFADDRMSG)
        };
        assert_eq!(
            added("172.7.21.1", 24, false),
            "type 20 flags 0x400\n0218000007000000\n2: ac071501\n1: ac071501\n4: ac0715ff\n"
        );
        for len in [31, 32] {
            assert!(!added("172.7.21.1", len, false).contains("\n4: "), "/{len} has no room for a broadcast address");
        }
        // IPv6 has none; without detection it is usable at once.
        let quick = added("fd00::1", 64, false);
        assert_eq!(
            quick,
            "type 20 flags 0x400\n0a40020007000000\n2: fd000000000000000000000000000001\n\
             1: fd000000000000000000000000000001\n8: 02000000\n"
        );
        let detected = added("fd00::1", 64, true);
        assert!(detected.contains("\n0a40000007000000\n") && !detected.contains("\n8: "), "{detected}");
    }

    #[test]
    fn removal_names_the_address_twice_and_nothing_more() {
        let removal = remove(7, "172.7.21.1".parse().unwrap(), 24);
        assert_eq!(
            golden::message(&removal.message, IFADDRMSG),
            "type 21 flags 0x0\n0218000007000000\n2: ac071501\n1: ac071501\n"
        );
    }

    #[test]
    fn own_end_of_a_point_to_point_link_is_the_address() {
        let frame = listed([2, 32, 0, 0, 7, 0, 0, 0], |body| {
            body.put(IFA_ADDRESS, &[10, 9, 0, 2]).put(IFA_LOCAL, &[10, 9, 0, 1]).put(77, b"unknown");
        });
        assert_eq!(row(&frame), Some((7, "10.9.0.1".parse().unwrap(), 32)));
        let six = listed(six(0), |body| {
            body.put(IFA_ADDRESS, &[0xfd; 16]);
        });
        assert_eq!(row(&six).map(|(index, _, len)| (index, len)), Some((7, 64)));
    }

    #[test]
    fn torn_and_other_messages_are_no_addresses() {
        let whole = listed(six(0), |body| {
            body.put(IFA_ADDRESS, &[0xfd; 16]);
        });
        assert!(golden::torn(RTM_NEWADDR, &whole.body).all(|frame| row(&frame).is_none()));
        assert_eq!(row(&golden::frame(21, whole.body)), None, "a removal");
        assert_eq!(row(&listed(six(0), |_| {})), None, "no address in it");
    }

    #[test]
    fn detection_shows_in_the_long_flags_or_the_short_ones() {
        let read = |short: u8, long: Option<u32>| {
            let frame = listed(six(short), |body| {
                body.put(IFA_ADDRESS, &[0xfd; 16]);
                if let Some(long) = long {
                    body.put(IFA_FLAGS, &long.to_ne_bytes());
                }
            });
            detection(&frame).map(|(_, state)| state)
        };
        assert_eq!(read(0, None), None);
        assert_eq!(read(0x40, None), Some(DuplicateDetection::Running));
        assert_eq!(read(0x08, None), Some(DuplicateDetection::Failed));
        assert_eq!(read(0x40, Some(0x80)), None, "the long ones count");
        assert_eq!(read(0, Some(0x48)), Some(DuplicateDetection::Failed));
    }
}
