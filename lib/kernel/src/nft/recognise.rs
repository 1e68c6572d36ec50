//! From instructions back to statements: the inverse of the compiler.
//!
//! Invariant: what is recognised compiles to the instructions it was recognised in. What is not becomes
//! [`Statement::Unknown`], never an error: the rule is unequal to every desired one, and the loop writes it anew.

use std::net::IpAddr;

use netstate::ipvs::Protocol;
use netstate::nft::{
    CtState, CtStatus, Destination, Family, Field, MarkChange, Match, Name, NetworkFamily, Op, Reject, Statement,
};
use netstate::{IfName, Prefix};

use super::compile::{RANDOM_FULLY, RTN_LOCAL, guard, header_of, known_from, load, mask_bytes, reject_code, slots};
use super::expression::{Expression, Found, ct, fib, meta};
use crate::attribute;

/// The statements of a rule in a table of `family`.
pub(super) fn rule(family: Family, mut rest: &[Expression]) -> Vec<Statement> {
    let mut reader = Reader { family, known: known_from(family) };
    let mut statements = Vec::new();
    while let Some(first) = rest.first() {
        let (statement, length) = reader.next(rest).unwrap_or_else(|| (unknown(first), 1));
        statements.push(statement);
        rest = rest.get(length..).unwrap_or_default();
    }
    statements
}

fn unknown(expression: &Expression) -> Statement {
    match expression {
        Expression::Unknown(name) => Statement::Unknown(name.clone()),
        other => Statement::Unknown(format!("{other:?}")),
    }
}

/// A statement and the number of instructions it is made of.
type Recognised = Option<(Statement, usize)>;

struct Reader {
    family: Family,
    /// The network protocol that packets which come this far have for sure.
    known: Option<NetworkFamily>,
}

impl Reader {
    fn next(&mut self, list: &[Expression]) -> Recognised {
        if let Some(found) = self.single(list) {
            return Some((found, 1));
        }
        if let Some(found) = set_mark(list).or_else(|| dnat_fixed(list)) {
            return Some(found);
        }
        if let (None, Some(wanted)) = (self.known, self.guarded(list)) {
            let (statement, length) = self.with_addresses(list.get(2..)?, wanted)?;
            self.known = Some(wanted);
            return Some((statement, length + 2));
        }
        let known = self.known;
        known
            .and_then(|known| self.with_addresses(list, known))
            .or_else(|| lookup(list, None))
            .or_else(|| ct_original(list))
            .or_else(|| port(list))
            .or_else(|| simple(list))
    }

    fn single(&self, list: &[Expression]) -> Option<Statement> {
        Some(match list.first()? {
            Expression::Counter => Statement::Counter,
            Expression::Verdict(verdict) => Statement::Verdict(verdict.clone()),
            Expression::Masquerade { flags: 0 } => Statement::Masquerade { fully_random: false },
            Expression::Masquerade { flags: RANDOM_FULLY } => Statement::Masquerade { fully_random: true },
            Expression::Reject { kind, code } => {
                let same = |reject: &Reject| reject_code(self.family, *reject) == (*kind, *code);
                Statement::Reject([Reject::PortUnreachable, Reject::TcpReset].into_iter().find(same)?)
            }
            _ => return None,
        })
    }

    /// The protocol that the list begins by asking for, when an address of it is read right behind.
    fn guarded(&self, list: &[Expression]) -> Option<NetworkFamily> {
        let wanted = [NetworkFamily::Ip, NetworkFamily::Ip6]
            .into_iter()
            .find(|wanted| list.starts_with(&guard(self.family, *wanted)))?;
        self.with_addresses(list.get(2..)?, wanted).map(|_| wanted)
    }

    /// A statement that reads an address from the network header `known`.
    fn with_addresses(&self, list: &[Expression], known: NetworkFamily) -> Recognised {
        address(list, known).or_else(|| {
            let (statement, length, fields) = lookup_fields(list, Some(known))?;
            fields.iter().any(|field| header_of(*field).is_some()).then_some((statement, length))
        })
    }
}

