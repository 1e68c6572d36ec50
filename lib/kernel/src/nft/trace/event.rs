//! One message of the kernel about a traced packet.
//!
//! Invariant: a message that says nothing of where the packet is or what became of it is no event.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netstate::IpFamily;
use netstate::nft::{Family, Hook, Name, TableKey};

use super::{End, Flow, place_of};
use crate::attribute;
use crate::nft::wire::{name, number, payload};
use crate::socket::Frame;

/// NFT_MSG_TRACE.
const TRACE: u16 = 17;

/// enum nft_trace_attributes.
const TABLE: u16 = 1;
const CHAIN: u16 = 2;
const RULE: u16 = 3;
const TYPE: u16 = 4;
const VERDICT: u16 = 5;
const ID: u16 = 6;
const NETWORK: u16 = 8;
const TRANSPORT: u16 = 9;
const IIF: u16 = 10;
const OIF: u16 = 12;
const PROTOCOL: u16 = 15;
const POLICY: u16 = 16;

/// enum nft_trace_types.
const BY_POLICY: u32 = 1;
const BY_RULE: u32 = 3;

/// NFTA_VERDICT_CODE, NF_DROP.
const CODE: u16 = 1;
const DROP: u32 = 0;

/// UDP, ipip and IPv6 in IPv4, by their numbers.
const UDP: u8 = 17;
const TUNNELS: [u8; 2] = [4, 41];

/// Where a packet is, or what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It has come to this end of this hook.
    At(Hook, End),
    /// It was dropped here: by the rule with this handle, or by the chain's policy.
    Dropped {
        /// The table.
        table: TableKey,
        /// The chain.
        chain: Name,
        /// The rule's handle; `None` for the policy.
        rule: Option<u64>,
    },
}

/// What the kernel says of a packet of the flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Where it is, or what became of it.
    pub fate: Fate,
    /// Index of the interface that it came in by; it is this host's own without one.
    pub came_by: Option<u32>,
    /// Index of the interface that it leaves by, where that is known.
    pub leaves_by: Option<u32>,
    /// Its source address, and the port if it has ports.
    pub source: SocketAddr,
    /// Where it goes, as `source`.
    pub destination: SocketAddr,
    /// It holds the flow's packet inside.
    pub is_tunnel: bool,
}

impl Event {
    pub(super) fn read(frame: &Frame, own: &TableKey, flow: &Flow, packets: &mut Packets) -> Option<Self> {
        let (family, attributes) = payload(frame, TRACE)?;
        let packet = number(attributes, ID)?;
        let protocol = number(attributes, PROTOCOL).and_then(family_of)?;
        if let Some(found) = ends(protocol, attributes, flow) {
            packets.insert(packet, found);
        }
        let fate = fate(family, attributes, own)?;
        let Ends { source, destination, came_by, leaves_by, is_tunnel } = *packets.0.get(&packet)?;
        Some(Self { fate, came_by, leaves_by, source, destination, is_tunnel })
    }
}

/// What the headers of a packet say, and between which interfaces it is.
#[derive(Debug, Clone, Copy)]
struct Ends {
    source: SocketAddr,
    destination: SocketAddr,
    came_by: Option<u32>,
    leaves_by: Option<u32>,
    is_tunnel: bool,
}

/// Packets whose headers are known: the kernel sends them with the first message of each chain.
#[derive(Debug, Default)]
pub(super) struct Packets(BTreeMap<u32, Ends>);

impl Packets {
    /// Most packets that are known at a time.
    const MOST: usize = 1024;

    fn insert(&mut self, packet: u32, ends: Ends) {
        if self.0.len() >= Self::MOST {
            self.0.clear();
        }
        self.0.insert(packet, ends);
    }
}

fn fate(family: u8, attributes: &[u8], own: &TableKey) -> Option<Fate> {
    let (table, chain) = (name(attributes, TABLE)?, name(attributes, CHAIN)?);
    let table = TableKey { family: Family::from_number(family)?, name: table };
    if table == *own {
        // Rules that mark are a second message from the same place.
        let (hook, end) = place_of(chain.as_str()).filter(|_| number(attributes, TYPE) == Some(BY_POLICY))?;
        return Some(Fate::At(hook, end));
    }
    let drops = match number(attributes, TYPE)? {
        BY_POLICY => number(attributes, POLICY)? == DROP,
        BY_RULE => number(attribute::find(attributes, VERDICT)?, CODE)? == DROP,
        _ => false,
    };
    let handle = attribute::find(attributes, RULE).and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
    drops.then_some(Fate::Dropped { table, chain, rule: handle })
}

const fn family_of(number: u32) -> Option<IpFamily> {
    match number {
        2 => Some(IpFamily::V4),
        10 => Some(IpFamily::V6),
        _ => None,
    }
}

