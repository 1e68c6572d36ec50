//! nftables against the running kernel, with the nft tool as the independent observer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use common::{cases, converge, feed, run, sh};
use kernel::KernelError;
use kernel::nft::{Change, ClaimError, Counted, Fate, ForeignRule, Monitor, Nft, Tables, Tally};
use kernel::writer::Writers;
use netstate::nft::*;
use netstate::{IfName, IpFamily, Prefix, Protocol};
use reconcile::{Reconciler, Stage, Step, Target};

fn p(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn table_key(family: Family, text: &str) -> TableKey {
    TableKey { family, name: name(text) }
}

fn nft(args: &str) -> String {
    sh("nft", &args.split_whitespace().collect::<Vec<_>>())
}

/// Loads a ruleset text with the tool, as another program would.
fn nft_load(text: &str) {
    feed("nft", &["-f", "-"], text);
}

/// A word of a listing; masks are hexadecimal since nftables 1.1.
fn word(text: &str) -> String {
    let number = text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
    number.map_or_else(|| text.to_owned(), |number| number.to_string())
}

/// Compares two listings and shows the lines that differ.
#[track_caller]
fn assert_same(left: &str, right: &str) {
    let line = |text: &str| text.split(' ').map(word).collect::<Vec<_>>().join(" ");
    let lines = |text: &str| text.lines().map(line).collect::<Vec<_>>();
    let (left, right) = (lines(left), lines(right));
    let longest = left.len().max(right.len());
    let differing: Vec<_> =
        (0..longest).map(|line| (left.get(line), right.get(line))).filter(|(left, right)| left != right).collect();
    assert!(differing.is_empty(), "{differing:#?}");
}

fn tables(keys: &[&TableKey]) -> Tables {
    Tables::new(Nft::open().unwrap(), keys.iter().map(|key| (*key).clone()))
}

fn reconciler(ruleset: &Ruleset) -> Reconciler<Tables> {
    let mut table = Reconciler::new("nft", tables(&[&ruleset.key]));
    table.want_all(ruleset.rows());
    table
}

/// Waits until `monitor` reports `table`.
fn reports_change_of(monitor: &mut Monitor, table: &TableKey) -> bool {
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        let changes = monitor.wait(100).unwrap();
        if changes.iter().any(|change| matches!(change, Change::Table { table: of, .. } if of == table)) {
            return true;
        }
    }
    false
}

fn host_ports(family: Family) -> Ruleset {
    let (network, addr) = match family {
        Family::Ip6 => (IpFamily::V6, Type::Ipv6Addr),
        _ => (IpFamily::V4, Type::Ipv4Addr),
    };
    let mut ruleset = Ruleset::new(table_key(family, "netd-cni"));
    let ports = Set::map(vec![Type::InetProto, Type::InetService], vec![addr, Type::InetService]);
    ruleset.table.sets.insert(name("ports"), ports);
    let mut chain = Chain::base(ChainKind::Nat, Hook::Prerouting, priority::DSTNAT, Policy::Accept);
    let fields = vec![Field::L4Proto, Field::Dport];
    let map = Destination::Map { family: network, fields, map: name("ports"), port: true };
    chain.rules.push(Rule::new().when(Match::DaddrLocal(Op::Is)).then(map));
    ruleset.table.chains.insert(name("prerouting"), chain);
    ruleset
}

/// [`host_ports`] with the ports 1 to `last`, each to a port of the same number.
fn filled_host_ports(last: u16) -> Ruleset {
    let mut ruleset = host_ports(Family::Ip);
    for number in 1..=last {
        ruleset.insert(name("ports"), port(number), endpoint(3, number));
    }
    ruleset
}

fn port(number: u16) -> Vec<Datum> {
    vec![Datum::Protocol(Protocol::Tcp), Datum::Port(number)]
}

fn endpoint(last: u8, port: u16) -> Element {
    Element::value(vec![Datum::Ipv4(Ipv4Addr::new(172, 7, 21, last)), Datum::Port(port)])
}

