//! How a cluster of etcd is made of a snapshot: which commands on which host, in which order.
//!
//! Invariants: nothing is started before every member has its data from the same file; no data is removed; the new cluster has another
//! token, so that no member of the old one finds it.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::Snapshot;
use crate::render::{DATA, initial_members};
use crate::topology::{Host, Program, Role, Topology, Version};

/// From here on a revision can be skipped, by a program of its own.
const BUMPS: Version = Version::new(3, 5, 0);

/// Hexadecimal digits of a digest that tell snapshots apart.
const SHORT: usize = 8;

/// The commands, host by host. `file` is where the snapshot lies on each member's host.
pub(crate) fn instructions(topology: &Topology, snapshot: &Snapshot, file: &str) -> String {
    let short = snapshot.digest.get(..SHORT).unwrap_or_default();
    let cluster = topology.cluster.as_ref().map_or_else(String::new, |cluster| cluster.value.to_string());
    let mut text = format!(
        "{file}: {} bytes, whole, SHA-256 {}\n\
         A cluster of etcd made of it forgets everything that was written since it was taken. netdadm executes nothing of this: etcd's data folders are\n\
         written by etcd's own program alone, on each host. Copy the file to {file} on every member, with mode 0600, and take one step after the other.\n",
        snapshot.size, snapshot.digest
    );
    let members: Vec<&Host> = topology.of(Role::Etcd).collect();
    let control: Vec<&Host> = topology.of(Role::ControlPlane).collect();
    step(&mut text, "1. Stop the API servers, so that nothing is written", &control, |_| {
        vec!["systemctl stop kube-apiserver.service".to_owned()]
    });
    step(&mut text, "2. Stop every member, and move its data aside", &members, |_| {
        vec!["systemctl stop etcd.service".to_owned(), format!("mv {DATA} {DATA}.before-{short}")]
    });
    step(&mut text, "3. Write the same data on every member", &members, |host| {
        vec![restore(topology, host, file, &format!("{cluster}-{short}"))]
    });
    step(&mut text, "4. Start every member; they are ready when a quorum of them runs", &members, |_| {
        vec!["systemctl start --no-block etcd.service".to_owned()]
    });
    step(
        &mut text,
        "5. Start the API servers when `netdadm status --only etcd` is well, and what leads by Leases anew",
        &control,
        |_| {
            vec![
                "systemctl start kube-apiserver.service".to_owned(),
                "systemctl restart kube-controller-manager.service kube-scheduler.service".to_owned(),
            ]
        },
    );
    let nodes: Vec<&Host> = topology.with_netd().collect();
    step(&mut text, "6. Have nodes forget what they knew; Pods and connections stay", &nodes, |host| {
        let units =
            if host.has(Role::Node) { "kubelet.service netd.service ipvs-proxy.service" } else { "netd.service" };
        vec![format!("systemctl restart {units}")]
    });
    text + &remark(topology)
}

/// What cannot be made good.
fn remark(topology: &Topology) -> String {
    let old = topology.of(Role::Etcd).filter(|host| !bumps(topology, host)).count();
    if old == 0 {
        return "Revisions are raised by 1000000000, so that no watch goes on from one that was.\n".to_owned();
    }
    "etcd before 3.5 cannot raise its revision: clients of the API that are not restarted (operators, controllers of your own) may hold objects that\n\
     are no more; restart them.\n"
        .to_owned()
}

fn bumps(topology: &Topology, host: &Host) -> bool {
    host.versions.or(&topology.versions).etcd.is_none_or(|version| version.value >= BUMPS)
}

fn step(text: &mut String, title: &str, hosts: &[&Host], commands: impl Fn(&Host) -> Vec<String>) {
    // Writing into a text does not fail.
    let _ = writeln!(text, "{title}:");
    for host in hosts {
        for command in commands(host) {
            let _ = writeln!(text, "  {}# {command}", host.name.value);
        }
    }
}

fn restore(topology: &Topology, host: &Host, file: &str, token: &str) -> String {
    let folder = host.folder(topology, Program::Etcd);
    let name = &host.name.value;
    let bumps = bumps(topology, host);
    // What joined a cluster once is a member from the beginning now.
    let whole = Host { joins: false, ..host.clone() };
    let members: Vec<(&str, String)> = initial_members(topology, &whole).collect();
    let own = members.iter().find(|(member, _)| member == name).map_or("", |(_, peer)| peer);
    let members = members.iter().map(|(name, peer)| format!("{name}={peer}")).collect::<Vec<_>>().join(",");
    let (program, more) = if bumps {
        (format!("{folder}/etcdutl"), " --bump-revision 1000000000 --mark-compacted")
    } else {
        (format!("ETCDCTL_API=3 {folder}/etcdctl"), "")
    };
    format!(
        "{program} snapshot restore {} --name {name} --initial-cluster {members} --initial-cluster-token {token} \
         --initial-advertise-peer-urls {own} --data-dir {DATA}{more}",
        word(file)
    )
}

