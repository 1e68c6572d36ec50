//! Foreign chains that drop what is forwarded, as Docker leaves `ip filter FORWARD`.
//!
//! IPVS sends requests past the forward hook, and answers of endpoints through it; what nftables leads passes it both ways.
//! Answers, and the requests that are to be masqueraded, are accepted, as kube-proxy's KUBE-FORWARD does, behind every denial of the
//! chain's owner.

use std::collections::BTreeSet;

use kernel::nft::Nft;
use kernel::nft::forward::{Accept, Accepts, Denying, Forward};
use netstate::mark::MASQUERADE;

use crate::dataplane;

/// Comment of this program's rules in foreign chains, and of no other's.
const MARKER: &str = "ipvs-proxy: answers of endpoints";

/// The stage that keeps our accept rules.
pub(crate) fn stage(nft: Nft) -> Forward {
    let mut forward = Forward::new(nft, BTreeSet::from(dataplane::tables()), MARKER);
    forward.want(BTreeSet::from([Accept::Established, Accept::Marked(MASQUERADE.bits)]));
    forward
}

/// Our rules, to take them back.
pub(super) fn rules(nft: Nft) -> Accepts {
    Accepts::new(nft, BTreeSet::from(dataplane::tables()), MARKER)
}

/// What an operator should know of a chain.
pub(crate) fn advice(chain: &Denying) -> String {
    let then = if chain.obstructed { "ipvs-proxy cannot accept" } else { "ipvs-proxy accepts" };
    format!("{chain}; {then} answers of endpoints in it")
}
