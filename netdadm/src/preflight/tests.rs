//! What the checks say together.

use daemon::doctor::{self, Check, Trouble};

use super::*;

/// Troubles as a person reads them, one with its command below.
pub(super) fn said(troubles: Vec<Trouble>) -> String {
    if troubles.is_empty() {
        return String::new();
    }
    let check = Check { name: "", well: "", judge: |troubles: &Vec<Trouble>| troubles.clone() };
    let text = doctor::text(&doctor::examine(&[check], &troubles));
    let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn what_could_not_be_asked_is_never_taken_for_well() {
    let mut case = Case::default();
    case.facts.unread.insert("clock", "adjtimex: EPERM".into());
    let all = findings(&case);
    let clock = all.iter().find(|finding| finding.check == "clock").unwrap();
    assert_eq!(clock.severity, doctor::Severity::Note);
    assert_eq!(clock.found, "this could not be asked: adjtimex: EPERM");
    let routes = all.iter().find(|finding| finding.check == "routes").unwrap();
    assert_eq!(routes.fix, "name the topology: -f cluster.yaml");
    let known = findings(&Case::default().of_host("hdss7-21"));
    assert!(known.iter().any(|finding| finding.check == "routes" && finding.severity == doctor::Severity::Ok));
    assert!(CHECKS.iter().all(|check| all.iter().any(|finding| finding.check == check.name)));
    assert!(CHECKS.iter().all(|check| check.name.len() <= 12), "names stand in a column");
}
