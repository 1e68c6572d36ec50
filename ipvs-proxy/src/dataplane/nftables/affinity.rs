//! Session affinity: rows by which a client stays with its endpoint.
//!
//! | row | what it does |
//! |---|---|
//! | set `clients/SERVICE/PORT/ENDPOINT` | holds the clients of an endpoint, each for the Service's time; packets fill it |
//! | chain `endpoint/SERVICE/PORT/ENDPOINT` | notes the client there, for the whole time again, and leads to the endpoint |
//! | chain `keep/PLACE/FIRST` | leads who is known to one of a list of endpoints to that one, everybody else to one at random |
//! | chain `lead/CLASSES/PLACE` | tells the classes of clients apart and marks, as a chain of [`super::dispatch`] does |
//!
//! The first two belong to a port of a Service: a client that came by one of its addresses is known at all of them. The others are
//! one frontend's. An endpoint that leaves takes its set along, and so the clients that it had; an endpoint of which a class of
//! clients must not know, as that of another node with the policy Local, is in no chain that the class goes through.
//!
//! Invariants. Time is in a rule and not in the set, so that another time loses no client: it begins with a client's next
//! connection. Noting the client is a rule of its own: a set that is full ends it, and the client is led on all the same.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use netstate::nft::{
    Chain, ChainKey, Destination, Field, Match, Name, Op, Row, RowKey, Rule, Set, SetKey, Statement, Type, Verdict,
};
use netstate::{IpFamily, Protocol};
use reconcile::Rows as Observed;

use super::super::nft::table_key;
use super::super::site::Site;
use super::dispatch::{Outcome, number};
use crate::plan::FrontendKey;
use crate::plan::frontend::{Affinity, Place};
use crate::plan::select::Backend;

type Rows = BTreeMap<RowKey, Row>;

/// First words of names. A chain must sort behind those that it names.
const CLIENTS: &str = "clients";
const ENDPOINT: &str = "endpoint";
const KEEP: &str = "keep";
pub(super) const LEAD: &str = "lead";

/// A frontend whose clients stay with their endpoints.
pub(super) struct Sticky<'a> {
    site: &'a Site<'a>,
    affinity: Affinity,
}

impl<'a> Sticky<'a> {
    /// `None` where clients need not stay, or nftables chooses no endpoint.
    pub(super) fn of(site: &'a Site<'a>) -> Option<Self> {
        let affinity = site.frontend.affinity.filter(|_| site.chosen().next().is_some())?;
        Some(Self { site, affinity })
    }

    /// The chain that a connection to the frontend goes through.
    pub(super) fn entrance(&self) -> Name {
        Name::observed(format!("{LEAD}/{}/{}", self.site.dispatch.text(), place(self.site.key)))
    }

    /// Rows that are this frontend's own.
    pub(super) fn own(&self) -> Rows {
        let end = |outcome: Outcome| match outcome {
            Outcome::Choose { first, .. } => vec![Rule::new().then(Verdict::Goto(self.keeper(first)))],
            other => other.rules(self.site.key.place, self.site.family()),
        };
        let lead = Chain::regular(self.site.dispatch.rules(self.site.pods, end));
        let mut rows = Rows::from([(self.chain(self.entrance()), lead.into())]);
        let mut first = 0_usize;
        for list in self.site.lists() {
            rows.insert(self.chain(self.keeper(number(first))), self.keep(list).into());
            first = first.saturating_add(list.len());
        }
        rows
    }

    /// Rows that other frontends of the Service's port need too.
    pub(super) fn shared(&self) -> Rows {
        let address = match self.site.family() {
            IpFamily::V4 => Type::Ipv4Addr,
            IpFamily::V6 => Type::Ipv6Addr,
        };
        let rows = self.site.chosen().flat_map(|backend| {
            let set = SetKey { table: table_key(self.site.family()), set: self.clients(backend) };
            let clients = (RowKey::Set(set), Set::dynamic(vec![address]).into());
            [clients, (self.chain(self.endpoint(backend)), self.lead_to(backend).into())]
        });
        rows.collect()
    }

    /// The rules for one list of endpoints, each with the same chance.
    fn keep(&self, list: &[Backend]) -> Chain {
        let source = vec![Field::Saddr(self.site.family())];
        let to = |backend| Verdict::Goto(self.endpoint(backend));
        let known = list.iter().map(|backend| {
            Rule::new().when(Match::Lookup(Op::Is, source.clone(), self.clients(backend))).then(to(backend))
        });
        let left = (1..=list.len()).rev().map(number);
        let others = list.iter().zip(left).map(|(backend, left)| {
            let one_of_these = if left > 1 { Rule::new().when(Match::OneOf(left)) } else { Rule::new() };
            one_of_these.then(to(backend))
        });
        Chain::regular(known.chain(others).collect())
    }

    fn lead_to(&self, backend: &Backend) -> Chain {
        let fields = vec![Field::Saddr(self.site.family())];
        let note = Statement::Update { fields, set: self.clients(backend), seconds: self.affinity.seconds };
        let of_protocol = Rule::new().when(Match::L4Proto(Op::Is, self.site.key.protocol));
        let lead = of_protocol.then(Destination::Fixed(backend.addr, Some(backend.port)));
        Chain::regular(vec![Rule::new().then(note), lead])
    }

