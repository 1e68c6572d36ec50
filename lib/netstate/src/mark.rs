//! Packet marks that more than one program knows.
//!
//! A mark is a contract between the program that sets a bit and those that read it; a bit that is written down in two
//! places drifts apart in silence. Invariant: every bit of the packet mark that this product sets, or reads of others, is
//! named here, and no two names share one.

use crate::nft::{MarkChange, Match, Op};

/// One or more bits of the packet mark with a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// What a packet with these bits is.
    pub meaning: &'static str,
    /// The bits, set in value and mask alike.
    pub bits: u32,
    /// Who sets them.
    pub set_by: &'static [&'static str],
    /// Who acts on them.
    pub read_by: &'static [&'static str],
}

/// To be masqueraded on its way out: kube-proxy's bit 14 (`--iptables-masquerade-bit`, KUBE-MARK-MASQ), so that both
/// proxies can follow each other on a node. ipvs-proxy masquerades and clears it; netd leaves such packets to it.
pub const MASQUERADE: Mark = Mark {
    meaning: "to be masqueraded by the Service proxy",
    bits: 1 << 14,
    set_by: &["ipvs-proxy", "kube-proxy"],
    read_by: &["ipvs-proxy", "kube-proxy", "netd"],
};

impl Mark {
    /// Holds of a packet that has the bits.
    #[must_use]
    pub const fn is_set(self) -> Match {
        Match::Mark(Op::Is, self.bits, self.bits)
    }

    /// Holds of a packet that lacks one of the bits.
    #[must_use]
    pub const fn is_not_set(self) -> Match {
        Match::Mark(Op::IsNot, self.bits, self.bits)
    }

    /// Sets the bits and keeps the others.
    #[must_use]
    pub const fn set(self) -> MarkChange {
        MarkChange::set(self.bits)
    }

    /// Clears the bits and keeps the others.
    #[must_use]
    pub const fn clear(self) -> MarkChange {
        MarkChange::clear(self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_masquerade_mark_is_kube_proxys_bit_14() {
        assert_eq!(MASQUERADE.bits, 0x4000);
        assert_eq!(MASQUERADE.is_set(), Match::Mark(Op::Is, 0x4000, 0x4000));
        assert_eq!(MASQUERADE.set(), MarkChange::set(0x4000));
        assert_eq!(MASQUERADE.clear(), MarkChange::clear(0x4000));
    }
}
