//! One rtnetlink message as bytes (RFC 3549 §2.2, include/uapi/linux/rtnetlink.h).
//!
//! Invariant: a message is complete at every moment: its length field and the paddings are right after each call.

use std::net::Ipv4Addr;

/// Attribute of a link: settings as a bridge port (linux/if_link.h).
pub(crate) const IFLA_PROTINFO: u16 = 12;
/// Inside it: hairpin mode.
pub(crate) const IFLA_BRPORT_MODE: u16 = 4;
/// Attribute of a veth: its other end (linux/veth.h).
pub(crate) const VETH_INFO_PEER: u16 = 1;

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// Length of `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
const NLA_F_NESTED: u16 = 1 << 15;

/// A request.
pub(crate) struct Message {
    bytes: Vec<u8>,
}

/// What the kernel reports of a link.
#[derive(Clone, Copy)]
pub(crate) struct Reply {
    pub(crate) index: i32,
    /// Index of a veth's other end, in its own namespace.
    pub(crate) peer_index: i32,
}

impl Message {
    fn new(kind: u16, flags: i32, body: &[u8]) -> Self {
        let mut message = Self { bytes: Vec::with_capacity(512) };
        let flags = u16::try_from(libc::NLM_F_REQUEST | flags).unwrap_or_default();
        message.bytes.extend([0; 4]);
        message.bytes.extend(kind.to_ne_bytes());
        message.bytes.extend(flags.to_ne_bytes());
        message.bytes.extend([0; 8]);
        message.put(body);
        message
    }

    /// A message about a link; `state` is `IFF_UP` to bring it up, 0 to leave it.
    pub(crate) fn link(kind: u16, flags: i32, family: i32, index: i32, state: i32) -> Self {
        Self::new(kind, flags, &link_header(family, index, state))
    }

    /// RTM_NEWADDR of an address with its broadcast address, as `ip address add ... brd +`.
    pub(crate) fn address(index: i32, addr: Ipv4Addr, length: u8) -> Self {
        let mut body = vec![2, length, 0, 0];
        body.extend(index.to_ne_bytes());
        let mut message = Self::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &body);
        let hosts = u32::MAX.checked_shr(u32::from(length)).unwrap_or(0);
        let broadcast = Ipv4Addr::from_bits(addr.to_bits() | hosts);
        message.attribute(libc::IFA_LOCAL, &addr.octets());
        message.attribute(libc::IFA_ADDRESS, &addr.octets());
        message.attribute(libc::IFA_BROADCAST, &broadcast.octets());
        message
    }

    /// RTM_NEWROUTE through a gateway, in the main table.
    pub(crate) fn route(index: i32, (dst, length): (Ipv4Addr, u8), via: Ipv4Addr) -> Self {
        let body = [2, length, 0, 0, libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, 0, libc::RTN_UNICAST, 0, 0, 0, 0];
        let mut message = Self::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &body);
        if length > 0 {
            message.attribute(libc::RTA_DST, &dst.octets());
        }
        message.attribute(libc::RTA_GATEWAY, &via.octets());
        message.attribute(libc::RTA_OIF, &index.to_ne_bytes());
        message
    }

    /// RTM_NEWNEIGH of an entry that ages, without its attributes.
    pub(crate) fn neighbour(index: i32) -> Self {
        let mut body = vec![2, 0, 0, 0];
        body.extend(index.to_ne_bytes());
        body.extend(libc::NUD_STALE.to_ne_bytes());
        body.extend([0, 0]);
        Self::new(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &body)
    }

    /// Appends bytes that are a multiple of four long.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.set_length();
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.set_length();
    }

    /// A text with its closing NUL.
    pub(crate) fn name(&mut self, kind: u16, name: &str) {
        let mut bytes = name.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.attribute(kind | NLA_F_NESTED, &[]);
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        if let Some(field) = self.bytes.get_mut(start..start + 2) {
            field.copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// The bytes to send, with sequence number and, when asked for, a request to acknowledge.
    pub(crate) fn bytes(&self, sequence: u32, acknowledge: bool) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        if acknowledge && let Some(flags) = bytes.get_mut(6) {
            *flags |= u8::try_from(libc::NLM_F_ACK).unwrap_or_default();
        }
        if let Some(field) = bytes.get_mut(8..12) {
            field.copy_from_slice(&sequence.to_ne_bytes());
        }
        bytes
    }

    fn set_length(&mut self) {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        if let Some(field) = self.bytes.get_mut(..4) {
            field.copy_from_slice(&length.to_ne_bytes());
        }
    }
}

/// `struct ifinfomsg`; only the flag in `state` is changed.
pub(crate) fn link_header(family: i32, index: i32, state: i32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    let family = u8::try_from(family).unwrap_or_default();
    let fields = [u32::from(family).to_le_bytes(), index.to_ne_bytes(), state.to_ne_bytes(), state.to_ne_bytes()];
    for (place, byte) in header.iter_mut().zip(fields.into_iter().flatten()) {
        *place = byte;
    }
    header
}

impl Reply {
    /// Reads an RTM_NEWLINK message, header included.
    pub(crate) fn read(message: &[u8]) -> Option<Self> {
        let index = word(message, HEADER + 4)?;
        let mut reply = Self { index, peer_index: 0 };
        let mut rest = message.get(HEADER + LINK_HEADER..)?;
        while let Some((length, kind)) = half(rest, 0).zip(half(rest, 2)) {
            if kind == libc::IFLA_LINK {
                reply.peer_index = word(rest, 4)?;
            }
            let next = usize::from(length).max(4).next_multiple_of(4);
            rest = rest.get(next..).unwrap_or_default();
        }
        Some(reply)
    }
}

pub(crate) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|field| u16::from_ne_bytes(*field))
}

pub(crate) fn word(bytes: &[u8], at: usize) -> Option<i32> {
    bytes.get(at..)?.first_chunk().map(|field| i32::from_ne_bytes(*field))
}
