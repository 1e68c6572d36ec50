//! Topologies with one mistake each, and with many: what is said, and where.

const REFERENCE: &str = include_str!("../../../configs/clusters/reference.yaml");

fn said(text: &str) -> Vec<String> {
    super::text(text).findings.iter().map(ToString::to_string).collect()
}

/// The reference cluster with `from` replaced once by `to`.
fn changed(from: &str, to: &str) -> String {
    assert!(REFERENCE.contains(from), "{from}");
    REFERENCE.replacen(from, to, 1)
}

/// What the reference cluster is warned of: its Pods are in public addresses.
fn public() -> String {
    said(REFERENCE).remove(0)
}

#[test]
fn the_four_clusters_have_no_error_and_their_subnets_are_those_of_their_plans() {
    let clusters = [
        (REFERENCE, "172.7.21.0/24", 1),
        (include_str!("../../../configs/clusters/kubeadm.yaml"), "by Kubernetes", 1),
        (include_str!("../../../configs/clusters/three-nodes.yaml"), "10.244.101.0/24", 0),
        (include_str!("../../../configs/clusters/atomic.yaml"), "172.7.131.0/24", 2),
    ];
    for (text, subnet, warnings) in clusters {
        let checked = super::text(text);
        assert_eq!(checked.findings.len(), warnings, "{:#?}", checked.findings);
        let summary = super::summary(&checked.topology.unwrap());
        assert!(summary.contains(subnet), "{summary}");
        assert!(text.lines().count() < 40);
    }
    assert_eq!(
        public(),
        "6:9: warning: networks.pods: 172.7.0.0/16 is not all private: hosts of the Internet that have such addresses are out of reach; accepted: a part of 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10 or fc00::/7"
    );
}

#[test]
fn an_api_server_has_a_way_to_pods_or_that_is_said() {
    let warning = "hosts.hdss7-11.roles: without a Node it gets no Pod subnet: its API server reaches no webhook";
    let warned = |text: &str| said(text).iter().any(|finding| finding.contains(warning));
    assert!(!warned(REFERENCE));
    let by_kubernetes = changed("versions:", "pods: {subnets: kubernetes}\nversions:");
    assert!(warned(&by_kubernetes), "{:#?}", said(&by_kubernetes));
    assert!(!warned(&by_kubernetes.replace("roles: control-plane", "roles: [control-plane, node]")));
    // It takes a subnet by its address as nodes do.
    let twice = changed("10.4.7.0/24", "[10.4.7.0/24, 10.4.8.0/24]");
    let twice = said(&twice.replace("10.4.7.11,", "10.4.8.21,"));
    assert!(
        twice.iter().any(|finding| finding.contains("10.4.7.21 gives 172.7.21.0/24, which hdss7-11 has")),
        "{twice:#?}"
    );
}

