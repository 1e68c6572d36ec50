//! What a data path needs of this node's kernel, asked for once at the start.
//!
//! Invariant: a data path that cannot be without what is missing is refused with the name of it and what to do; what only leaves something
//! undone is said.

use anyhow::bail;
use kernel::feature::{self, Feature};

use crate::dataplane::Mode;

/// What the rules of both are made of.
const RULES: [Feature; 5] =
    [Feature::Nftables, Feature::Tracking, Feature::Translation, Feature::LocalAddresses, Feature::Reject];

/// What a data path cannot be without.
pub(crate) fn of(mode: Mode) -> Vec<Feature> {
    let own = match mode {
        // IPVS itself has been opened; virtual addresses stand on a device of their own.
        Mode::Ipvs => Feature::Dummy,
        Mode::Nftables => Feature::Random,
    };
    RULES.into_iter().chain([own]).collect()
}

/// Refuses what cannot work on this kernel.
///
/// # Errors
/// Each thing that the kernel has not, with what to do.
pub(super) fn check(mode: Mode) -> anyhow::Result<()> {
    let missing = match feature::missing(&of(mode)) {
        Ok(missing) => missing,
        Err(error) => {
            tracing::warn!(error = %kernel::Chain(&error), "what this kernel has cannot be found out");
            return Ok(());
        }
    };
    if let Some(reason) = refusal(mode, &missing) {
        bail!(reason);
    }
    if !Feature::Connections.is_there().unwrap_or(true) {
        let advice = Feature::Connections.advice();
        tracing::warn!(
            "this kernel has no {}: flows of UDP go on to endpoints that are gone; {advice}",
            Feature::Connections
        );
    }
    Ok(())
}

/// Why a data path cannot be on a kernel without `missing`.
fn refusal(mode: Mode, missing: &[Feature]) -> Option<String> {
    feature::refusal(missing, |feature| match (mode, feature) {
        (Mode::Ipvs, Feature::Dummy) => "; or --proxy-mode nftables, which needs none",
        (Mode::Nftables, Feature::Random) => "; or --proxy-mode ipvs, which needs none",
        _ => "",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_data_path_names_what_it_misses_and_the_other_where_that_needs_none() {
        let text = refusal(Mode::Ipvs, &[Feature::Dummy]).unwrap();
        assert!(
            text.contains("no dummy devices: modprobe dummy")
                && text.ends_with("--proxy-mode nftables, which needs none"),
            "{text}"
        );
        let text = refusal(Mode::Nftables, &[Feature::Random, Feature::Reject]).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].contains("CONFIG_NFT_NUMGEN") && lines[0].ends_with("--proxy-mode ipvs, which needs none"),
            "{text}"
        );
        assert!(
            lines[1].contains("no rules of nftables that reject: ") && !lines[1].contains("--proxy-mode"),
            "{text}"
        );
        assert_eq!(refusal(Mode::Ipvs, &[]), None);
    }

    #[test]
    fn both_need_the_rules_and_each_one_thing_of_its_own() {
        for (mode, own) in [(Mode::Ipvs, Feature::Dummy), (Mode::Nftables, Feature::Random)] {
            let needs = of(mode);
            assert!(RULES.iter().all(|feature| needs.contains(feature)) && needs.contains(&own), "{needs:?}");
            assert_eq!(needs.len(), RULES.len() + 1);
        }
    }
}