fn set_mark(list: &[Expression]) -> Recognised {
    let (change, length) = match list {
        [Expression::Immediate { to: 0, data }, Expression::MetaSet { key: meta::MARK, from: 0 }, ..] => {
            (MarkChange::replace(word(data)?), 2)
        }
        [
            Expression::Meta { key: meta::MARK, to: 0 },
            Expression::Bitwise { from: 0, to: 0, mask, xor },
            Expression::MetaSet { key: meta::MARK, from: 0 },
            ..,
        ] if word(mask)? != 0 => (MarkChange { mask: word(mask)?, xor: word(xor)? }, 3),
        _ => return None,
    };
    Some((change.into(), length))
}

fn dnat_fixed(list: &[Expression]) -> Recognised {
    let [Expression::Immediate { to: 0, data }, rest @ ..] = list else { return None };
    let addr = attribute::ip(data)?;
    let number = u32::from(if addr.is_ipv4() { Family::Ip.number() } else { Family::Ip6.number() });
    match rest {
        [Expression::Dnat { family, addr: 0, port: None }, ..] if *family == number => {
            Some((Destination::Fixed(addr, None).into(), 2))
        }
        [Expression::Immediate { to: 4, data }, Expression::Dnat { family, addr: 0, port: Some(4) }, ..]
            if *family == number =>
        {
            Some((Destination::Fixed(addr, Some(half(data)?)).into(), 3))
        }
        _ => None,
    }
}

/// `source or destination address is in a network`.
fn address(list: &[Expression], known: NetworkFamily) -> Recognised {
    let first = list.first()?;
    for field in [Field::Saddr(known), Field::Daddr(known)] {
        if let Some((op, prefix, length)) = prefix_test(first, &load(field, 0), list.get(1..)?) {
            let condition =
                if field == Field::Saddr(known) { Match::Saddr(op, prefix) } else { Match::Daddr(op, prefix) };
            return Some((condition.into(), length));
        }
    }
    None
}

fn ct_original(list: &[Expression]) -> Recognised {
    let first = list.first()?;
    [NetworkFamily::Ip, NetworkFamily::Ip6].into_iter().find_map(|family| {
        let (op, prefix, length) = prefix_test(first, &load(Field::CtOriginalDaddr(family), 0), list.get(1..)?)?;
        // The same bytes are an address of the other family too short: the load says which it is.
        Some((Match::CtOriginalDaddr(op, prefix).into(), length))
    })
}

/// Recognises the comparison with a network behind the load `first`, if that loads what `whole` does, or the leading
/// bytes of it.
fn prefix_test(first: &Expression, whole: &Expression, rest: &[Expression]) -> Option<(Op, Prefix, usize)> {
    let width: usize = match whole {
        Expression::Payload { length, .. } => usize::try_from(*length).ok()?,
        Expression::Ct { key: ct::DST_IP, .. } => 4,
        _ => 16,
    };
    if let [Expression::Bitwise { from: 0, to: 0, mask, xor }, Expression::Compare { from: 0, op, data }, ..] = rest {
        let bits = u8::try_from(mask.iter().map(|byte| byte.count_ones()).sum::<u32>()).ok()?;
        let exact = first == whole && *mask == mask_bytes(bits, width) && xor.iter().all(|byte| *byte == 0);
        // The compiler writes networks of whole bytes without a mask.
        let ours = bits == 0 || !bits.is_multiple_of(8);
        return (exact && ours).then_some((*op, prefix(data, bits, width)?, 3));
    }
    let [Expression::Compare { from: 0, op, data }, ..] = rest else { return None };
    let leading = match (first, whole) {
        (
            Expression::Payload { base, offset, length, to },
            Expression::Payload { base: base_w, offset: offset_w, to: to_w, .. },
        ) => (base, offset, to) == (base_w, offset_w, to_w) && usize::try_from(*length).ok()? == data.len(),
        _ => first == whole,
    };
    let bits = u8::try_from(data.len().checked_mul(8)?).ok()?;
    (leading && bits != 0).then_some((*op, prefix(data, bits, width)?, 2))
}

/// The network whose leading bytes are `bytes`; `None` when bits behind `bits` are set.
fn prefix(bytes: &[u8], bits: u8, width: usize) -> Option<Prefix> {
    let mut addr = bytes.to_vec();
    (addr.len() <= width).then_some(())?;
    addr.resize(width, 0);
    let addr: IpAddr = attribute::ip(&addr)?;
    Prefix::new(addr, bits).ok().filter(|prefix| prefix.addr() == addr)
}

