//! Whether this kernel has what the network's backend needs; before the daemon runs, what it has not of all that some network needs;
//! and what Pods may ask the plugin for in vain.

use super::{Facts, Trouble};

pub(super) fn judge(facts: &Facts) -> Vec<Trouble> {
    let backend = facts.daemon.as_ref().map(|daemon| format!("{} devices", daemon.node.backend));
    let concerns = |name: &str| backend.as_ref().is_none_or(|backend| backend == name);
    let one = |(name, fix): &(String, String)| {
        let found = format!("this kernel has no {name}");
        let trouble = if backend.is_some() { Trouble::problem } else { Trouble::note };
        trouble(found, fix.clone())
    };
    let of_pods = facts.lacking_for_pods.iter();
    let notes = of_pods.map(|(name, fix)| Trouble::note(format!("this kernel has no {name}"), fix.clone()));
    facts.lacking.iter().filter(|(name, _)| concerns(name)).map(one).chain(notes).collect()
}
