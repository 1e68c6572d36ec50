//! `Announced`: the networks that ClusterIPs are given out of, as the API server announces them (ServiceCIDR).
//!
//! Invariant: of a family for which a flag names the network the flag counts; what is announced refuses no Service, because an object may
//! come before the network that it is in.

use std::collections::{BTreeMap, BTreeSet};

use netstate::Prefix;

/// The networks, by the name of what announces them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Announced {
    /// Networks of each object.
    pub(crate) objects: BTreeMap<String, BTreeSet<Prefix>>,
    /// Why they cannot be read now, or a part of them: what is known stays.
    pub(crate) trouble: Option<String>,
}

impl Announced {
    /// All of them; one inside another is of that.
    #[must_use]
    pub(crate) fn networks(&self) -> BTreeSet<Prefix> {
        let all: BTreeSet<Prefix> = self.objects.values().flatten().copied().collect();
        all.iter().filter(|one| !all.iter().any(|other| other != *one && other.covers(one))).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_inside_another_is_of_that() {
        let object = |networks: &[&str]| networks.iter().map(|network| network.parse().unwrap()).collect();
        let objects = BTreeMap::from([
            ("kubernetes".to_owned(), object(&["10.96.0.0/16", "fd09::/108"])),
            ("more".to_owned(), object(&["10.96.8.0/24", "10.97.0.0/16"])),
        ]);
        let networks: Vec<_> =
            Announced { objects, trouble: None }.networks().iter().map(ToString::to_string).collect();
        assert_eq!(networks, ["10.96.0.0/16", "10.97.0.0/16", "fd09::/108"]);
    }
}