fn port(list: &[Expression]) -> Recognised {
    let [
        Expression::Meta { key: meta::L4PROTO, to: 0 },
        Expression::Compare { from: 0, op: Op::Is, data: protocol },
        load_port,
        Expression::Compare { from: 0, op, data },
        ..,
    ] = list
    else {
        return None;
    };
    let (protocol, port) = (protocol_of(protocol)?, half(data)?);
    let condition = if *load_port == load(Field::Sport, 0) {
        Match::Sport(*op, protocol, port)
    } else if *load_port == load(Field::Dport, 0) {
        Match::Dport(*op, protocol, port)
    } else {
        return None;
    };
    Some((condition.into(), 4))
}

/// A load and a comparison, with or without a mask between them.
fn simple(list: &[Expression]) -> Recognised {
    if let [load, Expression::Bitwise { from: 0, to: 0, mask, xor }, Expression::Compare { from: 0, op, data }, ..] =
        list
    {
        let (mask, xor, value) = (word(mask)?, word(xor)?, word(data)?);
        let condition = match load {
            Expression::Meta { key: meta::MARK, to: 0 } if mask != u32::MAX => Match::Mark(*op, mask, value),
            Expression::Ct { key: ct::STATE, direction: None, to: 0 } if (*op, value) == (Op::IsNot, 0) => {
                Match::CtState(CtState(mask))
            }
            Expression::Ct { key: ct::STATUS, direction: None, to: 0 } if (*op, value) == (Op::IsNot, 0) => {
                Match::CtStatus(CtStatus(mask))
            }
            _ => return None,
        };
        return (xor == 0).then_some((condition.into(), 3));
    }
    let [load, Expression::Compare { from: 0, op, data }, ..] = list else { return None };
    let condition = match load {
        Expression::Meta { key: meta::MARK, to: 0 } => Match::Mark(*op, u32::MAX, word(data)?),
        Expression::Meta { key: meta::NFPROTO, to: 0 } => Match::Nfproto(*op, network_of(data)?),
        Expression::Meta { key: meta::L4PROTO, to: 0 } => Match::L4Proto(*op, protocol_of(data)?),
        Expression::Meta { key: meta::IIFNAME, to: 0 } => Match::Iifname(*op, ifname(data)?),
        Expression::Meta { key: meta::OIFNAME, to: 0 } => Match::Oifname(*op, ifname(data)?),
        Expression::Fib { flags, result: fib::ADDRTYPE, to: 0 } if word(data)? == RTN_LOCAL => match *flags {
            fib::DADDR => Match::DaddrLocal(*op),
            fib::SADDR => Match::SaddrLocal(*op),
            _ => return None,
        },
        _ => return None,
    };
    Some((condition.into(), 2))
}

fn lookup(list: &[Expression], known: Option<NetworkFamily>) -> Recognised {
    lookup_fields(list, known).map(|(statement, length, _)| (statement, length))
}

/// Loads of fields side by side, and what is done with the key they make.
fn lookup_fields(list: &[Expression], known: Option<NetworkFamily>) -> Option<(Statement, usize, Vec<Field>)> {
    let mut fields = Vec::new();
    let mut slot = 0u8;
    while let Some(field) = list.get(fields.len()).and_then(|expression| field_of(expression, slot, known)) {
        fields.push(field);
        slot = slot.saturating_add(slots(field.ty().size()));
    }
    let Some(Expression::Lookup { set, from: 0, to, inverted }) = list.get(fields.len()) else { return None };
    let length = fields.len() + 1;
    if fields.is_empty() {
        return None;
    }
    let (statement, length) = match (to, inverted) {
        (Found::Nothing, inverted) => {
            let op = if *inverted { Op::IsNot } else { Op::Is };
            (Match::Lookup(op, fields.clone(), set.clone()).into(), length)
        }
        (Found::Verdict, false) => (Statement::Vmap(fields.clone(), set.clone()), length),
        (Found::Slot(0), false) => (dnat_map(list.get(length)?, fields.clone(), set)?, length + 1),
        _ => return None,
    };
    Some((statement, length, fields))
}

