//! What is rendered: the reference cluster whole, the lists of the other clusters, and what differs by version.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::{Tree, order};
use crate::check;
use crate::topology::Topology;

const REFERENCE: &str = include_str!("../../../configs/clusters/reference.yaml");

/// The other clusters that the project ships.
const OTHERS: [(&str, &str); 3] = [
    ("kubeadm", include_str!("../../../configs/clusters/kubeadm.yaml")),
    ("three-nodes", include_str!("../../../configs/clusters/three-nodes.yaml")),
    ("atomic", include_str!("../../../configs/clusters/atomic.yaml")),
];

fn topology(text: &str) -> Topology {
    let checked = check::text(text);
    checked.topology.unwrap_or_else(|| panic!("{:#?}", checked.findings))
}

fn tree(topology: &Topology, name: &str) -> Tree {
    let host = topology.hosts.iter().find(|host| host.name.value == name).unwrap();
    super::host(topology, host)
}

fn text(tree: &Tree, path: &str) -> String {
    let file = tree.files.get(Path::new(path));
    file.unwrap_or_else(|| panic!("no {path}: {:#?}", tree.files.keys())).text.clone()
}

/// Every file and unit of a cluster; what two hosts have alike stands there once.
fn printed(topology: &Topology) -> String {
    let mut text = String::new();
    let mut seen: BTreeMap<(String, String), String> = BTreeMap::new();
    for host in &topology.hosts {
        let (name, tree) = (&host.name.value, super::host(topology, host));
        for (path, file) in &tree.files {
            let path = path.display().to_string();
            let _ = writeln!(text, "==== {name}:{path} {}", file.mode);
            match seen.get(&(path.clone(), file.text.clone())) {
                Some(other) => drop(writeln!(text, "as on {other}")),
                None => text += &file.text,
            }
            seen.entry((path, file.text.clone())).or_insert_with(|| name.clone());
        }
        text += &units(name, &tree);
    }
    text
}

fn units(name: &str, tree: &Tree) -> String {
    let mut text = String::new();
    for unit in &tree.units {
        let paths: Vec<String> = unit.restart.iter().map(|path| path.display().to_string()).collect();
        let ready = unit.ready.as_ref().map_or_else(String::new, |ready| format!(", ready at {}", ready.url));
        let wait = if unit.wait { "" } else { ", not waited for" };
        let _ = writeln!(text, "---- {name} {}{ready}{wait}: {}", unit.name, paths.join(" "));
    }
    text
}

/// Compares with a file beside this one; what differs is written beside it, to be moved over it once it has been read.
fn differing(name: &str, text: &str) -> Option<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/render/golden").join(name);
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    let new = file.with_extension("new");
    (expected != text).then(|| {
        std::fs::write(&new, text).unwrap();
        format!("diff {} {}", file.display(), new.display())
    })
}

#[test]
fn the_reference_cluster_is_rendered_as_its_golden_text() {
    assert_eq!(differing("reference.txt", &printed(&topology(REFERENCE))), None);
}

