//! `--ip-blackhole-route`: what no Pod of this node has is dropped here, and nothing else is.
#![allow(clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::{Host, Need, eventually};
use netd_node::{Net, SOON, pod};

const DUAL: &str =
    r#"{"Network":"172.7.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:7::/48","Backend":{"Type":"host-gw"}}"#;

/// The routes of one family that drop.
fn blackholes(host: &Host, family: &str) -> Result<String> {
    Ok(host.run(&["ip", family, "route", "show", "type", "blackhole"])?.stdout)
}

fn unused_addresses_are_dropped_and_pods_reached_and_the_route_stays_and_goes() -> Result<()> {
    let net = Net::start(DUAL)?;
    let host = net.host("hdss7-21")?;
    host.run(&["ip", "-6", "address", "add", "fd00:10:4:7::21/64", "dev", "eth0", "nodad"])?;
    // Somebody else's stays whatever happens.
    host.run(&["ip", "route", "add", "blackhole", "172.7.99.0/24"])?;
    let netd = net.launch("hdss7-21", &["--ip-blackhole-route"])?;
    netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
    let stands = || -> Result<()> {
        for (family, subnet) in [("-4", "172.7.21.0/24"), ("-6", "fd00:7:0:21::/64")] {
            let routes = blackholes(host, family)?;
            let ours = |line: &&str| line.contains(subnet) && line.contains("proto 121");
            ensure!(routes.lines().filter(ours).count() == 1, "{subnet}: {routes}");
        }
        ensure!(net.status("hdss7-21")?["node"]["in_sync"] == true);
        Ok(())
    };
    eventually(SOON, stands)?;
    // In front of it stand the bridge's routes; an address beside them is not sent along the default route.
    let web = pod(host, "172.7.21")?;
    host.run(&["ping", "-c1", "-W5", "172.7.21.2"])?;
    host.run(&["ip", "address", "replace", "172.7.21.1/28", "dev", "cbr0"])?;
    host.run(&["ip", "address", "del", "172.7.21.1/24", "dev", "cbr0"])?;
    host.run(&["ping", "-c1", "-W5", "172.7.21.2"])?;
    let unused = host.command("ip").args(["route", "get", "172.7.21.200"]).output()?;
    ensure!(!unused.status.success(), "{unused:?}");
    let status = net.status("hdss7-21")?;
    ensure!(!status["warnings"].to_string().contains("in front of"), "{status}");
    drop(web);
    host.run(&["ip", "route", "del", "blackhole", "172.7.21.0/24", "proto", "121"])?;
    eventually(SOON, stands)?;
    netd.terminate(SOON)?;
    // Without the flag it goes at the next start, and only that one.
    let netd = net.launch("hdss7-21", &["--ip-blackhole-route=false"])?;
    netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
    eventually(SOON, || {
        let (v4, v6) = (blackholes(host, "-4")?, blackholes(host, "-6")?);
        ensure!(v4.trim() == "blackhole 172.7.99.0/24" && v6.trim().is_empty(), "{v4}{v6}");
        Ok(())
    })
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables],
        lab::tests![unused_addresses_are_dropped_and_pods_reached_and_the_route_stays_and_goes],
    )
}
