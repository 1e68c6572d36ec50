//! The way of one flow's packets through nftables, chain by chain and rule by rule, as `nft monitor trace` shows it.
//!
//! A table of our own marks the flow's packets where they enter the host, also inside VXLAN and ipip, and has a chain at
//! the first and the last place of each hook, so that it is known how far a packet came although no rule matches it.
//! Invariants: the table belongs to its socket (NFT_TABLE_F_OWNER, Linux 5.12) and goes with it, however the process
//! ends; a kernel that cannot do that gets a table that goes with the [`Trace`], and that of a process that was killed
//! with the next one ([`left_over`]). Its rules change nothing but the mark for tracing.

mod event;
mod leftover;
mod rules;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netstate::Protocol;
use netstate::nft::{Family, Hook, Name, TableKey};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub use self::event::{Event, Fate};
pub use self::leftover::left_over;
use super::layout::put_rule;
use super::transaction::{Refusal, commit};
use super::wire::{kind, message, put_number};
use super::{Nft, chain, rule, table};
use crate::error::KernelError;
use crate::socket::{Message, split};

/// NFNLGRP_NFTRACE (include/uapi/linux/netfilter/nfnetlink.h).
const GROUP: u32 = 9;

/// The hooks in the order in which a packet can meet them.
const HOOKS: [Hook; 5] = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];

/// Which packets are followed: those that `source` sends, those that it gets, and what is said about them by ICMP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// The end that is known for sure, whatever happens to the other one.
    pub source: SocketAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// UDP ports of VXLAN, in which the packets may be wrapped.
    pub vxlan: Vec<u16>,
}

/// An end of a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// Before the first chain.
    First,
    /// Behind the last chain.
    Last,
}

/// The trace of a flow, for as long as this value lives.
#[derive(Debug)]
pub struct Trace {
    /// Its port is in the table's name, and the table belongs to it where the kernel can do that.
    nft: Nft,
    table: TableKey,
    /// The kernel does not remove the table.
    outlives_socket: bool,
    flow: Flow,
    socket: netlink_sys::Socket,
    packets: event::Packets,
    buffer: Vec<u8>,
}

impl Trace {
    /// Starts to follow `flow` in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses the table (CAP_NET_ADMIN is needed) or the socket.
    pub fn start(flow: Flow) -> Result<Self, KernelError> {
        let error = |call: &'static str| move |source| KernelError::io("open", "nftables trace", call, source);
        let mut socket = netlink_sys::Socket::new(NETLINK_NETFILTER).map_err(error("socket"))?;
        socket.bind(&netlink_sys::SocketAddr::new(0, 0)).map_err(error("bind"))?;
        socket.add_membership(GROUP).map_err(error("NETLINK_ADD_MEMBERSHIP"))?;
        socket.set_non_blocking(true).map_err(error("O_NONBLOCK"))?;
        let mut nft = Nft::open()?;
        let name = Name::observed(format!("{}{}", leftover::PREFIX, nft.port()?));
        let table = TableKey { family: Family::Inet, name };
        let outlives_socket = make(&mut nft, &table, &flow)?;
        let (packets, buffer) = (event::Packets::default(), vec![0; 64 * 1024]);
        Ok(Self { nft, table, outlives_socket, flow, socket, packets, buffer })
    }

