//! A kernel with IPVS is found or started: a virtual server made with `ipvsadm` balances between two machines.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Cluster, Need, Topology, echo};

const SOON: Duration = Duration::from_secs(20);

fn virtual_server_spreads_connections_evenly() -> Result<()> {
    let cluster = Cluster::start(&Topology::parse("network 10.4.7.0/24\na 10.4.7.21\nb 10.4.7.22\nc 10.4.7.23")?)?;
    let _servers = [echo::serve(cluster.host("b")?, "b", 80)?, echo::serve(cluster.host("c")?, "c", 80)?];
    let balancer = cluster.host("a")?;
    balancer.run(&["sysctl", "-qw", "net.ipv4.vs.conntrack=1"])?;
    balancer
        .command("ip")
        .args(["-batch", "-"])
        .input("link add vip0 type dummy\naddress add 192.168.0.10/32 dev vip0\n")
        .run()?;
    let rules = "-A -t 192.168.0.10:80 -s rr\n-a -t 192.168.0.10:80 -r 10.4.7.22:80 -m\n-a -t 192.168.0.10:80 -r 10.4.7.23:80 -m\n";
    balancer.command("ipvsadm").arg("--restore").input(rules).run()?;
    let masquerade = "add table ip t\nadd chain ip t post { type nat hook postrouting priority 100; }\nadd rule ip t post ip saddr 192.168.0.10 masquerade\n";
    balancer.command("nft").args(["-f", "-"]).input(masquerade).run()?;
    let mut counts = BTreeMap::new();
    for _ in 0..8 {
        let answer = echo::ask_tcp(balancer, "192.168.0.10:80".parse()?, SOON)?;
        ensure!(answer.client.ip().to_string() == "10.4.7.21", "{answer:?}");
        *counts.entry(answer.name).or_insert(0) += 1;
    }
    ensure!(counts == BTreeMap::from([("b".to_owned(), 4), ("c".to_owned(), 4)]), "{counts:?}");
    Ok(())
}

fn each_machine_has_its_own_virtual_servers() -> Result<()> {
    let hosts = [lab::Host::start("a")?, lab::Host::start("b")?];
    hosts[0].run(&["ipvsadm", "-A", "-t", "192.168.0.10:80"])?;
    ensure!(hosts[0].run(&["ipvsadm", "-Ln"])?.stdout.contains("192.168.0.10:80"));
    ensure!(!hosts[1].run(&["ipvsadm", "-Ln"])?.stdout.contains("192.168.0.10:80"));
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::IpVs, Need::Nftables, Need::Dummy],
        lab::tests![virtual_server_spreads_connections_evenly, each_machine_has_its_own_virtual_servers],
    )
}
