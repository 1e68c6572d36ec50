//! One packet in the rules of one table: matches, lookups, verdicts, translations.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use netstate::ipvs::VirtualServerKey;
use netstate::nft::{
    Chain, ChainKey, CtDirection, CtState, Data, Datum, Destination, ElementKey, Field, Match, Name, Op, Row, RowKey,
    Rule, Statement, TableKey, Verdict,
};
use netstate::{IfName, IpFamily, Protocol};

use super::{Sender, World, table};

/// Chains inside each other that are followed; the kernel takes sixteen (NFT_JUMP_STACK_SIZE).
const DEPTH: usize = 16;

/// The first packet of a connection, as it is on its way.
pub(super) struct Packet {
    protocol: Protocol,
    saddr: IpAddr,
    pub(super) link: Option<IfName>,
    pub(super) daddr: SocketAddr,
    /// Where it was sent to.
    first: SocketAddr,
    mark: u32,
    /// IPVS has taken it.
    pub(super) is_balanced: bool,
    /// A chain of the hook that it is in has translated it.
    pub(super) is_translated_here: bool,
    pub(super) masquerade: bool,
}

impl Packet {
    pub(super) fn new(protocol: Protocol, sender: &Sender, to: SocketAddr) -> Self {
        Self {
            protocol,
            saddr: sender.addr,
            link: sender.link.clone(),
            daddr: to,
            first: to,
            mark: 0,
            is_balanced: false,
            is_translated_here: false,
            masquerade: false,
        }
    }

    /// It goes elsewhere than where it was sent to.
    pub(super) fn is_led(&self) -> bool {
        self.is_balanced || self.daddr != self.first
    }
}

/// Numbers that rules choose at random, in the order in which they are asked for: each with how many there are.
#[derive(Debug, Default)]
pub(super) struct Choices {
    made: Vec<(u32, u32)>,
    asked: usize,
}

impl Choices {
    fn choose(&mut self, below: u32) -> u32 {
        if self.made.len() <= self.asked {
            self.made.push((0, below));
        }
        let chosen = self.made.get(self.asked).map_or(0, |(chosen, _)| *chosen);
        self.asked = self.asked.saturating_add(1);
        chosen
    }

    /// The next choices that were not made yet.
    pub(super) fn next(mut self) -> Option<Self> {
        while let Some((chosen, below)) = self.made.pop() {
            let chosen = chosen.saturating_add(1);
            if chosen < below {
                self.made.push((chosen, below));
                return Some(Self { made: self.made, asked: 0 });
            }
        }
        None
    }
}

/// How a chain ends for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Accept,
    Drop,
    Reject,
    Return,
}

/// What IPVS does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Balanced {
    Not,
    Taken,
    Refused,
}

/// One packet under way.
pub(super) struct Run<'a> {
    world: &'a World<'a>,
    pub(super) packet: Packet,
    pub(super) choices: Choices,
    pub(super) rows: BTreeSet<RowKey>,
    pub(super) server: Option<VirtualServerKey>,
    pub(super) unread: BTreeSet<String>,
    /// What the packet has put into sets. What others have is in no row, nor are clients that are remembered: a new one is followed.
    noted: BTreeSet<ElementKey>,
    depth: usize,
}

impl<'a> Run<'a> {
    pub(super) fn new(world: &'a World<'a>, packet: Packet, choices: Choices) -> Self {
        let (rows, unread) = (BTreeSet::new(), BTreeSet::new());
        Self { world, packet, choices, rows, server: None, unread, noted: BTreeSet::new(), depth: 0 }
    }

    /// Lets IPVS take the packet where it has a virtual server; what becomes of it there.
    pub(super) fn balance(&mut self) -> Balanced {
        let Packet { protocol, daddr, .. } = self.packet;
        let key = VirtualServerKey { protocol, addr: daddr.ip(), port: daddr.port() };
        let Some(reals) = self.world.servers.get(&key).filter(|_| !self.packet.is_led()) else { return Balanced::Not };
        self.server = Some(key);
        let count = u32::try_from(reals.len()).unwrap_or(u32::MAX);
        let chosen = if count == 0 { 0 } else { self.choices.choose(count) };
        match reals.get(usize::try_from(chosen).unwrap_or_default()) {
            Some(real) => {
                (self.packet.daddr, self.packet.is_balanced) = (*real, true);
                Balanced::Taken
            }
            // ip_vs_leave: nobody behind it, so the client is refused.
            None => Balanced::Refused,
        }
    }

