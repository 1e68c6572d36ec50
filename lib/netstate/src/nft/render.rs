//! The text of a table, as `nft -s list table` of nftables 1.0.6 prints it.
//!
//! Sets, chains and elements stand in key order, where the tool keeps the kernel's; sets and chains that are rows of their own
//! come behind the others, as they are made behind them.

mod sets;

use std::fmt::Write;

use self::sets::set;
pub(super) use self::sets::{element_line, set_line};
use super::chain::priority;
use super::{
    Chain, CtDirection, CtState, CtStatus, Destination, Family, Field, Flowtable, Hook, MarkChange, Match, Name, Op,
    Policy, Reject, Rule, Ruleset, Statement, Table, TableKey, Verdict,
};
use crate::prefix::Prefix;
use crate::{IpFamily, Protocol};

/// The whole table.
pub(super) fn ruleset(ruleset: &Ruleset) -> String {
    let sets = |of_rows: bool| ruleset.table.sets.iter().filter(move |(name, _)| name.is_of_row() == of_rows);
    let sets = sets(false).chain(sets(true)).map(|(name, value)| set(ruleset, name, value));
    let chains = |of_rows: bool| ruleset.table.chains.iter().filter(move |(name, _)| name.is_of_row() == of_rows);
    let chains = chains(false).chain(chains(true)).map(|(name, value)| chain(ruleset.key.family, name, value));
    let flowtables = ruleset.table.flowtables.iter().map(|(name, value)| flowtable(name, value));
    let blocks: Vec<String> = sets.chain(flowtables).chain(chains).collect();
    let flags = if ruleset.table.dormant { "\tflags dormant\n\n" } else { "" };
    format!("table {} {{\n{flags}{}}}\n", ruleset.key, blocks.join("\n"))
}

/// The static part of a table on one line, without the table's name. Rules say which family they are about.
pub(super) fn table_line(table: &Table) -> String {
    let key = TableKey { family: Family::Inet, name: Name::observed(String::new()) };
    let whole = Ruleset { table: table.clone(), ..Ruleset::new(key) };
    let text = ruleset(&whole);
    one_line(&text)
}

/// A chain on one line, without its name.
pub(super) fn chain_line(value: &Chain) -> String {
    one_line(&chain(Family::Inet, &Name::observed(String::new()), value))
}

fn one_line(block: &str) -> String {
    let inside = block.split_once('{').map_or(block, |(_, inside)| inside);
    let words: Vec<&str> = inside.split_whitespace().collect();
    format!("{{ {}", words.join(" "))
}

fn flowtable(name: &Name, value: &Flowtable) -> String {
    let priority = priority_text(Family::Netdev, Hook::Ingress, value.priority);
    let mut text = format!("\tflowtable {name} {{\n\t\thook ingress priority {priority}\n");
    let devices: Vec<&str> = value.devices.iter().map(crate::IfName::as_str).collect();
    if !devices.is_empty() {
        text += &format!("\t\tdevices = {{ {} }}\n", devices.join(", "));
    }
    text + "\t}\n"
}

fn chain(family: Family, name: &Name, chain: &Chain) -> String {
    let mut text = format!("\tchain {name} {{\n");
    if let Some(base) = &chain.base {
        let policy = match base.policy {
            Policy::Accept => "accept",
            Policy::Drop => "drop",
        };
        let (kind, hook) = (base.kind.as_str(), base.hook);
        let device = base.device.as_ref().map(|device| format!(" device \"{device}\"")).unwrap_or_default();
        let priority = priority_text(family, hook, base.priority);
        text += &format!("\t\ttype {kind} hook {hook}{device} priority {priority}; policy {policy};\n");
    }
    for each in &chain.rules {
        text += &format!("\t\t{}\n", rule(family, each));
    }
    text + "\t}\n"
}

/// A priority's name if it has one at this hook, with an offset of at most 10 (`prio2str` in src/rule.c of nftables).
fn priority_text(family: Family, at: Hook, priority: i32) -> String {
    let names: &[(&str, i32, Option<Hook>)] = match family {
        Family::Netdev => &[("filter", priority::FILTER, None)],
        Family::Bridge => &[
            ("dstnat", -300, Some(Hook::Prerouting)),
            ("filter", -200, None),
            ("out", 100, Some(Hook::Output)),
            ("srcnat", 300, Some(Hook::Postrouting)),
        ],
        Family::Inet | Family::Ip | Family::Ip6 => &[
            ("raw", priority::RAW, None),
            ("mangle", priority::MANGLE, None),
            ("dstnat", priority::DSTNAT, Some(Hook::Prerouting)),
            ("filter", priority::FILTER, None),
            ("security", priority::SECURITY, None),
            ("srcnat", priority::SRCNAT, Some(Hook::Postrouting)),
        ],
    };
    for (name, value, hook) in names {
        let offset = priority.saturating_sub(*value);
        if hook.is_none_or(|hook| hook == at) && offset.unsigned_abs() <= 10 {
            return match offset {
                0 => (*name).to_owned(),
                1.. => format!("{name} + {offset}"),
                _ => format!("{name} - {}", offset.unsigned_abs()),
            };
        }
    }
    priority.to_string()
}

