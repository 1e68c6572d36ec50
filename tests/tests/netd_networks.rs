//! Two Pod networks on one host, and two daemons of one network.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Host, Need, Process, eventually, throughout};
use netd_node::{HOST_GW, Net, SOON, VXLAN, kernel_state, lease, settled_log};

const READY: &str = "ready: every lease is in the kernel";
const BLUE: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#;
const FLAGS: [&str; 2] = ["--etcd-prefix=/blue.org/network", "--subnet-file=/run/flannel/blue.env"];

/// A store with two networks, of which the second has `config` and a peer.
fn two(config: &str, backend: &str) -> Result<Net> {
    let net = Net::start(VXLAN)?;
    net.put_lease("172.7.22.0-24", "10.4.7.22", "02:00:00:00:00:22")?;
    net.etcd.put("/blue.org/network/config", config)?;
    net.etcd
        .put("/blue.org/network/subnets/10.5.22.0-24", &lease("10.4.7.22", backend).replace("VNI\":1", "VNI\":2"))?;
    Ok(net)
}

fn ready(net: &Net, flags: &[&str]) -> Result<Process> {
    let netd = net.launch("hdss7-21", flags)?;
    netd.wait_for_line(READY, SOON)?;
    Ok(netd)
}

/// The kernel's state, which somebody settles in both networks.
fn settled(host: &Host, parts: &[&str]) -> Result<String> {
    eventually(SOON, || {
        let state = kernel_state(host)?;
        for part in parts {
            ensure!(state.contains(part), "{state}\nlacks {part}");
        }
        Ok(())
    })?;
    kernel_state(host)
}

