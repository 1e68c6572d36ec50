//! What the rows that the kernel holds say of frontends: who answers there, and what stood there before this program started.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use netstate::IpFamily;
use netstate::nft::{
    ChainKey, Data, Datum, Element, ElementKey, Match, Name, Op, Row, RowKey, Statement, TableKey, Verdict,
};
use reconcile::Rows;

use super::super::nft::{self, table_key};
use super::dispatch::Dispatch;
use super::{
    ENDPOINTS, NODE_ENDPOINTS, NODE_PORTS, REFUSED, REFUSED_NODE_PORTS, SERVICES, SOURCES, affinity, element, place,
};
use crate::object::ObjectName;
use crate::object::service::Sources;
use crate::plan::frontend::{Kind, Place};
use crate::plan::select::{Backend, Locality};
use crate::plan::{Frontend, FrontendKey};

/// The frontend that an element of `services`, `endpoints` or their like is about, or a chain that chooses among its endpoints.
#[must_use]
pub(crate) fn frontend(row: &RowKey) -> Option<FrontendKey> {
    let of = |table: &TableKey| IpFamily::ALL.into_iter().find(|family| table_key(*family) == *table);
    let (table, set, key) = match row {
        RowKey::Element(ElementKey { table, set, key }) | RowKey::List(ElementKey { table, set, key }) => {
            (table, set, key)
        }
        RowKey::Chain(ChainKey { table, chain }) => return affinity::frontend(of(table)?, chain),
        RowKey::Table(_) | RowKey::Set(_) => return None,
    };
    let family = of(table)?;
    let (place, rest) = match (set.as_str(), &**key) {
        (SERVICES | ENDPOINTS, [Datum::Ipv4(addr), rest @ ..]) => (Place::Address(IpAddr::V4(*addr)), rest),
        (SERVICES | ENDPOINTS, [Datum::Ipv6(addr), rest @ ..]) => (Place::Address(IpAddr::V6(*addr)), rest),
        (NODE_PORTS | NODE_ENDPOINTS, rest) => (Place::AnyNode(family), rest),
        _ => return None,
    };
    match rest {
        [Datum::Protocol(protocol), Datum::Port(port), ..] => {
            Some(FrontendKey { protocol: *protocol, place, port: *port })
        }
        _ => None,
    }
}

/// True for the one element that says that a frontend is served.
#[must_use]
pub(crate) fn is_frontend(row: &RowKey) -> bool {
    matches!(row, RowKey::Element(element) if is_one_of(&element.set, [SERVICES, NODE_PORTS]))
}

/// The row of the element that says that a frontend is served.
#[must_use]
pub(crate) fn entry(at: &FrontendKey) -> RowKey {
    RowKey::Element(match at.place {
        Place::Address(_) => place(at, SERVICES),
        Place::AnyNode(_) => place(at, NODE_PORTS),
    })
}

/// The row of the endpoints of a frontend that a chain chooses from by number.
#[must_use]
pub(crate) fn list(at: &FrontendKey) -> RowKey {
    RowKey::List(match at.place {
        Place::Address(_) => place(at, ENDPOINTS),
        Place::AnyNode(_) => place(at, NODE_ENDPOINTS),
    })
}

/// Those of `rows` from which the endpoints of a frontend are chosen by the clients that they have had.
pub(crate) fn keepers<'a>(
    rows: &'a BTreeMap<RowKey, Row>,
    at: &FrontendKey,
) -> impl Iterator<Item = &'a RowKey> + use<'a> {
    affinity::keepers(rows, at)
}

/// The rows of which one says that a frontend is served, or refused: by its own address and port, or by a port of the node.
#[must_use]
pub(crate) fn entries(at: &FrontendKey) -> Vec<RowKey> {
    let port = [Datum::Protocol(at.protocol), Datum::Port(at.port)];
    let addr = match at.place {
        Place::Address(addr) => Some(Datum::from(addr)),
        Place::AnyNode(_) => None,
    };
    let at_address = |set| {
        addr.clone()
            .map(|addr| element(at.family(), set, std::iter::once(addr).chain(port.clone()).collect::<Vec<_>>()))
    };
    let at_node = |set| element(at.family(), set, port.clone());
    let addressed = [SERVICES, REFUSED].into_iter().filter_map(at_address);
    addressed.chain([NODE_PORTS, REFUSED_NODE_PORTS].map(at_node)).collect()
}

/// The chain that is one frontend's own, to which its element leads with `value`: the one that lets only some clients in.
#[must_use]
pub(crate) fn own_chain(key: &RowKey, value: &Row) -> Option<RowKey> {
    let at = frontend(key)?;
    let Row::Element(Element { data: Data::Verdict(verdict), .. }) = value else { return None };
    let chain = chain_of(verdict).filter(|chain| Dispatch::named(chain).is_none())?;
    Some(RowKey::Chain(ChainKey { table: table_key(at.family()), chain: chain.clone() }))
}

/// True when nftables chooses an endpoint for some client at the frontend whose element `key` leads to `value`.
#[must_use]
pub(crate) fn chooses(rows: &Rows<RowKey, Row>, key: &RowKey, value: &Row) -> bool {
    let Some(at) = frontend(key) else { return false };
    let Row::Element(Element { data: Data::Verdict(verdict), .. }) = value else { return false };
    let chain = chain_of(verdict).map(|chain| sources(rows, &at, chain).1);
    chain.and_then(Dispatch::named).is_some_and(Dispatch::chooses)
}