/// One rule's line.
fn rule(family: Family, rule: &Rule) -> String {
    let next = rule.statements.iter().skip(1).map(Some).chain([None]);
    let shown = rule.statements.iter().zip(next).filter(|(this, next)| !is_implied(family, this, *next));
    let mut words: Vec<String> = shown.map(|(this, _)| statement(this)).collect();
    if let Some(comment) = &rule.comment {
        words.push(format!("comment \"{comment}\""));
    }
    words.join(" ")
}

/// A TCP reset says by itself that only TCP goes there; the tool knows that in tables of one network protocol only.
fn is_implied(family: Family, this: &Statement, next: Option<&Statement>) -> bool {
    let only_tcp = Statement::Match(Match::L4Proto(Op::Is, Protocol::Tcp));
    let reset = Statement::Reject(Reject::TcpReset);
    matches!(family, Family::Ip | Family::Ip6) && *this == only_tcp && next == Some(&reset)
}

fn statement(statement: &Statement) -> String {
    match statement {
        Statement::Match(condition) => matching(condition),
        Statement::Counter => "counter".to_owned(),
        Statement::SetMark(change) => set_mark(*change),
        Statement::Masquerade { fully_random: false } => "masquerade".to_owned(),
        Statement::Masquerade { fully_random: true } => "masquerade fully-random".to_owned(),
        Statement::Dnat(destination) => dnat(destination),
        Statement::Vmap(fields, map) => format!("{} vmap @{map}", concatenation(fields)),
        Statement::Update { fields, set, seconds } => {
            format!("update @{set} {{ {} timeout {} }}", concatenation(fields), time(*seconds))
        }
        Statement::Notrack => "notrack".to_owned(),
        Statement::Offload(flowtable) => format!("flow add @{flowtable}"),
        Statement::Verdict(value) => verdict(value),
        Statement::Reject(Reject::PortUnreachable) => "reject".to_owned(),
        Statement::Reject(Reject::TcpReset) => "reject with tcp reset".to_owned(),
        Statement::Unknown(text) => format!("<{text}>"),
    }
}

fn matching(condition: &Match) -> String {
    match condition {
        Match::Mark(op, u32::MAX, value) => format!("meta mark {}0x{value:08x}", not(*op)),
        Match::Mark(op, mask, value) => format!("meta mark & 0x{mask:08x} {} 0x{value:08x}", compare(*op)),
        Match::Nfproto(op, family) => {
            let version = if *family == IpFamily::V4 { "ipv4" } else { "ipv6" };
            format!("meta nfproto {}{version}", not(*op))
        }
        Match::L4Proto(op, protocol) => format!("meta l4proto {}{protocol}", not(*op)),
        Match::Iifname(op, name) => format!("iifname {}\"{name}\"", not(*op)),
        Match::IifnamePrefix(op, prefix) => format!("iifname {}\"{prefix}*\"", not(*op)),
        Match::Oifname(op, name) => format!("oifname {}\"{name}\"", not(*op)),
        Match::Saddr(op, prefix) => format!("{} saddr {}{}", network(prefix), not(*op), address(prefix)),
        Match::Daddr(op, prefix) => format!("{} daddr {}{}", network(prefix), not(*op), address(prefix)),
        // The tool shows a mask of two bytes as a number.
        Match::Whole(IpFamily::V4) => "ip frag-off & 16383 == 0".to_owned(),
        Match::Whole(IpFamily::V6) => "exthdr frag missing".to_owned(),
        Match::Sport(op, protocol, port) => format!("{protocol} sport {}{port}", not(*op)),
        Match::Dport(op, protocol, port) => format!("{protocol} dport {}{port}", not(*op)),
        Match::TcpSyn(op) => format!("tcp flags {}syn / syn,ack", not(*op)),
        Match::DaddrLocal(op) => format!("fib daddr type {}local", not(*op)),
        Match::SaddrLocal(op) => format!("fib saddr type {}local", not(*op)),
        Match::CtState(state) => format!("ct state {}", ct_state(*state)),
        Match::CtDirection(CtDirection::Original) => "ct direction original".to_owned(),
        Match::CtDirection(CtDirection::Reply) => "ct direction reply".to_owned(),
        Match::CtStatus(status) => format!("ct status {}", ct_status(*status)),
        Match::CtOriginalDaddr(op, prefix) => {
            format!("ct original {} daddr {}{}", network(prefix), not(*op), address(prefix))
        }
        Match::OneOf(count) => format!("numgen random mod {count} 0"),
        Match::Lookup(op, fields, set) => format!("{} {}@{set}", concatenation(fields), not(*op)),
    }
}

