//! From instructions back to statements: the inverse of the compiler.
//!
//! Invariant: what is recognised compiles to the instructions it was recognised in. What is not becomes
//! [`Statement::Unknown`], never an error: the rule is unequal to every desired one, and the loop writes it anew.

mod address;
mod lookup;

use netstate::nft::{
    CtDirection, CtState, CtStatus, Destination, Family, Field, MarkChange, Match, Op, Reject, Statement,
};
use netstate::{IfName, IpFamily, Protocol};

use self::address::{address, ct_original, is_whole};
use self::lookup::{lookup, lookup_fields};
use super::expression::{Expression, ct, fib, meta};
use super::field::{ACK, RANDOM_FULLY, RTN_LOCAL, SYN, TCP_FLAGS, guard, header_of, known_from, load, reject_code};
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
    known: Option<IpFamily>,
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
            .or_else(|| syn(list))
            .or_else(|| simple(list))
    }

    fn single(&self, list: &[Expression]) -> Option<Statement> {
        Some(match list.first()? {
            Expression::Counter => Statement::Counter,
            Expression::Notrack => Statement::Notrack,
            Expression::Offload(flowtable) => Statement::Offload(flowtable.clone()),
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

    /// The protocol that the list begins by asking for, when something of its header is read right behind.
    fn guarded(&self, list: &[Expression]) -> Option<IpFamily> {
        let wanted =
            [IpFamily::V4, IpFamily::V6].into_iter().find(|wanted| list.starts_with(&guard(self.family, *wanted)))?;
        self.with_addresses(list.get(2..)?, wanted).map(|_| wanted)
    }

    /// A statement that reads from the network header `known`.
    fn with_addresses(&self, list: &[Expression], known: IpFamily) -> Recognised {
        address(list, known).or_else(|| is_whole(list, known)).or_else(|| {
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

fn syn(list: &[Expression]) -> Recognised {
    let [
        Expression::Meta { key: meta::L4PROTO, to: 0 },
        Expression::Compare { from: 0, op: Op::Is, data: protocol },
        load,
        Expression::Bitwise { from: 0, to: 0, mask, xor },
        Expression::Compare { from: 0, op, data },
        ..,
    ] = list
    else {
        return None;
    };
    let is_syn = protocol_of(protocol)? == Protocol::Tcp
        && *load == TCP_FLAGS
        && (mask.as_slice(), xor.as_slice(), data.as_slice()) == (&[SYN | ACK], &[0], &[SYN]);
    is_syn.then_some((Match::TcpSyn(*op).into(), 5))
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
        Expression::Ct { key: ct::DIRECTION, direction: None, to: 0 } if *op == Op::Is => {
            let known = [CtDirection::Original, CtDirection::Reply];
            Match::CtDirection(known.into_iter().find(|known| data[..] == [known.number()])?)
        }
        Expression::Random { below, offset: 0, to: 0 } if *op == Op::Is && word(data)? == 0 => Match::OneOf(*below),
        Expression::Meta { key: meta::L4PROTO, to: 0 } => Match::L4Proto(*op, protocol_of(data)?),
        Expression::Meta { key: meta::IIFNAME, to: 0 } => match ifname(data) {
            Some(name) => Match::Iifname(*op, name),
            None => Match::IifnamePrefix(*op, prefix(data)?),
        },
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

fn network_of(data: &[u8]) -> Option<IpFamily> {
    match data {
        [number] => match Family::from_number(*number)? {
            Family::Ip => Some(IpFamily::V4),
            Family::Ip6 => Some(IpFamily::V6),
            _ => None,
        },
        _ => None,
    }
}

fn ifname(data: &[u8]) -> Option<IfName> {
    // What no zero ends is a wildcard; iptables compares one zero, nft as many as there are.
    (data.len() <= 16 && data.ends_with(&[0])).then(|| IfName::new(attribute::text(data)).ok()).flatten()
}

/// What a name begins with: no zero ends it, and it is shorter than the longest name.
fn prefix(data: &[u8]) -> Option<IfName> {
    let is_prefix = data.len() < 15 && !data.contains(&0);
    is_prefix.then(|| IfName::new(std::str::from_utf8(data).ok()?).ok()).flatten()
}

#[cfg(test)]
mod tests;
