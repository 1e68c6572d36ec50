//! A choice at random among the elements of a map, chains and sets that come and go, and sets that packets fill, against the
//! running kernel with the nft tool as the independent observer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

mod common;

use std::net::IpAddr;
use std::process::ExitCode;

use common::{cases, converge, feed, run, sh};
use kernel::nft::{Nft, Tables};
use netstate::nft::*;
use netstate::{IpFamily, Protocol};
use reconcile::{Audited, Reconciler, Stage, Target};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn nft(args: &str) -> String {
    sh("nft", &args.split_whitespace().collect::<Vec<_>>())
}

fn reconciler(ruleset: &Ruleset) -> Reconciler<Tables> {
    let mut table = Reconciler::new("nft", Tables::new(Nft::open().unwrap(), [ruleset.key.clone()]));
    table.want_all(ruleset.rows());
    table
}

fn service(addr: IpAddr) -> Vec<Datum> {
    vec![addr.into(), Datum::Protocol(Protocol::Tcp), Datum::Port(80)]
}

/// The chain that sends a connection to one of `count` endpoints of its destination, one from this node to the last one.
fn choice(family: IpFamily, count: u32) -> Chain {
    let to = |below, offset| {
        let fields = vec![Field::Daddr(family), Field::L4Proto, Field::Dport, Field::Random { below, offset }];
        Destination::Map { family, fields, map: name("endpoints"), port: true }
    };
    let last = Rule::new().when(Match::SaddrLocal(Op::Is)).then(to(1, count - 1));
    Chain::regular(vec![last, Rule::new().then(to(count, 0)), Rule::new().then(Verdict::Drop)])
}

/// A service at `vip` with two endpoints, `choose/2` and the maps that they need.
fn services(family: IpFamily, vip: &str, endpoints: [&str; 2]) -> Ruleset {
    let mut ruleset = Ruleset::new(TableKey { family: family.into(), name: name("services") });
    let addr = if family == IpFamily::V4 { Type::Ipv4Addr } else { Type::Ipv6Addr };
    let key = vec![addr, Type::InetProto, Type::InetService];
    let indexed = [key.clone(), vec![Type::Index]].concat();
    ruleset.table.sets.insert(name("endpoints"), Set::map(indexed, vec![addr, Type::InetService]));
    ruleset.table.sets.insert(name("services"), Set::verdict_map(key));
    let mut chain = Chain::base(ChainKind::Nat, Hook::Prerouting, priority::DSTNAT, Policy::Accept);
    let fields = vec![Field::Daddr(family), Field::L4Proto, Field::Dport];
    chain.rules.push(Rule::new().then(Statement::Vmap(fields, name("services"))));
    ruleset.table.chains.insert(name("prerouting"), chain);
    ruleset.table.chains.insert(name("choose/2"), choice(family, 2));
    let vip: IpAddr = vip.parse().unwrap();
    ruleset.insert(name("services"), service(vip), Element::verdict(Verdict::Goto(name("choose/2"))));
    for (index, endpoint) in (0..).zip(endpoints) {
        let key = [service(vip), vec![Datum::Index(index)]].concat();
        let endpoint: IpAddr = endpoint.parse().unwrap();
        ruleset.insert(name("endpoints"), key, Element::value(vec![endpoint.into(), Datum::Port(8080)]));
    }
    ruleset
}

fn of_ipv4() -> Ruleset {
    services(IpFamily::V4, "192.168.0.10", ["172.7.21.2", "172.7.22.3"])
}

/// The set of clients of one endpoint, and the chain that remembers them.
fn endpoint(ruleset: &mut Ruleset, family: IpFamily, endpoint: &str) {
    let addr: IpAddr = endpoint.parse().unwrap();
    let set = format!("clients/{}", endpoint.replace(':', "."));
    let ty = if family == IpFamily::V4 { Type::Ipv4Addr } else { Type::Ipv6Addr };
    ruleset.table.sets.insert(name(&set), Set::dynamic(vec![ty]));
    let update = Statement::Update { fields: vec![Field::Saddr(family)], set: name(&set), seconds: 10_890 };
    let to = Rule::new().when(Match::L4Proto(Op::Is, Protocol::Tcp)).then(Destination::Fixed(addr, Some(8080)));
    let chain = set.replace("clients", "endpoint");
    ruleset.table.chains.insert(name(&chain), Chain::regular(vec![Rule::new().then(update), to]));
}

