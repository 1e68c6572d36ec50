//! What this kernel lacks is said at the start and by `netd doctor`, with what to do, and nothing is said of what it has: on whatever kernel the
//! tests run, and on several of them by `make test-kernels`, one of which lacks nearly all.
#![allow(clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Host, Need, Process};

const SOON: Duration = Duration::from_secs(30);

/// What rules of nftables are made of: a line that makes one, and what is said where that cannot be.
const RULES: [(&str, &str); 6] = [
    ("add chain ip tried d", "nftables"),
    ("add rule ip tried c ct state new", "rules of nftables about connections"),
    ("add rule ip tried nat masquerade", "address translation by nftables"),
    ("add rule ip tried c fib daddr type local", "rules of nftables about local addresses"),
    ("add rule ip tried c reject", "rules of nftables that reject"),
    ("add rule ip tried c numgen random mod 2 0", "random numbers in nftables"),
];
const TABLE: &str =
    "add table ip tried\nadd chain ip tried c\nadd chain ip tried nat { type nat hook postrouting priority 100; }\n";
/// What only Pods need that ask for it: a command that makes it, and its name.
const OF_PODS: [(&[&str], &str); 2] = [
    (
        &["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "1mbit", "burst", "10kb", "latency", "1ms"],
        "token buckets",
    ),
    (&["nft", "add", "table", "bridge", "tried"], "nftables for bridges"),
];
const CONNECTIONS: &str = "a list of tracked connections";

/// A machine with an interface that has an address; of a kind that every kernel has.
fn machine() -> Result<Host> {
    let host = Host::start("node")?;
    let batch = "link add eth0 type veth peer name far0\nlink set far0 up\nlink set eth0 up\naddress add 10.4.7.21/24 dev eth0\n";
    host.command("ip").args(["-batch", "-"]).input(batch).run()?;
    Ok(host)
}

/// Whether the nft tool can make `line` in a table that is there or not.
fn can(line: &str) -> Result<bool> {
    let host = machine()?;
    // Without chains that translate there still is the other one.
    let whole = host.command("nft").args(["-f", "-"]).input(TABLE).output()?.status.success();
    if !whole {
        host.command("nft").args(["-f", "-"]).input("add table ip tried\nadd chain ip tried c\n").output()?;
    }
    Ok(host.command("nft").args(["-f", "-"]).input(line).output()?.status.success())
}

/// All that `RULES` says of this kernel, and not of what it has.
fn lacking(names: &[&'static str]) -> Result<Vec<&'static str>> {
    let mut lacking = Vec::new();
    for (line, name) in RULES.iter().filter(|(_, name)| names.contains(name)) {
        if !can(line)? {
            lacking.push(*name);
        }
    }
    Ok(lacking)
}

fn netd(host: &Host, backend: &str, more: &[&str]) -> Result<Process> {
    let conf = format!(r#"{{"Network":"172.7.0.0/16","Backend":{{"Type":"{backend}"}}}}"#);
    host.write("/etc/net-conf.json", conf)?;
    let command = host.command(lab::bin("netd")?).args(["--store=local", "--net-config-path=/etc/net-conf.json"]);
    command.args(["--iface=eth0", "--log-format=text"]).args(more).start("netd")
}

/// Waits until `program` runs, or has ended as it must where the kernel has not what `missing` names; of nothing else is said that it is not
/// there.
fn check_start(program: &Process, ready: &str, missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        program.wait_for_line(ready, SOON)?;
    } else {
        ensure!(!program.wait(SOON)?.success(), "it has ended well without {missing:?}");
    }
    let log = program.log();
    let said: Vec<&str> = log.split("this kernel has no ").skip(1).filter_map(|rest| rest.split(": ").next()).collect();
    let refused: Vec<&&str> = said.iter().filter(|name| **name != CONNECTIONS).collect();
    ensure!(refused.len() == missing.len() && missing.iter().all(|name| said.contains(name)), "{missing:?} in {log}");
    ensure!(
        missing.is_empty() || (log.contains("modprobe ") && log.contains("CONFIG_")),
        "what is to be done in {log}"
    );
    Ok(())
}

fn netd_refuses_a_backend_whose_devices_the_kernel_lacks_and_no_other() -> Result<()> {
    for (backend, need, devices) in [
        ("vxlan", Some(Need::Vxlan), "vxlan devices"),
        ("ipip", Some(Need::IpIp), "ipip devices"),
        ("wireguard", Some(Need::WireGuard), "wireguard devices"),
        ("host-gw", None, ""),
    ] {
        let lacks = need.is_some_and(|need| need.check().is_err());
        let host = machine()?;
        let daemon = netd(&host, backend, &["--ip-masq=false"])?;
        let missing = if lacks { vec![devices] } else { Vec::new() };
        check_start(&daemon, "ready: every lease is in the kernel", &missing).context(backend)?;
        ensure!(!lacks || daemon.log().contains("host-gw needs none"), "{}", daemon.log());
        let links = host.run(&["ip", "-o", "link"])?.stdout;
        ensure!(!lacks || !links.contains("flannel"), "{links}");
    }
    Ok(())
}

fn netd_refuses_to_masquerade_without_the_rules_for_it_and_doctor_says_what_is_missing() -> Result<()> {
    let missing = lacking(&["nftables", "rules of nftables about connections", "address translation by nftables"])?;
    let host = machine()?;
    let daemon = netd(&host, "host-gw", &["--ip-masq"])?;
    check_start(&daemon, "ready: every lease is in the kernel", &missing)?;
    drop(daemon);
    let found = host.command(lab::bin("netd")?).args(["doctor", "--run-dir=/run/netd"]).output()?.stdout;
    for name in ["vxlan devices", "ipip devices", "wireguard devices"].iter().chain(&missing) {
        let lacks = match *name {
            "vxlan devices" => Need::Vxlan.check().is_err(),
            "ipip devices" => Need::IpIp.check().is_err(),
            "wireguard devices" => Need::WireGuard.check().is_err(),
            _ => true,
        };
        ensure!(found.contains(&format!("this kernel has no {name}")) == lacks, "{name}: {found}");
    }
    let tried = machine()?;
    for (line, name) in OF_PODS {
        let lacks = !tried.command(line[0]).args(&line[1..]).output()?.status.success();
        ensure!(found.contains(&format!("this kernel has no {name}: the plugin refuses")) == lacks, "{name}: {found}");
    }
    Ok(())
}

fn netd_leaves_the_flowtable_out_where_its_flows_would_keep_their_routes() -> Result<()> {
    let host = machine()?;
    let conf = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"host-gw"},"Flowtable":true}"#;
    host.write("/etc/net-conf.json", conf)?;
    let command = host.command(lab::bin("netd")?).args(["--store=local", "--net-config-path=/etc/net-conf.json"]);
    let daemon = command.args(["--iface=eth0", "--log-format=text", "--ip-masq=false"]).start("netd")?;
    daemon.wait_for_line("ready: every lease is in the kernel", SOON)?;
    let reason = Need::Flowtable.check().err().map(|error| format!("{error:#}")).unwrap_or_default();
    let keep_routes = reason.contains("keep routes");
    let said = daemon.log().contains("flows of kernels before 5.13 keep routes that have changed");
    ensure!(said == keep_routes, "{reason:?}: {}", daemon.log());
    Ok(())
}

/// What is not in this kernel is not there to be listed or removed.
fn commands_read_a_kernel_and_clean_it_up_whatever_it_lacks() -> Result<()> {
    let host = machine()?;
    let daemon = netd(&host, "host-gw", &["--ip-masq=false"])?;
    daemon.wait_for_line("ready: every lease is in the kernel", SOON)?;
    let command = |program: &str, words: &[&str]| Ok::<_, anyhow::Error>(host.command(lab::bin(program)?).args(words));
    command("netd", &["tables"])?.run()?;
    let trace = command("netd", &["trace", "10.4.7.22"])?.output()?;
    ensure!(trace.stdout.contains("ok       route"), "{trace:?}");
    drop(daemon);
    command("netd", &["cleanup", "--yes"])?.run()?;
    host.write("/etc/kube/none.yaml", "")?;
    let found = command("ipvs-proxy", &["doctor", "--services-dir=/etc/kube"])?.output()?;
    ensure!(!found.stdout.contains("Invalid argument") && !found.stderr.contains("Invalid argument"), "{found:?}");
    command("ipvs-proxy", &["--cleanup", "--services-dir=/etc/kube"])?.run().map(drop)
}

fn proxy_refuses_a_data_path_that_the_kernel_cannot_carry() -> Result<()> {
    let common: Vec<&str> = RULES.iter().map(|(_, name)| *name).filter(|name| !name.starts_with("random")).collect();
    let (rules, random) = (lacking(&common)?, lacking(&["random numbers in nftables"])?);
    for mode in ["nftables", "ipvs"] {
        let missing = match mode {
            "nftables" => [rules.clone(), random.clone()].concat(),
            // It is asked for first, and nothing after it.
            _ if Need::IpVs.check().is_err() => vec!["IPVS"],
            _ if Need::Dummy.check().is_err() => [rules.clone(), vec!["dummy devices"]].concat(),
            _ => rules.clone(),
        };
        let host = machine()?;
        host.write("/etc/kube/none.yaml", "")?;
        let command =
            host.command(lab::bin("ipvs-proxy")?).args(["--services-dir=/etc/kube", "--hostname-override=node"]);
        let proxy = command.arg(format!("--proxy-mode={mode}")).start("ipvs-proxy")?;
        check_start(&proxy, "starting", &missing).context(mode)?;
        let listed = can("list ruleset")? && host.command("conntrack").arg("-L").output()?.status.success();
        let said = proxy.log().contains(CONNECTIONS);
        ensure!(said != listed || !missing.is_empty(), "{}", proxy.log());
    }
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[],
        lab::tests![
            netd_refuses_a_backend_whose_devices_the_kernel_lacks_and_no_other,
            netd_refuses_to_masquerade_without_the_rules_for_it_and_doctor_says_what_is_missing,
            netd_leaves_the_flowtable_out_where_its_flows_would_keep_their_routes,
            commands_read_a_kernel_and_clean_it_up_whatever_it_lacks,
            proxy_refuses_a_data_path_that_the_kernel_cannot_carry,
        ],
    )
}
