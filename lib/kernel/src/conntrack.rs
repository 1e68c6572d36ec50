//! Tracked connections: finding and deleting those that an address translation of the past keeps alive.
//!
//! A UDP flow has no end: its entry stays as long as packets come, and sends them to an endpoint that is gone, or past a
//! translation that was made later. Invariants. An entry is deleted by its reply tuple, which names the endpoint, and by
//! its id, which the kernel makes from the original tuple: a new flow that took its place, to another endpoint, stays.
//!
//! The table may hold millions. Since Linux 5.8 the kernel itself leaves out what a [`Selection`] does not ask for (CTA_FILTER); before,
//! it shows the whole family. Of what it shows at most [`ROUND`] stale entries are kept at a time, and at most [`BATCH`] deletions are
//! under way.
//!
//! Constants are those of include/uapi/linux/netfilter/nfnetlink_conntrack.h.

use std::fmt;
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
const CT_GET_STATS: u16 = SUBSYSTEM | 5;
/// Bytes of `nfgenmsg`.
const HEADER: usize = 4;

const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
const IP_V6_SRC: u16 = 3;
const IP_V6_DST: u16 = 4;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
/// NLA_F_NESTED.
const NESTED: u16 = 0x8000;
/// CTA_FILTER_ORIG_FLAGS, and bits for the parts of the tuple that must be equal (net/netfilter/nf_internals.h).
const FILTER_ORIG_FLAGS: u16 = 1;
const BY_DST: u32 = 1 << 1;
const BY_PROTOCOL: u32 = 1 << 3;
const BY_DST_PORT: u32 = 1 << 5;
/// IPS_SEEN_REPLY.
const SEEN_REPLY: u32 = 1 << 1;
/// IPS_DST_NAT.
const DST_NAT: u32 = 1 << 5;
/// Stale entries that are collected before they are deleted.
const ROUND: usize = 4096;
/// The most rounds of one call: no kernel is set up to track more connections.
const ROUNDS: usize = 4096;
/// Deletions in one datagram: a refusal occupies about 1 KiB of the receive buffer, whose default is 208 KiB.
const BATCH: usize = 128;
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
    /// A packet has come back: whoever is asked answers, and the answer finds its way.
    pub answered: bool,
    /// The destination is translated by nftables or iptables; IPVS translates without this mark.
    pub translated: bool,
    /// Attributes that name the entry to the kernel.
    name: Vec<u8>,
    family: u8,
}

/// Which connections are read: those of one protocol over one family, of these those that were opened to an address, to a port, or to
/// both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selection {
    family: IpFamily,
    protocol: Protocol,
    dst: Option<IpAddr>,
    port: Option<u16>,
}

impl Selection {
    /// Every connection.
    #[must_use]
    pub const fn all(family: IpFamily, protocol: Protocol) -> Self {
        Self { family, protocol, dst: None, port: None }
    }

    /// Those that were opened to an address and port.
    #[must_use]
    pub const fn to(protocol: Protocol, dst: IpAddr, port: u16) -> Self {
        Self { family: IpFamily::of(dst), protocol, dst: Some(dst), port: Some(port) }
    }

    /// Those that were opened to a port, at whichever address.
    #[must_use]
    pub const fn to_port(family: IpFamily, protocol: Protocol, port: u16) -> Self {
        Self { family, protocol, dst: None, port: Some(port) }
    }

    /// What the kernel is asked for: the selection, without an address of IPv6. Its filter leaves out just the connections to that
    /// address (`ctnetlink_filter_match_tuple`, Linux 5.8 to 6.18 at least, takes the result of `ipv6_addr_cmp` for equality).
    const fn asked(self) -> Self {
        match self.family {
            IpFamily::V4 => self,
            IpFamily::V6 => Self { dst: None, ..self },
        }
    }

    /// Whether it is about this connection.
    #[must_use]
    pub fn selects(&self, flow: &Flow) -> bool {
        let to = flow.original.dst;
        flow.protocol == self.protocol
            && IpFamily::of(to.ip()) == self.family
            && self.dst.is_none_or(|dst| dst == to.ip())
            && self.port.is_none_or(|port| port == to.port())
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, protocol, dst, port } = self;
        match (dst, port) {
            (Some(dst), Some(port)) => write!(f, "{protocol} connections to {}", SocketAddr::new(*dst, *port)),
            (None, Some(port)) => write!(f, "{protocol} {family} connections to port {port}"),
            (Some(dst), None) => write!(f, "{protocol} connections to {dst}"),
            (None, None) => write!(f, "{protocol} {family} connections"),
        }
    }
}