fn two_networks_on_one_host_leave_each_other_alone() -> Result<()> {
    for (config, backend, rows) in [
        (BLUE, "02:00:00:00:05:22", "10.5.22.0/24 via 10.5.22.0 dev flannel.2"),
        (r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#, "host-gw", "10.5.22.0/24 via 10.4.7.22 dev eth0"),
    ] {
        let net = two(config, backend)?;
        let host = net.host("hdss7-21")?;
        host.run(&[
            "nft",
            "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
        ])?;
        let first = ready(&net, &[])?;
        let second = ready(&net, &FLAGS)?;
        let parts = [rows, "172.7.22.0/24 via 172.7.22.0 dev flannel.1", "table ip netd {", "table ip netd.blue {"];
        let before = settled(host, &parts)?;
        ensure!(before.matches("netd: Pod network\"").count() == 2, "{before}");
        ensure!(before.matches("netd: Pod network blue\"").count() == 2, "{before}");
        let logs = [settled_log(&first)?, settled_log(&second)?];
        throughout(Duration::from_secs(2), || {
            ensure!(kernel_state(host)? == before, "{}\n--- instead of\n{before}", kernel_state(host)?);
            ensure!([first.log(), second.log()] == logs, "somebody had work:\n{}\n{}", first.log(), second.log());
            Ok(())
        })?;
        // Each repairs its own, and a restart of one changes nothing of the other.
        host.run(&["nft", "delete", "table", "ip", "netd.blue"])?;
        host.run(&["ip", "route", "del", "10.5.22.0/24"])?;
        ensure!(settled(host, &parts)? == before);
        first.terminate(SOON)?;
        let first = ready(&net, &[])?;
        second.kill()?;
        let _second = ready(&net, &FLAGS)?;
        throughout(Duration::from_secs(1), || {
            ensure!(kernel_state(host)? == before, "{}\n--- instead of\n{before}", kernel_state(host)?);
            Ok(())
        })?;
        ensure!(first.is_running());
        let (one, other) = (host.read("/run/flannel/subnet.env")?, host.read("/run/flannel/blue.env")?);
        ensure!(one.contains("172.7.21.1/24") && other.contains("10.5.21.1/24"), "{one}{other}");
        let netd = lab::bin("netd")?;
        let status = host.command(&netd).args(["--subnet-file=/run/flannel/blue.env", "status"]).run()?.stdout;
        ensure!(status.contains("10.5.21.0/24 of 10.5.0.0/16"), "{status}");
        let status = host.command(&netd).args(["status"]).run()?.stdout;
        ensure!(status.contains("172.7.21.0/24 of 172.7.0.0/16"), "{status}");
    }
    Ok(())
}

fn second_daemon_of_one_network_is_refused_by_the_first_ones_process() -> Result<()> {
    let net = two(BLUE, "02:00:00:00:05:22")?;
    net.etcd.put("/same.org/network/config", r#"{"Network":"172.7.0.0/17","Backend":{"Type":"vxlan","VNI":9}}"#)?;
    net.etcd.put("/vni.org/network/config", r#"{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan"}}"#)?;
    let host = net.host("hdss7-21")?;
    let first = ready(&net, &[])?;
    let before = settled(host, &["172.7.22.0/24"])?;
    let process = net.status("hdss7-21")?["process"]["id"].clone();
    let subnets = net.subnets()?;
    for (flags, what) in [
        (&[][..], "subnet file /run/flannel/subnet.env"),
        (&["--subnet-file=/run/other.env", "--run-dir=/run/other"], "Pod network 172.7.0.0/16"),
        (&["--subnet-file=/run/other.env", "--run-dir=/run/netd/"], "Pod network 172.7.0.0/16"),
        (&["--subnet-file=/var/run/flannel/subnet.env", "--run-dir=/run/other"], "subnet file /run/flannel/subnet.env"),
        (
            &["--etcd-prefix=/same.org/network", "--subnet-file=/run/other.env"],
            "Pod network 172.7.0.0/16, which overlaps",
        ),
        (&["--etcd-prefix=/vni.org/network", "--subnet-file=/run/other.env"], "device flannel.1"),
    ] {
        let second = net.launch("hdss7-21", flags)?;
        ensure!(second.wait(SOON)?.code() == Some(1), "{flags:?}: {}", second.log());
        let named = format!("belongs to the netd with process {process} already");
        ensure!(second.log().contains(what) && second.log().contains(&named), "{flags:?}: {}", second.log());
        ensure!(kernel_state(host)? == before && net.subnets()? == subnets, "{flags:?} changed something");
        ensure!(host.run(&["ls", "/run/other.env"]).is_err());
    }
    let status = net.status("hdss7-21")?;
    ensure!(status["process"]["id"] == process && first.is_running(), "{status}");
    // What was killed holds nothing.
    first.kill()?;
    let again = ready(&net, &[])?;
    ensure!(again.is_running());
    Ok(())
}

fn second_daemon_with_other_files_is_refused_and_so_is_one_without_a_place_for_its_claim() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    let endpoints = format!("--etcd-endpoints={}", net.etcd.endpoints());
    let netd = lab::bin("netd")?;
    let first = ready(&net, &[])?;
    let before = settled(host, &["table ip netd {"])?;
    // As in a container beside the host's daemon: the same network, other files.
    let script = "mount -t tmpfs none /run && exec \"$0\" \"$@\"";
    let contained = || {
        let command = host.command("unshare").args(["-m", "sh", "-c", script]).arg(&netd);
        command.args([endpoints.as_str(), "--iface=eth0", "--ip-masq"]).start("netd")
    };
    let second = contained()?;
    ensure!(second.wait(SOON)?.code() == Some(1), "{}", second.log());
    let what = "Pod network 172.7.0.0/16 belongs already to a netd in this network namespace";
    ensure!(second.log().contains(what), "{}", second.log());
    ensure!(kernel_state(host)? == before && first.is_running(), "it changed something");
    first.kill()?;
    // And the other way round; what was killed holds nothing.
    let contained = contained()?;
    contained.wait_for_line(READY, SOON)?;
    let second = net.launch("hdss7-21", &[])?;
    ensure!(second.wait(SOON)?.code() == Some(1) && second.log().contains(what), "{}", second.log());
    contained.terminate(SOON)?;
    host.run(&[
        "sh",
        "-c",
        "rm -rf /run/netd/claims && mkdir -p /run/netd/claims && mount -t tmpfs -o ro none /run/netd/claims",
    ])?;
    let netd = net.launch("hdss7-21", &[])?;
    ensure!(netd.wait(SOON)?.code() == Some(1), "{}", netd.log());
    ensure!(netd.log().contains("no claim in /run/netd/claims") && netd.log().contains("make the folder writable"));
    host.run(&["umount", "/run/netd/claims"])?;
    ready(&net, &[])?;
    Ok(())
}

fn network_alone_under_another_prefix_has_the_usual_names() -> Result<()> {
    let net = Net::start("junk, which nobody must read")?;
    net.etcd.put("/atomic.io/network/config", HOST_GW)?;
    let _netd = ready(&net, &["--etcd-prefix=/atomic.io/network"])?;
    let state = kernel_state(net.host("hdss7-21")?)?;
    ensure!(state.contains("table ip netd {") && !state.contains("netd."), "{state}");
    net.host("hdss7-21")?.run(&["ls", "/run/netd/status.json", "/run/netd/networks"])?;
    Ok(())
}

fn accepts_in_foreign_chains_survive_a_save_and_go_with_their_flag() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    let host = net.host("hdss7-21")?;
    host.run(&["sh", "-c", "iptables-nft -P FORWARD DROP"])?;
    let count =
        || Ok::<_, anyhow::Error>(host.run(&["iptables-nft", "-S", "FORWARD"])?.stdout.matches("172.7.0.0").count());
    let first = ready(&net, &[])?;
    ensure!(count()? == 2);
    for _ in 0..2 {
        host.run(&["sh", "-c", "iptables-nft-save | iptables-nft-restore"])?;
    }
    throughout(Duration::from_secs(1), || {
        ensure!(count()? == 2, "{}", count()?);
        Ok(())
    })?;
    first.terminate(SOON)?;
    host.run(&["sh", "-c", "iptables-nft-save | iptables-nft-restore"])?;
    let _second = ready(&net, &["--iptables-forward-rules=false"])?;
    eventually(SOON, || {
        ensure!(count()? == 0, "{}", count()?);
        Ok(())
    })
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            two_networks_on_one_host_leave_each_other_alone,
            second_daemon_of_one_network_is_refused_by_the_first_ones_process,
            second_daemon_with_other_files_is_refused_and_so_is_one_without_a_place_for_its_claim,
            network_alone_under_another_prefix_has_the_usual_names,
            accepts_in_foreign_chains_survive_a_save_and_go_with_their_flag,
        ],
    )
}
