//! The table of host ports, `inet netd-ports`: one for the whole node, shared by all networks.
//!
//! What a packet to a local address meets:
//!
//! 1. the policies ([`super::policy`]) of the networks: they mark packets whose source must be rewritten, or the answer
//!    would bypass this node's translation (and a Pod could not reach itself);
//! 2. a port that is open on the packet's very destination address, then one that is open on all of them, gives it its
//!    new destination;
//! 3. leaving, what is marked is masqueraded.
//!
//! Invariants: what cannot be forwarded is not captured: it reaches what listens on this host. Only destinations that are
//! this host's are examined (portmap's nft rules once took everybody's traffic,
//! GHSA-jv3w-x3r3-g6rm). A key has one owner, of whichever network, because the maps of destinations are everybody's.
//! The static part is the same for everybody but for the policies that somebody needed, and adding one ([`merged`])
//! changes no other.

use std::collections::BTreeSet;

use netstate::nft::{
    Chain, ChainKind, Datum, Destination, Family, Hook, Match, Name, Op, Policy, Rule, Ruleset, Set, Statement, Table,
    TableKey, Type, Verdict, priority,
};
use netstate::{IfName, IpFamily, Prefix};

use super::policy;

const HOSTPORTS: Name = Name::literal("hostports");
const POSTROUTING: Name = Name::literal("postrouting");

/// The table's key.
#[must_use]
pub(crate) const fn key() -> TableKey {
    TableKey { family: Family::Inet, name: Name::literal("netd-ports") }
}

/// On which of the host's addresses a port is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// On one.
    OneAddress,
    /// On every one of a family.
    AnyAddress,
}

impl Scope {
    /// The more exact one first.
    pub(crate) const ALL: [Self; 2] = [Self::OneAddress, Self::AnyAddress];

    /// What names of sets and maps begin with.
    #[must_use]
    pub(crate) const fn prefix(self) -> &'static str {
        match self {
            Self::OneAddress => "host-",
            Self::AnyAddress => "",
        }
    }

    /// The map from ports to Pods.
    #[must_use]
    pub(crate) const fn map(self, family: IpFamily) -> Name {
        match (self, family) {
            (Self::OneAddress, IpFamily::V4) => Name::literal("host-ports4"),
            (Self::OneAddress, IpFamily::V6) => Name::literal("host-ports6"),
            (Self::AnyAddress, IpFamily::V4) => Name::literal("ports4"),
            (Self::AnyAddress, IpFamily::V6) => Name::literal("ports6"),
        }
    }

    /// Types of a key's parts; `address` is that of the family's addresses.
    #[must_use]
    pub(crate) fn key_types(self, address: Type) -> Vec<Type> {
        let first = (self == Self::OneAddress).then_some(address);
        first.into_iter().chain([Type::InetProto, Type::InetService]).collect()
    }

    /// The scope of a key.
    #[must_use]
    pub(crate) fn of(key: &[Datum]) -> Self {
        if matches!(key, [Datum::Ipv4(_) | Datum::Ipv6(_), ..]) { Self::OneAddress } else { Self::AnyAddress }
    }
}

/// The type of a family's addresses.
#[must_use]
pub(crate) const fn address_type(family: IpFamily) -> Type {
    match family {
        IpFamily::V4 => Type::Ipv4Addr,
        IpFamily::V6 => Type::Ipv6Addr,
    }
}

/// The table without any policy.
#[must_use]
pub(crate) fn empty() -> Table {
    let mut table = Table::default();
    for (family, scope) in families_and_scopes() {
        let address = address_type(family);
        table.sets.insert(scope.map(family), Set::map(scope.key_types(address), vec![address, Type::InetService]));
    }
    let chains = [("prerouting", Hook::Prerouting, priority::DSTNAT), ("output", Hook::Output, priority::DSTNAT)];
    for (name, hook, priority) in chains {
        let mut chain = Chain::base(ChainKind::Nat, hook, priority, Policy::Accept);
        chain.rules = vec![Rule::new().when(Match::DaddrLocal(Op::Is)).then(Verdict::Jump(HOSTPORTS))];
        table.chains.insert(Name::literal(name), chain);
    }
    let postrouting = Chain::base(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT, Policy::Accept);
    table.chains.insert(POSTROUTING, postrouting);
    table.chains.insert(Name::literal("localnet"), localnet());
    dispatch(&mut table);
    table
}

