//! `Refused`: why a lease is not used, in each family that is refused.
//!
//! Invariant: a lease of which one family is refused is used in the other.

use std::fmt;

use netstate::family::PerFamily;

use super::Refusal;
use crate::format::lease::SubnetKey;

/// Why a lease is not used, in each family that is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Refused(pub(super) PerFamily<Option<Refusal>>);

impl Refused {
    /// True when nothing of the lease under `key` is used.
    pub(super) fn is_all_of(&self, key: &SubnetKey) -> bool {
        key.subnets().families().all(|family| self.0.get(family).is_some())
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut reasons: Vec<String> = self.0.present().map(|(_, refusal)| refusal.to_string()).collect();
        reasons.dedup();
        f.write_str(&reasons.join("; "))
    }
}
