//! `Policy`: how the ports of one network are treated, as objects of the shared table that no other policy changes.
//!
//! A policy is a chain `policy-<id>`, behind conditions `met-<id>`, and sets of the ports that it holds for. Invariant: the identifier is a hash of all
//! that the policy says and of the table's layout, so whatever has a policy's name says the same, whoever made it and
//! whoever comes later; a port without rules of its own has no policy.

use netstate::nft::{Chain, Field, MarkChange, Match, Name, Op, Rule, Set, Statement, Table, Verdict};
use netstate::{IpFamily, Prefix};
use sha2::{Digest, Sha256};

use super::super::everywhere;
use super::table::{self, Scope, address_type};
use crate::protocol::netconf::conditions::Conditions;
use crate::protocol::netconf::{PortmapConf, Snat};

/// Stands for all that is the same in every policy and in the table around them: a hash of samples, which a test
/// compares. A table that another layout was written into lacks the policies of this one, and is made anew when
/// somebody searches for them.
const LAYOUT: &str = "93be889e";

/// What the names of policies' chains begin with.
const CHAIN: &str = "policy-";
/// What the names of the chains behind met conditions begin with.
const MET: &str = "met-";

/// How the ports of Pods of these subnets are treated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policy {
    id: String,
    conf: PortmapConf,
    subnets: Vec<Prefix>,
}

impl Policy {
    /// The policy of Pods with an address in each of `subnets`, at most one for a family; `None` when nothing but the
    /// destination changes, whatever that was.
    #[must_use]
    pub(crate) fn of(conf: &PortmapConf, subnets: &[Prefix]) -> Option<Self> {
        let has_v4 = subnets.iter().any(Prefix::is_ipv4);
        let is_plain = conf.snat == Snat::Never && conf.conditions == Conditions::default();
        let subnets = match conf.snat {
            // Loopback addresses are all that there is something to say about.
            Snat::Never if is_plain => has_v4.then(|| everywhere(IpFamily::V4)).into_iter().collect(),
            // Whoever it comes from: the families are all that matters.
            Snat::Always => subnets.iter().map(|subnet| everywhere(subnet.family())).collect(),
            _ => subnets.to_vec(),
        };
        if is_plain && !has_v4 {
            return None;
        }
        // Value by value in words that keep them apart: the same in every release that says the same.
        let text = format!("{LAYOUT} {:?} {} {subnets:?} {:?}", conf.snat, conf.mark_bit, conf.conditions);
        let [a, b, c, d, ..]: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        let id = format!("{:08x}", u32::from_be_bytes([a, b, c, d]));
        Some(Self { id, conf: conf.clone(), subnets })
    }

    /// True when the policy has something to say about ports of the family.
    #[must_use]
    pub(crate) fn covers(&self, family: IpFamily) -> bool {
        self.subnets.iter().any(|subnet| subnet.family() == family)
    }

    /// The set of the ports that the policy holds for.
    #[must_use]
    pub(crate) fn set(&self, scope: Scope, family: IpFamily) -> Name {
        Name::observed(set_name(scope, family, &self.id))
    }

    /// Adds the policy to `table`.
    pub(crate) fn declare(&self, table: &mut Table) {
        let (mut let_be, mut conditions, mut marks) = (Vec::new(), Vec::new(), Vec::new());
        for subnet in &self.subnets {
            let family = subnet.family();
            for scope in Scope::ALL {
                table.sets.insert(self.set(scope, family), Set::of(scope.key_types(address_type(family))));
            }
            let_be.extend(self.loopback_rule().filter(|_| family.is_v4()));
            conditions.extend(self.condition_rules(family));
            marks.extend(self.mark_rules(*subnet));
        }
        let chain = Name::observed(format!("{CHAIN}{}", self.id));
        if conditions.is_empty() {
            let_be.extend(marks);
        } else {
            conditions.push(Rule::new().then(Verdict::Goto(self.met())));
            let_be.extend(conditions);
            table.chains.insert(self.met(), Chain::regular(marks));
        }
        table.chains.insert(chain, Chain::regular(let_be));
        if self.conf.snat != Snat::Never {
            table::add_masquerade(table, self.conf.mark());
        }
        table::dispatch(table);
    }

    /// The chain for packets whose conditions are met.
    fn met(&self) -> Name {
        Name::observed(format!("{MET}{}", self.id))
    }

    /// Without a rewritten source the answer to 127.0.0.1 has no way back: such packets keep their destination.
    fn loopback_rule(&self) -> Option<Rule> {
        let (scope, family) = (Scope::AnyAddress, IpFamily::V4);
        let held = Match::Lookup(Op::Is, scope.fields(family), self.set(scope, family));
        let local = Rule::new().when(Match::Daddr(Op::Is, table::LOOPBACK_V4)).when(held).then(Verdict::Accept);
        (self.conf.snat == Snat::Never).then_some(local)
    }