    /// What happened until `deadline`, at most; returns earlier when `enough` of all that happened so far says so.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn collect(
        &mut self,
        events: &mut Vec<Event>,
        deadline: Instant,
        enough: impl Fn(&[Event]) -> bool,
    ) -> Result<(), KernelError> {
        loop {
            self.read(events)?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || enough(events) {
                return Ok(());
            }
            let wait = u16::try_from(left.min(Duration::from_secs(1)).as_millis()).unwrap_or(u16::MAX).max(1);
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(wait)) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(KernelError::io("wait for", "nftables trace", "poll", errno.into())),
            }
        }
    }

    fn read(&mut self, events: &mut Vec<Event>) -> Result<(), KernelError> {
        loop {
            let mut window = self.buffer.as_mut_slice();
            match self.socket.recv(&mut window, 0) {
                Ok(size) => {
                    let frames = split(self.buffer.get(..size).unwrap_or_default()).unwrap_or_default();
                    let packets = &mut self.packets;
                    let read = |frame| Event::read(frame, &self.table, &self.flow, packets);
                    events.extend(frames.iter().filter_map(read));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // An overrun loses events of a flow that others use as well; what was seen stays seen.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(source) => return Err(KernelError::io("read", "nftables trace", "recv", source)),
            }
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // Whoever traces next finds it when this fails.
        if self.outlives_socket {
            let _ = self.nft.remove_foreign_table(&self.table);
        }
    }
}

/// Makes the table; returns whether it outlives its socket.
fn make(nft: &mut Nft, table: &TableKey, flow: &Flow) -> Result<bool, KernelError> {
    match commit(&mut nft.socket, layout(table, flow, Some(table::OWNER)), None) {
        Ok(()) => return Ok(false),
        Err(Refusal::Messages(nacks)) if nacks.get(&0).is_some_and(|nack| knows_no_owner(nack.errno)) => {}
        Err(refusal) => return Err(KernelError::new("make", format!("nft table {table}"), refusal)),
    }
    for left in left_over(nft)? {
        nft.remove_foreign_table(&left)?;
    }
    // What a process with this port id before has left.
    nft.remove_foreign_table(table)?;
    let made = commit(&mut nft.socket, layout(table, flow, None), None);
    made.map_err(|refusal| KernelError::new("make", format!("nft table {table}"), refusal))?;
    Ok(true)
}

/// Whether this is the answer to a flag of tables that the kernel does not know (`nf_tables_newtable`).
const fn knows_no_owner(errno: i32) -> bool {
    matches!(errno, libc::EINVAL | libc::EOPNOTSUPP)
}

/// The chain at an end of a hook.
fn chain_at(hook: Hook, end: End) -> String {
    let end = if end == End::First { "first" } else { "last" };
    format!("{end}-{hook}")
}

/// Hook and end of one of our chains.
fn place_of(chain: &str) -> Option<(Hook, End)> {
    let ends = |hook| [(hook, End::First), (hook, End::Last)];
    HOOKS.into_iter().flat_map(ends).find(|(hook, end)| chain_at(*hook, *end) == chain)
}

fn layout(key: &TableKey, flow: &Flow, flags: Option<u32>) -> Vec<Message> {
    let about = |kind, flags, fill: &dyn Fn(&mut crate::attribute::Writer)| {
        message(kind, flags, key.family.number(), |body| {
            body.put_str(table::NAME, key.name.as_str());
            fill(body);
        })
    };
    let mut messages = vec![about(kind::NEWTABLE, NLM_F_CREATE, &|body| {
        flags.into_iter().for_each(|flags| put_number(body, table::FLAGS, flags));
    })];
    for hook in HOOKS {
        // One step inside, because others may want the very first place.
        for (end, priority) in [(End::First, i32::MIN + 1), (End::Last, i32::MAX - 1)] {
            messages.push(about(kind::NEWCHAIN, NLM_F_CREATE, &|body| {
                body.put_str(chain::NAME, &chain_at(hook, end));
                body.nest(chain::HOOK, |place| {
                    put_number(place, chain::HOOK_NUMBER, hook.number());
                    place.put(chain::HOOK_PRIORITY, &priority.to_be_bytes());
                });
                put_number(body, chain::POLICY, chain::NF_ACCEPT);
                body.put_str(chain::TYPE, "filter");
            }));
        }
    }
    for hook in [Hook::Prerouting, Hook::Output] {
        for program in rules::marking(flow) {
            messages.push(about(kind::NEWRULE, NLM_F_CREATE | NLM_F_APPEND, &|body| {
                body.put_str(rule::CHAIN, &chain_at(hook, End::First));
                put_rule(body, &program, None);
            }));
        }
    }
    messages
}

/// Reads messages as events of a probe's packets.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn fuzz_events(frames: &[crate::socket::Frame]) {
    let own = TableKey { family: Family::Inet, name: Name::literal("netd-trace-7") };
    let source = SocketAddr::from(([172, 7, 21, 2], 40_000));
    let (flow, mut packets) = (Flow { source, protocol: Protocol::Udp, vxlan: vec![8472] }, event::Packets::default());
    let events = frames.iter().filter_map(|frame| Event::read(frame, &own, &flow, &mut packets)).count();
    assert!(events <= frames.len(), "{events} events in {} messages", frames.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_known_by_their_names() {
        for hook in HOOKS {
            for end in [End::First, End::Last] {
                assert_eq!(place_of(&chain_at(hook, end)), Some((hook, end)));
            }
        }
        assert_eq!(place_of("first-elsewhere"), None);
        assert_eq!(chain_at(Hook::Forward, End::Last), "last-forward");
    }

    #[test]
    fn table_is_owned_where_that_is_known_and_each_shape_of_the_flow_is_marked_where_packets_enter() {
        let flow = Flow { source: "172.7.21.2:40000".parse().unwrap(), protocol: Protocol::Udp, vxlan: vec![8472] };
        let key = TableKey { family: Family::Inet, name: Name::observed("netd-trace-1".to_owned()) };
        // One table, ten chains; sent, received and quoted by ICMP: bare, in ipip and in VXLAN, in two chains.
        let (owned, bare) = (layout(&key, &flow, Some(table::OWNER)), layout(&key, &flow, None));
        assert_eq!((owned.len(), bare.len()), (1 + 10 + 2 * 9, 1 + 10 + 2 * 9));
        assert!(owned[0].body.len() > bare[0].body.len() && owned[1..] == bare[1..]);
        assert!(knows_no_owner(libc::EINVAL) && !knows_no_owner(libc::EPERM));
    }
}