/// A time in the tool's units (`time_print` in src/datatype.c of nftables).
fn time(seconds: u32) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let mut rest = seconds;
    let mut text = String::new();
    for (unit, name) in units.into_iter().filter(|(unit, _)| seconds >= *unit) {
        if rest >= unit {
            text += &format!("{}{name}", rest / unit);
            rest %= unit;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

const fn not(op: Op) -> &'static str {
    match op {
        Op::Is => "",
        Op::IsNot => "!= ",
    }
}

const fn compare(op: Op) -> &'static str {
    match op {
        Op::Is => "==",
        Op::IsNot => "!=",
    }
}

/// The header's name in expressions.
const fn header(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "ip",
        IpFamily::V6 => "ip6",
    }
}

fn network(prefix: &Prefix) -> &'static str {
    header(prefix.family())
}

fn address(prefix: &Prefix) -> String {
    if prefix.len() == prefix.width() { prefix.addr().to_string() } else { prefix.to_string() }
}

fn ct_state(state: CtState) -> String {
    let names = [(CtState::INVALID, "invalid"), (CtState::NEW, "new"), (CtState::ESTABLISHED, "established")];
    flags(state.0, names.into_iter().chain([(CtState::RELATED, "related")]).map(|(bit, name)| (bit.0, name)))
}

fn ct_status(status: CtStatus) -> String {
    flags(status.0, [(CtStatus::SNAT.0, "snat"), (CtStatus::DNAT.0, "dnat")].into_iter())
}

