//! From a rule to the instructions that carry it out, the same that the nft tool 1.0.6 makes, so that the tool shows the
//! rule as we wrote it.

use netstate::nft::{Destination, Family, Field, MarkChange, Match, Op, Reject, Rule, Statement};
use netstate::{IpFamily, Prefix, Protocol};

use super::expression::{Expression, Found, ct, fib, meta};
use super::field::{
    ACK, RANDOM_FULLY, RTN_LOCAL, SYN, TCP_FLAGS, addr_bytes, guard, header_of, known_from, load, mask_bytes,
    name_bytes, reject_code, slots, whole,
};
use super::wire::check_comment;

/// Why a rule cannot be written, in words.
pub(super) type Unwritable = String;

/// The instructions of `rule` in a table of `family`.
pub(super) fn rule(family: Family, rule: &Rule) -> Result<Vec<Expression>, Unwritable> {
    check_comment(rule.comment.as_deref())?;
    let mut program = Program { family, known: known_from(family), list: Vec::new() };
    for statement in &rule.statements {
        program.statement(statement)?;
    }
    Ok(program.list)
}

struct Program {
    family: Family,
    /// The network protocol that packets which come this far have for sure.
    known: Option<IpFamily>,
    list: Vec<Expression>,
}

impl Program {
    fn statement(&mut self, statement: &Statement) -> Result<(), Unwritable> {
        match statement {
            Statement::Match(condition) => return self.matching(condition),
            Statement::Counter => self.list.push(Expression::Counter),
            Statement::SetMark(change) => self.set_mark(*change),
            Statement::Masquerade { fully_random } => {
                let flags = if *fully_random { RANDOM_FULLY } else { 0 };
                self.list.push(Expression::Masquerade { flags });
            }
            Statement::Dnat(destination) => return self.dnat(destination),
            Statement::Vmap(fields, map) => {
                self.load_all(fields)?;
                self.list.push(Expression::Lookup { set: map.clone(), from: 0, to: Found::Verdict, inverted: false });
            }
            Statement::Update { fields, set, seconds } => {
                self.load_all(fields)?;
                let milliseconds = u64::from(*seconds) * 1000;
                self.list.push(Expression::Update { set: set.clone(), from: 0, milliseconds });
            }
            Statement::Notrack => self.list.push(Expression::Notrack),
            Statement::Offload(flowtable) => self.list.push(Expression::Offload(flowtable.clone())),
            Statement::Verdict(verdict) => self.list.push(Expression::Verdict(verdict.clone())),
            Statement::Reject(reject) => self.reject(*reject),
            Statement::Unknown(text) => return Err(format!("statement {text:?} is known from listings only")),
        }
        Ok(())
    }

    fn matching(&mut self, condition: &Match) -> Result<(), Unwritable> {
        match condition {
            Match::Mark(op, mask, value) => self.mark(*op, *mask, *value),
            Match::Nfproto(op, wanted) => {
                let [meta, compare] = guard(Family::Inet, *wanted);
                self.list.push(meta);
                self.list.push(with_op(compare, *op));
            }
            Match::L4Proto(op, protocol) => self.compare(load(Field::L4Proto, 0), *op, vec![protocol.number()]),
            Match::Iifname(op, name) => self.compare(load(Field::Iifname, 0), *op, name_bytes(name)),
            // Without the zero behind it any name may go on there.
            Match::IifnamePrefix(op, prefix) => {
                self.compare(load(Field::Iifname, 0), *op, prefix.as_str().as_bytes().to_vec());
            }
            Match::Oifname(op, name) => self.compare(load(Field::Oifname, 0), *op, name_bytes(name)),
            Match::Saddr(op, prefix) => self.prefix(Field::Saddr(prefix.family()), *op, prefix)?,
            Match::Daddr(op, prefix) => self.prefix(Field::Daddr(prefix.family()), *op, prefix)?,
            Match::Whole(family) => {
                self.ensure(Field::Daddr(*family))?;
                self.list.extend(whole(*family));
            }
            Match::Sport(op, protocol, port) => self.port(Field::Sport, *op, *protocol, *port),
            Match::Dport(op, protocol, port) => self.port(Field::Dport, *op, *protocol, *port),
            Match::TcpSyn(op) => {
                self.compare(load(Field::L4Proto, 0), Op::Is, vec![Protocol::Tcp.number()]);
                self.masked(TCP_FLAGS, vec![SYN | ACK], *op, vec![SYN]);
            }
            Match::DaddrLocal(op) => self.local(fib::DADDR, *op),
            Match::SaddrLocal(op) => self.local(fib::SADDR, *op),
            Match::CtState(state) => self.ct_bits(ct::STATE, state.0),
            Match::CtDirection(direction) => {
                let load = Expression::Ct { key: ct::DIRECTION, direction: None, to: 0 };
                self.compare(load, Op::Is, vec![direction.number()]);
            }
            Match::CtStatus(status) => self.ct_bits(ct::STATUS, status.0),
            Match::CtOriginalDaddr(op, prefix) => {
                self.prefix(Field::CtOriginalDaddr(prefix.family()), *op, prefix)?;
            }
            Match::OneOf(count) => {
                let random = load(Field::Random { below: *count, offset: 0 }, 0);
                self.compare(random, Op::Is, vec![0; 4]);
            }
            Match::Lookup(op, fields, set) => {
                self.load_all(fields)?;
                let inverted = *op == Op::IsNot;
                self.list.push(Expression::Lookup { set: set.clone(), from: 0, to: Found::Nothing, inverted });
            }
        }
        Ok(())
    }

    fn compare(&mut self, load: Expression, op: Op, data: Vec<u8>) {
        self.list.push(load);
        self.list.push(Expression::Compare { from: 0, op, data });
    }

