//! From one static part to another: which messages, in which order.

use netstate::Protocol;
use netstate::nft::{ChainKind, Family, Field, Hook, Op, Reject, SetFlags, priority};

use super::*;
use crate::attribute;
use crate::nft::wire::{self, text};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn key() -> TableKey {
    TableKey { family: Family::Ip, name: name("netd") }
}

/// A message as its kind and what it names.
fn describe(message: &Message) -> String {
    let attributes = &message.body[4..];
    let named = |kind| text(attributes, kind).unwrap_or_default();
    assert_eq!(named(1), "netd", "every message names its table");
    match message.kind ^ wire::SUBSYSTEM {
        kind::NEWTABLE => format!("table flags {}", wire::number(attributes, table::FLAGS).unwrap()),
        kind::DELTABLE => "-table".to_owned(),
        kind::NEWCHAIN => match attribute::find(attributes, chain::HOOK) {
            Some(_) => {
                format!("chain {} policy {}", named(chain::NAME), wire::number(attributes, chain::POLICY).unwrap())
            }
            None => format!("chain {}", named(chain::NAME)),
        },
        kind::DELCHAIN => format!("-chain {}", named(chain::NAME)),
        kind::NEWRULE => format!("rule {}", named(rule::CHAIN)),
        kind::DELRULE => format!("-rules {}", named(rule::CHAIN)),
        kind::NEWSET => format!("set {}", named(set::NAME)),
        kind::DELSET => format!("-set {}", named(set::NAME)),
        other => panic!("message {other}"),
    }
}

fn steps(have: Option<&Table>, want: &Table) -> Vec<String> {
    change(&key(), have, want).unwrap().messages.iter().map(describe).collect()
}

/// A map of ports with a chain that looks into it, a chain of verdicts, and a policy.
fn whole() -> Table {
    let mut table = Table::default();
    table.sets.insert(name("ports"), Set::map(vec![Type::InetService], vec![Type::Ipv4Addr, Type::InetService]));
    table.sets.insert(name("verdicts"), Set::verdict_map(vec![Type::InetService]));
    let mut pre = Chain::base(ChainKind::Nat, Hook::Prerouting, priority::DSTNAT, Policy::Accept);
    let fields = vec![Field::Dport];
    let map =
        Destination::Map { family: netstate::IpFamily::V4, fields: fields.clone(), map: name("ports"), port: true };
    pre.rules.push(Rule::new().when(Match::L4Proto(Op::Is, Protocol::Tcp)).then(map));
    table.chains.insert(name("pre"), pre);
    let mut filter = Chain::base(ChainKind::Filter, Hook::Forward, priority::FILTER, Policy::Accept);
    filter.rules.push(Rule::new().then(Statement::Vmap(fields, name("verdicts"))));
    filter.rules.push(Rule::new().then(Verdict::Jump(name("refuse"))));
    table.chains.insert(name("filter"), filter);
    table.chains.insert(name("refuse"), Chain::regular(vec![Rule::new().then(Reject::PortUnreachable)]));
    table
}

#[test]
fn new_table_is_declared_before_its_rules_are_written() {
    assert_eq!(
        steps(None, &whole()),
        [
            "table flags 0",
            "set ports",
            "set verdicts",
            "chain filter policy 1",
            "chain pre policy 1",
            "chain refuse",
            "rule filter",
            "rule filter",
            "rule pre",
            "rule refuse",
        ]
    );
}

#[test]
fn equal_table_costs_nothing() {
    assert_eq!(steps(Some(&whole()), &whole()), Vec::<String>::new());
}

#[test]
fn changed_rule_touches_its_chain_only() {
    let mut want = whole();
    want.chains.get_mut(&name("refuse")).unwrap().rules.push(Rule::new().then(Verdict::Drop));
    assert_eq!(steps(Some(&whole()), &want), ["-rules refuse", "rule refuse", "rule refuse"]);
}

#[test]
fn policy_is_set_in_place_and_another_hook_makes_the_chain_anew() {
    let mut want = whole();
    want.chains.get_mut(&name("filter")).unwrap().base.as_mut().unwrap().policy = Policy::Drop;
    assert_eq!(steps(Some(&whole()), &want), ["chain filter policy 0"]);
    let mut want = whole();
    want.chains.get_mut(&name("filter")).unwrap().base.as_mut().unwrap().priority = 10;
    assert_eq!(
        steps(Some(&whole()), &want),
        ["-rules filter", "-chain filter", "chain filter policy 1", "rule filter", "rule filter"]
    );
}

