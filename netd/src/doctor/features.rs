//! Whether this kernel has what the network's backend needs; before the daemon runs, what it has not of all that some network needs.

use super::{Facts, Trouble};

pub(super) fn judge(facts: &Facts) -> Vec<Trouble> {
    let backend = facts.daemon.as_ref().map(|daemon| format!("{} devices", daemon.node.backend));
    let concerns = |name: &str| backend.as_ref().is_none_or(|backend| backend == name);
    let one = |(name, fix): &(String, String)| {
        let found = format!("this kernel has no {name}");
        let trouble = if backend.is_some() { Trouble::problem } else { Trouble::note };
        trouble(found, fix.clone())
    };
    facts.lacking.iter().filter(|(name, _)| concerns(name)).map(one).collect()
}
