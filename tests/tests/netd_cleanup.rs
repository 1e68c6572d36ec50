//! `netd cleanup` on a node: what goes, and what stays because it is somebody else's.

mod netd_node;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::{Host, Need, eventually};
use netd_node::cleanup::{FLANNEL, RULES, cleanup, others_have, state};
use netd_node::{HOST_GW, Net, SOON, VXLAN, kernel_state};

fn everything_of_netd_goes_and_what_others_have_stays() -> Result<()> {
    for config in [VXLAN, HOST_GW] {
        let net = Net::start(config)?;
        let host = net.host("hdss7-21")?;
        others_have(host)?;
        let before = state(host)?;
        let [netd, _other] = net.both()?;
        let running = state(host)?;
        let refused = cleanup(host, &["--yes"])?;
        ensure!(refused.status.code() == Some(1) && refused.stderr.contains("stop it first"), "{refused:?}");
        ensure!(state(host)? == running, "a refused cleanup changes nothing");
        netd.terminate(SOON)?;
        // As `netd trace` leaves it when it is killed on a kernel whose tables belong to no process.
        host.run(&["nft", "add", "table", "inet", "netd-trace-4194999"])?;
        let running = state(host)?;
        let list = cleanup(host, &[])?;
        ensure!(list.status.success() && list.stdout.contains("nothing is removed yet"), "{list:?}");
        ensure!(list.stdout.contains("netd-trace-4194999"), "{list:?}");
        for row in ["route 172.7.22.0/24", "nft ", "rule "] {
            ensure!(list.stdout.lines().any(|line| line.starts_with(row)), "{row}: {}", list.stdout);
        }
        ensure!(list.stdout.contains("link flannel.1") == (config == VXLAN), "{list:?}");
        ensure!(!list.stdout.contains("172.7.20") && !list.stdout.contains("theirs"), "{list:?}");
        ensure!(state(host)? == running, "a list changes nothing");
        let done = cleanup(host, &["--yes", "--files"])?;
        ensure!(done.status.success() && done.stdout.ends_with("removed\n"), "{done:?}");
        let after = state(host)?;
        ensure!(after == before, "{done:?}\nbefore:\n{before}\nafter:\n{after}");
        let left = host.run(&["sh", "-c", "ls /run/netd; ls /run/flannel/subnet.env || true"])?.stdout;
        ensure!(left.trim() == "claims", "{left}");
        let again = cleanup(host, &["--yes"])?;
        ensure!(again.status.success() && again.stdout == "nothing of this program's is here\n", "{again:?}");
    }
    Ok(())
}