/// [`services`], whose clients stay with the endpoint that they had first.
fn sticky(family: IpFamily, vip: &str, endpoints: [&str; 2]) -> Ruleset {
    let mut ruleset = services(family, vip, endpoints);
    ruleset.elements.retain(|key, _| key.set != name("endpoints"));
    let mut rules = Vec::new();
    let chains = endpoints.map(|endpoint| name(&format!("endpoint/{}", endpoint.replace(':', "."))));
    for (text, chain) in endpoints.iter().zip(&chains) {
        endpoint(&mut ruleset, family, text);
        let set = name(&chain.as_str().replace("endpoint", "clients"));
        let known = Rule::new().when(Match::Lookup(Op::Is, vec![Field::Saddr(family)], set));
        rules.push(known.then(Verdict::Goto(chain.clone())));
    }
    let [first, second] = chains.map(Verdict::Goto);
    rules.push(Rule::new().when(Match::OneOf(2)).then(first));
    rules.push(Rule::new().then(second));
    ruleset.table.chains.insert(name("keep/2"), Chain::regular(rules));
    ruleset.table.chains.remove(&name("choose/2"));
    let vip = service(vip.parse().unwrap());
    ruleset.insert(name("services"), vip, Element::verdict(Verdict::Goto(name("keep/2"))));
    ruleset
}

fn sticky_of_ipv4() -> Ruleset {
    sticky(IpFamily::V4, "192.168.0.10", ["172.7.21.2", "172.7.22.3"])
}

fn choice_is_what_the_tool_lists_and_what_it_loads_is_equal_to_ours() {
    let of_ipv6 = ("fd00:1::10", ["fd00:21::2", "fd00:22::3"]);
    for ruleset in [
        of_ipv4(),
        services(IpFamily::V6, of_ipv6.0, of_ipv6.1),
        sticky_of_ipv4(),
        sticky(IpFamily::V6, of_ipv6.0, of_ipv6.1),
    ] {
        assert_eq!(converge(&mut reconciler(&ruleset)).failed, 0);
        assert_eq!(nft(&format!("list table {}", ruleset.key)), ruleset.render());
        assert_eq!(Nft::open().unwrap().ruleset(&ruleset.key).unwrap().as_ref(), Some(&ruleset));
        // What an operator saves and loads again.
        let saved = nft("list ruleset");
        nft("flush ruleset");
        feed("nft", &["-f", "-"], &saved);
        let again = run(&mut reconciler(&ruleset));
        assert!(again.is_idle(), "{again:?}");
        nft("flush ruleset");
    }
}

fn chains_come_and_go_with_the_elements_that_name_them() {
    let mut ruleset = of_ipv4();
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    let before = Nft::open().unwrap().generation().unwrap();

    ruleset.table.chains.insert(name("choose/1"), choice(IpFamily::V4, 1));
    ruleset.table.chains.remove(&name("choose/2"));
    let vip = service("192.168.0.10".parse().unwrap());
    ruleset.insert(name("services"), vip.clone(), Element::verdict(Verdict::Goto(name("choose/1"))));
    let second = [vip, vec![Datum::Index(1)]].concat();
    ruleset.elements.retain(|key, _| *key.key != *second);
    table.want_all(ruleset.rows());
    let pass = run(&mut table);
    // The chain, the verdict and the list, which is one row; then the other chain.
    assert_eq!((pass.upserted, pass.removed, pass.errors), (3, 1, vec![]));
    let after = Nft::open().unwrap().generation().unwrap();
    assert_eq!(after - before, 2, "what is to be in one transaction, then what is to go");
    assert_eq!(Nft::open().unwrap().ruleset(&ruleset.key).unwrap(), Some(ruleset));
}

fn what_somebody_changes_is_put_right() {
    let ruleset = of_ipv4();
    for tampering in [
        "flush chain ip services choose/2",
        "insert rule ip services choose/2 counter accept",
        "add chain ip services choose/9",
        "delete element ip services endpoints { 192.168.0.10 . tcp . 80 . 1 }",
        "delete element ip services endpoints { 192.168.0.10 . tcp . 80 . 0 }",
        "add element ip services endpoints { 192.168.0.10 . tcp . 80 . 7 : 172.7.99.9 . 1 }",
        "add element ip services endpoints { 192.168.0.11 . tcp . 80 . 0 comment \"mine\" : 172.7.99.9 . 1 }",
        "delete table ip services",
        "flush ruleset",
    ] {
        // A table of its own each time: one whose rows are undone again and again waits longer each time.
        let mut table = reconciler(&ruleset);
        converge(&mut table);
        nft(tampering);
        table.invalidate();
        let pass = converge(&mut table);
        assert_eq!(pass.errors, vec![], "{tampering}");
        assert!(pass.upserted + pass.removed > 0, "{tampering} is seen");
        assert_eq!(Nft::open().unwrap().ruleset(&ruleset.key).unwrap().as_ref(), Some(&ruleset), "{tampering}");
    }
}

