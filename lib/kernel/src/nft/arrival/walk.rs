//! The way of a packet through chains: all that may become of it.
//!
//! Invariant: each chain is followed once, whatever jumps to it, so that a ruleset of many jumps ends.

use std::collections::BTreeMap;

use netstate::nft::{Name, Verdict};

use super::Arrival;
use super::elements::Elements;
use super::machine::{Effect, Packet, Rule, Truth};
use crate::error::KernelError;

/// Where rules and sets come from.
pub(super) trait Source {
    /// The rules of a chain.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn rules(&mut self, chain: &Name) -> Result<Vec<Rule>, KernelError>;

    /// The elements of a set.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn elements(&mut self, set: &Name) -> Result<Elements, KernelError>;
}

/// All that may become of a packet in a chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ways {
    /// It may be accepted, or something happens that is not understood.
    pub(super) accepts: bool,
    /// It may leave the chain by its end.
    pub(super) falls: bool,
    /// The last rule that may deny it: its chain, handle and comment.
    pub(super) denied: Option<(Name, u64, Option<String>)>,
}

/// A packet on its way through a table.
pub(super) struct Walk<'a> {
    source: &'a mut dyn Source,
    packet: Packet<'a>,
    chains: BTreeMap<Name, Ways>,
    untracks: bool,
}

impl<'a> Walk<'a> {
    pub(super) const fn new(source: &'a mut dyn Source, arrival: &'a Arrival, tracked: bool) -> Self {
        Self { source, packet: Packet { arrival, tracked }, chains: BTreeMap::new(), untracks: false }
    }

    /// True when a rule may have left the packet without a connection.
    pub(super) const fn untracks(&self) -> bool {
        self.untracks
    }

    /// What may become of the packet in a chain.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(super) fn chain(&mut self, name: &Name) -> Result<Ways, KernelError> {
        if let Some(ways) = self.chains.get(name) {
            return Ok(ways.clone());
        }
        // The kernel refuses loops; one that is read while it changes passes.
        self.chains.insert(name.clone(), Ways { accepts: true, ..Ways::default() });
        let mut ways = Ways::default();
        let mut goes_on = true;
        for rule in self.source.rules(name)? {
            if !self.rule(name, &rule, &mut ways)? {
                goes_on = false;
                break;
            }
        }
        ways.falls |= goes_on;
        self.chains.insert(name.clone(), ways.clone());
        Ok(ways)
    }

    /// Adds what a rule may do. Returns whether the next rule may be reached.
    fn rule(&mut self, chain: &Name, rule: &Rule, ways: &mut Ways) -> Result<bool, KernelError> {
        let source = &mut *self.source;
        let mut elements = |set: &Name, key: &[Option<u8>]| source.elements(set).map(|elements| elements.find(key).0);
        let outcome = rule.run(&self.packet, &mut elements)?;
        if outcome.truth == Truth::No {
            return Ok(true);
        }
        let mut goes_on = true;
        for effect in outcome.effects {
            goes_on = match effect {
                Effect::Map(map) => {
                    let (found, verdicts) = self.source.elements(&map)?.find(&outcome.key);
                    let mut passes_by = found != Truth::Yes || verdicts.is_empty();
                    for verdict in verdicts {
                        passes_by |= self.verdict(chain, rule, &verdict, ways)?;
                    }
                    passes_by
                }
                Effect::Verdict(verdict) => self.verdict(chain, rule, &verdict, ways)?,
                Effect::Deny => self.verdict(chain, rule, &Verdict::Drop, ways)?,
                Effect::Untrack => {
                    self.untracks = true;
                    self.packet.tracked = false;
                    true
                }
                Effect::Unclear => {
                    ways.accepts = true;
                    true
                }
            };
            if !goes_on {
                break;
            }
        }
        Ok(goes_on || outcome.truth == Truth::Perhaps)
    }

    /// Adds what a verdict does. Returns whether the next rule may be reached.
    fn verdict(&mut self, chain: &Name, rule: &Rule, verdict: &Verdict, ways: &mut Ways) -> Result<bool, KernelError> {
        let (target, comes_back) = match verdict {
            Verdict::Accept => {
                ways.accepts = true;
                return Ok(false);
            }
            Verdict::Drop => {
                ways.denied = Some((chain.clone(), rule.handle, rule.comment.clone()));
                return Ok(false);
            }
            Verdict::Return => {
                ways.falls = true;
                return Ok(false);
            }
            Verdict::Jump(target) => (target, true),
            Verdict::Goto(target) => (target, false),
        };
        let behind = self.chain(target)?;
        ways.accepts |= behind.accepts;
        ways.denied = behind.denied.or_else(|| ways.denied.take());
        if !comes_back {
            ways.falls |= behind.falls;
        }
        Ok(comes_back && behind.falls)
    }
}
