//! The rules that mark a flow's packets: bare, inside ipip, and inside VXLAN.
//!
//! Invariant: a packet is marked only when address, protocol and port of the known end are its own; options of IP headers
//! are not expected, since nothing that is followed has any.

use std::net::IpAddr;

use netstate::nft::Op;
use netstate::{IpFamily, Protocol};

use super::Flow;
use crate::nft::expression::{Expression, base, meta};
use crate::nft::field::addr_bytes;

/// NFT_META_NFTRACE (enum nft_meta_keys).
const NFTRACE: u32 = 12;

/// IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_IPIP, IPPROTO_IPV6.
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
const IPIP: u8 = 4;
const IPV6: u8 = 41;

/// Bytes of a UDP, a VXLAN, an Ethernet and an ICMP header.
const UDP: u32 = 8;
const VXLAN: u32 = 8;
const ETHERNET: u32 = 14;
const ICMP_HEADER: u32 = 8;

/// Where the parts of a family's header are.
struct Header {
    length: u32,
    protocol: u32,
    source: u32,
    destination: u32,
    ethertype: [u8; 2],
    icmp: u8,
}

const fn header(family: IpFamily) -> Header {
    match family {
        IpFamily::V4 => {
            Header { length: 20, protocol: 9, source: 12, destination: 16, ethertype: [0x08, 0x00], icmp: ICMP }
        }
        IpFamily::V6 => {
            Header { length: 40, protocol: 6, source: 8, destination: 24, ethertype: [0x86, 0xdd], icmp: ICMP6 }
        }
    }
}

/// One program for each shape in which the flow's packets pass.
pub(super) fn marking(flow: &Flow) -> Vec<Vec<Expression>> {
    let mut programs = Vec::new();
    let family = IpFamily::of(flow.source.ip());
    for shape in [Shape::Sent, Shape::Received, Shape::Quoted] {
        let mut bare = vec![load_meta(meta::NFPROTO), equal(vec![number_of(family)])];
        bare.push(load_meta(meta::L4PROTO));
        bare.push(equal(vec![shape.protocol(flow, family)]));
        bare.extend(shape.ends(flow, (base::NETWORK, 0), (base::TRANSPORT, 0)));
        programs.push(bare);
        let outer = if family == IpFamily::V4 { IPIP } else { IPV6 };
        let mut tunnel = vec![load_meta(meta::L4PROTO), equal(vec![outer])];
        tunnel.extend(shape.inside(flow, 0));
        programs.push(tunnel);
        for port in &flow.vxlan {
            let mut vxlan = vec![load_meta(meta::L4PROTO), equal(vec![Protocol::Udp.number()])];
            vxlan.extend([load(base::TRANSPORT, 2, 2), equal(port.to_be_bytes().to_vec())]);
            let ethertype = UDP + VXLAN + ETHERNET - 2;
            vxlan.extend([load(base::TRANSPORT, ethertype, 2), equal(header(family).ethertype.to_vec())]);
            vxlan.extend(shape.inside(flow, UDP + VXLAN + ETHERNET));
            programs.push(vxlan);
        }
    }
    for program in &mut programs {
        program.push(Expression::Immediate { to: 0, data: vec![1] });
        program.push(Expression::MetaSet { key: NFTRACE, from: 0 });
    }
    programs
}

/// What a packet of the flow looks like.
#[derive(Clone, Copy)]
enum Shape {
    /// From the known end.
    Sent,
    /// To it.
    Received,
    /// ICMP to it about what it sent.
    Quoted,
}

impl Shape {
    fn protocol(self, flow: &Flow, family: IpFamily) -> u8 {
        match self {
            Self::Sent | Self::Received => flow.protocol.number(),
            Self::Quoted => header(family).icmp,
        }
    }

    /// The packet whose IP header starts at `at` of the outer packet's payload.
    fn inside(self, flow: &Flow, at: u32) -> Vec<Expression> {
        let family = IpFamily::of(flow.source.ip());
        let header = header(family);
        let protocol = [load(base::TRANSPORT, at + header.protocol, 1), equal(vec![self.protocol(flow, family)])];
        let ends = self.ends(flow, (base::TRANSPORT, at), (base::TRANSPORT, at + header.length));
        protocol.into_iter().chain(ends).collect()
    }

