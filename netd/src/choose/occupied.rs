//! Which parts of the Pod network other nodes claim.
//!
//! Pure. Invariant: a claim that is no subnet of the network keeps nobody out of it.

use std::collections::BTreeMap;

use netstate::Prefix;
use netstate::family::IpFamily;

use super::subnet::{Candidate, Claims};
use crate::format::net_conf::Pool;

/// The parts of the Pod network that other nodes claim, each with its holder if that can be read.
///
/// Ordered, so that the check of one subnet costs the same beside ten claims and beside ten thousand.
pub(super) struct Occupied(BTreeMap<Prefix, Option<String>>);

impl Occupied {
    /// Those of a family in its pool, but for what is `node`'s own.
    pub(super) fn by_others(family: IpFamily, pool: &Pool, node: &Candidate, claims: &Claims) -> Self {
        let others = claims.leases.iter().filter(|claim| !node.owns(claim));
        let read = others.map(|claim| (claim.lease().key, Some(claim.lease().attrs.public_ips.list())));
        let unreadable = claims.unreadable.iter().filter(|other| !node.held_key(other));
        let others = read.chain(unreadable.map(|other| (other.key, None)));
        let subnets = others.filter_map(|(key, holder)| Some((key.get(family)?, holder)));
        // A stray key such as `0.0.0.0-0` claims no Pod subnet: it must not keep every node out.
        Self(subnets.filter(|(subnet, _)| pool.has_subnet(subnet)).collect())
    }

    /// The subnet if nothing of it is claimed.
    ///
    /// # Errors
    /// Whose claim it overlaps.
    pub(super) fn check(&self, subnet: Prefix) -> Result<Prefix, String> {
        match self.overlapping(subnet) {
            None => Ok(subnet),
            Some((claim, None)) => Err(format!("{subnet} overlaps {claim}, whose lease cannot be read")),
            Some((claim, Some(holder))) if *claim == subnet => Err(format!("{subnet} is leased to {holder}")),
            Some((claim, Some(holder))) => Err(format!("{subnet} overlaps {claim} of {holder}")),
        }
    }

    /// Networks overlap only when one is inside the other: a claim is one of the networks around `subnet`, or begins
    /// inside it and so is the next one in order.
    pub(super) fn overlapping(&self, subnet: Prefix) -> Option<(&Prefix, &Option<String>)> {
        let around = (0..=subnet.len()).filter_map(|len| Prefix::new(subnet.addr(), len).ok());
        let around = around.filter_map(|network| self.0.get_key_value(&network)).next();
        around.or_else(|| self.0.range(subnet..).next().filter(|(claim, _)| subnet.covers(claim)))
    }
}
