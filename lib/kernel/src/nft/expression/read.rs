//! Reading the instructions that have more than one part.
//!
//! Invariant: `None` for an instruction of which any part is not understood.

use netstate::nft::{Name, Op};

use super::{Expression, Found, slot, slot_in};
use crate::attribute;
use crate::nft::wire::{name, number, value, verdict};

/// The only attribute that is a name.
pub(super) fn name_in(data: &[u8]) -> Option<Name> {
    name(data, 1)
}

pub(super) fn read_header(data: &[u8]) -> Option<Expression> {
    let plain = [(3, 0), (4, 1), (5, 1)].iter().all(|(kind, wanted)| number(data, *kind) == Some(*wanted));
    let header = *attribute::find(data, 2)?.first()?;
    (plain && number(data, 6).unwrap_or(0) == 0).then_some(Expression::HasHeader { header, to: slot_in(data, 1)? })
}

pub(super) fn read_bitwise(data: &[u8]) -> Option<Expression> {
    // NFT_BITWISE_MASK_XOR, which old kernels do not name.
    if number(data, 6).unwrap_or(0) != 0 {
        return None;
    }
    let mask = value(attribute::find(data, 4)?)?.to_vec();
    let xor = value(attribute::find(data, 5)?)?.to_vec();
    Some(Expression::Bitwise { from: slot_in(data, 1)?, to: slot_in(data, 2)?, mask, xor })
}

pub(super) fn read_compare(data: &[u8]) -> Option<Expression> {
    let op = match number(data, 2)? {
        0 => Op::Is,
        1 => Op::IsNot,
        _ => return None,
    };
    let bytes = value(attribute::find(data, 3)?)?.to_vec();
    Some(Expression::Compare { from: slot_in(data, 1)?, op, data: bytes })
}

pub(super) fn read_immediate(data: &[u8]) -> Option<Expression> {
    let content = attribute::find(data, 2)?;
    if number(data, 1)? == 0 {
        return verdict(content).map(Expression::Verdict);
    }
    Some(Expression::Immediate { to: slot_in(data, 1)?, data: value(content)?.to_vec() })
}

pub(super) fn read_lookup(data: &[u8]) -> Option<Expression> {
    let to = match number(data, 3) {
        None => Found::Nothing,
        Some(0) => Found::Verdict,
        Some(register) => Found::Slot(slot(register)?),
    };
    let inverted = number(data, 5).unwrap_or(0) & 1 != 0;
    Some(Expression::Lookup { set: name(data, 1)?, from: slot_in(data, 2)?, to, inverted })
}

/// An update without data, expressions or flags.
pub(super) fn read_update(data: &[u8]) -> Option<Expression> {
    let plain = [5, 7, 10].iter().all(|kind| attribute::find(data, *kind).is_none());
    if number(data, 3)? != 1 || !plain || number(data, 9).unwrap_or(0) != 0 {
        return None;
    }
    let milliseconds = u64::from_be_bytes(attribute::find(data, 6)?.try_into().ok()?);
    Some(Expression::Update { set: name(data, 1)?, from: slot_in(data, 4)?, milliseconds })
}

/// NF_NAT_RANGE_MAP_IPS and NF_NAT_RANGE_PROTO_SPECIFIED, which the kernel adds by itself.
const IMPLIED_FLAGS: u32 = 0x3;

pub(super) fn read_dnat(data: &[u8]) -> Option<Expression> {
    let (addr, port) = (slot_in(data, 3)?, slot_in(data, 5));
    let same = |from: u16, to: u16| number(data, to).is_none() || number(data, from) == number(data, to);
    let plain = number(data, 1)? == 1 && number(data, 7).unwrap_or(0) & !IMPLIED_FLAGS == 0;
    (plain && same(3, 4) && same(5, 6)).then_some(Expression::Dnat { family: number(data, 2)?, addr, port })
}
