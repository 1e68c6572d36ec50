//! Tracked connections: finding and deleting those that an address translation of the past keeps alive.
//!
//! A UDP flow has no end: its entry stays as long as packets come, and sends them to an endpoint that is gone, or past a
//! translation that was made later. Invariants. An entry is deleted by its reply tuple, which names the endpoint, and by
//! its id, which the kernel makes from the original tuple: a new flow that took its place, to another endpoint, stays. Only matching entries are kept while the table, which may hold millions, is read.
//!
//! Constants are those of include/uapi/linux/netfilter/nfnetlink_conntrack.h.

use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netstate::{IpFamily, Protocol};

use crate::attribute::{self, Writer};
use crate::error::{KernelError, SocketError};
use crate::socket::{Fault, Frame, Message, Socket, acknowledgement, write_message};

/// NFNL_SUBSYS_CTNETLINK, the high byte of every message type.
const SUBSYSTEM: u16 = 1 << 8;
const CT_NEW: u16 = SUBSYSTEM;
const CT_GET: u16 = SUBSYSTEM | 1;
const CT_DELETE: u16 = SUBSYSTEM | 2;
/// Bytes of `nfgenmsg`.
const HEADER: usize = 4;

const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
/// NLA_F_NESTED.
const NESTED: u16 = 0x8000;
/// CTA_FILTER_ORIG_FLAGS, and the bit for the protocol's number (net/netfilter/nf_internals.h).
const FILTER_ORIG_FLAGS: u16 = 1;
const BY_PROTOCOL: u32 = 1 << 3;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Who sends.
    pub src: SocketAddr,
    /// Who receives.
    pub dst: SocketAddr,
}

/// A tracked connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Transport protocol.
    pub protocol: Protocol,
    /// As the first packet came in, before any translation.
    pub original: Tuple,
    /// As answers come in: their source is the endpoint that the connection was sent to.
    pub reply: Tuple,
    /// Attributes that name the entry to the kernel.
    name: Vec<u8>,
    family: u8,
}

/// A conversation with connection tracking in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens the conversation.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self, KernelError> {
        let error = |error: SocketError| KernelError::new("open", "connection tracking", error);
        Ok(Self { socket: Socket::open(NETLINK_NETFILTER).map_err(error)? })
    }

    /// Connections of `protocol` over `family` that `wanted` says yes to.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn flows(
        &mut self,
        family: IpFamily,
        protocol: Protocol,
        wanted: impl Fn(&Flow) -> bool,
    ) -> Result<Vec<Flow>, KernelError> {
        let error = |fault: Fault| KernelError::new("list", format!("{protocol} connections"), fault);
        let mut found = Vec::new();
        let keep = |frame: &Frame| {
            let flow = read(frame).filter(|flow| flow.protocol == protocol);
            found.extend(flow.filter(|flow| wanted(flow)));
        };
        self.each(&listing(family, protocol), keep).map_err(error)?;
        Ok(found)
    }

    /// Deletes `flows` and returns how many of them were still there.
    ///
    /// # Errors
    /// When the kernel refuses one of them for another reason than that it is gone; the others are deleted all the same.
    pub fn delete(&mut self, flows: &[Flow]) -> Result<usize, KernelError> {
        let message = |flow: &Flow| {
            let body = [&[flow.family, 0, 0, 0], flow.name.as_slice()].concat();
            Message { kind: CT_DELETE, flags: 0, body }
        };
        let messages: Vec<Message> = flows.iter().map(message).collect();
        let results = self.socket.batch(&messages);
        let results = results.map_err(|error| KernelError::new("delete", "tracked connections", error))?;
        let mut deleted = 0;
        let mut failure = None;
        for (flow, result) in flows.iter().zip(results) {
            match result {
                Ok(()) => deleted += 1,
                Err(nack) if nack.errno == libc::ENOENT => {}
                Err(nack) => failure = Some(KernelError::new("delete", describe(flow), nack)),
            }
        }
        failure.map_or(Ok(deleted), Err)
    }

    /// Deletes connections of `protocol` over `family` that `stale` says yes to, and returns how many.
    ///
    /// # Errors
    /// As [`Conntrack::flows`] and [`Conntrack::delete`].
    pub fn delete_stale(
        &mut self,
        family: IpFamily,
        protocol: Protocol,
        stale: impl Fn(&Flow) -> bool,
    ) -> Result<usize, KernelError> {
        let flows = self.flows(family, protocol, stale)?;
        self.delete(&flows)
    }

    /// Lists the table, showing each entry to `keep` and holding none.
    fn each(&mut self, request: &Message, mut keep: impl FnMut(&Frame)) -> Result<(), Fault> {
        let sequence = self.socket.next_sequence();
        let mut bytes = Vec::new();
        write_message(&mut bytes, request, NLM_F_REQUEST | NLM_F_DUMP, sequence);
        self.socket.send(&bytes)?;
        loop {
            for frame in self.socket.receive()?.iter().filter(|frame| frame.sequence == sequence) {
                match frame.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        if let Some(nack) = acknowledgement(frame)? {
                            return Err(Fault::Nack(nack));
                        }
                    }
                    _ => keep(frame),
                }
            }
        }
    }
}

