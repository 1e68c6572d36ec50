//! Tables of the form before this one: `inet netd-ports-<network>`, a table for each network.
//!
//! A node that is upgraded has them, with the ports of Pods that live on. They go on working, and their ports are found
//! by DEL and GC; the first ADD that makes the shared table moves them into it, so that no port is claimed twice.
//! Invariant: a moved port is treated as before, because its policy is read from the rules of its own table.

use std::collections::BTreeSet;

use netstate::nft::{Element, Family, Match, Name, Op, Rule, Ruleset, Statement, TableKey};
use netstate::{IpFamily, Prefix};

use super::super::everywhere;
use super::policy::Policy;
use super::table::{self, Scope};
use crate::protocol::attachment::Attachment;
use crate::protocol::netconf::conditions::Conditions;
use crate::protocol::netconf::{PortmapConf, Snat};

const PREFIX: &str = "netd-ports-";

/// The earlier table of `network`; `None` for a name that nftables cannot hold.
#[must_use]
pub(crate) fn key(network: &str) -> Option<TableKey> {
    let name = Name::new(format!("{PREFIX}{network}")).ok()?;
    Some(TableKey { family: Family::Inet, name })
}

/// The network that `table` was made for, if it is of that form.
#[must_use]
pub(crate) fn network_of(table: &TableKey) -> Option<&str> {
    table.name.as_str().strip_prefix(PREFIX).filter(|_| table.family == Family::Inet)
}

/// The name of the host end of the attachment that `element` of an earlier table belongs to: the comment's first word.
#[must_use]
pub(crate) fn holder_link(element: &Element) -> Option<&str> {
    element.comment.as_deref()?.split(' ').next()
}

/// True when `element` of an earlier table belongs to `attachment`.
#[must_use]
pub(crate) fn owns(attachment: &Attachment, element: &Element) -> bool {
    holder_link(element).is_some_and(|link| link == attachment.host_link().as_str())
}

/// What stands for the table `earlier` of `network` in the shared one. Whose link is among `alive` is known to live.
#[must_use]
pub(crate) fn moved(earlier: &Ruleset, network: &str, alive: &BTreeSet<String>) -> Ruleset {
    let mut ruleset = Ruleset::new(table::key());
    ruleset.table = table::empty();
    let policy = policy(earlier);
    if let Some(policy) = &policy {
        policy.declare(&mut ruleset.table);
    }
    for (at, element) in &earlier.elements {
        let scope = Scope::of(&at.key);
        let family = if at.set.as_str().ends_with('4') { IpFamily::V4 } else { IpFamily::V6 };
        let comment = element.comment.as_deref().map(|text| comment(text, network, alive).into());
        let element = Element { comment, ..element.clone() };
        if at.set == scope.map(family) {
            ruleset.insert(at.set.clone(), at.key.clone(), element);
        } else if let Some(policy) = &policy {
            ruleset.insert(policy.set(scope, family), at.key.clone(), element);
        }
    }
    ruleset
}

/// `<link> <container>@<interface>` with the network between them.
fn comment(text: &str, network: &str, alive: &BTreeSet<String>) -> String {
    let (link, rest) = text.split_once(' ').unwrap_or((text, ""));
    // Its link may be another plugin's: better held for ever than taken from a Pod that lives.
    let link = match link.strip_prefix("veth") {
        Some(digits) if !alive.contains(link) => format!("port{digits}"),
        _ => link.to_owned(),
    };
    let mut comment = format!("{link} {} {rest}", crate::plan::tag::network_word(network));
    comment.truncate(comment.floor_char_boundary(120));
    comment
}

/// The policy that the rules of an earlier table carry out.
fn policy(earlier: &Ruleset) -> Option<Policy> {
    let chain = |name: &str| earlier.table.chains.get(&Name::observed(name));
    let rules = |name: &str| chain(name).map(|chain| chain.rules.as_slice()).unwrap_or_default();
    let mark = rules("postrouting").iter().flat_map(|rule| &rule.statements).find_map(|statement| match statement {
        Statement::Match(Match::Mark(Op::Is, bits, _)) => Some(*bits),
        _ => None,
    })?;
    let marking: Vec<&Rule> = rules("hostports").iter().filter(|rule| rule.statements.iter().any(is_mark)).collect();
    let sources: BTreeSet<Prefix> = marking.iter().filter_map(|rule| source(rule)).collect();
    let is_always = marking.iter().any(|rule| source(rule).is_none());
    let conditions = Conditions::default();
    let mark_bit = u8::try_from(mark.trailing_zeros()).ok()?;
    if is_always {
        return Policy::of(&PortmapConf { snat: Snat::Always, mark_bit, conditions }, &IpFamily::ALL.map(everywhere));
    }
    let subnets: Vec<Prefix> = sources.into_iter().filter(|source| *source != table::LOOPBACK_V4).collect();
    Policy::of(&PortmapConf { snat: Snat::WhereNeeded, mark_bit, conditions }, &subnets)
}

fn is_mark(statement: &Statement) -> bool {
    matches!(statement, Statement::SetMark(_))
}

fn source(rule: &Rule) -> Option<Prefix> {
    rule.statements.iter().find_map(|statement| match statement {
        Statement::Match(Match::Saddr(Op::Is, source)) => Some(*source),
        _ => None,
    })
}