/// `text` as one word of a command line.
fn word(text: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@".contains(c);
    match text.chars().all(plain) {
        true => Cow::Borrowed(text),
        false => Cow::Owned(format!("'{}'", text.replace('\'', "'\\''"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instructed(version: &str) -> String {
        let text = include_str!("../../../configs/clusters/reference.yaml")
            .replace("etcd: 3.4.23", &format!("etcd: {version}"));
        assert!(text.contains(&format!("etcd: {version}")), "{text}");
        let topology = crate::check::text(&text).topology.unwrap();
        let snapshot = Snapshot { size: 544, digest: "0123456789abcdef".repeat(4) };
        instructions(&topology, &snapshot, "/root/etcd.db")
    }

    #[test]
    fn every_member_gets_the_same_file_between_the_last_stop_and_the_first_start() {
        let text = instructed("3.4.23");
        let commands: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("  ")).collect();
        let last = |part: &str| commands.iter().rposition(|line| line.contains(part)).unwrap();
        let first = |part: &str| commands.iter().position(|line| line.contains(part)).unwrap();
        assert!(last("stop kube-apiserver") < first("stop etcd"));
        assert!(last("mv ") < first("snapshot restore"));
        assert!(last("snapshot restore") < first("start --no-block etcd"));
        assert!(last("start --no-block etcd") < first("start kube-apiserver"));
        assert_eq!(commands.iter().filter(|line| line.contains("snapshot restore")).count(), 3);
        assert_eq!(
            commands[first("hdss7-21# ETCDCTL_API")],
            "hdss7-21# ETCDCTL_API=3 /usr/bin/etcdctl snapshot restore /root/etcd.db --name hdss7-21 --initial-cluster \
             hdss7-12=https://10.4.7.12:2380,hdss7-21=https://10.4.7.21:2380,hdss7-22=https://10.4.7.22:2380 \
             --initial-cluster-token reference-01234567 --initial-advertise-peer-urls https://10.4.7.21:2380 --data-dir /var/lib/etcd/default.etcd"
        );
        assert!(text.contains("mv /var/lib/etcd/default.etcd /var/lib/etcd/default.etcd.before-01234567"), "{text}");
        assert!(text.contains("cannot raise its revision"), "{text}");
    }

    #[test]
    fn from_3_5_on_the_revision_is_raised_by_the_program_that_can() {
        let text = instructed("3.5.30");
        assert!(text.contains("# /usr/bin/etcdutl snapshot restore /root/etcd.db --name hdss7-12 "), "{text}");
        assert!(
            text.contains("--data-dir /var/lib/etcd/default.etcd --bump-revision 1000000000 --mark-compacted\n"),
            "{text}"
        );
        assert!(!text.contains("etcdctl"), "{text}");
    }

    #[test]
    fn nodes_are_restarted_last_with_what_runs_there_and_3_5_0_raises_revisions() {
        let text = instructed("3.5.0");
        assert!(text.contains("Revisions are raised") && text.contains("etcdutl"), "{text}");
        assert!(instructed("3.4.99").contains("cannot raise its revision"));
        let last = text.split("6. Have nodes forget").nth(1).unwrap();
        assert!(
            last.contains("hdss7-21# systemctl restart kubelet.service netd.service ipvs-proxy.service\n"),
            "{last}"
        );
        assert!(last.contains("hdss7-11# systemctl restart netd.service\n"), "{last}");
    }

    #[test]
    fn a_file_of_any_name_is_one_word_of_the_commands() {
        let cases = [
            ("/root/etcd-1.2.db", "/root/etcd-1.2.db"),
            ("/my backups/etcd.db", "'/my backups/etcd.db'"),
            ("/a;reboot $(b)", "'/a;reboot $(b)'"),
            ("/it's", "'/it'\\''s'"),
        ];
        for (file, expected) in cases {
            assert_eq!(word(file), expected);
        }
        let topology = crate::check::text(include_str!("../../../configs/clusters/reference.yaml")).topology.unwrap();
        let snapshot = Snapshot { size: 544, digest: "0123456789abcdef".repeat(4) };
        let text = instructions(&topology, &snapshot, "/a;reboot");
        assert!(text.contains(" snapshot restore '/a;reboot' --name hdss7-12 "), "{text}");
    }
}
