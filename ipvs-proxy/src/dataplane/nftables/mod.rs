//! The nftables data path: rows of the tables `ip ipvs-proxy` and `ip6 ipvs-proxy`, from the frontends that changed.
//!
//! | module | rows |
//! |---|---|
//! | [`statics`] | the static part of the tables |
//! | [`dispatch`] | chains that tell clients apart and choose an endpoint at random |
//! | [`observed`] | what rows of the kernel say of frontends |
//!
//! A frontend is an element of `services` (or, on every address of the node, of `node-ports`) whose verdict leads to such a
//! chain, and an element of `endpoints` for each of its endpoints. The kernel tracks the connection from there on: one that is
//! open keeps its endpoint, whatever changes afterwards.
//!
//! Invariants. The rows depend on the frontends only, never on their history; a row that several frontends need is there as long as
//! one of them does. A change costs no more than the frontends in it.

mod dispatch;
mod observed;
pub(crate) mod statics;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use netstate::nft::{ChainKey, Datum, Element, Match, Name, Op, Row, RowKey, Rule, Verdict};
use netstate::{IpFamily, Prefix};

pub(crate) use self::observed::{endpoints, frontend, is_frontend, remembered};

use self::dispatch::{Dispatch, backends};
use super::nft::{self, element, table_key};
use crate::object::service::Sources;
use crate::plan::frontend::{Kind, Place};
use crate::plan::select::Locality;
use crate::plan::{Delta, Frontend, FrontendKey};

const SERVICES: &str = "services";
const ENDPOINTS: &str = "endpoints";
const NODE_PORTS: &str = "node-ports";
const NODE_ENDPOINTS: &str = "node-endpoints";
const REFUSED: &str = "refused";
const REFUSED_NODE_PORTS: &str = "refused-node-ports";

type Rows = BTreeMap<RowKey, Row>;

/// nftables as the data path; see the module's text.
#[derive(Debug, Clone)]
pub(crate) struct NftPlane {
    pods: Prefix,
    /// How many frontends need each row that is not one frontend's own.
    users: BTreeMap<RowKey, u32>,
}

impl NftPlane {
    /// No frontends; Pods are the clients inside `pods`, and the frontends of that family are served.
    #[must_use]
    pub(crate) const fn new(pods: Prefix) -> Self {
        Self { pods, users: BTreeMap::new() }
    }

    /// The family that is served.
    #[must_use]
    pub(crate) const fn family(&self) -> IpFamily {
        self.pods.family()
    }

    /// The rows that change with these frontends: their new value, or `None` when they are no longer desired.
    pub(crate) fn rows(&mut self, deltas: &[Delta]) -> BTreeMap<RowKey, Option<Row>> {
        let mut changes = BTreeMap::new();
        let pods = self.pods;
        for Delta { key, old, new } in deltas.iter().filter(|delta| delta.key.family() == pods.family()) {
            let site = |frontend| Site { key, frontend, pods };
            let (old, new) = (old.as_ref().map(site), new.as_ref().map(site));
            let own = |site: &Option<Site<'_>>| site.as_ref().map(Site::own).unwrap_or_default();
            let shared = |site: &Option<Site<'_>>| site.as_ref().map(Site::shared).unwrap_or_default();
            let (before, after) = (own(&old), own(&new));
            changes.extend(before.keys().filter(|row| !after.contains_key(row)).map(|row| (row.clone(), None)));
            let differing = after.into_iter().filter(|(row, value)| before.get(row) != Some(value));
            changes.extend(differing.map(|(row, value)| (row, Some(value))));
            self.share(&shared(&old), shared(&new), &mut changes);
        }
        changes
    }

    /// Counts who needs rows that are not one frontend's own.
    fn share(&mut self, before: &Rows, after: Rows, changes: &mut BTreeMap<RowKey, Option<Row>>) {
        for row in before.keys().filter(|row| !after.contains_key(row)) {
            if let Entry::Occupied(mut users) = self.users.entry(row.clone()) {
                *users.get_mut() = users.get().saturating_sub(1);
                if *users.get() == 0 {
                    users.remove();
                    changes.insert(row.clone(), None);
                }
            }
        }
        for (row, value) in after.into_iter().filter(|(row, _)| !before.contains_key(row)) {
            let users = self.users.entry(row.clone()).or_default();
            *users = users.saturating_add(1);
            if *users == 1 {
                changes.insert(row, Some(value));
            }
        }
    }
}