impl Flow {
    /// True when the connection was opened to `dst` and `port`, whoever answers it.
    #[must_use]
    pub fn was_opened_to(&self, dst: IpAddr, port: u16) -> bool {
        self.original.dst == SocketAddr::new(dst, port)
    }

    /// True when the one that answers is not the one that the connection was opened to: its destination is translated.
    #[must_use]
    pub fn is_redirected(&self) -> bool {
        self.reply.src != self.original.dst
    }
}

fn describe(flow: &Flow) -> String {
    format!("{} connection {} -> {}", flow.protocol, flow.original.src, flow.original.dst)
}

/// Asks for one protocol of one family. Kernels before 5.8 list all protocols.
fn listing(family: IpFamily, protocol: Protocol) -> Message {
    let family = if family == IpFamily::V4 { AF_INET } else { AF_INET6 };
    let mut body = Writer::behind(vec![family, 0, 0, 0]);
    body.nest(TUPLE_ORIG, |tuple| {
        tuple.nest(TUPLE_PROTO, |proto| {
            proto.put(PROTO_NUM, &[protocol.number()]);
        });
    });
    body.nest(FILTER, |filter| {
        // In host order, unlike everything else here.
        filter.put(FILTER_ORIG_FLAGS, &BY_PROTOCOL.to_ne_bytes());
    });
    Message { kind: CT_GET, flags: 0, body: body.finish() }
}

pub(crate) fn read(frame: &Frame) -> Option<Flow> {
    if frame.kind != CT_NEW {
        return None;
    }
    let attributes = frame.body.get(HEADER..)?;
    let (protocol, original) = tuple(attribute::find(attributes, TUPLE_ORIG)?)?;
    let raw = attribute::find(attributes, TUPLE_REPLY)?;
    let (_, reply) = tuple(raw)?;
    let mut name = Writer::default();
    name.put(NESTED | TUPLE_REPLY, raw);
    for kind in [ID, ZONE] {
        if let Some(value) = attribute::find(attributes, kind) {
            name.put(kind, value);
        }
    }
    Some(Flow { protocol, original, reply, name: name.finish(), family: *frame.body.first()? })
}