/// A ruleset of `family` with every statement that a nat or filter chain takes.
fn everything(family: Family) -> Ruleset {
    use Op::{Is, IsNot};
    use netstate::IpFamily::{V4, V6};
    let ifname = |text: &str| IfName::new(text).unwrap();
    let mut conditions = vec![
        Match::Mark(Is, 0x4000, 0x4000),
        Match::Mark(IsNot, 0xf000, 0x4000),
        Match::Mark(Is, u32::MAX, 7),
        Match::L4Proto(IsNot, Protocol::Sctp),
        Match::Iifname(Is, ifname("cbr0")),
        Match::IifnamePrefix(Is, ifname("veth")),
        Match::IifnamePrefix(IsNot, ifname("c")),
        Match::IifnamePrefix(Is, ifname("fourteen-bytes")),
        Match::Oifname(IsNot, ifname("flannel.1")),
        Match::Sport(Is, Protocol::Udp, 53),
        Match::Dport(IsNot, Protocol::Tcp, 80),
        Match::DaddrLocal(Is),
        Match::SaddrLocal(IsNot),
        Match::CtState(CtState::ESTABLISHED | CtState::RELATED),
        Match::CtState(CtState::NEW),
        Match::CtStatus(CtStatus::DNAT),
        Match::Lookup(Is, vec![Field::Mark], name("marks")),
        Match::Lookup(IsNot, vec![Field::Iifname], name("links")),
    ];
    let mut sets =
        BTreeMap::from([(name("marks"), Set::of(vec![Type::Mark])), (name("links"), Set::of(vec![Type::IfName]))]);
    for (low, of, networks, ty) in [
        (V4, Family::Ip, ["172.7.0.0/16", "172.7.0.0/17", "0.0.0.0/0", "10.4.7.21/32"], Type::Ipv4Addr),
        (V6, Family::Ip6, ["fd00::/48", "fd00::/63", "::/0", "fd00::1/128"], Type::Ipv6Addr),
    ] {
        if family != Family::Inet && family != of {
            continue;
        }
        for network in networks {
            conditions.push(Match::Saddr(Is, p(network)));
            conditions.push(Match::Daddr(IsNot, p(network)));
        }
        conditions.push(Match::CtOriginalDaddr(Is, p(networks[3])));
        let set = name(&format!("servers-{low}"));
        sets.insert(set.clone(), Set::of(vec![ty, Type::InetProto, Type::InetService]));
        conditions.push(Match::Lookup(Is, vec![Field::Daddr(low), Field::L4Proto, Field::Dport], set.clone()));
        conditions.push(Match::Lookup(IsNot, vec![Field::CtOriginalDaddr(low), Field::L4Proto, Field::Dport], set));
    }
    sets.insert(name("verdicts"), Set::verdict_map(vec![Type::InetProto, Type::InetService]).counting());
    let mut ruleset = Ruleset::new(table_key(family, "everything"));
    ruleset.table.sets = sets;
    let chains = &mut ruleset.table.chains;
    chains.insert(name("aside"), Chain::regular(vec![Rule::new().then(Verdict::Return)]));
    let mut forward = Chain::base(ChainKind::Filter, Hook::Forward, priority::FILTER, Policy::Drop);
    forward.rules = conditions.into_iter().map(|match_| Rule::new().when(match_).then(Verdict::Accept)).collect();
    let tcp = Rule::new().when(Match::L4Proto(Is, Protocol::Tcp));
    forward.rules.extend([
        tcp.clone().then(Reject::TcpReset),
        Rule::new().then(Reject::PortUnreachable),
        Rule::new().then(Statement::Counter).then(MarkChange::set(0x4000)),
        Rule::new().then(MarkChange::clear(0x4000)).then(MarkChange::flip(0x8000)),
        Rule::new().then(MarkChange::replace(1)).then(MarkChange { mask: 0xffff_0fff, xor: 0x4000 }),
        Rule::new().then(Statement::Vmap(vec![Field::L4Proto, Field::Dport], name("verdicts"))),
        Rule::new().then(Verdict::Jump(name("aside"))).comment("why: \"aside\" is 'there'"),
        Rule::new().then(Verdict::Goto(name("aside"))),
    ]);
    forward.rules[0].comment = Some("netd: marked by the proxy".to_owned());
    forward.rules.iter_mut().for_each(|rule| {
        rule.comment = rule.comment.take().map(|text| text.replace('"', ""));
    });
    chains.insert(name("forward"), forward);
    let mut post = Chain::base(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT, Policy::Accept);
    post.rules = vec![
        Rule::new().then(Statement::Masquerade { fully_random: true }),
        Rule::new().then(Statement::Masquerade { fully_random: false }),
    ];
    chains.insert(name("postrouting"), post);
    let mut pre = Chain::base(ChainKind::Nat, Hook::Prerouting, priority::DSTNAT - 10, Policy::Accept);
    let to = |text: &str, port| Destination::Fixed(text.parse().unwrap(), port);
    match family {
        Family::Ip6 => pre.rules.extend([tcp.then(to("fd00::3", Some(80))), Rule::new().then(to("fd00::3", None))]),
        Family::Ip => {
            pre.rules.extend([tcp.then(to("172.7.21.3", Some(80))), Rule::new().then(to("172.7.21.3", None))]);
        }
        _ => {}
    }
    chains.insert(name("prerouting"), pre);
    ruleset
}

/// The tool's text with sets and chains in the order of their names: the kernel keeps them as they came.
fn listed(key: &TableKey) -> String {
    nft(&format!("-s list table {key}"))
}

fn rendered_text_is_what_the_tool_lists_and_reads_back_as_desired() {
    for family in [Family::Ip, Family::Ip6, Family::Inet] {
        let ruleset = everything(family);
        assert_eq!(converge(&mut reconciler(&ruleset)).upserted, 1);
        assert_same(&listed(&ruleset.key), &ruleset.render());
        assert_eq!(Nft::open().unwrap().ruleset(&ruleset.key).unwrap(), Some(ruleset));
    }
}

fn elements_of_every_type_read_back_and_are_listed_as_rendered() {
    let mut ruleset = everything(Family::Ip);
    let mut one = |set: &str, key: Vec<Datum>, element: Element| {
        ruleset.insert(name(set), key, element);
    };
    one("marks", vec![Datum::Mark(0x4000)], Element::member());
    one("links", vec![Datum::IfName(IfName::new("flannel.1").unwrap())], Element::member().comment("netd"));
    let server = vec![Datum::Ipv4(Ipv4Addr::new(192, 168, 0, 10)), Datum::Protocol(Protocol::Tcp), Datum::Port(80)];
    one("servers-IPv4", server, Element::member());
    one("verdicts", port(80), Element::verdict(Verdict::Goto(name("aside"))).comment("to aside"));
    converge(&mut reconciler(&ruleset));
    assert_same(&listed(&ruleset.key), &ruleset.render());

    let mut ports = host_ports(Family::Ip);
    ports.insert(name("ports"), port(8080), endpoint(3, 80).comment("0123abcd/eth0"));
    converge(&mut reconciler(&ports));
    assert_same(&listed(&ports.key), &ports.render());

    let mut ports = host_ports(Family::Ip6);
    let data = vec![Datum::Ipv6("fd00::3".parse().unwrap()), Datum::Port(80)];
    ports.insert(name("ports"), port(8080), Element::value(data));
    converge(&mut reconciler(&ports));
    assert_same(&listed(&ports.key), &ports.render());
}

