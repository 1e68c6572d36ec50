//! The kubelet's configuration beside containerd's: cgroup driver, the CRI plugin, the resolver of Pods.
//!
//! Pure. Invariant: what no file says is what the program takes then; two programs are compared only where both have a file.

use daemon::doctor::Trouble;

use super::facts::Case;
use crate::render;
use crate::topology::{Role, Version};

/// The kubelet's configuration.
pub(crate) const KUBELET: &str = "/var/lib/kubelet/config.yaml";
/// containerd's, where a package or kubeadm has it.
pub(crate) const CONTAINERD: &str = "/etc/containerd/config.toml";
/// Where parts of it lie.
pub(crate) const CONTAINERD_PARTS: &str = "/etc/containerd/conf.d";
/// systemd-resolved's list of real servers.
pub(crate) const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// A line `key: value` of YAML or `key = value` of TOML at any depth, without quotes; the last one counts.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let read = |line: &'a str| {
        let line = line.split(" #").next()?.trim();
        let rest = line.strip_prefix(key)?.trim_start();
        let rest = rest.strip_prefix(':').or_else(|| rest.strip_prefix('='))?;
        Some(rest.trim().trim_matches(['"', '\'']))
    };
    text.lines().filter(|line| !line.trim_start().starts_with('#')).filter_map(read).next_back()
}

/// Whether kubelet and containerd keep Pods in the same cgroups.
pub(super) fn cgroups(case: &Case) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    if !case.is(Role::Node) {
        return troubles;
    }
    let parts: Vec<&str> = case.facts.files_in(CONTAINERD_PARTS).map(|(_, text)| text).collect();
    let (path, whole) = configuration(case);
    let containerd = whole.into_iter().chain(parts).collect::<Vec<_>>().join("\n");
    let driver = if value(&containerd, "SystemdCgroup") == Some("true") { "systemd" } else { "cgroupfs" };
    if let (Some(kubelet), Some(_)) = (case.facts.text(KUBELET), whole) {
        let own = value(kubelet, "cgroupDriver").unwrap_or("cgroupfs");
        if own != driver {
            let found = format!(
                "the kubelet keeps Pods by {own} ({KUBELET}), containerd by {driver} ({path}): Pods die under load"
            );
            let fix = "set SystemdCgroup = true in the options of runc for containerd and cgroupDriver: systemd in config.yaml, and restart both";
            troubles.push(Trouble::problem(found, fix));
        }
    }
    let disabled =
        value(&containerd, "disabled_plugins").is_some_and(|list| list.contains("\"cri\"") || list.contains("'cri'"));
    if disabled {
        let found = format!(
            "{path} switches the plugin cri off: the kubelet finds \"unknown service runtime.v1.RuntimeService\""
        );
        troubles
            .push(Trouble::problem(found, "take \"cri\" out of disabled_plugins, and systemctl restart containerd"));
    }
    troubles.extend(controllers(case));
    troubles
}

/// What containerd reads. A host that is to be rendered reads its own file alone, whatever its package has.
fn configuration(case: &Case) -> (&'static str, Option<&str>) {
    match case.facts.text(render::CONTAINERD) {
        None if case.plan.is_none() => (CONTAINERD, case.facts.text(CONTAINERD)),
        rendered => (render::CONTAINERD, rendered),
    }
}

fn controllers(case: &Case) -> Option<Trouble> {
    let Some(text) = case.facts.text("/sys/fs/cgroup/cgroup.controllers") else {
        let version = case.plan.as_ref().and_then(|plan| plan.host.versions.or(&plan.topology.versions).kubernetes);
        let is_refused = version.is_some_and(|version| version.value >= Version::new(1, 35, 0));
        let found = "this host has cgroups of version 1, which kubelets refuse from 1.35 on (failCgroupV1)";
        let fix = "boot with systemd.unified_cgroup_hierarchy=1";
        // Nothing is known of a host whose cgroups could not be read.
        return (is_refused && case.facts.paths.contains("/sys/fs/cgroup")).then(|| Trouble::problem(found, fix));
    };
    let has = |name: &&str| text.split_whitespace().any(|found| found == *name);
    let missing: Vec<&str> = ["cpu", "cpuset", "memory", "pids"].into_iter().filter(|name| !has(name)).collect();
    if missing.is_empty() {
        return None;
    }
    let found = format!("the kernel has no cgroups for {}: the kubelet stops", missing.join(", "));
    Some(Trouble::problem(found, "boot with cgroup_enable=memory cgroup_memory=1, and without cgroup_disable"))
}

/// Whether Pods' DNS ends at real servers.
pub(super) fn resolver(case: &Case) -> Vec<Trouble> {
    let Some(text) = case.facts.text("/etc/resolv.conf").filter(|_| case.is(Role::Node)) else { return Vec::new() };
    let mut troubles = Vec::new();
    let servers: Vec<&str> =
        text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.split_whitespace().next()).collect();
    let own = case.facts.text(KUBELET).and_then(|text| value(text, "resolvConf"));
    let looped = servers.iter().find(|server| server.starts_with("127.") || **server == "::1");
    if let (Some(server), None | Some("/etc/resolv.conf")) = (looped, own) {
        let found = format!("/etc/resolv.conf names {server}, this host's own resolver: CoreDNS asks itself in a loop");
        let fix = if case.facts.paths.contains(RESOLVED) {
            format!("set resolvConf: {RESOLVED} in {KUBELET}")
        } else {
            format!("name a file with the real servers by resolvConf in {KUBELET}")
        };
        // Without a configuration it is not known what the kubelet will take.
        troubles.push(if case.facts.text(KUBELET).is_some() {
            Trouble::problem(found, fix)
        } else {
            Trouble::note(found, fix)
        });
    }
    if servers.len() > 3 {
        let found = format!("/etc/resolv.conf names {} servers, and only the first three are asked", servers.len());
        troubles.push(Trouble::note(found, "leave three of them"));
    }
    troubles
}

