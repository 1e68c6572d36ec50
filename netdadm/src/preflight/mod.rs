//! `preflight`: what on this host keeps a cluster from coming up or loses packets, each finding with the command that mends it.
//!
//! Pure: [`Facts`] are read by [`crate::facts`], a room judges one group of them. Invariants: every check is made, whatever the
//! others found; a problem is what stops a component or drops packets, a note what works and surprises; without a topology this host
//! may be for everything.

mod bridge;
mod clock;
mod disk;
mod facts;
mod features;
mod firewall;
mod forwarding;
mod leftovers;
mod limits;
mod names;
mod network;
mod ports;
mod runtime;
mod swap;
mod sysctl;
#[cfg(test)]
mod tests;

use daemon::doctor::{self, Check, Finding};

pub(crate) use disk::PLACES;
pub(crate) use facts::{Case, Clock, Denied, Disk, Facts, Link, Plan, Process, Route, Socket, Way};

/// Folders whose files the checks read.
pub(crate) fn folders() -> impl Iterator<Item = &'static str> {
    let more = [leftovers::NETWORKS, leftovers::STATIC_PODS, runtime::CONTAINERD_PARTS];
    let keepers = leftovers::NETWORK_MANAGER.into_iter().chain(leftovers::NETWORKD);
    sysctl::FOLDERS.into_iter().chain(more).chain(keepers)
}

/// Single files that the checks read, beside parameters of the kernel.
pub(crate) const FILES: [&str; 5] =
    [sysctl::LAST, leftovers::APPLIED, runtime::KUBELET, runtime::CONTAINERD, crate::render::CONTAINERD];

/// Files and folders of which the checks ask whether they are there.
pub(crate) fn paths() -> impl Iterator<Item = &'static str> {
    let programs = runtime::SELINUX_POLICY.into_iter().chain(runtime::APPARMOR_PARSER);
    let more = [runtime::RESOLVED, "/run/NetworkManager", "/run/systemd/netif/links", "/sys/fs/cgroup"];
    leftovers::PATHS.into_iter().map(|(path, _)| path).chain(programs).chain(more)
}

/// The checks in the order in which they are made.
const CHECKS: [Check<Case>; 24] = [
    Check { name: "swap", well: "no swap is used, and none comes back", judge: swap::judge },
    Check { name: "name", well: "this host has a name that a Node can have", judge: names::own },
    Check { name: "names", well: "names of hosts lead to their addresses", judge: names::all },
    Check { name: "clock", well: "the clock is kept", judge: clock::judge },
    Check { name: "forwarding", well: "packets are forwarded", judge: forwarding::judge },
    Check { name: "br_netfilter", well: "bridged packets pass the rules", judge: bridge::judge },
    Check { name: "rp_filter", well: "replies may come by any link", judge: forwarding::reverse_path },
    Check { name: "conntrack", well: "the table of connections is large enough", judge: limits::conntrack },
    Check { name: "inotify", well: "there are watches enough", judge: limits::inotify },
    Check { name: "neighbours", well: "there is room for neighbours", judge: limits::neighbours },
    Check { name: "kernel", well: "the kernel has what our programs use", judge: features::judge },
    Check { name: "cgroups", well: "kubelet and containerd agree on cgroups", judge: runtime::cgroups },
    Check { name: "confinement", well: "nothing confines containers without a policy", judge: runtime::confinement },
    Check { name: "resolver", well: "Pods' questions end at real servers", judge: runtime::resolver },
    Check { name: "ports", well: "this host's ports are free or its own", judge: ports::judge },
    Check { name: "node ports", well: "node ports are free", judge: ports::node_ports },
    Check { name: "firewall", well: "no rule denies what other hosts send", judge: firewall::judge },
    Check { name: "iptables", well: "rules are in one half of iptables", judge: firewall::halves },
    Check { name: "routes", well: "every other host is reached from this one's address", judge: network::ways },
    Check { name: "mtu", well: "packets of Pods fit", judge: network::mtu },
    Check { name: "overlaps", well: "no route leads into Pods' or Services' networks", judge: network::overlaps },
    Check { name: "disk", well: "there is room on the disks", judge: disk::judge },
    Check { name: "leftovers", well: "nothing is left of another cluster", judge: leftovers::judge },
    Check { name: "keepers", well: "nobody deletes links and routes of others", judge: leftovers::keepers },
];

/// Those that judge this host beside the others.
const OF_CLUSTERS: [&str; 4] = ["firewall", "routes", "mtu", "overlaps"];

/// Makes every check.
pub(crate) fn findings(case: &Case) -> Vec<Finding> {
    let mut findings = doctor::examine(&CHECKS, case);
    for finding in findings.iter_mut().filter(|finding| finding.severity == doctor::Severity::Ok) {
        let (reason, fix) = match case.facts.unread.get(finding.check) {
            Some(reason) => (reason.as_str(), "run it as root on the host itself"),
            None if case.plan.is_none() && OF_CLUSTERS.contains(&finding.check) => {
                ("nobody says who the other hosts are", "name the topology: -f cluster.yaml")
            }
            None => continue,
        };
        finding.severity = doctor::Severity::Note;
        finding.found = format!("this could not be asked: {reason}");
        fix.clone_into(&mut finding.fix);
    }
    findings
}
