//! A model of the chains of either data path, and of virtual servers behind them: what becomes of the first packet of a connection, read
//! from the rows. What it does not know fails the test.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netstate::ipvs::VirtualServerKey;
use netstate::mark::MASQUERADE;
use netstate::nft::{
    ChainKey, CtState, Data, Datum, Destination, Element, ElementKey, Field, Match, Name, Op, Row, RowKey, Rule,
    Statement, Verdict,
};
use netstate::{IpFamily, Protocol};

use super::super::nft::{element, table_key};
use super::super::*;

/// The Pod networks, whose packets come in by the bridge.
const PODS: [&str; 2] = ["172.7.0.0/16", "fd07::/16"];

/// The link that the default route leaves by.
pub(super) const UPLINK: &str = "eth0";

/// What a packet meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// One of these endpoints answers, and sees the node's address if it says so.
    Led(BTreeSet<IpAddr>, bool),
    Refused,
    Dropped,
    /// Nobody touches it.
    Passes,
}

/// The rows of both tables.
#[derive(Default)]
pub(super) struct Kernel {
    pub(super) nft: BTreeMap<RowKey, Row>,
    pub(super) ipvs: BTreeMap<VirtualServerKey, ipvs_rows::Row>,
    pub(super) own: BTreeSet<IpAddr>,
    pub(super) bound: BTreeMap<AddressKey, Address>,
}

fn fold<K: Ord, V>(rows: &mut BTreeMap<K, V>, changes: BTreeMap<K, Option<V>>) {
    for (key, value) in changes {
        match value {
            Some(value) => rows.insert(key, value),
            None => rows.remove(&key),
        };
    }
}

impl Kernel {
    pub(super) fn take(&mut self, changes: Changes) {
        fold(&mut self.nft, changes.nft);
        fold(&mut self.ipvs, changes.ipvs);
        fold(&mut self.bound, changes.addresses);
    }

    pub(super) fn has(&self, family: IpFamily, set: &'static str, key: Vec<Datum>) -> bool {
        self.nft.contains_key(&element(family, set, key))
    }

    /// The chain that the packet is led to.
    pub(super) fn chain(&self, to: &VirtualServerKey) -> Option<Name> {
        let family = IpFamily::of(to.addr);
        let port = vec![Datum::Protocol(to.protocol), Datum::Port(to.port)];
        let at_address = element(family, "services", [vec![to.addr.into()], port.clone()].concat());
        let of_node = self.has(family, "node-port-addresses", vec![to.addr.into()]);
        let at_node = of_node.then(|| element(family, "node-ports", port));
        let row = self.nft.get(&at_address).or_else(|| self.nft.get(&at_node?))?;
        let Row::Element(Element { data: Data::Verdict(Verdict::Goto(chain)), .. }) = row else { panic!("{row}") };
        Some(chain.clone())
    }

    fn rules(&self, family: IpFamily, chain: &Name) -> &[Rule] {
        let key = RowKey::Chain(ChainKey { table: table_key(family), chain: chain.clone() });
        let Some(Row::Chain(chain)) = self.nft.get(&key) else { panic!("{key} is missing") };
        &chain.rules
    }

    /// The endpoints that a rule chooses from.
    fn chosen(&self, to: &VirtualServerKey, destination: &Destination) -> BTreeSet<IpAddr> {
        let Destination::Map { family, fields, map, .. } = destination else { panic!("{destination:?}") };
        let Some(Field::Random { below, offset }) = fields.last() else { panic!("{fields:?}") };
        let set = if map.as_str() == "endpoints" { "endpoints" } else { "node-endpoints" };
        let endpoint = |index| {
            let part = |field: &Field| match field {
                Field::Daddr(_) => to.addr.into(),
                Field::L4Proto => Datum::Protocol(to.protocol),
                Field::Dport => Datum::Port(to.port),
                Field::Random { .. } => Datum::Index(index),
                other => panic!("{other:?}"),
            };
            let RowKey::Element(key) = element(*family, set, fields.iter().map(part).collect::<Vec<_>>()) else {
                panic!()
            };
            let (place, index) = key.listed().unwrap();
            match self.nft.get(&RowKey::List(place)) {
                Some(Row::List(list)) => list.value(index).unwrap().0,
                other => panic!("{other:?}"),
            }
        };
        (*offset..offset + below).map(endpoint).collect()
    }

    /// What becomes of a packet from `from` to `to`, whom no endpoint remembers, whatever is chosen at random.
    pub(super) fn fate(&self, from: IpAddr, to: &VirtualServerKey) -> Fate {
        match self.chain(to) {
            Some(chain) => self.followed((from, to), &chain, false),
            None => self.behind(from, to, false),
        }
    }

