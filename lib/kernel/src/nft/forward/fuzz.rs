//! What other programs' chains of the forward hook say, for fuzzing.
//!
//! Invariant: every chain has an end, whatever jumps where.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use netstate::IfName;
use netstate::nft::{Family, Name, Policy};

use super::judge;
use super::line::Line;
use crate::nft::wire::{kind, payload};
use crate::socket::Frame;

/// Finds the end of every chain in `frames`.
pub(in crate::nft) fn chains(frames: &[Frame]) {
    let mut chains: BTreeMap<Name, Vec<Line>> = BTreeMap::new();
    for (family, attributes) in frames.iter().filter_map(|frame| payload(frame, kind::NEWRULE)) {
        let family = Family::from_number(family).unwrap_or(Family::Ip);
        if let Some(line) = Line::read(family, attributes, "netd: Pod network") {
            chains.entry(line.chain.clone()).or_default().push(line);
        }
    }
    for (_, attributes) in frames.iter().filter_map(|frame| payload(frame, kind::NEWCHAIN)) {
        let _ = super::survey::chain_of_hook(2, attributes);
    }
    for lines in chains.values() {
        let mut read = 0_usize;
        let links = BTreeSet::from([IfName::literal("eth0")]);
        let outcome = judge::outcome(Family::Inet, Policy::Drop, lines, &links, &mut |name| {
            read += 1;
            assert!(read <= chains.len() + lines.len(), "{read} readings of {} chains", chains.len());
            Ok::<_, Infallible>(chains.get(name).cloned().unwrap_or_default())
        });
        let Ok((ends, _)) = outcome;
        let (_, in_place) = judge::accepted(lines, &ends, &[]);
        let ours = lines.iter().any(|line| line.ours);
        assert!(in_place || ours, "a chain without rules of ours has none in a wrong place");
    }
}
