//! Recognising keys that are looked up in a set or map.

use netstate::IpFamily;
use netstate::nft::{Destination, Field, Match, Name, Op, Statement};

use super::{Recognised, network_of};
use crate::nft::expression::{Expression, Found};
use crate::nft::field::{load, slots};

pub(super) fn lookup(list: &[Expression], known: Option<IpFamily>) -> Recognised {
    lookup_fields(list, known).map(|(statement, length, _)| (statement, length))
}

/// Loads of fields side by side, and what is done with the key they make.
pub(super) fn lookup_fields(list: &[Expression], known: Option<IpFamily>) -> Option<(Statement, usize, Vec<Field>)> {
    let mut fields = Vec::new();
    let mut slot = 0u8;
    while let Some(field) = list.get(fields.len()).and_then(|expression| field_of(expression, slot, known)) {
        fields.push(field);
        slot = slot.saturating_add(slots(field.ty().size()));
    }
    let length = fields.len() + 1;
    if fields.is_empty() {
        return None;
    }
    let (set, to, inverted) = match list.get(fields.len())? {
        Expression::Lookup { set, from: 0, to, inverted } => (set, to, inverted),
        Expression::Update { set, from: 0, milliseconds } => {
            return Some((update(fields.clone(), set, *milliseconds)?, length, fields));
        }
        _ => return None,
    };
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

fn update(fields: Vec<Field>, set: &Name, milliseconds: u64) -> Option<Statement> {
    let seconds = milliseconds.is_multiple_of(1000).then_some(milliseconds / 1000)?;
    Some(Statement::Update { fields, set: set.clone(), seconds: u32::try_from(seconds).ok()? })
}

fn dnat_map(nat: &Expression, fields: Vec<Field>, map: &Name) -> Option<Statement> {
    let Expression::Dnat { family, addr: 0, port } = nat else { return None };
    let family = network_of(&[u8::try_from(*family).ok()?])?;
    let behind = if family == IpFamily::V4 { 1 } else { 4 };
    let port = match port {
        None => false,
        Some(slot) if *slot == behind => true,
        Some(_) => return None,
    };
    Some(Destination::Map { family, fields, map: map.clone(), port }.into())
}

fn field_of(expression: &Expression, slot: u8, known: Option<IpFamily>) -> Option<Field> {
    if let Expression::Random { below, offset, to } = expression {
        return (*to == slot).then_some(Field::Random { below: *below, offset: *offset });
    }
    let plain = [
        Field::Mark,
        Field::L4Proto,
        Field::Iifname,
        Field::Oifname,
        Field::EtherSaddr,
        Field::Sport,
        Field::Dport,
        Field::CtOriginalDaddr(IpFamily::V4),
        Field::CtOriginalDaddr(IpFamily::V6),
    ];
    let addresses = known.into_iter().flat_map(|known| [Field::Saddr(known), Field::Daddr(known)]);
    plain.into_iter().chain(addresses).find(|field| load(*field, slot) == *expression)
}