    /// Lets packets to the policy's ports go on that meet one alternative of the conditions, and no other: these keep
    /// their destination, as if nobody had the port.
    fn condition_rules(&self, family: IpFamily) -> Vec<Rule> {
        let alternatives = self.conf.conditions.of(family);
        if alternatives.is_empty() {
            return Vec::new();
        }
        let held = |scope: Scope| Match::Lookup(Op::Is, scope.fields(family), self.set(scope, family));
        let of_family = || Rule::new().when(Match::Nfproto(Op::Is, family));
        let mut rules = Vec::new();
        for scope in Scope::ALL {
            for all in alternatives {
                let rule = all.iter().cloned().fold(of_family(), Rule::when);
                rules.push(rule.when(held(scope)).then(Verdict::Goto(self.met())));
            }
        }
        rules.extend(Scope::ALL.map(|scope| of_family().when(held(scope)).then(Verdict::Accept)));
        rules
    }

    /// Marks packets whose source must be rewritten.
    fn mark_rules(&self, subnet: Prefix) -> Vec<Rule> {
        let family = subnet.family();
        let sources: Vec<Option<Prefix>> = match self.conf.snat {
            Snat::Never => Vec::new(),
            Snat::Always => vec![None],
            Snat::WhereNeeded => {
                [Some(subnet), family.is_v4().then_some(table::LOOPBACK_V4)].into_iter().flatten().map(Some).collect()
            }
        };
        let mut rules = Vec::new();
        for source in sources {
            for scope in Scope::ALL {
                let rule = Rule::new().when(Match::Nfproto(Op::Is, family));
                let rule = match source {
                    Some(source) => rule.when(Match::Saddr(Op::Is, source)),
                    None => rule,
                };
                let held = Match::Lookup(Op::Is, scope.fields(family), self.set(scope, family));
                rules.push(rule.when(held).then(MarkChange::set(self.conf.mark())));
            }
        }
        rules
    }
}

/// The name of the set of a policy with this identifier; without one, what the names of all such sets begin with.
#[must_use]
pub(super) fn set_name(scope: Scope, family: IpFamily, id: &str) -> String {
    format!("{}open{}-{id}", scope.prefix(), if family.is_v4() { 4 } else { 6 })
}

/// True for the chain by which packets enter some policy.
#[must_use]
pub(crate) fn is_chain(name: &Name) -> bool {
    name.as_str().starts_with(CHAIN)
}

/// The identifier in the name of a policy's set.
#[must_use]
pub(crate) fn of_set(name: &Name) -> Option<&str> {
    let name = name.as_str();
    let name = name.strip_prefix(Scope::OneAddress.prefix()).unwrap_or(name);
    name.strip_prefix("open4-").or_else(|| name.strip_prefix("open6-"))
}

/// The identifier in the name of a chain of a policy's.
#[must_use]
pub(crate) fn of_chain(name: &Name) -> Option<&str> {
    let name = name.as_str();
    name.strip_prefix(CHAIN).or_else(|| name.strip_prefix(MET))
}

/// Bits that the rules of a policy's chain set in marks.
pub(crate) fn marks(chain: &Chain) -> impl Iterator<Item = u32> + '_ {
    let statements = chain.rules.iter().flat_map(|rule| &rule.statements);
    statements.filter_map(|statement| match statement {
        Statement::SetMark(change) => Some(change.xor),
        _ => None,
    })
}

/// The rule that sends packets through a policy's chain.
#[must_use]
pub(crate) fn entry(chain: &Name) -> Rule {
    Rule::new().then(Verdict::Jump(chain.clone()))
}

impl Scope {
    /// The fields of a packet that make up a key.
    #[must_use]
    pub(crate) fn fields(self, family: IpFamily) -> Vec<Field> {
        let address = match self {
            Self::OneAddress => Some(Field::Daddr(family)),
            Self::AnyAddress => None,
        };
        address.into_iter().chain([Field::L4Proto, Field::Dport]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netstate::nft::Ruleset;

    #[test]
    fn layout_stands_for_the_rules_of_this_release() {
        let conditions = Conditions {
            v4: vec![vec![Match::SaddrLocal(Op::Is)], vec![Match::SaddrLocal(Op::IsNot)]],
            v6: vec![vec![Match::SaddrLocal(Op::Is)]],
        };
        let subnets: Vec<Prefix> = ["172.7.21.0/24", "fd00:7:0:21::/64"].map(|text| text.parse().unwrap()).into();
        let mut text = String::new();
        for snat in [Snat::Never, Snat::WhereNeeded, Snat::Always] {
            for conditions in [Conditions::default(), conditions.clone()] {
                let conf = PortmapConf { snat, mark_bit: 13, conditions };
                let mut ruleset = Ruleset::new(table::key());
                ruleset.table = table::empty();
                Policy { id: "0".to_owned(), conf, subnets: subnets.clone() }.declare(&mut ruleset.table);
                text += &ruleset.render();
            }
        }
        let [a, b, c, d, ..]: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        let layout = format!("{:08x}", u32::from_be_bytes([a, b, c, d]));
        assert_eq!(LAYOUT, layout, "the rules have changed: write their hash into LAYOUT");
    }
}