    /// Goes through a chain; `None` at its end.
    pub(super) fn chain(&mut self, table: &TableKey, name: &Name, chain: &Chain) -> Option<End> {
        if self.depth >= DEPTH {
            self.unread.insert(format!("chain {table} {name}: too many chains inside each other"));
            return Some(End::Drop);
        }
        self.depth = self.depth.saturating_add(1);
        let end = chain.rules.iter().find_map(|rule| self.rule(table, name, rule));
        self.depth = self.depth.saturating_sub(1);
        end
    }

    fn rule(&mut self, table: &TableKey, chain: &Name, rule: &Rule) -> Option<End> {
        for statement in &rule.statements {
            match statement {
                Statement::Match(condition) => {
                    if !self.holds(table, condition) {
                        return None;
                    }
                }
                Statement::SetMark(change) => self.packet.mark = (self.packet.mark & change.mask) ^ change.xor,
                Statement::Masquerade { .. } => {
                    self.packet.masquerade = true;
                    return Some(End::Accept);
                }
                Statement::Dnat(destination) => {
                    // Where the map holds nothing the rule does nothing.
                    self.packet.daddr = self.destination(table, destination)?;
                    self.packet.is_translated_here = true;
                    return Some(End::Accept);
                }
                Statement::Vmap(fields, map) => {
                    let found = self.lookup(table, fields, map);
                    if let Some(Data::Verdict(verdict)) = found
                        && let Some(end) = self.verdict(table, &verdict)
                    {
                        return Some(end);
                    }
                }
                Statement::Verdict(verdict) => return self.verdict(table, verdict),
                Statement::Reject(_) => return Some(End::Reject),
                Statement::Unknown(text) => {
                    self.unread.insert(format!("chain {table} {chain}: {text}"));
                    return None;
                }
                Statement::Update { fields, set, .. } => {
                    let noted = self.element(table, fields, set);
                    self.noted.extend(noted);
                }
                Statement::Counter | Statement::Notrack | Statement::Offload(_) => {}
            }
        }
        None
    }

    fn verdict(&mut self, table: &TableKey, verdict: &Verdict) -> Option<End> {
        match verdict {
            Verdict::Accept => Some(End::Accept),
            Verdict::Drop => Some(End::Drop),
            Verdict::Return => Some(End::Return),
            Verdict::Jump(to) => self.enter(table, to).filter(|end| *end != End::Return),
            // Behind its end nothing more of this chain is done.
            Verdict::Goto(to) => Some(self.enter(table, to).unwrap_or(End::Return)),
        }
    }

    fn enter(&mut self, key: &TableKey, name: &Name) -> Option<End> {
        let (world, row) = (self.world, RowKey::Chain(ChainKey { table: key.clone(), chain: name.clone() }));
        if let Some(Row::Chain(chain)) = world.rows.get(&row) {
            self.rows.insert(row);
            return self.chain(key, name, chain);
        }
        let chain = table(world.rows, key).and_then(|table| table.chains.get(name));
        chain.and_then(|chain| self.chain(key, name, chain))
    }

    fn destination(&mut self, table: &TableKey, destination: &Destination) -> Option<SocketAddr> {
        let same_port = self.packet.daddr.port();
        match destination {
            Destination::Fixed(addr, port) => Some(SocketAddr::new(*addr, port.unwrap_or(same_port))),
            Destination::Map { fields, map, .. } => match self.lookup(table, fields, map)? {
                Data::Value(parts) => {
                    Some(SocketAddr::new(address(parts.first()?)?, port(&parts).unwrap_or(same_port)))
                }
                Data::Nothing | Data::Verdict(_) => None,
            },
        }
    }

    /// What a set or map holds for these fields.
    fn lookup(&mut self, table: &TableKey, fields: &[Field], set: &Name) -> Option<Data> {
        let key = self.element(table, fields, set)?;
        if self.noted.contains(&key) {
            return Some(Data::Nothing);
        }
        let (row, index) = match key.listed() {
            Some((place, index)) => (RowKey::List(place), index),
            None => (RowKey::Element(key), 0),
        };
        let found = self.world.rows.get(&row)?;
        self.rows.insert(row);
        match found {
            Row::Element(element) => Some(element.data.clone()),
            Row::List(list) => Some(list.element(index)?.data),
            Row::Table(_) | Row::Set(_) | Row::Chain(_) => None,
        }
    }

