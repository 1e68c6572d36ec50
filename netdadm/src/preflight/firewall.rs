//! Rules that deny what other hosts send here, and chains that drop what is forwarded.
//!
//! Pure. Invariant: a rule counts that denies such a packet for sure; netd and ipvs-proxy open chains of the forward hook themselves.

use std::collections::{BTreeMap, BTreeSet};

use daemon::doctor::Trouble;

use super::facts::{Case, Denied};
use crate::topology::{Role, Transport};

/// Ports that are closed to other hosts, and chains that forward nothing.
pub(super) fn judge(case: &Case) -> Vec<Trouble> {
    let mut by: BTreeMap<&str, Vec<&Denied>> = BTreeMap::new();
    for denied in &case.facts.denied {
        by.entry(denied.by.as_str()).or_default().push(denied);
    }
    let mut troubles: Vec<Trouble> = by.into_iter().map(|(by, all)| closed(case, by, &all)).collect();
    if case.is(Role::Node) {
        troubles.extend(case.facts.forward.iter().map(|(chain, obstructed)| {
            if *obstructed {
                let fix = "put an accept of the Pod network in front of what denies there";
                Trouble::problem(format!("{chain}: nothing of ours can stand behind it"), fix)
            } else {
                Trouble::note(chain.clone(), "nothing: netd and ipvs-proxy accept what is theirs in it while they run")
            }
        }));
    }
    troubles
}

fn closed(case: &Case, by: &str, all: &[&Denied]) -> Trouble {
    let ports: BTreeSet<(u16, Transport, &str)> =
        all.iter().map(|one| (one.port, one.transport, one.purpose.as_str())).collect();
    let list: Vec<String> =
        ports.iter().map(|(port, transport, purpose)| format!("{port}/{} ({purpose})", word(*transport))).collect();
    let from: BTreeSet<String> = all.iter().map(|one| one.from.to_string()).collect();
    let first = from.first().map_or("", String::as_str);
    let who =
        if from.len() > 1 { format!("{first} and {} more", from.len().saturating_sub(1)) } else { first.to_owned() };
    Trouble::problem(format!("{by} denies {} from {who}", list.join(", ")), opening(case, &ports))
}

/// The command of the firewall that is at work.
fn opening(case: &Case, ports: &BTreeSet<(u16, Transport, &str)>) -> String {
    let each = |form: &dyn Fn(u16, &str) -> String, between: &str| {
        ports.iter().map(|(port, transport, _)| form(*port, word(*transport))).collect::<Vec<_>>().join(between)
    };
    if case.facts.has_firewalld {
        let ports = each(&|port, word| format!("--add-port={port}/{word}"), " ");
        return format!(
            "firewall-cmd --permanent {ports} && firewall-cmd --reload; or systemctl disable --now firewalld"
        );
    }
    let is_ufw = case
        .facts
        .text("/etc/ufw/ufw.conf")
        .is_some_and(|text| text.lines().any(|line| line.trim().eq_ignore_ascii_case("ENABLED=yes")));
    if is_ufw {
        return each(&|port, word| format!("ufw allow {port}/{word}"), " && ");
    }
    let rules = each(&|port, word| format!("{word} dport {port} accept"), "; ");
    format!("in that chain, in front of what denies, and where your rules are loaded from at boot: {rules}")
}

const fn word(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

/// Rules of both of iptables' halves: each shows only its own.
pub(super) fn halves(case: &Case) -> Vec<Trouble> {
    let (old, new) = (&case.facts.legacy_tables, &case.facts.iptables_nft);
    if old.is_empty() || new.is_empty() {
        return Vec::new();
    }
    let found = format!(
        "iptables-legacy has tables ({}) and iptables-nft has rules ({}): neither shows the other's",
        old.join(", "),
        new.join(", ")
    );
    vec![Trouble::note(
        found,
        "iptables-legacy -F in each of its tables, then modprobe -r iptable_filter iptable_nat iptable_mangle iptable_raw, if nobody needs them",
    )]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::tests::said;

    fn denied(port: u16, from: &str) -> Denied {
        let by = "the policy of inet filter input".into();
        Denied { purpose: "kubelet".into(), port, transport: Transport::Tcp, from: from.parse().unwrap(), by }
    }

    #[test]
    fn closed_ports_are_one_finding_for_each_rule_and_opened_by_their_own_tool() {
        let mut case = Case::default();
        case.facts.denied = vec![denied(10250, "10.4.7.11"), denied(10250, "10.4.7.12"), denied(10256, "10.4.7.11")];
        let found = said(judge(&case));
        assert!(found.contains("the policy of inet filter input denies 10250/tcp (kubelet), 10256/tcp (kubelet) from 10.4.7.11 and 1 more"), "{found}");
        assert!(found.contains("tcp dport 10250 accept; tcp dport 10256 accept"), "{found}");
        case.facts.texts.insert("/etc/ufw/ufw.conf".into(), "ENABLED=yes\nLOGLEVEL=low\n".into());
        assert!(said(judge(&case)).contains("ufw allow 10250/tcp && ufw allow 10256/tcp"));
        case.facts.has_firewalld = true;
        assert!(
            said(judge(&case)).contains(
                "firewall-cmd --permanent --add-port=10250/tcp --add-port=10256/tcp && firewall-cmd --reload"
            )
        );
    }

    #[test]
    fn a_chain_that_drops_what_is_forwarded_is_a_note_unless_nothing_can_be_accepted_in_it() {
        let mut case = Case::default();
        case.facts.forward = vec![("the policy of ip filter FORWARD drops".into(), false)];
        assert!(said(judge(&case)).starts_with("note the policy of ip filter FORWARD drops"));
        case.facts.forward = vec![("the policy of ip filter FORWARD drops".into(), true)];
        assert!(said(judge(&case)).starts_with("PROBLEM the policy of ip filter FORWARD drops: nothing of ours"));
        assert_eq!(said(judge(&case.of_host("hdss7-11"))), "", "no Pods there");
    }

    #[test]
    fn rules_of_both_halves_of_iptables_are_noted() {
        let mut case = Case::default();
        case.facts.legacy_tables = vec!["filter".into()];
        assert_eq!(said(halves(&case)), "");
        case.facts.iptables_nft = vec!["ip nat".into()];
        assert!(
            said(halves(&case)).contains("iptables-legacy has tables (filter) and iptables-nft has rules (ip nat)")
        );
    }
}