/// The names of the bits in `value`; what has no name as one number.
fn flags(value: u32, names: impl Iterator<Item = (u32, &'static str)>) -> String {
    let (mut rest, mut words) = (value, Vec::new());
    for (bit, name) in names.filter(|(bit, _)| value & bit != 0) {
        rest &= !bit;
        words.push(name.to_owned());
    }
    if rest != 0 || value == 0 {
        words.push(format!("0x{rest:x}"));
    }
    words.join(",")
}

fn concatenation(fields: &[Field]) -> String {
    let field = |field: &Field| match field {
        Field::Mark => "meta mark".to_owned(),
        Field::L4Proto => "meta l4proto".to_owned(),
        Field::Iifname => "iifname".to_owned(),
        Field::Oifname => "oifname".to_owned(),
        Field::EtherSaddr => "ether saddr".to_owned(),
        Field::Saddr(family) => format!("{} saddr", header(*family)),
        Field::Daddr(family) => format!("{} daddr", header(*family)),
        Field::Sport => "th sport".to_owned(),
        Field::Dport => "th dport".to_owned(),
        Field::CtOriginalDaddr(family) => format!("ct original {} daddr", header(*family)),
        Field::Random { below, offset: 0 } => format!("numgen random mod {below}"),
        Field::Random { below, offset } => format!("numgen random mod {below} offset {offset}"),
    };
    fields.iter().map(field).collect::<Vec<_>>().join(" . ")
}

/// A mark change in the operators that the language has: `and`, then `xor`, then `or`.
fn set_mark(change: MarkChange) -> String {
    let MarkChange { mask, xor } = change;
    if mask == 0 {
        return format!("meta mark set 0x{xor:08x}");
    }
    let or = !mask & xor;
    let (and, xor) = (mask | or, mask & xor);
    let mut text = "meta mark set meta mark".to_owned();
    for (operator, operand, neutral) in [('&', and, u32::MAX), ('^', xor, 0), ('|', or, 0)] {
        if operand != neutral {
            // Writing to a String does not fail.
            let _ = write!(text, " {operator} 0x{operand:08x}");
        }
    }
    text
}

fn dnat(destination: &Destination) -> String {
    match destination {
        Destination::Fixed(addr, None) => format!("dnat to {addr}"),
        Destination::Fixed(addr, Some(port)) => format!("dnat to {}", std::net::SocketAddr::new(*addr, *port)),
        Destination::Map { family, fields, map, port: true } => {
            format!("dnat {} to {} map @{map}", header(*family), concatenation(fields))
        }
        Destination::Map { fields, map, port: false, .. } => format!("dnat to {} map @{map}", concatenation(fields)),
    }
}

fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Return => "return".to_owned(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::ChainKind;
    use crate::nft::{Datum, Element, Set, TableKey, Type};
    use std::net::Ipv4Addr;

    fn key(family: Family) -> TableKey {
        TableKey { family, name: Name::literal("netd-cni") }
    }

    #[test]
    fn host_ports_are_one_map_and_one_rule() {
        let mut ruleset = Ruleset::new(key(Family::Ip));
        let ports = Name::literal("ports");
        let declared = Set::map(vec![Type::InetProto, Type::InetService], vec![Type::Ipv4Addr, Type::InetService]);
        ruleset.table.sets.insert(ports.clone(), declared);
        let mut chain = Chain::base(ChainKind::Nat, Hook::Prerouting, priority::DSTNAT, Policy::Accept);
        let fields = vec![Field::L4Proto, Field::Dport];
        let map = Destination::Map { family: IpFamily::V4, fields, map: ports.clone(), port: true };
        chain.rules.push(Rule::new().when(Match::DaddrLocal(Op::Is)).then(map));
        ruleset.table.chains.insert(Name::literal("prerouting"), chain);
        let data = vec![Datum::Ipv4(Ipv4Addr::new(172, 7, 21, 3)), Datum::Port(80)];
        let element = Element::value(data).comment("0123abcd/eth0");
        ruleset.insert(ports.clone(), vec![Datum::Protocol(Protocol::Tcp), Datum::Port(8080)], element);
        let data = vec![Datum::Ipv4(Ipv4Addr::new(172, 7, 21, 4)), Datum::Port(53)];
        ruleset.insert(ports, vec![Datum::Protocol(Protocol::Udp), Datum::Port(53)], Element::value(data));
        assert_eq!(
            ruleset.render(),
            "table ip netd-cni {
\tmap ports {
\t\ttype inet_proto . inet_service : ipv4_addr . inet_service
\t\telements = { tcp . 8080 comment \"0123abcd/eth0\" : 172.7.21.3 . 80,
\t\t\t     udp . 53 : 172.7.21.4 . 53 }
\t}

\tchain prerouting {
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t\tfib daddr type local dnat ip to meta l4proto . th dport map @ports
\t}
}
"
        );
        assert_eq!(ruleset.into_rows().count(), 3);
    }

    #[test]
    fn priorities_are_named_where_the_hook_has_the_name() {
        for (hook, value, expected) in [
            (Hook::Prerouting, -100, "dstnat"),
            (Hook::Output, -100, "-100"),
            (Hook::Prerouting, -110, "dstnat - 10"),
            (Hook::Forward, 5, "filter + 5"),
            (Hook::Forward, 77, "77"),
            (Hook::Postrouting, 101, "srcnat + 1"),
            (Hook::Input, i32::MIN, "-2147483648"),
        ] {
            assert_eq!(priority_text(Family::Ip, hook, value), expected);
        }
        assert_eq!(priority_text(Family::Bridge, Hook::Output, 100), "out");
        assert_eq!(priority_text(Family::Bridge, Hook::Input, 0), "0");
        assert_eq!(priority_text(Family::Netdev, Hook::Ingress, -300), "-300");
    }

    #[test]
    fn mark_changes_are_shown_with_the_operators_of_the_language() {
        for (change, text) in [
            (MarkChange::replace(0x4000), "meta mark set 0x00004000"),
            (MarkChange::set(0x4000), "meta mark set meta mark | 0x00004000"),
            (MarkChange::clear(0x4000), "meta mark set meta mark & 0xffffbfff"),
            (MarkChange::flip(0x4000), "meta mark set meta mark ^ 0x00004000"),
            (MarkChange { mask: 0xffff_0fff, xor: 0x4000 }, "meta mark set meta mark & 0xffff4fff | 0x00004000"),
        ] {
            assert_eq!(set_mark(change), text);
        }
    }

    #[test]
    fn times_are_in_the_units_of_the_tool() {
        let known =
            [(0, "0s"), (4, "4s"), (60, "1m"), (90, "1m30s"), (10_800, "3h"), (86_400, "1d"), (90_061, "1d1h1m1s")];
        for (seconds, text) in known {
            assert_eq!(time(seconds), text);
        }
    }
}