/// Reads on until the audit has an end.
fn audit(table: &mut Reconciler<Tables>) -> Audited {
    loop {
        match table.audit() {
            Audited::More => {}
            end => return end,
        }
    }
}

fn an_audit_reads_nothing_that_nobody_changed_and_finds_what_somebody_did() {
    let ruleset = of_ipv4();
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    table.invalidate();
    assert!(run(&mut table).is_idle());
    assert_eq!(table.audit(), Audited::Same, "the ruleset is still the one that was listed");
    nft("add table ip other");
    assert_eq!((table.audit(), audit(&mut table)), (Audited::More, Audited::Same), "others' tables are others'");
    assert_eq!(table.audit(), Audited::Same, "that ruleset was found to have what is known");
    // A row that is written meanwhile is left to the next audit, and waits for nothing.
    nft("add table ip another");
    assert_eq!(table.audit(), Audited::More);
    let at = service("192.168.0.10".parse().unwrap());
    let at = ElementKey { table: ruleset.key.clone(), set: name("endpoints"), key: at.into() };
    let list = ["172.7.21.9", "172.7.22.3"].map(|addr| (addr.parse().unwrap(), 8080));
    table.want(RowKey::List(at), Some(list.into_iter().collect::<List>().into()));
    assert_eq!(run(&mut table).upserted, 1);
    assert_eq!(audit(&mut table), Audited::Same);
    nft("delete element ip services endpoints { 192.168.0.10 . tcp . 80 . 1 }");
    assert_eq!(audit(&mut table), Audited::Due);
    assert_eq!(run(&mut table).repaired, 1);
}

fn tables_that_only_we_wrote_are_not_listed_again_until_somebody_else_writes() {
    let mut ruleset = of_ipv4();
    for number in 0..1200_u16 {
        let [high, low] = number.to_be_bytes();
        let vip = service([192, 168, high, low].into());
        ruleset.insert(name("services"), vip, Element::verdict(Verdict::Goto(name("choose/2"))));
    }
    let mut table = reconciler(&ruleset);
    assert_eq!(run(&mut table).errors, vec![]);
    assert!(table.target_mut().is_unchanged(), "one transaction was made, and it was ours");
    assert_eq!(table.audit(), Audited::Same);
    table.want(
        RowKey::Chain(ChainKey { table: ruleset.key.clone(), chain: name("choose/1") }),
        Some(choice(IpFamily::V4, 1).into()),
    );
    run(&mut table);
    assert!(table.target_mut().is_unchanged(), "so was this one");
    nft("add table ip other");
    assert!(!table.target_mut().is_unchanged());
    assert_eq!(audit(&mut table), Audited::Same);
    assert!(table.target_mut().is_unchanged(), "what somebody else wrote was found to be none of ours");
    // What is written while the table is read in parts may have been passed over.
    nft("add table ip another");
    assert_eq!(table.audit(), Audited::More);
    nft("add table ip a-third");
    assert_eq!(audit(&mut table), Audited::Same);
    assert!(!table.target_mut().is_unchanged());
}

/// The chains' rules are bound to the set, not to its name.
fn set_declared_otherwise_keeps_the_chains_that_look_into_it() {
    let mut ruleset = of_ipv4();
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    // NFT_SET_TIMEOUT.
    ruleset.table.sets.get_mut(&name("endpoints")).unwrap().flags = SetFlags(0x10);
    table.want_all(ruleset.rows());
    let pass = run(&mut table);
    assert_eq!((pass.upserted, pass.errors), (1, vec![]));
    assert_eq!(Nft::open().unwrap().ruleset(&ruleset.key).unwrap(), Some(ruleset));
}

/// Another data path in the same table: its static part is whole at once, what nobody wants goes behind it.
fn static_part_changes_although_chains_name_what_goes_with_it() {
    let ruleset = of_ipv4();
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    let mut other = Ruleset::new(ruleset.key.clone());
    other
        .table
        .chains
        .insert(name("input"), Chain::base(ChainKind::Filter, Hook::Input, priority::FILTER, Policy::Accept));
    table.want_all(other.rows());
    let pass = run(&mut table);
    assert_eq!((pass.upserted, pass.errors), (1, vec![]));
    converge(&mut table);
    assert_eq!(Nft::open().unwrap().ruleset(&other.key).unwrap(), Some(other));
}

