//! The clock, by which certificates begin and end and leases are held.
//!
//! Pure. Invariant: a clock that nobody keeps is a problem however right it is today.

use std::time::Duration;

use daemon::doctor::Trouble;

use super::facts::Case;

/// As much as etcd complains about ("clock difference against peer").
const MOST: Duration = Duration::from_secs(1);

/// Whether anything keeps it.
pub(super) fn judge(case: &Case) -> Vec<Trouble> {
    let Some(clock) = case.facts.clock else { return Vec::new() };
    let fix = "systemctl enable --now systemd-timesyncd, or chronyd";
    if !clock.synchronized {
        let found = "nobody keeps this host's clock: certificates are \"not yet valid\" elsewhere, and leases flap";
        return vec![Trouble::problem(found, fix)];
    }
    if clock.error > MOST {
        let found = format!("this host's clock may be wrong by {:.1} s", clock.error.as_secs_f64());
        return vec![Trouble::note(
            found,
            "see where it gets the time from: timedatectl timesync-status, or chronyc sources",
        )];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::facts::Clock;
    use crate::preflight::tests::said;

    #[test]
    fn a_clock_that_nobody_keeps_is_found() {
        let with = |synchronized, millis| {
            let mut case = Case::default();
            case.facts.clock = Some(Clock { synchronized, error: Duration::from_millis(millis) });
            said(judge(&case))
        };
        assert!(with(false, 0).starts_with("PROBLEM nobody keeps this host's clock"));
        assert!(with(true, 1500).starts_with("note this host's clock may be wrong by 1.5 s"));
        assert_eq!(with(true, 20), "");
    }
}