    /// The key of these fields in a set.
    fn element(&mut self, table: &TableKey, fields: &[Field], set: &Name) -> Option<ElementKey> {
        let key: Vec<Datum> = fields.iter().map(|field| self.field(*field)).collect::<Option<_>>()?;
        Some(ElementKey { table: table.clone(), set: set.clone(), key: key.into() })
    }

    fn field(&mut self, field: Field) -> Option<Datum> {
        let of_family = |family: IpFamily, addr: IpAddr| (IpFamily::of(addr) == family).then(|| Datum::from(addr));
        match field {
            Field::Mark => Some(Datum::Mark(self.packet.mark)),
            Field::L4Proto => Some(Datum::Protocol(self.packet.protocol)),
            Field::Iifname => self.packet.link.clone().map(Datum::IfName),
            Field::Saddr(family) => of_family(family, self.packet.saddr),
            Field::Daddr(family) => of_family(family, self.packet.daddr.ip()),
            Field::CtOriginalDaddr(family) => of_family(family, self.packet.first.ip()),
            Field::Dport => Some(Datum::Port(self.packet.daddr.port())),
            Field::Random { below, offset } => Some(Datum::Index(offset.saturating_add(self.choices.choose(below)))),
            // The client's port is any, and where it leaves is not known here.
            Field::Sport | Field::Oifname | Field::EtherSaddr => None,
        }
    }

    fn is_local(&self, addr: IpAddr) -> bool {
        addr.is_loopback() || self.world.local.contains(&addr)
    }

    fn holds(&mut self, table: &TableKey, condition: &Match) -> bool {
        let is = |op: &Op, holds: bool| holds == (*op == Op::Is);
        let packet = &self.packet;
        match condition {
            Match::Mark(op, mask, value) => is(op, packet.mark & mask == *value),
            Match::Nfproto(op, family) => is(op, IpFamily::of(packet.daddr.ip()) == *family),
            Match::Whole(family) => IpFamily::of(packet.daddr.ip()) == *family,
            Match::L4Proto(op, protocol) => is(op, packet.protocol == *protocol),
            Match::Iifname(op, link) => is(op, packet.link.as_ref() == Some(link)),
            Match::IifnamePrefix(op, prefix) => {
                is(op, packet.link.as_ref().is_some_and(|link| link.as_str().starts_with(prefix.as_str())))
            }
            Match::Saddr(op, network) => is(op, network.contains(packet.saddr)),
            Match::Daddr(op, network) => is(op, network.contains(packet.daddr.ip())),
            Match::Dport(op, protocol, port) => packet.protocol == *protocol && is(op, packet.daddr.port() == *port),
            Match::TcpSyn(op) => packet.protocol == Protocol::Tcp && is(op, true),
            Match::DaddrLocal(op) => is(op, self.is_local(packet.daddr.ip())),
            Match::SaddrLocal(op) => is(op, self.is_local(packet.saddr)),
            Match::CtState(states) => states.0 & CtState::NEW.0 != 0,
            Match::CtDirection(direction) => *direction == CtDirection::Original,
            Match::CtOriginalDaddr(op, network) => is(op, network.contains(packet.first.ip())),
            // Both ways are followed, whatever the chance is.
            Match::OneOf(many) => *many <= 1 || self.choices.choose(2) == 0,
            Match::Lookup(op, fields, set) => {
                let found = self.lookup(table, fields, set).is_some();
                is(op, found)
            }
            // Of what the packet has not, or of what is not known here, nothing holds.
            Match::Oifname(..) | Match::Sport(..) | Match::CtStatus(_) => false,
        }
    }
}

fn address(datum: &Datum) -> Option<IpAddr> {
    match datum {
        Datum::Ipv4(addr) => Some(IpAddr::V4(*addr)),
        Datum::Ipv6(addr) => Some(IpAddr::V6(*addr)),
        _ => None,
    }
}

fn port(parts: &[Datum]) -> Option<u16> {
    match parts.get(1) {
        Some(Datum::Port(port)) => Some(*port),
        _ => None,
    }
}
