//! Recognising comparisons of an address with a network.

use std::net::IpAddr;

use netstate::nft::{Field, Match, Op};
use netstate::{IpFamily, Prefix};

use super::Recognised;
use crate::attribute;
use crate::nft::expression::{Expression, ct};
use crate::nft::field::{load, mask_bytes, whole};

/// `source or destination address is in a network`.
pub(super) fn address(list: &[Expression], known: IpFamily) -> Recognised {
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

/// `the packet is no fragment`.
pub(super) fn is_whole(list: &[Expression], known: IpFamily) -> Recognised {
    let program = whole(known);
    list.starts_with(&program).then(|| (Match::Whole(known).into(), program.len()))
}

pub(super) fn ct_original(list: &[Expression]) -> Recognised {
    let first = list.first()?;
    [IpFamily::V4, IpFamily::V6].into_iter().find_map(|family| {
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
