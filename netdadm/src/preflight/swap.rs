//! Swap: a kubelet stops where there is any (`failSwapOn`), or comes back to it after the next start.
//!
//! Pure. Invariant: what is used now and what fstab brings back are one finding for each place.

use daemon::doctor::Trouble;

use super::facts::Case;
use crate::topology::Role;

/// Swap that is used, and that comes back.
pub(super) fn judge(case: &Case) -> Vec<Trouble> {
    if !case.is(Role::Node) {
        return Vec::new();
    }
    let used: Vec<&str> = places(case.facts.text("/proc/swaps"), 0).filter(|place| *place != "Filename").collect();
    let mut troubles: Vec<Trouble> = used
        .iter()
        .map(|place| {
            let again = if place.contains("zram") {
                "take zram-generator's configuration out of /etc/systemd/zram-generator.conf"
            } else {
                "take it out of /etc/fstab; one that systemd finds by itself: systemctl mask the unit of `systemctl list-units -t swap`"
            };
            Trouble::problem(format!("{place} is used as swap: the kubelet stops"), format!("swapoff {place}, and {again}"))
        })
        .collect();
    let lines =
        case.facts.text("/etc/fstab").unwrap_or_default().lines().filter(|line| !line.trim_start().starts_with('#'));
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [place, _, "swap", ..] = *words
            && !used.contains(&place)
            && !words.get(3).is_some_and(|options| options.split(',').any(|option| option == "noauto"))
            && used.is_empty()
        {
            let found = format!("/etc/fstab makes {place} swap when this host starts: the kubelet stops then");
            troubles.push(Trouble::problem(found, "put a # in front of that line of /etc/fstab"));
        }
    }
    troubles
}

fn places(text: Option<&str>, column: usize) -> impl Iterator<Item = &str> {
    text.unwrap_or_default().lines().filter_map(move |line| line.split_whitespace().nth(column))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::tests::said;

    const NONE: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";

    #[test]
    fn swap_that_is_used_and_swap_that_comes_back_are_found() {
        let fstab = ("/etc/fstab", "# /dev/sdb none swap sw 0 0\nUUID=1 / ext4 rw 0 1\n/dev/sda2 none swap sw 0 0\n");
        let one = format!("{NONE}/dev/sda2    partition\t1000\t0\t-2\n/dev/zram0   partition\t1000\t0\t-2\n");
        let used = said(judge(&Case::planted(&[("/proc/swaps", &one), fstab])));
        assert_eq!(used.lines().count(), 4, "{used}");
        assert!(used.contains("swapoff /dev/sda2, and take it out of /etc/fstab"), "{used}");
        assert!(used.contains("swapoff /dev/zram0, and take zram-generator's"), "{used}");
        let later = said(judge(&Case::planted(&[("/proc/swaps", NONE), fstab])));
        assert!(later.starts_with("PROBLEM /etc/fstab makes /dev/sda2 swap"), "{later}");
        assert_eq!(later.lines().count(), 2, "{later}");
        assert_eq!(said(judge(&Case::planted(&[("/proc/swaps", NONE)]))), "");
        assert_eq!(said(judge(&Case::planted(&[("/proc/swaps", &one)]).of_host("hdss7-12"))), "", "no kubelet there");
    }
}
