//! `Expression`: one instruction of the kernel's rule machine, to and from attributes.
//!
//! Registers are counted in slots of four bytes, 0 to 15, whatever the number by which the kernel calls them.
//! Invariant: an instruction is read as one of ours only when every part of it is understood; anything else is
//! [`Expression::Unknown`], so that a rule somebody edited never seems unchanged.

mod read;

use netstate::nft::{Name, Op, Verdict};

use self::read::{
    name_in, read_bitwise, read_compare, read_dnat, read_header, read_immediate, read_lookup, read_update,
};
use crate::attribute::{self, Writer};
use crate::nft::wire::{LIST_ELEM, number, put_number, put_value, put_verdict, text};

const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;

/// Keys of `meta` (enum nft_meta_keys).
pub(super) mod meta {
    pub(in crate::nft) const PROTOCOL: u32 = 1;
    pub(in crate::nft) const MARK: u32 = 3;
    pub(in crate::nft) const IIFNAME: u32 = 6;
    pub(in crate::nft) const OIFNAME: u32 = 7;
    pub(in crate::nft) const NFPROTO: u32 = 15;
    pub(in crate::nft) const L4PROTO: u32 = 16;
}

/// Keys of `ct` (enum nft_ct_keys).
pub(super) mod ct {
    pub(in crate::nft) const STATE: u32 = 0;
    pub(in crate::nft) const DIRECTION: u32 = 1;
    pub(in crate::nft) const STATUS: u32 = 2;
    pub(in crate::nft) const DST_IP: u32 = 20;
    pub(in crate::nft) const DST_IP6: u32 = 22;
    /// IP_CT_DIR_ORIGINAL.
    pub(in crate::nft) const ORIGINAL: u8 = 0;
}

/// Bases of `payload` (enum nft_payload_bases).
pub(super) mod base {
    pub(in crate::nft) const LINK: u32 = 0;
    pub(in crate::nft) const NETWORK: u32 = 1;
    pub(in crate::nft) const TRANSPORT: u32 = 2;
}

/// Flags of `fib` (enum nft_fib_flags) and its result NFT_FIB_RESULT_ADDRTYPE.
pub(super) mod fib {
    pub(in crate::nft) const SADDR: u32 = 1;
    pub(in crate::nft) const DADDR: u32 = 2;
    pub(in crate::nft) const ADDRTYPE: u32 = 3;
}

