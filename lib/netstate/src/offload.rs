//! What a link leaves to the hardware below it.

use std::fmt;

/// Who counts the checksums of the packets that a link sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TxChecksum {
    /// Whatever carries the packets on, at last a network card.
    Offloaded,
    /// The host's processor, before the packets leave the link.
    Counted,
}

impl fmt::Display for TxChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Offloaded => "tx-checksum on",
            Self::Counted => "tx-checksum off",
        })
    }
}
