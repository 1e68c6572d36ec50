//! What the last probes found, kept for `netd status`.
//!
//! Invariant: a file that cannot be read is the same as none.

use std::collections::BTreeMap;
use std::path::Path;

use super::packet;
use super::probing::{Paths, Peer};
use crate::run::status::Probe;
use daemon::files;

/// The file in the folder of run-time files.
pub(crate) const FILE: &str = "probes.json";

/// Keeps what was found; of a node with two families the worse.
pub(super) fn write(folder: &Path, paths: &[(Peer, Paths)]) {
    let at = packet::now() / 1000;
    let mut probes: BTreeMap<&str, Probe> = BTreeMap::new();
    for (peer, paths) in paths {
        let found = Probe { at, reached: paths.carries(), largest: paths.largest };
        let probe = probes.entry(&peer.name).or_insert(found);
        probe.reached &= found.reached;
        probe.largest = probe.largest.min(found.largest);
    }
    // Whoever may not write there has found it out all the same.
    let text = serde_json::to_vec(&probes).unwrap_or_default();
    let _ = files::replace(&folder.join(FILE), &text);
}

/// What was found, by the nodes' subnets.
#[must_use]
pub(crate) fn read(folder: &Path) -> BTreeMap<String, Probe> {
    parse(&bounded::read(&folder.join(FILE), bounded::STATUS).unwrap_or_default())
}

/// The same from the file's content.
#[must_use]
pub(crate) fn parse(text: &[u8]) -> BTreeMap<String, Probe> {
    serde_json::from_slice(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::probing::Outcome;
    use super::*;

    #[test]
    fn what_was_found_is_read_again_and_the_worse_of_two_families_counts() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path()).is_empty());
        let peer = |direct: &str| Peer {
            name: "172.7.22.0/24,fc00::/64".to_owned(),
            backend: "host-gw".to_owned(),
            direct: direct.parse().unwrap(),
            vrf: None,
            tunnel: None,
            subnet: "172.7.22.0/24".parse().unwrap(),
        };
        let paths = |direct, largest| Paths { direct, tunnel: None, unchecked: None, largest };
        let found = [
            (peer("10.4.7.22:10247"), paths(Outcome::Closed, Some(1500))),
            (peer("[fd00::22]:10247"), paths(Outcome::Silent, None)),
        ];
        write(folder.path(), &found);
        let kept = read(folder.path());
        let probe = &kept["172.7.22.0/24,fc00::/64"];
        assert!(!probe.reached && probe.largest.is_none() && probe.at > 1_700_000_000, "{probe:?}");
        std::fs::write(folder.path().join(FILE), "junk").unwrap();
        assert!(read(folder.path()).is_empty());
    }
}