/// A conversation with connection tracking in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
    /// Entries that the kernel has shown.
    read: u64,
    /// The kernel has shown what was not asked for: it is older than the filter.
    shows_all: bool,
}

/// Whether connections can be listed and deleted: how many there are is asked for.
///
/// # Errors
/// When the kernel refuses for another reason.
pub(crate) fn is_listed() -> Result<bool, KernelError> {
    let mut conntrack = Conntrack::open()?;
    match conntrack.socket.ask(&Message { kind: CT_GET_STATS, flags: 0, body: vec![0; HEADER] }) {
        Ok(_) => Ok(true),
        // What nfnetlink_rcv_msg answers about a subsystem that is not there.
        Err(Fault::Nack(nack)) if nack.errno == libc::EINVAL => Ok(false),
        Err(fault) => Err(KernelError::new("count", "tracked connections", fault)),
    }
}

impl Conntrack {
    /// Opens the conversation.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self, KernelError> {
        let error = |error: SocketError| KernelError::new("open", "connection tracking", error);
        Ok(Self { socket: Socket::open(NETLINK_NETFILTER).map_err(error)?, read: 0, shows_all: false })
    }

    /// Entries that the kernel has shown so far, wanted or not: what reading has cost.
    #[must_use]
    pub const fn entries_read(&self) -> u64 {
        self.read
    }

    /// False when the kernel is known to show every entry whatever is selected: one reading then serves many selections.
    #[must_use]
    pub const fn filters(&self) -> bool {
        !self.shows_all
    }

    /// The selected connections that `wanted` says yes to.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn flows(&mut self, of: &Selection, wanted: impl Fn(&Flow) -> bool) -> Result<Vec<Flow>, KernelError> {
        self.some(of, usize::MAX, wanted)
    }

    /// The same, `most` of them at most.
    fn some(&mut self, of: &Selection, most: usize, wanted: impl Fn(&Flow) -> bool) -> Result<Vec<Flow>, KernelError> {
        let (mut found, mut read, mut others) = (Vec::new(), 0_u64, false);
        let asked = of.asked();
        let keep = |frame: &Frame| {
            read = read.saturating_add(1);
            let Some(flow) = self::read(frame) else { return };
            others |= !asked.selects(&flow);
            if found.len() < most && of.selects(&flow) && wanted(&flow) {
                found.push(flow);
            }
        };
        let listed = self.each(&listing(&asked), keep);
        self.read = self.read.saturating_add(read);
        self.shows_all |= others;
        listed.map_err(|fault| KernelError::new("list", of, fault))?;
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
        let mut results = Vec::with_capacity(flows.len());
        for batch in flows.chunks(BATCH) {
            let messages: Vec<Message> = batch.iter().map(message).collect();
            let answers = self.socket.batch(&messages);
            results.extend(answers.map_err(|error| KernelError::new("delete", "tracked connections", error))?);
        }
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

    /// Deletes the selected connections that `stale` says yes to, and returns how many.
    ///
    /// # Errors
    /// As [`Conntrack::flows`] and [`Conntrack::delete`].
    pub fn delete_stale(&mut self, of: &Selection, stale: impl Fn(&Flow) -> bool) -> Result<usize, KernelError> {
        let mut deleted = 0_usize;
        for _ in 0..ROUNDS {
            let flows = self.some(of, ROUND, &stale)?;
            deleted = deleted.saturating_add(self.delete(&flows)?);
            if flows.len() < ROUND {
                break;
            }
        }
        Ok(deleted)
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

/// Asks for what is selected. Kernels before 5.8 show the whole family.
fn listing(of: &Selection) -> Message {
    let family = if of.family == IpFamily::V4 { AF_INET } else { AF_INET6 };
    let by_dst = if of.dst.is_some() { BY_DST } else { 0 };
    let by_port = if of.port.is_some() { BY_DST_PORT } else { 0 };
    let mut body = Writer::behind(vec![family, 0, 0, 0]);
    body.nest(TUPLE_ORIG, |tuple| {
        if let Some(dst) = of.dst {
            tuple.nest(TUPLE_IP, |ip| match dst {
                IpAddr::V4(addr) => drop(ip.put(IP_V4_DST, &addr.octets())),
                IpAddr::V6(addr) => drop(ip.put(IP_V6_DST, &addr.octets())),
            });
        }
        tuple.nest(TUPLE_PROTO, |proto| {
            proto.put(PROTO_NUM, &[of.protocol.number()]);
            if let Some(port) = of.port {
                proto.put(PROTO_DST_PORT, &port.to_be_bytes());
            }
        });
    });
    body.nest(FILTER, |filter| {
        // In host order, unlike everything else here.
        filter.put(FILTER_ORIG_FLAGS, &(BY_PROTOCOL | by_dst | by_port).to_ne_bytes());
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
    let status = attribute::find(attributes, STATUS).and_then(|value| value.first_chunk::<4>());
    let has = |bit| status.is_some_and(|status| u32::from_be_bytes(*status) & bit != 0);
    let (answered, translated) = (has(SEEN_REPLY), has(DST_NAT));
    Some(Flow { protocol, original, reply, answered, translated, name: name.finish(), family: *frame.body.first()? })
}

/// A direction of a connection that has ports.
fn tuple(attributes: &[u8]) -> Option<(Protocol, Tuple)> {
    let ip = attribute::find(attributes, TUPLE_IP)?;
    let addr = |v4, v6| attribute::find(ip, v4).or_else(|| attribute::find(ip, v6)).and_then(attribute::ip);
    let proto = attribute::find(attributes, TUPLE_PROTO)?;
    let port = |kind| attribute::find(proto, kind).and_then(attribute::be16);
    let protocol = Protocol::from_number(*attribute::find(proto, PROTO_NUM)?.first()?)?;
    let src = SocketAddr::new(addr(IP_V4_SRC, IP_V6_SRC)?, port(PROTO_SRC_PORT)?);
    let dst = SocketAddr::new(addr(IP_V4_DST, IP_V6_DST)?, port(PROTO_DST_PORT)?);
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
            body.put(ID, &[1, 2, 3, 4]).put(ZONE, &[0, 7]).put(STATUS, &[0, 0, 1, 0x8a]);
        }));
        let name = golden::tree(&flow.unwrap().name);
        assert_eq!(
            name,
            "2:\n  1:\n    1: ac071502\n    2: 0a0407c8\n  2:\n    1: 11\n    2: 14e9\n    3: 9c40\n12: 01020304\n18: 0007\n"
        );
    }

    #[test]
    fn listing_asks_for_what_is_selected_and_no_more() {
        let text = |of: Selection| golden::message(&listing(&of), HEADER);
        assert_eq!(
            text(Selection::all(IpFamily::V4, Protocol::Udp)),
            "type 257 flags 0x0\n02000000\n1:\n  2:\n    1: 11\n25:\n  1: 08000000\n"
        );
        assert_eq!(
            text(Selection::to(Protocol::Tcp, [192, 168, 0, 10].into(), 80)),
            "type 257 flags 0x0\n02000000\n1:\n  1:\n    2: c0a8000a\n  2:\n    1: 06\n    3: 0050\n25:\n  1: 2a000000\n"
        );
        let six = text(Selection::to_port(IpFamily::V6, Protocol::Sctp, 30_080));
        assert!(
            six.contains("\n0a000000\n") && six.contains("    3: 7580\n") && six.contains("  1: 28000000"),
            "{six}"
        );
    }

    #[test]
    fn an_address_of_ipv6_is_compared_here_and_not_in_the_kernel() {
        let of = Selection::to(Protocol::Udp, "fd09::53".parse().unwrap(), 53);
        assert_eq!(of.asked(), Selection::to_port(IpFamily::V6, Protocol::Udp, 53));
        let of = Selection::to(Protocol::Udp, [192, 168, 0, 53].into(), 53);
        assert_eq!(of.asked(), of);
    }

    #[test]
    fn a_selection_is_about_what_was_opened_to_its_address_and_port() {
        let flow = read(&listed(|_| {})).unwrap();
        let to = |addr: [u8; 4], port| Selection::to(Protocol::Udp, addr.into(), port);
        let selects = [
            to([192, 168, 0, 2], 53),
            Selection::to_port(IpFamily::V4, Protocol::Udp, 53),
            Selection::all(IpFamily::V4, Protocol::Udp),
            to([192, 168, 0, 2], 54),
            to([192, 168, 0, 3], 53),
            Selection::to(Protocol::Tcp, [192, 168, 0, 2].into(), 53),
            Selection::all(IpFamily::V6, Protocol::Udp),
        ];
        assert_eq!(selects.map(|of| of.selects(&flow)), [true, true, true, false, false, false, false]);
    }

    #[test]
    fn a_flow_knows_whether_a_packet_has_come_back() {
        let answered = |status: u32| {
            let listed = listed(|body| {
                body.put(STATUS, &status.to_be_bytes());
            });
            read(&listed).unwrap().answered
        };
        assert_eq!([0x8, 0xa, 0x18e].map(answered), [false, true, true]);
        assert!(!read(&listed(|_| {})).unwrap().answered);
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