/// A table as the CNI plugin guards ports with.
fn guarded_ports() -> Ruleset {
    let mut ruleset = Ruleset::new(table_key(Family::Bridge, "netd-spoof"));
    ruleset.table.sets.insert(name("guarded"), Set::of(vec![Type::IfName]));
    ruleset.table.sets.insert(name("allowed"), Set::of(vec![Type::IfName, Type::EtherAddr]));
    let mut chain = Chain::base(ChainKind::Filter, Hook::Prerouting, -300, Policy::Accept);
    let foreign = Match::Lookup(Op::IsNot, vec![Field::Iifname, Field::EtherSaddr], name("allowed"));
    let guarded = Match::Lookup(Op::Is, vec![Field::Iifname], name("guarded"));
    chain.rules.push(Rule::new().when(guarded).when(foreign).then(Verdict::Drop));
    chain
        .rules
        .push(Rule::new().when(Match::Lookup(Op::Is, vec![Field::EtherSaddr], name("macs"))).then(Verdict::Accept));
    ruleset.table.sets.insert(name("macs"), Set::of(vec![Type::EtherAddr]));
    ruleset.table.chains.insert(name("prerouting"), chain);
    let link = Datum::IfName(IfName::new("veth1").unwrap());
    let mac = Datum::Mac(netstate::MacAddr([0x0a, 0x58, 172, 7, 21, 2]));
    ruleset.insert(name("guarded"), vec![link.clone()], Element::member().comment("veth1 c1@eth0"));
    ruleset.insert(name("allowed"), vec![link, mac.clone()], Element::member().comment("veth1 c1@eth0"));
    ruleset.insert(name("macs"), vec![mac], Element::member());
    ruleset
}

fn bridge_table_with_hardware_addresses_is_what_the_tool_lists_and_reads_back() {
    let ruleset = guarded_ports();
    assert!(converge(&mut reconciler(&ruleset)).upserted > 0);
    assert_same(&listed(&ruleset.key), &ruleset.render());
    nft("flush ruleset");
    nft_load(&ruleset.render());
    assert!(run(&mut reconciler(&ruleset)).is_idle(), "loaded by the tool it is the same");
}

/// The tool can write what it lists; what it writes is what we desire.
/// What arrives on `device` for this host's address and a port of a tunnel.
fn arriving(device: &str) -> Ruleset {
    let mut ruleset = Ruleset::new(table_key(Family::Netdev, "netd"));
    let mut chain = Chain::ingress(IfName::new(device).unwrap(), priority::FILTER, Policy::Accept);
    let rule = |network: IpFamily, own: &str| {
        let addressed = Rule::new().when(Match::Daddr(Op::Is, p(own))).when(Match::Whole(network));
        addressed.when(Match::Dport(Op::Is, Protocol::Udp, 8472)).then(Statement::Notrack)
    };
    chain.rules = vec![rule(IpFamily::V4, "10.4.7.21/32"), rule(IpFamily::V6, "fd00::21/128")];
    ruleset.table.chains.insert(name("arriving"), chain);
    ruleset
}

fn chain_of_a_link_is_what_the_tool_lists_and_reads_back() {
    common::ip("link add up0 type veth peer name peer0");
    let ruleset = arriving("up0");
    converge(&mut reconciler(&ruleset));
    assert_same(&listed(&ruleset.key), &ruleset.render());
    nft("delete table netdev netd");
    nft_load(&ruleset.render());
    assert_eq!(Nft::open().unwrap().ruleset(&ruleset.key).unwrap(), Some(ruleset));
}

fn chain_of_a_link_is_put_right_when_the_link_goes_and_follows_to_another_one() {
    common::ip("link add up0 type veth peer name peer0");
    let ruleset = arriving("up0");
    converge(&mut reconciler(&ruleset));
    for damage in [
        "nft flush chain netdev netd arriving",
        "nft delete chain netdev netd arriving",
        // The chain goes as well, or loses its link, or takes the new one by itself: that is up to the kernel.
        "ip link delete up0; ip link add up0 type veth peer name peer0",
        "ip link set up0 name up1; ip link add up0 type veth peer name peer1",
        "nft delete chain netdev netd arriving; \
         nft add chain netdev netd arriving '{ type filter hook ingress devices = { up0, up1 } priority 0; }'",
    ] {
        sh("sh", &["-c", damage]);
        converge(&mut reconciler(&ruleset));
        assert_same(&listed(&ruleset.key), &ruleset.render());
    }
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    table.want_all(arriving("up1").rows());
    converge(&mut table);
    assert_same(&listed(&ruleset.key), &arriving("up1").render());
}

fn ruleset_loaded_by_the_tool_from_our_text_is_equal_to_ours() {
    let mut ruleset = host_ports(Family::Ip);
    ruleset.insert(name("ports"), port(8080), endpoint(3, 80).comment("0123abcd/eth0"));
    let mut filter = Chain::base(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT, Policy::Accept);
    filter.rules = vec![
        Rule::new().when(Match::Mark(Op::Is, 0x4000, 0x4000)).then(Verdict::Return),
        Rule::new()
            .when(Match::Saddr(Op::Is, p("172.7.0.0/16")))
            .when(Match::Daddr(Op::IsNot, p("224.0.0.0/4")))
            .then(Statement::Masquerade { fully_random: true }),
        Rule::new().then(MarkChange::set(0x4000)).comment("marked"),
    ];
    ruleset.table.chains.insert(name("postrouting"), filter);
    // The tool lists `dnat ip to` and reads only `dnat ip addr . port to`.
    let text = ruleset.render().replace("dnat ip to", "dnat ip addr . port to");
    nft_load(&text);
    assert_eq!(Nft::open().unwrap().ruleset(&ruleset.key).unwrap().unwrap().render(), ruleset.render());
    let mut table = reconciler(&ruleset);
    let first = run(&mut table);
    assert!(first.is_idle(), "{first:?}");
}