/// A frontend and where it is.
struct Site<'a> {
    key: &'a FrontendKey,
    frontend: &'a Frontend,
    pods: Prefix,
}

impl Site<'_> {
    /// Rows that are this frontend's own.
    fn own(&self) -> Rows {
        let mut rows = Rows::new();
        let dispatch = Dispatch::of(self.frontend);
        let (services, endpoints, refused) = match self.key.place {
            Place::Address(_) => (SERVICES, ENDPOINTS, REFUSED),
            Place::AnyNode(_) => (NODE_PORTS, NODE_ENDPOINTS, REFUSED_NODE_PORTS),
        };
        if dispatch.refuses() {
            rows.insert(self.element(refused, []), Element::member().into());
        }
        if dispatch.only_refuses() {
            return rows;
        }
        let to = self.sources().map_or_else(
            || dispatch.name(self.key.place),
            |(name, chain)| {
                rows.insert(self.chain(name.clone()), chain.into());
                name
            },
        );
        let owner = self.frontend.owner.to_string();
        rows.insert(self.element(services, []), Element::verdict(Verdict::Goto(to)).comment(owner).into());
        for (index, backend) in (0..).zip(backends(self.frontend)) {
            let value = Element::value(vec![backend.addr.into(), Datum::Port(backend.port)]);
            rows.insert(self.element(endpoints, [Datum::Index(index)]), value.into());
        }
        rows
    }

    /// Rows that other frontends may need too.
    fn shared(&self) -> Rows {
        let mut rows = Rows::new();
        let (dispatch, place, family) = (Dispatch::of(self.frontend), self.key.place, self.key.family());
        if !dispatch.only_refuses() {
            let chain = dispatch.chain(place, family, self.pods);
            rows.insert(self.chain(dispatch.name(place)), chain.into());
        }
        if let (Kind::ClusterIp, Place::Address(addr)) = (self.frontend.kind, place) {
            rows.extend([nft::vip(addr)]);
        }
        let maybe_here = backends(self.frontend).filter(|backend| backend.locality != Locality::Elsewhere);
        rows.extend(maybe_here.map(|backend| nft::hairpin(backend.addr)));
        rows
    }

    /// The chain that lets only some clients in, where the frontend has one.
    fn sources(&self) -> Option<(Name, netstate::nft::Chain)> {
        let Place::Address(addr) = self.key.place else { return None };
        let Sources::Only(sources) = &self.frontend.sources else { return None };
        let to = Verdict::Goto(Dispatch::of(self.frontend).name(self.key.place));
        let of_family = sources.iter().filter(|source| source.family() == self.key.family());
        let mut rules: Vec<Rule> =
            of_family.map(|source| Rule::new().when(Match::Saddr(Op::Is, *source)).then(to.clone())).collect();
        rules.push(Rule::new().then(Verdict::Drop));
        // An address of IPv6 has colons, which the nft language does not take in names.
        let place = format!("sources/{}/{}/{}", addr, self.key.protocol, self.key.port).replace(':', ".");
        Some((Name::observed(place), netstate::nft::Chain::regular(rules)))
    }

    fn chain(&self, chain: Name) -> RowKey {
        RowKey::Chain(ChainKey { table: table_key(self.key.family()), chain })
    }

    /// The key of an element about this frontend.
    fn element<const N: usize>(&self, set: &'static str, index: [Datum; N]) -> RowKey {
        let port = [Datum::Protocol(self.key.protocol), Datum::Port(self.key.port)];
        let addr = match self.key.place {
            Place::Address(addr) => Some(Datum::from(addr)),
            Place::AnyNode(_) => None,
        };
        element(self.key.family(), set, addr.into_iter().chain(port).chain(index).collect())
    }
}