    fn masked(&mut self, load: Expression, mask: Vec<u8>, op: Op, data: Vec<u8>) {
        let xor = vec![0; mask.len()];
        self.list.push(load);
        self.list.push(Expression::Bitwise { from: 0, to: 0, mask, xor });
        self.list.push(Expression::Compare { from: 0, op, data });
    }

    fn mark(&mut self, op: Op, mask: u32, value: u32) {
        let (load, value) = (load(Field::Mark, 0), value.to_ne_bytes().to_vec());
        if mask == u32::MAX {
            self.compare(load, op, value);
        } else {
            self.masked(load, mask.to_ne_bytes().to_vec(), op, value);
        }
    }

    /// Lets only packets with the header go on that `field` is read from.
    fn ensure(&mut self, field: Field) -> Result<(), Unwritable> {
        if field == Field::EtherSaddr && self.family != Family::Bridge {
            // Elsewhere a packet may have come over a link without hardware addresses.
            return Err(format!("hardware address in a table of family {}", self.family));
        }
        let Some(wanted) = header_of(field) else { return Ok(()) };
        match self.known {
            Some(known) if known == wanted => Ok(()),
            Some(known) => Err(format!("{wanted} address where every packet is {known}")),
            None => {
                self.list.extend(guard(self.family, wanted));
                self.known = Some(wanted);
                Ok(())
            }
        }
    }

    /// A network of whole bytes is compared in these bytes, any other under a mask.
    fn prefix(&mut self, field: Field, op: Op, prefix: &Prefix) -> Result<(), Unwritable> {
        self.ensure(field)?;
        let (bits, load, bytes) = (prefix.len(), load(field, 0), addr_bytes(prefix.addr()));
        if bits == 0 || !bits.is_multiple_of(8) {
            let mask = mask_bytes(bits, bytes.len());
            self.masked(load, mask, op, bytes);
            return Ok(());
        }
        let bytes: Vec<u8> = bytes.into_iter().take(usize::from(bits / 8)).collect();
        let load = match load {
            Expression::Payload { base, offset, to, .. } => {
                Expression::Payload { base, offset, length: u32::from(bits / 8), to }
            }
            other => other,
        };
        self.compare(load, op, bytes);
        Ok(())
    }

    fn port(&mut self, field: Field, op: Op, protocol: Protocol, port: u16) {
        self.compare(load(Field::L4Proto, 0), Op::Is, vec![protocol.number()]);
        self.compare(load(field, 0), op, port.to_be_bytes().to_vec());
    }

    fn local(&mut self, flags: u32, op: Op) {
        let load = Expression::Fib { flags, result: fib::ADDRTYPE, to: 0 };
        self.compare(load, op, RTN_LOCAL.to_ne_bytes().to_vec());
    }

    fn ct_bits(&mut self, key: u32, bits: u32) {
        let load = Expression::Ct { key, direction: None, to: 0 };
        self.masked(load, bits.to_ne_bytes().to_vec(), Op::IsNot, vec![0; 4]);
    }

    fn load_all(&mut self, fields: &[Field]) -> Result<(), Unwritable> {
        for field in fields {
            self.ensure(*field)?;
        }
        let mut slot = 0u8;
        for field in fields {
            self.list.push(load(*field, slot));
            slot = slot.saturating_add(slots(field.ty().size()));
        }
        if fields.is_empty() || slot > 16 {
            return Err("a key has at least one field and at most 64 bytes".to_owned());
        }
        Ok(())
    }

    fn set_mark(&mut self, change: MarkChange) {
        if change.mask == 0 {
            self.list.push(Expression::Immediate { to: 0, data: change.xor.to_ne_bytes().to_vec() });
        } else {
            let (mask, xor) = (change.mask.to_ne_bytes().to_vec(), change.xor.to_ne_bytes().to_vec());
            self.list.push(load(Field::Mark, 0));
            self.list.push(Expression::Bitwise { from: 0, to: 0, mask, xor });
        }
        self.list.push(Expression::MetaSet { key: meta::MARK, from: 0 });
    }

    fn dnat(&mut self, destination: &Destination) -> Result<(), Unwritable> {
        let (family, addr_slots, port) = match destination {
            Destination::Fixed(addr, port) => {
                let bytes = addr_bytes(*addr);
                let behind = slots(bytes.len()).max(4);
                self.list.push(Expression::Immediate { to: 0, data: bytes });
                if let Some(port) = port {
                    self.list.push(Expression::Immediate { to: behind, data: port.to_be_bytes().to_vec() });
                }
                (if addr.is_ipv4() { IpFamily::V4 } else { IpFamily::V6 }, behind, port.is_some())
            }
            Destination::Map { family, fields, map, port } => {
                self.load_all(fields)?;
                self.list.push(Expression::Lookup { set: map.clone(), from: 0, to: Found::Slot(0), inverted: false });
                (*family, if *family == IpFamily::V4 { 1 } else { 4 }, *port)
            }
        };
        let number = if family == IpFamily::V4 { Family::Ip.number() } else { Family::Ip6.number() };
        self.list.push(Expression::Dnat { family: u32::from(number), addr: 0, port: port.then_some(addr_slots) });
        Ok(())
    }

    fn reject(&mut self, reject: Reject) {
        let (kind, code) = reject_code(self.family, reject);
        self.list.push(Expression::Reject { kind, code });
    }
}

fn with_op(expression: Expression, op: Op) -> Expression {
    match expression {
        Expression::Compare { from, data, .. } => Expression::Compare { from, op, data },
        other => other,
    }
}

#[cfg(target_endian = "little")]
#[cfg(test)]
mod tests;
