//! Versions: those that are known, and which of them go together.
//!
//! Sources: kubernetes.io "Version Skew Policy"; etcd's upgrade guides; containerd's releases; the changes of flags are
//! in `docs/netdadm.md`.

use crate::document::{Findings, Located};
use crate::topology::{Host, Role, Topology, Version, Versions};

/// The first and the last minor of Kubernetes whose flags are known.
const KUBERNETES: (u32, u32) = (16, 36);

/// Asks whether the versions go together.
pub(super) fn check(topology: &Topology, findings: &mut Findings) {
    let common = &topology.versions;
    if topology.of(Role::Etcd).next().is_some() {
        present(topology, "etcd", Role::Etcd, |versions| versions.etcd.is_some(), findings);
    }
    present(topology, "kubernetes", Role::Node, |versions| versions.kubernetes.is_some(), findings);
    present(topology, "kubernetes", Role::ControlPlane, |versions| versions.kubernetes.is_some(), findings);
    known("versions", common, findings);
    for host in &topology.hosts {
        known(&format!("hosts.{}.versions", host.name.value), &host.versions, findings);
    }
    etcd_members(topology, findings);
    store_of_servers(topology, findings);
    skew(topology, findings);
    families(topology, findings);
    for host in topology.of(Role::Node) {
        runtime(topology, host, findings);
    }
}

fn present(topology: &Topology, name: &str, role: Role, has: impl Fn(&Versions) -> bool, findings: &mut Findings) {
    for host in topology.of(role) {
        if !has(&host.versions.or(&topology.versions)) {
            let field = format!("versions.{name}");
            findings.error(
                host.name.at,
                &field,
                format!("{} has none, which has the role {role}", host.name.value),
                "three numbers such as 1.20.2",
            );
            return;
        }
    }
}

fn known(path: &str, versions: &Versions, findings: &mut Findings) {
    if let Some(found) = versions.kubernetes {
        let (first, last) = KUBERNETES;
        if found.value < Version::new(1, first, 0) {
            let accepted = format!("1.{first}.0 to 1.{last}");
            findings.error(
                found.at,
                &format!("{path}.kubernetes"),
                format!("{}: its flags are not known", found.value),
                accepted,
            );
        } else if found.value >= Version::new(1, last.saturating_add(1), 0) {
            let said = format!("{} is newer than what is known here", found.value);
            findings.warning(found.at, &format!("{path}.kubernetes"), said, format!("1.{first}.0 to 1.{last}"));
        }
    }
    if let Some(found) = versions.etcd {
        let field = format!("{path}.etcd");
        let unpersisted = Version::new(3, 5, 1)..Version::new(3, 5, 20);
        if found.value < Version::new(3, 4, 0) {
            findings.error(found.at, &field, format!("{} has no learners", found.value), "3.4.0 or newer");
        } else if found.value >= Version::new(3, 7, 0) {
            findings.warning(
                found.at,
                &field,
                format!("{} is newer than what is known here", found.value),
                "3.4 to 3.6",
            );
        } else if unpersisted.contains(&found.value) {
            let said = format!(
                "{} does not keep the promotion of a learner: 3.6 refuses its members (etcd-io/etcd#19557)",
                found.value
            );
            findings.warning(found.at, &field, said, "3.5.26 or newer");
        }
    }
}

/// One minor and one member at a time: two apart never form a cluster.
fn etcd_members(topology: &Topology, findings: &mut Findings) {
    let members = topology.of(Role::Etcd).filter_map(|host| host.versions.or(&topology.versions).etcd);
    let members: Vec<Located<Version>> = members.collect();
    let Some(least) = members.iter().min_by_key(|found| found.value) else { return };
    for found in members.iter().filter(|found| found.value.minor.abs_diff(least.value.minor) > 1) {
        let said = format!("{} beside a member of {}", found.value, least.value);
        findings.error(found.at, "versions.etcd", said, "members that are one minor version apart at most");
    }
}

