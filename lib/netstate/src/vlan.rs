//! VLANs of a bridge's port (IEEE 802.1Q; net/bridge/br_vlan.c).
//!
//! Invariant: at most one VLAN of a port is the native one, because a frame without a tag can belong to one only.

use std::collections::BTreeMap;
use std::fmt;

/// The highest identifier: 0 and 4095 mean something else (IEEE 802.1Q table 9-2).
pub const VLAN_MAX: u16 = 4094;

/// How a port carries a VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum VlanMode {
    /// Frames that come without a tag belong to it, and its frames leave without one (PVID, untagged).
    Native,
    /// Its frames leave without a tag; those that come without one belong to another.
    Untagged,
    /// Its frames carry its tag both ways.
    Tagged,
}

/// The VLANs of a port, by identifier from 1 to [`VLAN_MAX`]; frames of all others are dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortVlans(pub BTreeMap<u16, VlanMode>);

impl PortVlans {
    /// Runs of neighbouring identifiers of one mode, each as first, last and mode. Only tagged ones run together: the
    /// kernel takes no range with a native VLAN in it.
    #[must_use]
    pub fn ranges(&self) -> Vec<(u16, u16, VlanMode)> {
        let mut ranges: Vec<(u16, u16, VlanMode)> = Vec::new();
        for (id, mode) in &self.0 {
            match ranges.last_mut() {
                Some((_, last, VlanMode::Tagged)) if *mode == VlanMode::Tagged && last.checked_add(1) == Some(*id) => {
                    *last = *id;
                }
                _ => ranges.push((*id, *id, *mode)),
            }
        }
        ranges
    }
}

impl fmt::Display for VlanMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Untagged => "untagged",
            Self::Tagged => "tagged",
        })
    }
}

impl fmt::Display for PortVlans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (first, last, mode)) in self.ranges().into_iter().enumerate() {
            let separator = if position == 0 { "" } else { ", " };
            match first == last {
                true => write!(f, "{separator}{first} {mode}")?,
                false => write!(f, "{separator}{first}-{last} {mode}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_tagged_vlans_are_one_range_and_the_native_one_stands_alone() {
        let mut vlans = PortVlans::default();
        assert_eq!((vlans.ranges(), vlans.to_string()), (vec![], String::new()));
        vlans.0.extend([100, 101, 102, 104, 4094].map(|id| (id, VlanMode::Tagged)));
        vlans.0.insert(103, VlanMode::Native);
        vlans.0.insert(1, VlanMode::Untagged);
        vlans.0.insert(2, VlanMode::Untagged);
        assert_eq!(vlans.to_string(), "1 untagged, 2 untagged, 100-102 tagged, 103 native, 104 tagged, 4094 tagged");
    }
}