fn chains_that_name_others_go_with_them() {
    let mut ruleset = of_ipv4();
    let guard = Rule::new().when(Match::Saddr(Op::Is, "10.4.7.0/24".parse().unwrap()));
    let guarded = Chain::regular(vec![guard.then(Verdict::Goto(name("choose/2"))), Rule::new().then(Verdict::Drop)]);
    ruleset.table.chains.insert(name("sources/1"), guarded);
    let vip = service("192.168.0.10".parse().unwrap());
    ruleset.insert(name("services"), vip, Element::verdict(Verdict::Goto(name("sources/1"))));
    let mut table = reconciler(&ruleset);
    assert_eq!(converge(&mut table).errors, vec![]);
    ruleset.elements.clear();
    ruleset.table.chains.retain(|name, _| !name.is_of_row());
    table.want_all(ruleset.rows());
    assert_eq!(run(&mut table).errors, vec![]);
    assert_eq!(Nft::open().unwrap().ruleset(&ruleset.key).unwrap(), Some(ruleset));
}

fn table_goes_with_its_chains_and_a_removal_is_idempotent() {
    let ruleset = of_ipv4();
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    nft("flush ruleset");
    table.want_all(std::collections::BTreeMap::new());
    let pass = run(&mut table);
    assert_eq!(pass.errors, vec![]);
    assert_eq!(nft("list ruleset"), "");
}

fn chain_that_a_verdict_still_names_stays_as_it_is() {
    let ruleset = of_ipv4();
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    let key = RowKey::Chain(ChainKey { table: ruleset.key.clone(), chain: name("choose/2") });
    table.want(key, None);
    let pass = run(&mut table);
    assert_eq!(pass.failed, 1, "{pass:?}");
    assert_eq!(Nft::open().unwrap().ruleset(&ruleset.key).unwrap(), Some(ruleset));
}

const CLIENT: &str = "10.4.7.200 timeout 1h expires 1h";