#[test]
fn each_mistake_is_named_where_it_stands() {
    let cases = [
        (
            "services: 192.168.0.0/16",
            "services: 10.4.0.0/16",
            "7:13: networks.services: node network 10.4.7.0/24 lies inside Service network 10.4.0.0/16",
        ),
        (
            "services: 192.168.0.0/16",
            "services: 172.7.128.0/17",
            "7:13: networks.services: Pod network 172.7.0.0/16 contains part of Service network",
        ),
        (
            "pods: 172.7.0.0/16",
            "pods: 10.0.0.0/8",
            "6:9: networks.pods: node network 10.4.7.0/24 lies inside Pod network 10.0.0.0/8",
        ),
        ("services: 192.168.0.0/16", "services: 192.168.0.0/29", "has no eleven addresses"),
        (
            "services: 192.168.0.0/16",
            "services: 10.128.0.0/9",
            "larger than an API server takes; accepted: /12 or smaller",
        ),
        ("services: 192.168.0.0/16", "services: fd00::/112", "IPv6, which no network of nodes has"),
        (
            "pods: 172.7.0.0/16",
            "pods: [172.7.0.0/16, 172.8.0.0/16]",
            "6:24: networks.pods: a second network of IPv4; accepted: one network of each family",
        ),
        (
            "pods: 172.7.0.0/16",
            "pods: 172.7.0.1/16",
            "6:9: networks.pods: \"172.7.0.1/16\": the network of this address is 172.7.0.0/16",
        ),
        (
            "pods: 172.7.0.0/16",
            "pods: 172.7.0.0/20",
            "15:23: hosts.hdss7-21.address: the host number of 10.4.7.21 is no number of a subnet in 172.7.0.0/20",
        ),
        ("pods: 172.7.0.0/16", "pods: 172.7.21.0/24", "subnets of /24 do not fit 172.7.21.0/24"),
        (
            "10.4.7.21,",
            "10.4.8.21,",
            "15:23: hosts.hdss7-21.address: 10.4.8.21 is in no network of nodes; accepted: an address in 10.4.7.0/24",
        ),
        ("10.4.7.22,", "10.4.7.21,", "16:23: hosts.hdss7-22.address: 10.4.7.21 is the address of hdss7-21 as well"),
        ("10.4.7.22,", "10.4.7.0,", "names the network 10.4.7.0/24"),
        ("10.4.7.22,", "10.4.7.255,", "the broadcast address of 10.4.7.0/24"),
        ("10.4.7.22,", "127.0.0.1,", "no other host reaches it"),
        ("10.4.7.22,", "[10.4.7.22, 10.4.7.23],", "a second address of its family; accepted: one of each family"),
        (
            "roles: none}",
            "roles: none}\n  a: {address: 10.4.7.1, roles: etcd}\n  b: {address: 10.4.7.2, roles: etcd}\n  c: {address: 10.4.7.3, roles: etcd}\n  \
             d: {address: 10.4.7.4, roles: etcd}\n  e: {address: 10.4.7.5, roles: etcd}\n  f: {address: 10.4.7.6, roles: etcd}",
            "9 members of etcd; accepted: at most 7",
        ),
        (
            "10.4.7.12, roles: etcd",
            "10.4.7.12, roles: none",
            "16:3: hosts: 2 members of etcd survive no more losses than 1",
        ),
        ("roles: control-plane", "roles: none", "13:3: hosts: no host has the role control-plane"),
        ("roles: none", "roles: [none, node]", "17:44: hosts.hdss7-200.roles: none beside other roles"),
        ("roles: none", "roles: [node, node]", "17:50: hosts.hdss7-200.roles: node stands there twice"),
        (
            "roles: none",
            "roles: master",
            "17:43: hosts.hdss7-200.roles: \"master\"; accepted: etcd, control-plane, node or none",
        ),
        ("hdss7-22:", "hdss7_22:", "16:3: hosts.hdss7_22: certificates carry no underscore"),
        ("hdss7-22:", "HDSS7-22:", "16:3: hosts.HDSS7-22: a Node's name has small letters only"),
        ("hdss7-22:", "hdss7-21:", "16:3: hosts.hdss7-21: it stands there twice, first in line 15"),
        ("10.4.7.22,", "[],", "16:23: hosts.hdss7-22.address: an empty list; accepted: an address of a host"),
        ("roles: none", "roles: []", "17:43: hosts.hdss7-200.roles: an empty list; accepted: etcd, control-plane"),
        ("pods: 172.7.0.0/16", "pods: []", "6:9: networks.pods: an empty list; accepted: a network such as"),
        ("services: 192.168.0.0/16", "services: []", "networks.services: an empty list"),
        ("nodes: 10.4.7.0/24", "nodes: []", "networks.nodes: an empty list"),
        (
            "hdss7-22:",
            "10.4.7.99:",
            "16:3: hosts.10.4.7.99: the name is an address that is not its own; accepted: its own address, or a name",
        ),
        ("hdss7-22:", "10.4.7.022:", "16:3: hosts.10.4.7.022: a resolver takes it for an address"),
        ("hdss7-22:", "1234:", "16:3: hosts.1234: a resolver takes it for an address"),
        ("hdss7-22:", "localhost:", "16:3: hosts.localhost: every machine calls itself so"),
        (
            "nodes: 10.4.7.0/24",
            "nodes: [10.4.7.0/24, 10.4.0.0/16]",
            "5:24: networks.nodes: 10.4.0.0/16 shares addresses with 10.4.7.0/24",
        ),
        ("nodes: 10.4.7.0/24", "nodes: [10.4.7.0/24, 10.4.7.0/24]", "10.4.7.0/24 shares addresses with 10.4.7.0/24"),
        ("hdss7-22:", "'fd00::22':", "16:3: hosts.fd00::22: a Node is called by no IPv6 address"),
        ("hdss7-22:", "hdss7-21.host.com:", "16:3: hosts.hdss7-21.host.com: it is hdss7-21 in the domain host.com"),
        (
            "services: 192.168.0.0/16",
            "services: 224.0.0.0/16",
            "7:13: networks.services: \"224.0.0.0/16\": no host has such addresses",
        ),
        (
            "pods: 172.7.0.0/16",
            "pods: 127.0.0.0/16",
            "6:9: networks.pods: \"127.0.0.0/16\": no host has such addresses",
        ),
        (
            "pods: 172.7.0.0/16",
            "pods: 169.254.0.0/16",
            "6:9: networks.pods: \"169.254.0.0/16\": no host has such addresses",
        ),
        ("nodes: 10.4.7.0/24", "nodes: '::ffff:10.4.7.0/120'", "networks.nodes: \"::ffff:10.4.7.0/120\": no host has"),
        ("pods: 172.7.0.0/16", "pods: 'fe80::/48'", "networks.pods: \"fe80::/48\": no host has such addresses"),
        ("pods: 172.7.0.0/16", "pods: 0.0.0.0/0", "6:9: networks.pods: \"0.0.0.0/0\": no host has such addresses"),
        ("domain: host.com", "endpoint: 10.4.7.0", "3:11: endpoint: 10.4.7.0 names the network 10.4.7.0/24"),
        (
            "domain: host.com",
            "endpoint: 10.4.7.255:7443",
            "3:11: endpoint: 10.4.7.255 is the broadcast address of 10.4.7.0/24",
        ),
        ("hdss7-22:", "10.4.7.21:", "16:3: hosts.10.4.7.21: the name is the address of hdss7-21"),
        ("cluster: reference", "cluster: Reference", "2:10: cluster: \"Reference\": a Node's name"),
        ("cluster: reference", "clusters: reference", "2:1: clusters: no such field; accepted: one of cluster, domain"),
        ("kubernetes: 1.20.2", "kubernetes: 1.20", "9:15: versions.kubernetes: \"1.20\"; accepted: three numbers"),
        ("kubernetes: 1.20.2", "kubernetes: 1.15.0", "its flags are not known"),
        (
            "kubernetes: 1.20.2",
            "kubernetes: 1.34.0",
            "10:9: versions.etcd: 3.4.23 below a Kubernetes 1.34.0; accepted: 3.5.24 or newer",
        ),
        ("containerd: 1.6.20", "containerd: 2.0.0", "has no CRI v1alpha2, which a kubelet of 1.20.2 needs"),
        ("etcd: 3.4.23", "etcd: 3.3.15", "3.3.15 has no learners"),
        ("etcd: 3.4.23", "etcd: 3.5.3", "warning: versions.etcd: 3.5.3 does not keep the promotion of a learner"),
        (
            "10.4.7.22, roles: [etcd, node]",
            "10.4.7.22, roles: [etcd, node], versions: {kubernetes: 1.21.0}",
            "a kubelet of 1.21.0, newer than the API server of 1.20.2",
        ),
        (
            "10.4.7.22, roles: [etcd, node]",
            "10.4.7.22, roles: [etcd, node], versions: {kubernetes: 1.17.0}",
            "a kubelet of 1.17.0 below an API server of 1.20.2; accepted: at most 2 minor versions older",
        ),
        (
            "10.4.7.22, roles: [etcd, node]",
            "10.4.7.22, roles: [etcd, node], versions: {etcd: 3.6.8}",
            "3.6.8 beside a member of 3.4.23",
        ),
        ("domain: host.com", "endpoint: 10.4.9.9", "3:11: endpoint: 10.4.9.9 is outside the networks of nodes"),
        ("domain: host.com", "endpoint: 10.4.7.21:6443", "10.4.7.21 is hdss7-21, which has no API server"),
        (
            "domain: host.com",
            "ports: {etcdPeer: 2379}",
            "3:19: ports.etcdPeer: 2379 is taken by etcdClient and by etcdPeer",
        ),
        (
            "domain: host.com",
            "ports: {proxyHealth: 30080}",
            "3:22: ports.proxyHealth: 30080 is where node ports of Services are",
        ),
        (
            "domain: host.com",
            "ports: {vxlan: 10247}",
            "3:16: ports.vxlan: netd answers probes at 10247; accepted: a port of its own",
        ),
        ("domain: host.com", "etcdPrefix: /../x", "3:13: etcdPrefix: \"/../x\""),
        ("domain: host.com", "ports: {apiServer: 0}", "3:20: ports.apiServer: \"0\"; accepted: a port from 1 to 65535"),
        ("domain: host.com", "binaries: {etcd: bin}", "3:18: binaries.etcd: \"bin\"; accepted: an absolute folder"),
        (
            "domain: host.com",
            "pods: {subnetLength: 31}",
            "3:22: pods.subnetLength: \"31\"; accepted: bits of a node's IPv4 subnet, 16 to 28",
        ),
    ];
    for (from, to, wanted) in cases {
        let found = said(&changed(from, to));
        assert!(found.iter().any(|finding| finding.contains(wanted)), "{to}: {found:#?}");
    }
}