/// What the API server asks of its store.
fn store_of_servers(topology: &Topology, findings: &mut Findings) {
    let newest = topology.of(Role::ControlPlane).filter_map(|host| kubernetes(topology, host)).max();
    let Some(newest) = newest else { return };
    for host in topology.of(Role::Etcd) {
        let Some(etcd) = host.versions.or(&topology.versions).etcd else { continue };
        if newest >= Version::new(1, 34, 0) && etcd.value < Version::new(3, 5, 24) {
            let said = format!("{} below a Kubernetes {newest}", etcd.value);
            findings.error(etcd.at, "versions.etcd", said, "3.5.24 or newer");
        } else if newest >= Version::new(1, 22, 0) && etcd.value < Version::new(3, 5, 0) {
            let said = format!("{} below a Kubernetes {newest}, which is tested with 3.5", etcd.value);
            findings.warning(etcd.at, "versions.etcd", said, "3.5 or newer");
        }
    }
}

fn kubernetes(topology: &Topology, host: &Host) -> Option<Version> {
    host.versions.or(&topology.versions).kubernetes.map(|found| found.value)
}

/// API servers are one minor apart at most; a kubelet is never newer than any, and a few older.
fn skew(topology: &Topology, findings: &mut Findings) {
    let servers: Vec<Version> = topology.of(Role::ControlPlane).filter_map(|host| kubernetes(topology, host)).collect();
    let (Some(oldest), Some(newest)) = (servers.iter().min(), servers.iter().max()) else { return };
    if newest.minor.abs_diff(oldest.minor) > 1 {
        let all = topology.of(Role::ControlPlane).filter_map(|host| host.versions.or(&topology.versions).kubernetes);
        if let Some(found) = all.max_by_key(|found| found.value) {
            let said = format!("{} beside an API server of {oldest}", found.value);
            findings.error(
                found.at,
                "versions.kubernetes",
                said,
                "API servers that are one minor version apart at most",
            );
        }
    }
    for host in topology.of(Role::Node) {
        let Some(Located { at, value }) = host.versions.or(&topology.versions).kubernetes else { continue };
        let field = format!("hosts.{}.versions.kubernetes", host.name.value);
        let older = if value >= Version::new(1, 25, 0) { 3 } else { 2 };
        if value.minor > oldest.minor {
            let said = format!("a kubelet of {value}, newer than the API server of {oldest}");
            findings.error(at, &field, said, "at most the version of the oldest API server");
        } else if newest.minor.saturating_sub(value.minor) > older {
            let said = format!("a kubelet of {value} below an API server of {newest}");
            findings.error(at, &field, said, format!("at most {older} minor versions older"));
        }
    }
}

/// Two families are switched on everywhere from this version on; before, a gate of each component switches them on, and none is set here.
const DUAL: Version = Version::new(1, 21, 0);

fn families(topology: &Topology, findings: &mut Findings) {
    let networks = [("pods", &topology.networks.pods), ("services", &topology.networks.services)];
    let Some((name, second)) = networks.iter().find_map(|(name, all)| Some((name, all.get(1)?))) else { return };
    let runs = |host: &&Host| host.has(Role::ControlPlane) || host.has(Role::Node);
    let oldest = topology.hosts.iter().filter(runs).filter_map(|host| kubernetes(topology, host)).min();
    if let Some(oldest) = oldest.filter(|oldest| *oldest < DUAL) {
        let said = format!("a network of the second family, which Kubernetes {oldest} has behind a feature gate");
        findings.error(second.at, &format!("networks.{name}"), said, format!("one family before {DUAL}"));
    }
}