    /// The same from the beginning of a chain, for a packet that may be marked.
    fn followed(&self, (from, to): (IpAddr, &VirtualServerKey), chain: &Name, mut marked: bool) -> Fate {
        let mut by_chance = BTreeSet::new();
        for rule in self.rules(IpFamily::of(to.addr), chain) {
            let (mut applies, mut maybe) = (true, false);
            for statement in rule.statements.iter() {
                match statement {
                    Statement::Match(Match::Saddr(op, network)) => {
                        applies = network.contains(from) == (*op == Op::Is);
                    }
                    Statement::Match(Match::SaddrLocal(op)) => applies = self.is_local(from) == (*op == Op::Is),
                    Statement::Match(Match::L4Proto(Op::Is, protocol)) => applies = *protocol == to.protocol,
                    Statement::Match(Match::OneOf(_)) => maybe = true,
                    Statement::Match(Match::Lookup(Op::Is, _, set)) if set.as_str().starts_with("clients/") => {
                        applies = false;
                    }
                    Statement::Update { set, .. } => assert!(set.as_str().starts_with("clients/"), "{set:?}"),
                    Statement::SetMark(change) if *change == MASQUERADE.set() => marked = true,
                    Statement::Dnat(Destination::Fixed(addr, _)) => return Fate::Led([*addr].into(), marked),
                    Statement::Dnat(destination) => return Fate::Led(self.chosen(to, destination), marked),
                    Statement::Verdict(Verdict::Drop) => return Fate::Dropped,
                    Statement::Verdict(Verdict::Accept) => return self.behind(from, to, marked),
                    Statement::Verdict(Verdict::Goto(next)) => {
                        let fate = self.followed((from, to), next, marked);
                        match fate {
                            Fate::Led(endpoints, _) if maybe => by_chance.extend(endpoints),
                            Fate::Led(endpoints, marked) => return Fate::Led(&by_chance | &endpoints, marked),
                            other => return other,
                        }
                    }
                    other => panic!("{other:?}"),
                }
                if !applies {
                    break;
                }
            }
        }
        self.behind(from, to, marked)
    }

    fn is_local(&self, addr: IpAddr) -> bool {
        self.own.contains(&addr) || self.bound.keys().any(|key| key.addr == addr)
    }

    /// What becomes of a packet that no chain has led anywhere.
    fn behind(&self, from: IpAddr, to: &VirtualServerKey, marked: bool) -> Fate {
        if let Some(row) = self.ipvs.get(to) {
            let reals: BTreeSet<_> = row.reals.iter().map(|(at, _)| at.ip()).collect();
            return if reals.is_empty() { Fate::Refused } else { Fate::Led(reals, marked) };
        }
        let chain = match (self.is_local(to.addr), self.own.contains(&from)) {
            (true, _) => "refuse-input",
            (false, true) => "refuse-output",
            (false, false) => "refuse-forward",
        };
        self.filtered(chain, from, to)
    }

    /// The link that packets of a client come in by.
    fn link(&self, from: IpAddr) -> &'static str {
        let is_pod = PODS.iter().any(|pods| pods.parse::<Prefix>().is_ok_and(|pods| pods.contains(from)));
        match (self.own.contains(&from), is_pod) {
            (true, _) => "lo",
            (false, true) => "cbr0",
            (false, false) => UPLINK,
        }
    }

    /// What a filter does with the first packet of a connection, which leaves by the uplink where it is forwarded.
    fn filtered(&self, chain: &'static str, from: IpAddr, to: &VirtualServerKey) -> Fate {
        let family = IpFamily::of(to.addr);
        let Some(Row::Table(table)) = self.nft.get(&RowKey::Table(table_key(family))) else { panic!("no table") };
        let place = |field: &Field| match field {
            Field::Daddr(_) => to.addr.into(),
            Field::L4Proto => Datum::Protocol(to.protocol),
            Field::Dport => Datum::Port(to.port),
            other => panic!("{other:?}"),
        };
        let holds = |condition: &Match| match condition {
            Match::CtState(states) => states.0 & CtState::NEW.0 != 0,
            Match::L4Proto(op, protocol) => (to.protocol == *protocol) == (*op == Op::Is),
            Match::TcpSyn(op) => to.protocol == Protocol::Tcp && *op == Op::Is,
            Match::Daddr(op, network) => network.contains(to.addr) == (*op == Op::Is),
            Match::Iifname(op, link) => (self.link(from) == link.as_str()) == (*op == Op::Is),
            Match::Oifname(op, link) => (link.as_str() == UPLINK) == (*op == Op::Is),
            Match::CtStatus(_) => false,
            Match::Lookup(op, fields, set) => {
                let key =
                    ElementKey { table: table_key(family), set: set.clone(), key: fields.iter().map(place).collect() };
                self.nft.contains_key(&RowKey::Element(key)) == (*op == Op::Is)
            }
            other => panic!("{other:?}"),
        };
        for rule in &table.chains[&Name::literal(chain)].rules {
            for statement in &rule.statements {
                match statement {
                    Statement::Match(condition) if holds(condition) => {}
                    Statement::Match(_) => break,
                    Statement::Reject(_) => return Fate::Refused,
                    Statement::Verdict(Verdict::Drop) => return Fate::Dropped,
                    Statement::Verdict(Verdict::Accept) => return Fate::Passes,
                    other => panic!("{other:?}"),
                }
            }
        }
        Fate::Passes
    }
}