#[test]
fn a_file_that_is_no_map_is_named() {
    for (text, wanted) in [
        ("[1, 2]", "1:1: the file: a list of 2; accepted: a map of fields"),
        ("cluster", "1:1: the file: \"cluster\"; accepted: a map of fields"),
    ] {
        assert_eq!(said(text), [wanted]);
    }
}

#[test]
fn every_mistake_is_named_at_once() {
    let text = "\
cluster: my_cluster
networks: {nodes: 10.0.0.0/8, pods: 10.1.0.0/16, services: 10.1.0.0/16}
versions: {kubernetes: 1.30.0, etcd: 3.5.15}
hosts:
  a: {address: 10.0.0.1, roles: [etcd, control-plane]}
  b: {address: 10.0.0.1, roles: [etcd, node], color: red}
  c: {adress: 10.0.0.3, roles: worker}
";
    assert_eq!(
        said(text),
        [
            "1:10: cluster: \"my_cluster\": certificates carry no underscore; accepted: 1 to 63 small letters, digits and hyphens, not at the ends (RFC 1123)",
            "2:37: networks.pods: node network 10.0.0.0/8 contains part of Pod network 10.1.0.0/16: choose networks that share no address",
            "2:60: networks.services: node network 10.0.0.0/8 contains part of Service network 10.1.0.0/16: choose networks that share no address",
            "2:60: networks.services: Pod network 10.1.0.0/16 lies inside Service network 10.1.0.0/16: choose networks that share no address",
            "3:38: warning: versions.etcd: 3.5.15 does not keep the promotion of a learner: 3.6 refuses its members (etcd-io/etcd#19557); accepted: 3.5.26 or newer",
            "6:3: hosts: 2 members of etcd survive no more losses than 1; accepted: an odd number: 1, 3, 5 or 7",
            "6:3: hosts.b.versions.containerd: none, and a kubelet of 1.30.0 knows no docker; accepted: 1.6.0 or newer",
            "6:16: hosts.b.address: 10.0.0.1 is the address of a as well; accepted: an address of its own",
            "6:47: hosts.b.color: no such field; accepted: one of address, roles, versions, binaries, joins",
            "7:6: hosts.c.address: it is missing; accepted: an address of a host such as 10.4.7.21 or fd00:10:4:7::21",
            "7:7: hosts.c.adress: no such field; accepted: one of address, roles, versions, binaries, joins",
            "7:32: hosts.c.roles: \"worker\"; accepted: etcd, control-plane, node or none",
        ]
    );
}