/// A direction of a connection that has ports.
fn tuple(attributes: &[u8]) -> Option<(Protocol, Tuple)> {
    let ip = attribute::find(attributes, TUPLE_IP)?;
    // CTA_IP_V4_SRC and _DST are 1 and 2, CTA_IP_V6_SRC and _DST are 3 and 4.
    let addr = |v4, v6| attribute::find(ip, v4).or_else(|| attribute::find(ip, v6)).and_then(attribute::ip);
    let proto = attribute::find(attributes, TUPLE_PROTO)?;
    let port = |kind| attribute::find(proto, kind).and_then(attribute::be16);
    let protocol = Protocol::from_number(*attribute::find(proto, PROTO_NUM)?.first()?)?;
    let src = SocketAddr::new(addr(1, 3)?, port(PROTO_SRC_PORT)?);
    let dst = SocketAddr::new(addr(2, 4)?, port(PROTO_DST_PORT)?);
    Some((protocol, Tuple { src, dst }))
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;
    use crate::golden;

    fn direction(writer: &mut Writer, kind: u16, protocol: u8, [src, dst]: [(&str, u16); 2]) {
        let octets = |text: &str| match text.parse().unwrap() {
            IpAddr::V4(addr) => addr.octets().to_vec(),
            IpAddr::V6(addr) => addr.octets().to_vec(),
        };
        let shift = if src.0.contains(':') { 2 } else { 0 };
        writer.nest(kind, |tuple| {
            tuple.nest(TUPLE_IP, |ip| {
                ip.put(1 + shift, &octets(src.0)).put(2 + shift, &octets(dst.0));
            });
            tuple.nest(TUPLE_PROTO, |proto| {
                proto.put(PROTO_NUM, &[protocol]).put(PROTO_SRC_PORT, &src.1.to_be_bytes());
                proto.put(PROTO_DST_PORT, &dst.1.to_be_bytes());
            });
        });
    }

    /// A client's flow to a Service, answered by its endpoint.
    fn listed(fill: impl FnOnce(&mut Writer)) -> Frame {
        let mut body = Writer::behind(vec![AF_INET, 0, 0, 0]);
        direction(&mut body, TUPLE_ORIG, 17, [("10.4.7.200", 40000), ("192.168.0.2", 53)]);
        direction(&mut body, TUPLE_REPLY, 17, [("172.7.21.2", 5353), ("10.4.7.200", 40000)]);
        fill(&mut body);
        golden::frame(CT_NEW, body.finish())
    }

    #[test]
    fn flow_is_read_in_both_directions() {
        let flow = read(&listed(|_| {})).unwrap();
        assert_eq!(flow.protocol, Protocol::Udp);
        assert_eq!(flow.original.src, "10.4.7.200:40000".parse().unwrap());
        assert_eq!(flow.original.dst, "192.168.0.2:53".parse().unwrap());
        assert_eq!(flow.reply.src, "172.7.21.2:5353".parse().unwrap());
        assert!(flow.is_redirected());
        assert!(flow.was_opened_to("192.168.0.2".parse().unwrap(), 53));
        assert!(!flow.was_opened_to("192.168.0.2".parse().unwrap(), 54));
        assert_eq!(describe(&flow), "udp connection 10.4.7.200:40000 -> 192.168.0.2:53");
    }

    #[test]
    fn flow_of_ipv6_is_one_as_well() {
        let mut body = Writer::behind(vec![AF_INET6, 0, 0, 0]);
        direction(&mut body, TUPLE_ORIG, 6, [("fd00::1", 1), ("fd00::a", 80)]);
        direction(&mut body, TUPLE_REPLY, 6, [("fd00::a", 80), ("fd00::1", 1)]);
        let flow = read(&golden::frame(CT_NEW, body.finish())).unwrap();
        assert_eq!((flow.protocol, flow.family), (Protocol::Tcp, AF_INET6));
        assert!(!flow.is_redirected());
    }

    #[test]
    fn entry_is_named_by_its_reply_its_id_and_its_zone() {
        let flow = read(&listed(|body| {
            body.put(ID, &[1, 2, 3, 4]).put(ZONE, &[0, 7]).put(3, &[0, 0, 1, 0x8a]);
        }));
        let name = golden::tree(&flow.unwrap().name);
        assert_eq!(
            name,
            "2:\n  1:\n    1: ac071502\n    2: 0a0407c8\n  2:\n    1: 11\n    2: 14e9\n    3: 9c40\n12: 01020304\n18: 0007\n"
        );
    }

    #[test]
    fn listing_asks_for_one_protocol_of_one_family() {
        assert_eq!(
            golden::message(&listing(IpFamily::V4, Protocol::Udp), HEADER),
            "type 257 flags 0x0\n02000000\n1:\n  2:\n    1: 11\n25:\n  1: 08000000\n"
        );
        assert!(golden::message(&listing(IpFamily::V6, Protocol::Tcp), HEADER).contains("\n0a000000\n"));
    }

    #[test]
    fn what_has_no_ports_or_is_torn_is_no_flow() {
        let whole = listed(|_| {});
        assert!(golden::torn(CT_NEW, &whole.body).all(|frame| read(&frame).is_none()));
        assert_eq!(read(&golden::frame(CT_DELETE, whole.body)), None);
        // ICMP (1) has no ports and nobody here serves it.
        let mut body = Writer::behind(vec![AF_INET, 0, 0, 0]);
        direction(&mut body, TUPLE_ORIG, 1, [("10.0.0.1", 0), ("10.0.0.2", 0)]);
        direction(&mut body, TUPLE_REPLY, 1, [("10.0.0.2", 0), ("10.0.0.1", 0)]);
        assert_eq!(read(&golden::frame(CT_NEW, body.finish())), None);
    }
}