    /// Address and port of the known end, in headers at the places `network` and `transport`.
    fn ends(self, flow: &Flow, network: (u32, u32), transport: (u32, u32)) -> Vec<Expression> {
        let header = header(IpFamily::of(flow.source.ip()));
        let (address, port) = (addr_bytes(flow.source.ip()), flow.source.port().to_be_bytes().to_vec());
        let length = address_length(flow.source.ip());
        let at = |(base, start): (u32, u32), offset: u32, length: u32| load(base, start + offset, length);
        let [where_address, where_port] = match self {
            Self::Sent => [at(network, header.source, length), at(transport, 0, 2)],
            Self::Received => [at(network, header.destination, length), at(transport, 2, 2)],
            Self::Quoted => {
                [at(transport, ICMP_HEADER + header.source, length), at(transport, ICMP_HEADER + header.length, 2)]
            }
        };
        vec![where_address, equal(address), where_port, equal(port)]
    }
}

const fn number_of(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 2,
        IpFamily::V6 => 10,
    }
}

const fn address_length(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(_) => 4,
        IpAddr::V6(_) => 16,
    }
}

const fn load_meta(key: u32) -> Expression {
    Expression::Meta { key, to: 0 }
}

const fn load(base: u32, offset: u32, length: u32) -> Expression {
    Expression::Payload { base, offset, length, to: 0 }
}

const fn equal(data: Vec<u8>) -> Expression {
    Expression::Compare { from: 0, op: Op::Is, data }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places and lengths that a program reads of the packet, with what must be there.
    fn reads(program: &[Expression]) -> Vec<(u32, u32, u32, Vec<u8>)> {
        let pairs = program.windows(2).filter_map(|pair| match pair {
            [Expression::Payload { base, offset, length, .. }, Expression::Compare { data, .. }] => {
                Some((*base, *offset, *length, data.clone()))
            }
            _ => None,
        });
        pairs.collect()
    }

    fn flow(source: &str, vxlan: &[u16]) -> Flow {
        Flow { source: source.parse().unwrap(), protocol: Protocol::Tcp, vxlan: vxlan.to_vec() }
    }

    const PORT: [u8; 2] = [0x1f, 0x90];

    #[test]
    fn bare_packets_are_known_by_address_and_port_of_the_known_end() {
        let v4 = marking(&flow("172.7.21.2:8080", &[]));
        assert_eq!(v4.len(), 6, "sent, received and quoted, each bare and in ipip");
        let address = vec![172, 7, 21, 2];
        let at = |base, offset, length, data: &[u8]| (base, offset, length, data.to_vec());
        let (network, transport) = (base::NETWORK, base::TRANSPORT);
        assert_eq!(reads(&v4[0]), [at(network, 12, 4, &address), at(transport, 0, 2, &PORT)]);
        assert_eq!(reads(&v4[2]), [at(network, 16, 4, &address), at(transport, 2, 2, &PORT)]);
        // Behind ICMP's header the packet that it is about: its source is the known end.
        assert_eq!(reads(&v4[4]), [at(transport, 20, 4, &address), at(transport, 28, 2, &PORT)]);
        let v6 = marking(&flow("[fd00::2]:8080", &[]));
        let offsets = |program: &[Expression]| {
            reads(program).iter().map(|(_, offset, length, _)| (*offset, *length)).collect::<Vec<_>>()
        };
        assert_eq!(offsets(&v6[0]), [(8, 16), (0, 2)]);
        assert_eq!(offsets(&v6[2]), [(24, 16), (2, 2)]);
        assert_eq!(offsets(&v6[4]), [(16, 16), (48, 2)]);
    }

    #[test]
    fn wrapped_packets_are_known_behind_the_headers_of_their_tunnel() {
        let programs = marking(&flow("172.7.21.2:8080", &[8472]));
        let offsets = |program: &[Expression]| {
            reads(program).iter().map(|(_, offset, length, _)| (*offset, *length)).collect::<Vec<_>>()
        };
        // ipip: protocol, source and port of the inner packet.
        assert_eq!(offsets(&programs[1]), [(9, 1), (12, 4), (20, 2)]);
        // VXLAN: its port, the inner type; then the inner packet behind 30 bytes.
        assert_eq!(offsets(&programs[2]), [(2, 2), (28, 2), (39, 1), (42, 4), (50, 2)]);
        assert_eq!(reads(&programs[2])[0].3, 8472u16.to_be_bytes());
        let v6 = marking(&flow("[fd00::2]:8080", &[8472]));
        assert_eq!(offsets(&v6[2]), [(2, 2), (28, 2), (36, 1), (38, 16), (70, 2)]);
    }

    #[test]
    fn every_program_ends_with_the_mark_for_tracing() {
        for program in marking(&flow("172.7.21.2:8080", &[8472, 4789])) {
            let [.., Expression::Immediate { data, .. }, Expression::MetaSet { key: NFTRACE, .. }] = program.as_slice()
            else {
                panic!("{program:?}")
            };
            assert_eq!(data, &[1]);
        }
    }
}
