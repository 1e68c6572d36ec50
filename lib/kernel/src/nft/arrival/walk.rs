//! The way of a packet through chains: all that may become of it.
//!
//! Invariant: each chain is followed once, whatever jumps to it, so that a ruleset of many jumps ends.

use std::collections::BTreeMap;

use netstate::nft::{Name, Verdict};

use super::Arrival;
use super::elements::Elements;
use super::machine::{Effect, Rule, Truth};
use super::packet::{Packet, Tracking};
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
    /// The last rule that may deny it.
    pub(super) denied: Option<Denial>,
    /// The chain that it last came back from to this one.
    undecided: Option<Name>,
}

/// A rule that may deny a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Denial {
    pub(super) chain: Name,
    /// The chain that the packet came back from last before.
    pub(super) undecided: Option<Name>,
    pub(super) handle: u64,
    pub(super) comment: Option<String>,
}

/// A packet on its way through a table.
pub(super) struct Walk<'a> {
    source: &'a mut dyn Source,
    packet: Packet<'a>,
    chains: BTreeMap<Name, Ways>,
}

impl<'a> Walk<'a> {
    pub(super) const fn new(source: &'a mut dyn Source, arrival: &'a Arrival, tracking: Tracking) -> Self {
        Self { source, packet: Packet { arrival, tracking }, chains: BTreeMap::new() }
    }

    /// Whether the packet has a connection behind the chains that were followed.
    pub(super) const fn tracking(&self) -> Tracking {
        self.packet.tracking
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
                    // It has come here for sure by the first chain, if none of its ways led elsewhere before.
                    let surely = outcome.truth == Truth::Yes && self.chains.len() == 1 && *ways == Ways::default();
                    let surely = surely || self.packet.tracking == Tracking::Untracked;
                    self.packet.tracking = if surely { Tracking::Untracked } else { Tracking::Perhaps };
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
                let (handle, comment) = (rule.handle, rule.comment.clone());
                ways.denied = Some(Denial { chain: chain.clone(), undecided: ways.undecided.clone(), handle, comment });
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
        } else if behind.falls {
            ways.undecided = Some(target.clone());
        }
        Ok(comes_back && behind.falls)
    }
}

#[cfg(test)]
mod tests {
    use netstate::nft::Op;

    use super::*;
    use crate::nft::expression::{Expression, meta};

    /// Chains by name, in words: `no`, `maybe` or nothing, and a verdict.
    struct Words<'a>(&'a [(&'a str, &'a str)], u32);

    impl Source for Words<'_> {
        fn rules(&mut self, chain: &Name) -> Result<Vec<Rule>, KernelError> {
            self.1 += 1;
            assert!(self.1 <= 20, "chains are read again and again");
            let found = self.0.iter().find(|(name, _)| *name == chain.as_str()).map_or("", |(_, rules)| rules);
            Ok((1..)
                .zip(found.split("; ").filter(|words| !words.is_empty()))
                .map(|(handle, words)| rule(handle, words))
                .collect())
        }

        fn elements(&mut self, _: &Name) -> Result<Elements, KernelError> {
            Ok(Elements::default())
        }
    }

    fn rule(handle: u64, words: &str) -> Rule {
        let (condition, verdict) = words.split_once(": ").unwrap_or(("", words));
        let compare = |key, data: &[u8]| {
            vec![Expression::Meta { key, to: 0 }, Expression::Compare { from: 0, op: Op::Is, data: data.to_vec() }]
        };
        let mut program = match condition {
            "no" => compare(meta::L4PROTO, &[6]),
            "maybe" => compare(meta::MARK, &[1, 0, 0, 0]),
            _ => compare(meta::L4PROTO, &[17]),
        };
        let target = |name: &str| Name::new(name).unwrap();
        program.push(match verdict.split_once(' ').unwrap_or((verdict, "")) {
            ("accept", _) => Expression::Verdict(Verdict::Accept),
            ("drop", _) => Expression::Verdict(Verdict::Drop),
            ("return", _) => Expression::Verdict(Verdict::Return),
            ("jump", name) => Expression::Verdict(Verdict::Jump(target(name))),
            ("goto", name) => Expression::Verdict(Verdict::Goto(target(name))),
            (other, _) => Expression::Unknown(other.to_owned()),
        });
        Rule::of(handle, &program)
    }

    /// What may become of a packet: `a`ccepted, `f`alls out at the end, and where it is denied.
    fn ways(chains: &[(&str, &str)]) -> String {
        let arrival = Arrival {
            link: ("eth0".parse().unwrap(), 2),
            from: None,
            to: [10, 4, 7, 21].into(),
            protocol: 17,
            port: Some(8472),
        };
        let mut source = Words(chains, 0);
        let Ways { accepts, falls, denied, .. } =
            Walk::new(&mut source, &arrival, Tracking::Tracked).chain(&Name::literal("base")).unwrap();
        let undecided = |chain: Option<Name>| chain.map(|chain| format!(" behind {chain}")).unwrap_or_default();
        let say = |denial: Denial| format!("{} {}{}", denial.chain, denial.handle, undecided(denial.undecided));
        let denied = denied.map(say).unwrap_or_default();
        format!("{}{}{denied}", if accepts { "a" } else { "" }, if falls { "f" } else { "" })
    }

    #[test]
    fn all_that_may_become_of_a_packet_is_found() {
        for (base, wanted) in [
            ("", "f"),
            ("drop", "base 1"),
            ("accept; drop", "a"),
            ("no: accept; drop", "base 2"),
            ("maybe: accept; drop", "abase 2"),
            ("maybe: drop", "fbase 1"),
            ("maybe: drop; drop", "base 2"),
            ("return; drop", "f"),
            ("queue; drop", "abase 2"),
            ("jump empty; drop", "base 2 behind empty"),
            ("jump empty; maybe: jump back; drop", "base 3 behind back"),
            ("jump empty; no: jump back; drop", "base 3 behind empty"),
            ("goto empty; drop", "f"),
            ("jump denies; accept", "denies 2"),
            ("maybe: jump denies; accept", "adenies 2"),
            ("jump back; drop", "base 2 behind back"),
            ("jump through; accept", "adenies 2"),
            ("goto through", "fdenies 2"),
        ] {
            let behind = [
                ("denies", "no: accept; drop"),
                ("back", "maybe: return; return; accept"),
                ("through", "maybe: goto denies"),
            ];
            let chains = [&[("base", base)][..], &behind].concat();
            assert_eq!(ways(&chains), wanted, "{base}");
        }
    }

    #[test]
    fn chains_that_jump_to_each_other_again_and_again_are_read_once() {
        let names: Vec<String> = (0..16).map(|number| format!("c{number}")).collect();
        let rules: Vec<String> = (1..=16).map(|number| vec![format!("jump c{number}"); 8].join("; ")).collect();
        let mut chains: Vec<(&str, &str)> =
            names.iter().map(String::as_str).zip(rules.iter().map(String::as_str)).collect();
        chains.extend([("base", "jump c0; jump c0; drop"), ("c16", "maybe: jump c0")]);
        assert_eq!(ways(&chains), "abase 3 behind c0", "a loop, which the kernel refuses, passes");
    }
}