fn dnat_map(nat: &Expression, fields: Vec<Field>, map: &Name) -> Option<Statement> {
    let Expression::Dnat { family, addr: 0, port } = nat else { return None };
    let family = network_of(&[u8::try_from(*family).ok()?])?;
    let behind = if family == NetworkFamily::Ip { 1 } else { 4 };
    let port = match port {
        None => false,
        Some(slot) if *slot == behind => true,
        Some(_) => return None,
    };
    Some(Destination::Map { family, fields, map: map.clone(), port }.into())
}

fn field_of(expression: &Expression, slot: u8, known: Option<NetworkFamily>) -> Option<Field> {
    let plain = [
        Field::Mark,
        Field::L4Proto,
        Field::Iifname,
        Field::Oifname,
        Field::Sport,
        Field::Dport,
        Field::CtOriginalDaddr(NetworkFamily::Ip),
        Field::CtOriginalDaddr(NetworkFamily::Ip6),
    ];
    let addresses = known.into_iter().flat_map(|known| [Field::Saddr(known), Field::Daddr(known)]);
    plain.into_iter().chain(addresses).find(|field| load(*field, slot) == *expression)
}

/// A 32-bit number in host order.
fn word(data: &[u8]) -> Option<u32> {
    <[u8; 4]>::try_from(data).ok().map(u32::from_ne_bytes)
}

/// A port.
fn half(data: &[u8]) -> Option<u16> {
    <[u8; 2]>::try_from(data).ok().map(u16::from_be_bytes)
}

fn protocol_of(data: &[u8]) -> Option<Protocol> {
    match data {
        [number] => Protocol::from_number(*number),
        _ => None,
    }
}

fn network_of(data: &[u8]) -> Option<NetworkFamily> {
    match data {
        [number] => match Family::from_number(*number)? {
            Family::Ip => Some(NetworkFamily::Ip),
            Family::Ip6 => Some(NetworkFamily::Ip6),
            _ => None,
        },
        _ => None,
    }
}

