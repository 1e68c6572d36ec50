//! Whether the rules of this host deny a packet that arrives for it, without sending one.
//!
//! The kernel's rule machine is followed with a packet of which some bytes are known. Invariant: a packet is denied only when it
//! is whatever the unknown bytes are; what is not understood may let it pass. Chains of the NAT kind and iptables-legacy are
//! left out.

mod elements;
mod machine;
mod packet;
mod walk;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use netstate::IfName;
use netstate::nft::{ChainKind, Family, Hook, Name, Policy, TableKey};

use self::elements::Elements;
use self::machine::Rule;
use self::packet::Tracking;
use self::walk::{Denial, Source, Walk};
use super::listing::base_chain;
use super::wire::{kind, message, name, number, payload};
use super::{Nft, chain, rule, table};
use crate::error::KernelError;

/// A packet that comes in and starts a connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival {
    /// The interface that it comes in by, with its index.
    pub link: (IfName, u32),
    /// Its source; `None` when any will do.
    pub from: Option<IpAddr>,
    /// This host's address.
    pub to: IpAddr,
    /// Its protocol's number.
    pub protocol: u8,
    /// Its destination port, where its protocol has one.
    pub port: Option<u16>,
}

/// Where a packet is denied.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Denied {
    /// The table.
    pub table: TableKey,
    /// The chain of the hook.
    pub base: Name,
    /// The chain with the rule that denies: the same one, or one behind it.
    pub chain: Name,
    /// The chain that it last went to from there and came back from undecided, if there is one.
    pub undecided: Option<Name>,
    /// The rule's handle and comment; `None` for the policy.
    pub rule: Option<(u64, Option<String>)>,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rule {
            None => write!(f, "the policy of {} {}", self.table, self.base),
            Some((handle, None)) => write!(f, "rule {handle} of {} {}", self.table, self.chain),
            Some((handle, Some(comment))) => write!(f, "rule {handle} of {} {} ({comment:?})", self.table, self.chain),
        }
    }
}

/// The rules that arriving packets meet, each chain and set read once.
#[derive(Debug)]
pub struct Arrivals {
    nft: Nft,
    bases: Vec<Base>,
    chains: BTreeMap<(TableKey, Name), Vec<Rule>>,
    sets: BTreeMap<(TableKey, Name), Elements>,
}

/// A chain that packets enter at a hook.
#[derive(Debug, Clone)]
struct Base {
    table: TableKey,
    chain: Name,
    hook: Hook,
    policy: Policy,
    /// The link whose packets it sees, where it does not see all.
    device: Option<IfName>,
}

impl Arrivals {
    /// Reads which chains there are.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn read(mut nft: Nft) -> Result<Self, KernelError> {
        let mut bases = Vec::new();
        for frame in nft.list("list chains of", "nftables", &message(kind::GETCHAIN, 0, 0, |_| {}))? {
            bases.extend(payload(&frame, kind::NEWCHAIN).and_then(|(family, attributes)| base(family, attributes)));
        }
        let mut awake = Vec::new();
        for base in bases {
            if !is_dormant(&mut nft, &base.table)? {
                awake.push(base);
            }
        }
        // What comes first may leave packets without a connection, which rules of later hooks ask for.
        awake.sort_by_key(|base: &Base| match base.hook {
            Hook::Ingress => 0,
            Hook::Prerouting => 1,
            _ => 2,
        });
        Ok(Self { nft, bases: awake, chains: BTreeMap::new(), sets: BTreeMap::new() })
    }

    /// Where `arrival` is denied, if it is for sure.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn denied(&mut self, arrival: &Arrival) -> Result<Option<Denied>, KernelError> {
        let mut tracking = Tracking::Tracked;
        for Base { table, chain, policy, device, .. } in self.bases.clone() {
            let concerns = match table.family {
                Family::Ip => arrival.to.is_ipv4(),
                Family::Ip6 => !arrival.to.is_ipv4(),
                _ => device.is_none_or(|device| device == arrival.link.0),
            };
            if !concerns {
                continue;
            }
            let mut source = TableReader { arrivals: self, table: &table };
            let mut walk = Walk::new(&mut source, arrival, tracking);
            let ways = walk.chain(&chain)?;
            tracking = walk.tracking();
            let by_policy = ways.falls && policy == Policy::Drop;
            if ways.accepts || (ways.falls && !by_policy) {
                continue;
            }
            let (within, undecided, rule) = match ways.denied {
                _ if by_policy => (chain.clone(), None, None),
                Some(Denial { chain, undecided, handle, comment }) => (chain, undecided, Some((handle, comment))),
                None => continue,
            };
            return Ok(Some(Denied { table, base: chain, chain: within, undecided, rule }));
        }
        Ok(None)
    }
}