fn one_changed_element_is_one_message_and_leaves_the_others() {
    let ruleset = filled_host_ports(50);
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    let handles = nft("-a list table ip netd-cni");
    let mut nft = Nft::open().unwrap();
    let before = nft.generation().unwrap();
    let key = ElementKey { table: ruleset.key.clone(), set: name("ports"), key: port(7).into() };
    table.want(RowKey::Element(key), Some(endpoint(4, 7).comment("moved").into()));
    let pass = run(&mut table);
    assert_eq!((pass.upserted, pass.removed, pass.failed), (1, 0, 0));
    assert_eq!(nft.generation().unwrap(), before + 1, "one transaction");
    table.invalidate();
    assert!(run(&mut table).is_idle());
    let after = sh("nft", &["-a", "list", "table", "ip", "netd-cni"]);
    let unchanged = |text: &str| text.lines().filter(|line| !line.contains("tcp . 7 ")).count();
    assert_eq!(unchanged(&handles), unchanged(&after));
    assert!(after.contains("tcp . 7 comment \"moved\" : 172.7.21.4 . 7"), "{after}");
}

fn one_changed_rule_touches_one_chain() {
    let mut ruleset = everything(Family::Ip);
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    ruleset.insert(name("marks"), vec![Datum::Mark(9)], Element::member());
    table.want_all(ruleset.rows());
    converge(&mut table);
    let chain = |name: &str| nft(&format!("-a list chain ip everything {name}"));
    let untouched = ["aside", "forward", "prerouting"];
    let before = untouched.map(chain);
    let post = chain("postrouting");
    let rules = &mut ruleset.table.chains.get_mut(&name("postrouting")).unwrap().rules;
    rules.insert(0, Rule::new().when(Match::Mark(Op::Is, 0x4000, 0x4000)).then(Verdict::Return));
    table.want_all(ruleset.rows());
    assert_eq!(converge(&mut table).upserted, 1);
    assert_eq!(untouched.map(chain), before, "handles stay");
    assert_ne!(chain("postrouting"), post);
    assert_same(&listed(&ruleset.key), &ruleset.render());
}

fn changed_policy_is_set_in_place_and_changed_hook_makes_a_new_chain() {
    let mut ruleset = everything(Family::Ip);
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    let first_handle = || {
        let text = nft("-a list chain ip everything forward");
        text.lines().find(|line| line.contains("0x00004000 == 0x00004000")).unwrap().to_owned()
    };
    let before = first_handle();
    let set_base = |ruleset: &mut Ruleset, priority, policy| {
        let base = ruleset.table.chains.get_mut(&name("forward")).unwrap().base.as_mut().unwrap();
        (base.priority, base.policy) = (priority, policy);
    };
    set_base(&mut ruleset, priority::FILTER, Policy::Accept);
    table.want_all(ruleset.rows());
    converge(&mut table);
    assert_eq!(first_handle(), before, "rules stay");
    set_base(&mut ruleset, priority::FILTER + 1, Policy::Accept);
    table.want_all(ruleset.rows());
    converge(&mut table);
    assert_ne!(first_handle(), before);
    assert!(nft("list chain ip everything forward").contains("priority filter + 1; policy accept"));
}

fn set_declared_otherwise_comes_with_its_new_elements_in_one_transaction() {
    let mut ruleset = filled_host_ports(5);
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    let mut nft_ = Nft::open().unwrap();
    let before = nft_.generation().unwrap();

    // Addresses only: the ports stay as they are.
    ruleset.table.sets.insert(name("ports"), Set::map(vec![Type::InetProto, Type::InetService], vec![Type::Ipv4Addr]));
    let chain = ruleset.table.chains.get_mut(&name("prerouting")).unwrap();
    let fields = vec![Field::L4Proto, Field::Dport];
    let map = Destination::Map { family: IpFamily::V4, fields, map: name("ports"), port: false };
    chain.rules = vec![Rule::new().when(Match::DaddrLocal(Op::Is)).then(map)];
    for element in ruleset.elements.values_mut() {
        *element = Element::value(vec![Datum::Ipv4(Ipv4Addr::new(172, 7, 21, 9))]);
    }
    table.want_all(ruleset.rows());
    assert_eq!(run(&mut table).errors, vec![]);
    assert_eq!(nft_.generation().unwrap(), before + 1, "one transaction");
    table.invalidate();
    assert!(run(&mut table).is_idle());
    assert!(listed(&ruleset.key).contains("tcp . 3 : 172.7.21.9"));
}

fn set_with_another_flag_is_made_anew_under_its_rules_and_keeps_its_elements() {
    let mut ruleset = filled_host_ports(5);
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    let mut nft_ = Nft::open().unwrap();
    let before = nft_.generation().unwrap();
    // NFT_SET_TIMEOUT.
    ruleset.table.sets.get_mut(&name("ports")).unwrap().flags = SetFlags(0x10);
    let gone = ruleset.elements.keys().next().unwrap().clone();
    ruleset.elements.remove(&gone);
    ruleset.insert(name("ports"), port(9), endpoint(3, 9));
    table.want_all(ruleset.rows());
    let pass = run(&mut table);
    assert_eq!((pass.upserted, pass.removed, pass.errors), (2, 1, vec![]));
    assert_eq!(nft_.generation().unwrap(), before + 2, "what is to be, then what is to go");
    assert_eq!(nft_.ruleset(&ruleset.key).unwrap(), Some(ruleset));
    table.invalidate();
    assert!(run(&mut table).is_idle());
}

