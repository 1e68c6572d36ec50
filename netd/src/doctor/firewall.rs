//! Rules that dropped something while probes were under way.
//!
//! Other packets may have met them as well, so it is a note unless a probe was lost.

use super::{Facts, Trouble};

pub(super) fn judge(facts: &Facts) -> Vec<Trouble> {
    let lost = facts.paths.iter().any(|(_, paths)| !paths.direct.arrived() || !paths.carries());
    let trouble = |(rule, packets): &(String, u64)| {
        let found = format!("{rule} dropped {packets} packets during the probes");
        let fix = "if these are the nodes' or the Pods', put an accept in front of it";
        if lost { Trouble::problem(found, fix) } else { Trouble::note(found, fix) }
    };
    facts.drops.iter().map(trouble).collect()
}
