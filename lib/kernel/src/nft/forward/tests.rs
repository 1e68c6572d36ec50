//! Rules of foreign chains as the kernel lists them, and the messages that put ours into place.

use netstate::nft::{CtState, Family, Op, Rule, Statement, Verdict};

use super::line::Effect;
use super::*;
use crate::attribute::Writer;
use crate::golden;
use crate::nft::compile;
use crate::nft::expression::{Expression, meta};
use crate::nft::wire::{LIST_ELEM, comment_bytes};

const MARKER: &str = "netd: Pod network";

fn named(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn filter() -> TableKey {
    TableKey { family: Family::Ip, name: named("filter") }
}

/// `-m NAME` or `-j NAME` of iptables.
fn extension(list: &mut Writer, what: &str, name: &str, info: &[u8]) {
    list.nest(LIST_ELEM, |element| {
        element.put_str(1, what);
        element.nest(2, |data| {
            data.put_str(1, name).put(2, &[0, 0, 0, 0]).put(3, info);
        });
    });
}

/// One instruction with nothing but a name.
fn bare(list: &mut Writer, name: &str) {
    list.nest(LIST_ELEM, |element| {
        element.put_str(1, name);
        element.nest(2, |_| {});
    });
}

fn line(comment: Option<&str>, fill: impl FnOnce(&mut Writer)) -> Line {
    let mut body = Writer::default();
    body.put_str(table::NAME, "filter").put_str(rule::CHAIN, "FORWARD").put(rule::HANDLE, &[0, 0, 0, 0, 0, 0, 0, 9]);
    body.nest(rule::EXPRESSIONS, fill);
    if let Some(text) = comment {
        body.put(rule::USERDATA, &comment_bytes(text));
    }
    Line::read(Family::Ip, &body.finish(), MARKER).unwrap()
}

fn compiled(list: &mut Writer, rule: &Rule) {
    compile::rule(Family::Ip, rule).unwrap().iter().for_each(|expression| expression.write(list));
}

fn from(network: &str) -> Rule {
    Rule::new().when(Match::Saddr(Op::Is, network.parse().unwrap()))
}

/// struct xt_comment_info.
fn comment_match(list: &mut Writer, text: &str) {
    let mut info = text.as_bytes().to_vec();
    info.resize(256, 0);
    extension(list, "match", "comment", &info);
}

#[test]
fn own_rule_is_known_in_both_forms() {
    let ours = line(Some(MARKER), |list| compiled(list, &from("172.7.0.0/16").then(Verdict::Accept)));
    assert!(ours.ours && ours.conditional && ours.is_harmless());
    assert_eq!(ours.accepts, Some(Exception::to_all(Accept::From("172.7.0.0/16".parse().unwrap()))));
    let restored = line(None, |list| {
        compiled(list, &from("172.7.0.0/16"));
        comment_match(list, MARKER);
        compiled(list, &Rule::new().then(Statement::Counter).then(Verdict::Accept));
    });
    assert!(restored.ours);
    assert_eq!(restored.accepts, ours.accepts);
    for other in ["", "netd: Pod networks", "ipvs-proxy: Services"] {
        let foreign = line(None, |list| comment_match(list, other));
        assert!(!foreign.ours, "{other:?}");
        assert!(!line(Some(other), |_| {}).ours, "{other:?}");
    }
}

#[test]
fn rule_that_does_more_than_accept_accepts_nothing_we_know() {
    let two = from("172.7.0.0/16").when(Match::Iifname(Op::Is, netstate::IfName::new("eth0").unwrap()));
    assert_eq!(line(Some(MARKER), |list| compiled(list, &two.then(Verdict::Accept))).accepts, None);
    assert_eq!(line(Some(MARKER), |list| compiled(list, &from("172.7.0.0/16").then(Verdict::Drop))).accepts, None);
    let limited = line(Some(MARKER), |list| {
        compiled(list, &from("172.7.0.0/16"));
        bare(list, "limit");
        compiled(list, &Rule::new().then(Verdict::Accept));
    });
    assert_eq!(limited.accepts, None);
    let not = Rule::new().when(Match::Saddr(Op::IsNot, "172.7.0.0/16".parse().unwrap())).then(Verdict::Accept);
    assert_eq!(line(Some(MARKER), |list| compiled(list, &not)).accepts, None);
}

/// As iptables 1.8.9 writes `-i +`.
#[test]
fn what_is_read_and_compared_with_nothing_is_no_condition() {
    let load = |list: &mut Writer| Expression::Meta { key: meta::IIFNAME, to: 0 }.write(list);
    let any = line(None, |list| {
        load(list);
        bare(list, "counter");
        compiled(list, &Rule::new().then(Verdict::Goto(named("FWD_public"))));
    });
    assert!(!any.conditional && any.dispatches && any.effect == Effect::Goto(named("FWD_public")));
    let also = line(None, |list| {
        load(list);
        compiled(list, &from("172.7.0.0/16"));
    });
    assert!(also.conditional);
    let map = line(None, |list| {
        load(list);
        bare(list, "lookup");
    });
    assert!(map.conditional && map.effect == Effect::Map);
}

#[test]
fn effect_of_a_rule_is_what_it_does_with_a_packet() {
    let jump = |verdict: Verdict| line(None, |list| compiled(list, &Rule::new().then(verdict))).effect;
    assert_eq!(jump(Verdict::Accept), Effect::Accept);
    assert_eq!(jump(Verdict::Drop), Effect::Deny);
    assert_eq!(jump(Verdict::Return), Effect::Return);
    assert_eq!(jump(Verdict::Jump(named("x"))), Effect::Jump(named("x")));
    assert_eq!(jump(Verdict::Goto(named("x"))), Effect::Goto(named("x")));
    for (what, name, effect) in [
        ("target", "REJECT", Effect::Deny),
        ("target", "DROP", Effect::Deny),
        ("target", "LOG", Effect::Nothing),
        ("target", "NFLOG", Effect::Nothing),
        ("target", "NFQUEUE", Effect::Unclear),
        ("match", "limit", Effect::Nothing),
    ] {
        assert_eq!(line(None, |list| extension(list, what, name, &[0; 8])).effect, effect, "{what} {name}");
    }
    for (name, effect, conditional) in [
        ("counter", Effect::Nothing, false),
        ("log", Effect::Nothing, false),
        ("reject", Effect::Deny, false),
        ("queue", Effect::Unclear, false),
        ("flow_offload", Effect::Unclear, false),
        ("limit", Effect::Nothing, true),
        ("dynset", Effect::Nothing, true),
        ("lookup", Effect::Map, false),
    ] {
        let read = line(None, |list| bare(list, name));
        assert_eq!((read.effect, read.conditional), (effect, conditional), "{name}");
    }
    assert_eq!(line(None, |_| {}).effect, Effect::Nothing, "an empty rule");
}

#[test]
fn states_as_iptables_writes_them_are_a_condition_we_know() {
    let native = Rule::new().when(Match::CtState(CtState::ESTABLISHED | CtState::RELATED)).then(Verdict::Accept);
    assert_eq!(line(None, |list| compiled(list, &native)).accepts, Some(Exception::to_all(Accept::Established)));
    let ours = written(&Exception::to_all(Accept::Established));
    assert_eq!((ours.ours, ours.accepts), (true, Some(Exception::to_all(Accept::Established))));
    // States and something else besides: another condition.
    let mut info = vec![0; 168];
    info[146] = 1;
    info[147] = 0x10;
    info[150] = 6;
    let other = line(None, |list| {
        extension(list, "match", "conntrack", &info);
        compiled(list, &Rule::new().then(Verdict::Accept));
    });
    assert_eq!((other.conditional, other.accepts), (true, None));
}

/// A rule of ours as it is read again.
fn written(exception: &Exception) -> Line {
    let mut body = Writer::default();
    body.put_str(table::NAME, "filter").put_str(rule::CHAIN, "FORWARD").put(rule::HANDLE, &[9; 8]);
    exception.write(&mut body, &filter(), MARKER).unwrap();
    Line::read(Family::Ip, &body.finish(), MARKER).unwrap()
}

#[test]
fn exception_is_read_as_it_was_written_whatever_conditions_the_denial_has() {
    let eth0 = netstate::IfName::literal("eth0");
    let conditions = [
        Match::Iifname(Op::Is, eth0.clone()),
        Match::Oifname(Op::Is, eth0),
        Match::Daddr(Op::Is, "10.4.7.0/24".parse().unwrap()),
    ];
    let network: netstate::Prefix = "172.7.0.0/16".parse().unwrap();
    for accept in [Accept::From(network), Accept::To(network), Accept::Marked(0x4000), Accept::Established] {
        for of in [&conditions[..0], &conditions[..1], &conditions[1..2], &conditions[2..], &conditions[..]] {
            let exception = Exception { accept: accept.clone(), of: of.to_vec() };
            assert_eq!(written(&exception).accepts.as_ref(), Some(&exception), "{exception}");
        }
    }
    assert_eq!(Exception::read(&[]), None);
}

#[test]
fn accepts_are_written_as_each_kind_of_table_can_read_them() {
    let written = |accept: Accept, table: &TableKey| {
        let mut body = Writer::default();
        Exception::to_all(accept).write(&mut body, table, "m").unwrap();
        golden::tree(&body.finish())
    };
    let from = Accept::From("172.7.0.0/16".parse().unwrap());
    let expected = "\
4:
  1:
    1: 7061796c6f616400
    2:
      1: 00000001
      2: 00000001
      3: 0000000c
      4: 00000002
  1:
    1: 636d7000
    2:
      1: 00000001
      2: 00000000
      3:
        1: ac07
  1:
    1: 696d6d65646961746500
    2:
      1: 00000000
      2:
        2:
          1: 00000001
7: 00026d00
";
    assert_eq!(written(from, &filter()), expected);
    let states = written(Accept::Established, &filter());
    assert!(states.contains("1: 6d6174636800\n"), "match: {states}");
    assert!(states.contains("1: 636f6e6e747261636b00\n      2: 00000003\n"), "conntrack revision 3: {states}");
    let info = format!("{}01000000060000000000000000000000000000000000\n", "00".repeat(146));
    assert!(states.contains(&info), "{states}");
    let native = TableKey { family: Family::Ip, name: named("strict") };
    let states = written(Accept::Established, &native);
    assert!(states.contains("1: 637400\n") && !states.contains("6d6174636800"), "ct: {states}");
    let mark = written(Accept::Marked(0x4000), &filter());
    assert!(mark.contains("1: 6d65746100\n") && mark.contains("00400000"), "{mark}");
}

#[test]
fn networks_concern_tables_of_their_family() {
    let four = Accept::From("172.7.0.0/16".parse().unwrap());
    let six = Accept::To("fd00::/48".parse().unwrap());
    for (family, of_four, of_six) in [(Family::Ip, true, false), (Family::Ip6, false, true), (Family::Inet, true, true)]
    {
        assert_eq!((four.concerns(family), six.concerns(family)), (of_four, of_six), "{family}");
        assert!(Accept::Established.concerns(family) && Accept::Marked(1).concerns(family));
    }
}

fn chain(lines: Vec<Line>, policy: Policy, end: End) -> Chain {
    Chain { ends: Ends::same(end), ..Chain::new(&filter(), &named("FORWARD"), policy, lines) }
}

fn denied_in(chain: &str) -> End {
    End::DeniedIn(judge::Spot { path: vec![named(chain)], at: 0 })
}

fn handled(mut line: Line, handle: u8) -> Line {
    line.handle = vec![0, 0, 0, 0, 0, 0, 0, handle];
    line
}

/// Messages as `+accept before HANDLE`, `+accept last`, `-HANDLE`.
fn planned(chain: &Chain, wanted: &BTreeSet<Accept>) -> Vec<String> {
    let describe = |message: &Message| {
        let attributes = &message.body[4..];
        let number = |kind| crate::attribute::find(attributes, kind).map(|handle| handle[7]);
        match message.kind & 0xff {
            kind::DELRULE => format!("-{}", number(rule::HANDLE).unwrap()),
            kind::NEWRULE => match number(POSITION) {
                Some(handle) => format!("+before {handle}"),
                None => format!("+last {}", message.flags & NLM_F_APPEND != 0),
            },
            other => panic!("message {other}"),
        }
    };
    let wanted: BTreeSet<Exception> = wanted.iter().cloned().map(Exception::to_all).collect();
    plan(chain, &wanted, MARKER).unwrap().iter().map(describe).collect()
}

#[test]
fn own_rules_are_replaced_whole_before_the_denial_of_everything() {
    let wanted = BTreeSet::from([Accept::Marked(1), Accept::Established]);
    let ours = || line(Some(MARKER), |list| compiled(list, &from("172.7.0.0/16").then(Verdict::Accept)));
    let deny = || line(None, |list| bare(list, "reject"));
    let log = || line(None, |list| bare(list, "log"));
    let foreign = || line(None, |list| compiled(list, &from("10.0.0.0/8").then(Verdict::Drop)));
    let open = chain(vec![handled(ours(), 1), handled(foreign(), 2)], Policy::Drop, End::Denied(2));
    assert_eq!(planned(&open, &wanted), ["-1", "+last true", "+last true"]);
    let closed = vec![handled(foreign(), 1), handled(log(), 2), handled(deny(), 3), handled(ours(), 4)];
    let closed = chain(closed, Policy::Accept, End::Denied(2));
    assert_eq!(planned(&closed, &wanted), ["-4", "+before 2", "+before 2"]);
    assert_eq!(planned(&closed, &BTreeSet::new()), ["-4"]);
    // Nothing is denied, or not here: nothing is added.
    let passes = chain(vec![handled(ours(), 1)], Policy::Accept, End::Passes);
    assert_eq!(planned(&passes, &wanted), ["-1"]);
    let within = chain(vec![handled(ours(), 1)], Policy::Accept, denied_in("zones"));
    assert_eq!(planned(&within, &wanted), ["-1"]);
}

#[test]
fn chain_is_desired_only_for_what_it_denies() {
    let wanted: BTreeSet<Accept> = ["172.7.0.0/16", "fd00::/48"]
        .iter()
        .flat_map(|text| [Accept::From(text.parse().unwrap()), Accept::To(text.parse().unwrap())])
        .collect();
    assert_eq!(chain(Vec::new(), Policy::Accept, End::Passes).desired(&wanted), None);
    let drops = chain(Vec::new(), Policy::Drop, End::Denied(0));
    let desired = drops.desired(&wanted).unwrap();
    assert_eq!((desired.accepts.len(), desired.in_place, desired.obstacle), (2, true, None), "IPv4 only");
    assert_eq!(drops.desired(&BTreeSet::new()), None);
    assert_eq!(
        drops.denying().unwrap().to_string(),
        "foreign chain ip filter FORWARD drops forwarded packets by policy"
    );
    let mut zones = chain(Vec::new(), Policy::Accept, denied_in("zones"));
    zones.obstacle = Some("others lead there".to_owned());
    assert_eq!(zones.desired(&wanted).unwrap().obstacle, zones.obstacle);
    assert!(zones.denying().unwrap().to_string().ends_with("in its chain zones"));
    // Its owner sees to a wider network, in one direction, then in both.
    zones.mentioned.push(Match::Saddr(Op::Is, "172.0.0.0/8".parse().unwrap()));
    let left = Exception::to_all(Accept::To("172.7.0.0/16".parse().unwrap()));
    assert_eq!(zones.desired(&wanted).unwrap().accepts, [left].into());
    zones.mentioned.push(Match::Daddr(Op::Is, "172.7.0.0/16".parse().unwrap()));
    assert_eq!(zones.desired(&wanted), None);
    let last = chain(vec![line(None, |list| bare(list, "reject"))], Policy::Accept, End::Denied(0));
    assert!(last.denying().unwrap().to_string().ends_with("by its last rule"));
}