fn families_and_scopes() -> impl Iterator<Item = (IpFamily, Scope)> {
    IpFamily::ALL.into_iter().flat_map(|family| Scope::ALL.map(|scope| (family, scope)))
}

/// Fills the chain that all packets to ports go through: every policy of `table`, then the new destinations.
pub(super) fn dispatch(table: &mut Table) {
    let exempt = |net: Prefix| Rule::new().when(Match::Daddr(Op::Is, net)).then(Verdict::Return);
    let mut rules: Vec<Rule> = UNFORWARDABLE_V6.map(exempt).into();
    rules.extend(table.chains.keys().filter(|name| policy::is_chain(name)).map(policy::entry));
    for (family, scope) in families_and_scopes() {
        let (fields, map) = (scope.fields(family), scope.map(family));
        // Without this match a packet of the other family would be looked up by bytes that it does not have.
        let only = Match::Nfproto(Op::Is, family);
        rules.push(Rule::new().when(only).then(Destination::Map { family, fields, map, port: true }));
    }
    table.chains.insert(HOSTPORTS, Chain::regular(rules));
}

/// Makes packets with all of `bits` in their mark take the address of the interface they leave by.
pub(super) fn add_masquerade(table: &mut Table, bits: u32) {
    let marked = Match::Mark(Op::Is, bits, bits);
    let rule = Rule::new().when(marked).then(Statement::Masquerade { fully_random: false });
    if let Some(chain) = table.chains.get_mut(&POSTROUTING)
        && !chain.rules.contains(&rule)
    {
        chain.rules.push(rule);
        chain.rules.sort();
    }
}

/// `want` and every policy that `have` holds besides.
#[must_use]
pub(crate) fn merged(have: Option<&Table>, want: &Table) -> Table {
    let ids = have.into_iter().flat_map(|have| have.chains.keys()).filter_map(policy::of_chain);
    have.map_or_else(|| want.clone(), |have| with_policies(have, ids.collect(), want.clone()))
}

/// Policies that no port needs and that are kept for the next Pod all the same.
pub(crate) const SPARE_POLICIES: usize = 8;

/// The table as it shall be, in which policies that no port needs do not pile up: options and leases change.
#[must_use]
pub(crate) fn pruned(have: &Ruleset) -> Table {
    let used: BTreeSet<&str> = have.elements.keys().filter_map(|key| policy::of_set(&key.set)).collect();
    let all: BTreeSet<&str> = have.table.chains.keys().filter_map(policy::of_chain).collect();
    let kept = if all.difference(&used).count() > SPARE_POLICIES { used } else { all };
    with_policies(&have.table, kept, empty())
}

/// Adds the policies of `have` with these identifiers to `table`.
fn with_policies(have: &Table, ids: BTreeSet<&str>, mut table: Table) -> Table {
    for (name, set) in &have.sets {
        if policy::of_set(name).is_some_and(|id| ids.contains(id)) {
            table.sets.entry(name.clone()).or_insert_with(|| set.clone());
        }
    }
    for (name, chain) in &have.chains {
        if policy::of_chain(name).is_some_and(|id| ids.contains(id)) {
            policy::marks(chain).for_each(|bits| add_masquerade(&mut table, bits));
            table.chains.entry(name.clone()).or_insert_with(|| chain.clone());
        }
    }
    dispatch(&mut table);
    table
}

/// Destinations whose packets never reach a Pod, whatever rewrites them: the kernel forwards none that come from ::1 or from
/// an address of one link (net/ipv6/ip6_output.c `ip6_forward`), and those are the ones that go there.
pub(crate) const UNFORWARDABLE_V6: [Prefix; 2] =
    [Prefix::v6_literal([0, 0, 0, 0, 0, 0, 0, 1], 128), Prefix::v6_literal([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10)];

/// Where this node speaks with itself.
pub(crate) const LOOPBACK_V4: Prefix = Prefix::v4_literal([127, 0, 0, 0], 8);

/// `route_localnet` would let neighbours on the bridge reach what listens on 127.0.0.1 only (CVE-2020-8558).
fn localnet() -> Chain {
    let mut chain = Chain::base(ChainKind::Filter, Hook::Prerouting, priority::RAW, Policy::Accept);
    let from_outside = Rule::new().when(Match::Iifname(Op::IsNot, IfName::literal("lo")));
    chain.rules = vec![from_outside.when(Match::Daddr(Op::Is, LOOPBACK_V4)).then(Verdict::Drop)];
    chain
}