    fn clients(&self, backend: &Backend) -> Name {
        self.of_endpoint(CLIENTS, backend)
    }

    fn endpoint(&self, backend: &Backend) -> Name {
        self.of_endpoint(ENDPOINT, backend)
    }

    /// A name about an endpoint of the Service's port.
    fn of_endpoint(&self, room: &str, backend: &Backend) -> Name {
        let (owner, protocol, port) = (&self.site.frontend.owner, self.site.key.protocol, self.affinity.port);
        let endpoint = text(backend.addr);
        Name::observed(format!("{room}/{owner}/{protocol}/{port}/{endpoint}/{}", backend.port))
    }

    /// The chain for the list whose first endpoint has this index.
    fn keeper(&self, first: u32) -> Name {
        Name::observed(format!("{KEEP}/{}/{first}", place(self.site.key)))
    }

    fn chain(&self, chain: Name) -> RowKey {
        RowKey::Chain(ChainKey { table: table_key(self.site.family()), chain })
    }
}

/// An address in a name: the nft language takes no colons there.
fn text(addr: IpAddr) -> String {
    addr.to_string().replace(':', ".")
}

/// Where a frontend is, as names have it.
fn place(key: &FrontendKey) -> String {
    let place = match key.place {
        Place::Address(addr) => text(addr),
        Place::AnyNode(_) => "node".to_owned(),
    };
    format!("{place}/{}/{}", key.protocol, key.port)
}

/// The frontend whose endpoints the chain called `name` chooses from.
pub(super) fn frontend(family: IpFamily, name: &Name) -> Option<FrontendKey> {
    let mut words = name.as_str().split('/');
    let (KEEP, place, protocol, port) = (words.next()?, words.next()?, words.next()?, words.next()?) else {
        return None;
    };
    let address = |text: &str| match family {
        IpFamily::V4 => text.parse().ok(),
        IpFamily::V6 => text.replace('.', ":").parse().ok(),
    };
    let place = if place == "node" { Place::AnyNode(family) } else { Place::Address(address(place)?) };
    Some(FrontendKey { protocol: protocol.parse::<Protocol>().ok()?, place, port: port.parse().ok()? })
}

/// Those of `rows` that are chains which choose among the endpoints of a frontend.
pub(super) fn keepers<'a>(
    rows: &'a BTreeMap<RowKey, Row>,
    at: &FrontendKey,
) -> impl Iterator<Item = &'a RowKey> + use<'a> {
    let prefix = format!("{KEEP}/{}/", place(at));
    let chain = Name::observed(prefix.clone());
    let first = RowKey::Chain(ChainKey { table: table_key(at.family()), chain });
    let is_of_it = move |key: &&RowKey| matches!(key, RowKey::Chain(key) if key.chain.as_str().starts_with(&prefix));
    rows.range(first..).map(|(key, _)| key).take_while(is_of_it)
}

/// The endpoints of a frontend, list by list, by the rows of the kernel; each with its chain's name.
fn chosen<'a>(
    rows: &'a Observed<RowKey, Row>,
    at: &FrontendKey,
) -> impl Iterator<Item = (&'a Name, &'a Chain)> + use<'a> {
    let table = table_key(at.family());
    let prefix = format!("{KEEP}/{}/", place(at));
    let first = RowKey::Chain(ChainKey { table: table.clone(), chain: Name::observed(prefix.clone()) });
    // Of the two lists that there may be, the first begins at 0.
    let lists = rows.range(first..).map_while(move |(key, row)| match (key, &row.value) {
        (RowKey::Chain(key), Row::Chain(chain)) if key.chain.as_str().starts_with(&prefix) => Some(chain),
        _ => None,
    });
    let rules = lists.flat_map(|chain| &chain.rules);
    let names = rules.filter_map(|rule| match rule.statements.as_slice() {
        [Statement::Match(Match::OneOf(_)), Statement::Verdict(Verdict::Goto(name))]
        | [Statement::Verdict(Verdict::Goto(name))] => Some(name),
        _ => None,
    });
    names.filter_map(move |name| {
        let key = RowKey::Chain(ChainKey { table: table.clone(), chain: name.clone() });
        match rows.get(&key).map(|row| &row.value) {
            Some(Row::Chain(chain)) => Some((name, &**chain)),
            _ => None,
        }
    })
}

/// Who takes connections at a frontend, in the order of the indexes.
pub(super) fn endpoints(rows: &Observed<RowKey, Row>, at: &FrontendKey) -> Vec<SocketAddr> {
    let statements = chosen(rows, at).flat_map(|(_, chain)| &chain.rules).flat_map(|rule| &rule.statements);
    let to = statements.filter_map(|statement| match statement {
        Statement::Dnat(Destination::Fixed(addr, Some(port))) => Some(SocketAddr::new(*addr, *port)),
        _ => None,
    });
    to.collect()
}

/// The affinity of a frontend.
pub(super) fn affinity(rows: &Observed<RowKey, Row>, at: &FrontendKey) -> Option<Affinity> {
    let (name, chain) = chosen(rows, at).next()?;
    let port = name.as_str().split('/').nth(4)?.parse().ok()?;
    let seconds = chain.rules.iter().flat_map(|rule| &rule.statements).find_map(|statement| match statement {
        Statement::Update { seconds, .. } => Some(*seconds),
        _ => None,
    })?;
    Some(Affinity { seconds, port, prefix: None })
}