#[test]
fn the_other_clusters_have_their_files_and_units() {
    let list = |(name, file): (&str, &str)| {
        let topology = topology(file);
        let mut listed = String::new();
        for host in &topology.hosts {
            let tree = super::host(&topology, host);
            for path in tree.files.keys() {
                let _ = writeln!(listed, "{}:{}", host.name.value, path.display());
            }
            listed += &units(&host.name.value, &tree);
        }
        differing(&format!("{name}.txt"), &listed)
    };
    assert_eq!(OTHERS.into_iter().filter_map(list).collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn rendering_again_gives_the_same_and_no_key_is_in_it() {
    for file in [REFERENCE].into_iter().chain(OTHERS.map(|(_, file)| file)) {
        let topology = topology(file);
        let once = printed(&topology);
        assert_eq!(once, printed(&topology));
        assert!(!once.contains("PRIVATE KEY"));
    }
}

/// The reference cluster with other versions.
fn versions(kubernetes: &str, etcd: &str, containerd: &str) -> Topology {
    let text = REFERENCE.replace("1.20.2", kubernetes).replace("3.4.23", etcd).replace("1.6.20", containerd);
    topology(&text)
}

/// Checks what stands in a file and what does not.
fn holds(text: &str, what: &str, has: &[&str], lacks: &[&str]) {
    for word in has {
        assert!(text.contains(word), "{what}: no {word} in\n{text}");
    }
    for word in lacks {
        assert!(!text.contains(word), "{what}: {word} in\n{text}");
    }
}

/// Kubernetes by version: flags of API server, managers and kubelet that are there and that are not.
#[test]
fn flags_stand_only_where_their_version_has_them() {
    let era = ["--network-plugin=cni", "--cni-bin-dir=/opt/cni/bin", "--cni-conf-dir=/etc/cni/net.d"];
    let remote = ["--container-runtime=remote"];
    let endpoint = ["--container-runtime-endpoint=unix:///run/containerd/containerd.sock"];
    let field = ["containerRuntimeEndpoint: unix:///run/containerd/containerd.sock"];
    let none: &[&str] = &[];
    let cases = [
        ("1.16.0", "3.4.23", "1.6.20", &["--insecure-port=0"][..], none, &["--port=0"][..], none),
        ("1.20.2", "3.4.23", "1.6.20", none, &["insecure-port"][..], &["--port=0"][..], none),
        ("1.23.17", "3.5.30", "1.6.20", none, &["insecure-port"][..], &["--port=0"][..], none),
        ("1.24.0", "3.5.30", "1.6.20", none, &["insecure-port"][..], none, &["--port="][..]),
        ("1.36.2", "3.6.8", "2.0.0", none, &["insecure-port"][..], none, &["--port="][..]),
    ];
    for (kubernetes, etcd, containerd, server, not_server, manager, not_manager) in cases {
        let topology = versions(kubernetes, etcd, containerd);
        let control = tree(&topology, "hdss7-11");
        let unit = |name: &str| text(&control, &format!("/etc/systemd/system/{name}.service"));
        holds(&unit("kube-apiserver"), kubernetes, server, not_server);
        holds(
            &unit("kube-apiserver"),
            kubernetes,
            &["--service-account-issuer=", "signing-key-file="],
            &["logtostderr"],
        );
        for name in ["kube-controller-manager", "kube-scheduler"] {
            holds(&unit(name), kubernetes, manager, not_manager);
            holds(&unit(name), kubernetes, &["--leader-elect=true"], &["feature-gates"]);
        }
        let node = tree(&topology, "hdss7-21");
        let (flags, config) =
            (text(&node, "/etc/systemd/system/kubelet.service"), text(&node, "/var/lib/kubelet/config.yaml"));
        let minor: u32 = kubernetes.split('.').nth(1).unwrap().parse().unwrap();
        let (has, lacks): (Vec<&[&str]>, Vec<&[&str]>) = [(24, &era[..]), (24, &remote[..]), (27, &endpoint[..])]
            .into_iter()
            .fold(Default::default(), |mut sides, (gone, flags)| {
                if minor < gone {
                    sides.0.push(flags)
                } else {
                    sides.1.push(flags)
                }
                sides
            });
        holds(&flags, kubernetes, &has.concat(), &lacks.concat());
        let (has, lacks) = if minor < 27 { (none, &field[..]) } else { (&field[..], none) };
        holds(&config, kubernetes, has, lacks);
    }
}

#[test]
fn a_kubelet_without_containerd_uses_docker() {
    let text_of = REFERENCE.replace("  containerd: 1.6.20\n", "");
    let node = tree(&topology(&text_of), "hdss7-21");
    let flags = text(&node, "/etc/systemd/system/kubelet.service");
    holds(&flags, "docker", &["--network-plugin=cni", "--pod-infra-container-image="], &["--container-runtime"]);
    assert!(!node.files.keys().any(|path| path.starts_with("/etc/containerd")));
    holds(&text(&node, "/etc/cni/net.d/10-netd.conflist"), "docker", &["\"cniVersion\": \"0.4.0\""], &["1.0.0"]);
}

#[test]
fn settings_of_etcd_are_those_of_its_version() {
    let cases = [
        (
            "3.4.23",
            &["ETCD_LOGGER=zap", "ETCD_EXPERIMENTAL_INITIAL_CORRUPT_CHECK"][..],
            &["WATCH_PROGRESS", "FEATURE_GATES"][..],
        ),
        ("3.5.30", &["ETCD_EXPERIMENTAL_WATCH_PROGRESS_NOTIFY_INTERVAL=5s"], &["ETCD_LOGGER", "FEATURE_GATES"]),
        (
            "3.6.8",
            &["ETCD_FEATURE_GATES=InitialCorruptCheck=true", "\nETCD_WATCH_PROGRESS_NOTIFY_INTERVAL=5s"],
            &["EXPERIMENTAL", "ETCD_LOGGER"],
        ),
    ];
    for (version, has, lacks) in cases {
        let member = tree(&versions("1.24.0", version, "1.6.20"), "hdss7-12");
        let settings = text(&member, "/etc/etcd/etcd.conf");
        holds(&settings, version, has, lacks);
        holds(
            &settings,
            version,
            &["CLIENT_CERT_AUTH=true", "ETCD_PEER_CLIENT_CERT_AUTH=true"],
            &["INITIAL_CLUSTER", "ENABLE_V2", "=http://10"],
        );
    }
}

#[test]
fn containerd_is_configured_in_the_version_that_it_reads() {
    let config = |kubernetes, etcd, containerd| {
        text(&tree(&versions(kubernetes, etcd, containerd), "hdss7-21"), "/etc/containerd/netdadm.toml")
    };
    holds(
        &config("1.20.2", "3.4.23", "1.6.20"),
        "1.6",
        &["version = 2", "grpc.v1.cri", "SystemdCgroup = true", "pause:3.2"],
        &["cri.v1.runtime"],
    );
    holds(
        &config("1.36.2", "3.6.8", "2.0.0"),
        "2.0",
        &["version = 3", "'io.containerd.cri.v1.runtime'.cni", "sandbox ="],
        &["grpc.v1.cri"],
    );
}

#[test]
fn a_member_that_is_added_changes_no_file_that_asks_for_a_restart() {
    let before = topology(REFERENCE);
    let added = REFERENCE.replace("hosts:\n", "hosts:\n  hdss7-13: {address: 10.4.7.13, roles: etcd, joins: true}\n  hdss7-14: {address: 10.4.7.14, roles: etcd}\n");
    let after = topology(&added);
    let changed = |name: &str| -> Vec<String> {
        let (one, other) = (tree(&before, name), tree(&after, name));
        let paths = one.files.iter().filter(|(path, file)| other.files.get(*path) != Some(*file));
        paths.map(|(path, _)| path.display().to_string()).collect()
    };
    assert_eq!(changed("hdss7-12"), ["/etc/etcd/initial.conf"]);
    assert_eq!(changed("hdss7-11"), ["/etc/default/netd", "/etc/systemd/system/kube-apiserver.service"]);
    let new = tree(&after, "hdss7-13");
    holds(&text(&new, "/etc/etcd/initial.conf"), "13", &["ETCD_INITIAL_CLUSTER_STATE=existing"], &[]);
}

#[test]
fn a_member_that_joins_knows_those_that_are_there_and_those_that_join_before_it() {
    let text_of = |name: &str, cluster: &str| text(&tree(&topology(cluster), name), "/etc/etcd/initial.conf");
    let joining = |names: &[&str]| {
        names.iter().fold(REFERENCE.to_owned(), |text, name| {
            let (_, number) = name.split_once('-').unwrap();
            let address = format!("{name}: {{address: 10.4.7.{number},");
            assert!(text.contains(&address));
            text.replace(&address, &format!("{address} joins: true,"))
        })
    };
    let both = joining(&["hdss7-21", "hdss7-22"]);
    let members = |name: &str| {
        let text = text_of(name, &both);
        let line = text.lines().find_map(|line| line.strip_prefix("ETCD_INITIAL_CLUSTER=")).unwrap().to_owned();
        line.split(',').map(|member| member.split('=').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(members("hdss7-21"), ["hdss7-12", "hdss7-21"]);
    assert_eq!(members("hdss7-22"), ["hdss7-12", "hdss7-21", "hdss7-22"]);
    assert_eq!(members("hdss7-12"), ["hdss7-12", "hdss7-21", "hdss7-22"]);
}

#[test]
fn members_come_before_api_servers_and_these_before_nodes() {
    let names = |text: &str| -> Vec<String> {
        let topology = topology(text);
        order(&topology).iter().map(|host| host.name.value.clone()).collect()
    };
    assert_eq!(names(REFERENCE), ["hdss7-12", "hdss7-21", "hdss7-22", "hdss7-11"]);
    assert_eq!(names(OTHERS[0].1), ["k8s-master", "k8s-node1", "k8s-node2"]);
}

#[test]
fn an_api_server_is_waited_for_once_a_quorum_of_members_was_made_before() {
    let stacked = REFERENCE
        .replace("roles: control-plane}", "roles: [etcd, control-plane, node]}")
        .replace("roles: [etcd, node]}", "roles: [etcd, control-plane, node]}")
        .replace("roles: etcd}", "roles: none}");
    let topology = topology(&stacked);
    let waited = |name: &str| -> Vec<bool> {
        let servers = tree(&topology, name).units.into_iter().filter(|unit| unit.name.starts_with("kube-"));
        servers.map(|unit| unit.wait).collect()
    };
    assert_eq!(order(&topology).len(), 3);
    assert_eq!(waited("hdss7-11"), [false; 3], "one member of three has no leader");
    assert_eq!(waited("hdss7-21"), [true; 3]);
    assert_eq!(waited("hdss7-22"), [true; 3]);
}

#[test]
fn both_families_and_what_deviates_reach_the_components() {
    let text_of = REFERENCE
        .replace("nodes: 10.4.7.0/24", "nodes: [10.4.7.0/24, 'fd00:10:4:7::/64']")
        .replace("pods: 172.7.0.0/16", "pods: [172.7.0.0/16, 'fd00:7::/48']")
        .replace("services: 192.168.0.0/16", "services: [192.168.0.0/16, 'fd00:192::/108']")
        .replace("address: 10.4.7.21", "address: [10.4.7.21, 'fd00:10:4:7::21']")
        .replace("address: 10.4.7.22", "address: [10.4.7.22, 'fd00:10:4:7::22']")
        .replace("1.20.2", "1.24.0")
        .replace("hosts:\n", "etcHosts: true\nflags: {kube-apiserver: {v: 4, secure-port: 7443}}\nkubelet: {failSwapOn: false, cgroupDriver: cgroupfs}\nhosts:\n");
    let topology = topology(&text_of);
    let control = tree(&topology, "hdss7-11");
    let server = text(&control, "/etc/systemd/system/kube-apiserver.service");
    holds(
        &server,
        "flags",
        &["--v=4", "--secure-port=7443", "--service-cluster-ip-range=192.168.0.0/16,fd00:192::/108"],
        &["secure-port=6443"],
    );
    holds(
        &text(&control, "/etc/kubernetes/objects/20-coredns.yaml"),
        "dns",
        &["clusterIP: \"192.168.0.10\"", "clusterIPs: [\"192.168.0.10\", \"fd00:192::a\"]"],
        &[],
    );
    holds(
        &text(&control, "/etc/hosts"),
        "hosts",
        &["10.4.7.12 hdss7-12.host.com hdss7-12", "fd00:10:4:7::21 hdss7-21.host.com"],
        &[],
    );
    let node = tree(&topology, "hdss7-21");
    holds(
        &text(&node, "/etc/systemd/system/kubelet.service"),
        "kubelet",
        &["--node-ip=10.4.7.21,fd00:10:4:7::21"],
        &[],
    );
    holds(
        &text(&node, "/var/lib/kubelet/config.yaml"),
        "kubelet",
        &["failSwapOn: false", "cgroupDriver: \"cgroupfs\"", "- fd00:192::a"],
        &["systemd"],
    );
    holds(&text(&node, "/etc/containerd/netdadm.toml"), "containerd", &["SystemdCgroup = false"], &[]);
    holds(
        &text(&node, "/etc/netd/net-conf.json"),
        "netd",
        &["\"EnableIPv6\": true", "\"IPv6Network\": \"fd00:7::/48\""],
        &[],
    );
}

#[test]
fn settings_of_the_kubelet_are_of_the_type_that_was_written() {
    let asked = format!(
        "{REFERENCE}kubelet:\n  reservedSystemCPUs: \"0\"\n  syncFrequency: '0'\n  memoryThrottlingFactor: 0.9\n  maxPods: 50\n  \
         systemReserved: {{cpu: 1}}\n  cpuManagerPolicyOptions: {{full-pcpus-only: \"true\"}}\n  \
         featureGates: {{A: true}}\n  allowedUnsafeSysctls: ['1', a]\n"
    );
    let config = text(&tree(&topology(&asked), "hdss7-21"), "/var/lib/kubelet/config.yaml");
    for line in [
        "reservedSystemCPUs: \"0\"",
        "syncFrequency: \"0\"",
        "memoryThrottlingFactor: 0.9",
        "maxPods: 50",
        "systemReserved:\n  cpu: \"1\"",
        "cpuManagerPolicyOptions:\n  full-pcpus-only: \"true\"",
        "featureGates:\n  A: true",
        "allowedUnsafeSysctls:\n- \"1\"\n- \"a\"",
    ] {
        assert!(config.contains(&format!("\n{line}\n")), "{line} in {config}");
    }
}