fn element_in_place_of_another_goes_on_with_what_that_has_counted() {
    let mut ruleset = everything(Family::Ip);
    ruleset.insert(name("verdicts"), port(80), Element::verdict(Verdict::Drop));
    ruleset.insert(name("verdicts"), port(81), Element::verdict(Verdict::Drop));
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    let mut nft_ = Nft::open().unwrap();
    let at = SetKey { table: ruleset.key.clone(), set: name("verdicts") };
    let set = ruleset.table.sets[&name("verdicts")].clone();
    assert_eq!(nft_.counted(&at, &set).unwrap(), [], "nothing was counted");
    // As if packets had been counted; for the loop the elements are what they were.
    let element = |what: &str| format!("element {} verdicts {{ tcp . 80 {what} }}\n", ruleset.key);
    nft_load(&format!("delete {}add {}", element(""), element("counter packets 7 bytes 700 : drop")));
    table.invalidate();
    assert!(run(&mut table).is_idle(), "what is counted is no part of a row");
    for port_ in [80, 81] {
        table.want(
            RowKey::Element(ElementKey { table: ruleset.key.clone(), set: name("verdicts"), key: port(port_).into() }),
            Some(Element::verdict(Verdict::Accept).into()),
        );
    }
    assert_eq!(converge(&mut table).upserted, 2);
    let counted = Counted { key: port(80), tally: Tally { packets: 7, bytes: 700 } };
    assert_eq!(nft_.counted(&at, &set).unwrap(), [counted]);
    assert!(nft("list map ip everything verdicts").contains("tcp . 80 counter packets 7 bytes 700 : accept"));
    let none = SetKey { set: name("none"), ..at };
    assert_eq!(nft_.counted(&none, &set).unwrap(), [], "a set that is not there has counted nothing");
}

fn chain_that_verdicts_still_name_goes_when_they_are_gone() {
    let mut ruleset = everything(Family::Ip);
    ruleset.table.chains.insert(name("web"), Chain::regular(vec![Rule::new().then(Verdict::Drop)]));
    ruleset.insert(name("verdicts"), port(80), Element::verdict(Verdict::Goto(name("web"))));
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    ruleset.table.chains.remove(&name("web"));
    ruleset.elements.clear();
    table.want_all(ruleset.rows());
    // The loop creates and changes before it removes: the element goes in the first pass, the chain in the second.
    let first = run(&mut table);
    assert_eq!((first.removed, first.failed), (1, 1), "{first:?}");
    assert!(first.errors[0].to_string().contains("still named by verdicts in a map"), "{first:?}");
    let next = table.next_try().unwrap();
    let second = table.pass(true, next);
    assert_eq!(second.errors, vec![]);
    assert_eq!(Nft::open().unwrap().ruleset(&ruleset.key).unwrap(), Some(ruleset));
}

const FOREIGN: &str = "
table ip netd {
    chain x {
        type filter hook input priority 0; policy drop;
        tcp dport 22 accept
    }
}
table inet netd-cni {
    set s {
        type ipv4_addr
        flags interval
        elements = { 10.0.0.0/8 }
    }
}
";

fn foreign_tables_are_never_touched() {
    nft_load(FOREIGN);
    let before = (nft("list table ip netd"), nft("list table inet netd-cni"));
    let ruleset = host_ports(Family::Ip);
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    table.want_all(BTreeMap::new());
    assert_eq!(converge(&mut table).removed, 1);
    assert_eq!((nft("list table ip netd"), nft("list table inet netd-cni")), before);
    assert_eq!(nft("list tables"), "table ip netd\ntable inet netd-cni\n");
}

fn hand_made_rules_and_sets_in_our_table_are_put_right() {
    let ruleset = everything(Family::Ip);
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    nft("insert rule ip everything forward limit rate 10/second log drop");
    nft("add rule ip everything aside meta cpu 0 accept");
    nft("add chain ip everything own { type filter hook prerouting priority raw ; policy drop ; }");
    nft("add set ip everything intervals { type ipv4_addr ; flags interval ; }");
    nft("add element ip everything intervals { 10.0.0.0/8 }");
    table.invalidate();
    converge(&mut table);
    assert_same(&listed(&ruleset.key), &ruleset.render());
    nft_load("table ip everything {\n flags dormant\n }\n");
    let mut dormant = ruleset.clone();
    dormant.table.dormant = true;
    assert_same(&listed(&ruleset.key), &dormant.render());
    table.invalidate();
    converge(&mut table);
    assert_same(&listed(&ruleset.key), &ruleset.render());
}

fn bad_element_fails_alone_and_the_rest_is_carried_out() {
    let ruleset = everything(Family::Ip);
    let mut table = reconciler(&ruleset);
    for number in 1..=2000 {
        let to = if number % 500 == 7 { "nowhere" } else { "aside" };
        let key = ElementKey { table: ruleset.key.clone(), set: name("verdicts"), key: port(number).into() };
        table.want(RowKey::Element(key), Some(Element::verdict(Verdict::Goto(name(to))).into()));
    }
    let pass = run(&mut table);
    assert_eq!((pass.upserted, pass.failed), (1 + 1996, 4), "{:?}", pass.errors);
    let text = pass.errors[0].to_string();
    assert!(text.contains("create nft element ip everything @verdicts { tcp . 7 }"), "{text}");
    assert!(text.contains("its set or the chain that it names does not exist"), "{text}");
    let found = Nft::open().unwrap().ruleset(&ruleset.key).unwrap().unwrap();
    assert_eq!(found.elements.len(), 1996);
}

fn static_part_that_fails_leaves_everything_as_it_was() {
    let mut ruleset = everything(Family::Ip);
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    let before = nft("-a list ruleset");
    let good = Rule::new().then(Verdict::Drop);
    let bad = Rule::new().when(Match::Lookup(Op::Is, vec![Field::Dport], name("absent"))).then(Verdict::Drop);
    ruleset.table.chains.insert(name("aside"), Chain::regular(vec![good, bad]));
    table.want_all(ruleset.rows());
    let pass = run(&mut table);
    assert_eq!(pass.failed, 1);
    assert!(pass.errors[0].to_string().starts_with("nft: change nft table ip everything: "), "{}", pass.errors[0]);
    assert_eq!(nft("-a list ruleset"), before);
}