/// SELinux and AppArmor, where containers meet them.
pub(super) fn confinement(case: &Case) -> Vec<Trouble> {
    if !case.is(Role::Node) {
        return Vec::new();
    }
    let is = |path: &str, value: &str| case.facts.text(path).map(str::trim) == Some(value);
    let any = |paths: &[&str]| paths.iter().any(|path| case.facts.paths.contains(*path));
    let mut troubles = Vec::new();
    if is("/sys/fs/selinux/enforce", "1") && !any(&SELINUX_POLICY) {
        let found =
            "SELinux enforces, and the policy container-selinux is not there: Pods may not read what they mount";
        troubles.push(Trouble::problem(
            found,
            "dnf install container-selinux; or setenforce 0, and SELINUX=permissive in /etc/selinux/config",
        ));
    }
    if is("/sys/module/apparmor/parameters/enabled", "Y") && !any(&APPARMOR_PARSER) {
        let found =
            "AppArmor is at work, and apparmor_parser is not there: containerd cannot load the profile of containers";
        troubles.push(Trouble::problem(found, "apt-get install apparmor"));
    }
    troubles
}

/// Where the policy of containers lies.
pub(crate) const SELINUX_POLICY: [&str; 3] = [
    "/usr/share/selinux/packages/container.pp.bz2",
    "/var/lib/selinux/targeted/active/modules/200/container",
    "/usr/share/selinux/packages/container.pp",
];

/// Where the parser of profiles lies.
pub(crate) const APPARMOR_PARSER: [&str; 2] = ["/sbin/apparmor_parser", "/usr/sbin/apparmor_parser"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::tests::said;

    const SYSTEMD: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n  SystemdCgroup = true\n";

    #[test]
    fn kubelet_and_containerd_that_disagree_on_cgroups_are_found() {
        let kubelet = |driver| (KUBELET, driver);
        for (driver, containerd, agree) in [
            ("cgroupDriver: systemd\n", SYSTEMD, true),
            ("cgroupDriver: \"systemd\" # as containerd\n", SYSTEMD, true),
            ("kind: KubeletConfiguration\n", SYSTEMD, false),
            ("cgroupDriver: systemd\n", "version = 2\n# SystemdCgroup = true\n", false),
            ("cgroupDriver: cgroupfs\n", "version = 2\n", true),
        ] {
            let found = said(cgroups(&Case::planted(&[kubelet(driver), (CONTAINERD, containerd)])));
            assert_eq!(found.is_empty(), agree, "{driver} {containerd} {found}");
        }
        let parts = [
            kubelet("cgroupDriver: systemd\n"),
            (CONTAINERD, "version = 2\n"),
            ("/etc/containerd/conf.d/runc.toml", SYSTEMD),
        ];
        assert_eq!(said(cgroups(&Case::planted(&parts))), "");
        let off = said(cgroups(&Case::planted(&[(CONTAINERD, "disabled_plugins = [\"cri\"]\n")])));
        assert!(off.contains("switches the plugin cri off"), "{off}");
        let few = said(cgroups(&Case::planted(&[("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n")])));
        assert!(few.contains("no cgroups for memory"), "{few}");
    }

    #[test]
    fn a_resolver_that_leads_back_to_this_host_is_found() {
        let stub = ("/etc/resolv.conf", "nameserver 127.0.0.53\noptions edns0\n");
        let mut case = Case::planted(&[stub, (KUBELET, "clusterDomain: cluster.local\n")]);
        case.facts.paths.insert(RESOLVED.into());
        let found = said(resolver(&case));
        assert!(
            found.starts_with("PROBLEM") && found.contains("resolvConf: /run/systemd/resolve/resolv.conf"),
            "{found}"
        );
        assert!(said(resolver(&Case::planted(&[stub]))).starts_with("note"), "no kubelet yet");
        let good = (KUBELET, "resolvConf: /run/systemd/resolve/resolv.conf\n");
        assert_eq!(said(resolver(&Case::planted(&[stub, good]))), "");
        let many = "nameserver 9.9.9.9\n".repeat(4);
        assert!(said(resolver(&Case::planted(&[("/etc/resolv.conf", &many)]))).contains("names 4 servers"));
    }

    #[test]
    fn selinux_without_its_policy_and_apparmor_without_its_parser_are_found() {
        let mut case =
            Case::planted(&[("/sys/fs/selinux/enforce", "1"), ("/sys/module/apparmor/parameters/enabled", "Y\n")]);
        let found = said(confinement(&case));
        assert!(found.contains("container-selinux") && found.contains("apparmor_parser"), "{found}");
        case.facts.paths.extend([SELINUX_POLICY[1].to_owned(), APPARMOR_PARSER[0].to_owned()]);
        assert_eq!(said(confinement(&case)), "");
        assert_eq!(said(confinement(&Case::planted(&[("/sys/fs/selinux/enforce", "0")]))), "");
    }
}
