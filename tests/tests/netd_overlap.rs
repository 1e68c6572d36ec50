//! Keys of the store that share addresses, and keys that spell a subnet in another way.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Need, eventually, throughout};
use netd_node::{HOST_GW, Net, SOON, VXLAN, kernel_state};

const FOLDER: &str = "/coreos.com/network/subnets";

/// The reason for which `subnet` is not used says all of `parts`.
fn eventually_skips(net: &Net, subnet: &str, parts: &[&str]) -> Result<()> {
    eventually(SOON, || {
        let status = net.status("hdss7-21")?;
        let reason = status["skipped"][subnet].as_str().unwrap_or_default();
        ensure!(parts.iter().all(|part| reason.contains(part)), "{subnet}: {reason:?} lacks one of {parts:?}");
        Ok(())
    })
}

fn part_or_whole_of_a_peers_subnet_takes_nothing_from_it_and_both_are_named() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.both()?;
    let host = net.host("hdss7-21")?;
    let before = kernel_state(host)?;
    for (key, subnet, other) in [
        ("172.7.22.0-29", "172.7.22.0/29", "10.4.7.66"),
        ("172.7.22.0-25", "172.7.22.0/25", "10.4.7.67"),
        ("172.7.22.128-25", "172.7.22.128/25", "10.4.7.68"),
        ("172.7.22.0-23", "172.7.22.0/23", "10.4.7.69"),
    ] {
        net.put_lease(key, other, &format!("02:00:00:00:00:{}", other.rsplit('.').next().unwrap()))?;
        eventually_skips(&net, subnet, &[subnet, other, "172.7.22.0/24", "10.4.7.22"])?;
        ensure!(
            kernel_state(host)? == before,
            "{key} changed the kernel:\n{}\n--- instead of\n{before}",
            kernel_state(host)?
        );
    }
    let text = host.run(&[lab::bin("netd")?.to_str().unwrap(), "status"])?.stdout;
    ensure!(text.contains("10.4.7.66 overlaps 172.7.22.0/24 of 10.4.7.22"), "{text}");
    Ok(())
}

fn restart_beside_overlapping_leases_keeps_the_older_one() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    let [first, _second] = net.both()?;
    let host = net.host("hdss7-21")?;
    net.put_lease("172.7.22.0-25", "10.4.7.66", "host-gw")?;
    eventually_skips(&net, "172.7.22.0/25", &["10.4.7.22"])?;
    let before = kernel_state(host)?;
    first.terminate(SOON)?;
    let _again = net.netd("hdss7-21")?;
    eventually_skips(&net, "172.7.22.0/25", &["10.4.7.22"])?;
    throughout(Duration::from_secs(1), || {
        ensure!(kernel_state(host)? == before, "{}\n--- instead of\n{before}", kernel_state(host)?);
        Ok(())
    })
}

fn renewal_by_writing_the_key_anew_makes_a_lease_no_younger() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    for (key, holder) in
        [("172.7.30.0-24", "10.4.7.30"), ("172.7.30.0-25", "10.4.7.66"), ("172.7.30.0-24", "10.4.7.30")]
    {
        // The third is flannel's daily renewal of the first.
        net.put_lease(key, holder, "host-gw")?;
    }
    let _netd = net.netd("hdss7-21")?;
    net.eventually_routes("hdss7-21", "172.7.30.0/24")?;
    eventually_skips(&net, "172.7.30.0/25", &["172.7.30.0/24 of 10.4.7.30"])
}

fn overlapping_lease_is_used_once_the_other_is_gone() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    let _netd = net.netd("hdss7-21")?;
    net.put_lease("172.7.30.0-24", "10.4.7.30", "host-gw")?;
    net.eventually_routes("hdss7-21", "172.7.30.0/24")?;
    net.put_lease("172.7.30.0-25", "10.4.7.66", "host-gw")?;
    eventually_skips(&net, "172.7.30.0/25", &["172.7.30.0/24"])?;
    net.etcd.delete(&format!("{FOLDER}/172.7.30.0-24"))?;
    net.eventually_routes("hdss7-21", "172.7.30.0/25")?;
    eventually(SOON, || {
        ensure!(!kernel_state(net.host("hdss7-21")?)?.contains("172.7.30.0/24"), "the route of a lease that is gone");
        Ok(())
    })
}

fn key_that_is_not_its_own_spelling_is_no_lease_and_stops_nobody() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let value = |last: u8| netd_node::lease(&format!("10.4.7.{last}"), &format!("02:00:00:00:00:{last}"));
    // Of the subnet that the node would take, in its own name, in another's, and without a meaning.
    let spellings = [
        ("172.7.21.0-024", value(21)),
        ("172.7.21.0-0024", value(66)),
        ("172.7.21.0-+24", "{}".to_owned()),
        ("172.7.021.0-24", value(67)),
        ("172.7.21.0-24 ", value(68)),
        ("172.7.1.0-24&FC00::-64", value(21)),
    ];
    for (key, value) in &spellings {
        net.etcd.put(&format!("{FOLDER}/{key}"), value)?;
    }
    let netd = net.netd("hdss7-21")?;
    ensure!(!netd.log().contains("faster"), "{}", netd.log());
    eventually(SOON, || {
        let status = net.status("hdss7-21")?;
        for (key, _) in &spellings {
            ensure!(status["invalid"][*key].is_string(), "{key:?} is not reported:\n{status}");
        }
        ensure!(status["node"]["subnet"] == "172.7.21.0/24", "{status}");
        Ok(())
    })?;
    ensure!(net.subnets()?.len() == spellings.len() + 1, "{:?}", net.subnets()?);
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            part_or_whole_of_a_peers_subnet_takes_nothing_from_it_and_both_are_named,
            restart_beside_overlapping_leases_keeps_the_older_one,
            renewal_by_writing_the_key_anew_makes_a_lease_no_younger,
            overlapping_lease_is_used_once_the_other_is_gone,
            key_that_is_not_its_own_spelling_is_no_lease_and_stops_nobody,
        ],
    )
}