/// The text of the clients in a set, without what is left of their time.
fn clients(set: &str) -> String {
    let text = nft(&format!("-s list set ip services {set}"));
    let (_, elements) = text.split_once("elements = {").unwrap_or_default();
    elements.split_once('}').unwrap_or_default().0.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn what_packets_put_into_a_set_is_nobodys_row() {
    let ruleset = sticky_of_ipv4();
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    let many: Vec<String> = (0..10_000).map(|i| format!("10.{}.{}.1 timeout 1h", i / 250, i % 250)).collect();
    let script = format!("add element ip services clients/172.7.21.2 {{ {} }}\n", many.join(", "));
    feed("nft", &["-f", "-"], &script);
    table.invalidate();
    let pass = run(&mut table);
    assert!(pass.is_idle(), "{pass:?}");
    assert_eq!(table.mirror().unwrap().len(), ruleset.rows().len());
    assert_eq!(Nft::open().unwrap().ruleset(&ruleset.key).unwrap().as_ref(), Some(&ruleset));
    assert_eq!(clients("clients/172.7.21.2").split(',').count(), 10_000, "and they stay");
}

fn clients_go_with_their_endpoint_and_stay_when_another_one_or_the_time_changes() {
    let mut ruleset = sticky_of_ipv4();
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    nft(&format!("add element ip services clients/172.7.21.2 {{ {CLIENT} }}"));
    nft("add element ip services clients/172.7.22.3 { 10.4.7.201 timeout 1h }");
    // The second endpoint goes, a third one comes, and the time is another one.
    ruleset.table.sets.remove(&name("clients/172.7.22.3"));
    ruleset.table.chains.remove(&name("endpoint/172.7.22.3"));
    endpoint(&mut ruleset, IpFamily::V4, "172.7.22.4");
    for chain in ruleset.table.chains.values_mut() {
        for statement in chain.rules.iter_mut().flat_map(|rule| &mut rule.statements) {
            match statement {
                Statement::Update { seconds, .. } => *seconds = 60,
                Statement::Match(Match::Lookup(_, _, set)) if *set == name("clients/172.7.22.3") => {
                    *set = name("clients/172.7.22.4");
                }
                Statement::Verdict(Verdict::Goto(chain)) if *chain == name("endpoint/172.7.22.3") => {
                    *chain = name("endpoint/172.7.22.4");
                }
                _ => {}
            }
        }
    }
    table.want_all(ruleset.rows());
    let before = Nft::open().unwrap().generation().unwrap();
    let pass = run(&mut table);
    assert_eq!((pass.upserted, pass.removed, pass.errors), (4, 2, vec![]));
    assert_eq!(Nft::open().unwrap().generation().unwrap() - before, 2);
    assert_eq!(Nft::open().unwrap().ruleset(&ruleset.key).unwrap().as_ref(), Some(&ruleset));
    assert_eq!(clients("clients/172.7.21.2"), "10.4.7.200 timeout 1h");
    assert_eq!(clients("clients/172.7.22.4"), "");
    table.invalidate();
    assert!(run(&mut table).is_idle());
}

/// Its chains, its sets and what somebody made of them.
fn sets_that_come_and_go_are_put_right() {
    let ruleset = sticky_of_ipv4();
    for tampering in [
        "add set ip services clients/172.7.21.9 { type ipv4_addr; }",
        "flush chain ip services keep/2; delete chain ip services endpoint/172.7.21.2; delete set ip services clients/172.7.21.2",
        "flush chain ip services keep/2; flush chain ip services endpoint/172.7.21.2; \
         delete set ip services clients/172.7.21.2; add set ip services clients/172.7.21.2 { type ipv4_addr; }",
        "flush ruleset",
    ] {
        let mut table = reconciler(&ruleset);
        converge(&mut table);
        feed("nft", &["-f", "-"], &format!("{}\n", tampering.replace(';', ";\n")));
        table.invalidate();
        let pass = converge(&mut table);
        assert!(pass.upserted + pass.removed > 0, "{tampering} is seen");
        assert_eq!(Nft::open().unwrap().ruleset(&ruleset.key).unwrap().as_ref(), Some(&ruleset), "{tampering}");
    }
    // And it all goes: what nobody desires, in the order of who names whom.
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    let mut empty = ruleset.clone();
    empty.elements.clear();
    empty.table.chains.retain(|name, _| !name.is_of_row());
    empty.table.sets.retain(|name, _| !name.is_of_row());
    table.want_all(empty.rows());
    assert_eq!(run(&mut table).errors, vec![]);
    assert_eq!(Nft::open().unwrap().ruleset(&ruleset.key).unwrap(), Some(empty));
}

fn set_that_a_rule_still_names_stays_with_its_clients() {
    let ruleset = sticky_of_ipv4();
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    nft(&format!("add element ip services clients/172.7.21.2 {{ {CLIENT} }}"));
    table.want(RowKey::Set(SetKey { table: ruleset.key.clone(), set: name("clients/172.7.21.2") }), None);
    let pass = run(&mut table);
    assert_eq!(pass.failed, 1, "{pass:?}");
    assert_eq!(clients("clients/172.7.21.2"), "10.4.7.200 timeout 1h");
}

/// Another static part refills the chains that stay, and keeps the sets.
fn clients_stay_when_the_static_part_changes() {
    let mut ruleset = sticky_of_ipv4();
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    nft(&format!("add element ip services clients/172.7.21.2 {{ {CLIENT} }}"));
    let input = Chain::base(ChainKind::Filter, Hook::Input, priority::FILTER, Policy::Accept);
    ruleset.table.chains.insert(name("input"), input);
    table.want_all(ruleset.rows());
    let pass = run(&mut table);
    assert_eq!((pass.upserted, pass.errors), (1, vec![]));
    assert_eq!(Nft::open().unwrap().ruleset(&ruleset.key).unwrap(), Some(ruleset));
    assert_eq!(clients("clients/172.7.21.2"), "10.4.7.200 timeout 1h");
}

fn main() -> ExitCode {
    common::main(cases![
        choice_is_what_the_tool_lists_and_what_it_loads_is_equal_to_ours,
        chains_come_and_go_with_the_elements_that_name_them,
        what_somebody_changes_is_put_right,
        an_audit_reads_nothing_that_nobody_changed_and_finds_what_somebody_did,
        tables_that_only_we_wrote_are_not_listed_again_until_somebody_else_writes,
        set_declared_otherwise_keeps_the_chains_that_look_into_it,
        static_part_changes_although_chains_name_what_goes_with_it,
        chains_that_name_others_go_with_them,
        table_goes_with_its_chains_and_a_removal_is_idempotent,
        chain_that_a_verdict_still_names_stays_as_it_is,
        what_packets_put_into_a_set_is_nobodys_row,
        clients_go_with_their_endpoint_and_stay_when_another_one_or_the_time_changes,
        sets_that_come_and_go_are_put_right,
        set_that_a_rule_still_names_stays_with_its_clients,
        clients_stay_when_the_static_part_changes,
    ])
}
