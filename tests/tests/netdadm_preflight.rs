//! `netdadm preflight` on hosts of the reference cluster: each planted fault is found, and nothing else of its kind before.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Host, Need, bin};
use serde_json::Value;

const TOPOLOGY: &str = include_str!("../../configs/clusters/reference.yaml");

/// A fault: the check that finds it, words of the finding, and what plants it.
struct Fault {
    check: &'static str,
    words: &'static str,
    plant: &'static str,
}

/// The findings as hdss7-21, a member of etcd and a node.
fn findings(host: &Host) -> Result<Vec<Value>> {
    host.write("/opt/cluster.yaml", TOPOLOGY)?;
    let netdadm = host.command(bin("netdadm")?);
    let output = netdadm.args(["preflight", "-f", "/opt/cluster.yaml", "--host", "hdss7-21", "--json"]).output()?;
    let findings: Vec<Value> = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    let is_fit = findings.iter().all(|finding| finding["severity"] != "problem");
    ensure!(output.status.code() == Some(i32::from(!is_fit)), "{output:?}");
    Ok(findings)
}

fn found<'a>(all: &'a [Value], fault: &Fault) -> Option<&'a Value> {
    let words = |finding: &&Value| finding["found"].as_str().is_some_and(|found| found.contains(fault.words));
    all.iter().filter(|finding| finding["check"] == fault.check && finding["severity"] != "ok").find(words)
}