/// One table's chains and sets.
struct TableReader<'a> {
    arrivals: &'a mut Arrivals,
    table: &'a TableKey,
}

impl Source for TableReader<'_> {
    fn rules(&mut self, chain: &Name) -> Result<Vec<Rule>, KernelError> {
        let key = (self.table.clone(), chain.clone());
        if let Some(rules) = self.arrivals.chains.get(&key) {
            return Ok(rules.clone());
        }
        let request = message(kind::GETRULE, 0, self.table.family.number(), |body| {
            body.put_str(table::NAME, self.table.name.as_str()).put_str(rule::CHAIN, chain.as_str());
        });
        let frames = self.arrivals.nft.list("list rules of", format!("nft chain {} {chain}", self.table), &request)?;
        let of_chain = |attributes: &[u8]| {
            name(attributes, table::NAME).as_ref() == Some(&self.table.name)
                && name(attributes, rule::CHAIN).as_ref() == Some(chain)
        };
        let rules: Vec<Rule> = frames
            .iter()
            .filter_map(|frame| payload(frame, kind::NEWRULE))
            .filter(|(family, attributes)| *family == self.table.family.number() && of_chain(attributes))
            .filter_map(|(_, attributes)| Rule::read(attributes))
            .collect();
        self.arrivals.chains.insert(key, rules.clone());
        Ok(rules)
    }

    fn elements(&mut self, set: &Name) -> Result<Elements, KernelError> {
        let key = (self.table.clone(), set.clone());
        if let Some(elements) = self.arrivals.sets.get(&key) {
            return Ok(elements.clone());
        }
        let elements = Elements::list(&mut self.arrivals.nft, self.table, set)?;
        self.arrivals.sets.insert(key, elements.clone());
        Ok(elements)
    }
}

fn base(family: u8, attributes: &[u8]) -> Option<Base> {
    let family = Family::from_number(family).filter(|family| *family != Family::Bridge)?;
    let base = base_chain(family, attributes)?;
    let table = TableKey { family, name: name(attributes, table::NAME)? };
    let asked = base.kind == ChainKind::Filter && matches!(base.hook, Hook::Ingress | Hook::Prerouting | Hook::Input);
    let chain = name(attributes, chain::NAME)?;
    asked.then_some(Base { table, chain, hook: base.hook, policy: base.policy, device: base.device })
}

fn is_dormant(nft: &mut Nft, key: &TableKey) -> Result<bool, KernelError> {
    let request = message(kind::GETTABLE, 0, key.family.number(), |body| {
        body.put_str(table::NAME, key.name.as_str());
    });
    let frames = nft.ask("find", format!("nft table {key}"), &request)?;
    let flags = frames.iter().find_map(|frame| number(payload(frame, kind::NEWTABLE)?.1, table::FLAGS));
    Ok(flags.unwrap_or(0) & table::DORMANT != 0)
}

/// Reads rules and runs them with a packet of which the source is not known.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn fuzz_rules(frames: &[crate::socket::Frame]) {
    let link = (IfName::literal("eth0"), 2);
    let to = IpAddr::from([10, 4, 7, 21]);
    let arrival = Arrival { link, from: None, to, protocol: 17, port: Some(8472) };
    let packet = packet::Packet { arrival: &arrival, tracking: Tracking::Tracked };
    for (_, attributes) in frames.iter().filter_map(|frame| payload(frame, kind::NEWRULE)) {
        let Some(rule) = Rule::read(attributes) else { continue };
        let ran = rule.run(&packet, &mut |_, _| Ok::<_, std::convert::Infallible>(machine::Truth::Perhaps));
        let Ok(outcome) = ran;
        assert!(outcome.effects.len() <= attributes.len(), "{} effects", outcome.effects.len());
    }
    for (_, attributes) in frames.iter().filter_map(|frame| payload(frame, kind::NEWCHAIN)) {
        let _ = base(2, attributes);
    }
    let _ = Elements::read(frames).find(&[None; 4]);
}