fn ifname(data: &[u8]) -> Option<IfName> {
    // Shorter data is a wildcard.
    (data.len() == 16).then(|| IfName::new(attribute::text(data)).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribute::Writer;
    use crate::nft::compile;
    use netstate::nft::{Rule, Verdict};

    fn p(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn rules(family: Family) -> Vec<Rule> {
        use NetworkFamily::{Ip, Ip6};
        use Op::{Is, IsNot};
        let ifname = |name: &str| IfName::new(name).unwrap();
        let name = |text| Name::new(text).unwrap();
        let mut conditions = vec![
            Match::Mark(Is, 0x4000, 0x4000),
            Match::Mark(IsNot, u32::MAX, 7),
            Match::L4Proto(IsNot, Protocol::Sctp),
            Match::Iifname(Is, ifname("cbr0")),
            Match::Oifname(IsNot, ifname("flannel.1")),
            Match::Sport(Is, Protocol::Udp, 53),
            Match::Dport(IsNot, Protocol::Tcp, 80),
            Match::DaddrLocal(Is),
            Match::SaddrLocal(IsNot),
            Match::CtState(CtState::ESTABLISHED | CtState::RELATED),
            Match::CtStatus(CtStatus::DNAT),
            Match::CtOriginalDaddr(Is, p("192.168.0.10/32")),
            Match::CtOriginalDaddr(IsNot, p("192.168.0.0/17")),
            Match::CtOriginalDaddr(Is, p("fd00::/8")),
            Match::Lookup(Is, vec![Field::CtOriginalDaddr(Ip6), Field::L4Proto], name("s")),
            Match::Lookup(IsNot, vec![Field::Iifname, Field::Mark], name("s")),
        ];
        for (allowed, low, texts) in [
            (Family::Ip, Ip, ["172.7.0.0/16", "172.7.0.0/17", "0.0.0.0/0", "10.4.7.21/32"]),
            (Family::Ip6, Ip6, ["fd00::/48", "fd00::/63", "::/0", "fd00::1/128"]),
        ] {
            if family == allowed || family == Family::Inet || family == Family::Bridge {
                for text in texts {
                    conditions.push(Match::Saddr(Is, p(text)));
                    conditions.push(Match::Daddr(IsNot, p(text)));
                }
                conditions.push(Match::Lookup(Is, vec![Field::Daddr(low), Field::L4Proto, Field::Dport], name("v")));
            }
        }
        if family == Family::Inet {
            conditions.push(Match::Nfproto(Is, Ip));
            conditions.push(Match::Nfproto(IsNot, Ip6));
        }
        let mut rules: Vec<Rule> =
            conditions.into_iter().map(|condition| Rule::new().when(condition).then(Verdict::Accept)).collect();
        let fields = vec![Field::L4Proto, Field::Dport];
        let statements = [
            Statement::Counter,
            MarkChange::set(0x4000).into(),
            MarkChange::replace(1).into(),
            Statement::Masquerade { fully_random: true },
            Statement::Masquerade { fully_random: false },
            Destination::Fixed("172.7.21.3".parse().unwrap(), Some(80)).into(),
            Destination::Fixed("fd00::3".parse().unwrap(), Some(80)).into(),
            Destination::Fixed("fd00::3".parse().unwrap(), None).into(),
            Destination::Map { family: Ip, fields: fields.clone(), map: name("m"), port: true }.into(),
            Destination::Map { family: Ip6, fields: fields.clone(), map: name("m"), port: true }.into(),
            Destination::Map { family: Ip, fields: fields.clone(), map: name("m"), port: false }.into(),
            Statement::Vmap(fields, name("v")),
            Verdict::Jump(name("c")).into(),
            Verdict::Goto(name("c")).into(),
            Verdict::Return.into(),
            Verdict::Drop.into(),
            Reject::PortUnreachable.into(),
            Reject::TcpReset.into(),
        ];
        rules.extend(statements.into_iter().map(|statement| Rule::new().then(statement)));
        // All in one: what is known of a packet carries over from statement to statement.
        let all: Vec<Statement> = rules.iter().flat_map(|rule| rule.statements.clone()).collect();
        if family == Family::Ip || family == Family::Ip6 {
            rules.push(Rule { statements: all, comment: None });
        }
        rules
    }

    #[test]
    fn every_statement_is_recognised_in_what_it_compiles_to() {
        for family in [Family::Ip, Family::Ip6, Family::Inet, Family::Bridge] {
            for each in rules(family) {
                let program = compile::rule(family, &each).unwrap();
                let mut list = Writer::default();
                program.iter().for_each(|expression| expression.write(&mut list));
                let read = Expression::list(&list.finish());
                assert_eq!(read, program, "{family}: {each:?}");
                assert_eq!(rule(family, &read), each.statements, "{family}");
            }
        }
    }

    #[test]
    fn address_of_the_other_family_is_refused_with_the_reason() {
        let wrong = Rule::new().when(Match::Saddr(Op::Is, p("fd00::/48")));
        assert_eq!(compile::rule(Family::Ip, &wrong).unwrap_err(), "ip6 address where every packet is ip");
        let both = wrong.when(Match::Daddr(Op::Is, p("10.0.0.0/8")));
        assert!(compile::rule(Family::Inet, &both).is_err());
    }

    #[test]
    fn instructions_that_mean_something_else_are_not_taken_for_ours() {
        let [meta, compare] = guard(Family::Inet, NetworkFamily::Ip);
        let half_mask = Expression::Bitwise { from: 0, to: 0, mask: vec![0xff, 0, 0xff, 0], xor: vec![0; 4] };
        let address = Expression::Compare { from: 0, op: Op::Is, data: vec![10, 0, 7, 0] };
        for list in [
            vec![load(Field::Saddr(NetworkFamily::Ip), 0), half_mask, address.clone()],
            vec![load(Field::Saddr(NetworkFamily::Ip), 1), address],
            vec![Expression::Unknown("limit".to_owned())],
            vec![Expression::Masquerade { flags: 4 }],
            vec![Expression::Fib { flags: 8, result: 1, to: 0 }, compare],
            vec![meta],
        ] {
            let statements = rule(Family::Ip, &list);
            assert!(statements.iter().any(|s| matches!(s, Statement::Unknown(_))), "{list:?} is {statements:?}");
        }
    }
}