/// Each fault is not found, is planted, and is found with what to do.
fn each_is_found(faults: &[Fault]) -> Result<()> {
    let cluster = Cluster::reference()?;
    let host = cluster.host("hdss7-21")?;
    let before = findings(host)?;
    for fault in faults {
        ensure!(found(&before, fault).is_none(), "{} before it was planted: {before:#?}", fault.words);
        let output = host.command("sh").args(["-c", &format!("set -e; {}", fault.plant)]).output()?;
        ensure!(output.status.success(), "{}: {output:?}", fault.plant);
    }
    let after = findings(host)?;
    for fault in faults {
        let finding =
            found(&after, fault).with_context(|| format!("{}: {:?} in {after:#?}", fault.check, fault.words))?;
        ensure!(finding["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{finding}");
    }
    Ok(())
}

fn faults_of_files_are_found() -> Result<()> {
    let fault = |check, words, plant| Fault { check, words, plant };
    each_is_found(&[
        fault("disk", "/var/lib/etcd has", "mkdir -p /var/lib/etcd; mount -t tmpfs -o size=64m tmpfs /var/lib/etcd"),
        fault(
            "swap",
            "/dev/sda9 is used as swap",
            "printf 'Filename\\n/dev/sda9 partition 9 0 -2\\n' >/opt/swaps; mount --bind /opt/swaps /proc/swaps",
        ),
        fault("name", "until it starts again, and then \"other\"", "echo other >/etc/hostname"),
        fault("names", "/etc/hosts leads hdss7-22 to 127.0.1.1", "echo 127.0.1.1 hdss7-22 >>/etc/hosts"),
        fault(
            "cgroups",
            "the kubelet keeps Pods by systemd",
            "mkdir -p /var/lib/kubelet /etc/containerd; echo 'cgroupDriver: systemd' >/var/lib/kubelet/config.yaml; echo 'version = 2' >/etc/containerd/netdadm.toml",
        ),
        fault("resolver", "127.0.0.53", "rm -f /etc/resolv.conf; echo nameserver 127.0.0.53 >/etc/resolv.conf"),
        fault(
            "leftovers",
            "/var/lib/etcd/default.etcd/member is there already",
            "mkdir -p /var/lib/etcd/default.etcd/member",
        ),
        fault(
            "leftovers",
            "10-calico.conflist is another network",
            "mkdir -p /etc/cni/net.d; echo '{\"plugins\":[{\"type\":\"calico\"}]}' >/etc/cni/net.d/10-calico.conflist",
        ),
        fault("keepers", "NetworkManager takes links", "mkdir -p /run/NetworkManager"),
    ])
}

fn faults_of_parameters_and_networks_are_found() -> Result<()> {
    let fault = |check, words, plant| Fault { check, words, plant };
    each_is_found(&[
        fault(
            "forwarding",
            "/etc/sysctl.d/99-z.conf sets it to 0",
            "sysctl -qw net.ipv4.ip_forward=0; echo 'net.ipv4.ip_forward = 0' >/etc/sysctl.d/99-z.conf",
        ),
        fault("rp_filter", "net.ipv4.conf.all.rp_filter is 1", "sysctl -qw net.ipv4.conf.all.rp_filter=1"),
        fault("node ports", "take ports from 20000 to 60999", "sysctl -qw net.ipv4.ip_local_port_range='20000 60999'"),
        fault("routes", "no route to hdss7-200", "ip route add unreachable 10.4.7.200/32"),
        fault(
            "routes",
            "leave by other0 from 10.9.9.1",
            "ip link add other0 type veth peer name other1; ip address add 10.9.9.1/24 dev other0; ip link set other0 up; ip route add 10.4.7.11/32 dev other0",
        ),
        fault(
            "overlaps",
            "172.7.9.0/24 on other0 overlaps 172.7.0.0/16, the network of Pods",
            "ip route add 172.7.9.0/24 dev other0",
        ),
    ])?;
    each_is_found(&[
        fault("mtu", "cni0 has an MTU of 9000", "ip link add cni0 type bridge; ip link set cni0 mtu 9000"),
        fault("leftovers", "cni0 has 10.244.0.1", "ip address add 10.244.0.1/24 dev cni0"),
        fault(
            "firewall",
            "denies 2379/tcp (etcdClient), 2380/tcp (etcdPeer), 8472/udp (vxlan), 10250/tcp (kubelet) from",
            "nft 'table inet own { chain input { type filter hook input priority 0; policy drop; tcp dport 22 accept; }; }'",
        ),
        fault(
            "firewall",
            "ip own forward",
            "nft 'table ip own { chain forward { type filter hook forward priority 0; policy drop; }; }'",
        ),
    ])
}

fn a_port_that_another_program_has_is_found_with_its_name() -> Result<()> {
    let cluster = Cluster::reference()?;
    let host = cluster.host("hdss7-21")?;
    let fault =
        Fault { check: "ports", words: "10250/tcp, the port of kubelet, is taken by iperf3 (process ", plant: "" };
    ensure!(found(&findings(host)?, &fault).is_none());
    let _server = host.command("iperf3").args(["-s", "-p", "10250"]).start("iperf3")?;
    lab::eventually(std::time::Duration::from_secs(10), || {
        let all = findings(host)?;
        found(&all, &fault).map(drop).with_context(|| format!("{all:#?}"))
    })
}

/// What the lab finds out by trying the same things.
fn the_kernel_is_asked_for_what_our_programs_use() -> Result<()> {
    let cluster = Cluster::reference()?;
    let host = cluster.host("hdss7-21")?;
    let before = host.run(&["ip", "-o", "link"])?.stdout;
    let all = findings(host)?;
    for (feature, need) in
        [("ipvs", Need::IpVs), ("dummy", Need::Dummy), ("vxlan", Need::Vxlan), ("nftables", Need::Nftables)]
    {
        let words = format!("this kernel has no {feature}, which");
        let missing = all.iter().any(|finding| finding["found"].as_str().is_some_and(|found| found.contains(&words)));
        ensure!(missing == need.check().is_err(), "{feature}: {all:#?}");
    }
    ensure!(host.run(&["ip", "-o", "link"])?.stdout == before, "something of it is left on the host");
    Ok(())
}

fn what_keeps_a_host_from_being_examined_is_said() -> Result<()> {
    let host = Host::start("examined")?;
    host.write("/opt/cluster.yaml", TOPOLOGY)?;
    let run = |words: &[&str]| host.command(bin("netdadm")?).arg("preflight").args(words).output();
    let absent = run(&["-f", "/opt/absent.yaml"])?;
    ensure!(absent.status.code() == Some(2) && absent.stderr.contains("read /opt/absent.yaml"), "{absent:?}");
    let stranger = run(&["-f", "/opt/cluster.yaml"])?;
    ensure!(stranger.status.code() == Some(2), "{stranger:?}");
    ensure!(stranger.stderr.contains("has no host \"examined\": name one of hdss7-11, hdss7-12"), "{stranger:?}");
    host.write("/opt/wrong.yaml", TOPOLOGY.replace("10.4.7.22,", "10.4.7.21,"))?;
    let wrong = run(&["-f", "/opt/wrong.yaml", "--host", "hdss7-21"])?;
    ensure!(wrong.status.code() == Some(2) && wrong.stderr.contains("netdadm check -f /opt/wrong.yaml"), "{wrong:?}");
    let alone = run(&[])?;
    ensure!(alone.stdout.lines().any(|line| line.contains(" forwarding ")), "{alone:?}");
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables, Need::Vxlan],
        lab::tests![
            faults_of_files_are_found,
            faults_of_parameters_and_networks_are_found,
            a_port_that_another_program_has_is_found_with_its_name,
            the_kernel_is_asked_for_what_our_programs_use,
            what_keeps_a_host_from_being_examined_is_said,
        ],
    )
}