fn element_that_would_not_read_back_is_refused_before_the_kernel_takes_it() {
    let mut ruleset = host_ports(Family::Ip);
    ruleset.insert(name("ports"), vec![Datum::Port(80), Datum::Port(81)], endpoint(3, 80));
    ruleset.insert(name("ports"), port(81), endpoint(3, 81).comment("x".repeat(129)));
    ruleset.insert(name("ports"), port(82), endpoint(3, 82).comment("x".repeat(128)));
    let pass = run(&mut reconciler(&ruleset));
    assert_eq!((pass.upserted, pass.failed), (2, 2));
    assert!(pass.errors[0].to_string().contains("is not at most 128 bytes"), "{}", pass.errors[0]);
    assert!(pass.errors[1].to_string().contains("has not the types that set ports declares"), "{}", pass.errors[1]);
}

fn steps_are_idempotent() {
    let mut ruleset = host_ports(Family::Ip);
    ruleset.insert(name("ports"), port(80), endpoint(3, 80));
    let steps: Vec<_> = ruleset.rows().into_iter().map(|(key, row)| Step::Create(key, row)).collect();
    let mut target = tables(&[&ruleset.key]);
    let all_ok = |results: Vec<Result<(), KernelError>>| {
        results.into_iter().for_each(|result| result.unwrap());
    };
    all_ok(target.apply(&steps));
    all_ok(target.apply(&steps));
    // Somebody else's value under our key.
    nft("delete element ip netd-cni ports { tcp . 80 }");
    nft("add element ip netd-cni ports { tcp . 80 : 10.9.9.9 . 9 }");
    all_ok(target.apply(&steps));
    assert_eq!(Nft::open().unwrap().ruleset(&ruleset.key).unwrap(), Some(ruleset.clone()));
    let remove = |(key, row)| Step::Remove(key, row);
    let mut removals: Vec<_> = ruleset.rows().into_iter().map(remove).collect();
    removals.reverse();
    all_ok(target.apply(&removals[..1]));
    all_ok(target.apply(&removals));
    all_ok(target.apply(&removals));
    assert_eq!(nft("list tables"), "");
}

fn ten_thousand_elements_go_in_and_out() {
    let mut ruleset = host_ports(Family::Ip);
    for number in 1..=10_000 {
        ruleset.insert(name("ports"), port(number), endpoint(3, number).comment(format!("pod-{number}")));
    }
    let mut table = reconciler(&ruleset);
    let mut nft_ = Nft::open().unwrap();
    let before = nft_.generation().unwrap();
    assert_eq!(run(&mut table).upserted, 10_001);
    assert_eq!(nft_.generation().unwrap(), before + 1, "one transaction");
    table.invalidate();
    assert!(run(&mut table).is_idle());
    ruleset.elements.clear();
    table.want_all(ruleset.rows());
    assert_eq!(converge(&mut table).removed, 10_000);
    assert_same(&listed(&ruleset.key), &ruleset.render());
}

const INSIDE: &str = "NFT_TEST_IN_USER_NAMESPACE";

