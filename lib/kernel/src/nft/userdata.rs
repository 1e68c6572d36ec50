//! What the nft tool needs to know of a set: user data, at which the kernel does not look.
//!
//! Entries of a type, a length and as many bytes, one in another (`nftnl_udata` of libnftnl; enum nftnl_udata_set_types, and
//! `src/expression.c`, `src/payload.c`, `src/meta.c` and `src/numgen.c` of nftables for what stands in them). Numbers are in the
//! order of this machine.

use netstate::IpFamily;
use netstate::nft::{Field, Type};

/// NFTNL_UDATA_SET_KEYBYTEORDER, NFTNL_UDATA_SET_DATABYTEORDER, NFTNL_UDATA_SET_KEY_TYPEOF, NFTNL_UDATA_SET_DATA_TYPEOF.
const KEY_ORDER: u8 = 0;
const DATA_ORDER: u8 = 1;
const KEY_TYPEOF: u8 = 3;
const DATA_TYPEOF: u8 = 4;

/// The user data of a set with these keys and values: in which order their bytes are to be read and, where the language has no
/// name for a type, which expressions they come from.
pub(super) fn of_set(key: &[Type], data: &[Type]) -> Vec<u8> {
    let mut bytes = [(KEY_ORDER, key), (DATA_ORDER, data)].map(|(kind, types)| order(kind, types)).concat();
    if key.contains(&Type::Index) {
        for (kind, types) in [(KEY_TYPEOF, key), (DATA_TYPEOF, data)] {
            let fields: Vec<Field> = types.iter().filter_map(|ty| ty.source()).collect();
            bytes.extend(if fields.is_empty() { Vec::new() } else { entry(kind, &concatenation(&fields)) });
        }
    }
    bytes
}

/// enum byteorder of nftables; of a concatenation the tool knows by the parts.
fn order(kind: u8, types: &[Type]) -> Vec<u8> {
    match types {
        [] => Vec::new(),
        [one] if one.is_host_order() => number(kind, 1),
        [_] => number(kind, 2),
        _ => number(kind, 0),
    }
}

fn entry(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap_or(u8::MAX);
    [&[kind, length], content].concat()
}

fn number(kind: u8, number: u32) -> Vec<u8> {
    entry(kind, &number.to_ne_bytes())
}

/// An expression: its type (enum expr_types), and what it needs to know.
fn expression(kind: u32, content: &[Vec<u8>]) -> Vec<u8> {
    [number(0, kind), entry(1, &content.concat())].concat()
}

/// EXPR_CONCAT.
fn concatenation(fields: &[Field]) -> Vec<u8> {
    let part = |(place, field): (u8, &Field)| entry(place, &part(*field));
    expression(13, &(0..).zip(fields).map(part).collect::<Vec<_>>())
}

fn part(field: Field) -> Vec<u8> {
    // EXPR_PAYLOAD with enum proto_desc_id and the field's place in its description (src/proto.c).
    let payload = |protocol, place| expression(7, &[number(0, protocol), number(1, place)]);
    match field {
        Field::Daddr(IpFamily::V4) => payload(12, 12),
        Field::Daddr(IpFamily::V6) => payload(13, 9),
        Field::Dport => payload(11, 2),
        // EXPR_META, NFT_META_L4PROTO.
        Field::L4Proto => expression(9, &[number(0, 16)]),
        // EXPR_NUMGEN, NFT_NG_RANDOM, the modulus and the offset.
        Field::Random { below, offset } => expression(23, &[number(0, 1), number(1, below), number(2, offset)]),
        // No type has another field as its source.
        _ => Vec::new(),
    }
}

#[cfg(target_endian = "little")]
#[cfg(test)]
mod tests {
    use super::*;

    /// As nft 1.0.6 sends them for a map declared with `typeof` (`--debug=mnl`).
    #[test]
    fn a_set_with_an_index_says_what_its_keys_come_from() {
        let key = [Type::Ipv4Addr, Type::InetProto, Type::InetService, Type::Index];
        let expected = "00 04 00000000  01 04 00000000 \
            03 60  00 04 0d000000  01 58 \
              00 14  00 04 07000000  01 0c  00 04 0c000000  01 04 0c000000 \
              01 0e  00 04 09000000  01 06  00 04 10000000 \
              02 14  00 04 07000000  01 0c  00 04 0b000000  01 04 02000000 \
              03 1a  00 04 17000000  01 12  00 04 01000000  01 04 00000100  02 04 00000000 \
            04 34  00 04 0d000000  01 2c \
              00 14  00 04 07000000  01 0c  00 04 0c000000  01 04 0c000000 \
              01 14  00 04 07000000  01 0c  00 04 0b000000  01 04 02000000";
        let digits: String = expected.split_whitespace().collect();
        let expected: Vec<u8> =
            (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect();
        assert_eq!(of_set(&key, &[Type::Ipv4Addr, Type::InetService]), expected);
    }

    #[test]
    fn any_other_set_says_only_the_order_of_its_bytes() {
        assert_eq!(of_set(&[Type::Mark], &[]), [0, 4, 1, 0, 0, 0]);
        assert_eq!(of_set(&[Type::Ipv4Addr], &[]), [0, 4, 2, 0, 0, 0], "network order");
        assert_eq!(of_set(&[Type::IfName], &[Type::InetService]), [0, 4, 1, 0, 0, 0, 1, 4, 2, 0, 0, 0]);
        assert_eq!(of_set(&[Type::Ipv4Addr, Type::InetService], &[]), [0, 4, 0, 0, 0, 0], "by the parts");
    }
}