#[test]
fn set_declared_otherwise_is_made_anew_with_the_rules_that_look_into_it() {
    let mut want = whole();
    want.sets.get_mut(&name("ports")).unwrap().flags = SetFlags(0x40);
    let change = change(&key(), Some(&whole()), &want).unwrap();
    assert_eq!(change.remade, BTreeSet::from([name("ports")]));
    let steps: Vec<String> = change.messages.iter().map(describe).collect();
    assert_eq!(steps, ["-rules pre", "-set ports", "set ports", "rule pre"]);
}

#[test]
fn chain_that_goes_takes_the_jumps_to_it_along() {
    let mut want = whole();
    want.chains.remove(&name("refuse"));
    want.chains.get_mut(&name("filter")).unwrap().rules.pop();
    assert_eq!(steps(Some(&whole()), &want), ["-rules filter", "-rules refuse", "-chain refuse", "rule filter"]);
}

#[test]
fn removed_set_goes_behind_the_rules_that_name_it() {
    let mut want = whole();
    want.sets.remove(&name("verdicts"));
    want.chains.get_mut(&name("filter")).unwrap().rules.remove(0);
    assert_eq!(steps(Some(&whole()), &want), ["-rules filter", "-set verdicts", "rule filter"]);
    assert_eq!(describe(&removal(&key())), "-table");
}

#[test]
fn dormant_table_is_woken_in_place() {
    let asleep = Table { dormant: true, ..whole() };
    assert_eq!(steps(Some(&asleep), &whole()), ["table flags 0"]);
    assert_eq!(steps(Some(&whole()), &asleep), ["table flags 1"]);
}

#[test]
fn set_that_the_kernel_could_not_hold_is_refused_by_name() {
    for (set, why) in [
        (Set::of(vec![]), "no type"),
        (Set::of(vec![Type::Unknown(9)]), "a type nobody knows"),
        (Set::of(vec![Type::Mark; 6]), "six types"),
        (Set::of(vec![Type::Ipv6Addr; 5]), "eighty bytes"),
        (Set::map(vec![Type::Mark], vec![]), "no value"),
        (Set::map(vec![Type::Mark], vec![Type::Unknown(9)]), "a value nobody knows"),
        (Set::map(vec![Type::Mark], vec![Type::Ipv6Addr; 5]), "eighty bytes of value"),
    ] {
        let mut want = Table::default();
        want.sets.insert(name("s"), set);
        let refused = change(&key(), None, &want).unwrap_err();
        assert!(refused.starts_with("set s: keys and values are one to five known types"), "{why}: {refused}");
    }
}

#[test]
fn rule_that_cannot_be_written_names_its_chain() {
    let mut want = whole();
    let unknown = Rule::new().then(Statement::Unknown("queue".to_owned()));
    want.chains.get_mut(&name("refuse")).unwrap().rules.push(unknown);
    let refused = change(&key(), None, &want).unwrap_err();
    assert!(refused.starts_with("chain refuse: "), "{refused}");
}

#[test]
fn set_of_a_row_takes_the_place_of_one_that_is_declared_otherwise() {
    let key = SetKey { table: key(), set: name("clients/1") };
    let clients = Set::dynamic(vec![Type::Ipv4Addr]);
    let messages = |is_there| set_change(&key, &clients, is_there).unwrap();
    assert_eq!(messages(false).iter().map(describe).collect::<Vec<_>>(), ["set clients/1"]);
    assert_eq!(messages(true).iter().map(describe).collect::<Vec<_>>(), ["-set clients/1", "set clients/1"]);
    assert_eq!(describe(&set_removal(&key)), "-set clients/1");
    let of_the_static_part = SetKey { set: name("clients"), ..key };
    assert!(set_change(&of_the_static_part, &clients, false).is_err());
}

#[test]
fn set_of_a_row_does_not_go_with_the_static_part() {
    let mut have = whole();
    have.sets.insert(name("clients/1"), Set::dynamic(vec![Type::Ipv4Addr]));
    let known = Match::Lookup(Op::Is, vec![Field::Saddr(netstate::IpFamily::V4)], name("clients/1"));
    let chain = Chain::regular(vec![Rule::new().when(known).then(Verdict::Drop)]);
    assert!(!names_what_goes(&chain, &have, &whole()));
}
