//! What rows do to the first packet of a connection: followed as the kernel follows them, over desired rows or those that it holds.
//!
//! The packet meets the base chains of our tables in the order of hooks and priorities, and IPVS where that is hung in (ip_vs_core.c).
//! Where a rule chooses at random every choice is followed. Pure. Invariants: a row that decided, or that was gone through, is among
//! the rows that are returned; a rule that cannot be read decides nothing, and is named.

mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use netstate::ipvs::VirtualServerKey;
use netstate::nft::{BaseChain, Chain, ChainKind, Hook, Name, Policy, Row, RowKey, Table, TableKey};
use netstate::{IfName, IpFamily, Protocol};

use self::rules::{Balanced, Choices, End, Packet, Run};
use crate::dataplane::nft::table_key;

/// What a packet meets.
pub(super) struct World<'a> {
    /// The rows of our nft tables.
    pub(super) rows: &'a BTreeMap<RowKey, Row>,
    /// Virtual servers, each with the real servers that take new connections.
    pub(super) servers: &'a BTreeMap<VirtualServerKey, Vec<SocketAddr>>,
    /// Addresses of this node.
    pub(super) local: &'a BTreeSet<IpAddr>,
}

/// Who connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sender {
    /// Its address.
    pub(super) addr: IpAddr,
    /// The interface that its packets come in by; none for this node itself.
    pub(super) link: Option<IfName>,
    /// It is this node.
    pub(super) is_node: bool,
}

/// What becomes of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    /// It reaches an endpoint, which sees the client's address or, masqueraded, this node's.
    Endpoint { to: SocketAddr, masquerade: bool },
    /// The client learns at once that nobody is there.
    Refused,
    /// Nothing is answered.
    Dropped,
    /// No row leads it anywhere: it goes where it is addressed to, this node itself or another host.
    Passed,
}

/// What came of following the rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Walk {
    /// Everything that can become of the connection.
    pub(super) outcomes: BTreeSet<Outcome>,
    /// Elements and chains that it goes through.
    pub(super) rows: BTreeSet<RowKey>,
    /// The virtual server that takes it.
    pub(super) server: Option<VirtualServerKey>,
    /// Rules that cannot be read.
    pub(super) unread: BTreeSet<String>,
}

/// Choices that are followed at most: more endpoints than a Service has.
const MOST: usize = 65_536;

/// What this node sends to itself comes in by.
const LOOPBACK: IfName = IfName::literal("lo");

/// IPVS takes what this node sends behind this priority of the output hook, and what comes in behind this one of the input hook.
const IPVS_OUTPUT: i32 = -98;
const IPVS_INPUT: i32 = 98;

/// Follows the rows for a connection of `sender` to `to`.
pub(super) fn follow(world: &World<'_>, protocol: Protocol, sender: &Sender, to: SocketAddr) -> Walk {
    let mut walk = Walk::default();
    let mut choices = Choices::default();
    for _ in 0..MOST {
        let packet = Packet::new(protocol, sender, to);
        let mut run = Run::new(world, packet, choices);
        let outcome = path(&mut run, world, sender);
        walk.outcomes.insert(outcome);
        walk.rows.append(&mut run.rows);
        walk.unread.append(&mut run.unread);
        walk.server = walk.server.or(run.server);
        match run.choices.next() {
            Some(next) => choices = next,
            None => break,
        }
    }
    walk
}

/// The whole way of one packet.
fn path(run: &mut Run<'_>, world: &World<'_>, sender: &Sender) -> Outcome {
    let first = if sender.is_node { Hook::Output } else { Hook::Prerouting };
    if let Some(end) = hook(run, world, first) {
        return end;
    }
    let is_local = world.local.contains(&run.packet.daddr.ip()) || run.packet.daddr.ip().is_loopback();
    if !run.packet.is_balanced {
        // What this node sends to itself comes back in; what others send to somebody else is forwarded.
        if is_local && sender.is_node {
            run.packet.link = Some(LOOPBACK);
        }
        let next = match (is_local, sender.is_node) {
            (true, _) => Some(Hook::Input),
            (false, false) => Some(Hook::Forward),
            (false, true) => None,
        };
        if let Some(end) = next.and_then(|next| hook(run, world, next)) {
            return end;
        }
    }
    if !run.packet.is_led() {
        return Outcome::Passed;
    }
    let to = run.packet.daddr;
    let dropped = hook(run, world, Hook::Postrouting);
    dropped.unwrap_or(Outcome::Endpoint { to, masquerade: run.packet.masquerade })
}

/// The base chains of a hook in their order, with IPVS in its place; what becomes of the packet if that is decided there.
fn hook(run: &mut Run<'_>, world: &World<'_>, hook: Hook) -> Option<Outcome> {
    let key = table_key(IpFamily::of(run.packet.daddr.ip()));
    let mut balance = match hook {
        Hook::Output => Some(IPVS_OUTPUT),
        Hook::Input => Some(IPVS_INPUT),
        _ => None,
    };
    run.packet.is_translated_here = false;
    for (base, name, chain) in base_chains(world.rows, &key, hook) {
        if balance.take_if(|at| *at < base.priority).is_some() {
            match run.balance() {
                Balanced::Not => {}
                Balanced::Taken => return None,
                Balanced::Refused => return Some(Outcome::Refused),
            }
        }
        if base.kind == ChainKind::Nat && run.packet.is_translated_here {
            continue;
        }
        let end = run.chain(&key, name, chain);
        match end {
            Some(End::Drop) => return Some(Outcome::Dropped),
            Some(End::Reject) => return Some(Outcome::Refused),
            Some(End::Return) | None if base.policy == Policy::Drop => return Some(Outcome::Dropped),
            Some(End::Accept | End::Return) | None => {}
        }
    }
    let refused = balance.is_some() && run.balance() == Balanced::Refused;
    refused.then_some(Outcome::Refused)
}

/// The base chains of a hook, first to last.
fn base_chains<'a>(
    rows: &'a BTreeMap<RowKey, Row>,
    key: &TableKey,
    hook: Hook,
) -> Vec<(&'a BaseChain, &'a Name, &'a Chain)> {
    let Some(table) = table(rows, key).filter(|table| !table.dormant) else { return Vec::new() };
    let of_hook = table.chains.iter().filter_map(|(name, chain)| Some((chain.base.as_ref()?, name, chain)));
    let mut found: Vec<_> = of_hook.filter(|(base, ..)| base.hook == hook).collect();
    found.sort_by_key(|(base, ..)| base.priority);
    found
}

/// The static part of a table.
fn table<'a>(rows: &'a BTreeMap<RowKey, Row>, key: &TableKey) -> Option<&'a Table> {
    match rows.get(&RowKey::Table(key.clone())) {
        Some(Row::Table(table)) => Some(table),
        _ => None,
    }
}
