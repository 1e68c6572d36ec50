//! Reading the chains of the forward hook, and those behind them where packets are denied.
//!
//! Invariant: a chain is read with those that it leads to, and a whole table only where packets are denied behind its chain
//! of the hook or rules of ours stand there: a service proxy's table has thousands of rules.

use std::collections::{BTreeMap, BTreeSet};

use netstate::nft::{ChainKind, Family, Hook, Match, Name, Policy, TableKey};

use super::judge::{self, End, Ends, Part, Spot, Zone};
use super::line::{Effect, Line};
use super::{Accepts, Chain, ChainKey, TRIES};
use crate::error::{KernelError, SocketError};
use crate::nft::listing::base_chain;
use crate::nft::wire::{kind, message, name, number, payload};
use crate::nft::{chain, rule, table};

/// NFT_TABLE_F_OWNER.
const OWNED: u32 = 0x2;

impl Accepts {
    /// Every foreign chain that concerns us, all of one generation of the ruleset.
    pub(super) fn survey(&mut self) -> Result<Vec<Chain>, KernelError> {
        let mut before = self.nft.generation()?;
        for _ in 0..TRIES {
            let found = self.read();
            let after = self.nft.generation()?;
            if after == before {
                return found;
            }
            before = after;
        }
        Err(KernelError::new("list", "foreign nft chains", SocketError::Interrupted(TRIES)))
    }

    pub(super) fn read(&mut self) -> Result<Vec<Chain>, KernelError> {
        let mut tables: BTreeMap<TableKey, BTreeMap<Name, Policy>> = BTreeMap::new();
        for (key, policy) in self.bases()? {
            if !self.own.contains(&key.table) {
                tables.entry(key.table).or_default().insert(key.chain, policy);
            }
        }
        let mut chains = Vec::new();
        let mut inside = BTreeSet::new();
        for (table, bases) in tables {
            let found = self.table(&table, &bases)?;
            if found.iter().any(|chain| !bases.contains_key(&chain.key.chain) && chain.has_ours()) {
                inside.insert(table);
            }
            chains.extend(found);
        }
        self.inside = Some(inside);
        Ok(chains)
    }

    /// Chains of the forward hook, with their policies.
    fn bases(&mut self) -> Result<Vec<(ChainKey, Policy)>, KernelError> {
        let frames = self.nft.list("list chains of", "nftables", &message(kind::GETCHAIN, 0, 0, |_| {}))?;
        let found = frames.iter().filter_map(|frame| payload(frame, kind::NEWCHAIN));
        Ok(found.filter_map(|(number, attributes)| chain_of_hook(number, attributes)).collect())
    }

    /// Reads the chains of the hook that a table has, and what concerns us behind them.
    fn table(&mut self, table: &TableKey, bases: &BTreeMap<Name, Policy>) -> Result<Vec<Chain>, KernelError> {
        let mut read = Vec::new();
        for (base, policy) in bases {
            let lines = self.lines(table, Some(base))?;
            let links = self.links.clone();
            let read_chain = &mut |name: &Name| self.lines(table, Some(name));
            let (ends, zones) = judge::outcome(table.family, *policy, &lines, &links, read_chain)?;
            read.push((base, *policy, lines, zones, ends));
        }
        let denies = |ends: &Ends, zones: &[Zone]| ends.iter().any(|end| *end != End::Passes) || !zones.is_empty();
        let owned = read.iter().any(|(.., zones, ends)| denies(ends, zones)) && self.is_owned(table)?;
        let before = self.inside.as_ref().is_none_or(|inside| inside.contains(table));
        let behind = read.iter().any(|(.., zones, ends)| ends.spot().is_some() || !zones.is_empty());
        let all = if owned || before || behind { self.lines(table, None)? } else { Vec::new() };
        let mut chains: BTreeMap<Name, Chain> = BTreeMap::new();
        for (base, policy, lines, zones, ends) in read {
            let place = Place { table, base, policy, all: &all };
            let chain = Chain::new(table, base, policy, lines);
            if owned && denies(&ends, &zones) {
                let parts = zones.into_iter().map(|zone| Part { at: zone.spot.at, of: zone.of }).collect();
                let (obstacle, mentioned) = (Some(OWNER.to_owned()), mentioned(&all));
                chains.insert(base.clone(), Chain { ends, parts, obstacle, mentioned, ..chain });
                continue;
            }
            chains.insert(base.clone(), chain);
            for zone in zones {
                let there = place.chain(&mut chains, &zone.spot);
                match zone.of.is_empty() {
                    true => there.ends = Ends::same(End::Denied(zone.spot.at)),
                    false => there.parts.push(Part { at: zone.spot.at, of: zone.of }),
                }
            }
            let mut here = ends.clone();
            if let End::DeniedIn(spot) = ends.any()
                && judge::is_private(base, &spot.path, &all)
            {
                // A family that is denied elsewhere is nobody's there.
                let there = ends.map(|end| if end == ends.any() { End::Denied(spot.at) } else { End::Passes });
                place.chain(&mut chains, spot).ends = there;
                here = ends.map(|end| if end == ends.any() { End::Passes } else { end.clone() });
            }
            if let Some(chain) = chains.get_mut(base) {
                chain.obstacle = here.spot().map(|spot| shared(base, spot));
                chain.mentioned = chain.obstacle.iter().flat_map(|_| mentioned(&all)).collect();
                chain.ends = here;
            }
        }
        for line in all.iter().filter(|line| line.ours) {
            let left = || Chain::new(table, &line.chain, Policy::Accept, of_chain(&all, &line.chain));
            chains.entry(line.chain.clone()).or_insert_with(left);
        }
        Ok(chains.into_values().collect())
    }