#[test]
fn both_families_are_checked_alike() {
    let text = changed("10.4.7.0/24", "[10.4.7.0/24, fd00:10:4:7::/64]");
    let text = text
        .replace("172.7.0.0/16", "[172.7.0.0/16, fd00:7::/48]")
        .replace("192.168.0.0/16", "[192.168.0.0/16, fd00:a::/112]");
    let older = "6:24: networks.pods: a network of the second family, which Kubernetes 1.20.2 has behind a feature gate; \
                 accepted: one family before 1.21.0";
    assert!(said(&text).iter().any(|finding| finding == older), "{:#?}", said(&text));
    let text = text.replace("1.20.2", "1.21.0");
    let text = text.replace("address: 10.4.7.21", "address: [10.4.7.21, 'fd00:10:4:7::21']");
    let checked = super::text(&text);
    let summary = super::summary(&checked.topology.unwrap());
    assert!(summary.contains("172.7.21.0/24,fd00:7:0:21::/64"), "{summary}");
    let twice = text.replace("fd00:10:4:7::21", "fd00:10:4:7:1::1");
    assert!(
        said(&twice).iter().any(|finding| finding.contains("is no number of a subnet in fd00:7::/48")),
        "{:#?}",
        said(&twice)
    );
    let large = text.replace("fd00:a::/112", "fd00:a::/96");
    assert!(said(&large).iter().any(|finding| finding.contains("/108 or smaller")), "{:#?}", said(&large));
}

#[test]
fn a_topology_is_checked_as_a_whole_although_a_part_could_not_be_read() {
    let text = changed("10.4.7.22,", "10.4.7.999,").replace("services: 192.168.0.0/16", "services: 172.7.0.0/16");
    let found = said(&text);
    assert!(found.iter().any(|finding| finding.contains("\"10.4.7.999\"")), "{found:#?}");
    assert!(
        found.iter().any(|finding| finding.contains("Pod network 172.7.0.0/16 lies inside Service network")),
        "{found:#?}"
    );
}

