//! Chains and elements of the tables `ip ipvs-proxy` and `ip6 ipvs-proxy`, from the frontends that changed.
//!
//! | module | rows |
//! |---|---|
//! | [`statics`] | the static part of the tables |
//! | [`dispatch`] | chains that tell clients apart and choose an endpoint at random |
//! | [`affinity`] | chains and sets in their place, where a client stays with its endpoint |
//! | [`unallocated`] | what becomes of packets to addresses of the Service network that no Service has |
//! | [`guards`] | packets that are dropped for the good of others |
//! | [`observed`] | what rows of the kernel say of frontends |
//!
//! A frontend is an element of `services` (or, on every address of the node, of `node-ports`) whose verdict leads to such a
//! chain, and a list in `endpoints`, which has an element for each endpoint that the chain chooses from. The kernel tracks the connection from there
//! on: one that is open keeps its endpoint, whatever changes afterwards. Where virtual servers of IPVS balance, the chain marks what is to be
//! masqueraded and lets the packet pass on to them; the classes of clients that IPVS would lead elsewhere it leads itself.

mod affinity;
pub(super) mod dispatch;
pub(crate) mod guards;
mod observed;
pub(crate) mod statics;
#[cfg(test)]
mod tests;
pub(super) mod unallocated;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netstate::nft::{ChainKey, Datum, Element, ElementKey, List, Match, Name, Op, Row, RowKey, Rule, Verdict};
use netstate::{IpFamily, Prefix};

pub(crate) use self::observed::{
    backend, chooses, endpoints, entries, entry, frontend, is_external, is_frontend, keepers, list, listed, own_chain,
    remembered, spares_tcp,
};

use self::affinity::Sticky;
use super::nft::{element, table_key};
use super::site::Site;
use crate::plan::FrontendKey;
use crate::plan::frontend::Place;

const SERVICES: &str = "services";
const ENDPOINTS: &str = "endpoints";
const NODE_PORTS: &str = "node-ports";
const NODE_ENDPOINTS: &str = "node-endpoints";
const NODE_PORT_ADDRESSES: &str = "node-port-addresses";
const REFUSED: &str = "refused";
const REFUSED_NODE_PORTS: &str = "refused-node-ports";
/// What the name of a chain begins with that lets only some clients in.
const SOURCES: &str = "sources/";

type Rows = BTreeMap<RowKey, Row>;

/// The element of an address at which node ports are.
#[must_use]
pub(super) fn node_address(addr: IpAddr) -> (RowKey, Row) {
    (element(IpFamily::of(addr), NODE_PORT_ADDRESSES, vec![addr.into()]), Row::Element(Element::member()))
}

/// Rows that are this frontend's own.
pub(super) fn own(site: &Site<'_>) -> Rows {
    let mut rows = Rows::new();
    let (services, endpoints, refused) = match site.key.place {
        Place::Address(_) => (SERVICES, ENDPOINTS, REFUSED),
        Place::AnyNode(_) => (NODE_PORTS, NODE_ENDPOINTS, REFUSED_NODE_PORTS),
    };
    if site.dispatch.refuses() {
        rows.insert(RowKey::Element(site.place(refused)), Element::member().into());
    }
    if !site.has_chain() {
        return rows;
    }
    let to = site.sources().map_or_else(
        || site.entrance(),
        |(name, chain)| {
            rows.insert(site.chain_key(name.clone()), chain.into());
            name
        },
    );
    let entry = Element::verdict(Verdict::Goto(to)).comment(site.frontend.owner.shared());
    rows.insert(RowKey::Element(site.place(services)), entry.into());
    if let Some(sticky) = Sticky::of(site) {
        rows.extend(sticky.own());
        return rows;
    }
    if site.chosen().next().is_some() {
        let list: List = site.chosen().map(|backend| (backend.addr, backend.port)).collect();
        rows.insert(RowKey::List(site.place(endpoints)), list.into());
    }
    rows
}

/// What chooses an endpoint, which other frontends may need too.
pub(super) fn shared(site: &Site<'_>) -> Rows {
    if !site.has_chain() {
        return Rows::new();
    }
    if let Some(sticky) = Sticky::of(site) {
        return sticky.shared();
    }
    let chain = site.dispatch.chain(site.key.place, site.family(), site.pods);
    Rows::from([(site.chain_key(site.dispatch.name(site.key.place)), chain.into())])
}

/// The keys of these rows.
pub(super) fn shared_keys(site: &Site<'_>) -> BTreeSet<RowKey> {
    if !site.has_chain() {
        return BTreeSet::new();
    }
    if let Some(sticky) = Sticky::of(site) {
        return sticky.shared().into_keys().collect();
    }
    BTreeSet::from([site.chain_key(site.dispatch.name(site.key.place))])
}

impl Site<'_> {
    /// True unless everybody's packets go on as they came.
    fn has_chain(&self) -> bool {
        !self.dispatch.is_idle() || self.sources().is_some()
    }

    /// The chain that everybody who may connect goes through.
    fn entrance(&self) -> Name {
        Sticky::of(self).map_or_else(|| self.dispatch.name(self.key.place), |sticky| sticky.entrance())
    }

    /// The chain that lets only some clients in, where the frontend has one.
    fn sources(&self) -> Option<(Name, netstate::nft::Chain)> {
        let Place::Address(addr) = self.key.place else { return None };
        let to = Verdict::Goto(self.entrance());
        let allow = |source: Prefix| Rule::new().when(Match::Saddr(Op::Is, source)).then(to.clone());
        let mut rules: Vec<Rule> = self.allowed()?.into_iter().map(allow).collect();
        rules.push(Rule::new().then(Verdict::Drop));
        // An address of IPv6 has colons, which the nft language does not take in names.
        let place = format!("{SOURCES}{}/{}/{}", addr, self.key.protocol, self.key.port).replace(':', ".");
        Some((Name::observed(place), netstate::nft::Chain::regular(rules)))
    }

    fn chain_key(&self, chain: Name) -> RowKey {
        RowKey::Chain(ChainKey { table: table_key(self.key.family()), chain })
    }

    /// The key of an element about this frontend, or of a list.
    fn place(&self, set: &'static str) -> ElementKey {
        place(self.key, set)
    }
}

/// The key of an element about a frontend, or of a list, in a set for frontends at its kind of place.
fn place(at: &FrontendKey, set: &'static str) -> ElementKey {
    let addr = match at.place {
        Place::Address(addr) => Some(Datum::from(addr)),
        Place::AnyNode(_) => None,
    };
    let port = [Datum::Protocol(at.protocol), Datum::Port(at.port)];
    let key = addr.into_iter().chain(port).collect();
    ElementKey { table: table_key(at.family()), set: Name::literal(set), key }
}