/// Which containerd a kubelet can use.
fn runtime(topology: &Topology, host: &Host, findings: &mut Findings) {
    let versions = host.versions.or(&topology.versions);
    let Some(kubelet) = versions.kubernetes else { return };
    let field = format!("hosts.{}.versions.containerd", host.name.value);
    match versions.containerd {
        None if kubelet.value >= Version::new(1, 24, 0) => {
            let said = format!("none, and a kubelet of {} knows no docker", kubelet.value);
            findings.error(host.name.at, &field, said, "1.6.0 or newer");
        }
        Some(found) if kubelet.value >= Version::new(1, 26, 0) && found.value < Version::new(1, 6, 0) => {
            let said = format!("{} has no CRI v1, which a kubelet of {} needs", found.value, kubelet.value);
            findings.error(found.at, &field, said, "1.6.0 or newer");
        }
        Some(found) if kubelet.value < Version::new(1, 23, 0) && found.value >= Version::new(2, 0, 0) => {
            let said = format!("{} has no CRI v1alpha2, which a kubelet of {} needs", found.value, kubelet.value);
            findings.error(found.at, &field, said, "1.x");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    /// What is said of the reference cluster with these versions, and with those of single hosts.
    fn said(kubernetes: &str, etcd: &str, containerd: &str, hosts: &[(&str, &str)]) -> String {
        let mut text = include_str!("../../../configs/clusters/reference.yaml")
            .replace("kubernetes: 1.20.2", &format!("kubernetes: {kubernetes}"))
            .replace("etcd: 3.4.23", &format!("etcd: {etcd}"))
            .replace("  containerd: 1.6.20\n", &format!("  {containerd}\n"));
        for (host, versions) in hosts {
            let begin = format!("  {host}: {{");
            assert!(text.contains(&begin), "{text}");
            text = text.replace(&begin, &format!("{begin}versions: {{{versions}}}, "));
        }
        let findings = crate::check::text(&text).findings;
        findings.iter().map(|finding| finding.to_string() + "\n").filter(|said| said.contains("ersion")).collect()
    }

    #[test]
    fn each_rule_of_versions_begins_and_ends_where_its_source_says() {
        let docker = "";
        // Kubernetes, etcd, containerd, and what is said at the first or the last version of a rule.
        let cases = [
            ("1.15.9", "3.4.0", "containerd: 1.5.0", "1.15.9: its flags are not known"),
            ("1.16.0", "3.4.0", "containerd: 1.5.0", ""),
            ("1.36.9", "3.6.0", "containerd: 2.0.0", ""),
            (
                "1.37.0",
                "3.6.0",
                "containerd: 2.0.0",
                "warning: versions.kubernetes: 1.37.0 is newer than what is known",
            ),
            ("1.20.0", "3.3.99", docker, "3.3.99 has no learners"),
            ("1.20.0", "3.6.9", docker, ""),
            ("1.20.0", "3.7.0", docker, "warning: versions.etcd: 3.7.0 is newer than what is known"),
            ("1.20.0", "3.5.0", docker, ""),
            ("1.20.0", "3.5.1", docker, "3.5.1 does not keep the promotion"),
            ("1.20.0", "3.5.19", docker, "3.5.19 does not keep the promotion"),
            ("1.20.0", "3.5.20", docker, ""),
            ("1.21.9", "3.4.9", docker, ""),
            (
                "1.22.0",
                "3.4.9",
                docker,
                "warning: versions.etcd: 3.4.9 below a Kubernetes 1.22.0, which is tested with 3.5",
            ),
            ("1.22.0", "3.5.0", docker, ""),
            ("1.33.9", "3.5.23", "containerd: 2.0.0", ""),
            ("1.34.0", "3.5.23", "containerd: 2.0.0", "3.5.23 below a Kubernetes 1.34.0; accepted: 3.5.24 or newer"),
            ("1.34.0", "3.5.24", "containerd: 2.0.0", ""),
            ("1.23.9", "3.5.0", docker, ""),
            ("1.24.0", "3.5.0", docker, "none, and a kubelet of 1.24.0 knows no docker"),
            ("1.25.9", "3.5.0", "containerd: 1.5.9", ""),
            ("1.26.0", "3.5.0", "containerd: 1.5.9", "1.5.9 has no CRI v1, which a kubelet of 1.26.0 needs"),
            ("1.26.0", "3.5.0", "containerd: 1.6.0", ""),
            ("1.22.9", "3.5.0", "containerd: 1.7.9", ""),
            ("1.22.9", "3.5.0", "containerd: 2.0.0", "2.0.0 has no CRI v1alpha2, which a kubelet of 1.22.9 needs"),
            ("1.23.0", "3.5.0", "containerd: 2.0.0", ""),
        ];
        for (kubernetes, etcd, containerd, wanted) in cases {
            let found = said(kubernetes, etcd, containerd, &[]);
            let case = format!("{kubernetes} {etcd} {containerd}: {found}");
            assert!(found.contains(wanted) && found.is_empty() == wanted.is_empty(), "{case}");
        }
    }

    #[test]
    fn versions_of_single_hosts_are_held_against_the_others() {
        let cases = [
            ("1.24.0", "hdss7-21", "kubernetes: 1.22.0", ""),
            ("1.24.0", "hdss7-21", "kubernetes: 1.21.0", "a kubelet of 1.21.0 below an API server of 1.24.0"),
            ("1.28.0", "hdss7-21", "kubernetes: 1.25.0", ""),
            ("1.27.0", "hdss7-21", "kubernetes: 1.24.0", "accepted: at most 2 minor versions older"),
            ("1.29.0", "hdss7-21", "kubernetes: 1.25.0", "accepted: at most 3 minor versions older"),
            ("1.24.0", "hdss7-21", "kubernetes: 1.25.0", "a kubelet of 1.25.0, newer than the API server of 1.24.0"),
            ("1.24.0", "hdss7-21", "etcd: 3.6.0", ""),
            ("1.24.0", "hdss7-21", "etcd: 3.7.0", "3.7.0 beside a member of 3.5.21"),
            ("1.24.0", "hdss7-21", "etcd: 3.3.0", "hosts.hdss7-21.versions.etcd: 3.3.0 has no learners"),
        ];
        for (kubernetes, host, versions, wanted) in cases {
            let found = said(kubernetes, "3.5.21", "containerd: 1.7.0", &[(host, versions)]);
            assert!(
                found.contains(wanted) && found.is_empty() == wanted.is_empty(),
                "{kubernetes} {versions}: {found}"
            );
        }
    }

    #[test]
    fn api_servers_are_named_with_the_newest_and_the_oldest() {
        let text = include_str!("../../../configs/clusters/reference.yaml")
            .replace("roles: etcd}", "roles: [etcd, control-plane]}");
        let of = |older: &str| {
            let text = text.replace("1.20.2", "1.24.0").replace("3.4.23", "3.5.21");
            let text = ["hdss7-12", "hdss7-21", "hdss7-22"].iter().fold(text, |text, host| {
                text.replace(&format!("  {host}: {{"), &format!("  {host}: {{versions: {{kubernetes: {older}}}, "))
            });
            crate::check::text(&text).findings.iter().map(|finding| finding.to_string() + "\n").collect::<String>()
        };
        let found = of("1.22.0");
        assert!(found.contains("versions.kubernetes: 1.24.0 beside an API server of 1.22.0"), "{found}");
        let found = of("1.23.0");
        assert!(!found.contains("beside an API server"), "{found}");
    }

    #[test]
    fn who_needs_a_version_has_one() {
        let reference = include_str!("../../../configs/clusters/reference.yaml");
        for (line, wanted) in [
            ("  etcd: 3.4.23\n", ["versions.etcd: hdss7-12 has none, which has the role etcd"].as_slice()),
            (
                "  kubernetes: 1.20.2\n",
                &["hdss7-11 has none, which has the role control-plane", "hdss7-21 has none, which has the role node"],
            ),
        ] {
            let findings = crate::check::text(&reference.replace(line, "")).findings;
            let found: String = findings.iter().map(|finding| finding.to_string() + "\n").collect();
            assert!(wanted.iter().all(|wanted| found.contains(wanted)), "{found}");
        }
    }
}