fn ends(family: IpFamily, attributes: &[u8], flow: &Flow) -> Option<Ends> {
    let network = attribute::find(attributes, NETWORK)?;
    let transport = attribute::find(attributes, TRANSPORT).unwrap_or_default();
    let (protocol, addresses) = match family {
        IpFamily::V4 => {
            let address = |at: usize| Some(IpAddr::V4(Ipv4Addr::from(*network.get(at..)?.first_chunk::<4>()?)));
            (*network.get(9)?, [address(12)?, address(16)?])
        }
        IpFamily::V6 => {
            let address = |at: usize| Some(IpAddr::V6(Ipv6Addr::from(*network.get(at..)?.first_chunk::<16>()?)));
            (*network.get(6)?, [address(8)?, address(24)?])
        }
    };
    let ported = matches!(protocol, 6 | UDP);
    let port = |at: usize| transport.get(at..).and_then(attribute::be16).filter(|_| ported).unwrap_or_default();
    let [source, destination] = addresses;
    let (source, destination) = (SocketAddr::new(source, port(0)), SocketAddr::new(destination, port(2)));
    let bare = source == flow.source || destination == flow.source;
    let in_vxlan = protocol == UDP && flow.vxlan.contains(&port(2)) && !bare;
    let is_tunnel = in_vxlan || TUNNELS.contains(&protocol);
    let (came_by, leaves_by) = (number(attributes, IIF), number(attributes, OIF));
    Some(Ends { source, destination, came_by, leaves_by, is_tunnel })
}

#[cfg(test)]
mod tests {
    use netstate::Protocol;

    use super::*;
    use crate::attribute::Writer;
    use crate::nft::wire::SUBSYSTEM;

    fn own() -> TableKey {
        TableKey { family: Family::Inet, name: Name::observed("netd-trace-7".to_owned()) }
    }

    /// A message about an IPv4 UDP packet with this destination port.
    fn frame(table: &str, chain: &str, port: u16, fill: impl FnOnce(&mut Writer)) -> Frame {
        let mut body = Writer::behind(vec![1, 0, 0, 0]);
        body.put_str(TABLE, table).put_str(CHAIN, chain);
        let mut network = [0; 20];
        network[9] = UDP;
        network[12..16].copy_from_slice(&[172, 7, 21, 2]);
        network[16..20].copy_from_slice(&[172, 7, 22, 2]);
        body.put(NETWORK, &network).put(TRANSPORT, &[&40000u16.to_be_bytes()[..], &port.to_be_bytes()].concat());
        for (kind, value) in [(ID, 5u32), (IIF, 3), (PROTOCOL, 2)] {
            body.put(kind, &value.to_be_bytes());
        }
        fill(&mut body);
        Frame { kind: SUBSYSTEM | TRACE, flags: 0, sequence: 0, body: body.finish() }
    }

    fn read(frame: &Frame) -> Option<Event> {
        let flow = Flow { source: "172.7.21.2:40000".parse().unwrap(), protocol: Protocol::Udp, vxlan: vec![8472] };
        Event::read(frame, &own(), &flow, &mut Packets::default())
    }

    fn typed(kind: u32) -> impl FnOnce(&mut Writer) {
        move |body| {
            body.put(TYPE, &kind.to_be_bytes());
        }
    }

    #[test]
    fn own_chains_say_where_a_packet_is_and_others_what_became_of_it() {
        let at = read(&frame("netd-trace-7", "last-forward", 53, typed(BY_POLICY))).unwrap();
        assert_eq!((at.fate, at.came_by), (Fate::At(Hook::Forward, End::Last), Some(3)));
        assert_eq!(
            (at.source.to_string(), at.destination.to_string()),
            ("172.7.21.2:40000".into(), "172.7.22.2:53".into())
        );
        let by_rule = read(&frame("theirs", "in", 53, |body| {
            body.put(TYPE, &BY_RULE.to_be_bytes()).put(RULE, &9u64.to_be_bytes());
            body.nest(VERDICT, |verdict| {
                verdict.put(CODE, &DROP.to_be_bytes());
            });
        }));
        let Fate::Dropped { table, chain, rule } = by_rule.unwrap().fate else { panic!() };
        assert_eq!((table.to_string(), chain.as_str(), rule), ("inet theirs".to_owned(), "in", Some(9)));
        let by_policy = read(&frame("theirs", "in", 53, |body| {
            body.put(TYPE, &BY_POLICY.to_be_bytes()).put(POLICY, &DROP.to_be_bytes());
        }));
        assert!(matches!(by_policy.unwrap().fate, Fate::Dropped { rule: None, .. }));
    }

    #[test]
    fn what_decides_nothing_is_no_event_and_torn_messages_are_none() {
        assert_eq!(read(&frame("netd-trace-7", "first-prerouting", 53, typed(BY_RULE))), None, "the mark itself");
        assert_eq!(read(&frame("theirs", "in", 53, typed(2))), None, "a return");
        let mut whole = frame("netd-trace-7", "last-forward", 53, typed(BY_POLICY));
        for length in 0..whole.body.len() - 8 {
            let torn = Frame { body: whole.body[..length].to_vec(), ..frame("", "", 0, |_| {}) };
            assert!(read(&torn).is_none(), "{length}");
        }
        whole.kind = SUBSYSTEM;
        assert_eq!(read(&whole), None);
    }
}
