//! The Pod network in foreign chains that drop what is forwarded, as Docker leaves `ip filter FORWARD`.
//!
//! Our own `forward` chain cannot overrule a drop in another table. Every such chain is reported.

use std::collections::BTreeSet;

use kernel::nft::forward::{Accept, Denying};
use netstate::Prefix;

/// Packets from and to `networks`.
pub(super) fn accepts(networks: &BTreeSet<Prefix>) -> BTreeSet<Accept> {
    networks.iter().flat_map(|network| [Accept::From(*network), Accept::To(*network)]).collect()
}

/// What an operator should know of a chain.
pub(super) fn warning(chain: &Denying) -> String {
    let then = if chain.within.is_none() { "netd accepts" } else { "netd cannot accept" };
    format!("{chain}; {then} the Pod network in it")
}