/// True when the change of a row of a frontend makes no connection of TCP stale, which ends by itself whoever answers it: those of a frontend
/// that comes, goes, or gives some class of clients another answer or another source may be.
#[must_use]
pub(crate) fn spares_tcp(key: &RowKey, before: Option<&Row>, after: Option<&Row>) -> bool {
    if !is_frontend(key) {
        // Its element says the same of the frontend as a whole.
        return true;
    }
    let dispatch = |row: Option<&Row>| match row? {
        Row::Element(Element { data: Data::Verdict(verdict), .. }) => chain_of(verdict).and_then(Dispatch::named),
        _ => None,
    };
    dispatch(before).zip(dispatch(after)).is_some_and(|(before, after)| before.is_like(after))
}

fn is_one_of(set: &Name, names: [&str; 2]) -> bool {
    names.contains(&set.as_str())
}

/// Who takes connections at a frontend, in the order of the indexes.
pub(crate) fn in_order(rows: &Rows<RowKey, Row>, at: &FrontendKey) -> Vec<SocketAddr> {
    match rows.get(&list(at)) {
        Some(row) => listed(&row.value).collect(),
        None => affinity::endpoints(rows, at),
    }
}

/// Who takes connections at a frontend.
pub(crate) fn endpoints(rows: &Rows<RowKey, Row>, at: &FrontendKey) -> BTreeSet<SocketAddr> {
    in_order(rows, at).into_iter().collect()
}

/// The endpoints in a row that is a list.
pub(crate) fn listed(row: &Row) -> impl Iterator<Item = SocketAddr> + '_ {
    let list = if let Row::List(list) = row { list.values() } else { &[] };
    list.iter().map(|(addr, port)| SocketAddr::new(*addr, *port))
}

/// Frontends as the kernel holds them; `balanced` says who is behind the virtual servers of one.
pub(crate) fn remembered<'a>(
    rows: &'a Rows<RowKey, Row>,
    balanced: impl Fn(&FrontendKey) -> BTreeSet<SocketAddr> + 'a,
) -> impl Iterator<Item = (FrontendKey, Frontend)> + 'a {
    rows.iter().filter(|(row, _)| is_frontend(row)).filter_map(move |(row, observed)| {
        let at = frontend(row)?;
        Some((at, held(rows, &at, &observed.value, &balanced(&at))?))
    })
}

/// True for an external address, or one of a load balancer, by the rows.
#[must_use]
pub(crate) fn is_external(rows: &Rows<RowKey, Row>, addr: IpAddr) -> bool {
    rows.contains_key(&nft::external(addr).0)
}

/// An endpoint that the rows name.
#[must_use]
pub(crate) fn backend(rows: &Rows<RowKey, Row>, to: SocketAddr) -> Backend {
    let here = rows.contains_key(&nft::hairpin(to.ip()).0);
    let locality = if here { Locality::Unknown } else { Locality::Elsewhere };
    Backend { addr: to.ip(), port: to.port(), weight: 1, locality }
}

/// What the rows say of the frontend `at`, whose element leads to `value`.
fn held(rows: &Rows<RowKey, Row>, at: &FrontendKey, value: &Row, balanced: &BTreeSet<SocketAddr>) -> Option<Frontend> {
    let Row::Element(Element { comment: Some(comment), data: Data::Verdict(verdict) }) = value else { return None };
    let owner = ObjectName::shown(comment)?;
    let (sources, chain) = sources(rows, at, chain_of(verdict)?);
    let endpoints: Vec<Backend> = in_order(rows, at).into_iter().map(|to| backend(rows, to)).collect();
    let balanced: Vec<Backend> = balanced.iter().map(|to| backend(rows, *to)).collect();
    let kind = match at.place {
        Place::AnyNode(_) => Kind::NodePort,
        Place::Address(addr) if rows.contains_key(&nft::vip(addr).0) && !is_external(rows, addr) => Kind::ClusterIp,
        Place::Address(_) => Kind::LoadBalancer,
    };
    let routes = Dispatch::named(chain)?.routes(&endpoints, &balanced);
    Some(Frontend { kind, owner, affinity: affinity::affinity(rows, at), scheduler: None, sources, routes })
}

fn chain_of(verdict: &Verdict) -> Option<&Name> {
    match verdict {
        Verdict::Goto(chain) => Some(chain),
        _ => None,
    }
}

/// Who may connect, and the chain that who may goes to; `chain` is the one that a frontend's element leads to.
fn sources<'a>(rows: &'a Rows<RowKey, Row>, at: &FrontendKey, chain: &'a Name) -> (Sources, &'a Name) {
    if !chain.as_str().starts_with(SOURCES) {
        return (Sources::Any, chain);
    }
    let row = RowKey::Chain(ChainKey { table: table_key(at.family()), chain: chain.clone() });
    let Some(Row::Chain(held)) = rows.get(&row).map(|row| &row.value) else { return (Sources::Any, chain) };
    let mut ranges = Vec::new();
    let mut to = None;
    for rule in &held.rules {
        if let [Statement::Match(Match::Saddr(Op::Is, range)), Statement::Verdict(verdict)] = rule.statements.as_slice()
        {
            to = chain_of(verdict);
            ranges.extend(to.map(|_| *range));
        }
    }
    to.map_or((Sources::Any, chain), |to| (Sources::Only(ranges.into()), to))
}