/// In a user namespace nobody may go beyond net.core.wmem_max, so the case runs itself again in one.
fn more_than_the_send_buffer_takes_goes_in_by_parts() {
    if std::env::var_os(INSIDE).is_some() {
        return fill_a_set_beyond_the_send_buffer();
    }
    let probe = Command::new("unshare").args(["-U", "-r", "-n", "true"]).status().unwrap();
    assert!(probe.success(), "user namespaces are needed here; kernel.unprivileged_userns_clone may forbid them");
    let output = Command::new("unshare")
        .args(["-U", "-r", "-n"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "more_than_the_send_buffer_takes_goes_in_by_parts"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn fill_a_set_beyond_the_send_buffer() {
    use nix::sys::socket::{getsockopt, setsockopt, sockopt};
    let any = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    setsockopt(&any, sockopt::SndBuf, &(1 << 30)).unwrap();
    let limit = u32::try_from(getsockopt(&any, sockopt::SndBuf).unwrap()).unwrap();
    // An element with a long comment is over 150 bytes.
    let count = (limit / 150).max(1000);
    let mut ruleset = everything(Family::Ip);
    for mark in 0..count {
        ruleset.insert(name("marks"), vec![Datum::Mark(mark)], Element::member().comment("x".repeat(127)));
    }
    let mut table = reconciler(&ruleset);
    let mut nft = Nft::open().unwrap();
    let before = nft.generation().unwrap();
    assert_eq!(converge(&mut table).upserted, count as usize + 1);
    assert!(nft.generation().unwrap() > before + 1, "{count} elements were no more than one transaction takes");
}

/// The static part of `ruleset`, whatever is there.
fn as_declared(ruleset: &Ruleset) -> impl Fn(Option<&Table>) -> Table + use<> {
    let table = ruleset.table.clone();
    move |_| table.clone()
}

fn claim_is_one_request_and_makes_what_is_missing() {
    let mut ruleset = host_ports(Family::Ip);
    ruleset.insert(name("ports"), port(8080), endpoint(3, 80).comment("pod-a"));
    let mut nft = Nft::open().unwrap();
    let mine = |owner: &'static str| move |_: &ElementKey, element: &Element| element.comment.as_deref() == Some(owner);
    nft.claim(&ruleset, as_declared(&ruleset), mine("pod-a")).unwrap();
    assert_eq!(nft.ruleset(&ruleset.key).unwrap(), Some(ruleset.clone()));

    // Again, and with another value: the claim is the same owner's.
    nft.claim(&ruleset, as_declared(&ruleset), mine("pod-a")).unwrap();
    ruleset.insert(name("ports"), port(8080), endpoint(4, 81).comment("pod-a"));
    nft.claim(&ruleset, as_declared(&ruleset), mine("pod-a")).unwrap();
    assert_eq!(nft.ruleset(&ruleset.key).unwrap(), Some(ruleset.clone()));

    // With the very same data, after the address came to another Pod, it is still the first one's.
    let mut other = host_ports(Family::Ip);
    other.insert(name("ports"), port(8080), endpoint(4, 81).comment("pod-b"));
    assert!(matches!(nft.claim(&other, as_declared(&other), mine("pod-b")), Err(ClaimError::Held { .. })));
    other.insert(name("ports"), port(8080), endpoint(5, 80).comment("pod-b"));
    other.insert(name("ports"), port(8081), endpoint(5, 81).comment("pod-b"));
    match nft.claim(&other, as_declared(&other), mine("pod-b")) {
        Err(ClaimError::Held { key, by }) => {
            assert_eq!((&*key.key, by.as_deref()), (&*port(8080), Some("pod-a")));
        }
        result => panic!("{result:?}"),
    }
    assert_eq!(nft.ruleset(&ruleset.key).unwrap(), Some(ruleset.clone()), "all or none");

    other.elements.retain(|key, _| *key.key == *port(8081));
    let before = nft.generation().unwrap();
    nft.claim(&other, as_declared(&other), mine("pod-b")).unwrap();
    assert_eq!(nft.generation().unwrap(), before + 1);
    let gone = nft.release(&ruleset.key, mine("pod-a")).unwrap();
    assert_eq!(gone, ruleset.elements.into_iter().collect::<Vec<_>>());
    assert_eq!(nft.ruleset(&other.key).unwrap(), Some(other.clone()));
    assert_eq!(nft.release(&other.key, mine("pod-a")).unwrap(), vec![]);
    assert_eq!(nft.release(&table_key(Family::Ip6, "absent"), mine("pod-a")).unwrap(), vec![]);
}

fn claims_made_at_the_same_time_all_hold() {
    let namespace = kernel::Netns::open(std::path::Path::new("/proc/thread-self/ns/net")).unwrap();
    let owners: Vec<String> = (0..8u16).map(|number| format!("pod-{number}")).collect();
    std::thread::scope(|scope| {
        for (number, owner) in (0u16..).zip(&owners) {
            let namespace = &namespace;
            scope.spawn(move || {
                namespace.enter().unwrap();
                let mut nft = Nft::open().unwrap();
                for round in 0..20 {
                    let mut ruleset = host_ports(Family::Ip);
                    let key = port(1000 + number * 100 + round);
                    ruleset.insert(name("ports"), key, endpoint(3, 80).comment(owner.clone()));
                    nft.claim(&ruleset, as_declared(&ruleset), |_: &ElementKey, e: &Element| {
                        e.comment.as_deref() == Some(owner.as_str())
                    })
                    .unwrap();
                }
            });
        }
    });
    let found = Nft::open().unwrap().ruleset(&host_ports(Family::Ip).key).unwrap().unwrap();
    assert_eq!(found.elements.len(), 160);
    assert_eq!(found.table, host_ports(Family::Ip).table);
}

fn static_part_is_put_right_without_losing_elements() {
    let mut ruleset = host_ports(Family::Ip);
    ruleset.insert(name("ports"), port(8080), endpoint(3, 80).comment("pod-a"));
    let mut conversation = Nft::open().unwrap();
    assert!(conversation.ensure(&ruleset.key, &ruleset.table).unwrap());
    assert!(!conversation.ensure(&ruleset.key, &ruleset.table).unwrap());
    conversation.claim(&ruleset, as_declared(&ruleset), |_: &ElementKey, _: &Element| false).unwrap();
    nft("flush chain ip netd-cni prerouting");
    assert!(conversation.ensure(&ruleset.key, &ruleset.table).unwrap());
    assert_eq!(conversation.ruleset(&ruleset.key).unwrap(), Some(ruleset));
}

fn foreign_rules_and_chains_go_as_they_are_picked_and_nothing_else_does() {
    nft_load(
        "table ip foreign {
            chain three { }
            chain two { jump three; }
            chain one { counter; }
            chain top {
                jump one comment \"mine\"
                jump two comment \"other\"
                accept comment \"mine, too\"
            }
        }
        ",
    );
    let key = table_key(Family::Ip, "foreign");
    let mut conversation = Nft::open().unwrap();
    let has = |conversation: &mut Nft, chain: &'static str| conversation.has_chain(&key, &name(chain)).unwrap();
    let rules = |conversation: &mut Nft| -> usize {
        let table = conversation.ruleset(&key).unwrap().unwrap().table;
        table.chains.values().map(|chain| chain.rules.len()).sum()
    };
    let none = BTreeSet::new();
    conversation.remove_foreign(&key, &none, |_| Fate::Stay).unwrap();
    assert_eq!(rules(&mut conversation), 5);
    let said = |rule: &ForeignRule, text: &str| rule.comment.as_deref() == Some(text);
    let fate = |rule: &ForeignRule| if said(rule, "mine") { Fate::GoWithTarget } else { Fate::Stay };
    conversation.remove_foreign(&key, &none, fate).unwrap();
    assert!(!has(&mut conversation, "one") && has(&mut conversation, "two"));
    assert_eq!(rules(&mut conversation), 3);
    let fate = |rule: &ForeignRule| if said(rule, "mine, too") { Fate::Go } else { Fate::Stay };
    // A chain that is not there is no error; what jumps to one that goes, goes.
    let chains = BTreeSet::from([name("three"), name("absent")]);
    conversation.remove_foreign(&key, &chains, fate).unwrap();
    assert!(!has(&mut conversation, "three"));
    assert_eq!(rules(&mut conversation), 1, "the jump of somebody else to a chain that stays");
    let absent = table_key(Family::Ip6, "absent");
    assert!(!conversation.has_table(&absent).unwrap() && conversation.has_table(&key).unwrap());
    conversation.remove_foreign(&absent, &chains, |_| Fate::Go).unwrap();
}

fn elements_are_removed_by_key_only_while_the_ruleset_is_the_same() {
    let mut ruleset = host_ports(Family::Ip);
    for number in [8080, 8081] {
        ruleset.insert(name("ports"), port(number), endpoint(3, 80).comment("pod-a"));
    }
    let mut conversation = Nft::open().unwrap();
    assert!(!conversation.claim_free(&ruleset).unwrap(), "the table is missing");
    assert!(!conversation.reshape(&ruleset.key, |_| ruleset.table.clone()).unwrap(), "and is not made");
    conversation.claim(&ruleset, as_declared(&ruleset), |_: &ElementKey, _: &Element| false).unwrap();
    assert!(!conversation.claim_free(&ruleset).unwrap(), "taken, even by the same data");
    let keys: Vec<ElementKey> = ruleset.elements.keys().cloned().collect();
    let generation = conversation.generation().unwrap();
    assert!(conversation.remove(&ruleset.key, &keys[..1], generation).unwrap());
    assert!(!conversation.remove(&ruleset.key, &keys[1..], generation).unwrap(), "of another generation");
    let generation = conversation.generation().unwrap();
    assert!(!conversation.remove(&ruleset.key, &keys, generation).unwrap(), "one of them is not there");
    assert_eq!(conversation.ruleset(&ruleset.key).unwrap().unwrap().elements.len(), 1, "all or none");
    assert!(conversation.tables(Family::Ip).unwrap().contains(&ruleset.key));
    conversation.remove_table(&ruleset.key, |found| found.elements.is_empty()).unwrap();
    assert!(conversation.has_table(&ruleset.key).unwrap(), "it holds something");
    assert!(conversation.remove(&ruleset.key, &keys[1..], generation).unwrap());
    conversation.remove_table(&ruleset.key, |found| found.elements.is_empty()).unwrap();
    assert!(!conversation.has_table(&ruleset.key).unwrap());
    conversation.remove_table(&ruleset.key, |_| true).unwrap();
}

fn flushed_ruleset_is_noticed_and_put_back_and_own_changes_are_not_reported() {
    let mut ruleset = host_ports(Family::Ip);
    ruleset.insert(name("ports"), port(8080), endpoint(3, 80));
    let mut table = reconciler(&ruleset);
    let own = table.target_mut().nft_mut().port().unwrap();
    let mut monitor = Monitor::open(BTreeSet::from([own]), Writers::default()).unwrap();
    converge(&mut table);
    assert_eq!(monitor.read().unwrap(), BTreeSet::new(), "our own changes");
    nft("flush ruleset");
    assert!(reports_change_of(&mut monitor, &ruleset.key));
    table.invalidate();
    converge(&mut table);
    assert_same(&listed(&ruleset.key), &ruleset.render());

    // One element, as somebody tidying up would take it.
    nft("delete element ip netd-cni ports { tcp . 8080 }");
    assert!(reports_change_of(&mut monitor, &ruleset.key));
    table.invalidate();
    assert_eq!(converge(&mut table).upserted, 1);
}

/// On tokio, as the daemons listen.
#[cfg(feature = "watch")]
fn stream_reports_every_change_by_others() {
    let key = table_key(Family::Ip, "other");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut stream = kernel::nft::Stream::open(BTreeSet::new(), Writers::default()).unwrap();
        for command in ["add table ip other", "add chain ip other c", "flush ruleset"] {
            nft(command);
            let told = tokio::time::timeout(Duration::from_secs(5), stream.next()).await.unwrap().unwrap();
            assert!(
                told.iter().any(|change| matches!(change, Change::Table { table, .. } if *table == key)),
                "{told:?}"
            );
        }
        let silence = tokio::time::timeout(Duration::from_millis(50), stream.next()).await;
        assert!(silence.is_err(), "{silence:?}");
    });
}

