//! What both directions, compiling and recognising, have to agree on: how a field of a packet is loaded, and how its
//! values look in a register.

use std::net::IpAddr;

use netstate::nft::{Family, Field, Op, Reject};
use netstate::{IfName, IpFamily};

use super::expression::{Expression, base, ct, meta};

/// Bytes of an interface name in a register (IFNAMSIZ).
const IFNAMSIZ: usize = 16;
/// RTN_LOCAL (include/uapi/linux/rtnetlink.h).
pub(super) const RTN_LOCAL: u32 = 2;
/// NEXTHDR_FRAGMENT (include/net/ipv6.h).
const FRAGMENT: u8 = 44;
/// NF_NAT_RANGE_PROTO_RANDOM_FULLY (include/uapi/linux/netfilter/nf_nat.h).
pub(super) const RANDOM_FULLY: u32 = 0x10;

/// The network protocol that every packet of a table has.
pub(super) const fn known_from(family: Family) -> Option<IpFamily> {
    match family {
        Family::Ip => Some(IpFamily::V4),
        Family::Ip6 => Some(IpFamily::V6),
        Family::Inet | Family::Netdev | Family::Bridge => None,
    }
}

/// The two instructions that let only packets of `wanted` go on, in a table that sees both.
pub(super) fn guard(family: Family, wanted: IpFamily) -> [Expression; 2] {
    let (key, data) = match (family, wanted) {
        // The frame's EtherType, in network order.
        (Family::Bridge | Family::Netdev, IpFamily::V4) => (meta::PROTOCOL, vec![0x08, 0x00]),
        (Family::Bridge | Family::Netdev, IpFamily::V6) => (meta::PROTOCOL, vec![0x86, 0xdd]),
        (_, IpFamily::V4) => (meta::NFPROTO, vec![Family::Ip.number()]),
        (_, IpFamily::V6) => (meta::NFPROTO, vec![Family::Ip6.number()]),
    };
    [Expression::Meta { key, to: 0 }, Expression::Compare { from: 0, op: Op::Is, data }]
}

/// Loads `field` into registers from slot `to` on.
pub(super) fn load(field: Field, to: u8) -> Expression {
    let payload = |base, offset, length| Expression::Payload { base, offset, length, to };
    match field {
        Field::Mark => Expression::Meta { key: meta::MARK, to },
        Field::L4Proto => Expression::Meta { key: meta::L4PROTO, to },
        Field::Iifname => Expression::Meta { key: meta::IIFNAME, to },
        Field::Oifname => Expression::Meta { key: meta::OIFNAME, to },
        // IEEE 802.3 §3.1.1: the receiver's six bytes, then the sender's.
        Field::EtherSaddr => payload(base::LINK, 6, 6),
        // RFC 791 §3.1 and RFC 8200 §3.
        Field::Saddr(IpFamily::V4) => payload(base::NETWORK, 12, 4),
        Field::Daddr(IpFamily::V4) => payload(base::NETWORK, 16, 4),
        Field::Saddr(IpFamily::V6) => payload(base::NETWORK, 8, 16),
        Field::Daddr(IpFamily::V6) => payload(base::NETWORK, 24, 16),
        // The same in TCP, UDP and SCTP.
        Field::Sport => payload(base::TRANSPORT, 0, 2),
        Field::Dport => payload(base::TRANSPORT, 2, 2),
        Field::CtOriginalDaddr(family) => {
            let key = if family == IpFamily::V4 { ct::DST_IP } else { ct::DST_IP6 };
            Expression::Ct { key, direction: Some(ct::ORIGINAL), to }
        }
        Field::Random { below, offset } => Expression::Random { below, offset, to },
    }
}

/// The flags of TCP (RFC 9293 §3.1).
pub(super) const TCP_FLAGS: Expression = Expression::Payload { base: base::TRANSPORT, offset: 13, length: 1, to: 0 };
pub(super) const SYN: u8 = 0x02;
pub(super) const ACK: u8 = 0x10;

/// What asks whether a packet is whole: fragment offset and MF are zero (RFC 791 §3.1), or it has no fragment header (RFC 8200 §4.5).
pub(super) fn whole(family: IpFamily) -> Vec<Expression> {
    let compare = |data| Expression::Compare { from: 0, op: Op::Is, data };
    match family {
        IpFamily::V4 => vec![
            Expression::Payload { base: base::NETWORK, offset: 6, length: 2, to: 0 },
            Expression::Bitwise { from: 0, to: 0, mask: vec![0x3f, 0xff], xor: vec![0; 2] },
            compare(vec![0; 2]),
        ],
        IpFamily::V6 => vec![Expression::HasHeader { header: FRAGMENT, to: 0 }, compare(vec![0])],
    }
}

/// Slots that a field or a value of `bytes` takes.
pub(super) fn slots(bytes: usize) -> u8 {
    u8::try_from(bytes.div_ceil(4)).unwrap_or(u8::MAX)
}

/// The network header that a field is read from, if it is.
pub(super) const fn header_of(field: Field) -> Option<IpFamily> {
    match field {
        Field::Saddr(family) | Field::Daddr(family) => Some(family),
        _ => None,
    }
}

pub(super) fn name_bytes(name: &IfName) -> Vec<u8> {
    let mut bytes = name.as_str().as_bytes().to_vec();
    bytes.resize(IFNAMSIZ, 0);
    bytes
}

pub(super) fn addr_bytes(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// Type and code (enum nft_reject_types; ICMP code 3 and ICMPv6 code 4 are port unreachable, RFC 792 and RFC 4443).
pub(super) const fn reject_code(family: Family, reject: Reject) -> (u32, u8) {
    match (reject, family) {
        (Reject::TcpReset, _) => (1, 0),
        (Reject::PortUnreachable, Family::Ip) => (0, 3),
        (Reject::PortUnreachable, Family::Ip6) => (0, 4),
        // NFT_REJECT_ICMPX_PORT_UNREACH.
        (Reject::PortUnreachable, Family::Inet | Family::Netdev | Family::Bridge) => (2, 1),
    }
}

/// `bits` ones, then zeros, in `length` bytes.
pub(super) fn mask_bytes(bits: u8, length: usize) -> Vec<u8> {
    let ones = |index: usize| usize::from(bits).saturating_sub(index * 8).min(8);
    (0..length).map(|index| u8::try_from(0xff00_u16 >> ones(index) & 0xff).unwrap_or(0)).collect()
}