/// Where a lookup puts what it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Nowhere: being found is all.
    Nothing,
    /// Into the verdict register.
    Verdict,
    /// Into registers from this slot on.
    Slot(u8),
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expression {
    Meta {
        key: u32,
        to: u8,
    },
    MetaSet {
        key: u32,
        from: u8,
    },
    Ct {
        key: u32,
        direction: Option<u8>,
        to: u8,
    },
    Payload {
        base: u32,
        offset: u32,
        length: u32,
        to: u8,
    },
    /// Whether an IPv6 packet has an extension header of this number (NFT_EXTHDR_F_PRESENT).
    HasHeader {
        header: u8,
        to: u8,
    },
    Fib {
        flags: u32,
        result: u32,
        to: u8,
    },
    /// One of `below` numbers from `offset` on, at random.
    Random {
        below: u32,
        offset: u32,
        to: u8,
    },
    Bitwise {
        from: u8,
        to: u8,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    Compare {
        from: u8,
        op: Op,
        data: Vec<u8>,
    },
    Immediate {
        to: u8,
        data: Vec<u8>,
    },
    Verdict(Verdict),
    Lookup {
        set: Name,
        from: u8,
        to: Found,
        inverted: bool,
    },
    /// Puts the key in the registers into a set, or anew when it is there.
    Update {
        set: Name,
        from: u8,
        milliseconds: u64,
    },
    Masquerade {
        flags: u32,
    },
    Dnat {
        family: u32,
        addr: u8,
        port: Option<u8>,
    },
    Reject {
        kind: u32,
        code: u8,
    },
    Notrack,
    Offload(Name),
    Counter,
    Unknown(String),
}

/// NFT_REG_1 is 1 and four slots wide, NFT_REG32_00 is 8 (enum nft_registers). The kernel gives a register that starts
/// a wide one by the wide one's number.
fn register(slot: u8) -> u32 {
    let slot = u32::from(slot);
    if slot.is_multiple_of(4) { 1 + slot / 4 } else { 8 + slot }
}

fn slot(register: u32) -> Option<u8> {
    let slot = match register {
        1..=4 => (register - 1) * 4,
        8..=23 => register - 8,
        _ => return None,
    };
    u8::try_from(slot).ok()
}

pub(super) fn slot_in(attributes: &[u8], kind: u16) -> Option<u8> {
    number(attributes, kind).and_then(slot)
}

impl Expression {
    /// Appends the instruction to a rule's list.
    pub(super) fn write(&self, list: &mut Writer) {
        list.nest(LIST_ELEM, |element| {
            element.put_str(EXPR_NAME, self.name());
            element.nest(EXPR_DATA, |data| self.write_data(data));
        });
    }

    fn name(&self) -> &str {
        match self {
            Self::Meta { .. } | Self::MetaSet { .. } => "meta",
            Self::Ct { .. } => "ct",
            Self::Payload { .. } => "payload",
            Self::HasHeader { .. } => "exthdr",
            Self::Fib { .. } => "fib",
            Self::Random { .. } => "numgen",
            Self::Bitwise { .. } => "bitwise",
            Self::Compare { .. } => "cmp",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Lookup { .. } => "lookup",
            Self::Update { .. } => "dynset",
            Self::Masquerade { .. } => "masq",
            Self::Dnat { .. } => "nat",
            Self::Reject { .. } => "reject",
            Self::Notrack => "notrack",
            Self::Offload(_) => "flow_offload",
            Self::Counter => "counter",
            Self::Unknown(name) => name,
        }
    }

    fn write_data(&self, data: &mut Writer) {
        let numbers: &[(u16, u32)] = match self {
            Self::Meta { key, to } => &[(1, register(*to)), (2, *key)],
            Self::MetaSet { key, from } => &[(2, *key), (3, register(*from))],
            Self::Ct { key, to, .. } => &[(1, register(*to)), (2, *key)],
            Self::Payload { base, offset, length, to } => &[(1, register(*to)), (2, *base), (3, *offset), (4, *length)],
            // NFT_EXTHDR_OP_IPV6; the first byte, of which only that it is there is asked.
            Self::HasHeader { to, .. } => &[(1, register(*to)), (3, 0), (4, 1), (5, 1), (6, 0)],
            Self::Fib { flags, result, to } => &[(1, register(*to)), (2, *result), (3, *flags)],
            // NFT_NG_RANDOM.
            Self::Random { below, offset, to } => &[(1, register(*to)), (2, *below), (3, 1), (4, *offset)],
            Self::Bitwise { from, to, mask, .. } => {
                &[(1, register(*from)), (2, register(*to)), (3, u32::try_from(mask.len()).unwrap_or(u32::MAX))]
            }
            Self::Compare { from, op, .. } => &[(1, register(*from)), (2, u32::from(*op == Op::IsNot))],
            Self::Immediate { to, .. } => &[(1, register(*to))],
            // NFT_REG_VERDICT.
            Self::Verdict(_) => &[(1, 0)],
            Self::Masquerade { flags: 0 }
            | Self::Lookup { .. }
            | Self::Notrack
            | Self::Offload(_)
            | Self::Counter
            | Self::Unknown(_) => &[],
            Self::Masquerade { flags } => &[(1, *flags)],
            // NFT_DYNSET_OP_UPDATE.
            Self::Update { from, .. } => &[(3, 1), (4, register(*from))],
            // NFT_NAT_DNAT; a range of one address and of one port.
            Self::Dnat { family, addr, .. } => &[(1, 1), (2, *family), (3, register(*addr)), (4, register(*addr))],
            Self::Reject { kind, .. } => &[(1, *kind)],
        };
        for (kind, number) in numbers {
            put_number(data, *kind, *number);
        }
        self.write_rest(data);
    }

    /// What is no 32-bit number.
    fn write_rest(&self, data: &mut Writer) {
        match self {
            Self::Ct { direction: Some(direction), .. } => {
                data.put(3, &[*direction]);
            }
            Self::HasHeader { header, .. } => {
                data.put(2, &[*header]);
            }
            Self::Bitwise { mask, xor, .. } => {
                put_value(data, 4, mask);
                put_value(data, 5, xor);
            }
            Self::Compare { data: bytes, .. } => put_value(data, 3, bytes),
            Self::Immediate { data: bytes, .. } => put_value(data, 2, bytes),
            Self::Verdict(verdict) => put_verdict(data, 2, verdict),
            Self::Lookup { set, from, to, inverted } => {
                data.put_str(1, set.as_str());
                put_number(data, 2, register(*from));
                match to {
                    Found::Nothing => {}
                    Found::Verdict => put_number(data, 3, 0),
                    Found::Slot(slot) => put_number(data, 3, register(*slot)),
                }
                if *inverted {
                    put_number(data, 5, 1);
                }
            }
            // NFTA_DYNSET_SET_NAME, NFTA_DYNSET_TIMEOUT.
            Self::Update { set, milliseconds, .. } => {
                data.put_str(1, set.as_str());
                data.put(6, &milliseconds.to_be_bytes());
            }
            // NFTA_FLOW_TABLE_NAME.
            Self::Offload(flowtable) => {
                data.put_str(1, flowtable.as_str());
            }
            Self::Dnat { port: Some(port), .. } => {
                put_number(data, 5, register(*port));
                put_number(data, 6, register(*port));
            }
            Self::Reject { code, .. } => {
                data.put(2, &[*code]);
            }
            _ => {}
        }
    }

    /// Reads a rule's list (NFTA_RULE_EXPRESSIONS).
    pub(super) fn list(attributes: &[u8]) -> Vec<Self> {
        attribute::iter(attributes)
            .filter(|(kind, _)| *kind == LIST_ELEM)
            .map(|(_, element)| Self::read(element))
            .collect()
    }

    /// Reads one instruction.
    pub(super) fn read(element: &[u8]) -> Self {
        let name = text(element, EXPR_NAME).unwrap_or_default();
        let data = attribute::find(element, EXPR_DATA).unwrap_or_default();
        Self::read_data(&name, data).unwrap_or(Self::Unknown(name))
    }

    fn read_data(name: &str, data: &[u8]) -> Option<Self> {
        match name {
            "meta" => match (slot_in(data, 1), slot_in(data, 3)) {
                (Some(to), None) => Some(Self::Meta { key: number(data, 2)?, to }),
                (None, Some(from)) => Some(Self::MetaSet { key: number(data, 2)?, from }),
                _ => None,
            },
            "ct" => {
                let direction = attribute::find(data, 3).and_then(|value| value.first().copied());
                Some(Self::Ct { key: number(data, 2)?, direction, to: slot_in(data, 1)? })
            }
            "payload" => {
                let (base, offset, length) = (number(data, 2)?, number(data, 3)?, number(data, 4)?);
                Some(Self::Payload { base, offset, length, to: slot_in(data, 1)? })
            }
            "exthdr" => read_header(data),
            "fib" => Some(Self::Fib { flags: number(data, 3)?, result: number(data, 2)?, to: slot_in(data, 1)? }),
            "numgen" => {
                let (below, offset) = (number(data, 2)?, number(data, 4).unwrap_or(0));
                let to = slot_in(data, 1)?;
                (number(data, 3)? == 1).then_some(Self::Random { below, offset, to })
            }
            "bitwise" => read_bitwise(data),
            "cmp" => read_compare(data),
            "immediate" => read_immediate(data),
            "lookup" => read_lookup(data),
            "dynset" => read_update(data),
            "masq" => {
                let ports = attribute::find(data, 2).or_else(|| attribute::find(data, 3));
                ports.is_none().then(|| Self::Masquerade { flags: number(data, 1).unwrap_or(0) })
            }
            "nat" => read_dnat(data),
            "reject" => {
                let code = attribute::find(data, 2).and_then(|value| value.first().copied());
                Some(Self::Reject { kind: number(data, 1)?, code: code.unwrap_or(0) })
            }
            "notrack" => Some(Self::Notrack),
            "flow_offload" => name_in(data).map(Self::Offload),
            "counter" => Some(Self::Counter),
            _ => None,
        }
    }
}

#[cfg(target_endian = "little")]
#[cfg(test)]
mod tests;