fn other_network_of_the_host_stays() -> Result<()> {
    let net = Net::start(VXLAN)?;
    net.etcd.put("/blue/config", r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#)?;
    let host = net.host("hdss7-21")?;
    let first = net.netd("hdss7-21")?;
    let blue = ["--etcd-prefix=/blue", "--subnet-file=/run/flannel/blue.env", "--metrics-bind-address="];
    let second = net.launch("hdss7-21", &blue)?;
    second.wait_for_line("ready: every lease is in the kernel", SOON)?;
    first.terminate(SOON)?;
    let done = cleanup(host, &["--yes", "--files", "--flannel"])?;
    ensure!(done.status.success() && done.stdout.contains("link flannel.1 "), "{done:?}");
    ensure!(!done.stdout.contains("flannel.2") && !done.stdout.contains("blue"), "{done:?}");
    let rules = host.run(&["nft", "list", "tables"])?.stdout;
    ensure!(rules.contains("table ip netd.blue") && !rules.lines().any(|line| line == "table ip netd"), "{rules}");
    host.run(&["ip", "link", "show", "flannel.2"])?;
    ensure!(host.read("/run/flannel/blue.env")?.contains("10.5."));
    // The status follows the kernel by up to half a second.
    eventually(SOON, || {
        let status =
            host.command(lab::bin("netd")?).args(["status", "--subnet-file=/run/flannel/blue.env"]).output()?;
        ensure!(status.stdout.contains(": in sync\n"), "{status:?}");
        Ok(())
    })
}

/// The claims of a daemon are files, and a container has another `/run`.
fn daemon_whose_files_are_not_seen_is_noticed_and_costs_nothing() -> Result<()> {
    for config in [VXLAN, HOST_GW] {
        let net = Net::start(config)?;
        let (netd, host) = (net.netd("hdss7-21")?, net.host("hdss7-21")?);
        let before = kernel_state(host)?;
        let program = lab::bin("netd")?;
        let elsewhere = "mount -t tmpfs t /run && exec \"$0\" cleanup --flannel --files --yes";
        let said = host.command("unshare").args(["-m", "sh", "-c", elsewhere]).arg(program).output()?;
        let named = said.stderr.contains("netd runs with Pod network 172.7.0.0/16 in this network namespace");
        ensure!(!said.status.success() && named, "{said:?}");
        ensure!(kernel_state(host)? == before && netd.is_running(), "{}", kernel_state(host)?);
    }
    Ok(())
}

fn leftovers_of_flannel_go_on_request_only() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    host.run(&["iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "203.0.113.0/24", "-j", "RETURN"])?;
    others_have(host)?;
    host.run(&["sh", "-c", "ip route del 172.7.201.0/24"])?;
    let before = state(host)?;
    host.run(&["sh", "-ec", FLANNEL])?;
    host.run(&["sh", "-ec", RULES])?;
    let with_flannel = state(host)?;
    let none = cleanup(host, &["--yes"])?;
    ensure!(none.stdout == "nothing of this program's is here\n" && state(host)? == with_flannel, "{none:?}");
    let list = cleanup(host, &["--flannel"])?;
    for row in [
        "link flannel.1 ",
        "route 172.7.22.0/24",
        "route 172.7.23.0/24",
        "nft chain ip nat FLANNEL-POSTRTG, with",
        "nft chain ip filter FLANNEL-FWD, with",
        "nft rule in ip filter FORWARD \"flanneld forward\"",
    ] {
        let found = list.stdout.lines().filter(|line| line.starts_with(row)).count();
        ensure!(found == 1, "{row}: {}", list.stdout);
    }
    ensure!(list.stdout.contains("flannel-ipv4") && list.stdout.contains("flannel-ipv6"), "{list:?}");
    ensure!(state(host)? == with_flannel, "a list changes nothing");
    let done = cleanup(host, &["--flannel", "--yes", "--files"])?;
    ensure!(done.status.success(), "{done:?}");
    let after = state(host)?;
    ensure!(after == before, "{done:?}\nbefore:\n{before}\nafter:\n{after}");
    Ok(())
}

fn rules_of_flannel_go_while_netd_runs_in_its_place() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    host.run(&["iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "203.0.113.0/24", "-j", "RETURN"])?;
    others_have(host)?;
    let [_netd, _other] = net.both()?;
    let before = state(host)?;
    host.run(&["sh", "-ec", RULES])?;
    ensure!(state(host)? != before, "flannel has rules");
    let list = cleanup(host, &["--flannel-rules"])?;
    ensure!(list.stdout.contains("nft chain ip nat FLANNEL-POSTRTG, with"), "{list:?}");
    ensure!(list.stdout.ends_with("nothing is removed yet: --yes does\n") && state(host)? != before, "{list:?}");
    let done = cleanup(host, &["--flannel-rules", "--yes"])?;
    ensure!(done.status.success() && done.stdout.ends_with("removed\n"), "{done:?}");
    let after = state(host)?;
    ensure!(after == before, "{done:?}\nbefore:\n{before}\nafter:\n{after}");
    let again = cleanup(host, &["--flannel-rules", "--yes"])?;
    ensure!(again.stdout == "no rule of flannel's is here\n", "{again:?}");
    Ok(())
}

fn running_flanneld_is_named() -> Result<()> {
    let host = Host::start("node")?;
    host.run(&["sh", "-ec", "cp /bin/sleep /tmp/flanneld"])?;
    let flanneld = host.command("/tmp/flanneld").arg("600").start("flanneld")?;
    let refused = cleanup(&host, &["--flannel", "--yes"])?;
    ensure!(refused.status.code() == Some(1) && refused.stderr.contains("flanneld runs with process "), "{refused:?}");
    flanneld.kill()?;
    ensure!(cleanup(&host, &["--flannel", "--yes"])?.status.success());
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables, Need::Vxlan, Need::Dummy],
        lab::tests![
            everything_of_netd_goes_and_what_others_have_stays,
            other_network_of_the_host_stays,
            daemon_whose_files_are_not_seen_is_noticed_and_costs_nothing,
            leftovers_of_flannel_go_on_request_only,
            rules_of_flannel_go_while_netd_runs_in_its_place,
            running_flanneld_is_named,
        ],
    )
}