#[test]
fn an_endpoint_that_is_one_of_several_servers_is_spoken_of() {
    let warning = "warning: endpoint: 10.4.7.11 is hdss7-11 alone: without it no client finds the others";
    let with = changed("domain: host.com", "endpoint: 10.4.7.11");
    let spoken = |text: &str| said(text).iter().any(|finding| finding.contains(warning));
    assert!(!spoken(&with), "{:#?}", said(&with));
    assert!(spoken(&with.replacen("roles: etcd", "roles: [etcd, control-plane]", 1)));
}

#[test]
fn networks_of_services_and_nodes_are_accepted_up_to_their_ends() {
    let network = |from: &str, to: &str| said(&changed(from, to)).concat();
    for (services, is_accepted) in [("192.168.0.0/28", true), ("192.168.0.0/29", false), ("10.64.0.0/12", true)] {
        let found = network("services: 192.168.0.0/16", &format!("services: {services}"));
        assert_eq!(found.contains("networks.services"), !is_accepted, "{services}: {found}");
    }
    let lacking = changed("10.4.7.0/24", "[10.4.7.0/24, 'fd00:10:4:7::/64']")
        .replace("172.7.0.0/16", "[172.7.0.0/16, 'fd00:7::/48']");
    assert!(said(&lacking).concat().contains("networks.services: no network of IPv6"), "{:#?}", said(&lacking));
    // Neither of two addresses is the network's (RFC 3021), but of four.
    let of = |network: &str, address: &str| {
        said(&changed("10.4.7.0/24", &format!("[10.4.7.0/24, {network}]")).replace("10.4.7.200", address)).concat()
    };
    for address in ["10.4.8.0", "10.4.8.1"] {
        assert!(!of("10.4.8.0/31", address).contains("hdss7-200.address"), "{address}");
    }
    assert!(of("10.4.8.0/30", "10.4.8.0").contains("10.4.8.0 names the network"));
    assert!(of("10.4.8.0/30", "10.4.8.3").contains("10.4.8.3 is the broadcast address"));
    assert!(!of("'fd00:10:4:7::/64'", "'fd00:10:4:7:ffff:ffff:ffff:ffff'").contains("broadcast"));
}

#[test]
fn subnets_that_kubernetes_gives_are_as_many_as_nodes_and_no_more_than_it_counts() {
    let of = |pods: &str, more: &str| {
        let text = changed("versions:", &format!("pods: {{subnets: kubernetes{more}}}\nversions:"));
        said(&text.replace("172.7.0.0/16", pods)).concat()
    };
    assert!(of("172.7.0.0/24", ", subnetLength: 24").contains("subnets of /24 do not fit"));
    let three = |text: String| text.contains("172.7.0.0/23 has 2 subnets of /24 for");
    assert!(!three(of("172.7.0.0/23", "")));
    let node = changed("versions:", "pods: {subnets: kubernetes}\nversions:").replace("172.7.0.0/16", "172.7.0.0/23");
    assert!(three(said(&node.replace("roles: none", "roles: node")).concat()));
    let six = |pods: &str| {
        let text = changed("versions:", "pods: {subnets: kubernetes}\nversions:").replace("172.7.0.0/16", pods);
        said(&text).concat().contains("than the controller-manager counts; accepted: /48 or smaller")
    };
    assert_eq!([six("'fd00:7::/47'"), six("'fd00:7::/48'"), six("10.128.0.0/9")], [true, false, false]);
}

#[test]
fn ports_clash_where_one_host_serves_both_over_one_transport() {
    let of = |ports: &str| said(&changed("domain: host.com", ports)).concat();
    let clashes = |ports: &str| of(ports).contains("is taken by");
    assert!(!clashes("ports: {vxlan: 2379}"), "one is of UDP");
    assert!(!clashes("ports: {etcdClient: 6443}"), "no host has both");
    assert!(clashes("ports: {etcdClient: 10250}"), "two hosts have both");
    assert!(!clashes("ports: {wireguard: 8472}"), "the network is no WireGuard");
    assert!(!of("ports: {wireguard: 30000}").contains("node ports"));
    assert!(of("ports: {vxlan: 30000}").contains("30000 is where node ports"));
    assert!(of("ports: {vxlan: 32767}").contains("32767 is where node ports"));
    assert!(!of("ports: {vxlan: 32768}").contains("node ports"));
    assert!(of("pods: {backend: wireguard}\nports: {wireguard: 30000}").contains("30000 is where node ports"));
}
