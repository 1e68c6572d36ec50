//! Readiness beside rows that the kernel refuses.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::{Need, eventually};
use netd_node::{HOST_GW, Net, SOON, VXLAN};

fn refused_leases_keep_no_node_from_being_ready_and_are_named() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    // Off the link, the network's broadcast address, and a node that is fine.
    net.put_lease("172.7.31.0-24", "10.9.9.9", "host-gw")?;
    net.put_lease("172.7.32.0-24", "10.4.7.255", "host-gw")?;
    net.put_lease("172.7.22.0-24", "10.4.7.22", "host-gw")?;
    let netd = net.launch("hdss7-21", &[])?;
    let line = netd.wait_for_line("ready: rows that the kernel refused are missing", SOON)?;
    ensure!(line.contains("missing=2"), "{line}");
    net.eventually_routes("hdss7-21", "172.7.22.0/24")?;
    ensure!(net.host("hdss7-21")?.read("/run/flannel/subnet.env")?.contains("FLANNEL_SUBNET=172.7.21.1/24"));
    eventually(SOON, || {
        let status = net.status("hdss7-21")?;
        let rows = status["tables"]["routes"]["open"].as_array().context("no status yet")?;
        for subnet in ["172.7.31.0/24", "172.7.32.0/24"] {
            let named = |row: &&serde_json::Value| row["key"].as_str().is_some_and(|key| key.contains(subnet));
            let row = rows.iter().find(named);
            let reason = row.and_then(|row| row["reason"].as_str()).unwrap_or_default();
            ensure!(!reason.is_empty(), "no reason for {subnet}: {status}");
        }
        ensure!(status["node"]["in_sync"] == false && status["tables"]["routes"]["done"] == 1, "{status}");
        Ok(())
    })?;
    let text = net.host("hdss7-21")?.run(&[lab::bin("netd")?.to_str().unwrap(), "status"])?.stdout;
    ensure!(text.contains("not in sync") && text.contains("172.7.31.0/24"), "{text}");
    // The lease comes right: nothing has to be started again.
    net.put_lease("172.7.31.0-24", "10.4.7.31", "host-gw")?;
    net.eventually_routes("hdss7-21", "172.7.31.0/24")
}

fn addresses_of_no_host_keep_no_node_from_being_ready_and_are_named() -> Result<()> {
    let odd = ["0.0.0.0", "255.255.255.255", "224.0.0.1", "127.0.0.1", "10.4.7.255", "172.7.21.5", "172.7.55.1"];
    for (config, mac) in [(HOST_GW, false), (VXLAN, true)] {
        let net = Net::start(config)?;
        let backend = |n: usize| if mac { format!("02:00:00:00:01:{n:02}") } else { "host-gw".to_owned() };
        for (n, address) in odd.iter().enumerate() {
            net.put_lease(&format!("172.7.{}.0-24", 50 + n), address, &backend(n))?;
        }
        net.put_lease("172.7.22.0-24", "10.4.7.22", &backend(22))?;
        let netd = net.launch("hdss7-21", &[])?;
        netd.wait_for_line("ready: ", SOON)?;
        net.eventually_routes("hdss7-21", "172.7.22.0/24")?;
        eventually(SOON, || {
            let status = net.status("hdss7-21")?;
            for (n, address) in odd.iter().enumerate() {
                let subnet = format!("172.7.{}.0/24", 50 + n);
                let named = status["skipped"][&subnet].is_string() || status["tables"].to_string().contains(&subnet);
                ensure!(named, "{config}: {address} is not named: {status}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// A container runtime makes a folder of what it is to mount and does not find.
fn subnet_file_that_cannot_be_written_is_in_the_status_until_it_can() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    let (_netd, host) = (net.netd("hdss7-21")?, net.host("hdss7-21")?);
    let warned = |is_warned: bool| {
        eventually(SOON, || {
            let warnings = net.status("hdss7-21")?["warnings"].to_string();
            ensure!(warnings.contains("write /run/flannel/subnet.env: ") == is_warned, "{warnings}");
            Ok(())
        })
    };
    host.run(&["sh", "-c", "cd /run/flannel; until mkdir -p subnet.env/x 2>/dev/null; do rm -f subnet.env; done"])?;
    warned(true)?;
    host.run(&["rm", "-r", "/run/flannel/subnet.env"])?;
    warned(false)?;
    ensure!(host.read("/run/flannel/subnet.env")?.contains("FLANNEL_SUBNET=172.7.21.1/24"));
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables],
        lab::tests![
            refused_leases_keep_no_node_from_being_ready_and_are_named,
            addresses_of_no_host_keep_no_node_from_being_ready_and_are_named,
            subnet_file_that_cannot_be_written_is_in_the_status_until_it_can,
        ],
    )
}