fn main() -> ExitCode {
    #[cfg_attr(not(feature = "watch"), expect(unused_mut, reason = "one more case with the feature"))]
    let mut cases = cases![
        rendered_text_is_what_the_tool_lists_and_reads_back_as_desired,
        elements_of_every_type_read_back_and_are_listed_as_rendered,
        bridge_table_with_hardware_addresses_is_what_the_tool_lists_and_reads_back,
        chain_of_a_link_is_what_the_tool_lists_and_reads_back,
        chain_of_a_link_is_put_right_when_the_link_goes_and_follows_to_another_one,
        ruleset_loaded_by_the_tool_from_our_text_is_equal_to_ours,
        one_changed_element_is_one_message_and_leaves_the_others,
        one_changed_rule_touches_one_chain,
        changed_policy_is_set_in_place_and_changed_hook_makes_a_new_chain,
        set_declared_otherwise_comes_with_its_new_elements_in_one_transaction,
        set_with_another_flag_is_made_anew_under_its_rules_and_keeps_its_elements,
        element_in_place_of_another_goes_on_with_what_that_has_counted,
        chain_that_verdicts_still_name_goes_when_they_are_gone,
        foreign_tables_are_never_touched,
        hand_made_rules_and_sets_in_our_table_are_put_right,
        bad_element_fails_alone_and_the_rest_is_carried_out,
        static_part_that_fails_leaves_everything_as_it_was,
        element_that_would_not_read_back_is_refused_before_the_kernel_takes_it,
        steps_are_idempotent,
        ten_thousand_elements_go_in_and_out,
        more_than_the_send_buffer_takes_goes_in_by_parts,
        claim_is_one_request_and_makes_what_is_missing,
        claims_made_at_the_same_time_all_hold,
        static_part_is_put_right_without_losing_elements,
        foreign_rules_and_chains_go_as_they_are_picked_and_nothing_else_does,
        elements_are_removed_by_key_only_while_the_ruleset_is_the_same,
        flushed_ruleset_is_noticed_and_put_back_and_own_changes_are_not_reported,
    ]
    .to_vec();
    #[cfg(feature = "watch")]
    cases.push(("stream_reports_every_change_by_others", stream_reports_every_change_by_others as fn()));
    common::main(&cases)
}
