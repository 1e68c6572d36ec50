//! Sets of `ipset`, taken away by whoever knows that they are left over.
//!
//! Invariant: a set that a rule still uses is not touched, and said to be so; the kernel lets go of a rule's sets a moment after the
//! rule, so that is waited for, for [`LIMIT`] at most.
//!
//! Constants are those of include/uapi/linux/netfilter/ipset/ip_set.h.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_packet_core::NLM_F_EXCL;
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::attribute::{self, Writer};
use crate::error::{Cause, KernelError, Nack, SocketError};
use crate::socket::{Fault, Frame, Message, Socket};

/// NFNL_SUBSYS_IPSET, the high byte of every message type.
const SUBSYSTEM: u16 = 6 << 8;
/// IPSET_CMD_PROTOCOL: which versions the kernel speaks.
const VERSIONS: u16 = SUBSYSTEM | 1;
const DESTROY: u16 = SUBSYSTEM | 3;
const LIST: u16 = SUBSYSTEM | 7;
/// Bytes of `nfgenmsg`.
const HEADER: usize = 4;
/// IPSET_ATTR_PROTOCOL, a byte, and the version that every kernel since 2.6.39 takes.
const PROTOCOL: u16 = 1;
const VERSION: u8 = 6;
const SETNAME: u16 = 2;
/// IPSET_ATTR_FLAGS, in network order, and IPSET_FLAG_LIST_SETNAME: names only.
const FLAGS: u16 = 6;
const NAMES_ONLY: u32 = 1 << 1;
/// IPSET_ATTR_ADT, the entries; IPSET_ATTR_DATA, one of them; IPSET_ATTR_IP, IPSET_ATTR_PORT and IPSET_ATTR_PROTO in it.
const ENTRIES: u16 = 8;
const ENTRY: u16 = 7;
const ADDRESS: u16 = 1;
const PORT: u16 = 4;
const TRANSPORT: u16 = 7;
/// IPSET_ERR_BUSY: a rule uses the set.
const BUSY: i32 = 4100;

/// Longest wait for the kernel to let go of the sets of rules that are gone.
const LIMIT: Duration = Duration::from_secs(5);

/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// An entry of a set of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The address beside the port, where there is one.
    pub addr: Option<IpAddr>,
    /// The transport protocol's number, where there is one.
    pub protocol: Option<u8>,
    /// The port.
    pub port: u16,
}

/// A conversation about sets.
#[derive(Debug)]
pub struct Sets {
    socket: Socket,
}

impl Sets {
    /// Opens the conversation in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self, KernelError> {
        let error = |error: SocketError| KernelError::new("open", "sets of ipset", error);
        Ok(Self { socket: Socket::open(NETLINK_NETFILTER).map_err(error)? })
    }

    /// The names of all sets; none where the kernel has no ipset.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn names(&mut self) -> Result<Vec<String>, KernelError> {
        let mut body = head();
        body.put(FLAGS, &NAMES_ONLY.to_be_bytes());
        let message = Message { kind: LIST, flags: 0, body: body.finish() };
        match self.socket.list(&message, |frame| name(&frame)) {
            Ok(names) => Ok(names),
            Err(Fault::Nack(nack)) if is_unknown(&nack) && !self.is_there()? => Ok(Vec::new()),
            Err(fault) => Err(KernelError::new("list", "sets of ipset", fault)),
        }
    }

    /// Whether the kernel has ipset: an errno that says otherwise may be about the one listing.
    fn is_there(&mut self) -> Result<bool, KernelError> {
        match self.socket.request(&Message { kind: VERSIONS, flags: 0, body: head().finish() }) {
            Ok(_) => Ok(true),
            Err(Fault::Nack(nack)) if is_unknown(&nack) => Ok(false),
            Err(fault) => Err(KernelError::new("ask for", "ipset", fault)),
        }
    }

    /// The entries of a set of ports, or of addresses and ports.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn entries(&mut self, name: &str) -> Result<Vec<Entry>, KernelError> {
        let mut body = head();
        body.put_str(SETNAME, name);
        let message = Message { kind: LIST, flags: 0, body: body.finish() };
        let listed = self.socket.list(&message, |frame| Some(entries(&frame)));
        listed.map(|parts| parts.concat()).map_err(|fault| KernelError::new("list set", name, fault))
    }

    /// Destroys a set; returns whether it was there.
    ///
    /// # Errors
    /// When a rule goes on using it, or the kernel refuses.
    pub fn destroy(&mut self, name: &str) -> Result<bool, KernelError> {
        let mut body = head();
        body.put_str(SETNAME, name);
        // Without the flag the kernel says nothing of a set that is not there (flag_exist).
        let message = Message { kind: DESTROY, flags: NLM_F_EXCL, body: body.finish() };
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.socket.request(&message) {
                Ok(_) => return Ok(true),
                Err(Fault::Nack(Nack { errno: libc::ENOENT, .. })) => return Ok(false),
                Err(Fault::Nack(Nack { errno: BUSY, .. })) if Instant::now() < deadline => std::thread::sleep(PAUSE),
                Err(Fault::Nack(Nack { errno: BUSY, .. })) => {
                    let cause =
                        Cause::Taken("a rule uses it; `iptables-save` and `nft list ruleset` show which".to_owned());
                    return Err(KernelError::new("destroy set", name, cause));
                }
                Err(fault) => return Err(KernelError::new("destroy set", name, fault)),
            }
        }
    }
}

/// Whether nobody handles the messages of this subsystem (nfnetlink_rcv_msg).
const fn is_unknown(nack: &Nack) -> bool {
    matches!(nack.errno, libc::EINVAL | libc::EOPNOTSUPP)
}

/// The name of the set that a message of a listing is about.
pub(crate) fn name(frame: &Frame) -> Option<String> {
    attribute::find(frame.body.get(HEADER..)?, SETNAME).map(attribute::text)
}

/// The entries in one message of a listing.
pub(crate) fn entries(frame: &Frame) -> Vec<Entry> {
    let attributes = frame.body.get(HEADER..).unwrap_or_default();
    let entries = attribute::find(attributes, ENTRIES).unwrap_or_default();
    attribute::iter(entries).filter(|(kind, _)| *kind == ENTRY).filter_map(|(_, entry)| read(entry)).collect()
}

fn read(entry: &[u8]) -> Option<Entry> {
    let address = |value| attribute::iter(value).find_map(|(_, address)| attribute::ip(address));
    Some(Entry {
        addr: attribute::find(entry, ADDRESS).and_then(address),
        protocol: attribute::find(entry, TRANSPORT).and_then(|value| value.first().copied()),
        port: attribute::be16(attribute::find(entry, PORT)?)?,
    })
}

/// What every message begins with.
fn head() -> Writer {
    let mut body = Writer::behind(vec![0; HEADER]);
    body.put(PROTOCOL, &[VERSION]);
    body
}