    /// True when only the process that made the table may change it.
    fn is_owned(&mut self, table: &TableKey) -> Result<bool, KernelError> {
        let request = message(kind::GETTABLE, 0, table.family.number(), |body| {
            body.put_str(table::NAME, table.name.as_str());
        });
        let frames = self.nft.ask("find", format!("nft table {table}"), &request)?;
        let flags = frames.iter().find_map(|frame| number(payload(frame, kind::NEWTABLE)?.1, table::FLAGS));
        Ok(flags.unwrap_or(0) & OWNED != 0)
    }

    /// Rules of a chain, or of all chains of a table.
    fn lines(&mut self, table: &TableKey, chain: Option<&Name>) -> Result<Vec<Line>, KernelError> {
        let request = message(kind::GETRULE, 0, table.family.number(), |body| {
            body.put_str(table::NAME, table.name.as_str());
            if let Some(chain) = chain {
                body.put_str(rule::CHAIN, chain.as_str());
            }
        });
        let frames = self.nft.list("list rules of", format!("nft table {table}"), &request)?;
        let read = |(family, attributes): (u8, &[u8])| {
            let same = family == table.family.number() && name(attributes, table::NAME)? == table.name;
            let line = Line::read(table.family, attributes, &self.marker)?;
            (same && chain.is_none_or(|chain| line.chain == *chain)).then_some(line)
        };
        Ok(frames.iter().filter_map(|frame| payload(frame, kind::NEWRULE)).filter_map(read).collect())
    }
}

/// What is to be done about a table that nobody else may change.
const OWNER: &str = "its table belongs to one process alone: accept the Pod network there, in firewalld with \
    firewall-cmd --permanent --zone=trusted --add-source=NETWORK";

/// What is to be done about a chain that others lead to.
fn shared(base: &Name, spot: &Spot) -> String {
    let last = spot.path.last().unwrap_or(base);
    format!(
        "it is denied at the end of chain {last}, which other hooks or conditions lead to as well, so that no place in it is \
         behind all denials: accept it in {base} in front of that chain"
    )
}

/// A chain of the forward hook, with its policy.
pub(super) fn chain_of_hook(family: u8, attributes: &[u8]) -> Option<(ChainKey, Policy)> {
    let family = Family::from_number(family).filter(|family| *family != Family::Bridge)?;
    let base = base_chain(family, attributes)?;
    let table = TableKey { family, name: name(attributes, table::NAME)? };
    let key = ChainKey { table, chain: name(attributes, chain::NAME)? };
    (base.kind == ChainKind::Filter && base.hook == Hook::Forward).then_some((key, base.policy))
}

/// A chain of the hook, with all rules of its table.
struct Place<'a> {
    table: &'a TableKey,
    base: &'a Name,
    policy: Policy,
    all: &'a [Line],
}

impl Place<'_> {
    /// The chain of `spot` among `chains`, which denies for the base chain, or is it; not one that others lead to.
    fn chain<'a>(&self, chains: &'a mut BTreeMap<Name, Chain>, spot: &Spot) -> &'a mut Chain {
        let last = spot.path.last().unwrap_or(self.base);
        chains.entry(last.clone()).or_insert_with(|| {
            let obstructed = !judge::is_private(self.base, &spot.path, self.all);
            let (obstacle, mentioned) = match obstructed {
                true => (Some(shared(self.base, spot)), mentioned(self.all)),
                false => (None, Vec::new()),
            };
            let key = ChainKey { table: self.table.clone(), chain: last.clone() };
            let lines = of_chain(self.all, last);
            Chain { key, lines, obstacle, mentioned, ..Chain::new(self.table, self.base, self.policy, Vec::new()) }
        })
    }
}

fn of_chain(lines: &[Line], chain: &Name) -> Vec<Line> {
    lines.iter().filter(|line| line.chain == *chain).cloned().collect()
}

/// Conditions of the owner's rules that accept or lead elsewhere.
fn mentioned(lines: &[Line]) -> Vec<Match> {
    let leads_on = |line: &&Line| matches!(line.effect, Effect::Accept | Effect::Jump(_) | Effect::Goto(_));
    lines.iter().filter(|line| !line.ours).filter(leads_on).flat_map(|line| line.conditions.clone()).collect()
}

impl Chain {
    /// A chain that denies nothing.
    pub(super) fn new(table: &TableKey, chain: &Name, policy: Policy, lines: Vec<Line>) -> Self {
        let key = ChainKey { table: table.clone(), chain: chain.clone() };
        let (base, ends) = (key.clone(), Ends::same(End::Passes));
        Self { key, base, policy, lines, ends, parts: Vec::new(), obstacle: None, mentioned: Vec::new() }
    }

    pub(super) fn has_ours(&self) -> bool {
        self.lines.iter().any(|line| line.ours)
    }
}
